//! What commands need that work on a server's files while it is stopped.

use std::path::Path;
use std::sync::Arc;

use weft_agent::config::RuntimeConfig;
use weft_proto::clock::Clock;
use weft_server::{RpcTls, ServerConfig};

use super::node::{self, DataDirLock};
use super::parts;
use super::tls::Tls;

/// Keeps agents away from `data_dir` while it lives.
///
/// Errors: a process holds it, or it cannot be used.
pub(crate) fn lock_data_dir(data_dir: &Path) -> anyhow::Result<DataDirLock> {
    node::lock_data_dir(Some(data_dir))
}

/// The server role's settings, for reading its files; nothing of the node's own identity is in them.
pub(crate) fn server_settings(config: &RuntimeConfig) -> ServerConfig {
    parts::server_config(config, "", 0)
}

/// How servers speak to each other here.
///
/// Errors: certificates that cannot be read.
pub(crate) fn rpc_tls(
    config: &RuntimeConfig,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Option<Arc<dyn RpcTls>>> {
    Ok(Tls::load(config, clock)?.rpc())
}
