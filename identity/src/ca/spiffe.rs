//! SPIFFE ids: what a certificate says its holder is.

use std::fmt;

/// Bytes of an id (SPIFFE-ID §2.3 asks for no more).
const ID_BYTES_MAX: usize = 2_048;
/// Bytes of a trust domain.
const DOMAIN_BYTES_MAX: usize = 255;
/// What every id begins with.
const SCHEME: &str = "spiffe://";

/// Why a text is no id of a mesh like ours. The text may be a stranger's: it is in no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// More than 2,048 bytes.
    #[error("the id is longer than {ID_BYTES_MAX} bytes")]
    TooLong,
    /// It does not begin with `spiffe://`, written so.
    #[error("the id does not begin with {SCHEME}")]
    Scheme,
    /// The part before the path is empty, has a port, a user, or characters that may not be there.
    #[error(
        "the id's trust domain is not one: lower-case letters, digits, dots, dashes and underscores are allowed"
    )]
    TrustDomain,
    /// `?` or `#`.
    #[error("the id has a query or a fragment")]
    Query,
    /// A `%`, or something that is not ASCII.
    #[error("the id is encoded: only plain characters are allowed")]
    Encoding,
    /// An empty part, `.`, `..`, or a character that may not be in one.
    #[error(
        "a part of the id's path is empty, or has characters other than letters, digits, dots, dashes and underscores"
    )]
    Segment,
    /// The parts are not those of a service, an agent, a server or a gateway.
    #[error("the id is of no kind that is known: service, agent, server or mesh gateway")]
    Form,
    /// A namespace other than `default`.
    #[error("the id is of another namespace than \"default\"")]
    Namespace,
    /// A partition other than `default`.
    #[error("the id is of another partition than \"default\"")]
    Partition,
}

impl SpiffeError {
    /// The stable id of the reason.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooLong => "identity.spiffe.too_long",
            Self::Scheme => "identity.spiffe.scheme",
            Self::TrustDomain => "identity.spiffe.trust_domain",
            Self::Query => "identity.spiffe.query",
            Self::Encoding => "identity.spiffe.encoding",
            Self::Segment => "identity.spiffe.segment",
            Self::Form => "identity.spiffe.form",
            Self::Namespace => "identity.spiffe.namespace",
            Self::Partition => "identity.spiffe.partition",
        }
    }
}

/// Whose ids they are: `<cluster id>.consul`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// That of the cluster with this id (UUID text).
    ///
    /// Errors: [`SpiffeError::TrustDomain`] when the id cannot stand in a name.
    pub fn of_cluster(cluster_id: &str) -> Result<Self, SpiffeError> {
        Self::parse(&format!("{}.consul", cluster_id.to_ascii_lowercase()))
    }

    /// Reads a trust domain.
    ///
    /// Errors: [`SpiffeError::TrustDomain`].
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        let fits = (1..=DOMAIN_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte)
            });
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(SpiffeError::TrustDomain)
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its first eight characters, as they stand in the names of certificates.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..8).unwrap_or(&self.0)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who somebody is. Parts are compared as they are written; names of services are folded by whoever decides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpiffeId {
    /// `spiffe://<domain>/ns/default/dc/<datacenter>/svc/<service>`.
    Service {
        /// Whose.
        trust_domain: TrustDomain,
        /// Where.
        datacenter: String,
        /// Its name, as written.
        service: String,
    },
    /// `spiffe://<domain>/agent/client/dc/<datacenter>/id/<node>`.
    Agent {
        /// Whose.
        trust_domain: TrustDomain,
        /// Where.
        datacenter: String,
        /// The node's name.
        node: String,
    },
    /// `spiffe://<domain>/agent/server/dc/<datacenter>`.
    Server {
        /// Whose.
        trust_domain: TrustDomain,
        /// Where.
        datacenter: String,
    },
    /// `spiffe://<domain>/gateway/mesh/dc/<datacenter>`.
    MeshGateway {
        /// Whose.
        trust_domain: TrustDomain,
        /// Where.
        datacenter: String,
    },
    /// `spiffe://<domain>`: the authority itself. In no leaf.
    Authority {
        /// Whose.
        trust_domain: TrustDomain,
    },
}

