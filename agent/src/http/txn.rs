//! `/v1/txn`.
//!
//! Owns: the transaction endpoint: limits, the right of each operation, reads without the log.
//! Never: runs an operation.
//! Source: Consul HTTP API, "Transactions"; CONSUL.md A.6.

use http::StatusCode;
use http::header::HeaderValue;
use weft_catalog::acl::{Access, Resource};
use weft_catalog::{Reader, TXN_OPS_MAX, Trace};
use weft_proto::json::{Json, decode, txn};
use weft_proto::v1::{self, KvVerb, stamped::Command, txn_op::Op};

use super::blocking::{KNOWN_LEADER, LAST_CONTACT, millis};
use super::call::Call;
use super::error::Failure;
use super::reply::Reply;
use crate::local::check_meta;

pub(super) async fn put(mut call: Call) -> Result<Reply, Failure> {
    let limits = call.api.limits();
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
    authorize(&call, &mut ops)?;
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

/// Judges every operation before the first is run.
fn authorize(call: &Call, ops: &mut [v1::TxnOp]) -> Result<(), Failure> {
    let state = call.api.deps.backend.state();
    let trace = Trace::off();
    let reader = state.read(&trace);
    for op in ops {
        if let Some(Op::Node(v1::NodeOp {
            node: Some(node), ..
        })) = &mut op.op
        {
            node.datacenter.clone_from(&call.api.deps.info.datacenter);
        }
        check(call, &reader, op, call.api.limits().kv_max_value_bytes)?;
    }
    Ok(())
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

fn check(call: &Call, reader: &Reader<'_>, op: &v1::TxnOp, value_max: u64) -> Result<(), Failure> {
    if let Some(Op::Service(v1::ServiceOp {
        service: Some(service),
        ..
    })) = &op.op
    {
        check_meta(&service.meta)?;
    }
    if let Some(Op::Kv(kv)) = &op.op {
        let (key, value) = kv
            .entry
            .as_ref()
            .map_or((&[][..], &[][..]), |entry| (&entry.key, &entry.value));
        let size = value.len() as u64;
        if size > value_max {
            let key = String::from_utf8_lossy(key);
            let text = format!("Value for key {key:?} is too large ({size} > {value_max} bytes)");
            return Err(Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "kv.value.too_large",
                text,
            ));
        }
        let (resource, access) = kv_right(kv.verb());
        return call.guard.require(resource, key, access);
    }
    rights(reader, op)
        .into_iter()
        .try_for_each(|(resource, name, access)| {
            call.guard.require(resource, name.as_bytes(), access)
        })
}

type Right = (Resource, String, Access);

/// What an operation on the catalog needs: the right to every row it reads, changes or removes, under
/// the name that row has, and to what it makes, under the name it gives. The names it claims beside an
/// id count only where there is no such row.
///
/// The rows are those of the newest published state; one that is changed by another write before this
/// transaction is applied is authorized by what it was.
fn rights(reader: &Reader<'_>, op: &v1::TxnOp) -> Vec<Right> {
    match &op.op {
        Some(Op::Node(op)) => {
            let wanted = op.node.clone().unwrap_or_default();
            let there = reader.txn_node(&wanted).map(|row| row.name.clone());
            of_rows(op.verb, there, wanted.name)
                .map(|(name, access)| (Resource::Node, name, access))
                .collect()
        }
        Some(Op::Service(op)) => {
            let wanted = op.service.clone().unwrap_or_default();
            let there = reader.txn_service(&op.node, &wanted);
            of_rows(op.verb, there.map(|row| row.name.clone()), wanted.name)
                .map(|(name, access)| (Resource::Service, name, access))
                .collect()
        }
        Some(Op::Check(op)) => {
            let wanted = op.check.clone().unwrap_or_default();
            let there = reader.txn_check(&wanted).map(|row| bound_to(row));
            of_rows(op.verb, there, claimed_by(reader, &wanted))
                .map(|((resource, name), access)| (resource, name, access))
                .collect()
        }
        Some(Op::Session(op)) => {
            let id = op.session.as_ref().map_or("", |session| &session.id);
            let row = reader.session(id).rows;
            let node = row.map_or_else(String::new, |row| row.node.clone());
            vec![(Resource::Session, node, Access::Write)]
        }
        Some(Op::Kv(_)) | None => vec![(Resource::Session, String::new(), Access::Write)],
    }
}

/// What is there and what is claimed, as far as the verb touches them.
fn of_rows<N: PartialEq>(
    verb: i32,
    there: Option<N>,
    claimed: N,
) -> impl Iterator<Item = (N, Access)> {
    let makes = [v1::CatalogVerb::Set, v1::CatalogVerb::Cas]
        .iter()
        .any(|makes| verb == i32::from(*makes));
    let claims = there.is_none() || (makes && there.as_ref() != Some(&claimed));
    let access = catalog_right(verb);
    there
        .into_iter()
        .chain(claims.then_some(claimed))
        .map(move |name| (name, access))
}

/// A check of a service is the service's, any other the node's.
fn bound_to(check: &v1::Check) -> (Resource, String) {
    if check.service_id.is_empty() {
        (Resource::Node, check.node.clone())
    } else {
        (Resource::Service, check.service_name.clone())
    }
}

/// As [`bound_to`], for a check that is to be made: its service has the name it has, not the one claimed.
fn claimed_by(reader: &Reader<'_>, wanted: &v1::Check) -> (Resource, String) {
    let by_id = v1::Service {
        id: wanted.service_id.clone(),
        ..v1::Service::default()
    };
    let (resource, claimed) = bound_to(wanted);
    let service = reader
        .txn_service(&wanted.node, &by_id)
        .filter(|_| resource == Resource::Service);
    (resource, service.map_or(claimed, |row| row.name.clone()))
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
