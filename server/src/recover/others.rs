//! Asking the other members whether they are really gone.
//!
//! Owns: one hello to each, and what its answer or silence means.
//! Never: takes silence for a proof; the operator knows why it is silent.

use std::sync::Arc;
use std::time::Duration;

use weft_proto::v1;
use weft_raft::SurveyedMember;

use crate::formation::HELLO_TIMEOUT;
use crate::forward::Forwarder;
use crate::transport::{RpcTls, Transport};

const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// What is at a member's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The member itself: it answers under its Raft id.
    Alive,
    /// Another server: a new one, or the member without its old log. It counts for nothing in the old membership.
    Replaced,
    /// Nobody.
    Silent(String),
    /// Somebody listens, but cannot be told apart from the member.
    Unclear(String),
}

/// Asks each of `members` at its last known address who it is.
pub async fn ask(
    members: &[&SurveyedMember],
    datacenter: &str,
    tls: Option<Arc<dyn RpcTls>>,
) -> Vec<Found> {
    let forwarder = Forwarder::new(Transport::new(tls, CONNECT_WITHIN), HELLO_TIMEOUT);
    let asked = members
        .iter()
        .map(|member| ask_one(&forwarder, member, datacenter));
    futures::future::join_all(asked).await
}

async fn ask_one(forwarder: &Forwarder, member: &SurveyedMember, datacenter: &str) -> Found {
    let address = &member.peer.address;
    let connecting = tokio::time::timeout(CONNECT_WITHIN, tokio::net::TcpStream::connect(address));
    match connecting.await {
        Ok(Ok(_)) => {}
        Ok(Err(cause)) => return Found::Silent(cause.to_string()),
        Err(_) => return Found::Silent(format!("no answer within {CONNECT_WITHIN:?}")),
    }
    let request = v1::HelloRequest {
        datacenter: datacenter.to_owned(),
        ..v1::HelloRequest::default()
    };
    let answer = forwarder
        .call(address, HELLO_TIMEOUT, async move |mut client| {
            client.hello(request).await
        })
        .await;
    match answer {
        Ok(hello) if hello.raft_id == member.peer.id.to_string() => Found::Alive,
        Ok(_) => Found::Replaced,
        Err(cause) => Found::Unclear(format!("{cause:?}")),
    }
}
