//! `weft rtt`: how long a packet takes between two nodes, by their network coordinates.

use serde_json::Value;
use weft_proto::coordinate::Coordinate;

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, field};

/// Estimate the round trip time between two nodes
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft rtt db-1 web-1\n  weft rtt -wan s1.dc1 s2.dc1")]
pub(crate) struct RttArgs {
    /// Between servers of any datacenter, named `NODE.DATACENTER`
    #[arg(long)]
    wan: bool,
    /// One node, or two; the second is the agent's own unless set
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: RttArgs) -> Done {
    if !(1..=2).contains(&args.nodes.len()) {
        return Err(Failure::usage("One or two node names must be specified"));
    }
    super::with_client(&args.client, |client| rtt(client, &args))
}

async fn rtt(client: Client, args: &RttArgs) -> Done {
    let first = args.nodes[0].clone();
    let second = match args.nodes.get(1) {
        Some(node) => node.clone(),
        None => own_name(&client, args.wan).await?,
    };
    let known = if args.wan {
        in_datacenters(&client, &[&first, &second]).await?
    } else {
        let nodes = client.get("/v1/coordinate/nodes", &[]).await?;
        named(&nodes, "")
    };
    let place = |node: &str| {
        let found = known
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(node));
        found.map(|(_, place)| *place).ok_or_else(|| {
            Failure::new(
                Exit::NotFound,
                format!("Could not find a coordinate for node {node:?}"),
            )
            .hint("a node has one some ten seconds after its agent has joined")
        })
    };
    let milliseconds = place(&first)?.distance(&place(&second)?) * 1e3;
    let pool = if args.wan { "WAN" } else { "LAN" };
    if client.format() == Format::Json {
        return output::json(&serde_json::json!({
            "Nodes": [first, second],
            "Pool": pool,
            "Milliseconds": milliseconds,
        }));
    }
    output::line(format!(
        "Estimated {first} <-> {second} rtt: {milliseconds:.3} ms (using {pool} coordinates)"
    ))
}

async fn own_name(client: &Client, wan: bool) -> Result<String, Failure> {
    let about = client.get("/v1/agent/self", &[]).await?;
    let node = field(&about["Config"], "NodeName");
    Ok(if wan {
        format!("{node}.{}", field(&about["Config"], "Datacenter"))
    } else {
        node
    })
}

async fn in_datacenters(
    client: &Client,
    nodes: &[&str],
) -> Result<Vec<(String, Coordinate)>, Failure> {
    if nodes.iter().any(|node| !node.contains('.')) {
        return Err(Failure::usage(
            "Node names must be specified as <node name>.<datacenter> with -wan",
        ));
    }
    let all = client.get("/v1/coordinate/datacenters", &[]).await?;
    let datacenters = all.as_array().into_iter().flatten();
    let of_one = |one: &Value| {
        let suffix = format!(".{}", field(one, "Datacenter"));
        named(&one["Coordinates"], &suffix)
    };
    Ok(datacenters.flat_map(of_one).collect())
}

/// Names, with `suffix`, and places of a list of coordinates.
fn named(rows: &Value, suffix: &str) -> Vec<(String, Coordinate)> {
    let rows = rows.as_array().into_iter().flatten();
    let place = |coord: &Value| {
        let vector: Vec<f64> = coord["Vec"]
            .as_array()?
            .iter()
            .map(Value::as_f64)
            .collect::<Option<_>>()?;
        Some(Coordinate {
            vector: vector.try_into().ok()?,
            error: coord["Error"].as_f64()?,
            adjustment: coord["Adjustment"].as_f64()?,
            height: coord["Height"].as_f64()?,
        })
    };
    rows.filter_map(|row| {
        let name = field(row, "Node") + suffix;
        Some((name, place(&row["Coord"])?))
    })
    .collect()
}
