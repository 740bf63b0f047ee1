//! Address templates: the part of go-sockaddr that `bind_addr` and its like are written in.
//!
//! Owns: the template language and the order it sorts interfaces in.
//! Never: looks at the machine; the interface list is given.
//! Source: hashicorp/go-sockaddr, "template" documentation; CONSUL D.5.

use std::cmp::Ordering;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use regex::Regex;

/// One address of one network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// `eth0`.
    pub name: String,
    /// The address.
    pub address: IpAddr,
    /// Length of the network's prefix in bits.
    pub prefix: u8,
    /// Administratively up.
    pub up: bool,
    /// Whether a default route of the address's family leaves through it.
    pub has_default_route: bool,
}

/// Longest template evaluated, in bytes.
const TEMPLATE_SIZE_MAX_BYTES: usize = 4_096;

/// Replaces every `{{ … }}` of `text` by what it evaluates to; other text is kept.
///
/// # Errors
/// A sentence that names the part which could not be understood.
pub fn expand(text: &str, interfaces: &[Interface]) -> Result<String, String> {
    if text.len() > TEMPLATE_SIZE_MAX_BYTES {
        return Err(format!(
            "an address template has at most {TEMPLATE_SIZE_MAX_BYTES} bytes"
        ));
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((template, tail)) = after.split_once("}}") else {
            return Err("\"{{\" is not closed with \"}}\"".into());
        };
        out.push_str(before);
        out.push_str(&evaluate(template, interfaces)?);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out.trim().to_owned())
}

enum Piped {
    List(Vec<Interface>),
    Text(String),
}

fn evaluate(template: &str, interfaces: &[Interface]) -> Result<String, String> {
    let template = template
        .trim()
        .trim_start_matches('-')
        .trim_end_matches('-');
    let mut stages = stages(template)?.into_iter();
    let first = stages.next().unwrap_or_default();
    let mut value = source(&first, interfaces)?;
    for stage in stages {
        value = match value {
            Piped::List(list) => filter(&stage, list)?,
            Piped::Text(_) => {
                return Err(format!(
                    "{} wants a list of interfaces, but gets text",
                    word(&stage, 0)
                ));
            }
        };
    }
    match value {
        Piped::Text(text) => Ok(text),
        Piped::List(_) => {
            Err("the template ends in a list of interfaces; add: | attr \"address\"".into())
        }
    }
}

/// Splits at `|` outside of quotes, and each stage into words.
fn stages(template: &str) -> Result<Vec<Vec<String>>, String> {
    let mut all = vec![Vec::new()];
    let mut chars = template.chars().peekable();
    while let Some(c) = chars.next() {
        let Some(stage) = all.last_mut() else { break };
        match c {
            c if c.is_whitespace() => {}
            '|' => all.push(Vec::new()),
            '"' | '`' => {
                let mut text = String::new();
                loop {
                    match chars.next() {
                        None => return Err(format!("{c}{text} is not closed")),
                        Some('\\') if c == '"' => text.extend(chars.next()),
                        Some(end) if end == c => break,
                        Some(inner) => text.push(inner),
                    }
                }
                stage.push(text);
            }
            c => {
                let mut text = String::from(c);
                while let Some(next) =
                    chars.next_if(|n| !n.is_whitespace() && *n != '|' && *n != '"')
                {
                    text.push(next);
                }
                stage.push(text);
            }
        }
    }
    Ok(all)
}

fn word(stage: &[String], nth: usize) -> &str {
    stage.get(nth).map_or("", String::as_str)
}

