//! Taking secrets out of what is captured.
//!
//! Owns: what counts as a secret, in JSON and in lines of a log.
//! Never: trusts that the agent has masked its own already.

use serde_json::Value;

/// What stands where a secret was.
pub(super) const MASK: &str = "<redacted>";
/// Parts of names whose values are secret; compared in lower case, without underscores and dashes.
const SECRET_NAMES: [&str; 9] = [
    "token",
    "secret",
    "password",
    "passphrase",
    "credential",
    "privatekey",
    "gossipkey",
    "encryptkey",
    "authorization",
];
/// Names that are secret only as a whole.
const SECRET_WORDS: [&str; 2] = ["encrypt", "accessorkey"];
/// Ends a value in a line of a log.
const DELIMITERS: [char; 10] = ['\\', ' ', '\t', '"', '\'', ',', ';', '&', '}', ']'];

/// Masks, and counts what was masked.
#[derive(Default)]
pub(super) struct Redactor {
    /// Secrets known by their text, such as the token we ask with.
    known: Vec<String>,
    pub(super) masked: u64,
}

impl Redactor {
    pub(super) fn new(known: impl IntoIterator<Item = String>) -> Self {
        let known = known.into_iter().filter(|secret| secret.len() >= 4);
        Self {
            known: known.collect(),
            masked: 0,
        }
    }

    pub(super) fn json(&mut self, value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    if is_secret(name) {
                        self.mask_all(value);
                    } else {
                        self.json(value);
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.json(item)),
            Value::String(text) if text.contains("PRIVATE KEY-----") => self.mask(text),
            Value::String(text) => self.mask_known(text),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Every text below a secret name, whatever its shape.
    fn mask_all(&mut self, value: &mut Value) {
        match value {
            Value::String(text) if !text.is_empty() => self.mask(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.mask_all(item)),
            Value::Object(members) => members.values_mut().for_each(|value| self.mask_all(value)),
            _ => {}
        }
    }

    fn mask(&mut self, text: &mut String) {
        MASK.clone_into(text);
        self.masked += 1;
    }

    fn mask_known(&mut self, text: &mut String) {
        for secret in &self.known {
            if text.contains(secret.as_str()) {
                *text = text.replace(secret.as_str(), MASK);
                self.masked += 1;
            }
        }
    }

    /// A line of a log: `token=…`, `"encrypt":"…"`, `X-Consul-Token: …` and the like.
    pub(super) fn line(&mut self, line: &str) -> String {
        let mut line = line.to_owned();
        self.mask_known(&mut line);
        if line.contains("PRIVATE KEY-----") {
            self.masked += 1;
            return MASK.to_owned();
        }
        let mut out = String::with_capacity(line.len());
        let mut rest = line.as_str();
        while let Some((name_at, value_at)) = next_pair(rest) {
            let name = &rest[name_at.0..name_at.1];
            let end = rest[value_at..]
                .find(DELIMITERS)
                .map_or(rest.len(), |at| value_at + at);
            let value = &rest[value_at..end];
            let secret = is_secret(name) && !value.is_empty() && !value.starts_with(MASK);
            out.push_str(&rest[..value_at]);
            out.push_str(if secret { MASK } else { value });
            self.masked += u64::from(secret);
            rest = &rest[end..];
        }
        out.push_str(rest);
        out
    }
}

fn is_secret(name: &str) -> bool {
    let plain: String = name
        .chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect();
    SECRET_WORDS.contains(&plain.as_str()) || SECRET_NAMES.iter().any(|part| plain.contains(part))
}

/// The next `name=value`, `name: value` or `"name":"value"`: where the name is, where the value begins.
fn next_pair(text: &str) -> Option<((usize, usize), usize)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let sign = text.find(['=', ':'])?;
    let before = text[..sign].trim_end_matches(['"', '\\']);
    let start = before
        .char_indices()
        .rev()
        .take_while(|(_, c)| is_name(*c))
        .last()
        .map_or(before.len(), |(at, _)| at);
    let behind = &text[sign + 1..];
    let value = behind.trim_start_matches([' ', '"', '\\', '\'']);
    Some(((start, before.len()), text.len() - value.len()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_in_json_are_masked_whatever_their_shape() {
        let mut value = json!({
            "Encrypt": "c2VjcmV0", "EncryptVerifyIncoming": true, "KeyFile": "/etc/key.pem",
            "ACLTokens": {"Agent": "abc", "Default": ""}, "tokens": ["x"], "Path": "/v1?token=mine-mine",
            "Nested": [{"gossip_key": "k", "Port": 8500, "pem": "-----BEGIN PRIVATE KEY-----\nAA"}],
            "acl": {"initial_management_token": "root"}
        });
        let mut redactor = Redactor::new(["mine-mine".to_owned()]);
        redactor.json(&mut value);
        let expected = json!({
            "Encrypt": MASK, "EncryptVerifyIncoming": true, "KeyFile": "/etc/key.pem",
            "ACLTokens": {"Agent": MASK, "Default": ""}, "tokens": [MASK], "Path": format!("/v1?token={MASK}"),
            "Nested": [{"gossip_key": MASK, "Port": 8500, "pem": MASK}],
            "acl": {"initial_management_token": MASK}
        });
        assert_eq!(value, expected);
        assert_eq!(redactor.masked, 7);
    }

    #[test]
    fn secrets_in_lines_are_masked_and_the_rest_stands() {
        let mut redactor = Redactor::new(["mine-mine".to_owned()]);
        for (line, expected) in [
            (
                "10:01 [INFO] http.addr=127.0.0.1:8500 up",
                "10:01 [INFO] http.addr=127.0.0.1:8500 up",
            ),
            (
                "GET /v1/kv/a?token=abc&dc=x",
                "GET /v1/kv/a?token=<redacted>&dc=x",
            ),
            (
                "X-Consul-Token: abc, more",
                "X-Consul-Token: <redacted>, more",
            ),
            (
                r#"{"encrypt":"c2Vj","n":1}"#,
                r#"{"encrypt":"<redacted>","n":1}"#,
            ),
            (
                r#"{"m":"{\"secret_id\":\"s\"}"}"#,
                r#"{"m":"{\"secret_id\":\"<redacted>\"}"}"#,
            ),
            ("with mine-mine in it", "with <redacted> in it"),
            ("token=é next=1", "token=<redacted> next=1"),
            ("-----BEGIN EC PRIVATE KEY-----", "<redacted>"),
            ("token=", "token="),
            ("a == b :: c", "a == b :: c"),
        ] {
            assert_eq!(redactor.line(line), expected);
        }
        assert_eq!(redactor.masked, 7);
    }
}
