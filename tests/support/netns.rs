//! Machines of their own: each node in a network namespace, all on one bridge.
//!
//! Owns: the namespaces, the bridge and its links; going into a namespace; links that are taken away.
//! Never: leaves anything behind: the test runs itself again in namespaces that end with it.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::said;

const INSIDE: &str = "WEFT_TEST_INSIDE_NAMESPACES";
/// The first three octets of every node's address.
const NET: &str = "10.77.0";

/// Whether this is the inner run, in which there is a network of the test's own. The outer one starts that, and is done
/// when it answers false.
///
/// Without the right to make namespaces nothing can be shown: the test says so on the real standard error and passes,
/// or fails when `WEFT_NAMESPACES=required`.
pub(crate) fn inside_namespaces(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let own: &[&str] = &[
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ];
    let as_root: Vec<&str> = [&["--user", "--map-root-user"], own].concat();
    let works = |flags: &[&str]| {
        let tried = Command::new("unshare")
            .args(flags)
            .args(["sh", "-c", "mount -t tmpfs tmpfs /run && ip netns add try && ip link add br0 type bridge && ip link add to-try type veth peer name eth0 netns try"])
            .output();
        tried.is_ok_and(|output| output.status.success())
    };
    let Some(flags) = [own, &as_root].into_iter().find(|flags| works(flags)) else {
        let words = format!(
            "{test}: NOT RUN: no network namespaces here (unshare of util-linux, ip of iproute2, and a kernel that permits them)\n"
        );
        assert!(
            std::env::var_os("WEFT_NAMESPACES").is_none_or(|value| value != "required"),
            "{words}"
        );
        // Past the harness, which keeps what a passing test prints to itself.
        let _ = std::io::stderr().write_all(words.as_bytes());
        return false;
    };
    let me = std::env::current_exe().expect("a test has a path");
    let done = Command::new("unshare")
        .args(flags)
        .arg(me)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare runs, as it did a moment ago");
    print!("{}", said(&done));
    assert!(done.status.success(), "the run in namespaces failed");
    false
}

/// A bridge with nodes on it.
pub(crate) struct Network;

impl Network {
    pub(crate) fn new() -> Self {
        run("mount", "-t tmpfs tmpfs /run");
        run("ip", "link set lo up");
        run("ip", "link add br0 type bridge");
        run("ip", "link set br0 up");
        Self
    }

    /// A machine called `name` at host `host`, with a loopback of its own.
    pub(crate) fn machine(&self, name: &str, host: usize) -> String {
        let address = format!("{NET}.{host}");
        for line in [
            format!("netns add {name}"),
            format!("link add to-{name} type veth peer name eth0 netns {name}"),
            format!("link set to-{name} master br0 up"),
            format!("-n {name} addr add {address}/24 dev eth0"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} link set lo up"),
        ] {
            run("ip", &line);
        }
        address
    }

    /// Its cable is pulled.
    pub(crate) fn link_down(&self, name: &str) {
        run("ip", &format!("link set to-{name} down"));
    }

    pub(crate) fn link_up(&self, name: &str) {
        run("ip", &format!("link set to-{name} up"));
    }

    /// Packets from and to it vanish; it notices nothing.
    pub(crate) fn cut_off(&self, name: &str) {
        run("ip", &format!("link set to-{name} nomaster"));
    }

    pub(crate) fn heal(&self, name: &str) {
        run("ip", &format!("link set to-{name} master br0"));
    }
}

/// Does `work` as a process of machine `name` would.
pub(crate) fn at<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            enter(name);
            work()
        });
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The calling thread, and what it starts, are of machine `name` from now on.
pub(crate) fn enter(name: &str) {
    let space = File::open(format!("/run/netns/{name}")).expect("a machine of this network");
    move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("a namespace of our own can be entered");
}

#[track_caller]
fn run(program: &str, line: &str) {
    let done = Command::new(program)
        .args(line.split(' '))
        .output()
        .unwrap_or_else(|cause| panic!("{program}: {cause}"));
    assert!(done.status.success(), "{program} {line}: {}", said(&done));
}
