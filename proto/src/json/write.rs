//! JSON text as Go's `encoding/json` prints it.
//!
//! Owns: [`Json`], a writer that appends to one buffer without building a tree first, and
//! [`pretty`], which indents finished text.
//! Never: knows a record.
//! Source: Go documentation, `json.Marshal` (HTML-safe escaping) and `json.Indent`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Bytes that cannot stand as they are inside a string. 0: as is.
static ESCAPE: [u8; 256] = escapes();

const fn escapes() -> [u8; 256] {
    let mut table = [0_u8; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[0x08] = b'b';
    table[0x0c] = b'f';
    table[b'\n' as usize] = b'n';
    table[b'\r' as usize] = b'r';
    table[b'\t' as usize] = b't';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table[b'<' as usize] = b'u';
    table[b'>' as usize] = b'u';
    table[b'&' as usize] = b'u';
    // The first byte of U+2028 and U+2029, which JavaScript takes for line ends.
    table[0xe2] = b'2';
    table
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends JSON to a buffer. Commas are put where they belong: a value after a value, a key after a value.
#[derive(Debug, Default)]
pub struct Json {
    out: Vec<u8>,
}

impl Json {
    /// An empty writer with room for `capacity_bytes`.
    #[must_use]
    pub fn with_capacity(capacity_bytes: usize) -> Self {
        Self {
            out: Vec::with_capacity(capacity_bytes),
        }
    }

    /// One value's text, as a string.
    #[must_use]
    pub fn text_of(value: &serde_json::Value) -> String {
        let mut json = Self::default();
        json.value(value);
        String::from_utf8(json.into_bytes()).expect("only whole strings were written")
    }

    /// The text written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// A comma unless a container was just opened, a key was just written, or nothing was.
    #[inline]
    fn separate(&mut self) {
        if !matches!(self.out.last(), None | Some(b'{' | b'[' | b':')) {
            self.out.push(b',');
        }
    }

    /// `{ … }` with the members that `inside` writes.
    pub fn object(&mut self, inside: impl FnOnce(&mut Self)) {
        self.separate();
        self.out.push(b'{');
        inside(self);
        self.out.push(b'}');
    }

    /// `[ … ]` with the values that `inside` writes.
    pub fn array(&mut self, inside: impl FnOnce(&mut Self)) {
        self.separate();
        self.out.push(b'[');
        inside(self);
        self.out.push(b']');
    }

    /// A list, one element per row.
    pub fn list<T>(
        &mut self,
        rows: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        self.array(|json| rows.into_iter().for_each(|row| each(json, row)));
    }

    /// A member's name. It must not need escaping: names are Consul's own words.
    #[inline]
    pub fn key(&mut self, name: &'static str) -> &mut Self {
        if !matches!(self.out.last(), None | Some(b'{')) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self
    }

    /// A member's name that a user chose.
    pub fn dynamic_key(&mut self, name: &str) -> &mut Self {
        if !matches!(self.out.last(), None | Some(b'{')) {
            self.out.push(b',');
        }
        self.quoted(name.as_bytes());
        self.out.push(b':');
        self
    }

    /// A string.
    #[inline]
    pub fn string(&mut self, text: &str) {
        self.separate();
        self.quoted(text.as_bytes());
    }

    /// A string from bytes that need not be UTF-8; as in Go, what is not becomes U+FFFD.
    pub fn lossy(&mut self, bytes: &[u8]) {
        self.separate();
        match std::str::from_utf8(bytes) {
            Ok(_) => self.quoted(bytes),
            Err(_) => self.quoted_lossy(bytes),
        }
    }

    /// An unsigned number.
    #[inline]
    pub fn number(&mut self, value: u64) {
        self.separate();
        let mut digits = [0_u8; 20];
        let (mut at, mut rest) = (digits.len(), value);
        loop {
            at -= 1;
            digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.out.extend_from_slice(&digits[at..]);
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, value: bool) {
        self.raw(if value { "true" } else { "false" });
    }

    /// `null`.
    pub fn null(&mut self) {
        self.raw("null");
    }

    /// Text that is JSON already.
    pub fn raw(&mut self, json: &str) {
        self.separate();
        self.out.extend_from_slice(json.as_bytes());
    }

    /// A parsed value, in Go's escaping; members in the map's order.
    pub fn value(&mut self, value: &serde_json::Value) {
        use serde_json::Value;
        match value {
            Value::Null => self.null(),
            Value::Bool(flag) => self.boolean(*flag),
            Value::Number(number) => self.raw(&number.to_string()),
            Value::String(text) => self.string(text),
            Value::Array(items) => self.list(items, Self::value),
            Value::Object(map) => self.object(|json| {
                for (name, value) in map {
                    json.dynamic_key(name).value(value);
                }
            }),
        }
    }

    /// Bytes in padded base64.
    pub fn base64(&mut self, bytes: &[u8]) {
        self.separate();
        self.out.push(b'"');
        let start = self.out.len();
        self.out.resize(start + bytes.len().div_ceil(3) * 4, b'=');
        STANDARD
            .encode_slice(bytes, &mut self.out[start..])
            .expect("the room was made for exactly this");
        self.out.push(b'"');
    }

    /// A list of strings; `[]` when empty.
    pub fn strings<T: AsRef<str>>(&mut self, texts: impl IntoIterator<Item = T>) {
        self.list(texts, |json, text| json.string(text.as_ref()));
    }

    /// A map of strings; `{}` when empty.
    pub fn string_map(&mut self, map: &BTreeMap<String, String>) {
        self.object(|json| {
            for (name, value) in map {
                json.dynamic_key(name).string(value);
            }
        });
    }

    fn quoted(&mut self, bytes: &[u8]) {
        self.out.push(b'"');
        self.escaped(bytes);
        self.out.push(b'"');
    }

    fn escaped(&mut self, bytes: &[u8]) {
        let mut done = 0;
        for (at, byte) in bytes.iter().enumerate() {
            let kind = ESCAPE[usize::from(*byte)];
            if kind == 0 {
                continue;
            }
            // U+2028 and U+2029 alone of those that begin with 0xe2.
            if kind == b'2' && !matches!(bytes.get(at + 1..at + 3), Some([0x80, 0xa8 | 0xa9])) {
                continue;
            }
            self.out.extend_from_slice(&bytes[done..at]);
            done = at + if kind == b'2' { 3 } else { 1 };
            match kind {
                b'u' => self.unicode(*byte),
                b'2' => self.out.extend_from_slice(if bytes[at + 2] == 0xa8 {
                    b"\\u2028"
                } else {
                    b"\\u2029"
                }),
                short => self.out.extend_from_slice(&[b'\\', short]),
            }
        }
        self.out.extend_from_slice(&bytes[done..]);
    }

    fn unicode(&mut self, byte: u8) {
        self.out.extend_from_slice(b"\\u00");
        self.out
            .extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }

    fn quoted_lossy(&mut self, bytes: &[u8]) {
        self.out.push(b'"');
        for chunk in bytes.utf8_chunks() {
            self.escaped(chunk.valid().as_bytes());
            // Go replaces every single byte of a broken sequence.
            for _ in chunk.invalid() {
                self.out.extend_from_slice(b"\\ufffd");
            }
        }
        self.out.push(b'"');
    }
}

/// Indents compact JSON by four spaces and adds the newline that Consul adds.
#[must_use]
pub fn pretty(compact: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(compact.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut at = 0;
    while at < compact.len() {
        let byte = compact[at];
        at += 1;
        if in_string {
            out.push(byte);
            (in_string, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
            continue;
        }
        match byte {
            b' ' | b'\n' | b'\t' | b'\r' => {}
            b'"' => {
                in_string = true;
                out.push(byte);
            }
            b'{' | b'[' if matches!(compact.get(at), Some(b'}' | b']')) => {
                out.extend_from_slice(&[byte, compact[at]]);
                at += 1;
            }
            b'{' | b'[' => {
                out.push(byte);
                depth += 1;
                newline(&mut out, depth);
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                newline(&mut out, depth);
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                newline(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            other => out.push(other),
        }
    }
    out.push(b'\n');
    out
}

fn newline(out: &mut Vec<u8>, depth: usize) {
    out.push(b'\n');
    out.resize(out.len() + depth * 4, b' ');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(write: impl FnOnce(&mut Json)) -> String {
        let mut json = Json::default();
        write(&mut json);
        String::from_utf8(json.into_bytes()).unwrap()
    }

    #[test]
    fn strings_are_escaped_as_go_escapes() {
        for (input, output) in [
            ("plain", "\"plain\""),
            ("a\"b\\c", r#""a\"b\\c""#),
            (
                "<a href='x'>&</a>",
                r#""\u003ca href='x'\u003e\u0026\u003c/a\u003e""#,
            ),
            ("\n\r\t\u{8}\u{c}\u{1}\u{1f}", r#""\n\r\t\b\f\u0001\u001f""#),
            (
                "\u{2028}\u{2029}\u{2027}\u{20ac}",
                "\"\\u2028\\u2029\u{2027}\u{20ac}\"",
            ),
            ("\u{7f}é", "\"\u{7f}é\""),
            ("", "\"\""),
        ] {
            assert_eq!(text(|json| json.string(input)), output);
        }
    }

    #[test]
    fn broken_utf8_becomes_the_replacement_character() {
        assert_eq!(
            text(|json| json.lossy(b"a\xff\xfeb<")),
            "\"a\\ufffd\\ufffdb\\u003c\""
        );
        assert_eq!(text(|json| json.lossy(b"\xff")), "\"\\ufffd\"");
        assert_eq!(text(|json| json.lossy("ü".as_bytes())), "\"ü\"");
    }

    #[test]
    fn commas_stand_between_values() {
        let written = text(|json| {
            json.object(|json| {
                json.key("A").number(u64::MAX);
                json.key("B").strings(["x", "y"]);
                json.key("C").object(|_| {});
                json.key("D")
                    .list([1, 2], |json, n| json.array(|json| json.number(n)));
                json.key("E").base64(b"hi");
                json.key("F").null();
                json.key("G").boolean(false);
                json.dynamic_key("g<").string("[");
                json.key("H").number(0);
            });
        });
        let expected = r#"{"A":18446744073709551615,"B":["x","y"],"C":{},"D":[[1],[2]],"E":"aGk=","F":null,"G":false,"g\u003c":"[","H":0}"#;
        assert_eq!(written, expected);
    }

    #[test]
    fn pretty_is_gos_indent() {
        assert_eq!(
            String::from_utf8(pretty(br#"{"A":[],"B":{},"C":[1,{"D":"a,b:{}\"\\"}]}"#)).unwrap(),
            "{\n    \"A\": [],\n    \"B\": {},\n    \"C\": [\n        1,\n        {\n            \"D\": \"a,b:{}\\\"\\\\\"\n        }\n    ]\n}\n"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_back(input: String) {
            let written = text(|json| json.string(&input));
            prop_assert_eq!(serde_json::from_str::<String>(&written).unwrap(), input);
        }

        #[test]
        fn any_bytes_make_valid_json(input: Vec<u8>) {
            let written = text(|json| json.lossy(&input));
            let read = serde_json::from_str::<String>(&written).unwrap();
            prop_assert_eq!(read.contains('\u{fffd}') || std::str::from_utf8(&input).is_ok(), true);
        }

        #[test]
        fn pretty_changes_no_value(input: Vec<(String, Vec<u64>)>) {
            let compact = text(|json| json.list(&input, |json, (name, numbers)| json.object(|json| {
                json.dynamic_key(name).list(numbers, |json, n| json.number(*n));
            })));
            let read = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
            prop_assert_eq!(read(&pretty(compact.as_bytes())), read(compact.as_bytes()));
        }
    }
}
