//! Listeners and connections.
//!
//! Owns: [`HttpServer`]: accepting on TCP, TLS and unix sockets within the bounds, and the end.
//! Never: reads a request; hyper does, and [`super::api`] answers.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::Api;
use super::config::{Deps, HttpConfig, Listen, TlsSource};
use super::head_timeout::{Answering, Patience, Watched};
use super::metrics::Flight;
use super::reply::RelayedAnswer;

/// hyper's least buffer.
const BUFFER_MIN_BYTES: usize = 8 * 1024;
/// What a connection inside the process holds on its way, each direction.
const IN_PROCESS_BYTES: usize = 64 * 1024;
/// How long connections may finish what they do when the server stops.
const DRAIN: Duration = Duration::from_secs(5);
/// A connection that was let in just before the server stops may ask its first question for so long.
const FIRST_REQUEST: Duration = Duration::from_millis(500);
/// An HTTP/2 connection is asked for a sign of life after this time, and ended without one.
const PING_AFTER: Duration = Duration::from_secs(20);
/// TCP asks a silent peer for a sign of life after this time, so often, at this interval: who is gone
/// without a word (a host that lost its power) has given its place back within a minute.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBES: u32 = 3;
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// Pause after the system could not accept (too many open files), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Consul's text for too many connections of one client.
const TOO_MANY: &str =
    "Your IP is issuing too many concurrent connections, please rate limit your calls";

/// Why the API could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened at.
    #[error(
        "cannot listen on {address}: {cause}; is another agent running, or is ports.http taken? Choose another with -http-port or addresses.http"
    )]
    Bind {
        /// Where.
        address: String,
        /// What the system said.
        cause: std::io::Error,
    },
}

/// The running API.
#[derive(Debug)]
pub struct HttpServer {
    bound: Vec<SocketAddr>,
    tasks: TaskTracker,
    inside: InProcess,
}

/// The API for this process itself, whatever it listens at: connections that leave no memory of it.
#[derive(Clone)]
pub struct InProcess(Arc<Door>);

impl InProcess {
    /// A connection for HTTP/1.1, served as one over a unix socket is.
    ///
    /// Errors: the bound on connections, in words.
    pub fn connect(&self) -> Result<tokio::io::DuplexStream, String> {
        let place = self.0.enter(None)?;
        let (ours, theirs) = tokio::io::duplex(IN_PROCESS_BYTES);
        self.0.serve(place, theirs, false);
        Ok(ours)
    }

    /// Puts other bounds and rates in force, for what comes from now on.
    pub fn set_limits(&self, limits: super::HttpLimits, rates: super::RateLimits) {
        self.0.api.set_limits(limits, rates);
    }

    /// Lets other names of metrics go out.
    pub fn set_naming(&self, naming: super::Naming) {
        self.0.api.set_naming(naming);
    }

    /// Answers a call that another agent forwards for one of its clients.
    pub async fn answer(
        &self,
        request: hyper::Request<hyper::body::Incoming>,
    ) -> hyper::Response<RelayedAnswer> {
        let api = Arc::clone(&self.0.api);
        api.answer_forwarded(request).await.map(RelayedAnswer)
    }
}

impl std::fmt::Debug for InProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InProcess")
    }
}

impl HttpServer {
    /// Listens at every address of `config` and serves until `shutdown` is cancelled.
    ///
    /// Errors: [`StartError::Bind`]; then nothing is being listened at.
    pub async fn start(
        config: HttpConfig,
        deps: Deps,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        let mut listeners = Vec::new();
        for address in &config.addresses {
            let listener = Listener::bind(address).await;
            let cause_at = |cause| StartError::Bind {
                address: format!("{address:?}"),
                cause,
            };
            listeners.push(listener.map_err(cause_at)?);
        }
        let bound = listeners.iter().filter_map(Listener::address).collect();
        let api = Api::new(config, deps, shutdown);
        let tasks = TaskTracker::new();
        let door = Arc::new(Door {
            api,
            tasks: tasks.clone(),
            clients: Mutex::default(),
        });
        for listener in listeners {
            tasks.spawn(Arc::clone(&door).accept_all(listener));
        }
        tasks.spawn(super::push::run(Arc::clone(&door.api)));
        tasks.close();
        let inside = InProcess(door);
        Ok(Self {
            bound,
            tasks,
            inside,
        })
    }

    /// The way to this API from inside the process.
    #[must_use]
    pub fn inside(&self) -> InProcess {
        self.inside.clone()
    }

    /// The TCP addresses listened at, in the order of the configuration; ports are the real ones.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.bound
    }

    /// Returns once every listener and connection has ended after the shutdown.
    pub async fn stopped(self) {
        self.tasks.wait().await;
    }
}

