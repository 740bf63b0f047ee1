//! Two tunnels' ends over a pipe inside the process, applications on loopback sockets.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;

use super::*;
use crate::testing::{pair, run};

fn tick() -> Tick {
    Rc::new(Cell::new(0))
}

/// A tunnel whose far end answers each stream by `serve`, given the application's side of it.
struct World {
    near: Tunnel,
    far: Tunnel,
    tick: Tick,
}

impl World {
    fn new<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Clone + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let (a, b) = tokio::io::duplex(64 * 1024);
        let tick = tick();
        let accept = move |tunnel: &Tunnel, id: u32| {
            let (tunnel, serve) = (tunnel.clone(), serve.clone());
            tokio::task::spawn_local(async move {
                let (ours, theirs) = pair().await;
                tokio::task::spawn_local(serve(theirs));
                tunnel.serve(id, ours.into()).await;
            });
        };
        let (near, driver) = Tunnel::new(a, Side::Opener, tick.clone());
        tokio::task::spawn_local(driver);
        let (far, driver) = Tunnel::new(b, Side::Acceptor(Box::new(accept)), tick.clone());
        tokio::task::spawn_local(driver);
        Self { near, far, tick }
    }

    /// An application's connection through the tunnel, and what becomes of it.
    async fn connect(&self) -> (TcpStream, tokio::task::JoinHandle<Outcome>) {
        let (app, ours) = pair().await;
        let stream = self
            .near
            .open(ours.into())
            .unwrap_or_else(|_| panic!("no room"));
        (app, tokio::task::spawn_local(stream))
    }
}

async fn echo(mut stream: TcpStream) {
    let (mut reading, mut writing) = stream.split();
    let _ = tokio::io::copy(&mut reading, &mut writing).await;
    let _ = writing.shutdown().await;
}

#[test]
fn many_streams_share_a_tunnel_and_none_loses_a_byte() {
    run(async {
        let world = World::new(echo);
        let mut running = Vec::new();
        for n in 0..50_usize {
            let (mut app, outcome) = world.connect().await;
            running.push(tokio::task::spawn_local(async move {
                let sent: Vec<u8> = (0..n * 10_007).map(|i| (i * 31 + n) as u8).collect();
                let (mut reading, mut writing) = app.split();
                let mut received = Vec::new();
                let write = async {
                    writing.write_all(&sent).await.unwrap();
                    writing.shutdown().await.unwrap();
                };
                let (_, read) = tokio::join!(write, reading.read_to_end(&mut received));
                read.unwrap();
                assert_eq!(received, sent, "stream {n}");
                let outcome = outcome.await.unwrap();
                let bytes = sent.len() as u64;
                assert_eq!(
                    outcome,
                    Outcome {
                        sent: bytes,
                        received: bytes,
                        reset: None
                    }
                );
            }));
        }
        for one in running {
            one.await.unwrap();
        }
        assert_eq!(world.near.streams(), 0);
    });
}

#[test]
fn each_way_is_closed_by_itself() {
    run(async {
        // Answers only after it has seen the end.
        let world = World::new(|mut stream: TcpStream| async move {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            all.reverse();
            stream.write_all(&all).await.unwrap();
        });
        let (mut app, outcome) = world.connect().await;
        app.write_all(b"abc").await.unwrap();
        app.shutdown().await.unwrap();
        let mut answer = Vec::new();
        app.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"cba");
        assert_eq!(outcome.await.unwrap().reset, None);
    });
}

