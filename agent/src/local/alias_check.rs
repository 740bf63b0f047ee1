//! An alias check: the health of another service or node, seen here.
//!
//! Owns: what a set of checks adds up to for whom mirrors them, and the task that watches them.
//! Never: polls. This agent's own services are read from its table after each change of it, all
//! others from the catalog when the rows it read change.
//! Source: CONSUL.md B.6.

use std::sync::{Arc, Weak};
use std::time::Duration;

use weft_catalog::{Topics, Trace};

use super::inner::Inner;
use super::status::Status;
use super::table::Table;
use super::{AliasCheck, CheckDefinition};
use crate::backend::Backend;

/// Changes within this time are mirrored together.
const COALESCE: Duration = Duration::from_millis(50);
/// Between attempts to learn whether this server's catalog is up to date.
const RETRY: Duration = Duration::from_secs(1);

/// One mirrored check.
pub(super) struct Row<'a> {
    pub(super) name: &'a str,
    pub(super) status: Status,
    pub(super) output: &'a str,
}

/// The worst of `rows`; `missing` is what is not there at all, if so.
pub(super) fn judge<'a>(
    rows: impl Iterator<Item = Row<'a>>,
    missing: Option<String>,
) -> (Status, String) {
    if let Some(missing) = missing {
        return (Status::Critical, missing);
    }
    let mut shown = (Status::Passing, "No checks found.".to_owned());
    let mut found = None;
    for row in rows {
        found = found.or(Some("All checks passing."));
        if row.status > shown.0 {
            shown = (
                row.status,
                format!("Aliased check {:?} failing: {}", row.name, row.output),
            );
        }
    }
    match (shown.0, found) {
        (Status::Passing, Some(text)) => (Status::Passing, text.to_owned()),
        _ => shown,
    }
}

/// Follows the target until the table is gone. Its caller aborts it when the check goes.
pub(super) async fn follow(
    local: Weak<Inner>,
    check: Arc<CheckDefinition>,
    alias: AliasCheck,
    backend: Option<Arc<dyn Backend>>,
) {
    if alias.node.is_empty() {
        follow_table(&local, &check, &alias).await;
    } else if let Some(backend) = backend {
        follow_catalog(&local, &check, &alias, &*backend).await;
    }
}

async fn follow_table(local: &Weak<Inner>, check: &CheckDefinition, alias: &AliasCheck) {
    let Some(mut changes) = local.upgrade().map(|local| local.changed.subscribe()) else {
        return;
    };
    loop {
        changes.mark_unchanged();
        let Some(inner) = local.upgrade() else {
            return;
        };
        let (status, output) = in_table(&inner.table.lock(), check, alias);
        inner.show(check, status, &output);
        drop(inner);
        tokio::time::sleep(COALESCE).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn in_table(table: &Table, check: &CheckDefinition, alias: &AliasCheck) -> (Status, String) {
    let known = alias.service_id.is_empty() || table.services.contains_key(&alias.service_id);
    let missing = (!known).then(|| not_found(&alias.service_id, &table.node.name));
    let rows = table.rows_of(&alias.service_id, &check.id);
    judge(rows, missing)
}

async fn follow_catalog(
    local: &Weak<Inner>,
    check: &CheckDefinition,
    alias: &AliasCheck,
    backend: &dyn Backend,
) {
    // A catalog that is still being read in would show the target as missing.
    let _following = loop {
        match backend.follow(&alias.node).await {
            Ok(following) => break following,
            Err(_) if local.strong_count() == 0 => return,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    loop {
        let (topics, _) = in_catalog(backend, check, alias);
        let watch = backend.hub().watch(&topics);
        // Read again: whatever changed before the watch was made is in this.
        let (again, (status, output)) = in_catalog(backend, check, alias);
        let Some(inner) = local.upgrade() else {
            return;
        };
        inner.show(check, status, &output);
        drop(inner);
        tokio::time::sleep(COALESCE).await;
        if again == topics {
            watch.await;
        }
    }
}

fn in_catalog(
    backend: &dyn Backend,
    check: &CheckDefinition,
    alias: &AliasCheck,
) -> (Topics, (Status, String)) {
    let state = backend.state();
    let trace = Trace::on();
    let reader = state.read(&trace);
    let is = |id: &str| id.eq_ignore_ascii_case(&alias.service_id);
    let missing = if reader.node(&alias.node).rows.is_none() {
        Some(format!("Node {} could not be found", alias.node))
    } else if alias.service_id.is_empty() {
        None
    } else {
        let services = reader.node_services(&alias.node).rows;
        let known = services.iter().any(|service| is(&service.id));
        (!known).then(|| not_found(&alias.service_id, &alias.node))
    };
    let rows = reader.checks_of_node(&alias.node).rows;
    let rows = rows
        .iter()
        .filter(|row| row.service_id.is_empty() || is(&row.service_id))
        // Its own row, when a check mirrors its own node, would hold it critical for ever.
        .filter(|row| !row.id.eq_ignore_ascii_case(&check.id))
        .map(|row| Row {
            name: &row.name,
            status: Status::parse(&row.status).unwrap_or(Status::Critical),
            output: &row.output,
        });
    let verdict = judge(rows, missing);
    (trace.into_topics(), verdict)
}

fn not_found(service_id: &str, node: &str) -> String {
    format!("Service {service_id} could not be found on node {node}")
}

#[cfg(test)]
mod tests {
    use super::{Row, Status, judge};

    fn check(rows: &[(&str, Status)], missing: Option<&str>, expected: (Status, &str)) {
        let rows = rows.iter().map(|(name, status)| Row {
            name,
            status: *status,
            output: "why",
        });
        let (status, output) = judge(rows, missing.map(str::to_owned));
        assert_eq!((status, output.as_str()), expected);
    }

    #[test]
    fn the_first_of_the_worst_is_shown() {
        use Status::{Critical, Passing, Warning};
        check(&[], None, (Passing, "No checks found."));
        check(&[("a", Passing)], None, (Passing, "All checks passing."));
        let warns = "Aliased check \"a\" failing: why";
        check(&[("a", Warning), ("b", Passing)], None, (Warning, warns));
        check(&[("a", Warning), ("b", Warning)], None, (Warning, warns));
        let fails = "Aliased check \"b\" failing: why";
        check(&[("a", Warning), ("b", Critical)], None, (Critical, fails));
        check(&[("a", Passing)], Some("gone"), (Critical, "gone"));
    }
}
