//! Who may call whom: one decision from the `service-intentions` entries, the same wherever it is asked for.
//!
//! Owns: which entry and source speak of a pair of services, and what follows for a connection ([`decide`]).
//! Never: reads an entry out of the state by itself ([`Reader::intention_decision`] does that and traces it); decides
//! about requests: a source with permissions says nothing of a connection but that it is not enough ([`Rule::action`]).
//! Source: Consul docs, "Intentions", "Precedence and match order"; CONSUL.md E.3; PROXY.md 3.8.

use std::sync::Arc;

use crate::config_entry::intentions::{Intentions, Permission, Source, precedence};
use crate::config_entry::{Body, Entry, Kind};
use crate::keys;
use crate::read::{Answer, Reader};

/// Every service, in a source's or destination's place.
pub const ANY_SERVICE: &str = "*";

/// Who calls: a service, and the peered cluster it is of (empty: this one).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller<'a> {
    /// The service's name, in any case.
    pub service: &'a str,
    /// The peer's name.
    pub peer: &'a str,
}

impl<'a> Caller<'a> {
    /// A service of this cluster.
    #[must_use]
    pub const fn local(service: &'a str) -> Self {
        Self { service, peer: "" }
    }
}

/// What holds where no intention speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultPolicy {
    /// Whoever is not denied may call.
    Allow,
    /// Whoever is not allowed may not.
    Deny,
}

/// What a source says of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// It may connect.
    Allow,
    /// It may not.
    Deny,
    /// It depends on the request: the first permission that fits decides, and the default where none does.
    Requests(&'a [Permission]),
}

/// One source of one entry, as it applies to a destination.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// The entry.
    pub entry: &'a Entry,
    /// The source in it.
    pub source: &'a Source,
    /// 9, 8, 6 or 5: the higher decides.
    pub precedence: u32,
    /// Whether the entry wants a token of every request.
    pub needs_token: bool,
}

impl<'a> Rule<'a> {
    /// What it says.
    #[must_use]
    pub fn action(&self) -> Action<'a> {
        if !self.source.permissions.is_empty() {
            return Action::Requests(&self.source.permissions);
        }
        // An entry was checked when it was written; whatever is not "allow" is not.
        if self.source.action == "allow" {
            Action::Allow
        } else {
            Action::Deny
        }
    }

    /// Whether it speaks of this caller. Names are the same in any case.
    #[must_use]
    pub fn matches(&self, caller: Caller<'_>) -> bool {
        let peer = keys::fold(&self.source.peer) == keys::fold(caller.peer);
        peer && (self.source.name == ANY_SERVICE
            || keys::fold(&self.source.name) == keys::fold(caller.service))
    }
}

/// The answer to "may it connect?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may.
    pub allowed: bool,
    /// The stable id of the reason: `intention.allow`, `intention.deny`, `intention.l7` (permissions of requests do not
    /// allow connections), `intention.jwt` (a token is wanted, and a connection has none), `intention.default_allow`,
    /// `intention.default_deny`, `intention.caller` (the caller has no name).
    pub reason: &'static str,
    /// The intention that decided: source and destination as written, and its precedence.
    pub matched: Option<Matched>,
    /// The catalog index that the decision was made at: of the entry that decided, or of the last change that could
    /// have had one.
    pub index: u64,
}

/// Which intention decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// As written; may be `*`.
    pub source: String,
    /// As written; may be `*`.
    pub destination: String,
    /// 9, 8, 6 or 5.
    pub precedence: u32,
}

/// The rules for a destination, the highest precedence first: those of its own entry (`exact`), then those of the entry
/// for every service (`any`). Entries that are none of intentions say nothing.
pub fn rules<'a>(
    exact: Option<&'a Entry>,
    any: Option<&'a Entry>,
) -> impl Iterator<Item = Rule<'a>> {
    let mut rules: Vec<Rule<'a>> = [exact, any]
        .into_iter()
        .flatten()
        .flat_map(of_entry)
        .collect();
    // Stable: within one precedence as they were written.
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.precedence));
    rules.into_iter()
}

fn of_entry(entry: &Entry) -> Vec<Rule<'_>> {
    let Some(intentions) = intentions(entry) else {
        return Vec::new();
    };
    let rule = |source| Rule {
        entry,
        source,
        precedence: precedence(&source.name, &entry.name),
        needs_token: intentions.jwt.is_some(),
    };
    intentions.sources.iter().map(rule).collect()
}

