//! The configuration an agent runs with: defaults applied, addresses resolved, nothing contradictory.
//!
//! Owns: the types the rest of weft reads its settings from, and their documentation.
//! Never: parses (see `build`), or touches the network or a file.
//! Source: Consul docs, "Configuration"; CONSUL D.1–D.11.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::problem::Problem;
use crate::local::{CheckDefinition, ScriptChecks, ServiceDefinition};
use crate::watch::WatchDefinition;

/// Everything an agent needs to know before it starts. Made by [`super::load`] only.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RuntimeConfig {
    /// `-dev`: one in-memory server with everything on.
    pub dev: bool,
    /// Whether the server role runs.
    pub server: bool,
    /// How a new cluster begins.
    pub bootstrap: Bootstrap,
    /// Lower-case name of the datacenter.
    pub datacenter: String,
    /// The datacenter that owns ACLs and the CA; this one unless set.
    pub primary_datacenter: String,
    /// DNS domain, without the final dot.
    pub domain: String,
    /// Second DNS domain, without the final dot; `weft` unless set, none if set to nothing.
    pub alt_domain: Option<String>,
    /// Who this node is.
    pub node: NodeConfig,
    /// Where state is kept; `None` only with `dev`.
    pub data_dir: Option<PathBuf>,
    /// Addresses this agent listens on and is reached at.
    pub network: NetworkConfig,
    /// How it finds others.
    pub join: JoinConfig,
    /// Certificates for agents that come with a token: asking for one, giving them out.
    pub enrolment: EnrolmentConfig,
    /// Gossip timing and keys.
    pub gossip: GossipConfig,
    /// Files and rules for TLS; loading them is `identity`'s business.
    pub tls: TlsConfig,
    /// Raft timing and storage.
    pub raft: RaftConfig,
    /// What the leader does about dead and new servers.
    pub autopilot: AutopilotConfig,
    /// DNS answers.
    pub dns: DnsConfig,
    /// HTTP API behaviour.
    pub http: HttpConfig,
    /// Bounds.
    pub limits: LimitsConfig,
    /// What an agent that is no server keeps of the catalog.
    pub views: ViewsLimits,
    /// The log.
    pub log: LogConfig,
    /// Health checks in general.
    pub checks: ChecksConfig,
    /// Services from files, in order.
    pub services: Vec<ServiceDefinition>,
    /// Checks of the node, or of a service by id, from files, in order.
    pub node_checks: Vec<CheckDefinition>,
    /// Watches with their handlers, from files, in order.
    pub watches: Vec<WatchDefinition>,
    /// What a signal means.
    pub leave: LeaveConfig,
    /// Shortest TTL a session may have (10 s).
    pub session_ttl_min: Duration,
    /// What holds between services of which no intention speaks (`allow`, as without ACLs).
    pub default_intention_policy: weft_catalog::intention::DefaultPolicy,
    /// Wait of a blocking query that names none (300 s).
    pub default_query_time: Duration,
    /// Longest wait of a blocking query (600 s).
    pub max_query_time: Duration,
    /// How old a default read of catalog and health may be; zero: as consistent as others.
    pub discovery_max_stale: Duration,
    /// Keys with `..` and the like are refused; false with `disable_kv_key_validation`.
    pub validate_kv_keys: bool,
    /// The web UI.
    pub ui: UiConfig,
    /// How long a metric without updates is shown; zero switches the Prometheus form off (60 s).
    pub prometheus_retention: Duration,
    /// Where metrics are sent, and under which names they go out.
    pub telemetry: TelemetryConfig,
    /// Owner and mode of Unix sockets.
    pub unix_sockets: UnixSocketsConfig,
    /// Where the process id is written.
    pub pid_file: Option<PathBuf>,
    /// Clear-text RPC and gossip beyond loopback were allowed by name.
    pub allow_unencrypted: bool,
    /// An open HTTP API beyond loopback was allowed by name.
    pub allow_open_http: bool,
    /// Findings that do not prevent a start.
    pub warnings: Vec<Problem>,
    /// The merged settings as given, under canonical names; what a reload is compared with.
    pub(super) given: Given,
}

