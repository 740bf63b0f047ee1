//! The bench harness: weft, Consul and etcd run alternately on this machine; every row says what an operation costs.
//!
//! Owns: starting and stopping servers of its own, the load generator, the figures and `RESULTS.md`.
//! Never: speaks to anything but loopback, runs without a bound in count and time, or ends a process it did not start.
#![forbid(unsafe_code)]

mod agents;
mod catalog;
mod cli;
mod cluster;
mod dnsload;
mod figures;
mod http;
mod load;
mod peer;
mod procfs;
mod report;
mod rows;
mod soak;
mod stopwatch;
mod trouble;
mod watch;

fn main() -> anyhow::Result<std::process::ExitCode> {
    cli::main()
}
