//! `weft leave`.

use serde_json::json;

use super::client::{Client, ClientArgs};
use super::failure::Done;
use super::output;

/// Make the agent leave the cluster and stop
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft leave\n  weft leave -http-addr=127.0.0.2:8500")]
pub(crate) struct LeaveArgs {
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: LeaveArgs) -> Done {
    super::with_client(&args.client, leave)
}

async fn leave(client: Client) -> Done {
    client.put("/v1/agent/leave", &[], "").await?;
    output::done(
        client.format(),
        "Graceful leave complete",
        json!({"done": "left"}),
    )
}
