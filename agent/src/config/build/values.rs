//! Reading single values with their defaults and ranges, keeping every finding.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::Machine;
use crate::config::merge::Merged;
use crate::config::problem::{Code, Problem};

/// The build so far: where values came from, and what was found.
pub(super) struct Values<'a> {
    pub(super) merged: &'a Merged,
    pub(super) machine: &'a Machine,
    pub(super) problems: Vec<Problem>,
    pub(super) dev: bool,
}

impl Values<'_> {
    /// Records a finding at the place `key` was given, if it was.
    pub(super) fn problem(
        &mut self,
        code: Code,
        key: &str,
        message: impl Into<String>,
        hint: Option<&str>,
    ) {
        let mut problem = Problem::new(code, message);
        problem.span = self.merged.span(key).cloned();
        problem.hint = hint.map(str::to_owned);
        self.problems.push(problem);
    }

    /// A whole number within `range`; the default when absent or outside.
    pub(super) fn count(
        &mut self,
        key: &str,
        given: Option<i64>,
        default: i64,
        range: RangeInclusive<i64>,
    ) -> i64 {
        match given {
            None => default,
            Some(value) if range.contains(&value) => value,
            Some(value) => {
                self.out_of_range(key, value, &range);
                default
            }
        }
    }

    fn out_of_range(&mut self, key: &str, value: impl Display, range: &RangeInclusive<i64>) {
        let message = match *range.end() {
            i64::MAX => format!("{key} is {value}; it must be at least {}", range.start()),
            end => format!(
                "{key} is {value}; it must be between {} and {end}",
                range.start()
            ),
        };
        self.problem(Code::BadValue, key, message, None);
    }

    /// As [`Values::count`], for sizes and numbers of things.
    pub(super) fn size(&mut self, key: &str, given: Option<i64>, default: i64, least: i64) -> u64 {
        let count = self.count(key, given, default, least..=i64::MAX);
        u64::try_from(count).unwrap_or_default()
    }

    /// As [`Values::size`], in the machine's own width.
    pub(super) fn length(
        &mut self,
        key: &str,
        given: Option<i64>,
        default: i64,
        least: i64,
    ) -> usize {
        usize::try_from(self.size(key, given, default, least)).unwrap_or(usize::MAX)
    }

    /// As [`Values::count`], for small numbers.
    pub(super) fn small(
        &mut self,
        key: &str,
        given: Option<i64>,
        default: i64,
        range: RangeInclusive<i64>,
    ) -> u32 {
        u32::try_from(self.count(key, given, default, range)).unwrap_or_default()
    }

    /// A duration; the merge has already refused text that is none.
    pub(super) fn duration(&mut self, key: &str, given: Option<&str>, default: &str) -> Duration {
        let text = given.filter(|text| !text.is_empty()).unwrap_or(default);
        weft_proto::duration::parse(text).unwrap_or_else(|error| {
            self.problem(Code::BadValue, key, format!("{key}: {error}"), None);
            Duration::ZERO
        })
    }

    /// A duration that must not be below `least`.
    pub(super) fn duration_from(
        &mut self,
        key: &str,
        given: Option<&str>,
        default: &str,
        least: &str,
    ) -> Duration {
        let value = self.duration(key, given, default);
        let floor = weft_proto::duration::parse(least).unwrap_or_default();
        if value < floor {
            let shown = weft_proto::duration::format(value);
            self.problem(
                Code::BadValue,
                key,
                format!("{key} is {shown}; it must be at least {least}"),
                None,
            );
        }
        value
    }

    /// A duration of which zero means none.
    pub(super) fn timeout(&mut self, key: &str, given: Option<&str>) -> Option<Duration> {
        Some(self.duration(key, given, "0s")).filter(|d| !d.is_zero())
    }

    /// A rate per second; negative means unlimited.
    pub(super) fn rate(given: Option<f64>) -> Option<f64> {
        given.filter(|rate| *rate >= 0.0)
    }

    /// One of a few words, in any case.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        given: Option<&str>,
        words: &[(&str, T)],
        default: T,
    ) -> T {
        let Some(text) = given.filter(|text| !text.is_empty()) else {
            return default;
        };
        if let Some((_, value)) = words
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(text))
        {
            return *value;
        }
        let known = words
            .iter()
            .map(|(word, _)| *word)
            .collect::<Vec<_>>()
            .join(", ");
        self.problem(
            Code::BadValue,
            key,
            format!("{key} {text:?} is none of: {known}"),
            None,
        );
        default
    }

    /// A path, absent when empty.
    pub(super) fn path(given: Option<String>) -> Option<PathBuf> {
        given.filter(|path| !path.is_empty()).map(PathBuf::from)
    }
}
