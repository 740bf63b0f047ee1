//! Where a check may go, and where the answer of one host may send it next.
//!
//! Owns: the addresses that hand out credentials to whoever asks from this machine.
//! Never: resolves a name; it judges what a name has led to.
//! Source: TRUST C5; RFC 3927 (link-local), RFC 4291 §2.5.6; the clouds' manuals.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata services outside the link-local ranges.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Why a redirect by the host at `from` may not lead to `to`; `None` when it may.
pub(super) fn redirect_refusal(from: IpAddr, to: IpAddr) -> Option<&'static str> {
    let (from, to) = (from.to_canonical(), to.to_canonical());
    if from == to {
        None
    } else if is_link_local(to) {
        Some("a link-local address")
    } else if METADATA.contains(&to) {
        Some("a metadata service")
    } else if (to.is_loopback() || to.is_unspecified()) && !from.is_loopback() {
        Some("this host's loopback")
    } else {
        None
    }
}

/// Why a check may not begin at `to`, an address that its definition names or its name resolves to.
pub(super) fn target_refusal(to: IpAddr) -> Option<&'static str> {
    let to = to.to_canonical();
    if is_link_local(to) {
        Some("link-local, where clouds hand out credentials; enable_link_local_checks allows it")
    } else if METADATA.contains(&to) {
        Some("a cloud's metadata service; enable_link_local_checks allows it")
    } else {
        None
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::{redirect_refusal, target_refusal};

    #[test]
    fn redirects_do_not_lead_to_what_hands_out_credentials() {
        let cases = [
            ("10.0.0.1", "10.0.0.2", true),
            ("127.0.0.1", "127.0.0.2", true),
            ("127.0.0.1", "10.0.0.2", true),
            ("10.0.0.1", "169.254.169.254", false),
            ("127.0.0.1", "169.254.0.1", false),
            ("127.0.0.1", "::ffff:169.254.169.254", false),
            ("127.0.0.1", "fe80::1", false),
            ("127.0.0.1", "fd00:ec2::254", false),
            ("127.0.0.1", "100.100.100.200", false),
            ("127.0.0.1", "168.63.129.16", false),
            ("10.0.0.1", "127.0.0.1", false),
            ("10.0.0.1", "0.0.0.0", false),
            ("2001:db8::1", "::1", false),
            // A target that is link-local itself, by enable_link_local_checks.
            ("169.254.7.7", "169.254.7.7", true),
        ];
        for (from, to, allowed) in cases {
            let refused = redirect_refusal(from.parse().unwrap(), to.parse().unwrap());
            assert_eq!(refused.is_none(), allowed, "{from} to {to}: {refused:?}");
        }
    }

    #[test]
    fn a_check_does_not_begin_where_credentials_are_handed_out() {
        for (to, allowed) in [
            ("10.0.0.1", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("fd00::1", true),
            ("169.254.169.254", false),
            ("::ffff:169.254.1.1", false),
            ("fe80::1", false),
            ("febf::1", false),
            ("fec0::1", true),
            ("fd00:ec2::254", false),
            ("100.100.100.200", false),
            ("::ffff:168.63.129.16", false),
        ] {
            let refused = target_refusal(to.parse().unwrap());
            assert_eq!(refused.is_none(), allowed, "{to}: {refused:?}");
        }
    }
}
