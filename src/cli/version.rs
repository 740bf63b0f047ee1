//! `weft version`.

use serde_json::json;

use super::failure::Done;
use super::output::{self, Format, FormatArgs};

/// weft's own version.
pub(crate) const SHORT: &str = env!("CARGO_PKG_VERSION");

/// Print the version
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft version\n  weft version -format=json")]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    format: FormatArgs,
}

pub(crate) fn run(args: VersionArgs) -> Done {
    match args.format.output {
        Format::Json => {
            output::json(&json!({"Version": SHORT, "Revision": "", "Prerelease": "", "FIPS": ""}))
        }
        Format::Table => output::line(format!("weft v{SHORT}")),
    }
}