/// The merged tree; it holds secrets, so it is never shown.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Given(pub(super) serde_json::Value);

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Given(…)")
    }
}

/// How a new cluster begins. Without effect once there is a Raft log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// Wait to be found by a leader.
    Join,
    /// Form a cluster when this many servers (≥ 2) see each other.
    Expect(u32),
    /// Form a cluster of one at once (`bootstrap`, `bootstrap_expect = 1`, `-dev`).
    Alone,
}

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node's name, unique in the datacenter; the host name unless set.
    pub name: String,
    /// Lower-case UUID if given; otherwise minted once and kept in the data directory.
    pub id: Option<String>,
    /// Free pairs: at most 64, keys ≤ 128 and values ≤ 512 characters.
    pub meta: BTreeMap<String, String>,
}

/// A place to listen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAddr {
    /// TCP, and UDP where the protocol has it.
    Ip(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Addresses this agent listens on and is reached at. An empty list: that listener is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `bind_addr`: where RPC and gossip listen; may be unspecified (`0.0.0.0`, `::`).
    pub bind: IpAddr,
    /// What others are told; never unspecified.
    pub advertise: IpAddr,
    /// What other datacenters are told.
    pub advertise_wan: IpAddr,
    /// Tagged addresses of the node: `lan`, `lan_ipv4`, `lan_ipv6`, `wan`, `wan_ipv4`, `wan_ipv6`.
    pub tagged_addresses: BTreeMap<String, String>,
    /// Server RPC and Raft; listens on servers only.
    pub rpc: SocketAddr,
    /// LAN gossip.
    pub serf_lan: SocketAddr,
    /// WAN gossip port, told to others; nothing listens in this version. `None`: switched off.
    pub serf_wan_port: Option<u16>,
    /// HTTP API in clear text.
    pub http: Vec<ListenAddr>,
    /// HTTP API over TLS.
    pub https: Vec<ListenAddr>,
    /// DNS over UDP and TCP.
    pub dns: Vec<SocketAddr>,
    /// gRPC in clear text.
    pub grpc: Vec<ListenAddr>,
    /// gRPC over TLS.
    pub grpc_tls: Vec<ListenAddr>,
}

impl NetworkConfig {
    /// Where other servers reach this one's RPC.
    #[must_use]
    pub fn advertise_rpc(&self) -> SocketAddr {
        SocketAddr::new(self.advertise, self.rpc.port())
    }

    /// Where other members reach this one's gossip.
    #[must_use]
    pub fn advertise_serf_lan(&self) -> SocketAddr {
        SocketAddr::new(self.advertise, self.serf_lan.port())
    }
}

/// How an agent finds others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinConfig {
    /// Tried once at start; failing ends the start.
    pub start_join: Vec<String>,
    /// Tried until one answers: `host`, `host:port`, `[v6]:port`.
    pub retry_join: Vec<String>,
    /// Pause between tries (30 s).
    pub retry_interval: Duration,
    /// Tries before giving up; `None`: for ever.
    pub retry_max: Option<u32>,
    /// Join again after having left.
    pub rejoin_after_leave: bool,
}

/// Certificates for agents that come with a token.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolmentConfig {
    /// The token this agent was given, as text.
    pub token: Option<String>,
    /// The file it stands in.
    pub token_file: Option<PathBuf>,
    /// Certificate and key that this server signs with.
    pub signer: Option<(PathBuf, PathBuf)>,
    /// Life of what it signs (720 h).
    pub certificate_ttl: Duration,
}

impl std::fmt::Debug for EnrolmentConfig {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("EnrolmentConfig")
            .field("token", &self.token.as_ref().map(|_| "hidden"))
            .field("token_file", &self.token_file)
            .field("signer", &self.signer)
            .field("certificate_ttl", &self.certificate_ttl)
            .finish()
    }
}

/// A gossip key; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct GossipKey(Vec<u8>);

impl GossipKey {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The key: 16, 24 or 32 bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GossipKey({} bytes)", self.0.len())
    }
}

