//! The machine's addresses, asked of the kernel.
//!
//! Owns: one rtnetlink dump of addresses, one of links, and the routes file.
//! Never: changes anything, or keeps a socket open.
//! Source: rtnetlink(7), `RTM_GETADDR` and `RTM_GETLINK`.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::sockaddr::Interface;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFF_UP: u32 = 1;
const HEADER_BYTES: usize = 16;

/// Every address of every interface, in the kernel's order.
///
/// # Errors
/// What the kernel answered; nothing is half done.
pub fn list() -> io::Result<Vec<Interface>> {
    let defaults = default_routes();
    let mut links = BTreeMap::new();
    dump(RTM_GETLINK, RTM_NEWLINK, |body| {
        let (index, flags) = (u32_at(body, 4)?, u32_at(body, 8)?);
        let name = attributes(body, 16)
            .find(|(kind, _)| *kind == IFLA_IFNAME)?
            .1;
        let name = String::from_utf8_lossy(name)
            .trim_end_matches('\0')
            .to_owned();
        links.insert(index, (name, flags & IFF_UP != 0));
        Some(())
    })?;
    let mut out = Vec::new();
    dump(RTM_GETADDR, RTM_NEWADDR, |body| {
        let (prefix, index) = (*body.get(1)?, u32_at(body, 4)?);
        let (name, up) = links.get(&index)?.clone();
        let all: Vec<_> = attributes(body, 8).collect();
        // On point-to-point links IFA_ADDRESS is the far end; IFA_LOCAL is always ours.
        let of = |wanted| {
            all.iter()
                .find(|(kind, _)| *kind == wanted)
                .and_then(|(_, bytes)| address(bytes))
        };
        let address = of(IFA_LOCAL).or_else(|| of(IFA_ADDRESS))?;
        let has_default_route = defaults.contains(&(name.clone(), address.is_ipv6()));
        out.push(Interface {
            name,
            address,
            prefix,
            up,
            has_default_route,
        });
        Some(())
    })?;
    Ok(out)
}

/// Sends one dump request and hands every answer's body to `each`, until the kernel says it is done.
fn dump(request: u16, answer: u16, mut each: impl FnMut(&[u8]) -> Option<()>) -> io::Result<()> {
    // Protocol 0 of this family is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut message = Vec::with_capacity(HEADER_BYTES + 16);
    let length = u32::try_from(HEADER_BYTES + 16).unwrap_or_default();
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&request.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    message.resize(HEADER_BYTES + 16, 0);
    rustix::net::sendto(
        &socket,
        &message,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        let (received, _) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = &buffer[..received];
        while let Some(length) = u32_at(rest, 0).and_then(|l| usize::try_from(l).ok()) {
            let kind = u16_at(rest, 4).unwrap_or_default();
            let Some(body) = rest.get(HEADER_BYTES..length) else {
                break;
            };
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    return Err(io::Error::other(
                        "the kernel refused to list the interfaces",
                    ));
                }
                _ if kind == answer => {
                    each(body);
                }
                _ => {}
            }
            rest = rest.get(aligned(length)..).unwrap_or_default();
        }
    }
}

/// The attributes behind a message's fixed part of `skip` bytes.
fn attributes(body: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(skip..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)?;
        let value = rest.get(4..length)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|b| IpAddr::V4(Ipv4Addr::from(b)));
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|b| IpAddr::V6(Ipv6Addr::from(b))))
        .ok()
}

/// (interface, is IPv6) of every default route.
fn default_routes() -> Vec<(String, bool)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut out = Vec::new();
    for line in read("/proc/net/route").lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.get(1) == Some(&"00000000") && words.get(7) == Some(&"00000000") {
            out.push((words[0].to_owned(), false));
        }
    }
    for line in read("/proc/net/ipv6_route").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let everywhere = words.first().is_some_and(|d| d.bytes().all(|b| b == b'0'))
            && words.get(1) == Some(&"00");
        if let (true, Some(name)) = (everywhere, words.last()) {
            out.push(((*name).to_owned(), true));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_loopback_interface_is_there() {
        let all = super::list().unwrap();
        let lo = all
            .iter()
            .find(|i| i.name == "lo" && i.address.is_ipv4())
            .unwrap();
        assert_eq!(
            (lo.address.to_string().as_str(), lo.prefix, lo.up),
            ("127.0.0.1", 8, true)
        );
    }
}
