//! openraft's messages as frames, and back.
//!
//! Owns: the field-by-field mapping.
//! Never: does IO.

use std::io;

use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest,
};

use crate::log::EntryKind;
use crate::peer::RaftId;
use crate::snapshot::SnapshotData;
use crate::types::{
    Entry, LogId, SnapshotMeta, StoredMembership, Types, Vote, corrupt, decode_entry,
    encode_payload, log_id, membership_of, membership_record, new_vote, term_of,
};
use crate::wire;
use crate::wire::append_reply::Outcome;

pub(super) fn log_id_record(id: &LogId) -> wire::LogId {
    wire::LogId {
        term: term_of(id),
        index: id.index,
    }
}

/// No log gets this far; what a peer sends beyond it is nonsense, and counting on from it would overflow.
const POSITION_MAX: u64 = 1 << 62;

pub(super) fn log_id_of(record: wire::LogId) -> io::Result<LogId> {
    Ok(log_id(bounded(record.term)?, bounded(record.index)?))
}

fn optional_log_id_of(record: Option<wire::LogId>) -> io::Result<Option<LogId>> {
    record.map(log_id_of).transpose()
}

fn bounded(position: u64) -> io::Result<u64> {
    if position > POSITION_MAX {
        return Err(corrupt(&format!(
            "term or index {position} is beyond {POSITION_MAX}"
        )));
    }
    Ok(position)
}

pub(super) fn vote_record(vote: &Vote) -> wire::Vote {
    wire::Vote {
        term: vote.leader_id.term,
        leader: vote.leader_id.voted_for.to_bytes(),
        committed: vote.committed,
    }
}

pub(super) fn vote_of(record: Option<wire::Vote>) -> io::Result<Vote> {
    let record = record.ok_or_else(|| corrupt("message without a vote"))?;
    let leader =
        RaftId::from_slice(&record.leader).ok_or_else(|| corrupt("vote with a malformed id"))?;
    Ok(new_vote(bounded(record.term)?, leader, record.committed))
}

pub(super) fn append_record(session: u64, request: AppendEntriesRequest<Types>) -> wire::Append {
    wire::Append {
        session,
        vote: Some(vote_record(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_record),
        committed: request.leader_commit.as_ref().map(log_id_record),
        entries: request.entries.iter().map(entry_record).collect(),
    }
}

fn entry_record(entry: &Entry) -> wire::Entry {
    let (kind, body) = encode_payload(entry);
    wire::Entry {
        term: term_of(&entry.log_id),
        index: entry.log_id.index,
        kind: kind as u32,
        body,
    }
}

pub(super) fn append_of(record: wire::Append) -> io::Result<AppendEntriesRequest<Types>> {
    let mut entries = Vec::with_capacity(record.entries.len());
    let prev_log_id = optional_log_id_of(record.previous)?;
    let mut previous = prev_log_id.map(|id| id.index);
    for entry in record.entries {
        let expected = previous.map_or(0, |index: u64| index.saturating_add(1));
        if entry.index != expected {
            return Err(corrupt(&format!(
                "append with entry {} where {expected} was due",
                entry.index
            )));
        }
        previous = Some(entry.index);
        let kind = kind_of(entry.kind)?;
        let id = log_id(bounded(entry.term)?, bounded(entry.index)?);
        entries.push(decode_entry(id, kind, entry.body)?);
    }
    Ok(AppendEntriesRequest {
        vote: vote_of(record.vote)?,
        prev_log_id,
        leader_commit: optional_log_id_of(record.committed)?,
        entries,
    })
}

fn kind_of(kind: u32) -> io::Result<EntryKind> {
    [EntryKind::Blank, EntryKind::Normal, EntryKind::Membership]
        .into_iter()
        .find(|known| *known as u32 == kind)
        .ok_or_else(|| corrupt(&format!("entry kind {kind} is not known to this version")))
}

/// A follower's answer; `Err` holds the reason why it no longer takes part.
pub(super) fn append_reply_record(
    session: u64,
    result: Result<StreamAppendResult<Types>, String>,
) -> wire::AppendReply {
    let mut reply = wire::AppendReply {
        session,
        ..wire::AppendReply::default()
    };
    match result {
        Ok(Ok(matched)) => reply.log_id = matched.as_ref().map(log_id_record),
        Ok(Err(StreamAppendError::Conflict(at))) => {
            reply.set_outcome(Outcome::Conflict);
            reply.log_id = Some(log_id_record(&at));
        }
        Ok(Err(StreamAppendError::HigherVote(vote))) => {
            reply.set_outcome(Outcome::HigherVote);
            reply.vote = Some(vote_record(&vote));
        }
        Err(reason) => {
            reply.set_outcome(Outcome::Stopped);
            reply.reason = reason;
        }
    }
    reply
}

pub(super) fn append_reply_of(reply: wire::AppendReply) -> io::Result<StreamAppendResult<Types>> {
    let outcome = reply.outcome();
    let at = optional_log_id_of(reply.log_id)?;
    match outcome {
        Outcome::Matched => Ok(Ok(at)),
        Outcome::Conflict => {
            let at = at.ok_or_else(|| corrupt("conflict without a log id"))?;
            Ok(Err(StreamAppendError::Conflict(at)))
        }
        Outcome::HigherVote => Ok(Err(StreamAppendError::HigherVote(vote_of(reply.vote)?))),
        Outcome::Stopped => Err(io::Error::other(format!("peer stopped: {}", reply.reason))),
    }
}

pub(super) fn vote_request_record(
    request: &VoteRequest<Types>,
    pre_vote: bool,
) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(vote_record(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id_record),
        leadership_transfer: request.leadership_transfer,
        pre_vote,
    }
}

