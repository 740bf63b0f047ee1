//! Lays the functions that an idle agent runs side by side in the binary (ADR 13).
//!
//! Owns: asking the linker for the order in `tools/order/functions`, where it can do that.
//! Never: makes a build fail. Another linker gives the same program in another order, some MiB heavier.

use std::path::Path;
use std::process::Command;

const ORDER: &str = "tools/order/functions";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={ORDER}");
    // Names carry a hash of the profile: a debug build has none of these.
    if variable("PROFILE") != "release" {
        return;
    }
    let order = Path::new(&variable("CARGO_MANIFEST_DIR")).join(ORDER);
    let argument = format!(
        "link-arg=-Wl,--symbol-ordering-file={},--no-warn-symbol-ordering",
        order.display()
    );
    // Cargo links anew only when a script says something new.
    let names = std::fs::read(&order).unwrap_or_default();
    let sum = names.iter().fold(0_u64, |sum, byte| {
        sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*byte)
    });
    println!("cargo:rustc-env=WEFT_FUNCTION_ORDER={sum:x}");
    if links(&argument) {
        println!(
            "cargo:rustc-link-arg-bin=weft={}",
            &argument["link-arg=".len()..]
        );
    } else {
        println!(
            "cargo:warning=this linker cannot order functions (lld can): an idle agent will take about 5 MiB more"
        );
    }
}

/// Whether a program of nothing links with `argument`, as the real one will be linked.
fn links(argument: &str) -> bool {
    let out = variable("OUT_DIR");
    let program = Path::new(&out).join("nothing.rs");
    if std::fs::write(&program, "fn main() {}\n").is_err() {
        return false;
    }
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition=2024", "--target", &variable("TARGET")]);
    rustc.args(["--out-dir", &out, "-C", argument]);
    if let Ok(linker) = std::env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    let flags = variable("CARGO_ENCODED_RUSTFLAGS");
    rustc.args(flags.split('\u{1f}').filter(|flag| !flag.is_empty()));
    rustc.arg(&program);
    rustc.output().is_ok_and(|output| output.status.success())
}

/// What cargo tells a build script; empty where it does not.
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}
