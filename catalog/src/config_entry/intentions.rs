//! `service-intentions`: who may call a service.
//!
//! Owns: the fields and rules of the kind, and the precedence of its sources.
//! Never: decides about a connection.
//! Source: Consul docs, "Service intentions"; CONSUL.md E, E.3.

use std::collections::{BTreeMap, BTreeSet};

use super::EntryError;
use super::form::form;
use super::routing::{HeaderMatch, check_header, check_methods, check_paths};

const METHODS: [&str; 9] = [
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
];

form! {
    /// `service-intentions`.
    Intentions {
        jwt: Option<JwtRequirement> = "JWT",
        sources: Vec<Source> = "Sources" always,
        meta: BTreeMap<String, String> = "Meta",
    }
}

form! {
    /// Tokens that must be presented.
    JwtRequirement { providers: Vec<JwtProviderReference> = "Providers" }
}

form! {
    /// Who must have issued the token.
    JwtProviderReference {
        name: String = "Name",
        verify_claims: Vec<JwtClaim> = "VerifyClaims",
    }
}

form! {
    /// What the token must say.
    JwtClaim {
        path: Vec<String> = "Path",
        value: String = "Value",
    }
}

form! {
    /// One caller.
    Source {
        name: String = "Name",
        action: String = "Action",
        permissions: Vec<Permission> = "Permissions",
        precedence: u32 = "Precedence" always,
        legacy_id: String = "LegacyID",
        kind: String = "Type",
        description: String = "Description",
        legacy_meta: BTreeMap<String, String> = "LegacyMeta",
        legacy_create_time: String = "LegacyCreateTime",
        legacy_update_time: String = "LegacyUpdateTime",
        peer: String = "Peer",
    }
}

form! {
    /// What a caller may do.
    Permission {
        action: String = "Action",
        http: Option<HttpPermission> = "HTTP",
        jwt: Option<JwtRequirement> = "JWT",
    }
}

form! {
    /// Requests a permission is about.
    HttpPermission {
        path_exact: String = "PathExact",
        path_prefix: String = "PathPrefix",
        path_regex: String = "PathRegex",
        header: Vec<HeaderMatch> = "Header",
        methods: Vec<String> = "Methods",
    }
}

impl Intentions {
    /// Sources by precedence, the highest first; within one precedence as they were written.
    pub(crate) fn normalise(&mut self, name: &str) {
        for source in &mut self.sources {
            if source.kind.is_empty() {
                "consul".clone_into(&mut source.kind);
            }
            source.precedence = precedence(&source.name, name);
            let https = source
                .permissions
                .iter_mut()
                .filter_map(|permission| permission.http.as_mut());
            for http in https {
                http.methods
                    .iter_mut()
                    .for_each(|method| method.make_ascii_uppercase());
            }
        }
        self.sources
            .sort_by_key(|source| std::cmp::Reverse(source.precedence));
    }

    pub(crate) fn validate(&self, name: &str) -> Result<(), EntryError> {
        no_partial_wildcard("Name", name)?;
        if self.sources.is_empty() && self.jwt.is_none() {
            return Err(EntryError::invalid("At least one source is required"));
        }
        check_jwt("JWT", self.jwt.as_ref())?;
        let mut seen = BTreeSet::new();
        for (at, source) in self.sources.iter().enumerate() {
            let place = format!("Sources[{at}]");
            source.validate(&place)?;
            if !seen.insert((
                source.name.to_ascii_lowercase(),
                source.peer.to_ascii_lowercase(),
            )) {
                return Err(EntryError::invalid(format!(
                    "{place} defines {:?} more than once",
                    source.name
                )));
            }
        }
        Ok(())
    }

    /// Whether requests, not only connections, are judged.
    #[must_use]
    pub fn needs_http(&self) -> bool {
        self.sources
            .iter()
            .any(|source| !source.permissions.is_empty())
    }

    /// Every token issuer named, whoever it is named by.
    pub(crate) fn providers(&self) -> impl Iterator<Item = &str> {
        let of_permissions = self
            .sources
            .iter()
            .flat_map(|source| &source.permissions)
            .filter_map(|permission| permission.jwt.as_ref());
        let all = self.jwt.iter().chain(of_permissions);
        all.flat_map(|jwt| &jwt.providers)
            .map(|provider| provider.name.as_str())
    }
}

