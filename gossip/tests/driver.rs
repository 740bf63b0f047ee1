//! The driver on loopback sockets: join, tags, leave, failure, keys, the known file, slow consumers.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where its assumption breaks"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use weft_gossip::{
    CoreConfig, Gossip, GossipConfig, GossipError, GossipKey, KeyAction, Keyring, MemberEvent,
    MemberStatus, Tags,
};
use weft_proto::clock::{Clock, SystemClock};
use weft_proto::ids::UnixMillis;

const KEY_ONE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY_TWO: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

fn config(n: u8, key: Option<&str>) -> GossipConfig {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let mut core = CoreConfig::new(
        &format!("n{n}"),
        &format!("00000000-0000-0000-0000-0000000000{n:02x}"),
        "dc1",
        any,
    );
    core.tags = Tags::from([
        ("role".into(), "consul".into()),
        ("n".into(), n.to_string()),
    ]);
    core.timing.probe_interval = Duration::from_millis(200);
    core.timing.probe_timeout = Duration::from_millis(100);
    core.timing.gossip_interval = Duration::from_millis(50);
    core.timing.reconnect_interval = Duration::from_millis(300);
    let mut config = GossipConfig::new(core, any);
    config.keyring = key.map(|k| Keyring::new(GossipKey::parse(k).unwrap()));
    config
}

async fn start(config: GossipConfig) -> Gossip {
    Gossip::start(config, Arc::new(SystemClock::new()))
        .await
        .unwrap()
}

async fn node(n: u8, key: Option<&str>) -> Gossip {
    start(config(n, key)).await
}

fn at(gossip: &Gossip) -> Vec<String> {
    vec![gossip.bound().to_string()]
}

/// Waits for a condition; the limit only ends a test that would hang.
async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..3_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn sees(gossip: &Gossip, name: &str) -> Option<MemberStatus> {
    let members = gossip.members();
    members
        .iter()
        .find(|m| m.name == name)
        .filter(|m| !m.tags.is_empty())
        .map(|m| m.status)
}

async fn full_pool(nodes: &[&Gossip]) {
    until("all see all", || {
        let names: Vec<String> = nodes.iter().map(|n| n.local().name.clone()).collect();
        nodes.iter().all(|g| {
            names
                .iter()
                .all(|name| sees(g, name) == Some(MemberStatus::Alive))
        })
    })
    .await;
}

#[tokio::test]
async fn three_nodes_join_leave_fail_and_forget() {
    let (a, b, c) = (
        node(1, Some(KEY_ONE)).await,
        node(2, Some(KEY_ONE)).await,
        node(3, Some(KEY_ONE)).await,
    );
    for joiner in [&b, &c] {
        let outcome = joiner.join(&at(&a)).await;
        assert_eq!(outcome.contacted, 1, "{outcome:?}");
    }
    full_pool(&[&a, &b, &c]).await;
    // The pool may have been learned of over TCP alone, before a datagram went out.
    until("packets are sent, and members counted", || {
        a.metrics().packets_sent.get() > 0 && a.metrics().members_alive.get() == 3
    })
    .await;

    b.set_tags(Tags::from([("role".into(), "node".into())]))
        .await
        .unwrap();
    until("new tags arrive", || {
        a.members()
            .iter()
            .any(|m| m.name == "n2" && m.tag("role") == "node")
    })
    .await;
    assert!(matches!(
        a.force_leave("n2", false).await,
        Err(GossipError::MemberAlive { .. })
    ));
    assert!(matches!(
        a.force_leave("nobody", false).await,
        Err(GossipError::UnknownMember { .. })
    ));

    assert!(b.leave(Duration::from_secs(10)).await);
    until("n2 has left", || {
        sees(&a, "n2") == Some(MemberStatus::Left) && sees(&c, "n2") == Some(MemberStatus::Left)
    })
    .await;
    c.shutdown().await;
    until("n3 has failed", || {
        sees(&a, "n3") == Some(MemberStatus::Failed)
    })
    .await;
    a.force_leave("n3", true).await.unwrap();
    until("n3 is gone", || sees(&a, "n3").is_none()).await;
    assert!(matches!(
        c.set_tags(Tags::new()).await,
        Err(GossipError::Stopped)
    ));
}

