//! What a handler answers, before it is put on the wire.
//!
//! Owns: [`Reply`] and the body type of the connection; the last steps every answer goes through:
//! indentation and gzip.
//! Never: chooses a status for an error; [`super::error`] does.

use std::io::Write as _;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, VARY};
use http::{Response, StatusCode};
use hyper::body::{Frame, SizeHint};
use tokio::sync::mpsc;
use weft_proto::json::write::pretty;

use crate::backend::RelayedBody;

/// Bodies below this are not compressed: the answer would fit one packet anyway (as in Consul).
const GZIP_MIN_BYTES: usize = 1_400;

/// A body shared by all identical answers; the compressed form is made at most once.
#[derive(Debug, Default)]
pub(super) struct SharedBody {
    plain: Bytes,
    gzip: OnceLock<Bytes>,
}

impl SharedBody {
    pub(super) fn new(plain: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            plain: plain.into(),
            gzip: OnceLock::new(),
        })
    }

    pub(super) fn plain(&self) -> &Bytes {
        &self.plain
    }

    fn gzip(&self) -> Bytes {
        self.gzip.get_or_init(|| gzip(&self.plain)).clone()
    }
}

/// What the body is, for the headers and for what may still be done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// JSON: may be indented and compressed.
    Json,
    /// Text for people: may be compressed.
    Text,
    /// Anything else; the handler sets the content type. May be compressed.
    Bytes,
}

/// The content of an answer.
#[derive(Debug)]
pub(super) enum Content {
    /// No body at all.
    Empty,
    /// A finished body.
    Whole(Kind, Bytes),
    /// A finished JSON body that others may be answered with too.
    Shared(Arc<SharedBody>),
    /// A body that is still being made. A failure ends the connection without its closing chunk.
    Stream(mpsc::Receiver<Result<Bytes, std::io::Error>>),
    /// A server's body, as it is.
    Relayed(RelayedBody),
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
}

impl Reply {
    fn of(content: Content) -> Self {
        Self {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            content,
        }
    }

    /// 200 without a body.
    pub(super) fn empty() -> Self {
        Self::of(Content::Empty)
    }

    /// 200 with JSON.
    pub(super) fn json(body: impl Into<Bytes>) -> Self {
        Self::of(Content::Whole(Kind::Json, body.into()))
    }

    /// 200 with `true` or `false`.
    pub(super) fn verdict(value: bool) -> Self {
        Self::json(Bytes::from_static(if value { b"true" } else { b"false" }))
    }

    /// 200 with JSON that `write` writes.
    pub(super) fn written(write: impl FnOnce(&mut weft_proto::json::Json)) -> Self {
        let mut json = weft_proto::json::Json::with_capacity(512);
        write(&mut json);
        Self::json(json.into_bytes())
    }

    /// 200 with a shared JSON body.
    pub(super) fn shared(body: Arc<SharedBody>) -> Self {
        Self::of(Content::Shared(body))
    }

    /// 200 with plain text.
    pub(super) fn text(body: impl Into<Bytes>) -> Self {
        Self::of(Content::Whole(Kind::Text, body.into()))
    }

    /// 200 with bytes of another content type.
    pub(super) fn bytes(content_type: &'static str, body: Bytes) -> Self {
        Self::of(Content::Whole(Kind::Bytes, body))
            .with(CONTENT_TYPE, HeaderValue::from_static(content_type))
    }

    /// 200 with a body still being made.
    pub(super) fn stream(
        content_type: &'static str,
        stream: mpsc::Receiver<Result<Bytes, std::io::Error>>,
    ) -> Self {
        Self::of(Content::Stream(stream)).with(CONTENT_TYPE, HeaderValue::from_static(content_type))
    }

    /// A server's answer, as it is.
    pub(super) fn relayed(answer: Response<RelayedBody>) -> Self {
        let (head, body) = answer.into_parts();
        Self {
            status: head.status,
            headers: head.headers,
            content: Content::Relayed(body),
        }
    }

    /// Another status.
    pub(super) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// One more header.
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// With the index of an answer that this agent keeps itself, and whether it was here.
    pub(super) fn indexed(self, index: u64, was_known: bool) -> Self {
        let hit = if was_known { "HIT" } else { "MISS" };
        self.with(super::blocking::INDEX, HeaderValue::from(index.max(1)))
            .with(super::blocking::X_CACHE, HeaderValue::from_static(hit))
    }

    /// The answer for the wire, indented or compressed as the client asked.
    pub(super) fn finish(self, indent: bool, accepts_gzip: bool) -> Response<Body> {
        let Self {
            status,
            mut headers,
            content,
        } = self;
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        let body = match content {
            Content::Relayed(body) => Body::Relayed(body),
            Content::Empty => Body::Whole(None),
            Content::Stream(stream) => Body::Stream(stream),
            Content::Whole(kind, bytes) => {
                let bytes = if kind == Kind::Json && indent {
                    pretty(&bytes).into()
                } else {
                    bytes
                };
                describe(&mut headers, kind);
                let packed = accepts_gzip && bytes.len() >= GZIP_MIN_BYTES;
                let bytes = if packed { gzip(&bytes) } else { bytes };
                mark_gzip(&mut headers, packed);
                Body::Whole(Some(bytes))
            }
            Content::Shared(shared) => {
                describe(&mut headers, Kind::Json);
                let packed = accepts_gzip && shared.plain.len() >= GZIP_MIN_BYTES;
                mark_gzip(&mut headers, packed);
                Body::Whole(Some(match (indent, packed) {
                    (false, false) => shared.plain.clone(),
                    (false, true) => shared.gzip(),
                    (true, false) => pretty(&shared.plain).into(),
                    (true, true) => gzip(&pretty(&shared.plain)),
                }))
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

fn describe(headers: &mut HeaderMap, kind: Kind) {
    headers.entry(CONTENT_TYPE).or_insert(match kind {
        Kind::Json => HeaderValue::from_static("application/json"),
        Kind::Text | Kind::Bytes => HeaderValue::from_static("text/plain; charset=utf-8"),
    });
}

fn mark_gzip(headers: &mut HeaderMap, packed: bool) {
    if packed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
}

fn gzip(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::fast());
    encoder.write_all(plain).expect("a Vec takes every byte");
    encoder.finish().expect("a Vec takes every byte").into()
}

/// The body type of every answer.
#[derive(Debug)]
pub(super) enum Body {
    /// All at once, or nothing.
    Whole(Option<Bytes>),
    /// In pieces.
    Stream(mpsc::Receiver<Result<Bytes, std::io::Error>>),
    /// As a server sends it.
    Relayed(RelayedBody),
}

/// What a call that an agent has forwarded is answered with.
#[derive(Debug)]
pub struct RelayedAnswer(pub(super) Body);

impl hyper::body::Body for RelayedAnswer {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Pin::new(&mut self.get_mut().0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream
                .poll_recv(cx)
                .map(|piece| piece.map(|bytes| bytes.map(Frame::data))),
            Self::Relayed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream(_) => false,
            Self::Relayed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(_) => SizeHint::default(),
            Self::Relayed(body) => body.size_hint(),
        }
    }
}
