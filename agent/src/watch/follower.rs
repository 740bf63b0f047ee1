//! From answers to news.
//!
//! Owns: the index to ask with, and whether an answer says anything new.
//! Never: sends, sleeps or reads a clock.
//! Source: Consul docs, "Blocking queries", "Watches"; `/v1/event/list`, whose indexes follow no order.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use super::plan::{Plan, Question};

/// Longest single wait for a change.
const WAIT: &str = "5m";
/// After this time an ask has got lost: the wait, the sixteenth a server adds to it, and some slack.
pub const ASK_LIMIT: Duration = Duration::from_secs(5 * 60 + 20 + 30);
/// Largest answer that is taken in.
pub const ANSWER_MAX_BYTES: usize = 256 << 20;

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The answer's index, `CONSUL_INDEX` for handlers.
    pub index: u64,
    /// The data in one line of JSON; `null` for a key there is not.
    pub json: Arc<str>,
}

/// Why an answer is of no use.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The agent refused, or cannot tell now.
    #[error("the agent answered {status}: {text}")]
    Status {
        /// HTTP status.
        status: StatusCode,
        /// Its text.
        text: String,
    },
    /// Without an index nothing can be waited for.
    #[error("the agent's answer has no X-Consul-Index")]
    NoIndex,
    /// Not what an agent answers.
    #[error("the agent's answer is not JSON")]
    NotJson(#[source] serde_json::Error),
}

impl AnswerError {
    /// Asking again the same way may help.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::NoIndex | Self::NotJson(_) => false,
        }
    }
}

/// One watch's memory.
#[derive(Debug)]
pub struct Follower {
    plan: Plan,
    /// To ask with; zero asks for an answer at once.
    index: u64,
    last: Option<Arc<str>>,
}

impl Follower {
    /// Nothing is known yet.
    #[must_use]
    pub const fn new(plan: Plan) -> Self {
        Self {
            plan,
            index: 0,
            last: None,
        }
    }

    /// What is watched.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What to ask next.
    #[must_use]
    pub fn ask(&self) -> Question {
        let mut question = self.plan.question();
        if self.index > 0 {
            question.query.push(("index", self.index.to_string()));
            question.query.push(("wait", WAIT.to_owned()));
        }
        question
    }

    /// Nothing came, or nothing of use: the next ask begins anew, and only another answer is news.
    pub const fn failed(&mut self) {
        self.index = 0;
    }

    /// Takes an answer in; `None` when it says nothing new. The first is always news.
    ///
    /// Errors leave the watch as [`Self::failed`] does.
    pub fn answered(
        &mut self,
        status: StatusCode,
        index: Option<u64>,
        body: &[u8],
    ) -> Result<Option<News>, AnswerError> {
        let asked = std::mem::take(&mut self.index);
        let absent = status == StatusCode::NOT_FOUND && self.may_be_absent() && index.is_some();
        if !status.is_success() && !absent {
            let text = String::from_utf8_lossy(body).trim().to_owned();
            return Err(AnswerError::Status { status, text });
        }
        let index = index
            .filter(|index| *index > 0)
            .ok_or(AnswerError::NoIndex)?;
        if index == asked {
            self.index = index;
            return Ok(None);
        }
        let value = if absent {
            Value::Null
        } else {
            serde_json::from_slice(body).map_err(AnswerError::NotJson)?
        };
        let json: Arc<str> = self.shaped(value, asked).to_string().into();
        // Indexes that run back begin anew (a restored server); those of events have no order.
        let back = index < asked && !matches!(self.plan, Plan::Event(_));
        self.index = if back { 0 } else { index };
        if self.last.as_ref() == Some(&json) {
            return Ok(None);
        }
        self.last = Some(Arc::clone(&json));
        Ok(Some(News { index, json }))
    }

    const fn may_be_absent(&self) -> bool {
        matches!(self.plan, Plan::Key(_) | Plan::KeyPrefix(_))
    }

    /// The data as Consul gives it to handlers.
    fn shaped(&self, value: Value, asked: u64) -> Value {
        match &self.plan {
            Plan::Key(_) => match value {
                Value::Array(mut pairs) if !pairs.is_empty() => with_session(pairs.swap_remove(0)),
                _ => Value::Null,
            },
            Plan::KeyPrefix(_) => match value {
                Value::Array(pairs) => pairs.into_iter().map(with_session).collect(),
                other => other,
            },
            Plan::Event(_) => unseen(value, asked),
            _ => value,
        }
    }
}

/// The API leaves the session of a free key out; handlers of Consul's know it as an empty text.
fn with_session(mut pair: Value) -> Value {
    if let Value::Object(members) = &mut pair {
        members.entry("Session").or_insert_with(|| json!(""));
    }
    pair
}

