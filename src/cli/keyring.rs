//! `weft keyring`.

use http::Method;
use serde_json::{Value, json};

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format};

const PATH: &str = "/v1/operator/keyring";

/// List, install, use and remove the gossip keys of all members
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft keyring -list\n  weft keyring -install=\"$KEY\"\n  weft keyring -use=\"$KEY\"\n  weft keyring -remove=\"$OLD_KEY\""
)]
#[command(group = clap::ArgGroup::new("action").required(true).args(["list", "list_primary", "install", "use_key", "remove"]))]
pub(crate) struct KeyringArgs {
    /// Show every key and how many members hold it
    #[arg(long)]
    list: bool,
    /// Show the keys that members seal with
    #[arg(long)]
    list_primary: bool,
    /// Make all members accept one more key
    #[arg(long, value_name = "KEY")]
    install: Option<String>,
    /// Make all members seal with an installed key
    #[arg(long = "use", value_name = "KEY")]
    use_key: Option<String>,
    /// Make all members forget a key that none seals with
    #[arg(long, value_name = "KEY")]
    remove: Option<String>,
    /// Accepted for scripts, 0 to 5; members answer directly
    #[arg(long, value_name = "N")]
    relay_factor: Option<u8>,
    /// Accepted for scripts with -list; there is no pool across datacenters
    #[arg(long)]
    local_only: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) fn run(args: KeyringArgs) -> Done {
    super::with_client(&args.client, |client| keyring(client, &args))
}

async fn keyring(client: Client, args: &KeyringArgs) -> Done {
    let relay = args.relay_factor.map(|n| n.to_string());
    let mut query = Vec::new();
    query.extend(relay.as_deref().map(|n| ("relay-factor", n)));
    query.extend(args.local_only.then_some(("local-only", "true")));
    let changes = [
        (
            &args.install,
            Method::POST,
            "Installing new gossip encryption key...",
        ),
        (
            &args.use_key,
            Method::PUT,
            "Changing primary gossip encryption key...",
        ),
        (
            &args.remove,
            Method::DELETE,
            "Removing gossip encryption key...",
        ),
    ];
    for (key, method, doing) in changes {
        if let Some(key) = key {
            return change(&client, &query, key, method, doing).await;
        }
    }
    let answer = client.get(PATH, &query).await?;
    if client.format() == Format::Json {
        return output::json(&answer);
    }
    let (name, what) = if args.list_primary {
        ("PrimaryKeys", "installed primary")
    } else {
        ("Keys", "installed")
    };
    output::line(format!("==> Gathering {what} encryption keys..."))?;
    for pool in answer.as_array().into_iter().flatten() {
        output::line(shown(pool, name))?;
    }
    Ok(())
}

/// A key stands in no argument list of a message: errors of the agent do not repeat it either.
async fn change(
    client: &Client,
    query: &[(&str, &str)],
    key: &str,
    method: Method,
    doing: &str,
) -> Done {
    if client.format() != Format::Json {
        output::line(format!("==> {doing}"))?;
    }
    let body = json!({ "Key": key }).to_string().into();
    let answer = client.send(method, PATH, query, body).await?;
    if !answer.status.is_success() {
        return Err(Failure::new(Exit::Negative, answer.text()));
    }
    if client.format() == Format::Json {
        output::json(&json!({ "done": true }))?;
    }
    Ok(())
}

/// One pool's keys as Consul shows them.
fn shown(pool: &Value, name: &str) -> String {
    let title = if pool["WAN"] == true {
        "WAN".to_owned()
    } else {
        format!("{} (LAN)", pool["Datacenter"].as_str().unwrap_or_default())
    };
    let keys = pool[name].as_object().into_iter().flatten();
    let keys: String = keys
        .map(|(key, count)| format!("\n  {key} [{count}/{}]", pool["NumNodes"]))
        .collect();
    format!("\n{title}:{keys}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_shown_as_consul_does() {
        let pool =
            json!({"WAN": false, "Datacenter": "dc1", "NumNodes": 3, "Keys": {"a=": 3, "b=": 2}});
        assert_eq!(shown(&pool, "Keys"), "\ndc1 (LAN):\n  a= [3/3]\n  b= [2/3]");
    }
}
