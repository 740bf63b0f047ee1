//! Metrics sent to a statsd, a statsite or a dogstatsd, under the names that Consul sends.
//!
//! Owns: what is sent of a figure since the last time, the three forms, and the way there.
//! Never: waits for a receiver beyond a bound, or keeps what could not be sent; measures nothing.
//! Source: Consul docs, "telemetry"; the statsd and DogStatsD line protocols.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket, UnixDatagram};

use super::api::Api;
use super::consul_metrics::{Figure, Point};
use super::telemetry;

/// As often as Consul's own aggregates are made.
const EVERY: Duration = Duration::from_secs(10);
/// What fits into one packet of most networks.
const PACKET_MAX_BYTES: usize = 1_400;
/// For a receiver to be found, reached and told.
const LIMIT: Duration = Duration::from_secs(3);

/// Where metrics are sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushConfig {
    /// `telemetry.statsd_address`, `host:port` of UDP.
    pub statsd: Option<String>,
    /// `telemetry.statsite_address`, `host:port` of TCP.
    pub statsite: Option<String>,
    /// `telemetry.dogstatsd_addr`, `host:port` of UDP or `unix:///path`.
    pub dogstatsd: Option<String>,
    /// `telemetry.dogstatsd_tags`, added to every line.
    pub dogstatsd_tags: Vec<String>,
    /// Put into the names of gauges; none with `telemetry.disable_hostname`.
    pub host: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Outcome {
    form: &'static str,
    outcome: &'static str,
}

/// Rounds of sending.
pub(super) type Pushes = Family<Outcome, Counter>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Statsd,
    Statsite,
    Dogstatsd,
}

impl Form {
    const fn name(self) -> &'static str {
        match self {
            Self::Statsd => "statsd",
            Self::Statsite => "statsite",
            Self::Dogstatsd => "dogstatsd",
        }
    }
}

struct Sink {
    form: Form,
    address: String,
    /// Of a statsite, while it takes what it is told.
    stream: Option<TcpStream>,
}

/// Sends to every receiver of the configuration until the server stops.
pub(super) async fn run(api: Arc<Api>) {
    let config = &api.config.push;
    let named = [
        (Form::Statsd, &config.statsd),
        (Form::Statsite, &config.statsite),
        (Form::Dogstatsd, &config.dogstatsd),
    ];
    let sink = |(form, address): (Form, &Option<String>)| {
        let address = address.clone()?;
        Some(Sink {
            form,
            address,
            stream: None,
        })
    };
    let mut sinks: Vec<_> = named.into_iter().filter_map(sink).collect();
    let mut since = Since::default();
    while !sinks.is_empty() {
        tokio::select! {
            () = api.stopping.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let news = since.news(telemetry::points(&api));
        let sending = sinks.iter_mut().map(|sink| push(&api, sink, &news));
        futures::future::join_all(sending).await;
    }
}

async fn push(api: &Api, sink: &mut Sink, news: &[Point]) {
    let config = &api.config.push;
    let lines: Vec<_> = (news.iter().map(|point| line(sink.form, point, config))).collect();
    let sent = tokio::time::timeout(LIMIT, send(sink, &lines)).await;
    let failed = match sent {
        Ok(Ok(())) => None,
        Ok(Err(cause)) => Some(cause.to_string()),
        Err(_) => Some(format!("not taken within {LIMIT:?}")),
    };
    let (form, outcome) = (
        sink.form.name(),
        if failed.is_some() { "failed" } else { "sent" },
    );
    api.metrics
        .pushes
        .get_or_create(&Outcome { form, outcome })
        .inc();
    if let Some(why) = failed {
        sink.stream = None;
        tracing::warn!(reason = "telemetry.not_sent", form, peer.addr = %sink.address, error = %why, "metrics not sent");
    }
}

async fn send(sink: &mut Sink, lines: &[String]) -> io::Result<()> {
    if sink.form == Form::Statsite {
        let stream = match &mut sink.stream {
            Some(stream) => stream,
            none => none.insert(TcpStream::connect(&sink.address).await?),
        };
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        return stream.write_all(text.as_bytes()).await;
    }
    if let Some(path) = sink.address.strip_prefix("unix://") {
        let socket = UnixDatagram::unbound()?;
        for packet in packets(lines) {
            socket.send_to(packet.as_bytes(), path).await?;
        }
        return Ok(());
    }
    // Its name is looked up each time: the receiver may have moved.
    let to = tokio::net::lookup_host(&sink.address).await?.next();
    let to = to.ok_or_else(|| io::Error::other("the name has no address"))?;
    let socket = UdpSocket::bind(if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }).await?;
    for packet in packets(lines) {
        socket.send_to(packet.as_bytes(), to).await?;
    }
    Ok(())
}

/// Lines gathered so that each packet is well filled and none too large.
fn packets(lines: &[String]) -> Vec<String> {
    let mut packets: Vec<String> = Vec::new();
    for line in lines {
        match packets.last_mut() {
            Some(packet) if packet.len() + line.len() < PACKET_MAX_BYTES => {
                packet.push('\n');
                packet.push_str(line);
            }
            _ => packets.push(line.clone()),
        }
    }
    packets
}

/// What counters and timers had been when they were sent last.
#[derive(Default)]
struct Since {
    sent: HashMap<Series, (f64, f64)>,
}

