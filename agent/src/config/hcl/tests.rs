use proptest::prelude::*;
use serde_json::{Value, json};

use super::tree::Source;
use super::{Format, read};

#[track_caller]
fn check(text: &str, expected: Value) {
    match read(&Source::text("t.hcl", text), Format::Hcl) {
        Ok(node) => assert_eq!(node.to_json(), expected, "{text}"),
        Err(error) => panic!("{text}\n{:?}: {error}", error.span),
    }
}

#[track_caller]
fn check_error(text: &str, format: Format, expected: &str) {
    let error = read(&Source::text("t", text), format).expect_err(text);
    let (line, column) = error.span.line_column();
    assert_eq!(format!("{line}:{column} {error}"), expected, "{text}");
}

/// Texts both grammars know; the oracle must agree with us.
const COMMON: &[&str] = &[
    "",
    "a = 1",
    "a = -1\nb = 1.5\nc = 2e3\nd = true\ne = false\nf = null",
    "a = \"x\" # c\n// c\n/* c\nc */ b = \"y\"",
    r#"a = "q \" b \\ n \n t \t""#,
    "ports {\n  http = 8500\n  dns = -1\n}",
    "service {\n name = \"a\"\n}\nservice {\n name = \"b\"\n}",
    "key \"a\" {\n policy = \"read\"\n}\nkey \"b\" {\n policy = \"write\"\n}",
    "list = [\"a\", 1, true, [\"b\"], { c = 1, d = 2 }]",
    "list = [\n  \"a\",\n  \"b\",\n]",
    "o = {\n  a = 1\n  b = \"2\"\n}",
    "o = { a = 1, b = { c = [] } }",
    "text = <<EOF\none\n  two\nEOF\n",
    "text = <<-EOF\n    one\n      two\n    EOF\n",
    "a = \"{{ GetPrivateIP }}\"",
    "a = \"{{ GetInterfaceIP \\\"eth0\\\" }}\"",
    "datacenter = \"dc1\"\ndata_dir = \"/opt\"\nretry_join = [\"10.0.0.1\", \"10.0.0.2\"]\nui_config {\n enabled = true\n}",
    "a {}\n",
    "deep {\n b {\n c {\n d = 1\n }\n }\n}",
];

#[test]
fn agrees_with_the_oracle_on_the_common_subset() {
    for text in COMMON {
        let oracle: Value = hcl::from_str(text).unwrap();
        // The oracle keeps whole numbers written with an exponent apart from floats; values are equal.
        let ours = read(&Source::text("t", *text), Format::Hcl)
            .unwrap()
            .to_json();
        assert_eq!(normal(&ours), normal(&oracle), "{text}");
    }
}

fn normal(value: &Value) -> Value {
    match value {
        Value::Number(n) => json!(n.as_f64()),
        Value::Array(items) => items.iter().map(normal).collect(),
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), normal(v))).collect(),
        other => other.clone(),
    }
}

#[test]
fn reads_what_only_hcl1_has() {
    check("\"datacenter\" = \"dc1\"", json!({"datacenter": "dc1"}));
    check(
        "\"service\" \"web\" { port = 80 }",
        json!({"service": {"web": {"port": 80}}}),
    );
    check(
        "services { name = \"a\" port = 1 }",
        json!({"services": {"name": "a", "port": 1}}),
    );
    check(
        "services { name = \"a\", port = 1 }",
        json!({"services": {"name": "a", "port": 1}}),
    );
    check(
        "a \"b\" \"c\" { d = 1 }",
        json!({"a": {"b": {"c": {"d": 1}}}}),
    );
    check(
        "a \"b\" { d = 1 } a \"b\" { d = 2 }",
        json!({"a": {"b": [{"d": 1}, {"d": 2}]}}),
    );
    check(
        "a { n = 1 } a { n = 2 } a { n = 3 }",
        json!({"a": [{"n": 1}, {"n": 2}, {"n": 3}]}),
    );
    check("a = 1 a = 2", json!({"a": 2}));
    check("n = 0x1F m = -0x10", json!({"n": 31, "m": -16}));
    check(
        r#"s = "\x41\u00e9\U0001F600\a\v""#,
        json!({"s": "A\u{e9}\u{1F600}\u{7}\u{b}"}),
    );
    check(
        r#"s = "${upper("x")} y""#,
        json!({"s": "${upper(\"x\")} y"}),
    );
    check(
        "o { \"a\": 1, \"b\": [2] }",
        json!({"o": {"a": 1, "b": [2]}}),
    );
    check("{\"a\": {\"b\": 1}}", json!({"a": {"b": 1}}));
    check("a.b-c_d = 1", json!({"a.b-c_d": 1}));
    check(
        "t = <<-E\n a\n b\n   E\nx = 1",
        json!({"t": " a\n b\n", "x": 1}),
    );
    check("\u{feff}a = 1", json!({"a": 1}));
}

