//! What the HTTP API needs to be told.
//!
//! Owns: [`HttpConfig`] with its bounds, [`AgentInfo`] and [`Deps`].
//! Never: reads a file or a flag; the binary fills these in.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use weft_catalog::acl::Authorizer;
use weft_catalog::intention::DefaultPolicy;
use weft_proto::clock::Clock;

use super::consul_metrics::Naming;
use super::push::PushConfig;
use super::rates::RateLimits;
use crate::backend::{Backend, Membership, Operator, Relay};
use crate::events::Events;
use crate::leaves::Leaves;
use crate::local::Local;
use crate::mesh::Mesh;
use crate::views::Views;

/// The newest TLS configuration, asked for at each handshake so that certificates rotate.
pub type TlsSource = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// One place to listen at.
#[derive(Clone)]
pub enum Listen {
    /// Clear text.
    Tcp(SocketAddr),
    /// HTTPS; `h2` is spoken when the client offers it.
    Tls(SocketAddr, TlsSource),
    /// A TCP socket that somebody else opened and holds beyond this process.
    Given {
        /// It listens.
        socket: Arc<std::net::TcpListener>,
        /// HTTPS if there is one, else clear text.
        tls: Option<TlsSource>,
    },
    /// A unix socket that somebody else opened.
    GivenUnix(Arc<std::os::unix::net::UnixListener>),
    /// A unix socket. A left-over socket file nobody listens at is replaced.
    Unix {
        /// Path of the socket file.
        path: PathBuf,
        /// Permission bits, `unix_sockets.mode`.
        mode: Option<u32>,
    },
}

impl std::fmt::Debug for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Tls(address, _) => write!(f, "https://{address}"),
            Self::Given { socket, tls } => match (socket.local_addr(), tls) {
                (Ok(address), None) => write!(f, "http://{address}"),
                (Ok(address), Some(_)) => write!(f, "https://{address}"),
                (Err(_), _) => f.write_str("a TCP socket that was passed"),
            },
            Self::GivenUnix(_) => f.write_str("a unix socket that was passed"),
            Self::Unix { path, .. } => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Bounds of the API. Every refusal at one of them names the key given here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// `limits.http_max_conns_per_client`: connections of one client address.
    pub max_conns_per_client: usize,
    /// `limits.http_max_conns`: connections in all.
    pub max_conns: usize,
    /// `limits.http_max_blocking_queries`: requests waiting for a change.
    pub max_blocking_queries: usize,
    /// `limits.rpc_max_blocking_queries_per_agent`: those of them that one agent forwards.
    pub max_blocking_queries_per_agent: usize,
    /// `http_config.read_header_timeout`: from the first byte of a request to the end of its head.
    pub header_timeout: Duration,
    /// `http_config.stall_timeout`: how long a new connection may be silent, a body may not come
    /// and an answer may not be taken.
    pub stall_timeout: Duration,
    /// `limits.https_handshake_timeout`: time for a TLS handshake.
    pub handshake_timeout: Duration,
    /// `http_config.max_header_bytes`: request line and headers of one request.
    pub max_header_bytes: usize,
    /// `limits.kv_max_value_size`, bytes.
    pub kv_max_value_bytes: u64,
    /// `limits.txn_max_req_len`, bytes.
    pub txn_max_bytes: u64,
    /// `limits.http_max_request_body_size`, bytes: every other body.
    pub max_body_bytes: u64,
    /// Bytes of finished answers kept for identical polls.
    pub body_cache_bytes: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            max_conns_per_client: 200,
            max_conns: 8_192,
            max_blocking_queries: 16_384,
            max_blocking_queries_per_agent: 4_096,
            header_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(5),
            max_header_bytes: 64 * 1024,
            kv_max_value_bytes: 512 * 1024,
            txn_max_bytes: 512 * 1024,
            max_body_bytes: 1024 * 1024,
            body_cache_bytes: 16 * 1024 * 1024,
        }
    }
}

