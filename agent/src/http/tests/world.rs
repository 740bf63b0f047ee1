//! An agent's HTTP API over a catalog in this process, spoken to over loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use weft_catalog::acl::{AllowAll, Authorizer};
use weft_catalog::{Catalog, Hub, State};
use weft_proto::clock::SystemClock;
use weft_proto::coordinate::Coordinate;
use weft_proto::ids::LogIndex;
use weft_proto::v1;

use crate::backend::{
    Backend, Consistency, FireError, Following, Insight, JoinTicket, KeyringAction, KeyringReport,
    Member, MemberStatus, Membership, Operator, OperatorError, ReadError, ReadMeta, SnapshotSource,
    SnapshotStream, WriteError,
};
use crate::events::Events;
use crate::http::{
    AgentInfo, Control, Deps, HttpConfig, HttpServer, Listen, LogLevel, LogLines, StartError,
};
use crate::local::{Local, LocalConfig};

/// The catalog without Raft: every write is applied and published at once.
pub(super) struct TestBackend {
    catalog: Mutex<(Catalog, u64)>,
    state: ArcSwap<State>,
    hub: Hub,
    /// What others write just before the next write.
    pub(super) overtaking: Mutex<Option<v1::stamped::Command>>,
    pub(super) leaderless: AtomicBool,
    pub(super) barriers: AtomicU64,
    pub(super) last_contact_millis: AtomicU64,
}

impl TestBackend {
    fn new() -> Self {
        let mut catalog = Catalog::new();
        let (state, _) = catalog.publish();
        Self {
            catalog: Mutex::new((catalog, 0)),
            state: ArcSwap::new(state),
            hub: Hub::new(),
            overtaking: Mutex::default(),
            leaderless: AtomicBool::new(false),
            barriers: AtomicU64::new(0),
            last_contact_millis: AtomicU64::new(0),
        }
    }

    pub(super) fn apply(&self, command: v1::stamped::Command) -> v1::Outcome {
        let mut guard = self.catalog.lock();
        guard.1 += 1;
        let index = guard.1;
        let stamped = v1::Stamped {
            at_millis: index * 1_000,
            term: 1,
            command: Some(command),
            ..Default::default()
        };
        // openraft counts entries from 0.
        let outcome = guard
            .0
            .apply(LogIndex(index - 1), &stamped)
            .expect("a test writes known commands");
        let (state, touched) = guard.0.publish();
        self.state.store(state);
        self.hub.publish(&touched);
        outcome
    }

    pub(super) fn watches(&self) -> usize {
        usize::try_from(self.hub.stats().watches).unwrap()
    }
}

#[async_trait]
impl Backend for TestBackend {
    async fn write(&self, command: v1::stamped::Command) -> Result<v1::Outcome, WriteError> {
        if self.leaderless.load(Ordering::Relaxed) {
            return Err(WriteError::NoLeader);
        }
        let overtaking = self.overtaking.lock().take();
        overtaking.map(|command| self.apply(command));
        Ok(self.apply(command))
    }

    async fn barrier(&self, consistency: Consistency) -> Result<ReadMeta, ReadError> {
        let leaderless = self.leaderless.load(Ordering::Relaxed);
        if consistency != Consistency::Stale {
            self.barriers.fetch_add(1, Ordering::Relaxed);
            if leaderless {
                return Err(ReadError::NoLeader);
            }
        }
        let last_contact = Duration::from_millis(self.last_contact_millis.load(Ordering::Relaxed));
        Ok(ReadMeta {
            known_leader: !leaderless,
            last_contact,
        })
    }

    fn report_coordinate(&self, coordinate: v1::Coordinate) -> Result<(), WriteError> {
        if self.leaderless.load(Ordering::Relaxed) {
            return Err(WriteError::Overloaded("too many wait".to_owned()));
        }
        let coordinates = vec![coordinate];
        self.apply(v1::stamped::Command::Coordinates(v1::CoordinateBatch {
            coordinates,
        }));
        Ok(())
    }