enum Listener {
    Tcp(TcpListener, Option<TlsSource>),
    Unix(UnixListener),
}

impl Listener {
    async fn bind(listen: &Listen) -> std::io::Result<Self> {
        Ok(match listen {
            Listen::Tcp(address) => Self::Tcp(TcpListener::bind(address).await?, None),
            Listen::Tls(address, tls) => {
                Self::Tcp(TcpListener::bind(address).await?, Some(Arc::clone(tls)))
            }
            Listen::Given { socket, tls } => {
                let socket = socket.try_clone()?;
                socket.set_nonblocking(true)?;
                Self::Tcp(TcpListener::from_std(socket)?, tls.clone())
            }
            Listen::GivenUnix(socket) => {
                let socket = socket.try_clone()?;
                socket.set_nonblocking(true)?;
                Self::Unix(UnixListener::from_std(socket)?)
            }
            Listen::Unix { path, mode } => Self::Unix(bind_unix(path, *mode).await?),
        })
    }

    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener, _) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

/// Replaces a socket file only when nobody answers there.
async fn bind_unix(path: &Path, mode: Option<u32>) -> std::io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let answered = tokio::net::UnixStream::connect(path).await;
            if !answered.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    if let Some(mode) = mode {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(listener)
}

/// What every TCP connection is set to.
fn tune(stream: &tokio::net::TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let probes = socket2::TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_EVERY)
        .with_retries(PROBES);
    socket2::SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// Lets connections in, within the bounds.
struct Door {
    api: Arc<Api>,
    tasks: TaskTracker,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place; given back when dropped.
struct Place {
    door: Arc<Door>,
    client: Option<IpAddr>,
    _open: Flight,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.door.clients.lock();
        clients.total -= 1;
        if let Some(client) = self.client
            && let Some(count) = clients.by_address.get_mut(&client)
        {
            *count -= 1;
            if *count == 0 {
                clients.by_address.remove(&client);
            }
        }
    }
}

