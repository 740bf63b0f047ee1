//! Blocking queries.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use weft_proto::v1;

use super::world::World;

/// Waits until a condition of the server holds; bounded, so that a failure ends.
async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{what} did not happen");
}

#[tokio::test]
async fn a_write_to_the_key_wakes_and_others_do_not() {
    let world = World::start().await;
    world.ask("PUT /v1/kv/a", "1").await;
    let index = world.get("/v1/kv/a").await.index();
    let path = format!("/v1/kv/a?index={index}&wait=60s");
    let (answer, ()) = tokio::join!(world.get(&path), async {
        until("the watch", || world.backend.watches() == 1).await;
        world.ask("PUT /v1/kv/b", "x").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(
            world.backend.watches(),
            1,
            "a write to another key woke the query"
        );
        world.ask("PUT /v1/kv/a", "2").await;
    });
    assert!(answer.index() > index);
    assert_eq!(answer.json()[0]["Value"], "Mg==");
    assert_eq!(world.backend.watches(), 0);
    world.stop().await;
}

#[tokio::test]
async fn the_end_of_the_wait_answers_with_the_same_index() {
    let world = World::start().await;
    world.ask("PUT /v1/kv/b", "0").await;
    world.ask("PUT /v1/kv/a", "1").await;
    let index = world.get("/v1/kv/a").await.index();
    let answer = world
        .get(&format!("/v1/kv/a?index={index}&wait=20ms"))
        .await;
    assert_eq!(
        (answer.status, answer.index(), &answer.json()[0]["Value"]),
        (200, index, &"MQ==".into())
    );
    let ahead = world.get("/v1/kv/a?index=999&wait=20ms").await;
    assert_eq!((ahead.status, ahead.index()), (200, index));
    let older = world
        .get(&format!("/v1/kv/?recurse&index={}&wait=60s", index - 1))
        .await;
    assert_eq!(older.status, 200);
    world.stop().await;
}

#[tokio::test]
async fn health_wakes_for_its_service_and_for_a_missing_one() {
    let world = World::start().await;
    let index = world.get("/v1/health/service/web").await.index();
    let path = format!("/v1/health/service/web?index={index}&wait=60s");
    let (answer, ()) = tokio::join!(world.get(&path), async {
        until("the watch", || world.backend.watches() == 1).await;
        let other = r#"{"Node":"n2","Address":"10.0.0.2","Service":{"Service":"db"}}"#;
        world.ask("PUT /v1/catalog/register", other).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(world.backend.watches(), 1, "another service woke the query");
        let body = r#"{"Node":"n2","Address":"10.0.0.2","Service":{"Service":"web"}}"#;
        world.ask("PUT /v1/catalog/register", body).await;
    });
    assert_eq!(answer.json()[0]["Service"]["Service"], "web");
    let path = format!("/v1/health/service/web?index={}&wait=60s", answer.index());
    let (gone, ()) = tokio::join!(world.get(&path), async {
        until("the watch", || world.backend.watches() == 1).await;
        world
            .ask(
                "PUT /v1/catalog/deregister",
                r#"{"Node":"n2","ServiceID":"web"}"#,
            )
            .await;
    });
    assert_eq!(gone.text(), "[]");
    assert!(gone.index() > answer.index());
    world.stop().await;
}

