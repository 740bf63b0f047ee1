//! A cluster in one process: in-memory streams that can be cut, logs in memory or on disk.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{copy_bidirectional, duplex};
use tokio::sync::watch;
use uuid::Uuid;
use weft_proto::clock::SystemClock;
use weft_raft::log::{LogStore, MemoryLog, Wal, WalOptions};
use weft_raft::{
    Committed, Dialer, FatalError, FrozenState, Peer, RaftConfig, RaftId, RaftNode, RaftStream,
    StartError, StateMachine, Status,
};

/// Long enough for a loaded machine; nothing is decided by reaching it but failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn id(n: usize) -> RaftId {
    RaftId(Uuid::from_u128(0xa000 + n as u128))
}

/// What every replica must agree on: the sequence of applied bodies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal(pub BTreeMap<u64, Bytes>);

/// A state machine that keeps what it was given; replies with the number of entries so far.
pub struct Recorder(pub Arc<Mutex<Journal>>);

struct Frozen(Journal);

impl StateMachine for Recorder {
    fn apply(&mut self, batch: &[Committed]) -> Result<Vec<Bytes>, FatalError> {
        let mut journal = self.0.lock();
        let mut replies = Vec::new();
        for entry in batch {
            if entry.body == "poison" {
                return Err(FatalError("poisoned".into()));
            }
            if let Some((last, _)) = journal.0.last_key_value() {
                assert!(entry.index > *last, "applied {} after {last}", entry.index);
            }
            journal.0.insert(entry.index, entry.body.clone());
            replies.push(Bytes::from(journal.0.len().to_string()));
        }
        Ok(replies)
    }

    fn freeze(&mut self) -> Box<dyn FrozenState> {
        Box::new(Frozen(self.0.lock().clone()))
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), FatalError> {
        let mut text = String::new();
        from.read_to_string(&mut text)
            .map_err(|cause| FatalError(cause.to_string()))?;
        let mut journal = Journal::default();
        for line in text.lines() {
            let (index, body) = line
                .split_once(' ')
                .ok_or_else(|| FatalError("malformed".into()))?;
            let index = index.parse().map_err(|_| FatalError("malformed".into()))?;
            journal.0.insert(index, Bytes::from(body.to_owned()));
        }
        *self.0.lock() = journal;
        Ok(())
    }
}

impl FrozenState for Frozen {
    fn write(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        for (index, body) in self.0.0 {
            writeln!(to, "{index} {}", String::from_utf8_lossy(&body))?;
        }
        Ok(())
    }
}

/// Who listens where, and which pairs cannot talk.
#[derive(Default)]
struct Net {
    listeners: Mutex<BTreeMap<String, (RaftId, RaftNode)>>,
    cut: watch::Sender<BTreeSet<(RaftId, RaftId)>>,
}

struct NetDialer {
    from: RaftId,
    net: Arc<Net>,
}

impl Dialer for NetDialer {
    fn dial(&self, peer: &Peer) -> BoxFuture<'static, io::Result<Box<dyn RaftStream>>> {
        let (net, from, address) = (self.net.clone(), self.from, peer.address.clone());
        async move {
            let found = net.listeners.lock().get(&address).cloned();
            let (to, node) = found.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            let pair = (from.min(to), from.max(to));
            if net.cut.borrow().contains(&pair) {
                // A black hole: nothing comes back until the caller gives up.
                std::future::pending::<()>().await;
            }
            let (near, mut near_end) = duplex(64 * 1024);
            let (far, mut far_end) = duplex(64 * 1024);
            let mut cut = net.cut.subscribe();
            tokio::spawn(async move {
                let was_cut = tokio::select! {
                    copied = copy_bidirectional(&mut near_end, &mut far_end) => { drop(copied); false }
                    _ = cut.wait_for(|cut| cut.contains(&pair)) => true,
                };
                if was_cut {
                    // Held open and silent until healed, then dropped, as a real one would be reset.
                    cut.wait_for(|cut| !cut.contains(&pair)).await.ok();
                }
            });
            node.serve(Box::new(far));
            Ok(Box::new(near) as Box<dyn RaftStream>)
        }
        .boxed()
    }
}

pub struct Options {
    pub on_disk: bool,
    pub tune: fn(&mut RaftConfig),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            on_disk: false,
            tune: |_| {},
        }
    }
}

struct Server {
    dir: PathBuf,
    address: String,
    journal: Arc<Mutex<Journal>>,
    node: Option<RaftNode>,
    memory: Arc<MemoryLog>,
}

pub struct World {
    options: Options,
    net: Arc<Net>,
    root: tempfile::TempDir,
    servers: Vec<Server>,
}

