//! The mesh's certificate authority, on the leader.
//!
//! Owns: making the first root, sealing its key for every server, rotation (asked for, and before expiry), retiring old
//! roots, signing leaves within the limits.
//! Never: decides who may have a leaf for a service (whoever asks was authorised); puts a key into the log in clear;
//! releases a leaf before leadership is confirmed.
//! Docs: docs/adr/0021.

mod call;
mod config;
mod limit;
mod metrics;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use weft_identity::ServerKey;
use weft_identity::ca::{Authority, RootPems, TrustDomain, root_facts, seal};
use weft_proto::ids::UnixMillis;
use weft_proto::v1;
use weft_proto::v1::stamped::Command;

use crate::handle::Server;
use config::CaConfig;
use limit::Limit;
pub(crate) use metrics::CaMetrics;

/// Pause between looks at the CA.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Bridges a leaf carries at most: verifiers follow no longer chains.
const BRIDGES_MAX: usize = 4;
/// Warnings about a root that ends, in days before; the CA rotates by itself long before.
const WARN_DAYS: [u64; 3] = [7, 30, 90];

/// What this server needs to be a CA when it leads.
#[derive(Default)]
pub(crate) struct Office {
    key: OnceLock<Arc<ServerKey>>,
    signing: Mutex<Option<Arc<Signing>>>,
    limit: Limit,
    /// Held while the row is replaced.
    changing: tokio::sync::Mutex<()>,
    pub(crate) metrics: CaMetrics,
}

/// The active root, opened.
struct Signing {
    root_id: String,
    authority: Authority,
}

/// Why the CA cannot do something now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) reason: &'static str,
    pub(crate) text: String,
    pub(crate) retry_after: Duration,
    /// The request can never work.
    pub(crate) invalid: bool,
}

pub(crate) fn trouble(reason: &'static str, text: impl Into<String>) -> Trouble {
    Trouble {
        reason,
        text: text.into(),
        retry_after: Duration::from_secs(1),
        invalid: false,
    }
}

pub(crate) fn invalid(reason: &'static str, text: impl Into<String>) -> Trouble {
    Trouble {
        reason,
        text: text.into(),
        retry_after: Duration::ZERO,
        invalid: true,
    }
}

impl Server {
    /// Gives the role the key with which it opens the CA's; until then it is none.
    pub fn attach_ca_key(&self, key: Arc<ServerKey>) {
        // Called once, right after the start.
        let _ = self.inner.ca.key.set(key);
    }

    fn ca_row(&self) -> Option<v1::MeshCa> {
        let state = self.state();
        let trace = weft_catalog::Trace::off();
        state
            .read(&trace)
            .mesh_ca()
            .rows
            .map(|row| v1::MeshCa::clone(row))
    }

    fn now(&self) -> UnixMillis {
        self.inner.clock.wall()
    }

    /// For whom the CA's key is sealed: every server that has a key, this one first.
    fn recipients(&self) -> Vec<bytes::Bytes> {
        let own = self
            .inner
            .ca
            .key
            .get()
            .map(|key| bytes::Bytes::copy_from_slice(key.public_key()));
        let members = self.inner.raft.status().members.clone();
        let mut recipients: Vec<bytes::Bytes> = own.into_iter().collect();
        for member in &members {
            let key = &member.peer.public_key;
            if !key.is_empty() && !recipients.contains(key) {
                recipients.push(key.clone());
            }
        }
        recipients
    }
}

/// The duty: looks again and again whether the CA is as it should be.
pub(crate) async fn run(server: &Server) {
    *server.inner.ca.signing.lock() = None;
    let _forget = Forget(server);
    let (mut said, mut warned) = (None, u64::MAX);
    loop {
        match look(server).await {
            Ok(()) => said = None,
            Err(why) => {
                if said != Some(why.reason) {
                    tracing::error!(reason = why.reason, error = %why.text, "the mesh's CA cannot sign");
                }
                said = Some(why.reason);
            }
        }
        report(server, &mut warned);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Who does not lead keeps no key in memory.
struct Forget<'a>(&'a Server);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let office = &self.0.inner.ca;
        *office.signing.lock() = None;
        office.metrics.root_expires_seconds.set(0);
        office.metrics.roots.set(0);
    }
}

