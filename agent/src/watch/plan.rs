//! What a watch asks for.
//!
//! Owns: the types of watches, which selector belongs to which, and the request each makes.
//! Never: sends anything.

/// Selectors as flags and configuration keys name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `type`.
    pub kind: String,
    /// `key`.
    pub key: Option<String>,
    /// `prefix`.
    pub prefix: Option<String>,
    /// `service`.
    pub service: Option<String>,
    /// `tag`; every one must be there.
    pub tags: Vec<String>,
    /// `passingonly`.
    pub passing_only: Option<bool>,
    /// `state`.
    pub state: Option<String>,
    /// `name` of an event.
    pub name: Option<String>,
    /// `filter`.
    pub filter: Option<String>,
}

/// What is watched. Only what makes sense together can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// One key.
    Key(String),
    /// Every key under a prefix.
    KeyPrefix(String),
    /// The names of services with their tags.
    Services(Option<String>),
    /// The nodes.
    Nodes(Option<String>),
    /// The instances of one service with their health.
    Service {
        /// Its name.
        name: String,
        /// Tags every instance must have.
        tags: Vec<String>,
        /// Only instances whose checks all pass.
        passing_only: bool,
        /// A filter expression.
        filter: Option<String>,
    },
    /// The checks of a service.
    ChecksOf(String, Option<String>),
    /// The checks in a state.
    ChecksIn(String, Option<String>),
    /// User events; of one name, if any.
    Event(Option<String>),
}

/// Why there is no such watch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No type was named.
    #[error("a watch needs a type: {TYPES}")]
    NoType,
    /// Types of the mesh are watched by its proxies.
    #[error(
        "watches of type {0} belong to the mesh, which watches for itself; these can be had: {TYPES}"
    )]
    Mesh(String),
    /// There is no such type.
    #[error("unsupported watch type {0:?}; these can be had: {TYPES}")]
    UnknownType(String),
    /// A selector the type cannot do without.
    #[error("a watch of type {kind} needs {name}")]
    Missing {
        /// The type.
        kind: String,
        /// The selector.
        name: &'static str,
    },
    /// A selector the type does not know.
    #[error("{name} does not belong to a watch of type {kind}")]
    Foreign {
        /// The type.
        kind: String,
        /// The selector.
        name: &'static str,
    },
    /// A watch of checks is by service or by state.
    #[error("a watch of type checks takes service or state, not both")]
    ServiceAndState,
}

const TYPES: &str = "key, keyprefix, services, nodes, service, checks, event";
const MESH_TYPES: [&str; 4] = [
    "connect_roots",
    "connect_leaf",
    "connect_proxy_config",
    "agent_service",
];

/// A path and parameters, not escaped yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Begins with `/v1/`.
    pub path: String,
    /// In order; an empty value is a bare name.
    pub query: Vec<(&'static str, String)>,
}

impl Plan {
    /// Errors: a type there is not, a selector that is missing, or one that would be ignored.
    pub fn new(mut asked: Asked) -> Result<Self, PlanError> {
        let kind = std::mem::take(&mut asked.kind);
        let mut take = Selectors { kind: &kind, asked };
        let plan = match kind.as_str() {
            "" => return Err(PlanError::NoType),
            "key" => Self::Key(bare(take.key()?)),
            "keyprefix" => Self::KeyPrefix(bare(take.prefix()?)),
            "services" => Self::Services(take.asked.filter.take()),
            "nodes" => Self::Nodes(take.asked.filter.take()),
            "service" => Self::Service {
                name: take.service()?,
                tags: std::mem::take(&mut take.asked.tags),
                passing_only: take.asked.passing_only.take().unwrap_or(false),
                filter: take.asked.filter.take(),
            },
            "checks" => take.checks()?,
            "event" => Self::Event(take.asked.name.take()),
            mesh if MESH_TYPES.contains(&mesh) => return Err(PlanError::Mesh(kind)),
            _ => return Err(PlanError::UnknownType(kind)),
        };
        take.finish()?;
        Ok(plan)
    }

    /// The request, without index and wait.
    #[must_use]
    pub fn question(&self) -> Question {
        let mut query: Vec<(&'static str, String)> = Vec::new();
        let path = match self {
            Self::Key(key) => format!("/v1/kv/{key}"),
            Self::KeyPrefix(prefix) => {
                query.push(("recurse", String::new()));
                format!("/v1/kv/{prefix}")
            }
            Self::Services(_) => "/v1/catalog/services".into(),
            Self::Nodes(_) => "/v1/catalog/nodes".into(),
            Self::Service {
                name,
                tags,
                passing_only,
                ..
            } => {
                query.extend(tags.iter().map(|tag| ("tag", tag.clone())));
                query.extend(passing_only.then(|| ("passing", "1".to_owned())));
                format!("/v1/health/service/{name}")
            }
            Self::ChecksOf(service, _) => format!("/v1/health/checks/{service}"),
            Self::ChecksIn(state, _) => format!("/v1/health/state/{state}"),
            Self::Event(name) => {
                query.extend(name.iter().map(|name| ("name", name.clone())));
                "/v1/event/list".into()
            }
        };
        query.extend(self.filter().map(|filter| ("filter", filter.to_owned())));
        Question { path, query }
    }

    fn filter(&self) -> Option<&str> {
        match self {
            Self::Services(filter)
            | Self::Nodes(filter)
            | Self::Service { filter, .. }
            | Self::ChecksOf(_, filter)
            | Self::ChecksIn(_, filter) => filter.as_deref(),
            Self::Key(_) | Self::KeyPrefix(_) | Self::Event(_) => None,
        }
    }

    /// The type's name.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::KeyPrefix(_) => "keyprefix",
            Self::Services(_) => "services",
            Self::Nodes(_) => "nodes",
            Self::Service { .. } => "service",
            Self::ChecksOf(..) | Self::ChecksIn(..) => "checks",
            Self::Event(_) => "event",
        }
    }
}

