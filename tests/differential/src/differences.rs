//! The known differences: one file, each with the places it explains and its reason.
//!
//! ```text
//! [id-of-the-difference]
//! step: PUT /v1/agent/service/deregister/*     (`*` matches anything; several lines: any of them)
//! at: status                                   (the place in the answer; several lines: any of them)
//! at: body "" => "Unknown service ID *"        (a place with what Consul and weft say there)
//! consul: 200                                  (optional: only when Consul says this, at places that do not say it)
//! weft: 404                                    (optional, likewise)
//! reason: why weft differs, and where that was decided
//! ```
//! Owns: that file's grammar and matching. Never: explains more than it says: an entry nothing needed is an error,
//! and so is a place that is everywhere: it would excuse whatever goes wrong in its step.

use anyhow::{Context, Result, bail};

use crate::compare::Delta;

#[derive(Debug, Default)]
pub(crate) struct Difference {
    pub(crate) id: String,
    steps: Vec<String>,
    places: Vec<Place>,
    consul: Option<String>,
    weft: Option<String>,
    pub(crate) reason: String,
    /// How many deltas it explained in this run.
    pub(crate) used: usize,
}

/// A place of an entry, and what is said there when the entry is about that.
#[derive(Debug)]
struct Place {
    path: String,
    values: Option<(String, String)>,
}

impl Place {
    fn parse(text: &str) -> Result<Self> {
        let place = match text.split_once(' ') {
            None => Self {
                path: text.to_owned(),
                values: None,
            },
            Some((path, values)) => {
                let (consul, weft) = values
                    .split_once(" => ")
                    .context("a place is `path` or `path CONSUL => WEFT`")?;
                Self {
                    path: path.to_owned(),
                    values: Some((consul.to_owned(), weft.to_owned())),
                }
            }
        };
        if place.path.trim_matches(['*', '.']).is_empty() {
            bail!("`{}` is everywhere: name the places", place.path);
        }
        Ok(place)
    }
}

/// Reads the list. Errors name the line or the entry.
pub(crate) fn parse(text: &str) -> Result<Vec<Difference>> {
    let mut list: Vec<Difference> = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(n, l)| (n + 1, l.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(id) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            list.push(Difference {
                id: id.to_owned(),
                ..Difference::default()
            });
            continue;
        }
        let entry = list
            .last_mut()
            .with_context(|| format!("line {number}: nothing may stand before the first [id]"))?;
        let (key, value) = line
            .split_once(": ")
            .with_context(|| format!("line {number}: `key: value`"))?;
        match key {
            "step" => entry.steps.push(value.to_owned()),
            "at" => entry
                .places
                .push(Place::parse(value).with_context(|| format!("line {number}"))?),
            "consul" => entry.consul = Some(value.to_owned()),
            "weft" => entry.weft = Some(value.to_owned()),
            "reason" => entry.reason = value.to_owned(),
            _ => bail!("line {number}: unknown key `{key}`"),
        }
    }
    for entry in &list {
        if entry.steps.is_empty() || entry.places.is_empty() || entry.reason.is_empty() {
            bail!("[{}] needs `step`, `at` and `reason`", entry.id);
        }
    }
    Ok(list)
}

impl Difference {
    fn explains(&self, step: &str, delta: &Delta) -> bool {
        self.steps.iter().any(|p| matches(p, step))
            && self.places.iter().any(|place| self.is_at(place, delta))
    }

    fn is_at(&self, place: &Place, delta: &Delta) -> bool {
        let (consul, weft) = match &place.values {
            Some((consul, weft)) => (Some(consul), Some(weft)),
            None => (self.consul.as_ref(), self.weft.as_ref()),
        };
        matches(&place.path, &delta.path)
            && consul.is_none_or(|pattern| matches(pattern, &delta.consul))
            && weft.is_none_or(|pattern| matches(pattern, &delta.weft))
    }
}

/// The first entry that explains the delta, counted as used.
pub(crate) fn explain<'l>(
    list: &'l mut [Difference],
    step: &str,
    delta: &Delta,
) -> Option<&'l str> {
    let entry = list.iter_mut().find(|entry| entry.explains(step, delta))?;
    entry.used += 1;
    Some(&entry.id)
}

/// Whether the text fits the pattern; `*` stands for any text, also none.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# known\n[gone]\nstep: PUT /v1/agent/service/deregister/*\nat: status\nconsul: 200\nweft: 404\nreason: asked for\n";

    #[test]
    fn an_entry_explains_only_what_it_says() {
        let mut list = parse(LIST).unwrap();
        let delta = |path: &str, weft: &str| Delta {
            path: path.into(),
            consul: "200".into(),
            weft: weft.into(),
        };
        let step = "PUT /v1/agent/service/deregister/none";
        assert_eq!(
            explain(&mut list, step, &delta("status", "404")),
            Some("gone")
        );
        assert_eq!(explain(&mut list, step, &delta("status", "500")), None);
        assert_eq!(explain(&mut list, step, &delta("body", "404")), None);
        assert_eq!(
            explain(&mut list, "GET /v1/kv/a", &delta("status", "404")),
            None
        );
        assert_eq!(list[0].used, 1);
    }

    #[test]
    fn a_place_says_what_is_there_and_is_not_everywhere() {
        let entry = |at: &str| parse(&format!("[x]\nstep: *\nat: {at}\nreason: r\n"));
        let mut list = entry("body \"*\" => true").unwrap();
        let delta = |consul: &str, weft: &str| Delta {
            path: "body".into(),
            consul: consul.into(),
            weft: weft.into(),
        };
        assert!(explain(&mut list, "s", &delta("\"a => b\"", "true")).is_some());
        assert!(explain(&mut list, "s", &delta("\"a\"", "false")).is_none());
        assert!(explain(&mut list, "s", &delta("1", "true")).is_none());
        for wide in ["*", "**", "*.*", "* 1 => 2", "body 1"] {
            assert!(entry(wide).is_err(), "{wide}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, text, want) in [
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "acd", false),
            ("*.Tags", "body.0.Tags", true),
            ("a*b*c", "a-b-b-c", true),
            ("ab", "abc", false),
            ("aa*aa", "aaa", false),
        ] {
            assert_eq!(matches(pattern, text), want, "{pattern} {text}");
        }
    }

    #[test]
    fn an_entry_without_reason_is_refused() {
        assert!(parse("[x]\nstep: *\nat: status\n").is_err());
        assert!(parse("step: *\n").is_err());
        assert!(parse("[x]\nwhat: *\n").is_err());
    }
}
