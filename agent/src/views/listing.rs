//! The views as a list, for whoever operates the agent.
//!
//! Owns: what a view's state is called. Never: counts as a use of a view.

use std::time::Duration;

use weft_catalog::view::ViewTopic;

use super::entry::{Contact, View};
use super::{Unknown, Views};

/// A view older than this is stale: servers speak every second.
const STALE_MILLIS: i64 = 5_000;

/// How a view stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As the servers have it, or nearly.
    Current,
    /// As they had it some time ago.
    Stale,
    /// Nothing was ever said of it.
    Unknown,
}

impl Standing {
    /// Its name in metrics and answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
        }
    }
}

/// One view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What it is of.
    pub topic: ViewTopic,
    /// How it stands.
    pub standing: Standing,
    /// Since when it is not known to be what the servers have; `None` if it never was.
    pub age: Option<Duration>,
    /// Index of its content; 0 when it has none.
    pub index: u64,
    /// Bytes it takes, about.
    pub bytes: usize,
    /// Since when nobody has asked for it.
    pub unused: Duration,
    /// Why a server does not serve it, if one refused.
    pub refused: Option<Unknown>,
}

impl Views {
    /// All views, by topic.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let now = self.inner.now();
        let contact = &self.inner.contact;
        let views = self.inner.all();
        let mut list: Vec<Listed> = views
            .iter()
            .map(|view| Listed {
                topic: view.topic.clone(),
                standing: view.standing(now, contact),
                age: view.state().map(|_| millis(view.age(now, contact))),
                index: view.state().map_or(0, |state| state.index().get()),
                bytes: view.bytes(),
                unused: millis(now.saturating_sub(view.last_used())),
                refused: view.refusal(),
            })
            .collect();
        list.sort_by(|one, other| one.topic.cmp(&other.topic));
        list
    }
}

impl View {
    pub(super) fn standing(&self, now: i64, contact: &Contact) -> Standing {
        if self.state().is_none() {
            return Standing::Unknown;
        }
        if self.age(now, contact) > STALE_MILLIS || !self.is_live() {
            return Standing::Stale;
        }
        Standing::Current
    }
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
