//! One run of a tcp check.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::TcpCheck;
use super::reach::Reach;
use super::status::Status;

/// Connects to any address the name resolves to. Cancelled by its caller's time-out.
pub(super) async fn run(check: &TcpCheck, reach: &Reach) -> (Status, String) {
    match connect(check, reach).await {
        Ok(()) => (
            Status::Passing,
            format!("TCP connect {}: Success", check.address),
        ),
        Err(error) => (Status::Critical, error),
    }
}

async fn connect(check: &TcpCheck, reach: &Reach) -> Result<(), String> {
    let stream = reach.dial(&check.address).await?;
    if check.use_tls {
        let host = host_of(&check.address);
        reach.secure(stream, &check.tls, host, &[]).await?;
    }
    Ok(())
}

/// `host` of `host:port`.
pub(super) fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// Tries every address `host:port` resolves to, in order, without those for which `refuse` has a
/// reason; the text of the last failure names it.
pub(super) async fn dial_if(
    address: &str,
    refuse: impl Fn(SocketAddr) -> Option<String>,
) -> Result<TcpStream, String> {
    let mut failure = format!("dial tcp: lookup {address}: no such host");
    for address in resolve("tcp", address).await? {
        if let Some(reason) = refuse(address) {
            failure = reason;
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = format!("dial tcp {address}: connect: {}", plain(&error)),
        }
    }
    Err(failure)
}

/// Every address of `host:port`, for a connection of the kind `network`.
pub(super) async fn resolve(network: &str, address: &str) -> Result<Vec<SocketAddr>, String> {
    match tokio::net::lookup_host(address).await {
        Ok(resolved) => Ok(resolved.collect()),
        Err(error) => Err(format!(
            "dial {network}: lookup {address}: {}",
            plain(&error)
        )),
    }
}

/// The system's words as Go prints them: lower case, without the error number.
pub(super) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_lowercase()
}
