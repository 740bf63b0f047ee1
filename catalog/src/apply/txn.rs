//! Transactions: several operations that all happen, or none.
//!
//! Owns: every verb's meaning inside a transaction and the texts of its failures.
//! Never: leaves a part of a failed transaction behind.
//! Source: Consul HTTP API, "Transactions"; CONSUL.md A.6.

use weft_proto::ids::UnixMillis;
use weft_proto::v1::{self, CatalogVerb, KvEntry, KvVerb, outcome, txn_op::Op, txn_result};

use crate::apply::{deregister, kv, register, session};
use crate::keys;
use crate::read::{Reader, txn as reads};
use crate::refusal::{Verdict, invalid};
use crate::rows::Change;
use crate::topics::{Touched, Trace};

/// Operations in one transaction.
pub const TXN_OPS_MAX: usize = 128;

pub(crate) type Step = Result<Vec<v1::TxnResult>, String>;

pub(crate) fn transact(change: &mut Change<'_>, now: UnixMillis, command: &v1::Txn) -> Verdict {
    if command.ops.len() > TXN_OPS_MAX {
        return Err(invalid(
            "txn.too_many",
            format!(
                "Transaction contains too many operations ({} > {TXN_OPS_MAX})",
                command.ops.len()
            ),
        ));
    }
    let before = change.state.clone();
    let mut touched = Touched::default();
    let mut inner = Change {
        state: &mut *change.state,
        touched: &mut touched,
        index: change.index,
    };
    let outcome = run(&command.ops, |op| step(&mut inner, now, op));
    if outcome.errors.is_empty() {
        change.touched.absorb(touched);
    } else {
        *change.state = before;
    }
    Ok(outcome::Result::Txn(outcome))
}

/// Runs every operation, even after a failure: the user sees all that is wrong at once.
pub(crate) fn run(ops: &[v1::TxnOp], mut step: impl FnMut(&Op) -> Step) -> v1::TxnOutcome {
    let mut outcome = v1::TxnOutcome::default();
    for (op_index, op) in (0_u32..).zip(ops) {
        let done = op
            .op
            .as_ref()
            .map_or_else(|| Err("operation is empty".to_owned()), &mut step);
        match done {
            Ok(results) => outcome.results.extend(results),
            Err(what) => outcome.errors.push(v1::TxnError { op_index, what }),
        }
    }
    if !outcome.errors.is_empty() {
        outcome.results.clear();
    }
    outcome
}

fn step(change: &mut Change<'_>, now: UnixMillis, op: &Op) -> Step {
    let trace = Trace::off();
    if let Some(read) = reads::step(&Reader::new(change.state, &trace), op) {
        return read;
    }
    match op {
        Op::Kv(op) => write_key(change, now, op),
        Op::Node(op) => write_node(change, now, op),
        Op::Service(op) => write_service(change, now, op),
        Op::Check(op) => write_check(change, now, op),
        Op::Session(op) => write_session(change, now, op),
    }
}

fn write_key(change: &mut Change<'_>, now: UnixMillis, op: &v1::KvCommand) -> Step {
    let entry = op.entry.as_ref().ok_or("Missing key name")?;
    kv::check_bounds(entry).map_err(|refusal| refusal.message)?;
    let key = String::from_utf8_lossy(&entry.key);
    match op.verb() {
        KvVerb::Set => kv::set(change, entry),
        KvVerb::Cas => {
            if !kv::cas(change, entry) {
                return Err(format!("failed to set key {key:?}, index is stale"));
            }
        }
        KvVerb::Lock => match kv::lock(change, now, entry).map_err(|refusal| refusal.message)? {
            kv::Lock::Acquired => {}
            kv::Lock::Held => {
                return Err(format!("failed to lock key {key:?}, lock is already held"));
            }
            kv::Lock::Delayed => {
                return Err(format!("failed to lock key {key:?} due to lock delay"));
            }
        },
        KvVerb::Unlock => {
            if !kv::unlock(change, entry).map_err(|refusal| refusal.message)? {
                return Err(format!(
                    "failed to unlock key {key:?}, lock isn't held, or is held by another session"
                ));
            }
        }
        KvVerb::Delete => kv::delete(change, &entry.key),
        KvVerb::DeleteTree => kv::delete_tree(change, &entry.key),
        KvVerb::DeleteCas => {
            if !kv::delete_cas(change, &entry.key, entry.modify_index) {
                return Err(format!("failed to delete key {key:?}, index is stale"));
            }
        }
        other => return Err(format!("unknown KV verb {:?}", other.as_str_name())),
    }
    let wrote = matches!(
        op.verb(),
        KvVerb::Set | KvVerb::Cas | KvVerb::Lock | KvVerb::Unlock
    );
    let row = change.state.kv.get(&entry.key[..]).filter(|_| wrote);
    Ok(row
        .map(|row| reads::key_result(row, false))
        .into_iter()
        .collect())
}