/// Name and labels of a figure.
type Series = (String, Vec<(&'static str, String)>);

impl Since {
    /// Gauges as they are, of the others what has come since; what has not changed is left out.
    fn news(&mut self, points: Vec<Point>) -> Vec<Point> {
        let news = |mut point: Point| {
            let (count, sum) = match point.figure() {
                Figure::Gauge(_) => return Some(point),
                Figure::Counter(total) => (total, 0.0),
                Figure::Timer { count, sum } => (count, sum),
            };
            let key = (point.name().to_owned(), point.labels().to_vec());
            let before = self.sent.insert(key, (count, sum)).unwrap_or_default();
            let (count, sum) = (count - before.0, sum - before.1);
            point.set_figure(match point.figure() {
                Figure::Timer { .. } => Figure::Timer { count, sum },
                _ => Figure::Counter(count),
            });
            (count > 0.0).then_some(point)
        };
        points.into_iter().filter_map(news).collect()
    }
}

/// One figure. Of timers the mean, with the rate that makes their number right.
fn line(form: Form, point: &Point, config: &PushConfig) -> String {
    let mut name = String::new();
    let (prefix, rest) = point.name().split_once('.').unwrap_or(("", point.name()));
    let host = config
        .host
        .as_deref()
        .filter(|_| form != Form::Dogstatsd && matches!(point.figure(), Figure::Gauge(_)));
    let parts = [
        Some(prefix).filter(|prefix| !prefix.is_empty()),
        host,
        Some(rest),
    ];
    for part in parts.into_iter().flatten() {
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&clean(part));
    }
    if form != Form::Dogstatsd {
        for (_, value) in point.labels() {
            name.push('.');
            name.push_str(&clean(value));
        }
    }
    let mut line = match point.figure() {
        Figure::Gauge(value) => format!("{name}:{value}|g"),
        Figure::Counter(value) => format!("{name}:{value}|c"),
        Figure::Timer { count, sum } if form == Form::Statsite => {
            format!("{name}:{:.6}|ms", sum / count)
        }
        Figure::Timer { count, sum } => {
            format!("{name}:{:.6}|ms|@{}", sum / count, 1.0 / count)
        }
    };
    if form == Form::Dogstatsd {
        let own = point.labels().iter();
        let tags = own.map(|(name, value)| format!("{name}:{}", clean(value)));
        let tags: Vec<_> = tags.chain(config.dogstatsd_tags.iter().cloned()).collect();
        if !tags.is_empty() {
            line.push_str("|#");
            line.push_str(&tags.join(","));
        }
    }
    line
}

/// Without what ends a name in these protocols.
fn clean(text: &str) -> String {
    text.replace([':', '|', '@', '#', ',', ' ', '\n'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PushConfig {
        PushConfig {
            host: Some("db 1".into()),
            dogstatsd_tags: vec!["team:blue".into()],
            ..PushConfig::default()
        }
    }

    #[test]
    fn each_form_has_its_lines() {
        let labels = vec![("method", "GET".to_owned())];
        let timer = Figure::Timer {
            count: 4.0,
            sum: 10.0,
        };
        for (form, figure, labels, expected) in [
            (
                Form::Statsd,
                Figure::Gauge(7.0),
                vec![],
                "consul.db_1.x.y:7|g",
            ),
            (
                Form::Statsd,
                Figure::Counter(3.0),
                labels.clone(),
                "consul.x.y.GET:3|c",
            ),
            (Form::Statsd, timer, vec![], "consul.x.y:2.500000|ms|@0.25"),
            (Form::Statsite, timer, vec![], "consul.x.y:2.500000|ms"),
            (
                Form::Dogstatsd,
                Figure::Gauge(7.0),
                labels,
                "consul.x.y:7|g|#method:GET,team:blue",
            ),
        ] {
            let point = Point::new("consul.x.y", labels, figure);
            assert_eq!(line(form, &point, &config()), expected);
        }
    }

    #[test]
    fn only_what_has_come_since_is_sent() {
        let mut since = Since::default();
        let points = |count: f64| {
            vec![
                Point::new("consul.c", vec![], Figure::Counter(count)),
                Point::new("consul.g", vec![], Figure::Gauge(1.0)),
            ]
        };
        let figures = |points: Vec<Point>| {
            let figures = points.iter().map(Point::figure);
            figures.collect::<Vec<_>>()
        };
        let gauge = Figure::Gauge(1.0);
        assert_eq!(
            figures(since.news(points(5.0))),
            [Figure::Counter(5.0), gauge]
        );
        assert_eq!(figures(since.news(points(5.0))), [gauge]);
        assert_eq!(
            figures(since.news(points(7.0))),
            [Figure::Counter(2.0), gauge]
        );
    }

    #[test]
    fn packets_hold_whole_lines_and_are_not_too_large() {
        let lines: Vec<_> = (0..500)
            .map(|n| format!("consul.some.name.{n}:1|c"))
            .collect();
        let packets = packets(&lines);
        assert!(packets.len() > 5 && packets.iter().all(|one| one.len() <= PACKET_MAX_BYTES));
        let back: Vec<_> = packets.iter().flat_map(|one| one.lines()).collect();
        assert_eq!(back, lines);
    }
}