/// Gossip timing and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct GossipConfig {
    /// `encrypt`; `None`: clear text.
    pub key: Option<GossipKey>,
    /// Keep the keys in `serf/local.keyring`; false with `disable_keyring_file`.
    pub keyring_file: bool,
    /// Refuse packets that are not sealed (true).
    pub verify_incoming: bool,
    /// Seal what is sent (true).
    pub verify_outgoing: bool,
    /// How many members hear of news at once (3).
    pub gossip_nodes: u32,
    /// Pause between rounds of news (150 ms).
    pub gossip_interval: Duration,
    /// Pause between probes (700 ms).
    pub probe_interval: Duration,
    /// Wait for a probe's answer (300 ms); not above the interval.
    pub probe_timeout: Duration,
    /// Scales how long a suspect may speak up (4).
    pub suspicion_mult: u32,
    /// Scales how often news is repeated (4).
    pub retransmit_mult: u32,
    /// When a failed member is forgotten (72 h, at least 8 h).
    pub reconnect_timeout: Duration,
    /// Learn where this node lies in the network; false with `disable_coordinates`.
    pub coordinates: bool,
}

/// Files and rules for TLS of one listener or direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM bundle of roots.
    pub ca_file: Option<PathBuf>,
    /// Directory of PEM roots.
    pub ca_path: Option<PathBuf>,
    /// PEM certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM key.
    pub key_file: Option<PathBuf>,
    /// Lowest version spoken.
    pub min_version: TlsVersion,
    /// Cipher suites by name; empty: the library's own.
    pub cipher_suites: Vec<String>,
    /// Demand and check a certificate of whoever connects.
    pub verify_incoming: bool,
    /// Use TLS towards others and check them.
    pub verify_outgoing: bool,
    /// Demand the name `server.<dc>.<domain>` of a server.
    pub verify_server_hostname: bool,
}

impl TlsOptions {
    /// Whether a certificate and its key are named.
    #[must_use]
    pub fn has_certificate(&self) -> bool {
        self.cert_file.is_some() && self.key_file.is_some()
    }

    /// Whether roots are named.
    #[must_use]
    pub fn has_roots(&self) -> bool {
        self.ca_file.is_some() || self.ca_path.is_some()
    }
}

/// Lowest TLS version spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    V12,
    /// TLS 1.3.
    V13,
}

/// `tls`: the defaults already folded into each part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Server RPC and Raft.
    pub internal_rpc: TlsOptions,
    /// The HTTPS API.
    pub https: TlsOptions,
    /// gRPC over TLS.
    pub grpc: TlsOptions,
}

/// Where the Raft log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogBackend {
    /// weft's own write-ahead log.
    Wal,
    /// sled.
    Sled,
}

/// Raft timing and storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftConfig {
    /// 1 (fastest, weft's default) to 10; scales heartbeat and election times.
    pub multiplier: u32,
    /// Entries since the last snapshot that call for a new one (16,384).
    pub snapshot_threshold: u64,
    /// How often that is looked at (30 s).
    pub snapshot_interval: Duration,
    /// Entries kept behind a snapshot (10,240).
    pub trailing_logs: u64,
    /// Where the log is kept.
    pub backend: LogBackend,
    /// Size of one segment of weft's own log, in bytes (64 MiB).
    pub segment_size_bytes: u64,
    /// How long a request waits for a leader (7 s).
    pub rpc_hold_timeout: Duration,
}

/// What the leader does about dead and new servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutopilotConfig {
    /// Remove dead servers when a new one has come (true).
    pub cleanup_dead_servers: bool,
    /// Silence after which a server is unhealthy (1 s), times the Raft multiplier.
    pub last_contact_threshold: Duration,
    /// Entries a healthy server may lag (250).
    pub max_trailing_logs: u64,
    /// Servers never removed below this number (0: no floor but quorum).
    pub min_quorum: u32,
    /// How long a new server must be healthy before it votes (10 s).
    pub server_stabilization_time: Duration,
}

/// How recursors are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecursorStrategy {
    /// In the order given.
    Sequential,
    /// In random order.
    Random,
}

