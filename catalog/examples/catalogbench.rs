//! What the catalog's hot paths cost. `cargo run --release -p weft-catalog --example catalogbench`

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use weft_catalog::{Catalog, Hub, Trace, snapshot};
use weft_proto::clock::{Clock, SystemClock};
use weft_proto::ids::LogIndex;
use weft_proto::v1::{self, stamped::Command};

const KEYS: u64 = 100_000;

fn stamped(command: Command) -> v1::Stamped {
    v1::Stamped {
        command: Some(command),
        ..v1::Stamped::default()
    }
}

fn put(number: u64) -> v1::Stamped {
    let entry = v1::KvEntry {
        key: format!("bench/{:06}", number % KEYS).into(),
        value: number.to_le_bytes().repeat(32).into(),
        ..v1::KvEntry::default()
    };
    stamped(Command::Kv(v1::KvCommand {
        verb: v1::KvVerb::Set.into(),
        entry: Some(entry),
    }))
}

fn instance(number: u64) -> v1::Stamped {
    let name = format!("node-{number:03}");
    let check = |id: &str, service: &str| v1::Check {
        id: id.into(),
        status: "passing".into(),
        service_id: service.into(),
        ..v1::Check::default()
    };
    stamped(Command::Register(v1::Register {
        node: Some(v1::Node {
            name,
            address: format!("10.0.0.{number}"),
            ..v1::Node::default()
        }),
        service: Some(v1::Service {
            id: "web-1".into(),
            name: "web".into(),
            port: 80,
            ..v1::Service::default()
        }),
        checks: vec![check("serfHealth", ""), check("service:web-1", "web-1")],
        skip_node_update: false,
    }))
}

fn report(what: &str, took: Duration, times: u64) {
    println!(
        "{what:<44} {:>12.0} ns",
        took.as_nanos() as f64 / times as f64
    );
}

fn main() {
    let clock = SystemClock::new();
    let timed = |run: &mut dyn FnMut()| {
        let start = clock.monotonic();
        run();
        clock.monotonic() - start
    };
    let mut catalog = Catalog::new();
    let mut index = 0;
    let mut apply = |catalog: &mut Catalog, command: &v1::Stamped| {
        index += 1;
        black_box(
            catalog
                .apply(LogIndex(index), command)
                .expect("bench commands are known"),
        );
    };
    for number in 0..100 {
        apply(&mut catalog, &instance(number));
    }
    let commands: Vec<_> = (0..KEYS).map(put).collect();
    let took = timed(&mut || {
        commands
            .iter()
            .for_each(|command| apply(&mut catalog, command))
    });
    report("apply KV put, new key of 256 B", took, KEYS);
    let commands: Vec<_> = (0..KEYS)
        .map(|number| put((number * 7919) % KEYS + KEYS))
        .collect();
    let mut kept = catalog.publish();
    let took = timed(&mut || {
        for batch in commands.chunks(64) {
            batch
                .iter()
                .for_each(|command| apply(&mut catalog, command));
            kept = catalog.publish();
        }
    });
    report("apply KV put, publish each 64", took, KEYS);

    let (state, trace) = (kept.0, Trace::off());
    let keys: Vec<_> = (0..KEYS)
        .map(|number| format!("bench/{:06}", (number * 7919) % KEYS))
        .collect();
    let took = timed(&mut || {
        for key in &keys {
            black_box(state.read(&trace).kv_get(key.as_bytes()));
        }
    });
    report("kv_get, untraced", took, KEYS);
    let took = timed(&mut || {
        (0..10_000).for_each(|_| drop(black_box(state.read(&trace).health_service("web"))))
    });
    report("health_service, 100 instances", took, 10_000);

    let mut bytes = Vec::new();
    let took = timed(&mut || {
        snapshot::write(&state, &mut bytes).expect("a vector takes all");
    });
    report("snapshot write, 100k keys", took, 1);
    let took = timed(&mut || {
        drop(black_box(
            snapshot::read(&mut &bytes[..]).expect("just written"),
        ))
    });
    report("snapshot read and drop, 100k keys", took, 1);
    println!("{:<44} {:>12} B", "snapshot", bytes.len());

    let hub = Hub::new();
    let trace = Trace::on();
    let _ = state.read(&trace).service_index("web");
    let topics = trace.into_topics();
    let mut watches: Vec<_> = (0..10_000).map(|_| Box::pin(hub.watch(&topics))).collect();
    let mut context = Context::from_waker(Waker::noop());
    for watch in &mut watches {
        assert!(pin!(watch.as_mut()).poll(&mut context).is_pending());
    }
    let deregister = v1::Deregister {
        node: "node-001".into(),
        ..v1::Deregister::default()
    };
    apply(&mut catalog, &stamped(Command::Deregister(deregister)));
    let (_, touched) = catalog.publish();
    let took = timed(&mut || hub.publish(&touched));
    report("hub publish, 10,000 watchers of one topic", took, 1);
    assert_eq!(hub.stats().wakes_total, 10_000);
    let took = timed(&mut || watches.clear());
    report("drop of one fired watch", took, 10_000);
}
