//! `weft kv export|import`: keys as a JSON file, in Consul's form.
//!
//! Owns: that form: `[{"key", "flags", "value"}]`, values in base64.
//! Never: writes a key before the whole file was read and understood.
//! Source: Consul docs, "Commands: KV Export", "Commands: KV Import".

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::client::{Client, ClientArgs};
use super::failure::{Done, Exit, Failure};
use super::kv::{bare, data};
use super::output::{self, Format, field};

#[derive(clap::Args)]
pub(super) struct ExportArgs {
    /// Prefix; everything when left out
    #[arg(
        default_value = "",
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    prefix: String,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

#[derive(clap::Args)]
pub(super) struct ImportArgs {
    /// Put this before every key
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// The JSON itself; @file reads a file, - reads standard input
    #[arg(
        default_value = "-",
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    data: String,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// One key of the file.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    key: String,
    flags: u64,
    value: Vec<u8>,
}

pub(super) async fn export(client: Client, args: &ExportArgs) -> Done {
    let path = format!("/v1/kv/{}", bare(&args.prefix));
    let answer = client
        .send(Method::GET, &path, &[("recurse", "")], Bytes::new())
        .await?;
    let pairs = match answer.status {
        StatusCode::NOT_FOUND => Value::Array(Vec::new()),
        status if status.is_success() => answer.json()?,
        _ => return Err(answer.failure()),
    };
    let exported = pairs.as_array().into_iter().flatten();
    let entries: Vec<String> = exported.map(entry_text).collect();
    if entries.is_empty() {
        return output::line("[]");
    }
    output::line(format!("[\n{}\n]", entries.join(",\n")))
}

/// Keys in the order and indentation Consul's users keep under version control.
fn entry_text(pair: &Value) -> String {
    let (key, value) = (json!(field(pair, "Key")), json!(field(pair, "Value")));
    let flags = &pair["Flags"];
    format!("\t{{\n\t\t\"key\": {key},\n\t\t\"flags\": {flags},\n\t\t\"value\": {value}\n\t}}")
}

pub(super) async fn import(client: Client, args: &ImportArgs) -> Done {
    let entries = entries(&data(&args.data)?)?;
    let mut imported = Vec::new();
    for entry in entries {
        let key = format!("{}{}", args.prefix, entry.key);
        let (key, flags) = (bare(&key), entry.flags.to_string());
        let query: &[(&str, &str)] = &[("flags", &flags)];
        let query = if entry.flags == 0 { &[] } else { query };
        let answer = client
            .put(&format!("/v1/kv/{key}"), query, entry.value)
            .await?;
        if answer.text() != "true" {
            return Err(Failure::new(
                Exit::Negative,
                format!("Error! Did not write to {key}"),
            ));
        }
        if client.format() == Format::Table {
            output::line(format!("Imported: {key}"))?;
        }
        imported.push(json!(key));
    }
    if client.format() == Format::Json {
        output::json(&json!({"keys": imported, "done": "imported"}))?;
    }
    Ok(())
}

fn entries(text: &[u8]) -> Result<Vec<Entry>, Failure> {
    let refuse =
        |why: String| Failure::new(Exit::Negative, format!("Cannot unmarshal data: {why}"));
    let parsed: Value = serde_json::from_slice(text).map_err(|error| refuse(error.to_string()))?;
    let list = parsed
        .as_array()
        .ok_or_else(|| refuse("it is not a list".to_owned()))?;
    let one = |(nth, item): (usize, &Value)| {
        let key = field(item, "key");
        if bare(&key).is_empty() {
            return Err(refuse(format!("entry {nth} has no key")));
        }
        let value = STANDARD
            .decode(field(item, "value"))
            .map_err(|_| refuse(format!("the value of {key} is not base64")))?;
        let flags = match &item["flags"] {
            Value::Null => 0,
            flags => flags
                .as_u64()
                .ok_or_else(|| refuse(format!("the flags of {key} are no whole number")))?,
        };
        Ok(Entry { key, flags, value })
    };
    list.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exported_can_be_imported() {
        let pair = json!({"Key": "a \"b\"", "Flags": 5, "Value": "b25l"});
        let text = format!("[{}]", entry_text(&pair));
        let want = Entry {
            key: "a \"b\"".into(),
            flags: 5,
            value: b"one".to_vec(),
        };
        assert_eq!(entries(text.as_bytes()).unwrap(), [want]);
    }

    #[test]
    fn a_file_is_understood_whole_or_not_at_all() {
        for text in [
            "",
            "{}",
            "[{}]",
            r#"[{"key":"a","value":"%"}]"#,
            r#"[{"key":"a","value":"","flags":-1}]"#,
        ] {
            assert!(entries(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(entries(br#"[{"key":"a","value":""}]"#).unwrap()[0].flags, 0);
    }
}
