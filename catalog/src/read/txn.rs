//! The reading verbs of a transaction, alone or among writes.
//!
//! Owns: what each reading verb answers and the texts of its failures.
//! Never: changes anything.

use std::sync::Arc;

use weft_proto::v1::{self, CatalogVerb, KvEntry, KvVerb, txn_op::Op, txn_result};

use crate::apply::txn::{Step, result, run, shown};
use crate::keys::{self, PairRef};
use crate::read::Reader;
use crate::state::State;

impl Reader<'_> {
    /// Runs a transaction of reading verbs only; a writing verb is an error of its operation.
    #[must_use]
    pub fn txn_read(&self, ops: &[v1::TxnOp]) -> v1::TxnOutcome {
        run(ops, |op| {
            step(self, op).unwrap_or_else(|| Err("a write needs the log".to_owned()))
        })
    }
}

/// The rows that operations mean, for whoever authorizes them: an operation may name a row by its id
/// and claim any other name beside it.
impl<'a> Reader<'a> {
    /// The node an operation means, if it is there: by id if it gives one, else by name.
    #[must_use]
    pub fn txn_node(&self, wanted: &v1::Node) -> Option<&'a Arc<v1::Node>> {
        find_node(self.state, wanted)
    }

    /// The service an operation means on `node`, if it is there: by id if it gives one, else by name.
    #[must_use]
    pub fn txn_service(&self, node: &str, wanted: &v1::Service) -> Option<&'a Arc<v1::Service>> {
        find_service(self.state, node, wanted)
    }

    /// The check an operation means, if it is there: by id if it gives one, else by name.
    #[must_use]
    pub fn txn_check(&self, wanted: &v1::Check) -> Option<&'a Arc<v1::Check>> {
        find_check(self.state, wanted)
    }
}

/// Whether an operation only reads.
#[must_use]
pub fn is_read(op: &v1::TxnOp) -> bool {
    match &op.op {
        Some(Op::Kv(op)) => matches!(
            op.verb(),
            KvVerb::Get
                | KvVerb::GetOrEmpty
                | KvVerb::GetTree
                | KvVerb::CheckIndex
                | KvVerb::CheckSession
                | KvVerb::CheckNotExists
        ),
        Some(Op::Node(op)) => op.verb() == CatalogVerb::Get,
        Some(Op::Service(op)) => op.verb() == CatalogVerb::Get,
        Some(Op::Check(op)) => op.verb() == CatalogVerb::Get,
        Some(Op::Session(_)) | None => false,
    }
}

/// Answers a reading verb; `None` for a writing one.
pub(crate) fn step(reader: &Reader<'_>, op: &Op) -> Option<Step> {
    match op {
        Op::Kv(op) => read_key(reader, op),
        Op::Node(op) if op.verb() == CatalogVerb::Get => Some(get_node(reader, op)),
        Op::Service(op) if op.verb() == CatalogVerb::Get => Some(get_service(reader, op)),
        Op::Check(op) if op.verb() == CatalogVerb::Get => Some(get_check(reader, op)),
        _ => None,
    }
}

fn read_key(reader: &Reader<'_>, op: &v1::KvCommand) -> Option<Step> {
    let Some(wanted) = &op.entry else {
        return Some(Err("Missing key name".to_owned()));
    };
    let of_tree = matches!(op.verb(), KvVerb::GetTree | KvVerb::DeleteTree);
    if wanted.key.is_empty() && !of_tree {
        return Some(Err("Must provide key".to_owned()));
    }
    let get = || reader.kv_get(&wanted.key).rows;
    let missing = || Err(format!("key {:?} doesn't exist", shown(wanted)));
    let unchecked = |what: &str| {
        Err(format!(
            "failed to check {what}, key {:?} doesn't exist",
            shown(wanted)
        ))
    };
    Some(match op.verb() {
        KvVerb::Get => get().map_or_else(missing, |row| Ok(vec![key_result(row, true)])),
        KvVerb::GetOrEmpty => {
            Ok(vec![get().map_or_else(
                || empty_result(wanted),
                |row| key_result(row, true),
            )])
        }
        KvVerb::GetTree => Ok(reader
            .kv_list(&wanted.key)
            .rows
            .into_iter()
            .map(|row| key_result(row, true))
            .collect()),
        KvVerb::CheckIndex => {
            get().map_or_else(|| unchecked("index"), |row| check_index(wanted, row))
        }
        KvVerb::CheckSession => {
            get().map_or_else(|| unchecked("session"), |row| check_session(wanted, row))
        }
        KvVerb::CheckNotExists => match get() {
            Some(_) => Err(format!("key {:?} exists", shown(wanted))),
            None => Ok(Vec::new()),
        },
        _ => return None,
    })
}