fn source(stage: &[String], interfaces: &[Interface]) -> Result<Piped, String> {
    let first = |list: Vec<Interface>| {
        list.first()
            .map(|i| i.address.to_string())
            .unwrap_or_default()
    };
    let named = || {
        let pattern = pattern(word(stage, 1))?;
        let mut list: Vec<_> = interfaces
            .iter()
            .filter(|i| pattern.is_match(&i.name))
            .cloned()
            .collect();
        sort(&mut list, "type,size")?;
        Ok::<_, String>(list)
    };
    Ok(match word(stage, 0) {
        "GetAllInterfaces" => Piped::List(interfaces.to_vec()),
        "GetPrivateInterfaces" => Piped::List(by_privacy(interfaces, true)),
        "GetPublicInterfaces" => Piped::List(by_privacy(interfaces, false)),
        "GetDefaultInterfaces" => Piped::List(
            interfaces
                .iter()
                .filter(|i| i.has_default_route)
                .cloned()
                .collect(),
        ),
        "GetPrivateIP" => Piped::Text(first(by_privacy(interfaces, true))),
        "GetPublicIP" => Piped::Text(first(by_privacy(interfaces, false))),
        "GetPrivateIPs" => Piped::Text(join(&by_privacy(interfaces, true), " ")),
        "GetPublicIPs" => Piped::Text(join(&by_privacy(interfaces, false), " ")),
        "GetInterfaceIP" => Piped::Text(first(named()?)),
        "GetInterfaceIPs" => Piped::Text(join(&named()?, " ")),
        "" => return Err("the template is empty".into()),
        other => {
            return Err(format!(
                "{other} is not a function that lists interfaces; GetPrivateIP is one"
            ));
        }
    })
}

fn join(list: &[Interface], separator: &str) -> String {
    list.iter()
        .map(|i| i.address.to_string())
        .collect::<Vec<_>>()
        .join(separator)
}

/// Reachable addresses of interfaces that are up, the default route's first.
fn by_privacy(interfaces: &[Interface], private: bool) -> Vec<Interface> {
    let wanted =
        |i: &&Interface| i.up && forwardable(i.address) && in_rfc(i.address, 6890) == private;
    let mut list: Vec<_> = interfaces.iter().filter(wanted).cloned().collect();
    list.sort_by(|a, b| {
        by(a, b, "default")
            .then(by(a, b, "type"))
            .then(by(a, b, "size"))
    });
    list
}

fn filter(stage: &[String], mut list: Vec<Interface>) -> Result<Piped, String> {
    let count = || {
        word(stage, 1)
            .parse::<usize>()
            .map_err(|_| format!("{} wants a number", word(stage, 0)))
    };
    Ok(match word(stage, 0) {
        "include" => Piped::List(select(stage, list, true)?),
        "exclude" => Piped::List(select(stage, list, false)?),
        "sort" => {
            sort(&mut list, word(stage, 1))?;
            Piped::List(list)
        }
        "unique" => {
            let attribute = word(stage, 1).to_owned();
            let mut seen = std::collections::BTreeSet::new();
            list.retain(|i| seen.insert(attribute_of(i, &attribute).unwrap_or_default()));
            Piped::List(list)
        }
        "limit" => {
            list.truncate(count()?);
            Piped::List(list)
        }
        "offset" => {
            let from = count()?.min(list.len());
            Piped::List(list.split_off(from))
        }
        "attr" => match list.first() {
            Some(first) => Piped::Text(attribute_of(first, word(stage, 1))?),
            None => Piped::Text(String::new()),
        },
        "join" => {
            let texts: Result<Vec<_>, _> = list
                .iter()
                .map(|i| attribute_of(i, word(stage, 1)))
                .collect();
            Piped::Text(texts?.join(word(stage, 2)))
        }
        other => {
            return Err(format!(
                "{other} is not known; include, exclude, sort, unique, limit, offset, attr and join are"
            ));
        }
    })
}

fn attribute_of(interface: &Interface, attribute: &str) -> Result<String, String> {
    match attribute {
        "address" => Ok(interface.address.to_string()),
        "name" => Ok(interface.name.clone()),
        "network" => Ok(format!("{}/{}", interface.address, interface.prefix)),
        "size" => Ok(interface.prefix.to_string()),
        "type" => Ok(if interface.address.is_ipv4() {
            "IPv4"
        } else {
            "IPv6"
        }
        .to_owned()),
        other => Err(format!(
            "{other:?} is not an attribute; address, name, network, size and type are"
        )),
    }
}

