//! The side of an agent: trades its token for a certificate before it starts.
//!
//! Owns: the files of its identity, and that they are there whole before the token counts as used.
//! Never: sends the secret to anybody who has not proven to be a server of the token's cluster.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};
use weft_agent::config::{self, Machine, Request, RuntimeConfig};
use weft_identity::enrolment::JoinToken;
use weft_identity::tls::TlsMaterial;
use weft_identity::{PeerFacts, TlsContext, files, pki};
use weft_proto::clock::{Clock, SystemClock};
use weft_proto::v1::{self, enrol_reply::Answer};
use weft_server::Transport;

use super::{Files, wire};

/// For one server to answer.
const LIMIT: Duration = Duration::from_secs(15);
/// Rounds over all servers before giving up: they may just be starting, or electing.
const ROUNDS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);
const PRIVATE: u32 = 0o600;

/// What to add to the sources of an agent's configuration: the settings that came with its certificate. An agent that
/// has a token but no certificate asks for one first.
///
/// Errors: the token is of no use, no server could be reached, or they refuse; and what to do. A token that was sent
/// to a server may be used up then; asking again with it and the same data directory is safe.
pub(crate) fn enrolled(
    request: &Request,
    machine: &Machine,
    config: &RuntimeConfig,
) -> anyhow::Result<Option<std::path::PathBuf>> {
    let token = match (&config.enrolment.token, &config.enrolment.token_file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(path)) => Some(read_token(path)?),
        (None, None) => None,
    };
    if config.server || config.dev {
        if token.is_some() {
            bail!(
                "join tokens are for agents without the server role; `weft init` makes the certificates of servers"
            );
        }
        return Ok(None);
    }
    let Some(data_dir) = &config.data_dir else {
        return Ok(None);
    };
    let (files, clock) = (Files::below(data_dir), SystemClock::new());
    if files.settings.exists() && (token.is_none() || is_current(&files, &clock)) {
        return Ok(Some(files.settings));
    }
    let Some(token) = token else {
        return Ok(None);
    };
    let token = JoinToken::parse(&token, clock.wall())?;
    check_name(request, machine, &token)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a thread to join with")?;
    runtime.block_on(ask_around(&files, &token, &clock))?;
    Ok(Some(files.settings))
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("join_token_file: cannot read {}", path.display()))
}

/// Whether the certificate that is there is still good.
fn is_current(files: &Files, clock: &dyn Clock) -> bool {
    let now = i64::try_from(clock.wall().get() / 1_000).unwrap_or(i64::MAX);
    facts_of(&files.certificate).is_some_and(|facts| facts.not_after > now)
}

/// What the first certificate in a file says.
pub(super) fn facts_of(path: &Path) -> Option<PeerFacts> {
    let pem = std::fs::read(path).ok()?;
    PeerFacts::read_pem(&pem)
}

/// A node that was named otherwise on purpose would be refused by the servers, and the token be lost on it.
fn check_name(request: &Request, machine: &Machine, token: &JoinToken) -> anyhow::Result<()> {
    let node = &token.ticket().node;
    let machine = Machine {
        host_name: node.clone(),
        ..machine.clone()
    };
    let config =
        config::load(request, &machine).map_err(|problems| anyhow::anyhow!("{problems}"))?;
    if !config.node.name.eq_ignore_ascii_case(node) {
        bail!(
            "this join token is for node {node:?}, but node_name is {:?}: make one for that name, or leave node_name away",
            config.node.name
        );
    }
    Ok(())
}

