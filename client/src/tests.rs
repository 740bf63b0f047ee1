//! Calls against servers inside the process: what is sent again, what is not, and what is said of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use weft_proto::clock::Clock;
use weft_proto::ids::UnixMillis;

use crate::call::{Limit, Payload};
use crate::config::{ClientConfig, Dial, Dialed, ServerAt, Stream};
use crate::error::CallError;
use crate::role::Client;

/// Paused with tokio's time.
struct TokioClock(tokio::time::Instant);

impl TokioClock {
    fn new() -> Arc<Self> {
        Arc::new(Self(tokio::time::Instant::now()))
    }
}

impl Clock for TokioClock {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(0)
    }
}

/// What a server does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Answers,
    /// Cannot be dialed.
    Away,
    /// Takes the request and hangs up.
    HangsUp,
    /// Takes the request and says nothing.
    Freezes,
    /// Says that it is stopping.
    Stops,
}

#[derive(Default)]
struct Net {
    servers: Mutex<BTreeMap<String, Manner>>,
    executed: Mutex<Vec<String>>,
    dialed: AtomicUsize,
}

struct Dialer(Arc<Net>);

impl Dial for Dialer {
    fn dial(&self, address: &str) -> BoxFuture<'static, Dialed> {
        let (net, address) = (self.0.clone(), address.to_owned());
        Box::pin(async move {
            net.dialed.fetch_add(1, Ordering::Relaxed);
            if net.servers.lock()[&address] == Manner::Away {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = tokio::io::duplex(4_096);
            tokio::spawn(serve(net, address, theirs));
            Ok(Box::new(ours) as Box<dyn Stream>)
        })
    }
}

