//! Calls to other servers: one pooled channel per address.
//!
//! Owns: channels and their bound, the mapping of transport failures to "not sent" or "unknown".
//! Never: retries a write that may have been sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};
use weft_proto::v1;
use weft_proto::v1::server_client::ServerClient;

use crate::transport::Transport;

/// Channels kept; the least recently made is dropped beyond it. Servers are 3 to 7.
const CHANNELS_MAX: usize = 32;
const MESSAGE_MAX_BYTES: usize = 16 << 20;

/// Clients to the other servers.
#[derive(Clone)]
pub(crate) struct Forwarder {
    transport: Transport,
    channels: Arc<Mutex<BTreeMap<String, Channel>>>,
    timeout: Duration,
}

/// A client of one server.
pub(crate) type Client = ServerClient<Channel>;

/// Why a call brought no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The request never left; safe to try again.
    NotSent(String),
    /// It may have arrived.
    Unknown(String),
}

impl Forwarder {
    pub(crate) fn new(transport: Transport, timeout: Duration) -> Self {
        Self {
            transport,
            channels: Arc::default(),
            timeout,
        }
    }

    /// A client for `address`, connecting lazily.
    pub(crate) fn client(&self, address: &str) -> ServerClient<Channel> {
        let mut channels = self.channels.lock();
        if !channels.contains_key(address) {
            if channels.len() >= CHANNELS_MAX {
                channels.pop_first();
            }
            channels.insert(address.to_owned(), self.channel(address));
        }
        ServerClient::new(channels[address].clone())
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
            .max_encoding_message_size(MESSAGE_MAX_BYTES)
    }

    fn channel(&self, address: &str) -> Channel {
        let (transport, address) = (self.transport.clone(), address.to_owned());
        // The URI is a formality: the connector dials `address` and does TLS itself.
        Endpoint::from_static("http://weft.invalid")
            .timeout(self.timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(2 << 20)
            .initial_connection_window_size(8 << 20)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .connect_with_connector_lazy(tower::service_fn(move |_uri: http::Uri| {
                let (transport, address) = (transport.clone(), address.clone());
                async move { transport.dial_rpc(&address).await.map(TokioIo::new) }
            }))
    }

    /// Forwards an encoded command to the leader at `address`.
    pub(crate) async fn write(
        &self,
        address: &str,
        command: bytes::Bytes,
    ) -> Result<v1::WriteReply, CallError> {
        let request = v1::WriteRequest {
            command,
            forwarded: true,
            token: String::new(),
        };
        self.client(address)
            .write(request)
            .await
            .map(tonic::Response::into_inner)
            .map_err(|status| self.judge(address, &status))
    }

    /// Asks the leader at `address` for the index a linearizable read must wait for.
    pub(crate) async fn read_index(&self, address: &str) -> Result<v1::ReadIndexReply, CallError> {
        let request = v1::ReadIndexRequest {};
        self.client(address)
            .read_index(request)
            .await
            .map(tonic::Response::into_inner)
            .map_err(|status| self.judge(address, &status))
    }

    /// Any other call, with a time-out of its own.
    pub(crate) async fn call<T>(
        &self,
        address: &str,
        limit: Duration,
        call: impl AsyncFnOnce(ServerClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(limit, call(self.client(address))).await {
            Ok(answer) => answer
                .map(tonic::Response::into_inner)
                .map_err(|status| self.judge(address, &status)),
            Err(_) => Err(CallError::Unknown(format!(
                "no answer from {address} within {limit:?}"
            ))),
        }
    }

    fn judge(&self, address: &str, status: &tonic::Status) -> CallError {
        let text = format!("{address}: {}", describe(status));
        // tonic reports a failed dial as `Unavailable` with the connector's error as source; anything
        // else may have reached the peer.
        if status.code() == tonic::Code::Unavailable && source_is_dial(status) {
            self.channels.lock().remove(address);
            return CallError::NotSent(text);
        }
        CallError::Unknown(text)
    }
}

fn describe(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn source_is_dial(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        if cause.downcast_ref::<tonic::ConnectError>().is_some() {
            return true;
        }
        source = cause.source();
    }
    false
}
