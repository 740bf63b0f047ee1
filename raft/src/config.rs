//! What a Raft node is told at its start.
//!
//! Owns: the knobs, their defaults and their checks.
//! Never: reads a file or a flag; the server maps its configuration to this.

use std::time::Duration;

use crate::peer::RaftId;

/// Settings of one node. [`RaftConfig::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// This server's id, minted with its log.
    pub id: RaftId,
    /// Name of the cluster (its datacenter). Peers that name another one are refused.
    pub cluster: String,
    /// Interval of the leader's heartbeats. Default 50 ms.
    pub heartbeat: Duration,
    /// Shortest election timeout. Default 200 ms.
    pub election_min: Duration,
    /// Longest election timeout, and the leader's lease. Default 400 ms.
    pub election_max: Duration,
    /// Multiplies the three above (`raft_multiplier`), 1 to 10. Default 1.
    pub multiplier: u32,
    /// Entries applied since the last snapshot that call for the next. Default 16,384.
    pub snapshot_entries: u64,
    /// Bytes of entries applied since the last snapshot that call for the next. Default 256 MiB.
    pub snapshot_bytes: u64,
    /// Entries kept behind a snapshot for followers that lag. Default 10,240.
    pub trailing_entries: u64,
    /// Bytes of entries kept, at most, as far as snapshots allow. Default 1 GiB.
    pub trailing_bytes: u64,
    /// How long a proposal may take before its outcome is called unknown. Default 10 s.
    pub proposal_timeout: Duration,
    /// How long one confirmation of leadership for reads may take. Default 5 s.
    pub read_timeout: Duration,
    /// Proposals in flight on this node, at most. Default 4,096.
    pub proposals_max: usize,
    /// Bytes of one proposal, at most. Default 8 MiB.
    pub proposal_max_bytes: usize,
    /// Bytes of bodies in one append request, about. Default 1 MiB.
    pub payload_max_bytes: usize,
    /// Connections accepted from peers at once, at most. Default 256.
    pub connections_max: usize,
}

/// A setting that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("raft setting `{knob}`: {why}")]
pub struct ConfigError {
    /// Name of the field.
    pub knob: &'static str,
    /// What is wrong, and what would do.
    pub why: String,
}

impl RaftConfig {
    /// Defaults for server `id` in `cluster`.
    #[must_use]
    pub fn new(id: RaftId, cluster: &str) -> Self {
        Self {
            id,
            cluster: cluster.to_owned(),
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(200),
            election_max: Duration::from_millis(400),
            multiplier: 1,
            snapshot_entries: 16_384,
            snapshot_bytes: 256 * 1024 * 1024,
            trailing_entries: 10_240,
            trailing_bytes: 1024 * 1024 * 1024,
            proposal_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(5),
            proposals_max: 4_096,
            proposal_max_bytes: 8 * 1024 * 1024,
            payload_max_bytes: 1024 * 1024,
            connections_max: 256,
        }
    }

    /// openraft's form of it.
    ///
    /// Errors: [`ConfigError`] names the first setting that cannot work.
    pub(crate) fn to_openraft(&self) -> Result<openraft::Config, ConfigError> {
        self.check()?;
        let scaled = |time: Duration| {
            u64::try_from(time.as_millis()).unwrap_or(u64::MAX) * u64::from(self.multiplier)
        };
        openraft::Config {
            cluster_name: self.cluster.clone(),
            heartbeat_interval: scaled(self.heartbeat),
            election_timeout_min: scaled(self.election_min),
            election_timeout_max: scaled(self.election_max),
            enable_pre_vote: Some(true),
            // A restarted leader stands for election again: its committed pointer may be older than
            // what it answered before, and only a new term's first entry settles that.
            enable_leader_restore: Some(false),
            // Snapshots and purges are ours (keeper.rs), so that a purge never passes an unapplied
            // entry: openraft issue 2116.
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            purge_batch_size: 16_384,
            replication_lag_threshold: (self.trailing_entries + self.snapshot_entries)
                .saturating_mul(4),
            // Counts entries only; the log reader caps by bytes.
            max_payload_entries: 4_096,
            install_snapshot_timeout: 600_000,
            backoff: "20ms 40ms 80ms ...500ms".into(),
            ..openraft::Config::default()
        }
        .validate()
        .map_err(|cause| ConfigError {
            knob: "heartbeat, election_min, election_max",
            why: cause.to_string(),
        })
    }

    pub(crate) fn election_max_scaled(&self) -> Duration {
        self.election_max * self.multiplier
    }

    pub(crate) fn heartbeat_scaled(&self) -> Duration {
        self.heartbeat * self.multiplier
    }

    /// Bytes of one frame, at most: an append of one huge entry, or a full payload.
    pub(crate) fn frame_max_bytes(&self) -> usize {
        self.payload_max_bytes
            .max(self.proposal_max_bytes)
            .max(SNAPSHOT_CHUNK_BYTES)
            + 1024 * 1024
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |knob, why: &str| {
            Err(ConfigError {
                knob,
                why: why.to_owned(),
            })
        };
        match self {
            Self {
                multiplier: 0 | 11..,
                ..
            } => refuse("multiplier", "must be 1 to 10"),
            Self {
                snapshot_entries: 0,
                ..
            } => refuse("snapshot_entries", "must be at least 1"),
            Self {
                proposals_max: 0, ..
            } => refuse("proposals_max", "must be at least 1"),
            Self {
                connections_max: 0, ..
            } => refuse("connections_max", "must be at least 1"),
            Self {
                payload_max_bytes: 0,
                ..
            } => refuse("payload_max_bytes", "must be at least 1"),
            Self {
                proposal_max_bytes, ..
            } if *proposal_max_bytes > 64 * 1024 * 1024 => refuse(
                "proposal_max_bytes",
                "must be 64 MiB or less: a frame is held in memory",
            ),
            _ => Ok(()),
        }
    }
}

/// Bytes of a snapshot sent in one frame.
pub(crate) const SNAPSHOT_CHUNK_BYTES: usize = 512 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_pass_and_the_multiplier_scales() {
        let mut config = RaftConfig::new(RaftId::default(), "dc1");
        config.multiplier = 3;
        let openraft = config.to_openraft().unwrap();
        assert_eq!(
            (openraft.heartbeat_interval, openraft.election_timeout_max),
            (150, 1_200)
        );
        assert_eq!(openraft.enable_pre_vote, Some(true));
        assert!(openraft.replication_lag_threshold > config.trailing_entries);
    }

    #[test]
    fn what_cannot_work_is_named() {
        let knob = |change: fn(&mut RaftConfig)| {
            let mut config = RaftConfig::new(RaftId::default(), "dc1");
            change(&mut config);
            config.to_openraft().unwrap_err().knob
        };
        assert_eq!(knob(|config| config.multiplier = 0), "multiplier");
        assert_eq!(knob(|config| config.multiplier = 11), "multiplier");
        assert_eq!(knob(|config| config.proposals_max = 0), "proposals_max");
        assert!(
            knob(|config| config.election_min = Duration::from_millis(10)).contains("election_min")
        );
    }
}
