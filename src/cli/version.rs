//! `weft version`.

use serde_json::json;

use super::failure::Done;
use super::output::{self, Format};

/// weft's own version.
pub(crate) const SHORT: &str = env!("CARGO_PKG_VERSION");

/// Print the version
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weft version\n  weft version -format=json")]
pub(crate) struct VersionArgs {
    /// Output form
    #[arg(long, alias = "output", value_enum, default_value_t)]
    format: Format,
}

pub(crate) fn run(args: VersionArgs) -> Done {
    match args.format {
        Format::Json => {
            output::json(&json!({"Version": SHORT, "Revision": "", "Prerelease": "", "FIPS": ""}))
        }
        Format::Table => output::line(format!("weft v{SHORT}")),
    }
}
