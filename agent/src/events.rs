//! User events, as this agent hears them.
//!
//! Owns: what an event says and whom it is for, and the last 256 that were for this agent.
//! Never: carries events to others; the pool does, through [`crate::backend::Membership::fire`].
//! Source: Consul HTTP API, "Event"; CONSUL.md A.7.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use prost::Message as _;
use regex::{Regex, RegexBuilder};
use tokio::sync::watch;
use uuid::Uuid;
use weft_proto::v1;

use crate::local::{Local, LocalService};

/// Events an agent keeps; the oldest goes first (Consul's number).
pub const EVENTS_KEPT: usize = 256;
/// Bytes one compiled filter may take.
const FILTER_BYTES_MAX: usize = 1 << 20;

/// An event that was for this agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its id.
    pub id: Uuid,
    /// Lamport time in the pool.
    pub time: u64,
    /// What it says.
    pub said: v1::UserEvent,
}

impl Event {
    /// The index that stands for a list that ends with this event: the halves of the id, by XOR.
    #[must_use]
    pub fn index(&self) -> u64 {
        let (high, low) = self.id.as_u64_pair();
        // 0 would mean "no index" to clients.
        (high ^ low).max(1)
    }
}

/// A filter that is no expression, or one without what it stands on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Tags are those of a service.
    #[error("Cannot provide tag filter without service filter")]
    TagAlone,
    /// Not a regular expression in RE2's syntax, or one that compiles to more than 1 MiB.
    #[error("Invalid {which} filter: {why}")]
    Pattern {
        /// `node`, `service` or `tag`.
        which: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// Whom an event is for.
#[derive(Debug)]
pub struct Audience {
    node: Option<Regex>,
    service: Option<Regex>,
    tag: Option<Regex>,
}

impl Audience {
    /// The filters of `event`, compiled.
    ///
    /// Errors: [`FilterError`].
    pub fn of(event: &v1::UserEvent) -> Result<Self, FilterError> {
        if !event.tag_filter.is_empty() && event.service_filter.is_empty() {
            return Err(FilterError::TagAlone);
        }
        Ok(Self {
            node: pattern("node", &event.node_filter)?,
            service: pattern("service", &event.service_filter)?,
            tag: pattern("tag", &event.tag_filter)?,
        })
    }

    /// Whether an agent with this name and these services is meant. A service is meant by its name or its
    /// id, and the tag has to be one of the same service.
    pub fn includes<'a>(
        &self,
        node: &str,
        services: impl IntoIterator<Item = &'a v1::Service>,
    ) -> bool {
        if !self
            .node
            .as_ref()
            .is_none_or(|node_is| node_is.is_match(node))
        {
            return false;
        }
        let Some(service_is) = &self.service else {
            return true;
        };
        services.into_iter().any(|service| {
            (service_is.is_match(&service.name) || service_is.is_match(&service.id))
                && self
                    .tag
                    .as_ref()
                    .is_none_or(|tag_is| service.tags.iter().any(|tag| tag_is.is_match(tag)))
        })
    }
}

/// A filter compiled, within [`FILTER_BYTES_MAX`]; empty is none.
pub(crate) fn pattern(which: &'static str, text: &str) -> Result<Option<Regex>, FilterError> {
    if text.is_empty() {
        return Ok(None);
    }
    let compiled = RegexBuilder::new(text).size_limit(FILTER_BYTES_MAX).build();
    compiled.map(Some).map_err(|error| FilterError::Pattern {
        which,
        why: error.to_string(),
    })
}

/// The events this agent has heard. Clones share them.
#[derive(Clone)]
pub struct Events {
    inner: Arc<Inner>,
}