fn pattern(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|_| format!("{text:?} is not a regular expression"))
}

fn select(stage: &[String], list: Vec<Interface>, keep: bool) -> Result<Vec<Interface>, String> {
    let matches = matcher(word(stage, 1), word(stage, 2))?;
    Ok(list.into_iter().filter(|i| matches(i) == keep).collect())
}

type Matcher = Box<dyn Fn(&Interface) -> bool>;

fn matcher(selector: &str, value: &str) -> Result<Matcher, String> {
    let alternatives = || value.split('|').map(str::trim);
    Ok(match selector.to_ascii_lowercase().as_str() {
        "name" => {
            let pattern = pattern(value)?;
            Box::new(move |i| pattern.is_match(&i.name))
        }
        "address" => {
            let pattern = pattern(value)?;
            Box::new(move |i| pattern.is_match(&i.address.to_string()))
        }
        "type" => {
            let (v4, v6) = match value.to_ascii_lowercase().as_str() {
                "ip" | "all" => (true, true),
                "ipv4" => (true, false),
                "ipv6" => (false, true),
                "unix" => (false, false),
                _ => return Err(format!("{value:?} is not a type; ip, ipv4 and ipv6 are")),
            };
            Box::new(move |i| if i.address.is_ipv4() { v4 } else { v6 })
        }
        "network" => {
            let networks: Option<Vec<_>> = alternatives().map(parse_network).collect();
            let networks =
                networks.ok_or_else(|| format!("{value:?} is not a network such as 10.0.0.0/8"))?;
            Box::new(move |i| networks.iter().any(|net| contains(*net, i.address)))
        }
        "rfc" => {
            let numbers: Result<Vec<u32>, _> = alternatives().map(str::parse).collect();
            let numbers = numbers.map_err(|_| format!("{value:?} is not the number of an RFC"))?;
            Box::new(move |i| numbers.iter().any(|rfc| in_rfc(i.address, *rfc)))
        }
        "size" => {
            let bits: u8 = value
                .trim_start_matches('/')
                .parse()
                .map_err(|_| format!("{value:?} is not a prefix length"))?;
            Box::new(move |i| i.prefix == bits)
        }
        "flag" | "flags" => {
            let flags: Vec<String> = alternatives().map(str::to_ascii_lowercase).collect();
            if let Some(unknown) = flags.iter().find(|flag| has_flag(None, flag).is_none()) {
                return Err(format!(
                    "{unknown:?} is not a flag; up, down, forwardable and loopback are"
                ));
            }
            Box::new(move |i| {
                flags
                    .iter()
                    .all(|flag| has_flag(Some(i), flag) == Some(true))
            })
        }
        other => {
            return Err(format!(
                "{other:?} is not a selector; name, type, network, rfc, flags, size and address are"
            ));
        }
    })
}

/// `None`: no such flag.
fn has_flag(interface: Option<&Interface>, flag: &str) -> Option<bool> {
    let test: fn(&Interface) -> bool = match flag {
        "up" => |i| i.up,
        "down" => |i| !i.up,
        "forwardable" => |i| forwardable(i.address),
        "loopback" => |i| i.address.is_loopback(),
        "link-local unicast" => |i| link_local(i.address),
        "global unicast" => {
            |i| !i.address.is_multicast() && !i.address.is_loopback() && !link_local(i.address)
        }
        "multicast" => |i| i.address.is_multicast(),
        "unspecified" => |i| i.address.is_unspecified(),
        _ => return None,
    };
    Some(interface.is_some_and(test))
}

fn sort(list: &mut [Interface], keys: &str) -> Result<(), String> {
    for key in keys.split(',').map(str::trim) {
        if !matches!(
            key.trim_start_matches(['-', '+']),
            "default" | "size" | "address" | "name" | "type" | "private"
        ) {
            return Err(format!(
                "{key:?} is not a sort key; default, size, address, name, type and private are"
            ));
        }
    }
    list.sort_by(|a, b| {
        keys.split(',')
            .map(str::trim)
            .fold(Ordering::Equal, |so_far, key| {
                so_far.then_with(|| match key.strip_prefix('-') {
                    Some(key) => by(b, a, key),
                    None => by(a, b, key.trim_start_matches('+')),
                })
            })
    });
    Ok(())
}

