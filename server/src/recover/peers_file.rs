//! `raft/peers.json`: a membership written by hand, taken up at the next start as Consul does.
//!
//! Owns: reading both of Consul's forms, and the rules by which it is believed.
//! Never: is kept: once it is in force, it is gone.
//! Source: Consul docs, "Outage recovery: manual recovery using peers.json".

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use weft_proto::clock::Clock;
use weft_raft::log::LogStore;
use weft_raft::{Peer, RaftId, SurveyedMember};

use crate::handle::ServerError;

const FILE: &str = "peers.json";

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Entry {
    /// Raft protocol 2: only where it is.
    Address(String),
    /// Raft protocol 3.
    Server {
        id: String,
        address: String,
        #[serde(default)]
        non_voter: bool,
    },
}

/// Puts the membership of `raft/peers.json` in force, if there is one.
///
/// Errors say what is wrong with the file; nothing was changed then, and the server must not start.
pub(crate) fn take_up(
    raft_dir: &Path,
    me: RaftId,
    store: &Arc<dyn LogStore>,
    clock: &Arc<dyn Clock>,
) -> Result<(), ServerError> {
    let file = raft_dir.join(FILE);
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(super::io("cannot read", &file, cause)),
    };
    let wrong = |why: String| {
        ServerError::Store(format!(
            "recover.peers_file: {}: {why}; correct or remove it",
            file.display()
        ))
    };
    let entries: Vec<Entry> = serde_json::from_str(&text)
        .map_err(|cause| wrong(format!("not a list of servers, each {{\"id\", \"address\", \"non_voter\"}} or \"address\": {cause}")))?;
    let snapshots = raft_dir.join("snapshots");
    let Some(mut offline) = super::read(store.clone(), Some(snapshots), clock.clone())? else {
        return Err(wrong(
            "this server has no log to go on from, so it cannot be one that survived".into(),
        ));
    };
    let known = offline.survey().map_err(super::failed)?.members;
    let members = members(entries, &known, me).map_err(wrong)?;
    let names: Vec<_> = members.iter().map(|m| m.peer.name.clone()).collect();
    offline.machine_mut().recover();
    offline.rewrite(members).map_err(super::failed)?;
    std::fs::remove_file(&file).map_err(|cause| super::io("cannot remove", &file, cause))?;
    tracing::warn!(raft.peers = ?names, file = %file.display(), "membership recovered from peers.json, which is gone now");
    Ok(())
}

fn members(
    entries: Vec<Entry>,
    known: &[SurveyedMember],
    me: RaftId,
) -> Result<Vec<SurveyedMember>, String> {
    let mut members: Vec<SurveyedMember> = Vec::new();
    for entry in entries {
        let (found, address, voter) = match &entry {
            Entry::Address(address) => (
                known.iter().find(|m| m.peer.address == *address),
                address,
                true,
            ),
            Entry::Server {
                id,
                address,
                non_voter,
            } => {
                let id: RaftId = id
                    .parse()
                    .map_err(|_| format!("{id:?} is not a Raft id, a UUID"))?;
                (known.iter().find(|m| m.peer.id == id), address, !non_voter)
            }
        };
        let Some(found) = found else {
            return Err(format!(
                "{entry:?} is no member that this server knows; leave it out: it joins by itself once the cluster is back"
            ));
        };
        let peer = Peer {
            address: address.clone(),
            ..found.peer.clone()
        };
        members.push(SurveyedMember { peer, voter });
    }
    let ids: BTreeSet<_> = members.iter().map(|m| m.peer.id).collect();
    if ids.len() < members.len() {
        return Err("a server is listed twice".into());
    }
    if !members.iter().any(|m| m.voter && m.peer.id == me) {
        return Err(format!("this server, {me}, is not among its voters"));
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(n: u128) -> SurveyedMember {
        SurveyedMember {
            peer: Peer {
                id: RaftId(uuid::Uuid::from_u128(n)),
                name: format!("s{n}"),
                address: format!("10.0.0.{n}:8300"),
                public_key: bytes::Bytes::from_static(b"key"),
            },
            voter: true,
        }
    }

    fn judged(text: &str) -> Result<Vec<(String, String, bool)>, String> {
        let all: Vec<_> = (1..=3).map(known).collect();
        let entries = serde_json::from_str(text).unwrap();
        let members = members(entries, &all, all[0].peer.id)?;
        let shown = members
            .into_iter()
            .map(|m| (m.peer.name, m.peer.address, m.voter));
        Ok(shown.collect())
    }

    #[test]
    fn both_forms_of_consul_are_read() {
        let id = |n: u128| uuid::Uuid::from_u128(n).to_string();
        let text = format!(
            r#"[{{"id":"{}","address":"10.0.0.9:8300","non_voter":false}},{{"id":"{}","address":"10.0.0.2:8300","non_voter":true}}]"#,
            id(1),
            id(2)
        );
        assert_eq!(
            judged(&text).unwrap(),
            [
                ("s1".to_owned(), "10.0.0.9:8300".to_owned(), true),
                ("s2".to_owned(), "10.0.0.2:8300".to_owned(), false)
            ]
        );
        let second = judged(r#"["10.0.0.1:8300", "10.0.0.3:8300"]"#).unwrap();
        assert_eq!(second.len(), 2);
    }

    #[test]
    fn what_would_not_work_is_refused_with_the_reason() {
        let id = |n: u128| uuid::Uuid::from_u128(n).to_string();
        for (text, words) in [
            (r#"["10.0.0.7:8300"]"#.to_owned(), "no member"),
            (r#"["10.0.0.2:8300"]"#.to_owned(), "not among its voters"),
            (
                r#"["10.0.0.1:8300", "10.0.0.1:8300"]"#.to_owned(),
                "listed twice",
            ),
            (
                r#"[{"id":"s1","address":"10.0.0.1:8300"}]"#.to_owned(),
                "not a Raft id",
            ),
            (
                format!(
                    r#"[{{"id":"{}","address":"10.0.0.1:8300","non_voter":true}}]"#,
                    id(1)
                ),
                "not among its voters",
            ),
        ] {
            let told = judged(&text).unwrap_err();
            assert!(told.contains(words), "{text}: {told}");
        }
    }
}
