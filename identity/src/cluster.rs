//! First key material of a cluster: what `weft init` writes.
//!
//! Owns: one CA, a certificate per server, the gossip key, and a configuration per server that
//! uses them (Consul's keys; TRUST B.3's defaults).
//! Never: replaces a file unless forced; prints a key; keeps the CA's key anywhere but in the first
//! directory, from where the operator takes it to a safe place.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use weft_proto::ids::UnixMillis;

use crate::enrolment;
use crate::files::{self, FileError, PRIVATE_DIRECTORY, PRIVATE_FILE};
use crate::pki::{self, CaRequest, CertKind, CertRequest, Pems, PkiError};
use crate::secret::Secret;

/// Servers of one cluster at most: more make every write slower, not safer.
pub const SERVERS_MAX: usize = 9;
/// Name of the configuration file.
pub const CONFIG_FILE: &str = "weft.hcl";

/// One server to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its node name; also its directory's.
    pub name: String,
    /// Where others reach it, when that is known already.
    pub address: Option<IpAddr>,
}

/// What `weft init` is asked for.
#[derive(Clone, Debug)]
pub struct InitRequest {
    /// Where to write; made with mode 0700.
    pub directory: PathBuf,
    /// The path the files will have on the servers; the configurations name it.
    pub install_directory: PathBuf,
    /// `data_dir` in the configurations.
    pub data_dir: PathBuf,
    /// `datacenter`.
    pub datacenter: String,
    /// `domain`.
    pub domain: String,
    /// The servers, this one first. One makes a cluster of one.
    pub servers: Vec<Seat>,
    /// Life of the server certificates in days; the CA lives five years, or as long.
    pub days: u32,
    /// Turn ACLs on with default policy `deny`.
    pub acl: bool,
    /// `ports.https`; −1 leaves HTTPS off.
    pub https_port: i32,
    /// Replace files of an earlier run. Those already handed out stop working then.
    pub force: bool,
}

impl InitRequest {
    /// Defaults for a cluster of the named servers in `directory`.
    #[must_use]
    pub fn new(directory: &Path, servers: Vec<Seat>) -> Self {
        Self {
            directory: directory.to_owned(),
            install_directory: directory.to_owned(),
            data_dir: PathBuf::from("/var/lib/weft"),
            datacenter: "dc1".to_owned(),
            domain: "consul".to_owned(),
            servers,
            days: 365,
            acl: true,
            https_port: 8501,
            force: false,
        }
    }
}

/// What was made, for the command line to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitSummary {
    /// The CA's certificate.
    pub ca_file: PathBuf,
    /// The CA's key: to be kept off the servers.
    pub ca_key_file: PathBuf,
    /// The operator's own certificate and key, for the command line over HTTPS.
    pub cli: (PathBuf, PathBuf),
    /// Per server: name, directory (the first is the directory itself), configuration.
    pub servers: Vec<ServerBundle>,
    /// Every file written.
    pub files: Vec<PathBuf>,
    /// Days the server certificates live.
    pub days: u32,
    /// Servers whose address is not known: their `retry_join` must be completed.
    pub without_address: Vec<String>,
}

/// What one server needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerBundle {
    /// Its node name.
    pub name: String,
    /// Copy the content of this directory to `install_directory` on that server.
    pub directory: PathBuf,
    /// The configuration in it.
    pub config: PathBuf,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file of an earlier run is there. Nothing was written.
    #[error(
        "{path} exists already: the cluster has key material; -force makes a new CA, and certificates given out before stop working"
    )]
    Exists {
        /// The first one found.
        path: String,
    },
    /// The servers asked for cannot be a cluster. Nothing was written.
    #[error("-servers: {reason}")]
    Servers {
        /// What is wrong.
        reason: String,
    },
    /// A CA or certificate could not be made. Files written before stay; run again with -force.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A file could not be written. Files written before stay; run again with -force.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system gives no randomness. Nothing was written.
    #[error("the system gives no randomness for the gossip key")]
    Randomness,
}

