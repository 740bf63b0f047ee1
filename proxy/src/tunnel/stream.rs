//! One connection of an application, carried as a stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::AsyncWrite as _;

use super::{OUT_HIGH_BYTES, Slot, State, Tunnel};
use crate::wire::{self, DATA_BYTES_MAX, Frame, HEADER_BYTES, Reason};

/// Frames read from an application before others have their turn.
const FRAMES_A_TURN: usize = 4;

/// What became of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes from the application into the tunnel.
    pub sent: u64,
    /// Bytes out of the tunnel.
    pub received: u64,
    /// Why it ended early; `None`: both sides were done.
    pub reset: Option<Reason>,
}

/// Carries bytes between the application and the tunnel until both ways are done, or one breaks.
///
/// Dropped before that, the stream is reset.
pub struct Stream {
    tunnel: Tunnel,
    id: u32,
    is_done: bool,
}

impl Stream {
    pub(super) fn new(tunnel: Tunnel, id: u32) -> Self {
        Self {
            tunnel,
            id,
            is_done: false,
        }
    }
}

impl Future for Stream {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let tunnel = self.tunnel.clone();
        let mut state = tunnel.state.borrow_mut();
        let Poll::Ready(reset) = state.carry(self.id, cx) else {
            return Poll::Pending;
        };
        self.is_done = true;
        Poll::Ready(state.leave(self.id, reset))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.is_done {
            let mut state = self.tunnel.state.borrow_mut();
            state.reset(self.id, Reason::Reset);
            state.leave(self.id, Some(Reason::Reset));
        }
    }
}

impl State {
    /// Moves what can be moved for one stream; ready when it is over.
    fn carry(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Option<Reason>> {
        let Some(slot) = self.streams.get_mut(&id) else {
            return Poll::Ready(Some(Reason::Reset));
        };
        match &mut slot.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        if slot.reset.is_some() {
            return Poll::Ready(slot.reset);
        }
        let queued = self.out.len();
        let carried = slot
            .inward(id, &mut self.out, cx)
            .and_then(|()| self.outward(id, cx));
        if carried.is_err() {
            self.reset(id, Reason::Reset);
            return Poll::Ready(Some(Reason::Reset));
        }
        if self.out.len() != queued {
            self.wake_driver();
        }
        match self.streams.get(&id) {
            Some(slot) if slot.finished_out && slot.told_end => Poll::Ready(None),
            _ => Poll::Pending,
        }
    }

    /// What the application says goes into the tunnel.
    fn outward(&mut self, id: u32, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(slot) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        for _ in 0..FRAMES_A_TURN {
            // Credit wakes it.
            if slot.finished_out || slot.credit == 0 {
                return Ok(());
            }
            if self.out.len() >= OUT_HIGH_BYTES {
                self.held_back.insert(id);
                return Ok(());
            }
            match slot.frame(id, &mut self.out, cx)? {
                Poll::Pending => return Ok(()),
                Poll::Ready(()) => slot.touched = self.tick.get(),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// The stream is over; the tunnel may have waited for its last.
    fn leave(&mut self, id: u32, reset: Option<Reason>) -> Outcome {
        self.wake_driver();
        let Some(slot) = self.streams.remove(&id) else {
            return Outcome {
                reset,
                ..Outcome::default()
            };
        };
        if let Some(local) = &slot.local
            && reset.is_some()
        {
            local.abort_on_close();
        }
        Outcome {
            sent: slot.sent,
            received: slot.received,
            reset,
        }
    }
}

impl Slot {
    /// What waits goes to the application.
    fn inward(&mut self, id: u32, out: &mut BytesMut, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(local) = &mut self.local else {
            return Ok(());
        };
        let mut taken = 0;
        while !self.waiting.is_empty() {
            let Poll::Ready(count) = Pin::new(&mut *local).poll_write(cx, &self.waiting)? else {
                break;
            };
            self.waiting.advance(count);
            taken += count;
        }
        if self.waiting.is_empty() {
            self.waiting = BytesMut::new();
            if self.finished_in && !std::mem::replace(&mut self.told_end, true) {
                local.finish();
            }
        }
        self.thank(id, taken, out);
        Ok(())
    }

    /// Grants what the application has made room for.
    pub(super) fn thank(&mut self, id: u32, taken: usize, out: &mut BytesMut) {
        if taken > 0
            && let Some(bytes) = self.took(taken as u32)
        {
            wire::encode(Frame::Credit { stream: id, bytes }, out);
        }
    }

    /// Reads one frame's worth from the application, where it will be sent from.
    fn frame(&mut self, id: u32, out: &mut BytesMut, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        let Some(local) = &mut self.local else {
            return Ok(Poll::Pending);
        };
        let most = DATA_BYTES_MAX.min(self.credit as usize);
        out.reserve(HEADER_BYTES + most);
        let at = wire::begin_data(out);
        let mut room = (&mut *out).limit(most);
        let read = local.poll_append(cx, &mut room);
        let count = wire::end_data(out, at, id);
        self.credit -= count as u32;
        self.sent += count as u64;
        Ok(match read? {
            Poll::Pending => Poll::Pending,
            Poll::Ready(0) => {
                self.finished_out = true;
                wire::encode(Frame::Fin { stream: id }, out);
                Poll::Ready(())
            }
            Poll::Ready(_) => Poll::Ready(()),
        })
    }
}
