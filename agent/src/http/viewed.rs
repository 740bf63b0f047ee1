//! `?cached` on an agent that is no server: answered from its views.
//!
//! Owns: which reads a view can answer, and whether the one that is here is fresh enough.
//! Never: reads; the handlers do, as on a server.
//! Source: Consul HTTP API, "Agent caching"; CONSUL.md B.2.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::StatusCode;
use http::request::Parts;
use weft_catalog::view::ViewTopic;
use weft_catalog::{Hub, State};

use super::api::Api;
use super::error::Failure;
use super::options::{CacheControl, Options};
use super::query::{Query, percent_decode};
use crate::backend::ReadMeta;
use crate::views::{Unknown, Views};

/// How long servers may take to say that a view is as of now, before one that is older is good enough or
/// the answer is left to them.
const REVALIDATION: Duration = Duration::from_secs(7);

/// Who answers a request.
pub(super) enum Plan {
    /// A server.
    Servers,
    /// This agent, from a view.
    View(Box<Pinned>),
    /// This agent, from what it is.
    Here,
}

/// A view that a request is answered from.
pub(super) struct Pinned {
    views: Views,
    topic: ViewTopic,
    /// With the places of nodes, for an order by distance.
    places: bool,
    /// The answer is one that was here before it was asked for.
    pub(super) was_known: bool,
    /// What was seen last: a view may end while somebody waits on it.
    last: ArcSwap<State>,
}

impl Pinned {
    /// The view as it is now.
    pub(super) fn state(&self) -> Arc<State> {
        let Some(seen) = self.views.look(&self.topic) else {
            return self.last.load_full();
        };
        let places = self
            .places
            .then(|| self.views.look(&ViewTopic::Coordinates));
        let state = match places.flatten() {
            Some(places) => Arc::new(seen.state.with_coordinates_of(&places.state)),
            None => seen.state,
        };
        self.last.store(state.clone());
        state
    }

    pub(super) fn hub(&self) -> &Hub {
        self.views.hub()
    }

    pub(super) fn meta(&self) -> ReadMeta {
        let seen = self.views.look(&self.topic);
        ReadMeta {
            known_leader: seen.as_ref().is_some_and(|seen| seen.connected),
            last_contact: seen.map_or(Duration::MAX, |seen| seen.age),
        }
    }
}

impl Api {
    /// Who answers this request on an agent that is no server.
    pub(super) async fn plan(
        &self,
        route: &str,
        tail: &str,
        head: &Parts,
        query: &Query,
    ) -> Result<Plan, Failure> {
        let (Some(views), true) = (&self.deps.views, self.config.use_cache) else {
            return Ok(Plan::Servers);
        };
        // What does not parse is refused by a server, in its own words.
        let Ok(options) = Options::parse(query, &head.headers) else {
            return Ok(Plan::Servers);
        };
        let Some(control) = options.cached else {
            return Ok(Plan::Servers);
        };
        if route == "/v1/catalog/datacenters" {
            return Ok(Plan::Here);
        }
        match topic_of(route, tail, query) {
            Some(topic) => self.pinned(views, topic, control, query).await,
            None => Ok(Plan::Servers),
        }
    }

    /// The view of `topic`, for a route that every agent answers itself; `None`: this is a server, which has all.
    pub(super) async fn local_view(
        &self,
        topic: ViewTopic,
    ) -> Result<Option<Box<Pinned>>, Failure> {
        let Some(views) = &self.deps.views else {
            return Ok(None);
        };
        match self
            .pinned(views, topic, CacheControl::default(), &Query::default())
            .await?
        {
            Plan::View(view) => Ok(Some(view)),
            Plan::Servers | Plan::Here => {
                let text = "the servers do not let this agent keep what it would answer from";
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Err(Failure::new(status, "views.refused", text))
            }
        }
    }

    async fn pinned(
        &self,
        views: &Views,
        topic: ViewTopic,
        control: CacheControl,
        query: &Query,
    ) -> Result<Plan, Failure> {
        let known = views.look(&topic);
        let mut was_known = known.is_some();
        let mut seen = match known {
            Some(seen) => seen,
            None => match views.wait(&topic, views.first_wait()).await {
                Ok(seen) => seen,
                Err(Unknown::Refused { .. }) => return Ok(Plan::Servers),
                Err(unknown @ Unknown::NotYet) => {
                    let text = format!("the views of this agent do not know it yet: {unknown}");
                    let status = StatusCode::SERVICE_UNAVAILABLE;
                    return Err(Failure::new(status, "views.unknown", text));
                }
            },
        };
        let fresh_enough = |age: Duration| control.max_age.is_none_or(|max| age <= max);
        if was_known && (control.must_revalidate || !fresh_enough(seen.age)) {
            match views.sync(REVALIDATION).await {
                Ok(()) => {
                    was_known = false;
                    seen = views.look(&topic).unwrap_or(seen);
                }
                Err(why) => {
                    tracing::debug!(%why, "a view is not known to be as of now");
                    let good_enough = control.stale_if_error.is_some_and(|max| seen.age <= max);
                    if !good_enough {
                        return Ok(Plan::Servers);
                    }
                }
            }
        }
        let places = query.get("near").is_some_and(|near| !near.is_empty());
        if places {
            // Without them the order is the catalog's.
            let _ = views
                .wait(&ViewTopic::Coordinates, views.first_wait())
                .await;
        }
        Ok(Plan::View(Box::new(Pinned {
            views: views.clone(),
            topic,
            places,
            was_known,
            last: ArcSwap::new(seen.state),
        })))
    }
}

/// The view that a read is answered from.
fn topic_of(route: &str, tail: &str, query: &Query) -> Option<ViewTopic> {
    if query.has("merge-central-config") {
        // It depends on config entries of many names.
        return None;
    }
    let name = percent_decode(tail.as_bytes())?;
    let name = std::str::from_utf8(&name).ok()?;
    if name.is_empty() != (route == "/v1/catalog/services") {
        return None;
    }
    Some(match route {
        "/v1/health/service/" | "/v1/health/checks/" | "/v1/catalog/service/" => {
            ViewTopic::service(name)
        }
        "/v1/health/connect/" | "/v1/catalog/connect/" => ViewTopic::connect(name),
        "/v1/health/ingress/" => ViewTopic::ingress(name),
        "/v1/catalog/services" => ViewTopic::Services,
        _ => return None,
    })
}
