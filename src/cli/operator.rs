//! `weft operator raft …`, `weft operator autopilot …` and `weft operator usage …`.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, field, row};

/// Look after the servers
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft operator raft list-peers\n  weft operator autopilot set-config -cleanup-dead-servers=false"
)]
pub(crate) struct OperatorArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Look after Raft's membership
    #[command(
        subcommand,
        after_help = "Examples:\n  weft operator raft list-peers -stale\n  weft operator raft transfer-leader"
    )]
    Raft(Raft),
    /// Look after what the leader does by itself
    #[command(
        subcommand,
        after_help = "Examples:\n  weft operator autopilot get-config\n  weft operator autopilot set-config -min-quorum=3"
    )]
    Autopilot(Autopilot),
    /// Count what is registered
    #[command(
        subcommand,
        after_help = "Examples:\n  weft operator usage instances\n  weft operator usage instances -o json"
    )]
    Usage(Usage),
}

#[derive(clap::Subcommand)]
enum Usage {
    /// Count services, instances and nodes
    #[command(
        after_help = "Examples:\n  weft operator usage instances\n  weft operator usage instances -o json"
    )]
    Instances(GetConfigArgs),
}

#[derive(clap::Subcommand)]
enum Raft {
    /// List the servers
    #[command(
        after_help = "Examples:\n  weft operator raft list-peers\n  weft operator raft list-peers -stale"
    )]
    ListPeers(ListPeersArgs),
    /// Remove a server that will not come back
    #[command(
        after_help = "Examples:\n  weft operator raft remove-peer -id=3c1b…\n  weft operator raft remove-peer -address=10.0.0.3:8300"
    )]
    RemovePeer(RemovePeerArgs),
    /// Hand leadership to another server
    #[command(
        after_help = "Examples:\n  weft operator raft transfer-leader\n  weft operator raft transfer-leader -id=3c1b…"
    )]
    TransferLeader(TransferLeaderArgs),
}

#[derive(clap::Args)]
struct ListPeersArgs {
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct RemovePeerArgs {
    /// Raft id of the server
    #[arg(long)]
    id: Option<String>,
    /// Its address, host:port
    #[arg(long)]
    address: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct TransferLeaderArgs {
    /// Raft id of the server to lead; the best one unless set
    #[arg(long)]
    id: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Subcommand)]
enum Autopilot {
    /// Show the settings
    #[command(
        after_help = "Examples:\n  weft operator autopilot get-config\n  weft operator autopilot get-config -o json"
    )]
    GetConfig(GetConfigArgs),
    /// Change settings; those not named stay
    #[command(
        after_help = "Examples:\n  weft operator autopilot set-config -min-quorum=3\n  weft operator autopilot set-config -last-contact-threshold=300ms"
    )]
    SetConfig(SetConfigArgs),
    /// Say how well each server is; exit code 1 when one is not
    #[command(
        after_help = "Examples:\n  weft operator autopilot state\n  weft operator autopilot state -o json"
    )]
    State(GetConfigArgs),
}

