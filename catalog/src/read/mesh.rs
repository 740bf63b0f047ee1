//! Queries of what stands for a service in the mesh.
//!
//! Owns: which gateways are linked to a service, and the index of an answer about them.
//! Never: scans instances that offer nothing.
//! Source: CONSUL.md A.2, A.3.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config_entry::{Body, Entry, Kind};
use crate::keys::{self, Name, PairRef, TripleRef};
use crate::mesh::{EVERY_SERVICE, GatewayService, OFFERS};
use crate::read::{Answer, InstanceHealth, Reader};
use crate::state::InstanceRow;
use crate::topics::{TableTopic, Topic};

impl<'a> Reader<'a> {
    /// Instances through which the mesh reaches a service: proxies that stand for it and instances
    /// that speak for themselves, by node name and id, then those of terminating gateways linked to it.
    /// Scope: these instances and links.
    #[must_use]
    pub fn connect_instances(&self, service: &str) -> Answer<Vec<InstanceHealth<'a>>> {
        let service = keys::fold(service);
        let mut index = self.note_mesh(OFFERS, &service);
        let offers = self.state.offers.get(service.as_ref());
        let mut rows: Vec<_> = offers
            .into_iter()
            .flat_map(|group| group.values())
            .map(|row| health(row))
            .collect();
        let kind = Kind::TerminatingGateway;
        rows.extend(self.instances_of_gateways(kind, &service, &mut index));
        self.answer(index, rows)
    }

    /// Instances of the ingress gateways that let requests in for a service, by gateway, node name
    /// and id. Scope: these instances and links.
    #[must_use]
    pub fn ingress_instances(&self, service: &str) -> Answer<Vec<InstanceHealth<'a>>> {
        let mut index = self.state.missing_floor();
        let service = keys::fold(service);
        let rows = self.instances_of_gateways(Kind::IngressGateway, &service, &mut index);
        self.answer(index, rows)
    }

    fn instances_of_gateways(
        &self,
        kind: Kind,
        service: &str,
        index: &mut u64,
    ) -> Vec<InstanceHealth<'a>> {
        let mut rows = Vec::new();
        for gateway in self.gateways(kind, service, index) {
            *index = (*index).max(self.note_service(&gateway));
            let group = self.group(&gateway);
            rows.extend(
                group
                    .filter(|row| row.service.kind == kind.as_str())
                    .map(health),
            );
        }
        rows
    }

    /// Folded names of the gateways linked to a service, also by "every service".
    fn gateways(&self, kind: Kind, service: &str, index: &mut u64) -> BTreeSet<Name> {
        let mut found: BTreeSet<Name> = self.linked(kind, service, index).collect();
        let mut to_all = self.linked(kind, EVERY_SERVICE, index).peekable();
        if to_all.peek().is_some() {
            // "Every service" are those that are there.
            *index = (*index).max(self.note_service(service));
            if self.is_linked_by_wildcard(service) {
                found.extend(to_all);
            }
        }
        found
    }

    fn linked(
        &self,
        kind: Kind,
        service: &str,
        index: &mut u64,
    ) -> impl Iterator<Item = Name> + use<'a> {
        *index = (*index).max(self.note_mesh(kind.as_str(), service));
        let service: Name = service.into();
        let links = &self.state.gateway_links;
        links
            .range(TripleRef(kind.as_str(), &service, "")..)
            .take_while(move |key| *key.0 == *kind.as_str() && key.1 == service)
            .map(|key| key.2.clone())
    }

    /// What runs something itself, other than the servers.
    fn is_linked_by_wildcard(&self, service: &str) -> bool {
        service != "consul" && self.group(service).any(|row| row.service.kind.is_empty())
    }

    fn note_mesh(&self, what: &str, service: &str) -> u64 {
        self.trace
            .note(|| Topic::Mesh(Name::from(what), keys::name(service)));
        let scope = self.state.mesh_scopes.get(&PairRef(what, service));
        scope.map_or(self.state.missing_floor(), |index| *index)
    }

    /// The services linked to a gateway, by name and port. Scope: its entries; with "every service",
    /// the services table; for an ingress gateway, what decides the services' protocols.
    #[must_use]
    pub fn gateway_services(&self, gateway: &str) -> Answer<Vec<GatewayService<'a>>> {
        let mut index = 0;
        let mut rows = Vec::new();
        for kind in [Kind::IngressGateway, Kind::TerminatingGateway] {
            let answer = self.config_entry(kind, gateway);
            // An entry that is missing says nothing newer than the kind's last change.
            index = index.max(answer.index.get());
            if let Some(entry) = answer.rows {
                self.links_of(kind, entry, &mut rows);
            }
        }
        if rows
            .iter()
            .any(|row: &GatewayService<'_>| row.service == EVERY_SERVICE)
        {
            index = index.max(self.expand(&mut rows));
        }
        rows.retain(|row| {
            if row.kind != Kind::IngressGateway {
                return true;
            }
            let protocol = self.protocol(&row.service);
            index = index.max(protocol.index.get());
            protocol.rows == row.protocol
        });
        rows.sort_by(|a, b| (&a.service, a.port).cmp(&(&b.service, b.port)));
        self.answer(index, rows)
    }

    fn links_of(&self, kind: Kind, entry: &'a Entry, rows: &mut Vec<GatewayService<'a>>) {
        let link = |service: &'a str| GatewayService {
            gateway: &entry.name,
            service: Cow::Borrowed(service),
            kind,
            port: 0,
            protocol: "",
            hosts: &[],
            tls: [""; 4],
            from_wildcard: false,
            create_index: entry.create_index,
            modify_index: entry.modify_index,
        };
        match &entry.body {
            Body::TerminatingGateway(gateway) => {
                rows.extend(gateway.services.iter().map(|service| GatewayService {
                    tls: [
                        &service.ca_file,
                        &service.cert_file,
                        &service.key_file,
                        &service.sni,
                    ],
                    ..link(&service.name)
                }));
            }
            Body::IngressGateway(gateway) => {
                for listener in &gateway.listeners {
                    rows.extend(listener.services.iter().map(|service| GatewayService {
                        port: listener.port,
                        protocol: &listener.protocol,
                        hosts: &service.hosts,
                        ..link(&service.name)
                    }));
                }
            }
            _ => {}
        }
    }

    /// Puts the services that are there in the place of "every service"; one that is named at the
    /// same port stands as it is. Returns the index of the services table.
    fn expand(&self, rows: &mut Vec<GatewayService<'a>>) -> u64 {
        self.trace.note_table(TableTopic::Services);
        let wildcards: Vec<_> = rows
            .extract_if(.., |row| row.service == EVERY_SERVICE)
            .collect();
        let named: BTreeSet<(String, u32, &str)> = rows
            .iter()
            .map(|row| {
                (
                    row.service.to_ascii_lowercase(),
                    row.port,
                    row.kind.as_str(),
                )
            })
            .collect();
        for (name, group) in &self.state.groups {
            let Some(row) = group.values().find(|row| row.service.kind.is_empty()) else {
                continue;
            };
            for wildcard in &wildcards {
                let at = (name.to_string(), wildcard.port, wildcard.kind.as_str());
                if **name != *"consul" && !named.contains(&at) {
                    rows.push(GatewayService {
                        service: Cow::Borrowed(&row.service.name),
                        from_wildcard: true,
                        ..wildcard.clone()
                    });
                }
            }
        }
        self.state.scalars.tables.services
    }

    /// What a service speaks: its own entry's word, else that of all proxies, else tcp.
    fn protocol(&self, service: &str) -> Answer<String> {
        let own = self.config_entry(Kind::ServiceDefaults, service);
        let all = self.config_entry(Kind::ProxyDefaults, "global");
        let index = own.index.max(all.index).get();
        let protocol = match (body(own.rows), body(all.rows)) {
            (Some(Body::ServiceDefaults(defaults)), _) if !defaults.protocol.is_empty() => {
                defaults.protocol.to_ascii_lowercase()
            }
            (_, Some(Body::ProxyDefaults(defaults))) if !defaults.protocol().is_empty() => {
                defaults.protocol()
            }
            _ => "tcp".to_owned(),
        };
        self.answer(index, protocol)
    }
}

fn body(entry: Option<&Arc<Entry>>) -> Option<&Body> {
    entry.map(|entry| &entry.body)
}

fn health(row: &InstanceRow) -> InstanceHealth<'_> {
    InstanceHealth {
        node: &row.node,
        service: &row.service,
        checks: row.checks.iter().collect(),
    }
}
