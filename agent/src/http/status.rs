//! `/v1/status/*`: answered without a leader.
//!
//! Owns: the two status endpoints.
//! Never: waits.
//! Source: Consul HTTP API, "Status"; CONSUL.md A.10.

use super::call::Call;
use super::error::Failure;
use super::reply::Reply;

pub(super) async fn leader(call: Call) -> Result<Reply, Failure> {
    let leader = call.api.deps.operator.leader().unwrap_or_default();
    Ok(Reply::written(|json| json.string(&leader)))
}

pub(super) async fn peers(call: Call) -> Result<Reply, Failure> {
    let peers = call.api.deps.operator.peers();
    Ok(Reply::written(|json| json.strings(&peers)))
}
