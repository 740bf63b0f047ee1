//! Lengths of time and shares, exact and without floats.
//!
//! Owns: [`Span`] and [`Weight`]: how they are read, compared and written.
//! Never: decides which values a field allows.

use serde_json::Value;
use weft_proto::duration;
use weft_proto::json::Json;

use super::EntryError;
use super::form::{Field, Path, Reading, bad_value, integer, wrong_type};

/// A length of time in nanoseconds, as Go counts them: `5s`, or a number of nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// May be negative until the entry is validated.
    pub nanos: i64,
}

impl Field for Span {
    fn read(value: &Value, path: &Path<'_>, _: &mut Reading) -> Result<Self, EntryError> {
        let nanos = match value {
            Value::String(text) if text.is_empty() => 0,
            Value::String(text) => {
                duration::parse_nanos(text).map_err(|error| bad_value(path, error))?
            }
            other => integer(other, path)?,
        };
        Ok(Self { nanos })
    }

    fn write(&self, json: &mut Json) {
        json.string(&duration::format_nanos(self.nanos));
    }

    fn is_empty(&self) -> bool {
        self.nanos == 0
    }
}

/// A share in hundredths of a percent, so that no float decides anything: 33.33 is 3,333.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight {
    /// 10,000 is everything. May be out of range until the entry is validated.
    pub hundredths: i64,
}

impl Weight {
    /// The number as it is written: `33.33`, `90`.
    #[must_use]
    pub fn text(self) -> String {
        let (whole, part) = (self.hundredths / 100, self.hundredths.unsigned_abs() % 100);
        let sign = if self.hundredths < 0 && whole == 0 {
            "-"
        } else {
            ""
        };
        match (part, part % 10) {
            (0, _) => whole.to_string(),
            (_, 0) => format!("{sign}{whole}.{}", part / 10),
            _ => format!("{sign}{whole}.{part:02}"),
        }
    }
}

impl Field for Weight {
    fn read(value: &Value, path: &Path<'_>, _: &mut Reading) -> Result<Self, EntryError> {
        let text = match value {
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.clone(),
            other => return Err(wrong_type(path, other, "a number")),
        };
        hundredths(&text)
            .map(|hundredths| Self { hundredths })
            .ok_or_else(|| bad_value(path, format_args!("{text} is not a share such as 33.33")))
    }

    fn write(&self, json: &mut Json) {
        json.raw(&self.text());
    }

    fn is_empty(&self) -> bool {
        self.hundredths == 0
    }
}

/// Decimal text in hundredths; the third digit behind the point rounds.
fn hundredths(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || whole.len() > 9 || !all_digits(whole) || !all_digits(part) {
        return None;
    }
    let digit = |at: usize| {
        part.as_bytes()
            .get(at)
            .map_or(0, |byte| i64::from(byte - b'0'))
    };
    let value =
        whole.parse::<i64>().ok()? * 100 + digit(0) * 10 + digit(1) + i64::from(digit(2) >= 5);
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact() {
        for (text, expected) in [
            ("33.33", Some(3_333)),
            ("100", Some(10_000)),
            ("0.1", Some(10)),
            ("50.005", Some(5_001)),
            ("-0.5", Some(-50)),
            ("1e2", None),
            ("", None),
            ("4.x", None),
        ] {
            assert_eq!(hundredths(text), expected, "{text}");
        }
        for (hundredths, text) in [
            (3_333, "33.33"),
            (10, "0.1"),
            (-50, "-0.5"),
            (9_000, "90"),
            (105, "1.05"),
        ] {
            assert_eq!(Weight { hundredths }.text(), text);
        }
    }
}