#[test]
fn an_application_that_does_not_read_holds_up_only_itself() {
    run(async {
        let world = World::new(|stream: TcpStream| async move {
            // Keeps it open, and reads nothing.
            let () = std::future::pending().await;
            drop(stream);
        });
        let (mut stuck, _running) = world.connect().await;
        let flood = vec![7_u8; 16 << 20];
        let written =
            tokio::time::timeout(Duration::from_millis(500), stuck.write_all(&flood)).await;
        assert!(written.is_err(), "16 MiB were swallowed");
        let waiting: usize = world
            .far
            .state
            .borrow()
            .streams
            .values()
            .map(|s| s.waiting.len())
            .sum();
        assert!(waiting <= WINDOW_MAX as usize, "{waiting} bytes wait");
        assert!(world.near.state.borrow().out.len() <= OUT_HIGH_BYTES + 32_768);
        // Others go on.
        let (app, _other) = world.connect().await;
        app.writable().await.unwrap();
        assert_eq!(world.near.streams(), 2);
    });
}

#[test]
fn a_reset_goes_through_and_a_refusal_tells_why() {
    run(async {
        let world = World::new(|stream: TcpStream| async move {
            socket2::SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(stream);
        });
        let (mut app, outcome) = world.connect().await;
        app.write_all(b"hello").await.unwrap();
        let mut answer = Vec::new();
        let error = app.read_to_end(&mut answer).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(outcome.await.unwrap().reset, Some(Reason::Reset));
        // And when the far proxy refuses.
        let (a, b) = tokio::io::duplex(1_024);
        let (near, driver) = Tunnel::new(a, Side::Opener, tick());
        tokio::task::spawn_local(driver);
        let refuse = Box::new(|tunnel: &Tunnel, id: u32| tunnel.refuse(id, Reason::Denied));
        let (_far, driver) = Tunnel::new(b, Side::Acceptor(refuse), tick());
        tokio::task::spawn_local(driver);
        let (_app, ours) = pair().await;
        let Ok(stream) = near.open(ours.into()) else {
            panic!("no room")
        };
        assert_eq!(stream.await.reset, Some(Reason::Denied));
    });
}

