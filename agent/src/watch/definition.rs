//! One watch of the configuration.
//!
//! Owns: the form of `watches = [ … ]`.
//! Never: starts anything, or asks whether scripts are allowed.

use std::time::Duration;

use serde_json::Value;

use super::plan::{Asked, Plan};
use crate::local::{DefinitionError, Fields, HttpCheck, Pace, TargetTls, UnknownKeys};

/// How long an HTTP handler may take unless it says.
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);

/// What is watched, as whom, and who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchDefinition {
    /// What is watched.
    pub plan: Plan,
    /// The token it is read with; empty: the agent's own.
    pub token: String,
    /// The datacenter that is asked; empty: this one.
    pub datacenter: String,
    /// Whether any server may answer.
    pub stale: bool,
    /// Who is told.
    pub handler: Handler,
}

/// Who is told of news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// A command: the data on standard input, the index in `CONSUL_INDEX`.
    Script(Vec<String>),
    /// A request with the data as its body; of the check only the request's side is used.
    Http(Box<HttpCheck>),
}

impl WatchDefinition {
    /// Reads one object of `watches`. Keys are those of the schema, values of its types.
    ///
    /// Errors: what is missing, contradicts itself or is unknown.
    pub fn parse(value: &Value) -> Result<Self, DefinitionError> {
        let mut fields = Fields::open("", value, UnknownKeys::Refuse)?;
        let asked = asked(&mut fields)?;
        let plan = Plan::new(asked).map_err(|error| invalid(error.to_string()))?;
        let definition = Self {
            plan,
            token: fields.text(&["token"])?,
            datacenter: fields.text(&["datacenter"])?,
            stale: fields.flag(&["stale"])?,
            handler: handler(&mut fields)?,
        };
        fields.finish()?;
        Ok(definition)
    }

    /// It makes this host run a command.
    #[must_use]
    pub const fn runs_commands(&self) -> bool {
        matches!(self.handler, Handler::Script(_))
    }
}

fn invalid(message: impl Into<String>) -> DefinitionError {
    DefinitionError::Invalid {
        reason: "watch.invalid",
        message: message.into(),
    }
}

fn asked(fields: &mut Fields<'_>) -> Result<Asked, DefinitionError> {
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Asked {
        kind: fields.text(&["type"])?,
        key: given(fields.text(&["key"])?),
        prefix: given(fields.text(&["prefix"])?),
        service: given(fields.text(&["service"])?),
        tags: fields.texts(&["tag"])?,
        passing_only: fields.flag_or_absent(&["passingonly"])?,
        state: given(fields.text(&["state"])?),
        name: given(fields.text(&["name"])?),
        filter: given(fields.text(&["filter"])?),
    })
}

fn handler(fields: &mut Fields<'_>) -> Result<Handler, DefinitionError> {
    let (kind, line) = (fields.text(&["handler_type"])?, fields.text(&["handler"])?);
    let args = fields.texts(&["args"])?;
    let http = fields.take(&["http_handler_config"]);
    match (kind.as_str(), http) {
        ("" | "script", None) => script(&line, args),
        ("http", Some(http)) if line.is_empty() && args.is_empty() => self::http(http),
        ("http", None) => Err(invalid(
            "a watch with handler_type http needs http_handler_config",
        )),
        ("http", Some(_)) => Err(invalid(
            "a watch with handler_type http takes neither handler nor args",
        )),
        ("" | "script", Some(_)) => {
            Err(invalid("http_handler_config needs handler_type = \"http\""))
        }
        (other, _) => Err(invalid(format!(
            "handler_type {other:?} is neither script nor http"
        ))),
    }
}

/// `handler` is a line for the shell; `args` are taken as they are.
fn script(line: &str, args: Vec<String>) -> Result<Handler, DefinitionError> {
    match (line, args) {
        ("", args) if args.is_empty() => Err(invalid("a watch needs args, the command it runs")),
        ("", args) => Ok(Handler::Script(args)),
        (line, args) if args.is_empty() => Ok(Handler::Script(
            ["/bin/sh", "-c", line].map(str::to_owned).to_vec(),
        )),
        _ => Err(invalid("a watch takes handler or args, not both")),
    }
}