fn report(server: &Server, warned: &mut u64) {
    let office = &server.inner.ca;
    let Some(row) = server.ca_row() else { return };
    let Some(facts) = row
        .roots
        .iter()
        .find(|root| root.active)
        .and_then(|root| root_facts(&root.certificate))
    else {
        return;
    };
    let now = i64::try_from(server.now().get() / 1_000).unwrap_or(i64::MAX);
    let left = facts.not_after.saturating_sub(now);
    office.metrics.root_expires_seconds.set(left);
    office
        .metrics
        .roots
        .set(i64::try_from(row.roots.len()).unwrap_or(i64::MAX));
    let days = u64::try_from(left).unwrap_or_default() / 86_400;
    let mark = WARN_DAYS.into_iter().find(|mark| days < *mark);
    if let Some(mark) = mark.filter(|mark| mark < warned) {
        let ttl = CaConfig::stored(&row.config_json).root_ttl;
        // A root that was made for less is meant to be.
        if ttl > Duration::from_secs(mark * 86_400) {
            tracing::warn!(ca.root = %facts.id, ca.days_left = days, "the mesh's root expires soon, and was not rotated yet");
        }
        *warned = mark;
    }
}

async fn look(server: &Server) -> Result<(), Trouble> {
    let office = &server.inner.ca;
    if office.key.get().is_none() || server.state().cluster_id().is_empty() {
        return Ok(());
    }
    let _changing = office.changing.lock().await;
    let Some(row) = server.ca_row() else {
        return first(server).await;
    };
    let signing = open(server, &row)?;
    if let Some(wanted) = kept(server, &row, &signing)? {
        return put(server, row.modify_index, wanted).await;
    }
    let config = CaConfig::stored(&row.config_json);
    if is_due(&signing, &config, server.now()) {
        tracing::info!(ca.root = %signing.root_id, "the mesh's root comes to its end: rotating");
        let (wanted, _) = rotated(server, &row, &config, false)?;
        rotate(server, &row, wanted).await?;
    }
    Ok(())
}

/// The very first root.
async fn first(server: &Server) -> Result<(), Trouble> {
    let domain = TrustDomain::of_cluster(server.state().cluster_id())
        .map_err(|why| trouble("ca.trust_domain", why.to_string()))?;
    let config = CaConfig::defaults();
    let pems = Authority::create(&domain, config.root_ttl, server.now())
        .map_err(|why| trouble(why.reason(), why.to_string()))?;
    let root = sealed_root(server, &pems, Vec::new())?;
    tracing::info!(ca.root = %root.id, ca.trust_domain = %domain, "the mesh has its first root");
    let wanted = v1::MeshCa {
        trust_domain: domain.to_string(),
        provider: "consul".into(),
        config_json: config.shown,
        roots: vec![root],
        ..v1::MeshCa::default()
    };
    put(server, 0, wanted).await
}

