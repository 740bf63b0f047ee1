//! Query strings and percent-decoding as Go's `net/url` does them.
//!
//! Owns: [`Query`], a parsed query string: repeated names, names without a value, `+` as a space.
//! Never: decides what a parameter means; [`super::options`] and the handlers do.
//! Source: Go documentation, `url.ParseQuery`.

use std::borrow::Cow;

/// Parameters one request may carry; more are refused (no user needs a fraction of this).
pub(super) const PARAMETERS_MAX: usize = 512;

/// Letters shown of a pair that is refused.
const PAIR_SHOWN: usize = 80;

/// A parsed query string, in the order written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pairs: Vec<(String, String)>,
}

/// Why a query string was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// More parameters than [`PARAMETERS_MAX`].
    TooMany,
    /// A pair with a broken escape or a semicolon. Left out, it could be the filter that was meant.
    Broken(String),
}

impl Query {
    /// Parses. Go's parser errs at the same pairs.
    pub(super) fn parse(text: &str) -> Result<Self, Refused> {
        let mut pairs = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (false, Some(name), Some(value)) =
                (pair.contains(';'), unescape(name), unescape(value))
            else {
                return Err(Refused::Broken(pair.chars().take(PAIR_SHOWN).collect()));
            };
            if pairs.len() == PARAMETERS_MAX {
                return Err(Refused::TooMany);
            }
            pairs.push((name, value));
        }
        Ok(Self { pairs })
    }

    /// The first value, empty when the name stands alone.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Present, with any value or none.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The parameters by name, escaped again.
    pub(super) fn encode(&self) -> String {
        let mut pairs: Vec<_> = self.pairs.iter().collect();
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        let encoded = pairs
            .iter()
            .map(|(name, value)| format!("{}={}", escape(name), escape(value)));
        encoded.collect::<Vec<_>>().join("&")
    }

    /// Every value of a repeatable parameter.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A component of a query string, written as Go does.
fn escape(text: &str) -> String {
    percent_encode(text, false).replace("%20", "+")
}

/// A component of a query string: `%xx`, and `+` for a space. What is not UTF-8 is replaced.
fn unescape(text: &str) -> Option<String> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Some(text.to_owned());
    }
    let bytes = percent_decode(text.replace('+', " ").as_bytes())?.into_owned();
    Some(
        String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    )
}

/// RFC 3986: everything but unreserved characters is escaped, and slashes stay when `path`.
#[must_use]
pub fn percent_encode(text: &str, path: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte))
            }
            b'/' if path => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Decodes `%xx` once. `None` when an escape is broken.
pub(super) fn percent_decode(bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !bytes.contains(&b'%') {
        return Some(Cow::Borrowed(bytes));
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let (high, low) = (hex(*bytes.get(at + 1)?)?, hex(*bytes.get(at + 2)?)?);
            out.push(high << 4 | low);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    Some(Cow::Owned(out))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_and_values_are_escaped_byte_by_byte() {
        assert_eq!(
            percent_encode("/v1/kv/a b/é//", true),
            "/v1/kv/a%20b/%C3%A9//"
        );
        assert_eq!(percent_encode("a/b&c=d+e", false), "a%2Fb%26c%3Dd%2Be");
    }

    #[test]
    fn names_repeat_and_stand_alone() {
        let query = Query::parse("recurse&tag=a&tag=b%20c&x=1+2&&separator=/").unwrap();
        assert!(query.has("recurse"));
        assert_eq!(query.get("recurse"), Some(""));
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a", "b c"]);
        assert_eq!(query.get("x"), Some("1 2"));
        assert_eq!(query.get("separator"), Some("/"));
    }

    #[test]
    fn a_pair_that_cannot_be_read_is_refused_with_its_text() {
        for (text, pair) in [
            ("a=1&bad=%zz", "bad=%zz"),
            ("%=1&a", "%=1"),
            ("y;z=1", "y;z=1"),
        ] {
            assert_eq!(Query::parse(text), Err(Refused::Broken(pair.into())));
        }
        let Err(Refused::Broken(pair)) = Query::parse(&format!("{}=%z", "x".repeat(9_000))) else {
            panic!("refused");
        };
        assert_eq!(pair.len(), PAIR_SHOWN);
    }

    #[test]
    fn parameters_are_written_by_name() {
        assert_eq!(
            Query::parse("b=x/y&a&c=1+2").unwrap().encode(),
            "a=&b=x%2Fy&c=1+2"
        );
    }

    #[test]
    fn parameters_are_bounded() {
        assert_eq!(
            Query::parse(&"a&".repeat(PARAMETERS_MAX + 1)),
            Err(Refused::TooMany)
        );
        assert!(Query::parse(&"a&".repeat(PARAMETERS_MAX)).is_ok());
    }

    #[test]
    fn escapes_are_decoded_once() {
        assert_eq!(
            percent_decode(b"a%2Fb%252F%ff").unwrap().as_ref(),
            b"a/b%2F\xff"
        );
        assert_eq!(percent_decode(b"a%2"), None);
        assert_eq!(percent_decode(b"a%g0"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_panic(text: String) {
            let _ = Query::parse(&text);
            let _ = percent_decode(text.as_bytes());
        }
    }
}
