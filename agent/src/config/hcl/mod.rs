//! Reading configuration texts: HCL in the form Consul reads (HCL1), and JSON.
//!
//! Owns: the grammar and the positions of keys and values.
//! Never: opens a file or knows which keys exist.
//! Source: hashicorp/hcl (version 1), "Syntax"; RFC 8259 for JSON.

mod reader;
mod text;
pub mod tree;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use tree::{Node, Source, Span};

/// Deepest nesting of blocks, lists and objects a text may have.
pub const DEPTH_MAX: usize = 64;
/// Longest text one source may have, in bytes.
pub const SOURCE_SIZE_MAX_BYTES: usize = 8 * 1024 * 1024;

/// How a text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// HCL1; a text that opens with `{` is read as JSON, as Consul does.
    Hcl,
    /// JSON (RFC 8259).
    Json,
}

/// The text does not follow its grammar. Nothing was read from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SyntaxError {
    /// Where.
    pub span: Span,
    /// What was found, and what was expected.
    pub message: String,
}

/// Reads a whole text into an object of entries with positions.
///
/// # Errors
/// [`SyntaxError`] at the first place that does not follow the grammar, nests deeper than
/// [`DEPTH_MAX`], or when the text is longer than [`SOURCE_SIZE_MAX_BYTES`].
pub fn read(source: &Arc<Source>, format: Format) -> Result<Node, SyntaxError> {
    if source.text.len() > SOURCE_SIZE_MAX_BYTES {
        let span = Span {
            source: Arc::clone(source),
            start: 0,
            end: 0,
        };
        let message = format!(
            "the text has {} bytes; at most {SOURCE_SIZE_MAX_BYTES} are read",
            source.text.len()
        );
        return Err(SyntaxError { span, message });
    }
    let opens_as_json = source.text.trim_start().starts_with('{');
    let json = format == Format::Json || opens_as_json;
    reader::Reader::new(source, json).document()
}
