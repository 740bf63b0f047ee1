//! `weft tls ca create` and `weft tls cert create`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::json;
use weft_identity::pki::{self, CaRequest, CertKind, CertRequest};
use weft_proto::clock::{Clock, SystemClock};

use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, FormatArgs};

/// Make CAs and certificates for RPC and HTTPS
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft tls ca create\n  weft tls cert create -server -dc=dc1")]
pub(crate) struct TlsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// CAs
    #[command(
        subcommand,
        after_help = "Examples:\n  weft tls ca create\n  weft tls ca create -domain=example.org -days=3650"
    )]
    Ca(Ca),
    /// Certificates
    #[command(
        subcommand,
        after_help = "Examples:\n  weft tls cert create -server\n  weft tls cert create -cli"
    )]
    Cert(Cert),
}

#[derive(clap::Subcommand)]
enum Ca {
    /// Make a CA
    #[command(
        after_help = "Examples:\n  weft tls ca create\n  weft tls ca create -name-constraint -additional-name-constraint=example.org"
    )]
    Create(CaArgs),
}

#[derive(clap::Args)]
struct CaArgs {
    /// Further DNS name the CA may sign for; may be repeated
    #[arg(long, value_name = "NAME")]
    additional_name_constraint: Vec<String>,
    /// Common name of the CA
    #[arg(long, value_name = "NAME")]
    common_name: Option<String>,
    /// Days it is valid
    #[arg(long, default_value_t = 1825)]
    days: u32,
    /// DNS domain of the cluster
    #[arg(long, default_value = "consul")]
    domain: String,
    /// Let it sign only for names under the domain
    #[arg(long)]
    name_constraint: bool,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(clap::Subcommand)]
enum Cert {
    /// Make a certificate signed by a CA in this directory
    #[command(
        after_help = "Examples:\n  weft tls cert create -server -dc=dc1 -additional-ipaddress=10.0.0.11\n  weft tls cert create -cli"
    )]
    Create(CertArgs),
}

#[derive(clap::Args)]
struct CertArgs {
    /// Further DNS name; may be repeated
    #[arg(long, value_name = "NAME")]
    additional_dnsname: Vec<String>,
    /// Further IP address; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    additional_ipaddress: Vec<IpAddr>,
    /// Certificate of the CA; #DOMAIN# stands for the domain
    #[arg(long, default_value = "#DOMAIN#-agent-ca.pem", value_name = "FILE")]
    ca: String,
    /// Key of the CA
    #[arg(long, default_value = "#DOMAIN#-agent-ca-key.pem", value_name = "FILE")]
    key: String,
    /// For a command line
    #[arg(long, group = "kind")]
    cli: bool,
    /// For an agent without the server role
    #[arg(long, group = "kind")]
    client: bool,
    /// For a server
    #[arg(long, group = "kind")]
    server: bool,
    /// Days it is valid
    #[arg(long, default_value_t = 365)]
    days: u32,
    /// Name of the datacenter
    #[arg(long, default_value = "dc1")]
    dc: String,
    /// DNS domain of the cluster
    #[arg(long, default_value = "consul")]
    domain: String,
    /// Name of the server's node
    #[arg(long)]
    node: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
}

pub(crate) fn run(args: TlsArgs) -> Done {
    match args.what {
        What::Ca(Ca::Create(args)) => create_ca(args),
        What::Cert(Cert::Create(args)) => create_cert(args),
    }
}

fn refused(error: pki::PkiError) -> Failure {
    Failure::new(Exit::Negative, format!("==> {error}"))
}

fn saved(format: FormatArgs, (certificate, key): &(PathBuf, PathBuf)) -> Done {
    if format.output == Format::Json {
        return output::json(&json!({"certificate": certificate, "key": key}));
    }
    output::line(format!("==> Saved {}", certificate.display()))?;
    output::line(format!("==> Saved {}", key.display()))
}

fn create_ca(args: CaArgs) -> Done {
    let request = CaRequest {
        days: args.days,
        common_name: args.common_name,
        name_constraint: args.name_constraint,
        additional_name_constraints: args.additional_name_constraint,
        ..CaRequest::new(&args.domain)
    };
    let written = pki::write_ca(Path::new(""), &request, SystemClock::new().wall());
    saved(args.format, &written.map_err(refused)?)
}

fn create_cert(args: CertArgs) -> Done {
    let kind = match (args.server, args.client, args.cli) {
        (true, false, false) => CertKind::Server,
        (false, true, false) => CertKind::Client,
        (false, false, true) => CertKind::Cli,
        _ => {
            return Err(Failure::usage(
                "==> Please provide either -server, -client, or -cli",
            ));
        }
    };
    if args.node.is_some() && kind != CertKind::Server {
        return Err(Failure::usage("==> -node requires -server"));
    }
    let request = CertRequest {
        node: args.node,
        dns_names: args.additional_dnsname,
        addresses: args.additional_ipaddress,
        days: args.days,
        ..CertRequest::new(kind, &args.dc, &args.domain)
    };
    let path = |text: &str| PathBuf::from(text.replace("#DOMAIN#", args.domain.trim_matches('.')));
    let (ca, key) = (path(&args.ca), path(&args.key));
    if kind == CertKind::Server {
        crate::stderr::note!(
            "==> WARNING: whoever holds a server certificate can become a server and read everything; keep it as safe as the CA key"
        );
    }
    crate::stderr::note!("==> Using {} and {}", ca.display(), key.display());
    let now = SystemClock::new().wall();
    let written = pki::write_cert(Path::new(""), &request, (&ca, &key), now);
    saved(args.format, &written.map_err(refused)?)
}
