//! One connection: frames in, frames out, and the hello that opens it.
//!
//! Owns: the buffers, so that a dropped future never tears a frame.
//! Never: knows what a frame asks for.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use prost::Message;
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use super::RaftStream;
use super::gate::Gate;
use crate::peer::RaftId;
use crate::types::corrupt;
use crate::wire::{self, frame::Kind};

pub(super) const VERSION: u32 = 1;
const READ_BYTES: usize = 64 * 1024;
/// A hello is small; nobody unknown may make us hold more.
const HELLO_MAX_BYTES: usize = 4 * 1024;

pub(super) struct Conn {
    stream: Box<dyn RaftStream>,
    input: BytesMut,
    output: BytesMut,
    /// Output was written to the stream but maybe not flushed through it (TLS buffers).
    unflushed: bool,
    /// Bytes the stream has taken so far.
    taken_bytes: u64,
    frame_max_bytes: usize,
}

impl Conn {
    fn new(stream: Box<dyn RaftStream>) -> Self {
        Self {
            stream,
            input: BytesMut::with_capacity(READ_BYTES),
            output: BytesMut::new(),
            unflushed: false,
            taken_bytes: 0,
            frame_max_bytes: HELLO_MAX_BYTES,
        }
    }

    /// The dialing side's opening: says who it is and whom it means.
    pub(super) async fn dialed(stream: Box<dyn RaftStream>, opening: &Opening) -> io::Result<Self> {
        let mut conn = Self::new(stream);
        conn.push(Kind::Hello(wire::Hello {
            version: VERSION,
            cluster: opening.cluster.clone(),
            from: opening.me.to_bytes(),
            to: opening.them.to_bytes(),
        }));
        let Kind::Welcome(welcome) = conn.call().await? else {
            return Err(corrupt("peer did not answer the hello"));
        };
        if !welcome.refusal.is_empty() {
            let what = format!("peer refused the connection: {}", welcome.refusal);
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, what));
        }
        conn.frame_max_bytes = opening.frame_max_bytes;
        Ok(conn)
    }

    /// The accepting side's opening. Returns who is there.
    pub(super) async fn accepted(
        stream: Box<dyn RaftStream>,
        gate: &Gate,
        cluster: &str,
        frame_max_bytes: usize,
    ) -> io::Result<(Self, RaftId)> {
        let me = gate.me();
        let mut conn = Self::new(stream);
        let Kind::Hello(hello) = conn.next().await? else {
            return Err(corrupt("peer did not begin with a hello"));
        };
        let from = RaftId::from_slice(&hello.from);
        let refusal = refusal(&hello, from, gate, cluster);
        conn.push(Kind::Welcome(wire::Welcome {
            version: VERSION,
            id: me.to_bytes(),
            refusal: refusal.clone().unwrap_or_default(),
        }));
        poll_fn(|cx| conn.poll_flush(cx)).await?;
        conn.frame_max_bytes = frame_max_bytes;
        match (refusal, from) {
            (None, Some(from)) => Ok((conn, from)),
            (refusal, _) => Err(corrupt(&refusal.unwrap_or_default())),
        }
    }

    /// Adds a frame to what [`Self::poll_flush`] writes.
    pub(super) fn push(&mut self, kind: Kind) {
        let frame = wire::Frame { kind: Some(kind) };
        let length = frame.encoded_len();
        self.output.reserve(4 + length);
        self.output
            .put_u32(u32::try_from(length).expect("frames are bounded far below 4 GiB"));
        frame
            .encode(&mut self.output)
            .expect("the buffer was reserved for it");
    }

    pub(super) fn pending_output(&self) -> usize {
        self.output.len()
    }

    pub(super) fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    /// Writes what was pushed. Ready when all of it is on its way.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
            self.taken_bytes = self.taken_bytes.saturating_add(written as u64);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The next frame. Whatever was read of it stays when the caller gives up.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Kind>> {
        loop {
            if let Some(kind) = self.parse()? {
                return Poll::Ready(Ok(kind));
            }
            if self.input.capacity() - self.input.len() < READ_BYTES / 4 {
                self.input.reserve(READ_BYTES);
            }
            if ready!(poll_read_buf(
                Pin::new(&mut self.stream),
                cx,
                &mut self.input
            ))? == 0
            {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    fn parse(&mut self) -> io::Result<Option<Kind>> {
        let Some(prefix) = self.input.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > self.frame_max_bytes {
            return Err(corrupt(&format!(
                "frame of {length} bytes, {} are allowed",
                self.frame_max_bytes
            )));
        }
        if self.input.len() < 4 + length {
            self.input.reserve(4 + length - self.input.len());
            return Ok(None);
        }
        self.input.advance(4);
        // Decoding from the shared buffer keeps entry bodies as slices of it.
        let body = self.input.split_to(length).freeze();
        let frame = wire::Frame::decode(body).map_err(|cause| corrupt(&cause.to_string()))?;
        // A kind from a later version: ignoring it would leave its sender waiting.
        frame
            .kind
            .map(Some)
            .ok_or_else(|| corrupt("frame of an unknown kind"))
    }

    pub(super) async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    pub(super) async fn next(&mut self) -> io::Result<Kind> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Sends what was pushed and waits for one frame.
    pub(super) async fn call(&mut self) -> io::Result<Kind> {
        self.flush().await?;
        self.next().await
    }
}

/// What a dialing side says of itself.
pub(super) struct Opening {
    pub(super) me: RaftId,
    pub(super) them: RaftId,
    pub(super) cluster: String,
    pub(super) frame_max_bytes: usize,
}

fn refusal(
    hello: &wire::Hello,
    from: Option<RaftId>,
    gate: &Gate,
    cluster: &str,
) -> Option<String> {
    let me = gate.me();
    if hello.version == 0 {
        return Some("raft_protocol_version: version 0 does not exist".into());
    }
    if hello.cluster != cluster {
        return Some(format!(
            "raft_wrong_cluster: this is {cluster:?}, not {:?}",
            hello.cluster
        ));
    }
    if RaftId::from_slice(&hello.to) != Some(me) {
        return Some(format!("raft_wrong_server: this is {me}"));
    }
    match from {
        None => Some("raft_malformed_id: `from` is not a 16-byte id".into()),
        Some(from) if from == me => {
            Some("raft_duplicate_id: caller and server have the same id".into())
        }
        Some(from) if !gate.knows(from) => Some(format!(
            "raft_unknown_server: {from} is neither a member of this cluster nor in its gossip pool"
        )),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    const LIMIT: usize = 100_000;

    fn id(n: u128) -> RaftId {
        RaftId(uuid::Uuid::from_u128(n))
    }

    fn opening(me: u128, them: u128, cluster: &str) -> Opening {
        Opening {
            me: id(me),
            them: id(them),
            cluster: cluster.into(),
            frame_max_bytes: LIMIT,
        }
    }

    /// Server 2 has 1 and 2 as members, and 5 in its pool.
    fn gate() -> Gate {
        let gate = Gate::new(id(2));
        gate.set_members([id(1), id(2)].into());
        gate.set_pool([id(5)].into());
        gate
    }

    /// Server 2 of "dc1" is dialed with `opening`.
    async fn meet(opening: Opening) -> (io::Result<Conn>, io::Result<(Conn, RaftId)>) {
        let (near, far) = duplex(1_000);
        let gate = gate();
        tokio::join!(
            Conn::dialed(Box::new(near), &opening),
            Conn::accepted(Box::new(far), &gate, "dc1", LIMIT)
        )
    }

    async fn accepted_raw() -> (
        DuplexStream,
        tokio::task::JoinHandle<io::Result<(Conn, RaftId)>>,
    ) {
        let (near, far) = duplex(1_000_000);
        let accepting =
            tokio::spawn(async move { Conn::accepted(Box::new(far), &gate(), "dc1", LIMIT).await });
        (near, accepting)
    }

    #[tokio::test]
    async fn the_right_server_is_welcomed_and_frames_pass_whole() {
        let (near, far) = meet(opening(1, 2, "dc1")).await;
        let (mut near, (mut far, from)) = (near.unwrap(), far.unwrap());
        assert_eq!(from, id(1));
        let data = bytes::Bytes::from(vec![9; 50_000]);
        let chunk = Kind::SnapshotChunk(wire::SnapshotChunk { data });
        near.push(chunk.clone());
        // The pipe holds 1,000 bytes: writing and reading have to take turns.
        let (sent, received) = tokio::join!(near.flush(), far.next());
        sent.unwrap();
        assert_eq!(received.unwrap(), chunk);
    }

    #[tokio::test]
    async fn strangers_are_told_why_they_are_refused() {
        for (opening, reason) in [
            (opening(1, 3, "dc1"), "raft_wrong_server"),
            (opening(1, 2, "dc2"), "raft_wrong_cluster"),
            (opening(2, 2, "dc1"), "raft_duplicate_id"),
            (opening(3, 2, "dc1"), "raft_unknown_server"),
        ] {
            let (near, far) = meet(opening).await;
            let told = near.err().unwrap().to_string();
            assert!(told.contains(reason), "{told}");
            assert!(far.err().unwrap().to_string().contains(reason));
        }
    }

    #[tokio::test]
    async fn a_server_of_the_pool_is_welcomed_before_it_is_a_member_here() {
        let (near, far) = meet(opening(5, 2, "dc1")).await;
        assert!(near.is_ok());
        assert_eq!(far.unwrap().1, id(5));
    }

    #[tokio::test]
    async fn nonsense_ends_the_connection() {
        for bytes in [
            &b"\xff\xff\xff\xffGET / HTTP/1.1"[..],
            &b"\x00\x00\x00\x02\x12\x00"[..],
            &b"\x00\x00\x00\x03\x08\xff\xff"[..],
            &b"\x00\x00\x00\x00"[..],
        ] {
            let (mut near, accepting) = accepted_raw().await;
            near.write_all(bytes).await.unwrap();
            let refused = accepting.await.unwrap().err().unwrap();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
        let (mut near, accepting) = accepted_raw().await;
        near.write_all(b"\x00\x00\x00\x09half").await.unwrap();
        drop(near);
        let ended = accepting.await.unwrap().err().unwrap();
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_frame_beyond_the_limit_is_refused_before_it_is_held() {
        let (near, far) = meet(opening(1, 2, "dc1")).await;
        let (mut near, (mut far, _)) = (near.unwrap(), far.unwrap());
        let data = bytes::Bytes::from(vec![9; LIMIT + 1]);
        near.push(Kind::SnapshotChunk(wire::SnapshotChunk { data }));
        let sending = tokio::spawn(async move { near.flush().await });
        let refused = far.next().await.unwrap_err();
        assert!(
            refused.to_string().contains("100000 are allowed"),
            "{refused}"
        );
        drop(far);
        assert!(sending.await.unwrap().is_err());
    }
}
