//! Templates of prepared queries: what their variables stand for.
//!
//! Owns: `${...}` and its escapes, the expression of a template and how long it is kept compiled.
//! Never: finds the template of a name; [`crate::read`] does.
//! Source: Consul HTTP API, "Prepared queries", "Template"; CONSUL.md A.7.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use regex::Regex;
use weft_proto::v1::{PreparedQuery, QueryTemplate};

use super::{QUERY_BYTES_MAX, QueryError, error, is_template};

/// Memory of a compiled expression.
const REGEXP_BYTES_MAX: usize = 1 << 20;
/// Expressions kept compiled: they and what they match with take some 2 MiB each at the most.
const KEPT_MAX: usize = 64;
/// Memory an expression may use while it matches, beside its own.
const MATCHING_BYTES_MAX: usize = 1 << 20;

/// The one type of template there is.
const NAME_PREFIX_MATCH: &str = "name_prefix_match";

/// The expressions of the templates that are executed most, kept compiled: compiling takes a thousand
/// times as long as matching. They are found by their text, so none is ever out of date.
#[derive(Debug, Default)]
pub struct Expressions(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    by_text: HashMap<String, (u64, Regex)>,
    /// Counts uses: who was used longest ago, goes first.
    uses: u64,
    compiled: u64,
}

impl Expressions {
    /// How often one was compiled.
    #[must_use]
    pub fn compiled(&self) -> u64 {
        self.lock().compiled
    }

    fn get(&self, text: &str) -> Result<Regex, String> {
        if let Some(regexp) = self.lock().find(text) {
            return Ok(regexp);
        }
        // Not under the lock: a large expression takes milliseconds, and others wait for theirs.
        let regexp = compile(text)?;
        self.lock().keep(text, regexp.clone());
        Ok(regexp)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn find(&mut self, text: &str) -> Option<Regex> {
        self.uses += 1;
        let (used, regexp) = self.by_text.get_mut(text)?;
        *used = self.uses;
        Some(regexp.clone())
    }

    fn keep(&mut self, text: &str, regexp: Regex) {
        self.compiled += 1;
        if self.by_text.len() >= KEPT_MAX {
            let eldest = self.by_text.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(eldest) = eldest.map(|(text, _)| text.clone()) {
                self.by_text.remove(&eldest);
            }
        }
        self.by_text.insert(text.to_owned(), (self.uses, regexp));
    }
}

fn compile(text: &str) -> Result<Regex, String> {
    let built = regex::RegexBuilder::new(text)
        .size_limit(REGEXP_BYTES_MAX)
        .dfa_size_limit(MATCHING_BYTES_MAX)
        .build();
    built.map_err(|error| error.to_string())
}

fn failed(why: &str) -> QueryError {
    error(
        "query.template",
        format!("failed compiling template: {why}"),
    )
}

/// Checks that a query's template, if it has one, can be executed.
///
/// Errors: [`QueryError`] with the field that cannot.
pub(super) fn check(query: &PreparedQuery) -> Result<(), QueryError> {
    let Some(template) = template_of(query)? else {
        return Ok(());
    };
    if !template.regexp.is_empty() {
        compile(&template.regexp).map_err(|why| failed(&format!("Bad Regexp: {why}")))?;
    }
    each_text(&mut query.clone(), |field, text| {
        evaluate(text, &Values::default())
            .map(drop)
            .map_err(|why| failed(&format!("Bad format '{text}' in Service.{field}: {why}")))
    })
}

fn template_of(query: &PreparedQuery) -> Result<Option<&QueryTemplate>, QueryError> {
    let template = query.template.as_ref().filter(|_| is_template(query));
    match template {
        Some(template) if template.r#type != NAME_PREFIX_MATCH => {
            Err(failed(&format!("Bad Template.Type '{}'", template.r#type)))
        }
        template => Ok(template),
    }
}

/// The query as it is executed for `name`: a template with its variables filled in, any other as it is.
///
/// Errors: [`QueryError`] when the template cannot be compiled any more.
pub fn render(
    query: &PreparedQuery,
    name: &str,
    expressions: &Expressions,
) -> Result<PreparedQuery, QueryError> {
    let mut rendered = query.clone();
    let Some(template) = template_of(query)? else {
        return Ok(rendered);
    };
    let regexp = match template.regexp.as_str() {
        "" => None,
        text => Some(
            expressions
                .get(text)
                .map_err(|why| failed(&format!("Bad Regexp: {why}")))?,
        ),
    };
    let values = Values::new(&query.name, name, regexp.as_ref());
    each_text(&mut rendered, |_, text| {
        *text = evaluate(text, &values)?;
        Ok(())
    })?;
    if template.remove_empty_tags {
        rendered.tags.retain(|tag| !tag.is_empty());
    }
    Ok(rendered)
}

/// What variables stand for.
#[derive(Default)]
struct Values<'v> {
    full: &'v str,
    prefix: &'v str,
    suffix: &'v str,
    matches: Vec<&'v str>,
}

impl<'v> Values<'v> {
    fn new(prefix: &'v str, name: &'v str, regexp: Option<&Regex>) -> Self {
        let captures = regexp.and_then(|regexp| regexp.captures(name));
        let matches = captures.iter().flat_map(|captures| captures.iter());
        Self {
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

/// A template that leaves out empty tags.
#[cfg(test)]
pub(super) fn for_tests(name: &str, service: &str, regexp: &str) -> PreparedQuery {
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

#[cfg(test)]
mod tests {
    use super::for_tests as template;
    use super::*;

    #[test]
    fn variables_are_filled_in() {
        let check = |service: &str, name: &str, expected: &str| {
            let query = template("geo-", service, "^geo-(.*?)-([^-]+?)$");
            assert_eq!(
                render(&query, name, &Expressions::default())
                    .unwrap()
                    .service,
                expected,
                "{service}"
            );
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
        let kept = Expressions::default();
        let mut query = template("", "web", "");
        query.tags = vec!["${name.suffix}".to_owned(), "${match(1)}".to_owned()];
        assert_eq!(render(&query, "v1", &kept).unwrap().tags, ["v1"]);
        query.template.as_mut().unwrap().remove_empty_tags = false;
        assert_eq!(render(&query, "v1", &kept).unwrap().tags, ["v1", ""]);
    }

    #[test]
    fn an_expression_is_compiled_once_and_the_oldest_goes_first() {
        let kept = Expressions::default();
        let service = |regexp: &str| {
            let query = template("geo-", "${match(1)}", regexp);
            render(&query, "geo-db", &kept).unwrap().service
        };
        for _ in 0..100 {
            assert_eq!(service("^geo-(.*)$"), "db");
        }
        assert_eq!(kept.compiled(), 1);
        assert_eq!(service("^geo-(.).*$"), "d", "changed, so another");
        for n in 0..3 * KEPT_MAX {
            service(&format!("^geo-(.*)|{n}$"));
            service("^geo-(.*)$");
        }
        let all = u64::try_from(3 * KEPT_MAX).unwrap() + 2;
        assert_eq!(kept.compiled(), all, "what is used stays");
        assert_eq!(kept.0.lock().unwrap().by_text.len(), KEPT_MAX);
        service("^geo-(.).*$");
        assert_eq!(kept.compiled(), all + 1, "what is not, went");
    }
}
