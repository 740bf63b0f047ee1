//! `weft maint`: takes this host, or one of its services, out of service and back.

use serde_json::{Value, json};

use super::client::{Client, ClientArgs};
use super::failure::{Done, Failure};
use super::output::{self, Format, field};

const OF_NODE: &str = "_node_maintenance";
const OF_SERVICE: &str = "_service_maintenance:";

/// Show maintenance, or switch it on and off
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft maint\n  weft maint -enable -service=web-1 -reason='new kernel'"
)]
pub(crate) struct MaintArgs {
    /// Out of service
    #[arg(long, conflicts_with = "disable")]
    enable: bool,
    /// Back into service
    #[arg(long)]
    disable: bool,
    /// Why, for those who look
    #[arg(long, default_value = "")]
    reason: String,
    /// Only this service, by id; the whole host unless set
    #[arg(long)]
    service: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: MaintArgs) -> Done {
    super::with_client(&args.client, |client| maint(client, &args))
}

async fn maint(client: Client, args: &MaintArgs) -> Done {
    if !args.enable && !args.disable {
        if args.service.is_some() || !args.reason.is_empty() {
            return Err(Failure::usage(
                "-service and -reason need -enable or -disable",
            ));
        }
        return show(client).await;
    }
    if args.disable && !args.reason.is_empty() {
        return Err(Failure::usage("-reason needs -enable"));
    }
    let mut query = vec![("enable", if args.enable { "true" } else { "false" })];
    if !args.reason.is_empty() {
        query.push(("reason", &args.reason));
    }
    let path = match &args.service {
        Some(service) => format!("/v1/agent/service/maintenance/{}", super::segment(service)?),
        None => "/v1/agent/maintenance".to_owned(),
    };
    client.put(&path, &query, "").await?;
    let now = if args.enable { "enabled" } else { "disabled" };
    let said = match &args.service {
        Some(service) => format!("Service maintenance is now {now} for {service:?}"),
        None => format!("Node maintenance is now {now}"),
    };
    let shown = json!({"service": args.service, "reason": args.reason, "maintenance": args.enable});
    output::done(client.format(), said, shown)
}

async fn show(client: Client) -> Done {
    let checks = client.get("/v1/agent/checks", &[]).await?;
    let in_force: Vec<&Value> = checks
        .as_object()
        .into_iter()
        .flat_map(|checks| checks.values())
        .filter(|check| {
            let id = field(check, "CheckID");
            id == OF_NODE || id.starts_with(OF_SERVICE)
        })
        .collect();
    if client.format() == Format::Json {
        return output::json(&Value::from_iter(in_force.into_iter().cloned()));
    }
    for check in in_force {
        let (head, label, name) = if field(check, "CheckID") == OF_NODE {
            ("Node", "Name", field(check, "Node"))
        } else {
            ("Service", "ID", field(check, "ServiceID"))
        };
        output::line(format!(
            "{head}:\n  {:<7} {name}\n  Reason: {}\n",
            format!("{label}:"),
            field(check, "Notes")
        ))?;
    }
    Ok(())
}
