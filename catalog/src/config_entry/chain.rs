//! What entries must agree on among each other: one protocol along a chain of services, subsets
//! that exist, no circles.
//!
//! Owns: which services a change can affect, and the walk along each of their chains.
//! Never: changes anything, or knows where an instance is; a datacenter is a name here.
//! Source: CONSUL.md E.2, E.3.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;

use weft_proto::v1;

use super::resolver::Resolver;
use super::service::L7;
use super::{Body, Entry, Kind};
use crate::keys::{self, Name, PairRef, TripleRef};
use crate::refusal::internal;
use crate::state::State;

/// Redirects, or splitters under each other, that lead from one service to the last. Every write walks
/// the chains it can affect on every replica, so their length is bounded.
const LINKS_MAX: usize = 32;
/// Routes, splits and redirects followed for one change, over all chains it can affect. Applying waits for
/// them on every replica: this many are some tenths of a second.
const STEPS_MAX: u32 = 500_000;
/// Services a refusal for a circle names.
const CIRCLE_SHOWN_MAX: usize = 16;

/// The entries as they would be after one change.
pub(crate) struct View<'a> {
    pub(crate) state: &'a State,
    pub(crate) kind: Kind,
    /// Folded.
    pub(crate) name: &'a Name,
    /// `None`: deleted.
    pub(crate) entry: Option<&'a Arc<Entry>>,
    /// Followed so far, at most [`STEPS_MAX`].
    pub(crate) steps: Cell<u32>,
}

/// Whom an entry speaks of, folded: if one of them changes, the entry may be wrong.
pub(crate) fn references(entry: &Entry) -> BTreeSet<Name> {
    let own = keys::name(&entry.name);
    let mut out: BTreeSet<Name> = BTreeSet::new();
    let mut add = |service: &str| {
        if !service.is_empty() && service != "*" {
            out.insert(keys::name(service));
        }
    };
    match &entry.body {
        Body::Router(router) => {
            let destinations = router
                .routes
                .iter()
                .filter_map(|route| route.destination.as_ref());
            destinations.for_each(|destination| add(&destination.service));
        }
        Body::Splitter(splitter) => splitter.splits.iter().for_each(|split| add(&split.service)),
        Body::Resolver(resolver) => {
            resolver
                .redirect
                .iter()
                .for_each(|redirect| add(&redirect.service));
            for failover in resolver.failover.values() {
                add(&failover.service);
                failover
                    .targets
                    .iter()
                    .for_each(|target| add(&target.service));
            }
        }
        Body::IngressGateway(gateway) => {
            let services = gateway
                .listeners
                .iter()
                .flat_map(|listener| &listener.services);
            services.for_each(|service| add(&service.name));
            return out;
        }
        _ => {}
    }
    out.remove(&own);
    out
}

