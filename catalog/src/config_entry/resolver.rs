//! `service-resolver`: which instances stand for a service, and what to do when there are none.
//!
//! Owns: the fields and rules of the kind.
//! Never: looks at another entry; `chain` does.
//! Source: Consul docs, "Service resolver"; CONSUL.md E, E.2.

use std::collections::BTreeMap;

use super::form::form;
use super::quantity::Span;
use super::service::{FailoverPolicy, PrioritizeByLocality};
use super::{EntryError, not_negative, one_of};
use crate::filter;
use crate::read::InstanceHealth;

/// Letters of a subset's name: it becomes a DNS label.
const SUBSET_NAME_MAX: usize = 63;
const POLICIES: [&str; 6] = [
    "",
    "random",
    "round_robin",
    "least_request",
    "ring_hash",
    "maglev",
];

form! {
    /// `service-resolver`.
    Resolver {
        default_subset: String = "DefaultSubset",
        subsets: BTreeMap<String, Subset> = "Subsets",
        redirect: Option<Redirect> = "Redirect",
        failover: BTreeMap<String, Failover> = "Failover",
        prioritize_by_locality: Option<PrioritizeByLocality> = "PrioritizeByLocality",
        connect_timeout: Span = "ConnectTimeout",
        request_timeout: Span = "RequestTimeout",
        load_balancer: Option<LoadBalancer> = "LoadBalancer",
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// Some of the instances.
    Subset {
        filter: String = "Filter",
        only_passing: bool = "OnlyPassing",
    }
}

form! {
    /// Another service that stands for this one.
    Redirect {
        service: String = "Service",
        service_subset: String = "ServiceSubset",
        datacenter: String = "Datacenter",
        peer: String = "Peer",
    }
}

form! {
    /// Where requests go when no instance is healthy.
    Failover {
        service: String = "Service",
        service_subset: String = "ServiceSubset",
        datacenters: Vec<String> = "Datacenters",
        targets: Vec<Redirect> = "Targets",
        policy: Option<FailoverPolicy> = "Policy",
    }
}

form! {
    /// How an instance is chosen.
    LoadBalancer {
        policy: String = "Policy",
        ring_hash: Option<RingHash> = "RingHashConfig",
        least_request: Option<LeastRequest> = "LeastRequestConfig",
        hash_policies: Vec<HashPolicy> = "HashPolicies",
    }
}

form! {
    /// Settings of `ring_hash`.
    RingHash {
        minimum_ring_size: u32 = "MinimumRingSize",
        maximum_ring_size: u32 = "MaximumRingSize",
    }
}

form! {
    /// Settings of `least_request`.
    LeastRequest { choice_count: u32 = "ChoiceCount" }
}

form! {
    /// What of a request is hashed.
    HashPolicy {
        field: String = "Field",
        field_value: String = "FieldValue",
        cookie: Option<Cookie> = "CookieConfig",
        source_ip: bool = "SourceIP",
        terminal: bool = "Terminal",
    }
}

form! {
    /// A cookie made for hashing.
    Cookie {
        session: bool = "Session",
        ttl: Span = "TTL",
        path: String = "Path",
    }
}

impl Resolver {
    pub(crate) fn validate(&self, name: &str) -> Result<(), EntryError> {
        for (subset, definition) in &self.subsets {
            check_subset(subset, definition)?;
        }
        let known = |subset: &str| self.subsets.contains_key(subset);
        if !self.default_subset.is_empty() && !known(&self.default_subset) {
            return Err(EntryError::invalid(format!(
                "DefaultSubset {:?} is not a valid subset",
                self.default_subset
            )));
        }
        if let Some(redirect) = &self.redirect {
            self.check_redirect(redirect)?;
        }
        for (subset, failover) in &self.failover {
            self.check_failover(name, subset, failover)?;
        }
        for (field, span) in [
            ("ConnectTimeout", self.connect_timeout),
            ("RequestTimeout", self.request_timeout),
        ] {
            not_negative(field, span)?;
        }
        self.load_balancer
            .as_ref()
            .map_or(Ok(()), LoadBalancer::validate)
    }

    fn check_redirect(&self, redirect: &Redirect) -> Result<(), EntryError> {
        if *redirect == Redirect::default() {
            return Err(EntryError::invalid("Redirect is empty"));
        }
        if !self.failover.is_empty() {
            return Err(EntryError::invalid(
                "Redirect and Failover cannot both be set",
            ));
        }
        if !self.subsets.is_empty() {
            return Err(EntryError::invalid(
                "Redirect and Subsets cannot both be set: subsets belong to the service that is redirected to",
            ));
        }
        if redirect.service.is_empty() && !redirect.service_subset.is_empty() {
            return Err(EntryError::invalid(
                "Redirect.ServiceSubset defined without Redirect.Service",
            ));
        }
        peer_alone("Redirect", redirect)
    }

    fn check_failover(
        &self,
        name: &str,
        subset: &str,
        failover: &Failover,
    ) -> Result<(), EntryError> {
        let place = format!("Bad Failover[{subset:?}]");
        if subset != "*" && !self.subsets.contains_key(subset) {
            return Err(EntryError::invalid(format!("{place}: not a valid subset")));
        }
        let one_place = !failover.service.is_empty()
            || !failover.service_subset.is_empty()
            || !failover.datacenters.is_empty();
        if !one_place && failover.targets.is_empty() {
            return Err(EntryError::invalid(format!(
                "{place} one of Service, ServiceSubset, Namespace, Targets, or Datacenters is required"
            )));
        }
        if one_place && !failover.targets.is_empty() {
            return Err(EntryError::invalid(format!(
                "{place}: Targets cannot be set with Service, ServiceSubset or Datacenters"
            )));
        }
        let own = |service: &str| service.is_empty() || service.eq_ignore_ascii_case(name);
        let known = |service: &str, wanted: &str| {
            wanted.is_empty() || !own(service) || self.subsets.contains_key(wanted)
        };
        if !known(&failover.service, &failover.service_subset) {
            return Err(EntryError::invalid(format!(
                "{place}.ServiceSubset {:?} is not a valid subset of {:?}",
                failover.service_subset, failover.service
            )));
        }
        if failover.datacenters.iter().any(String::is_empty) {
            return Err(EntryError::invalid(format!(
                "{place}.Datacenters: found empty datacenter"
            )));
        }
        for (at, target) in failover.targets.iter().enumerate() {
            let place = format!("{place}.Targets[{at}]");
            if *target == Redirect::default() {
                return Err(EntryError::invalid(format!(
                    "{place}: one of Service, ServiceSubset, Datacenter, or Peer is required"
                )));
            }
            peer_alone(&place, target)?;
            if target.peer.is_empty() && !known(&target.service, &target.service_subset) {
                return Err(EntryError::invalid(format!(
                    "{place}.ServiceSubset {:?} is not a valid subset of {:?}",
                    target.service_subset, target.service
                )));
            }
        }
        match &failover.policy {
            Some(policy) => one_of(
                &format!("{place}.Policy.Mode"),
                &policy.mode,
                &["", "sequential"],
            ),
            None => Ok(()),
        }
    }
}

fn check_subset(name: &str, subset: &Subset) -> Result<(), EntryError> {
    if name.is_empty() {
        return Err(EntryError::invalid("Subset defined with empty name"));
    }
    let edge = |byte: Option<u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let bytes = name.bytes();
    let inside = bytes.clone().all(|byte| edge(Some(byte)) || byte == b'-');
    if name.len() > SUBSET_NAME_MAX || !inside || !edge(bytes.clone().next()) || !edge(bytes.last())
    {
        return Err(EntryError::invalid(format!(
            "Subset {name:?} is invalid: must be {SUBSET_NAME_MAX} characters or fewer, begin or end with lower case alphanumeric characters, and contain lower case alphanumeric characters or '-' in between"
        )));
    }
    if subset.filter.is_empty() {
        return Ok(());
    }
    let refuse = |error: filter::FilterError| {
        EntryError::invalid(format!(
            "Filter for subset {name:?} is not a valid expression: {error}"
        ))
    };
    let parsed = filter::parse(&subset.filter).map_err(refuse)?;
    parsed.check::<InstanceHealth<'_>>().map_err(refuse)
}

/// Subsets and datacenters of another cluster are not ours to name.
fn peer_alone(place: &str, target: &Redirect) -> Result<(), EntryError> {
    if target.peer.is_empty() {
        return Ok(());
    }
    for (name, value) in [
        ("ServiceSubset", &target.service_subset),
        ("Datacenter", &target.datacenter),
    ] {
        if !value.is_empty() {
            return Err(EntryError::invalid(format!(
                "{place}.Peer cannot be set with {place}.{name}"
            )));
        }
    }
    Ok(())
}

impl LoadBalancer {
    fn validate(&self) -> Result<(), EntryError> {
        one_of("LoadBalancer.Policy", &self.policy, &POLICIES)?;
        let hashes = matches!(self.policy.as_str(), "ring_hash" | "maglev");
        let misfit = |what: &str, wanted: &str| {
            Err(EntryError::invalid(format!(
                "Bad LoadBalancer configuration. {what} only makes sense for policy {wanted}, not {:?}",
                self.policy
            )))
        };
        if self.ring_hash.is_some() && self.policy != "ring_hash" {
            return misfit("RingHashConfig", "\"ring_hash\"");
        }
        if self.least_request.is_some() && self.policy != "least_request" {
            return misfit("LeastRequestConfig", "\"least_request\"");
        }
        if !self.hash_policies.is_empty() && !hashes {
            return misfit("HashPolicies", "\"ring_hash\" or \"maglev\"");
        }
        self.hash_policies
            .iter()
            .enumerate()
            .try_for_each(|(at, policy)| {
                policy.validate(&format!("Bad LoadBalancer HashPolicy[{at}]"))
            })
    }
}

impl HashPolicy {
    fn validate(&self, place: &str) -> Result<(), EntryError> {
        one_of(
            &format!("{place}: Field"),
            &self.field,
            &["", "header", "cookie", "query_parameter"],
        )?;
        let refuse = |why: &str| Err(EntryError::invalid(format!("{place}: {why}")));
        if self.source_ip && (!self.field.is_empty() || !self.field_value.is_empty()) {
            return refuse("Field and FieldValue cannot be set with SourceIP");
        }
        if !self.source_ip && self.field.is_empty() {
            return refuse("one of Field or SourceIP is required");
        }
        if !self.field.is_empty() && self.field_value.is_empty() {
            return refuse("FieldValue is required: it names the header, cookie or parameter");
        }
        let Some(cookie) = &self.cookie else {
            return Ok(());
        };
        if self.field != "cookie" {
            return refuse("CookieConfig needs Field to be \"cookie\"");
        }
        if cookie.session && cookie.ttl.nanos != 0 {
            return refuse("a session cookie cannot have a TTL");
        }
        not_negative(&format!("{place}: CookieConfig.TTL"), cookie.ttl)
    }
}
