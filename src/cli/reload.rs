//! `weft reload`.

use serde_json::json;

use super::client::{Client, ClientArgs};
use super::failure::Done;
use super::output;

/// Make the agent read its configuration again
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft reload\n  weft reload -http-addr=unix:///run/weft/weft.sock"
)]
pub(crate) struct ReloadArgs {
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: ReloadArgs) -> Done {
    super::with_client(&args.client, reload)
}

async fn reload(client: Client) -> Done {
    client.put("/v1/agent/reload", &[], "").await?;
    output::done(
        client.format(),
        "Configuration reload triggered",
        json!({"done": "reloaded"}),
    )
}
