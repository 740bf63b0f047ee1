//! `weft session create|list|info|renew|destroy`: ours; Consul has no such command.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, field, row};

/// Create, renew and destroy sessions, which hold locks
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft session create -name=backup -ttl=30s\n  weft session list"
)]
pub(crate) struct SessionArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Create a session and print its id
    #[command(
        after_help = "Examples:\n  weft session create -name=backup -ttl=30s\n  weft kv put -acquire -session=\"$(weft session create -ttl=30s)\" lock me"
    )]
    Create(CreateArgs),
    /// Destroy a session and let its locks go
    #[command(
        after_help = "Examples:\n  weft session destroy 7a1c…\n  weft session destroy -o json 7a1c…"
    )]
    Destroy(IdArgs),
    /// Show one session
    #[command(
        after_help = "Examples:\n  weft session info 7a1c…\n  weft session info -stale 7a1c…"
    )]
    Info(IdArgs),
    /// List sessions
    #[command(after_help = "Examples:\n  weft session list\n  weft session list -node=vm-7")]
    List(ListArgs),
    /// Renew a session's TTL
    #[command(
        after_help = "Examples:\n  weft session renew 7a1c…\n  weft session renew -o json 7a1c…"
    )]
    Renew(IdArgs),
}

#[derive(clap::Args)]
struct CreateArgs {
    /// A name, for people
    #[arg(long)]
    name: Option<String>,
    /// Node it belongs to; the agent's own unless set
    #[arg(long)]
    node: Option<String>,
    /// How long it lives without renewal, 10s to 24h; for ever unless set
    #[arg(long, value_name = "DURATION")]
    ttl: Option<String>,
    /// How long a lock it loses stays closed
    #[arg(long, value_name = "DURATION")]
    lock_delay: Option<String>,
    /// What becomes of locked keys: release or delete
    #[arg(long)]
    behavior: Option<String>,
    /// Check of the node it depends on; may be repeated, and replaces serfHealth
    #[arg(long, value_name = "CHECK")]
    node_check: Vec<String>,
    /// Check of a service it depends on; may be repeated
    #[arg(long, value_name = "CHECK")]
    service_check: Vec<String>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct IdArgs {
    /// Id of the session
    id: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct ListArgs {
    /// Only sessions of this node
    #[arg(long)]
    node: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: SessionArgs) -> Done {
    match args.what {
        What::Create(args) => super::with_client(&args.client, |client| create(client, &args)),
        What::Destroy(args) => super::with_client(&args.client, |client| destroy(client, &args.id)),
        What::Info(args) => super::with_client(&args.client, |client| info(client, &args.id)),
        What::List(args) => super::with_client(&args.client, |client| list(client, &args)),
        What::Renew(args) => super::with_client(&args.client, |client| renew(client, &args.id)),
    }
}

async fn create(client: Client, args: &CreateArgs) -> Done {
    let mut body = Map::new();
    let texts = [
        ("Name", &args.name),
        ("Node", &args.node),
        ("TTL", &args.ttl),
        ("LockDelay", &args.lock_delay),
        ("Behavior", &args.behavior),
    ];
    for (key, value) in texts {
        if let Some(value) = value {
            body.insert(key.into(), json!(value));
        }
    }
    if !args.node_check.is_empty() {
        body.insert("NodeChecks".into(), json!(args.node_check));
    }
    if !args.service_check.is_empty() {
        let checks: Vec<Value> = args
            .service_check
            .iter()
            .map(|id| json!({"ID": id}))
            .collect();
        body.insert("ServiceChecks".into(), checks.into());
    }
    let answer = client
        .put("/v1/session/create", &[], Value::Object(body).to_string())
        .await?
        .json()?;
    if client.format() == Format::Json {
        output::json(&answer)
    } else {
        output::line(field(&answer, "ID"))
    }
}

async fn destroy(client: Client, id: &str) -> Done {
    let answer = client
        .put(
            &format!("/v1/session/destroy/{}", super::segment(id)?),
            &[],
            "",
        )
        .await?;
    if client.format() == Format::Json {
        return output::json(&answer.json()?);
    }
    output::line(format!("Destroyed session: {id}"))
}

fn missing(id: &str) -> Failure {
    Failure::new(Exit::NotFound, format!("No session exists with id: {id}"))
}

async fn info(client: Client, id: &str) -> Done {
    let answer = client
        .get(&format!("/v1/session/info/{}", super::segment(id)?), &[])
        .await?;
    let Some(session) = answer.get(0) else {
        return Err(missing(id));
    };
    if client.format() == Format::Json {
        output::json(session)
    } else {
        show(session)
    }
}

async fn renew(client: Client, id: &str) -> Done {
    let path = format!("/v1/session/renew/{}", super::segment(id)?);
    let answer = client.send(Method::PUT, &path, &[], Bytes::new()).await?;
    match answer.status {
        StatusCode::NOT_FOUND => Err(missing(id)),
        status if !status.is_success() => Err(answer.failure()),
        _ if client.format() == Format::Json => output::json(&answer.json()?[0]),
        _ => output::line(format!(
            "Renewed session: {id}, TTL {}",
            field(&answer.json()?[0], "TTL")
        )),
    }
}

async fn list(client: Client, args: &ListArgs) -> Done {
    let path = args.node.as_ref().map_or_else(
        || "/v1/session/list".to_owned(),
        |node| format!("/v1/session/node/{node}"),
    );
    let answer = client.get(&path, &[]).await?;
    if client.format() == Format::Json {
        return output::json(&answer);
    }
    let mut rows = vec![row(["ID", "Name", "Node", "TTL", "Behavior", "LockDelay"])];
    for session in answer.as_array().into_iter().flatten() {
        let text = |name: &str| field(session, name);
        rows.push(vec![
            text("ID"),
            dash(text("Name")),
            text("Node"),
            dash(text("TTL")),
            text("Behavior"),
            delay(session),
        ]);
    }
    output::table(&rows)
}

fn show(session: &Value) -> Done {
    for name in [
        "ID",
        "Name",
        "Node",
        "TTL",
        "Behavior",
        "NodeChecks",
        "ServiceChecks",
        "CreateIndex",
        "ModifyIndex",
    ] {
        output::line(format!("{name:<16} {}", dash(field(session, name))))?;
    }
    output::line(format!("{:<16} {}", "LockDelay", delay(session)))
}

/// The API gives lock delays in nanoseconds.
fn delay(session: &Value) -> String {
    let nanos = session["LockDelay"].as_u64().unwrap_or_default();
    weft_proto::duration::format(std::time::Duration::from_nanos(nanos))
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}
