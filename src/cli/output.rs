//! Standard output: tables as Consul aligns them, or JSON.
//!
//! Owns: column widths, and writing without panicking on a closed pipe.

use std::io::Write;

use serde_json::Value;

use super::failure::{Done, Exit, Failure};

/// `-format`, `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    #[value(alias = "pretty", alias = "text")]
    Table,
    /// For programs; errors too.
    Json,
}

/// The flag all commands share.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct FormatArgs {
    /// Output form
    #[arg(
        short = 'o',
        long = "output",
        visible_alias = "format",
        value_enum,
        default_value_t
    )]
    pub(crate) output: Format,
}

/// Says what was done: a sentence for people, an object for programs.
pub(crate) fn done(format: Format, text: impl AsRef<str>, object: Value) -> Done {
    match format {
        Format::Json => json(&object),
        Format::Table => line(text),
    }
}

/// Writes bytes as they are.
pub(crate) fn bytes(data: &[u8]) -> Done {
    bytes_while_read(data).map(drop)
}

/// Writes bytes as they are; false once nobody reads them any more.
pub(crate) fn bytes_while_read(data: &[u8]) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(data).and_then(|()| out.flush());
    match written {
        // The reader has seen enough; that is not our failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(
            Exit::Negative,
            format!("cannot write to standard output: {error}"),
        )),
        Ok(()) => Ok(true),
    }
}

/// Writes one line.
pub(crate) fn line(text: impl AsRef<str>) -> Done {
    bytes(format!("{}\n", text.as_ref()).as_bytes())
}

/// Writes JSON, indented.
pub(crate) fn json(value: &Value) -> Done {
    line(format!("{value:#}"))
}

/// Writes rows with two spaces between columns; the last column is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> Done {
    table_with_gap(rows, 2)
}

/// As [`table`], with another distance between columns.
pub(crate) fn table_with_gap(rows: &[Vec<String>], gap: usize) -> Done {
    bytes(aligned(rows, gap).as_bytes())
}

fn aligned(rows: &[Vec<String>], gap: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|c| c.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let last = row.len().saturating_sub(1);
        for (column, cell) in row.iter().enumerate() {
            let padding = if column == last {
                0
            } else {
                widths[column] - cell.chars().count() + gap
            };
            out.push_str(cell);
            out.extend(std::iter::repeat_n(' ', padding));
        }
        out.push('\n');
    }
    out
}

/// The text of a field: strings bare, everything else as JSON; nothing when absent or null.
pub(crate) fn field(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

/// A row of texts.
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            row(["Node", "ID", "Address"]),
            row(["a", "0123", "é"]),
            row(["long", "", "x"]),
        ];
        assert_eq!(
            aligned(&rows, 2),
            "Node  ID    Address\na     0123  é\nlong        x\n"
        );
    }

    #[test]
    fn fields_read_as_people_expect() {
        let value = serde_json::json!({"a": "x", "b": 3, "c": null});
        assert_eq!(
            ["a", "b", "c", "d"].map(|name| field(&value, name)),
            ["x", "3", "", ""]
        );
    }
}