/// 9: both named; 8: any caller of a named service; 6: a named caller of any; 5: anybody of any.
#[must_use]
pub fn precedence(source: &str, destination: &str) -> u32 {
    match (source, destination) {
        ("*", "*") => 5,
        (_, "*") => 6,
        ("*", _) => 8,
        _ => 9,
    }
}

impl Source {
    fn validate(&self, place: &str) -> Result<(), EntryError> {
        let refuse = |why: String| Err(EntryError::invalid(why));
        if self.name.is_empty() {
            return refuse(format!("{place}.Name is required"));
        }
        no_partial_wildcard(&format!("{place}.Name"), &self.name)?;
        no_partial_wildcard(&format!("{place}.Peer"), &self.peer)?;
        if self.peer == "*" {
            return refuse(format!("{place}.Peer must name one peer, not \"*\""));
        }
        if self.kind != "consul" {
            return refuse(format!("{place}.Type must be set to 'consul'"));
        }
        let action_known = matches!(self.action.as_str(), "allow" | "deny");
        if self.permissions.is_empty() {
            if !action_known {
                return refuse(format!("{place}.Action must be set to 'allow' or 'deny'"));
            }
        } else if !self.action.is_empty() {
            return refuse(format!(
                "{place}.Action must be omitted if Permissions are specified"
            ));
        }
        self.permissions
            .iter()
            .enumerate()
            .try_for_each(|(at, permission)| {
                permission.validate(&format!("{place}.Permissions[{at}]"))
            })
    }
}

impl Permission {
    fn validate(&self, place: &str) -> Result<(), EntryError> {
        if !matches!(self.action.as_str(), "allow" | "deny") {
            return Err(EntryError::invalid(format!(
                "{place}.Action must be set to either 'allow' or 'deny'"
            )));
        }
        check_jwt(&format!("{place}.JWT"), self.jwt.as_ref())?;
        let Some(http) = &self.http else {
            return if self.jwt.is_some() {
                Ok(())
            } else {
                Err(EntryError::invalid(format!(
                    "{place}.HTTP or JWT is required"
                )))
            };
        };
        let place = format!("{place}.HTTP");
        if *http == HttpPermission::default() {
            return Err(EntryError::invalid(format!("{place} should not be empty")));
        }
        check_paths(
            &place,
            &http.path_exact,
            &http.path_prefix,
            &http.path_regex,
        )?;
        for (at, header) in http.header.iter().enumerate() {
            let known = ["Present", "Exact", "Prefix", "Suffix", "Contains", "Regex"];
            check_header(&format!("{place}.Header[{at}]"), header, &known)?;
        }
        check_methods(&place, &http.methods)?;
        match http
            .methods
            .iter()
            .find(|method| !METHODS.contains(&method.as_str()))
        {
            Some(method) => Err(EntryError::invalid(format!(
                "{place}.Methods contains an invalid method {method:?}"
            ))),
            None => Ok(()),
        }
    }
}

fn no_partial_wildcard(place: &str, name: &str) -> Result<(), EntryError> {
    if name != "*" && name.contains('*') {
        return Err(EntryError::invalid(format!(
            "{place}: wildcard character '*' cannot be used with partial values"
        )));
    }
    Ok(())
}

fn check_jwt(place: &str, jwt: Option<&JwtRequirement>) -> Result<(), EntryError> {
    let Some(jwt) = jwt else {
        return Ok(());
    };
    if jwt
        .providers
        .iter()
        .any(|provider| provider.name.is_empty())
    {
        return Err(EntryError::invalid(format!(
            "{place}.Providers: provider name is required"
        )));
    }
    let claims = jwt
        .providers
        .iter()
        .flat_map(|provider| &provider.verify_claims);
    for claim in claims {
        if claim.path.is_empty() || claim.value.is_empty() {
            return Err(EntryError::invalid(format!(
                "{place}.Providers: a claim to verify needs both Path and Value"
            )));
        }
    }
    Ok(())
}
