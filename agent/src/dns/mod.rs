//! DNS: names of nodes and services, answered from the local view.
//!
//! Owns: sockets on the DNS port, the grammar of names, answers, truncation, counters by cause.
//! Never: asks a server over the network; an unknown view is SERVFAIL, never NXDOMAIN (DESIGN F3).
//! Source: Consul docs, "DNS interface"; RFC 1035, 2782, 6891.

mod answer;
mod lookup;
mod message;
mod metrics;
mod name;
mod serve;
mod view;

pub use answer::{DnsOptions, Soa, TtlRules};
pub use metrics::DnsMetrics;
pub use serve::{DnsError, DnsServer};
pub use view::{DnsView, Viewed};
