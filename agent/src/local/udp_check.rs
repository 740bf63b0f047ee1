//! One run of a udp check.
//!
//! Owns: one empty datagram and the wait for an answer or a refusal.
//! Never: can tell a healthy silent service from one whose packets are dropped: silence passes,
//! as in Consul.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

use super::UdpCheck;
use super::reach::Reach;
use super::status::Status;
use super::tcp_check::{plain, resolve};

/// Asks each address in turn until one does not refuse; `limit` is for each of them.
pub(super) async fn run(check: &UdpCheck, limit: Duration, reach: &Reach) -> (Status, String) {
    match ask(&check.address, limit, reach).await {
        Ok(()) => (
            Status::Passing,
            format!("UDP connect {}: Success", check.address),
        ),
        Err(error) => (Status::Critical, error),
    }
}

async fn ask(address: &str, limit: Duration, reach: &Reach) -> Result<(), String> {
    let mut failure = format!("dial udp: lookup {address}: no such host");
    let resolved = match tokio::time::timeout(limit, resolve("udp", address)).await {
        Ok(resolved) => resolved?,
        Err(_) => return Err(format!("dial udp: lookup {address}: i/o timeout")),
    };
    for address in resolved {
        if let Some(reason) = reach.refusal(address) {
            failure = reason;
            continue;
        }
        match tokio::time::timeout(limit, exchange(address)).await {
            // Nobody said no.
            Ok(Ok(())) | Err(_) => return Ok(()),
            Ok(Err(error)) => failure = format!("udp {address}: {}", plain(&error)),
        }
    }
    Err(failure)
}

async fn exchange(address: SocketAddr) -> std::io::Result<()> {
    let own: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(own).await?;
    // Connected, the socket hears of ICMP refusals.
    socket.connect(address).await?;
    socket.send(&[]).await?;
    socket.recv(&mut [0; 1]).await.map(drop)
}
