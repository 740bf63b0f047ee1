//! `weft services register|deregister`.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use weft_agent::config::hcl::{self, Format as Notation, tree::Source};

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, field};

/// Register and deregister services of this agent
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft services register web.hcl\n  weft services deregister -id=web"
)]
pub(crate) struct ServicesArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Deregister services named by files or by -id
    #[command(
        after_help = "Examples:\n  weft services deregister -id=web-1\n  weft services deregister web.hcl"
    )]
    Deregister(DeregisterArgs),
    /// Register services from files or flags
    #[command(
        after_help = "Examples:\n  weft services register -name=web -port=8080 -tag=v2\n  weft services register web.hcl db.json"
    )]
    Register(RegisterArgs),
}

#[derive(clap::Args)]
struct RegisterArgs {
    /// Address of the service
    #[arg(long)]
    address: Option<String>,
    /// Its id; the name unless set
    #[arg(long)]
    id: Option<String>,
    /// Its kind
    #[arg(long)]
    kind: Option<String>,
    /// Metadata key=value; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    meta: Vec<String>,
    /// Its name
    #[arg(long)]
    name: Option<String>,
    /// Its port
    #[arg(long)]
    port: Option<u16>,
    /// A tag; may be repeated
    #[arg(long)]
    tag: Vec<String>,
    /// Tagged address tag=address:port; may be repeated
    #[arg(long, value_name = "TAG=ADDRESS")]
    tagged_address: Vec<String>,
    /// Files with service definitions
    files: Vec<PathBuf>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct DeregisterArgs {
    /// Id of the service
    #[arg(long)]
    id: Option<String>,
    /// Files with service definitions
    files: Vec<PathBuf>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: ServicesArgs) -> Done {
    match args.what {
        What::Register(args) => super::with_client(&args.client, |client| register(client, &args)),
        What::Deregister(args) => {
            super::with_client(&args.client, |client| deregister(client, &args))
        }
    }
}

async fn register(client: Client, args: &RegisterArgs) -> Done {
    let services = match (args.files.is_empty(), &args.name) {
        (true, None) => {
            return Err(Failure::new(
                Exit::Negative,
                "Service registration requires at least one argument or flags.",
            ));
        }
        (true, Some(name)) => vec![from_flags(name, args)?],
        (false, _) => from_files(&args.files)?,
    };
    let mut ids = Vec::new();
    for service in services {
        client
            .put("/v1/agent/service/register", &[], service.to_string())
            .await?;
        if client.format() == Format::Table {
            output::line(format!("Registered service: {}", name_of(&service)))?;
        }
        ids.push(json!(id_of(&service)));
    }
    told(&client, ids, "registered")
}

async fn deregister(client: Client, args: &DeregisterArgs) -> Done {
    let ids: Vec<String> = match (&args.id, args.files.is_empty()) {
        (None, true) => {
            return Err(Failure::new(
                Exit::Negative,
                "Service deregistration requires at least one argument or -id.",
            ));
        }
        (Some(_), false) => {
            return Err(Failure::new(
                Exit::Negative,
                "Service deregistration requires arguments or -id, not both.",
            ));
        }
        (Some(id), true) => vec![id.clone()],
        (None, false) => from_files(&args.files)?.iter().map(id_of).collect(),
    };
    let mut gone = Vec::new();
    for id in ids {
        client
            .put(
                &format!("/v1/agent/service/deregister/{}", super::segment(&id)?),
                &[],
                "",
            )
            .await?;
        if client.format() == Format::Table {
            output::line(format!("Deregistered service: {id}"))?;
        }
        gone.push(json!(id));
    }
    told(&client, gone, "deregistered")
}

/// For programs, once all is done; people were told on the way.
fn told(client: &Client, ids: Vec<Value>, done: &str) -> Done {
    match client.format() {
        Format::Json => output::json(&json!({"services": ids, "done": done})),
        Format::Table => Ok(()),
    }
}

/// The value of `name` in any spelling: `Name`, `name`.
fn any_case<'v>(service: &'v Value, name: &str) -> Option<&'v Value> {
    let map = service.as_object()?;
    map.iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

fn name_of(service: &Value) -> String {
    any_case(service, "name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn id_of(service: &Value) -> String {
    let id = any_case(service, "id")
        .and_then(Value::as_str)
        .filter(|id| !id.is_empty());
    id.map_or_else(|| name_of(service), str::to_owned)
}

fn from_flags(name: &str, args: &RegisterArgs) -> Result<Value, Failure> {
    let mut service = Map::from_iter([("Name".to_owned(), json!(name))]);
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            service.insert(key.to_owned(), value);
        }
    };
    set("ID", args.id.as_ref().map(|id| json!(id)));
    set(
        "Address",
        args.address.as_ref().map(|address| json!(address)),
    );
    set("Kind", args.kind.as_ref().map(|kind| json!(kind)));
    set("Port", args.port.map(|port| json!(port)));
    set("Tags", (!args.tag.is_empty()).then(|| json!(args.tag)));
    let mut meta = Map::new();
    for pair in &args.meta {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("-meta {pair:?} is not key=value")))?;
        meta.insert(key.to_owned(), json!(value));
    }
    set("Meta", (!meta.is_empty()).then_some(meta.into()));
    let mut tagged = Map::new();
    for pair in &args.tagged_address {
        let bad = || Failure::usage(format!("-tagged-address {pair:?} is not tag=address:port"));
        let (tag, address) = pair.split_once('=').ok_or_else(bad)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        let port: u16 = port.parse().map_err(|_| bad())?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        tagged.insert(tag.to_owned(), json!({"Address": host, "Port": port}));
    }
    set(
        "TaggedAddresses",
        (!tagged.is_empty()).then_some(tagged.into()),
    );
    Ok(Value::Object(service))
}

/// The definitions of every file; `service`, `services`, and lists of either.
fn from_files(files: &[PathBuf]) -> Result<Vec<Value>, Failure> {
    let mut out = Vec::new();
    for path in files {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(Exit::Negative, format!("cannot read {shown}: {error}"))
        })?;
        let json = path.extension().is_some_and(|suffix| suffix == "json");
        let source: Arc<Source> = Source::text(shown.to_string(), text);
        let tree = hcl::read(&source, if json { Notation::Json } else { Notation::Hcl }).map_err(
            |error| {
                let (line, column) = error.span.line_column();
                Failure::new(Exit::Negative, format!("{shown}:{line}:{column} {error}"))
            },
        )?;
        let tree = tree.to_json();
        let before = out.len();
        for value in ["service", "services"]
            .iter()
            .filter_map(|key| tree.get(key))
        {
            match value {
                Value::Array(items) => out.extend(items.iter().cloned()),
                one => out.push(one.clone()),
            }
        }
        if out.len() == before {
            return Err(Failure::new(
                Exit::Negative,
                format!("{shown} defines no service"),
            ));
        }
    }
    if let Some(nameless) = out.iter().find(|service| name_of(service).is_empty()) {
        return Err(Failure::new(
            Exit::Negative,
            format!(
                "a service has no name: {}",
                field(&json!({"s": nameless}), "s")
            ),
        ));
    }
    Ok(out)
}