impl SpiffeId {
    /// A service's.
    ///
    /// Errors: [`SpiffeError::Segment`] when a name cannot stand in an id.
    pub fn service(
        trust_domain: &TrustDomain,
        datacenter: &str,
        service: &str,
    ) -> Result<Self, SpiffeError> {
        check_segment(datacenter)?;
        check_segment(service)?;
        Ok(Self::Service {
            trust_domain: trust_domain.clone(),
            datacenter: datacenter.to_owned(),
            service: service.to_owned(),
        })
    }

    /// An agent's.
    ///
    /// Errors: [`SpiffeError::Segment`] when a name cannot stand in an id.
    pub fn agent(
        trust_domain: &TrustDomain,
        datacenter: &str,
        node: &str,
    ) -> Result<Self, SpiffeError> {
        check_segment(datacenter)?;
        check_segment(node)?;
        Ok(Self::Agent {
            trust_domain: trust_domain.clone(),
            datacenter: datacenter.to_owned(),
            node: node.to_owned(),
        })
    }

    /// Reads an id. Stricter than RFC 3986 wherever that would allow one id to be written in two ways.
    ///
    /// Errors: [`SpiffeError`], the first that applies.
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > ID_BYTES_MAX {
            return Err(SpiffeError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        if rest.contains(['?', '#']) {
            return Err(SpiffeError::Query);
        }
        if rest.contains('%') || !rest.is_ascii() {
            return Err(SpiffeError::Encoding);
        }
        let (domain, path) = match rest.split_once('/') {
            Some((domain, path)) => (domain, Some(path)),
            None => (rest, None),
        };
        let trust_domain = TrustDomain::parse(domain)?;
        let Some(path) = path else {
            return Ok(Self::Authority { trust_domain });
        };
        let parts: Vec<&str> = path.split('/').collect();
        parts.iter().try_for_each(|part| check_segment(part))?;
        Self::of_parts(trust_domain, &parts)
    }

    fn of_parts(trust_domain: TrustDomain, parts: &[&str]) -> Result<Self, SpiffeError> {
        let parts = match parts {
            ["ap", "default", rest @ ..] => rest,
            ["ap", _, ..] => return Err(SpiffeError::Partition),
            all => all,
        };
        Ok(match parts {
            ["ns", "default", "dc", datacenter, "svc", service] => Self::Service {
                trust_domain,
                datacenter: (*datacenter).to_owned(),
                service: (*service).to_owned(),
            },
            ["ns", _, "dc", _, "svc", _] => return Err(SpiffeError::Namespace),
            ["agent", "client", "dc", datacenter, "id", node] => Self::Agent {
                trust_domain,
                datacenter: (*datacenter).to_owned(),
                node: (*node).to_owned(),
            },
            ["agent", "server", "dc", datacenter] => Self::Server {
                trust_domain,
                datacenter: (*datacenter).to_owned(),
            },
            ["gateway", "mesh", "dc", datacenter] => Self::MeshGateway {
                trust_domain,
                datacenter: (*datacenter).to_owned(),
            },
            _ => return Err(SpiffeError::Form),
        })
    }

    /// Whose it is.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::Service { trust_domain, .. }
            | Self::Agent { trust_domain, .. }
            | Self::Server { trust_domain, .. }
            | Self::MeshGateway { trust_domain, .. }
            | Self::Authority { trust_domain } => trust_domain,
        }
    }

    /// The service's name, when it is a service's.
    #[must_use]
    pub fn service_name(&self) -> Option<&str> {
        match self {
            Self::Service { service, .. } => Some(service),
            _ => None,
        }
    }

    /// Whether it is of this service of this mesh, in whatever datacenter. Names of services are the same in any case.
    #[must_use]
    pub fn is_service(&self, trust_domain: &TrustDomain, service: &str) -> bool {
        self.trust_domain() == trust_domain
            && self
                .service_name()
                .is_some_and(|name| name.eq_ignore_ascii_case(service))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.trust_domain())?;
        match self {
            Self::Service {
                datacenter,
                service,
                ..
            } => {
                write!(f, "/ns/default/dc/{datacenter}/svc/{service}")
            }
            Self::Agent {
                datacenter, node, ..
            } => {
                write!(f, "/agent/client/dc/{datacenter}/id/{node}")
            }
            Self::Server { datacenter, .. } => write!(f, "/agent/server/dc/{datacenter}"),
            Self::MeshGateway { datacenter, .. } => write!(f, "/gateway/mesh/dc/{datacenter}"),
            Self::Authority { .. } => Ok(()),
        }
    }
}

