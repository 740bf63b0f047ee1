//! Who takes part: stable ids, and what the membership remembers of each server.
//!
//! Owns: [`RaftId`] and [`Peer`].
//! Never: resolves an address; it only carries the last one known.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Identifies one server with one log, for as long as that log lives.
///
/// A server whose log is lost must come back under a new id: giving an old id
/// to an empty log can split the cluster in two quorums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RaftId(pub Uuid);

impl RaftId {
    /// The id from its 16 bytes; `None` for any other length.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }

    /// The id as 16 bytes in a shareable buffer.
    pub(crate) fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self.0.as_bytes())
    }
}

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RaftId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::from_str(text).map(Self)
    }
}

impl Serialize for RaftId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RaftId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A server as the membership knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Stable id, minted with the server's log.
    pub id: RaftId,
    /// The server's node name.
    pub name: String,
    /// Last known `host:port` of its server port; the dialer may know a newer one.
    pub address: String,
    /// Public key the id is bound to (SubjectPublicKeyInfo, DER); empty when none was made.
    #[serde(serialize_with = "write_key", deserialize_with = "read_key")]
    pub public_key: Bytes,
}

impl Peer {
    /// A member from openraft's map of them.
    pub(crate) fn new(id: RaftId, node: Node) -> Self {
        let Node {
            name,
            address,
            public_key,
        } = node;
        Self {
            id,
            name,
            address,
            public_key,
        }
    }

    /// What openraft keeps under the peer's id.
    pub(crate) fn into_node(self) -> Node {
        let Self {
            name,
            address,
            public_key,
            ..
        } = self;
        Node {
            name,
            address,
            public_key,
        }
    }
}

/// A [`Peer`] without its id: openraft's membership has ids as keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    #[serde(serialize_with = "write_key", deserialize_with = "read_key")]
    pub(crate) public_key: Bytes,
}

fn write_key<S: Serializer>(key: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(key.iter())
}

fn read_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    Vec::<u8>::deserialize(deserializer).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_peers_survive_text_and_json() {
        let id: RaftId = "6f1c5ef4-6ef5-4be0-8a4f-6a7a6a6a0001".parse().unwrap();
        assert_eq!(id.to_string().parse::<RaftId>().unwrap(), id);
        assert_eq!(RaftId::from_slice(&id.to_bytes()), Some(id));
        assert_eq!(RaftId::from_slice(b"short"), None);
        let peer = Peer {
            id,
            name: "s1".into(),
            address: "127.0.0.1:8300".into(),
            public_key: Bytes::from_static(b"\x01\xff"),
        };
        let json = serde_json::to_string(&peer).unwrap();
        assert_eq!(serde_json::from_str::<Peer>(&json).unwrap(), peer);
    }
}