impl World {
    /// `count` servers, started, none of them in a cluster.
    pub fn new(count: usize, options: Options) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut world = Self {
            options,
            net: Arc::default(),
            root,
            servers: Vec::new(),
        };
        for _ in 0..count {
            world.add();
        }
        world
    }

    /// A cluster of `count` voters.
    pub async fn cluster(count: usize, options: Options) -> Self {
        let world = Self::new(count, options);
        let peers = (0..count).map(|n| world.peer(n)).collect();
        world.node(0).bootstrap(peers).await.unwrap();
        world.leader().await;
        world
    }

    /// Starts one more server and returns its number.
    pub fn add(&mut self) -> usize {
        let n = self.servers.len();
        self.servers.push(Server {
            dir: self.root.path().join(n.to_string()),
            address: format!("10.0.0.{n}:8300"),
            journal: Arc::default(),
            node: None,
            memory: Arc::new(MemoryLog::new()),
        });
        self.start(n).unwrap();
        n
    }

    pub fn peer(&self, n: usize) -> Peer {
        Peer {
            id: id(n),
            name: format!("server-{n}"),
            address: self.servers[n].address.clone(),
            public_key: Bytes::from_static(b"key"),
        }
    }

    pub fn node(&self, n: usize) -> &RaftNode {
        self.servers[n]
            .node
            .as_ref()
            .expect("this server is running")
    }

    pub fn dir(&self, n: usize) -> PathBuf {
        self.servers[n].dir.clone()
    }

    pub fn journal(&self, n: usize) -> Journal {
        self.servers[n].journal.lock().clone()
    }

    pub fn start(&mut self, n: usize) -> Result<(), StartError> {
        let mut config = RaftConfig::new(id(n), "dc1");
        (self.options.tune)(&mut config);
        let server = &mut self.servers[n];
        let mut snapshots = None;
        let store: Arc<dyn LogStore> = if self.options.on_disk {
            snapshots = Some(server.dir.join("snapshots"));
            let wal = server.dir.join("wal");
            std::fs::create_dir_all(&wal).unwrap();
            let options = WalOptions {
                segment_bytes: 1024 * 1024,
                ..WalOptions::default()
            };
            Arc::new(Wal::open_dir(&wal, options).unwrap())
        } else {
            server.memory.clone()
        };
        // A new process: nothing but the disk is left.
        server.journal = Arc::default();
        let machine = Recorder(server.journal.clone());
        let dialer = Arc::new(NetDialer {
            from: id(n),
            net: self.net.clone(),
        });
        let clock = Arc::new(SystemClock::new());
        let node = RaftNode::start(config, store, snapshots, machine, dialer, clock)?;
        self.net
            .listeners
            .lock()
            .insert(server.address.clone(), (id(n), node.clone()));
        server.node = Some(node);
        Ok(())
    }

    pub async fn stop(&mut self, n: usize) {
        let server = &mut self.servers[n];
        self.net.listeners.lock().remove(&server.address);
        server
            .node
            .take()
            .expect("this server is running")
            .shutdown()
            .await;
    }

    /// Everything server `n` had is gone.
    pub fn wipe(&mut self, n: usize) {
        let server = &mut self.servers[n];
        assert!(server.node.is_none(), "stop it first");
        std::fs::remove_dir_all(&server.dir).ok();
        server.memory = Arc::new(MemoryLog::new());
    }

    pub fn move_to(&mut self, n: usize, address: &str) {
        assert!(self.servers[n].node.is_none(), "stop it first");
        self.servers[n].address = address.to_owned();
    }

    /// Lets server `n` be reached at one more address.
    pub fn alias(&self, n: usize, address: &str) {
        self.net
            .listeners
            .lock()
            .insert(address.to_owned(), (id(n), self.node(n).clone()));
    }

    pub fn unalias(&self, address: &str) {
        self.net.listeners.lock().remove(address);
    }

    /// Cuts `n` off from all others.
    pub fn isolate(&self, n: usize) {
        let pairs = (0..self.servers.len()).filter(|m| *m != n);
        let pairs: Vec<_> = pairs
            .map(|m| (id(n).min(id(m)), id(n).max(id(m))))
            .collect();
        self.net.cut.send_modify(|cut| cut.extend(pairs));
    }

    pub fn heal(&self) {
        self.net.cut.send_modify(BTreeSet::clear);
    }

    fn running(&self) -> impl Iterator<Item = (usize, &RaftNode)> {
        self.servers
            .iter()
            .enumerate()
            .filter_map(|(n, server)| Some((n, server.node.as_ref()?)))
    }

    /// Waits until some server leads and confirms it; the number of that server.
    pub async fn leader(&self) -> usize {
        self.leader_but(usize::MAX).await
    }

    /// As [`Self::leader`], but not server `not`.
    pub async fn leader_but(&self, not: usize) -> usize {
        let found = async {
            loop {
                for (n, node) in self.running() {
                    if n != not && node.status().is_leader() && node.read_index().await.is_ok() {
                        return n;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, found)
            .await
            .expect("no leader was elected")
    }

    /// Proposes on the leader, whoever that is by now.
    pub async fn put(&self, body: &str) -> u64 {
        let proposing = async {
            loop {
                let leader = self.leader().await;
                if let Ok(applied) = self
                    .node(leader)
                    .propose(Bytes::from(body.to_owned()))
                    .await
                {
                    return applied.index;
                }
            }
        };
        tokio::time::timeout(PATIENCE, proposing)
            .await
            .expect("nothing was accepted")
    }

    pub async fn wait_status(
        &self,
        n: usize,
        what: &str,
        is: impl FnMut(&Arc<Status>) -> bool,
    ) -> Arc<Status> {
        let mut status = self.node(n).watch_status();
        let found = tokio::time::timeout(PATIENCE, status.wait_for(is)).await;
        match found {
            Ok(found) => found.expect("the node stopped").clone(),
            Err(_) => panic!(
                "server {n}: never {what}; last: {:?}",
                self.node(n).status()
            ),
        }
    }

    /// Waits until `n` has applied `index`, and checks that it agrees with `with`.
    pub async fn agree(&self, n: usize, with: usize, index: u64) {
        for server in [n, with] {
            self.node(server)
                .wait_applied(index, PATIENCE)
                .await
                .unwrap();
        }
        let upto = |journal: Journal| {
            journal
                .0
                .into_iter()
                .filter(|(at, _)| *at <= index)
                .collect::<Vec<_>>()
        };
        assert_eq!(upto(self.journal(n)), upto(self.journal(with)));
    }
}
