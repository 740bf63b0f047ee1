//! `weft members`.

use serde_json::Value;

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, field, row};

/// List the members of the cluster
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft members\n  weft members -status='^(failed|left)$' -detailed"
)]
pub(crate) struct MembersArgs {
    /// Show every tag
    #[arg(long)]
    detailed: bool,
    /// Say who suspects whom, since when, and how each was probed by the agent asked
    #[arg(long, conflicts_with = "detailed")]
    why: bool,
    /// Show only members whose status matches this expression, such as alive or failed|left
    #[arg(long, default_value = ".*", value_name = "PATTERN")]
    status: String,
    /// Ask for the servers of all datacenters
    #[arg(long)]
    wan: bool,
    /// Filter expression evaluated by the agent
    #[arg(long, value_name = "EXPRESSION")]
    filter: Option<String>,
    /// Accepted for scripts; segments do not exist
    #[arg(long, hide = true)]
    segment: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: MembersArgs) -> Done {
    super::with_client(&args.client, |client| list(client, &args))
}

async fn list(client: Client, args: &MembersArgs) -> Done {
    let wanted = regex::Regex::new(&args.status).map_err(|error| {
        // The last line says what is wrong; those before show where, with a pointer of its own.
        let error = error.to_string();
        let why = error.lines().last().unwrap_or_default();
        let why = why.trim_start_matches("error: ");
        let message = format!("Failed to compile status regexp {:?}: {why}", args.status);
        Failure::new(Exit::Negative, message)
    })?;
    let mut query = Vec::new();
    query.extend(args.wan.then_some(("wan", "1")));
    query.extend(args.why.then_some(("why", "1")));
    query.extend(args.filter.as_deref().map(|filter| ("filter", filter)));
    query.extend(args.segment.as_deref().map(|segment| ("segment", segment)));
    let answer = client.get("/v1/agent/members", &query).await?;
    let mut members: Vec<Value> = answer.as_array().cloned().unwrap_or_default();
    members.retain(|member| wanted.is_match(status(member)));
    members.sort_by_cached_key(|member| (member["Tags"]["dc"].to_string(), field(member, "Name")));
    if client.format() == Format::Json {
        return output::json(&members.into());
    }
    if members.is_empty() {
        return Err(Failure::new(Exit::Usage, "No members match"));
    }
    output::table(&if args.why {
        accounts(&members)
    } else if args.detailed {
        detailed(&members)
    } else {
        standard(&members)
    })
}

fn status(member: &Value) -> &'static str {
    match member["Status"].as_u64() {
        Some(1) => "alive",
        Some(2) => "leaving",
        Some(3) => "left",
        Some(4) => "failed",
        _ => "none",
    }
}

fn address(member: &Value) -> String {
    let (host, port) = (field(member, "Addr"), field(member, "Port"));
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn tag(member: &Value, name: &str) -> String {
    field(&member["Tags"], name)
}

/// Consul's columns.
fn standard(members: &[Value]) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "Node",
        "Address",
        "Status",
        "Type",
        "Build",
        "Protocol",
        "DC",
        "Partition",
        "Segment",
    ])];
    for member in members {
        let server = tag(member, "role") == "consul";
        let build = tag(member, "build");
        let named = |name: &str, default: &str| {
            let text = tag(member, name);
            if text.is_empty() {
                default.to_owned()
            } else {
                text
            }
        };
        rows.push(vec![
            field(member, "Name"),
            address(member),
            status(member).into(),
            if server { "server" } else { "client" }.into(),
            build.split(':').next().unwrap_or_default().to_owned(),
            tag(member, "vsn"),
            tag(member, "dc"),
            named("ap", "default"),
            named("segment", if server { "<all>" } else { "<default>" }),
        ]);
    }
    rows
}

/// Why each member is shown as it is.
fn accounts(members: &[Value]) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "Node",
        "Address",
        "Status",
        "Since",
        "Suspected",
        "Probed",
        "RTT",
        "Incarnation",
        "Clock",
        "Rivals",
    ])];
    for member in members {
        let why = &member["Why"];
        let or = |name: &str, none: &str| why[name].as_str().unwrap_or(none).to_owned();
        let accusers: Vec<String> = why["AccusedBy"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|by| format!("{} {} ago", field(by, "Node"), field(by, "Ago")))
            .collect();
        let suspected = match (why["Suspected"] == true, accusers.is_empty()) {
            (false, true) => "no".to_owned(),
            (true, true) => "yes".to_owned(),
            // Failed already, or to be so soon.
            (_, false) => format!("by {}", accusers.join(", ")),
        };
        let rivals = why["Rivals"].as_array().into_iter().flatten();
        let rivals: Vec<&str> = rivals.filter_map(Value::as_str).collect();
        rows.push(vec![
            field(member, "Name"),
            address(member),
            status(member).into(),
            or("Since", "-"),
            suspected,
            why["ProbedAgo"]
                .as_str()
                .map_or("-".to_owned(), |ago| format!("{ago} ago")),
            if why["Answered"] == false {
                "no answer".to_owned()
            } else {
                or("RTT", "-")
            },
            field(why, "Incarnation"),
            match why["ClockAhead"].as_str() {
                None => "-".to_owned(),
                Some(ahead) => match ahead.strip_prefix('-') {
                    Some(behind) => format!("{behind} behind"),
                    None => format!("{ahead} ahead"),
                },
            },
            if rivals.is_empty() {
                "-".to_owned()
            } else {
                rivals.join(",")
            },
        ]);
    }
    rows
}

fn detailed(members: &[Value]) -> Vec<Vec<String>> {
    let mut rows = vec![row(["Node", "Address", "Status", "Tags"])];
    for member in members {
        let tags = member["Tags"].as_object().into_iter().flatten();
        // Servers are in every segment, which Consul shows as it does in the short form.
        let shown = |name: &str, value: &Value| match (name, value.as_str().unwrap_or_default()) {
            ("segment", "") => "<all>".to_owned(),
            (_, text) => text.to_owned(),
        };
        let tags: Vec<String> = tags
            .map(|(name, value)| format!("{name}={}", shown(name, value)))
            .collect();
        rows.push(vec![
            field(member, "Name"),
            address(member),
            status(member).into(),
            tags.join(","),
        ]);
    }
    rows
}
