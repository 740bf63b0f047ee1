//! Which rows of an answer are shown.
//!
//! Owns: [`Selection`]: `node-meta`, `tag`, `peer`, `filter`; and the name under which a finished
//! body is shared.
//! Never: changes an index: rows are chosen after it is known (CONSUL.md B.1).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use weft_catalog::State;
use weft_catalog::filter::{self, Filter, Selectable};
use weft_proto::v1;

use super::call::Call;
use super::error::Failure;
use crate::near::{HERE, Near};

/// Parameters that say how to answer, not what.
const NOT_CONTENT: [&str; 8] = [
    "index",
    "wait",
    "stale",
    "consistent",
    "leader",
    "max_stale",
    "cached",
    "hash",
];

/// What the query asks rows to be.
#[derive(Debug)]
pub(super) struct Selection {
    node_meta: Vec<(String, String)>,
    tags: Vec<String>,
    /// Rows of another cluster are asked for; there are none.
    peer: bool,
    filter: Option<Filter>,
}

impl Selection {
    /// Parses; `Row` is what `filter` looks at.
    pub(super) fn parse<Row: Selectable>(call: &Call) -> Result<Self, Failure> {
        let pairs = call
            .query
            .all("node-meta")
            .map(|pair| pair.split_once(':').unwrap_or((pair, "")));
        // Of several values for one key the last counts, as in Consul.
        let node_meta: BTreeMap<_, _> = pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Ok(Self {
            node_meta: node_meta.into_iter().collect(),
            tags: call.query.all("tag").map(str::to_owned).collect(),
            peer: call.query.get("peer").is_some_and(|peer| !peer.is_empty()),
            filter: parse_filter::<Row>(call)?,
        })
    }

    /// The same for a read that names its node: `node-meta` says nothing more, as in Consul.
    pub(super) fn of_one_node(mut self) -> Self {
        self.node_meta.clear();
        self
    }

    /// Whether some nodes are left out.
    pub(super) fn by_node(&self) -> bool {
        self.peer || !self.node_meta.is_empty()
    }

    /// The row is as `filter` says. The row's type is the one given to [`Selection::parse`].
    pub(super) fn keeps(&self, row: &impl Selectable) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| filter.matches(row))
    }

    /// Whether `filter` was given.
    pub(super) fn has_filter(&self) -> bool {
        self.filter.is_some()
    }

    /// The node has every pair asked for.
    pub(super) fn node(&self, node: &v1::Node) -> bool {
        !self.peer
            && self
                .node_meta
                .iter()
                .all(|(key, value)| node.meta.get(key) == Some(value))
    }

    /// The node and the tags are those asked for; tags in any case, as in Consul.
    pub(super) fn instance(&self, node: &v1::Node, service: &v1::Service) -> bool {
        let has = |tag: &String| service.tags.iter().any(|own| own.eq_ignore_ascii_case(tag));
        self.node(node) && self.tags.iter().all(has)
    }
}

/// An expression is checked against the kind of row before the first one, so that an empty answer
/// refuses a wrong one too.
fn parse_filter<Row: Selectable>(call: &Call) -> Result<Option<Filter>, Failure> {
    let Some(expression) = call.query.get("filter").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let refuse = |error: filter::FilterError| {
        let text = format!(
            "Failed to create filter expression: failed to create boolean expression evaluator: {error}"
        );
        Failure::bad_request("http.filter", text)
    };
    let filter = filter::parse(expression).map_err(refuse)?;
    filter.check::<Row>().map_err(refuse)?;
    Ok(Some(filter))
}

impl Call {
    /// The node whose neighbours are to come first.
    pub(super) fn near(&self) -> Option<&str> {
        match self.query.get("near")? {
            "" => None,
            HERE => Some(self.here()),
            node => Some(node),
        }
    }

    /// The rows as they are, or the nearest first when `near` asks for that. `on` is the node a row is on.
    pub(super) fn nearest_first<T>(
        &self,
        state: &State,
        rows: impl Iterator<Item = T>,
        on: impl Fn(&T) -> &str,
    ) -> Vec<T> {
        let mut rows: Vec<T> = rows.collect();
        if let Some(node) = self.near() {
            Near::to(node, state).sort(&mut rows, on);
        }
        rows
    }

    /// Names the content of the answer: route, name, content parameters and the rights it is
    /// filtered by. Equal names at equal indexes mean equal bodies.
    pub(super) fn content_name(&self, tail: &str) -> String {
        let mut name = String::with_capacity(64 + tail.len());
        let _ = write!(
            name,
            "{}\0{}:{tail}\0{:x}",
            self.route.path,
            tail.len(),
            self.guard.fingerprint()
        );
        for parameter in self
            .route
            .parameters
            .iter()
            .filter(|parameter| !NOT_CONTENT.contains(parameter))
        {
            for value in self.query.all(parameter) {
                // With its length: a value may hold anything, a NUL and the next name included.
                let _ = write!(name, "\0{parameter}={}:{value}", value.len());
            }
        }
        if self.query.get("near") == Some(HERE) {
            let _ = write!(name, "\0{HERE}={}", self.here());
        }
        name
    }
}
