//! The server port: one listener, TLS when configured, one type byte, three protocols.
//!
//! Owns: accepting and dialing of connections between servers and of agents to servers, who may speak which
//! protocol, and where a Raft id lives now.
//! Never: knows what travels inside; addresses come from gossip, identity from certificates. Nor opens a stranger's
//! connection on Raft's runtime: handshakes of a thousand agents must not delay a heartbeat.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use weft_proto::clock::Clock;
use weft_proto::v1;
use weft_raft::{Dialer, Peer, RaftId, RaftStream};

use crate::agents::greeting;

/// First byte after TLS: what the connection carries.
const RAFT: u8 = 0x01;
const RPC: u8 = 0x02;
/// An agent that is no server: a greeting ([`crate::agents::greeting`]), then HTTP/2.
const AGENT: u8 = 0x03;
/// An agent that has no certificate yet, or wants its next one. The byte comes before TLS, as TLS with the others asks
/// for a certificate.
const ENROL: u8 = 0x04;
/// First byte of a TLS record of type handshake (RFC 8446 §5.1): a TLS peer on a clear-text port.
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection of either protocol after TLS and type byte.
pub type Conn = Box<dyn RaftStream>;

/// TLS of the server port, supplied by the binary from `identity`.
pub trait RpcTls: Send + Sync + 'static {
    /// Wraps an accepted connection; refuses a peer that does not prove itself as configured.
    fn accept(&self, tcp: TcpStream) -> BoxFuture<'static, io::Result<Accepted>>;
    /// Wraps a dialed connection.
    fn connect(&self, tcp: TcpStream) -> BoxFuture<'static, io::Result<Box<dyn RaftStream>>>;
    /// Incoming connections without TLS are refused (`verify_incoming`).
    fn required(&self) -> bool;
    /// Outgoing connections use TLS (`verify_outgoing`).
    fn outgoing(&self) -> bool;
}

/// A connection whose TLS handshake was done.
pub struct Accepted {
    /// The connection inside TLS.
    pub stream: Box<dyn RaftStream>,
    /// Why the caller is not taken for a server, when certificates are asked for and its is none of a server's: it
    /// may only ask what agents may.
    pub no_server: Option<io::Error>,
}

/// Dials peers and knows their current addresses.
#[derive(Clone)]
pub struct Transport {
    tls: Option<Arc<dyn RpcTls>>,
    directory: Arc<ArcSwap<BTreeMap<RaftId, String>>>,
    timeout: Duration,
}

impl Transport {
    /// `tls` absent: clear text, which the configuration allows on loopback only.
    #[must_use]
    pub fn new(tls: Option<Arc<dyn RpcTls>>, timeout: Duration) -> Self {
        Self {
            tls,
            directory: Arc::default(),
            timeout,
        }
    }

    /// Replaces what gossip says about where servers are.
    pub(crate) fn set_directory(&self, directory: BTreeMap<RaftId, String>) {
        if **self.directory.load() != directory {
            self.directory.store(Arc::new(directory));
        }
    }

    /// Whether gossip shows a server at `ip`.
    pub(crate) fn knows(&self, ip: IpAddr) -> bool {
        self.directory.load().values().any(|at| is_at(at, ip))
    }

    /// Gossip's address of `id`, else the one in the membership.
    pub(crate) fn address_of(&self, peer: &Peer) -> String {
        self.directory
            .load()
            .get(&peer.id)
            .cloned()
            .unwrap_or_else(|| peer.address.clone())
    }

    /// Opens an RPC connection.
    pub(crate) async fn dial_rpc(&self, address: &str) -> io::Result<Conn> {
        self.dial_as(address, RPC).await
    }

    /// Opens a connection on which to ask for a certificate; TLS has yet to be done on it.
    ///
    /// Errors: what the system says; it took longer than `limit`.
    pub async fn dial_enrolment(address: &str, limit: Duration) -> io::Result<TcpStream> {
        let dialing = async {
            let mut tcp = connect(address).await?;
            tcp.write_all(&[ENROL]).await?;
            Ok(tcp)
        };
        in_time(limit, address, dialing).await
    }

    /// Opens an agent's connection: greeted, and ready for HTTP/2.
    ///
    /// Errors: `PermissionDenied` with the server's own words when it has declined; else what the system or
    /// TLS says.
    pub async fn dial_agent(
        &self,
        address: &str,
        greeting: &v1::AgentGreeting,
    ) -> io::Result<(Conn, v1::AgentWelcome)> {
        let dialing = async {
            let mut stream = self.dial_as(address, AGENT).await?;
            let welcome = greeting::greet(&mut stream, greeting).await?;
            Ok((stream, welcome))
        };
        in_time(self.timeout, address, dialing).await
    }

