//! A connection of an application to a service it calls.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};
use weft_identity::ca::MeshVerifier;

use super::pool::Key;
use super::{Cause, Shard};
use crate::balance::{Endpoint, EndpointState};
use crate::config::{Outbound, Service, Target};
use crate::local::Local;
use crate::relay::{Life, Relay};
use crate::telemetry::{Direction, Pair};
use crate::tunnel::{Outcome, Side, Tunnel};
use crate::wire::{ALPN, Reason};

/// Endpoints tried for one connection.
const TRIES: usize = 3;
/// Another's handshake was waited for in vain.
const WAITED: &str = "proxy.connect_waited";

/// The way to an endpoint.
enum Way {
    Tunnel(Tunnel),
    Direct(Box<TlsStream<TcpStream>>),
    /// A service of this very proxy.
    Here(Arc<Service>),
}

impl Shard {
    /// Carries one connection of `service` to where `outbound` leads.
    pub(super) async fn call(&self, service: Arc<Service>, outbound: Arc<Outbound>, local: Local) {
        let pair = Pair {
            direction: Direction::Outbound,
            source: service.name.clone(),
            destination: outbound.name.clone(),
        };
        let began = self.clock.monotonic();
        let Some(_seat) = outbound.gate.enter() else {
            return self.refuse(&pair, local, &Cause::new("proxy.limit"));
        };
        let (way, state) = match self.reach(&service, &outbound).await {
            Ok(found) => found,
            Err(cause) => return self.refuse(&pair, local, &cause),
        };
        let _active = state.begin();
        self.telemetry.borrow_mut().opened(&pair);
        let outcome = match way {
            Way::Tunnel(tunnel) => match tunnel.open(local) {
                Ok(stream) => stream.await,
                // It filled up since: rare, and the application asks again.
                Err(local) => {
                    local.abort_on_close();
                    Outcome {
                        reset: Some(Reason::Limit),
                        ..Outcome::default()
                    }
                }
            },
            Way::Direct(stream) => {
                let life = Life::new(self.tick.clone());
                self.watch_relay(&life, outbound.idle_timeout);
                Relay::new(local, *stream, life).await
            }
            Way::Here(target) => self.call_here(&service, &target, local).await,
        };
        match outcome.reset {
            Some(Reason::NoApplication) => self.note_failure(&outbound, &state),
            None => state.answered(),
            Some(_) => {}
        }
        let took = self.clock.monotonic().saturating_sub(began);
        self.telemetry.borrow_mut().closed(&pair, &outcome, took);
    }

    fn refuse(&self, pair: &Pair, local: Local, cause: &Cause) {
        local.abort_on_close();
        self.telemetry.borrow_mut().refused(pair, cause.reason);
        self.tell_refusal(pair, cause);
    }

    /// The way to an endpoint that could be reached, and its state.
    async fn reach(
        &self,
        service: &Service,
        outbound: &Outbound,
    ) -> Result<(Way, Arc<EndpointState>), Cause> {
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut last = Cause::new("proxy.no_endpoint");
        while tried.len() < TRIES {
            let now = self.clock.monotonic();
            let Some((target, endpoint)) = self.pick(outbound, &tried, now) else {
                break;
            };
            tried.push(endpoint.address);
            let reaching = self.way_to(service, target, &endpoint, outbound.connect_timeout);
            match reaching.await {
                Ok(way) => {
                    let now_after = self.clock.monotonic();
                    if matches!(way, Way::Direct(_)) {
                        let took = now_after.saturating_sub(now);
                        endpoint.state.succeeded(took, now_after);
                    }
                    return Ok((way, endpoint.state));
                }
                // Whoever dials for all counts the failure, once.
                Err(cause) if cause.reason == WAITED => last = cause,
                Err(cause) => {
                    let now = self.clock.monotonic();
                    if target.balancer.failed(&endpoint, now) {
                        tracing::warn!(service.name = %target.service, peer.addr = %endpoint.address, reason = cause.reason, "endpoint left out for a while");
                    }
                    last = cause;
                }
            }
        }
        Err(last)
    }

