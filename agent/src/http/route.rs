//! The table of routes and how a request finds its own.
//!
//! Owns: [`Route`], which cannot be made without saying what it authorizes (DESIGN F4), and
//! [`Routes`], the lookup.
//! Never: runs a handler.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;

use http::Method;
use weft_catalog::acl::{Access, Resource};

use super::call::Call;
use super::error::Failure;
use super::reply::Reply;

/// What a handler returns.
pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Reply, Failure>> + Send>>;
/// A handler.
pub(super) type Handler = fn(Call) -> Answering;

/// What a route authorizes. There is no default: leaving it out does not compile.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Nothing, for the reason given.
    Public(&'static str),
    /// One right that no name narrows, asked before the handler runs.
    Fixed(Resource, Access),
    /// A right on the name in the path, asked before the handler runs.
    Tail(Resource, Access),
    /// Rights on names from the body or the state: the handler asks for each, and may ask for no other.
    Named(&'static [(Resource, Access)]),
    /// Every row of the answer is shown only when allowed; the handler asks for each row.
    Rows(&'static [(Resource, Access)]),
}

/// One endpoint.
#[derive(Clone, Copy)]
pub struct Route {
    /// `GET`, `PUT`, ...
    pub method: &'static Method,
    /// The path; with a trailing `/` it takes whatever follows as a name.
    pub path: &'static str,
    /// What it authorizes.
    pub need: Need,
    /// Query parameters it knows, beside `dc`, `token`, `pretty`, `ns`, `partition`, which all do.
    pub parameters: &'static [&'static str],
    /// One sentence for the reference.
    pub summary: &'static str,
    /// The page of Consul's HTTP API documentation that describes it.
    pub source: &'static str,
    pub(super) handler: Handler,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// The routes of one path.
#[derive(Debug, Default)]
struct Entry {
    /// Positions in the table.
    routes: Vec<usize>,
    allow: String,
}

/// All routes, found by path.
pub(super) struct Routes {
    table: &'static [Route],
    exact: HashMap<&'static str, Entry>,
    prefixes: HashMap<&'static str, Entry>,
}

/// What a path and a method lead to.
#[derive(Debug)]
pub(super) enum Lookup<'a> {
    /// A route, its position in the table, and what follows its path, still escaped.
    Found(usize, &'static Route, &'a str),
    /// The path is known, the method is not one of these.
    Method(&'a str),
    /// No such path.
    Unknown,
}

impl Routes {
    pub(super) fn new(table: &'static [Route]) -> Self {
        let (mut exact, mut prefixes) = (HashMap::<_, Entry>::new(), HashMap::<_, Entry>::new());
        for (at, route) in table.iter().enumerate() {
            let map = if route.path.ends_with('/') {
                &mut prefixes
            } else {
                &mut exact
            };
            let entry = map.entry(route.path).or_default();
            entry.routes.push(at);
            if entry.allow.is_empty() {
                entry.allow.push_str("OPTIONS");
            }
            entry.allow.push(',');
            entry.allow.push_str(route.method.as_str());
        }
        Self {
            table,
            exact,
            prefixes,
        }
    }

    pub(super) fn table(&self) -> &'static [Route] {
        self.table
    }

    /// The longest path wins.
    pub(super) fn find<'a>(&'a self, method: &Method, path: &'a str) -> Lookup<'a> {
        let (entry, tail) = match self.exact.get(path) {
            Some(entry) => (entry, ""),
            None => match self.longest_prefix(path) {
                Some(found) => found,
                None => return Lookup::Unknown,
            },
        };
        let found = entry
            .routes
            .iter()
            .find(|at| self.table[**at].method == method);
        match found {
            Some(at) => Lookup::Found(*at, &self.table[*at], tail),
            None => Lookup::Method(&entry.allow),
        }
    }

    fn longest_prefix<'a>(&'a self, path: &'a str) -> Option<(&'a Entry, &'a str)> {
        // Paths have at most this many slashes (`/v1/agent/health/service/name/`); keys have many more.
        const SLASHES_MAX: usize = 6;
        let mut ends = [0_usize; SLASHES_MAX];
        let mut count = 0;
        for (at, _) in path
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'/')
            .take(SLASHES_MAX)
        {
            ends[count] = at + 1;
            count += 1;
        }
        let longest_first = ends[..count].iter().rev();
        longest_first.copied().find_map(|end| {
            self.prefixes
                .get(&path[..end])
                .map(|entry| (entry, &path[end..]))
        })
    }

    /// Whether a name is missing behind the path: with a slash it would be known.
    pub(super) fn lacks_slash(&self, path: &str) -> bool {
        self.prefixes.contains_key(format!("{path}/").as_str())
    }

    /// `Allow` of a path, for `OPTIONS`.
    pub(super) fn allowed<'a>(&'a self, path: &'a str) -> Option<&'a str> {
        let entry = match self.exact.get(path) {
            Some(entry) => entry,
            None => self.longest_prefix(path)?.0,
        };
        Some(&entry.allow)
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::TABLE;
    use super::*;

    fn find(method: Method, path: &str) -> String {
        match Routes::new(TABLE).find(&method, path) {
            Lookup::Found(_, route, tail) => format!("{} {tail}", route.path),
            Lookup::Method(allow) => format!("405 {allow}"),
            Lookup::Unknown => "404".to_owned(),
        }
    }

    #[test]
    fn the_longest_path_wins_and_keys_keep_their_slashes() {
        for (method, path, found) in [
            (
                Method::GET,
                "/v1/kv/a//b/%2F/c/d/e/f/g",
                "/v1/kv/ a//b/%2F/c/d/e/f/g",
            ),
            (Method::GET, "/v1/kv/", "/v1/kv/ "),
            (
                Method::GET,
                "/v1/agent/health/service/name/web",
                "/v1/agent/health/service/name/ web",
            ),
            (
                Method::GET,
                "/v1/agent/service/web",
                "/v1/agent/service/ web",
            ),
            (
                Method::PUT,
                "/v1/agent/service/register",
                "/v1/agent/service/register ",
            ),
            (Method::GET, "/v1/status/leader", "/v1/status/leader "),
            (Method::PUT, "/v1/status/leader", "405 OPTIONS,GET"),
            (Method::POST, "/v1/kv/a", "405 OPTIONS,GET,PUT,DELETE"),
            (Method::GET, "/v1/nonsense", "404"),
            (Method::GET, "/v1/status/leader/x", "404"),
        ] {
            assert_eq!(find(method, path), found, "{path}");
        }
    }

    #[test]
    fn every_route_is_there_once_and_documented() {
        let mut seen = std::collections::BTreeSet::new();
        for route in TABLE {
            assert!(
                seen.insert((route.path, route.method.as_str())),
                "{route:?} twice"
            );
            assert!(
                route.summary.ends_with('.') && !route.source.is_empty(),
                "{route:?} is not documented"
            );
            assert!(
                !route.parameters.contains(&"token"),
                "{route:?}: token is everybody's"
            );
        }
    }
}
