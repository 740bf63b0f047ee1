//! Applying commands: the state as a pure function of the log.
//!
//! Owns: [`Catalog`], the applier's working copy, and the order in which a command's guards run.
//! Never: reads a clock, configuration or hash order; answers anything that another replica
//! could answer differently.

pub(crate) mod cluster;
pub(crate) mod config_entry;
pub(crate) mod coordinate;
pub(crate) mod deregister;
pub(crate) mod join_token;
pub(crate) mod kv;
pub(crate) mod mesh_ca;
pub(crate) mod prepared_query;
pub(crate) mod recover;
pub(crate) mod register;
pub(crate) mod restore;
pub(crate) mod retry;
pub(crate) mod session;
pub(crate) mod txn;

use std::collections::VecDeque;
use std::sync::Arc;

use weft_proto::ids::{CatalogIndex, LogIndex, UnixMillis};
use weft_proto::v1::{self, outcome, stamped::Command};

use crate::record::{HASH_FORM, Record, RestoreError};
use crate::refusal::{Verdict, invalid};
use crate::rows::Change;
use crate::state::State;
use crate::topics::Touched;

/// The highest cluster version this build can follow.
pub const CLUSTER_VERSION_MAX: u32 = 1;

/// How many of its past hashes a replica keeps to compare with a leader's.
pub const HASHES_KEPT_MAX: usize = 4_096;

/// The base of a new cluster. An answer from before the first command has index 1, so the first
/// command (at log index 1 or later) must have a higher one.
const BASE_AT_START: u64 = 1;

/// Why this server must stop applying: it would no longer be a replica of the others.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The entry holds no command this build knows. Nothing changed; a newer build is needed.
    #[error("entry {index} holds a command this version does not know: install a newer weft")]
    UnknownCommand {
        /// The entry's position in the log.
        index: LogIndex,
    },
    /// The cluster moved to a version this build cannot follow. Nothing changed.
    #[error(
        "entry {index} raises the cluster to version {version}, this build follows at most {CLUSTER_VERSION_MAX}"
    )]
    ClusterVersion {
        /// The entry's position in the log.
        index: LogIndex,
        /// The version asked for.
        version: u32,
    },
    /// This replica computed another state than the leader. Nothing changed; it must be rebuilt.
    #[error(
        "state diverged at catalog index {at}: ours {ours:#018x}, the leader's {theirs:#018x}; wipe this server's data and rejoin"
    )]
    Diverged {
        /// Where the hashes were compared.
        at: CatalogIndex,
        /// This replica's hash.
        ours: u64,
        /// The leader's.
        theirs: u64,
    },
    /// The log went back. Nothing changed; the driver has a bug.
    #[error("entry {index} was applied out of order: the last catalog index is {last}")]
    OutOfOrder {
        /// The entry's position in the log.
        index: LogIndex,
        /// The last applied.
        last: CatalogIndex,
    },
}

/// The applier's working copy: applies commands, and publishes snapshots.
#[derive(Clone, Debug)]
pub struct Catalog {
    state: State,
    touched: Touched,
    /// Hashes by catalog index, for `StateHash`. Not replicated: a new copy starts without.
    hashes: VecDeque<(u64, u64)>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self::new()
    }
}

impl Catalog {
    /// An empty catalog: before the first command.
    #[must_use]
    pub fn new() -> Self {
        let mut state = State::default();
        state.scalars.base = BASE_AT_START;
        Self {
            state,
            touched: Touched::default(),
            hashes: VecDeque::new(),
        }
    }

    /// Rebuilds a catalog from a snapshot's records, in the order they were written.
    ///
    /// Errors: the source's own, or [`RestoreError`] when the records make no state; no catalog is made.
    pub fn restore<E: From<RestoreError>>(
        records: impl Iterator<Item = Result<Record, E>>,
    ) -> Result<Self, E> {
        let mut catalog = Self {
            state: crate::record::rebuild(records)?,
            ..Self::new()
        };
        catalog.touched.everything();
        Ok(catalog)
    }

    /// Applies one command and answers what became of it.
    ///
    /// Total: whatever a client can cause is refused inside the [`v1::Outcome`], with the state unchanged.
    /// Errors: [`ApplyError`], upon which the server role must stop.
    pub fn apply(
        &mut self,
        log_index: LogIndex,
        stamped: &v1::Stamped,
    ) -> Result<v1::Outcome, ApplyError> {
        let command = stamped
            .command
            .as_ref()
            .ok_or(ApplyError::UnknownCommand { index: log_index })?;
        let index = self.next_index(log_index)?;
        self.check_invariants(log_index, command)?;
        let scalars = &mut self.state.scalars;
        scalars.index = index;
        scalars.cluster_time = scalars.cluster_time.max(stamped.at_millis);
        let outcome = self.answer(log_index, stamped, command);
        self.remember_hash();
        Ok(outcome)
    }

    /// The new snapshot, and what it touched since the last one.
    pub fn publish(&mut self) -> (Arc<State>, Touched) {
        (
            Arc::new(self.state.clone()),
            std::mem::take(&mut self.touched),
        )
    }

    /// As [`Catalog::publish`] after the whole state was replaced: every watcher wakes.
    pub fn publish_everything(&mut self) -> (Arc<State>, Touched) {
        self.touched.everything();
        self.publish()
    }

    /// The working copy.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Catalog index and state hash of the commands applied after `index`, in order. Only the last
    /// [`HASHES_KEPT_MAX`] are known.
    pub fn hashes_after(&self, index: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let from = self.hashes.partition_point(|(at, _)| *at <= index);
        self.hashes.range(from..).copied()
    }

