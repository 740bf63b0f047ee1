//! The binary: argv, configuration, run. It wires; it decides nothing.
#![forbid(unsafe_code)]

mod cli;
mod run;

use std::process::ExitCode;

/// Measured faster than the system's under the log's and the API's many short-lived buffers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::main(std::env::args_os()) {
        cli::Asked::Agent(start) => run::agent(start.config, start.load),
        cli::Asked::Done(code) => code,
    }
}