    async fn follow(&self, _node: &str) -> Result<Following, ReadError> {
        self.barrier(Consistency::Default).await?;
        Ok(Box::new(()))
    }

    fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    fn hub(&self) -> &Hub {
        &self.hub
    }
}

/// Remembers what it was asked.
#[derive(Default)]
pub(super) struct TestCluster {
    pub(super) asked: Mutex<Vec<String>>,
    /// Who hears what is fired.
    events: Mutex<Option<Events>>,
}

impl TestCluster {
    fn note(&self, what: impl Into<String>) {
        self.asked.lock().push(what.into());
    }
}

#[async_trait]
impl Operator for TestCluster {
    fn join_ticket(&self, node: &str, _expires_millis: u64) -> Result<JoinTicket, OperatorError> {
        Ok(JoinTicket {
            text: format!("token-of-{node}"),
            secret_hash: bytes::Bytes::from(vec![node.len() as u8; 32]),
        })
    }

    async fn ca(&self, op: v1::ca_request::Op) -> Result<v1::CaReply, OperatorError> {
        self.note(format!("{op:?}"));
        Err(OperatorError::NoLeader)
    }

    fn leader(&self) -> Option<String> {
        Some("127.0.0.1:8300".to_owned())
    }

    fn peers(&self) -> Vec<String> {
        vec!["127.0.0.1:8300".to_owned()]
    }

    async fn raft_configuration(&self, _stale: bool) -> Result<v1::RaftPeers, OperatorError> {
        let peer = v1::RaftPeer {
            raft_id: "r1".to_owned(),
            node_name: "n1".to_owned(),
            address: "127.0.0.1:8300".to_owned(),
            leader: true,
            voter: true,
            last_index: 9,
            ..Default::default()
        };
        Ok(v1::RaftPeers {
            index: 1,
            peers: vec![peer],
        })
    }

    async fn remove_peer(
        &self,
        id: Option<String>,
        address: Option<String>,
    ) -> Result<(), OperatorError> {
        self.note(format!("remove {id:?} {address:?}"));
        Ok(())
    }

    async fn transfer_leader(&self, id: Option<String>) -> Result<(), OperatorError> {
        self.note(format!("transfer {id:?}"));
        Ok(())
    }

    async fn snapshot_save(&self, _stale: bool) -> Result<(u64, SnapshotStream), OperatorError> {
        let (sender, stream) = tokio::sync::mpsc::channel(2);
        tokio::spawn(async move {
            for piece in ["arch", "ive"] {
                sender
                    .send(Ok(Bytes::from_static(piece.as_bytes())))
                    .await
                    .unwrap();
            }
        });
        Ok((7, stream))
    }

    async fn snapshot_restore(&self, mut source: SnapshotSource) -> Result<(), OperatorError> {
        let mut all = Vec::new();
        while let Some(piece) = source.recv().await {
            all.extend_from_slice(
                &piece.map_err(|error| OperatorError::BadSnapshot(error.to_string()))?,
            );
        }
        if all.starts_with(b"bad") {
            return Err(OperatorError::BadSnapshot("checksum mismatch".to_owned()));
        }
        self.note(format!("restore {} bytes", all.len()));
        Ok(())
    }

    fn stats(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        BTreeMap::new()
    }
}

#[async_trait]
impl Membership for TestCluster {
    fn members(&self) -> Vec<Member> {
        vec![self.local()]
    }

    fn local(&self) -> Member {
        Member {
            name: "n1".to_owned(),
            address: SocketAddr::from(([127, 0, 0, 1], 8301)),
            tags: BTreeMap::from([("role".to_owned(), "consul".to_owned())]),
            status: MemberStatus::Alive,
        }
    }