/// The body of an entry of intentions.
#[must_use]
pub const fn intentions(entry: &Entry) -> Option<&Intentions> {
    match &entry.body {
        Body::Intentions(intentions) => Some(intentions),
        _ => None,
    }
}

/// Whether `caller` may open a connection to the destination that `exact` and `any` speak of. The single rule of the
/// highest precedence that matches decides; `default` where none does. `floor` is the index of the answer then: of the
/// last change of entries of the kind.
#[must_use]
pub fn decide(
    (exact, any): (Option<&Entry>, Option<&Entry>),
    caller: Caller<'_>,
    default: DefaultPolicy,
    floor: u64,
) -> Decision {
    // A nameless caller would match `*`.
    if caller.service.is_empty() {
        return Decision {
            allowed: false,
            reason: "intention.caller",
            matched: None,
            index: floor,
        };
    }
    let Some(rule) = rules(exact, any).find(|rule| rule.matches(caller)) else {
        let (allowed, reason) = match default {
            DefaultPolicy::Allow => (true, "intention.default_allow"),
            DefaultPolicy::Deny => (false, "intention.default_deny"),
        };
        return Decision {
            allowed,
            reason,
            matched: None,
            index: floor,
        };
    };
    let (allowed, reason) = match rule.action() {
        Action::Deny => (false, "intention.deny"),
        Action::Requests(_) => (false, "intention.l7"),
        Action::Allow if rule.needs_token => (false, "intention.jwt"),
        Action::Allow => (true, "intention.allow"),
    };
    Decision {
        allowed,
        reason,
        matched: Some(Matched {
            source: rule.source.name.clone(),
            destination: rule.entry.name.clone(),
            precedence: rule.precedence,
        }),
        index: rule.entry.modify_index,
    }
}

impl<'a> Reader<'a> {
    /// The entries that speak of a destination: its own, and that for every service. Scope: both entries, present or not.
    #[must_use]
    pub fn intentions_of(&self, destination: &str) -> Answer<[Option<&'a Arc<Entry>>; 2]> {
        let exact = self.config_entry(Kind::ServiceIntentions, destination);
        let any = self.config_entry(Kind::ServiceIntentions, ANY_SERVICE);
        self.answer(
            exact.index.get().max(any.index.get()),
            [exact.rows, any.rows],
        )
    }

