//! `ingress-gateway` and `terminating-gateway`: traffic into and out of the mesh.
//!
//! Owns: the fields and rules of both kinds.
//! Never: opens a listener.
//! Source: Consul docs, "Ingress gateway", "Terminating gateway"; CONSUL.md E.

use std::collections::{BTreeMap, BTreeSet};

use super::EntryError;
use super::form::form;
use super::mesh::check_tls;
use super::routing::Headers;
use super::service::{L7, PassiveHealthCheck};

form! {
    /// A certificate from a secret discovery service.
    Sds {
        cluster_name: String = "ClusterName",
        cert_resource: String = "CertResource",
    }
}

form! {
    /// `ingress-gateway`.
    IngressGateway {
        tls: IngressTls = "TLS" always,
        defaults: Option<IngressDefaults> = "Defaults",
        listeners: Vec<IngressListener> = "Listeners" always,
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// TLS of all listeners.
    IngressTls {
        enabled: bool = "Enabled" always,
        sds: Option<Sds> = "SDS",
        min_version: String = "TLSMinVersion",
        max_version: String = "TLSMaxVersion",
        cipher_suites: Vec<String> = "CipherSuites",
    }
}

form! {
    /// Bounds of all services.
    IngressDefaults {
        max_connections: u32 = "MaxConnections",
        max_pending_requests: u32 = "MaxPendingRequests",
        max_concurrent_requests: u32 = "MaxConcurrentRequests",
        passive_health_check: Option<PassiveHealthCheck> = "PassiveHealthCheck",
    }
}

form! {
    /// A port of the gateway.
    IngressListener {
        port: u32 = "Port" always,
        protocol: String = "Protocol" always,
        tls: Option<IngressTls> = "TLS",
        services: Vec<IngressService> = "Services" always,
    }
}

form! {
    /// A service behind a port.
    IngressService {
        name: String = "Name" always,
        hosts: Vec<String> = "Hosts" always,
        tls: Option<IngressServiceTls> = "TLS",
        request_headers: Option<Headers> = "RequestHeaders",
        response_headers: Option<Headers> = "ResponseHeaders",
        max_connections: u32 = "MaxConnections",
        max_pending_requests: u32 = "MaxPendingRequests",
        max_concurrent_requests: u32 = "MaxConcurrentRequests",
        passive_health_check: Option<PassiveHealthCheck> = "PassiveHealthCheck",
    }
}

form! {
    /// TLS of one service.
    IngressServiceTls { sds: Option<Sds> = "SDS" }
}

impl IngressGateway {
    pub(crate) fn normalise(&mut self) {
        for listener in &mut self.listeners {
            listener.protocol.make_ascii_lowercase();
            if listener.protocol.is_empty() {
                "tcp".clone_into(&mut listener.protocol);
            }
        }
    }

    pub(crate) fn validate(&self) -> Result<(), EntryError> {
        check_ingress_tls("TLS", &self.tls)?;
        if let Some(check) = self
            .defaults
            .as_ref()
            .and_then(|defaults| defaults.passive_health_check.as_ref())
        {
            check.validate("Defaults.PassiveHealthCheck")?;
        }
        let mut ports = BTreeSet::new();
        for listener in &self.listeners {
            if !ports.insert(listener.port) {
                return Err(EntryError::invalid(format!(
                    "port {} declared on two listeners",
                    listener.port
                )));
            }
            listener.validate()?;
        }
        Ok(())
    }
}

fn check_ingress_tls(place: &str, tls: &IngressTls) -> Result<(), EntryError> {
    check_tls(
        place,
        &tls.min_version,
        &tls.max_version,
        &tls.cipher_suites,
    )
}

impl IngressListener {
    fn validate(&self) -> Result<(), EntryError> {
        let port = self.port;
        let refuse = |why: String| {
            Err(EntryError::invalid(format!(
                "{why} (listener on port {port})"
            )))
        };
        if !(1..=65_535).contains(&port) {
            return Err(EntryError::invalid(format!(
                "a listener's Port is between 1 and 65535, not {port}"
            )));
        }
        let http = L7.contains(&self.protocol.as_str());
        if !http && self.protocol != "tcp" {
            return Err(EntryError::invalid(format!(
                "protocol must be 'tcp', 'http', 'http2', or 'grpc'. '{}' is an unsupported protocol",
                self.protocol
            )));
        }
        if let Some(tls) = &self.tls {
            check_ingress_tls(&format!("Listeners[port {port}].TLS"), tls)?;
        }
        let Some(first) = self.services.first() else {
            return Err(EntryError::invalid(format!(
                "No service declared for listener with port {port}"
            )));
        };
        if self.services.len() > 1 && self.protocol == "tcp" {
            return refuse(
                "Multiple services per listener are only supported for protocol = 'http'".into(),
            );
        }
        if first.name == "*" && self.protocol == "tcp" {
            return refuse("Wildcard service name is only valid for protocol = 'http'".into());
        }
        let (mut names, mut hosts) = (BTreeSet::new(), BTreeSet::new());
        for service in &self.services {
            if service.name.is_empty() {
                return refuse("Service name cannot be blank".into());
            }
            if !http && !service.hosts.is_empty() {
                return refuse(
                    "Associating hosts to a service is not supported for the tcp protocol".into(),
                );
            }
            if service.name == "*" && !service.hosts.is_empty() {
                return refuse("Associating hosts to a wildcard service is not supported".into());
            }
            if !names.insert(service.name.to_ascii_lowercase()) {
                return refuse(format!(
                    "Service {} cannot be added multiple times",
                    service.name
                ));
            }
            for host in &service.hosts {
                if host.is_empty() || (host != "*" && host.trim_start_matches("*.").contains('*')) {
                    return refuse(format!(
                        "Host {host:?} is not valid: a wildcard stands alone or first, as *.example.com"
                    ));
                }
                if !hosts.insert(host.to_ascii_lowercase()) {
                    return refuse(format!(
                        "Hosts must be unique within a specific listener: {host:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

form! {
    /// `terminating-gateway`.
    TerminatingGateway {
        services: Vec<LinkedService> = "Services" always,
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// A service outside the mesh.
    LinkedService {
        name: String = "Name",
        ca_file: String = "CAFile",
        cert_file: String = "CertFile",
        key_file: String = "KeyFile",
        sni: String = "SNI",
        disable_auto_host_rewrite: bool = "DisableAutoHostRewrite",
        sds: Option<Sds> = "SDS",
    }
}

impl TerminatingGateway {
    pub(crate) fn validate(&self) -> Result<(), EntryError> {
        let mut seen = BTreeSet::new();
        for service in &self.services {
            if service.name.is_empty() {
                return Err(EntryError::invalid("Service name cannot be blank."));
            }
            if !seen.insert(service.name.to_ascii_lowercase()) {
                return Err(EntryError::invalid(format!(
                    "Service {:?} was specified more than once within a namespace",
                    service.name
                )));
            }
            let own = [&service.cert_file, &service.key_file];
            let some = own.iter().any(|file| !file.is_empty());
            let all = own.iter().all(|file| !file.is_empty()) && !service.ca_file.is_empty();
            if some && !all {
                return Err(EntryError::invalid(format!(
                    "Service {:?} must have a CertFile, CAFile, and KeyFile specified for TLS origination",
                    service.name
                )));
            }
        }
        Ok(())
    }
}
