//! `weft ca status|rotate|drill|cut-off`, ours, and `weft connect ca get-config|set-config` as Consul has it.

use std::path::PathBuf;

use bytes::Bytes;
use serde_json::Value;

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, field, row};

/// The mesh's certificate authority
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft ca status\n  weft ca rotate")]
pub(crate) struct CaArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Show the roots of the mesh and when they end
    #[command(after_help = "Examples:\n  weft ca status\n  weft ca status -o json")]
    Status(PlainArgs),
    /// Give the mesh a new root; the old one signs it, so that nothing breaks
    #[command(after_help = "Examples:\n  weft ca rotate\n  weft ca rotate -force")]
    Rotate(RotateArgs),
    /// Prove that a rotation would work, and change nothing
    #[command(after_help = "Examples:\n  weft ca drill\n  weft ca drill -o json")]
    Drill(PlainArgs),
    /// Have leaves of a service that were made before now refused
    #[command(after_help = "Examples:\n  weft ca cut-off web\n  weft ca cut-off -o json web")]
    CutOff(CutOffArgs),
}

#[derive(clap::Args)]
struct PlainArgs {
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct RotateArgs {
    /// Without the old root's signature: connections fail until everybody knows the new one
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
struct CutOffArgs {
    /// The service
    service: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// The mesh, in Consul's words
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft connect ca get-config\n  weft connect ca set-config -config-file=ca.json"
)]
pub(crate) struct ConnectArgs {
    #[command(subcommand)]
    what: ConnectWhat,
}

#[derive(clap::Subcommand)]
enum ConnectWhat {
    /// Settings of the mesh's CA
    #[command(
        after_help = "Examples:\n  weft connect ca get-config\n  weft connect ca set-config -config-file=ca.json"
    )]
    Ca(ConnectCaArgs),
}

#[derive(clap::Args)]
struct ConnectCaArgs {
    #[command(subcommand)]
    what: ConfigWhat,
}

#[derive(clap::Subcommand)]
enum ConfigWhat {
    /// Show the settings
    #[command(
        after_help = "Examples:\n  weft connect ca get-config\n  weft connect ca get-config | grep LeafCertTTL"
    )]
    GetConfig(PlainArgs),
    /// Change the settings to those of a file
    #[command(
        after_help = "Examples:\n  weft connect ca set-config -config-file=ca.json\n  weft connect ca set-config -config-file=ca.json -o json"
    )]
    SetConfig(SetArgs),
}

#[derive(clap::Args)]
struct SetArgs {
    /// JSON, as get-config shows it
    #[arg(long)]
    config_file: PathBuf,
    /// A new root is not signed by the old one: connections fail until everybody knows it
    #[arg(long)]
    force_without_cross_signing: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: CaArgs) -> Done {
    match args.what {
        What::Status(args) => super::with_client(&args.client, status),
        What::Rotate(args) => {
            let force = args.force;
            super::with_client(&args.client, move |client| {
                rotate(client, if force { "force" } else { "" })
            })
        }
        What::Drill(args) => super::with_client(&args.client, |client| rotate(client, "drill")),
        What::CutOff(args) => {
            super::with_client(&args.client, |client| cut_off(client, &args.service))
        }
    }
}

pub(crate) fn run_connect(args: ConnectArgs) -> Done {
    let ConnectWhat::Ca(args) = args.what;
    match args.what {
        ConfigWhat::GetConfig(args) => super::with_client(&args.client, get_config),
        ConfigWhat::SetConfig(args) => {
            super::with_client(&args.client, |client| set_config(client, &args))
        }
    }
}

async fn status(client: Client) -> Done {
    let answer = client.get("/v1/connect/ca/roots", &[]).await?;
    if client.format() == Format::Json {
        return output::json(&answer);
    }
    output::line(format!("Trust domain: {}", field(&answer, "TrustDomain")))?;
    let mut rows = vec![row(["Root", "Active", "Valid until", "Rotated out"])];
    for root in answer["Roots"].as_array().into_iter().flatten() {
        let active = root["Active"] == Value::Bool(true);
        rows.push(vec![
            field(root, "ID"),
            active.to_string(),
            field(root, "NotAfter"),
            field(root, "RotatedOutAt"),
        ]);
    }
    output::table(&rows)
}

async fn rotate(client: Client, how: &'static str) -> Done {
    let query = [(how, "true")];
    let query = if how.is_empty() { &[][..] } else { &query[..] };
    let answer = client.put("/v1/operator/ca/rotate", query, Bytes::new());
    told(&client, &answer.await?.json()?)
}

async fn cut_off(client: Client, service: &str) -> Done {
    let path = format!("/v1/operator/ca/cut-off/{}", super::segment(service)?);
    let answer = client.put(&path, &[], Bytes::new()).await?.json()?;
    told(&client, &answer)
}

fn told(client: &Client, answer: &Value) -> Done {
    if client.format() == Format::Json {
        return output::json(answer);
    }
    output::line(field(answer, "Report"))?;
    output::line(format!("Active root: {}", field(answer, "ActiveRootID")))
}

async fn get_config(client: Client) -> Done {
    let answer = client.get("/v1/connect/ca/configuration", &[]).await?;
    output::json(&answer)
}

async fn set_config(client: Client, args: &SetArgs) -> Done {
    let refuse = |why: String| {
        let text = format!("{}: {why}", args.config_file.display());
        Failure::new(Exit::Usage, text)
    };
    let text = std::fs::read_to_string(&args.config_file).map_err(|why| refuse(why.to_string()))?;
    let mut body: Value = serde_json::from_str(&text).map_err(|why| refuse(why.to_string()))?;
    if args.force_without_cross_signing {
        body["ForceWithoutCrossSigning"] = Value::Bool(true);
    }
    let body = Bytes::from(body.to_string());
    client
        .put("/v1/connect/ca/configuration", &[], body)
        .await?;
    output::done(
        client.format(),
        "Configuration updated!",
        serde_json::json!({"updated": true}),
    )
}