#[tokio::test]
async fn checks_chosen_by_node_meta_wake_when_the_meta_changes() {
    let world = World::start().await;
    let node = |rack: &str, check: &str| {
        format!(r#"{{"Node":"n2","Address":"10.0.0.2","NodeMeta":{{"rack":"{rack}"}}{check}}}"#)
    };
    let check = r#","Check":{"CheckID":"c","Name":"c","Status":"passing"}"#;
    world
        .ask("PUT /v1/catalog/register", &node("r1", check))
        .await;
    let path = "/v1/health/state/any?node-meta=rack:r2";
    let before = world.get(path).await;
    assert_eq!(before.text(), "[]");
    let waiting = format!("{path}&index={}&wait=60s", before.index());
    let (answer, ()) = tokio::join!(world.get(&waiting), async {
        until("the watch", || world.backend.watches() == 1).await;
        world.ask("PUT /v1/catalog/register", &node("r2", "")).await;
    });
    assert_eq!(answer.json()[0]["CheckID"], "c");
    assert!(answer.index() > before.index());
    // Whoever does not choose by it is not woken by it.
    let all = world.get("/v1/health/state/any").await.index();
    assert!(all < answer.index());
    world.stop().await;
}

#[tokio::test]
async fn an_unchanged_list_keeps_waiting_while_its_table_moves() {
    let world = World::start().await;
    for node in ["n1", "n2"] {
        world
            .ask(
                "PUT /v1/catalog/register",
                &format!(r#"{{"Node":"{node}","Address":"10.0.0.1"}}"#),
            )
            .await;
    }
    let create = |node: &str| format!(r#"{{"Node":"{node}","NodeChecks":[]}}"#);
    world.ask("PUT /v1/session/create", &create("n2")).await;
    let index = world.get("/v1/session/node/n1").await.index();
    let path = format!("/v1/session/node/n1?index={index}&wait=60s");
    let (answer, ()) = tokio::join!(world.get(&path), async {
        until("the watch", || world.backend.watches() == 1).await;
        world.ask("PUT /v1/session/create", &create("n2")).await;
        until("the watch anew", || world.backend.watches() == 1).await;
        world.ask("PUT /v1/session/create", &create("n1")).await;
    });
    assert_eq!(answer.json().as_array().unwrap().len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_frees_its_watch() {
    let world = World::start().await;
    let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
    stream
        .write_all(b"GET /v1/kv/a?index=9&wait=600s HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    until("the watch", || world.backend.watches() == 1).await;
    drop(stream);
    until("the end of the watch", || world.backend.watches() == 0).await;
    world.stop().await;
}

#[tokio::test]
async fn waiting_is_bounded_and_ends_with_the_server() {
    let world = World::with(|config| config.limits.max_blocking_queries = 1).await;
    let address = world.address;
    let first = tokio::spawn(async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        super::world::exchange(stream, "GET /v1/kv/a?index=9&wait=600s", b"", "").await
    });
    until("the watch", || world.backend.watches() == 1).await;
    let second = world.get("/v1/kv/a?index=9&wait=600s").await;
    assert_eq!((second.status, second.header("Retry-After")), (429, "1"));
    assert!(second.text().contains("limits.http_max_blocking_queries"));
    world.stop().await;
    assert_eq!(first.await.unwrap().status, 404);
}

#[tokio::test]
async fn many_waiters_wake_by_one_write_and_share_the_body() {
    let world = World::start().await;
    let register = |port: u16| {
        format!(
            r#"{{"Node":"n2","Address":"10.0.0.2","Service":{{"Service":"web","Port":{port}}}}}"#
        )
    };
    world.ask("PUT /v1/catalog/register", &register(1)).await;
    let index = world.get("/v1/health/service/web").await.index();
    let path = format!("/v1/health/service/web?index={index}&wait=60s");
    let waiters: Vec<_> = (0..50).map(|_| world.get(&path)).collect();
    let (answers, ()) = tokio::join!(futures::future::join_all(waiters), async {
        until("fifty watches", || world.backend.watches() == 50).await;
        world.ask("PUT /v1/catalog/register", &register(2)).await;
    });
    for answer in &answers {
        assert_eq!(answer.json()[0]["Service"]["Port"], 2);
    }
    world.stop().await;
}

#[tokio::test]
async fn no_publish_is_missed_between_reading_and_registering() {
    let world = World::start().await;
    world.ask("PUT /v1/kv/n", "0").await;
    let backend = world.backend.clone();
    let writer = tokio::task::spawn_blocking(move || {
        for round in 1..=300_u32 {
            let entry = v1::KvEntry {
                key: "n".into(),
                value: round.to_string().into(),
                ..Default::default()
            };
            let command = v1::KvCommand {
                verb: v1::KvVerb::Set.into(),
                entry: Some(entry),
            };
            backend.apply(v1::stamped::Command::Kv(command));
        }
    });
    let mut index = 1;
    loop {
        let answer = world.get(&format!("/v1/kv/n?index={index}&wait=5s")).await;
        assert!(
            answer.index() > index,
            "an answer came without news: a wake-up was lost"
        );
        index = answer.index();
        if answer.json()[0]["Value"] == "MzAw" {
            break;
        }
    }
    writer.await.unwrap();
    world.stop().await;
}
