//! What is told of the proxies of a node.
//!
//! Owns: [`ProxyStatus`]. Never: shows it; `/v1/agent/connect/proxies` does.

use std::collections::BTreeMap;

use weft_proxy::config::Address;
use weft_proxy::plane::Fault;

use super::Made;

/// How a proxy stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyStatus {
    /// Of the proxy's registration.
    pub id: String,
    /// The service it stands for.
    pub service: String,
    /// Where it is called; empty: it only calls.
    pub listen: String,
    /// The highest catalog index that it works by.
    pub index: u64,
    /// That of the intentions it enforces; `None`: they are not known, and nobody may call.
    pub intentions_index: Option<u64>,
    /// Of its leaf; empty: it has none yet.
    pub leaf_serial: String,
    /// Last second its leaf is valid, Unix time; 0: it has none yet.
    pub leaf_not_after: i64,
    /// Whom it calls.
    pub upstreams: Vec<UpstreamStatus>,
    /// What is amiss: stable id, and words for the user.
    pub problems: Vec<(String, String)>,
}

/// How an upstream stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamStatus {
    /// The service.
    pub name: String,
    /// Where the application finds it.
    pub bind: String,
    /// Endpoints that may be called.
    pub endpoints: Vec<String>,
}

pub(super) fn of(
    made: &Made,
    faults: &[Fault],
    leaves: &BTreeMap<String, i64>,
) -> Vec<ProxyStatus> {
    let mut rows: BTreeMap<String, ProxyStatus> = BTreeMap::new();
    for plan in &made.snapshot.services {
        let upstreams = plan.upstreams.iter().map(|upstream| UpstreamStatus {
            name: upstream.name.to_string(),
            bind: shown(&upstream.bind),
            endpoints: upstream
                .targets
                .iter()
                .flat_map(|target| &target.endpoints)
                .map(|endpoint| endpoint.address.to_string())
                .collect(),
        });
        let inbound = plan.inbound.as_ref();
        rows.insert(
            plan.id.clone(),
            ProxyStatus {
                id: plan.id.clone(),
                service: plan.name.to_string(),
                listen: inbound
                    .map(|inbound| inbound.bind.to_string())
                    .unwrap_or_default(),
                index: made.snapshot.index,
                intentions_index: inbound.and_then(|inbound| inbound.intentions.index),
                leaf_serial: plan
                    .leaf
                    .as_ref()
                    .map(|leaf| leaf.serial.clone())
                    .unwrap_or_default(),
                leaf_not_after: leaves.get(&plan.id).copied().unwrap_or_default(),
                upstreams: upstreams.collect(),
                problems: Vec::new(),
            },
        );
    }
    for (id, problems) in &made.problems {
        let row = rows.entry(id.clone()).or_insert_with(|| ProxyStatus {
            id: id.clone(),
            ..ProxyStatus::default()
        });
        let problems = problems.iter();
        row.problems
            .extend(problems.map(|p| (p.reason.to_owned(), p.detail.clone())));
    }
    for row in rows.values_mut() {
        // One that names nobody may be anybody's.
        let theirs = faults
            .iter()
            .filter(|fault| fault.service.is_empty() || fault.service == row.id);
        row.problems
            .extend(theirs.map(|fault| (fault.reason.to_owned(), fault.detail.clone())));
        row.problems.sort();
        row.problems.dedup_by(|a, b| a.0 == b.0);
    }
    rows.into_values().collect()
}

fn shown(address: &Address) -> String {
    match address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path, _) => format!("unix://{}", path.display()),
    }
}