/// Settings of the API.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where to listen.
    pub addresses: Vec<Listen>,
    /// Indent every answer, as `-dev` does.
    pub always_pretty: bool,
    /// `http_config.response_headers`, added to every answer.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// `http_config.block_endpoints`: path prefixes that are refused.
    pub block_endpoints: Vec<String>,
    /// `http_config.allow_write_http_from`: networks that may write under `/v1`; empty: all. Unix sockets always may.
    pub allow_write_from: Vec<(IpAddr, u8)>,
    /// `default_query_time`: how long a blocking query waits when it does not say.
    pub default_query_time: Duration,
    /// `max_query_time`: the longest wait.
    pub max_query_time: Duration,
    /// `discovery_max_stale`: zero is off; else default reads of catalog and health are this stale at most.
    pub discovery_max_stale: Duration,
    /// `http_config.use_cache`: answer `?cached` from this agent's own state.
    pub use_cache: bool,
    /// Metrics are shown to Prometheus; false with `telemetry.prometheus_retention_time` of 0.
    pub prometheus: bool,
    /// False with `disable_kv_key_validation`.
    pub validate_kv_keys: bool,
    /// `session_ttl_min`.
    pub session_ttl_min: Duration,
    /// `default_intention_policy`: what holds between services of which no intention speaks.
    pub default_intention_policy: DefaultPolicy,
    /// Bounds.
    pub limits: HttpLimits,
    /// Rates.
    pub rates: RateLimits,
    /// Where metrics are sent.
    pub push: PushConfig,
    /// Under which names.
    pub naming: Naming,
    /// Seed of the jitter added to waits.
    pub seed: u64,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            always_pretty: false,
            response_headers: Vec::new(),
            block_endpoints: Vec::new(),
            allow_write_from: Vec::new(),
            default_query_time: Duration::from_secs(300),
            max_query_time: Duration::from_secs(600),
            discovery_max_stale: Duration::ZERO,
            use_cache: true,
            prometheus: true,
            validate_kv_keys: true,
            session_ttl_min: Duration::from_secs(10),
            default_intention_policy: DefaultPolicy::Allow,
            limits: HttpLimits::default(),
            rates: RateLimits::default(),
            push: PushConfig::default(),
            naming: Naming::default(),
            seed: 0,
        }
    }
}

/// Facts about this agent that `/v1/agent/self` and `/v1/agent/version` show.
#[derive(Clone, Debug, Default)]
pub struct AgentInfo {
    /// `datacenter`.
    pub datacenter: String,
    /// `domain`, as DNS writes it: with its last dot.
    pub domain: String,
    /// `primary_datacenter`.
    pub primary_datacenter: String,
    /// `node_name`.
    pub node_name: String,
    /// UUID text.
    pub node_id: String,
    /// Runs the server role.
    pub server: bool,
    /// Version compatible clients compare, `1.22.0`.
    pub version: String,
    /// Source revision.
    pub revision: String,
    /// RFC 3339.
    pub build_date: String,
    /// `node_meta`.
    pub meta: std::collections::BTreeMap<String, String>,
    /// gRPC port without TLS, -1: off.
    pub grpc_port: i32,
    /// gRPC port with TLS, -1: off.
    pub grpc_tls_port: i32,
    /// `DebugConfig` of `/v1/agent/self`: the effective configuration with secrets masked.
    pub debug_config: serde_json::Value,
}

/// What the API stands on.
#[derive(Clone)]
pub struct Deps {
    /// The replicated state.
    pub backend: Arc<dyn Backend>,
    /// Has servers answer what this agent cannot; `None` on a server, which answers all itself.
    pub relay: Option<Arc<dyn Relay>>,
    /// What `?cached` is answered from where there is a relay.
    pub views: Option<Views>,
    /// Leaves of this agent's services.
    pub leaves: Leaves,
    /// Proxies of this agent's services.
    pub mesh: Mesh,
    /// Raft membership and snapshots.
    pub operator: Arc<dyn Operator>,
    /// The LAN pool.
    pub membership: Arc<dyn Membership>,
    /// This agent's own services and checks.
    pub local: Arc<Local>,
    /// User events this agent has heard.
    pub events: Events,
    /// Reload and leave, which the binary performs.
    pub control: Arc<dyn Control>,
    /// Asked for every request and row.
    pub authorizer: Arc<dyn Authorizer>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where every part has registered its metrics.
    pub registry: Arc<parking_lot::Mutex<prometheus_client::registry::Registry>>,
    /// Facts about this agent.
    pub info: Arc<AgentInfo>,
}

/// What only the process as a whole can do.
#[async_trait::async_trait]
pub trait Control: Send + Sync + 'static {
    /// Reads the configuration again; an error leaves the old one in force and says why.
    async fn reload(&self) -> Result<(), String>;
    /// Leaves the cluster; returns when that is done, and the process ends after it.
    async fn leave(&self) -> Result<(), String>;
    /// The log as it is written from now on, at this level and above, until the receiver is dropped.
    /// A slow reader misses lines and is told how many. Errors: too many watch already.
    fn monitor(&self, level: LogLevel, json: bool) -> Result<LogLines, String>;
}

/// Lines of the log as they are written.
pub type LogLines = tokio::sync::mpsc::Receiver<Result<bytes::Bytes, std::io::Error>>;

/// How much of the log to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What developers look for.
    Debug,
    /// What operators look for.
    Info,
    /// What may need care.
    Warn,
    /// What needs care.
    Error,
}
