//! What differs between two configurations, and whether a running agent can take it.
//!
//! Owns: the comparison, key by key.
//! Never: applies anything.
//! Source: CONSUL D.1, "Reload".

use serde_json::Value;

use super::runtime::RuntimeConfig;
use super::schema::{self, Kind};

/// Keys whose values differ, dotted, in the order of the schema.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A reload takes these.
    pub reloadable: Vec<String>,
    /// These keep their old value until the agent is restarted.
    pub needs_restart: Vec<String>,
}

impl Changes {
    /// Nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reloadable.is_empty() && self.needs_restart.is_empty()
    }
}

/// Compares what was given, not what came of it: a key left at its default never shows.
#[must_use]
pub fn changes(old: &RuntimeConfig, new: &RuntimeConfig) -> Changes {
    let mut out = Changes::default();
    let mut live_sections: Vec<String> = Vec::new();
    for (path, key) in schema::walk() {
        let inherited = live_sections
            .iter()
            .any(|section| path.starts_with(section.as_str()));
        if let Kind::Section(_) = key.kind {
            if key.reloadable {
                live_sections.push(format!("{path}."));
            }
            continue;
        }
        if at(&old.given.0, &path) == at(&new.given.0, &path) {
            continue;
        }
        if key.reloadable || inherited {
            out.reloadable.push(path)
        } else {
            out.needs_restart.push(path)
        }
    }
    out
}

fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.')
        .try_fold(value, |value, part| value.get(part))
}