#[tokio::test]
async fn wrong_and_missing_keys_are_refused_with_the_reason() {
    let (a, wrong, none) = (
        node(1, Some(KEY_ONE)).await,
        node(2, Some(KEY_TWO)).await,
        node(3, None).await,
    );
    for stranger in [&wrong, &none] {
        let outcome = stranger.join(&at(&a)).await;
        assert_eq!(outcome.contacted, 0);
        let text = outcome.errors[0].1.to_string();
        assert!(
            text.contains("wrong or missing gossip key") && text.contains(&a.bound().to_string()),
            "{text}"
        );
    }
    until("counted by cause", || {
        a.metrics().decrypt_failures.get() >= 1 && a.metrics().clear_refused.get() >= 1
    })
    .await;
    assert_eq!(a.members().len(), 1);

    wrong
        .update_keyring(|ring| ring.install(GossipKey::parse(KEY_ONE)?))
        .unwrap();
    wrong
        .update_keyring(|ring| ring.use_key(&GossipKey::parse(KEY_ONE)?))
        .unwrap();
    assert_eq!(wrong.join(&at(&a)).await.contacted, 1);
    full_pool(&[&a, &wrong]).await;
    assert!(none.update_keyring(|_| Ok(())).is_err());
}

#[tokio::test]
async fn another_datacenter_is_named() {
    let a = node(1, None).await;
    let mut other = config(2, None);
    other.core.datacenter = "dc2".into();
    let other = start(other).await;
    let outcome = other.join(&at(&a)).await;
    let text = outcome.errors[0].1.to_string();
    assert!(
        text.contains("\"n1\"") && text.contains("\"dc1\"") && text.contains("\"dc2\""),
        "{text}"
    );
    assert_eq!((a.members().len(), other.members().len()), (1, 1));
}

#[tokio::test]
async fn the_known_file_leads_back_after_a_restart_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serf/local.snapshot");
    let with_file = |path: &Path| {
        let mut config = config(2, None);
        config.known_path = Some(path.to_owned());
        config
    };
    let (a, b) = (node(1, None).await, start(with_file(&path)).await);
    assert_eq!(b.join(&at(&a)).await.contacted, 1);
    let seed = a.bound().to_string();
    until("saved", || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.contains(&seed))
    })
    .await;
    let (was, life) = (b.bound(), b.local().incarnation);
    b.shutdown().await;
    let b = start(with_file(&path)).await;
    assert!(b.local().incarnation > life);
    until("rejoined without being told where", || {
        let here = b.bound();
        here != was
            && a.members().iter().any(|m| {
                m.name == "n2" && m.socket_address() == here && m.status == MemberStatus::Alive
            })
    })
    .await;
}

#[tokio::test]
async fn events_begin_with_the_snapshot_and_a_slow_consumer_is_resynced() {
    let a = node(1, None).await;
    let (mut early, mut slow) = (a.events(), a.events());
    assert!(matches!(early.next().await, Some(MemberEvent::Resync(all)) if all.len() == 1));
    assert!(matches!(slow.next().await, Some(MemberEvent::Resync(_))));
    let b = node(2, None).await;
    assert_eq!(b.join(&at(&a)).await.contacted, 1);
    assert!(matches!(early.next().await, Some(MemberEvent::Joined(m)) if m.name == "n2"));
    for n in 0..1_100 {
        a.set_tags(Tags::from([("n".into(), n.to_string())]))
            .await
            .unwrap();
    }
    // What it is told ends at the truth, with a resync on the way.
    let (mut resynced, mut last) = (false, String::new());
    while last != "1099" {
        match slow.next().await.unwrap() {
            MemberEvent::Resync(all) => {
                resynced = true;
                last = all
                    .iter()
                    .find(|m| m.name == "n1")
                    .unwrap()
                    .tag("n")
                    .to_owned();
            }
            MemberEvent::Updated(m) if m.name == "n1" => last = m.tag("n").to_owned(),
            _ => {}
        }
    }
    assert!(resynced);
    a.shutdown().await;
    while early.next().await.is_some() {}
}

