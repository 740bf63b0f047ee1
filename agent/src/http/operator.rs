//! `/v1/operator/*`.
//!
//! Owns: Raft membership and autopilot's settings over HTTP.
//! Never: decides a membership change.
//! Source: Consul HTTP API, "Operator"; CONSUL.md A.10.

use std::time::Duration;

use weft_catalog::Trace;
use weft_proto::duration;
use weft_proto::json::{Json, Object, input};
use weft_proto::v1::{self, stamped::Command};

use super::call::Call;
use super::error::Failure;
use super::reply::Reply;

/// The Raft protocol number that Consul's tools expect of a server with UUIDs for ids.
const RAFT_PROTOCOL: &str = "3";

pub(super) async fn raft_configuration(call: Call) -> Result<Reply, Failure> {
    call.options()?;
    let peers = call
        .api
        .deps
        .operator
        .raft_configuration(call.query.has("stale"))
        .await?;
    Ok(Reply::written(|json| {
        json.object(|json| {
            json.key("Servers").list(&peers.peers, write_peer);
            json.key("Index").number(peers.index);
        });
    }))
}

fn write_peer(json: &mut Json, peer: &v1::RaftPeer) {
    json.object(|json| {
        json.key("ID").string(&peer.raft_id);
        json.key("Node").string(&peer.node_name);
        json.key("Address").string(&peer.address);
        json.key("Leader").boolean(peer.leader);
        json.key("ProtocolVersion").string(RAFT_PROTOCOL);
        json.key("LastIndex").number(peer.last_index);
        json.key("Voter").boolean(peer.voter);
    });
}

pub(super) async fn remove_peer(call: Call) -> Result<Reply, Failure> {
    let given = |name| {
        call.query
            .get(name)
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
    };
    let (id, address) = (given("id"), given("address"));
    match (&id, &address) {
        (None, None) => {
            let text = "Must specify either ?id with the server's ID or ?address with IP:port of peer to remove";
            return Err(Failure::bad_request("operator.peer.missing", text));
        }
        (Some(_), Some(_)) => {
            let text = "Must specify only one of ?id or ?address";
            return Err(Failure::bad_request("operator.peer.both", text));
        }
        _ => {}
    }
    call.api.deps.operator.remove_peer(id, address).await?;
    Ok(Reply::empty())
}

pub(super) async fn transfer_leader(call: Call) -> Result<Reply, Failure> {
    let id = call
        .query
        .get("id")
        .filter(|id| !id.is_empty())
        .map(str::to_owned);
    call.api.deps.operator.transfer_leader(id).await?;
    Ok(Reply::written(|json| {
        json.object(|json| json.key("Success").boolean(true))
    }))
}

async fn current(call: &Call) -> Result<v1::AutopilotConfig, Failure> {
    let options = call.options()?;
    let backend = &call.api.deps.backend;
    backend.barrier(options.consistency).await?;
    Ok(backend.state().read(&Trace::off()).autopilot().rows)
}

pub(super) async fn autopilot(call: Call) -> Result<Reply, Failure> {
    let config = current(&call).await?;
    Ok(Reply::written(|json| write_autopilot(json, &config)))
}

fn write_autopilot(json: &mut Json, config: &v1::AutopilotConfig) {
    let text = |millis| duration::format(Duration::from_millis(millis));
    json.object(|json| {
        json.key("CleanupDeadServers")
            .boolean(config.cleanup_dead_servers);
        json.key("LastContactThreshold")
            .string(&text(config.last_contact_threshold_millis));
        json.key("MaxTrailingLogs").number(config.max_trailing_logs);
        json.key("MinQuorum").number(config.min_quorum.into());
        json.key("ServerStabilizationTime")
            .string(&text(config.server_stabilization_millis));
        json.key("RedundancyZoneTag").string("");
        json.key("DisableUpgradeMigration").boolean(false);
        json.key("UpgradeVersionTag").string("");
        json.key("CreateIndex").number(config.create_index);
        json.key("ModifyIndex").number(config.modify_index);
    });
}

pub(super) async fn set_autopilot(mut call: Call) -> Result<Reply, Failure> {
    let body = call.json().await?;
    let mut config = input::autopilot(&Object::root(&body)?, &current(&call).await?)?;
    if let Some(text) = call.query.get("cas") {
        config.cas = true;
        config.expect_modify_index = text.parse().map_err(|_| {
            Failure::bad_request(
                "operator.cas",
                format!("Error parsing cas value: {text:?} is not an unsigned number"),
            )
        })?;
    }
    let outcome = call.write(Command::Autopilot(config)).await?;
    Ok(Reply::verdict(!matches!(
        outcome.result,
        Some(v1::outcome::Result::Applied(false))
    )))
}