/// The events behind the one whose index was asked with; all of them if that is gone.
fn unseen(events: Value, asked: u64) -> Value {
    let Value::Array(mut events) = events else {
        return events;
    };
    let index = |event: &Value| event["ID"].as_str().and_then(index_of_event);
    if let Some(at) = events
        .iter()
        .position(|event| asked > 0 && index(event) == Some(asked))
    {
        events.drain(..=at);
    }
    Value::Array(events)
}

/// The index `/v1/event/list` answers when this event is the newest: both halves of its id.
fn index_of_event(id: &str) -> Option<u64> {
    let hex: String = id.chars().filter(|c| *c != '-').collect();
    let (low, high) = hex.split_at_checked(16)?;
    Some(u64::from_str_radix(low, 16).ok()? ^ u64::from_str_radix(high, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::super::plan::Asked;
    use super::*;

    fn follower(kind: &str) -> Follower {
        let key = (kind == "key").then(|| "a".to_owned());
        let asked = Asked {
            kind: kind.into(),
            key,
            ..Asked::default()
        };
        Follower::new(Plan::new(asked).unwrap())
    }

    fn news(follower: &mut Follower, index: u64, body: &str) -> Option<String> {
        let news = follower.answered(StatusCode::OK, Some(index), body.as_bytes());
        news.unwrap().map(|news| news.json.to_string())
    }

    fn asked(follower: &Follower) -> Option<String> {
        let query = follower.ask().query;
        query
            .into_iter()
            .find(|(name, _)| *name == "index")
            .map(|(_, value)| value)
    }

    #[test]
    fn only_another_answer_is_news() {
        let mut f = follower("nodes");
        assert_eq!(asked(&f), None);
        assert_eq!(news(&mut f, 5, "[1]").as_deref(), Some("[1]"));
        assert_eq!(asked(&f).as_deref(), Some("5"));
        assert_eq!(news(&mut f, 5, "[2]"), None, "the wait ran out");
        assert_eq!(news(&mut f, 6, "[1]"), None, "something else has changed");
        assert_eq!(asked(&f).as_deref(), Some("6"));
        assert_eq!(news(&mut f, 7, "[2]").as_deref(), Some("[2]"));
    }

    #[test]
    fn an_index_that_runs_back_and_a_failure_begin_anew() {
        let mut f = follower("nodes");
        news(&mut f, 9, "[1]");
        assert_eq!(news(&mut f, 3, "[1]"), None);
        assert_eq!(asked(&f), None);
        assert_eq!(news(&mut f, 3, "[1]"), None, "the same data is no news");
        assert_eq!(asked(&f).as_deref(), Some("3"));
        let error = f.answered(
            StatusCode::INTERNAL_SERVER_ERROR,
            None,
            b"No cluster leader\n",
        );
        assert!(error.unwrap_err().may_pass());
        assert_eq!(asked(&f), None);
        assert_eq!(news(&mut f, 4, "[1]"), None);
        assert!(
            !f.answered(StatusCode::BAD_REQUEST, None, b"x")
                .unwrap_err()
                .may_pass()
        );
        assert!(f.answered(StatusCode::OK, None, b"[]").is_err(), "no index");
    }

    #[test]
    fn a_key_is_one_object_or_null() {
        let mut f = follower("key");
        let absent = f
            .answered(StatusCode::NOT_FOUND, Some(4), b"")
            .unwrap()
            .unwrap();
        assert_eq!((absent.index, &*absent.json), (4, "null"));
        let shown = news(&mut f, 5, r#"[{"Key":"a","Flags":0}]"#).unwrap();
        assert_eq!(shown, r#"{"Flags":0,"Key":"a","Session":""}"#);
        // A path that is not there has no index.
        assert!(f.answered(StatusCode::NOT_FOUND, None, b"").is_err());
    }

    #[test]
    fn events_are_told_once_each() {
        let (one, two) = (
            "b54fe110-7af5-cafc-d1fb-afc8ba432b1c",
            "5b7e1bd8-3ea1-1f75-0c12-4f42b36c3d2a",
        );
        let list = |ids: &[&str]| json!(ids.iter().map(|id| json!({"ID": id})).collect::<Vec<_>>());
        let index = |id| index_of_event(id).unwrap();
        let mut f = follower("event");
        assert_eq!(news(&mut f, 1, "[]").as_deref(), Some("[]"));
        let first = news(&mut f, index(one), &list(&[one]).to_string()).unwrap();
        assert_eq!(first, list(&[one]).to_string());
        let second = news(&mut f, index(two), &list(&[one, two]).to_string()).unwrap();
        assert_eq!(second, list(&[two]).to_string());
        assert_eq!(
            asked(&f),
            Some(index(two).to_string()),
            "whichever is larger"
        );
    }
}
