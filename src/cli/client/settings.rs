//! Where the agent is and who is asking: flags, then `WEFT_*`, then `CONSUL_*`, then defaults.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::tls::{self, Tls, TlsFiles};
use crate::cli::failure::Failure;
use crate::cli::output::{Format, FormatArgs};

/// Flags every command that talks to an agent has.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Agent")]
pub(crate) struct ClientArgs {
    /// Address of the agent: host:port, http://…, https://… or unix:///path [env: WEFT_HTTP_ADDR, CONSUL_HTTP_ADDR]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) http_addr: Option<String>,
    /// ACL token [env: WEFT_HTTP_TOKEN, CONSUL_HTTP_TOKEN]
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// File with the ACL token [env: WEFT_HTTP_TOKEN_FILE, CONSUL_HTTP_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// PEM file of CAs to check the agent with [env: WEFT_CACERT, CONSUL_CACERT]
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Directory of such files [env: WEFT_CAPATH, CONSUL_CAPATH]
    #[arg(long, value_name = "DIR")]
    pub(crate) ca_path: Option<PathBuf>,
    /// PEM certificate to show the agent [env: WEFT_CLIENT_CERT, CONSUL_CLIENT_CERT]
    #[arg(long, value_name = "FILE")]
    pub(crate) client_cert: Option<PathBuf>,
    /// Its key [env: WEFT_CLIENT_KEY, CONSUL_CLIENT_KEY]
    #[arg(long, value_name = "FILE")]
    pub(crate) client_key: Option<PathBuf>,
    /// Name to expect in the agent's certificate [env: WEFT_TLS_SERVER_NAME, CONSUL_TLS_SERVER_NAME]
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_server_name: Option<String>,
    /// Datacenter to ask about; the agent's own unless set
    #[arg(long, value_name = "NAME")]
    pub(crate) datacenter: Option<String>,
    /// Let any server answer, leader or not
    #[arg(long)]
    pub(crate) stale: bool,
    /// Accepted for scripts; only "default" exists
    #[arg(long, hide = true)]
    pub(crate) namespace: Option<String>,
    /// Accepted for scripts; only "default" exists
    #[arg(long, hide = true)]
    pub(crate) partition: Option<String>,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
}

/// Where requests go.
pub(crate) enum Target {
    Tcp {
        host: String,
        port: u16,
        tls: Option<Arc<Tls>>,
    },
    Unix(PathBuf),
}

impl Target {
    pub(crate) fn host(&self) -> String {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".into(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { tls: None, .. } => write!(f, "http://{}", self.host()),
            Self::Tcp { .. } => write!(f, "https://{}", self.host()),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Flags and environment, decided.
pub(crate) struct Settings {
    pub(crate) target: Target,
    pub(crate) token: Option<String>,
    pub(crate) basic_auth: Option<String>,
    pub(crate) format: Format,
    datacenter: Option<String>,
    namespace: Option<String>,
    partition: Option<String>,
    stale: bool,
}

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Settings {
    pub(crate) fn resolve(args: &ClientArgs, env: Env<'_>) -> Result<Self, Failure> {
        let twin = |name: &str| twin(env, name);
        let address = args
            .http_addr
            .clone()
            .or_else(|| twin("HTTP_ADDR"))
            .unwrap_or_else(|| "127.0.0.1:8500".into());
        let ssl = twin("HTTP_SSL").is_some_and(|text| is_true(&text));
        let path =
            |flag: &Option<PathBuf>, name| flag.clone().or_else(|| twin(name).map(PathBuf::from));
        let files = TlsFiles {
            ca_file: path(&args.ca_file, "CACERT"),
            ca_path: path(&args.ca_path, "CAPATH"),
            cert: path(&args.client_cert, "CLIENT_CERT"),
            key: path(&args.client_key, "CLIENT_KEY"),
            server_name: args
                .tls_server_name
                .clone()
                .or_else(|| twin("TLS_SERVER_NAME")),
            verify: twin("HTTP_SSL_VERIFY").is_none_or(|text| is_true(&text)),
        };
        let basic_auth = twin("HTTP_AUTH").map(|pair| format!("Basic {}", STANDARD.encode(pair)));
        Ok(Self {
            target: target(&address, ssl, files)?,
            token: token(args, &twin)?,
            basic_auth,
            format: args.format.output,
            datacenter: args.datacenter.clone(),
            namespace: args.namespace.clone().or_else(|| twin("NAMESPACE")),
            partition: args.partition.clone().or_else(|| twin("PARTITION")),
            stale: args.stale,
        })
    }

    /// What every request carries.
    pub(crate) fn query(&self) -> Vec<(&'static str, String)> {
        let named = [
            ("dc", &self.datacenter),
            ("ns", &self.namespace),
            ("partition", &self.partition),
        ];
        let mut out: Vec<_> = named
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)))
            .collect();
        out.retain(|(_, value)| !value.is_empty());
        if self.stale {
            out.push(("stale", String::new()));
        }
        out
    }
}

