//! Anti-entropy: which ids are one, and what a round is bounded by.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use super::sync::{foreign, foreign_check};
use super::world::{API, Cluster, check, node, open, service, until};
use crate::local::plan::{self, Busy, WRITES_AT_ONCE};
use crate::local::table::Table;
use crate::local::{Source, Status};

#[tokio::test(start_paused = true)]
async fn ids_that_differ_in_letter_case_are_one_as_in_the_catalog() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let body = |id: &str, port: u16| {
        let check = json!({"CheckID": format!("alive-{id}"), "TTL": "100h"});
        service(json!({"ID": id, "Name": "web", "Port": port, "Check": check}))
    };
    cluster.register_elsewhere(
        foreign("WEB-1"),
        Some(foreign_check("ALIVE-web-1", "WEB-1")),
    );
    let local = open(Some(dir.path()));
    local.register_service(body("Web-1", 1), API).await.unwrap();
    local.confirm_removals();
    let running = local.start(cluster.clone());
    until("ours is there", || cluster.service_ids() == ["Web-1"]).await;
    local
        .update_ttl("ALIVE-WEB-1", Status::Passing, "")
        .await
        .unwrap();
    local.register_service(body("web-1", 2), API).await.unwrap();
    until("the later one is there", || {
        cluster.service_ids() == ["web-1"]
    })
    .await;
    until("in sync", || local.counts().out_of_sync == 0).await;
    let writes = cluster.writes.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(
        cluster.writes.load(Ordering::Relaxed),
        writes,
        "each full sync undid the last"
    );
    assert_eq!(cluster.service("web-1").unwrap().port, 2);
    assert_eq!(local.services().keys().collect::<Vec<_>>(), ["web-1"]);
    let seen = cluster.check("alive-web-1").unwrap();
    assert_eq!(
        (seen.status.as_str(), seen.service_id.as_str()),
        ("passing", "web-1")
    );
    running.stop().await;
    drop(local);

    // A restart does not bring the first spelling back.
    let local = open(Some(dir.path()));
    assert_eq!(local.services().keys().collect::<Vec<_>>(), ["web-1"]);
    assert_eq!(local.checks().keys().collect::<Vec<_>>(), ["alive-web-1"]);
    let _running = local.start(cluster.clone());
    local.deregister_service("WEB-1").await.unwrap();
    until("gone", || cluster.service_ids().is_empty()).await;
    drop(local);
    assert!(open(Some(dir.path())).services().is_empty());
}

#[tokio::test(start_paused = true)]
async fn changes_that_never_end_do_not_keep_a_round_from_ending() {
    let (cluster, local) = (Cluster::new(), open(None));
    let busy = check(json!({"ID": "c", "Name": "c", "TTL": "10h"}));
    local.register_check(busy, Source::Api).await.unwrap();
    let running = local.start(cluster.clone());
    until("known", || cluster.check("c").is_some()).await;
    let changes = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let (inner, count) = (Arc::clone(&local.inner), Arc::clone(&changes));
    *cluster.on_write.lock() = Some(Box::new(move || {
        // An end, so that the test fails rather than hangs without the bound.
        let n = count.fetch_add(1, Ordering::Relaxed);
        if n < 5_000 {
            let status = [Status::Passing, Status::Warning][n as usize % 2];
            drop(inner.update_ttl("c", status, "").unwrap());
        }
    }));
    local.update_ttl("c", Status::Warning, "").await.unwrap();
    // Paused time stands still while there is work, so a sleep would outlast it all.
    while changes.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    running.stop().await;
    let changes = changes.load(Ordering::Relaxed);
    assert!(changes < 100, "a stop waited for {changes} changes");
}

