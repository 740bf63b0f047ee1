//! A connection of another proxy to a service of this node.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};
use weft_identity::ca::Side as PeerSide;

use super::{Caller, Cause, HANDSHAKES_MAX, Shard, TUNNELS_OF_A_CALLER_MAX, Watched};
use crate::config::{Address, Inbound, Service};
use crate::local::Local;
use crate::relay::{Life, Relay};
use crate::telemetry::{Direction, Pair};
use crate::tunnel::{Accept, Outcome, Side, Tunnel};
use crate::wire::{ALPN, Reason};

impl Shard {
    /// Serves one TLS connection to `service`, until it ends.
    pub(super) async fn answer(self: &Rc<Self>, service: Arc<Service>, stream: TcpStream) {
        let Some(inbound) = service.inbound.clone() else {
            return;
        };
        let _ = stream.set_nodelay(true);
        let proven = self.prove_in_time(&service, &inbound, stream).await;
        let (caller, stream) = match proven {
            Ok(proven) => proven,
            Err(cause) => {
                let mut telemetry = self.telemetry.borrow_mut();
                telemetry.turned_away(&service.name, cause.reason);
                drop(telemetry);
                self.tell_turned_away(&service.name, &cause);
                return;
            }
        };
        let caller = Rc::new(caller);
        if stream.get_ref().1.alpn_protocol() == Some(ALPN) {
            let accept = self.streams_of(&service, &caller);
            let side = Side::Acceptor(accept);
            let (tunnel, driver) = Tunnel::new(stream, side, self.tick.clone());
            self.watch(&service, &caller, Watched::Tunnel(tunnel));
            driver.await;
        } else {
            self.answer_plain(&service, &caller, stream).await;
        }
    }

    async fn prove_in_time(
        &self,
        service: &Service,
        inbound: &Inbound,
        stream: TcpStream,
    ) -> Result<(Caller, TlsStream<TcpStream>), Cause> {
        if self.handshakes.get() >= HANDSHAKES_MAX {
            return Err(Cause::new("proxy.handshakes"));
        }
        self.handshakes.set(self.handshakes.get() + 1);
        let proving = timeout(inbound.handshake_timeout, self.prove(service, stream)).await;
        self.handshakes.set(self.handshakes.get() - 1);
        let (caller, stream) =
            proving.unwrap_or_else(|_| Err(Cause::new("tls.handshake_timeout")))?;
        if self.tunnels_of(service, &caller) >= TUNNELS_OF_A_CALLER_MAX {
            return Err(Cause::new("proxy.tunnels"));
        }
        Ok((caller, stream))
    }

    async fn prove(
        &self,
        service: &Service,
        stream: TcpStream,
    ) -> Result<(Caller, TlsStream<TcpStream>), Cause> {
        let acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
        let start = acceptor.map_err(|error| Cause::of_tls(&error))?;
        let knows_tunnel = start
            .client_hello()
            .alpn()
            .is_some_and(|mut offered| offered.any(|name| name == ALPN));
        let config = if knows_tunnel {
            service.identity.tunnel_server.clone()
        } else {
            service.identity.plain_server.clone()
        };
        let stream = start.into_stream(config).await;
        let stream = stream.map_err(|error| Cause::of_tls(&error))?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let proven = self.clock.wall();
        let peer = self
            .verifier
            .peer(chain, PeerSide::Client, proven)
            .map_err(|refusal| Cause::with(refusal.reason.id(), &refusal))?;
        let caller = Caller {
            id: peer.id,
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
            proven,
            not_after: peer.not_after,
        };
        Ok((caller, stream.into()))
    }

    async fn answer_plain(
        &self,
        service: &Arc<Service>,
        caller: &Rc<Caller>,
        stream: TlsStream<TcpStream>,
    ) {
        let Some(inbound) = &service.inbound else {
            return;
        };
        let pair = pair(service, caller);
        let began = self.clock.monotonic();
        let (_seat, application) = match self.admit(inbound, caller).await {
            Ok(admitted) => admitted,
            Err(cause) => {
                self.telemetry.borrow_mut().refused(&pair, cause.reason);
                self.tell_refusal(&pair, &cause);
                return;
            }
        };
        self.telemetry.borrow_mut().opened(&pair);
        let life = Life::new(self.tick.clone());
        self.watch(service, caller, Watched::Relay(Rc::downgrade(&life)));
        let outcome = Relay::new(application, stream, life).await;
        let took = self.clock.monotonic().saturating_sub(began);
        self.telemetry.borrow_mut().closed(&pair, &outcome, took);
    }

