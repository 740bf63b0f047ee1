//! A keep-alive HTTP/1.1 client with as little work per answer as can be: the generator must not be the bottleneck.
//!
//! Owns: framing of answers (Content-Length, chunked). Never: looks at a header it does not need.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const READ_BYTES: usize = 64 << 10;
/// No row asks for more than some 100 KiB.
const ANSWER_BYTES_MAX: usize = 16 << 20;

#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

/// A request with its headers, ready to be sent.
pub(crate) fn request(out: &mut Vec<u8>, method: &str, target: &str, body: &[u8]) {
    out.clear();
    out.extend_from_slice(
        format!(
            "{method} {target} HTTP/1.1\r\nHost: bench\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .as_bytes(),
    );
    out.extend_from_slice(body);
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            answer: Vec::with_capacity(READ_BYTES),
        })
    }

    /// Sends one request and reads its answer whole; returns the status. The body is then at [`Self::body`].
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<u16> {
        self.stream.write_all(request).await?;
        self.answer.clear();
        loop {
            self.answer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the server closed the connection",
                ));
            }
            if let Some(status) = complete(&self.answer)? {
                return Ok(status);
            }
            if self.answer.len() > ANSWER_BYTES_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "an answer of more than 16 MiB",
                ));
            }
        }
    }

    /// `X-Consul-Index` of the last answer.
    pub(crate) fn index(&self) -> Option<u64> {
        let head = &self.answer[..head_end(&self.answer)?];
        let value = std::str::from_utf8(header(head, b"x-consul-index:")?);
        value.ok()?.trim().parse().ok()
    }

    /// The last answer's body as it came (chunk sizes included when it was chunked).
    pub(crate) fn body(&self) -> &[u8] {
        head_end(&self.answer).map_or(&[], |end| &self.answer[end..])
    }
}

/// One request on a connection of its own.
pub(crate) async fn once(
    address: SocketAddr,
    method: &str,
    target: &str,
    body: &[u8],
) -> io::Result<(u16, Vec<u8>)> {
    let mut connection = Connection::open(address).await?;
    let mut message = Vec::new();
    request(&mut message, method, target, body);
    let status = connection.exchange(&message).await?;
    Ok((status, connection.body().to_vec()))
}

/// The status once the answer is whole; `None` while more is to come.
fn complete(answer: &[u8]) -> io::Result<Option<u16>> {
    let Some(body_from) = head_end(answer) else {
        return Ok(None);
    };
    let head = &answer[..body_from];
    let status = head
        .get(9..12)
        .and_then(|s| std::str::from_utf8(s).ok())
        .and_then(|s| s.parse().ok());
    let status =
        status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no status line"))?;
    let body = &answer[body_from..];
    let whole = match header(head, b"content-length:") {
        Some(length) => std::str::from_utf8(length)
            .ok()
            .and_then(|l| l.trim().parse::<usize>().ok())
            .is_some_and(|l| body.len() >= l),
        None if header(head, b"transfer-encoding:").is_some() => chunks_end(body),
        None => status == 204 || status == 304,
    };
    Ok(whole.then_some(status))
}

pub(crate) fn head_end(answer: &[u8]) -> Option<usize> {
    answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map(|at| at + 4)
}

pub(crate) fn header<'h>(head: &'h [u8], name: &[u8]) -> Option<&'h [u8]> {
    let mut lines = head.split(|b| *b == b'\n');
    lines.find_map(|line| {
        line.get(..name.len())
            .filter(|n| n.eq_ignore_ascii_case(name))
            .map(|_| &line[name.len()..])
    })
}

fn chunks_end(mut body: &[u8]) -> bool {
    loop {
        let Some(line) = body.windows(2).position(|w| w == b"\r\n") else {
            return false;
        };
        let size = std::str::from_utf8(&body[..line])
            .ok()
            .and_then(|s| usize::from_str_radix(s.trim(), 16).ok());
        match size {
            Some(0) => return body.len() >= line + 4,
            Some(size) if body.len() >= line + 2 + size + 2 => body = &body[line + 2 + size + 2..],
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_when_its_body_is() {
        for (answer, want) in [
            ("HTTP/1.1 200 OK\r\nContent-Le", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh", None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Some(200)),
            (
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
                Some(404),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
                None,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                Some(200),
            ),
        ] {
            assert_eq!(complete(answer.as_bytes()).unwrap(), want, "{answer:?}");
        }
    }
}
