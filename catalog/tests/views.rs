//! Views against the full state: after any commands, and whatever frames a slow reader skipped, the reads
//! that a view is for answer the same from it. A failure prints its seed.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside #[test] functions"
)]

mod commands;

use std::fmt::Debug;

use commands::{Dice, stamped};
use prost::Message as _;
use weft_catalog::config_entry::Kind;
use weft_catalog::prepared_query::{Expressions, render, select};
use weft_catalog::view::{Slice, ViewError, ViewFrame, ViewTopic};
use weft_catalog::{Answer, Catalog, Reader, State, Topics, Touched, Trace};
use weft_proto::ids::LogIndex;

fn topics() -> Vec<ViewTopic> {
    let mut topics = vec![
        ViewTopic::Services,
        ViewTopic::Nodes,
        ViewTopic::Coordinates,
        ViewTopic::Address([10, 0, 0, 1].into()),
        ViewTopic::Address([10, 0, 0, 9].into()),
    ];
    for name in ["Web", "db", "nothing"] {
        topics.push(ViewTopic::service(name));
        topics.push(ViewTopic::connect(name));
        topics.push(ViewTopic::ingress(name));
        topics.push(ViewTopic::config_entry(Kind::ServiceDefaults, name));
    }
    for kind in [Kind::ServiceDefaults, Kind::TerminatingGateway] {
        topics.push(ViewTopic::config_kind(kind));
    }
    for node in ["n1", "N2", "n3", "n4"] {
        topics.push(ViewTopic::node(node));
    }
    for query in ["a", "AB", "q1", "abc"] {
        topics.push(ViewTopic::query(query));
    }
    topics
}

/// An answer: its index, if it has one that counts, its rows as text, and whether there are any.
struct Shown {
    index: Option<u64>,
    rows: String,
    empty: bool,
}

fn shown<T: Debug>(answer: &Answer<T>) -> Shown {
    let rows = format!("{:?}", answer.rows);
    Shown {
        index: Some(answer.index.get()),
        empty: ["[]", "{}", "None"].contains(&&*rows),
        rows,
    }
}

/// The reads that the view of a topic is for.
fn answers(topic: &ViewTopic, state: &State, trace: &Trace) -> Vec<Shown> {
    let read = state.read(trace);
    let plain = |rows: String| Shown {
        index: None,
        empty: rows.is_empty(),
        rows,
    };
    match topic {
        ViewTopic::Service(name) => vec![
            shown(&read.health_service(name)),
            shown(&read.service_instances(name)),
            shown(&read.checks_of_service(name)),
        ],
        ViewTopic::Connect(name) => {
            vec![
                shown(&read.connect_instances(name)),
                shown(&read.health_service(name)),
            ]
        }
        ViewTopic::Ingress(name) => {
            vec![
                shown(&read.ingress_instances(name)),
                shown(&read.health_service(name)),
            ]
        }
        ViewTopic::Node(name) => vec![
            shown(&read.node(name)),
            shown(&read.node_services(name)),
            shown(&read.checks_of_node(name)),
        ],
        ViewTopic::Services => vec![
            shown(&read.services()),
            shown(&read.services_on(|node| node.address == "10.0.0.1")),
            shown(&read.all_instances()),
        ],
        ViewTopic::Nodes => vec![shown(&read.nodes())],
        ViewTopic::Address(ip) => vec![plain(format!(
            "{:?} {:?}",
            read.nodes_by_address(*ip).rows,
            read.services_by_address(*ip).rows
        ))],
        ViewTopic::Query(name) => vec![plain(selected(&read, name))],
        ViewTopic::ConfigEntry(kind, name) => {
            vec![shown(&read.config_entry(Kind::parse(kind).unwrap(), name))]
        }
        ViewTopic::ConfigKind(kind) => {
            vec![shown(&read.config_entries(Kind::parse(kind).unwrap()))]
        }
        ViewTopic::Coordinates => vec![shown(&read.coordinates())],
        // Views have it without keys: see tests/mesh_ca.rs.
        ViewTopic::MeshCa => vec![],
    }
}

