//! The first words on an agent's connection: who is there, and whether both belong together.
//!
//! Owns: their frames (length, then protobuf) and their bound.
//! Never: trusts what is said; who the caller is, its certificate says.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use weft_proto::v1;

/// No greeting is longer.
const FRAME_MAX_BYTES: u32 = 4_096;
/// A caller that is declined has hung up after so many bytes, or is no agent of ours.
const UNREAD_MAX_BYTES: u64 = 8_192;

/// The caller's part.
///
/// Errors: `PermissionDenied` with the server's words; `ConnectionAborted` when it hung up without any.
pub(crate) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    greeting: &v1::AgentGreeting,
) -> io::Result<v1::AgentWelcome> {
    // The answer may be there already, and the connection closed behind it: read it whatever becomes of this.
    let sent = write(stream, greeting).await;
    let welcome: v1::AgentWelcome = match read(stream).await {
        Ok(welcome) => welcome,
        Err(cause) => return Err(hung_up(sent.err().unwrap_or(cause))),
    };
    if welcome.error.is_empty() {
        sent.map(|()| welcome)
    } else {
        let text = format!("{} ({})", welcome.error, welcome.reason);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }
}

fn hung_up(cause: io::Error) -> io::Error {
    let closed = [
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::BrokenPipe,
    ];
    if !closed.contains(&cause.kind()) {
        return cause;
    }
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the server hung up before it greeted: it wants a certificate of its CA from this agent (tls.internal_rpc), has too many connections of this address (limits.rpc_max_conns_per_client), or is no weft server that serves agents; its log says which",
    )
}

/// The server's part.
///
/// Errors: the caller is of another datacenter; it has been told.
pub(crate) async fn welcome<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    us: &v1::AgentWelcome,
) -> io::Result<v1::AgentGreeting> {
    let greeting: v1::AgentGreeting = read(stream).await?;
    if greeting.datacenter == us.datacenter {
        write(stream, us).await?;
        return Ok(greeting);
    }
    let text = format!(
        "the server {:?} is of datacenter {:?}, the caller {:?} of {:?}",
        us.node_name, us.datacenter, greeting.node_name, greeting.datacenter
    );
    decline(stream, "rpc.wrong_datacenter", &text).await;
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// Says why the connection ends, as far as the other end still listens.
pub(crate) async fn decline<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    reason: &str,
    text: &str,
) {
    let answer = v1::AgentWelcome {
        error: text.to_owned(),
        reason: reason.to_owned(),
        ..v1::AgentWelcome::default()
    };
    let told = write(stream, &answer).await.is_ok() && stream.shutdown().await.is_ok();
    if told {
        // Closing with bytes unread resets the connection, and the words are lost on the way.
        let mut rest = stream.take(UNREAD_MAX_BYTES);
        let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
    }
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, message: &impl Message) -> io::Result<()> {
    let length = u32::try_from(message.encoded_len()).map_err(io::Error::other)?;
    let mut frame = length.to_be_bytes().to_vec();
    message.encode_raw(&mut frame);
    stream.write_all(&frame).await?;
    stream.flush().await
}

async fn read<M: Message + Default>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<M> {
    let length = stream.read_u32().await?;
    if length > FRAME_MAX_BYTES {
        let text = format!("a greeting of {length} bytes; is the other end weft?");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut frame = vec![0; length as usize];
    stream.read_exact(&mut frame).await?;
    M::decode(&frame[..]).map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(datacenter: &str) -> v1::AgentGreeting {
        v1::AgentGreeting {
            datacenter: datacenter.into(),
            node_name: "c1".into(),
            ..v1::AgentGreeting::default()
        }
    }

    fn server() -> v1::AgentWelcome {
        v1::AgentWelcome {
            datacenter: "dc1".into(),
            node_name: "s1".into(),
            ..v1::AgentWelcome::default()
        }
    }

    #[tokio::test]
    async fn both_learn_who_the_other_is() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let (greeting, us) = (caller("dc1"), server());
        let (welcomed, greeted) = tokio::join!(greet(&mut near, &greeting), welcome(&mut far, &us));
        assert_eq!(welcomed.unwrap().node_name, "s1");
        assert_eq!(greeted.unwrap().node_name, "c1");
    }

    #[tokio::test]
    async fn another_datacenter_is_told_so() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let ours = tokio::spawn(async move {
            let refused = welcome(&mut far, &server()).await;
            refused.unwrap_err().to_string()
        });
        let refused = greet(&mut near, &caller("dc2")).await.unwrap_err();
        drop(near);
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        for text in [refused.to_string(), ours.await.unwrap()] {
            assert!(
                text.contains("\"dc1\"") && text.contains("\"dc2\""),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn silence_and_nonsense_are_told_apart() {
        let (mut near, far) = tokio::io::duplex(64);
        drop(far);
        let refused = greet(&mut near, &caller("dc1")).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionAborted);
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(b"HTTP/1.1 400").await.unwrap();
        let refused = greet(&mut near, &caller("dc1")).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}
