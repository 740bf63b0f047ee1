//! A catalog in memory behind the agent's seam, and a clock that follows tokio's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::Value;
use weft_catalog::{Catalog, Hub, State, Trace};
use weft_proto::clock::Clock;
use weft_proto::ids::{LogIndex, UnixMillis};
use weft_proto::v1;
use weft_proto::v1::outcome::Result as Verdict;
use weft_proto::v1::stamped::Command;

use crate::backend::{Backend, Consistency, Following, ReadError, ReadMeta, WriteError};
use crate::local::{
    CheckDefinition, Local, LocalConfig, RegisterOptions, ServiceDefinition, Source, UnknownKeys,
};

pub(super) const NODE: &str = "vm-7";
pub(super) const API: RegisterOptions = RegisterOptions {
    replace_existing_checks: false,
    source: Source::Api,
};

/// Tokio's time, so that paused tests move both.
pub(super) struct TokioClock(tokio::time::Instant);

impl TokioClock {
    pub(super) fn new() -> Self {
        Self(tokio::time::Instant::now())
    }
}

impl Clock for TokioClock {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(1_700_000_000_000 + u64::try_from(self.0.elapsed().as_millis()).unwrap())
    }
}

/// One in-memory server. `fail` is answered to every write while it is set.
pub(super) struct Cluster {
    catalog: Mutex<(Catalog, Arc<State>, u64)>,
    hub: Hub,
    pub(super) fail: Mutex<Option<WriteError>>,
    pub(super) refuse_check: Mutex<Option<String>>,
    /// Writes of this service wait while it is set.
    pub(super) slow: Mutex<Option<String>>,
    pub(super) writes: AtomicU64,
    /// Happens while a write is under way.
    pub(super) on_write: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl Cluster {
    pub(super) fn new() -> Arc<Self> {
        let mut catalog = Catalog::new();
        let (state, _) = catalog.publish();
        Arc::new(Self {
            catalog: Mutex::new((catalog, state, 0)),
            hub: Hub::new(),
            fail: Mutex::new(None),
            refuse_check: Mutex::new(None),
            slow: Mutex::new(None),
            writes: AtomicU64::new(0),
            on_write: Mutex::new(None),
        })
    }

    pub(super) fn apply(&self, command: Command) -> v1::Outcome {
        let mut guard = self.catalog.lock();
        guard.2 += 1;
        let index = guard.2;
        let stamped = v1::Stamped {
            at_millis: 1_700_000_000_000 + index,
            term: 1,
            command: Some(command),
            ..Default::default()
        };
        let outcome = guard.0.apply(LogIndex(index), &stamped).unwrap();
        let (state, touched) = guard.0.publish();
        guard.1 = state;
        drop(guard);
        self.hub.publish(&touched);
        outcome
    }

    /// Somebody else writes: a service of this node with one check.
    pub(super) fn register_elsewhere(&self, service: v1::Service, check: Option<v1::Check>) {
        let outcome = self.apply(Command::Register(v1::Register {
            node: Some(node()),
            service: Some(service),
            checks: check.into_iter().collect(),
            skip_node_update: false,
        }));
        assert!(
            !matches!(outcome.result, Some(Verdict::Refusal(_))),
            "{outcome:?}"
        );
    }

    pub(super) fn service_ids(&self) -> Vec<String> {
        let state = self.state();
        let trace = Trace::off();
        let mut ids: Vec<String> = state
            .read(&trace)
            .node_services(NODE)
            .rows
            .into_iter()
            .map(|row| row.id.clone())
            .collect();
        ids.sort();
        ids
    }

    pub(super) fn service(&self, id: &str) -> Option<v1::Service> {
        let state = self.state();
        let trace = Trace::off();
        let rows = state.read(&trace).node_services(NODE).rows;
        rows.into_iter()
            .find(|row| row.id == id)
            .map(|row| v1::Service::clone(row))
    }

    pub(super) fn checks(&self) -> Vec<v1::Check> {
        let state = self.state();
        let trace = Trace::off();
        let mut checks: Vec<v1::Check> = state
            .read(&trace)
            .checks_of_node(NODE)
            .rows
            .into_iter()
            .map(|row| v1::Check::clone(row))
            .collect();
        checks.sort_by(|a, b| a.id.cmp(&b.id));
        checks
    }

    pub(super) fn check(&self, id: &str) -> Option<v1::Check> {
        self.checks().into_iter().find(|check| check.id == id)
    }
}

#[async_trait]
impl Backend for Cluster {
    async fn write(&self, command: Command) -> Result<v1::Outcome, WriteError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        // A real proposal takes at least one turn of the scheduler.
        tokio::task::yield_now().await;
        let waits = |command: &Command| {
            let Command::Register(register) = command else {
                return false;
            };
            let id = register.service.as_ref().map(|service| &service.id);
            id.is_some() && id == self.slow.lock().as_ref()
        };
        while waits(&command) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if let Some(happens) = &mut *self.on_write.lock() {
            happens();
        }
        if let Some(error) = self.fail.lock().clone() {
            return Err(error);
        }
        if let (Command::Register(register), Some(refused)) = (&command, &*self.refuse_check.lock())
            && register.checks.iter().any(|check| check.id == *refused)
        {
            let refusal = v1::Refusal {
                kind: 1,
                reason: "test".to_owned(),
                message: "refused".to_owned(),
            };
            return Ok(v1::Outcome {
                index: 1,
                result: Some(Verdict::Refusal(refusal)),
            });
        }
        Ok(self.apply(command))
    }

    async fn barrier(&self, _consistency: Consistency) -> Result<ReadMeta, ReadError> {
        if self.fail.lock().is_some() {
            return Err(ReadError::NoLeader);
        }
        Ok(ReadMeta {
            known_leader: true,
            last_contact: Duration::ZERO,
        })
    }

    fn report_coordinate(&self, _coordinate: v1::Coordinate) -> Result<(), WriteError> {
        unreachable!("anti-entropy reports no coordinate")
    }

    async fn follow(&self, _node: &str) -> Result<Following, ReadError> {
        self.barrier(Consistency::Default).await?;
        Ok(Box::new(()))
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.catalog.lock().1)
    }

    fn hub(&self) -> &Hub {
        &self.hub
    }
}

pub(super) fn node() -> v1::Node {
    v1::Node {
        id: "0f0c0000-0000-4000-8000-000000000007".to_owned(),
        name: NODE.to_owned(),
        address: "10.0.0.7".to_owned(),
        datacenter: "dc1".to_owned(),
        meta: [("rack".to_owned(), "r2".to_owned())].into(),
        ..v1::Node::default()
    }
}

pub(super) fn open(dir: Option<&std::path::Path>) -> Local {
    let config = LocalConfig {
        data_dir: dir.map(Into::into),
        ..LocalConfig::in_memory(node())
    };
    Local::open(config, Arc::new(TokioClock::new())).unwrap()
}

pub(super) fn service(value: Value) -> ServiceDefinition {
    ServiceDefinition::parse(&value, UnknownKeys::Refuse).unwrap()
}

pub(super) fn check(value: Value) -> CheckDefinition {
    CheckDefinition::parse(&value, UnknownKeys::Refuse).unwrap()
}

/// Waits (in tokio's time) until `done`; panics after a minute of it.
pub(super) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}
