//! `weft force-leave`.

use serde_json::json;

use super::client::{Client, ClientArgs};
use super::failure::Done;
use super::output::{self, Format};

/// Declare a failed node to have left
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft force-leave vm-7\n  weft force-leave -prune vm-7")]
pub(crate) struct ForceLeaveArgs {
    /// Forget the node altogether
    #[arg(long)]
    prune: bool,
    /// In the pool of servers of all datacenters
    #[arg(long)]
    wan: bool,
    /// Name of the node
    node: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: ForceLeaveArgs) -> Done {
    super::with_client(&args.client, |client| force_leave(client, &args))
}

async fn force_leave(client: Client, args: &ForceLeaveArgs) -> Done {
    let node = super::segment(&args.node)?;
    let mut query = Vec::new();
    query.extend(args.prune.then_some(("prune", "1")));
    query.extend(args.wan.then_some(("wan", "1")));
    client
        .put(&format!("/v1/agent/force-leave/{node}"), &query, "")
        .await
        .map_err(|failure| failure.context("Error force leaving"))?;
    // Consul says nothing.
    if client.format() == Format::Json {
        output::json(&json!({"node": node, "pruned": args.prune, "done": "left"}))?;
    }
    Ok(())
}
