//! The grammar of names below `consul.` (and the alternative domain).
//!
//! Owns: turning a question's name into a [`Target`].
//! Never: looks anything up.
//! Source: CONSUL.md C.1; RFC 2782 for `_service._proto`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;

/// What a name asks for. All text is lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The domain itself.
    Apex,
    /// `<node>.node[.<dc>]`
    Node {
        name: String,
        datacenter: Option<String>,
    },
    /// `[<tag>.]<service>.service[.<dc>]` and the RFC 2782 form.
    Service {
        name: String,
        tag: Option<String>,
        port: Option<String>,
        datacenter: Option<String>,
    },
    /// `<query>.query[.<dc>]`, by name or id
    Query {
        name: String,
        datacenter: Option<String>,
    },
    /// `<service>.connect[.<dc>]` and `<service>.ingress[.<dc>]`
    Mesh {
        name: String,
        way: Way,
        datacenter: Option<String>,
    },
    /// `<hex>.addr[.<dc>]`
    Address(IpAddr),
    /// `in-addr.arpa` and `ip6.arpa`.
    Reverse(IpAddr),
    /// Below one of our domains, but no name of ours.
    Nothing,
    /// Not below any domain of ours.
    Foreign,
}

/// How the mesh reaches a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From inside: its proxies, and instances that speak for themselves.
    Connect,
    /// From outside: the gateways that let requests in.
    Ingress,
}

/// A name as text, other scripts spelled out. Most names need no more than dots between their labels.
pub(crate) fn text(name: &Name) -> String {
    let mut text = String::with_capacity(name.len() + 1);
    for label in name.iter() {
        match std::str::from_utf8(label) {
            Ok(label) if plain(label) => {
                text.push_str(label);
                text.push('.');
            }
            _ => return name.to_utf8(),
        }
    }
    text
}

/// Neither escaped nor another script in disguise (RFC 5890 §2.3.2.1).
fn plain(label: &str) -> bool {
    let harmless = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    label.bytes().all(harmless) && !label.starts_with("xn--")
}

/// Parses `name` (no trailing dot needed) against `domains` (see [`ordered`]).
pub(crate) fn parse(name: &str, domains: &[String]) -> Target {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if let Some(ip) = reverse(&name) {
        return Target::Reverse(ip);
    }
    match domains.iter().find_map(|domain| within(&name, domain)) {
        Some("") => Target::Apex,
        Some(rest) => below(rest),
        None => Target::Foreign,
    }
}

/// What of `name` (lower case, no trailing dot) is before `domain`: nothing when it is the domain
/// itself; `None` when it is not below it.
pub(crate) fn within<'n>(name: &'n str, domain: &str) -> Option<&'n str> {
    let rest = name.strip_suffix(domain)?;
    if rest.is_empty() {
        Some(rest)
    } else {
        rest.strip_suffix('.').filter(|rest| !rest.is_empty())
    }
}

/// `domain` and `alt_domain` as names are compared with them: lower case, no dots around them, the
/// longest first, so that `consul` does not take what is below `eu.consul`.
pub(crate) fn ordered<'d>(domains: impl Iterator<Item = &'d String>) -> Vec<String> {
    let mut domains: Vec<String> = domains
        .map(|domain| domain.trim_matches('.').to_ascii_lowercase())
        .collect();
    domains.sort_by_key(|domain| std::cmp::Reverse(domain.len()));
    domains
}

fn below(rest: &str) -> Target {
    let labels: Vec<&str> = rest.split('.').collect();
    let kinds = ["service", "node", "addr", "query", "connect", "ingress"];
    if let Some(at) = labels.iter().rposition(|label| kinds.contains(label)) {
        let Some(datacenter) = datacenter(&labels[at + 1..]) else {
            return Target::Nothing;
        };
        let before = &labels[..at];
        return match labels[at] {
            "node" if !before.is_empty() => Target::Node {
                name: before.join("."),
                datacenter,
            },
            "service" => service(before, datacenter),
            "query" => query(before, datacenter),
            "addr" => address(before),
            "connect" => mesh(before, Way::Connect, datacenter),
            "ingress" => mesh(before, Way::Ingress, datacenter),
            _ => Target::Nothing,
        };
    }
    // `_service._proto[.<dc>]` may leave the `service` label out.
    match labels.as_slice() {
        [name, proto, after @ ..] if is_rfc2782(name, proto) => match datacenter(after) {
            Some(datacenter) => service(&labels[..2], datacenter),
            None => Target::Nothing,
        },
        _ => Target::Nothing,
    }
}