/// `WEFT_<name>`, or else `CONSUL_<name>`; an empty one counts as unset.
fn twin(env: Env<'_>, name: &str) -> Option<String> {
    ["WEFT_", "CONSUL_"]
        .iter()
        .find_map(|prefix| env(&format!("{prefix}{name}")).filter(|text| !text.is_empty()))
}

fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn token(
    args: &ClientArgs,
    twin: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<String>, Failure> {
    let file = args
        .token_file
        .clone()
        .or_else(|| twin("HTTP_TOKEN_FILE").map(PathBuf::from));
    if let (None, Some(file)) = (&args.token, &file) {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Failure::usage(format!(
                "cannot read the token file {}: {error}",
                file.display()
            ))
        })?;
        return Ok(Some(text.trim().to_owned()));
    }
    Ok(args.token.clone().or_else(|| twin("HTTP_TOKEN")))
}

fn target(address: &str, ssl: bool, files: TlsFiles) -> Result<Target, Failure> {
    if let Some(path) = address.strip_prefix("unix://") {
        return Ok(Target::Unix(path.into()));
    }
    let (secure, rest) = match address.split_once("://") {
        Some(("http", rest)) => (ssl, rest),
        Some(("https", rest)) => (true, rest),
        Some((scheme, _)) => {
            return Err(Failure::usage(format!(
                "address {address:?}: {scheme}:// is not known; http, https and unix are"
            )));
        }
        None => (ssl, address),
    };
    let rest = rest.split('/').next().unwrap_or(rest);
    let default_port = if secure { 8501 } else { 8500 };
    let (host, port) = host_and_port(rest, default_port)
        .ok_or_else(|| Failure::usage(format!("address {address:?} is not host:port")))?;
    let tls = if secure {
        Some(Arc::new(tls::Tls::new(&host, files)?))
    } else {
        None
    };
    Ok(Target::Tcp { host, port, tls })
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`, `:port`.
fn host_and_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    if let Some(inner) = text.strip_prefix('[') {
        let (host, rest) = inner.split_once(']')?;
        let port = if rest.is_empty() {
            default_port
        } else {
            rest.strip_prefix(':')?.parse().ok()?
        };
        return Some((host.to_owned(), port));
    }
    match text.split_once(':') {
        None => (!text.is_empty()).then(|| (text.to_owned(), default_port)),
        Some((_, port)) if port.contains(':') => None,
        Some((host, port)) => {
            let host = if host.is_empty() { "127.0.0.1" } else { host };
            Some((host.to_owned(), port.parse().ok()?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: ClientArgs, env: &[(&str, &str)]) -> Settings {
        let lookup = |name: &str| {
            env.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        Settings::resolve(&args, &lookup).unwrap()
    }

    #[test]
    fn flags_win_over_weft_over_consul() {
        let env = [
            ("CONSUL_HTTP_ADDR", "c:1"),
            ("WEFT_HTTP_ADDR", "w:2"),
            ("CONSUL_HTTP_TOKEN", "ct"),
        ];
        let settings = resolve(ClientArgs::default(), &env);
        assert_eq!(
            (settings.target.to_string(), settings.token.as_deref()),
            ("http://w:2".into(), Some("ct"))
        );
        let args = ClientArgs {
            http_addr: Some("f:3".into()),
            token: Some("ft".into()),
            ..ClientArgs::default()
        };
        let settings = resolve(args, &env);
        assert_eq!(
            (settings.target.to_string(), settings.token.as_deref()),
            ("http://f:3".into(), Some("ft"))
        );
    }

    #[test]
    fn addresses_have_many_forms() {
        for (address, expected) in [
            ("127.0.0.9", "http://127.0.0.9:8500"),
            (":9500", "http://127.0.0.1:9500"),
            ("http://h:1/", "http://h:1"),
            ("[::1]:7", "http://[::1]:7"),
            ("[::1]", "http://[::1]:8500"),
            ("unix:///run/w.sock", "unix:///run/w.sock"),
        ] {
            let args = ClientArgs {
                http_addr: Some(address.into()),
                ..ClientArgs::default()
            };
            assert_eq!(resolve(args, &[]).target.to_string(), expected);
        }
        for bad in ["ftp://x", "a:b", "::1", ""] {
            let args = ClientArgs {
                http_addr: Some(bad.into()),
                ..ClientArgs::default()
            };
            assert!(Settings::resolve(&args, &|_| None).is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_carry_datacenter_and_staleness() {
        let args = ClientArgs {
            datacenter: Some("dc2".into()),
            stale: true,
            ..ClientArgs::default()
        };
        assert_eq!(
            resolve(args, &[]).query(),
            [("dc", "dc2".into()), ("stale", String::new())]
        );
    }
}
