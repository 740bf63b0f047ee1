//! Config entries: set, compare-and-set, deletion.
//!
//! Owns: the verbs' verdicts, and that no change breaks what other entries rely on.
//! Never: judges an entry by itself; that is done before proposing, where patterns and filters may
//! be compiled without every replica having to agree on them.
//! Source: Consul HTTP API, "Config"; CONSUL.md E.

use std::cell::Cell;
use std::sync::Arc;

use weft_proto::v1::{self, ConfigEntryVerb};

use crate::config_entry::chain::View;
use crate::config_entry::{
    CONFIG_BYTES_MAX, CONFIG_ENTRIES_MAX, CONFIG_ENTRY_BYTES_MAX, Entry, Kind,
};
use crate::keys::{self, PairRef};
use crate::refusal::{Verdict, applied, conflict, invalid};
use crate::rows::Change;

pub(crate) fn command(change: &mut Change<'_>, command: &v1::ConfigEntryCommand) -> Verdict {
    let Some(row) = &command.entry else {
        return Err(invalid(
            "config.missing",
            "the command names no config entry",
        ));
    };
    let kind = Kind::parse(&row.kind).map_err(|error| invalid("config.kind", error.to_string()))?;
    let name = keys::name(&row.name);
    let current = change
        .state
        .config
        .get(&PairRef(kind.as_str(), &name))
        .map_or(0, |entry| entry.modify_index);
    match command.verb() {
        ConfigEntryVerb::Set => set(change, row),
        ConfigEntryVerb::Cas if row.modify_index != current => Ok(applied(false)),
        ConfigEntryVerb::Cas => set(change, row),
        ConfigEntryVerb::DeleteCas if current == 0 || row.modify_index != current => {
            Ok(applied(false))
        }
        ConfigEntryVerb::Delete | ConfigEntryVerb::DeleteCas => {
            let view = View {
                state: &*change.state,
                kind,
                name: &name,
                entry: None,
                steps: Cell::default(),
            };
            if current != 0 {
                view.check()?;
            }
            change.drop_config(kind, &name);
            Ok(applied(true))
        }
        ConfigEntryVerb::Unspecified => Err(invalid(
            "config.verb.unknown",
            "the command does not say what to do with the config entry",
        )),
    }
}

fn set(change: &mut Change<'_>, row: &v1::ConfigEntry) -> Verdict {
    if row.json.len() > CONFIG_ENTRY_BYTES_MAX {
        return Err(invalid(
            "config.too_large",
            format!(
                "the entry has {} bytes, at most {CONFIG_ENTRY_BYTES_MAX} are allowed: divide it",
                row.json.len()
            ),
        ));
    }
    let entry = Entry::stored(row).map_err(|error| invalid(error.reason(), error.to_string()))?;
    let name = keys::name(&entry.name);
    let before = change
        .state
        .config
        .get(&PairRef(entry.kind.as_str(), &name));
    if before.is_some_and(|before| before.json() == entry.json()) {
        return Ok(applied(true));
    }
    if before.is_none() && change.state.config.len() >= CONFIG_ENTRIES_MAX {
        return Err(conflict(
            "config.too_many",
            format!(
                "there are {CONFIG_ENTRIES_MAX} config entries, the most a cluster holds: delete those no longer needed"
            ),
        ));
    }
    let others = change.state.config_bytes - before.map_or(0, |before| before.json().len() as u64);
    if others + entry.json().len() as u64 > CONFIG_BYTES_MAX {
        return Err(conflict(
            "config.too_many_bytes",
            format!(
                "all config entries together would have more than {CONFIG_BYTES_MAX} bytes, the most a cluster holds: delete those no longer needed"
            ),
        ));
    }
    let create_index = before.map_or(change.index, |before| before.create_index);
    let entry = Arc::new(entry.at(create_index, change.index));
    View {
        state: &*change.state,
        kind: entry.kind,
        name: &name,
        entry: Some(&entry),
        steps: Cell::default(),
    }
    .check()?;
    change.put_config(Arc::unwrap_or_clone(entry));
    Ok(applied(true))
}
