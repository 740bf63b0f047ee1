//! Authorization decisions (DESIGN F4): the question every route asks, even with ACLs off.
//!
//! Owns: the words of the question and of its answer.
//! Never: resolves a token; an [`Authorizer`] stands for one that was resolved.
//! Source: Consul docs, "ACL rules".

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// One key.
    Key,
    /// Every key with these first bytes.
    KeyPrefix,
    /// A machine.
    Node,
    /// A service name.
    Service,
    /// Sessions of a node.
    Session,
    /// The local API of an agent.
    Agent,
    /// A user event.
    Event,
    /// The cluster itself.
    Operator,
    /// Gossip keys.
    Keyring,
    /// Tokens, policies, roles.
    Acl,
    /// A prepared query.
    Query,
    /// Who may call a service.
    Intention,
    /// Mesh configuration.
    Mesh,
    /// Other clusters.
    Peering,
}

/// What is to be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// See it.
    Read,
    /// See that it exists, among others.
    List,
    /// Change it.
    Write,
}

impl Access {
    /// The word in rules and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::List => "list",
            Self::Write => "write",
        }
    }
}

impl Resource {
    /// The word in rules and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key | Self::KeyPrefix => "key",
            Self::Node => "node",
            Self::Service => "service",
            Self::Session => "session",
            Self::Agent => "agent",
            Self::Event => "event",
            Self::Operator => "operator",
            Self::Keyring => "keyring",
            Self::Acl => "acl",
            Self::Query => "query",
            Self::Intention => "intention",
            Self::Mesh => "mesh",
            Self::Peering => "peering",
        }
    }
}

/// The answer, with the stable id of its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// Why, for `explain`: e.g. `acl.disabled`.
    pub reason: &'static str,
}

/// Someone whose rights are known.
pub trait Authorizer: Send + Sync {
    /// Whether `access` to `name` among `resource` is allowed. `name` is empty where a resource has no names.
    fn allows(&self, resource: Resource, name: &[u8], access: Access) -> Decision;

    /// Equal for authorizers that decide everything alike: part of a cached body's key.
    fn fingerprint(&self) -> u64;
}

/// ACLs are off: everything is allowed, and still asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllowAll;

impl Authorizer for AllowAll {
    fn allows(&self, _resource: Resource, _name: &[u8], _access: Access) -> Decision {
        Decision {
            allowed: true,
            reason: "acl.disabled",
        }
    }

    fn fingerprint(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_acls_off_everything_is_allowed_and_says_why() {
        for access in [Access::Read, Access::List, Access::Write] {
            let decision = AllowAll.allows(Resource::Operator, b"", access);
            assert_eq!(
                decision,
                Decision {
                    allowed: true,
                    reason: "acl.disabled"
                }
            );
        }
    }
}
