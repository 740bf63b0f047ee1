//! What the configuration says of the DNS port.
//!
//! Owns: the settings and which TTL a service's name has.
//! Never: reads a file; `agent::config` does.

use std::collections::BTreeMap;
use std::time::Duration;

use super::recurse::RecursorOptions;

/// Settings of the DNS port (`dns_config`, `domain`, `alt_domain`).
#[derive(Clone, Debug)]
pub struct DnsOptions {
    /// Domain without dots around it, lower case: `consul`.
    pub domain: String,
    /// Second domain: `weft` unless set otherwise.
    pub alt_domain: Option<String>,
    /// The local datacenter.
    pub datacenter: String,
    /// This agent's node: `_agent` in prepared queries.
    pub node: String,
    /// TTL of node answers.
    pub node_ttl: Duration,
    /// TTL of service answers.
    pub service_ttl: TtlRules,
    /// Leave out instances with a warning.
    pub only_passing: bool,
    /// Most answers over UDP without EDNS.
    pub udp_answer_limit: usize,
    /// Most A, AAAA and ANY answers over either transport; 0: no limit.
    pub a_record_limit: usize,
    /// Set TC on a trimmed UDP answer.
    pub enable_truncate: bool,
    /// Write every name in full.
    pub disable_compression: bool,
    /// Add node metadata as TXT records to the additional section.
    pub node_meta_txt: bool,
    /// Where names of other domains are asked.
    pub recursors: RecursorOptions,
    /// SOA settings.
    pub soa: Soa,
    /// Largest age of the view that is still answered from (`max_stale`).
    pub max_stale: Duration,
}

#[cfg(test)]
impl DnsOptions {
    /// What is not told otherwise by a configuration, except for TTLs that can be told apart.
    pub(crate) fn for_tests() -> Self {
        Self {
            domain: "consul".to_owned(),
            alt_domain: Some("weft".to_owned()),
            datacenter: "dc1".to_owned(),
            node: "node-0".to_owned(),
            node_ttl: Duration::from_secs(7),
            service_ttl: TtlRules::new([("*".to_owned(), Duration::from_secs(5))].into()),
            only_passing: false,
            udp_answer_limit: 3,
            a_record_limit: 0,
            enable_truncate: false,
            disable_compression: false,
            node_meta_txt: true,
            recursors: RecursorOptions::default(),
            soa: Soa::default(),
            max_stale: Duration::MAX,
        }
    }
}

/// Times in the SOA record, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Soa {
    /// Refresh.
    pub refresh: i32,
    /// Retry.
    pub retry: i32,
    /// Expire.
    pub expire: i32,
    /// Negative TTL.
    pub min_ttl: u32,
}

impl Default for Soa {
    fn default() -> Self {
        Self {
            refresh: 3600,
            retry: 600,
            expire: 86_400,
            min_ttl: 0,
        }
    }
}

/// `service_ttl`: exact name, else longest `prefix*`, else `*`, else 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TtlRules(BTreeMap<String, Duration>);

impl TtlRules {
    /// From the configuration's map.
    #[must_use]
    pub fn new(rules: BTreeMap<String, Duration>) -> Self {
        Self(
            rules
                .into_iter()
                .map(|(name, ttl)| (name.to_ascii_lowercase(), ttl))
                .collect(),
        )
    }

    pub(crate) fn of(&self, service: &str) -> Duration {
        let service = service.to_ascii_lowercase();
        if let Some(ttl) = self.0.get(&service) {
            return *ttl;
        }
        let prefixes = self
            .0
            .iter()
            .filter_map(|(rule, ttl)| rule.strip_suffix('*').map(|prefix| (prefix, ttl)));
        prefixes
            .filter(|(prefix, _)| service.starts_with(prefix))
            .max_by_key(|(prefix, _)| prefix.len())
            .map_or(Duration::ZERO, |(_, ttl)| *ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_ttl_rule_wins() {
        let s = Duration::from_secs;
        let rules = TtlRules::new(
            [("*", 1), ("db-*", 10), ("db-main-*", 20), ("Web", 5)]
                .map(|(k, v)| (k.to_owned(), s(v)))
                .into(),
        );
        for (service, ttl) in [
            ("web", 5),
            ("WEB", 5),
            ("db-x", 10),
            ("db-main-1", 20),
            ("other", 1),
        ] {
            assert_eq!(rules.of(service), s(ttl), "{service}");
        }
        assert_eq!(TtlRules::default().of("web"), s(0));
    }
}
