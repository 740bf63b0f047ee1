//! Transactions, in and out.
//!
//! Owns: the body of `/v1/txn` and its answer.
//! Never: runs one.
//! Source: Consul HTTP API, "Transactions"; CONSUL.md A.6.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::decode::{DecodeError, Object, rows};
use super::write::Json;
use super::{input, records};
use crate::v1;
use crate::v1::txn_op::Op;
use crate::v1::txn_result;

const KV_VERBS: [(&str, v1::KvVerb); 13] = [
    ("set", v1::KvVerb::Set),
    ("cas", v1::KvVerb::Cas),
    ("lock", v1::KvVerb::Lock),
    ("unlock", v1::KvVerb::Unlock),
    ("get", v1::KvVerb::Get),
    ("get-or-empty", v1::KvVerb::GetOrEmpty),
    ("get-tree", v1::KvVerb::GetTree),
    ("check-index", v1::KvVerb::CheckIndex),
    ("check-session", v1::KvVerb::CheckSession),
    ("check-not-exists", v1::KvVerb::CheckNotExists),
    ("delete", v1::KvVerb::Delete),
    ("delete-tree", v1::KvVerb::DeleteTree),
    ("delete-cas", v1::KvVerb::DeleteCas),
];

const CATALOG_VERBS: [(&str, v1::CatalogVerb); 5] = [
    ("set", v1::CatalogVerb::Set),
    ("cas", v1::CatalogVerb::Cas),
    ("get", v1::CatalogVerb::Get),
    ("delete", v1::CatalogVerb::Delete),
    ("delete-cas", v1::CatalogVerb::DeleteCas),
];

/// Reads the operations of a body.
pub fn ops(body: &Value) -> Result<Vec<v1::TxnOp>, DecodeError> {
    rows(body)?
        .iter()
        .map(|object| {
            Ok(v1::TxnOp {
                op: Some(op(object)?),
            })
        })
        .collect()
}

fn op(object: &Object<'_>) -> Result<Op, DecodeError> {
    if let Some(kv) = object.object("KV")? {
        return Ok(Op::Kv(kv_op(&kv)?));
    }
    if let Some(node) = object.object("Node")? {
        let record = node
            .object("Node")?
            .map(|inner| input::node(&inner))
            .transpose()?;
        return Ok(Op::Node(v1::NodeOp {
            verb: catalog_verb(&node)?,
            node: record,
        }));
    }
    if let Some(service) = object.object("Service")? {
        let record = service
            .object("Service")?
            .map(|inner| input::service(&inner))
            .transpose()?;
        let node = service.text("Node")?;
        return Ok(Op::Service(v1::ServiceOp {
            verb: catalog_verb(&service)?,
            node,
            service: record,
        }));
    }
    if let Some(check) = object.object("Check")? {
        let record = check
            .object("Check")?
            .map(|inner| input::check(&inner))
            .transpose()?;
        return Ok(Op::Check(v1::CheckOp {
            verb: catalog_verb(&check)?,
            check: record,
        }));
    }
    if let Some(session) = object.object("Session")? {
        let id = session
            .object("Session")?
            .map(|inner| inner.text("ID"))
            .transpose()?
            .unwrap_or_default();
        let record = v1::Session {
            id,
            ..Default::default()
        };
        return Ok(Op::Session(v1::SessionOp {
            verb: catalog_verb(&session)?,
            session: Some(record),
        }));
    }
    Err(object.bad_value(
        "KV",
        "an operation needs one of KV, Node, Service, Check, Session",
    ))
}

fn kv_op(object: &Object<'_>) -> Result<v1::KvCommand, DecodeError> {
    let verb = verb(object, &KV_VERBS)?;
    let value = STANDARD
        .decode(object.text("Value")?)
        .map_err(|error| object.bad_value("Value", error))?;
    Ok(v1::KvCommand {
        verb: verb.into(),
        entry: Some(v1::KvEntry {
            key: object.text("Key")?.into_bytes().into(),
            value: value.into(),
            flags: object.unsigned("Flags")?,
            session: object.text("Session")?,
            modify_index: object.unsigned("Index")?,
            ..Default::default()
        }),
    })
}

fn catalog_verb(object: &Object<'_>) -> Result<i32, DecodeError> {
    Ok(verb(object, &CATALOG_VERBS)?.into())
}