/// Makes everything. `now` is the wall clock.
///
/// Errors: [`InitError`] says whether anything was written.
pub fn init(request: &InitRequest, now: UnixMillis) -> Result<InitSummary, InitError> {
    check_servers(&request.servers)?;
    let plan = Plan::new(request);
    if !request.force
        && let Some(path) = plan.paths().into_iter().find(|path| path.exists())
    {
        return Err(InitError::Exists {
            path: path.display().to_string(),
        });
    }
    let days = request.days.max(CaRequest::new("").days);
    let ca = pki::create_ca(
        &CaRequest {
            days,
            ..CaRequest::new(&request.domain)
        },
        now,
    )?;
    let gossip_key = gossip_key()?;
    // Everything is made before the first byte is written, so that a bad name leaves nothing behind.
    let cli = certificate(request, CertKind::Cli, None, &plan, &ca, now)?;
    let mut servers = Vec::new();
    for seat in &request.servers {
        servers.push(certificate(
            request,
            CertKind::Server,
            Some(seat),
            &plan,
            &ca,
            now,
        )?);
    }
    let place = (&*request.datacenter, &*request.domain);
    let signer = enrolment::create_signer(place, days, &ca, (&plan.ca.0, &plan.ca.1), now)?;
    files::create_directory(&request.directory, PRIVATE_DIRECTORY)?;
    pki::write_pair(&plan.ca, &ca)?;
    pki::write_pair(&plan.cli, &cli)?;
    for (seat, pems) in plan.seats.iter().zip(&servers) {
        files::create_directory(&seat.directory, PRIVATE_DIRECTORY)?;
        files::write(&seat.ca, ca.certificate.as_bytes(), files::PUBLIC_FILE)?;
        pki::write_pair(&seat.pair, pems)?;
        pki::write_pair(&seat.signer, &signer)?;
        let config = Secret::new(configuration(request, seat, &gossip_key));
        files::write(&seat.config, config.reveal().as_bytes(), PRIVATE_FILE)?;
    }
    Ok(plan.summary(request))
}

fn check_servers(servers: &[Seat]) -> Result<(), InitError> {
    let bad = |reason: String| Err(InitError::Servers { reason });
    if servers.is_empty() || servers.len() > SERVERS_MAX {
        return bad(format!(
            "{} servers asked for, 1 to {SERVERS_MAX} are allowed",
            servers.len()
        ));
    }
    for (at, seat) in servers.iter().enumerate() {
        let plain = seat
            .name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if seat.name.is_empty() || seat.name.len() > 63 || !plain || seat.name.starts_with('-') {
            return bad(format!(
                "{:?} is not a node name (letters, digits, dashes, at most 63)",
                seat.name
            ));
        }
        if servers[..at]
            .iter()
            .any(|s| s.name.eq_ignore_ascii_case(&seat.name))
        {
            return bad(format!("{:?} is named twice", seat.name));
        }
    }
    Ok(())
}

/// Where everything goes.
struct Plan {
    ca: (PathBuf, PathBuf),
    cli: (PathBuf, PathBuf),
    seats: Vec<SeatPlan>,
}

struct SeatPlan {
    seat: Seat,
    directory: PathBuf,
    ca: PathBuf,
    pair: (PathBuf, PathBuf),
    /// Signs certificates of agents that come with a token.
    signer: (PathBuf, PathBuf),
    config: PathBuf,
}

impl Plan {
    fn new(request: &InitRequest) -> Self {
        let pair = |directory: &Path, kind: CertKind| {
            let stem = format!(
                "{}-{}-{}-0",
                request.datacenter,
                kind.word(),
                request.domain.trim_matches('.')
            );
            (
                directory.join(format!("{stem}.pem")),
                directory.join(format!("{stem}-key.pem")),
            )
        };
        let seat = |(at, seat): (usize, &Seat)| {
            let directory = if at == 0 {
                request.directory.clone()
            } else {
                request.directory.join(&seat.name)
            };
            SeatPlan {
                seat: seat.clone(),
                ca: pki::ca_files(&directory, &request.domain).0,
                pair: pair(&directory, CertKind::Server),
                signer: enrolment::signer_files(&directory, &request.domain),
                config: directory.join(CONFIG_FILE),
                directory,
            }
        };
        Self {
            ca: pki::ca_files(&request.directory, &request.domain),
            cli: pair(&request.directory, CertKind::Cli),
            seats: request.servers.iter().enumerate().map(seat).collect(),
        }
    }

    fn paths(&self) -> Vec<PathBuf> {
        let mut paths = vec![
            self.ca.0.clone(),
            self.ca.1.clone(),
            self.cli.0.clone(),
            self.cli.1.clone(),
        ];
        for seat in &self.seats {
            paths.extend([
                seat.ca.clone(),
                seat.pair.0.clone(),
                seat.pair.1.clone(),
                seat.signer.0.clone(),
                seat.signer.1.clone(),
                seat.config.clone(),
            ]);
        }
        paths.dedup();
        paths.sort();
        paths.dedup();
        paths
    }

