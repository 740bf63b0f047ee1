//! Prepared queries in the replicated state: names, sessions, lookup, bounds, snapshots.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside #[test] functions"
)]

use weft_catalog::prepared_query::{QUERY_BYTES_MAX, RENAMED, select};
use weft_catalog::{Catalog, Trace, snapshot};
use weft_proto::ids::LogIndex;
use weft_proto::v1::{self, PreparedQueryVerb as Verb, outcome, stamped::Command};

#[derive(Default)]
struct Log {
    catalog: Catalog,
    index: u64,
}

impl Log {
    fn apply(&mut self, command: Command) -> Result<(), v1::Refusal> {
        self.index += 1;
        let stamped = v1::Stamped {
            command: Some(command),
            ..v1::Stamped::default()
        };
        let outcome = self.catalog.apply(LogIndex(self.index), &stamped).unwrap();
        match outcome.result.unwrap() {
            outcome::Result::Refusal(refusal) => Err(refusal),
            _ => Ok(()),
        }
    }

    fn run(&mut self, verb: Verb, query: v1::PreparedQuery) -> Result<(), v1::Refusal> {
        self.apply(Command::PreparedQuery(v1::PreparedQueryCommand {
            verb: verb.into(),
            query: Some(query),
            judged_name: None,
        }))
    }

    /// Changes a query as somebody who may change the one called `judged`.
    fn judged(&mut self, verb: Verb, id: &str, judged: &str) -> Result<(), v1::Refusal> {
        self.apply(Command::PreparedQuery(v1::PreparedQueryCommand {
            verb: verb.into(),
            query: Some(query(id, "other")),
            judged_name: Some(judged.to_owned()),
        }))
    }

    #[track_caller]
    fn refused(&mut self, verb: Verb, query: v1::PreparedQuery, reason: &str, text: &str) {
        let before = self.ids();
        let refusal = self.run(verb, query).unwrap_err();
        assert_eq!(
            (refusal.reason.as_str(), refusal.message.as_str()),
            (reason, text)
        );
        assert_eq!(self.ids(), before, "state unchanged");
    }

    fn ids(&self) -> Vec<String> {
        let trace = Trace::off();
        let rows = self.catalog.state().read(&trace).prepared_queries().rows;
        rows.iter().map(|query| query.id.clone()).collect()
    }

    /// The id of the query that a name means.
    fn called(&self, name: &str) -> Option<String> {
        let trace = Trace::off();
        let found = self
            .catalog
            .state()
            .read(&trace)
            .prepared_query_called(name);
        found.map(|query| query.id.clone())
    }
}

fn query(id: &str, name: &str) -> v1::PreparedQuery {
    v1::PreparedQuery {
        id: id.to_owned(),
        name: name.to_owned(),
        service: "web".to_owned(),
        ..v1::PreparedQuery::default()
    }
}

fn template(id: &str, name: &str) -> v1::PreparedQuery {
    v1::PreparedQuery {
        template: Some(v1::QueryTemplate {
            r#type: "name_prefix_match".to_owned(),
            ..v1::QueryTemplate::default()
        }),
        ..query(id, name)
    }
}

#[test]
fn who_was_judged_for_another_name_changes_nothing() {
    let mut log = Log::default();
    log.run(Verb::Create, query("q1", "mine")).unwrap();
    for verb in [Verb::Update, Verb::Delete] {
        for judged in ["", "Mine", "theirs"] {
            let refusal = log.judged(verb, "q1", judged).unwrap_err();
            assert_eq!(refusal.reason, RENAMED);
            assert_eq!(log.called("mine").as_deref(), Some("q1"));
        }
        let refusal = log.judged(verb, "q9", "").unwrap_err();
        assert_eq!(refusal.reason, "query.unknown");
    }
    log.judged(Verb::Update, "q1", "mine").unwrap();
    log.judged(Verb::Delete, "q1", "other").unwrap();
    assert_eq!(log.ids(), [""; 0]);
}

