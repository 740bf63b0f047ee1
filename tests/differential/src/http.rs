//! A plain HTTP/1.1 client that sends the bytes it is told to: odd keys, odd methods and broken bodies must arrive as written.
//!
//! Owns: one request on one connection. Never: follows redirects, retries, or repairs a target.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Bytes of an answer read at most: snapshots of these small states are far below.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// As sent, in order, names in the sender's spelling.
    pub(crate) headers: Vec<(String, String)>,
    /// Without transfer coding, still content-encoded.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The first header of that name, whatever its case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }
}

/// Sends one request and reads its answer; `timeout` bounds each read and write.
pub(crate) fn send(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: Option<&[u8]>,
    timeout: Duration,
) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    let mut head =
        format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = body {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut message = head.into_bytes();
    message.extend_from_slice(body.unwrap_or_default());
    // A server that refuses a large body answers and closes before all of it is written: the answer still counts.
    let sent = stream.write_all(&message);
    let raw = read_answer(&mut stream);
    match (raw, sent) {
        (Ok(raw), _) if !raw.is_empty() => parse(&raw, method == "HEAD"),
        (Err(read), _) => Err(read),
        (_, Err(write)) => Err(write).context("send the request"),
        (Ok(_), Ok(())) => bail!("the connection was closed without an answer"),
    }
}

fn read_answer(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut raw = Vec::new();
    match stream.take(ANSWER_BYTES_MAX).read_to_end(&mut raw) {
        // Reset after a whole answer: the refused body was still on its way.
        Err(error) if raw.is_empty() => Err(error).context("read the answer"),
        _ => Ok(raw),
    }
}

fn parse(raw: &[u8], head_only: bool) -> Result<Answer> {
    let end = raw
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .context("an answer without a blank line")?;
    let head = std::str::from_utf8(&raw[..end]).context("headers that are no text")?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status: u16 = status_line
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .with_context(|| format!("status line `{status_line}`"))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.to_owned(), v.trim().to_owned()))
        .collect();
    let mut answer = Answer {
        status,
        headers,
        body: raw[end + 4..].to_vec(),
    };
    if answer
        .header("Transfer-Encoding")
        .is_some_and(|v| v.eq_ignore_ascii_case("chunked"))
        && !head_only
    {
        answer.body = dechunk(&answer.body)?;
    } else if let Some(length) = answer
        .header("Content-Length")
        .and_then(|v| v.parse::<usize>().ok())
    {
        if answer.body.len() < length && !head_only {
            bail!(
                "the body ended after {} of {length} bytes",
                answer.body.len()
            );
        }
        answer.body.truncate(length);
    }
    Ok(answer)
}

fn dechunk(mut raw: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_end = raw
            .windows(2)
            .position(|w| w == b"\r\n")
            .context("a chunk without a size line")?;
        let size = std::str::from_utf8(&raw[..line_end])?
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        let size =
            usize::from_str_radix(size, 16).with_context(|| format!("chunk size `{size}`"))?;
        let rest = &raw[line_end + 2..];
        if size == 0 {
            return Ok(body);
        }
        if rest.len() < size + 2 {
            bail!("the body ended inside a chunk");
        }
        body.extend_from_slice(&rest[..size]);
        raw = &rest[size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole() {
        let plain = parse(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\n\r\nhi",
            false,
        )
        .unwrap();
        assert_eq!(
            (plain.status, plain.body.as_slice(), plain.header("x-a")),
            (200, &b"hi"[..], Some("b"))
        );
        let chunked = parse(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n",
            false,
        )
        .unwrap();
        assert_eq!(chunked.body, b"hi!");
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", false).is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true).is_ok());
    }
}
