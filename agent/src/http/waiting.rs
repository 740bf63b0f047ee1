//! Requests that wait for a change.
//!
//! Owns: how many may, in all and of one agent that forwards them, so that no agent takes the places of the others.
//! Never: knows what they wait for.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;

use super::config::HttpLimits;
use super::error::Failure;
use super::metrics::Flight;

/// How many requests are waiting for a change; the gauge shows it at any moment.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    gauge: Gauge,
    of_agents: Arc<Mutex<HashMap<String, usize>>>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    _place: Flight,
    _share: Option<Share>,
}

/// One of the places that an agent has.
#[derive(Debug)]
struct Share {
    agent: String,
    of_agents: Arc<Mutex<HashMap<String, usize>>>,
}

impl Waiting {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self {
            gauge,
            of_agents: Arc::default(),
        }
    }

    /// Takes a place, for the agent that forwards the request if one does; 429 at a bound.
    pub(super) fn enter(&self, limits: &HttpLimits, agent: Option<&str>) -> Result<Slot, Failure> {
        let max = limits.max_blocking_queries;
        let place = Flight::of(&self.gauge);
        if !usize::try_from(self.gauge.get()).is_ok_and(|waiting| waiting <= max) {
            return Err(Failure::too_many(
                "http.blocking.too_many",
                format!(
                    "too many blocking queries, limit {max}: raise limits.http_max_blocking_queries or poll less"
                ),
            ));
        }
        let share = agent.map(|agent| self.share(agent, limits.max_blocking_queries_per_agent));
        Ok(Slot {
            _place: place,
            _share: share.transpose()?,
        })
    }

    fn share(&self, agent: &str, max: usize) -> Result<Share, Failure> {
        let mut of_agents = self.of_agents.lock();
        let waiting = of_agents.get(agent).copied().unwrap_or(0);
        if waiting >= max {
            return Err(Failure::too_many(
                "http.blocking.too_many_of_agent",
                format!(
                    "too many blocking queries of the agent {agent:?} at this server, limit {max}: raise limits.rpc_max_blocking_queries_per_agent on the servers, or ask with ?cached"
                ),
            ));
        }
        of_agents.insert(agent.to_owned(), waiting + 1);
        Ok(Share {
            agent: agent.to_owned(),
            of_agents: self.of_agents.clone(),
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut of_agents = self.of_agents.lock();
        let left = of_agents.get(&self.agent).map_or(0, |waiting| waiting - 1);
        match left {
            0 => drop(of_agents.remove(&self.agent)),
            left => drop(of_agents.insert(self.agent.clone(), left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(all: usize, of_agent: usize) -> HttpLimits {
        HttpLimits {
            max_blocking_queries: all,
            max_blocking_queries_per_agent: of_agent,
            ..HttpLimits::default()
        }
    }

    #[test]
    fn waiting_is_bounded_shown_and_places_come_back() {
        let gauge = Gauge::default();
        let (waiting, limits) = (Waiting::new(gauge.clone()), limits(2, 2));
        let enter = || waiting.enter(&limits, None);
        let slots: Vec<_> = (0..2).map(|_| enter().unwrap()).collect();
        let refusal = enter().unwrap_err();
        assert!(refusal.text.contains("limits.http_max_blocking_queries"));
        assert_eq!(gauge.get(), 2);
        drop(slots);
        assert!(enter().is_ok());
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn no_agent_takes_the_places_of_the_others() {
        let (waiting, limits) = (Waiting::default(), limits(10, 2));
        let greedy: Vec<_> = (0..2)
            .map(|_| waiting.enter(&limits, Some("greedy")).unwrap())
            .collect();
        let refusal = waiting.enter(&limits, Some("greedy")).unwrap_err();
        assert_eq!(refusal.reason, "http.blocking.too_many_of_agent");
        let knob = "limits.rpc_max_blocking_queries_per_agent";
        assert!(refusal.text.contains(knob), "{}", refusal.text);
        let _other = waiting.enter(&limits, Some("other")).unwrap();
        let _direct = waiting.enter(&limits, None).unwrap();
        // What was refused holds no place.
        assert_eq!(waiting.gauge.get(), 4);
        drop(greedy);
        assert_eq!(waiting.of_agents.lock().len(), 1);
        assert!(waiting.enter(&limits, Some("greedy")).is_ok());
    }
}
