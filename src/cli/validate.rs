//! `weft validate`.

use std::path::PathBuf;

use serde_json::json;
use weft_agent::config::{self, Request};

use super::agent::{FileFormat, machine};
use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, FormatArgs};

/// Check configuration files and directories
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft validate /etc/weft.d\n  weft validate -quiet server.hcl services.json && weft reload"
)]
pub(crate) struct ValidateArgs {
    /// Format of files whose suffix tells none
    #[arg(long, value_enum)]
    config_format: Option<FileFormat>,
    /// Say nothing when all is well
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    format: FormatArgs,
    /// Files and directories, read together as an agent would
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(crate) fn run(args: ValidateArgs) -> Done {
    let request = Request {
        paths: args.paths,
        format: args.config_format.map(Into::into),
        ..Request::default()
    };
    let config = config::load(&request, &machine()).map_err(|problems| {
        Failure::new(
            Exit::Negative,
            format!("{problems}\nConfig validation failed"),
        )
    })?;
    let refusals = config::exposure(&config);
    if args.format.output == Format::Json {
        let exposed: Vec<_> = refusals
            .iter()
            .map(|r| json!({"reason": r.reason, "message": r.message, "fix": r.fix}))
            .collect();
        let warnings: Vec<_> = config
            .warnings
            .iter()
            .map(|w| json!({"code": w.code.id(), "message": w.message}))
            .collect();
        return output::json(&json!({"valid": true, "warnings": warnings, "exposed": exposed}));
    }
    for refusal in &refusals {
        crate::stderr::note!("{}", refusal.to_string().replacen("error", "warning", 1));
    }
    for problem in &config.warnings {
        crate::stderr::note!("{problem}");
    }
    if args.quiet {
        Ok(())
    } else {
        output::line("Configuration is valid!")
    }
}
