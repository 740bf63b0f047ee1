//! What is asked of the CA: a leaf, other settings, another root.
//!
//! Owns: finding the leader, and the leader's answers.
//! Never: asks twice on its own account, but for a leader that changed before anything was done.

use std::time::Duration;

use serde_json::Value;
use weft_identity::ca::{Authority, RootPems, SpiffeId, csr_public_key, root_facts};
use weft_proto::v1;
use weft_proto::v1::ca_reply::Result as Reply;
use weft_proto::v1::ca_request::Op;
use weft_raft::Role;

use super::config::CaConfig;
use super::limit::Full;
use super::{Trouble, active, domain_of, invalid, open, put, rotate, rotated, trouble};
use crate::handle::Server;

/// How long the leader may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);

impl Server {
    /// Asks the CA, wherever it is.
    pub async fn ca(&self, op: Op) -> v1::CaReply {
        let deadline = self.inner.clock.monotonic() + self.inner.config.hold_timeout;
        loop {
            let reply = if self.inner.raft.status().role == Role::Leader {
                self.ca_here(op.clone()).await
            } else {
                self.ca_there(&op).await
            };
            let again =
                matches!(&reply.result, Some(Reply::Refusal(refusal)) if refusal.not_leader);
            if !again || self.inner.clock.monotonic() >= deadline {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn ca_there(&self, op: &Op) -> v1::CaReply {
        let Some(address) = self.leader_address() else {
            return not_leader();
        };
        let request = v1::CaRequest {
            op: Some(op.clone()),
        };
        let called = self
            .inner
            .forwarder
            .call(&address, CALL_LIMIT, async move |mut client| {
                client.ca(request).await
            })
            .await;
        called.unwrap_or_else(|cause| {
            use crate::forward::CallError;
            match cause {
                CallError::NotSent(_) => not_leader(),
                CallError::Unknown(why) => refused(&trouble(
                    "ca.unreachable",
                    format!("the leader did not answer: {why}"),
                )),
            }
        })
    }

    /// The leader's side of [`Server::ca`].
    pub(crate) async fn ca_here(&self, op: Op) -> v1::CaReply {
        if self.inner.raft.status().role != Role::Leader {
            return not_leader();
        }
        let answer = match op {
            Op::Sign(sign) => self.sign(&sign).await.map(Reply::Leaf),
            Op::Configure(configure) => self.configure(&configure).await.map(Reply::Done),
            Op::Rotate(rotate) => self.rotate_root(&rotate).await.map(Reply::Done),
            Op::CutOff(cut_off) => self.cut_off(&cut_off.service).await.map(Reply::Done),
        };
        match answer {
            Ok(result) => v1::CaReply {
                result: Some(result),
            },
            Err(why) => {
                self.inner.ca.metrics.refused(why.reason);
                tracing::debug!(reason = why.reason, error = %why.text, "the CA refused");
                refused(&why)
            }
        }
    }

    async fn sign(&self, sign: &v1::CaSign) -> Result<v1::CaLeaf, Trouble> {
        let row = self.ca_row().ok_or_else(starting)?;
        let config = CaConfig::stored(&row.config_json);
        let limit = &self.inner.ca.limit;
        let _place = limit
            .enter(
                config.csr_max_per_second,
                config.csr_max_concurrent,
                self.inner.clock.monotonic(),
            )
            .map_err(|full| too_many(full, &config))?;
        let public_key =
            csr_public_key(&sign.csr).map_err(|why| invalid(why.reason(), why.to_string()))?;
        let domain = domain_of(&row)?;
        let id = SpiffeId::service(&domain, &self.inner.config.datacenter, &sign.service).map_err(
            |why| {
                invalid(
                    why.reason(),
                    format!("{:?} cannot be a service of the mesh: {why}", sign.service),
                )
            },
        )?;
        let signing = open(self, &row)?;
        let leaf = signing
            .authority
            .sign_leaf(&id, &public_key, config.leaf_ttl, self.now())
            .map_err(|why| trouble(why.reason(), why.to_string()))?;
        // A leader that was replaced does not know of a newer root, or that an identity was cut off.
        self.inner
            .raft
            .read_index()
            .await
            .map_err(|why| trouble("ca.leadership", why.to_string()))?;
        self.inner.ca.metrics.signed.inc();
        tracing::info!(service.name = %sign.service, ca.serial = %leaf.serial, ca.root = %signing.root_id, caller = %sign.caller, "leaf signed");
        let bridges = active(&row)
            .map(|root| root.bridges.concat())
            .unwrap_or_default();
        Ok(v1::CaLeaf {
            chain: format!("{}{bridges}", leaf.certificate),
            serial: leaf.serial,
            uri: id.to_string(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            index: self.state().index().get(),
            root_id: signing.root_id.clone(),
        })
    }

    async fn configure(&self, configure: &v1::CaConfigure) -> Result<v1::CaDone, Trouble> {
        if !matches!(configure.provider.as_str(), "consul" | "") {
            return Err(invalid(
                "ca.provider",
                format!(
                    "unknown CA provider {:?}: weft has \"consul\", the built-in one",
                    configure.provider
                ),
            ));
        }
        let value: Value = match configure.config_json.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text)
                .map_err(|why| invalid("ca.config.form", why.to_string()))?,
        };
        let config = CaConfig::parse(&value).map_err(|why| invalid(why.reason, why.to_string()))?;
        let _changing = self.inner.ca.changing.lock().await;
        let row = self.ca_row().ok_or_else(starting)?;
        let before = CaConfig::stored(&row.config_json);
        let force = configure.force_without_cross_signing;
        // Another life of roots needs another root, as in Consul; other settings do not.
        let other_root = config.given.is_some() || before.root_ttl != config.root_ttl;
        let mut wanted = row.clone();
        if other_root {
            (wanted, _) = rotated(self, &row, &config, force)?;
        }
        wanted.config_json = config.shown;
        wanted.force_without_cross_signing = force;
        if other_root {
            rotate(self, &row, wanted).await?;
        } else {
            put(self, row.modify_index, wanted).await?;
        }
        tracing::info!(ca.rotated = other_root, "the CA's settings were changed");
        Ok(self.done(String::new()))
    }

    async fn rotate_root(&self, asked: &v1::CaRotate) -> Result<v1::CaDone, Trouble> {
        let _changing = self.inner.ca.changing.lock().await;
        let row = self.ca_row().ok_or_else(starting)?;
        let config = CaConfig {
            given: None,
            ..CaConfig::stored(&row.config_json)
        };
        let (wanted, pems) = rotated(self, &row, &config, asked.force_without_cross_signing)?;
        if asked.drill {
            return self.drill(&row, &wanted, &pems);
        }
        rotate(self, &row, wanted).await?;
        Ok(self.done("rotated".into()))
    }

    async fn cut_off(&self, service: &str) -> Result<v1::CaDone, Trouble> {
        let _changing = self.inner.ca.changing.lock().await;
        let row = self.ca_row().ok_or_else(starting)?;
        let id = SpiffeId::service(&domain_of(&row)?, &self.inner.config.datacenter, service)
            .map_err(|why| invalid(why.reason(), why.to_string()))?;
        let mut wanted = row.clone();
        wanted
            .cut_offs
            .retain(|known| known.spiffe_id != id.to_string());
        wanted.cut_offs.push(v1::MeshCutOff {
            spiffe_id: id.to_string(),
            not_issued_before_millis: self.now().get(),
        });
        put(self, row.modify_index, wanted).await?;
        tracing::warn!(identity = %id, "leaves of this identity made before now are refused from now on");
        Ok(self.done(id.to_string()))
    }

    /// What a rotation would do, proven with the very certificates that it would make: a leaf of the new root must be
    /// good for whoever knows only the roots of now.
    fn drill(
        &self,
        row: &v1::MeshCa,
        wanted: &v1::MeshCa,
        pems: &RootPems,
    ) -> Result<v1::CaDone, Trouble> {
        let (now, domain) = (self.now(), domain_of(row)?);
        let told = |why: weft_identity::ca::AuthorityError| trouble(why.reason(), why.to_string());
        let id = SpiffeId::service(&domain, &self.inner.config.datacenter, "weft-ca-drill")
            .map_err(|why| trouble(why.reason(), why.to_string()))?;
        let leaf = Authority::load(pems, &domain, now)
            .map_err(told)?
            .prove(&id, now)
            .map_err(told)?;
        let bridges = active(wanted).map(|root| root.bridges.concat());
        let known: Vec<&str> = row
            .roots
            .iter()
            .map(|root| root.certificate.as_str())
            .collect();
        let chain = format!("{leaf}{}", bridges.unwrap_or_default());
        let proof = weft_identity::ca::prove(&domain, &known, &chain, now);
        let verdict = match &proof {
            Ok(peer) => format!(
                "proven: who knows only the roots of now accepts leaves of the new one ({})",
                peer.id
            ),
            Err(why) => format!("not proven: {why}"),
        };
        let root = active(row).ok_or_else(starting)?;
        let ends = root_facts(&root.certificate).map_or(0, |facts| facts.not_after);
        let now = i64::try_from(now.get() / 1_000).unwrap_or(i64::MAX);
        Ok(v1::CaDone {
            root_id: root.id.clone(),
            report: format!(
                "drill: nothing was changed\nactive root {} ends in {} days\n{verdict}",
                root.id,
                ends.saturating_sub(now) / 86_400
            ),
        })
    }

    fn done(&self, report: String) -> v1::CaDone {
        let root_id = self
            .ca_row()
            .and_then(|row| active(&row).map(|root| root.id.clone()));
        v1::CaDone {
            root_id: root_id.unwrap_or_default(),
            report,
        }
    }
}

fn starting() -> Trouble {
    trouble(
        "ca.starting",
        "the CA is not set up yet: the leader makes its root when it begins to lead",
    )
}

fn too_many(full: Full, config: &CaConfig) -> Trouble {
    let text = match full {
        Full::Rate(_) => format!(
            "too many certificate requests: CSRMaxPerSecond = {}",
            config.csr_max_per_second
        ),
        Full::Concurrent => format!(
            "too many certificate requests at once: CSRMaxConcurrent = {}",
            config.csr_max_concurrent
        ),
    };
    let (reason, retry_after) = match full {
        Full::Rate(after) => ("ca.csr.rate", after),
        Full::Concurrent => ("ca.csr.concurrent", Duration::from_millis(500)),
    };
    Trouble {
        retry_after,
        ..trouble(reason, text)
    }
}

fn not_leader() -> v1::CaReply {
    let refusal = v1::CaRefusal {
        not_leader: true,
        ..refusal(&trouble("ca.no_leader", "No cluster leader"))
    };
    v1::CaReply {
        result: Some(Reply::Refusal(refusal)),
    }
}

fn refused(why: &Trouble) -> v1::CaReply {
    v1::CaReply {
        result: Some(Reply::Refusal(refusal(why))),
    }
}

fn refusal(why: &Trouble) -> v1::CaRefusal {
    v1::CaRefusal {
        reason: why.reason.to_owned(),
        message: why.text.clone(),
        not_leader: false,
        retry_after_millis: u64::try_from(why.retry_after.as_millis()).unwrap_or(u64::MAX),
        invalid: why.invalid,
    }
}