fn verb<V: Copy>(object: &Object<'_>, table: &[(&str, V)]) -> Result<V, DecodeError> {
    let name = object.text("Verb")?;
    let found = table
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, verb)| *verb);
    found.ok_or_else(|| object.bad_value("Verb", format_args!("unknown verb {name:?}")))
}

/// The answer. `read` carries the freshness that a read-only transaction also shows.
pub fn outcome(json: &mut Json, outcome: &v1::TxnOutcome, read: Option<(u64, bool)>) {
    json.object(|json| {
        json.key("Results");
        // A refused transaction has no results, a done one a list of them, though it may be empty.
        if outcome.results.is_empty() && !outcome.errors.is_empty() {
            json.null();
        } else {
            json.list(&outcome.results, result);
        }
        json.key("Errors");
        if outcome.errors.is_empty() {
            json.null();
        } else {
            json.list(&outcome.errors, |json, error| {
                json.object(|json| {
                    json.key("OpIndex").number(error.op_index.into());
                    json.key("What").string(&error.what);
                });
            });
        }
        if let Some((last_contact_nanos, known_leader)) = read {
            json.key("LastContact").number(last_contact_nanos);
            json.key("KnownLeader").boolean(known_leader);
        }
    });
}

fn result(json: &mut Json, row: &v1::TxnResult) {
    json.object(|json| match &row.result {
        Some(txn_result::Result::Kv(entry)) => records::kv(json.key("KV"), entry, row.with_value),
        Some(txn_result::Result::Node(node)) => records::node(json.key("Node"), node),
        Some(txn_result::Result::Service(inner)) => {
            if let Some(service) = &inner.service {
                records::service(json.key("Service"), service);
            }
        }
        Some(txn_result::Result::Check(check)) => records::check(json.key("Check"), check),
        Some(txn_result::Result::Session(session)) => {
            records::session(json.key("Session"), session)
        }
        None => {}
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_of_every_kind_are_read() {
        let body = json!([
            {"KV": {"Verb": "cas", "Key": "a/b", "Value": "aGk=", "Flags": 3, "Index": 9}},
            {"Node": {"Verb": "set", "Node": {"Node": "ext-1", "Address": "10.9.0.1"}}},
            {"Service": {"Verb": "delete", "Node": "ext-1", "Service": {"ID": "pg1"}}},
            {"Check": {"Verb": "get", "Check": {"Node": "ext-1", "CheckID": "c1"}}},
            {"Session": {"Verb": "delete", "Session": {"ID": "u"}}},
        ]);
        let ops = ops(&body).unwrap();
        let Some(Op::Kv(kv)) = &ops[0].op else {
            panic!("not a KV operation")
        };
        let entry = kv.entry.as_ref().unwrap();
        assert_eq!(
            (kv.verb(), &entry.value[..], entry.modify_index),
            (v1::KvVerb::Cas, &b"hi"[..], 9)
        );
        assert!(
            matches!(&ops[4].op, Some(Op::Session(op)) if op.session.as_ref().unwrap().id == "u")
        );
    }

    #[test]
    fn nonsense_is_named() {
        for (body, text) in [
            (
                json!([{"KV": {"Verb": "put"}}]),
                "field [0].KV.Verb: unknown verb \"put\"",
            ),
            (
                json!([{}]),
                "field [0].KV: an operation needs one of KV, Node, Service, Check, Session",
            ),
            (
                json!([{"KV": {"Verb": "set", "Flags": "x"}}]),
                "cannot decode string into field [0].KV.Flags of type unsigned integer",
            ),
        ] {
            assert_eq!(ops(&body).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn only_a_refused_transaction_has_no_results() {
        let mut json = Json::default();
        outcome(&mut json, &v1::TxnOutcome::default(), None);
        assert_eq!(json.into_bytes(), br#"{"Results":[],"Errors":null}"#);
        let mut json = Json::default();
        let refused = v1::TxnOutcome {
            errors: vec![v1::TxnError::default()],
            ..v1::TxnOutcome::default()
        };
        outcome(&mut json, &refused, None);
        assert_eq!(
            json.into_bytes(),
            br#"{"Results":null,"Errors":[{"OpIndex":0,"What":""}]}"#
        );
    }
}