#[test]
fn a_name_means_one_query_and_is_no_ones_id() {
    let mut log = Log::default();
    log.run(Verb::Create, query("q1", "web")).unwrap();
    let taken = "name 'WEB' aliases an existing query name";
    log.refused(Verb::Create, query("q2", "WEB"), "query.name.taken", taken);
    log.refused(
        Verb::Create,
        template("q2", "WEB"),
        "query.name.taken",
        taken,
    );
    let is_id = "name 'q1' aliases an existing query ID";
    log.refused(Verb::Create, query("q2", "q1"), "query.name.is_id", is_id);
    let exists = "Prepared query 'q1' exists already";
    log.refused(
        Verb::Create,
        query("q1", "other"),
        "query.id.exists",
        exists,
    );
    for verb in [Verb::Update, Verb::Delete] {
        let text = "Cannot modify non-existent prepared query: 'q9'";
        log.refused(verb, query("q9", "x"), "query.unknown", text);
    }
    log.run(Verb::Create, template("t", "")).unwrap();
    let second = "a query template with an empty name already exists";
    log.refused(Verb::Create, template("t2", ""), "query.name.taken", second);

    // A new name frees the old one; creation is remembered.
    log.run(Verb::Update, query("q1", "db")).unwrap();
    log.run(Verb::Create, query("q2", "web")).unwrap();
    let trace = Trace::off();
    let row = log
        .catalog
        .state()
        .read(&trace)
        .prepared_query("Q1")
        .rows
        .cloned();
    let row = row.unwrap();
    assert!(row.create_index < row.modify_index, "{row:?}");
    log.run(Verb::Delete, query("q2", "")).unwrap();
    log.run(Verb::Create, query("q3", "web")).unwrap();
    assert_eq!(log.called("web").as_deref(), Some("q3"));
}

#[test]
fn a_name_means_id_then_exact_name_then_the_longest_template() {
    let mut log = Log::default();
    for (id, name) in [("t0", ""), ("t1", "geo-"), ("t2", "geo-db-"), ("tä", "ä")] {
        log.run(Verb::Create, template(id, name)).unwrap();
    }
    log.run(Verb::Create, query("q1", "geo-db-main")).unwrap();
    for (name, id) in [
        ("q1", "q1"),
        ("geo-db-main", "q1"),
        ("GEO-DB-MAIN", "q1"),
        ("geo-db-main2", "t2"),
        ("geo-db-", "t2"),
        ("Geo-x", "t1"),
        ("geo", "t0"),
        ("äx", "tä"),
        ("öx", "t0"),
        ("", "t0"),
    ] {
        assert_eq!(log.called(name).as_deref(), Some(id), "{name}");
    }
    assert!(log.called(&"x".repeat(1_024)).is_some());
    assert_eq!(
        log.called(&"x".repeat(1_025)),
        None,
        "filled into a template it would grow without bound"
    );
    log.run(Verb::Delete, query("t0", "")).unwrap();
    assert_eq!(log.called("geo"), None);
}

fn register(log: &mut Log, node: &str, service: v1::Service, checks: &[(&str, &str)]) {
    let checks = checks.iter().map(|(id, status)| v1::Check {
        node: node.to_owned(),
        id: (*id).to_owned(),
        name: (*id).to_owned(),
        status: (*status).to_owned(),
        service_id: service.id.clone(),
        service_name: service.name.clone(),
        ..v1::Check::default()
    });
    log.apply(Command::Register(v1::Register {
        node: Some(v1::Node {
            name: node.to_owned(),
            address: "10.0.0.1".to_owned(),
            meta: [("rack".to_owned(), node.to_owned())].into(),
            ..v1::Node::default()
        }),
        checks: checks.collect(),
        service: Some(service),
        ..v1::Register::default()
    }))
    .unwrap();
}

fn web(tags: &[&str]) -> v1::Service {
    v1::Service {
        id: "web".to_owned(),
        name: "web".to_owned(),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        meta: [("version".to_owned(), tags.len().to_string())].into(),
        ..v1::Service::default()
    }
}

