//! Who this node is, whom it joins, and the keys it is given.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::values::Values;
use crate::config::problem::Code;
use crate::config::raw::{RawGossip, RawJoinTokens, RawTls, RawTlsOptions};
use crate::config::runtime::{
    EnrolmentConfig, GossipConfig, GossipKey, JoinConfig, NodeConfig, TlsConfig, TlsOptions,
    TlsVersion,
};
use crate::config::sockaddr;

/// Pairs of node metadata, and the longest key and value (Consul's own figures).
const META_PAIRS_MAX: usize = 64;
const META_KEY_MAX: usize = 128;
const META_VALUE_MAX: usize = 512;

impl Values<'_> {
    pub(super) fn datacenter(&mut self, key: &str, given: Option<&str>) -> Option<String> {
        let name = given.filter(|name| !name.is_empty())?.to_lowercase();
        if !name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'))
        {
            let message = format!("{key} {name:?} may only have letters, digits, \"-\" and \"_\"");
            self.problem(Code::BadValue, key, message, None);
        }
        Some(name)
    }

    pub(super) fn domains(
        &mut self,
        domain: Option<&str>,
        alt: Option<&str>,
    ) -> (String, Option<String>) {
        let bare = |name: &str| name.trim_matches('.').to_lowercase();
        let domain = domain
            .map(bare)
            .filter(|d| !d.is_empty())
            .unwrap_or_else(|| "consul".into());
        let alt = Some(alt.map_or_else(|| "weft".into(), bare))
            .filter(|alt| !alt.is_empty() && *alt != domain);
        for (key, name) in [("domain", Some(&domain)), ("alt_domain", alt.as_ref())] {
            if let Some(name) = name.filter(|name| !name.split('.').all(is_dns_label)) {
                self.problem(
                    Code::BadValue,
                    key,
                    format!("{key} {name:?} is not a DNS name"),
                    None,
                );
            }
        }
        (domain, alt)
    }

    pub(super) fn node(
        &mut self,
        name: Option<String>,
        id: Option<String>,
        meta: BTreeMap<String, String>,
    ) -> NodeConfig {
        let name = name.map(|n| n.trim().to_owned()).filter(|n| !n.is_empty());
        let name = name.unwrap_or_else(|| self.machine.host_name.clone());
        if name.is_empty() {
            self.problem(
                Code::BadValue,
                "node_name",
                "the host has no name",
                Some("set node_name"),
            );
        } else if name.chars().any(|c| c.is_control() || c == '/') {
            self.problem(
                Code::BadValue,
                "node_name",
                format!("node_name {name:?} has a character no name may have"),
                None,
            );
        } else if !is_dns_label(&name) {
            let message =
                format!("node_name {name:?} is not a DNS label; DNS will not find this node");
            self.problem(Code::Advice, "node_name", message, None);
        }
        let id = id.filter(|id| !id.is_empty()).map(|id| id.to_lowercase());
        if id
            .as_ref()
            .is_some_and(|id| uuid::Uuid::try_parse(id).is_err() || id.len() != 36)
        {
            self.problem(
                Code::BadValue,
                "node_id",
                "node_id is not a UUID",
                Some("write 8-4-4-4-12 hexadecimal digits"),
            );
        }
        self.node_meta(&meta);
        NodeConfig { name, id, meta }
    }

    fn node_meta(&mut self, meta: &BTreeMap<String, String>) {
        if meta.len() > META_PAIRS_MAX {
            let message = format!(
                "node_meta has {} pairs; at most {META_PAIRS_MAX} are allowed",
                meta.len()
            );
            self.problem(Code::BadValue, "node_meta", message, None);
        }
        for (key, value) in meta {
            let place = format!("node_meta.{key}");
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            if key.is_empty() || key.len() > META_KEY_MAX || !key.chars().all(allowed) {
                let message = format!(
                    "node_meta key {key:?} wants 1 to {META_KEY_MAX} of: letters, digits, \"-\", \"_\""
                );
                self.problem(Code::BadValue, &place, message, None);
            } else if key.starts_with("consul-") {
                let message = format!("node_meta key {key:?}: the prefix \"consul-\" is reserved");
                self.problem(Code::BadValue, &place, message, None);
            }
            if value.len() > META_VALUE_MAX {
                let message = format!(
                    "node_meta {key:?} has {} bytes; at most {META_VALUE_MAX} are allowed",
                    value.len()
                );
                self.problem(Code::BadValue, &place, message, None);
            }
        }
    }

    pub(super) fn join(
        &mut self,
        (start_join, retry_join): (Vec<String>, Vec<String>),
        interval: Option<&str>,
        max: Option<i64>,
        rejoin_after_leave: Option<bool>,
    ) -> JoinConfig {
        let max = self.small("retry_max", max, 0, 0..=i64::from(u32::MAX));
        JoinConfig {
            start_join: self.join_addresses("start_join", start_join),
            retry_join: self.join_addresses("retry_join", retry_join),
            retry_interval: self.duration_from("retry_interval", interval, "30s", "1s"),
            retry_max: (max > 0).then_some(max),
            rejoin_after_leave: rejoin_after_leave.unwrap_or(false),
        }
    }

    pub(super) fn enrolment(
        &mut self,
        (token, token_file): (Option<String>, Option<String>),
        raw: RawJoinTokens,
    ) -> EnrolmentConfig {
        let (certificate, key) = (Self::path(raw.cert_file), Self::path(raw.key_file));
        if certificate.is_some() != key.is_some() {
            self.problem(
                Code::Conflict,
                "join_tokens",
                "join_tokens needs both cert_file and key_file".to_owned(),
                Some("`weft init` writes the two, and the setting"),
            );
        }
        let token = token.filter(|token| !token.is_empty());
        let token_file = Self::path(token_file);
        if token.is_some() && token_file.is_some() {
            self.problem(
                Code::Conflict,
                "join_token_file",
                "join_token and join_token_file are both set".to_owned(),
                Some("keep one"),
            );
        }
        EnrolmentConfig {
            token,
            token_file,
            signer: certificate.zip(key),
            certificate_ttl: self.duration_from(
                "join_tokens.certificate_ttl",
                raw.certificate_ttl.as_deref(),
                "720h",
                "10s",
            ),
        }
    }

    fn join_addresses(&mut self, key: &str, given: Vec<String>) -> Vec<String> {
        let mut out = Vec::new();
        for address in given {
            let cloud = address
                .split_whitespace()
                .any(|word| word.starts_with("provider="));
            if cloud || address.starts_with("exec=") {
                let message = format!(
                    "{key} {address:?}: looking servers up at a provider is not in this version"
                );
                self.problem(
                    Code::NotYet,
                    key,
                    message,
                    Some("name hosts, addresses or a DNS name"),
                );
                continue;
            }
            match sockaddr::expand(&address, &self.machine.interfaces) {
                Ok(text) => out.extend(text.split_whitespace().map(str::to_owned)),
                Err(error) => self.problem(Code::BadValue, key, format!("{key}: {error}"), None),
            }
        }
        out
    }

    pub(super) fn gossip(
        &mut self,
        raw: RawGossip,
        encrypt: Option<&str>,
        verify: [Option<bool>; 2],
        reconnect: Option<&str>,
        [coordinates, keyring_file]: [bool; 2],
    ) -> GossipConfig {
        let config = GossipConfig {
            key: encrypt
                .filter(|key| !key.is_empty())
                .and_then(|key| self.gossip_key(key)),
            keyring_file,
            verify_incoming: verify[0].unwrap_or(true),
            verify_outgoing: verify[1].unwrap_or(true),
            gossip_nodes: self.small("gossip_lan.gossip_nodes", raw.gossip_nodes, 3, 1..=64),
            gossip_interval: self.duration_from(
                "gossip_lan.gossip_interval",
                raw.gossip_interval.as_deref(),
                "150ms",
                "10ms",
            ),
            probe_interval: self.duration_from(
                "gossip_lan.probe_interval",
                raw.probe_interval.as_deref(),
                "700ms",
                "50ms",
            ),
            probe_timeout: self.duration_from(
                "gossip_lan.probe_timeout",
                raw.probe_timeout.as_deref(),
                "300ms",
                "10ms",
            ),
            suspicion_mult: self.small("gossip_lan.suspicion_mult", raw.suspicion_mult, 4, 1..=64),
            retransmit_mult: self.small(
                "gossip_lan.retransmit_mult",
                raw.retransmit_mult,
                4,
                1..=64,
            ),
            reconnect_timeout: self.duration_from("reconnect_timeout", reconnect, "72h", "8h"),
            coordinates,
        };
        if config.probe_timeout > config.probe_interval {
            let message = "gossip_lan.probe_timeout is above probe_interval; no probe could be answered in time";
            self.problem(Code::Conflict, "gossip_lan.probe_timeout", message, None);
        }
        config
    }

    fn gossip_key(&mut self, text: &str) -> Option<GossipKey> {
        let key = STANDARD
            .decode(text)
            .ok()
            .filter(|key| matches!(key.len(), 16 | 24 | 32));
        if key.is_none() {
            let message = "encrypt is not a gossip key: it wants 16, 24 or 32 bytes in base64";
            self.problem(
                Code::BadValue,
                "encrypt",
                message,
                Some("make one with: weft keygen"),
            );
        }
        key.map(GossipKey::new)
    }

    pub(super) fn tls(&mut self, raw: RawTls) -> TlsConfig {
        let defaults = raw.defaults.unwrap_or_default();
        let mut part = |name: &str, own: Option<RawTlsOptions>| {
            self.tls_part(name, own.unwrap_or_default(), &defaults)
        };
        TlsConfig {
            internal_rpc: part("internal_rpc", raw.internal_rpc),
            https: part("https", raw.https),
            grpc: part("grpc", raw.grpc),
        }
    }

    fn tls_part(&mut self, name: &str, own: RawTlsOptions, defaults: &RawTlsOptions) -> TlsOptions {
        let pick = |own: Option<String>, default: &Option<String>| {
            Self::path(own.or_else(|| default.clone()))
        };
        let options = TlsOptions {
            ca_file: pick(own.ca_file, &defaults.ca_file),
            ca_path: pick(own.ca_path, &defaults.ca_path),
            cert_file: pick(own.cert_file, &defaults.cert_file),
            key_file: pick(own.key_file, &defaults.key_file),
            min_version: self.tls_version(
                name,
                own.tls_min_version.as_deref(),
                defaults.tls_min_version.as_deref(),
            ),
            cipher_suites: own
                .tls_cipher_suites
                .as_ref()
                .or(defaults.tls_cipher_suites.as_ref())
                .map(|list| {
                    list.split(',')
                        .map(|s| s.trim().to_owned())
                        .filter(|s| !s.is_empty())
                        .collect()
                })
                .unwrap_or_default(),
            verify_incoming: own
                .verify_incoming
                .or(defaults.verify_incoming)
                .unwrap_or(false),
            verify_outgoing: own
                .verify_outgoing
                .or(defaults.verify_outgoing)
                .unwrap_or(false),
            verify_server_hostname: own
                .verify_server_hostname
                .or(defaults.verify_server_hostname)
                .unwrap_or(false),
        };
        self.tls_rules(name, &options);
        options
    }

    fn tls_version(&mut self, name: &str, own: Option<&str>, default: Option<&str>) -> TlsVersion {
        let key = format!(
            "tls.{}.tls_min_version",
            if own.is_some() { name } else { "defaults" }
        );
        let words = [
            ("TLSv1_2", TlsVersion::V12),
            ("tls12", TlsVersion::V12),
            ("TLSv1_3", TlsVersion::V13),
            ("tls13", TlsVersion::V13),
        ];
        self.choice(&key, own.or(default), &words, TlsVersion::V12)
    }

    fn tls_rules(&mut self, name: &str, options: &TlsOptions) {
        let key = |leaf: &str| match self.merged.span(&format!("tls.{name}.{leaf}")) {
            Some(_) => format!("tls.{name}.{leaf}"),
            None => format!("tls.defaults.{leaf}"),
        };
        // Defaults reach three parts; a finding about them is told once.
        let mut found = Vec::new();
        if options.cert_file.is_some() != options.key_file.is_some() {
            found.push((
                key("cert_file"),
                format!("tls.{name} has only one of cert_file and key_file"),
                "set both",
            ));
        }
        if options.verify_incoming && !options.has_roots() {
            let message = format!(
                "tls.{name}.verify_incoming is set, but there is no ca_file or ca_path to verify with"
            );
            found.push((key("verify_incoming"), message, "add ca_file"));
        }
        if options.verify_incoming && !options.has_certificate() {
            let message = format!(
                "tls.{name}.verify_incoming is set, but there is no cert_file and key_file"
            );
            found.push((key("verify_incoming"), message, "add both"));
        }
        if options.verify_outgoing && !options.has_roots() && name == "internal_rpc" {
            let message = format!(
                "tls.{name}.verify_outgoing is set, but there is no ca_file or ca_path to verify with"
            );
            found.push((key("verify_outgoing"), message, "add ca_file"));
        }
        for (key, message, hint) in found {
            self.problem(Code::Conflict, &key, message, Some(hint));
        }
    }
}

/// RFC 1123 host label, with the underscore Consul users put into names.
fn is_dns_label(label: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    !label.is_empty() && label.len() <= 63 && label.chars().all(inner)
}