/// Whether a name can stand in an id: letters, digits, dots, dashes, underscores; not `.` or `..` (SPIFFE-ID §2.2).
///
/// Errors: [`SpiffeError::Segment`].
pub fn check_segment(name: &str) -> Result<(), SpiffeError> {
    let plain = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if plain && !matches!(name, "" | "." | "..") {
        Ok(())
    } else {
        Err(SpiffeError::Segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "11111111-2222-3333-4444-555555555555.consul";

    #[test]
    fn ids_are_read_and_written_in_consuls_form() {
        for path in [
            "/ns/default/dc/dc1/svc/web",
            "/ns/default/dc/dc1/svc/Web_x.v2-1",
            "/agent/client/dc/dc1/id/node-1",
            "/agent/server/dc/dc1",
            "/gateway/mesh/dc/dc1",
            "",
        ] {
            let text = format!("spiffe://{DOMAIN}{path}");
            let id = SpiffeId::parse(&text).unwrap();
            assert_eq!(id.to_string(), text);
            assert_eq!(id.trust_domain().as_str(), DOMAIN);
        }
        let text = format!("spiffe://{DOMAIN}/ap/default/ns/default/dc/dc1/svc/web");
        let domain = TrustDomain::parse(DOMAIN).unwrap();
        let id = SpiffeId::parse(&text).unwrap();
        assert_eq!(id, SpiffeId::service(&domain, "dc1", "web").unwrap());
        assert!(id.is_service(&domain, "WEB") && !id.is_service(&domain, "we"));
        assert_eq!(domain.short(), "11111111");
    }

    #[test]
    fn what_is_no_id_says_why() {
        use SpiffeError as E;
        let long = format!("d/ns/default/dc/dc1/svc/{}", "x".repeat(ID_BYTES_MAX));
        for (rest, why) in [
            ("d/ns/default/dc/dc1/svc/web?x", E::Query),
            ("d/ns/default/dc/dc1/svc/web#x", E::Query),
            ("d/ns/default/dc/dc1/svc/w%65b", E::Encoding),
            ("d/ns/default/dc/dc1/svc/wéb", E::Encoding),
            ("d/ns/default/dc/dc1/svc/w b", E::Segment),
            ("d/ns/default/dc/dc1/svc/*", E::Segment),
            ("d/ns/default/dc/dc1/svc/", E::Segment),
            ("d/ns/default/dc/dc1/svc/..", E::Segment),
            ("d/ns/default/dc//svc/web", E::Segment),
            ("d//ns/default/dc/dc1/svc/web", E::Segment),
            ("d/ns/default/dc/dc1/svc/web/", E::Segment),
            ("d/", E::Segment),
            ("d/ns/default/dc/dc1/svc/web/x", E::Form),
            ("d/NS/default/dc/dc1/svc/web", E::Form),
            ("d/ns/default/dc/dc1", E::Form),
            ("d/ns/other/dc/dc1/svc/web", E::Namespace),
            ("d/ap/other/ns/default/dc/dc1/svc/web", E::Partition),
            ("/ns/default/dc/dc1/svc/web", E::TrustDomain),
            ("D/ns/default/dc/dc1/svc/web", E::TrustDomain),
            ("d:80/ns/default/dc/dc1/svc/web", E::TrustDomain),
            ("u@d/ns/default/dc/dc1/svc/web", E::TrustDomain),
            (&long, E::TooLong),
        ] {
            assert_eq!(
                SpiffeId::parse(&format!("spiffe://{rest}")).unwrap_err(),
                why,
                "{rest}"
            );
        }
        for text in [
            "",
            "http://d/ns/default/dc/dc1/svc/web",
            "SPIFFE://d/agent/server/dc/dc1",
            "spiffe:/d",
        ] {
            assert_eq!(SpiffeId::parse(text).unwrap_err(), E::Scheme, "{text}");
        }
    }
}
