//! Servers as the pool shows them.

use std::net::SocketAddr;

use weft_gossip::{Gossip, Member, MemberStatus};

/// The server port of a member, when it is a live server of `datacenter`.
pub(crate) fn server_port(member: &Member, datacenter: &str) -> Option<SocketAddr> {
    let is_ours = member.tag("role") == "consul" && member.tag("dc") == datacenter;
    let port = member.tag("port").parse().ok()?;
    (is_ours && member.status == MemberStatus::Alive).then(|| SocketAddr::new(member.address, port))
}

/// What `take` makes of each live server and its server port.
pub(crate) fn live<T>(
    gossip: &Gossip,
    datacenter: &str,
    take: impl Fn(&Member, SocketAddr) -> T,
) -> Vec<T> {
    let members = gossip.members();
    let servers = members
        .iter()
        .filter_map(|member| Some(take(member, server_port(member, datacenter)?)));
    servers.collect()
}