fn selected(read: &Reader<'_>, name: &str) -> String {
    let query = read.prepared_query_called(name);
    let Some(query) = query.and_then(|query| render(query, name, &Expressions::default()).ok())
    else {
        return "no such query".to_owned();
    };
    format!("{query:?} {:?}", select(read, &query))
}

/// A view at an agent and what its server knows of it.
struct Pair {
    topic: ViewTopic,
    slice: Slice,
    watched: Topics,
    /// What the agent has.
    view: State,
    /// Changes that are still on their way.
    queued: Vec<ViewFrame>,
}

impl Pair {
    fn new(topic: ViewTopic, state: &State, expressions: &Expressions) -> Self {
        let (slice, watched) = Slice::of(state, &topic, None, expressions).unwrap();
        let mut pair = Self {
            topic,
            slice,
            watched,
            view: State::default(),
            queued: Vec::new(),
        };
        pair.reset();
        pair
    }

    /// A whole view, in as many parts as it comes in.
    fn reset(&mut self) {
        self.queued.clear();
        let mut taken = State::default();
        for part in self.slice.whole() {
            taken = taken.amended(ViewFrame::decode(part).unwrap()).unwrap().0;
        }
        self.view = taken;
    }

    /// The server looks again, if what it watches was touched.
    fn look(&mut self, state: &State, touched: &Touched, expressions: &Expressions) {
        if !self.watched.iter().any(|topic| touched.touches(topic)) {
            return;
        }
        let (slice, watched) =
            Slice::of(state, &self.topic, Some(&self.slice), expressions).unwrap();
        if let Some(change) = slice.since(&self.slice) {
            self.queued.push(ViewFrame::decode(change.frame).unwrap());
        }
        (self.slice, self.watched) = (slice, watched);
    }

    fn drain(&mut self) {
        for frame in std::mem::take(&mut self.queued) {
            self.view = self.view.amended(frame).unwrap().0;
        }
    }

    fn check(&self, state: &State, at: &str) {
        assert_eq!(
            self.view.view_fingerprint(),
            self.slice.fingerprint(),
            "{at}: {:?}",
            self.topic
        );
        let off = Trace::off();
        let here = answers(&self.topic, &self.view, &off);
        let there = answers(&self.topic, state, &off);
        let missing = Some(state.read(&off).service_index("never was").get());
        for (here, there) in here.iter().zip(&there) {
            assert_eq!(here.rows, there.rows, "{at}: {:?}", self.topic);
            if here.index != there.index {
                // What is missing answers what was forgotten about the missing, which wakes nobody.
                assert!(
                    here.index <= there.index && (here.empty || there.index == missing),
                    "{at}: {:?} answers {:?} under {:?}, the servers {:?}",
                    self.topic,
                    here.rows,
                    here.index,
                    there.index
                );
            }
        }
    }
}

#[test]
fn a_view_answers_what_the_full_state_answers() {
    let (mut skipped, mut deltas) = (0, 0);
    for seed in 1..=25_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let expressions = Expressions::default();
        let mut catalog = Catalog::new();
        let mut pairs: Vec<Pair> = topics()
            .into_iter()
            .map(|topic| Pair::new(topic, catalog.state(), &expressions))
            .collect();
        for index in 1..=150 {
            let command = stamped(&mut dice, index);
            catalog.apply(LogIndex(index), &command).unwrap();
            // Several commands are published at once, now and then.
            if dice.roll(4) == 0 {
                continue;
            }
            let (state, touched) = catalog.publish();
            for pair in &mut pairs {
                pair.look(&state, &touched, &expressions);
                match dice.roll(8) {
                    // Slow: what is queued waits for a later round.
                    0 | 1 => continue,
                    // Fallen behind: a whole view takes the place of what was queued.
                    2 => {
                        skipped += pair.queued.len();
                        pair.reset();
                    }
                    // After a restart: from what was kept.
                    3 => {
                        pair.drain();
                        let kept = pair.view.view_frame().encode_to_vec();
                        let frame = ViewFrame::decode(&kept[..]).unwrap();
                        pair.view = State::default().amended(frame).unwrap().0;
                    }
                    _ => {
                        deltas += pair.queued.len();
                        pair.drain();
                    }
                }
                pair.check(&state, &format!("seed {seed} at {index}"));
            }
        }
    }
    assert!(skipped > 100 && deltas > 1_000, "{skipped} {deltas}");
}