#[test]
fn no_more_is_under_way_than_the_bound_and_nothing_is_left_out() {
    let mut table = Table::new(node());
    table.node_in_sync = true;
    let count = 3 * WRITES_AT_ONCE + 10;
    for n in 0..count {
        let one = service(json!({"Name": format!("s{n}"), "Check": {"TTL": "1h"}}));
        table
            .put_service(&one, Source::Api, false, Duration::ZERO)
            .unwrap();
    }
    let (mut busy, mut planned) = (Busy::default(), 0);
    while planned < count {
        let most = WRITES_AT_ONCE - busy.writes();
        let writes = plan::plan(&mut table, &mut busy, true, most);
        assert!(!writes.is_empty() && busy.writes() <= WRITES_AT_ONCE);
        planned += writes.len();
        for write in &writes[..writes.len().div_ceil(2)] {
            assert_eq!(write.sent.carries.len(), 2, "a service with its check");
            plan::confirm(&mut table, &write.sent);
            busy.release(&write.sent);
        }
    }
    assert_eq!(planned, count);
}

#[test]
fn a_node_out_of_agreement_is_alone_under_way() {
    let mut table = Table::new(node());
    let one = |name: &str| service(json!({"Name": name}));
    let put = |table: &mut Table, name: &str| {
        let put = table.put_service(&one(name), Source::Api, false, Duration::ZERO);
        put.unwrap();
    };
    put(&mut table, "a");
    let mut busy = Busy::default();
    let first = plan::plan(&mut table, &mut busy, true, WRITES_AT_ONCE);
    assert_eq!(first.len(), 1);
    put(&mut table, "b");
    assert!(plan::plan(&mut table, &mut busy, true, WRITES_AT_ONCE).is_empty());
    plan::confirm(&mut table, &first[0].sent);
    busy.release(&first[0].sent);
    assert_eq!(
        plan::plan(&mut table, &mut busy, true, WRITES_AT_ONCE).len(),
        1
    );
    put(&mut table, "c");
    assert_eq!(
        plan::plan(&mut table, &mut busy, true, WRITES_AT_ONCE).len(),
        1,
        "beside b"
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_write_does_not_hold_up_another() {
    let (cluster, local) = (Cluster::new(), open(None));
    let _running = local.start(cluster.clone());
    until("known", || local.counts().out_of_sync == 0).await;
    cluster.slow.lock().replace("slow".to_owned());
    for name in ["slow", "quick"] {
        let put = local.register_service(service(json!({"Name": name})), API);
        put.await.unwrap();
    }
    until("quick is there", || cluster.service_ids() == ["quick"]).await;
    // What comes after the slow write of the same service follows it.
    let again = service(json!({"Name": "slow", "Port": 7}));
    local.register_service(again, API).await.unwrap();
    cluster.slow.lock().take();
    until("both are", || local.counts().out_of_sync == 0).await;
    assert_eq!(cluster.service("slow").unwrap().port, 7);
}

#[tokio::test(start_paused = true)]
async fn a_registration_is_in_the_catalog_when_it_returns_unless_the_servers_are_slow() {
    let (cluster, local) = (Cluster::new(), open(None));
    let _running = local.start(cluster.clone());
    until("known", || local.counts().out_of_sync == 0).await;
    for port in 1..20 {
        let web = service(json!({"Name": "web", "Port": port}));
        local.register_service(web, API).await.unwrap();
        assert_eq!(cluster.service("web").unwrap().port, port);
    }
    local.deregister_service("web").await.unwrap();
    assert!(cluster.service_ids().is_empty());

    cluster.slow.lock().replace("slow".to_owned());
    let took = async |name: &str| {
        let began = tokio::time::Instant::now();
        let put = local.register_service(service(json!({"Name": name})), API);
        put.await.unwrap();
        began.elapsed()
    };
    let slow = took("slow").await;
    assert!(
        slow >= Duration::from_millis(10) && slow < Duration::from_millis(20),
        "{slow:?}"
    );
    cluster.slow.lock().take();
    until("it is there", || cluster.service("slow").is_some()).await;
    assert_eq!(
        took("after a slow one").await,
        Duration::ZERO,
        "nobody waits"
    );
    until("quick again", || local.counts().out_of_sync == 0).await;

    *cluster.fail.lock() = Some(crate::backend::WriteError::NoLeader);
    for name in ["no leader", "still none"] {
        assert_eq!(took(name).await, Duration::ZERO, "{name}");
    }
}
