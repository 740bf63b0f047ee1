//! The pool's figures among the others.
//!
//! Owns: their names. Never: counts; the pool does.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use weft_gossip::{Gossip, Metrics};

/// Adds the pool's figures to `registry`, read at each scrape.
pub(crate) fn register(registry: &mut Registry, gossip: Arc<Gossip>) {
    registry.register_collector(Box::new(Pool(gossip)));
}

#[derive(Debug)]
struct Pool(Arc<Gossip>);

type Figure = (&'static str, &'static str, fn(&Metrics) -> u64);

const COUNTERS: &[Figure] = &[
    ("weft_gossip_packets_sent", "Datagrams sent", |m| {
        m.packets_sent.get()
    }),
    ("weft_gossip_sent_bytes", "Bytes in datagrams sent", |m| {
        m.bytes_sent.get()
    }),
    ("weft_gossip_packets_received", "Datagrams received", |m| {
        m.packets_received.get()
    }),
    (
        "weft_gossip_received_bytes",
        "Bytes in datagrams received",
        |m| m.bytes_received.get(),
    ),
    (
        "weft_gossip_send_failures",
        "Datagrams the system refused to send",
        |m| m.send_failures.get(),
    ),
    (
        "weft_gossip_decrypt_failures",
        "Frames dropped because no key here opens them",
        |m| m.decrypt_failures.get(),
    ),
    (
        "weft_gossip_clear_refused",
        "Frames dropped because they were clear text and a key is required",
        |m| m.clear_refused.get(),
    ),
    (
        "weft_gossip_sealed_refused",
        "Frames dropped because they were sealed and no key is set here",
        |m| m.sealed_refused.get(),
    ),
    (
        "weft_gossip_stream_sent_bytes",
        "Bytes sent over TCP",
        |m| m.stream_bytes_sent.get(),
    ),
    (
        "weft_gossip_stream_received_bytes",
        "Bytes received over TCP",
        |m| m.stream_bytes_received.get(),
    ),
    (
        "weft_gossip_half_open",
        "TCP connections closed because nothing came over them",
        |m| m.half_open.get(),
    ),
    (
        "weft_gossip_late_turns",
        "Times this agent found that it had been asleep or starved",
        |m| m.late_turns.get(),
    ),
    (
        "weft_gossip_foreign",
        "Frames of another datacenter dropped",
        |m| m.foreign_datacenter.get(),
    ),
    (
        "weft_gossip_malformed",
        "Frames that were not understood",
        |m| m.malformed.get(),
    ),
    (
        "weft_gossip_members_refused",
        "News of members refused because the table is full",
        |m| m.members_refused.get(),
    ),
    (
        "weft_gossip_syncs",
        "Exchanges of full states that ended well",
        |m| m.syncs.get(),
    ),
    (
        "weft_gossip_sync_failures",
        "Exchanges of full states that failed",
        |m| m.sync_failures.get(),
    ),
    (
        "weft_gossip_syncs_refused",
        "Exchanges of full states refused because too many were open",
        |m| m.sync_refused.get(),
    ),
    (
        "weft_gossip_name_conflicts",
        "Times two live nodes claimed one name",
        |m| m.name_conflicts.get(),
    ),
    (
        "weft_gossip_events_fired",
        "User events fired by this agent",
        |m| m.events_fired.get(),
    ),
    (
        "weft_gossip_events_refused",
        "User events of this agent refused: too large, or too many at a time",
        |m| m.events_refused.get(),
    ),
    (
        "weft_gossip_events_heard",
        "User events heard for the first time",
        |m| m.events_heard.get(),
    ),
    (
        "weft_gossip_events_late",
        "User events dropped because they came too late to tell whether they had been heard",
        |m| m.events_late.get(),
    ),
    (
        "weft_gossip_events_missed",
        "User events this agent was too slow to take",
        |m| m.events_missed.get(),
    ),
    (
        "weft_gossip_coordinate_updates",
        "Probes that moved this node's network coordinate",
        |m| m.coordinate_updates.get(),
    ),
    (
        "weft_gossip_coordinate_refused",
        "Probes or coordinates of others that could not be true",
        |m| m.coordinate_refused.get(),
    ),
    (
        "weft_gossip_coordinate_resets",
        "Times this node's network coordinate began anew",
        |m| m.coordinate_resets.get(),
    ),
];

/// A status, and how many members have it.
type Status = (&'static str, fn(&Metrics) -> u64);

const MEMBERS: &[Status] = &[
    ("alive", |m| m.members_alive.get()),
    ("leaving", |m| m.members_leaving.get()),
    ("left", |m| m.members_left.get()),
    ("failed", |m| m.members_failed.get()),
];

impl Collector for Pool {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let metrics = self.0.metrics();
        for (name, help, figure) in COUNTERS {
            let value = ConstCounter::new(figure(metrics));
            value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)?;
        }
        let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let waiting = gauge(metrics.notices_waiting.get());
        waiting.encode(encoder.encode_descriptor(
            "weft_gossip_notices_waiting",
            "Tags, leave intents and user events that wait to be sent",
            None,
            waiting.metric_type(),
        )?)?;
        for (name, help, value) in [
            (
                "weft_gossip_health_score",
                "What this agent thinks of itself: 0 is well, 8 the worst",
                metrics.health_score.get(),
            ),
            (
                "weft_gossip_suspects",
                "Members that are suspected",
                metrics.suspects.get(),
            ),
        ] {
            let value = gauge(value);
            value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)?;
        }
        let skew = ConstGauge::new(metrics.clock_skew_millis.get() as f64 / 1_000.0);
        skew.encode(encoder.encode_descriptor(
            "weft_gossip_clock_skew_seconds",
            "By how much the clock of some member certainly differs from this agent's, the most of all",
            None,
            skew.metric_type(),
        )?)?;
        let kind = gauge(0).metric_type();
        let mut family = encoder.encode_descriptor(
            "weft_gossip_members",
            "Members of the pool, by status",
            None,
            kind,
        )?;
        for (status, figure) in MEMBERS {
            gauge(figure(metrics)).encode(family.encode_family(&[("status", *status)])?)?;
        }
        Ok(())
    }
}
