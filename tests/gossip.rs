//! The pool's keys and names: rotation while it works, accounts of members, two nodes of one name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::os::unix::fs::PermissionsExt as _;

use support::{World, said};

const OLD: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const NEW: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

fn keyring(w: &World, n: usize, argument: &str) -> String {
    let done = w.cli(n, &["keyring", argument]);
    assert!(done.status.success(), "{argument}: {}", said(&done));
    said(&done)
}

fn alive(w: &World, n: usize) -> usize {
    let members = w.at(n).get("/v1/agent/members").unwrap().ok().json();
    let members = members.as_array().unwrap();
    members.iter().filter(|m| m["Status"] == 1).count()
}

#[test]
fn keys_are_rotated_under_traffic() {
    let mut w = World::servers(3).with(format!("-encrypt={OLD}")).start();
    let listed = keyring(&w, 1, "-list");
    assert!(listed.contains(&format!("{OLD} [3/3]")), "{listed}");

    let early = w.cli(2, &["keyring", &format!("-use={NEW}")]);
    assert!(!early.status.success());
    let text = said(&early);
    assert!(
        text.contains("3/3 nodes reported failure") && text.contains("s2: "),
        "{text}"
    );

    for (step, argument) in [
        format!("-install={NEW}"),
        format!("-use={NEW}"),
        format!("-remove={OLD}"),
    ]
    .into_iter()
    .enumerate()
    {
        keyring(&w, step + 1, &argument);
        for n in 1..=3 {
            w.at(n).kv_put(&format!("k{step}"), n.to_string());
            assert_eq!(alive(&w, n), 3, "nobody is lost by {argument}");
        }
    }
    let listed = w.at(3).get("/v1/operator/keyring").unwrap().ok().json();
    assert_eq!(listed[0]["Keys"], serde_json::json!({ NEW: 3 }), "{listed}");
    assert_eq!(listed[0]["PrimaryKeys"], serde_json::json!({ NEW: 3 }));
    assert_eq!(listed[0]["NumNodes"], 3);

    // What the file says goes before the old key on the command line.
    let file = w.data_dir(2).join("serf/local.keyring");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    w.kill(2);
    w.restart(2);
    w.until("all three to be alive", || {
        (1..=3).all(|n| alive(&w, n) == 3).then_some(())
    });
    let metrics = w.at(1).get("/v1/agent/metrics?format=prometheus").unwrap();
    let metrics = metrics.text();
    assert!(
        metrics.contains("weft_gossip_decrypt_failures_total 0"),
        "{metrics}"
    );
}

#[test]
fn members_say_why() {
    let mut w = World::servers(3).start();
    let gone = w.follower();
    let through = w.leader();
    let account = |w: &World| {
        let members = w.at(through).get("/v1/agent/members?why").unwrap().ok();
        let members = members.json();
        let members = members.as_array().unwrap();
        let name = format!("s{gone}");
        members
            .iter()
            .find(|m| m["Name"] == name.as_str())
            .unwrap()
            .clone()
    };
    w.until("it to be probed", || {
        (account(&w)["Why"]["Answered"] == true).then_some(())
    });
    assert_eq!(account(&w)["Why"]["Suspected"], false);
    w.kill(gone);
    // News of the suspicion may be ahead of the news of who has it.
    w.until("it to be suspected by somebody", || {
        let account = account(&w);
        let accusers = account["Why"]["AccusedBy"].as_array().unwrap();
        (!accusers.is_empty()).then_some(())
    });
    w.until("it to have failed", || {
        (account(&w)["Status"] == 4).then_some(())
    });
    // Who found it dead is still told.
    let shown = w.cli(through, &["members", "-why"]);
    assert!(said(&shown).contains("by s"), "{}", said(&shown));
}

#[test]
fn of_two_nodes_with_one_name_the_late_one_ends_and_says_why() {
    let mut w = World::servers(3).start();
    w.add_client(11);
    w.argument(11, "-node=s2");
    let (status, text) = w.run_to_end(11);
    assert_eq!(status.code(), Some(70), "{text}");
    assert!(
        text.contains("gossip.name_taken") && text.contains("\"s2\""),
        "{text}"
    );
    let (holder, own) = (w.address(2), w.address(11));
    assert!(text.contains(&holder) && text.contains(&own), "{text}");
    assert_eq!(alive(&w, 1), 3);
    w.at(2).kv_put("still", "here");
}
