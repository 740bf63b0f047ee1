//! From rows to records.
//!
//! Owns: which records a type asks for, TTLs, order, extras, SOA and NS.
//! Never: knows sockets or sizes; `message` trims.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use weft_proto::ids::UnixMillis;
use weft_proto::v1::Node;

use super::lookup::{Found, Selected, Serving};
use super::metrics::Cause;
use super::options::DnsOptions;
use super::pick::{Order, Place, Said};

/// Answers worth making: no message has room for more (65,535 bytes, a record of an address takes 16).
pub(crate) const ANSWERS_MAX: usize = 4_096;

/// The sections of an answer, before trimming.
#[derive(Debug, Default)]
pub(crate) struct Sections {
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
    pub(crate) exists: bool,
    /// It depends on where the client is.
    pub(crate) for_client: bool,
    /// There are more answers than were made.
    pub(crate) more: bool,
    /// Names that answers point to and whose addresses are to be added, each once.
    pub(crate) aliases: Vec<Name>,
    /// The TTL of what aliases lead to is at most this.
    pub(crate) alias_ttl: Option<Duration>,
    /// Set when the answer section lacks what was asked for.
    pub(crate) empty: Option<Cause>,
}

/// One question being answered.
pub(crate) struct Asked<'a> {
    pub(crate) options: &'a DnsOptions,
    /// The question's name in lower case: the owner of the answers.
    pub(crate) owner: &'a Name,
    pub(crate) qtype: RecordType,
    /// Which of our domains the name is below.
    pub(crate) domain: &'a str,
    /// Answers of a service worth making: one more than are sent, so that it shows that there are more.
    pub(crate) most: usize,
    pub(crate) wall: UnixMillis,
}

