//! `weft catalog nodes|services|datacenters`.

use serde_json::Value;

use super::client::{Client, ClientArgs};
use super::failure::{Done, Failure};
use super::output::{self, Format, field, row};

/// Ask the catalog for nodes, services and datacenters
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft catalog services -tags\n  weft catalog nodes -service=web"
)]
pub(crate) struct CatalogArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// List the datacenters known
    #[command(
        after_help = "Examples:\n  weft catalog datacenters\n  weft catalog datacenters -o json"
    )]
    Datacenters(DatacentersArgs),
    /// List nodes
    #[command(
        after_help = "Examples:\n  weft catalog nodes -detailed\n  weft catalog nodes -service=web -node-meta=rack=r2"
    )]
    Nodes(NodesArgs),
    /// List services
    #[command(
        after_help = "Examples:\n  weft catalog services -tags\n  weft catalog services -node=vm-7"
    )]
    Services(ServicesArgs),
}

#[derive(clap::Args)]
struct DatacentersArgs {
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct NodesArgs {
    /// Show tagged addresses and metadata too
    #[arg(long)]
    detailed: bool,
    /// Only nodes with an instance of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only nodes with this metadata, key=value; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    node_meta: Vec<String>,
    /// Sort by distance from this node
    #[arg(long, value_name = "NODE")]
    near: Option<String>,
    /// Filter expression evaluated by the agent
    #[arg(long, value_name = "EXPRESSION")]
    filter: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct ServicesArgs {
    /// Only services of this node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Only services of nodes with this metadata, key=value; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    node_meta: Vec<String>,
    /// Show each service's tags
    #[arg(long)]
    tags: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: CatalogArgs) -> Done {
    match args.what {
        What::Datacenters(args) => super::with_client(&args.client, datacenters),
        What::Nodes(args) => super::with_client(&args.client, |client| nodes(client, &args)),
        What::Services(args) => super::with_client(&args.client, |client| services(client, &args)),
    }
}

/// `key=value` as the API's `key:value`.
fn meta(pairs: &[String]) -> Result<Vec<String>, Failure> {
    let convert = |pair: &String| match pair.split_once('=') {
        Some((key, value)) => Ok(format!("{key}:{value}")),
        None => Err(Failure::usage(format!(
            "-node-meta {pair:?} is not key=value"
        ))),
    };
    pairs.iter().map(convert).collect()
}

async fn datacenters(client: Client) -> Done {
    let answer = client.get("/v1/catalog/datacenters", &[]).await?;
    if client.format() == Format::Json {
        return output::json(&answer);
    }
    let names: Vec<&str> = answer
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    output::line(names.join("\n"))
}

async fn nodes(client: Client, args: &NodesArgs) -> Done {
    let pairs = meta(&args.node_meta)?;
    let mut query: Vec<(&str, &str)> = pairs
        .iter()
        .map(|pair| ("node-meta", pair.as_str()))
        .collect();
    query.extend(args.near.as_deref().map(|near| ("near", near)));
    query.extend(args.filter.as_deref().map(|filter| ("filter", filter)));
    let path = match &args.service {
        Some(service) => format!("/v1/catalog/service/{service}"),
        None => "/v1/catalog/nodes".into(),
    };
    let answer = client.get(&path, &query).await?;
    let mut nodes: Vec<Value> = answer.as_array().cloned().unwrap_or_default();
    // Two instances on one node are still one node.
    let mut seen = std::collections::BTreeSet::new();
    nodes.retain(|node| seen.insert(field(node, "Node")));
    if args.near.is_none() {
        nodes.sort_by_cached_key(|node| field(node, "Node"));
    }
    if client.format() == Format::Json {
        return output::json(&nodes.into());
    }
    if nodes.is_empty() {
        // Not a failure for Consul, so not for scripts.
        crate::stderr::note!("No nodes match the given query - try expanding your search.");
        return Ok(());
    }
    output::table(&if args.detailed {
        detailed(&nodes)
    } else {
        brief(&nodes)
    })
}

fn brief(nodes: &[Value]) -> Vec<Vec<String>> {
    let mut rows = vec![row(["Node", "ID", "Address", "DC"])];
    for node in nodes {
        let id: String = field(node, "ID").chars().take(8).collect();
        rows.push(vec![
            field(node, "Node"),
            id,
            field(node, "Address"),
            field(node, "Datacenter"),
        ]);
    }
    rows
}

fn detailed(nodes: &[Value]) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "Node",
        "ID",
        "Address",
        "DC",
        "TaggedAddresses",
        "Meta",
    ])];
    for node in nodes {
        let meta = if node["NodeMeta"].is_object() {
            &node["NodeMeta"]
        } else {
            &node["Meta"]
        };
        let names = ["Node", "ID", "Address", "Datacenter"];
        let mut cells: Vec<String> = names.iter().map(|name| field(node, name)).collect();
        cells.extend([pairs(&node["TaggedAddresses"]), pairs(meta)]);
        rows.push(cells);
    }
    rows
}

fn pairs(map: &Value) -> String {
    let all = map.as_object().into_iter().flatten();
    all.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect::<Vec<_>>()
        .join(", ")
}

async fn services(client: Client, args: &ServicesArgs) -> Done {
    let pairs = meta(&args.node_meta)?;
    let query: Vec<(&str, &str)> = pairs
        .iter()
        .map(|pair| ("node-meta", pair.as_str()))
        .collect();
    let services = match &args.node {
        Some(node) => of_node(
            &client
                .get(&format!("/v1/catalog/node/{node}"), &query)
                .await?,
        ),
        None => client.get("/v1/catalog/services", &query).await?,
    };
    if client.format() == Format::Json {
        return output::json(&services);
    }
    let mut rows = Vec::new();
    for (name, tags) in services.as_object().into_iter().flatten() {
        let tags: Vec<&str> = tags
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        // Without a tag there is no second column to stand apart from.
        rows.push(if args.tags && !tags.is_empty() {
            vec![name.clone(), tags.join(",")]
        } else {
            vec![name.clone()]
        });
    }
    if rows.is_empty() {
        crate::stderr::note!("No services match the given query - try expanding your search.");
        return Ok(());
    }
    output::table_with_gap(&rows, 6)
}

/// Name → tags, as `/v1/catalog/services` has it.
fn of_node(answer: &Value) -> Value {
    let mut out: std::collections::BTreeMap<String, Vec<Value>> = std::collections::BTreeMap::new();
    for service in answer["Services"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(_, service)| service)
    {
        let tags = out.entry(field(service, "Service")).or_default();
        for tag in service["Tags"].as_array().into_iter().flatten() {
            if !tags.contains(tag) {
                tags.push(tag.clone());
            }
        }
    }
    serde_json::json!(out)
}