#[derive(clap::Args)]
struct GetConfigArgs {
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct SetConfigArgs {
    /// Remove dead servers when new ones have come
    #[arg(long, value_name = "BOOL", value_parser = super::argv::go_bool)]
    cleanup_dead_servers: Option<bool>,
    /// Silence after which a server is unhealthy
    #[arg(long, value_name = "DURATION")]
    last_contact_threshold: Option<String>,
    /// Entries a healthy server may lag
    #[arg(long, value_name = "NUMBER")]
    max_trailing_logs: Option<u64>,
    /// Servers never removed below this number
    #[arg(long, value_name = "NUMBER")]
    min_quorum: Option<u64>,
    /// How long a new server must be healthy before it votes
    #[arg(long, value_name = "DURATION")]
    server_stabilization_time: Option<String>,
    /// Accepted for scripts when empty
    #[arg(long, hide = true)]
    redundancy_zone_tag: Option<String>,
    /// Accepted for scripts when false
    #[arg(long, hide = true, value_parser = super::argv::go_bool)]
    disable_upgrade_migration: Option<bool>,
    /// Accepted for scripts when empty
    #[arg(long, hide = true)]
    upgrade_version_tag: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: OperatorArgs) -> Done {
    match args.what {
        What::Raft(Raft::ListPeers(args)) => super::with_client(&args.client, list_peers),
        What::Raft(Raft::RemovePeer(args)) => {
            super::with_client(&args.client, |client| remove_peer(client, &args))
        }
        What::Raft(Raft::TransferLeader(args)) => {
            super::with_client(&args.client, |client| transfer(client, &args))
        }
        What::Autopilot(Autopilot::GetConfig(args)) => super::with_client(&args.client, get_config),
        What::Autopilot(Autopilot::SetConfig(args)) => {
            super::with_client(&args.client, |client| set_config(client, &args))
        }
        What::Autopilot(Autopilot::State(args)) => super::with_client(&args.client, state),
        What::Usage(Usage::Instances(args)) => super::with_client(&args.client, instances),
    }
}

async fn state(client: Client) -> Done {
    let answer = client.get("/v1/operator/autopilot/state", &[]).await?;
    if client.format() == Format::Json {
        output::json(&answer)?;
    } else {
        output::line(format!(
            "Healthy:           {}\nFailure tolerance: {}\n",
            answer["Healthy"], answer["FailureTolerance"]
        ))?;
        let mut rows = vec![row([
            "Node",
            "ID",
            "Address",
            "State",
            "Serf",
            "Healthy",
            "LastContact",
            "LastIndex",
            "Since",
        ])];
        for server in answer["Servers"]
            .as_object()
            .into_iter()
            .flat_map(|s| s.values())
        {
            let text = |name: &str| field(server, name);
            rows.push(vec![
                text("Name"),
                text("ID"),
                text("Address"),
                text("Status"),
                text("NodeStatus"),
                text("Healthy"),
                text("LastContact"),
                text("LastIndex"),
                text("StableSince"),
            ]);
        }
        output::table(&rows)?;
    }
    if answer["Healthy"] == true {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Negative,
        "not every server is healthy; see Healthy, Serf and LastContact of each",
    ))
}

async fn instances(client: Client) -> Done {
    let answer = client.get("/v1/operator/usage", &[]).await?;
    if client.format() == Format::Json {
        return output::json(&answer["Usage"]);
    }
    let mut rows = vec![row([
        "Datacenter",
        "Nodes",
        "Services",
        "Instances",
        "Billable",
        "Connect",
    ])];
    for (datacenter, usage) in answer["Usage"].as_object().into_iter().flatten() {
        let connect: u64 = usage["ConnectServiceInstances"]
            .as_object()
            .into_iter()
            .flat_map(|kinds| kinds.values())
            .filter_map(Value::as_u64)
            .sum();
        rows.push(vec![
            datacenter.clone(),
            field(usage, "Nodes"),
            field(usage, "Services"),
            field(usage, "ServiceInstances"),
            field(usage, "BillableServiceInstances"),
            connect.to_string(),
        ]);
    }
    output::table(&rows)
}

async fn list_peers(client: Client) -> Done {
    let answer = client.get("/v1/operator/raft/configuration", &[]).await?;
    if client.format() == Format::Json {
        return output::json(&answer);
    }
    let mut rows = vec![row([
        "Node",
        "ID",
        "Address",
        "State",
        "Voter",
        "RaftProtocol",
    ])];
    for server in answer["Servers"].as_array().into_iter().flatten() {
        let text = |name: &str| {
            Some(field(server, name))
                .filter(|t| !t.is_empty())
                .unwrap_or_else(|| "unknown".into())
        };
        let state = if server["Leader"] == true {
            "leader"
        } else {
            "follower"
        };
        rows.push(vec![
            text("Node"),
            text("ID"),
            text("Address"),
            state.into(),
            text("Voter"),
            text("ProtocolVersion"),
        ]);
    }
    output::table(&rows)
}

