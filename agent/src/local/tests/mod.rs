//! Tests of the local table with real files and sockets, and a catalog in memory.

mod alias;
mod checks;
mod definitions;
mod kinds;
mod persistence;
mod rounds;
mod scripts;
mod sync;
mod thresholds;
mod world;
