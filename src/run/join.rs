//! `-join` and `-retry-join`: finding the pool.
//!
//! Owns: how often, how long, and what is said about it.

use std::sync::Arc;
use std::time::Duration;

use weft_agent::config::runtime::JoinConfig;
use weft_gossip::{Gossip, JoinOutcome};

/// `-join`: at least one address must answer, or the start fails.
pub(crate) async fn at_start(gossip: &Gossip, addresses: &[String]) -> anyhow::Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let outcome = gossip.join(addresses).await;
    if outcome.contacted > 0 {
        tracing::info!(contacted = outcome.contacted, "joined the LAN pool");
        return Ok(());
    }
    anyhow::bail!(
        "-join reached nobody: {}. Is one of them up? -retry-join keeps trying",
        reasons(&outcome)
    )
}

/// `-retry-join`: until one answers; gives up only after `retry_max` tries.
///
/// Errors: the tries are used up. The process ends then.
pub(crate) async fn retry(gossip: Arc<Gossip>, config: JoinConfig) -> anyhow::Result<()> {
    if config.retry_join.is_empty() {
        return Ok(());
    }
    let mut tries = 0;
    let mut said = String::new();
    loop {
        let outcome = gossip.join(&config.retry_join).await;
        if outcome.contacted > 0 {
            tracing::info!(contacted = outcome.contacted, "joined the LAN pool");
            return Ok(());
        }
        tries += 1;
        let why = reasons(&outcome);
        if config.retry_max.is_some_and(|max| max > 0 && tries >= max) {
            anyhow::bail!("-retry-join reached nobody in {tries} tries (retry_max): {why}");
        }
        if why != said {
            tracing::warn!(retry_interval = ?config.retry_interval, reason = %why, "nobody to join yet, trying again");
            said = why;
        }
        // Servers of one cluster usually start together: look often at first, then as configured.
        tokio::time::sleep(if tries < 20 {
            Duration::from_millis(500).min(config.retry_interval)
        } else {
            config.retry_interval
        })
        .await;
    }
}

fn reasons(outcome: &JoinOutcome) -> String {
    outcome
        .errors
        .iter()
        .map(|(address, cause)| format!("{address}: {cause}"))
        .collect::<Vec<_>>()
        .join("; ")
}
