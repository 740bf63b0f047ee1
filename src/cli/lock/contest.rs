//! Winning, watching and giving back a lock or a semaphore's place.
//!
//! Source: Consul docs, "Semaphore" (the holders' document, its key and the contenders' keys).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cli::client::Client;
use crate::cli::failure::{Done, Exit, Failure};
use crate::cli::output::field;

/// Marks a key as a lock's, so that nothing else is taken for one.
const LOCK_FLAGS: &str = "3304740253564472344";
/// Marks keys of a semaphore.
const SEMAPHORE_FLAGS: &str = "16210313421097356768";
/// Longest single watch.
const WATCH: &str = "15s";
/// How long its answer may take: the wait, what the agent adds to it by chance, and the way.
const WATCH_LIMIT: Duration = Duration::from_secs(20);
/// How long giving back may take, and how long cleaning up.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5);
/// Pause after a refused attempt: the lock delay shows nothing a watch could wait for.
const RETRY: Duration = Duration::from_secs(1);

/// One contender.
pub(super) struct Contest<'a> {
    pub(super) client: &'a Client,
    pub(super) prefix: &'a str,
    pub(super) session: &'a str,
    /// 1 is a lock; more is a semaphore.
    pub(super) limit: u32,
    /// Failing watches in a row that count as a loss.
    pub(super) retries: u32,
}

/// A key as a watch saw it.
struct Seen {
    pair: Option<Value>,
    index: String,
}

