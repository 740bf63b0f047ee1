//! What the views count, and how old they are when somebody looks.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::{Standing, Views};

/// Handles of the views' counters.
#[derive(Default)]
pub(super) struct ViewMetrics {
    pub(super) looks: Counter,
    pub(super) bytes: Counter,
    pub(super) changes: Counter,
    pub(super) resets: Counter,
    pub(super) mismatches: Counter,
    pub(super) refused: Counter,
    pub(super) losses: Counter,
    pub(super) damaged: Counter,
    ended: Family<Ended, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    reason: &'static str,
}

impl ViewMetrics {
    pub(super) fn ended(&self, reason: &'static str) {
        self.ended.get_or_create(&Ended { reason }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let counters = [
            ("weft_view_looks", "Answers given from views", &self.looks),
            (
                "weft_view_received_bytes",
                "Bytes of views received from servers",
                &self.bytes,
            ),
            (
                "weft_view_changes",
                "Times that the content of a view became another one",
                &self.changes,
            ),
            (
                "weft_view_resets",
                "Times that a view was replaced as a whole",
                &self.resets,
            ),
            (
                "weft_view_mismatches",
                "Views asked for anew because a change did not fit them",
                &self.mismatches,
            ),
            (
                "weft_view_refused",
                "Refusals by servers to serve a view, or any",
                &self.refused,
            ),
            (
                "weft_view_losses",
                "Times that no server served the views any more",
                &self.losses,
            ),
            (
                "weft_view_damaged_files",
                "Views on disk that could not be read and were removed",
                &self.damaged,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "weft_view_ended",
            "Views that were ended, by reason: idle, full (views.max), bytes (views.max_bytes)",
            self.ended.clone(),
        );
    }
}

/// Adds what is looked up at each scrape.
pub(super) fn collect(registry: &mut Registry, views: Views) {
    registry.register_collector(Box::new(Now(views)));
}

struct Now(Views);

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("views")
    }
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let inner = &self.0.inner;
        let now = inner.now();
        let (mut states, mut oldest, mut bytes) = ([0_i64; 3], 0, 0_i64);
        for view in inner.all() {
            bytes += i64::try_from(view.bytes()).unwrap_or(0);
            let standing = view.standing(now, &inner.contact);
            if standing != Standing::Unknown {
                oldest = oldest.max(view.age(now, &inner.contact));
            }
            states[standing as usize] += 1;
        }
        let standings = [Standing::Current, Standing::Stale, Standing::Unknown];
        let counted = standings.map(Standing::name).into_iter().zip(states);
        let mut family = encoder.encode_descriptor(
            "weft_views",
            "Views of the catalog kept here, by state",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for (state, count) in counted {
            ConstGauge::new(count).encode(family.encode_family(&[("state", state)])?)?;
        }
        let mut gauge = |name, help, value: f64| {
            let gauge = ConstGauge::new(value);
            let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)
        };
        let seconds = |millis: i64| millis as f64 / 1_000.0;
        gauge(
            "weft_view_age_seconds",
            "Age of the oldest view: since when it is not known to be what the servers have",
            seconds(oldest),
        )?;
        let alone = inner.contact.alone_since();
        gauge(
            "weft_autonomy_seconds",
            "For how long no server has served the views; 0 while one does",
            seconds(alone.map_or(0, |since| now.saturating_sub(since))),
        )?;
        gauge(
            "weft_view_bytes",
            "Bytes that views take, about",
            bytes as f64,
        )
    }
}