/// What must be put right: keys for servers that came or went, roots that retire.
fn kept(
    server: &Server,
    row: &v1::MeshCa,
    signing: &Signing,
) -> Result<Option<v1::MeshCa>, Trouble> {
    let mut wanted = row.clone();
    let ttl = CaConfig::stored(&row.config_json).leaf_ttl;
    let now = server
        .inner
        .time
        .now(server.inner.clock.monotonic(), server.now())
        .get();
    let keep = u64::try_from(ttl.as_millis())
        .unwrap_or(u64::MAX)
        .saturating_mul(2);
    wanted
        .roots
        .retain(|root| root.active || now < root.rotated_out_at_millis.saturating_add(keep));
    let retired = row.roots.len() - wanted.roots.len();
    let older = wanted.roots.len().saturating_sub(1);
    let recipients = server.recipients();
    for root in &mut wanted.roots {
        root.bridges.truncate(older);
        let fits = root.keys.len() == recipients.len()
            && root
                .keys
                .iter()
                .all(|key| recipients.contains(&key.public_key));
        if root.active && !fits {
            root.keys = sealed(&recipients, &root.id, authority_key(server, root)?.reveal())?;
        }
    }
    debug_assert_eq!(
        signing.root_id,
        active(row).map_or("", |root| root.id.as_str())
    );
    if retired > 0 {
        tracing::info!(ca.retired = retired, "old roots of the mesh have retired");
    }
    Ok((wanted != *row).then_some(wanted))
}

fn active(row: &v1::MeshCa) -> Option<&v1::MeshRoot> {
    row.roots.iter().find(|root| root.active)
}

fn domain_of(row: &v1::MeshCa) -> Result<TrustDomain, Trouble> {
    TrustDomain::parse(&row.trust_domain).map_err(|why| trouble("ca.trust_domain", why.to_string()))
}

/// A rotation is due in the last tenth of a root's life, and never with less than three leaves' lives to go.
fn is_due(signing: &Signing, config: &CaConfig, now: UnixMillis) -> bool {
    let facts = signing.authority.facts();
    let now = i64::try_from(now.get() / 1_000).unwrap_or(i64::MAX);
    let left = u64::try_from(facts.not_after.saturating_sub(now)).unwrap_or_default();
    let life = u64::try_from(facts.not_after.saturating_sub(facts.not_before)).unwrap_or_default();
    // A root whose whole life is short is not rotated from the first moment on.
    let margin = (life / 10).max((config.leaf_ttl.as_secs() * 3).min(life / 2));
    left < margin
}

/// The row with a new active root: the one that `config` gives, or a new one.
fn rotated(
    server: &Server,
    row: &v1::MeshCa,
    config: &CaConfig,
    force: bool,
) -> Result<(v1::MeshCa, RootPems), Trouble> {
    let (now, domain) = (server.now(), domain_of(row)?);
    let told = |why: weft_identity::ca::AuthorityError| invalid(why.reason(), why.to_string());
    let pems = match &config.given {
        Some((certificate, key)) => {
            Authority::read(certificate, key.reveal(), &domain, now)
                .map_err(told)?
                .1
        }
        None => Authority::create(&domain, config.root_ttl, now).map_err(told)?,
    };
    let before = active(row).ok_or_else(|| trouble("ca.missing", "there is no active root"))?;
    let mut bridges = Vec::new();
    if !force {
        let signing = open(server, row)?;
        bridges.push(
            signing
                .authority
                .cross_sign(&pems.certificate, now)
                .map_err(told)?,
        );
        bridges.extend(before.bridges.iter().take(BRIDGES_MAX - 1).cloned());
    }
    let root = sealed_root(server, &pems, bridges)?;
    if row.roots.iter().any(|known| known.id == root.id) {
        return Err(invalid(
            "ca.root.known",
            "RootCert is a root of this mesh already",
        ));
    }
    let mut wanted = row.clone();
    let cluster_time = server
        .inner
        .time
        .now(server.inner.clock.monotonic(), now)
        .get();
    for old in &mut wanted.roots {
        if old.active {
            old.rotated_out_at_millis = cluster_time.max(1);
        }
        old.active = false;
        // Nothing is signed with it any more.
        old.keys.clear();
    }
    wanted.roots.insert(0, root);
    Ok((wanted, pems))
}