    async fn dial_as(&self, address: &str, kind: u8) -> io::Result<Conn> {
        let dialing = async {
            let tcp = connect(address).await?;
            let mut stream: Conn = match &self.tls {
                Some(tls) if tls.outgoing() => tls.connect(tcp).await?,
                _ => Box::new(tcp),
            };
            stream.write_all(&[kind]).await?;
            stream.flush().await?;
            Ok(stream)
        };
        in_time(self.timeout, address, dialing).await
    }
}

/// Whether `address` (`host:port`) is at `ip`.
pub(crate) fn is_at(address: &str, ip: IpAddr) -> bool {
    let at = address.parse::<SocketAddr>();
    at.is_ok_and(|at| at.ip().to_canonical() == ip.to_canonical())
}

async fn in_time<T>(
    limit: Duration,
    address: &str,
    dialing: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::time::timeout(limit, dialing)
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("dialing {address} took over {limit:?}"),
            ))
        })
}

impl Dialer for Transport {
    fn dial(&self, peer: &Peer) -> BoxFuture<'static, io::Result<Box<dyn RaftStream>>> {
        let (transport, address) = (self.clone(), self.address_of(peer));
        Box::pin(async move { transport.dial_as(&address, RAFT).await })
    }
}

/// Accepts connections of the server port and sorts them.
pub(crate) struct Acceptor {
    pub(crate) listener: TcpListener,
    pub(crate) tls: Option<Arc<dyn RpcTls>>,
    pub(crate) handshake_timeout: Duration,
    pub(crate) max_conns_per_client: Arc<MaxConns>,
    /// What agents are told of this server, and must agree with.
    pub(crate) us: v1::AgentWelcome,
    /// Where the connections of all others than servers are opened, and stay.
    pub(crate) general: Handle,
    /// Whether a server is known to be at an address. One that is not known yet is served all the same, where load
    /// on the API may delay it.
    pub(crate) is_server: IsServer,
}

/// Says whether a server is known to be at an address.
pub(crate) type IsServer = Box<dyn Fn(IpAddr) -> bool + Send + Sync>;

impl Transport {
    /// An acceptor that shares this transport's TLS; `general`: this runtime.
    pub(crate) fn acceptor(
        &self,
        listener: TcpListener,
        handshake_timeout: Duration,
        max_conns_per_client: Arc<MaxConns>,
        us: v1::AgentWelcome,
        is_server: IsServer,
    ) -> Acceptor {
        Acceptor {
            listener,
            us,
            tls: self.tls.clone(),
            handshake_timeout,
            max_conns_per_client,
            general: Handle::current(),
            is_server,
        }
    }
}

