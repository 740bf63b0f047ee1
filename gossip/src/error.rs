//! What can go wrong, who can act, and whether anything changed.

use std::net::SocketAddr;

/// Errors of the membership pool. Nothing changed in the pool unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// The node name is empty or too long.
    #[error("node name {name:?} is not usable: 1 to {max} bytes are allowed; set node_name")]
    Name {
        /// The name as given.
        name: String,
        /// Bytes allowed.
        max: usize,
    },
    /// The node id is not a UUID.
    #[error(
        "node id {id:?} is not a UUID; set node_id, or remove the node-id file in data_dir to mint one"
    )]
    NodeId {
        /// The id as given.
        id: String,
    },
    /// The tags do not fit.
    #[error(
        "gossip tags need {size} bytes, at most {max} are allowed; shorten node_meta or the tags {largest:?}"
    )]
    TagsTooLarge {
        /// Encoded size in bytes.
        size: usize,
        /// Bytes allowed.
        max: usize,
        /// The key of the largest tag.
        largest: String,
    },
    /// A timing of `gossip_lan` contradicts another.
    #[error("gossip_lan.{key} is not usable: {reason}")]
    Timing {
        /// The key at fault.
        key: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `encrypt` does not hold a usable key.
    #[error("encrypt: {reason}; `weft keygen` prints a good key")]
    Key {
        /// What is wrong with it.
        reason: String,
    },
    /// A key operation named a key that is not in the ring, or may not be removed.
    #[error("gossip key {reason}")]
    Keyring {
        /// What is wrong.
        reason: &'static str,
    },
    /// The gossip port could not be opened.
    #[error(
        "cannot open gossip {protocol} address {address}; another process may use it: see ports.serf_lan and bind_addr"
    )]
    Bind {
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        cause: std::io::Error,
    },
    /// Others cannot reach an unspecified address.
    #[error("gossip cannot advertise {address}; set advertise_addr, or bind_addr to one address")]
    Advertise {
        /// The address as settled.
        address: SocketAddr,
    },
    /// A name did not resolve.
    #[error("cannot resolve {host:?}")]
    Resolve {
        /// The host as given.
        host: String,
        /// The resolver's answer.
        #[source]
        cause: std::io::Error,
    },
    /// State could not be exchanged with a peer.
    #[error("cannot exchange gossip state with {peer}")]
    Exchange {
        /// The peer.
        peer: SocketAddr,
        /// The system's answer.
        #[source]
        cause: std::io::Error,
    },
    /// The peer's frame is not one of ours, or is sealed with a key we do not hold.
    #[error("wrong or missing gossip key, or not a weft gossip port: {peer} ({reason})")]
    Frame {
        /// The peer.
        peer: SocketAddr,
        /// A stable reason id: `sealed`, `clear`, `decrypt`, `foreign`, `too_large`, `malformed`, `closed`.
        reason: &'static str,
    },
    /// The peer belongs to another datacenter.
    #[error(
        "member {name:?} at {peer} belongs to datacenter {theirs:?}, this is {ours:?}: LAN gossip does not cross datacenters (retry_join_wan does)"
    )]
    Datacenter {
        /// Its name.
        name: String,
        /// Its address.
        peer: SocketAddr,
        /// Its datacenter.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// The address given to join is this node's own.
    #[error("{peer} is this node itself")]
    Ourselves {
        /// The address.
        peer: SocketAddr,
    },
    /// No member has that name.
    #[error("no member is named {name:?}")]
    UnknownMember {
        /// The name asked for.
        name: String,
    },
    /// The member is alive: it cannot be forced out.
    #[error(
        "member {name:?} at {address} is {status}; only a failed or left member can be forced out (run `weft leave` on it)"
    )]
    MemberAlive {
        /// Its name.
        name: String,
        /// Its address.
        address: SocketAddr,
        /// Its status.
        status: crate::MemberStatus,
    },
    /// The file of known addresses could not be read or written.
    #[error("cannot {action} {path}")]
    KnownFile {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: String,
        /// The system's answer.
        #[source]
        cause: std::io::Error,
    },
    /// This node joined late, under the name of a live member. It has stopped; the pool is as it was.
    #[error(
        "node name {name:?} is taken: a live member at {holder} had it before this node at {own}; set another node_name, or stop the other and retry"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who had it first.
        holder: SocketAddr,
        /// Where this node is.
        own: SocketAddr,
    },
    /// This node runs on a copy of a live node's data. It has not started, or has stopped; the pool is as it was.
    #[error(
        "the data_dir of this node at {own} is a copy: node id {id} is that of a live process at {elsewhere}; stop the other for good if this one is to take its place, else remove this data_dir and give this node a node_name of its own"
    )]
    IdTaken {
        /// The id.
        id: String,
        /// Where the other is.
        elsewhere: SocketAddr,
        /// Where this node is.
        own: SocketAddr,
    },
    /// The file of keys could not be read or written.
    #[error("cannot {action} the gossip keys in {path}")]
    KeyFile {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: String,
        /// The system's answer.
        #[source]
        cause: std::io::Error,
    },
    /// The file of keys is damaged.
    #[error(
        "{path} is not usable as a gossip keyring: {reason}; remove it to begin with the key of encrypt"
    )]
    KeyFileForm {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An event is too large to be gossiped.
    #[error(
        "user event needs {size} bytes, at most {max} are allowed for name, filters and payload together; send a reference to the data instead"
    )]
    EventTooLarge {
        /// Encoded size in bytes.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Events are fired faster than they can be spread.
    #[error(
        "{waiting} user events wait to be sent, limit {max}: fire fewer at a time, or lower gossip_lan.gossip_interval"
    )]
    EventsWaiting {
        /// How many wait.
        waiting: usize,
        /// How many may.
        max: usize,
    },
    /// The pool has been shut down.
    #[error("gossip has stopped")]
    Stopped,
}

impl GossipError {
    /// A stable id of the reason, for metrics and `explain`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Name { .. } => "gossip.name",
            Self::NodeId { .. } => "gossip.node_id",
            Self::TagsTooLarge { .. } => "gossip.tags_too_large",
            Self::Timing { .. } => "gossip.timing",
            Self::Key { .. } => "gossip.key",
            Self::Keyring { .. } => "gossip.keyring",
            Self::Bind { .. } => "gossip.bind",
            Self::Advertise { .. } => "gossip.advertise",
            Self::Resolve { .. } => "gossip.resolve",
            Self::Exchange { .. } => "gossip.exchange",
            Self::Frame { .. } => "gossip.frame",
            Self::Datacenter { .. } => "gossip.datacenter",
            Self::Ourselves { .. } => "gossip.ourselves",
            Self::UnknownMember { .. } => "gossip.unknown_member",
            Self::MemberAlive { .. } => "gossip.member_alive",
            Self::KnownFile { .. } => "gossip.known_file",
            Self::NameTaken { .. } => "gossip.name_taken",
            Self::IdTaken { .. } => "gossip.id_taken",
            Self::KeyFile { .. } => "gossip.key_file",
            Self::KeyFileForm { .. } => "gossip.key_file_form",
            Self::EventTooLarge { .. } => "gossip.event_too_large",
            Self::EventsWaiting { .. } => "gossip.events_waiting",
            Self::Stopped => "gossip.stopped",
        }
    }
}
