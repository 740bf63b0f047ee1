//! Network coordinates in the replicated state.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where its assumption breaks"
)]

use weft_catalog::{Catalog, TableTopic, Topic, Trace, snapshot};
use weft_proto::coordinate::Coordinate;
use weft_proto::ids::LogIndex;
use weft_proto::v1::{self, stamped::Command};

struct World {
    catalog: Catalog,
    log: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            catalog: Catalog::new(),
            log: 0,
        };
        for node in ["n1", "N2"] {
            world.apply(Command::Register(v1::Register {
                node: Some(v1::Node {
                    name: node.into(),
                    address: "10.0.0.1".into(),
                    ..Default::default()
                }),
                ..Default::default()
            }));
        }
        world.catalog.publish();
        world
    }

    fn apply(&mut self, command: Command) -> u64 {
        let stamped = v1::Stamped {
            at_millis: self.log,
            command: Some(command),
            ..Default::default()
        };
        let outcome = self.catalog.apply(LogIndex(self.log), &stamped).unwrap();
        self.log += 1;
        outcome.index
    }

    fn report(&mut self, rows: &[(&str, f64)]) -> u64 {
        let coordinates = rows.iter().map(|(node, height)| at(*height).record(node));
        self.apply(Command::Coordinates(v1::CoordinateBatch {
            coordinates: coordinates.collect(),
        }))
    }

    fn seen(&self) -> (u64, Vec<(String, f64)>) {
        let trace = Trace::off();
        let answer = self.catalog.state().read(&trace).coordinates();
        let row = |row: &v1::Coordinate| {
            let place = Coordinate::of_record(row).unwrap();
            (row.node.clone(), place.height)
        };
        let rows = answer.rows.iter().map(|found| row(found));
        (answer.index.get(), rows.collect())
    }

    fn indexes(&self) -> [u64; 3] {
        let trace = Trace::off();
        let read = self.catalog.state().read(&trace);
        [
            read.nodes().index.get(),
            read.node("n1").index.get(),
            read.services().index.get(),
        ]
    }
}

fn at(height: f64) -> Coordinate {
    Coordinate {
        height,
        ..Coordinate::default()
    }
}

#[test]
fn only_nodes_of_the_catalog_have_one_and_nothing_else_moves() {
    let mut world = World::new();
    assert_eq!(world.seen(), (1, Vec::new()));
    let before = world.indexes();
    let index = world.report(&[("n1", 0.1), ("n2", 0.2), ("nobody", 0.3)]);
    let rows = vec![("n1".to_owned(), 0.1), ("N2".to_owned(), 0.2)];
    assert_eq!(world.seen(), (index, rows.clone()));
    assert_eq!(world.indexes(), before);
    let (_, touched) = world.catalog.publish();
    let tables: Vec<_> = touched.tables().collect();
    assert_eq!(tables, [TableTopic::Coordinates]);
    assert_eq!(touched.rows().next(), None, "no watcher of a row wakes");
    // The same again changes nothing and wakes nobody.
    world.report(&[("n1", 0.1)]);
    assert_eq!(world.seen(), (index, rows));
    let (_, touched) = world.catalog.publish();
    assert!(touched.is_empty());
}

#[test]
fn a_node_that_goes_takes_its_coordinate_along() {
    let mut world = World::new();
    world.report(&[("n1", 0.1), ("n2", 0.2)]);
    world.catalog.publish();
    let index = world.apply(Command::Deregister(v1::Deregister {
        node: "N1".into(),
        ..Default::default()
    }));
    assert_eq!(world.seen(), (index, vec![("N2".to_owned(), 0.2)]));
    let (_, touched) = world.catalog.publish();
    assert!(touched.touches(&Topic::Table(TableTopic::Coordinates)));
    let trace = Trace::on();
    let state = world.catalog.state();
    let gone = state.read(&trace).coordinate("n1");
    assert_eq!((gone.index.get(), gone.rows), (index, None));
    assert_eq!(trace.into_topics().len(), 1);
}

#[test]
fn a_snapshot_holds_them_and_their_index() {
    let mut world = World::new();
    world.report(&[("n1", 0.1), ("n2", 1.0 / 3.0)]);
    let mut bytes = Vec::new();
    snapshot::write(world.catalog.state(), &mut bytes).unwrap();
    let restored = snapshot::read(&mut bytes.as_slice()).unwrap();
    assert_eq!(restored.state().hash(), world.catalog.state().hash());
    let copy = World {
        catalog: restored,
        log: world.log,
    };
    assert_eq!(copy.seen(), world.seen());
}