impl Acceptor {
    /// Runs until `stop` resolves: Raft connections go to `raft`, RPC connections to `rpc`, agents' to `agents`,
    /// and those that ask for a certificate to `enrol`.
    pub(crate) async fn run(
        self,
        raft: impl Fn(Conn) + Clone + Send + 'static,
        rpc: mpsc::Sender<io::Result<Seated>>,
        agents: impl Fn(Seated, v1::AgentGreeting) + Clone + Send + 'static,
        enrol: impl Fn(Seated) + Clone + Send + 'static,
        stop: impl Future<Output = ()>,
    ) {
        let counts: Arc<Mutex<BTreeMap<IpAddr, usize>>> = Arc::default();
        tokio::pin!(stop);
        // Registered here, so that it belongs to the runtime this runs on.
        let listener = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(cause) => return tracing::error!(error = %cause, "cannot serve the server port"),
        };
        loop {
            let accepted = tokio::select! { biased; () = &mut stop => return, accepted = listener.accept() => accepted };
            let (tcp, from) = match accepted {
                Ok(accepted) => accepted,
                Err(cause) => {
                    // Out of descriptors, mostly: wait a little rather than spin.
                    tracing::warn!(error = %cause, "cannot accept on the server port");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let limit = self.max_conns_per_client.get();
            let Some(seat) = Seat::take(&counts, from.ip(), limit) else {
                self.max_conns_per_client.refused(from, limit);
                continue;
            };
            let (tls, limit, us) = (self.tls.clone(), self.handshake_timeout, self.us.clone());
            let (raft, rpc, agents, enrol) =
                (raft.clone(), rpc.clone(), agents.clone(), enrol.clone());
            let home = match (self.is_server)(from.ip()) {
                true => Handle::current(),
                false => self.general.clone(),
            };
            // Out of this runtime's hands: whose it is then, opens it.
            let tcp = tcp.into_std();
            home.spawn(async move {
                let opening = async { open(tls, TcpStream::from_std(tcp?)?, &us).await };
                match tokio::time::timeout(limit, opening).await {
                    Ok(Ok((kind, stream))) => {
                        let seated = Seated {
                            stream,
                            from,
                            _seat: seat,
                        };
                        match kind {
                            Kind::Raft => raft(Box::new(seated)),
                            // The RPC service has ended: so does the connection.
                            Kind::Rpc => drop(rpc.send(Ok(seated)).await),
                            Kind::Agent(greeting) => agents(seated, greeting),
                            Kind::Enrol => enrol(seated),
                        }
                    }
                    Ok(Err(cause)) => {
                        tracing::warn!(peer.addr = %from, error = %cause, "connection to the server port refused")
                    }
                    Err(_) => {
                        tracing::warn!(peer.addr = %from, limit = ?limit, "no handshake within limits.rpc_handshake_timeout")
                    }
                }
            });
        }
    }
}

/// What a connection carries, as far as it has said.
#[derive(Debug)]
enum Kind {
    Raft,
    Rpc,
    Agent(v1::AgentGreeting),
    Enrol,
}

async fn open(
    tls: Option<Arc<dyn RpcTls>>,
    mut tcp: TcpStream,
    us: &v1::AgentWelcome,
) -> io::Result<(Kind, Conn)> {
    prepare(&tcp)?;
    let mut first = [0; 1];
    if tcp.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first[0] == ENROL {
        tcp.read_exact(&mut first).await?;
        return Ok((Kind::Enrol, Box::new(tcp)));
    }
    let (mut stream, no_server): (Conn, _) = match (tls, first[0] == TLS_HANDSHAKE) {
        (Some(tls), true) => {
            let accepted = tls.accept(tcp).await?;
            (accepted.stream, accepted.no_server)
        }
        (Some(tls), false) if tls.required() => {
            if first[0] == AGENT {
                greeting::decline(&mut tcp, "rpc.tls_required", CLEAR_TEXT).await;
            }
            return Err(refuse(CLEAR_TEXT));
        }
        (None, true) => {
            return Err(refuse(
                "TLS on a port that has none configured; set tls.defaults.cert_file and key_file here, or switch verify_outgoing off at the caller",
            ));
        }
        (_, false) => (Box::new(tcp), None),
    };
    let kind = match stream.read_u8().await? {
        RAFT => Kind::Raft,
        RPC => Kind::Rpc,
        AGENT => {
            return Ok((
                Kind::Agent(greeting::welcome(&mut stream, us).await?),
                stream,
            ));
        }
        other => {
            return Err(refuse(&format!(
                "unknown protocol byte 0x{other:02x}; is the caller a weft agent of a compatible version?"
            )));
        }
    };
    no_server.map_or(Ok((kind, stream)), Err)
}

const CLEAR_TEXT: &str = "clear text on a port that requires TLS (tls.internal_rpc.verify_incoming); give the caller a certificate and verify_outgoing";

/// Probes of a silent connection: a machine that vanished is noticed within a minute on either side.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;

async fn connect(address: &str) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    prepare(&tcp)?;
    Ok(tcp)
}

fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(tcp, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(tcp, PROBES)?;
    Ok(())
}

fn refuse(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// How many connections one address may have (`limits.rpc_max_conns_per_client`), and who was refused for it.
pub(crate) struct MaxConns {
    max: AtomicUsize,
    refused: Counter,
    said: Mutex<Option<Duration>>,
    clock: Arc<dyn Clock>,
}

impl MaxConns {
    /// A refusal is said at most this often: a flood must not fill the disk with its own log.
    const SAY_EVERY: Duration = Duration::from_secs(1);

    pub(crate) fn new(max: usize, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            max: max.into(),
            refused: Counter::default(),
            said: Mutex::new(None),
            clock,
        })
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_server_connections_refused",
            "Connections refused at limits.rpc_max_conns_per_client",
            self.refused.clone(),
        );
    }

    pub(crate) fn set(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    fn get(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    fn refused(&self, from: SocketAddr, limit: usize) {
        self.refused.inc();
        let now = self.clock.monotonic();
        let mut said = self.said.lock();
        if said.is_none_or(|said| now.saturating_sub(said) >= Self::SAY_EVERY) {
            *said = Some(now);
            let refused = self.refused.get();
            tracing::warn!(peer.addr = %from, limit, refused, "connection refused: limits.rpc_max_conns_per_client reached");
        }
    }
}

/// One connection's place among those of its address; given back when dropped.
struct Seat {
    counts: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    ip: IpAddr,
}

impl Seat {
    fn take(counts: &Arc<Mutex<BTreeMap<IpAddr, usize>>>, ip: IpAddr, max: usize) -> Option<Self> {
        let mut map = counts.lock();
        let count = map.entry(ip).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Self {
            counts: counts.clone(),
            ip,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut map = self.counts.lock();
        if let Some(count) = map.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                map.remove(&self.ip);
            }
        }
    }
}

