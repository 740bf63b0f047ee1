//! `weft monitor`: the agent's log, as it is written.

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;

use super::client::{self, Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output;

/// Show an agent's log as it is written, until Ctrl-C
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft monitor\n  weft monitor -log-level=debug -log-json")]
pub(crate) struct MonitorArgs {
    /// trace, debug, info, warn or err
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log_level: String,
    /// One JSON object a line
    #[arg(long)]
    log_json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: MonitorArgs) -> Done {
    super::with_client(&args.client, |client| monitor(client, &args))
}

async fn monitor(client: Client, args: &MonitorArgs) -> Done {
    let mut query = vec![("loglevel", args.log_level.as_str())];
    if args.log_json {
        query.push(("logjson", "true"));
    }
    let mut body = client
        .open(
            Method::GET,
            "/v1/agent/monitor",
            &query,
            client::whole(Bytes::new()),
        )
        .await?;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Failure::new(Exit::Unreachable, format!("the log ended: {error}")))?;
        if let Some(lines) = frame.data_ref()
            && !output::bytes_while_read(lines)?
        {
            return Ok(());
        }
    }
    // Not among the lines: a program may be reading them.
    crate::stderr::note!("The agent has stopped");
    Ok(())
}