async fn ask_around(files: &Files, token: &JoinToken, clock: &SystemClock) -> anyhow::Result<()> {
    let ticket = token.ticket();
    files::create_directory(&files.directory, 0o700)?;
    files::write(
        &files.ca,
        pki::certificates_pem(&ticket.ca_der).as_bytes(),
        PRIVATE,
    )?;
    let public_key = own_key(files)?;
    let material = TlsMaterial {
        ca_file: Some(files.ca.clone()),
        verify_outgoing: true,
        verify_server_hostname: true,
        datacenter: ticket.datacenter.clone(),
        domain: ticket.domain.clone(),
        ..TlsMaterial::default()
    };
    let context = TlsContext::load(material, clock.wall())
        .context("the join token's certificates cannot be used; make a new one with `weft join-token create`")?;
    let context = Arc::new(context);
    let request = v1::EnrolRequest {
        node: ticket.node.clone(),
        datacenter: ticket.datacenter.clone(),
        secret: ticket.secret.clone(),
        public_key: public_key.into(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut last = String::new();
    for round in 0..ROUNDS {
        if round > 0 {
            crate::stderr::note!("no certificate yet ({last}); trying again");
            tokio::time::sleep(PAUSE).await;
        }
        for server in &ticket.servers {
            match converse(server, &context, &request).await {
                Ok(Answer::Enrolled(enrolled)) => return keep(files, ticket, &enrolled),
                Ok(Answer::Refused(refused)) if refused.reason == "join.later" => {
                    last = format!("{server}: {}", refused.message);
                }
                Ok(Answer::Refused(refused)) => {
                    bail!("{server}: {} ({})", refused.message, refused.reason)
                }
                Err(cause) => last = format!("{server}: {cause:#}"),
            }
        }
    }
    bail!(
        "no server gave a certificate: {last}; the token is good until it expires: check that this machine reaches {}",
        ticket.servers.join(", ")
    )
}

/// The key of an earlier try is used again: a token that was used with it is then still good.
fn own_key(files: &Files) -> anyhow::Result<Vec<u8>> {
    if let Ok(pem) = std::fs::read_to_string(&files.key)
        && let Some(public) = pki::public_key(&pem)
    {
        return Ok(public);
    }
    let (key, public) = pki::create_key()?;
    files::write(&files.key, key.reveal().as_bytes(), PRIVATE)?;
    Ok(public)
}

/// One server's answer.
pub(super) async fn converse(
    server: &str,
    context: &TlsContext,
    request: &v1::EnrolRequest,
) -> anyhow::Result<Answer> {
    let asking = async {
        let tcp = Transport::dial_enrolment(server, LIMIT).await?;
        let host = tcp.peer_addr()?.ip().to_string();
        let (mut stream, _) = context.connect(tcp, &host, LIMIT).await?;
        wire::send(&mut stream, request).await?;
        let reply: v1::EnrolReply = wire::receive(&mut stream)
            .await
            .context("the server broke off; its log says why")?;
        reply.answer.context("the server's answer was empty")
    };
    tokio::time::timeout(LIMIT, asking)
        .await
        .with_context(|| format!("no answer within {LIMIT:?}"))?
}

/// Writes the certificate, and last the settings: they say that all is there.
fn keep(files: &Files, ticket: &v1::JoinTicket, enrolled: &v1::Enrolled) -> anyhow::Result<()> {
    files::write(&files.ca, enrolled.ca.as_bytes(), PRIVATE)?;
    files::write(
        &files.certificate,
        enrolled.certificate_chain.as_bytes(),
        PRIVATE,
    )?;
    let text = serde_json::to_vec_pretty(&settings(files, ticket, enrolled))?;
    files::write(&files.settings, &text, PRIVATE)?;
    crate::stderr::note!(
        "node {} has its certificate; the token is used up and may be deleted",
        ticket.node
    );
    Ok(())
}

/// Consul's own keys, so that every later source may say otherwise.
fn settings(files: &Files, ticket: &v1::JoinTicket, enrolled: &v1::Enrolled) -> Value {
    let mut settings = Map::new();
    let mut set = |key: &str, value: Value| settings.insert(key.to_owned(), value);
    set("node_name", json!(ticket.node));
    set("datacenter", json!(enrolled.datacenter));
    set("domain", json!(enrolled.domain));
    set("retry_join", json!(enrolled.retry_join));
    if !enrolled.gossip_key.is_empty() {
        set("encrypt", json!(enrolled.gossip_key));
    }
    let tls = json!({
        "defaults": {
            "ca_file": files.ca, "cert_file": files.certificate, "key_file": files.key,
            "verify_incoming": true, "verify_outgoing": true,
        },
        "internal_rpc": {"verify_server_hostname": true},
    });
    set("tls", tls);
    Value::Object(settings)
}