    fn summary(&self, request: &InitRequest) -> InitSummary {
        let bundle = |seat: &SeatPlan| ServerBundle {
            name: seat.seat.name.clone(),
            directory: seat.directory.clone(),
            config: seat.config.clone(),
        };
        let lost = request
            .servers
            .iter()
            .filter(|s| s.address.is_none() && request.servers.len() > 1);
        InitSummary {
            ca_file: self.ca.0.clone(),
            ca_key_file: self.ca.1.clone(),
            cli: self.cli.clone(),
            servers: self.seats.iter().map(bundle).collect(),
            files: self.paths(),
            days: request.days,
            without_address: lost.map(|s| s.name.clone()).collect(),
        }
    }
}

fn certificate(
    request: &InitRequest,
    kind: CertKind,
    seat: Option<&Seat>,
    plan: &Plan,
    ca: &Pems,
    now: UnixMillis,
) -> Result<Pems, PkiError> {
    let mut wanted = CertRequest::new(kind, &request.datacenter, &request.domain);
    wanted.days = request.days;
    if let Some(seat) = seat {
        wanted.node = Some(seat.name.clone());
        wanted.dns_names = vec![seat.name.clone()];
        wanted.addresses = seat.address.into_iter().collect();
    }
    pki::create_cert(&wanted, ca, (&plan.ca.0, &plan.ca.1), now)
}

fn gossip_key() -> Result<Secret<String>, InitError> {
    let mut key = zeroize::Zeroizing::new([0u8; 32]);
    aws_lc_rs::rand::fill(&mut *key).map_err(|_| InitError::Randomness)?;
    Ok(Secret::new(STANDARD.encode(*key)))
}

fn configuration(request: &InitRequest, plan: &SeatPlan, gossip_key: &Secret<String>) -> String {
    let installed = |path: &Path| {
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        quoted(&request.install_directory.join(name).to_string_lossy())
    };
    let mut text = String::new();
    let mut line = |indent: usize, content: &str| {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{:indent$}{content}", "");
    };
    line(
        0,
        "# Written by `weft init`. It holds the gossip key: keep its mode at 0600.",
    );
    line(
        0,
        &format!("node_name        = {}", quoted(&plan.seat.name)),
    );
    line(
        0,
        &format!("datacenter       = {}", quoted(&request.datacenter)),
    );
    line(
        0,
        &format!(
            "domain           = {}",
            quoted(request.domain.trim_matches('.'))
        ),
    );
    line(
        0,
        &format!(
            "data_dir         = {}",
            quoted(&request.data_dir.to_string_lossy())
        ),
    );
    line(0, "server           = true");
    line(0, &format!("bootstrap_expect = {}", request.servers.len()));
    if let Some(address) = plan.seat.address {
        line(
            0,
            &format!("bind_addr        = {}", quoted(&address.to_string())),
        );
    }
    let others = request.servers.iter().filter(|s| s.name != plan.seat.name);
    let (known, unknown): (Vec<&Seat>, Vec<&Seat>) = others.partition(|s| s.address.is_some());
    for seat in unknown {
        line(
            0,
            &format!("# Add the address of {} to retry_join.", seat.name),
        );
    }
    let known: Vec<String> = known
        .iter()
        .filter_map(|s| s.address)
        .map(|a| quoted(&a.to_string()))
        .collect();
    if request.servers.len() > 1 {
        line(0, &format!("retry_join       = [{}]", known.join(", ")));
    }
    line(
        0,
        &format!("encrypt          = {}", quoted(gossip_key.reveal())),
    );
    line(0, "");
    line(
        0,
        "# The HTTP API in clear text stays on this machine; HTTPS asks for a certificate of the CA.",
    );
    line(0, "client_addr = \"127.0.0.1\"");
    line(0, "ports {");
    line(2, &format!("https = {}", request.https_port));
    line(0, "}");
    line(0, "");
    line(0, "tls {");
    line(2, "defaults {");
    line(4, &format!("ca_file         = {}", installed(&plan.ca)));
    line(4, &format!("cert_file       = {}", installed(&plan.pair.0)));
    line(4, &format!("key_file        = {}", installed(&plan.pair.1)));
    line(4, "verify_incoming = true");
    line(4, "verify_outgoing = true");
    line(2, "}");
    line(2, "internal_rpc {");
    line(4, "verify_server_hostname = true");
    line(2, "}");
    line(0, "}");
    line(0, "");
    line(
        0,
        "# Certificates of agents that come with a token (`weft join-token create`) are signed with these.",
    );
    line(0, "join_tokens {");
    line(2, &format!("cert_file = {}", installed(&plan.signer.0)));
    line(2, &format!("key_file  = {}", installed(&plan.signer.1)));
    line(0, "}");
    if request.acl {
        line(0, "");
        line(0, "acl {");
        line(2, "enabled        = true");
        line(2, "default_policy = \"deny\"");
        line(0, "}");
    }
    text
}

