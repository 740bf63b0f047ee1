//! Who this node is: its id, its record, its gossip tags, and the lock on its data directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use weft_agent::config::RuntimeConfig;
use weft_agent::config::runtime::Bootstrap;
use weft_proto::v1;

/// Version that compatible clients compare with.
pub(crate) const CONSUL_VERSION: &str = "1.22.0";

/// Holds the data directory for as long as the process lives.
pub(crate) struct DataDirLock(
    #[expect(dead_code, reason = "held, not read: closing it frees the lock")] Option<File>,
);

/// Creates `data_dir` if need be and locks it.
///
/// Errors: another process holds it (named by pid), or it cannot be used.
pub(crate) fn lock_data_dir(data_dir: Option<&Path>) -> anyhow::Result<DataDirLock> {
    let Some(dir) = data_dir else {
        return Ok(DataDirLock(None));
    };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).with_context(|| {
        format!(
            "cannot create data_dir {}; check its parent and owner",
            dir.display()
        )
    })?;
    let path = dir.join("weft.lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| {
            format!(
                "cannot open {}; check the owner of data_dir",
                path.display()
            )
        })?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder);
        let holder = holder.trim();
        bail!(
            "data_dir {} is in use by another weft process{}; stop that one, or give this one a data_dir of its own",
            dir.display(),
            if holder.is_empty() {
                String::new()
            } else {
                format!(" (pid {holder})")
            },
        );
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(DataDirLock(Some(file)))
}

/// The node's id: configured, or kept in `data_dir/node-id` since the first start.
pub(crate) fn node_id(config: &RuntimeConfig) -> anyhow::Result<String> {
    if let Some(id) = &config.node.id {
        return Ok(id.clone());
    }
    let Some(dir) = &config.data_dir else {
        return Ok(weft_proto::ids::mint());
    };
    let path = dir.join("node-id");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim().to_ascii_lowercase();
            uuid::Uuid::parse_str(&id).with_context(|| {
                format!(
                    "{} does not hold a UUID; remove it to get a new one, or set node_id",
                    path.display()
                )
            })?;
            Ok(id)
        }
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            let id = weft_proto::ids::mint();
            weft_identity::files::write(&path, format!("{id}\n").as_bytes(), 0o600)
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(id)
        }
        Err(cause) => Err(cause).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The record that anti-entropy keeps in the catalog.
pub(crate) fn record(config: &RuntimeConfig, id: &str) -> v1::Node {
    let mut meta = config.node.meta.clone();
    meta.insert("consul-network-segment".into(), String::new());
    meta.insert("consul-version".into(), CONSUL_VERSION.into());
    v1::Node {
        id: id.to_owned(),
        name: config.node.name.clone(),
        address: config.network.advertise.to_string(),
        datacenter: config.datacenter.clone(),
        tagged_addresses: config.network.tagged_addresses.clone(),
        meta,
        ..v1::Node::default()
    }
}

/// What the pool is told about this node, in Consul's words where Consul has them. `raft_id`: a server's.
pub(crate) fn tags(
    config: &RuntimeConfig,
    id: &str,
    raft_id: Option<&str>,
) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::from(
        [
            ("role", raft_id.map_or("node", |_| "consul")),
            ("dc", &config.datacenter),
            ("id", id),
            (
                "build",
                &format!("{CONSUL_VERSION}:weft-{}", env!("CARGO_PKG_VERSION")),
            ),
            ("vsn", "2"),
            ("vsn_min", "2"),
            ("vsn_max", "3"),
            ("segment", ""),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    let Some(raft_id) = raft_id else {
        return tags;
    };
    tags.insert("raft_id".into(), raft_id.to_owned());
    tags.insert("raft_vsn".into(), "3".into());
    let port = config.network.advertise_rpc().port();
    tags.insert("port".into(), port.to_string());
    match config.bootstrap {
        Bootstrap::Expect(n) => drop(tags.insert("expect".into(), n.to_string())),
        Bootstrap::Alone => drop(tags.insert("bootstrap".into(), "1".into())),
        Bootstrap::Join => {}
    }
    tags
}
