//! `weft join-token create|list|revoke`: ours; Consul has no such command.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::json;

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, field, row};

/// Let new agents in: one token, one node, one certificate
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft join-token create -node=web-1\n  weft join-token list")]
pub(crate) struct JoinTokenArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Make a token and print it; it is not shown again
    #[command(
        after_help = "Examples:\n  weft join-token create -node=web-1\n  weft join-token create -node=web-1 -ttl=10m -o json"
    )]
    Create(CreateArgs),
    /// List tokens that are open, and those of the last day
    #[command(after_help = "Examples:\n  weft join-token list\n  weft join-token list -o json")]
    List(ListArgs),
    /// Make an open token useless
    #[command(
        after_help = "Examples:\n  weft join-token revoke 7a1c…\n  weft join-token revoke -o json 7a1c…"
    )]
    Revoke(RevokeArgs),
}

#[derive(clap::Args)]
struct CreateArgs {
    /// Name of the node it is for
    #[arg(long)]
    node: String,
    /// How long it may be used, 1s to 168h; 1h unless set
    #[arg(long, value_name = "DURATION")]
    ttl: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct RevokeArgs {
    /// Id of the token, as `list` shows it
    id: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: JoinTokenArgs) -> Done {
    match args.what {
        What::Create(args) => super::with_client(&args.client, |client| create(client, &args)),
        What::List(args) => super::with_client(&args.client, list),
        What::Revoke(args) => super::with_client(&args.client, |client| revoke(client, &args.id)),
    }
}

async fn create(client: Client, args: &CreateArgs) -> Done {
    let mut body = json!({"Node": args.node});
    if let Some(ttl) = &args.ttl {
        body["TTL"] = json!(ttl);
    }
    let body = Bytes::from(body.to_string());
    let answer = client.put("/v1/operator/join-token", &[], body).await?;
    let answer = answer.json()?;
    if client.format() == Format::Json {
        return output::json(&answer);
    }
    // The token alone on standard output, so that it can be piped into a file.
    output::line(field(&answer, "Token"))?;
    crate::stderr::note!(
        "For node {}, once, until {}. On that machine, with the token in a file:\n  weft agent -data-dir=/var/lib/weft -join-token-file=FILE",
        field(&answer, "Node"),
        field(&answer, "ExpiresAt")
    );
    Ok(())
}

async fn list(client: Client) -> Done {
    let answer = client.get("/v1/operator/join-tokens", &[]).await?;
    if client.format() == Format::Json {
        return output::json(&answer);
    }
    let mut rows = vec![row(["ID", "Node", "Status", "Expires"])];
    for token in answer.as_array().into_iter().flatten() {
        rows.push(vec![
            field(token, "ID"),
            field(token, "Node"),
            field(token, "Status"),
            field(token, "ExpiresAt"),
        ]);
    }
    output::table(&rows)
}

async fn revoke(client: Client, id: &str) -> Done {
    let path = format!("/v1/operator/join-token/{}", super::segment(id)?);
    let answer = client
        .send(Method::DELETE, &path, &[], Bytes::new())
        .await?;
    match answer.status {
        StatusCode::NOT_FOUND => Err(Failure::new(
            Exit::NotFound,
            format!("there is no join token {id}"),
        )),
        status if !status.is_success() => Err(answer.failure()),
        _ => output::done(
            client.format(),
            format!("Revoked join token: {id}"),
            json!({"revoked": id}),
        ),
    }
}