#[test]
fn says_where_and_what() {
    for (text, expected) in [
        ("a = ", "1:5 expected a value, found the end of the text"),
        (
            "a\n",
            "2:1 expected \"=\" or \"{\" after key \"a\", found the end of the text",
        ),
        (
            "a = \"x",
            "1:5 this string is not closed with a double quote on its line",
        ),
        (
            "a = yes",
            "1:5 expected a value, found the bare word yes; put text in double quotes",
        ),
        ("a = [1 2]", "1:8 expected \",\" or \"]\", found \"2\""),
        (
            "a {\n b = 1\n",
            "3:1 expected \"}\", found the end of the text",
        ),
        ("a = 1\n}", "2:1 expected a key, found \"}\""),
        ("/* x", "1:1 this comment is not closed with \"*/\""),
        ("a = 1.2.3", "1:5 \"1.2.3\" is not a number"),
        (
            "a = \"\\q\"",
            "1:6 this escape is not known; a backslash itself is written \\\\",
        ),
        ("a = <<EOF\nx\n", "1:5 no line with the marker EOF follows"),
        (
            "é = 1, b = 2",
            "1:6 a comma may not stand between entries outside of braces",
        ),
    ] {
        check_error(text, Format::Hcl, expected);
    }
    for (text, expected) in [
        (
            "{\"a\": 1,}",
            "1:9 expected another key (JSON allows no trailing comma), found \"}\"",
        ),
        (
            "{\"a\" = 1}",
            "1:6 expected \":\" after key \"a\", found \"=\"",
        ),
        ("{a: 1}", "1:2 expected a key in double quotes, found \"a\""),
        ("[1]", "1:1 expected an object, found a list"),
        ("{\"a\": 01}", "1:7 \"01\" is not a number"),
        ("{} x", "1:4 expected the end of the text, found \"x\""),
        (
            "{\"a\": 1 // c\n}",
            "1:9 expected \",\" or \"}\", found \"/\"",
        ),
    ] {
        check_error(text, Format::Json, expected);
    }
}

#[test]
fn nesting_and_size_are_bounded() {
    let deep = format!("a = {}{}", "[".repeat(70), "]".repeat(70));
    check_error(&deep, Format::Hcl, "1:69 nested deeper than 64 levels");
    let labels = format!("a {} {{}}", "\"b\" ".repeat(70));
    let error = read(&Source::text("t", labels), Format::Hcl).unwrap_err();
    assert!(error.message.contains("nested deeper"), "{error}");
    let long = " ".repeat(super::SOURCE_SIZE_MAX_BYTES + 1);
    let error = read(&Source::text("t", long), Format::Hcl).unwrap_err();
    assert!(
        error.message.contains("at most 8388608 are read"),
        "{error}"
    );
}

/// A JSON value as users write them, for round trips.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-z\"\\\\ é]{0,8}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn json_is_read_as_serde_reads_it(value in prop::collection::btree_map("[a-z_]{1,8}", any_json(), 0..6)) {
        let expected = Value::Object(value.into_iter().collect());
        for text in [expected.to_string(), serde_json::to_string_pretty(&expected).unwrap()] {
            let ours = read(&Source::text("t", text), Format::Json).unwrap().to_json();
            prop_assert_eq!(&ours, &expected);
        }
    }

    #[test]
    fn what_json_refuses_is_refused(text in "[\\[\\]{}:,\"a1 .-]{0,24}") {
        let ours = read(&Source::text("t", format!("{{{text}}}")), Format::Json);
        let serde: Result<Value, _> = serde_json::from_str(&format!("{{{text}}}"));
        prop_assert_eq!(ours.is_ok(), serde.is_ok());
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        let _ = read(&Source::text("t", text.clone()), Format::Hcl);
        let _ = read(&Source::text("t", text), Format::Json);
    }

    #[test]
    fn no_hcl_like_text_makes_it_panic(text in "([ab\"={}\\[\\],#/*<\\-\\\\$\n 0-9]|EOF|<<E|\\$\\{|true|é){0,60}") {
        if let Err(error) = read(&Source::text("t", text), Format::Hcl) {
            let _ = (error.span.line_text(), error.span.width(), error.span.line_column());
        }
    }
}
