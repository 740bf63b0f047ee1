//! What a restart remembers.

use std::time::Duration;

use serde_json::json;

use weft_proto::ids::UnixMillis;

use super::world::{API, check, open, service};
use crate::local::saved;
use crate::local::store::{Kind, Store};
use crate::local::{LocalError, NODE_MAINTENANCE, SERVICE_MAINTENANCE, Source, Status, node_id};

#[tokio::test(start_paused = true)]
async fn registrations_ttl_state_and_maintenance_survive() {
    let dir = tempfile::tempdir().unwrap();
    let local = open(Some(dir.path()));
    let web = json!({"ID": "web-1", "Name": "web", "Token": "t", "Checks": [{"TTL": "1h"}, {"HTTP": "http://127.0.0.1:9/", "Interval": "10s"}]});
    local.register_service(service(web), API).await.unwrap();
    local
        .register_check(check(json!({"Name": "disk", "TTL": "20ms"})), Source::Api)
        .await
        .unwrap();
    local
        .register_service(service(json!({"Name": "gone"})), API)
        .await
        .unwrap();
    local.deregister_service("gone").await.unwrap();
    local
        .update_ttl("service:web-1:1", Status::Warning, "hm")
        .await
        .unwrap();
    local
        .update_ttl("disk", Status::Passing, "fine")
        .await
        .unwrap();
    local.enable_node_maintenance("").await.unwrap();
    local
        .enable_service_maintenance("web-1", "upgrade")
        .await
        .unwrap();
    let hash = local.service("web-1").unwrap().1;
    let checks = local.checks();
    drop(local);
    // Longer than the TTL of `disk`; the test's wall clock begins anew with each table.
    let (store, _) = Store::open(dir.path(), saved::id_of).unwrap();
    let expired = saved::state_object("disk", Status::Passing, "fine", UnixMillis(1));
    let kept = store.save(Kind::State, "disk", &expired);
    kept.await.unwrap().unwrap();
    drop(store);

    let local = open(Some(dir.path()));
    assert_eq!(local.services().keys().collect::<Vec<_>>(), ["web-1"]);
    assert_eq!(local.services()["web-1"].token, "t");
    assert_eq!(local.service("web-1").unwrap().1, hash);
    let again = local.checks();
    assert_eq!(
        again.keys().collect::<Vec<_>>(),
        checks.keys().collect::<Vec<_>>()
    );
    assert_eq!(
        again["service:web-1:1"], checks["service:web-1:1"],
        "an unexpired report is restored"
    );
    assert_eq!(
        again["disk"].record.status, "critical",
        "an expired one is not"
    );
    let maintenance = &again[&format!("{SERVICE_MAINTENANCE}web-1")].record;
    assert_eq!(
        (maintenance.notes.as_str(), maintenance.name.as_str()),
        ("upgrade", "Service Maintenance Mode")
    );
    assert!(
        again[NODE_MAINTENANCE]
            .record
            .notes
            .contains("no reason was provided")
    );
    local.disable_service_maintenance("web-1").await.unwrap();
    local.disable_node_maintenance().await.unwrap();
    local.disable_node_maintenance().await.unwrap();
    assert_eq!(open(Some(dir.path())).counts().checks, 3);
}

