//! The replicated state as a pure function of the log.
//!
//! Owns: tables, commands, queries and their indexes, watches, sessions, authorization decisions.
//! Never: does IO, reads a clock, configuration, a float or hash order; knows tokio.
