//! The whole API by real HTTP over loopback; cases are data.

mod agent;
mod blocking;
mod catalog;
mod config_entry;
mod conventions;
mod coordinate;
mod event;
mod kv;
mod mesh;
mod prepared_query;
mod serving;
mod world;
