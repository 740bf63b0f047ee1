//! `weft join`.

use serde_json::json;

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output;

/// Make the agent join others
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft join 10.0.0.11\n  weft join 10.0.0.11:8301 10.0.0.12:8301"
)]
pub(crate) struct JoinArgs {
    /// Join the pool of servers of all datacenters
    #[arg(long)]
    wan: bool,
    /// Addresses, host or host:port
    #[arg(required = true)]
    addresses: Vec<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: JoinArgs) -> Done {
    super::with_client(&args.client, |client| join(client, &args))
}

async fn join(client: Client, args: &JoinArgs) -> Done {
    let query: &[(&str, &str)] = if args.wan { &[("wan", "1")] } else { &[] };
    let mut joined = 0;
    let mut reasons = Vec::new();
    for address in &args.addresses {
        let path = format!("/v1/agent/join/{}", super::segment(address)?);
        match client.put(&path, query, "").await {
            Ok(_) => joined += 1,
            Err(failure) => {
                reasons.push(failure.context(&format!("Error joining address '{address}'")))
            }
        }
    }
    if joined > 0 {
        for reason in reasons {
            reason.report(client.format());
        }
        return output::done(
            client.format(),
            format!("Successfully joined cluster by contacting {joined} nodes."),
            json!({"contacted": joined, "done": "joined"}),
        );
    }
    Err(reasons
        .pop()
        .unwrap_or_else(|| Failure::new(Exit::Negative, "Failed to join any nodes.")))
}