/// `` → any, `<dc>` or `<dc>.dc`; `None` for anything else. `default.ns` and `default.ap` before it say
/// nothing: there is one namespace and one partition.
#[expect(
    clippy::option_option,
    reason = "outer: is it well formed; inner: was one given"
)]
fn datacenter(labels: &[&str]) -> Option<Option<String>> {
    match labels {
        ["default", "ns" | "ap", rest @ ..] => datacenter(rest),
        [] => Some(None),
        [dc] | [dc, "dc"] => Some(Some((*dc).to_owned())),
        _ => None,
    }
}

fn is_rfc2782(name: &str, proto: &str) -> bool {
    name.len() > 1 && proto.len() > 1 && name.starts_with('_') && proto.starts_with('_')
}

fn service(labels: &[&str], datacenter: Option<String>) -> Target {
    let of = |name: &str, tag: Option<String>, port: Option<String>| Target::Service {
        name: name.to_owned(),
        tag,
        port,
        datacenter: datacenter.clone(),
    };
    match labels {
        [] => Target::Nothing,
        [name, proto] if is_rfc2782(name, proto) => {
            // `_tcp` is the protocol, anything else narrows by tag.
            let tag = (*proto != "_tcp").then(|| proto[1..].to_owned());
            of(&name[1..], tag, None)
        }
        [port, "port", name] => of(name, None, Some((*port).to_owned())),
        [name] => of(name, None, None),
        // Tags may contain dots.
        [tag @ .., name] => of(name, Some(tag.join(".")), None),
    }
}

/// One label, the service: proxies have tags of their own, by which nobody means the service's.
fn mesh(labels: &[&str], way: Way, datacenter: Option<String>) -> Target {
    match labels {
        [name] => Target::Mesh {
            name: (*name).to_owned(),
            way,
            datacenter,
        },
        _ => Target::Nothing,
    }
}

fn query(labels: &[&str], datacenter: Option<String>) -> Target {
    let name = match labels {
        [] => return Target::Nothing,
        [name, "_tcp"] if is_rfc2782(name, "_tcp") => name[1..].to_owned(),
        labels => labels.join("."),
    };
    Target::Query { name, datacenter }
}

fn address(labels: &[&str]) -> Target {
    let [hex] = labels else {
        return Target::Nothing;
    };
    // `from_str_radix` takes a sign, too.
    let digits = hex.bytes().all(|b| b.is_ascii_hexdigit());
    match (hex.len(), u128::from_str_radix(hex, 16)) {
        _ if !digits => Target::Nothing,
        (8, Ok(bits)) => u32::try_from(bits).map_or(Target::Nothing, |bits| {
            Target::Address(Ipv4Addr::from(bits).into())
        }),
        (32, Ok(bits)) => Target::Address(Ipv6Addr::from(bits).into()),
        _ => Target::Nothing,
    }
}

fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(v4) = name.strip_suffix(".in-addr.arpa") {
        let octets = v4
            .split('.')
            .rev()
            .map(octet)
            .collect::<Option<Vec<u8>>>()?;
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into());
    }
    let v6 = name.strip_suffix(".ip6.arpa")?;
    let nibbles: Vec<&str> = v6.split('.').rev().collect();
    if nibbles.len() != 32 || nibbles.iter().any(|nibble| nibble.len() != 1) {
        return None;
    }
    u128::from_str_radix(&nibbles.concat(), 16)
        .ok()
        .map(|bits| Ipv6Addr::from(bits).into())
}

