//! The binary: argv, configuration, run. It wires; it decides nothing.
#![forbid(unsafe_code)]

mod cli;
mod run;

use std::process::ExitCode;

/// Measured faster than the system's under the log's and the API's many short-lived buffers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks for huge pages, which made an idle server six times as large: it touches a
    // little of each. A kernel without the switch only costs memory.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    match cli::main(std::env::args_os()) {
        cli::Asked::Agent(start) => run::agent(start.config, start.load),
        cli::Asked::Done(code) => code,
    }
}
