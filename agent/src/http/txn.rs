//! `/v1/txn`.
//!
//! Owns: the transaction endpoint: limits, the right of each operation, reads without the log.
//! Never: runs an operation.
//! Source: Consul HTTP API, "Transactions"; CONSUL.md A.6.

use http::StatusCode;
use http::header::HeaderValue;
use weft_catalog::acl::{Access, Resource};
use weft_catalog::{TXN_OPS_MAX, Trace};
use weft_proto::json::{Json, decode, txn};
use weft_proto::v1::{self, KvVerb, stamped::Command, txn_op::Op};

use super::blocking::{KNOWN_LEADER, LAST_CONTACT, millis};
use super::call::Call;
use super::error::Failure;
use super::reply::Reply;

pub(super) async fn put(mut call: Call) -> Result<Reply, Failure> {
    let limits = call.api.config.limits;
    let body = call
        .body(limits.txn_max_bytes, "limits.txn_max_req_len")
        .await?;
    let mut ops = txn::ops(&decode::parse(&body)?)?;
    if ops.len() > TXN_OPS_MAX {
        let text = format!(
            "Transaction contains too many operations ({} > {TXN_OPS_MAX})",
            ops.len()
        );
        return Err(Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "txn.too_many",
            text,
        ));
    }
    for op in &mut ops {
        if let Some(Op::Node(v1::NodeOp {
            node: Some(node), ..
        })) = &mut op.op
        {
            node.datacenter.clone_from(&call.api.deps.info.datacenter);
        }
        check(&call, op, limits.kv_max_value_bytes)?;
    }
    if ops.iter().all(weft_catalog::is_read) {
        return read_only(&call, &ops).await;
    }
    let outcome = call.write(Command::Txn(v1::Txn { ops })).await?;
    match outcome.result {
        Some(v1::outcome::Result::Txn(outcome)) => Ok(reply(&outcome, None)),
        _ => Err(Failure::internal(
            "txn.outcome",
            "The transaction was answered without a result",
        )),
    }
}

async fn read_only(call: &Call, ops: &[v1::TxnOp]) -> Result<Reply, Failure> {
    let options = call.options()?;
    let backend = &call.api.deps.backend;
    let meta = backend.barrier(options.consistency).await?;
    let outcome = backend.state().read(&Trace::off()).txn_read(ops);
    let nanos = u64::try_from(meta.last_contact.as_nanos()).unwrap_or(u64::MAX);
    let known = if meta.known_leader { "true" } else { "false" };
    let reply = reply(&outcome, Some((nanos, meta.known_leader)));
    Ok(reply
        .with(KNOWN_LEADER, HeaderValue::from_static(known))
        .with(LAST_CONTACT, HeaderValue::from(millis(meta.last_contact))))
}

fn reply(outcome: &v1::TxnOutcome, read: Option<(u64, bool)>) -> Reply {
    let mut json = Json::with_capacity(256);
    txn::outcome(&mut json, outcome, read);
    let status = if outcome.errors.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::CONFLICT
    };
    Reply::json(json.into_bytes()).status(status)
}

fn check(call: &Call, op: &v1::TxnOp, value_max: u64) -> Result<(), Failure> {
    let guard = &call.guard;
    match &op.op {
        Some(Op::Kv(kv)) => {
            let entry = kv.entry.clone().unwrap_or_default();
            let size = entry.value.len() as u64;
            if size > value_max {
                let key = String::from_utf8_lossy(&entry.key);
                let text =
                    format!("Value for key {key:?} is too large ({size} > {value_max} bytes)");
                return Err(Failure::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "kv.value.too_large",
                    text,
                ));
            }
            let (resource, access) = kv_right(kv.verb());
            guard.require(resource, &entry.key, access)
        }
        Some(Op::Node(node)) => {
            let name = node
                .node
                .as_ref()
                .map(|node| node.name.as_str())
                .unwrap_or_default();
            guard.require(Resource::Node, name.as_bytes(), catalog_right(node.verb))
        }
        Some(Op::Service(service)) => {
            let name = service
                .service
                .as_ref()
                .map(|service| service.name.as_str())
                .unwrap_or_default();
            guard.require(
                Resource::Service,
                name.as_bytes(),
                catalog_right(service.verb),
            )
        }
        Some(Op::Check(check)) => {
            let node = check
                .check
                .as_ref()
                .map(|check| check.node.as_str())
                .unwrap_or_default();
            guard.require(Resource::Node, node.as_bytes(), catalog_right(check.verb))
        }
        Some(Op::Session(_)) | None => guard.require(Resource::Session, b"", Access::Write),
    }
}

fn kv_right(verb: KvVerb) -> (Resource, Access) {
    match verb {
        KvVerb::Get
        | KvVerb::GetOrEmpty
        | KvVerb::CheckIndex
        | KvVerb::CheckSession
        | KvVerb::CheckNotExists => (Resource::Key, Access::Read),
        KvVerb::GetTree => (Resource::KeyPrefix, Access::Read),
        KvVerb::DeleteTree => (Resource::KeyPrefix, Access::Write),
        _ => (Resource::Key, Access::Write),
    }
}

fn catalog_right(verb: i32) -> Access {
    if verb == i32::from(v1::CatalogVerb::Get) {
        Access::Read
    } else {
        Access::Write
    }
}