/// Selectors being taken; whatever is left over does not belong.
struct Selectors<'a> {
    kind: &'a str,
    asked: Asked,
}

impl Selectors<'_> {
    fn missing(&self, name: &'static str) -> PlanError {
        PlanError::Missing {
            kind: self.kind.to_owned(),
            name,
        }
    }

    fn key(&mut self) -> Result<String, PlanError> {
        let key = self
            .asked
            .key
            .take()
            .filter(|key| !bare(key.clone()).is_empty());
        key.ok_or_else(|| self.missing("key"))
    }

    fn prefix(&mut self) -> Result<String, PlanError> {
        self.asked
            .prefix
            .take()
            .ok_or_else(|| self.missing("prefix"))
    }

    fn service(&mut self) -> Result<String, PlanError> {
        let service = self.asked.service.take().filter(|name| !name.is_empty());
        service.ok_or_else(|| self.missing("service"))
    }

    fn checks(&mut self) -> Result<Plan, PlanError> {
        let (service, state) = (self.asked.service.take(), self.asked.state.take());
        let filter = self.asked.filter.take();
        match (service, state) {
            (Some(_), Some(_)) => Err(PlanError::ServiceAndState),
            (Some(service), None) => Ok(Plan::ChecksOf(service, filter)),
            (None, state) => Ok(Plan::ChecksIn(
                state.unwrap_or_else(|| "any".into()),
                filter,
            )),
        }
    }

    fn finish(self) -> Result<(), PlanError> {
        let left = [
            ("key", self.asked.key.is_some()),
            ("prefix", self.asked.prefix.is_some()),
            ("service", self.asked.service.is_some()),
            ("tag", !self.asked.tags.is_empty()),
            ("passingonly", self.asked.passing_only.is_some()),
            ("state", self.asked.state.is_some()),
            ("name", self.asked.name.is_some()),
            ("filter", self.asked.filter.is_some()),
        ];
        match left.into_iter().find(|(_, given)| *given) {
            Some((name, _)) => Err(PlanError::Foreign {
                kind: self.kind.to_owned(),
                name,
            }),
            None => Ok(()),
        }
    }
}

/// A key never begins with a slash in Consul's store, though its API path does.
fn bare(key: String) -> String {
    key.strip_prefix('/').map_or(key.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(kind: &str) -> Asked {
        Asked {
            kind: kind.into(),
            ..Asked::default()
        }
    }

    fn some(text: &str) -> Option<String> {
        Some(text.into())
    }

    #[track_caller]
    fn asks(asked: Asked, expected: &str) {
        let question = Plan::new(asked).unwrap().question();
        let query = question
            .query
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let query = query.collect::<Vec<_>>().join("&");
        assert_eq!(format!("{}?{query}", question.path), expected);
    }

    #[test]
    fn each_type_has_its_request() {
        asks(
            Asked {
                key: some("/a/b"),
                ..asked("key")
            },
            "/v1/kv/a/b?",
        );
        asks(
            Asked {
                prefix: some("a/"),
                ..asked("keyprefix")
            },
            "/v1/kv/a/?recurse=",
        );
        asks(
            Asked {
                filter: some("x"),
                ..asked("services")
            },
            "/v1/catalog/services?filter=x",
        );
        asks(asked("nodes"), "/v1/catalog/nodes?");
        let service = Asked {
            service: some("web"),
            tags: vec!["a".into(), "b".into()],
            passing_only: Some(true),
            ..asked("service")
        };
        asks(service, "/v1/health/service/web?tag=a&tag=b&passing=1");
        asks(
            Asked {
                service: some("web"),
                ..asked("checks")
            },
            "/v1/health/checks/web?",
        );
        asks(
            Asked {
                state: some("critical"),
                ..asked("checks")
            },
            "/v1/health/state/critical?",
        );
        asks(asked("checks"), "/v1/health/state/any?");
        asks(
            Asked {
                name: some("deploy"),
                ..asked("event")
            },
            "/v1/event/list?name=deploy",
        );
    }

    #[test]
    fn nothing_is_guessed_or_ignored() {
        let missing = |kind: &str, name| PlanError::Missing {
            kind: kind.into(),
            name,
        };
        let foreign = |kind: &str, name| PlanError::Foreign {
            kind: kind.into(),
            name,
        };
        for (asked, error) in [
            (asked(""), PlanError::NoType),
            (asked("keys"), PlanError::UnknownType("keys".into())),
            (
                asked("connect_leaf"),
                PlanError::Mesh("connect_leaf".into()),
            ),
            (asked("key"), missing("key", "key")),
            (
                Asked {
                    key: some("/"),
                    ..asked("key")
                },
                missing("key", "key"),
            ),
            (asked("keyprefix"), missing("keyprefix", "prefix")),
            (asked("service"), missing("service", "service")),
            (
                Asked {
                    key: some("a"),
                    ..asked("nodes")
                },
                foreign("nodes", "key"),
            ),
            (
                Asked {
                    name: some("a"),
                    service: some("s"),
                    ..asked("service")
                },
                foreign("service", "name"),
            ),
            (
                Asked {
                    filter: some("a"),
                    ..asked("event")
                },
                foreign("event", "filter"),
            ),
            (
                Asked {
                    service: some("a"),
                    state: some("any"),
                    ..asked("checks")
                },
                PlanError::ServiceAndState,
            ),
        ] {
            assert_eq!(Plan::new(asked), Err(error));
        }
    }
}
