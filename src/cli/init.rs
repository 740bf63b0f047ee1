//! `weft init`: key material and configuration of a new cluster.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Value, json};
use weft_identity::cluster::{self, InitRequest, InitSummary, Seat};
use weft_proto::clock::{Clock, SystemClock};

use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, FormatArgs};

/// Make keys, certificates and configuration for a new cluster
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft init\n  weft init -directory=out -server=s1=10.0.0.11 -server=s2=10.0.0.12 -server=s3=10.0.0.13"
)]
pub(crate) struct InitArgs {
    /// Directory to write to
    #[arg(long, default_value = "weft.d")]
    directory: PathBuf,
    /// Path the files will have on the servers; the directory itself unless set
    #[arg(long, value_name = "DIR")]
    install_directory: Option<PathBuf>,
    /// Directory of the servers' state
    #[arg(long, default_value = "/var/lib/weft", value_name = "DIR")]
    data_dir: PathBuf,
    /// Name of the datacenter
    #[arg(long, default_value = "dc1")]
    datacenter: String,
    /// DNS domain
    #[arg(long, default_value = "consul")]
    domain: String,
    /// A server, name or name=address, this one first; may be repeated. One named as this host unless set
    #[arg(long, value_name = "NAME=ADDRESS")]
    server: Vec<String>,
    /// Days the server certificates are valid
    #[arg(long, default_value_t = 365)]
    days: u32,
    /// Port of HTTPS; -1 switches it off
    #[arg(long, default_value_t = 8501, allow_hyphen_values = true)]
    https_port: i32,
    /// Replace the files of an earlier run
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: FormatArgs,
}

pub(crate) fn run(args: InitArgs) -> Done {
    let directory = std::path::absolute(&args.directory).map_err(|error| {
        Failure::new(
            Exit::Negative,
            format!("cannot use {}: {error}", args.directory.display()),
        )
    })?;
    let request = InitRequest {
        install_directory: args.install_directory.unwrap_or_else(|| directory.clone()),
        data_dir: args.data_dir,
        datacenter: args.datacenter,
        domain: args.domain,
        days: args.days,
        // This version refuses to start with ACLs on: it could not enforce them.
        acl: false,
        https_port: args.https_port,
        force: args.force,
        ..InitRequest::new(&directory, seats(&args.server)?)
    };
    let summary = cluster::init(&request, SystemClock::new().wall())
        .map_err(|error| Failure::new(Exit::Negative, format!("weft init: {error}")))?;
    if args.format.output == Format::Json {
        return output::json(&object(&summary));
    }
    tell(&request, &summary)
}

fn object(summary: &InitSummary) -> Value {
    let servers = summary.servers.iter();
    let servers = servers.map(|one| json!({"name": one.name, "directory": one.directory}));
    json!({
        "files": summary.files.len(), "days": summary.days, "ca_key": summary.ca_key_file,
        "cli": summary.cli.0, "servers": servers.collect::<Vec<_>>(),
        "without_address": summary.without_address,
    })
}

fn seats(servers: &[String]) -> Result<Vec<Seat>, Failure> {
    if servers.is_empty() {
        return Ok(vec![Seat {
            name: super::agent::machine().host_name,
            address: None,
        }]);
    }
    let seat = |text: &String| match text.split_once('=') {
        None => Ok(Seat {
            name: text.clone(),
            address: None,
        }),
        Some((name, address)) => {
            let address: IpAddr = address.parse().map_err(|_| {
                Failure::usage(format!(
                    "-server {text:?}: {address:?} is not an IP address"
                ))
            })?;
            Ok(Seat {
                name: name.to_owned(),
                address: Some(address),
            })
        }
    };
    servers.iter().map(seat).collect()
}

fn tell(request: &InitRequest, summary: &InitSummary) -> Done {
    output::line(format!(
        "Wrote {} files; certificates are valid for {} days.",
        summary.files.len(),
        summary.days
    ))?;
    output::line(format!(
        "  CA key   {}   keep it off the servers",
        summary.ca_key_file.display()
    ))?;
    output::line(format!("  CLI      {}", summary.cli.0.display()))?;
    for server in &summary.servers {
        let (from, to) = (
            server.directory.display(),
            request.install_directory.display(),
        );
        let copy = if server.directory == request.install_directory {
            String::new()
        } else {
            format!("   copy to {to} on {}", server.name)
        };
        output::line(format!("  {:<8} {from}{copy}", server.name))?;
    }
    if !summary.without_address.is_empty() && summary.servers.len() > 1 {
        output::line(format!(
            "Complete retry_join: the addresses of {} are not known.",
            summary.without_address.join(", ")
        ))?;
    }
    output::line(format!(
        "Next: weft agent -config-dir={}",
        request.install_directory.display()
    ))
}