fn sealed_root(
    server: &Server,
    pems: &RootPems,
    bridges: Vec<String>,
) -> Result<v1::MeshRoot, Trouble> {
    let facts = root_facts(&pems.certificate)
        .ok_or_else(|| invalid("ca.root.certificate", "RootCert cannot be read"))?;
    Ok(v1::MeshRoot {
        keys: sealed(&server.recipients(), &facts.id, pems.key.reveal())?,
        id: facts.id,
        certificate: pems.certificate.clone(),
        active: true,
        bridges,
        ..v1::MeshRoot::default()
    })
}

fn sealed(
    recipients: &[bytes::Bytes],
    root_id: &str,
    key: &[u8],
) -> Result<Vec<v1::SealedKey>, Trouble> {
    let one = |public: &bytes::Bytes| {
        let sealed = seal(public, root_id.as_bytes(), key)
            .map_err(|why| trouble("ca.key.seal", why.to_string()))?;
        Ok(v1::SealedKey {
            public_key: public.clone(),
            sealed: sealed.into(),
        })
    };
    recipients.iter().map(one).collect()
}

/// The key of a root, opened with this server's own.
fn authority_key(
    server: &Server,
    root: &v1::MeshRoot,
) -> Result<weft_identity::Secret<Vec<u8>>, Trouble> {
    let key = server.inner.ca.key.get();
    let key = key.ok_or_else(|| trouble("ca.no_key", "this server has no key of its own"))?;
    let own = root
        .keys
        .iter()
        .find(|sealed| *sealed.public_key == *key.public_key());
    let opened = own.and_then(|own| key.open(root.id.as_bytes(), &own.sealed).ok());
    opened.ok_or_else(|| {
        trouble(
            "ca.key.sealed",
            format!(
                "the key of root {} is not sealed for this server: another server must lead, or `weft ca rotate -force` makes a new root",
                root.id
            ),
        )
    })
}

/// The active root, ready to sign.
fn open(server: &Server, row: &v1::MeshCa) -> Result<Arc<Signing>, Trouble> {
    let root = active(row).ok_or_else(|| trouble("ca.missing", "there is no active root"))?;
    let mut held = server.inner.ca.signing.lock();
    if let Some(signing) = held.as_ref().filter(|signing| signing.root_id == root.id) {
        return Ok(signing.clone());
    }
    let pems = RootPems {
        certificate: root.certificate.clone(),
        key: authority_key(server, root)?,
    };
    let authority = Authority::load(&pems, &domain_of(row)?, server.now())
        .map_err(|why| trouble(why.reason(), why.to_string()))?;
    let signing = Arc::new(Signing {
        root_id: root.id.clone(),
        authority,
    });
    *held = Some(signing.clone());
    Ok(signing)
}

/// Puts a row with another active root in the place of `row`.
async fn rotate(server: &Server, row: &v1::MeshCa, wanted: v1::MeshCa) -> Result<(), Trouble> {
    let id = |row| active(row).map(|root| root.id.clone()).unwrap_or_default();
    let (before, after) = (id(row), id(&wanted));
    let bridged = active(&wanted).is_some_and(|root| !root.bridges.is_empty());
    put(server, row.modify_index, wanted).await?;
    server.inner.ca.metrics.rotations.inc();
    tracing::info!(ca.root = %after, ca.root_before = %before, ca.cross_signed = bridged, "the mesh has a new root");
    Ok(())
}

/// Replaces the row, if it is still the one that was looked at.
async fn put(server: &Server, expect_modify_index: u64, wanted: v1::MeshCa) -> Result<(), Trouble> {
    let command = v1::MeshCaCommand {
        expect_modify_index,
        wanted: Some(wanted),
    };
    let outcome = server.propose(Command::MeshCa(command)).await;
    match outcome
        .map_err(|why| trouble("ca.not_written", why.to_string()))?
        .result
    {
        Some(v1::outcome::Result::Applied(true)) => Ok(()),
        Some(v1::outcome::Result::Refusal(refusal)) => Err(invalid("ca.refused", refusal.message)),
        _ => Err(trouble(
            "ca.changed",
            "the CA was changed by somebody else at the same time: look again",
        )),
    }
}
