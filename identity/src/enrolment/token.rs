//! The text that an operator carries from a server to a new machine.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use prost::Message as _;
use weft_proto::ids::UnixMillis;
use weft_proto::v1;

/// Random bytes of a token.
pub const SECRET_BYTES: usize = 32;
/// What every token begins with; the number is the form's.
const PREFIX: &str = "weft-join-1.";
/// Longest text that is looked at.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// A token: the secret, and all that a new machine needs to find the servers and to know them when it has.
#[derive(Clone)]
pub struct JoinToken(v1::JoinTicket);

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "JoinToken for node {:?}, secret hidden", self.0.node)
    }
}

/// Why a text is no token, or one of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It was cut off, or is something else.
    #[error(
        "this is not a join token, or a part of one: it begins with {PREFIX} and is one long word; copy it whole from `weft join-token create`"
    )]
    Form,
    /// Its time is over.
    #[error("this join token has expired; make a new one with `weft join-token create`")]
    Expired,
}

impl JoinToken {
    /// Wraps what a server wrote.
    #[must_use]
    pub const fn new(ticket: v1::JoinTicket) -> Self {
        Self(ticket)
    }

    /// Reads a token, with white space around it allowed. `now` is the wall clock, which may be wrong by a day
    /// before a token that is still good looks expired: the servers judge by their own time.
    ///
    /// Errors: [`TokenError`].
    pub fn parse(text: &str, now: UnixMillis) -> Result<Self, TokenError> {
        const DAY_MILLIS: u64 = 86_400_000;
        let text = text.trim();
        let body = text
            .strip_prefix(PREFIX)
            .filter(|body| body.len() <= TEXT_BYTES_MAX)
            .ok_or(TokenError::Form)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Form)?;
        let ticket = v1::JoinTicket::decode(&bytes[..]).map_err(|_| TokenError::Form)?;
        let ticket = Self(ticket);
        let whole = ticket.0.secret.len() == SECRET_BYTES
            && !ticket.0.node.is_empty()
            && !ticket.0.servers.is_empty()
            && !ticket.0.ca_der.is_empty();
        if !whole {
            return Err(TokenError::Form);
        }
        if ticket.0.expires_millis.saturating_add(DAY_MILLIS) < now.get() {
            return Err(TokenError::Expired);
        }
        Ok(ticket)
    }

    /// The text form. It holds the secret: show it once, to who asked.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0.encode_to_vec()))
    }

    /// What it says.
    #[must_use]
    pub const fn ticket(&self) -> &v1::JoinTicket {
        &self.0
    }
}

/// A new secret; `None` when the system gives no randomness.
#[must_use]
pub fn new_secret() -> Option<Bytes> {
    let mut secret = [0_u8; SECRET_BYTES];
    aws_lc_rs::rand::fill(&mut secret).ok()?;
    Some(Bytes::copy_from_slice(&secret))
}

/// SHA-256 of a secret: what the servers keep of it.
#[must_use]
pub fn secret_hash(secret: &[u8]) -> Bytes {
    Bytes::copy_from_slice(digest(&SHA256, secret).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> v1::JoinTicket {
        v1::JoinTicket {
            secret: vec![7; SECRET_BYTES].into(),
            node: "web-1".into(),
            datacenter: "dc1".into(),
            domain: "consul".into(),
            servers: vec!["10.0.0.11:8300".into()],
            ca_der: vec![Bytes::from_static(b"ca")],
            expires_millis: 1_800_000_000_000,
        }
    }

    #[test]
    fn a_token_survives_being_carried_and_is_refused_when_a_part_is_missing() {
        let now = UnixMillis(1_800_000_000_000);
        let text = JoinToken::new(ticket()).text();
        let back = JoinToken::parse(&format!("  {text}\n"), now).unwrap();
        assert_eq!(*back.ticket(), ticket());
        assert!(!format!("{back:?}").contains('7'), "{back:?}");
        for cut in [0, 5, PREFIX.len(), text.len() / 2, text.len() - 4] {
            assert_eq!(
                JoinToken::parse(&text[..cut], now).unwrap_err(),
                TokenError::Form,
                "{cut}"
            );
        }
        for strange in ["", "hvs.CAES", "weft-join-2.AAAA", "weft-join-1.!!!"] {
            assert_eq!(
                JoinToken::parse(strange, now).unwrap_err(),
                TokenError::Form
            );
        }
        let later = UnixMillis(now.get() + 2 * 86_400_000);
        assert_eq!(
            JoinToken::parse(&text, later).unwrap_err(),
            TokenError::Expired
        );
    }
}