/// DNS answers.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsConfig {
    /// Where names of other domains are asked.
    pub recursors: Vec<SocketAddr>,
    /// Order of asking.
    pub recursor_strategy: RecursorStrategy,
    /// Wait for one recursor (2 s).
    pub recursor_timeout: Duration,
    /// TTL of node answers (0).
    pub node_ttl: Duration,
    /// TTL of service answers by name, `prefix*` or `*` (0).
    pub service_ttl: BTreeMap<String, Duration>,
    /// Leave out instances with a warning too.
    pub only_passing: bool,
    /// Answer from any server's data (true).
    pub allow_stale: bool,
    /// How old such data may be (87,600 h).
    pub max_stale: Duration,
    /// Answer from the agent's cache.
    pub use_cache: bool,
    /// How old the cache may be (0: any age).
    pub cache_max_age: Duration,
    /// Most A records in an answer; 0: no limit.
    pub a_record_limit: usize,
    /// Most records in a small UDP answer (3).
    pub udp_answer_limit: usize,
    /// Set TC when an answer was cut.
    pub enable_truncate: bool,
    /// Never compress names.
    pub disable_compression: bool,
    /// Add node metadata as TXT to ANY and TXT answers (true).
    pub node_meta_txt: bool,
    /// The zone's SOA.
    pub soa: SoaConfig,
}

/// SOA figures, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoaConfig {
    /// Expire (86,400).
    pub expire_seconds: u32,
    /// Minimum TTL: how long a negative answer is kept (0).
    pub min_ttl_seconds: u32,
    /// Refresh (3,600).
    pub refresh_seconds: u32,
    /// Retry (600).
    pub retry_seconds: u32,
}

/// HTTP API behaviour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// Path prefixes answered 403.
    pub block_endpoints: Vec<String>,
    /// Headers added to every answer.
    pub response_headers: BTreeMap<String, String>,
    /// Networks that may write; empty: all.
    pub allow_write_from: Vec<(IpAddr, u8)>,
    /// Answer `?cached` from the cache (true).
    pub use_cache: bool,
    /// Bound on a request's headers, in bytes (65,536).
    pub max_header_bytes: usize,
    /// Time to send the headers (10 s).
    pub read_header_timeout: Duration,
    /// Longest time without progress on a body, an answer or a new connection (30 s).
    pub stall_timeout: Duration,
    /// Time to send a whole request; `None`: unbounded.
    pub read_timeout: Option<Duration>,
    /// Time to take an answer; `None`: unbounded (blocking queries).
    pub write_timeout: Option<Duration>,
    /// How long an idle connection is kept (120 s).
    pub idle_timeout: Duration,
}

/// Requests a second; a rate of `None` is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimits {
    /// Whether they are counted, and refused beyond it.
    pub mode: LimitMode,
    /// Reads.
    pub read: Option<f64>,
    /// Writes.
    pub write: Option<f64>,
}

/// Whether request limits refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitMode {
    /// Not counted.
    Disabled,
    /// Counted and logged.
    Permissive,
    /// Refused with 429.
    Enforcing,
}

/// Bounds. A rate of `None` is unlimited, per second otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitsConfig {
    /// Requests that wait for a change at once (16,384).
    pub http_max_blocking_queries: usize,
    /// HTTP connections in all (8,192).
    pub http_max_conns: usize,
    /// HTTP connections of one client address (200); 0: no limit.
    pub http_max_conns_per_client: usize,
    /// Largest body of requests without their own limit, in bytes (1 MiB).
    pub http_max_request_body_bytes: usize,
    /// Largest KV value, in bytes (524,288).
    pub kv_max_value_bytes: usize,
    /// Largest transaction, in bytes (524,288).
    pub txn_max_request_bytes: usize,
    /// Time for a TLS handshake of the API (5 s).
    pub https_handshake_timeout: Duration,
    /// Time for a TLS handshake of RPC (5 s).
    pub rpc_handshake_timeout: Duration,
    /// Time of a server to answer a call that does not wait (15 s).
    pub rpc_client_timeout: Duration,
    /// RPC connections of one client address (100).
    pub rpc_max_conns_per_client: usize,
    /// Requests of one agent that wait for a change at a server (4,096).
    pub rpc_max_blocking_queries_per_agent: usize,
    /// Calls that an agent forwards to the servers at once (16,384).
    pub rpc_max_calls: usize,
    /// RPCs this agent sends.
    pub rpc_rate: Option<f64>,
    /// Burst of such RPCs (1,000).
    pub rpc_max_burst: u32,
    /// Requests a server takes.
    pub request: RateLimits,
    /// Requests an agent takes of one client address.
    pub source: RateLimits,
}

