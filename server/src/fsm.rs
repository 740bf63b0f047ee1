//! The state machine: the only file that knows both consensus and the catalog.
//!
//! Owns: decoding of committed payloads, one publication per applied batch, freezing for snapshots.
//! Never: reads a clock to decide anything; the one reading it takes only anchors cluster time.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use weft_catalog::{ApplyError, CLUSTER_VERSION_MAX, Catalog, State};
use weft_proto::clock::Clock;
use weft_proto::ids::{LogIndex, UnixMillis};
use weft_proto::v1;
use weft_raft::{Committed, FatalError, FrozenState, StateMachine};

use crate::hashes::Hashes;
use crate::light;
use crate::metrics::Metrics;
use crate::published::Published;
use crate::stamp::ClusterTime;

/// Applies committed entries to the catalog and publishes the result.
pub(crate) struct Fsm {
    catalog: Catalog,
    published: Arc<Published>,
    time: Arc<ClusterTime>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    hashes: Arc<Hashes>,
}

impl Fsm {
    pub(crate) fn new(
        catalog: Catalog,
        published: Arc<Published>,
        time: Arc<ClusterTime>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        hashes: Arc<Hashes>,
    ) -> Self {
        Self {
            catalog,
            published,
            time,
            clock,
            metrics,
            hashes,
        }
    }

    /// The state as applied so far.
    pub(crate) const fn state(&self) -> &State {
        self.catalog.state()
    }

    /// See [`Catalog::recover`]; on a server that is stopped.
    pub(crate) fn recover(&mut self) {
        self.catalog.recover();
    }

    fn apply_one(&mut self, entry: &Committed) -> Result<Bytes, FatalError> {
        #[cfg_attr(not(test), expect(unused_mut, reason = "tests tamper with it"))]
        let mut stamped = v1::Stamped::decode(entry.body.clone()).map_err(|cause| {
            FatalError(format!(
                "log entry {} is not a command this version can read: {cause}; upgrade this server",
                entry.index
            ))
        })?;
        #[cfg(test)]
        tamper(&self.hashes, &mut stamped);
        let outcome = self
            .catalog
            .apply(LogIndex(entry.index), &stamped)
            .map_err(|cause| self.fatal(entry.index, &cause))?;
        self.time
            .applied(UnixMillis(stamped.at_millis), self.clock.monotonic());
        self.metrics.applied(&stamped);
        Ok(Bytes::from(outcome.encode_to_vec()))
    }

    fn fatal(&self, log_index: u64, cause: &ApplyError) -> FatalError {
        if let ApplyError::Diverged { at, ours, theirs } = cause {
            self.metrics.state_mismatch();
            tracing::error!(
                reason = "state.mismatch", catalog.index = at.get(),
                ours = %format_args!("{ours:#018x}"), theirs = %format_args!("{theirs:#018x}"),
                "this server computed another state than a quorum of the others"
            );
        }
        FatalError(format!("log entry {log_index}: {cause}"))
    }
}

/// Makes of the next value written another one, once.
#[cfg(test)]
fn tamper(hashes: &Hashes, stamped: &mut v1::Stamped) {
    use std::sync::atomic::Ordering;
    if let Some(v1::stamped::Command::Kv(put)) = &mut stamped.command
        && let Some(entry) = &mut put.entry
        && hashes.tamper.swap(false, Ordering::SeqCst)
    {
        entry.value = Bytes::from_static(b"another");
    }
}

impl StateMachine for Fsm {
    fn apply(&mut self, batch: &[Committed]) -> Result<Vec<Bytes>, FatalError> {
        let replies = batch
            .iter()
            .map(|entry| self.apply_one(entry))
            .collect::<Result<Vec<_>, _>>()?;
        self.hashes.note(&self.catalog);
        let (state, touched) = self.catalog.publish();
        self.published.store(state, &touched);
        Ok(replies)
    }

    fn is_light(&self, body: &[u8]) -> bool {
        light::is_light(body, self.published.hub().watches())
    }

    fn freeze(&mut self) -> Box<dyn FrozenState> {
        Box::new(Frozen(self.catalog.state().clone()))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> Result<(), FatalError> {
        let catalog = weft_catalog::snapshot::read(&mut io::BufReader::new(from))
            .map_err(|cause| FatalError(format!("snapshot cannot be restored: {cause}")))?;
        let version = catalog.state().cluster_version();
        if version > CLUSTER_VERSION_MAX {
            return Err(FatalError(format!(
                "the cluster is at version {version}, this binary follows {CLUSTER_VERSION_MAX}: install a newer weft"
            )));
        }
        let old = std::mem::replace(&mut self.catalog, catalog);
        self.hashes.forget();
        self.time
            .applied(self.catalog.state().cluster_time(), self.clock.monotonic());
        let (state, touched) = self.catalog.publish_everything();
        self.published.store(state, &touched);
        // A big tree is freed node by node; not on the thread that applies.
        std::thread::spawn(move || drop(old));
        Ok(())
    }
}

struct Frozen(State);

impl FrozenState for Frozen {
    fn write(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
        let mut to = io::BufWriter::new(to);
        weft_catalog::snapshot::write(&self.0, &mut to).map_err(io::Error::other)?;
        io::Write::flush(&mut to)
    }
}