    fn pick<'a>(
        &self,
        outbound: &'a Outbound,
        tried: &[SocketAddr],
        now: Duration,
    ) -> Option<(&'a Target, Endpoint)> {
        let mut rng = self.rng.borrow_mut();
        let mut cursors = self.cursors.borrow_mut();
        outbound.targets.iter().find_map(|target| {
            let cursor = cursors.entry(target.service.clone()).or_default();
            let endpoint = target.balancer.pick(cursor, tried, now, &mut *rng)?;
            Some((target, endpoint.clone()))
        })
    }

    async fn way_to(
        &self,
        service: &Service,
        target: &Target,
        endpoint: &Endpoint,
        limit: Duration,
    ) -> Result<Way, Cause> {
        if let Some(here) = self.service_here(endpoint) {
            return Ok(Way::Here(here));
        }
        let key = Key {
            client: target.client.clone(),
            endpoint: endpoint.address,
        };
        if let Some(tunnel) = self.pool.borrow().get(&key) {
            return Ok(Way::Tunnel(tunnel));
        }
        let turn = self.pool.borrow_mut().turn(&key);
        let dials = Cell::new(false);
        let dialing = async {
            let permit = match turn {
                // Never closed.
                Some(turn) => turn.acquire_owned().await.ok(),
                None => None,
            };
            // Whoever had the turn before may have opened one.
            if permit.is_some()
                && let Some(tunnel) = self.pool.borrow().get(&key)
            {
                return Ok(Way::Tunnel(tunnel));
            }
            dials.set(true);
            let begun = self.clock.monotonic();
            let stream = self.handshake(target, endpoint.address).await?;
            let now = self.clock.monotonic();
            endpoint.state.succeeded(now.saturating_sub(begun), now);
            if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
                self.pool.borrow_mut().learn(&key, None, permit);
                return Ok(Way::Direct(Box::new(stream)));
            }
            let (tunnel, driver) = Tunnel::new(stream, Side::Opener, self.tick.clone());
            tokio::task::spawn_local(driver);
            tracing::debug!(service.name = %service.name, service.target = %target.service, peer.addr = %endpoint.address, "tunnel opened");
            self.pool
                .borrow_mut()
                .learn(&key, Some(tunnel.clone()), permit);
            Ok(Way::Tunnel(tunnel))
        };
        let dialed = timeout(limit, dialing).await;
        dialed.unwrap_or_else(|_| {
            Err(Cause::new(if dials.get() {
                "proxy.connect_timeout"
            } else {
                WAITED
            }))
        })
    }

    async fn handshake(
        &self,
        target: &Target,
        address: SocketAddr,
    ) -> Result<TlsStream<TcpStream>, Cause> {
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|error| Cause::with("proxy.connect", &error))?;
        let _ = stream.set_nodelay(true);
        let connector = TlsConnector::from(target.client.clone());
        let shaking = connector.connect(target.server_name.clone(), stream).await;
        let stream = shaking.map_err(|error| Cause::of_tls(&error))?;
        Ok(stream.into())
    }

    fn note_failure(&self, outbound: &Outbound, state: &Arc<EndpointState>) {
        let now = self.clock.monotonic();
        for target in &outbound.targets {
            let endpoints = target.balancer.endpoints().iter();
            for endpoint in endpoints.filter(|e| Arc::ptr_eq(&e.state, state)) {
                target.balancer.failed(endpoint, now);
            }
        }
    }
}

impl Cause {
    /// What a failed handshake says.
    pub(super) fn of_tls(error: &std::io::Error) -> Self {
        let inner = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        let Some(tls) = inner else {
            return Self::with("tls.closed", error);
        };
        if let Some(refusal) = MeshVerifier::refusal(tls) {
            return Self::with(refusal.reason.id(), refusal);
        }
        let reason = match tls {
            rustls::Error::InvalidMessage(_) => "tls.not_tls",
            rustls::Error::AlertReceived(_) => "tls.refused_by_peer",
            rustls::Error::NoCertificatesPresented => "tls.no_certificate",
            _ => "tls.handshake",
        };
        Self::with(reason, tls)
    }
}
