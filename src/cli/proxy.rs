//! `weft proxy status`.

use serde_json::Value;

use super::client::{Client, ClientArgs};
use super::failure::Done;
use super::output::{self, Format, field, row};

/// The proxies of the agent's services
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft proxy status\n  weft proxy status -o json")]
pub(crate) struct ProxyArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Show each proxy of this agent: what it works by, whom it calls, and what is amiss
    #[command(after_help = "Examples:\n  weft proxy status\n  weft proxy status -o json")]
    Status(StatusArgs),
}

#[derive(clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: ProxyArgs) -> Done {
    let What::Status(args) = args.what;
    super::with_client(&args.client, status)
}

async fn status(client: Client) -> Done {
    let proxies = client.get("/v1/agent/connect/proxies", &[]).await?;
    if client.format() == Format::Json {
        return output::json(&proxies);
    }
    output::table(&rows(&proxies))
}

fn rows(proxies: &Value) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "Proxy",
        "Service",
        "Listen",
        "Index",
        "Leaf expires",
        "Upstreams",
        "Problems",
    ])];
    for proxy in proxies.as_array().into_iter().flatten() {
        let items = |name: &str| proxy[name].as_array().into_iter().flatten();
        let upstreams = items("Upstreams").map(|upstream| {
            let endpoints = upstream["Endpoints"].as_array().map_or(0, Vec::len);
            format!("{}={endpoints}", field(upstream, "Name"))
        });
        let upstreams: Vec<String> = upstreams.collect();
        let problems = items("Problems")
            .map(|problem| format!("{}: {}", field(problem, "Reason"), field(problem, "Detail")));
        let problems: Vec<String> = problems.collect();
        let cells = [
            field(proxy, "ID"),
            field(proxy, "Service"),
            field(proxy, "Listen"),
            field(proxy, "Index"),
            field(proxy, "LeafExpires"),
            upstreams.join(" "),
            problems.join("; "),
        ];
        let cells = cells.map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell
            }
        });
        rows.push(cells.to_vec());
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_line() {
        let proxies = serde_json::json!([
            {"ID": "web-sidecar-proxy", "Service": "web", "Listen": "10.0.0.1:21000", "Index": 31,
             "LeafExpires": "2026-01-01T00:00:00Z", "Problems": [],
             "Upstreams": [{"Name": "db", "Endpoints": ["10.0.0.2:21000", "10.0.0.3:21000"]}]},
            {"ID": "x-sidecar-proxy", "Service": "x", "Listen": "", "Index": 0, "LeafExpires": "", "Upstreams": [],
             "Problems": [{"Reason": "proxy.leaf_unknown", "Detail": "no server"}]},
        ]);
        let rows: Vec<String> = rows(&proxies).iter().map(|row| row.join(" ")).collect();
        assert_eq!(
            rows[1..],
            [
                "web-sidecar-proxy web 10.0.0.1:21000 31 2026-01-01T00:00:00Z db=2 -",
                "x-sidecar-proxy x - 0 - - proxy.leaf_unknown: no server",
            ]
        );
    }
}
