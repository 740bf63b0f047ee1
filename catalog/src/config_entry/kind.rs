//! The kinds of config entries.
//!
//! Owns: their names, which of them can be written here, whose rights they need and how they may
//! be called.
//! Never: knows a kind's fields.

use super::{EntryError, NAME_BYTES_MAX};
use crate::acl::Resource;

/// Why a kind cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// There is no such kind.
    #[error("invalid config entry kind: {0}")]
    Unknown(String),
    /// Only Consul Enterprise has it.
    #[error(
        "invalid config entry kind: {0}: it is a Consul Enterprise kind, which weft does not have"
    )]
    Enterprise(&'static str),
    /// The servers make it.
    #[error(
        "invalid config entry kind: {0}: the servers make it from a gateway and its routes; write those"
    )]
    ServerMade(&'static str),
}

impl KindError {
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "config.kind.unknown",
            Self::Enterprise(_) => "config.kind.enterprise",
            Self::ServerMade(_) => "config.kind.server_made",
        }
    }
}

macro_rules! kinds {
    ($($(#[$meta:meta])* $kind:ident = $name:literal),* $(,)?) => {
        /// What an entry is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $($(#[$meta])* $kind,)*
        }

        impl Kind {
            /// Every kind that can be written.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// The name in requests.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// How a service behaves.
    ServiceDefaults = "service-defaults",
    /// How all proxies behave.
    ProxyDefaults = "proxy-defaults",
    /// Where requests go, by what they ask for.
    ServiceRouter = "service-router",
    /// Where requests go, by share.
    ServiceSplitter = "service-splitter",
    /// Which instances stand for a service.
    ServiceResolver = "service-resolver",
    /// Who may call a service.
    ServiceIntentions = "service-intentions",
    /// What holds for the whole mesh.
    Mesh = "mesh",
    /// Who issues tokens.
    JwtProvider = "jwt-provider",
    /// What other clusters may see.
    ExportedServices = "exported-services",
    /// Traffic into the mesh.
    IngressGateway = "ingress-gateway",
    /// Traffic out of the mesh.
    TerminatingGateway = "terminating-gateway",
    /// Traffic into the mesh, with routes of its own.
    ApiGateway = "api-gateway",
    /// Requests of an API gateway.
    HttpRoute = "http-route",
    /// Connections of an API gateway.
    TcpRoute = "tcp-route",
    /// A certificate, given as text.
    InlineCertificate = "inline-certificate",
    /// A certificate, given as files.
    FileSystemCertificate = "file-system-certificate",
}

/// Kinds of Consul's that cannot be written here.
const ENTERPRISE: [&str; 3] = [
    "sameness-group",
    "control-plane-request-limit",
    "rate-limit",
];
const SERVER_MADE: &str = "bound-api-gateway";

impl Kind {
    /// The kind of a name.
    ///
    /// Errors: [`KindError`] says which kinds there are elsewhere.
    pub fn parse(text: &str) -> Result<Self, KindError> {
        if let Some(kind) = Self::ALL.iter().find(|kind| kind.as_str() == text) {
            return Ok(*kind);
        }
        if let Some(name) = ENTERPRISE.iter().find(|name| **name == text) {
            return Err(KindError::Enterprise(name));
        }
        if text == SERVER_MADE {
            return Err(KindError::ServerMade(SERVER_MADE));
        }
        Err(KindError::Unknown(text.to_owned()))
    }

    /// Whose rights are needed: those on the service, on its intentions, or on the mesh.
    #[must_use]
    pub const fn resource(self) -> Resource {
        match self {
            Self::ServiceDefaults
            | Self::ServiceRouter
            | Self::ServiceSplitter
            | Self::ServiceResolver => Resource::Service,
            Self::ServiceIntentions => Resource::Intention,
            Self::ProxyDefaults
            | Self::Mesh
            | Self::JwtProvider
            | Self::ExportedServices
            | Self::IngressGateway
            | Self::TerminatingGateway
            | Self::ApiGateway
            | Self::HttpRoute
            | Self::TcpRoute
            | Self::InlineCertificate
            | Self::FileSystemCertificate => Resource::Mesh,
        }
    }

    /// Whose rights are needed to see it; `None`: every proxy needs it, so everybody may.
    #[must_use]
    pub const fn read_resource(self) -> Option<Resource> {
        match self {
            Self::ProxyDefaults | Self::Mesh => None,
            Self::IngressGateway | Self::TerminatingGateway => Some(Resource::Service),
            other => Some(other.resource()),
        }
    }

    /// The one name entries of this kind have, if it is fixed.
    #[must_use]
    pub const fn fixed_name(self) -> Option<&'static str> {
        match self {
            Self::ProxyDefaults => Some("global"),
            Self::Mesh => Some("mesh"),
            Self::ExportedServices => Some("default"),
            _ => None,
        }
    }

    pub(super) fn check_name(self, name: String) -> Result<String, EntryError> {
        if let Some(fixed) = self.fixed_name() {
            return match name.as_str() {
                // As Consul: what has one name need not be called by it.
                "" if self != Self::ExportedServices => Ok(fixed.to_owned()),
                given if given == fixed => Ok(name),
                given => Err(EntryError::invalid(format!(
                    "invalid name ({given:?}), only {fixed:?} is supported for {}",
                    self.as_str()
                ))),
            };
        }
        if name.is_empty() {
            let what = if self == Self::ServiceDefaults {
                "serviceName"
            } else {
                "Name"
            };
            return Err(EntryError::invalid(format!("{what} is required")));
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(EntryError::invalid(format!(
                "Name has {} bytes, at most {NAME_BYTES_MAX} are allowed",
                name.len()
            )));
        }
        if name.chars().any(char::is_control) {
            return Err(EntryError::invalid(format!(
                "Name {name:?} has a control character"
            )));
        }
        Ok(name)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
