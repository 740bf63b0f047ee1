//! Go duration text: `1h30m`, `10s`, `1.5h`, `250ms`.
//!
//! Owns: reading and printing durations exactly as Go's `time` package does, because configuration
//! files, JSON bodies and query strings of Consul users are written in that notation.
//! Never: decides which durations a setting allows.
//! Source: Go documentation, `time.ParseDuration` and `time.Duration.String`.

use std::time::Duration;

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// The largest magnitude that a Go duration holds (about 292 years).
const NANOS_MAX: u64 = i64::MAX as u64;

/// Why a text is not a duration. The words are Go's: users search for them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not of the form number-unit, or out of range.
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    /// A number without a unit, as in `10`.
    #[error("time: missing unit in duration {0:?}")]
    MissingUnit(String),
    /// A unit that is none of ns, us, µs, ms, s, m, h.
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    UnknownUnit {
        /// The unit as written.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// A negative duration where only a length of time makes sense.
    #[error("duration {0:?} must not be negative")]
    Negative(String),
}

/// Reads a length of time.
///
/// Errors: [`DurationError`]; `-1s` is refused here and accepted by [`parse_nanos`].
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let nanos = parse_nanos(text)?;
    match u64::try_from(nanos) {
        Ok(nanos) => Ok(Duration::from_nanos(nanos)),
        Err(_) => Err(DurationError::Negative(text.to_owned())),
    }
}

/// Reads a signed duration in nanoseconds, with Go's range of ± 292 years.
pub fn parse_nanos(text: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (term, after) = parse_term(rest, text)?;
        total = total
            .checked_add(term)
            .filter(|sum| *sum <= NANOS_MAX + 1)
            .ok_or_else(invalid)?;
        rest = after;
    }
    match (negative, total) {
        (true, total) => Ok(0_i64.wrapping_sub_unsigned(total)),
        (false, total) => i64::try_from(total).map_err(|_| invalid()),
    }
}

/// One number with its unit, in nanoseconds, and what follows it.
fn parse_term<'a>(rest: &'a str, text: &str) -> Result<(u64, &'a str), DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let whole_end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let whole = &rest[..whole_end];
    let after_whole = &rest[whole_end..];
    let (fraction, after_number) = match after_whole.strip_prefix('.') {
        Some(tail) => tail.split_at(
            tail.find(|c: char| !c.is_ascii_digit())
                .unwrap_or(tail.len()),
        ),
        None => ("", after_whole),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(invalid());
    }
    let unit_end = after_number
        .find(|c: char| c == '.' || c.is_ascii_digit())
        .unwrap_or(after_number.len());
    let (unit, after) = after_number.split_at(unit_end);
    if unit.is_empty() {
        return Err(DurationError::MissingUnit(text.to_owned()));
    }
    let unit_nanos = unit_nanos(unit).ok_or_else(|| DurationError::UnknownUnit {
        unit: unit.to_owned(),
        text: text.to_owned(),
    })?;
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| invalid())?
    };
    let nanos = whole.checked_mul(unit_nanos).ok_or_else(invalid)?;
    let nanos = nanos
        .checked_add(fraction_nanos(fraction, unit_nanos))
        .ok_or_else(invalid)?;
    Ok((nanos, after))
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        // Both the micro sign U+00B5 and the Greek letter U+03BC are in use.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => SECOND,
        "m" => 60 * SECOND,
        "h" => 3_600 * SECOND,
        _ => return None,
    })
}

/// The part after the point; digits beyond what a nanosecond can show are dropped.
fn fraction_nanos(digits: &str, unit_nanos: u64) -> u64 {
    let (mut value, mut scale) = (0_u128, 1_u128);
    for digit in digits.bytes().take(18) {
        value = value * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    u64::try_from(value * u128::from(unit_nanos) / scale).unwrap_or(u64::MAX)
}

/// Prints as Go does: `0s`, `1.5s`, `250ms`, `1h0m0s`.
#[must_use]
pub fn format(duration: Duration) -> String {
    format_nanos(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
}

/// Prints signed nanoseconds as Go does.
#[must_use]
pub fn format_nanos(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let magnitude = nanos.unsigned_abs();
    if magnitude == 0 {
        return "0s".to_owned();
    }
    if magnitude < SECOND {
        let (unit, name) = match magnitude {
            0..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "\u{b5}s"),
            _ => (1_000_000, "ms"),
        };
        return format!(
            "{sign}{}{name}",
            decimal(magnitude / unit, magnitude % unit, unit)
        );
    }
    let seconds = magnitude / SECOND;
    let small = decimal(seconds % 60, magnitude % SECOND, SECOND);
    match (seconds / 3_600, seconds / 60 % 60) {
        (0, 0) => format!("{sign}{small}s"),
        (0, minutes) => format!("{sign}{minutes}m{small}s"),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{small}s"),
    }
}

/// `whole.fraction` where `fraction` counts parts of `unit`, without trailing zeros.
fn decimal(whole: u64, fraction: u64, unit: u64) -> String {
    if fraction == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    let digits = format!("{fraction:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("10s", 10 * 1_000_000_000),
            ("1h30m", 5_400 * 1_000_000_000),
            ("1.5h", 5_400 * 1_000_000_000),
            ("250ms", 250_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("10.0s", 10_000_000_000),
            ("1us", 1_000),
            ("1\u{b5}s", 1_000),
            ("1\u{3bc}s", 1_000),
            ("-1.5m", -90 * 1_000_000_000),
            ("+5ns", 5),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("0.3333333333333333333h", 1_199_999_999_999),
        ] {
            assert_eq!(parse_nanos(text), Ok(nanos), "{text}");
        }
    }

    #[test]
    fn refuses_in_gos_words() {
        for (text, message) in [
            ("", "time: invalid duration \"\""),
            ("-", "time: invalid duration \"-\""),
            ("s", "time: invalid duration \"s\""),
            (".", "time: invalid duration \".\""),
            ("10", "time: missing unit in duration \"10\""),
            ("1m10", "time: missing unit in duration \"1m10\""),
            ("3d", "time: unknown unit \"d\" in duration \"3d\""),
            (
                "9223372036854775808ns",
                "time: invalid duration \"9223372036854775808ns\"",
            ),
            ("3000000h", "time: invalid duration \"3000000h\""),
            (
                "99999999999999999999s",
                "time: invalid duration \"99999999999999999999s\"",
            ),
        ] {
            assert_eq!(
                parse_nanos(text).unwrap_err().to_string(),
                message,
                "{text}"
            );
        }
        assert_eq!(parse("-1s"), Err(DurationError::Negative("-1s".to_owned())));
    }

    #[test]
    fn prints_as_go_prints() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5\u{b5}s"),
            (250_000_000, "250ms"),
            (1_500_000_000, "1.5s"),
            (15_000_000_000, "15s"),
            (60_000_000_000, "1m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (86_400_000_000_001, "24h0m0.000000001s"),
            (-90_000_000_000, "-1m30s"),
        ] {
            assert_eq!(format_nanos(nanos), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(nanos: i64) {
            prop_assert_eq!(parse_nanos(&format_nanos(nanos)), Ok(nanos));
        }

        #[test]
        fn no_text_panics(text in "[-+0-9.nuµmsh ]{0,24}") {
            let _ = parse_nanos(&text);
        }
    }
}
