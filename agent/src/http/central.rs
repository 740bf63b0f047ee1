//! `merge-central-config`: whether it is asked for, and what an answer then depends on.
//!
//! Owns: the parameter, and the reads of a blocking query. Never: merges; [`crate::central`] does.

use weft_proto::v1;

use super::blocking::Pass;
use super::call::{Call, parse_bool};
use super::error::Failure;
use crate::central::Central;

/// Whether the request asks for it.
pub(super) fn wanted(call: &Call) -> Result<bool, Failure> {
    match call.query.get("merge-central-config") {
        None => Ok(false),
        Some("") => Ok(true),
        Some(text) => parse_bool(text).ok_or_else(|| {
            Failure::bad_request(
                "http.merge_central_config",
                format!("Invalid value for ?merge-central-config: {text:?}"),
            )
        }),
    }
}

/// Reads, and notes for a blocking query, what these instances need.
pub(super) fn read<'a>(
    pass: &Pass<'_>,
    instances: impl Iterator<Item = &'a v1::Service>,
) -> Central {
    Central::read(instances, &mut |kind, name| {
        let answer = pass.reader.config_entry(kind, name);
        (answer.index.get(), answer.rows.cloned())
    })
}
