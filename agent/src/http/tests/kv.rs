//! Keys, sessions and transactions.

use std::sync::Arc;

use weft_catalog::acl::{Access, Authorizer, Decision, Resource};
use weft_proto::v1::{self, stamped::Command};

use super::world::World;

#[tokio::test]
async fn keys_are_written_read_and_deleted() {
    let world = World::start().await;
    world
        .check(&[
            ("GET /v1/kv/a", "", 404, ""),
            ("PUT /v1/kv/a/b?flags=42", "hi", 200, "true"),
            ("GET /v1/kv/a/b", "", 200, r#"[{"LockIndex":0,"Key":"a/b","Flags":42,"Value":"aGk=","CreateIndex":1,"ModifyIndex":1}]"#),
            ("GET /v1/kv/a/b?raw", "", 200, "hi"),
            ("PUT /v1/kv/a/empty", "", 200, "true"),
            ("GET /v1/kv/a/empty", "", 200, r#"[{"LockIndex":0,"Key":"a/empty","Flags":0,"Value":null,"CreateIndex":2,"ModifyIndex":2}]"#),
            ("PUT /v1/kv/a/b?cas=0", "x", 200, "false"),
            ("PUT /v1/kv/a/b?cas=1", "x", 200, "true"),
            ("GET /v1/kv/?keys&separator=/", "", 200, r#"["a/"]"#),
            ("GET /v1/kv/a/?keys", "", 200, r#"["a/b","a/empty"]"#),
            ("GET /v1/kv/zz?keys", "", 404, ""),
            ("GET /v1/kv/zz?recurse", "", 404, ""),
            ("PUT /v1/kv/odd%2F%2Fkey%20x:%C3%BC//", "v", 200, "true"),
            ("GET /v1/kv/odd?keys", "", 200, "[\"odd//key x:ü//\"]"),
            ("GET /v1/kv/odd//key%20x:%C3%BC//?raw", "", 200, "v"),
            ("DELETE /v1/kv/a/b?cas=1", "", 200, "false"),
            ("DELETE /v1/kv/a/b", "", 200, "true"),
            ("DELETE /v1/kv/a?recurse", "", 200, "true"),
            ("GET /v1/kv/?keys", "", 200, "[\"odd//key x:ü//\"]"),
            ("DELETE /v1/kv/?recurse", "", 200, "true"),
            ("GET /v1/kv/?keys", "", 200, "[]"),
        ])
        .await;
    world.stop().await;
}

#[tokio::test]
async fn bad_key_requests_are_refused_in_consuls_words() {
    let world = World::start().await;
    world
        .check(&[
            ("GET /v1/kv/", "", 400, "Missing key name"),
            ("PUT /v1/kv/", "x", 400, "Missing key name"),
            ("DELETE /v1/kv/", "", 400, "Missing key name"),
            (
                "PUT /v1/kv/a?cas=1&acquire=x",
                "",
                400,
                "Conflicting flags: acquire=x&cas=1",
            ),
            (
                "DELETE /v1/kv/a?recurse&cas=1",
                "",
                400,
                "Conflicting flags: cas=1&recurse=",
            ),
            (
                "PUT /v1/kv/a?flags=x",
                "",
                400,
                "Invalid value for ?flags: \"x\" is not an unsigned number",
            ),
            (
                "PUT /v1/kv/a?cas=-1",
                "",
                400,
                "Invalid value for ?cas: \"-1\" is not an unsigned number",
            ),
            (
                "PUT /v1/kv/a/../b",
                "",
                400,
                "Invalid key: it has a \"..\" segment",
            ),
            (
                "PUT /v1/kv/a%2F%2e%2e/b",
                "",
                400,
                "Invalid key: it has a \"..\" segment",
            ),
            (
                "PUT /v1/kv/%20a",
                "",
                400,
                "Invalid key: it begins or ends with a space",
            ),
            (
                "PUT /v1/kv/a%01",
                "",
                400,
                "Invalid key: it has an unprintable character",
            ),
            ("PUT /v1/kv/a%zz", "", 400, "Invalid URL escape in path"),
            ("GET /v1/kv/?keys", "", 200, "[]"),
        ])
        .await;
    let unknown = world
        .ask(
            "PUT /v1/kv/a?acquire=11111111-2222-3333-4444-555555555555",
            "x",
        )
        .await;
    assert_eq!(unknown.status, 500);
    assert!(
        unknown.text().contains("invalid session"),
        "{}",
        unknown.text()
    );
    world.stop().await;
}

#[tokio::test]
async fn values_are_limited_by_the_bytes_that_arrive() {
    let world = World::with(|config| config.limits.kv_max_value_bytes = 100).await;
    assert_eq!(
        world.ask("PUT /v1/kv/a", &"x".repeat(100)).await.text(),
        "true"
    );
    let refused = world.ask("PUT /v1/kv/a", &"y".repeat(101)).await;
    assert_eq!(refused.status, 413);
    assert!(
        refused
            .text()
            .starts_with("Request body(101 bytes) too large, max size: 100 bytes. See ")
    );
    assert!(refused.text().contains("limits.kv_max_value_size"));
    let chunked = format!("{:x}\r\n{}\r\n0\r\n\r\n", 150, "z".repeat(150));
    let stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let refused = raw(stream, &format!("PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}")).await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
    assert_eq!(world.get("/v1/kv/a?raw").await.text(), "x".repeat(100));
    world.stop().await;
}

async fn raw(mut stream: tokio::net::TcpStream, request: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn sessions_hold_locks() {
    let world = World::start().await;
    assert_eq!(
        world
            .ask(
                "PUT /v1/catalog/register",
                r#"{"Node":"n1","Address":"127.0.0.1"}"#
            )
            .await
            .text(),
        "true"
    );
    let made = world
        .ask(
            "PUT /v1/session/create",
            r#"{"Name":"l","LockDelay":0,"NodeChecks":[],"TTL":"30s"}"#,
        )
        .await;
    assert_eq!(made.status, 200, "{}", made.text());
    let id = made.json()["ID"].as_str().unwrap().to_owned();
    let session = format!(
        r#"[{{"ID":"{id}","Name":"l","Node":"n1","LockDelay":0,"Behavior":"release","TTL":"30s","NodeChecks":[],"ServiceChecks":null,"CreateIndex":2,"ModifyIndex":2}}]"#
    );
    let lock = format!("PUT /v1/kv/lock?acquire={id}");
    let unlock = format!("PUT /v1/kv/lock?release={id}");
    let (info, renew) = (
        format!("GET /v1/session/info/{id}"),
        format!("PUT /v1/session/renew/{id}"),
    );
    let destroy = format!("PUT /v1/session/destroy/{id}");
    world
        .check(&[
            (&info, "", 200, &session),
            ("GET /v1/session/list", "", 200, &session),
            ("GET /v1/session/node/N1", "", 200, &session),
            ("GET /v1/session/node/other", "", 200, "[]"),
            (&renew, "", 200, &session),
            (&lock, "mine", 200, "true"),
            (&unlock, "free", 200, "true"),
            (&lock, "mine", 200, "true"),
            (&destroy, "", 200, "true"),
            (&destroy, "", 200, "true"),
            (&info, "", 200, "[]"),
            ("GET /v1/session/info/", "", 400, "Missing session"),
        ])
        .await;
    let entry = world.get("/v1/kv/lock").await.json();
    assert_eq!(
        (&entry[0]["LockIndex"], &entry[0]["Session"]),
        (&2.into(), &serde_json::Value::Null)
    );
    let gone = world.ask(&renew, "").await;
    assert_eq!(
        (gone.status, gone.text()),
        (404, format!("Session id \"{id}\" not found"))
    );
    for (body, status, text) in [
        (
            r#"{"TTL":"5s"}"#,
            500,
            "Invalid Session TTL '5000000000', must be between [10s=24h0m0s]",
        ),
        (
            r#"{"Behavior":"keep"}"#,
            500,
            "Invalid Behavior setting 'keep'",
        ),
        (
            r#"{"TTL":7}"#,
            500,
            "Invalid Session TTL '7', must be between [10s=24h0m0s]",
        ),
        (
            "{",
            400,
            "Request decode failed: EOF while parsing an object at line 1 column 1",
        ),
        (
            r#"{"Name":1}"#,
            400,
            "Request decode failed: cannot decode number into field Name of type string",
        ),
    ] {
        let answer = world.ask("PUT /v1/session/create", body).await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (status, text),
            "{body}"
        );
    }
    world.stop().await;
}

#[tokio::test]
async fn transactions_run_whole_or_not_at_all() {
    let world = World::start().await;
    let set =
        r#"[{"KV":{"Verb":"set","Key":"t/a","Value":"aGk="}},{"KV":{"Verb":"get","Key":"t/a"}}]"#;
    let entry = r#""LockIndex":0,"Key":"t/a","Flags":0,"#;
    let done = format!(
        r#"{{"Results":[{{"KV":{{{entry}"Value":null,"CreateIndex":1,"ModifyIndex":1}}}},{{"KV":{{{entry}"Value":"aGk=","CreateIndex":1,"ModifyIndex":1}}}}],"Errors":null}}"#
    );
    world.check(&[("PUT /v1/txn", set, 200, &done)]).await;
    let stale = r#"[{"KV":{"Verb":"set","Key":"t/b","Value":""}},{"KV":{"Verb":"cas","Key":"t/a","Value":"","Index":9}}]"#;
    let conflict = world.ask("PUT /v1/txn", stale).await;
    assert_eq!(conflict.status, 409);
    assert_eq!(conflict.json()["Results"], serde_json::Value::Null);
    assert_eq!(conflict.json()["Errors"][0]["OpIndex"], 1);
    assert_eq!(world.get("/v1/kv/t/b").await.status, 404);
    let read = world
        .ask(
            "PUT /v1/txn?stale",
            r#"[{"KV":{"Verb":"get","Key":"t/a"}}]"#,
        )
        .await;
    assert_eq!(
        (read.status, &read.json()["KnownLeader"]),
        (200, &true.into())
    );
    let many = format!(
        "[{}]",
        vec![r#"{"KV":{"Verb":"get","Key":"a"}}"#; 129].join(",")
    );
    world
        .check(&[
            (
                "PUT /v1/txn",
                &many,
                413,
                "Transaction contains too many operations (129 > 128)",
            ),
            (
                "PUT /v1/txn",
                r#"[{"KV":{"Verb":"put"}}]"#,
                400,
                "Request decode failed: field [0].KV.Verb: unknown verb \"put\"",
            ),
            ("PUT /v1/txn", "", 400, "Request decode failed: EOF"),
        ])
        .await;
    world.stop().await;
}

/// May write nodes, services, sessions and queries named `mine…` and read everything.
pub(super) struct OnlyMine;

impl Authorizer for OnlyMine {
    fn allows(&self, _resource: Resource, name: &[u8], access: Access) -> Decision {
        Decision {
            allowed: access == Access::Read || name.starts_with(b"mine"),
            reason: "test",
        }
    }

    fn fingerprint(&self) -> u64 {
        1
    }
}

#[tokio::test]
async fn a_transaction_needs_the_right_to_what_it_touches_not_to_what_it_claims() {
    let world = World::with_rights(Arc::new(OnlyMine)).await;
    let id = "0f0c0000-0000-4000-8000-00000000000a";
    for name in ["theirs", "mine"] {
        let check = v1::Check {
            id: "bound".to_owned(),
            name: "bound".to_owned(),
            service_id: "s1".to_owned(),
            ..Default::default()
        };
        world.backend.apply(Command::Register(v1::Register {
            node: Some(v1::Node {
                id: if name == "theirs" { id } else { "" }.to_owned(),
                name: name.to_owned(),
                address: "10.0.0.1".to_owned(),
                ..Default::default()
            }),
            service: Some(v1::Service {
                id: "s1".to_owned(),
                name: format!("{name}-service"),
                ..Default::default()
            }),
            checks: vec![check],
            skip_node_update: false,
        }));
    }
    let session = |of: &str| {
        let id = format!("0f0c0000-0000-4000-8000-0000000000{:02x}", of.len());
        let session = v1::Session {
            id: id.clone(),
            node: of.to_owned(),
            behavior: "release".to_owned(),
            ..Default::default()
        };
        world
            .backend
            .apply(Command::SessionCreate(v1::SessionCreate {
                session: Some(session),
            }));
        format!(r#"[{{"Session":{{"Verb":"delete","Session":{{"ID":"{id}"}}}}}}]"#)
    };
    let node = |verb: &str, name: &str, id: &str| {
        format!(
            r#"[{{"Node":{{"Verb":"{verb}","Node":{{"Node":"{name}","ID":"{id}","Address":"10.0.0.1"}}}}}}]"#
        )
    };
    let service = |verb: &str, node: &str, name: &str| {
        format!(
            r#"[{{"Service":{{"Verb":"{verb}","Node":"{node}","Service":{{"ID":"s1","Service":"{name}"}}}}}}]"#
        )
    };
    let check = |verb: &str, node: &str, rest: &str| {
        format!(
            r#"[{{"Check":{{"Verb":"{verb}","Check":{{"Node":"{node}","CheckID":"bound","Name":"bound"{rest}}}}}}}]"#
        )
    };
    let claims = r#","ServiceID":"s1","ServiceName":"mine""#;
    for denied in [
        // By id, under a name that may be written.
        node("delete", "mine", id),
        node("set", "mine-now", id),
        service("delete", "theirs", "mine-service"),
        service("set", "theirs", "mine-service"),
        service("set", "mine", "theirs"),
        check("delete", "theirs", claims),
        check("set", "theirs", claims),
        session("theirs"),
    ] {
        let answer = world.ask("PUT /v1/txn", &denied).await;
        assert_eq!(
            (answer.status, answer.header("X-Weft-Reason")),
            (403, "test"),
            "{denied}"
        );
    }
    for allowed in [
        node("get", "mine", id),
        service("set", "mine", "mine-too"),
        check("set", "mine", r#","ServiceID":"s1","ServiceName":"theirs""#),
        check("delete", "mine", ""),
        service("delete", "mine", ""),
        session("mine"),
        node("delete", "mine", ""),
    ] {
        let answer = world.ask("PUT /v1/txn", &allowed).await;
        assert_eq!(answer.status, 200, "{allowed}: {}", answer.text());
    }
    world.stop().await;
}

#[tokio::test]
async fn keys_are_taken_as_they_are_when_they_are_not_validated() {
    let world = World::with(|config| config.validate_kv_keys = false).await;
    world
        .check(&[
            ("PUT /v1/kv/a%2F%2e%2e/b", "x", 200, "true"),
            ("PUT /v1/kv/%20a", "y", 200, "true"),
            ("GET /v1/kv/a%2F%2e%2e/b?raw", "", 200, "x"),
            (
                "PUT /v1/kv/a%01",
                "",
                400,
                "Invalid key: it has an unprintable character",
            ),
        ])
        .await;
    world.stop().await;
}