/// An HCL1 string; `${` has no escape there and needs none.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::PeerFacts;
    use crate::tls::{TlsContext, TlsMaterial};
    use std::os::unix::fs::PermissionsExt as _;
    use weft_proto::clock::{Clock as _, SystemClock};

    fn seats(names: &[(&str, Option<&str>)]) -> Vec<Seat> {
        let seat = |(name, address): &(&str, Option<&str>)| Seat {
            name: (*name).to_owned(),
            address: address.map(|a| a.parse().unwrap()),
        };
        names.iter().map(seat).collect()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn three_servers_get_what_they_need_and_trust_each_other() {
        let now = SystemClock::new().wall();
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("weft.d");
        let servers = seats(&[
            ("s1", Some("10.0.0.1")),
            ("s2", Some("10.0.0.2")),
            ("s3", None),
        ]);
        let summary = init(&InitRequest::new(&directory, servers), now).unwrap();
        assert_eq!(summary.without_address, ["s3"]);
        assert!(summary.files.iter().all(|path| path.exists()));
        assert_eq!(
            (mode(&directory), mode(&directory.join("s2"))),
            (0o700, 0o700)
        );
        let mut keys = Vec::new();
        for bundle in &summary.servers {
            let text = std::fs::read_to_string(&bundle.config).unwrap();
            assert_eq!(mode(&bundle.config), 0o600);
            for wanted in [
                "bootstrap_expect = 3",
                "verify_server_hostname = true",
                "default_policy = \"deny\"",
            ] {
                assert!(text.contains(wanted), "{text}");
            }
            keys.push(
                text.lines()
                    .find(|l| l.starts_with("encrypt"))
                    .unwrap()
                    .to_owned(),
            );
            let key = bundle.directory.join("dc1-server-consul-0-key.pem");
            assert_eq!(mode(&key), 0o600);
            let material = TlsMaterial {
                ca_file: Some(bundle.directory.join("consul-agent-ca.pem")),
                cert_file: Some(bundle.directory.join("dc1-server-consul-0.pem")),
                key_file: Some(key),
                verify_incoming: true,
                verify_outgoing: true,
                ..TlsMaterial::default()
            };
            let own: PeerFacts = TlsContext::load(material, now).unwrap().own().unwrap();
            assert!(
                own.is_server("dc1", "consul") && own.dns_names.contains(&bundle.name),
                "{own:?}"
            );
        }
        assert!(keys.iter().all(|k| k == &keys[0] && k.len() > 44));
        let second = std::fs::read_to_string(&summary.servers[1].config).unwrap();
        assert!(
            second.contains("retry_join       = [\"10.0.0.1\"]")
                && second.contains("address of s3"),
            "{second}"
        );
        assert!(
            !directory.join("s2/consul-agent-ca-key.pem").exists(),
            "the CA's key stays at home"
        );
    }

    #[test]
    fn nothing_is_replaced_unless_forced() {
        let root = tempfile::tempdir().unwrap();
        let now = UnixMillis(1_800_000_000_000);
        let mut request = InitRequest::new(root.path(), seats(&[("s1", None)]));
        let summary = init(&request, now).unwrap();
        let before = std::fs::read(&summary.ca_file).unwrap();
        let error = init(&request, now).unwrap_err().to_string();
        assert!(
            error.contains("exists already") && error.contains("-force"),
            "{error}"
        );
        assert_eq!(std::fs::read(&summary.ca_file).unwrap(), before);
        request.force = true;
        init(&request, now).unwrap();
        assert_ne!(std::fs::read(&summary.ca_file).unwrap(), before);
    }

    #[test]
    fn bad_requests_write_nothing() {
        let root = tempfile::tempdir().unwrap();
        let now = UnixMillis(1_800_000_000_000);
        let check = |servers: Vec<Seat>, datacenter: &str, word: &str| {
            let directory = root.path().join("out");
            let request = InitRequest {
                datacenter: datacenter.into(),
                ..InitRequest::new(&directory, servers)
            };
            let error = init(&request, now).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
            assert!(!directory.exists());
        };
        check(Vec::new(), "dc1", "0 servers");
        check(seats(&[("../x", None)]), "dc1", "not a node name");
        check(seats(&[("a", None), ("A", None)]), "dc1", "named twice");
        check(seats(&[("a", None)]), "d c", "not a DNS name");
    }

    #[test]
    fn strings_are_quoted_for_hcl() {
        assert_eq!(quoted("a\"b\\c${d}"), "\"a\\\"b\\\\c${d}\"");
    }
}
