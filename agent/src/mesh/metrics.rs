//! What is counted of the mesh on this node.
//!
//! Owns: the `weft_proxy_*` metrics of connections, and of snapshots. Never: counts connections; shards do.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use weft_proxy::plane::Fault;
use weft_proxy::telemetry::{Counts, Direction, Pair, Telemetry};

use super::Mesh;

/// Snapshots given to the proxies.
#[derive(Default)]
pub(super) struct Applied {
    count: Counter,
    seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    faults: Gauge,
}

impl Applied {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_proxy_snapshots_applied",
            "Snapshots that the proxies of this node were given",
            self.count.clone(),
        );
        registry.register(
            "weft_proxy_snapshot_apply_seconds",
            "How long the proxies took to work by the newest snapshot",
            self.seconds.clone(),
        );
        registry.register(
            "weft_proxy_faults",
            "Parts of the newest snapshot that could not be put into force; weft proxy status names them",
            self.faults.clone(),
        );
    }

    pub(super) fn applied(&self, took: Duration, faults: &[Fault]) {
        self.count.inc();
        self.seconds.set(took.as_secs_f64());
        self.faults
            .set(i64::try_from(faults.len()).unwrap_or(i64::MAX));
    }
}

/// Adds what is looked up at each scrape.
pub(super) fn collect(registry: &mut Registry, mesh: Mesh) {
    registry.register_collector(Box::new(Now(mesh)));
}

struct Now(Mesh);

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mesh")
    }
}

type Column = (&'static str, &'static str, fn(&Counts) -> u64);

const COLUMNS: [Column; 4] = [
    (
        "weft_proxy_connections_opened",
        "Connections begun, by direction, source and destination",
        |counts| counts.opened,
    ),
    (
        "weft_proxy_connections_closed",
        "Connections over, by direction, source and destination",
        |counts| counts.closed,
    ),
    (
        "weft_proxy_request_bytes",
        "Bytes from callers, by direction, source and destination",
        |counts| counts.request_bytes,
    ),
    (
        "weft_proxy_response_bytes",
        "Bytes to callers, by direction, source and destination",
        |counts| counts.response_bytes,
    ),
];

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let telemetry = self.0.inner.telemetry.lock().clone();
        let status = self.0.status();
        let count = ConstGauge::new(i64::try_from(status.len()).unwrap_or(i64::MAX));
        let proxies = encoder.encode_descriptor(
            "weft_proxy_services",
            "Proxies that run on this node",
            None,
            MetricType::Gauge,
        )?;
        count.encode(proxies)?;
        if status.is_empty() {
            return Ok(());
        }
        for (name, help, of) in COLUMNS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (pair, counts) in telemetry.pairs() {
                let labels = labels(pair);
                ConstCounter::new(of(counts)).encode(family.encode_family(&labels)?)?;
            }
        }
        durations(&telemetry, &mut encoder)?;
        refusals(&telemetry, &mut encoder)
    }
}

fn labels(pair: &Pair) -> [(&'static str, &str); 3] {
    let direction = match pair.direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    };
    [
        ("direction", direction),
        ("source", &pair.source),
        ("destination", &pair.destination),
    ]
}

fn durations(telemetry: &Telemetry, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "weft_proxy_connection_seconds",
        "Durations of connections that are over, added up; with weft_proxy_connections_closed a mean",
        None,
        MetricType::Counter,
    )?;
    for (pair, counts) in telemetry.pairs() {
        let seconds = counts.duration_sum as f64 / 1_000.0;
        ConstCounter::new(seconds).encode(family.encode_family(&labels(pair))?)?;
    }
    Ok(())
}

fn refusals(telemetry: &Telemetry, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "weft_proxy_refusals",
        "Connections that did not begin or ended early, by direction, source, destination and reason",
        None,
        MetricType::Counter,
    )?;
    for (pair, counts) in telemetry.pairs() {
        let [direction, source, destination] = labels(pair);
        for (reason, count) in &counts.reasons {
            let labels = [direction, source, destination, ("reason", *reason)];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
    }
    let mut family = encoder.encode_descriptor(
        "weft_proxy_handshakes_refused",
        "Callers that could not prove who they are, by the service called and the reason",
        None,
        MetricType::Counter,
    )?;
    for ((service, reason), count) in &telemetry.handshakes {
        let labels = [("destination", &**service), ("reason", *reason)];
        ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
