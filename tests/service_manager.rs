//! Under a service manager: what systemd hears of the agent, and sockets that it holds over a restart.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use support::World;

/// The socket of a service manager, and all it has heard.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn at(w: &World) -> Self {
        let socket = UnixDatagram::bind(w.path("notify")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        Self {
            socket,
            heard: Vec::new(),
        }
    }

    /// Waits until a message after the first `from` fits, and answers its place and text.
    fn hear(
        &mut self,
        w: &World,
        from: usize,
        what: &str,
        fits: impl Fn(&str) -> bool,
    ) -> (usize, String) {
        w.until(what, || {
            let mut message = [0; 4_096];
            while let Ok(length) = self.socket.recv(&mut message) {
                self.heard
                    .push(String::from_utf8_lossy(&message[..length]).into_owned());
            }
            let found = (self.heard.iter().enumerate().skip(from)).find(|(_, text)| fits(text));
            found.map(|(at, text)| (at, text.clone()))
        })
    }
}

fn has(line: &'static str) -> impl Fn(&str) -> bool {
    move |message| message.lines().any(|one| one == line)
}

fn status_with(words: &'static str) -> impl Fn(&str) -> bool {
    move |message| {
        let mut lines = message.lines();
        lines.any(|one| one.starts_with("STATUS=") && one.contains(words))
    }
}

/// A command line as a service manager starts it.
fn notified(w: &World, n: usize) -> Command {
    let mut command = w.command(n);
    command.env("NOTIFY_SOCKET", w.path("notify"));
    command.env("WATCHDOG_USEC", "3000000");
    command
}

#[test]
fn the_manager_hears_ready_status_reload_life_and_the_end() {
    let mut w = World::servers(1).clients(1);
    w.argument(1, "-hcl=log_level = \"info\"");
    let mut manager = Manager::at(&w);
    let command = notified(&w, 1);
    w.launch_as(1, command);
    let (ready, _) = manager.hear(&w, 0, "READY=1", has("READY=1"));
    assert!(
        w.at(1).get("/v1/agent/self").unwrap().status == 200,
        "it answers once it is ready"
    );
    assert!(
        TcpStream::connect(format!("{}:8600", w.address(1))).is_ok(),
        "so does DNS"
    );
    manager.hear(&w, 0, "who leads", status_with("leads dc1; 1 servers"));
    let (alive, _) = manager.hear(&w, 0, "a sign of life", has("WATCHDOG=1"));
    manager.hear(&w, alive + 1, "a second one", has("WATCHDOG=1"));

    for by_signal in [true, false] {
        let before = manager.heard.len().max(ready + 1);
        if by_signal {
            w.signal(1, Signal::HUP);
        } else {
            assert!(w.cli(1, &["reload"]).status.success());
        }
        let (at, reloading) = manager.hear(&w, before, "RELOADING=1", has("RELOADING=1"));
        let stamp = reloading
            .lines()
            .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        assert!(
            stamp.is_some_and(|stamp| stamp.parse::<u64>().is_ok_and(|micros| micros > 0)),
            "{reloading}"
        );
        manager.hear(&w, at + 1, "READY=1 again", has("READY=1"));
    }

    let metrics = w.at(1).get("/v1/agent/metrics?format=prometheus").unwrap();
    let metrics = metrics.ok().text().to_owned();
    let signs = metrics
        .lines()
        .find_map(|line| line.strip_prefix("weft_process_signs_of_life_total "));
    assert!(
        signs.is_some_and(|signs| signs.parse::<u64>().unwrap() >= 2),
        "{metrics}"
    );

    let before = manager.heard.len();
    assert!(w.stop(1).success());
    manager.hear(&w, before, "STOPPING=1", has("STOPPING=1"));
}

#[test]
fn an_agent_is_ready_once_it_has_joined() {
    let mut w = World::servers(1).clients(1);
    let mut manager = Manager::at(&w);
    let command = notified(&w, 11);
    w.launch_as(11, command);
    manager.hear(&w, 0, "that it joins", status_with("joining; agent of dc1"));
    w.until("its API", || w.at(11).get("/v1/agent/self").ok());
    let early: Vec<_> = manager
        .heard
        .iter()
        .filter(|text| has("READY=1")(text))
        .collect();
    assert!(early.is_empty(), "nobody is there to join: {early:?}");
    w.launch(1);
    manager.hear(&w, 0, "READY=1", has("READY=1"));
    assert!(
        w.log(11).contains("joined the LAN pool"),
        "ready before it had joined"
    );
    manager.hear(&w, 0, "whom it asks", status_with("agent of dc1, asks s1"));
    // A process that is stopped shows no sign of life: no timer of another process does it in its place.
    w.pause(11);
    std::thread::sleep(Duration::from_millis(300));
    manager.heard.clear();
    let mut message = [0; 4_096];
    while manager.socket.recv(&mut message).is_ok() {}
    std::thread::sleep(Duration::from_secs(4));
    assert!(manager.socket.recv(&mut message).is_err());
    w.resume(11);
    manager.hear(&w, 0, "a sign of life", has("WATCHDOG=1"));
}

