//! One run of a tcp check.

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;

use super::TcpCheck;
use super::status::Status;
use super::tls;

/// Connects to any address the name resolves to. Cancelled by its caller's time-out.
pub(super) async fn run(check: &TcpCheck) -> (Status, String) {
    match connect(check).await {
        Ok(()) => (
            Status::Passing,
            format!("TCP connect {}: Success", check.address),
        ),
        Err(error) => (Status::Critical, error),
    }
}

async fn connect(check: &TcpCheck) -> Result<(), String> {
    let stream = dial(&check.address).await?;
    if check.use_tls {
        let name = check.tls.name(host_of(&check.address));
        tls::connect(stream, name, check.tls.skip_verify, &[]).await?;
    }
    Ok(())
}

/// `host` of `host:port`.
pub(super) fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// Tries every address `host:port` resolves to, in order; the text of the last failure names it.
pub(super) async fn dial(address: &str) -> Result<TcpStream, String> {
    dial_if(address, |_| None).await
}

/// As [`dial`], leaving out addresses for which `refuse` has a reason.
pub(super) async fn dial_if(
    address: &str,
    refuse: impl Fn(IpAddr) -> Option<&'static str>,
) -> Result<TcpStream, String> {
    let mut failure = format!("dial tcp: lookup {address}: no such host");
    for address in resolve("tcp", address).await? {
        if let Some(reason) = refuse(address.ip()) {
            failure = format!("refused to follow a redirect to {address}: it is {reason}");
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