struct Inner {
    local: Local,
    kept: Mutex<VecDeque<Event>>,
    changed: watch::Sender<u64>,
    heard: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Events {
    /// None yet. `local` says which are for this agent.
    #[must_use]
    pub fn new(local: Local) -> Self {
        Self {
            inner: Arc::new(Inner {
                local,
                kept: Mutex::default(),
                changed: watch::channel(0).0,
                heard: Family::default(),
            }),
        }
    }

    /// Registers the counters.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_agent_user_events",
            "User events heard, by what became of them",
            self.inner.heard.clone(),
        );
    }

    /// An event came in from the pool: keeps it if it is for this agent.
    pub fn hear(&self, id: [u8; 16], time: u64, body: &[u8]) {
        let id = Uuid::from_bytes(id);
        let outcome = match v1::UserEvent::decode(body) {
            Ok(said) if !said.name.is_empty() => self.take(Event { id, time, said }),
            _ => {
                tracing::debug!(event.id = %id, "user event was not understood");
                "malformed"
            }
        };
        self.inner
            .heard
            .get_or_create(&[("outcome", outcome)])
            .inc();
    }

    fn take(&self, event: Event) -> &'static str {
        if !self.is_for_us(&event.said) {
            tracing::debug!(event.name = %event.said.name, event.id = %event.id, "user event for others");
            return "for_others";
        }
        tracing::info!(event.name = %event.said.name, event.id = %event.id, event.time = event.time, "user event");
        let mut kept = self.inner.kept.lock();
        if kept.len() == EVENTS_KEPT {
            kept.pop_front();
        }
        kept.push_back(event);
        drop(kept);
        self.inner.changed.send_modify(|count| *count += 1);
        "kept"
    }

    fn is_for_us(&self, event: &v1::UserEvent) -> bool {
        let Ok(audience) = Audience::of(event) else {
            return false;
        };
        let node = self.inner.local.node().name;
        let services: Vec<Arc<LocalService>> = if audience.service.is_some() {
            self.inner.local.services().into_values().collect()
        } else {
            Vec::new()
        };
        audience.includes(&node, services.iter().map(|local| &local.service))
    }

    /// Those kept, in the order heard.
    #[must_use]
    pub fn list(&self) -> Vec<Event> {
        self.inner.kept.lock().iter().cloned().collect()
    }

    /// Changes whenever an event is kept. To wait: take it, look at the list, then await a change.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }
}

/// An event as the pool carries it.
#[must_use]
pub fn encode(event: &v1::UserEvent) -> Bytes {
    event.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use weft_proto::clock::SystemClock;

    use super::*;
    use crate::local::LocalConfig;

    fn service(id: &str, name: &str, tags: &[&str]) -> v1::Service {
        v1::Service {
            id: id.to_owned(),
            name: name.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn event(filters: [&str; 3]) -> v1::UserEvent {
        let [node, service, tag] = filters.map(str::to_owned);
        v1::UserEvent {
            name: "deploy".to_owned(),
            node_filter: node,
            service_filter: service,
            tag_filter: tag,
            ..Default::default()
        }
    }

    #[test]
    fn an_event_is_for_those_its_filters_match() {
        let here = [
            service("web-1", "web", &["v1", "blue"]),
            service("db", "db", &["primary"]),
        ];
        for (filters, expected) in [
            (["", "", ""], true),
            (["^n[0-9]$", "", ""], true),
            (["^n2$", "", ""], false),
            (["", "^web$", ""], true),
            (["", "^web-1$", ""], true),
            (["", "cache", ""], false),
            (["", "web", "^v1$"], true),
            (["", "web", "primary"], false),
            (["", ".", "primary"], true),
            (["n2", "web", "v1"], false),
        ] {
            let audience = Audience::of(&event(filters)).unwrap();
            assert_eq!(audience.includes("n1", &here), expected, "{filters:?}");
        }
    }

    #[test]
    fn filters_that_cannot_work_are_named() {
        let refusal = |filters| Audience::of(&event(filters)).unwrap_err().to_string();
        assert_eq!(
            refusal(["", "", "x"]),
            "Cannot provide tag filter without service filter"
        );
        assert!(refusal(["[x", "", ""]).starts_with("Invalid node filter: "));
        assert!(refusal(["", "(", ""]).starts_with("Invalid service filter: "));
        assert!(refusal(["", "x", "a{1000}{1000}"]).starts_with("Invalid tag filter: "));
    }

    #[test]
    fn the_last_256_are_kept_and_watchers_wake() {
        let node = v1::Node {
            name: "n1".to_owned(),
            ..Default::default()
        };
        let local = Local::open(LocalConfig::in_memory(node), Arc::new(SystemClock::new()));
        let events = Events::new(local.unwrap());
        let mut changed = events.changed();
        let body = |filters| encode(&event(filters));
        for n in 0..=EVENTS_KEPT as u64 {
            let id = Uuid::from_u64_pair(n, 5).into_bytes();
            events.hear(id, n, &body(["", "", ""]));
        }
        assert!(changed.has_changed().unwrap());
        changed.mark_unchanged();
        events.hear([1; 16], 999, &body(["n2", "", ""]));
        events.hear([2; 16], 999, b"\xff");
        assert!(!changed.has_changed().unwrap(), "neither was for us");
        let kept = events.list();
        assert_eq!(kept.len(), EVENTS_KEPT);
        assert_eq!(kept.first().map(|event| event.time), Some(1));
        assert_eq!(kept.last().map(Event::index), Some(256 ^ 5));
        let nil = Event {
            id: Uuid::nil(),
            ..kept[0].clone()
        };
        assert_eq!(nil.index(), 1);
    }
}