    /// [`decide`], with the entries of this state.
    #[must_use]
    pub fn intention_decision(
        &self,
        caller: Caller<'_>,
        destination: &str,
        default: DefaultPolicy,
    ) -> Answer<Decision> {
        let found = self.intentions_of(destination);
        let [exact, any] = found.rows.map(|entry| entry.map(|entry| &**entry));
        let decision = decide((exact, any), caller, default, found.index.get());
        self.answer(found.index.get(), decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, sources: &str, index: u64) -> Entry {
        let json =
            format!(r#"{{"Kind":"service-intentions","Name":"{name}","Sources":{sources}}}"#);
        Entry::parse(&serde_json::from_str(&json).unwrap())
            .unwrap()
            .at(index, index)
    }

    /// `entries`: (destination, source, action); the index of an entry is its position.
    fn check(
        entries: &[(&str, &str)],
        caller: &str,
        destination: &str,
        default: DefaultPolicy,
        expected: (bool, &str, u64),
    ) {
        let entries: Vec<Entry> = entries
            .iter()
            .enumerate()
            .map(|(at, (name, sources))| entry(name, sources, at as u64 + 1))
            .collect();
        let of = |name: &str| {
            entries
                .iter()
                .find(|entry| entry.name.eq_ignore_ascii_case(name))
        };
        let decision = decide(
            (of(destination), of("*")),
            Caller::local(caller),
            default,
            99,
        );
        assert_eq!(
            (decision.allowed, decision.reason, decision.index),
            expected,
            "{caller} -> {destination}"
        );
    }

    const ALLOW_WEB: &str = r#"[{"Name":"web","Action":"allow"}]"#;
    const DENY_WEB: &str = r#"[{"Name":"web","Action":"deny"}]"#;
    const DENY_ALL: &str = r#"[{"Name":"*","Action":"deny"}]"#;
    const ALLOW_ALL: &str = r#"[{"Name":"*","Action":"allow"}]"#;

    #[test]
    fn the_highest_precedence_decides_alone() {
        use DefaultPolicy::{Allow, Deny};
        let both = r#"[{"Name":"*","Action":"deny"},{"Name":"web","Action":"allow"}]"#;
        check(
            &[],
            "web",
            "db",
            Allow,
            (true, "intention.default_allow", 99),
        );
        check(
            &[],
            "web",
            "db",
            Deny,
            (false, "intention.default_deny", 99),
        );
        check(
            &[("db", ALLOW_WEB)],
            "web",
            "db",
            Deny,
            (true, "intention.allow", 1),
        );
        check(
            &[("DB", ALLOW_WEB)],
            "WEB",
            "db",
            Deny,
            (true, "intention.allow", 1),
        );
        check(
            &[("db", ALLOW_WEB)],
            "api",
            "db",
            Deny,
            (false, "intention.default_deny", 99),
        );
        check(
            &[("db", ALLOW_WEB)],
            "web2",
            "db",
            Deny,
            (false, "intention.default_deny", 99),
        );
        check(
            &[("db", DENY_WEB)],
            "web",
            "db",
            Allow,
            (false, "intention.deny", 1),
        );
        // 9 over 8, 8 over 6, 6 over 5.
        check(
            &[("db", both)],
            "web",
            "db",
            Deny,
            (true, "intention.allow", 1),
        );
        check(
            &[("db", both)],
            "api",
            "db",
            Allow,
            (false, "intention.deny", 1),
        );
        check(
            &[("db", DENY_ALL), ("*", ALLOW_WEB)],
            "web",
            "db",
            Allow,
            (false, "intention.deny", 1),
        );
        check(
            &[("db", ALLOW_WEB), ("*", DENY_ALL)],
            "web",
            "db",
            Deny,
            (true, "intention.allow", 1),
        );
        check(
            &[("db", ALLOW_WEB), ("*", DENY_ALL)],
            "api",
            "db",
            Allow,
            (false, "intention.deny", 2),
        );
        let any = r#"[{"Name":"*","Action":"deny"},{"Name":"web","Action":"allow"}]"#;
        check(
            &[("*", any)],
            "web",
            "db",
            Deny,
            (true, "intention.allow", 1),
        );
        check(
            &[("*", any)],
            "api",
            "db",
            Allow,
            (false, "intention.deny", 1),
        );
        check(
            &[("*", ALLOW_ALL)],
            "",
            "db",
            Allow,
            (false, "intention.caller", 99),
        );
    }

    #[test]
    fn what_only_a_request_can_satisfy_allows_no_connection() {
        let l7 = r#"[{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"/"}}]},{"Name":"*","Action":"allow"}]"#;
        check(
            &[("db", l7)],
            "web",
            "db",
            DefaultPolicy::Allow,
            (false, "intention.l7", 1),
        );
        check(
            &[("db", l7)],
            "api",
            "db",
            DefaultPolicy::Deny,
            (true, "intention.allow", 1),
        );
        let json = r#"{"Kind":"service-intentions","Name":"db","JWT":{"Providers":[{"Name":"okta"}]},"Sources":[{"Name":"web","Action":"allow"}]}"#;
        let entry = Entry::parse(&serde_json::from_str(json).unwrap()).unwrap();
        let decision = decide(
            (Some(&entry), None),
            Caller::local("web"),
            DefaultPolicy::Allow,
            0,
        );
        assert_eq!(
            (decision.allowed, decision.reason),
            (false, "intention.jwt")
        );
    }

    #[test]
    fn a_peers_service_is_not_ours_of_the_same_name() {
        let peered = entry(
            "db",
            r#"[{"Name":"web","Peer":"east","Action":"allow"},{"Name":"*","Action":"deny"}]"#,
            1,
        );
        let ask = |service, peer| {
            decide(
                (Some(&peered), None),
                Caller { service, peer },
                DefaultPolicy::Allow,
                0,
            )
        };
        assert!(ask("web", "east").allowed);
        assert_eq!(ask("web", "").reason, "intention.deny");
        // `*` without a peer is everybody of this cluster, not of others.
        assert_eq!(ask("api", "east").reason, "intention.default_allow");
        let matched = ask("web", "").matched.unwrap();
        assert_eq!(
            (
                matched.source.as_str(),
                matched.destination.as_str(),
                matched.precedence
            ),
            ("*", "db", 8)
        );
    }
}
