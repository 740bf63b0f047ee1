//! Garbage on every port, and connections that say nothing: nothing hangs, nothing crashes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use support::World;
use support::dns::{self, SRV};

const PORTS: [u16; 4] = [8300, 8301, 8500, 8600];
/// Silent connections to each port at once; below the bounds on connections of one address.
const SILENT: usize = 30;
const PACKETS: usize = 2_000;

/// Bytes that differ from call to call, the same in every run.
fn noise(state: &mut u64, length: usize) -> Vec<u8> {
    let mut next = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

fn by_udp(address: &str, state: &mut u64) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for n in 0..PACKETS {
        let bytes = noise(state, 1 + n % 1_400);
        for port in [8301, 8600] {
            // A full buffer refuses; that is the kernel's affair.
            let _ = socket.send_to(&bytes, (address, port));
        }
    }
}

fn by_tcp(address: &str, state: &mut u64) {
    for n in 0..40 {
        let bytes = noise(state, 1 + n * 97);
        for port in PORTS {
            // One that is refused, or closed early, is answered as it should be.
            let Ok(mut stream) = TcpStream::connect((address, port)) else {
                continue;
            };
            stream
                .set_write_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            let _ = stream.write_all(&bytes);
        }
    }
}

fn silent(address: &str) -> Vec<TcpStream> {
    let all = (0..SILENT).flat_map(|_| PORTS);
    all.filter_map(|port| TcpStream::connect((address, port)).ok())
        .collect()
}

#[test]
fn a_pool_under_garbage_goes_on() {
    let mut w = World::servers(3).clients(1).start();
    w.at(1).kv_put("color", "red");
    let held: Vec<_> = w
        .names()
        .into_iter()
        .flat_map(|n| silent(&w.address(n)))
        .collect();
    assert!(held.len() > SILENT * 4, "connections are taken");
    let addresses: Vec<_> = w.names().into_iter().map(|n| w.address(n)).collect();
    std::thread::scope(|scope| {
        for (n, address) in (1..).zip(&addresses) {
            scope.spawn(move || {
                let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(n);
                by_udp(address, &mut state);
                by_tcp(address, &mut state);
            });
        }
    });
    // Beside the silent ones, which still hold their places.
    for n in w.names() {
        let key = format!("after-{n}");
        w.until("a write", || {
            let put = w.at(n).put(&format!("/v1/kv/{key}"), "garbage").ok()?;
            (put.status == 200).then_some(())
        });
        w.until("an answer by DNS", || {
            let question = dns::question(7, "consul.service.consul.", SRV, None);
            let answer = dns::packet_by_udp(&w.address(n), &question, Duration::from_secs(2))?;
            // Its code, and how many answers it holds.
            (answer[3] & 0x0f == 0 && answer[7] == 3).then_some(())
        });
        w.until("all four to be alive", || {
            let members = w.at(n).get("/v1/agent/members").ok()?.json();
            let alive = members.as_array()?.iter().filter(|m| m["Status"] == 1);
            (alive.count() == 4).then_some(())
        });
        let log = w.log(n);
        assert!(!log.contains("panicked"), "{log}");
    }
    drop(held);
    // Nobody was thrown out of anything by it.
    let peers = w.at(1).get("/v1/operator/raft/configuration").unwrap().ok();
    assert_eq!(peers.json()["Servers"].as_array().unwrap().len(), 3);
    // What came in is bounded in the log too: a line for each packet would fill a disk.
    for n in w.names() {
        let lines = w.log(n).lines().count();
        assert!(lines < PACKETS, "{lines} lines of node {n}");
    }
    for n in w.names() {
        assert_eq!(w.at(n).kv_get("color", "").as_deref(), Some("red"));
    }
    w.kill(11);
}
