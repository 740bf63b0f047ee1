//! A tunnel: one connection between two proxies that carries many connections of one pair of services.
//!
//! Owns: the streams, their windows, what waits to be written, when the tunnel ends.
//! Never: asks who may talk to whom, dials, or spawns by itself: [`Driver`] and [`Stream`] are futures that the
//! shard polls, on one thread.
//!
//! Bytes of the application are read into the very buffer that the TLS connection is fed from (`stream.rs`), and
//! written to the application from the buffer they were decrypted into (`driver.rs`): they wait only when the
//! application does not take them, and then no more than the window granted.

mod driver;
mod stream;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::task::Waker;

use bytes::BytesMut;

pub use driver::Driver;
pub use stream::{Outcome, Stream};

use crate::local::Local;
use crate::wire::{self, Frame, Reason};

/// Bytes a new stream may send before it hears more.
const WINDOW: u32 = 64 * 1024;
/// The window grows to this while the application takes all at once.
const WINDOW_MAX: u32 = 1024 * 1024;
/// Applications are not read from while so much waits to be written.
const OUT_HIGH_BYTES: usize = 256 * 1024;
/// Streams of one tunnel; a pool opens another tunnel beyond it.
pub const STREAMS_MAX: usize = 1_024;
/// Silence after which the other side is asked whether it lives, and after which it does not.
const PING_AFTER_SECONDS: u32 = 10;
const DEAD_AFTER_SECONDS: u32 = 30;
/// A tunnel that carried nothing for so long is closed.
const EMPTY_AFTER_SECONDS: u32 = 300;

/// Seconds since the shard began, told by the shard.
pub type Tick = Rc<Cell<u32>>;

/// Told of each stream that the other side opens; it ends with [`Tunnel::serve`] or [`Tunnel::refuse`].
pub type Accept = Box<dyn Fn(&Tunnel, u32)>;

/// A handle.
#[derive(Clone)]
pub struct Tunnel {
    state: Rc<RefCell<State>>,
}

struct State {
    streams: BTreeMap<u32, Slot>,
    /// Frames to be written.
    out: BytesMut,
    /// Streams that wait until less is to be written.
    held_back: BTreeSet<u32>,
    driver: Option<Waker>,
    next_stream: u32,
    /// Highest id the other side has opened.
    last_opened: u32,
    opens: bool,
    tick: Tick,
    heard: u32,
    /// When it last had a stream.
    used: u32,
    pinged: bool,
    /// No new streams.
    draining: bool,
    ended: Option<Reason>,
}

/// One stream.
struct Slot {
    local: Option<Local>,
    waker: Option<Waker>,
    /// Received, and not yet taken by the application.
    waiting: BytesMut,
    /// What the other side may still send.
    granted: u32,
    /// Taken by the application, and not yet granted anew.
    taken: u32,
    window: u32,
    /// What we may still send.
    credit: u32,
    finished_in: bool,
    /// The application knows that `finished_in`.
    told_end: bool,
    finished_out: bool,
    reset: Option<Reason>,
    sent: u64,
    received: u64,
    touched: u32,
}

impl Slot {
    fn new(credit: u32, now: u32) -> Self {
        Self {
            local: None,
            waker: None,
            waiting: BytesMut::new(),
            granted: WINDOW,
            taken: 0,
            window: WINDOW,
            credit,
            finished_in: false,
            told_end: false,
            finished_out: false,
            reset: None,
            sent: 0,
            received: 0,
            touched: now,
        }
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// The application took `bytes`: what may be granted for them.
    fn took(&mut self, bytes: u32) -> Option<u32> {
        self.taken += bytes;
        if self.taken < self.window / 2 || self.finished_in {
            return None;
        }
        let mut grant = std::mem::take(&mut self.taken);
        // An application that keeps up costs no memory, however wide the window is.
        if self.waiting.is_empty() && self.window < WINDOW_MAX {
            grant += self.window;
            self.window *= 2;
        }
        self.granted += grant;
        Some(grant)
    }
}

/// How a tunnel begins: as the side that opens streams, or the one that takes them.
pub enum Side {
    /// Opens.
    Opener,
    /// Is told of each stream opened.
    Acceptor(Accept),
}

impl Tunnel {
    /// A tunnel over `io`, whose handshakes are done. Nothing happens until the driver is polled.
    pub fn new<Io>(io: Io, side: Side, tick: Tick) -> (Self, Driver<Io>) {
        let (opens, accept) = match side {
            Side::Opener => (true, None),
            Side::Acceptor(accept) => (false, Some(accept)),
        };
        let state = State {
            streams: BTreeMap::new(),
            out: BytesMut::new(),
            held_back: BTreeSet::new(),
            driver: None,
            next_stream: 1,
            last_opened: 0,
            opens,
            heard: tick.get(),
            used: tick.get(),
            pinged: false,
            tick,
            draining: false,
            ended: None,
        };
        let tunnel = Self {
            state: Rc::new(RefCell::new(state)),
        };
        let driver = Driver::new(tunnel.clone(), io, accept);
        (tunnel, driver)
    }

    /// Whether a stream can be opened now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let state = self.state.borrow();
        state.opens
            && state.ended.is_none()
            && !state.draining
            && state.streams.len() < STREAMS_MAX
            && state.next_stream < u32::MAX
    }

