//! Config entries in the replicated state: verdicts, indexes, what they wake, and what they must
//! agree on among each other.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside #[test] functions"
)]

use weft_catalog::config_entry::{
    CONFIG_BYTES_MAX, CONFIG_ENTRIES_MAX, CONFIG_ENTRY_BYTES_MAX, Entry, Kind,
};
use weft_catalog::{Catalog, TableTopic, Topic, Trace, snapshot};
use weft_proto::ids::LogIndex;
use weft_proto::v1::{self, ConfigEntryVerb as Verb, outcome, stamped::Command};

#[derive(Default)]
struct Log {
    catalog: Catalog,
    index: u64,
}

impl Log {
    fn run(&mut self, verb: Verb, entry: v1::ConfigEntry) -> Result<bool, v1::Refusal> {
        self.index += 1;
        let stamped = v1::Stamped {
            command: Some(Command::ConfigEntry(v1::ConfigEntryCommand {
                verb: verb.into(),
                entry: Some(entry),
            })),
            ..v1::Stamped::default()
        };
        let outcome = self.catalog.apply(LogIndex(self.index), &stamped).unwrap();
        match outcome.result.unwrap() {
            outcome::Result::Applied(applied) => Ok(applied),
            outcome::Result::Refusal(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    fn set(&mut self, text: &str) -> Result<bool, v1::Refusal> {
        self.run(Verb::Set, row(text))
    }

    #[track_caller]
    fn ok(&mut self, text: &str) {
        assert_eq!(self.set(text), Ok(true), "{text}");
    }

    /// Writes what must be refused with these words, and looks whether anything changed.
    #[track_caller]
    fn refused(&mut self, text: &str, reason: &str, words: &str) {
        let before = self.entries();
        let refusal = self.set(text).unwrap_err();
        assert_eq!(
            (refusal.reason.as_str(), refusal.message.contains(words)),
            (reason, true),
            "{refusal:?}"
        );
        assert_eq!(self.entries(), before, "state unchanged");
    }

    fn delete(&mut self, kind: Kind, name: &str) -> Result<bool, v1::Refusal> {
        self.run(Verb::Delete, named(kind, name, 0))
    }

    fn entries(&self) -> Vec<Entry> {
        let trace = Trace::off();
        let reader = self.catalog.state().read(&trace);
        let all = Kind::ALL
            .iter()
            .flat_map(|kind| reader.config_entries(*kind).rows);
        all.map(|entry| Entry::clone(entry)).collect()
    }

    /// Index of the answer and of the entry.
    fn get(&self, kind: Kind, name: &str) -> (u64, Option<(u64, u64)>) {
        let trace = Trace::off();
        let answer = self.catalog.state().read(&trace).config_entry(kind, name);
        let indexes = answer
            .rows
            .map(|entry| (entry.create_index, entry.modify_index));
        (answer.index.get(), indexes)
    }
}

fn row(text: &str) -> v1::ConfigEntry {
    Entry::parse(&serde_json::from_str(text).unwrap())
        .unwrap()
        .row()
}

fn named(kind: Kind, name: &str, modify_index: u64) -> v1::ConfigEntry {
    v1::ConfigEntry {
        kind: kind.as_str().into(),
        name: name.into(),
        modify_index,
        ..v1::ConfigEntry::default()
    }
}

fn defaults(name: &str, protocol: &str) -> String {
    format!(r#"{{"Kind":"service-defaults","Name":"{name}","Protocol":"{protocol}"}}"#)
}

const WEB_SPLIT: &str = r#"{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":50,"ServiceSubset":"v1"},{"Weight":50,"ServiceSubset":"v2"}]}"#;
const WEB_SUBSETS: &str = r#"{"Kind":"service-resolver","Name":"web","Subsets":{"v1":{},"v2":{}}}"#;

#[test]
fn writing_the_same_again_changes_nothing() {
    let mut log = Log::default();
    log.ok(&defaults("Web", "http"));
    let first = log.get(Kind::ServiceDefaults, "web");
    assert_eq!(first, (2, Some((2, 2))));
    log.catalog.publish();
    log.ok(&defaults("Web", "http"));
    assert_eq!(log.get(Kind::ServiceDefaults, "WEB"), first);
    assert!(log.catalog.publish().1.is_empty(), "nobody wakes");
    log.ok(&defaults("web", "grpc"));
    assert_eq!(log.get(Kind::ServiceDefaults, "web"), (4, Some((2, 4))));
    assert_eq!(log.entries().len(), 1, "names differ in case only");
}

#[test]
fn compare_and_set_asks_for_the_index() {
    let mut log = Log::default();
    let at = |text: &str, modify_index| v1::ConfigEntry {
        modify_index,
        ..row(text)
    };
    assert_eq!(
        log.run(Verb::Cas, at(&defaults("web", "tcp"), 7)),
        Ok(false)
    );
    assert_eq!(log.run(Verb::Cas, at(&defaults("web", "tcp"), 0)), Ok(true));
    let (index, _) = log.get(Kind::ServiceDefaults, "web");
    assert_eq!(
        log.run(Verb::Cas, at(&defaults("web", "http"), 0)),
        Ok(false)
    );
    assert_eq!(
        log.run(Verb::Cas, at(&defaults("web", "http"), index)),
        Ok(true)
    );
    let (now, _) = log.get(Kind::ServiceDefaults, "web");
    assert!(now > index);
    assert_eq!(
        log.run(Verb::DeleteCas, named(Kind::ServiceDefaults, "web", index)),
        Ok(false)
    );
    assert_eq!(
        log.run(Verb::DeleteCas, named(Kind::ServiceDefaults, "web", now)),
        Ok(true)
    );
    assert_eq!(
        log.run(Verb::DeleteCas, named(Kind::ServiceDefaults, "web", now)),
        Ok(false)
    );
    assert_eq!(
        log.delete(Kind::ServiceDefaults, "web"),
        Ok(true),
        "what is not there is deleted"
    );
}

#[test]
fn a_change_wakes_its_own_watchers_only() {
    let mut log = Log::default();
    log.ok(&defaults("web", "http"));
    log.catalog.publish();
    log.ok(&defaults("api", "http"));
    let (_, touched) = log.catalog.publish();
    let entry = |name: &str| Topic::ConfigEntry("service-defaults".into(), name.into());
    assert!(touched.touches(&entry("api")) && !touched.touches(&entry("web")));
    assert!(touched.touches(&Topic::ConfigKind("service-defaults".into())));
    assert!(!touched.touches(&Topic::ConfigKind("service-resolver".into())));
    assert!(touched.touches(&Topic::Table(TableTopic::ConfigEntries)));

    let before = log.get(Kind::ServiceDefaults, "web").0;
    log.delete(Kind::ServiceDefaults, "web").unwrap();
    assert!(log.catalog.publish().1.touches(&entry("web")));
    let (missing, row) = log.get(Kind::ServiceDefaults, "web");
    assert!(
        missing > before && row.is_none(),
        "a deletion has an index of its own"
    );
}

#[test]
fn a_chain_has_one_protocol() {
    let mut log = Log::default();
    log.refused(
        r#"{"Kind":"service-router","Name":"web"}"#,
        "config.chain.protocol",
        r#"discovery chain "web" uses a protocol "tcp" that does not permit advanced routing or splitting behavior"#,
    );
    log.ok(&defaults("web", "http"));
    log.ok(&defaults("h2", "http2"));
    log.refused(
        r#"{"Kind":"service-splitter","Name":"web","Splits":[{"Weight":50},{"Weight":50,"Service":"h2"}]}"#,
        "config.chain.inconsistent",
        r#"discovery chain "web" uses inconsistent protocols; service "h2" has "http2" which is not "http""#,
    );
    log.refused(
        r#"{"Kind":"service-router","Name":"web","Routes":[{"Destination":{"Service":"plain"}}]}"#,
        "config.chain.inconsistent",
        r#"service "plain" has "tcp" which is not "http""#,
    );
    log.ok(&defaults("API", "http"));
    log.ok(
        r#"{"Kind":"service-router","Name":"web","Routes":[{"Destination":{"Service":"Api"}}]}"#,
    );
    log.refused(
        &defaults("api", "grpc"),
        "config.chain.inconsistent",
        r#"discovery chain "web""#,
    );
    log.refused(
        &defaults("web", "tcp"),
        "config.chain.protocol",
        "does not permit",
    );
    let refusal = log.delete(Kind::ServiceDefaults, "api").unwrap_err();
    assert_eq!(refusal.reason, "config.chain.inconsistent", "{refusal:?}");
    log.delete(Kind::ServiceRouter, "web").unwrap();
    log.delete(Kind::ServiceDefaults, "api").unwrap();
    log.delete(Kind::ServiceDefaults, "web").unwrap();
}

#[test]
fn all_proxies_protocol_counts_where_a_service_has_none() {
    let mut log = Log::default();
    log.ok(r#"{"Kind":"proxy-defaults","Config":{"protocol":"http"}}"#);
    log.ok(r#"{"Kind":"service-router","Name":"web"}"#);
    log.refused(
        r#"{"Kind":"proxy-defaults","Config":{"protocol":"tcp"}}"#,
        "config.chain.protocol",
        r#"discovery chain "web""#,
    );
    assert_eq!(
        log.delete(Kind::ProxyDefaults, "global")
            .unwrap_err()
            .reason,
        "config.chain.protocol"
    );
    log.ok(&defaults("web", "http2"));
    log.delete(Kind::ProxyDefaults, "global").unwrap();
}

#[test]
fn subsets_in_use_stay() {
    let mut log = Log::default();
    log.ok(&defaults("web", "http"));
    log.refused(
        WEB_SPLIT,
        "config.chain.subset",
        r#"service "web" does not have a subset named "v1""#,
    );
    log.ok(WEB_SUBSETS);
    log.ok(WEB_SPLIT);
    log.refused(
        r#"{"Kind":"service-resolver","Name":"web","Subsets":{"v1":{}}}"#,
        "config.chain.subset",
        r#"subset named "v2""#,
    );
    assert_eq!(
        log.delete(Kind::ServiceResolver, "web").unwrap_err().reason,
        "config.chain.subset"
    );
    log.delete(Kind::ServiceSplitter, "web").unwrap();
    log.delete(Kind::ServiceResolver, "web").unwrap();
    log.refused(
        r#"{"Kind":"service-resolver","Name":"a","Redirect":{"Service":"b","ServiceSubset":"v1"}}"#,
        "config.chain.subset",
        r#"service "b""#,
    );
    log.refused(
        r#"{"Kind":"service-resolver","Name":"a","Failover":{"*":{"Service":"b","ServiceSubset":"v1"}}}"#,
        "config.chain.subset",
        r#"service "b""#,
    );
    log.ok(r#"{"Kind":"service-resolver","Name":"a","Failover":{"*":{"Targets":[{"Service":"b","Peer":"east"}]}}}"#);
}

#[test]
fn circles_are_refused() {
    let mut log = Log::default();
    let redirect = |from: &str, to: &str| {
        format!(r#"{{"Kind":"service-resolver","Name":"{from}","Redirect":{{"Service":"{to}"}}}}"#)
    };
    log.ok(&redirect("a", "b"));
    log.ok(&redirect("b", "c"));
    log.refused(
        &redirect("c", "a"),
        "config.chain.circular",
        "detected circular resolver redirect: [a -> b -> c -> a]",
    );
    log.ok(&redirect("self", "self"));
    log.ok(r#"{"Kind":"proxy-defaults","Config":{"protocol":"http"}}"#);
    let split = |from: &str, to: &str| {
        format!(
            r#"{{"Kind":"service-splitter","Name":"{from}","Splits":[{{"Weight":50}},{{"Weight":50,"Service":"{to}"}}]}}"#
        )
    };
    log.ok(&split("x", "y"));
    log.refused(
        &split("y", "x"),
        "config.chain.circular",
        "among splitters: [x -> y -> x]",
    );
}

/// Long chains would make every write walk them again, on every replica.
#[test]
fn chains_have_a_length() {
    let mut log = Log::default();
    log.ok(r#"{"Kind":"proxy-defaults","Config":{"protocol":"http"}}"#);
    let redirect = |at: usize| {
        format!(
            r#"{{"Kind":"service-resolver","Name":"r{at}","Redirect":{{"Service":"r{}"}}}}"#,
            at + 1
        )
    };
    let split = |at: usize| {
        format!(
            r#"{{"Kind":"service-splitter","Name":"s{at}","Splits":[{{"Weight":50}},{{"Weight":50,"Service":"s{}"}}]}}"#,
            at + 1
        )
    };
    for at in 0..32 {
        log.ok(&redirect(at));
        log.ok(&split(at));
    }
    let words = "after each other: lead there directly";
    log.refused(&redirect(32), "config.chain.too_long", words);
    log.refused(&split(32), "config.chain.too_long", words);
    log.ok(&redirect(40));
}

/// One change may lead through every chain there is; each replica would wait for that.
#[test]
fn what_one_change_may_affect_has_a_width() {
    let mut log = Log::default();
    let defaults = r#"{"Kind":"proxy-defaults","Config":{"protocol":"http"}}"#;
    log.ok(defaults);
    let routes = vec![r#"{"Destination":{"Service":"x"}}"#; 5_000].join(",");
    let router =
        |at: usize| format!(r#"{{"Kind":"service-router","Name":"w{at}","Routes":[{routes}]}}"#);
    for at in 0..100 {
        log.ok(&router(at));
    }
    log.refused(
        r#"{"Kind":"proxy-defaults","Config":{"protocol":"grpc"}}"#,
        "config.chain.too_wide",
        "lead fewer services through it",
    );
    log.delete(Kind::ServiceRouter, "w0").unwrap();
    log.delete(Kind::ServiceRouter, "w1").unwrap();
    log.ok(r#"{"Kind":"proxy-defaults","Config":{"protocol":"grpc"}}"#);
}

#[test]
fn gateways_and_intentions_agree_with_their_services() {
    let mut log = Log::default();
    let ingress = r#"{"Kind":"ingress-gateway","Name":"in","Listeners":[{"Port":80,"Protocol":"http","Services":[{"Name":"web"}]}]}"#;
    log.refused(
        ingress,
        "config.ingress.protocol",
        r#"service "web" has protocol "tcp", which does not match defined listener protocol "http""#,
    );
    let intentions = r#"{"Kind":"service-intentions","Name":"web","Sources":[{"Name":"api","Permissions":[{"Action":"allow","HTTP":{"PathExact":"/"}}]}]}"#;
    log.refused(
        intentions,
        "config.intentions.protocol",
        "need protocol http, http2 or grpc",
    );
    log.ok(&defaults("web", "http"));
    log.ok(ingress);
    log.refused(
        &defaults("web", "grpc"),
        "config.ingress.protocol",
        "listener protocol",
    );
    assert_eq!(
        log.delete(Kind::ServiceDefaults, "web").unwrap_err().reason,
        "config.ingress.protocol"
    );
    log.ok(intentions);
    log.delete(Kind::IngressGateway, "in").unwrap();
    log.refused(
        &defaults("web", "tcp"),
        "config.intentions.protocol",
        "service-intentions \"web\"",
    );

    let tokens = r#"{"Kind":"service-intentions","Name":"db","JWT":{"Providers":[{"Name":"okta"}]},"Sources":[{"Name":"web","Action":"allow"}]}"#;
    log.refused(tokens, "config.jwt_provider.missing", "okta");
    log.ok(r#"{"Kind":"jwt-provider","Name":"okta","JSONWebKeySet":{"Local":{"JWKS":"x"}}}"#);
    log.ok(tokens);
    assert_eq!(
        log.delete(Kind::JwtProvider, "okta").unwrap_err().reason,
        "config.jwt_provider.missing"
    );

    let permissive = r#"{"Kind":"service-defaults","Name":"old","MutualTLSMode":"permissive"}"#;
    log.refused(
        permissive,
        "config.mutual_tls.permissive",
        "AllowEnablingPermissiveMutualTLS=false",
    );
    log.ok(r#"{"Kind":"mesh","AllowEnablingPermissiveMutualTLS":true}"#);
    log.ok(permissive);
}

#[test]
fn a_snapshot_holds_entries_and_what_they_rely_on() {
    let mut log = Log::default();
    for text in [
        &defaults("web", "http"),
        WEB_SUBSETS,
        WEB_SPLIT,
        &defaults("gone", "tcp"),
    ] {
        log.ok(text);
    }
    log.delete(Kind::ServiceDefaults, "gone").unwrap();
    let mut bytes = Vec::new();
    snapshot::write(log.catalog.state(), &mut bytes).unwrap();
    let copy = snapshot::read(&mut &bytes[..]).unwrap();
    assert_eq!(copy.state().hash(), log.catalog.state().hash());
    let mut copy = Log {
        catalog: copy,
        index: log.index,
    };
    assert_eq!(copy.entries(), log.entries());
    assert_eq!(
        copy.get(Kind::ServiceDefaults, "gone"),
        log.get(Kind::ServiceDefaults, "gone")
    );
    assert_eq!(
        copy.delete(Kind::ServiceResolver, "web")
            .unwrap_err()
            .reason,
        "config.chain.subset"
    );
}

#[test]
fn their_number_is_bounded() {
    let mut log = Log::default();
    for at in 0..CONFIG_ENTRIES_MAX {
        log.ok(&format!(r#"{{"Kind":"service-defaults","Name":"s{at}"}}"#));
    }
    log.refused(
        &defaults("one-more", "tcp"),
        "config.too_many",
        "delete those no longer needed",
    );
    log.ok(&defaults("s1", "http"));
    log.delete(Kind::ServiceDefaults, "s0").unwrap();
    log.ok(&defaults("one-more", "tcp"));
}

#[test]
fn their_bytes_are_bounded() {
    let mut log = Log::default();
    let large = |name: &str, fill: &str| {
        let json = fill.repeat(CONFIG_ENTRY_BYTES_MAX - 300);
        format!(
            r#"{{"Kind":"service-defaults","Name":"{name}","UpstreamConfig":{{"Defaults":{{"EnvoyListenerJSON":"{json}"}}}}}}"#
        )
    };
    let fit = usize::try_from(CONFIG_BYTES_MAX).unwrap() / (CONFIG_ENTRY_BYTES_MAX - 100);
    for at in 0..fit {
        log.ok(&large(&format!("s{at}"), "x"));
    }
    log.refused(
        &large("one-more", "x"),
        "config.too_many_bytes",
        "delete those no longer needed",
    );
    log.ok(&large("s1", "y"));
    log.delete(Kind::ServiceDefaults, "s0").unwrap();
    log.ok(&large("one-more", "x"));
    log.refused(&large("s0", "x"), "config.too_many_bytes", "bytes");
}

#[test]
fn fields_of_a_newer_version_are_kept_as_they_are() {
    let mut log = Log::default();
    let mut newer = row(&defaults("web", "http"));
    newer.json = newer.json.replacen('{', r#"{"FromTheFuture":1,"#, 1);
    assert_eq!(log.run(Verb::Set, newer.clone()), Ok(true));
    assert_eq!(log.entries()[0].json(), newer.json);
}