#[tokio::test(start_paused = true)]
async fn files_define_services_that_are_not_saved_and_win() {
    let dir = tempfile::tempdir().unwrap();
    let local = open(Some(dir.path()));
    local
        .register_service(service(json!({"Name": "web", "Port": 1})), API)
        .await
        .unwrap();
    local
        .register_service(service(json!({"Name": "api", "Port": 1})), API)
        .await
        .unwrap();
    let file = || service(json!({"Name": "web", "Port": 2, "Check": {"TTL": "1h"}}));
    local
        .replace_files(
            vec![file()],
            vec![check(json!({"Name": "disk", "TTL": "1h"}))],
        )
        .await
        .unwrap();
    assert_eq!(
        (
            local.services()["web"].service.port,
            local.services()["web"].source
        ),
        (2, Source::File)
    );
    // An API check on a file's service.
    let extra = check(json!({"Name": "extra", "ServiceID": "web", "TTL": "1h"}));
    local.register_check(extra, Source::Api).await.unwrap();
    local
        .update_ttl("service:web", Status::Passing, "ok")
        .await
        .unwrap();
    // A reload keeps status.
    local.replace_files(vec![file()], Vec::new()).await.unwrap();
    assert_eq!(local.check("service:web").unwrap().record.status, "passing");
    assert!(local.check("disk").is_none() && local.check("extra").is_some());
    drop(local);

    let local = open(Some(dir.path()));
    assert_eq!(local.services().keys().collect::<Vec<_>>(), ["api"]);
    local.replace_files(vec![file()], Vec::new()).await.unwrap();
    assert!(
        local.check("extra").is_some(),
        "it waited for its service's file"
    );
    assert_eq!(
        local.check("service:web").unwrap().record.status,
        "passing",
        "TTL state of a file's check"
    );
    local.replace_files(Vec::new(), Vec::new()).await.unwrap();
    assert_eq!(local.services().keys().collect::<Vec<_>>(), ["api"]);
    assert!(local.checks().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_is_set_aside_and_the_rest_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let local = open(Some(dir.path()));
    for name in ["a", "b"] {
        local
            .register_service(service(json!({"Name": name})), API)
            .await
            .unwrap();
    }
    drop(local);
    let log = dir.path().join("registrations/log");
    let mut bytes = std::fs::read(&log).unwrap();
    let name = br#""Name":"a""#;
    let at = bytes.windows(name.len()).position(|text| text == name);
    bytes[at.unwrap() + 8] = b'z';
    std::fs::write(&log, bytes).unwrap();
    let local = open(Some(dir.path()));
    assert_eq!(local.services().keys().collect::<Vec<_>>(), ["b"]);
    assert!(log.with_extension("corrupt").exists());
}

#[tokio::test(start_paused = true)]
async fn what_a_later_build_refuses_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path(), saved::id_of).unwrap();
    let odd = json!({"Service": {"ID": "odd", "Port": "many"}});
    let kept = store.save(Kind::Service, "odd", &odd);
    kept.await.unwrap().unwrap();
    drop(store);
    for files in [1, 1] {
        assert!(open(Some(dir.path())).services().is_empty());
        let files_there = std::fs::read_dir(dir.path().join("registrations")).unwrap();
        let aside: Vec<_> = files_there
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "corrupt"))
            .collect();
        assert_eq!(aside.len(), files);
        assert_eq!(std::fs::read_to_string(&aside[0]).unwrap(), odd.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_told_to_the_caller() {
    let dir = tempfile::tempdir().unwrap();
    let local = open(Some(dir.path()));
    // No new log can be made, so what the present one has room for is all there is.
    std::fs::create_dir(dir.path().join("registrations/log.new")).unwrap();
    let notes = "x".repeat(400_000);
    let one = |n: u32| json!({"Name": format!("c{n}"), "TTL": "1h", "Notes": notes});
    let mut error = None;
    for n in 0..4 {
        let put = local.register_check(check(one(n)), Source::Api).await;
        error = error.or(put.err().map(|error| (n, error)));
    }
    let (n, error) = error.expect("there is room for less than four");
    assert!(matches!(error, LocalError::NotSaved(_)), "{error}");
    assert!(local.checks().contains_key(&format!("c{n}")));
}

#[tokio::test(start_paused = true)]
async fn unknown_ids_are_told_in_consuls_words() {
    let local = open(None);
    let texts = [
        local.deregister_service("x").await.unwrap_err(),
        local.deregister_check("x").await.unwrap_err(),
        local
            .update_ttl("x", Status::Passing, "")
            .await
            .unwrap_err(),
        local.enable_service_maintenance("x", "").await.unwrap_err(),
        local.disable_service_maintenance("x").await.unwrap_err(),
        local
            .register_check(
                check(json!({"Name": "c", "ServiceID": "x", "TTL": "1s"})),
                Source::Api,
            )
            .await
            .unwrap_err(),
    ];
    let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
    let service =
        "Unknown service ID \"x\". Ensure that the service ID is passed, not the service name.";
    let check = "Unknown check ID \"x\". Ensure that the check ID is passed, not the check name.";
    assert_eq!(
        texts,
        [
            service,
            check,
            check,
            service,
            service,
            "ServiceID \"x\" does not exist"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_saved_ttl_runs_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let local = open(Some(dir.path()));
    local
        .register_check(check(json!({"Name": "c", "TTL": "10s"})), Source::Api)
        .await
        .unwrap();
    local.update_ttl("c", Status::Passing, "").await.unwrap();
    drop(local);
    let local = open(Some(dir.path()));
    local.start_checks(None);
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(local.check("c").unwrap().record.status, "passing");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(local.check("c").unwrap().record.status, "critical");
}

#[test]
fn the_node_id_is_kept_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let first = node_id(Some(dir.path()), None).unwrap();
    assert_eq!(node_id(Some(dir.path()), None).unwrap(), first);
    let own = "0F0C0000-0000-4000-8000-000000000007";
    assert_eq!(
        node_id(Some(dir.path()), Some(own)).unwrap(),
        own.to_lowercase()
    );
    assert_eq!(node_id(Some(dir.path()), None).unwrap(), own.to_lowercase());
    assert!(node_id(Some(dir.path()), Some("seven")).is_err());
    std::fs::write(dir.path().join("node-id"), "garbage").unwrap();
    assert!(node_id(Some(dir.path()), None).is_err());
    assert_ne!(node_id(None, None).unwrap(), node_id(None, None).unwrap());
}

#[tokio::test]
async fn what_runs_keeps_its_health_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let tcp = |id: &str, target: &str| json!({"Name": id, "TCP": target, "Interval": "1s", "Timeout": "1s"});
    let file = |id: &str, target: &str| vec![check(tcp(id, target))];
    let status = |local: &crate::local::Local, id: &str| local.check(id).unwrap().record.status;
    let local = open(Some(dir.path()));
    local.start_checks(None);
    local
        .register_check(check(tcp("api", &target)), Source::Api)
        .await
        .unwrap();
    local
        .replace_files(Vec::new(), file("file", &target))
        .await
        .unwrap();
    super::world::until("both pass", || local.counts().passing == 2).await;
    let before = local.checks();
    drop(local);

    // Nothing runs yet: what is shown is what was known.
    let local = open(Some(dir.path()));
    local
        .replace_files(Vec::new(), file("file", &target))
        .await
        .unwrap();
    assert_eq!(local.checks(), before);
    // Registered anew with another target it keeps its status, as without a restart; a restart
    // before its first result knows nothing of the new target.
    local
        .register_check(check(tcp("api", "127.0.0.1:9")), Source::Api)
        .await
        .unwrap();
    assert_eq!(status(&local, "api"), "passing");
    drop(local);
    let local = open(Some(dir.path()));
    assert_eq!(status(&local, "api"), "critical");
    // A check that left the files is forgotten, so that a later one of its name starts anew.
    local.replace_files(Vec::new(), Vec::new()).await.unwrap();
    drop(local);
    let local = open(Some(dir.path()));
    local
        .replace_files(Vec::new(), file("file", &target))
        .await
        .unwrap();
    assert_eq!(status(&local, "file"), "critical");
}

#[tokio::test]
async fn one_failure_after_a_restart_is_still_one_of_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let tcp = json!({"Name": "tcp", "TCP": target, "Interval": "1s", "FailuresBeforeCritical": 3});
    let local = open(Some(dir.path()));
    local.start_checks(None);
    local.register_check(check(tcp), Source::Api).await.unwrap();
    super::world::until("it passes", || local.counts().passing == 1).await;
    drop((local, listener));
    let local = open(Some(dir.path()));
    let definition = local.check("tcp").unwrap().definition;
    let failure = crate::local::run_result::RunResult::of(Status::Critical, "down".to_owned());
    for (status, output) in [("passing", true), ("passing", true), ("critical", false)] {
        local.inner.report(&definition, &failure, Duration::ZERO);
        let record = local.check("tcp").unwrap().record;
        assert_eq!(
            (record.status.as_str(), record.output.ends_with("Success")),
            (status, output)
        );
    }
}