impl Asked<'_> {
    /// Builds the sections for what was found.
    pub(crate) fn sections(&self, found: Found<'_>, rng: &mut impl rand::Rng) -> Sections {
        let foreign = matches!(found, Found::Foreign);
        let mut out = Sections {
            exists: true,
            ..Sections::default()
        };
        match found {
            Found::NoName(cause) => {
                out.exists = false;
                out.empty = Some(cause);
            }
            Found::Foreign => out.empty = Some(Cause::Foreign),
            Found::Apex(servers) => self.apex(&servers, &mut out),
            Found::Node(node) => self.node(node, &mut out),
            Found::Instances(serving) => {
                self.service(Order::any(serving, rng), None, &mut out);
            }
            Found::Mesh(serving, service) => {
                let ttl = self.options.service_ttl.of(&service);
                self.service(Order::any(serving, rng), Some(ttl), &mut out);
            }
            Found::Query(Selected {
                serving,
                ttl,
                ordered,
                for_client,
            }) => {
                out.for_client = for_client;
                let dice = (!ordered).then_some(rng);
                self.service(Order::new(serving, dice), ttl, &mut out);
            }
            Found::Address(ip) => out.answers.extend(
                self.wants(ip)
                    .then(|| self.record(self.owner.clone(), self.options.node_ttl, address(ip))),
            ),
            Found::Names(names) => self.pointers(&names, &mut out),
        }
        if out.answers.is_empty() && !foreign {
            out.empty.get_or_insert(Cause::NoSuchType);
            out.authorities.extend(self.soa());
        }
        out
    }

    fn apex(&self, servers: &[&std::sync::Arc<Node>], out: &mut Sections) {
        let any = self.qtype == RecordType::ANY;
        if any || self.qtype == RecordType::SOA {
            out.answers.extend(self.soa());
        }
        let name_servers = self.name_servers(servers);
        match self.qtype {
            RecordType::NS => out.answers.extend(name_servers),
            RecordType::SOA | RecordType::ANY => out.authorities.extend(name_servers),
            _ => return,
        }
        for node in servers {
            if let (Some(target), Ok(ip)) = (self.node_name(&node.name), node.address.parse()) {
                out.additionals
                    .push(self.record(target, self.options.node_ttl, address(ip)));
            }
        }
    }

    fn name_servers(&self, servers: &[&std::sync::Arc<Node>]) -> Vec<Record> {
        let Some(zone) = self.zone() else {
            return Vec::new();
        };
        let targets = servers.iter().filter_map(|node| self.node_name(&node.name));
        targets
            .map(|target| self.record(zone.clone(), self.options.node_ttl, RData::NS(NS(target))))
            .collect()
    }

    fn node(&self, node: &Node, out: &mut Sections) {
        let ttl = self.options.node_ttl;
        out.answers
            .extend(self.address_record(Place::of(&node.address), ttl));
        self.follow(out);
        let meta = self.meta(self.owner, node, ttl);
        match self.qtype {
            RecordType::TXT | RecordType::ANY => out.answers.extend(meta),
            RecordType::A | RecordType::AAAA if self.options.node_meta_txt => {
                out.additionals.extend(meta)
            }
            _ => {}
        }
    }

    fn service<'s>(
        &self,
        order: impl Iterator<Item = Serving<'s>>,
        ttl: Option<Duration>,
        out: &mut Sections,
    ) {
        let mut order = order.peekable();
        let by_name = |one: &Serving<'_>| self.options.service_ttl.of(&one.service.name);
        let ttl = ttl
            .or_else(|| order.peek().map(by_name))
            .unwrap_or_default();
        if self.qtype == RecordType::SRV {
            self.targets(order, ttl, out);
        } else {
            self.addresses(order, ttl, out);
        }
        out.alias_ttl = Some(ttl);
    }

    /// SRV records, each target's extras once.
    fn targets<'s>(
        &self,
        order: impl Iterator<Item = Serving<'s>>,
        ttl: Duration,
        out: &mut Sections,
    ) {
        let (mut said, mut extras) = (Said::default(), Said::default());
        for one in order {
            if out.answers.len() >= self.most {
                out.more = true;
                break;
            }
            let text = host_of(&one);
            if said.insert((text, one.port, one.weight)) {
                self.srv(&one, ttl, extras.insert(text), out);
            }
        }
    }

    /// Records of any other type.
    fn addresses<'s>(
        &self,
        order: impl Iterator<Item = Serving<'s>>,
        ttl: Duration,
        out: &mut Sections,
    ) {
        let limit = match self.options.a_record_limit {
            0 => usize::MAX,
            limit => limit,
        };
        let mut said = Said::default();
        let mut alias = None;
        for one in order {
            if out.answers.len() >= limit.min(self.most) {
                out.more = self.most < limit;
                break;
            }
            // Two instances behind one address are one answer.
            let place = self.place_of(&one);
            if said.insert(place.text) {
                // A name is either an alias or has records (RFC 1034 §3.6.2): one alias, and only
                // where no instance has an address.
                match self.address_record(place, ttl) {
                    Some(record) if place.ip.is_some() => out.answers.push(record),
                    record => alias = alias.or(record),
                }
            }
            if self.qtype == RecordType::TXT {
                out.answers.extend(self.meta(self.owner, one.node, ttl));
            }
        }
        if let Some(alias) = alias.filter(|_| out.answers.is_empty()) {
            out.answers.push(alias);
            self.follow(out);
        }
        out.answers.truncate(limit);
    }

    /// Notes whose addresses an alias among the answers leads to, where addresses are asked for.
    fn follow(&self, out: &mut Sections) {
        if !self.wants_addresses() {
            return;
        }
        let aliases = out.answers.iter().filter_map(|answer| match &answer.data {
            RData::CNAME(alias) => Some(alias.0.clone()),
            _ => None,
        });
        out.aliases = aliases.collect();
    }

    fn wants_addresses(&self) -> bool {
        matches!(
            self.qtype,
            RecordType::A | RecordType::AAAA | RecordType::ANY
        )
    }

    /// The address registered, or the tagged one of the family asked for where that is another.
    fn place_of<'s>(&self, one: &Serving<'s>) -> Place<'s> {
        let (node, service) = (one.node, one.service);
        let on_node = service.address.is_empty();
        let own = Place::of(if on_node {
            &node.address
        } else {
            &service.address
        });
        let tag = match self.qtype {
            RecordType::A => "lan_ipv4",
            RecordType::AAAA => "lan_ipv6",
            _ => return own,
        };
        if own.ip.is_none_or(|ip| self.wants(ip)) {
            return own;
        }
        let tagged = if on_node {
            node.tagged_addresses.get(tag)
        } else {
            let tagged = service.tagged_addresses.get(tag);
            tagged.map(|tagged| &tagged.address)
        };
        tagged.map_or(own, |text| Place::of(text))
    }

    /// `extras`: the target's address and metadata are not there yet.
    fn srv(&self, one: &Serving<'_>, ttl: Duration, extras: bool, out: &mut Sections) {
        let own = !one.service.address.is_empty();
        let Place { text, ip } = self.place_of(one);
        // A target must not be an alias (RFC 2782): a host name is the target itself.
        let target = match (ip, own) {
            (Some(ip), true) => self.address_name(ip),
            (Some(_), false) => self.node_name(&one.node.name),
            (None, _) => wire_name(text).map(fqdn),
        };
        // A name that cannot be put on the wire is left out rather than breaking the answer.
        let Some(target) = target else { return };
        let record = self.record(
            self.owner.clone(),
            ttl,
            RData::SRV(SRV::new(1, one.weight, one.port, target.clone())),
        );
        out.answers.push(record);
        if !extras {
            return;
        }
        let about = match ip {
            Some(ip) => {
                out.additionals
                    .push(self.record(target.clone(), ttl, address(ip)));
                Some(target)
            }
            None => {
                out.aliases.push(target);
                // What we know of the node is nothing we could say of a foreign name.
                self.node_name(&one.node.name)
            }
        };
        if let Some(about) = about.filter(|_| self.options.node_meta_txt) {
            out.additionals.extend(self.meta(&about, one.node, ttl));
        }
    }

    fn pointers(&self, names: &[String], out: &mut Sections) {
        if matches!(self.qtype, RecordType::PTR | RecordType::ANY) {
            out.more = names.len() > ANSWERS_MAX;
            let targets = names
                .iter()
                .take(ANSWERS_MAX)
                .filter_map(|name| wire_name(name));
            out.answers.extend(targets.map(|name| {
                self.record(self.owner.clone(), Duration::ZERO, RData::PTR(PTR(name)))
            }));
        }
    }

    /// A, AAAA or CNAME for an address as it was registered, as far as the question wants it.
    fn address_record(&self, place: Place<'_>, ttl: Duration) -> Option<Record> {
        let data = match place.ip {
            Some(ip) => self.wants(ip).then(|| address(ip)),
            None if self.wants_addresses() || self.qtype == RecordType::CNAME => {
                wire_name(place.text).map(|target| RData::CNAME(CNAME(fqdn(target))))
            }
            None => None,
        };
        data.map(|data| self.record(self.owner.clone(), ttl, data))
    }

    fn wants(&self, ip: IpAddr) -> bool {
        match self.qtype {
            RecordType::ANY => true,
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            _ => false,
        }
    }

    fn meta(&self, owner: &Name, node: &Node, ttl: Duration) -> Vec<Record> {
        let text = |(key, value): (&String, &String)| {
            if key.to_ascii_lowercase().starts_with("rfc1035-") {
                value.clone()
            } else {
                format!("{key}={value}")
            }
        };
        node.meta
            .iter()
            .map(|pair| self.record(owner.clone(), ttl, RData::TXT(strings(&text(pair)))))
            .collect()
    }

    /// The zone's SOA.
    pub(crate) fn soa(&self) -> Option<Record> {
        let zone = self.zone()?;
        let soa = self.options.soa;
        let in_zone = |label: &str| zone.prepend_label(label).ok();
        let serial = u32::try_from(self.wall.get() / 1000).unwrap_or(u32::MAX);
        let data = SOA::new(
            in_zone("ns")?,
            in_zone("hostmaster")?,
            serial,
            soa.refresh,
            soa.retry,
            soa.expire,
            soa.min_ttl,
        );
        Some(self.record(
            zone,
            Duration::from_secs(soa.min_ttl.into()),
            RData::SOA(data),
        ))
    }

    fn zone(&self) -> Option<Name> {
        wire_name(self.domain).map(fqdn)
    }

    fn node_name(&self, node: &str) -> Option<Name> {
        self.below(&[node, "node", &self.options.datacenter])
    }

    fn address_name(&self, ip: IpAddr) -> Option<Name> {
        let hex = match ip {
            IpAddr::V4(v4) => format!("{:08x}", u32::from(v4)),
            IpAddr::V6(v6) => format!("{:032x}", u128::from(v6)),
        };
        self.below(&[&hex, "addr", &self.options.datacenter])
    }

    fn below(&self, labels: &[&str]) -> Option<Name> {
        wire_name(&format!("{}.{}.", labels.join("."), self.domain))
    }

    fn record(&self, owner: Name, ttl: Duration, data: RData) -> Record {
        Record::from_rdata(
            owner,
            u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX),
            data,
        )
    }
}