    fn next_index(&self, log_index: LogIndex) -> Result<u64, ApplyError> {
        let last = self.state.scalars.index;
        let index = self.state.scalars.base.saturating_add(log_index.get());
        if index <= last && last > 0 {
            return Err(ApplyError::OutOfOrder {
                index: log_index,
                last: CatalogIndex(last),
            });
        }
        Ok(index)
    }

    /// What would make this server another state than its peers is found before anything changes.
    fn check_invariants(&self, index: LogIndex, command: &Command) -> Result<(), ApplyError> {
        match command {
            Command::ClusterVersion(command) if command.version > CLUSTER_VERSION_MAX => {
                Err(ApplyError::ClusterVersion {
                    index,
                    version: command.version,
                })
            }
            // Another form of the hash says nothing about the state.
            Command::StateHash(command) if command.hash_form != HASH_FORM => Ok(()),
            Command::StateHash(command) => match self.hash_at(command.at_index) {
                Some(ours) if ours != command.hash => Err(ApplyError::Diverged {
                    at: CatalogIndex(command.at_index),
                    ours,
                    theirs: command.hash,
                }),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn answer(
        &mut self,
        log_index: LogIndex,
        stamped: &v1::Stamped,
        command: &Command,
    ) -> v1::Outcome {
        let index = self.state.scalars.index;
        let retry = match self
            .state
            .sources
            .look_up(&stamped.source_id, stamped.source_sequence)
        {
            retry::Lookup::Answered(outcome) => return outcome,
            retry::Lookup::Refused(refusal) => return outcome_of(index, Err(refusal)),
            retry::Lookup::New(retry) => retry,
        };
        let verdict =
            in_default_scope(stamped).and_then(|()| self.dispatch(log_index, stamped, command));
        // A restore may have moved the index.
        let index = self.state.scalars.index;
        let outcome = outcome_of(index, verdict);
        if let Some(retry) = retry {
            self.state.sources.remember(&retry, index, &outcome);
        }
        outcome
    }

    fn dispatch(
        &mut self,
        log_index: LogIndex,
        stamped: &v1::Stamped,
        command: &Command,
    ) -> Verdict {
        let index = self.state.scalars.index;
        let now = UnixMillis(self.state.scalars.cluster_time);
        let term = stamped.term;
        let mut change = Change {
            state: &mut self.state,
            touched: &mut self.touched,
            index,
        };
        match command {
            Command::Register(command) => register::register(&mut change, command),
            Command::Deregister(command) => deregister::deregister(&mut change, now, command),
            Command::Kv(command) => kv::command(&mut change, now, command),
            Command::SessionCreate(command) => session::create(&mut change, now, command),
            Command::SessionDestroy(command) => session::destroy(&mut change, now, command),
            Command::SessionRenew(command) => session::renew(&mut change, now, command),
            Command::SessionExpire(command) => session::expire(&mut change, now, command),
            Command::Txn(command) => txn::transact(&mut change, now, command),
            Command::TombstoneReap(command) => cluster::reap(&mut change, now, command),
            Command::ClusterVersion(command) => cluster::version(&mut change, command),
            Command::RestoreBegin(command) => restore::begin(&mut change, command),
            Command::RestoreChunk(command) => restore::chunk(&mut change, command),
            Command::RestoreCommit(command) => restore::commit(&mut change, log_index, command),
            Command::RestoreAbort(command) => restore::abort(&mut change, command),
            Command::LeaderStart(start) => {
                cluster::name_once(&mut change, &start.cluster_id);
                session::rearm(&mut change, now, term)
            }
            Command::StateHash(_) => Ok(crate::refusal::unit()),
            Command::ServerKey(command) => cluster::server_key(&mut change, command),
            Command::Autopilot(command) => cluster::autopilot(&mut change, command),
            Command::ConfigEntry(command) => config_entry::command(&mut change, command),
            Command::PreparedQuery(command) => prepared_query::command(&mut change, command),
            Command::Coordinates(command) => coordinate::batch(&mut change, command),
            Command::JoinToken(command) => join_token::command(&mut change, now, command),
            Command::MeshCa(command) => mesh_ca::command(&mut change, command),
        }
    }

    fn remember_hash(&mut self) {
        if self.hashes.len() == HASHES_KEPT_MAX {
            self.hashes.pop_front();
        }
        self.hashes
            .push_back((self.state.scalars.index, self.state.hash()));
    }

    fn hash_at(&self, index: u64) -> Option<u64> {
        let at = self
            .hashes
            .binary_search_by_key(&index, |(index, _)| *index)
            .ok()?;
        self.hashes.get(at).map(|(_, hash)| *hash)
    }
}

fn outcome_of(index: u64, verdict: Verdict) -> v1::Outcome {
    let result = verdict.unwrap_or_else(outcome::Result::Refusal);
    v1::Outcome {
        index,
        result: Some(result),
    }
}

fn in_default_scope(stamped: &v1::Stamped) -> Result<(), v1::Refusal> {
    let Some(scope) = &stamped.scope else {
        return Ok(());
    };
    let default = |text: &str| text.is_empty() || text.eq_ignore_ascii_case("default");
    if default(&scope.partition) && default(&scope.namespace) && scope.peer.is_empty() {
        return Ok(());
    }
    Err(invalid(
        "scope.unsupported",
        format!(
            "only the default partition and namespace exist, not {:?}/{:?}/{:?}",
            scope.partition, scope.namespace, scope.peer
        ),
    ))
}