fn http(value: &Value) -> Result<Handler, DefinitionError> {
    let mut fields = Fields::open("http_handler_config", value, UnknownKeys::Refuse)?;
    let url = fields.text(&["path"])?;
    let target = url.parse::<http::Uri>().ok();
    let scheme = target.as_ref().and_then(http::Uri::scheme_str);
    if !matches!(scheme, Some("http" | "https")) {
        return Err(invalid(format!(
            "http_handler_config.path {url:?} is not an http:// or https:// URL"
        )));
    }
    let method = fields.text(&["method"])?;
    let timeout = Some(fields.duration(&["timeout"])?).filter(|timeout| !timeout.is_zero());
    let request = HttpCheck {
        url,
        method: if method.is_empty() {
            "POST".into()
        } else {
            method
        },
        header: fields.header_map(&["header"])?,
        body: String::new(),
        pace: Pace {
            interval: Duration::ZERO,
            timeout: timeout.unwrap_or(HTTP_TIMEOUT),
        },
        tls: TargetTls {
            server_name: String::new(),
            skip_verify: fields.flag(&["tls_skip_verify"])?,
        },
        disable_redirects: false,
    };
    fields.finish()?;
    Ok(Handler::Http(Box::new(request)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn handlers_are_commands_or_requests() {
        let watch = WatchDefinition::parse(&json!({
            "type": "key", "key": "a", "args": ["/bin/x", "-y"], "token": "t", "datacenter": "dc1", "stale": true
        }));
        let watch = watch.unwrap();
        assert_eq!(
            watch.handler,
            Handler::Script(vec!["/bin/x".into(), "-y".into()])
        );
        assert_eq!(
            (watch.token.as_str(), watch.datacenter.as_str(), watch.stale),
            ("t", "dc1", true)
        );
        assert!(watch.runs_commands());

        let line = WatchDefinition::parse(&json!({"type": "nodes", "handler": "x | y"})).unwrap();
        assert_eq!(
            line.handler,
            Handler::Script(["/bin/sh", "-c", "x | y"].map(str::to_owned).to_vec())
        );

        let http = WatchDefinition::parse(&json!({
            "type": "service", "service": "web", "tag": "a", "passingonly": true, "handler_type": "http",
            "http_handler_config": [{"path": "http://h/x", "timeout": "2s", "header": {"A": ["b"]}}]
        }));
        let Handler::Http(request) = http.unwrap().handler else {
            panic!("a request")
        };
        assert_eq!(
            (request.method.as_str(), request.pace.timeout),
            ("POST", Duration::from_secs(2))
        );
        assert_eq!(request.header["A"], ["b"]);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (value, expected) in [
            (json!({}), "needs a type"),
            (json!({"type": "nodes"}), "needs args"),
            (
                json!({"type": "nodes", "args": ["a"], "handler": "b"}),
                "not both",
            ),
            (
                json!({"type": "nodes", "args": ["a"], "handler_type": "tcp"}),
                "neither script nor http",
            ),
            (
                json!({"type": "nodes", "handler_type": "http"}),
                "needs http_handler_config",
            ),
            (
                json!({"type": "nodes", "args": ["a"], "http_handler_config": {}}),
                "handler_type = ",
            ),
            (
                json!({"type": "nodes", "handler_type": "http", "http_handler_config": {"path": "ftp://x"}}),
                "is not an http://",
            ),
            (
                json!({"type": "nodes", "args": ["a"], "kee": "b"}),
                "did you mean key",
            ),
        ] {
            let error = WatchDefinition::parse(&value).unwrap_err().to_string();
            assert!(error.contains(expected), "{value}: {error}");
        }
    }
}