async fn remove_peer(client: Client, args: &RemovePeerArgs) -> Done {
    let (name, value) = match (&args.id, &args.address) {
        (Some(id), None) => ("id", id),
        (None, Some(address)) => ("address", address),
        _ => {
            return Err(Failure::new(
                Exit::Negative,
                "Error removing peer: an address or id is required for the peer to remove, and not both",
            ));
        }
    };
    client
        .call(
            Method::DELETE,
            "/v1/operator/raft/peer",
            &[(name, value)],
            Bytes::new(),
        )
        .await?;
    output::done(
        client.format(),
        format!("Removed peer with {name} \"{value}\""),
        json!({name: value, "done": "removed"}),
    )
}

async fn transfer(client: Client, args: &TransferLeaderArgs) -> Done {
    let query: Vec<(&str, &str)> = args.id.iter().map(|id| ("id", id.as_str())).collect();
    let answer = client
        .call(
            Method::POST,
            "/v1/operator/raft/transfer-leader",
            &query,
            Bytes::new(),
        )
        .await?
        .json()?;
    if answer["Success"] == false {
        return Err(Failure::new(
            Exit::Negative,
            "Leadership was not transferred",
        ));
    }
    output::done(client.format(), "Success", answer)
}

const AUTOPILOT: &str = "/v1/operator/autopilot/configuration";

async fn get_config(client: Client) -> Done {
    let answer = client.get(AUTOPILOT, &[]).await?;
    if client.format() == Format::Json {
        return output::json(&answer);
    }
    for name in [
        "CleanupDeadServers",
        "LastContactThreshold",
        "MaxTrailingLogs",
        "MinQuorum",
        "ServerStabilizationTime",
        "RedundancyZoneTag",
        "DisableUpgradeMigration",
        "UpgradeVersionTag",
    ] {
        let text = match &answer[name] {
            Value::String(text) => format!("{text:?}"),
            other => other.to_string(),
        };
        // Durations are shown bare, as Consul does.
        let bare = name.ends_with("Threshold") || name.ends_with("Time");
        output::line(format!(
            "{name} = {}",
            if bare { text.trim_matches('"') } else { &text }
        ))?;
    }
    Ok(())
}

/// Consul's enterprise edition has them; here they can only be as they are.
fn refuse_enterprise(args: &SetConfigArgs) -> Done {
    let text = |given: &Option<String>| given.as_ref().is_some_and(|text| !text.is_empty());
    let refused = [
        ("-redundancy-zone-tag", text(&args.redundancy_zone_tag)),
        ("-upgrade-version-tag", text(&args.upgrade_version_tag)),
        (
            "-disable-upgrade-migration",
            args.disable_upgrade_migration == Some(true),
        ),
    ];
    match refused.into_iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(Failure::usage(format!(
            "{name} has no effect in weft; leave it out"
        ))),
        None => Ok(()),
    }
}

async fn set_config(client: Client, args: &SetConfigArgs) -> Done {
    refuse_enterprise(args)?;
    let mut config = client.get(AUTOPILOT, &[]).await?;
    let index = field(&config, "ModifyIndex");
    let changes = [
        (
            "CleanupDeadServers",
            args.cleanup_dead_servers.map(|v| json!(v)),
        ),
        (
            "LastContactThreshold",
            args.last_contact_threshold.as_ref().map(|v| json!(v)),
        ),
        ("MaxTrailingLogs", args.max_trailing_logs.map(|v| json!(v))),
        ("MinQuorum", args.min_quorum.map(|v| json!(v))),
        (
            "ServerStabilizationTime",
            args.server_stabilization_time.as_ref().map(|v| json!(v)),
        ),
    ];
    for (name, value) in changes {
        if let Some(value) = value {
            config[name] = value;
        }
    }
    let answer = client
        .put(AUTOPILOT, &[("cas", &index)], config.to_string())
        .await?;
    if answer.text() == "true" {
        output::done(client.format(), "Configuration updated!", config)
    } else {
        Err(Failure::new(
            Exit::Negative,
            "Configuration could not be atomically updated, please try again",
        ))
    }
}
