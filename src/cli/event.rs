//! `weft event`: fires a user event.

use super::client::{Client, ClientArgs};
use super::failure::{Done, Failure};
use super::output::{self, Format, field};

/// Send a user event to the agents
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft event -name=deploy 1.4.2\n  weft event -name=flush -service='^web$' -tag=blue"
)]
pub(crate) struct EventArgs {
    /// Name of the event
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// Only agents whose node name this regular expression matches
    #[arg(long, value_name = "REGEX")]
    node: Option<String>,
    /// Only agents with a service whose name or id this regular expression matches
    #[arg(long, value_name = "REGEX")]
    service: Option<String>,
    /// Of these, only services with a tag that this regular expression matches
    #[arg(long, value_name = "REGEX")]
    tag: Option<String>,
    /// What the event says; with name and filters at most 512 bytes
    payload: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: EventArgs) -> Done {
    if args.name.is_empty() {
        return Err(Failure::usage("Event name must be specified (-name)"));
    }
    if args.tag.is_some() && args.service.is_none() {
        return Err(Failure::usage(
            "Cannot provide tag filter without service filter.",
        ));
    }
    super::with_client(&args.client, |client| fire(client, &args))
}

async fn fire(client: Client, args: &EventArgs) -> Done {
    let mut query = Vec::new();
    let filters = [
        ("node", &args.node),
        ("service", &args.service),
        ("tag", &args.tag),
    ];
    for (name, filter) in filters {
        query.extend(filter.as_deref().map(|text| (name, text)));
    }
    let path = format!("/v1/event/fire/{}", args.name);
    let payload = args.payload.clone().unwrap_or_default();
    let event = client.put(&path, &query, payload).await?.json()?;
    if client.format() == Format::Json {
        return output::json(&event);
    }
    output::line(format!("Event ID: {}", field(&event, "ID")))
}
