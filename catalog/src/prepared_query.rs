//! Prepared queries: what a valid one is, templates, and which instances one selects.
//!
//! Owns: validation with Consul's texts, `${...}` in templates, the rules of selection.
//! Never: shuffles, limits, authorizes, or looks beyond this datacenter.
//! Source: Consul HTTP API, "Prepared queries"; CONSUL.md A.7.

use regex::Regex;
use weft_proto::v1::{PreparedQuery, QueryTemplate};

use crate::keys::{self, Name};
use crate::read::{InstanceHealth, Reader};

/// Prepared queries in a cluster.
pub const QUERIES_MAX: usize = 16_384;
/// Bytes of one prepared query.
pub const QUERY_BYTES_MAX: usize = 64 << 10;
/// Bytes of a query's name; longer names are not looked up as prefixes either.
pub const NAME_BYTES_MAX: usize = 1_024;
/// Memory of a compiled expression.
const REGEXP_BYTES_MAX: usize = 1 << 20;

/// The one type of template there is.
const NAME_PREFIX_MATCH: &str = "name_prefix_match";

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
    Template::compile(query).map(drop)
}

/// What stands in the place of a token that may not be seen.
pub const REDACTED: &str = "<hidden>";

/// The query as it is executed for `name`: a template with its variables filled in, any other as it is.
///
/// Errors: [`QueryError`] when the template cannot be compiled any more.
pub fn render(query: &PreparedQuery, name: &str) -> Result<PreparedQuery, QueryError> {
    let Some(template) = Template::compile(query)? else {
        return Ok(query.clone());
    };
    let mut rendered = query.clone();
    let values = template.values(&query.name, name);
    each_text(&mut rendered, |_, text| {
        *text = evaluate(text, &values)?;
        Ok(())
    })?;
    if template.remove_empty_tags {
        rendered.tags.retain(|tag| !tag.is_empty());
    }
    Ok(rendered)
}

struct Template {
    regexp: Option<Regex>,
    remove_empty_tags: bool,
}

/// What variables stand for.
#[derive(Default)]
struct Values<'v> {
    full: &'v str,
    prefix: &'v str,
    suffix: &'v str,
    matches: Vec<&'v str>,
}