    /// Streams that are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.state.borrow().streams.len()
    }

    /// Carries `local` as a new stream. `Err` gives it back: there is no room.
    pub fn open(&self, local: Local) -> Result<Stream, Local> {
        if !self.has_room() {
            return Err(local);
        }
        let mut state = self.state.borrow_mut();
        let id = state.next_stream;
        state.next_stream += 1;
        let open = Frame::Open {
            stream: id,
            window: WINDOW,
        };
        wire::encode(open, &mut state.out);
        let mut slot = Slot::new(WINDOW, state.tick.get());
        slot.local = Some(local);
        state.streams.insert(id, slot);
        state.wake_driver();
        drop(state);
        Ok(Stream::new(self.clone(), id))
    }

    /// Carries a stream that the other side opened to `local`.
    #[must_use]
    pub fn serve(&self, id: u32, local: Local) -> Stream {
        if let Some(slot) = self.state.borrow_mut().streams.get_mut(&id) {
            slot.local = Some(local);
        }
        Stream::new(self.clone(), id)
    }

    /// Ends a stream that has no local connection.
    pub fn refuse(&self, id: u32, reason: Reason) {
        let mut state = self.state.borrow_mut();
        if let Some(slot) = state.streams.remove(&id)
            && slot.reset.is_none()
        {
            wire::encode(Frame::Reset { stream: id, reason }, &mut state.out);
        }
        state.wake_driver();
    }

    /// Whether the other side has given the stream up.
    #[must_use]
    pub fn is_given_up(&self, id: u32) -> bool {
        let state = self.state.borrow();
        state.ended.is_some() || state.streams.get(&id).is_none_or(|s| s.reset.is_some())
    }

    /// No new streams; those that are open end in their time, and the tunnel with the last.
    pub fn drain(&self, reason: Reason) {
        let mut state = self.state.borrow_mut();
        if !std::mem::replace(&mut state.draining, true) {
            wire::encode(Frame::GoAway(reason), &mut state.out);
        }
        state.wake_driver();
    }

    /// Ends all streams that are open now.
    pub fn reset_streams(&self, reason: Reason) {
        let mut state = self.state.borrow_mut();
        let ids: Vec<u32> = state.streams.keys().copied().collect();
        for id in ids {
            state.reset(id, reason);
        }
    }

    /// Ends the tunnel and all its streams.
    pub fn end(&self, reason: Reason) {
        self.reset_streams(reason);
        let mut state = self.state.borrow_mut();
        state.draining = true;
        wire::encode(Frame::GoAway(reason), &mut state.out);
        state.wake_driver();
    }

    /// Why it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<Reason> {
        self.state.borrow().ended
    }

    /// Once a second or so: asks a silent peer, gives up a dead one, ends streams silent for `idle_seconds` (0: none).
    pub fn look(&self, idle_seconds: u32) {
        let mut state = self.state.borrow_mut();
        let now = state.tick.get();
        if state.ended.is_some() {
            return;
        }
        let silent = now.saturating_sub(state.heard);
        if silent >= DEAD_AFTER_SECONDS {
            state.lose(Reason::Lost);
            return;
        }
        if silent >= PING_AFTER_SECONDS && !std::mem::replace(&mut state.pinged, true) {
            wire::encode(Frame::Ping(u64::from(now)), &mut state.out);
            state.wake_driver();
        }
        if !state.streams.is_empty() {
            state.used = now;
        } else if now.saturating_sub(state.used) >= EMPTY_AFTER_SECONDS {
            drop(state);
            self.drain(Reason::Idle);
            return;
        }
        if idle_seconds == 0 {
            return;
        }
        let idle = |slot: &Slot| now.saturating_sub(slot.touched) >= idle_seconds;
        let idle: Vec<u32> = state
            .streams
            .iter()
            .filter_map(|(id, slot)| idle(slot).then_some(*id))
            .collect();
        for id in idle {
            state.reset(id, Reason::Idle);
        }
    }
}

impl State {
    fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// Ends a stream from this side.
    fn reset(&mut self, id: u32, reason: Reason) {
        let Some(slot) = self.streams.get_mut(&id) else {
            return;
        };
        if slot.reset.is_none() {
            slot.reset = Some(reason);
            slot.wake();
            wire::encode(Frame::Reset { stream: id, reason }, &mut self.out);
            self.wake_driver();
        }
    }

    /// The tunnel is over: nothing more is written.
    fn lose(&mut self, reason: Reason) {
        self.ended.get_or_insert(reason);
        let all_was_sent = self.out.is_empty();
        self.out = BytesMut::new();
        for slot in self.streams.values_mut() {
            // What is left of these is the application's to read.
            let was_over = slot.finished_in && slot.finished_out && all_was_sent;
            if !was_over {
                slot.reset.get_or_insert(reason);
            }
            slot.wake();
        }
        self.wake_driver();
    }

    /// Less is to be written: those held back may read on.
    fn release(&mut self) {
        for id in std::mem::take(&mut self.held_back) {
            if let Some(slot) = self.streams.get(&id) {
                slot.wake();
            }
        }
    }
}
