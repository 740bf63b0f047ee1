//! The binary: argv, configuration, run. It wires; it decides nothing.

fn main() {}
