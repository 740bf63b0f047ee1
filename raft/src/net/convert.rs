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

pub(super) fn log_id_of(record: wire::LogId) -> LogId {
    log_id(record.term, record.index)
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
    Ok(new_vote(record.term, leader, record.committed))
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
    let mut previous = record.previous.map(|id| id.index);
    for entry in record.entries {
        let expected = previous.map_or(0, |index| index + 1);
        if entry.index != expected {
            return Err(corrupt(&format!(
                "append with entry {} where {expected} was due",
                entry.index
            )));
        }
        previous = Some(entry.index);
        let kind = kind_of(entry.kind)?;
        entries.push(decode_entry(
            log_id(entry.term, entry.index),
            kind,
            entry.body,
        )?);
    }
    Ok(AppendEntriesRequest {
        vote: vote_of(record.vote)?,
        prev_log_id: record.previous.map(log_id_of),
        leader_commit: record.committed.map(log_id_of),
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
    let at = reply.log_id.map(log_id_of);
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
    let mut request = VoteRequest::new(vote_of(record.vote)?, record.last.map(log_id_of));
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
        record.last.map(log_id_of),
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
        last_log_id: begin.last.map(log_id_of),
        last_membership: StoredMembership::new(begin.membership_at.map(log_id_of), membership),
    })
}
