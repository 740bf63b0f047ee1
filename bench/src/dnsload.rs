//! The DNS load: one socket per query under way; a query without answer is lost after a second and asked anew.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use tokio::net::UdpSocket;

use crate::figures::Figures;
use crate::load::{Load, Tally, measure};
use crate::stopwatch::Stopwatch;

const LOST_AFTER: Duration = Duration::from_secs(1);

/// A question's packet: recursion not desired, no EDNS.
///
/// Source: RFC 1035 §4.1.
pub(crate) fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut packet = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).expect("labels of this bench are short"));
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&1u16.to_be_bytes());
    packet
}

/// Asks that question over and over. An answer with another code than NOERROR, or without records, is a failure.
pub(crate) async fn run(load: &Load, packet: Vec<u8>) -> Result<Figures> {
    let tally = Rc::new(Tally::default());
    let local = tokio::task::LocalSet::new();
    for _ in 0..load.connections {
        let (tally, target, packet) = (Rc::clone(&tally), load.target, packet.clone());
        local.spawn_local(async move { drive(target, &tally, packet).await });
    }
    measure(local, &tally, load).await
}

async fn drive(target: SocketAddr, tally: &Tally, mut packet: Vec<u8>) {
    let Ok(socket) = UdpSocket::bind("127.0.0.1:0").await else {
        return;
    };
    if socket.connect(target).await.is_err() {
        return;
    }
    let mut answer = [0; 4096];
    while !tally.over.get() {
        let id = u16::try_from(tally.number() & 0xffff)
            .unwrap_or_default()
            .to_be_bytes();
        packet[..2].copy_from_slice(&id);
        let clock = Stopwatch::start();
        if socket.send(&packet).await.is_err() {
            tally.book(Duration::ZERO, false);
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        let ok = tokio::time::timeout(LOST_AFTER, async {
            loop {
                match socket.recv(&mut answer).await {
                    // A late answer to a lost query is not this one's.
                    Ok(length) if length < 12 || answer[..2] != id => {}
                    Ok(_) => return answer[3] & 0x0f == 0 && answer[6..8] != [0, 0],
                    Err(_) => return false,
                }
            }
        });
        let ok = ok.await.unwrap_or(false);
        tally.book(clock.elapsed(), ok);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_as_rfc_1035_says() {
        let packet = question("a.bc", 33);
        assert_eq!(packet[12..], [1, b'a', 2, b'b', b'c', 0, 0, 33, 0, 1]);
        assert_eq!(packet[4..6], [0, 1]);
    }
}