/// Digits alone, without zeros before them: `+1` and `01` are no octets.
fn octet(text: &str) -> Option<u8> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, expected: &Target) {
        assert_eq!(
            &parse(name, &["consul".to_owned(), "weft".to_owned()]),
            expected,
            "{name}"
        );
    }

    fn svc(name: &str, tag: Option<&str>, dc: Option<&str>) -> Target {
        Target::Service {
            name: name.into(),
            tag: tag.map(Into::into),
            port: None,
            datacenter: dc.map(Into::into),
        }
    }

    fn node(name: &str, dc: Option<&str>) -> Target {
        Target::Node {
            name: name.into(),
            datacenter: dc.map(Into::into),
        }
    }

    #[test]
    fn nodes() {
        check("n1.node.consul.", &node("n1", None));
        check("N1.Node.CONSUL", &node("n1", None));
        check("n1.node.dc1.consul.", &node("n1", Some("dc1")));
        check("n1.node.dc1.dc.consul.", &node("n1", Some("dc1")));
        check("a.b.node.consul.", &node("a.b", None));
        check("n1.node.weft.", &node("n1", None));
        check(
            "n1.node.default.ns.dc1.dc.consul.",
            &node("n1", Some("dc1")),
        );
        check("n1.node.default.ap.consul.", &node("n1", None));
        check("n1.node.other.ns.dc1.dc.consul.", &Target::Nothing);
        check("node.consul.", &Target::Nothing);
        check("n1.node.a.b.c.consul.", &Target::Nothing);
    }

    #[test]
    fn services() {
        check("web.service.consul.", &svc("web", None, None));
        check("v2.web.service.consul.", &svc("web", Some("v2"), None));
        check("v2.1.web.service.consul.", &svc("web", Some("v2.1"), None));
        check("web.service.dc2.consul.", &svc("web", None, Some("dc2")));
        check("_web._tcp.service.consul.", &svc("web", None, None));
        check("_web._tcp.consul.", &svc("web", None, None));
        check("_web._v2.dc1.consul.", &svc("web", Some("v2"), Some("dc1")));
        check("service.consul.", &Target::Nothing);
        check(
            "admin.port.web.service.consul.",
            &Target::Service {
                name: "web".into(),
                tag: None,
                port: Some("admin".into()),
                datacenter: None,
            },
        );
    }

    #[test]
    fn prepared_queries() {
        let query = |name: &str, dc: Option<&str>| Target::Query {
            name: name.into(),
            datacenter: dc.map(Into::into),
        };
        check("geo-db.query.consul.", &query("geo-db", None));
        check("geo.db.query.dc1.consul.", &query("geo.db", Some("dc1")));
        check("_geo-db._tcp.query.consul.", &query("geo-db", None));
        check("_geo-db._udp.query.consul.", &query("_geo-db._udp", None));
        check("query.consul.", &Target::Nothing);
    }

    #[test]
    fn the_mesh() {
        let mesh = |way, dc: Option<&str>| Target::Mesh {
            name: "web".into(),
            way,
            datacenter: dc.map(Into::into),
        };
        check("Web.Connect.consul.", &mesh(Way::Connect, None));
        check("web.connect.dc2.consul.", &mesh(Way::Connect, Some("dc2")));
        check("web.ingress.dc1.dc.weft.", &mesh(Way::Ingress, Some("dc1")));
        for none in ["connect", "v1.web.connect", "web.ingress.a.b", "ingress"] {
            check(&format!("{none}.consul."), &Target::Nothing);
        }
    }

    #[test]
    fn addresses_both_ways() {
        check(
            "7f000001.addr.consul.",
            &Target::Address([127, 0, 0, 1].into()),
        );
        check(
            "20010db8000000000000000000000001.addr.dc1.consul.",
            &Target::Address("2001:db8::1".parse().unwrap()),
        );
        check("7f0001.addr.consul.", &Target::Nothing);
        check("zz000001.addr.consul.", &Target::Nothing);
        check("+f000001.addr.consul.", &Target::Nothing);
        check(
            "1.0.0.127.in-addr.arpa.",
            &Target::Reverse([127, 0, 0, 1].into()),
        );
        check(
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.",
            &Target::Reverse("2001:db8::1".parse().unwrap()),
        );
        for foreign in [
            "0.127",
            "1.0.0.0127",
            "+1.0.0.127",
            ".0.0.127",
            "256.0.0.127",
        ] {
            check(&format!("{foreign}.in-addr.arpa."), &Target::Foreign);
        }
    }

    #[test]
    fn names_as_text_are_what_the_codec_says() {
        for labels in [
            [&b"web"[..], b"service"],
            [b"_web", b"_tcp"],
            [b"a.b", b"node"],
            [b"xn--bcher-kva", b"service"],
            [b"b\xc3\xbccher", b"node"],
            [b"sp ace", b"node"],
            [b"\xff\x00", b"*"],
        ] {
            let mut name = Name::from_labels(labels).unwrap().to_lowercase();
            name.set_fqdn(true);
            assert_eq!(text(&name), name.to_utf8());
        }
    }

    #[test]
    fn the_longest_domain_is_the_one_a_name_is_in() {
        for domains in [["consul", "eu.Consul."], ["eu.consul", "consul"]] {
            let domains = ordered(domains.map(str::to_owned).iter());
            let parse = |name| parse(name, &domains);
            assert_eq!(parse("eu.consul."), Target::Apex);
            assert_eq!(parse("web.service.eu.consul."), svc("web", None, None));
            assert_eq!(parse("n1.node.eu.consul."), node("n1", None));
            assert_eq!(
                parse("web.service.us.consul."),
                svc("web", None, Some("us"))
            );
        }
        assert_eq!(within("web.service.my-consul", "consul"), None);
    }

    #[test]
    fn the_rest() {
        check("consul.", &Target::Apex);
        check("nothing.consul.", &Target::Nothing);
        check("example.com.", &Target::Foreign);
        check("notconsul.", &Target::Foreign);
    }
}