/// Lowest level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Packets.
    Trace,
    /// Requests.
    Debug,
    /// Changes of role.
    Info,
    /// Degraded, healing.
    Warn,
    /// A human must act.
    Error,
}

impl LogLevel {
    /// The name `tracing` filters use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Lowest level.
    pub level: LogLevel,
    /// JSON lines instead of text.
    pub json: bool,
    /// A file, or a directory when it ends in `/`; written beside standard output.
    pub file: Option<PathBuf>,
    /// Rotate at this size; `None`: by time only.
    pub rotate_bytes: Option<u64>,
    /// Rotate after this time (24 h).
    pub rotate_duration: Duration,
    /// Old files kept; `None`: all. Zero keeps none.
    pub rotate_max_files: Option<u32>,
}

/// Health checks in general.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChecksConfig {
    /// How long a changed output may wait before servers are told (5 min).
    pub update_interval: Duration,
    /// Tell nobody the output.
    pub discard_output: bool,
    /// Bytes of output kept (4,096).
    pub output_max_bytes: usize,
    /// Whose checks may run commands (nobody's).
    pub scripts: ScriptChecks,
    /// Checks may begin at link-local addresses (no).
    pub link_local: bool,
    /// Checks over TLS show the agent's certificate and trust its CA (no).
    pub agent_tls: bool,
}

/// What a signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaveConfig {
    /// SIGTERM leaves the cluster (true for clients).
    pub on_terminate: bool,
    /// SIGINT does not leave the cluster (true for servers).
    pub skip_on_interrupt: bool,
    /// How long a leaving server goes on answering (5 s).
    pub drain_time: Duration,
}

/// Where metrics are sent, and under which names they go out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// `host:port` of UDP.
    pub statsd: Option<String>,
    /// `host:port` of TCP.
    pub statsite: Option<String>,
    /// `host:port` of UDP, or `unix:///path`.
    pub dogstatsd: Option<String>,
    /// Added to each line for it.
    pub dogstatsd_tags: Vec<String>,
    /// In the names of gauges that are sent; none with `disable_hostname`.
    pub host: Option<String>,
    /// First part of Consul's names (`consul`).
    pub prefix: String,
    /// Beginnings of names, and whether they are shown.
    pub filter: Vec<(String, bool)>,
    /// Whether the others are (true).
    pub filter_default: bool,
}

/// The web UI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UiConfig {
    /// Whether it is served.
    pub enabled: bool,
    /// A directory served instead of the built-in pages.
    pub dir: Option<PathBuf>,
    /// Path it is served under, with slashes at both ends (`/ui/`).
    pub content_path: String,
}

/// Owner and mode of Unix sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocketsConfig {
    /// User name or id.
    pub user: Option<String>,
    /// Group name or id.
    pub group: Option<String>,
    /// Permission bits.
    pub mode: Option<u32>,
}

/// Bounds of the views that an agent which is no server keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewsLimits {
    /// Views at most (4,096).
    pub max: usize,
    /// Bytes of them at most, about (64 MiB).
    pub max_bytes: usize,
    /// One that nobody asks for ends after this time (72 h).
    pub idle_ttl: Duration,
    /// The same for one of what does not exist (10 min).
    pub missing_idle_ttl: Duration,
    /// How long a first question waits for the servers (3 s).
    pub first_wait: Duration,
    /// What a server keeps up to date for agents.
    pub server: ServedViews,
}

/// Bounds of what a server does for the views of agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServedViews {
    /// Agents at once (8,192).
    pub agents: usize,
    /// Views of one agent (8,192).
    pub per_agent: usize,
    /// Views in all, each counted once (65,536).
    pub views: usize,
    /// Agents that may begin in a second (200).
    pub begins_per_second: u32,
    /// Agents that may begin at once (400).
    pub begins_burst: u32,
}
