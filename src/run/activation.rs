//! Sockets that the service manager opened before this process and holds beyond it.
//!
//! Owns: which socket is for what, by its name, and what is said of one that is for nothing.
//! Never: serves them; a listener of the configuration gives way to what was passed for the same purpose.
//! Source: systemd, sd_listen_fds(3), systemd.socket(5) (`FileDescriptorName=`).

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use listenfd::ListenFd;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use weft_agent::config::RuntimeConfig;
use weft_agent::config::runtime::ListenAddr;
use weft_agent::dns::DnsListen;
use weft_agent::http::{Listen, TlsSource};

/// What names mean, for those who used another.
const NAMES: &str =
    "http, https, dns, dns-udp or dns-tcp (FileDescriptorName= of the socket unit, LISTEN_FDNAMES)";

/// What was passed, by purpose.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    http: Vec<Arc<TcpListener>>,
    http_unix: Vec<Arc<UnixListener>>,
    https: Vec<Arc<TcpListener>>,
    dns_udp: Vec<UdpSocket>,
    dns_tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Takes what was passed to this process. Once, before there are threads: it changes the environment.
    ///
    /// Errors: every socket that cannot be used, and why.
    pub(crate) fn from_env() -> Result<Self, Vec<String>> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut passed = ListenFd::from_env();
        let mut names = names.split(':').filter(|name| !name.is_empty());
        let (mut sockets, mut errors) = (Self::default(), Vec::new());
        for at in 0..passed.len() {
            let name = names.next().unwrap_or("unknown");
            if let Err(why) = sockets.take(&mut passed, at, name) {
                errors.push(format!(
                    "socket {at} {name:?} of the service manager: {why}"
                ));
            }
        }
        if errors.is_empty() {
            Ok(sockets)
        } else {
            Err(errors)
        }
    }

    fn take(&mut self, passed: &mut ListenFd, at: usize, name: &str) -> Result<(), String> {
        let tcp = |passed: &mut ListenFd| {
            let socket = passed.take_tcp_listener(at).ok().flatten()?;
            listens(&socket).then_some(socket)
        };
        let udp = |passed: &mut ListenFd| passed.take_udp_socket(at).ok().flatten();
        match name {
            "http" => {
                if let Some(socket) = tcp(passed) {
                    self.http.push(Arc::new(socket));
                } else if let Some(socket) = passed.take_unix_listener(at).ok().flatten() {
                    self.http_unix.push(Arc::new(socket));
                } else {
                    return Err("http wants a listening TCP or unix stream socket".into());
                }
            }
            "https" => {
                let wants = "https wants a listening TCP socket";
                self.https.push(Arc::new(tcp(passed).ok_or(wants)?));
            }
            "dns-udp" => {
                let wants = "dns-udp wants a UDP socket";
                self.dns_udp.push(udp(passed).ok_or(wants)?);
            }
            "dns-tcp" => {
                let wants = "dns-tcp wants a listening TCP socket";
                self.dns_tcp.push(tcp(passed).ok_or(wants)?);
            }
            // One socket unit may open both under one name.
            "dns" => {
                if let Some(socket) = udp(passed) {
                    self.dns_udp.push(socket);
                } else {
                    let wants = "dns wants a UDP socket or a listening TCP socket";
                    self.dns_tcp.push(tcp(passed).ok_or(wants)?);
                }
            }
            _ => return Err(format!("no such name; it must be {NAMES}")),
        }
        Ok(())
    }

    fn len(&self) -> usize {
        let dns = self.dns_udp.len() + self.dns_tcp.len();
        self.http.len() + self.http_unix.len() + self.https.len() + dns
    }

    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        let passed = Gauge::<i64>::default();
        passed.set(i64::try_from(self.len()).unwrap_or(i64::MAX));
        registry.register(
            "weft_process_sockets_passed",
            "Listening sockets that the service manager passed to this process",
            passed,
        );
    }

    /// Puts the addresses of what was passed where the configuration has its own: what is judged and shown is
    /// what is listened at.
    pub(crate) fn show_in(&self, config: &mut RuntimeConfig) {
        let network = &mut config.network;
        let ip = |socket: &Arc<TcpListener>| socket.local_addr().ok().map(ListenAddr::Ip);
        let unix = |socket: &Arc<UnixListener>| {
            let address = socket.local_addr().ok()?;
            let path = address.as_pathname().map_or_else(PathBuf::new, Into::into);
            Some(ListenAddr::Unix(path))
        };
        let http: Vec<_> = self.http.iter().filter_map(ip).collect();
        let http: Vec<_> = http
            .into_iter()
            .chain(self.http_unix.iter().filter_map(unix))
            .collect();
        if !http.is_empty() {
            network.http = http;
        }
        if !self.https.is_empty() {
            network.https = self.https.iter().filter_map(ip).collect();
        }
        let dns = self.dns_addresses();
        if !dns.is_empty() {
            network.dns = dns;
        }
    }

    fn dns_addresses(&self) -> Vec<SocketAddr> {
        let udp = self.dns_udp.iter().filter_map(|one| one.local_addr().ok());
        let mut all: Vec<_> = udp.collect();
        let tcp = self.dns_tcp.iter().filter_map(|one| one.local_addr().ok());
        all.extend(
            tcp.filter(|address| !all.contains(address))
                .collect::<Vec<_>>(),
        );
        all
    }

    /// What is passed for the API in clear text; empty: what the configuration says.
    pub(crate) fn http(&self) -> Vec<Listen> {
        let tcp = self
            .http
            .iter()
            .cloned()
            .map(|socket| Listen::Given { socket, tls: None });
        let unix = self.http_unix.iter().cloned().map(Listen::GivenUnix);
        tcp.chain(unix).collect()
    }

    /// What is passed for the API over TLS; empty: what the configuration says.
    pub(crate) fn https(&self, tls: &TlsSource) -> Vec<Listen> {
        let given = |socket: &Arc<TcpListener>| Listen::Given {
            socket: socket.clone(),
            tls: Some(tls.clone()),
        };
        self.https.iter().map(given).collect()
    }

    /// Whether the API is to be served over TLS at a socket that was passed.
    pub(crate) fn has_https(&self) -> bool {
        !self.https.is_empty()
    }

    /// What is passed for DNS, each address once; the half that was not passed is opened there.
    pub(crate) fn dns(&mut self) -> Vec<DnsListen> {
        let addresses = self.dns_addresses();
        let (mut udp, mut tcp) = (
            std::mem::take(&mut self.dns_udp),
            std::mem::take(&mut self.dns_tcp),
        );
        let listen = |address: SocketAddr| {
            let is_udp = |one: &UdpSocket| one.local_addr().ok() == Some(address);
            let is_tcp = |one: &TcpListener| one.local_addr().ok() == Some(address);
            DnsListen {
                address,
                udp: udp.iter().position(is_udp).map(|at| udp.remove(at)),
                tcp: tcp.iter().position(is_tcp).map(|at| tcp.remove(at)),
            }
        };
        addresses.into_iter().map(listen).collect()
    }

    /// Says what was passed.
    pub(crate) fn say(&self) {
        if self.len() > 0 {
            tracing::info!(
                http = self.http.len() + self.http_unix.len(),
                https = self.https.len(),
                dns_udp = self.dns_udp.len(),
                dns_tcp = self.dns_tcp.len(),
                "the service manager has passed its sockets"
            );
        }
    }
}

/// A TCP socket that is connected, or only bound, is not one to accept from.
fn listens(socket: &TcpListener) -> bool {
    rustix::net::sockopt::socket_acceptconn(socket).unwrap_or(false)
}