#[test]
fn a_change_wakes_those_who_read_from_the_view() {
    let mut woken = 0;
    for seed in 1..=15_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x0005_deec_e66d));
        let expressions = Expressions::default();
        let mut catalog = Catalog::new();
        let mut pairs: Vec<Pair> = topics()
            .into_iter()
            .map(|topic| Pair::new(topic, catalog.state(), &expressions))
            .collect();
        for index in 1..=120 {
            let command = stamped(&mut dice, index);
            catalog.apply(LogIndex(index), &command).unwrap();
            let (state, touched) = catalog.publish();
            for pair in &mut pairs {
                pair.look(&state, &touched, &expressions);
                for frame in std::mem::take(&mut pair.queued) {
                    let trace = Trace::on();
                    let before = answers(&pair.topic, &pair.view, &trace);
                    let read = trace.into_topics();
                    let (view, touched) = pair.view.amended(frame).unwrap();
                    let after = answers(&pair.topic, &view, &Trace::off());
                    for (was, is) in before.iter().zip(&after) {
                        if was.rows != is.rows && was.index.is_some() {
                            woken += 1;
                            assert!(is.index > was.index, "seed {seed}: {:?}", pair.topic);
                            assert!(
                                read.iter().any(|topic| touched.touches(topic)),
                                "seed {seed} at {index}: {:?} changed, nobody woke",
                                pair.topic
                            );
                        }
                    }
                    pair.view = view;
                }
            }
        }
    }
    assert!(woken > 500, "{woken}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut catalog = Catalog::new();
    let mut dice = Dice(7);
    let expressions = Expressions::default();
    let mut pair = Pair::new(ViewTopic::Nodes, catalog.state(), &expressions);
    for index in 1.. {
        catalog
            .apply(LogIndex(index), &stamped(&mut dice, index))
            .unwrap();
        let (state, touched) = catalog.publish();
        pair.look(&state, &touched, &expressions);
        if pair.queued.len() == 3 {
            break;
        }
    }
    let second = pair.queued[1].clone();
    assert_eq!(pair.view.amended(second).unwrap_err(), ViewError::Base);
    let mut torn = pair.queued[0].clone();
    torn.rows.clear();
    torn.gone.clear();
    assert_eq!(pair.view.amended(torn).unwrap_err(), ViewError::Fingerprint);
    let mut newer = pair.queued[0].clone();
    newer
        .rows
        .push(weft_catalog::record::Frame { record: None });
    let refused = pair.view.amended(newer).unwrap_err();
    assert!(matches!(refused, ViewError::Row(_)));
}

#[test]
fn a_big_view_comes_in_parts_and_topics_survive_the_wire() {
    let mut catalog = Catalog::new();
    for index in 1..=400 {
        let command = commands::big_node(index);
        catalog.apply(LogIndex(index), &command).unwrap();
    }
    let expressions = Expressions::default();
    let pair = Pair::new(ViewTopic::Nodes, catalog.state(), &expressions);
    assert!(pair.slice.whole().len() > 1);
    pair.check(catalog.state(), "in parts");
    for topic in topics() {
        assert_eq!(ViewTopic::of_wire(&topic.wire()), Some(topic));
    }
    let mut long = ViewTopic::Nodes.wire();
    long.name = "n".repeat(2_000);
    assert_eq!(ViewTopic::of_wire(&long), None);
}
