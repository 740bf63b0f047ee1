//! The differential harness: the same requests and stories go to Consul and to weft; the answers are compared.
//!
//! Owns: the cases (`cases/*.case`), the normaliser, the comparison and the list of known differences.
//! Never: judges which side is right, reads weft's code, or leaves a process behind. Only loopback is spoken to.
#![forbid(unsafe_code)]

mod cli;
mod compare;
mod differences;
mod distinct;
mod dns;
mod http;
mod normal;
mod outcome;
mod play;
mod report;
mod script;
mod side;
mod stopwatch;
#[cfg(test)]
mod tests;

fn main() -> anyhow::Result<std::process::ExitCode> {
    cli::main()
}
