//! openraft's own storage suite over each of our log stores.
//!
//! Owns: the builders the suite asks for.
//! Never: part of the product; openraft's types may not leave the crate, so the suite runs inside.

use std::io;
use std::path::Path;
use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use weft_proto::clock::SystemClock;

use crate::applier::Progress;
use crate::log::{LogStore, MemoryLog, SledLog, SledOptions, Wal, WalOptions};
use crate::machine::{Committed, FatalError, FrozenState, Machine, Shared, StateMachine};
use crate::metrics::RaftMetrics;
use crate::peer::RaftId;
use crate::snapshot::SnapshotStore;
use crate::storage::LogAdapter;
use crate::types::{StoredMembership, Types};

impl From<u64> for RaftId {
    fn from(n: u64) -> Self {
        Self(uuid::Uuid::from_u128(u128::from(n)))
    }
}

/// Counts what it applied.
#[derive(Default)]
struct Count(u64);

impl StateMachine for Count {
    fn apply(&mut self, batch: &[Committed]) -> Result<Vec<bytes::Bytes>, FatalError> {
        self.0 += batch.len() as u64;
        Ok(vec![bytes::Bytes::new(); batch.len()])
    }

    fn freeze(&mut self) -> Box<dyn FrozenState> {
        Box::new(Count(self.0))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> Result<(), FatalError> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)
            .map_err(|cause| FatalError(cause.to_string()))?;
        self.0 = u64::from_be_bytes(bytes);
        Ok(())
    }
}

impl FrozenState for Count {
    fn write(self: Box<Self>, to: &mut dyn io::Write) -> io::Result<()> {
        to.write_all(&self.0.to_be_bytes())
    }
}

struct Builder(fn(&Path) -> Arc<dyn LogStore>);

impl StoreBuilder<Types, LogAdapter, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogAdapter, Machine), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let store = (self.0)(dir.path());
        let clock = Arc::new(SystemClock::new());
        let snapshots =
            SnapshotStore::open(Some(dir.path().join("snapshots")), clock.clone()).unwrap();
        let shared = Shared {
            snapshots: Arc::new(snapshots),
            progress: Arc::new(Progress::new(0, 0)),
            metrics: Arc::new(RaftMetrics::new()),
            clock,
        };
        let machine =
            Machine::start(Count::default(), None, StoredMembership::default(), shared).unwrap();
        Ok((dir, LogAdapter::new(store, 1024 * 1024), machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_log_passes() {
    Suite::test_all(Builder(|_| Arc::new(MemoryLog::new())))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_passes() {
    let wal = |dir: &Path| -> Arc<dyn LogStore> {
        let options = WalOptions {
            segment_bytes: 64 * 1024,
            ..WalOptions::default()
        };
        Arc::new(Wal::open_dir(&dir.join("wal"), options).unwrap())
    };
    Suite::test_all(Builder(wal)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sled_log_passes() {
    let sled = |dir: &Path| -> Arc<dyn LogStore> {
        Arc::new(SledLog::open_dir(&dir.join("sled"), SledOptions::default()).unwrap())
    };
    Suite::test_all(Builder(sled)).await.unwrap();
}