impl Template {
    fn compile(query: &PreparedQuery) -> Result<Option<Self>, QueryError> {
        let failed = |text: String| {
            error(
                "query.template",
                format!("failed compiling template: {text}"),
            )
        };
        let Some(template) = query.template.as_ref().filter(|_| is_template(query)) else {
            return Ok(None);
        };
        if template.r#type != NAME_PREFIX_MATCH {
            return Err(failed(format!("Bad Template.Type '{}'", template.r#type)));
        }
        let compiled = Self {
            regexp: regexp(template).map_err(|why| failed(format!("Bad Regexp: {why}")))?,
            remove_empty_tags: template.remove_empty_tags,
        };
        each_text(&mut query.clone(), |field, text| {
            evaluate(text, &Values::default())
                .map(drop)
                .map_err(|why| failed(format!("Bad format '{text}' in Service.{field}: {why}")))
        })?;
        Ok(Some(compiled))
    }

    fn values<'v>(&self, prefix: &'v str, name: &'v str) -> Values<'v> {
        let captures = self
            .regexp
            .as_ref()
            .and_then(|regexp| regexp.captures(name));
        let matches = captures.iter().flat_map(|captures| captures.iter());
        Values {
            full: name,
            prefix,
            // Prefixes match in any case; only ASCII is folded, so lengths agree.
            suffix: name.get(prefix.len()..).unwrap_or_default(),
            matches: matches
                .map(|found| found.map_or("", |found| found.as_str()))
                .collect(),
        }
    }
}

fn regexp(template: &QueryTemplate) -> Result<Option<Regex>, String> {
    if template.regexp.is_empty() {
        return Ok(None);
    }
    let built = regex::RegexBuilder::new(&template.regexp)
        .size_limit(REGEXP_BYTES_MAX)
        .build();
    built.map(Some).map_err(|error| error.to_string())
}

/// Every text that may hold variables, with where it stands.
fn each_text(
    query: &mut PreparedQuery,
    mut visit: impl FnMut(&str, &mut String) -> Result<(), QueryError>,
) -> Result<(), QueryError> {
    visit("Service", &mut query.service)?;
    visit("Near", &mut query.near)?;
    for (field, texts) in [
        ("IgnoreCheckIDs", &mut query.ignore_check_ids),
        ("Tags", &mut query.tags),
    ] {
        for (at, text) in texts.iter_mut().enumerate() {
            visit(&format!("{field}[{at}]"), text)?;
        }
    }
    for (field, map) in [
        ("NodeMeta", &mut query.node_meta),
        ("ServiceMeta", &mut query.service_meta),
    ] {
        for (key, text) in map.iter_mut() {
            visit(&format!("{field}[{key}]"), text)?;
        }
    }
    if let Some(failover) = &mut query.failover {
        for (at, text) in failover.datacenters.iter_mut().enumerate() {
            visit(&format!("Failover.Datacenters[{at}]"), text)?;
        }
    }
    Ok(())
}

/// `text` with its variables filled in; `$${` is `${`. What was filled in is not looked at again, so no
/// name can make a template expand without end.
fn evaluate(text: &str, values: &Values<'_>) -> Result<String, QueryError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let (inside, after) = rest[at + 2..]
            .split_once('}')
            .ok_or_else(|| error("query.template", "`${` without `}`"))?;
        out.push_str(variable(inside.trim(), values)?);
        if out.len() > QUERY_BYTES_MAX {
            let text = format!("filled in, a text is longer than {QUERY_BYTES_MAX} bytes");
            return Err(error("query.template", text));
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn variable<'v>(name: &str, values: &Values<'v>) -> Result<&'v str, QueryError> {
    match name {
        "name.full" => return Ok(values.full),
        "name.prefix" => return Ok(values.prefix),
        "name.suffix" => return Ok(values.suffix),
        // Enterprise; Consul's community edition has it empty.
        "agent.segment" => return Ok(""),
        _ => {}
    }
    let number = name
        .strip_prefix("match(")
        .and_then(|rest| rest.strip_suffix(')'))
        .and_then(|number| number.trim().parse::<usize>().ok());
    match number {
        Some(number) => Ok(values.matches.get(number).copied().unwrap_or_default()),
        None => Err(error(
            "query.template",
            format!("unknown variable accessed: {name}"),
        )),
    }
}

/// The instances that a rendered query selects here, in the catalog's order.
///
/// No mesh runs yet, so nothing is capable of it: `Connect` selects nothing.
#[must_use]
pub fn select<'a>(reader: &Reader<'a>, query: &PreparedQuery) -> Vec<InstanceHealth<'a>> {
    if query.connect {
        return Vec::new();
    }
    let mut rows = reader.health_service(&query.service).rows;
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
    use super::*;

    fn template(name: &str, service: &str, regexp: &str) -> PreparedQuery {
        PreparedQuery {
            name: name.to_owned(),
            service: service.to_owned(),
            template: Some(QueryTemplate {
                r#type: NAME_PREFIX_MATCH.to_owned(),
                regexp: regexp.to_owned(),
                remove_empty_tags: true,
            }),
            ..PreparedQuery::default()
        }
    }

    #[test]
    fn variables_are_filled_in() {
        let check = |service: &str, name: &str, expected: &str| {
            let query = template("geo-", service, "^geo-(.*?)-([^-]+?)$");
            assert_eq!(render(&query, name).unwrap().service, expected, "{service}");
        };
        check("${name.full}", "geo-db-v1", "geo-db-v1");
        check("x-${name.prefix}${name.suffix}", "GEO-db", "x-geo-db");
        check("${match(1)}/${match(2)}", "geo-db-v1", "db/v1");
        check("${match(0)}${match(7)}", "geo-db-v1", "geo-db-v1");
        check("${match(1)}", "geo-nomatch", "");
        check("$${name.full}", "geo-a-b", "${name.full}");
        check("${match(1)}", "geo-${name.full}-x", "${name.full}");
        check("plain", "geo-a-b", "plain");
    }

    #[test]
    fn empty_tags_go_only_where_that_is_asked_for() {
        let mut query = template("", "web", "");
        query.tags = vec!["${name.suffix}".to_owned(), "${match(1)}".to_owned()];
        assert_eq!(render(&query, "v1").unwrap().tags, ["v1"]);
        query.template.as_mut().unwrap().remove_empty_tags = false;
        assert_eq!(render(&query, "v1").unwrap().tags, ["v1", ""]);
    }

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