impl<'a> View<'a> {
    fn get(&self, kind: Kind, name: &str) -> Option<&'a Arc<Entry>> {
        let name = keys::fold(name);
        if kind == self.kind && **self.name == *name {
            return self.entry;
        }
        self.state.config.get(&PairRef(kind.as_str(), &name))
    }

    /// Every entry of a kind.
    fn all(&self, kind: Kind) -> impl Iterator<Item = &'a Arc<Entry>> + '_ {
        let stored = self.state.config.range(PairRef(kind.as_str(), "")..);
        let stored = stored
            .take_while(move |(key, _)| *key.0 == *kind.as_str())
            .filter(move |(key, _)| kind != self.kind || key.1 != *self.name)
            .map(|(_, entry)| entry);
        stored.chain(self.entry.filter(|_| kind == self.kind))
    }

    /// The protocol of a service: its own, else that of all proxies, else tcp.
    fn protocol(&self, service: &str) -> String {
        if let Some(Body::ServiceDefaults(defaults)) = self.body(Kind::ServiceDefaults, service)
            && !defaults.protocol.is_empty()
        {
            return defaults.protocol.to_ascii_lowercase();
        }
        match self.body(Kind::ProxyDefaults, "global") {
            Some(Body::ProxyDefaults(defaults)) if !defaults.protocol().is_empty() => {
                defaults.protocol()
            }
            _ => "tcp".to_owned(),
        }
    }

    fn body(&self, kind: Kind, name: &str) -> Option<&'a Body> {
        self.get(kind, name).map(|entry| &entry.body)
    }

    fn resolver(&self, service: &str) -> Option<&'a Resolver> {
        match self.body(Kind::ServiceResolver, service)? {
            Body::Resolver(resolver) => Some(resolver),
            _ => None,
        }
    }

    /// Refuses the change if it breaks something it can affect.
    pub(crate) fn check(&self) -> Result<(), v1::Refusal> {
        match self.kind {
            Kind::ServiceDefaults
            | Kind::ServiceRouter
            | Kind::ServiceSplitter
            | Kind::ServiceResolver => {
                self.check_permissive()?;
                self.check_services(&self.affected())
            }
            Kind::ProxyDefaults => {
                self.check_permissive()?;
                self.check_everything()
            }
            Kind::IngressGateway => self.entry.map_or(Ok(()), |entry| self.check_ingress(entry)),
            Kind::ServiceIntentions => self.entry.map_or(Ok(()), |entry| {
                self.check_intentions(entry)?;
                self.check_issuers(entry)
            }),
            Kind::JwtProvider if self.entry.is_none() => self
                .all(Kind::ServiceIntentions)
                .try_for_each(|entry| self.check_issuers(entry)),
            _ => Ok(()),
        }
    }

    /// One more of what a change may cost.
    fn step(&self) -> Checked {
        self.steps.set(self.steps.get() + 1);
        if self.steps.get() <= STEPS_MAX {
            return Ok(());
        }
        Err(internal(
            "config.chain.too_wide",
            format!(
                "{} {:?} affects chains of more than {STEPS_MAX} routes, splits and redirects together: lead fewer services through it",
                self.kind.as_str(),
                &**self.name
            ),
        ))
    }

    /// The services whose chains lead to the changed one, itself included.
    fn affected(&self) -> BTreeSet<Name> {
        let mut found = BTreeSet::from([self.name.clone()]);
        let mut open = vec![self.name.clone()];
        while let Some(service) = open.pop() {
            for (kind, owner) in self.referrers(&service) {
                let leads = *kind != *Kind::IngressGateway.as_str();
                if leads && found.insert(owner.clone()) {
                    open.push(owner);
                }
            }
        }
        found
    }

    /// Kind and folded name of the entries that speak of a service.
    fn referrers(&self, service: &Name) -> Vec<(Name, Name)> {
        let keys = self
            .state
            .config_references
            .range(TripleRef(service, "", "")..);
        keys.take_while(|key| key.0 == *service)
            .map(|key| (key.1.clone(), key.2.clone()))
            .collect()
    }

    fn check_services(&self, services: &BTreeSet<Name>) -> Result<(), v1::Refusal> {
        let mut gateways = BTreeSet::new();
        for service in services {
            self.step()?;
            Walk::new(self, service).run()?;
            if let Some(intentions) = self.get(Kind::ServiceIntentions, service) {
                self.check_intentions(intentions)?;
            }
            let ingress = self.referrers(service).into_iter();
            gateways.extend(ingress.filter(|(kind, _)| **kind == *Kind::IngressGateway.as_str()));
        }
        for (_, gateway) in gateways {
            if let Some(entry) = self.get(Kind::IngressGateway, &gateway) {
                self.check_ingress(entry)?;
            }
        }
        Ok(())
    }

    fn check_everything(&self) -> Result<(), v1::Refusal> {
        let chains = [
            Kind::ServiceRouter,
            Kind::ServiceSplitter,
            Kind::ServiceResolver,
        ];
        let services: BTreeSet<Name> = chains
            .into_iter()
            .flat_map(|kind| self.all(kind))
            .map(|entry| keys::name(&entry.name))
            .collect();
        self.check_services(&services)?;
        self.all(Kind::IngressGateway)
            .try_for_each(|entry| self.check_ingress(entry))?;
        self.all(Kind::ServiceIntentions)
            .try_for_each(|entry| self.check_intentions(entry))
    }

    fn check_ingress(&self, entry: &Entry) -> Result<(), v1::Refusal> {
        let Body::IngressGateway(gateway) = &entry.body else {
            return Ok(());
        };
        for listener in &gateway.listeners {
            for service in listener
                .services
                .iter()
                .filter(|service| service.name != "*")
            {
                self.step()?;
                let protocol = self.protocol(&service.name);
                if protocol != listener.protocol {
                    return Err(internal(
                        "config.ingress.protocol",
                        format!(
                            "service {:?} has protocol {protocol:?}, which does not match defined listener protocol {:?}",
                            service.name, listener.protocol
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_intentions(&self, entry: &Entry) -> Result<(), v1::Refusal> {
        let Body::Intentions(intentions) = &entry.body else {
            return Ok(());
        };
        let protocol = self.protocol(&entry.name);
        if !intentions.needs_http() || L7.contains(&protocol.as_str()) {
            return Ok(());
        }
        Err(internal(
            "config.intentions.protocol",
            format!(
                "service-intentions {:?} has Permissions, which need protocol http, http2 or grpc; the service has {protocol:?}: set Protocol in its service-defaults, or use Action",
                entry.name
            ),
        ))
    }

    fn check_issuers(&self, entry: &Entry) -> Result<(), v1::Refusal> {
        let Body::Intentions(intentions) = &entry.body else {
            return Ok(());
        };
        let missing = intentions
            .providers()
            .find(|name| self.get(Kind::JwtProvider, name).is_none());
        match missing {
            None => Ok(()),
            Some(name) => Err(internal(
                "config.jwt_provider.missing",
                format!(
                    "service-intentions {:?} names the JWT provider {name:?}, which has no jwt-provider entry",
                    entry.name
                ),
            )),
        }
    }

    /// Permissive TLS is refused unless the mesh allows it.
    fn check_permissive(&self) -> Result<(), v1::Refusal> {
        let mode = match self.entry.map(|entry| &entry.body) {
            Some(Body::ServiceDefaults(defaults)) => &defaults.mutual_tls_mode,
            Some(Body::ProxyDefaults(defaults)) => &defaults.mutual_tls_mode,
            _ => return Ok(()),
        };
        let allowed = match self.body(Kind::Mesh, "mesh") {
            Some(Body::Mesh(mesh)) => mesh.allow_permissive_mutual_tls,
            _ => false,
        };
        if mode != "permissive" || allowed {
            return Ok(());
        }
        Err(internal(
            "config.mutual_tls.permissive",
            "cannot set MutualTLSMode=permissive because AllowEnablingPermissiveMutualTLS=false in the mesh config entry",
        ))
    }
}

/// One service's chain, followed to its ends.
struct Walk<'a> {
    view: &'a View<'a>,
    start: &'a Name,
    protocol: String,
    /// Splitters above the one looked at.
    splitters: Vec<Name>,
    split: BTreeSet<Name>,
    /// Services whose stand-ins were looked at.
    failed_over: BTreeSet<(Name, String)>,
    /// Services and subsets that were followed, and whether with what stands in for them.
    followed: BTreeSet<(Name, String, bool)>,
}

type Checked = Result<(), v1::Refusal>;

impl<'a> Walk<'a> {
    fn new(view: &'a View<'a>, start: &'a Name) -> Self {
        Self {
            view,
            start,
            protocol: view.protocol(start),
            splitters: Vec::new(),
            split: BTreeSet::new(),
            failed_over: BTreeSet::new(),
            followed: BTreeSet::new(),
        }
    }

    fn run(mut self) -> Checked {
        let router = match self.view.body(Kind::ServiceRouter, self.start) {
            Some(Body::Router(router)) => Some(router),
            _ => None,
        };
        let advanced =
            router.is_some() || self.view.get(Kind::ServiceSplitter, self.start).is_some();
        if advanced && !L7.contains(&self.protocol.as_str()) {
            return Err(internal(
                "config.chain.protocol",
                format!(
                    "discovery chain {:?} uses a protocol {:?} that does not permit advanced routing or splitting behavior",
                    &**self.start, self.protocol
                ),
            ));
        }
        for route in router.into_iter().flat_map(|router| &router.routes) {
            let (service, subset) = match &route.destination {
                Some(destination) => (
                    destination.service.as_str(),
                    destination.service_subset.as_str(),
                ),
                None => ("", ""),
            };
            self.view.step()?;
            self.target(&named(service, self.start), subset)?;
        }
        self.target(&self.start.clone(), "")
    }

    /// A service as a route or a split names it.
    fn target(&mut self, service: &Name, subset: &str) -> Checked {
        let splitter = match self.view.body(Kind::ServiceSplitter, service) {
            Some(Body::Splitter(splitter)) if subset.is_empty() => splitter,
            _ => return self.resolve(service, subset, true),
        };
        self.agree(service)?;
        if self.splitters.contains(service) {
            self.splitters.push(service.clone());
            return Err(circle(
                "config.chain.circular",
                "detected circular reference among splitters",
                &self.splitters,
            ));
        }
        if !self.split.insert(service.clone()) {
            return Ok(());
        }
        if self.splitters.len() >= LINKS_MAX {
            return Err(too_long(self.start, "splitters"));
        }
        self.splitters.push(service.clone());
        for split in &splitter.splits {
            self.view.step()?;
            let leg = named(&split.service, service);
            if leg == *service {
                self.resolve(&leg, &split.service_subset, true)?;
            } else {
                self.target(&leg, &split.service_subset)?;
            }
        }
        self.splitters.pop();
        Ok(())
    }

    /// Follows redirects to the service that is meant, and looks at what stands in for it.
    fn resolve(&mut self, service: &Name, subset: &str, with_failover: bool) -> Checked {
        let asked = (service.clone(), subset.to_owned(), with_failover);
        if !self.followed.insert(asked) {
            return Ok(());
        }
        let mut seen: Vec<(Name, String, String)> = Vec::new();
        let mut at = (service.clone(), subset.to_owned(), String::new());
        let resolver = loop {
            self.view.step()?;
            self.agree(&at.0)?;
            let resolver = self.view.resolver(&at.0);
            let Some(redirect) = resolver.and_then(|resolver| resolver.redirect.as_ref()) else {
                break resolver;
            };
            // What another cluster has is not ours to judge.
            if !redirect.peer.is_empty() {
                return Ok(());
            }
            let datacenter = if redirect.datacenter.is_empty() {
                &at.2
            } else {
                &redirect.datacenter
            };
            let next = (
                named(&redirect.service, &at.0),
                redirect.service_subset.clone(),
                datacenter.clone(),
            );
            if next == at {
                break resolver;
            }
            seen.push(std::mem::replace(&mut at, next));
            if seen.contains(&at) {
                let names: Vec<Name> = seen
                    .into_iter()
                    .chain([at])
                    .map(|(service, _, _)| service)
                    .collect();
                return Err(circle(
                    "config.chain.circular",
                    "detected circular resolver redirect",
                    &names,
                ));
            }
            if seen.len() > LINKS_MAX {
                return Err(too_long(self.start, "redirects"));
            }
        };
        let (service, mut subset, _) = at;
        if let Some(resolver) = resolver.filter(|_| subset.is_empty()) {
            subset.clone_from(&resolver.default_subset);
        }
        let known = resolver.is_some_and(|resolver| resolver.subsets.contains_key(&subset));
        if !subset.is_empty() && !known {
            return Err(internal(
                "config.chain.subset",
                format!(
                    "service {:?} does not have a subset named {subset:?}",
                    &*service
                ),
            ));
        }
        match resolver {
            Some(resolver) if with_failover => self.fail_over(&service, &subset, resolver),
            _ => Ok(()),
        }
    }

    fn fail_over(&mut self, service: &Name, subset: &str, resolver: &Resolver) -> Checked {
        if !self
            .failed_over
            .insert((service.clone(), subset.to_owned()))
        {
            return Ok(());
        }
        let failover = resolver
            .failover
            .get(subset)
            .or_else(|| resolver.failover.get("*"));
        let Some(failover) = failover else {
            return Ok(());
        };
        if failover.targets.is_empty() {
            let wanted = if failover.service.is_empty() && failover.service_subset.is_empty() {
                subset
            } else {
                &failover.service_subset
            };
            return self.resolve(&named(&failover.service, service), wanted, false);
        }
        for target in failover
            .targets
            .iter()
            .filter(|target| target.peer.is_empty())
        {
            self.resolve(
                &named(&target.service, service),
                &target.service_subset,
                false,
            )?;
        }
        Ok(())
    }

    /// Every service of a chain speaks the protocol of its first.
    fn agree(&self, service: &Name) -> Checked {
        let protocol = self.view.protocol(service);
        if protocol == self.protocol {
            return Ok(());
        }
        Err(internal(
            "config.chain.inconsistent",
            format!(
                "discovery chain {:?} uses inconsistent protocols; service {:?} has {protocol:?} which is not {:?}",
                &**self.start, &**service, self.protocol
            ),
        ))
    }
}

fn named(service: &str, own: &Name) -> Name {
    if service.is_empty() {
        own.clone()
    } else {
        keys::name(service)
    }
}

fn circle(reason: &'static str, what: &str, names: &[Name]) -> v1::Refusal {
    let from = names.len().saturating_sub(CIRCLE_SHOWN_MAX);
    internal(reason, format!("{what}: [{}]", names[from..].join(" -> ")))
}

fn too_long(start: &str, what: &str) -> v1::Refusal {
    internal(
        "config.chain.too_long",
        format!(
            "discovery chain {start:?} has more than {LINKS_MAX} {what} after each other: lead there directly"
        ),
    )
}
