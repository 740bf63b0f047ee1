//! `weft info`.

use super::client::{Client, ClientArgs};
use super::failure::Done;
use super::output::{self, Format};

/// Show what the agent knows about itself
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft info\n  weft info -o json -http-addr=10.0.0.7:8500")]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: InfoArgs) -> Done {
    super::with_client(&args.client, show)
}

async fn show(client: Client) -> Done {
    let answer = client.get("/v1/agent/self", &[]).await?;
    let stats = &answer["Stats"];
    if client.format() == Format::Json {
        return output::json(stats);
    }
    let mut text = String::new();
    for (section, values) in stats.as_object().into_iter().flatten() {
        text.push_str(&format!("{section}:\n"));
        for (name, value) in values.as_object().into_iter().flatten() {
            text.push_str(&format!(
                "\t{name} = {}\n",
                value.as_str().unwrap_or_default()
            ));
        }
    }
    output::bytes(text.as_bytes())
}
