//! Retry identities: a command that an agent sends again is answered, not executed again.
//!
//! Owns: the table of answered sequences (DESIGN §4, "Idempotence"). Replicated and snapshotted.
//! Never: executes anything; a sequence below the watermark is refused.

use bytes::Bytes;
use imbl::OrdSet;
use prost::Message;
use weft_proto::v1;

use crate::digest::{Digest, Fold, Table};
use crate::keys::Name;
use crate::refusal::{conflict, internal};

/// Answers kept for each agent: the width of its retry window.
pub const SEQUENCES_MAX: u64 = 1_024;

/// Agents remembered; beyond this the one that wrote least recently is forgotten.
pub const SOURCES_MAX: usize = 4_096;

/// Bytes of one kept answer; a larger one is replaced by a refusal that says it was applied.
pub const KEPT_OUTCOME_BYTES_MAX: usize = 16 << 10;

/// An answer, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept(pub(crate) Bytes);

impl Digest for Kept {
    /// Index and verdict, not the words for people: those may change from version to version, and two
    /// versions in one cluster must still compute one state.
    fn digest(&self, fold: &mut Fold) {
        use v1::outcome::Result;
        let Ok(outcome) = v1::Outcome::decode(&self.0[..]) else {
            return fold.bytes(&self.0);
        };
        fold.word(outcome.index);
        match outcome.result {
            Some(Result::Refusal(refusal)) => fold.bytes(refusal.reason.as_bytes()),
            Some(Result::Txn(txn)) => {
                fold.word(txn.results.len() as u64);
                fold.word(txn.errors.len() as u64);
            }
            _ => fold.bytes(&self.0),
        }
    }
}

/// Answered sequences of every agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    /// (agent, sequence) → the encoded outcome.
    pub(crate) answers: Table<(Name, u64), Kept>,
    /// Agent → its highest sequence.
    pub(crate) highest: Table<Name, u64>,
    /// Agent → catalog index of its last command.
    pub(crate) last_used: Table<Name, u64>,
    /// Derived: (catalog index of the last command, agent).
    by_use: OrdSet<(u64, Name)>,
}

/// A retry identity about to be executed for the first time.
pub(crate) struct Retry {
    source: Name,
    sequence: u64,
}

/// What is known of a retry identity.
pub(crate) enum Lookup {
    /// Execute; remember the answer if the command carried an identity.
    New(Option<Retry>),
    /// Executed before: this was the answer.
    Answered(v1::Outcome),
    /// Too old to know.
    Refused(v1::Refusal),
}

impl Sources {
    pub(crate) fn look_up(&self, source: &str, sequence: u64) -> Lookup {
        if source.is_empty() {
            return Lookup::New(None);
        }
        let source = Name::from(source);
        let key = (source, sequence);
        if let Some(answer) = self.answers.get(&key) {
            return match v1::Outcome::decode(&answer.0[..]) {
                Ok(outcome) => Lookup::Answered(outcome),
                Err(cause) => Lookup::Refused(internal("retry.answer.damaged", cause.to_string())),
            };
        }
        let watermark = self
            .highest
            .get(&key.0)
            .map_or(0, |highest| highest.saturating_sub(SEQUENCES_MAX - 1));
        if sequence < watermark {
            return Lookup::Refused(conflict(
                "retry.sequence.stale",
                format!(
                    "sequence {sequence} of {:?} is below the retry window, which starts at {watermark}",
                    &*key.0
                ),
            ));
        }
        Lookup::New(Some(Retry {
            source: key.0,
            sequence,
        }))
    }

    pub(crate) fn remember(&mut self, retry: &Retry, index: u64, outcome: &v1::Outcome) {
        let mut encoded = outcome.encode_to_vec();
        if encoded.len() > KEPT_OUTCOME_BYTES_MAX {
            encoded = dropped(outcome).encode_to_vec();
        }
        self.restore_answer(retry.source.clone(), retry.sequence, encoded.into());
        self.restore_use(retry.source.clone(), index);
        self.slide(&retry.source, retry.sequence);
        while self.highest.len() > SOURCES_MAX {
            self.forget_oldest();
        }
    }

    /// Puts back one answer.
    pub(crate) fn restore_answer(&mut self, source: Name, sequence: u64, outcome: Bytes) {
        self.answers.insert((source, sequence), Kept(outcome));
    }

    /// Notes when an agent last wrote.
    pub(crate) fn restore_use(&mut self, source: Name, index: u64) {
        if let Some(before) = self.last_used.insert(source.clone(), index) {
            self.by_use.remove(&(before, source.clone()));
        }
        self.by_use.insert((index, source));
    }

    /// Puts back an agent's highest sequence.
    pub(crate) fn restore_highest(&mut self, source: Name, sequence: u64) {
        self.highest.insert(source, sequence);
    }

    fn slide(&mut self, source: &Name, sequence: u64) {
        if self
            .highest
            .get(source)
            .is_some_and(|highest| *highest >= sequence)
        {
            return;
        }
        self.highest.insert(source.clone(), sequence);
        let watermark = sequence.saturating_sub(SEQUENCES_MAX - 1);
        let below = self.sequences(source, watermark);
        for key in below {
            self.answers.remove(&key);
        }
    }

    fn sequences(&self, source: &Name, below: u64) -> Vec<(Name, u64)> {
        self.answers
            .range((source.clone(), 0)..(source.clone(), below))
            .map(|(key, _)| key.clone())
            .collect()
    }

    fn forget_oldest(&mut self) {
        let Some((used, source)) = self.by_use.remove_min() else {
            return;
        };
        debug_assert_eq!(
            self.last_used.get(&source),
            Some(&used),
            "both sides of last_used agree"
        );
        for key in self.sequences(&source, u64::MAX) {
            self.answers.remove(&key);
        }
        self.answers.remove(&(source.clone(), u64::MAX));
        self.highest.remove(&source);
        self.last_used.remove(&source);
    }

    pub(crate) fn sum(&self) -> u64 {
        self.answers.sum()
            ^ self.highest.sum().rotate_left(21)
            ^ self.last_used.sum().rotate_left(42)
    }
}

fn dropped(outcome: &v1::Outcome) -> v1::Outcome {
    let refusal = conflict(
        "retry.answer.dropped",
        "this command was applied before; its answer was too large to be kept, read the state instead",
    );
    v1::Outcome {
        index: outcome.index,
        result: Some(v1::outcome::Result::Refusal(refusal)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_people_do_not_count_in_the_hash() {
        let digest = |index, reason, text: &str| {
            let refusal = conflict(reason, text);
            let outcome = v1::Outcome {
                index,
                result: Some(v1::outcome::Result::Refusal(refusal)),
            };
            let mut fold = Fold::new();
            Kept(outcome.encode_to_vec().into()).digest(&mut fold);
            fold.finish()
        };
        let one = digest(7, "kv.locked", "this key is locked");
        assert_eq!(one, digest(7, "kv.locked", "the key has a holder"));
        assert_ne!(one, digest(8, "kv.locked", "this key is locked"));
        assert_ne!(one, digest(7, "kv.other", "this key is locked"));
    }
}