impl Door {
    async fn accept_all(self: Arc<Self>, listener: Listener) {
        let stopping = self.api.stopping.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                accepted = self.accept(&listener) => accepted,
            };
            if let Err(error) = accepted {
                tracing::warn!(error = %error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    async fn accept(self: &Arc<Self>, listener: &Listener) -> std::io::Result<()> {
        match listener {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                match self.enter(None) {
                    Ok(place) => self.serve(place, stream, false),
                    Err(refusal) => self.refuse(stream, refusal),
                }
            }
            Listener::Tcp(listener, tls) => {
                let (stream, peer) = listener.accept().await?;
                if let Err(error) = tune(&stream) {
                    // Only this connection's matter: it is broken already.
                    tracing::debug!(peer.addr = %peer, error = %error, "connection ended early");
                    return Ok(());
                }
                match (self.enter(Some(peer.ip())), tls) {
                    (Ok(place), None) => self.serve(place, stream, false),
                    (Ok(place), Some(tls)) => self.serve_tls(place, stream, peer, tls()),
                    (Err(refusal), None) => self.refuse(stream, refusal),
                    // A refusal in clear text would only confuse a TLS client.
                    (Err(_), Some(_)) => {}
                }
            }
        }
        Ok(())
    }

    /// A place, or the text that says which bound was met.
    fn enter(self: &Arc<Self>, client: Option<IpAddr>) -> Result<Place, String> {
        let limits = self.api.limits();
        let mut clients = self.clients.lock();
        if clients.total >= limits.max_conns {
            self.api.metrics.refuse("limits.http_max_conns");
            self.api.say_limited("limits.http_max_conns", client, true);
            return Err(format!(
                "too many connections, limit {}: raise limits.http_max_conns",
                limits.max_conns
            ));
        }
        if let Some(client) = client {
            let count = clients.by_address.entry(client).or_default();
            if *count >= limits.max_conns_per_client {
                self.api.metrics.refuse("limits.http_max_conns_per_client");
                (self.api).say_limited("limits.http_max_conns_per_client", Some(client), true);
                let max = limits.max_conns_per_client;
                return Err(format!(
                    "{TOO_MANY} (limits.http_max_conns_per_client = {max})"
                ));
            }
            *count += 1;
        }
        clients.total += 1;
        Ok(Place {
            door: Arc::clone(self),
            client,
            _open: Flight::of(&self.api.metrics.connections),
        })
    }

    fn refuse(&self, mut stream: impl AsyncWrite + Unpin + Send + 'static, text: String) {
        tracing::debug!(reason = %text, "connection refused");
        self.tasks.spawn(async move {
            let answer = format!(
                "HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nRetry-After: 1\r\nX-Weft-Reason: http.connections\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            );
            // The peer may be gone already; there is nobody to tell.
            let _ = tokio::time::timeout(Duration::from_secs(1), async {
                stream.write_all(answer.as_bytes()).await?;
                stream.shutdown().await
            })
            .await;
        });
    }

    fn serve_tls(
        self: &Arc<Self>,
        place: Place,
        stream: tokio::net::TcpStream,
        peer: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
    ) {
        let door = Arc::clone(self);
        self.tasks.spawn(async move {
            let handshake = tokio_rustls::TlsAcceptor::from(tls).accept(stream);
            match tokio::time::timeout(door.api.limits().handshake_timeout, handshake).await {
                Ok(Ok(stream)) => {
                    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    door.serve(place, stream, h2);
                }
                Ok(Err(error)) => {
                    tracing::debug!(peer.addr = %peer, error = %error, "TLS handshake failed")
                }
                Err(_) => tracing::debug!(peer.addr = %peer, "TLS handshake took too long"),
            }
        });
    }

    fn serve(
        self: &Arc<Self>,
        place: Place,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        h2: bool,
    ) {
        let api = Arc::clone(&self.api);
        if h2 {
            self.tasks.spawn(serve_h2(api, place, stream));
        } else {
            self.tasks.spawn(serve_h1(api, place, stream));
        }
    }
}

/// Twice what a head may have: [`Api`] refuses what is between with a reason, hyper the rest without.
fn head_bound(api: &Api) -> usize {
    (2 * api.limits().max_header_bytes).max(BUFFER_MIN_BYTES)
}

fn patience(api: &Api) -> Patience {
    Patience {
        head: api.limits().header_timeout,
        stall: api.limits().stall_timeout,
    }
}

async fn serve_h1(
    api: Arc<Api>,
    place: Place,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let (stopping, client) = (api.stopping.clone(), place.client);
    let head_max = head_bound(&api);
    let answering = Answering::default();
    let first = Arc::new(Notify::new());
    let asked = Arc::clone(&first);
    let stream = Watched::new(stream, answering.clone(), patience(&api));
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        let guard = answering.begin();
        asked.notify_one();
        async move {
            let response = api.answer(request, client).await;
            drop(guard);
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(head_max)
        .max_header_size(head_max)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let draining = async {
        stopping.cancelled().await;
        // hyper would end one that has not asked yet, though its request may be on the way: it connected in time.
        let _ = tokio::time::timeout(FIRST_REQUEST, first.notified()).await;
    };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = draining => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
        }
    };
    log_end(result);
    drop(place);
}

/// `head_max`: bytes of one request's headers.
fn h2_builder(head_max: usize) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_AFTER)
        .max_header_list_size(u32::try_from(head_max).unwrap_or(u32::MAX));
    builder
}

async fn serve_h2(
    api: Arc<Api>,
    place: Place,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let (stopping, client) = (api.stopping.clone(), place.client);
    let head_max = head_bound(&api);
    let stream = Watched::preface(stream, patience(&api));
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, std::convert::Infallible>(api.answer(request, client).await) }
    });
    let connection = h2_builder(head_max).serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
        }
    };
    log_end(result);
    drop(place);
}

fn log_end(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(error = %error, "connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn the_system_asks_a_silent_peer_for_a_sign_of_life() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        tune(&stream).unwrap();
        let socket = socket2::SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), PROBE_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), PROBE_EVERY);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), PROBES);
    }

    /// Type of a PING frame (RFC 9113 §6.7).
    const PING: u8 = 6;

    #[tokio::test(start_paused = true)]
    async fn an_http2_client_that_answers_no_ping_is_let_go() {
        let (ours, mut theirs) = tokio::io::duplex(4_096);
        let service = service_fn(|_: http::Request<hyper::body::Incoming>| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
        });
        let connection = h2_builder(16 * 1024).serve_connection(TokioIo::new(ours), service);
        theirs
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .unwrap();
        let ended = tokio::time::timeout(PING_AFTER * 3, connection).await;
        assert!(ended.expect("it is still open").is_err());
        let mut frames = Vec::new();
        theirs.read_to_end(&mut frames).await.unwrap();
        let mut kinds = Vec::new();
        let mut rest = frames.as_slice();
        while let [a, b, c, kind, ..] = *rest {
            kinds.push(kind);
            rest = &rest[9 + u32::from_be_bytes([0, a, b, c]) as usize..];
        }
        assert!(kinds.contains(&PING), "{kinds:?}");
    }
}