/// Starts `n` with sockets that stay open in this process, numbered from 3 on.
fn activated(w: &World, n: usize, sockets: &[(&str, &OwnedFd)]) -> Command {
    let (mut script, mut names) = (String::from("export LISTEN_PID=$$;"), Vec::new());
    // First far away, lest one number overwrites another that is still to be moved.
    for (at, (name, socket)) in sockets.iter().enumerate() {
        let (from, far) = (socket.as_raw_fd(), 200 + at);
        script += &format!(" exec {far}<&{from};");
        names.push(*name);
    }
    for at in 0..sockets.len() {
        script += &format!(" exec {}<&{} {}<&-;", 3 + at, 200 + at, 200 + at);
    }
    let plain = w.command(n);
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg(script + " exec \"$@\"")
        .arg("weft")
        .arg(plain.get_program())
        .args(plain.get_args())
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    command
}

/// Inherited by those who are started from now on.
fn shared(socket: impl Into<OwnedFd>) -> OwnedFd {
    let socket = socket.into();
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).unwrap();
    socket
}

#[test]
fn a_restart_with_sockets_of_the_manager_refuses_no_connection() {
    let mut w = World::servers(1);
    let address = w.address(1);
    let http = TcpListener::bind(format!("{address}:8500")).unwrap();
    let dns = UdpSocket::bind(format!("{address}:8600")).unwrap();
    let dns_tcp = TcpListener::bind(format!("{address}:8600")).unwrap();
    let (http, dns, dns_tcp) = (shared(http), shared(dns), shared(dns_tcp));
    let passed = [("http", &http), ("dns", &dns), ("dns", &dns_tcp)];
    let command = activated(&w, 1, &passed);
    w.launch_as(1, command);
    w.settle();
    w.wait_passing(1);
    assert!(
        w.log(1)
            .contains("the service manager has passed its sockets")
    );
    let shown = w.at(1).get("/v1/agent/self").unwrap().ok().json();
    assert_eq!(
        shown["DebugConfig"]["HTTPAddrs"][0],
        format!("tcp://{address}:8500")
    );
    assert_eq!(resolve(&address), 1, "DNS over the socket that was passed");

    let (over, answered, failed) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
        Arc::new(Mutex::new(Vec::new())),
    );
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (over, answered, failed) = (over.clone(), answered.clone(), failed.clone());
            let at = format!("{address}:8500");
            std::thread::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    match call(&at) {
                        Ok(()) => {
                            answered.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(cause) => failed.lock().unwrap().push(cause.to_string()),
                    }
                }
            })
        })
        .collect();
    let progress = |w: &World| {
        let before = answered.load(Ordering::SeqCst);
        w.until("answers", || {
            (answered.load(Ordering::SeqCst) > before + 20).then_some(())
        });
    };
    progress(&w);
    for _ in 0..3 {
        assert!(w.stop(1).success());
        // Whoever connects now waits in the socket that nobody listens at.
        std::thread::sleep(Duration::from_millis(200));
        let command = activated(&w, 1, &passed);
        w.launch_as(1, command);
        w.settle();
        progress(&w);
    }
    over.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.join().unwrap();
    }
    w.wait_passing(1);
    assert_eq!(*failed.lock().unwrap(), Vec::<String>::new());
    assert_eq!(resolve(&address), 1);
}

/// One request on a connection of its own; its answer may take as long as a restart.
fn call(at: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(support::PATIENCE))?;
    stream
        .write_all(b"GET /v1/agent/version HTTP/1.1\r\nHost: weft\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("answered {answer:?}")))
    }
}

/// Addresses of the node `s1`.
fn resolve(address: &str) -> usize {
    let udp = support::dns::udp(address, "s1.node.consul", support::dns::A, None);
    let tcp = support::dns::tcp(address, "s1.node.consul", support::dns::A);
    assert_eq!(udp.answers, tcp.answers);
    udp.answers.len()
}

#[test]
fn a_socket_for_nothing_is_refused_by_its_name() {
    let mut w = World::servers(1);
    let address = w.address(1);
    let tcp = shared(TcpListener::bind(format!("{address}:8500")).unwrap());
    let udp = shared(UdpSocket::bind(format!("{address}:8600")).unwrap());
    for (name, socket, words) in [
        ("weft.socket", &tcp, "no such name; it must be http"),
        (
            "http",
            &udp,
            "http wants a listening TCP or unix stream socket",
        ),
        ("https", &udp, "https wants a listening TCP socket"),
        ("dns-udp", &tcp, "dns-udp wants a UDP socket"),
        ("dns-tcp", &udp, "dns-tcp wants a listening TCP socket"),
    ] {
        let before = w.log(1).len();
        let command = activated(&w, 1, &[(name, socket)]);
        w.launch_as(1, command);
        let status = w.wait_exit(1);
        let said = w.log(1)[before..].to_owned();
        assert_eq!(status.code(), Some(78), "{name}: {said}");
        assert!(
            said.contains(words) && said.contains(&format!("{name:?}")),
            "{name}: {said}"
        );
    }
    // One that is open to the network is judged as an address of the configuration would be.
    let open = shared(TcpListener::bind("0.0.0.0:0").unwrap());
    let before = w.log(1).len();
    let command = activated(&w, 1, &[("http", &open)]);
    w.launch_as(1, command);
    assert_eq!(w.wait_exit(1).code(), Some(78));
    assert!(w.log(1)[before..].contains("exposure.http"));
}
