//! Tests of the local table with real files and sockets, and a catalog in memory.

mod checks;
mod definitions;
mod persistence;
mod rounds;
mod sync;
mod thresholds;
mod world;
