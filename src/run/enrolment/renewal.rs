//! The side of an agent that has a certificate: asks for the next one in time.
//!
//! Owns: when to ask, and that the old certificate stays until the new one is on disk.
//! Never: makes a new key: who has the old one could renew anyway.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use anyhow::{Context as _, bail};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use weft_agent::config::RuntimeConfig;
use weft_gossip::Gossip;
use weft_identity::{TlsContext, files, pki};
use weft_proto::clock::Clock;
use weft_proto::v1::{self, enrol_reply::Answer};

use super::super::servers;
use super::super::tls::Tls;
use super::Files;
use super::first::{converse, facts_of};

/// Between tries, at least; and at most.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_mins(15);

/// Renews the certificate of an enrolled agent for as long as it runs.
pub(crate) struct Renewal {
    files: Files,
    context: Arc<TlsContext>,
    gossip: Arc<Gossip>,
    clock: Arc<dyn Clock>,
    node: String,
    datacenter: String,
    /// Differs between agents, so that they do not all ask at once.
    seed: u64,
    expires: Gauge<i64, AtomicI64>,
}

impl Renewal {
    /// `None` for an agent whose certificate did not come by a token.
    pub(crate) fn new(
        config: &RuntimeConfig,
        tls: &Tls,
        gossip: &Arc<Gossip>,
        clock: Arc<dyn Clock>,
        seed: u64,
    ) -> Option<Self> {
        let files = Files::below(config.data_dir.as_deref()?);
        if config.tls.internal_rpc.cert_file.as_ref() != Some(&files.certificate) {
            return None;
        }
        Some(Self {
            files,
            context: tls.rpc_context()?,
            gossip: gossip.clone(),
            clock,
            node: config.node.name.clone(),
            datacenter: config.datacenter.clone(),
            seed,
            expires: Gauge::default(),
        })
    }

    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        registry.register(
            "weft_join_certificate_expires_seconds",
            "When the agent's own certificate runs out, Unix time",
            self.expires.clone(),
        );
    }

    /// Runs until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            let pause = self.pause();
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            if !self.due().is_zero() {
                continue;
            }
            match self.renew().await {
                Ok(()) => {
                    tracing::info!(node.name = %self.node, "the agent's certificate was renewed")
                }
                Err(cause) => {
                    tracing::warn!(reason = "join.renewal", error = %format!("{cause:#}"), "the agent's certificate could not be renewed; trying again");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(self.again()) => {}
                    }
                }
            }
        }
    }

    /// Seconds of the certificate's beginning and end.
    fn life(&self) -> Option<(i64, i64)> {
        let facts = facts_of(&self.files.certificate)?;
        self.expires.set(facts.not_after);
        Some((facts.not_before, facts.not_after))
    }

    /// Until the next one is due: between a third and a half of its life after it was made. Zero: now.
    fn due(&self) -> Duration {
        let Some((from, to)) = self.life() else {
            return Duration::ZERO;
        };
        let now = i64::try_from(self.clock.wall().get() / 1_000).unwrap_or(i64::MAX);
        let backdated = i64::try_from(pki::BACKDATED.as_secs()).unwrap_or_default();
        let from = from.saturating_add(backdated);
        let life = to.saturating_sub(from).max(0);
        let spread = i64::try_from(self.seed % 1_000).unwrap_or_default();
        let at = from + life / 3 + life / 6 * spread / 1_000;
        u64::try_from(at.saturating_sub(now)).map_or(Duration::ZERO, Duration::from_secs)
    }

    /// A look at the clock now and then: it may be set, and the file be replaced.
    fn pause(&self) -> Duration {
        self.due()
            .clamp(Duration::from_millis(100), Duration::from_mins(10))
    }

    /// A twentieth of what is left, so that there are tries enough and no storm.
    fn again(&self) -> Duration {
        let now = i64::try_from(self.clock.wall().get() / 1_000).unwrap_or(i64::MAX);
        let left = self.life().map_or(0, |(_, to)| to.saturating_sub(now));
        Duration::from_secs(u64::try_from(left).unwrap_or_default() / 20)
            .clamp(AGAIN_MIN, AGAIN_MAX)
    }

    async fn renew(&self) -> anyhow::Result<()> {
        let pem = std::fs::read_to_string(&self.files.key)
            .with_context(|| format!("cannot read {}", self.files.key.display()))?;
        let public_key = pki::public_key(&pem).context("the agent's key is damaged")?;
        let request = v1::EnrolRequest {
            node: self.node.clone(),
            datacenter: self.datacenter.clone(),
            public_key: public_key.into(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            ..v1::EnrolRequest::default()
        };
        let mut why = "no server is known".to_owned();
        for server in self.servers() {
            match converse(&server, &self.context, &request).await {
                Ok(Answer::Enrolled(enrolled)) => return self.keep(&enrolled),
                Ok(Answer::Refused(refused)) => {
                    why = format!("{server}: {} ({})", refused.message, refused.reason);
                }
                Err(cause) => why = format!("{server}: {cause:#}"),
            }
        }
        bail!(
            "{why}; once the certificate has run out, this machine needs a new token (`weft join-token create`)"
        )
    }

    fn keep(&self, enrolled: &v1::Enrolled) -> anyhow::Result<()> {
        files::write(&self.files.ca, enrolled.ca.as_bytes(), 0o600)?;
        files::write(
            &self.files.certificate,
            enrolled.certificate_chain.as_bytes(),
            0o600,
        )?;
        self.context.reload(self.clock.wall())?;
        self.life();
        Ok(())
    }

    /// Server ports of the live servers, each agent beginning with another.
    fn servers(&self) -> Vec<String> {
        let mut servers = servers::live(&self.gossip, &self.datacenter, |_, address| {
            address.to_string()
        });
        if !servers.is_empty() {
            let first = usize::try_from(self.seed % servers.len() as u64).unwrap_or_default();
            servers.rotate_left(first);
        }
        servers
    }
}
