//! Prepared queries: creation, update, deletion, and their end with a session.
//!
//! Owns: that ids and names are unique, and the bounds.
//! Never: compiles a template; that is done before proposing, where replicas need not agree on it.
//! Source: Consul HTTP API, "Prepared queries"; CONSUL.md A.7.

use prost::Message as _;
use weft_proto::v1::{self, PreparedQueryVerb};

use crate::keys::{self, Name, Pair};
use crate::prepared_query::{self, QUERIES_MAX, QUERY_BYTES_MAX, RENAMED};
use crate::refusal::{Verdict, conflict, internal, invalid, unit};
use crate::rows::Change;

pub(crate) fn command(change: &mut Change<'_>, command: &v1::PreparedQueryCommand) -> Verdict {
    let Some(query) = command.query.as_ref().filter(|query| !query.id.is_empty()) else {
        return Err(invalid("query.missing", "the command names no query"));
    };
    let id = keys::name(&query.id);
    let before = change.state.queries.get(&id).cloned();
    match (command.verb(), before) {
        (PreparedQueryVerb::Create, None) => set(change, query, change.index),
        (PreparedQueryVerb::Create, Some(_)) => Err(internal(
            "query.id.exists",
            format!("Prepared query '{}' exists already", query.id),
        )),
        (PreparedQueryVerb::Update | PreparedQueryVerb::Delete, None) => Err(internal(
            "query.unknown",
            format!("Cannot modify non-existent prepared query: '{}'", query.id),
        )),
        (PreparedQueryVerb::Update, Some(before)) => {
            check_judged(command, &before)?;
            set(change, query, before.create_index)
        }
        (PreparedQueryVerb::Delete, Some(before)) => {
            check_judged(command, &before)?;
            change.drop_query(&id);
            Ok(unit())
        }
        (PreparedQueryVerb::Unspecified, _) => Err(invalid(
            "query.verb.unknown",
            "the command does not say what to do with the query",
        )),
    }
}

/// Rights go by the name: who was given them for one name has none for another.
fn check_judged(
    command: &v1::PreparedQueryCommand,
    present: &v1::PreparedQuery,
) -> Result<(), v1::Refusal> {
    match &command.judged_name {
        Some(judged) if *judged != present.name => Err(conflict(
            RENAMED,
            "the prepared query was renamed meanwhile",
        )),
        _ => Ok(()),
    }
}

fn set(change: &mut Change<'_>, query: &v1::PreparedQuery, created: u64) -> Verdict {
    let id = keys::name(&query.id);
    check_bounds(change, query, &id)?;
    check_name(change, query, &id)?;
    if !query.session.is_empty()
        && !change
            .state
            .sessions
            .contains_key(keys::fold(&query.session).as_ref())
    {
        return Err(internal(
            "query.session",
            format!("invalid session \"{}\"", query.session),
        ));
    }
    let mut query = query.clone();
    (query.create_index, query.modify_index) = (created, change.index);
    change.put_query(query);
    Ok(unit())
}

fn check_bounds(
    change: &Change<'_>,
    query: &v1::PreparedQuery,
    id: &Name,
) -> Result<(), v1::Refusal> {
    let bytes = query.encoded_len();
    if bytes > QUERY_BYTES_MAX {
        return Err(invalid(
            "query.too_large",
            format!(
                "prepared query of {bytes} bytes is above the bound of {QUERY_BYTES_MAX} bytes"
            ),
        ));
    }
    if change.state.queries.len() >= QUERIES_MAX && !change.state.queries.contains_key(id) {
        return Err(invalid(
            "query.too_many",
            format!("there are {QUERIES_MAX} prepared queries already; delete some"),
        ));
    }
    Ok(())
}

/// A name is one query's, and no query's id: whoever executes either means one thing.
fn check_name(
    change: &Change<'_>,
    query: &v1::PreparedQuery,
    id: &Name,
) -> Result<(), v1::Refusal> {
    let Some(name) = prepared_query::name_key(query) else {
        return Ok(());
    };
    let taken = change.state.query_names.get(&name);
    if taken.is_some_and(|taken| taken != id) {
        return Err(internal(
            "query.name.taken",
            match query.name.as_str() {
                "" => "a query template with an empty name already exists".to_owned(),
                name => format!("name '{name}' aliases an existing query name"),
            },
        ));
    }
    if change.state.queries.contains_key(&name) {
        return Err(internal(
            "query.name.is_id",
            format!("name '{}' aliases an existing query ID", query.name),
        ));
    }
    Ok(())
}

/// Removes the queries bound to a session that has ended.
pub(crate) fn drop_bound(change: &mut Change<'_>, session: &Name) {
    let bound: Vec<Name> = change
        .state
        .queries_by_session
        .range(Pair(session.clone(), "".into())..)
        .take_while(|key| key.0 == *session)
        .map(|key| key.1.clone())
        .collect();
    for id in bound {
        change.drop_query(&id);
    }
}