    async fn join(&self, addresses: Vec<String>) -> Result<usize, String> {
        if addresses == ["nowhere"] {
            return Err("nobody answers at nowhere".to_owned());
        }
        self.note(format!("join {addresses:?}"));
        Ok(addresses.len())
    }

    async fn force_leave(&self, node: &str, prune: bool) -> Result<(), String> {
        self.note(format!("force-leave {node} {prune}"));
        Ok(())
    }

    async fn keyring(&self, action: KeyringAction, key: &str) -> Result<KeyringReport, String> {
        if key == "bad" {
            return Err("gossip key ring is empty".to_owned());
        }
        self.note(format!("keyring {action:?} {key}"));
        let mut report = KeyringReport {
            nodes: 2,
            keys: BTreeMap::from([("a2V5".to_owned(), 2)]),
            primary: BTreeMap::from([("a2V5".to_owned(), 2)]),
            ..KeyringReport::default()
        };
        if action == KeyringAction::Remove {
            let error = "gossip key is the primary one; use another key first";
            report.errors.insert("n2".to_owned(), error.to_owned());
        }
        Ok(report)
    }

    async fn why(&self) -> Vec<Insight> {
        vec![Insight {
            name: "n1".to_owned(),
            incarnation: 7,
            accusers: vec![("n2".to_owned(), Duration::from_millis(1_500))],
            suspected: true,
            ..Insight::default()
        }]
    }

    fn coordinate(&self) -> Option<Coordinate> {
        Some(Coordinate {
            error: 0.25,
            ..Coordinate::default()
        })
    }

    async fn fire(&self, id: [u8; 16], body: Bytes) -> Result<(), FireError> {
        if body.len() > 512 {
            return Err(FireError::TooLarge("too large".to_owned()));
        }
        let time = 2 + self.asked.lock().len() as u64;
        self.note("fire");
        let events = self.events.lock().clone();
        events.expect("a world").hear(id, time, &body);
        Ok(())
    }
}

#[async_trait]
impl Control for TestCluster {
    async fn reload(&self) -> Result<(), String> {
        Err("agent.hcl:3: unknown key".to_owned())
    }

    async fn leave(&self) -> Result<(), String> {
        self.note("leave");
        Ok(())
    }

    fn monitor(&self, level: LogLevel, json: bool) -> Result<LogLines, String> {
        let (lines, receiver) = tokio::sync::mpsc::channel(1);
        let line = format!("{level:?} {json}\n");
        lines.try_send(Ok(line.into())).map_err(|e| e.to_string())?;
        Ok(receiver)
    }
}

/// The API and what stands behind it.
pub(super) struct World {
    pub(super) backend: Arc<TestBackend>,
    pub(super) cluster: Arc<TestCluster>,
    pub(super) address: SocketAddr,
    shutdown: CancellationToken,
    server: HttpServer,
}

impl World {
    pub(super) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts with changed settings.
    pub(super) async fn with(change: impl FnOnce(&mut HttpConfig)) -> Self {
        let mut config = HttpConfig {
            addresses: vec![Listen::Tcp(([127, 0, 0, 1], 0).into())],
            ..Default::default()
        };
        change(&mut config);
        Self::try_with(config).await.unwrap()
    }

    /// Starts with somebody who may not do everything.
    pub(super) async fn with_rights(authorizer: Arc<dyn Authorizer>) -> Self {
        let config = HttpConfig {
            addresses: vec![Listen::Tcp(([127, 0, 0, 1], 0).into())],
            ..Default::default()
        };
        Self::try_as(config, authorizer).await.unwrap()
    }

    pub(super) async fn try_with(config: HttpConfig) -> Result<Self, StartError> {
        Self::try_as(config, Arc::new(AllowAll)).await
    }

