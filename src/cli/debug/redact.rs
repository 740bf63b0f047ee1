//! Taking secrets out of what is captured.
//!
//! Owns: what counts as a secret, in JSON and in lines of a log.
//! Never: trusts that the agent has masked its own already.

use std::ops::Range;

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
/// Ends a bare value in a line of a log.
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
            // A URL, a header or a whole document may stand in it.
            Value::String(text) => *text = self.line(text),
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
        while let Some(sign) = rest.find(['=', ':']) {
            let name = name_before(&rest[..sign]);
            let (before, behind) = rest.split_at(sign + 1);
            out.push_str(before);
            rest = behind;
            if !is_secret(name) {
                // What seems to be its value may have pairs within: a URL's query, say.
                continue;
            }
            let value = value_in(name, behind);
            if !value.is_empty() && &behind[value.clone()] != MASK {
                out.push_str(&behind[..value.start]);
                out.push_str(MASK);
                rest = &behind[value.end..];
                self.masked += 1;
            }
        }
        out.push_str(rest);
        out
    }
}

fn is_secret(name: &str) -> bool {
    let plain = plain(name);
    SECRET_WORDS.contains(&plain.as_str()) || SECRET_NAMES.iter().any(|part| plain.contains(part))
}

/// In lower case, without what separates words.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// The name that ends before a sign, quoted or not: of `"name":`, `name =`, `x["name"]=`.
fn name_before(text: &str) -> &str {
    let text = text.trim_end_matches([' ', '\t', '"', '\'', '\\', ']']);
    let before = text.trim_end_matches(|c: char| c.is_ascii_alphanumeric() || "_-.".contains(c));
    &text[before.len()..]
}

/// Where the value behind a sign is: what a quote or a bracket encloses, else up to a delimiter.
/// Where that is in doubt, rather too much than too little.
fn value_in(name: &str, text: &str) -> Range<usize> {
    // Two signs in a row are one: `==`, `:=`, `=>`.
    let value = text.trim_start_matches([' ', '\t', '=', ':', '>']);
    let start = text.len() - value.len();
    // A type's name may stand before a bracket, as in `Some("…")`.
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let word = value.len() - value.trim_start_matches(is_word).len();
    let slashes = value[word..].len() - value[word..].trim_start_matches('\\').len();
    let opened = word + slashes;
    let bare_to = |end: usize| start..start + end;
    let inside = |end: usize| start + opened + 1..start + opened + 1 + end;
    match value[opened..].chars().next() {
        Some(quote @ ('"' | '\'')) if word == 0 => {
            inside(end_of_quote(&value[opened + 1..], quote, slashes))
        }
        Some('[' | '{' | '(') if word == 0 => inside(end_of_bracket(&value[opened + 1..])),
        // `Bearer …`, `Digest username="…", response="…"`.
        _ if plain(name).contains("authorization") => bare_to(value.len()),
        // Bytes, as they are shown for debugging.
        Some(quote @ ('"' | '\'')) if &value[..word] == "b" => {
            bare_to(opened + 1 + end_of_quote(&value[opened + 1..], quote, slashes))
        }
        Some('[' | '{' | '(') => bare_to(opened + 1 + end_of_bracket(&value[opened + 1..])),
        _ => bare_to(value.find(DELIMITERS).unwrap_or(value.len())),
    }
}

/// Where the quote ends that was opened before `text`, by a sign with so many backslashes before it.
fn end_of_quote(text: &str, quote: char, slashes: usize) -> usize {
    let mut run = 0;
    for (at, c) in text.char_indices() {
        if c == quote && run <= slashes {
            return at - run;
        }
        run = if c == '\\' { run + 1 } else { 0 };
    }
    text.len()
}

/// Where the bracket is closed that was opened before `text`. Those in quotes do not count.
fn end_of_bracket(text: &str) -> usize {
    let (mut depth, mut quoted) = (1, false);
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '[' | '{' | '(' if !quoted => depth += 1,
            ']' | '}' | ')' if !quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
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

    #[test]
    fn a_secret_is_found_wherever_it_stands_and_masked_whole() {
        for (line, expected) in [
            ("https://h/x?token=S3", "https://h/x?token=<redacted>"),
            (
                "path=/v1/kv/a?token=S3&dc=x done",
                "path=/v1/kv/a?token=<redacted>&dc=x done",
            ),
            (
                r#"error="Post \"http://h:80/x?a=b&token=S3\": refused" retry=1s"#,
                r#"error="Post \"http://h:80/x?a=b&token=<redacted>\": refused" retry=1s"#,
            ),
            ("Authorization: Bearer S3", "Authorization: <redacted>"),
            (
                r#"Authorization: Digest username="S3", response="S3""#,
                "Authorization: <redacted>",
            ),
            (
                r#"{"Authorization":"Bearer S3","Port":80}"#,
                r#"{"Authorization":"<redacted>","Port":80}"#,
            ),
            (
                r#"{"Proxy-Authorization":["Basic S3"],"Port":80}"#,
                r#"{"Proxy-Authorization":[<redacted>],"Port":80}"#,
            ),
            (r#""tokens":["S3"]"#, r#""tokens":[<redacted>]"#),
            (
                r#"{"tokens":["S3]","S3"],"acl":{"tokens":{"agent":"S3","x":["S3"]}},"port":80}"#,
                r#"{"tokens":[<redacted>],"acl":{"tokens":{<redacted>}},"port":80}"#,
            ),
            (
                r#"password="S3 and S3" user=me"#,
                r#"password="<redacted>" user=me"#,
            ),
            (
                r#"m="{\"secret\":\"S3 \\\"S3\",\"n\":1}""#,
                r#"m="{\"secret\":\"<redacted>\",\"n\":1}""#,
            ),
            ("token == 'S3' or a", "token == '<redacted>' or a"),
            ("encrypt = \"S3\"", "encrypt = \"<redacted>\""),
            ("headers[\"x-token\"]=S3", "headers[\"x-token\"]=<redacted>"),
            (
                "Query { token: Some(\"S3\"), dc: None }",
                "Query { token: <redacted>), dc: None }",
            ),
            (
                "{\"x-token\": b\"S3\", a: 1}",
                "{\"x-token\": <redacted>\", a: 1}",
            ),
            ("token=<redacted>", "token=<redacted>"),
            ("token=\"\" a=S4", "token=\"\" a=S4"),
        ] {
            let mut redactor = Redactor::default();
            assert_eq!(redactor.line(line), expected);
            assert_eq!(redactor.masked > 0, line.contains("S3"), "{line}");
        }
        let mut value = json!({"URL": "https://h/x?token=S3", "Header": "Authorization: Bearer S3", "At": "tcp://h:80"});
        let mut redactor = Redactor::default();
        redactor.json(&mut value);
        let expected = json!({
            "URL": format!("https://h/x?token={MASK}"), "Header": format!("Authorization: {MASK}"), "At": "tcp://h:80"
        });
        assert_eq!((value, redactor.masked), (expected, 2));
    }
}