fn check_index(wanted: &KvEntry, row: &Arc<KvEntry>) -> Step {
    if row.modify_index == wanted.modify_index {
        return Ok(vec![key_result(row, false)]);
    }
    Err(format!(
        "failed index check for key {:?}, current modify index {} != {}",
        shown(wanted),
        row.modify_index,
        wanted.modify_index
    ))
}

fn check_session(wanted: &KvEntry, row: &Arc<KvEntry>) -> Step {
    if row.session.eq_ignore_ascii_case(&wanted.session) {
        return Ok(vec![key_result(row, false)]);
    }
    Err(format!(
        "failed session check for key {:?}, current session {:?} != {:?}",
        shown(wanted),
        row.session,
        wanted.session
    ))
}

fn get_node(reader: &Reader<'_>, op: &v1::NodeOp) -> Step {
    let wanted = op.node.as_ref().ok_or("Missing node")?;
    let row = if wanted.id.is_empty() {
        reader.node(&wanted.name)
    } else {
        reader.node_by_id(&wanted.id)
    };
    match row.rows {
        Some(row) => Ok(vec![node_result(row)]),
        None => Err(format!("node {:?} doesn't exist", wanted.name)),
    }
}

fn get_service(reader: &Reader<'_>, op: &v1::ServiceOp) -> Step {
    let wanted = op.service.as_ref().ok_or("Missing service")?;
    reader.note_node(&op.node);
    match find_service(reader.state, &op.node, wanted) {
        Some(row) => Ok(vec![service_result(&op.node, row)]),
        None => Err(format!(
            "service {:?} on node {:?} doesn't exist",
            wanted.id, op.node
        )),
    }
}

fn get_check(reader: &Reader<'_>, op: &v1::CheckOp) -> Step {
    let wanted = op.check.as_ref().ok_or("Missing check")?;
    reader.note_node(&wanted.node);
    match find_check(reader.state, wanted) {
        Some(row) => Ok(vec![check_result(row)]),
        None => Err(format!(
            "check {:?} on node {:?} doesn't exist",
            wanted.id, wanted.node
        )),
    }
}

/// The node an operation means: by id if it gives one, else by name.
pub(crate) fn find_node<'a>(state: &'a State, wanted: &v1::Node) -> Option<&'a Arc<v1::Node>> {
    if wanted.id.is_empty() {
        return state.nodes.get(keys::fold(&wanted.name).as_ref());
    }
    state
        .nodes
        .get(state.node_ids.get(keys::fold(&wanted.id).as_ref())?)
}

pub(crate) fn find_service<'a>(
    state: &'a State,
    node: &str,
    wanted: &v1::Service,
) -> Option<&'a Arc<v1::Service>> {
    let id = if wanted.id.is_empty() {
        &wanted.name
    } else {
        &wanted.id
    };
    state
        .services
        .get(&PairRef(&keys::fold(node), &keys::fold(id)))
}

pub(crate) fn find_check<'a>(state: &'a State, wanted: &v1::Check) -> Option<&'a Arc<v1::Check>> {
    let id = if wanted.id.is_empty() {
        &wanted.name
    } else {
        &wanted.id
    };
    state
        .checks
        .get(&PairRef(&keys::fold(&wanted.node), &keys::fold(id)))
}

pub(crate) fn key_result(row: &Arc<KvEntry>, with_value: bool) -> v1::TxnResult {
    let mut entry = KvEntry::clone(row);
    if !with_value {
        entry.value.clear();
    }
    result(txn_result::Result::Kv(entry), with_value)
}

fn empty_result(wanted: &KvEntry) -> v1::TxnResult {
    result(
        txn_result::Result::Kv(KvEntry {
            key: wanted.key.clone(),
            ..KvEntry::default()
        }),
        true,
    )
}

pub(crate) fn node_result(row: &v1::Node) -> v1::TxnResult {
    result(txn_result::Result::Node(row.clone()), false)
}

pub(crate) fn service_result(node: &str, row: &v1::Service) -> v1::TxnResult {
    let service = v1::NodeService {
        node: node.to_owned(),
        service: Some(row.clone()),
    };
    result(txn_result::Result::Service(service), false)
}

pub(crate) fn check_result(row: &v1::Check) -> v1::TxnResult {
    result(txn_result::Result::Check(row.clone()), false)
}