    async fn try_as(
        config: HttpConfig,
        authorizer: Arc<dyn Authorizer>,
    ) -> Result<Self, StartError> {
        let backend = Arc::new(TestBackend::new());
        let cluster = Arc::new(TestCluster::default());
        let deps = Deps {
            authorizer,
            ..deps(&backend, &cluster)
        };
        let shutdown = CancellationToken::new();
        let server = HttpServer::start(config, deps, shutdown.clone()).await?;
        let address = server
            .addresses()
            .first()
            .copied()
            .unwrap_or(([127, 0, 0, 1], 0).into());
        Ok(Self {
            backend,
            cluster,
            address,
            shutdown,
            server,
        })
    }

    /// One request on a connection of its own: `PUT /v1/kv/a`, a body, more header lines.
    pub(super) async fn send(&self, request: &str, body: &[u8], headers: &str) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        exchange(stream, request, body, headers).await
    }

    pub(super) async fn ask(&self, request: &str, body: &str) -> Answer {
        self.send(request, body.as_bytes(), "").await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path}"), "").await
    }

    /// Sends each request and compares status and body: `(request, body, status, answer)`.
    pub(super) async fn check(&self, cases: &[(&str, &str, u16, &str)]) {
        for (request, body, status, expected) in cases {
            let answer = self.ask(request, body).await;
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (*status, *expected),
                "{request} {body}"
            );
        }
    }

    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        self.server.stopped().await;
    }
}

fn deps(backend: &Arc<TestBackend>, cluster: &Arc<TestCluster>) -> Deps {
    let node = v1::Node {
        name: "n1".to_owned(),
        address: "127.0.0.1".to_owned(),
        datacenter: "dc1".to_owned(),
        ..Default::default()
    };
    let clock = Arc::new(SystemClock::new());
    let local = Local::open(LocalConfig::in_memory(node), clock.clone()).expect("nothing to open");
    let events = Events::new(local.clone());
    *cluster.events.lock() = Some(events.clone());
    let leaves = crate::leaves::Leaves::open(
        crate::leaves::LeafDeps {
            operator: cluster.clone(),
            relay: None,
            backend: backend.clone(),
            views: None,
            node_name: "n1".to_owned(),
            dir: None,
            seed: 7,
        },
        clock.clone(),
    );
    Deps {
        leaves,
        mesh: crate::mesh::Mesh::new(),
        backend: backend.clone(),
        relay: None,
        views: None,
        operator: cluster.clone(),
        membership: cluster.clone(),
        local: Arc::new(local),
        events,
        control: cluster.clone(),
        authorizer: Arc::new(AllowAll),
        clock,
        registry: Arc::default(),
        info: Arc::new(AgentInfo {
            datacenter: "dc1".to_owned(),
            domain: "consul.".to_owned(),
            primary_datacenter: "dc1".to_owned(),
            node_name: "n1".to_owned(),
            server: true,
            version: "1.22.0".to_owned(),
            ..Default::default()
        }),
    }
}

/// Writes a request and reads until the server closes.
pub(super) async fn exchange(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    request: &str,
    body: &[u8],
    headers: &str,
) -> Answer {
    let mut bytes = format!(
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    // A refused upload may be answered before it was read to its end.
    let _ = stream.write_all(&bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    Answer::parse(&answer)
}

/// What came back, header names as they were spelled.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .expect("an answer has a head");
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let pairs = lines.map(|line| line.split_once(": ").unwrap());
        let headers: BTreeMap<_, _> = pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut body = bytes[end + 4..].to_vec();
        if headers.contains_key("Transfer-Encoding") {
            body = unchunk(&body);
        }
        Self {
            status,
            headers,
            body,
        }
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map(String::as_str)
            .unwrap_or_default()
    }

    pub(super) fn index(&self) -> u64 {
        self.header("X-Consul-Index").parse().unwrap()
    }

    pub(super) fn names(&self) -> BTreeSet<&str> {
        self.headers.keys().map(String::as_str).collect()
    }
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let end = bytes
            .windows(2)
            .position(|window| window == b"\r\n")
            .unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return out;
        }
        out.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 2 + size + 2..];
    }
}
