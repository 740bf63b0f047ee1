//! `weft keygen`.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::failure::{Done, Exit, Failure};
use super::output::{self, FormatArgs};

/// Bytes of a key: AES-256.
const KEY_BYTES: usize = 32;

/// Make a gossip key for `encrypt`
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft keygen\n  weft agent -encrypt=\"$(weft keygen)\" -data-dir=/var/lib/weft"
)]
pub(crate) struct KeygenArgs {
    #[command(flatten)]
    format: FormatArgs,
}

pub(crate) fn run(args: KeygenArgs) -> Done {
    let mut key = [0_u8; KEY_BYTES];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut key))
        .map_err(|error| {
            Failure::new(
                Exit::Negative,
                format!("the system gives no randomness: {error}"),
            )
        })?;
    let key = STANDARD.encode(key);
    output::done(args.format.output, &key, json!({"key": key}))
}
