//! Frames of the conversation: a message behind its length, 4 bytes, big endian.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Longest message: certificates of some CAs, and a list of servers.
const MESSAGE_BYTES_MAX: u32 = 256 * 1024;

pub(super) async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    message: &impl Message,
) -> io::Result<()> {
    let body = message.encode_to_vec();
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&body).await?;
    stream.flush().await
}

pub(super) async fn receive<S: AsyncRead + Unpin, M: Message + Default>(
    stream: &mut S,
) -> io::Result<M> {
    let length = stream.read_u32().await?;
    if length > MESSAGE_BYTES_MAX {
        let text = format!("a message of {length} bytes; is the other end weft?");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    M::decode(&body[..]).map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))
}

#[cfg(test)]
mod tests {
    use weft_proto::v1;

    use super::*;

    #[tokio::test]
    async fn messages_arrive_whole_or_not_at_all() {
        let request = v1::EnrolRequest {
            node: "web-1".into(),
            ..v1::EnrolRequest::default()
        };
        let mut bytes = Vec::new();
        send(&mut bytes, &request).await.unwrap();
        let back: v1::EnrolRequest = receive(&mut &bytes[..]).await.unwrap();
        assert_eq!(back, request);
        for end in 0..bytes.len() {
            let cut: io::Result<v1::EnrolRequest> = receive(&mut &bytes[..end]).await;
            assert!(cut.is_err(), "{end}");
        }
        let long: io::Result<v1::EnrolRequest> = receive(&mut &b"\xff\xff\xff\xffx"[..]).await;
        assert!(
            long.unwrap_err()
                .to_string()
                .contains("is the other end weft?")
        );
    }
}
