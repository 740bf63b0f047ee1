//! Where the agent listens and what others are told.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::values::Values;
use crate::config::problem::Code;
use crate::config::raw::{RawAddresses, RawPorts};
use crate::config::runtime::{ListenAddr, NetworkConfig};
use crate::config::sockaddr;

/// The settings addresses come from.
pub(super) struct Asked<'a> {
    pub(super) server: bool,
    /// Whether an unset `bind_addr` may mean every interface (DESIGN §1).
    pub(super) open_bind: bool,
    pub(super) bind_addr: Option<&'a str>,
    pub(super) serf_lan: Option<&'a str>,
    pub(super) client_addr: Option<&'a str>,
    /// As given: any family, IPv4, IPv6.
    pub(super) advertise: [Option<&'a str>; 3],
    pub(super) advertise_wan: [Option<&'a str>; 3],
    pub(super) addresses: RawAddresses,
    pub(super) ports: RawPorts,
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl Values<'_> {
    pub(super) fn network(&mut self, asked: Asked<'_>) -> NetworkConfig {
        let bind = self.bind(&asked);
        let serf_bind = self.single("serf_lan", asked.serf_lan).unwrap_or(bind);
        let advertise = self.advertise(&asked, bind);
        let wan = self.first_of(
            &[
                "advertise_addr_wan",
                "advertise_addr_wan_ipv4",
                "advertise_addr_wan_ipv6",
            ],
            asked.advertise_wan,
        );
        let advertise_wan = wan.unwrap_or(advertise);
        let ports = &asked.ports;
        // gRPC is for proxies, which come with a later version: nothing listens.
        let grpc_tls_default = -1;
        let client = asked.client_addr.unwrap_or("127.0.0.1").to_owned();
        let of = |own: &Option<String>| {
            own.clone()
                .filter(|a| !a.is_empty())
                .unwrap_or_else(|| client.clone())
        };
        let key = |name: &str| {
            if self
                .merged
                .span(&format!("addresses.{name}"))
                .is_some_and(|_| true)
            {
                format!("addresses.{name}")
            } else {
                "client_addr".into()
            }
        };
        let keys = ["http", "https", "dns", "grpc", "grpc_tls"].map(key);
        let addresses = &asked.addresses;
        let rpc = self.needed_port("ports.server", ports.server, 8300);
        let serf_lan = self.needed_port("ports.serf_lan", ports.serf_lan, 8301);
        let dns = self.listeners(
            &keys[2],
            &of(&addresses.dns),
            ("ports.dns", ports.dns, 8600),
        );
        let network = NetworkConfig {
            bind,
            advertise,
            advertise_wan,
            tagged_addresses: tagged(&asked, advertise, advertise_wan),
            rpc: SocketAddr::new(bind, rpc),
            serf_lan: SocketAddr::new(serf_bind, serf_lan),
            serf_wan_port: self.port("ports.serf_wan", ports.serf_wan, 8302),
            http: self.listeners(
                &keys[0],
                &of(&addresses.http),
                ("ports.http", ports.http, 8500),
            ),
            https: self.listeners(
                &keys[1],
                &of(&addresses.https),
                ("ports.https", ports.https, -1),
            ),
            dns: self.only_ip(&keys[2], dns),
            grpc: self.listeners(
                &keys[3],
                &of(&addresses.grpc),
                ("ports.grpc", ports.grpc, -1),
            ),
            grpc_tls: self.listeners(
                &keys[4],
                &of(&addresses.grpc_tls),
                ("ports.grpc_tls", ports.grpc_tls, grpc_tls_default),
            ),
        };
        self.clashes(&network, asked.server);
        network
    }

    fn bind(&mut self, asked: &Asked<'_>) -> IpAddr {
        if let Some(address) = self.single("bind_addr", asked.bind_addr) {
            return address;
        }
        if asked.bind_addr.is_none() && !asked.open_bind {
            let message = "bind_addr is not set and there is no key material: RPC and gossip listen on 127.0.0.1 only";
            self.problem(
                Code::Advice,
                "bind_addr",
                message,
                Some("make keys with: weft init; or set bind_addr"),
            );
            return LOOPBACK;
        }
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    }

    /// The one address a setting stands for; `None` when it is absent or wrong.
    fn single(&mut self, key: &str, given: Option<&str>) -> Option<IpAddr> {
        let given = given.filter(|text| !text.trim().is_empty())?;
        let text = match sockaddr::expand(given, &self.machine.interfaces) {
            Ok(text) => text,
            Err(error) => {
                self.problem(Code::BadValue, key, format!("{key}: {error}"), None);
                return None;
            }
        };
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        match bare.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                let message = match text.split_whitespace().count() {
                    0 => format!("{key} {given:?} evaluates to no address"),
                    1 => format!("{key} {text:?} is not an IP address"),
                    _ => format!("{key} must be exactly one address, not {text:?}"),
                };
                self.problem(Code::BadValue, key, message, None);
                None
            }
        }
    }

    fn first_of(&mut self, keys: &[&str; 3], given: [Option<&str>; 3]) -> Option<IpAddr> {
        let found = keys
            .iter()
            .zip(given)
            .map(|(key, text)| (*key, self.single(key, text)));
        let found: Vec<_> = found.collect();
        for (key, address) in &found {
            if address.is_some_and(|a| a.is_unspecified()) {
                let message =
                    format!("{key} must not be the unspecified address; others could not reach it");
                self.problem(Code::BadValue, key, message, None);
            }
        }
        if found[1].1.is_some_and(|a| a.is_ipv6()) || found[2].1.is_some_and(|a| a.is_ipv4()) {
            let message = format!("{} and {} must be of their own family", keys[1], keys[2]);
            self.problem(Code::BadValue, keys[1], message, None);
        }
        found.iter().find_map(|(_, address)| *address)
    }

    fn advertise(&mut self, asked: &Asked<'_>, bind: IpAddr) -> IpAddr {
        let keys = [
            "advertise_addr",
            "advertise_addr_ipv4",
            "advertise_addr_ipv6",
        ];
        if let Some(address) = self.first_of(&keys, asked.advertise) {
            return address;
        }
        if !bind.is_unspecified() {
            return bind;
        }
        match self.guess_advertise(bind.is_ipv6()) {
            Ok(address) => address,
            Err(message) => {
                self.problem(
                    Code::BadValue,
                    "bind_addr",
                    message,
                    Some("set advertise_addr, or bind_addr to one of them"),
                );
                LOOPBACK
            }
        }
    }

    /// Consul's guess: the one private IPv4, else the one public; for `::` the one public IPv6.
    fn guess_advertise(&self, v6: bool) -> Result<IpAddr, String> {
        let family = if v6 { "ipv6" } else { "ipv4" };
        let sources = if v6 {
            ["GetPublicInterfaces", "GetPrivateInterfaces"]
        } else {
            ["GetPrivateInterfaces", "GetPublicInterfaces"]
        };
        for source in sources {
            let template = format!(
                "{{{{ {source} | include \"type\" \"{family}\" | join \"address\" \" \" }}}}"
            );
            let found = sockaddr::expand(&template, &self.machine.interfaces)?;
            let addresses: Vec<IpAddr> = found
                .split_whitespace()
                .filter_map(|text| text.parse().ok())
                .collect();
            match addresses.as_slice() {
                [] => {}
                [one] => return Ok(*one),
                _ => {
                    return Err(format!(
                        "several addresses could be advertised: {}",
                        found.replace(' ', ", ")
                    ));
                }
            }
        }
        Err(format!(
            "no {family} address was found that could be advertised"
        ))
    }

    fn port(&mut self, key: &str, given: Option<i64>, default: i64) -> Option<u16> {
        let port = self.count(key, given, default, -1..=65_535);
        u16::try_from(port).ok().filter(|port| *port > 0)
    }

    fn needed_port(&mut self, key: &str, given: Option<i64>, default: u16) -> u16 {
        self.port(key, given, i64::from(default))
            .unwrap_or_else(|| {
                self.problem(
                    Code::BadValue,
                    key,
                    format!("{key} cannot be switched off"),
                    None,
                );
                default
            })
    }

    fn listeners(
        &mut self,
        key: &str,
        addresses: &str,
        port: (&str, Option<i64>, i64),
    ) -> Vec<ListenAddr> {
        let port = self.port(port.0, port.1, port.2);
        let expanded = match sockaddr::expand(addresses, &self.machine.interfaces) {
            Ok(text) => text,
            Err(error) => {
                self.problem(Code::BadValue, key, format!("{key}: {error}"), None);
                return Vec::new();
            }
        };
        let mut out = Vec::new();
        for word in expanded.split_whitespace() {
            let Some(port) = port else { break };
            if let Some(path) = word.strip_prefix("unix://") {
                out.push(ListenAddr::Unix(path.into()));
            } else if let Ok(address) = word.trim_start_matches('[').trim_end_matches(']').parse() {
                out.push(ListenAddr::Ip(SocketAddr::new(address, port)));
            } else {
                let message = format!("{key} {word:?} is neither an IP address nor unix:///path");
                self.problem(Code::BadValue, key, message, None);
            }
        }
        if out.is_empty() && port.is_some() && expanded.is_empty() {
            self.problem(
                Code::BadValue,
                key,
                format!("{key} {addresses:?} evaluates to no address"),
                None,
            );
        }
        out
    }

    fn only_ip(&mut self, key: &str, listeners: Vec<ListenAddr>) -> Vec<SocketAddr> {
        let mut out = Vec::new();
        for listener in listeners {
            match listener {
                ListenAddr::Ip(address) => out.push(address),
                ListenAddr::Unix(_) if key == "client_addr" => {}
                ListenAddr::Unix(_) => self.problem(
                    Code::BadValue,
                    key,
                    "DNS cannot listen on a Unix socket",
                    None,
                ),
            }
        }
        out
    }

    /// Two listeners of the same address and port; the second could not start.
    fn clashes(&mut self, network: &NetworkConfig, server: bool) {
        let mut taken: Vec<(&str, SocketAddr)> = vec![("serf_lan", network.serf_lan)];
        if server {
            taken.push(("server", network.rpc));
        }
        taken.extend(network.dns.iter().map(|address| ("dns", *address)));
        let more = [
            ("http", &network.http),
            ("https", &network.https),
            ("grpc", &network.grpc),
            ("grpc_tls", &network.grpc_tls),
        ];
        for (name, list) in more {
            taken.extend(list.iter().filter_map(|l| {
                if let ListenAddr::Ip(a) = l {
                    Some((name, *a))
                } else {
                    None
                }
            }));
        }
        for (nth, (name, address)) in taken.iter().enumerate() {
            let other = taken[..nth]
                .iter()
                .find(|(_, other)| overlap(*address, *other));
            if let Some((first, _)) = other {
                let message = format!("ports.{name} and ports.{first} both want {address}");
                let key = [format!("ports.{name}"), format!("ports.{first}")];
                let key = if self
                    .merged
                    .span(&key[0])
                    .is_some_and(|s| self.merged.span("ports") != Some(s))
                {
                    &key[0]
                } else {
                    &key[1]
                };
                self.problem(
                    Code::Conflict,
                    key,
                    message,
                    Some("give one of them another port"),
                );
            }
        }
    }
}

fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let everything = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && (a.ip() == b.ip() || (everything && a.is_ipv4() == b.is_ipv4()))
}

/// `lan`, `wan` and the forms by family, as Consul tags a node.
fn tagged(asked: &Asked<'_>, lan: IpAddr, wan: IpAddr) -> BTreeMap<String, String> {
    let mut out = BTreeMap::from([
        ("lan".to_owned(), lan.to_string()),
        ("wan".to_owned(), wan.to_string()),
    ]);
    let own = |given: Option<&str>, v6: bool, fallback: IpAddr| {
        let given: Option<IpAddr> = given.and_then(|text| text.parse().ok());
        given.or((fallback.is_ipv6() == v6).then_some(fallback))
    };
    for (key, given, v6, fallback) in [
        ("lan_ipv4", asked.advertise[1], false, lan),
        ("lan_ipv6", asked.advertise[2], true, lan),
        ("wan_ipv4", asked.advertise_wan[1], false, wan),
        ("wan_ipv6", asked.advertise_wan[2], true, wan),
    ] {
        if let Some(address) = own(given, v6, fallback) {
            out.insert(key.to_owned(), address.to_string());
        }
    }
    out
}

/// The recursor's address; port 53 unless given.
pub(super) fn recursor(text: &str) -> Option<SocketAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    text.parse().ok().or_else(|| {
        bare.parse::<IpAddr>()
            .ok()
            .map(|ip| SocketAddr::new(ip, 53))
    })
}