#[tokio::test]
async fn a_port_in_use_says_so() {
    let a = node(1, None).await;
    let mut twin = config(2, None);
    twin.bind = a.bound();
    let error = Gossip::start(twin, Arc::new(SystemClock::new()))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&a.bound().to_string()) && error.contains("serf_lan"),
        "{error}"
    );
}

#[tokio::test]
async fn the_end_of_the_task_is_noticed() {
    let a = node(1, None).await;
    let early = tokio::time::timeout(Duration::from_millis(20), a.ended()).await;
    assert!(early.is_err(), "it runs");
    a.shutdown().await;
    a.ended().await;
}

#[tokio::test]
async fn events_reach_every_consumer_of_every_member() {
    let (a, b) = (node(1, Some(KEY_ONE)).await, node(2, Some(KEY_ONE)).await);
    assert_eq!(b.join(&at(&a)).await.contacted, 1);
    full_pool(&[&a, &b]).await;
    let mut streams = [a.user_events(), a.user_events(), b.user_events()];
    let time = b.fire([7; 16], b"deploy".to_vec()).await.unwrap();
    for stream in &mut streams {
        let event = stream.next().await.unwrap();
        assert_eq!((event.time, &event.body[..]), (time, &b"deploy"[..]));
    }
    let refused = b.fire([8; 16], vec![0; 513]).await.unwrap_err();
    assert_eq!(refused.reason(), "gossip.event_too_large");
    until("the figures", || {
        let metrics = b.metrics();
        metrics.events_fired.get() == 1
            && metrics.events_refused.get() == 1
            && metrics.events_heard.get() == 1
            && a.metrics().events_heard.get() == 1
    })
    .await;
    b.shutdown().await;
    assert_eq!(streams[2].next().await, None);
    let stopped = b.fire([9; 16], Vec::new()).await.unwrap_err();
    assert_eq!(stopped.reason(), "gossip.stopped");
}

#[tokio::test]
async fn keys_are_rotated_everywhere_and_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let with_file = |n: u8| {
        let mut config = config(n, Some(KEY_ONE));
        config.keyring_path = Some(directory.path().join(format!("{n}/serf/local.keyring")));
        config
    };
    let (a, b, c) = (
        start(with_file(1)).await,
        start(with_file(2)).await,
        start(with_file(3)).await,
    );
    for joiner in [&b, &c] {
        assert_eq!(joiner.join(&at(&a)).await.contacted, 1);
    }
    full_pool(&[&a, &b, &c]).await;
    let listed = b.keys(KeyAction::List, "").await.unwrap();
    assert_eq!(
        (listed.nodes, listed.keys[KEY_ONE], listed.primary[KEY_ONE]),
        (3, 3, 3)
    );

    let early = a.keys(KeyAction::Use, KEY_TWO).await.unwrap();
    assert_eq!(early.errors.len(), 3, "{early:?}");
    assert!(early.errors["n2"].contains("not installed"), "{early:?}");
    assert!(a.keys(KeyAction::Install, "nonsense").await.is_err());

    for action in [KeyAction::Install, KeyAction::Use] {
        let done = a.keys(action, KEY_TWO).await.unwrap();
        assert!(done.errors.is_empty(), "{done:?}");
    }
    let refused = a.keys(KeyAction::Remove, KEY_TWO).await.unwrap();
    assert!(refused.errors["n3"].contains("primary"), "{refused:?}");
    let removed = c.keys(KeyAction::Remove, KEY_ONE).await.unwrap();
    assert!(removed.errors.is_empty(), "{removed:?}");
    assert_eq!(removed.keys.keys().collect::<Vec<_>>(), [KEY_TWO]);

    // The file goes before the key of the configuration.
    c.shutdown().await;
    let c = start(with_file(3)).await;
    assert_eq!(c.join(&at(&a)).await.contacted, 1);
    full_pool(&[&a, &b, &c]).await;
    assert_eq!(a.metrics().decrypt_failures.get(), 0);
    let open = node(4, None).await;
    assert!(
        open.keys(KeyAction::List, "").await.is_err(),
        "it has no keys"
    );
}