async fn serve(net: Arc<Net>, address: String, stream: tokio::io::DuplexStream) {
    let hung_up = tokio_util::sync::CancellationToken::new();
    let service = service_fn(|request: Request<Incoming>| {
        let (net, address, hung_up) = (net.clone(), address.clone(), hung_up.clone());
        async move {
            let manner = net.servers.lock()[&address];
            net.executed.lock().push(address.clone());
            let (head, body) = request.into_parts();
            match manner {
                Manner::HangsUp => {
                    hung_up.cancel();
                    // An answer may not be ahead of the hanging up.
                    std::future::pending().await
                }
                Manner::Freezes => std::future::pending().await,
                _ => {}
            }
            let body = body.collect().await.unwrap().to_bytes();
            let mut response = Response::new(Full::new(body));
            if manner == Manner::Stops {
                *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
                let reason = http::HeaderValue::from_static("raft.stopped");
                response.headers_mut().insert("x-weft-reason", reason);
            }
            let path = head.uri.path_and_query().unwrap().as_str();
            let path = http::HeaderValue::from_str(path).unwrap();
            response.headers_mut().insert("x-path", path);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = connection => {}
        () = hung_up.cancelled() => {}
    }
}

/// A client of servers that behave so, in the order given.
fn world(manners: &[Manner]) -> (Client, Arc<Net>) {
    let net = Arc::new(Net::default());
    let mut servers = Vec::new();
    for (n, manner) in manners.iter().enumerate() {
        let server = ServerAt {
            address: format!("s{n}:8300"),
            name: format!("s{n}"),
        };
        net.servers.lock().insert(server.address.clone(), *manner);
        servers.push(server);
    }
    let config = ClientConfig {
        hold_timeout: Duration::from_secs(7),
        answer_limit: Duration::from_secs(15),
        max_calls: 2,
        seed: 1,
    };
    let client = Client::new(config, Arc::new(Dialer(net.clone())), TokioClock::new());
    client.set_servers(servers.clone());
    for server in servers.iter().rev() {
        client.inner.pool.servers.lock().prefer(&server.address);
    }
    (client, net)
}

fn head(method: Method) -> Parts {
    let request = Request::builder()
        .method(method)
        .uri("/v1/kv/a%2Fb?raw&x=1");
    request.body(()).unwrap().into_parts().0
}

async fn read(client: &Client) -> Result<String, CallError> {
    let call = client.call(
        head(Method::GET),
        Payload::Whole(Bytes::new()),
        true,
        Limit::Usual,
    );
    let answer = call.await?;
    Ok(answer.response.headers()["x-path"]
        .to_str()
        .unwrap()
        .to_owned())
}

async fn write(client: &Client) -> Result<Bytes, CallError> {
    let payload = Payload::Whole(Bytes::from_static(b"value"));
    let call = client.call(head(Method::PUT), payload, false, Limit::Usual);
    let answer = call.await?;
    Ok(answer
        .response
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes())
}

#[tokio::test(start_paused = true)]
async fn a_call_arrives_as_it_was_made() {
    let (client, net) = world(&[Manner::Answers]);
    assert_eq!(read(&client).await.unwrap(), "/v1/kv/a%2Fb?raw&x=1");
    assert_eq!(write(&client).await.unwrap(), "value");
    assert_eq!(
        net.dialed.load(Ordering::Relaxed),
        1,
        "one connection serves all"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_not_executed_goes_to_another_server() {
    for manner in [Manner::Away, Manner::Stops] {
        let (client, net) = world(&[manner, Manner::Answers]);
        assert_eq!(write(&client).await.unwrap(), "value", "{manner:?}");
        assert_eq!(net.executed.lock().last().unwrap(), "s1:8300");
        // The one that answered is asked first from now on.
        net.executed.lock().clear();
        write(&client).await.unwrap();
        assert_eq!(*net.executed.lock(), ["s1:8300"], "{manner:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_executed_is_sent_again_only_when_that_is_safe() {
    let (client, net) = world(&[Manner::HangsUp, Manner::Answers]);
    let error = write(&client).await.unwrap_err();
    assert!(matches!(error, CallError::Unknown(_)), "{error:?}");
    assert_eq!(*net.executed.lock(), ["s0:8300"]);
    let (client, net) = world(&[Manner::HangsUp, Manner::Answers]);
    read(&client).await.unwrap();
    assert_eq!(*net.executed.lock(), ["s0:8300", "s1:8300"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_hangs_on_a_frozen_server() {
    let (client, net) = world(&[Manner::Freezes]);
    let error = write(&client).await.unwrap_err();
    assert!(matches!(error, CallError::Unknown(_)), "{error:?}");
    let error = read(&client).await.unwrap_err();
    assert!(matches!(error, CallError::Unanswered(_)), "{error:?}");
    assert!(!net.executed.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_gossip_shows_gone_is_not_waited_for() {
    let (client, net) = world(&[Manner::Freezes, Manner::Answers]);
    let reading = tokio::spawn({
        let client = client.clone();
        async move { read(&client).await }
    });
    while net.executed.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    client.set_servers(vec![ServerAt {
        address: "s1:8300".into(),
        name: "s1".into(),
    }]);
    reading.await.unwrap().unwrap();
    assert_eq!(*net.executed.lock(), ["s0:8300", "s1:8300"]);
}

#[tokio::test(start_paused = true)]
async fn trying_again_ends_with_the_time_to_hold() {
    let net = Arc::new(Net::default());
    net.servers.lock().insert("s0:8300".into(), Manner::Away);
    let config = ClientConfig {
        hold_timeout: Duration::from_secs(7),
        answer_limit: Duration::from_secs(15),
        max_calls: 2,
        seed: 1,
    };
    let dialer = Arc::new(Dialer(net.clone()));
    let client = Client::new(config, dialer, TokioClock::new());
    assert_eq!(write(&client).await.unwrap_err(), CallError::NoServers);
    client.set_servers(vec![ServerAt {
        address: "s0:8300".into(),
        name: "s0".into(),
    }]);
    let error = write(&client).await.unwrap_err();
    assert!(
        matches!(&error, CallError::NotSent(why) if why.contains("s0:8300")),
        "{error:?}"
    );
    assert!(net.dialed.load(Ordering::Relaxed) > 1);
    let mut registry = Registry::default();
    client.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "weft_rpc_client_failures_total{reason=\"no_servers\"} 1",
        "weft_rpc_client_failures_total{reason=\"not_sent\"} 1",
        "weft_rpc_client_servers 1",
        "weft_rpc_client_in_flight 0",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_at_once_are_bounded_and_places_come_back() {
    let (client, net) = world(&[Manner::Freezes]);
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { read(&client).await })
        })
        .collect();
    while net.executed.lock().len() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(read(&client).await.unwrap_err(), CallError::TooMany(2));
    // Whoever gives up gives its place back.
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    for task in waiting {
        let _ = task.await;
    }
    net.servers.lock().insert("s0:8300".into(), Manner::Answers);
    read(&client).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn another_order_is_one_whose_first_server_answers() {
    let (client, net) = world(&[Manner::Away, Manner::Answers, Manner::Away]);
    for _ in 0..10 {
        client.rebalance().await;
        assert_eq!(client.current_server().unwrap().name, "s1");
    }
    net.servers.lock().insert("s0:8300".into(), Manner::Answers);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..50 {
        client.rebalance().await;
        seen.insert(client.current_server().unwrap().name);
        assert!(
            client.inner.pool.connected().len() <= 1,
            "others are let go"
        );
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
}
