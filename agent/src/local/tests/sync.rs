//! Anti-entropy against a catalog in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use weft_proto::v1;
use weft_proto::v1::stamped::Command;

use super::world::{API, Cluster, NODE, check, node, open, service, until};
use crate::backend::WriteError;
use crate::local::ids::same_id;
use crate::local::plan::{self, Busy, Carried, WRITES_AT_ONCE};
use crate::local::sync::{self, Memory, Remote};
use crate::local::table::Table;
use crate::local::{Local, LocalConfig, RegisterOptions, Source, Status};

pub(super) fn foreign(id: &str) -> v1::Service {
    v1::Service {
        id: id.to_owned(),
        name: id.to_owned(),
        ..v1::Service::default()
    }
}

pub(super) fn foreign_check(id: &str, service: &str) -> v1::Check {
    v1::Check {
        node: NODE.to_owned(),
        id: id.to_owned(),
        name: id.to_owned(),
        status: "passing".to_owned(),
        service_id: service.to_owned(),
        ..v1::Check::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_registration_is_in_the_catalog_at_once_with_its_checks() {
    let (cluster, local) = (Cluster::new(), open(None));
    let running = local.start(cluster.clone());
    until("first sync", || local.counts().out_of_sync == 0).await;
    let before = tokio::time::Instant::now();
    let web = json!({"Name": "web", "Port": 80, "Tags": ["v1"], "Checks": [{"TTL": "15s"}, {"TTL": "9s", "Status": "passing"}]});
    local.register_service(service(web), API).await.unwrap();
    until("web is there", || cluster.checks().len() == 2).await;
    assert!(before.elapsed() < Duration::from_millis(100));
    assert_eq!(
        cluster.writes.load(Ordering::Relaxed),
        2,
        "the node, then the service with both checks"
    );
    let seen = cluster.check("service:web:2").unwrap();
    assert_eq!(
        (seen.status.as_str(), seen.service_name.as_str()),
        ("passing", "web")
    );
    assert_eq!(seen.service_tags, ["v1"]);

    local.deregister_service("web").await.unwrap();
    until("web is gone", || {
        cluster.service_ids().is_empty() && cluster.checks().is_empty()
    })
    .await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_when_all_agrees() {
    let (cluster, local) = (Cluster::new(), open(None));
    let web = json!({"Name": "web", "Meta": {"a": "b"}, "TaggedAddresses": {"lan": {"Address": "h", "Port": 1}}, "Check": {"TTL": "100h"}});
    local.register_service(service(web), API).await.unwrap();
    local.enable_node_maintenance("").await.unwrap();
    let _running = local.start(cluster.clone());
    until("in sync", || local.counts().out_of_sync == 0).await;
    let writes = cluster.writes.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(
        cluster.writes.load(Ordering::Relaxed),
        writes,
        "full syncs found differences"
    );
}

#[tokio::test(start_paused = true)]
async fn what_others_wrote_under_this_node_is_undone() {
    let (cluster, local) = (Cluster::new(), open(None));
    cluster.register_elsewhere(foreign("consul"), Some(foreign_check("serfHealth", "")));
    cluster.register_elsewhere(
        foreign("ghost"),
        Some(foreign_check("ghost-check", "ghost")),
    );
    cluster.register_elsewhere(foreign("other"), Some(foreign_check("node-check", "")));
    local
        .register_service(service(json!({"Name": "web", "Port": 80})), API)
        .await
        .unwrap();
    let _running = local.start(cluster.clone());
    until("ghosts are gone", || {
        cluster.service_ids() == ["consul", "web"]
    })
    .await;
    until("checks are gone", || {
        cluster
            .checks()
            .iter()
            .all(|check| check.id == "serfHealth")
    })
    .await;

    // A change of what is ours is put right by the next full sync.
    cluster.register_elsewhere(
        v1::Service {
            port: 9,
            ..foreign("web")
        },
        None,
    );
    assert_eq!(cluster.service("web").unwrap().port, 9);
    tokio::time::sleep(Duration::from_secs(125)).await;
    assert_eq!(cluster.service("web").unwrap().port, 80);
    assert!(cluster.check("serfHealth").is_some());
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_it_retries_until_there_is_one() {
    let (cluster, local) = (Cluster::new(), open(None));
    *cluster.fail.lock() = Some(WriteError::NoLeader);
    let _running = local.start(cluster.clone());
    local
        .register_service(service(json!({"Name": "web"})), API)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(cluster.service_ids().is_empty());
    *cluster.fail.lock() = None;
    let back = tokio::time::Instant::now();
    until("web is there", || cluster.service_ids() == ["web"]).await;
    assert!(back.elapsed() <= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_refused_check_does_not_keep_the_others_out() {
    let (cluster, local) = (Cluster::new(), open(None));
    *cluster.refuse_check.lock() = Some("c1".to_owned());
    for n in 0..3 {
        let node_check = check(json!({"ID": format!("c{n}"), "Name": "c", "TTL": "1h"}));
        local.register_check(node_check, Source::Api).await.unwrap();
    }
    let _running = local.start(cluster.clone());
    let ids = || {
        cluster
            .checks()
            .into_iter()
            .map(|check| check.id)
            .collect::<Vec<_>>()
    };
    until("the others are there", || ids() == ["c0", "c2"]).await;
    let writes = cluster.writes.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(
        cluster.writes.load(Ordering::Relaxed) < writes + 20,
        "a refused write is not repeated in a loop"
    );
    *cluster.refuse_check.lock() = None;
    until("all are there", || ids() == ["c0", "c1", "c2"]).await;
}

#[tokio::test(start_paused = true)]
async fn status_goes_at_once_and_output_alone_waits() {
    let (cluster, local) = (Cluster::new(), open(None));
    local
        .register_check(
            check(json!({"ID": "c", "Name": "c", "TTL": "10h"})),
            Source::Api,
        )
        .await
        .unwrap();
    let _running = local.start(cluster.clone());
    until("known", || cluster.check("c").is_some()).await;
    local.update_ttl("c", Status::Passing, "one").await.unwrap();
    until("passing", || {
        cluster.check("c").unwrap().status == "passing"
    })
    .await;
    local.update_ttl("c", Status::Passing, "two").await.unwrap();
    tokio::time::sleep(Duration::from_secs(140)).await;
    assert_eq!(
        cluster.check("c").unwrap().output,
        "one",
        "not before half of 5 minutes, full syncs included"
    );
    assert_eq!(local.check("c").unwrap().record.output, "two");
    tokio::time::sleep(Duration::from_secs(320)).await;
    assert_eq!(cluster.check("c").unwrap().output, "two");
}

#[tokio::test(start_paused = true)]
async fn discarded_output_stays_here_too() {
    let config = LocalConfig {
        discard_check_output: true,
        ..LocalConfig::in_memory(node())
    };
    let local = Local::open(config, Arc::new(super::world::TokioClock::new())).unwrap();
    local
        .register_check(
            check(json!({"ID": "c", "Name": "c", "TTL": "10h"})),
            Source::Api,
        )
        .await
        .unwrap();
    local
        .update_ttl("c", Status::Warning, "text")
        .await
        .unwrap();
    let seen = local.check("c").unwrap().record;
    assert_eq!(
        (seen.status.as_str(), seen.output.as_str()),
        ("warning", "")
    );
}

#[tokio::test(start_paused = true)]
async fn tag_override_takes_the_catalogs_tags_and_nothing_else() {
    let (cluster, local) = (Cluster::new(), open(None));
    let web = json!({"Name": "web", "Tags": ["mine"], "Port": 80, "EnableTagOverride": true});
    local
        .register_service(service(web.clone()), API)
        .await
        .unwrap();
    let _running = local.start(cluster.clone());
    until("known", || cluster.service_ids() == ["web"]).await;
    let theirs = v1::Service {
        tags: vec!["theirs".to_owned()],
        enable_tag_override: true,
        weights: Some(v1::Weights {
            passing: 1,
            warning: 1,
        }),
        port: 81,
        ..foreign("web")
    };
    cluster.register_elsewhere(theirs, None);
    tokio::time::sleep(Duration::from_secs(125)).await;
    let seen = cluster.service("web").unwrap();
    assert_eq!((seen.tags, seen.port), (vec!["theirs".to_owned()], 80));
    assert_eq!(local.services()["web"].service.tags, ["theirs"]);
    // Registering again does not overwrite them either.
    local.register_service(service(web), API).await.unwrap();
    until("in sync", || local.counts().out_of_sync == 0).await;
    assert_eq!(cluster.service("web").unwrap().tags, ["theirs"]);
}

#[tokio::test(start_paused = true)]
async fn node_facts_follow() {
    let (cluster, local) = (Cluster::new(), open(None));
    let _running = local.start(cluster.clone());
    let address = || {
        let (state, trace) = (
            crate::backend::Backend::state(&*cluster),
            weft_catalog::Trace::off(),
        );
        state
            .read(&trace)
            .node(NODE)
            .rows
            .map(|node| node.address.clone())
    };
    until("known", || address().as_deref() == Some("10.0.0.7")).await;
    local.set_node(v1::Node {
        address: "10.0.0.8".to_owned(),
        ..node()
    });
    until("moved", || address().as_deref() == Some("10.0.0.8")).await;
    // Somebody deregisters the node: it comes back with everything.
    local
        .register_service(service(json!({"Name": "web"})), API)
        .await
        .unwrap();
    until("web is there", || cluster.service_ids() == ["web"]).await;
    cluster.apply(Command::Deregister(v1::Deregister {
        node: NODE.to_owned(),
        ..Default::default()
    }));
    assert!(cluster.service_ids().is_empty());
    tokio::time::sleep(Duration::from_secs(125)).await;
    assert_eq!(cluster.service_ids(), ["web"]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_lost_its_files_removes_nothing_it_does_not_know() {
    let cluster = Cluster::new();
    cluster.register_elsewhere(foreign("web"), Some(foreign_check("web-check", "web")));
    cluster.register_elsewhere(foreign("db"), Some(foreign_check("node-check", "")));
    let dir = tempfile::tempdir().unwrap();
    let local = open(Some(dir.path()));
    local
        .register_service(service(json!({"Name": "new"})), API)
        .await
        .unwrap();
    let running = local.start(cluster.clone());
    until("new is there", || {
        cluster.service_ids() == ["db", "new", "web"]
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(cluster.service_ids(), ["db", "new", "web"]);
    assert_eq!(cluster.checks().len(), 2);
    assert_eq!(local.counts().held, 3, "two services and the node's check");

    // What turns up later is not its own.
    cluster.register_elsewhere(foreign("ghost"), None);
    until("the ghost is gone", || {
        cluster.service_ids() == ["db", "new", "web"]
    })
    .await;
    // Told by name.
    local.deregister_service("db").await.unwrap();
    until("db is gone", || cluster.service_ids() == ["new", "web"]).await;
    running.stop().await;
    drop(local);

    // A restart still remembers that it forgot.
    let local = open(Some(dir.path()));
    let _running = local.start(cluster.clone());
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(cluster.service_ids(), ["new", "web"]);
    local.confirm_removals();
    until("only what is known is left", || {
        cluster.service_ids() == ["new"] && cluster.checks().is_empty()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_removed_is_lost_too() {
    for gone in ["registrations/log", "registrations"] {
        let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
        let local = open(Some(dir.path()));
        let web = json!({"Name": "web", "Check": {"TTL": "1h"}});
        local.register_service(service(web), API).await.unwrap();
        let running = local.start(cluster.clone());
        until("web is there", || cluster.checks().len() == 1).await;
        running.stop().await;
        drop(local);
        let gone = dir.path().join(gone);
        let removed = std::fs::remove_file(&gone).or_else(|_| std::fs::remove_dir_all(&gone));
        removed.unwrap();
        let local = open(Some(dir.path()));
        let _running = local.start(cluster.clone());
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(cluster.service_ids(), ["web"], "{}", gone.display());
        assert_eq!(cluster.checks().len(), 1, "{}", gone.display());
    }
}

#[tokio::test(start_paused = true)]
async fn a_whole_store_removes_what_it_does_not_know() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let local = open(Some(dir.path()));
    let running = local.start(cluster.clone());
    until("first sync", || local.counts().out_of_sync == 0).await;
    running.stop().await;
    drop(local);
    cluster.register_elsewhere(foreign("ghost"), None);
    let local = open(Some(dir.path()));
    let _running = local.start(cluster.clone());
    until("the ghost is gone", || cluster.service_ids().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_costs_no_catalog_entry_not_even_after_the_next_restart() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let local = open(Some(dir.path()));
    local
        .register_service(service(json!({"Name": "web"})), API)
        .await
        .unwrap();
    let running = local.start(cluster.clone());
    until("web is there", || cluster.service_ids() == ["web"]).await;
    running.stop().await;
    drop(local);
    let log = dir.path().join("registrations/log");
    let mut bytes = std::fs::read(&log).unwrap();
    let at = bytes.windows(5).position(|text| text == br#""web""#);
    bytes[at.unwrap()] = b'{';
    std::fs::write(log, bytes).unwrap();
    for _ in 0..2 {
        let local = open(Some(dir.path()));
        let running = local.start(cluster.clone());
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(cluster.service_ids(), ["web"]);
        assert_eq!(local.counts().held, 1);
        running.stop().await;
    }
}

#[tokio::test]
async fn many_registrations_share_rounds() {
    let (cluster, local) = (Cluster::new(), open(None));
    let _running = local.start(cluster.clone());
    let names = (0..3_000).map(|n| format!("s{n}"));
    futures::future::join_all(names.map(|name| {
        let local = local.clone();
        async move {
            let body = json!({"Name": name, "Check": {"TTL": "1h"}});
            local
                .register_service(
                    service(body),
                    RegisterOptions {
                        replace_existing_checks: true,
                        ..API
                    },
                )
                .await
                .unwrap();
        }
    }))
    .await;
    until("all there", || {
        cluster.service_ids().len() == 3_000 && cluster.checks().len() == 3_000
    })
    .await;
}

/// A small service or check as one side has it: `0` absent, else a variant.
fn variants() -> impl Strategy<Value = BTreeMap<u8, (u8, u8)>> {
    proptest::collection::btree_map(0u8..12, (0u8..4, 0u8..4), 0..12)
}

fn local_service(id: u8, variant: u8) -> crate::local::ServiceDefinition {
    service(
        json!({"ID": format!("s{id}"), "Name": format!("n{variant}"), "Port": variant, "EnableTagOverride": variant == 3}),
    )
}

/// Applies planned writes to a model of the catalog's rows.
fn apply(remote: &mut Remote, command: &Command) {
    match command {
        Command::Register(register) => {
            remote.node = register.node.clone().map(Arc::new);
            if let Some(service) = &register.service {
                remote
                    .services
                    .insert(&service.id, Arc::new(service.clone()));
            }
            for check in &register.checks {
                assert!(
                    check.service_id.is_empty() || remote.services.contains_key(&check.service_id)
                );
                remote.checks.insert(&check.id, Arc::new(check.clone()));
            }
        }
        Command::Deregister(gone) if !gone.service_id.is_empty() => {
            remote.services.remove(&gone.service_id);
            remote
                .checks
                .retain(|_, check| !same_id(&check.service_id, &gone.service_id));
        }
        Command::Deregister(gone) => {
            assert!(!gone.check_id.is_empty(), "never the whole node");
            remote.checks.remove(&gone.check_id);
        }
        other => panic!("{other:?}"),
    }
}

fn settle(table: &mut Table, remote: &mut Remote, memory: &mut Memory) {
    sync::compare(table, remote, memory);
    let mut busy = Busy::default();
    for _ in 0..5 {
        let writes = plan::plan(table, &mut busy, true, WRITES_AT_ONCE);
        for write in &writes {
            apply(remote, &write.command);
            plan::confirm(table, &write.sent);
            busy.release(&write.sent);
        }
        if writes.is_empty() {
            return;
        }
    }
    panic!("does not settle");
}

proptest! {
    #[test]
    fn any_two_states_converge_and_amnesia_removes_nothing(
        ours in variants(), theirs in variants(), forgetful in any::<bool>(),
    ) {
        let mut table = Table::new(node());
        for (id, (variant, checks)) in &ours {
            let mut definition = local_service(*id, *variant);
            for n in 0..*checks {
                let mut own = check(json!({"ID": format!("c{id}-{n}"), "Name": "c", "TTL": "1h"}));
                own.service_id = definition.service.id.clone();
                definition.checks.push(own);
            }
            table.put_service(&definition, Source::Api, false, Duration::ZERO).unwrap();
        }
        let mut remote = Remote::default();
        for (id, (variant, checks)) in &theirs {
            let mut service = local_service(*id, *variant).service;
            if *variant > 1 {
                service.id = service.id.to_uppercase();
            }
            service.tags = vec!["theirs".to_owned()];
            for n in 0..*checks {
                let id = format!("{}{id}-{n}", if n > 1 { "C" } else { "c" });
                remote.checks.insert(&id, Arc::new(foreign_check(&id, &service.id)));
            }
            remote.services.insert(&service.id.clone(), Arc::new(service));
        }
        remote.services.insert("consul", Arc::new(foreign("consul")));
        remote.checks.insert("serfHealth", Arc::new(foreign_check("serfHealth", "")));
        let before: (BTreeSet<String>, BTreeSet<String>) =
            (remote.services.keys().cloned().collect(), remote.checks.keys().cloned().collect());

        let mut memory = if forgetful { Memory::Lost } else { Memory::Whole };
        settle(&mut table, &mut remote, &mut memory);

        for (id, entry) in table.services.iter() {
            prop_assert_eq!(&*remote.services[id], &entry.local.service);
        }
        for (id, entry) in table.checks.iter() {
            prop_assert_eq!(&*remote.checks[id], &table.check_record(entry));
        }
        prop_assert!(remote.checks.contains_key("serfHealth") && remote.services.contains_key("consul"));
        prop_assert_eq!(table.out_of_sync(), 0);
        if forgetful {
            prop_assert!(before.0.iter().all(|id| remote.services.contains_key(id)));
            prop_assert!(before.1.iter().all(|id| remote.checks.contains_key(id)));
        } else {
            prop_assert_eq!(remote.services.len(), table.services.len() + 1);
            prop_assert_eq!(remote.checks.len(), table.checks.len() + 1);
        }
        // Settled means settled.
        sync::compare(&mut table, &remote, &mut memory);
        prop_assert!(plan::plan(&mut table, &mut Busy::default(), true, 1).is_empty());
    }
}

#[test]
fn a_change_during_a_write_is_not_taken_for_written() {
    let mut table = Table::new(node());
    table
        .put_service(&local_service(1, 1), Source::Api, false, Duration::ZERO)
        .unwrap();
    let mut busy = Busy::default();
    let writes = plan::plan(&mut table, &mut busy, true, WRITES_AT_ONCE);
    table
        .put_service(&local_service(1, 2), Source::Api, false, Duration::ZERO)
        .unwrap();
    let beside = plan::plan(&mut table, &mut busy, true, WRITES_AT_ONCE);
    assert!(beside.is_empty(), "the two might change places");
    plan::confirm(&mut table, &writes[0].sent);
    busy.release(&writes[0].sent);
    assert!(table.node_in_sync);
    assert!(!table.services["s1"].in_sync);
    // Deregistered and registered again while the removal was under way.
    table.remove_service("s1").unwrap();
    let removal = plan::plan(&mut table, &mut busy, true, WRITES_AT_ONCE);
    assert!(matches!(&removal[0].sent.carries[..], [Carried::GoneService(id, _)] if id == "s1"));
    table
        .put_service(&local_service(1, 2), Source::Api, false, Duration::ZERO)
        .unwrap();
    let beside = plan::plan(&mut table, &mut busy, true, WRITES_AT_ONCE);
    assert!(beside.is_empty(), "the two might change places");
    plan::confirm(&mut table, &removal[0].sent);
    busy.release(&removal[0].sent);
    assert!(!table.services["s1"].in_sync);
    let after = plan::plan(&mut table, &mut busy, true, WRITES_AT_ONCE);
    assert!(matches!(&after[0].sent.carries[..], [Carried::Service(id, _)] if id == "s1"));
}