#[test]
fn a_drained_tunnel_ends_with_its_last_stream() {
    run(async {
        let world = World::new(echo);
        let (mut app, outcome) = world.connect().await;
        app.write_all(b"before").await.unwrap();
        let mut six = [0; 6];
        app.read_exact(&mut six).await.unwrap();
        world.far.drain(Reason::Drained);
        while world.near.has_room() {
            tokio::task::yield_now().await;
        }
        app.write_all(b"after!").await.unwrap();
        app.read_exact(&mut six).await.unwrap();
        assert_eq!(&six, b"after!");
        app.shutdown().await.unwrap();
        assert_eq!(outcome.await.unwrap().reset, None);
        while world.near.ended().is_none() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_lost_connection_and_a_silent_peer_end_all_streams() {
    run(async {
        let (a, b) = tokio::io::duplex(1_024);
        let (near, driver) = Tunnel::new(a, Side::Opener, tick());
        let driving = tokio::task::spawn_local(driver);
        let (_app, ours) = pair().await;
        let Ok(stream) = near.open(ours.into()) else {
            panic!("no room")
        };
        drop(b);
        assert_eq!(stream.await.reset, Some(Reason::Lost));
        assert_eq!(driving.await.unwrap(), Reason::Lost);

        let world = World::new(echo);
        let (_app, outcome) = world.connect().await;
        tokio::task::yield_now().await;
        world.tick.set(PING_AFTER_SECONDS);
        world.near.look(0);
        // It lives and answers.
        while world.near.state.borrow().pinged {
            tokio::task::yield_now().await;
        }
        world.tick.set(PING_AFTER_SECONDS + DEAD_AFTER_SECONDS);
        world.near.look(0);
        assert_eq!(outcome.await.unwrap().reset, Some(Reason::Lost));
    });
}

#[test]
fn idle_streams_are_ended_and_busy_ones_are_not() {
    run(async {
        let world = World::new(echo);
        let (mut busy, _running) = world.connect().await;
        let (_idle, outcome) = world.connect().await;
        world.tick.set(5);
        busy.write_all(b"x").await.unwrap();
        let mut one = [0; 1];
        busy.read_exact(&mut one).await.unwrap();
        world.tick.set(8);
        world.near.look(8);
        assert_eq!(outcome.await.unwrap().reset, Some(Reason::Idle));
        assert_eq!(world.near.streams(), 1);
    });
}

/// The far end says what no proxy says, to a side that opens or takes streams.
async fn misbehave(opens: bool, frames: &[Frame<'_>]) -> Reason {
    let (a, mut b): (_, DuplexStream) = tokio::io::duplex(256 * 1024);
    let side = if opens {
        Side::Opener
    } else {
        Side::Acceptor(Box::new(|_, _| ()))
    };
    let (near, driver) = Tunnel::new(a, side, tick());
    let driving = tokio::task::spawn_local(driver);
    if opens {
        let (_app, ours) = pair().await;
        let Ok(stream) = near.open(ours.into()) else {
            panic!("no room")
        };
        tokio::task::spawn_local(stream);
    }
    let mut out = BytesMut::new();
    for frame in frames {
        wire::encode(*frame, &mut out);
    }
    b.write_all(&out).await.unwrap();
    driving.await.unwrap()
}

#[test]
fn who_breaks_the_rules_loses_the_tunnel() {
    use Frame::{Credit, Data, Fin, Open};
    let much: &[u8] = &[0; WINDOW as usize + 1];
    let open = |stream| Open { stream, window: 5 };
    let cases: &[(bool, &[Frame<'_>])] = &[
        (
            false,
            &[
                open(1),
                Data {
                    stream: 1,
                    bytes: much,
                },
            ],
        ),
        (false, &[open(2), open(1)]),
        (
            false,
            &[Data {
                stream: 1,
                bytes: b"x",
            }],
        ),
        (
            true,
            &[Data {
                stream: 9,
                bytes: b"x",
            }],
        ),
        (
            true,
            &[
                Fin { stream: 1 },
                Data {
                    stream: 1,
                    bytes: b"x",
                },
            ],
        ),
        (true, &[open(2)]),
        (
            true,
            &[Credit {
                stream: 1,
                bytes: u32::MAX,
            }],
        ),
        (
            true,
            &[Credit {
                stream: 1,
                bytes: 0,
            }],
        ),
    ];
    run(async move {
        for (number, (opens, frames)) in cases.iter().enumerate() {
            let ended = tokio::time::timeout(Duration::from_secs(20), misbehave(*opens, frames));
            assert_eq!(ended.await, Ok(Reason::Protocol), "case {number}");
        }
    });
}

#[test]
fn who_asks_without_end_and_does_not_listen_is_let_go() {
    run(async {
        let (a, mut b) = tokio::io::duplex(4_096);
        let refuse = Box::new(|tunnel: &Tunnel, id: u32| tunnel.refuse(id, Reason::Denied));
        let (_near, driver) = Tunnel::new(a, Side::Acceptor(refuse), tick());
        let driving = tokio::task::spawn_local(driver);
        let mut out = BytesMut::new();
        for stream in 1..200_000 {
            wire::encode(Frame::Open { stream, window: 5 }, &mut out);
        }
        let asking = tokio::task::spawn_local(async move {
            let _ = b.write_all(&out).await;
            std::future::pending::<()>().await;
            drop(b);
        });
        assert_eq!(driving.await.unwrap(), Reason::Protocol);
        asking.abort();
    });
}

#[test]
fn a_tunnel_that_carries_nothing_is_closed_after_a_while() {
    run(async {
        let world = World::new(echo);
        let (mut app, outcome) = world.connect().await;
        app.shutdown().await.unwrap();
        outcome.await.unwrap();
        world.tick.set(EMPTY_AFTER_SECONDS - 1);
        // Alive all the time.
        world.near.state.borrow_mut().heard = EMPTY_AFTER_SECONDS - 1;
        world.near.look(0);
        assert!(world.near.has_room());
        world.tick.set(EMPTY_AFTER_SECONDS);
        world.near.look(0);
        while world.near.ended().is_none() {
            tokio::task::yield_now().await;
        }
    });
}
