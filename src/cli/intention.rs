//! `weft intention create|check|match|get|list|delete`, in the manner of `consul intention`.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, field, row};

/// Say which service may call which
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft intention create web db\n  weft intention check web db")]
pub(crate) struct IntentionArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Allow (or, with -deny, forbid) one service to call another
    #[command(
        after_help = "Examples:\n  weft intention create web db\n  weft intention create -deny '*' db"
    )]
    Create(CreateArgs),
    /// Say whether one service may call another; exit code 2 when not
    #[command(
        after_help = "Examples:\n  weft intention check web db\n  weft intention check -o json web db"
    )]
    Check(PairArgs),
    /// List what speaks of a service, the highest precedence first
    #[command(
        after_help = "Examples:\n  weft intention match db\n  weft intention match -source web"
    )]
    Match(MatchArgs),
    /// Show the intention between two services
    #[command(
        after_help = "Examples:\n  weft intention get web db\n  weft intention get -o json web db"
    )]
    Get(PairArgs),
    /// List all intentions
    #[command(after_help = "Examples:\n  weft intention list\n  weft intention list -o json")]
    List(ListArgs),
    /// Delete the intention between two services
    #[command(
        after_help = "Examples:\n  weft intention delete web db\n  weft intention delete -o json web db"
    )]
    Delete(PairArgs),
}

#[derive(clap::Args)]
struct CreateArgs {
    /// Who calls; `*`: every service
    source: String,
    /// Who is called; `*`: every service
    destination: String,
    /// Allow it; so it is unless -deny is given
    #[arg(long, conflicts_with = "deny")]
    allow: bool,
    /// Forbid it
    #[arg(long)]
    deny: bool,
    /// Replace the intention that is there
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct PairArgs {
    /// Who calls
    source: String,
    /// Who is called
    destination: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct MatchArgs {
    /// The service
    service: String,
    /// As the one that calls, not as the one that is called
    #[arg(long)]
    source: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: IntentionArgs) -> Done {
    match args.what {
        What::Create(args) => super::with_client(&args.client, |client| create(client, &args)),
        What::Check(args) => super::with_client(&args.client, |client| check(client, &args)),
        What::Match(args) => super::with_client(&args.client, |client| matching(client, &args)),
        What::Get(args) => super::with_client(&args.client, |client| get(client, &args)),
        What::List(args) => super::with_client(&args.client, list),
        What::Delete(args) => super::with_client(&args.client, |client| delete(client, &args)),
    }
}

const EXACT: &str = "/v1/connect/intentions/exact";

async fn create(client: Client, args: &CreateArgs) -> Done {
    let pair = [
        ("source", args.source.as_str()),
        ("destination", args.destination.as_str()),
    ];
    if !args.replace {
        let known = client.send(Method::GET, EXACT, &pair, Bytes::new()).await?;
        match known.status {
            StatusCode::NOT_FOUND => {}
            StatusCode::OK => {
                let text = format!(
                    "there is an intention {} => {} already; -replace puts this one in its place",
                    args.source, args.destination
                );
                return Err(Failure::new(Exit::Negative, text));
            }
            _ => return Err(known.failure()),
        }
    }
    let action = if args.deny { "deny" } else { "allow" };
    let body = Bytes::from(json!({"SourceType": "consul", "Action": action}).to_string());
    client.put(EXACT, &pair, body).await?;
    output::done(
        client.format(),
        format!(
            "Created: {} => {} ({action})",
            args.source, args.destination
        ),
        json!({"source": args.source, "destination": args.destination, "action": action}),
    )
}

async fn check(client: Client, args: &PairArgs) -> Done {
    let pair = [
        ("source", args.source.as_str()),
        ("destination", args.destination.as_str()),
    ];
    let answer = client.get("/v1/connect/intentions/check", &pair).await?;
    let allowed = answer["Allowed"] == Value::Bool(true);
    if client.format() == Format::Json {
        output::json(&answer)?;
    } else {
        output::line(if allowed { "Allowed" } else { "Denied" })?;
    }
    if allowed {
        Ok(())
    } else {
        // Consul's code for it.
        Err(Failure::silent(2))
    }
}

async fn matching(client: Client, args: &MatchArgs) -> Done {
    let by = if args.source { "source" } else { "destination" };
    let query = [("by", by), ("name", args.service.as_str())];
    let answer = client.get("/v1/connect/intentions/match", &query).await?;
    if client.format() == Format::Json {
        return output::json(&answer);
    }
    table(&answer[args.service.as_str()])
}

async fn get(client: Client, args: &PairArgs) -> Done {
    let pair = [
        ("source", args.source.as_str()),
        ("destination", args.destination.as_str()),
    ];
    let answer = client.send(Method::GET, EXACT, &pair, Bytes::new()).await?;
    match answer.status {
        StatusCode::OK => {
            let intention = answer.json()?;
            if client.format() == Format::Json {
                return output::json(&intention);
            }
            table(&json!([intention]))
        }
        StatusCode::NOT_FOUND => Err(Failure::new(
            Exit::NotFound,
            format!(
                "there is no intention {} => {}",
                args.source, args.destination
            ),
        )),
        _ => Err(answer.failure()),
    }
}

async fn list(client: Client) -> Done {
    let answer = client.get("/v1/connect/intentions", &[]).await?;
    if client.format() == Format::Json {
        return output::json(&answer);
    }
    table(&answer)
}

fn table(intentions: &Value) -> Done {
    let mut rows = vec![row(["Source", "Destination", "Action", "Precedence"])];
    for intention in intentions.as_array().into_iter().flatten() {
        let action = match field(intention, "Action") {
            none if none.is_empty() => "permissions".to_owned(),
            action => action,
        };
        rows.push(vec![
            field(intention, "SourceName"),
            field(intention, "DestinationName"),
            action,
            field(intention, "Precedence"),
        ]);
    }
    output::table(&rows)
}

async fn delete(client: Client, args: &PairArgs) -> Done {
    let pair = [
        ("source", args.source.as_str()),
        ("destination", args.destination.as_str()),
    ];
    let answer = client
        .send(Method::DELETE, EXACT, &pair, Bytes::new())
        .await?;
    if !answer.status.is_success() {
        return Err(answer.failure());
    }
    output::done(
        client.format(),
        format!("Intention deleted: {} => {}", args.source, args.destination),
        json!({"deleted": {"source": args.source, "destination": args.destination}}),
    )
}