pub(super) fn vote_request_of(record: wire::VoteRequest) -> io::Result<VoteRequest<Types>> {
    let mut request = VoteRequest::new(vote_of(record.vote)?, optional_log_id_of(record.last)?);
    request.leadership_transfer = record.leadership_transfer;
    Ok(request)
}

pub(super) fn transfer_record(request: &TransferLeaderRequest<Types>) -> wire::TransferRequest {
    wire::TransferRequest {
        from_leader: Some(vote_record(request.from_leader())),
        to: request.to_node_id().to_bytes(),
        last: request.last_log_id().map(log_id_record),
    }
}

pub(super) fn transfer_of(
    record: wire::TransferRequest,
) -> io::Result<TransferLeaderRequest<Types>> {
    let to = RaftId::from_slice(&record.to).ok_or_else(|| corrupt("transfer to a malformed id"))?;
    Ok(TransferLeaderRequest::new(
        vote_of(record.from_leader)?,
        to,
        optional_log_id_of(record.last)?,
    ))
}

pub(super) fn snapshot_begin(
    vote: &Vote,
    meta: &SnapshotMeta,
    data: &SnapshotData,
) -> wire::SnapshotBegin {
    wire::SnapshotBegin {
        vote: Some(vote_record(vote)),
        last: meta.last_log_id.as_ref().map(log_id_record),
        membership_at: meta.last_membership.log_id().as_ref().map(log_id_record),
        membership: Some(membership_record(meta.last_membership.membership())),
        size_bytes: data.size_bytes(),
    }
}

pub(super) fn snapshot_meta_of(begin: &wire::SnapshotBegin) -> io::Result<SnapshotMeta> {
    let membership = membership_of(begin.membership.clone().unwrap_or_default())?;
    Ok(SnapshotMeta {
        last_log_id: optional_log_id_of(begin.last)?,
        last_membership: StoredMembership::new(
            optional_log_id_of(begin.membership_at)?,
            membership,
        ),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn vote(term: u64) -> Option<wire::Vote> {
        Some(wire::Vote {
            term,
            leader: RaftId::default().to_bytes(),
            committed: true,
        })
    }

    fn append(previous: u64, entry: u64, term: u64) -> wire::Append {
        wire::Append {
            vote: vote(1),
            previous: Some(wire::LogId {
                term,
                index: previous,
            }),
            entries: vec![wire::Entry {
                term,
                index: entry,
                kind: EntryKind::Normal as u32,
                body: Bytes::new(),
            }],
            ..wire::Append::default()
        }
    }

    #[test]
    fn positions_at_the_end_of_all_numbers_are_refused() {
        assert!(append_of(append(4, 5, 1)).is_ok());
        for (previous, entry, term) in [
            (u64::MAX, 0, 1),
            (u64::MAX, u64::MAX, 1),
            (POSITION_MAX, POSITION_MAX + 1, 1),
            (4, 5, u64::MAX),
        ] {
            let refused = append_of(append(previous, entry, term)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        }
        let end = Some(wire::LogId {
            term: 1,
            index: u64::MAX,
        });
        assert!(vote_of(vote(u64::MAX)).is_err());
        let reply = wire::AppendReply {
            log_id: end,
            ..wire::AppendReply::default()
        };
        assert!(append_reply_of(reply).is_err());
        let request = wire::VoteRequest {
            vote: vote(1),
            last: end,
            ..wire::VoteRequest::default()
        };
        assert!(vote_request_of(request).is_err());
        let begin = wire::SnapshotBegin {
            last: end,
            ..wire::SnapshotBegin::default()
        };
        assert!(snapshot_meta_of(&begin).is_err());
    }
}
