//! `mesh`, `jwt-provider` and `exported-services`: what holds for the mesh as a whole.
//!
//! Owns: the fields and rules of the three kinds.
//! Never: fetches a key set.
//! Source: Consul docs, "Mesh", "JWT provider", "Exported services"; CONSUL.md E.

use std::collections::{BTreeMap, BTreeSet};

use super::form::form;
use super::quantity::Span;
use super::{EntryError, not_negative, one_of};

/// Versions of TLS as Consul writes them, oldest first.
pub(crate) const TLS_VERSIONS: [&str; 6] =
    ["", "TLS_AUTO", "TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"];
const ESCAPED_SLASHES: [&str; 6] = [
    "",
    "IMPLEMENTATION_SPECIFIC_DEFAULT",
    "KEEP_UNCHANGED",
    "REJECT_REQUEST",
    "UNESCAPE_AND_REDIRECT",
    "UNESCAPE_AND_FORWARD",
];
const UNDERSCORES: [&str; 4] = ["", "ALLOW", "REJECT_REQUEST", "DROP_HEADER"];
/// Seconds a token may be too early or too late unless set.
const CLOCK_SKEW_SECONDS: u32 = 30;

form! {
    /// `mesh`.
    Mesh {
        transparent_proxy: MeshTransparentProxy = "TransparentProxy" always,
        allow_permissive_mutual_tls: bool = "AllowEnablingPermissiveMutualTLS",
        validate_clusters: bool = "ValidateClusters",
        tls: Option<MeshTls> = "TLS",
        http: Option<MeshHttp> = "HTTP",
        peering: Option<PeeringMesh> = "Peering",
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// Redirected traffic.
    MeshTransparentProxy { mesh_destinations_only: bool = "MeshDestinationsOnly" always }
}

form! {
    /// TLS of proxies, both ways.
    MeshTls {
        incoming: Option<DirectionalTls> = "Incoming",
        outgoing: Option<DirectionalTls> = "Outgoing",
    }
}

form! {
    /// TLS of one direction.
    DirectionalTls {
        min_version: String = "TLSMinVersion",
        max_version: String = "TLSMaxVersion",
        cipher_suites: Vec<String> = "CipherSuites",
    }
}

form! {
    /// What proxies do to requests.
    MeshHttp {
        sanitize_client_cert: bool = "SanitizeXForwardedClientCert" always,
        incoming: Option<MeshHttpIncoming> = "Incoming",
    }
}

form! {
    /// What proxies do to requests that come in.
    MeshHttpIncoming { normalization: Option<RequestNormalization> = "RequestNormalization" }
}

form! {
    /// How a path is made unambiguous before it is judged.
    RequestNormalization {
        insecure_disable_path_normalization: bool = "InsecureDisablePathNormalization",
        merge_slashes: bool = "MergeSlashes",
        escaped_slashes: String = "PathWithEscapedSlashesAction",
        underscores: String = "HeadersWithUnderscoresAction",
    }
}

form! {
    /// How other clusters are reached.
    PeeringMesh { through_gateways: bool = "PeerThroughMeshGateways" }
}

impl Mesh {
    pub(crate) fn validate(&self) -> Result<(), EntryError> {
        if let Some(tls) = &self.tls {
            for (place, direction) in [
                ("TLS.Incoming", &tls.incoming),
                ("TLS.Outgoing", &tls.outgoing),
            ] {
                if let Some(tls) = direction {
                    check_tls(
                        place,
                        &tls.min_version,
                        &tls.max_version,
                        &tls.cipher_suites,
                    )?;
                }
            }
        }
        let incoming = self.http.as_ref().and_then(|http| http.incoming.as_ref());
        let Some(normalization) = incoming.and_then(|incoming| incoming.normalization.as_ref())
        else {
            return Ok(());
        };
        let place = "HTTP.Incoming.RequestNormalization";
        one_of(
            &format!("{place}.PathWithEscapedSlashesAction"),
            &normalization.escaped_slashes,
            &ESCAPED_SLASHES,
        )?;
        one_of(
            &format!("{place}.HeadersWithUnderscoresAction"),
            &normalization.underscores,
            &UNDERSCORES,
        )
    }
}

/// Known versions in the right order, and suites only where they can be chosen.
pub(crate) fn check_tls(
    place: &str,
    min: &str,
    max: &str,
    suites: &[String],
) -> Result<(), EntryError> {
    one_of(&format!("{place}.TLSMinVersion"), min, &TLS_VERSIONS)?;
    one_of(&format!("{place}.TLSMaxVersion"), max, &TLS_VERSIONS)?;
    let rank = |version: &str| {
        TLS_VERSIONS
            .iter()
            .position(|known| *known == version)
            .unwrap_or(0)
    };
    let (low, high) = (rank(min), rank(max));
    // The first two mean "whatever is best" and are in no order.
    if low > 1 && high > 1 && low > high {
        return Err(EntryError::invalid(format!(
            "configuring max version {max} less than the configured min version {min} is invalid ({place})"
        )));
    }
    if !suites.is_empty() && min == "TLSv1_3" {
        return Err(EntryError::invalid(format!(
            "{place}.CipherSuites: configuring CipherSuites is only applicable to connections negotiated with TLS 1.2 or earlier"
        )));
    }
    Ok(())
}

form! {
    /// `jwt-provider`.
    JwtProvider {
        key_set: Option<KeySet> = "JSONWebKeySet",
        issuer: String = "Issuer",
        audiences: Vec<String> = "Audiences",
        locations: Vec<JwtLocation> = "Locations",
        forwarding: Option<JwtForwarding> = "Forwarding",
        clock_skew_seconds: u32 = "ClockSkewSeconds",
        cache: Option<JwtCache> = "CacheConfig",
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// Where the keys that sign tokens come from.
    KeySet {
        local: Option<LocalKeys> = "Local",
        remote: Option<RemoteKeys> = "Remote",
    }
}

form! {
    /// Keys given here.
    LocalKeys {
        jwks: String = "JWKS",
        filename: String = "Filename",
    }
}

form! {
    /// Keys fetched.
    RemoteKeys {
        uri: String = "URI",
        request_timeout_ms: u32 = "RequestTimeoutMs",
        cache_duration: Span = "CacheDuration",
        fetch_asynchronously: bool = "FetchAsynchronously",
        use_sni: bool = "UseSNI",
        retry_policy: Option<RetryPolicy> = "RetryPolicy",
        cluster: Option<KeyCluster> = "JWKSCluster",
    }
}

form! {
    /// How often a fetch is tried.
    RetryPolicy {
        num_retries: u32 = "NumRetries",
        back_off: Option<BackOff> = "RetryPolicyBackOff",
    }
}

form! {
    /// How long between two tries.
    BackOff {
        base: Span = "BaseInterval",
        max: Span = "MaxInterval",
    }
}

form! {
    /// How the host of the keys is reached.
    KeyCluster {
        discovery_type: String = "DiscoveryType",
        tls_certificates: Option<KeyClusterTls> = "TLSCertificates",
        connect_timeout: Span = "ConnectTimeout",
    }
}

form! {
    /// Whom the host of the keys must be certified by.
    KeyClusterTls {
        provider_instance: Option<CertificateProvider> = "CaCertificateProviderInstance",
        trusted_ca: Option<TrustedCa> = "TrustedCA",
    }
}

form! {
    /// A certificate provider by name.
    CertificateProvider {
        instance_name: String = "InstanceName",
        certificate_name: String = "CertificateName",
    }
}

form! {
    /// A certificate from one of four places.
    TrustedCa {
        filename: String = "Filename",
        environment_variable: String = "EnvironmentVariable",
        inline_string: String = "InlineString",
        inline_bytes: String = "InlineBytes",
    }
}

form! {
    /// Where in a request the token is.
    JwtLocation {
        header: Option<JwtHeader> = "Header",
        query_param: Option<JwtName> = "QueryParam",
        cookie: Option<JwtName> = "Cookie",
    }
}

form! {
    /// In a header.
    JwtHeader {
        name: String = "Name",
        value_prefix: String = "ValuePrefix",
        forward: bool = "Forward",
    }
}

form! {
    /// Under a name.
    JwtName { name: String = "Name" }
}

form! {
    /// How the token's content is handed on.
    JwtForwarding {
        header_name: String = "HeaderName",
        pad: bool = "PadForwardPayloadHeader",
    }
}

form! {
    /// How many verified tokens are remembered.
    JwtCache { size: u32 = "Size" }
}

impl JwtProvider {
    pub(crate) fn normalise(&mut self) {
        if self.clock_skew_seconds == 0 {
            self.clock_skew_seconds = CLOCK_SKEW_SECONDS;
        }
    }

    pub(crate) fn validate(&self) -> Result<(), EntryError> {
        let refuse = |why: &str| Err(EntryError::invalid(why));
        let Some(keys) = &self.key_set else {
            return refuse("JSONWebKeySet is required");
        };
        match (&keys.local, &keys.remote) {
            (None, None) | (Some(_), Some(_)) => {
                return refuse("must specify exactly one of Local or Remote JSON Web key set");
            }
            (Some(local), None) => {
                if local.jwks.is_empty() == local.filename.is_empty() {
                    return refuse(
                        "must specify exactly one of String or filename for local keyset: JWKS or Filename",
                    );
                }
            }
            (None, Some(remote)) => check_remote(remote)?,
        }
        for (at, location) in self.locations.iter().enumerate() {
            let names = [
                location.header.as_ref().map(|header| &header.name),
                location.query_param.as_ref().map(|param| &param.name),
                location.cookie.as_ref().map(|cookie| &cookie.name),
            ];
            let set: Vec<&String> = names.into_iter().flatten().collect();
            if set.len() != 1 || set[0].is_empty() {
                return Err(EntryError::invalid(format!(
                    "Locations[{at}]: must set exactly one of: JWT location header, query param or cookie, with its Name"
                )));
            }
        }
        match &self.forwarding {
            Some(forwarding) if forwarding.header_name.is_empty() => {
                refuse("Header name required for forwarding config: Forwarding.HeaderName")
            }
            _ => Ok(()),
        }
    }
}

fn check_remote(remote: &RemoteKeys) -> Result<(), EntryError> {
    let known = remote.uri.starts_with("http://") || remote.uri.starts_with("https://");
    if !known {
        return Err(EntryError::invalid(format!(
            "JSONWebKeySet.Remote.URI is required and begins with http:// or https://, not {:?}",
            remote.uri
        )));
    }
    not_negative("JSONWebKeySet.Remote.CacheDuration", remote.cache_duration)?;
    let policy = remote.retry_policy.as_ref();
    if let Some(back_off) = policy.and_then(|policy| policy.back_off.as_ref())
        && back_off.max.nanos > 0
        && back_off.max < back_off.base
    {
        return Err(EntryError::invalid(
            "retry policy backoff's MaxInterval should be greater or equal to BaseInterval",
        ));
    }
    match &remote.cluster {
        Some(cluster) => one_of(
            "JSONWebKeySet.Remote.JWKSCluster.DiscoveryType",
            &cluster.discovery_type,
            &[
                "",
                "STRICT_DNS",
                "STATIC",
                "LOGICAL_DNS",
                "EDS",
                "ORIGINAL_DST",
            ],
        ),
        None => Ok(()),
    }
}

form! {
    /// `exported-services`.
    ExportedServices {
        services: Vec<ExportedService> = "Services" always,
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// A service that others may see.
    ExportedService {
        name: String = "Name",
        consumers: Vec<Consumer> = "Consumers",
    }
}

form! {
    /// Who may see it.
    Consumer { peer: String = "Peer" }
}

impl ExportedServices {
    pub(crate) fn validate(&self) -> Result<(), EntryError> {
        let mut seen = BTreeSet::new();
        for (at, service) in self.services.iter().enumerate() {
            let place = format!("Services[{at}]");
            if service.name.is_empty() {
                return Err(EntryError::invalid(format!(
                    "{place}: service name cannot be empty"
                )));
            }
            if !seen.insert(service.name.to_ascii_lowercase()) {
                return Err(EntryError::invalid(format!(
                    "{place}: {:?} is exported twice",
                    service.name
                )));
            }
            if service.consumers.is_empty() {
                return Err(EntryError::invalid(format!(
                    "{place}: must have at least one consumer"
                )));
            }
            for (at, consumer) in service.consumers.iter().enumerate() {
                if consumer.peer.is_empty() || consumer.peer == "*" {
                    return Err(EntryError::invalid(format!(
                        "{place}.Consumers[{at}]: must define the name of one Peer"
                    )));
                }
            }
        }
        Ok(())
    }
}
