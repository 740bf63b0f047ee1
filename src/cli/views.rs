//! `weft views`.

use serde_json::Value;

use super::client::{Client, ClientArgs};
use super::failure::Done;
use super::output::{self, Format, field};

/// List what the agent keeps of the catalog to answer DNS and cached reads from
///
/// A server keeps none: it answers from its own state.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft views\n  weft views -output=json")]
pub(crate) struct ViewsArgs {
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: ViewsArgs) -> Done {
    super::with_client(&args.client, views)
}

async fn views(client: Client) -> Done {
    let views = client.get("/v1/agent/views", &[]).await?;
    if client.format() == Format::Json {
        return output::json(&views);
    }
    output::table(&rows(&views))
}

fn rows(views: &Value) -> Vec<Vec<String>> {
    let header = ["Kind", "Name", "State", "Age", "Index", "Bytes", "Refused"];
    let views = views.as_array().into_iter().flatten();
    let cells = views.map(|view| {
        let or_dash = |text: String| match text.is_empty() {
            true => "-".to_owned(),
            false => text,
        };
        let name = match (field(view, "Of"), field(view, "Name")) {
            (of, name) if of.is_empty() || name.is_empty() => of + &name,
            (of, name) => format!("{of}/{name}"),
        };
        vec![
            field(view, "Kind"),
            or_dash(name),
            field(view, "State"),
            or_dash(field(view, "Age")),
            field(view, "Index"),
            field(view, "Bytes"),
            or_dash(field(view, "Refused")),
        ]
    });
    std::iter::once(output::row(header)).chain(cells).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_a_line() {
        let views = serde_json::json!([
            {"Kind": "service", "Of": "", "Name": "web", "State": "current", "Age": "1.2s", "Index": 7, "Bytes": 5000, "Refused": ""},
            {"Kind": "config_entry", "Of": "proxy-defaults", "Name": "global", "State": "unknown", "Age": "", "Index": 0, "Bytes": 4096, "Refused": "no"},
            {"Kind": "nodes", "Of": "", "Name": "", "State": "stale", "Age": "1h0m0s", "Index": 9, "Bytes": 4096, "Refused": ""},
        ]);
        let rows: Vec<String> = rows(&views).iter().map(|row| row.join(" ")).collect();
        assert_eq!(
            rows,
            [
                "Kind Name State Age Index Bytes Refused",
                "service web current 1.2s 7 5000 -",
                "config_entry proxy-defaults/global unknown - 0 4096 no",
                "nodes - stale 1h0m0s 9 4096 -",
            ]
        );
    }
}
