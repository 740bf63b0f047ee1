//! DNS: names of nodes and services, answered from the local view.
//!
//! Owns: sockets on the DNS port, the grammar of names, answers, truncation, counters by cause.
//! Never: asks a server of ours over the network; an unknown view is SERVFAIL, never NXDOMAIN (DESIGN F3).
//! Source: Consul docs, "DNS interface"; RFC 1035, 2782, 6891.

mod alias;
mod answer;
mod lookup;
mod message;
mod metrics;
mod name;
mod options;
mod pick;
mod recurse;
mod resolve;
mod seats;
mod serve;
#[cfg(test)]
mod tests;
mod view;

pub use metrics::DnsMetrics;
pub use options::{DnsOptions, Soa, TtlRules};
pub use recurse::{RecursorOptions, Strategy};
pub use serve::{DnsError, DnsListen, DnsServer};
pub use view::{DnsView, Viewed};
