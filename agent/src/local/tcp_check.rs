//! One run of a tcp check.

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
        let host = check
            .address
            .rsplit_once(':')
            .map_or(check.address.as_str(), |(host, _)| host);
        let name = if check.tls_server_name.is_empty() {
            host
        } else {
            &check.tls_server_name
        };
        tls::connect(stream, name, check.tls_skip_verify).await?;
    }
    Ok(())
}

/// Tries every address `host:port` resolves to, in order; the text of the last failure names it.
pub(super) async fn dial(address: &str) -> Result<TcpStream, String> {
    let resolved = tokio::net::lookup_host(address).await;
    let resolved =
        resolved.map_err(|error| format!("dial tcp: lookup {address}: {}", plain(&error)))?;
    let mut failure = format!("dial tcp: lookup {address}: no such host");
    for address in resolved {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = format!("dial tcp {address}: connect: {}", plain(&error)),
        }
    }
    Err(failure)
}

/// The system's words as Go prints them: lower case, without the error number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_lowercase()
}