#[tokio::test]
async fn keys_are_not_told_to_whoever_holds_none() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut lenient = config(1, Some(KEY_ONE));
    lenient.verify_incoming = false;
    let a = start(lenient).await;
    let clear = weft_gossip::keyring::Framer::new("dc1", None, true, true);
    let mut stream = tokio::net::TcpStream::connect(a.bound()).await.unwrap();
    let say = |body: &[u8]| {
        let frame = clear.seal(body).unwrap();
        [&(frame.len() as u32).to_be_bytes()[..], &frame].concat()
    };
    stream.write_all(&say(&[16])).await.unwrap();
    let length = stream.read_u32().await.unwrap();
    let mut greeting = vec![0; length as usize];
    stream.read_exact(&mut greeting).await.unwrap();
    // A list in clear text, with whatever number.
    stream
        .write_all(&say(&[[18].as_slice(), &[0; 18]].concat()))
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "no answer");
    until("counted", || a.metrics().clear_refused.get() == 1).await;
}

#[tokio::test]
async fn connections_that_say_nothing_and_nonsense_are_counted_and_let_go() {
    use tokio::io::AsyncWriteExt as _;
    let (a, b) = (node(1, Some(KEY_ONE)).await, node(2, Some(KEY_ONE)).await);
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(tokio::net::TcpStream::connect(a.bound()).await.unwrap());
    }
    until("64 are kept, the others let go", || {
        a.metrics().sync_refused.get() >= 16
    })
    .await;
    let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for n in 0..2_000u16 {
        let noise: Vec<u8> = (0..n % 1_400).map(|i| (i ^ n) as u8).collect();
        udp.send_to(&noise, a.bound()).await.unwrap();
    }
    until("the noise is counted", || a.metrics().malformed.get() > 0).await;
    until("silence ends after 3 s", || {
        a.metrics().half_open.get() == 64
    })
    .await;
    let mut long = tokio::net::TcpStream::connect(a.bound()).await.unwrap();
    long.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(b.join(&at(&a)).await.contacted, 1, "and it still answers");
    full_pool(&[&a, &b]).await;
}

/// A machine whose clock was set wrong by so many milliseconds.
struct Wrong(SystemClock, i64);

impl Clock for Wrong {
    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(self.0.wall().get().saturating_add_signed(self.1))
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_measured_by_the_others() {
    for (key, by) in [(None, 3_600_000), (Some(KEY_ONE), -60_000)] {
        let right = node(1, key).await;
        let clock = Arc::new(Wrong(SystemClock::new(), by));
        let wrong = Gossip::start(config(2, key), clock).await.unwrap();
        assert_eq!(wrong.join(&at(&right)).await.contacted, 1);
        for (here, there, expected) in [(&right, "n2", by), (&wrong, "n1", -by)] {
            let mut measured = None;
            for _ in 0..3_000 {
                let insights = here.why().await.unwrap();
                let one = insights.iter().find(|one| one.name == there);
                measured = one.and_then(|one| one.clock_ahead_millis);
                if measured.is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // The way there and back is the error: five seconds of it would be no answer at all.
            let off = measured.unwrap() - expected;
            assert!(off.abs() <= 6_000, "{there}: {measured:?}");
            let least = here.metrics().clock_skew_millis.get();
            assert!(least > 45_000, "{there}: {least}");
        }
        right.shutdown().await;
        wrong.shutdown().await;
    }
}
