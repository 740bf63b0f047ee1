//! Words for people on standard error.
//!
//! Owns: that nobody has to read them: `eprintln!` panics when they have gone.
//! Never: says whether they were read.

/// Writes a line, as `eprintln!` does.
macro_rules! note {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        // Who closed standard error does not want to know.
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

pub(crate) use note;