fn by(a: &Interface, b: &Interface, key: &str) -> Ordering {
    match key {
        "default" => b.has_default_route.cmp(&a.has_default_route),
        "size" => b.prefix.cmp(&a.prefix),
        "address" => a.address.cmp(&b.address),
        "name" => a.name.cmp(&b.name),
        "type" => a.address.is_ipv6().cmp(&b.address.is_ipv6()),
        "private" => in_rfc(b.address, 6890).cmp(&in_rfc(a.address, 6890)),
        _ => Ordering::Equal,
    }
}

/// `10.0.0.0/8` as address and prefix length.
#[must_use]
pub fn parse_network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.trim().split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u8 = bits.parse().ok()?;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

/// Whether `address` is in the network; never across families.
#[must_use]
pub(crate) fn contains((network, bits): (IpAddr, u8), address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => {
            (u32::from(n) ^ u32::from(a))
                .checked_shr(32 - u32::from(bits))
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(n), IpAddr::V6(a)) => {
            (u128::from(n) ^ u128::from(a))
                .checked_shr(128 - u32::from(bits))
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn forwardable(address: IpAddr) -> bool {
    let reserved = matches!(address, IpAddr::V4(a) if a.octets()[0] >= 240 || a.octets()[0] == 0);
    !(address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || link_local(address)
        || reserved)
}

const fn v4(a: u8, b: u8, c: u8, bits: u8) -> (IpAddr, u8) {
    (IpAddr::V4(Ipv4Addr::new(a, b, c, 0)), bits)
}

const fn v6(a: u16, b: u16, bits: u8) -> (IpAddr, u8) {
    (IpAddr::V6(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0)), bits)
}

const PRIVATE: [(IpAddr, u8); 3] = [v4(10, 0, 0, 8), v4(172, 16, 0, 12), v4(192, 168, 0, 16)];
/// IANA's special-purpose blocks that matter for telling private from public.
const SPECIAL: [(IpAddr, u8); 16] = [
    v4(0, 0, 0, 8),
    v4(100, 64, 0, 10),
    v4(127, 0, 0, 8),
    v4(169, 254, 0, 16),
    v4(192, 0, 0, 24),
    v4(192, 0, 2, 24),
    v4(192, 88, 99, 24),
    v4(198, 18, 0, 15),
    v4(198, 51, 100, 24),
    v4(203, 0, 113, 24),
    v4(240, 0, 0, 4),
    v6(0x100, 0, 64),
    v6(0x2001, 0xdb8, 32),
    v6(0xfc00, 0, 7),
    v6(0xfe80, 0, 10),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
];

fn in_rfc(address: IpAddr, rfc: u32) -> bool {
    let any = |list: &[(IpAddr, u8)]| list.iter().any(|net| contains(*net, address));
    match rfc {
        1918 => any(&PRIVATE),
        4193 => any(&[v6(0xfc00, 0, 7)]),
        4291 => any(&[
            v6(0xfe80, 0, 10),
            v6(0xff00, 0, 8),
            (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
        ]),
        3927 => any(&[v4(169, 254, 0, 16)]),
        1112 => any(&[v4(224, 0, 0, 4)]),
        6598 => any(&[v4(100, 64, 0, 10)]),
        5737 => any(&[v4(192, 0, 2, 24), v4(198, 51, 100, 24), v4(203, 0, 113, 24)]),
        5735 | 6890 => any(&PRIVATE) || any(&SPECIAL),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Vec<Interface> {
        let one = |name: &str, address: &str, prefix, default| Interface {
            name: name.into(),
            address: address.parse().unwrap(),
            prefix,
            up: true,
            has_default_route: default,
        };
        vec![
            one("lo", "127.0.0.1", 8, false),
            one("lo", "::1", 128, false),
            one("docker0", "172.17.0.1", 16, false),
            one("eth0", "10.0.0.7", 24, true),
            one("eth0", "fe80::1", 64, false),
            one("eth1", "198.19.0.9", 15, false),
            one("eth2", "8.8.4.4", 29, false),
            one("eth2", "2a00::4", 64, true),
        ]
    }

    #[track_caller]
    fn check(template: &str, expected: Result<&str, &str>) {
        let got = expand(template, &machine());
        assert_eq!(
            got.as_deref().map_err(String::as_str),
            expected,
            "{template}"
        );
    }

    #[test]
    fn templates_evaluate_as_documented() {
        for (template, expected) in [
            ("10.1.2.3", "10.1.2.3"),
            ("{{ GetPrivateIP }}", "10.0.0.7"),
            ("{{GetPublicIP}}", "2a00::4"),
            (r#"{{ GetInterfaceIP "eth0" }}"#, "10.0.0.7"),
            (r#"{{ GetInterfaceIP "nope" }}"#, ""),
            (
                r#"127.0.0.1 {{ GetInterfaceIP "docker0" }}"#,
                "127.0.0.1 172.17.0.1",
            ),
            (
                r#"{{ GetAllInterfaces | include "name" "^eth" | include "type" "IPv4" | join "address" " " }}"#,
                "10.0.0.7 198.19.0.9 8.8.4.4",
            ),
            (
                r#"{{ GetAllInterfaces | include "network" "10.0.0.0/8|172.16.0.0/12" | join "name" "," }}"#,
                "docker0,eth0",
            ),
            (
                r#"{{ GetAllInterfaces | exclude "flags" "loopback" | sort "-address" | limit 1 | attr "address" }}"#,
                "fe80::1",
            ),
            (
                r#"{{ GetPrivateInterfaces | sort "size" | attr "address" }}"#,
                "10.0.0.7",
            ),
            (
                r#"{{ GetPrivateInterfaces | sort "-size" | attr "name" }}"#,
                "eth1",
            ),
            (
                r#"{{ GetPrivateInterfaces | include "rfc" "1918" | offset 1 | attr "name" }}"#,
                "docker0",
            ),
            (
                r#"{{ GetAllInterfaces | unique "name" | join "name" "/" }}"#,
                "lo/docker0/eth0/eth1/eth2",
            ),
            (
                r#"{{ GetDefaultInterfaces | include "type" "ipv4" | attr "address" }}"#,
                "10.0.0.7",
            ),
            (
                r#"{{ GetAllInterfaces | include "size" "/29" | attr "address" }}"#,
                "8.8.4.4",
            ),
            (
                r#"{{ GetAllInterfaces | include "name" "nope" | attr "address" }}"#,
                "",
            ),
        ] {
            check(template, Ok(expected));
        }
    }

    #[test]
    fn mistakes_name_the_part() {
        for (template, expected) in [
            ("{{ GetPrivateIP", "\"{{\" is not closed with \"}}\""),
            ("{{ }}", "the template is empty"),
            (
                "{{ GetIt }}",
                "GetIt is not a function that lists interfaces; GetPrivateIP is one",
            ),
            (
                "{{ GetAllInterfaces }}",
                "the template ends in a list of interfaces; add: | attr \"address\"",
            ),
            (
                "{{ GetPrivateIP | limit 1 }}",
                "limit wants a list of interfaces, but gets text",
            ),
            (
                r#"{{ GetAllInterfaces | include "name" "(" }}"#,
                "\"(\" is not a regular expression",
            ),
            (
                r#"{{ GetAllInterfaces | include "color" "red" }}"#,
                "\"color\" is not a selector; name, type, network, rfc, flags, size and address are",
            ),
            (
                r#"{{ GetAllInterfaces | sort "color" }}"#,
                "\"color\" is not a sort key; default, size, address, name, type and private are",
            ),
            (
                r#"{{ GetAllInterfaces | limit "many" }}"#,
                "limit wants a number",
            ),
        ] {
            check(template, Err(expected));
        }
    }
}