fn write_node(change: &mut Change<'_>, now: UnixMillis, op: &v1::NodeOp) -> Step {
    let wanted = op.node.as_ref().ok_or("Missing node")?;
    let row = reads::find_node(change.state, wanted).cloned();
    let current = row.as_ref().map_or(0, |row| row.modify_index);
    match op.verb() {
        CatalogVerb::Cas if current != wanted.modify_index => Err(format!(
            "failed to set node {:?}, index is stale",
            wanted.name
        )),
        CatalogVerb::DeleteCas if current != wanted.modify_index => Err(format!(
            "failed to delete node {:?}, index is stale",
            wanted.name
        )),
        CatalogVerb::Set | CatalogVerb::Cas => {
            register::put_node(change, now, wanted).map_err(|refusal| refusal.message)?;
            let row = change.state.nodes.get(keys::fold(&wanted.name).as_ref());
            Ok(row.map(|row| reads::node_result(row)).into_iter().collect())
        }
        CatalogVerb::Delete | CatalogVerb::DeleteCas => {
            if let Some(row) = row {
                deregister::remove_node(change, now, &keys::name(&row.name));
            }
            Ok(Vec::new())
        }
        other => Err(format!("unknown Node verb {:?}", other.as_str_name())),
    }
}

fn write_service(change: &mut Change<'_>, now: UnixMillis, op: &v1::ServiceOp) -> Step {
    let wanted = op.service.as_ref().ok_or("Missing service")?;
    let node = keys::name(&op.node);
    let current =
        reads::find_service(change.state, &op.node, wanted).map_or(0, |row| row.modify_index);
    match op.verb() {
        CatalogVerb::Cas if current != wanted.modify_index => Err(format!(
            "failed to set service {:?} on node {:?}, index is stale",
            wanted.id, op.node
        )),
        CatalogVerb::DeleteCas if current != wanted.modify_index => Err(format!(
            "failed to delete service {:?} on node {:?}, index is stale",
            wanted.id, op.node
        )),
        CatalogVerb::Set | CatalogVerb::Cas => {
            register::put_service(change, &node, wanted).map_err(|refusal| refusal.message)?;
            let row = reads::find_service(change.state, &op.node, wanted);
            Ok(row
                .map(|row| reads::service_result(&op.node, row))
                .into_iter()
                .collect())
        }
        CatalogVerb::Delete | CatalogVerb::DeleteCas => {
            if let Some(id) =
                reads::find_service(change.state, &op.node, wanted).map(|row| keys::name(&row.id))
            {
                deregister::remove_service(change, now, &node, &id);
            }
            Ok(Vec::new())
        }
        other => Err(format!("unknown Service verb {:?}", other.as_str_name())),
    }
}

fn write_check(change: &mut Change<'_>, now: UnixMillis, op: &v1::CheckOp) -> Step {
    let wanted = op.check.as_ref().ok_or("Missing check")?;
    let node = keys::name(&wanted.node);
    let current = reads::find_check(change.state, wanted).map_or(0, |row| row.modify_index);
    match op.verb() {
        CatalogVerb::Cas if current != wanted.modify_index => Err(format!(
            "failed to set check {:?} on node {:?}, index is stale",
            wanted.id, wanted.node
        )),
        CatalogVerb::DeleteCas if current != wanted.modify_index => Err(format!(
            "failed to delete check {:?} on node {:?}, index is stale",
            wanted.id, wanted.node
        )),
        CatalogVerb::Set | CatalogVerb::Cas => {
            register::put_check(change, now, &node, wanted).map_err(|refusal| refusal.message)?;
            let row = reads::find_check(change.state, wanted);
            Ok(row
                .map(|row| reads::check_result(row))
                .into_iter()
                .collect())
        }
        CatalogVerb::Delete | CatalogVerb::DeleteCas => {
            if let Some(id) = reads::find_check(change.state, wanted).map(|row| keys::name(&row.id))
            {
                deregister::remove_check(change, now, &node, &id);
            }
            Ok(Vec::new())
        }
        other => Err(format!("unknown Check verb {:?}", other.as_str_name())),
    }
}

fn write_session(change: &mut Change<'_>, now: UnixMillis, op: &v1::SessionOp) -> Step {
    let wanted = op.session.as_ref().ok_or("Missing session")?;
    if op.verb() != CatalogVerb::Delete {
        return Err(format!(
            "unknown Session verb {:?}",
            op.verb().as_str_name()
        ));
    }
    session::invalidate(change, now, &keys::name(&wanted.id));
    Ok(Vec::new())
}

/// A key's name, for texts.
pub(crate) fn shown(entry: &KvEntry) -> String {
    String::from_utf8_lossy(&entry.key).into_owned()
}

pub(crate) const fn result(result: txn_result::Result, with_value: bool) -> v1::TxnResult {
    v1::TxnResult {
        result: Some(result),
        with_value,
    }
}