/// A stream that knows whence it came and keeps its seat for as long as it lives.
pub(crate) struct Seated {
    stream: Conn,
    from: SocketAddr,
    _seat: Seat,
}

impl tokio::io::AsyncRead for Seated {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Seated {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Seated {
    /// The other end.
    pub(crate) fn from(&self) -> SocketAddr {
        self.from
    }
}

impl tonic::transport::server::Connected for Seated {
    type ConnectInfo = SocketAddr;
    fn connect_info(&self) -> SocketAddr {
        self.from
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// TLS that only notes on which thread it was asked for.
    struct Noting(std::sync::mpsc::Sender<std::thread::ThreadId>);

    impl RpcTls for Noting {
        fn accept(&self, _: TcpStream) -> BoxFuture<'static, io::Result<Accepted>> {
            let noted = self.0.clone();
            Box::pin(async move {
                noted.send(std::thread::current().id()).unwrap();
                Err(refuse("no TLS in this test"))
            })
        }
        fn connect(&self, _: TcpStream) -> BoxFuture<'static, io::Result<Box<dyn RaftStream>>> {
            Box::pin(async { Err(refuse("no TLS in this test")) })
        }
        fn required(&self) -> bool {
            true
        }
        fn outgoing(&self) -> bool {
            true
        }
    }

    #[test]
    fn handshakes_of_strangers_are_not_for_the_runtime_that_carries_raft() {
        let single = || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1).enable_all().build().unwrap()
        };
        let (raft, general) = (single(), single());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let (noted, notes) = std::sync::mpsc::channel();
        let transport = Transport::new(Some(Arc::new(Noting(noted))), Duration::from_secs(30));
        let limit = Duration::from_secs(30);
        let conns = MaxConns::new(10, Arc::new(weft_proto::clock::SystemClock::default()));
        let acceptor = {
            let _here = general.enter();
            let servers: IsServer = Box::new(|ip| is_at("127.0.0.9:8300", ip));
            transport.acceptor(listener, limit, conns, v1::AgentWelcome::default(), servers)
        };
        let (rpc, _rpc) = mpsc::channel(1);
        raft.spawn(acceptor.run(|_| {}, rpc, |_, _| {}, |_| {}, std::future::pending()));
        let thread_of = |runtime: &tokio::runtime::Runtime| {
            let asking = runtime.spawn(async { std::thread::current().id() });
            runtime.block_on(asking).unwrap()
        };
        for (from, home) in [("127.0.0.9", &raft), ("127.0.0.10", &general)] {
            general.block_on(async {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
                let mut stream = socket.connect(at).await.unwrap();
                stream.write_all(&[TLS_HANDSHAKE]).await.unwrap();
                // Until it is hung up on.
                let _ = stream.read_u8().await;
            });
            assert_eq!(notes.recv().unwrap(), thread_of(home), "{from}");
        }
    }

    #[tokio::test]
    async fn vanished_machines_are_noticed_on_either_side() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (dialed, accepted) = tokio::join!(connect(&address), listener.accept());
        let (mut dialed, (accepted, _)) = (dialed.unwrap(), accepted.unwrap());
        dialed.write_all(&[RPC]).await.unwrap();
        let same = accepted.as_fd().try_clone_to_owned().unwrap();
        open(None, accepted, &v1::AgentWelcome::default())
            .await
            .unwrap();
        for socket in [dialed.as_fd(), same.as_fd()] {
            assert!(sockopt::socket_keepalive(socket).unwrap());
            assert_eq!(sockopt::tcp_keepidle(socket).unwrap(), PROBE_AFTER);
        }
    }
}
