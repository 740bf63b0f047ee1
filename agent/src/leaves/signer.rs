//! Having a leaf signed: by this server's role, or by a server over the way that all calls take.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use prost::Message as _;
use weft_proto::v1;
use weft_proto::v1::ca_reply::Result as CaResult;

use super::LeafError;
use crate::backend::{Operator, Relay, RelayBody, RelayCall, RelayLimit};

/// Bytes of an answer: a chain of a few certificates.
const ANSWER_BYTES_MAX: usize = 256 << 10;

pub(super) struct Signer {
    pub(super) operator: Arc<dyn Operator>,
    pub(super) relay: Option<Arc<dyn Relay>>,
    pub(super) node_name: String,
}

impl Signer {
    pub(super) async fn sign(&self, service: &str, csr: Vec<u8>) -> Result<v1::CaLeaf, LeafError> {
        match &self.relay {
            Some(relay) => over_there(&**relay, service, csr).await,
            None => self.here(service, csr).await,
        }
    }

    async fn here(&self, service: &str, csr: Vec<u8>) -> Result<v1::CaLeaf, LeafError> {
        let op = v1::ca_request::Op::Sign(v1::CaSign {
            service: service.to_owned(),
            csr: csr.into(),
            caller: self.node_name.clone(),
        });
        let reply = self.operator.ca(op).await;
        match reply
            .map_err(|why| LeafError::Unreachable(why.to_string()))?
            .result
        {
            Some(CaResult::Leaf(leaf)) => Ok(leaf),
            Some(CaResult::Refusal(refusal)) => Err(LeafError::Refused {
                status: if refusal.invalid {
                    400
                } else if refusal.reason.starts_with("ca.csr.") {
                    429
                } else {
                    500
                },
                reason: refusal.reason,
                text: refusal.message,
            }),
            _ => Err(LeafError::Unreachable(
                "the CA's reply was empty".to_owned(),
            )),
        }
    }
}

async fn over_there(
    relay: &dyn Relay,
    service: &str,
    csr: Vec<u8>,
) -> Result<v1::CaLeaf, LeafError> {
    let unreachable = |why: String| LeafError::Unreachable(why);
    let path = format!("/v1/internal/connect/ca/sign/{}", escaped(service));
    let request = http::Request::put(path).header(http::header::CONTENT_LENGTH, csr.len());
    let (head, ()) = request
        .body(())
        .map_err(|why| unreachable(why.to_string()))?
        .into_parts();
    let call = RelayCall {
        head,
        body: RelayBody::Whole(Bytes::from(csr)),
        limit: RelayLimit::Usual,
    };
    let answer = relay
        .relay(call)
        .await
        .map_err(|why| unreachable(why.to_string()))?;
    let (head, body) = answer.into_parts();
    let body = http_body_util::Limited::new(body, ANSWER_BYTES_MAX)
        .collect()
        .await;
    let body = body.map_err(|why| unreachable(why.to_string()))?.to_bytes();
    if !head.status.is_success() {
        let reason = head
            .headers
            .get("x-weft-reason")
            .and_then(|reason| reason.to_str().ok());
        return Err(LeafError::Refused {
            status: head.status.as_u16(),
            reason: reason.unwrap_or("leaf.refused").to_owned(),
            text: String::from_utf8_lossy(&body).into_owned(),
        });
    }
    v1::CaLeaf::decode(body).map_err(|why| unreachable(why.to_string()))
}

fn escaped(service: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    service
        .bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}
