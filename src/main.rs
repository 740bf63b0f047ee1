//! The binary: argv, configuration, run. It wires; it decides nothing.
#![deny(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

mod cli;
mod run;
mod stderr;

use std::process::ExitCode;

/// Measured faster than the system's under the log's and the API's many short-lived buffers. Without huge
/// pages: an idle server touches a little of each, which made it six times as large.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::main(std::env::args_os()) {
        cli::Asked::Agent(start) => run::agent(start.config, start.load),
        cli::Asked::Done(code) => code,
    }
}