#[test]
fn the_healthy_with_the_right_tags_and_metadata_are_selected() {
    let mut log = Log::default();
    register(&mut log, "n1", web(&["a"]), &[("c1", "passing")]);
    register(&mut log, "n2", web(&["A", "b"]), &[("c1", "warning")]);
    register(
        &mut log,
        "n3",
        web(&["b"]),
        &[("c1", "passing"), ("c2", "critical")],
    );
    let check = |change: &dyn Fn(&mut v1::PreparedQuery), expected: &[&str]| {
        let mut asked = query("q", "q");
        change(&mut asked);
        let trace = Trace::off();
        let reader = log.catalog.state().read(&trace);
        let nodes: Vec<_> = select(&reader, &asked)
            .iter()
            .map(|row| row.node.name.clone())
            .collect();
        assert_eq!(nodes, expected, "{asked:?}");
    };
    let texts = |all: &[&str]| {
        all.iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    check(&|_| {}, &["n1", "n2"]);
    check(&|q| q.only_passing = true, &["n1"]);
    check(
        &|q| q.ignore_check_ids = texts(&["c2"]),
        &["n1", "n2", "n3"],
    );
    check(
        &|q| (q.only_passing, q.ignore_check_ids) = (true, texts(&["c1"])),
        &["n1", "n2"],
    );
    check(&|q| q.tags = texts(&["a"]), &["n1", "n2"]);
    check(&|q| q.tags = texts(&["a", "!b"]), &["n1"]);
    check(
        &|q| q.node_meta = [("rack".to_owned(), "n2".to_owned())].into(),
        &["n2"],
    );
    check(
        &|q| q.service_meta = [("version".to_owned(), "1".to_owned())].into(),
        &["n1"],
    );
    check(&|q| q.service = "none".to_owned(), &[]);
    check(&|q| q.connect = true, &[]);
}

#[test]
fn a_query_goes_with_its_session_and_is_part_of_a_snapshot() {
    let mut log = Log::default();
    register(&mut log, "n1", web(&[]), &[]);
    let bound = |id: &str, session: &str| v1::PreparedQuery {
        session: session.to_owned(),
        ..query(id, "")
    };
    let text = "invalid session \"s1\"";
    log.refused(Verb::Create, bound("q1", "s1"), "query.session", text);
    for id in ["s1", "s2"] {
        log.apply(Command::SessionCreate(v1::SessionCreate {
            session: Some(v1::Session {
                id: id.to_owned(),
                node: "n1".to_owned(),
                ..v1::Session::default()
            }),
        }))
        .unwrap();
    }
    for (id, session) in [("q1", "s1"), ("q2", "S1"), ("q3", "s2")] {
        log.run(Verb::Create, bound(id, session)).unwrap();
    }
    log.run(Verb::Create, template("t", "geo-")).unwrap();
    // Bound to another session now.
    log.run(Verb::Update, bound("q2", "s2")).unwrap();

    let mut bytes = Vec::new();
    snapshot::write(log.catalog.state(), &mut bytes).unwrap();
    let restored = snapshot::read(&mut bytes.as_slice()).unwrap();
    assert_eq!(restored.state().hash(), log.catalog.state().hash());
    log.catalog = restored;
    assert_eq!(log.called("geo-x").as_deref(), Some("t"));

    let destroy = |id: &str| Command::SessionDestroy(v1::SessionDestroy { id: id.to_owned() });
    log.apply(destroy("s1")).unwrap();
    assert_eq!(log.ids(), ["q2", "q3", "t"]);
    let leave = v1::Deregister {
        node: "n1".to_owned(),
        ..v1::Deregister::default()
    };
    log.apply(Command::Deregister(leave)).unwrap();
    assert_eq!(log.ids(), ["t"], "the node's sessions went with it");
}

#[test]
fn a_query_that_is_too_large_is_refused() {
    let mut log = Log::default();
    let mut large = query("q", "q");
    large.tags = vec!["x".repeat(QUERY_BYTES_MAX)];
    let refusal = log.run(Verb::Create, large).unwrap_err();
    assert_eq!(refusal.reason, "query.too_large");
    assert!(refusal.message.contains(&QUERY_BYTES_MAX.to_string()));
}