/// A text as character-strings, each of at most 255 bytes (RFC 1035 §3.3), and at least one. They are
/// bytes: a letter of two may be divided between them, and whoever joins them has it back.
fn strings(text: &str) -> TXT {
    let mut pieces: Vec<&[u8]> = text.as_bytes().chunks(255).collect();
    if pieces.is_empty() {
        pieces.push(b"");
    }
    TXT::from_bytes(pieces)
}

/// What an SRV target is made of: the instance's own address, else its node.
fn host_of<'s>(one: &Serving<'s>) -> &'s str {
    if one.service.address.is_empty() {
        &one.node.name
    } else {
        &one.service.address
    }
}

/// A name for the wire; `None` when it cannot be one. Plain text skips the rules for other scripts.
fn wire_name(text: &str) -> Option<Name> {
    if text.is_ascii() {
        Name::from_ascii(text).ok()
    } else {
        Name::from_utf8(text).ok()
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

fn fqdn(mut name: Name) -> Name {
    name.set_fqdn(true);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_answers_are_made_than_a_message_holds() {
        let options = DnsOptions::for_tests();
        let owner = Name::from_ascii("web.service.consul.").unwrap();
        let asked = |qtype, most| Asked {
            options: &options,
            owner: &owner,
            qtype,
            domain: "consul",
            most,
            wall: UnixMillis(0),
        };
        let node = std::sync::Arc::new(Node::default());
        let service = |n: usize| {
            std::sync::Arc::new(weft_proto::v1::Service {
                name: "web".to_owned(),
                address: std::net::Ipv4Addr::from(u32::try_from(n).unwrap()).to_string(),
                ..Default::default()
            })
        };
        for (count, most, more) in [
            (ANSWERS_MAX, ANSWERS_MAX, false),
            (ANSWERS_MAX + 1, ANSWERS_MAX, true),
            (20_000, ANSWERS_MAX, true),
            (10, 4, true),
            (4, 4, false),
        ] {
            let services: Vec<_> = (0..count).map(service).collect();
            let serving = |service| Serving {
                node: &node,
                service,
                weight: 1,
                port: 80,
            };
            let names: Vec<String> = (0..count).map(|n| format!("n{n}.node.consul.")).collect();
            let mut rng = <rand::rngs::SmallRng as rand::SeedableRng>::seed_from_u64(7);
            for (found, qtype) in [
                (
                    Found::Instances(services.iter().map(serving).collect()),
                    RecordType::A,
                ),
                (
                    Found::Instances(services.iter().map(serving).collect()),
                    RecordType::SRV,
                ),
                (Found::Names(names), RecordType::PTR),
            ] {
                // Reverse names are few: only the size of a message bounds them.
                let most = if qtype == RecordType::PTR {
                    count.min(ANSWERS_MAX)
                } else {
                    most
                };
                let more = more && count > most;
                let out = asked(qtype, most).sections(found, &mut rng);
                assert_eq!((out.answers.len(), out.more), (most, more), "{qtype}");
                assert!(out.additionals.len() <= most);
            }
        }
    }

    #[test]
    fn any_text_becomes_character_strings_that_hold_it() {
        for text in ["", "a", &"ä".repeat(300), &format!("k={}", "ö".repeat(255))] {
            let txt = strings(text);
            let pieces = &txt.txt_data;
            assert!(!pieces.is_empty() && pieces.iter().all(|piece| piece.len() <= 255));
            assert_eq!(pieces.concat(), text.as_bytes());
            let record = Record::from_rdata(Name::root(), 0, RData::TXT(txt));
            let mut message = hickory_proto::op::Message::query();
            message.answers.push(record);
            message.to_vec().unwrap();
        }
    }
}
