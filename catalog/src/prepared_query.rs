//! Prepared queries: what a valid one is, templates, and which instances one selects.
//!
//! Owns: validation with Consul's texts and the rules of selection; templates are in `template`.
//! Never: shuffles, limits, authorizes, or looks beyond this datacenter.
//! Source: Consul HTTP API, "Prepared queries"; CONSUL.md A.7.

mod template;

use weft_proto::v1::PreparedQuery;

use crate::keys::{self, Name};
use crate::read::{InstanceHealth, Reader};

pub use template::{Expressions, render};

/// Prepared queries in a cluster.
pub const QUERIES_MAX: usize = 16_384;
/// Bytes of one prepared query.
pub const QUERY_BYTES_MAX: usize = 64 << 10;
/// Bytes of a query's name; longer names are not looked up as prefixes either.
pub const NAME_BYTES_MAX: usize = 1_024;
/// The reason of a change that was judged under another name; nothing was changed, to be judged anew.
pub const RENAMED: &str = "query.renamed";

/// Why a query is not valid, or cannot be rendered. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct QueryError {
    /// Stable id.
    pub reason: &'static str,
    /// What users see; Consul's words where it has some.
    pub text: String,
}

fn error(reason: &'static str, text: impl Into<String>) -> QueryError {
    let text = text.into();
    QueryError { reason, text }
}

/// Whether names that begin with the query's name mean it, too.
#[must_use]
pub fn is_template(query: &PreparedQuery) -> bool {
    query
        .template
        .as_ref()
        .is_some_and(|template| !template.r#type.is_empty())
}

/// The key of a query's name; none for a query that only its id and its session know.
pub(crate) fn name_key(query: &PreparedQuery) -> Option<Name> {
    (!query.name.is_empty() || is_template(query)).then(|| keys::name(&query.name))
}

/// Checks what a query says by itself.
///
/// Errors: [`QueryError`], the first one found.
pub fn check(query: &PreparedQuery) -> Result<(), QueryError> {
    let invalid = |reason, text: String| error(reason, format!("Invalid prepared query: {text}"));
    if query.name.len() > NAME_BYTES_MAX {
        let text = format!("Name is longer than {NAME_BYTES_MAX} bytes");
        return Err(invalid("query.name.too_long", text));
    }
    if query.name.is_empty() && !is_template(query) && query.session.is_empty() {
        let text = "Must be bound to a session".to_owned();
        return Err(invalid("query.session.missing", text));
    }
    if query.token == REDACTED {
        let text = format!(
            "Bad Token '{REDACTED}', it looks like a query definition with a redacted token was submitted"
        );
        return Err(invalid("query.token.redacted", text));
    }
    if query.service.is_empty() {
        let text = "Must provide a Service name to query".to_owned();
        return Err(invalid("query.service.missing", text));
    }
    let failover = query.failover.clone().unwrap_or_default();
    if !failover.targets.is_empty() && (failover.nearest_n > 0 || !failover.datacenters.is_empty())
    {
        let text = "Targets cannot be populated with NearestN or Datacenters".to_owned();
        return Err(invalid("query.failover", text));
    }
    template::check(query)
}

/// What stands in the place of a token that may not be seen.
pub const REDACTED: &str = "<hidden>";

/// The instances that a rendered query selects here, in the catalog's order: of a query with `Connect`
/// those through which the mesh reaches the service.
#[must_use]
pub fn select<'a>(reader: &Reader<'a>, query: &PreparedQuery) -> Vec<InstanceHealth<'a>> {
    let answer = match query.connect {
        true => reader.connect_instances(&query.service),
        false => reader.health_service(&query.service),
    };
    let mut rows = answer.rows;
    rows.retain(|row| healthy(row, query) && tagged(row, query) && described(row, query));
    rows
}

fn healthy(row: &InstanceHealth<'_>, query: &PreparedQuery) -> bool {
    let counts = |id: &String| !query.ignore_check_ids.contains(id);
    let mut checks = row.checks.iter().filter(|check| counts(&check.id));
    checks.all(|check| match check.status.as_str() {
        "critical" => false,
        status => !query.only_passing || status == "passing",
    })
}

fn tagged(row: &InstanceHealth<'_>, query: &PreparedQuery) -> bool {
    let has = |tag: &str| row.service.tags.iter().any(|t| t.eq_ignore_ascii_case(tag));
    query.tags.iter().all(|tag| match tag.strip_prefix('!') {
        Some(unwanted) => !has(unwanted),
        None => has(tag),
    })
}

fn described(row: &InstanceHealth<'_>, query: &PreparedQuery) -> bool {
    let mut node = query.node_meta.iter();
    let mut service = query.service_meta.iter();
    node.all(|(key, value)| row.node.meta.get(key) == Some(value))
        && service.all(|(key, value)| row.service.meta.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::template::for_tests as template;
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let check = |change: &dyn Fn(&mut PreparedQuery), reason: &str, text: &str| {
            let mut query = template("q", "web", "");
            change(&mut query);
            let found = check(&query).unwrap_err();
            assert_eq!(found.reason, reason);
            assert!(found.text.contains(text), "{found}");
        };
        check(
            &|q| q.service.clear(),
            "query.service.missing",
            "Must provide a Service name",
        );
        check(
            &|q| q.token = REDACTED.into(),
            "query.token.redacted",
            "redacted token",
        );
        check(
            &|q| q.service = "${foo}".into(),
            "query.template",
            "unknown variable accessed: foo",
        );
        check(
            &|q| q.service = "${name.full".into(),
            "query.template",
            "Bad format",
        );
        check(
            &|q| q.tags = vec!["a".into(), "${match(x)}".into()],
            "query.template",
            "Service.Tags[1]",
        );
        check(
            &|q| q.template.as_mut().unwrap().regexp = "(".into(),
            "query.template",
            "Bad Regexp",
        );
        check(
            &|q| q.template.as_mut().unwrap().regexp = "(a{1000}){1000}".into(),
            "query.template",
            "Bad Regexp",
        );
        check(
            &|q| q.template.as_mut().unwrap().r#type = "x".into(),
            "query.template",
            "Bad Template.Type 'x'",
        );
        check(
            &|q| {
                q.template = None;
                q.name.clear();
            },
            "query.session.missing",
            "Must be bound to a session",
        );
        check(
            &|q| q.name = "n".repeat(NAME_BYTES_MAX + 1),
            "query.name.too_long",
            "1024",
        );
    }
}