impl Contest<'_> {
    fn key(&self) -> String {
        format!("/v1/kv/{}/.lock", self.prefix)
    }

    fn own_key(&self) -> String {
        format!("/v1/kv/{}/{}", self.prefix, self.session)
    }

    /// Waits until the lock is ours, `patience` at most.
    pub(super) async fn win(&self, patience: Option<Duration>) -> Done {
        let deadline = patience.map(|patience| Instant::now() + patience);
        if self.limit > 1 {
            let query = [("acquire", self.session), ("flags", SEMAPHORE_FLAGS)];
            if self.client.put(&self.own_key(), &query, "").await?.text() != "true" {
                return Err(Failure::new(
                    Exit::Negative,
                    "the contender's key could not be made",
                ));
            }
        }
        let attempts = async {
            let mut index = String::from("0");
            while !self.attempt().await? {
                let seen = self.watch(&index).await?;
                if seen
                    .pair
                    .as_ref()
                    .is_none_or(|pair| pair["Session"].is_null() && self.limit == 1)
                {
                    tokio::time::sleep(RETRY).await;
                }
                index = seen.index;
            }
            Ok(())
        };
        match deadline {
            None => attempts.await,
            Some(deadline) => tokio::time::timeout_at(deadline, attempts)
                .await
                .unwrap_or_else(|_| {
                    Err(Failure::new(
                        Exit::Negative,
                        "Lock acquisition failed: somebody else holds it",
                    ))
                }),
        }
    }

    async fn attempt(&self) -> Result<bool, Failure> {
        let seen = self.watch("0").await?;
        let expected = if self.limit == 1 {
            LOCK_FLAGS
        } else {
            SEMAPHORE_FLAGS
        };
        if let Some(pair) = seen
            .pair
            .as_ref()
            .filter(|pair| field(pair, "Flags") != expected)
        {
            let message = format!(
                "Existing key does not match lock use: its flags are {}",
                field(pair, "Flags")
            );
            return Err(Failure::new(Exit::Conflict, message));
        }
        if self.limit == 1 {
            let query = [("acquire", self.session), ("flags", LOCK_FLAGS)];
            return Ok(self.client.put(&self.key(), &query, "").await?.text() == "true");
        }
        let mut holders = self.holders(seen.pair.as_ref()).await?;
        if holders.len() >= usize::try_from(self.limit).unwrap_or(usize::MAX) {
            return Ok(false);
        }
        holders.push(self.session.to_owned());
        self.store(&holders, seen.pair.as_ref()).await
    }

    /// The holders written down whose sessions still hold their own keys.
    async fn holders(&self, pair: Option<&Value>) -> Result<Vec<String>, Failure> {
        let Some(pair) = pair else {
            return Ok(Vec::new());
        };
        let document = STANDARD
            .decode(field(pair, "Value"))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let Some(document) = document else {
            return Ok(Vec::new());
        };
        if document["Limit"]
            .as_u64()
            .is_some_and(|limit| limit != u64::from(self.limit))
        {
            let message = format!(
                "semaphore limit conflict: the key was made with -n={}",
                document["Limit"]
            );
            return Err(Failure::new(Exit::Conflict, message));
        }
        let answer = self
            .client
            .send(
                Method::GET,
                &format!("/v1/kv/{}/", self.prefix),
                &[("recurse", "")],
                Bytes::new(),
            )
            .await?;
        let all = if answer.status == StatusCode::NOT_FOUND {
            Value::Null
        } else {
            answer.json()?
        };
        let alive: Vec<String> = all
            .as_array()
            .into_iter()
            .flatten()
            .map(|pair| field(pair, "Session"))
            .collect();
        // Consul writes a map of session to true; a list is read too.
        let written: Vec<String> = match &document["Holders"] {
            Value::Object(map) => map.keys().cloned().collect(),
            Value::Array(list) => list
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            _ => Vec::new(),
        };
        Ok(written
            .into_iter()
            .filter(|holder| alive.contains(holder) && holder != self.session)
            .collect())
    }

    async fn store(&self, holders: &[String], pair: Option<&Value>) -> Result<bool, Failure> {
        let map: serde_json::Map<String, Value> = holders
            .iter()
            .map(|holder| (holder.clone(), json!(true)))
            .collect();
        let index = pair.map_or_else(|| "0".to_owned(), |pair| field(pair, "ModifyIndex"));
        let query = [("cas", index.as_str()), ("flags", SEMAPHORE_FLAGS)];
        let body = json!({"Limit": self.limit, "Holders": map}).to_string();
        Ok(self.client.put(&self.key(), &query, body).await?.text() == "true")
    }

    async fn watch(&self, index: &str) -> Result<Seen, Failure> {
        let query: &[(&str, &str)] = if index == "0" {
            &[("consistent", "")]
        } else {
            &[("consistent", ""), ("index", index), ("wait", WATCH)]
        };
        let key = self.key();
        let asking = self.client.send(Method::GET, &key, query, Bytes::new());
        let answer = tokio::time::timeout(WATCH_LIMIT, asking).await;
        let answer = answer.unwrap_or_else(|_| {
            let limit = WATCH_LIMIT.as_secs();
            let message = format!("a watch of the lock was not answered within {limit} s");
            Err(Failure::new(Exit::Timeout, message))
        })?;
        let index = answer
            .headers
            .get("X-Consul-Index")
            .and_then(|value| value.to_str().ok())
            .unwrap_or("0")
            .to_owned();
        match answer.status {
            StatusCode::NOT_FOUND => Ok(Seen { pair: None, index }),
            status if status.is_success() => Ok(Seen {
                pair: answer.json()?.get(0).cloned(),
                index,
            }),
            _ => Err(answer.failure()),
        }
    }

    /// Ends when the lock is no longer ours, or nobody can tell for too long.
    pub(super) async fn lost(&self) {
        let (mut index, mut failures) = (String::from("0"), 0);
        loop {
            match self.watch(&index).await {
                Ok(seen) if self.is_ours(seen.pair.as_ref()) => (index, failures) = (seen.index, 0),
                Ok(_) => return,
                Err(_) if failures < self.retries => {
                    failures += 1;
                    tokio::time::sleep(RETRY).await;
                }
                Err(_) => return,
            }
        }
    }

    fn is_ours(&self, pair: Option<&Value>) -> bool {
        let Some(pair) = pair else { return false };
        if self.limit == 1 {
            return field(pair, "Session") == self.session;
        }
        let document = STANDARD.decode(field(pair, "Value")).unwrap_or_default();
        String::from_utf8_lossy(&document).contains(self.session)
    }

    /// Removes the lock's key if nobody holds it or waits behind it; answers whether it is gone.
    pub(super) async fn clean_up(&self) -> bool {
        let gone = tokio::time::timeout(FAREWELL_LIMIT, self.remove_unused()).await;
        gone.unwrap_or(false)
    }

    async fn remove_unused(&self) -> bool {
        let Ok(seen) = self.watch("0").await else {
            return false;
        };
        let Some(pair) = seen.pair else { return true };
        let held = match self.limit {
            1 => !pair["Session"].is_null(),
            _ => self
                .holders(Some(&pair))
                .await
                .map_or(true, |holders| !holders.is_empty()),
        };
        let index = field(&pair, "ModifyIndex");
        let deleted = async {
            let answer = self
                .client
                .call(
                    Method::DELETE,
                    &self.key(),
                    &[("cas", &index)],
                    Bytes::new(),
                )
                .await;
            answer.is_ok_and(|answer| answer.text() == "true")
        };
        !held && deleted.await
    }

    /// Lets go at once instead of by the session's end; failing that, the session's end does it.
    pub(super) async fn give_back(&self) {
        let _ = tokio::time::timeout(FAREWELL_LIMIT, self.release()).await;
    }

    async fn release(&self) {
        if self.limit == 1 {
            let query = [("release", self.session), ("flags", LOCK_FLAGS)];
            let _ = self.client.put(&self.key(), &query, "").await;
            return;
        }
        for _ in 0..8 {
            let Ok(seen) = self.watch("0").await else {
                return;
            };
            let Ok(holders) = self.holders(seen.pair.as_ref()).await else {
                return;
            };
            if self
                .store(&holders, seen.pair.as_ref())
                .await
                .unwrap_or(true)
            {
                break;
            }
        }
        let _ = self
            .client
            .call(Method::DELETE, &self.own_key(), &[], Bytes::new())
            .await;
    }
}
