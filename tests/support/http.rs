//! A blocking HTTP/1.1 client, one connection a request: just enough to tell what a server answered.
//!
//! Owns: framing, and the difference between "answered" and "we do not know".
//! Never: retries.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The HTTP API of one server.
#[derive(Clone)]
pub(crate) struct Api {
    address: String,
    limit: Duration,
}

/// What a server answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Api {
    pub(crate) fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            limit: Duration::from_secs(30),
        }
    }

    /// The same server, with another limit on each wait for bytes.
    pub(crate) fn within(&self, limit: Duration) -> Self {
        Self {
            limit,
            ..self.clone()
        }
    }

    pub(crate) fn get(&self, path: &str) -> io::Result<Reply> {
        self.request("GET", path, b"")
    }

    pub(crate) fn put(&self, path: &str, body: impl AsRef<[u8]>) -> io::Result<Reply> {
        self.request("PUT", path, body.as_ref())
    }

    pub(crate) fn delete(&self, path: &str) -> io::Result<Reply> {
        self.request("DELETE", path, b"")
    }

    /// Writes a key, which must succeed.
    pub(crate) fn kv_put(&self, key: &str, value: impl AsRef<[u8]>) {
        let reply = self
            .put(&format!("/v1/kv/{key}"), value)
            .unwrap_or_else(|cause| panic!("put {key}: {cause}"))
            .ok();
        assert_eq!(reply.text().trim_end(), "true", "put {key}");
    }

    /// Reads a key by the consistency that `mode` names (`""`, `"consistent"`, `"stale"`); `None` if there is none.
    pub(crate) fn kv_get(&self, key: &str, mode: &str) -> Option<String> {
        let reply = self
            .get(&format!("/v1/kv/{key}?raw&{mode}"))
            .unwrap_or_else(|cause| panic!("get {key}: {cause}"));
        if reply.status == 404 {
            return None;
        }
        Some(reply.ok().text())
    }

    pub(crate) fn request(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Reply> {
        self.send(method, path, "", body)
    }

    /// A GET with a further header.
    pub(crate) fn get_with(&self, path: &str, header: &str) -> io::Result<Reply> {
        self.send("GET", path, &format!("{header}\r\n"), b"")
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> io::Result<Reply> {
        let address = self.address.parse().map_err(io::Error::other)?;
        let mut stream =
            TcpStream::connect_timeout(&address, self.limit.min(Duration::from_secs(5)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.limit))?;
        stream.set_write_timeout(Some(self.limit))?;
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n", self.address, body.len()).into_bytes();
        request.extend_from_slice(body);
        // A server may answer (413, say) before it has read everything, so what it said counts more than a failed write.
        let wrote = stream.write_all(&request);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        match parse(&answer) {
            Ok(reply) => Ok(reply),
            Err(cause) => Err(wrote.and(read.map(drop)).err().unwrap_or(cause)),
        }
    }
}

impl Reply {
    /// Itself, if the status is 200.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", self.text());
        self
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|cause| panic!("not JSON ({cause}): {}", self.text()))
    }

    /// A header, whatever the case of its name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(&name.to_ascii_lowercase())
            .map(String::as_str)
    }

    /// X-Consul-Index.
    #[track_caller]
    pub(crate) fn index(&self) -> u64 {
        self.headers
            .get("x-consul-index")
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| panic!("no index in {:?}", self.headers))
    }
}

fn parse(answer: &[u8]) -> io::Result<Reply> {
    let cut = |why: &str| io::Error::new(io::ErrorKind::UnexpectedEof, why);
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .ok_or_else(|| cut("no whole header"))?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| cut("no status line"))?;
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let rest = &answer[end + 4..];
    let body = if headers
        .get("transfer-encoding")
        .is_some_and(|coding| coding == "chunked")
    {
        dechunk(rest).ok_or_else(|| cut("the last chunk is missing"))?
    } else {
        let length = headers
            .get("content-length")
            .and_then(|text| text.parse().ok())
            .unwrap_or(rest.len());
        rest.get(..length)
            .ok_or_else(|| cut("the body is cut short"))?
            .to_vec()
    };
    Ok(Reply {
        status,
        headers,
        body,
    })
}

fn dechunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n")?;
        let size =
            usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?.trim(), 16).ok()?;
        rest = &rest[line + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}
