//! Certificates for agents that come with a token.
//!
//! Owns: the conversation about one (`wire`), who gives them out (`office`), who asks for a first one (`first`) and
//! for the next (`renewal`), and the files of an agent's identity.
//! Never: judges a token; the replicated state does.

mod first;
mod office;
mod renewal;
mod wire;

use std::path::{Path, PathBuf};

pub(crate) use first::enrolled;
pub(crate) use office::Office;
pub(crate) use renewal::Renewal;

/// Where an enrolled agent keeps its identity, below its data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Files {
    directory: PathBuf,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    /// Configuration that came with the certificate, as the first and weakest source of the agent's own.
    settings: PathBuf,
}

impl Files {
    fn below(data_dir: &Path) -> Self {
        let directory = data_dir.join("identity");
        Self {
            ca: directory.join("ca.pem"),
            certificate: directory.join("agent.pem"),
            key: directory.join("agent-key.pem"),
            settings: directory.join("enrolled.json"),
            directory,
        }
    }
}
