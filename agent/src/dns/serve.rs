//! The DNS port: UDP and TCP listeners.
//!
//! Owns: sockets, bounds on TCP, the loop from packet to packet.
//! Never: blocks on anything but its own sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;
use weft_proto::clock::Clock;

use super::message::Via;
use super::metrics::DnsMetrics;
use super::options::DnsOptions;
use super::recurse::Recursion;
use super::resolve::{Resolver, Step};
use super::seats::{Full, Seats};
use super::view::DnsView;

/// Open TCP connections; further ones are closed.
const TCP_CONNECTIONS_MAX: usize = 256;
/// Those of one client address, so that one client cannot take all places.
const TCP_CONNECTIONS_PER_CLIENT_MAX: usize = 64;
/// An idle TCP connection is closed after this time.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Datagrams taken from a socket before others get a turn.
const BURST: usize = 64;
const DATAGRAM_MAX_BYTES: usize = 4096;

/// Why the DNS port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for DNS on {address}; is another resolver there? change ports.dns or addresses.dns"
)]
pub struct DnsError {
    /// Where.
    pub address: SocketAddr,
    /// The operating system's reason.
    #[source]
    pub cause: io::Error,
}

/// Where to listen, with what of it somebody else has opened already and holds beyond this process.
#[derive(Debug)]
pub struct DnsListen {
    /// Address of both.
    pub address: SocketAddr,
    /// Bound to it, if it is open already.
    pub udp: Option<std::net::UdpSocket>,
    /// Listening at it, if it is open already.
    pub tcp: Option<std::net::TcpListener>,
}

impl From<SocketAddr> for DnsListen {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            udp: None,
            tcp: None,
        }
    }
}

/// The running DNS port.
pub struct DnsServer {
    local: SocketAddr,
    resolver: Arc<Resolver>,
}

impl DnsServer {
    /// Opens UDP and TCP as `at` says and answers until `stop` is cancelled.
    ///
    /// `seed`: of the dice that shuffle answers.
    pub async fn start(
        at: impl Into<DnsListen>,
        options: DnsOptions,
        view: Arc<dyn DnsView>,
        metrics: DnsMetrics,
        clock: Arc<dyn Clock>,
        seed: u64,
        stop: CancellationToken,
    ) -> Result<Self, DnsError> {
        let DnsListen { address, udp, tcp } = at.into();
        let failed = |cause| DnsError { address, cause };
        let udp = match udp {
            Some(socket) => given_udp(socket),
            None => bind_udp(address),
        };
        let udp = udp.map_err(failed)?;
        let local = udp.local_addr().map_err(failed)?;
        let tcp = match tcp {
            Some(socket) => given_tcp(socket),
            None => TcpListener::bind(local).await,
        };
        let tcp = tcp.map_err(failed)?;
        let recursion = Recursion::with_entropy(metrics.clone()).map_err(failed)?;
        let resolver = Arc::new(Resolver::new(options, view, metrics, recursion, clock));
        tokio::spawn(serve_udp(
            udp,
            resolver.clone(),
            SmallRng::seed_from_u64(seed),
            stop.clone(),
        ));
        tokio::spawn(serve_tcp(tcp, resolver.clone(), seed.wrapping_add(1), stop));
        Ok(Self { local, resolver })
    }

    /// The address that was bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Takes new options for every later question.
    pub fn reload(&self, options: DnsOptions) {
        self.resolver.reload(options);
    }
}

fn given_udp(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

fn given_tcp(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    // A burst of questions must wait in the kernel rather than be dropped.
    socket.set_recv_buffer_size(1 << 20)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

async fn serve_udp(
    socket: UdpSocket,
    resolver: Arc<Resolver>,
    mut rng: SmallRng,
    stop: CancellationToken,
) {
    let socket = Arc::new(socket);
    let mut packet = vec![0; DATAGRAM_MAX_BYTES];
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            ready = socket.readable() => if ready.is_err() { continue },
        }
        for _ in 0..BURST {
            let Ok((bytes, from)) = socket.try_recv_from(&mut packet) else {
                break;
            };
            let reply = match resolver.answer(&packet[..bytes], via_udp(from), from.ip(), &mut rng)
            {
                Step::Reply(reply) => reply,
                Step::Nothing => continue,
                Step::Later(later) => {
                    let (resolver, socket) = (Arc::clone(&resolver), Arc::clone(&socket));
                    tokio::spawn(async move {
                        if let Some(reply) = resolver.finish(*later).await {
                            let _ = socket.send_to(&reply, from).await;
                        }
                    });
                    continue;
                }
            };
            if let Err(cause) = socket.try_send_to(&reply, from)
                && cause.kind() == io::ErrorKind::WouldBlock
            {
                let _ = socket.send_to(&reply, from).await;
            }
        }
        tokio::task::yield_now().await;
    }
}

fn via_udp(from: SocketAddr) -> Via {
    Via::Udp {
        near: from.ip().to_canonical().is_loopback(),
    }
}

async fn serve_tcp(
    listener: TcpListener,
    resolver: Arc<Resolver>,
    seed: u64,
    stop: CancellationToken,
) {
    let seats = Seats::new(TCP_CONNECTIONS_MAX, TCP_CONNECTIONS_PER_CLIENT_MAX);
    let mut number = 0_u64;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let seat = match seats.take(peer.ip()) {
            Ok(seat) => seat,
            Err(full) => {
                let reason = match full {
                    Full::All => "dns.tcp_connections",
                    Full::OfClient => "dns.tcp_connections_of_client",
                };
                // Closed at once: a resolver asks another server sooner than it gives up waiting.
                resolver.refused_connection(reason);
                tracing::debug!(peer.addr = %peer, reason, "connection refused");
                continue;
            }
        };
        number += 1;
        let (resolver, rng) = (
            resolver.clone(),
            SmallRng::seed_from_u64(seed.wrapping_add(number)),
        );
        tokio::spawn(async move {
            let _seat = seat;
            // The client's connection: its errors end it and concern nobody else.
            let _ = converse(stream, peer.ip(), &resolver, rng).await;
        });
    }
}

/// Questions and answers framed by a two-byte length (RFC 1035 §4.2.2).
async fn converse(
    mut stream: TcpStream,
    client: IpAddr,
    resolver: &Resolver,
    mut rng: SmallRng,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut packet = Vec::new();
    loop {
        let length = tokio::time::timeout(TCP_IDLE, stream.read_u16()).await??;
        packet.resize(usize::from(length), 0);
        tokio::time::timeout(TCP_IDLE, stream.read_exact(&mut packet)).await??;
        let reply = match resolver.answer(&packet, Via::Tcp, client, &mut rng) {
            Step::Reply(reply) => Some(reply),
            Step::Nothing => None,
            Step::Later(later) => resolver.finish(*later).await,
        };
        let Some(reply) = reply else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &reply].concat();
        tokio::time::timeout(TCP_IDLE, stream.write_all(&framed)).await??;
    }
}