    /// What becomes of each stream that the caller opens.
    fn streams_of(self: &Rc<Self>, service: &Arc<Service>, caller: &Rc<Caller>) -> Accept {
        let shard = Rc::downgrade(self);
        let (id, caller) = (service.id.clone(), caller.clone());
        Box::new(move |tunnel, stream| {
            let Some(shard) = shard.upgrade() else {
                return tunnel.refuse(stream, Reason::Drained);
            };
            // As configured now, not when the tunnel was opened.
            let Some(service) = shard.config.borrow().service(&id).cloned() else {
                return tunnel.refuse(stream, Reason::Drained);
            };
            let (tunnel, caller) = (tunnel.clone(), caller.clone());
            tokio::task::spawn_local(async move {
                shard.serve_stream(&service, &caller, tunnel, stream).await;
            });
        })
    }

    async fn serve_stream(
        &self,
        service: &Arc<Service>,
        caller: &Caller,
        tunnel: Tunnel,
        stream: u32,
    ) {
        let Some(inbound) = &service.inbound else {
            return tunnel.refuse(stream, Reason::Drained);
        };
        let pair = pair(service, caller);
        let began = self.clock.monotonic();
        let (_seat, application) = match self.admit(inbound, caller).await {
            Ok(admitted) => admitted,
            Err(cause) => {
                self.telemetry.borrow_mut().refused(&pair, cause.reason);
                self.tell_refusal(&pair, &cause);
                return tunnel.refuse(stream, cause.told());
            }
        };
        if tunnel.is_given_up(stream) {
            return tunnel.refuse(stream, Reason::Reset);
        }
        self.telemetry.borrow_mut().opened(&pair);
        let outcome = tunnel.serve(stream, application).await;
        let took = self.clock.monotonic().saturating_sub(began);
        self.telemetry.borrow_mut().closed(&pair, &outcome, took);
    }

    /// A service of this node calls another: no TLS, but the same rules.
    pub(super) async fn call_here(
        &self,
        from: &Arc<Service>,
        to: &Arc<Service>,
        local: Local,
    ) -> Outcome {
        let refused = |local: &Local, reason| {
            local.abort_on_close();
            Outcome {
                reset: Some(reason),
                ..Outcome::default()
            }
        };
        let Some(inbound) = &to.inbound else {
            return refused(&local, Reason::NoApplication);
        };
        let caller = Rc::new(Caller::here(from.identity.spiffe.clone()));
        let pair = pair(to, &caller);
        let began = self.clock.monotonic();
        let (_seat, application) = match self.admit(inbound, &caller).await {
            Ok(admitted) => admitted,
            Err(cause) => {
                self.telemetry.borrow_mut().refused(&pair, cause.reason);
                self.tell_refusal(&pair, &cause);
                return refused(&local, cause.told());
            }
        };
        self.telemetry.borrow_mut().opened(&pair);
        let life = Life::new(self.tick.clone());
        self.watch(to, &caller, Watched::Relay(Rc::downgrade(&life)));
        let outcome = Relay::new(local, application, life).await;
        let took = self.clock.monotonic().saturating_sub(began);
        // Seen from the called side, what the caller sent was received.
        let seen = Outcome {
            sent: outcome.received,
            received: outcome.sent,
            reset: outcome.reset,
        };
        self.telemetry.borrow_mut().closed(&pair, &seen, took);
        outcome
    }

    /// A place, and a connection to the application, for a caller that may have it.
    async fn admit(
        &self,
        inbound: &Inbound,
        caller: &Caller,
    ) -> Result<(crate::config::Seat, Local), Cause> {
        let now = i64::try_from(self.clock.wall().get() / 1_000).unwrap_or(i64::MAX);
        if now > caller.not_after || self.is_cut_off(caller) {
            return Err(Cause::new("proxy.identity"));
        }
        let decision = inbound.intentions.decide(&caller.id);
        if !decision.allowed {
            return Err(Cause {
                reason: decision.reason,
                detail: format!("at index {}", decision.index),
            });
        }
        let seat = inbound.gate.enter().ok_or(Cause::new("proxy.limit"))?;
        let local = dial(&inbound.application, inbound.connect_timeout).await?;
        Ok((seat, local))
    }
}

async fn dial(address: &Address, limit: Duration) -> Result<Local, Cause> {
    let dialing = async {
        Ok(match address {
            Address::Tcp(address) => TcpStream::connect(address).await?.into(),
            Address::Unix(path, _) => UnixStream::connect(path).await?.into(),
        })
    };
    let dialed: Result<std::io::Result<Local>, _> = timeout(limit, dialing).await;
    match dialed {
        Ok(Ok(local)) => Ok(local),
        Ok(Err(error)) => Err(Cause::with("proxy.no_application", &error)),
        Err(_) => Err(Cause {
            reason: "proxy.no_application",
            detail: format!("no answer within {limit:?}"),
        }),
    }
}

fn pair(service: &Service, caller: &Caller) -> Pair {
    Pair {
        direction: Direction::Inbound,
        source: caller.id.service_name().unwrap_or_default().into(),
        destination: service.name.clone(),
    }
}
