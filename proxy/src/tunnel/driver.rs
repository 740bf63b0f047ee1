//! Reads the tunnel's connection, and writes what its streams have to say.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Accept, OUT_HIGH_BYTES, STREAMS_MAX, Slot, State, Tunnel, WINDOW};
use crate::scratch::{self, SCRATCH_BYTES};
use crate::wire::{self, Decoder, Frame, Reason};

/// Reads before others have their turn.
const READS_A_TURN: usize = 4;

/// Does the tunnel's work until it ends; says why it did.
pub struct Driver<Io> {
    tunnel: Tunnel,
    io: Io,
    decoder: Decoder,
    accept: Option<Accept>,
    unflushed: bool,
}

impl<Io> Driver<Io> {
    pub(super) fn new(tunnel: Tunnel, io: Io, accept: Option<Accept>) -> Self {
        Self {
            tunnel,
            io,
            decoder: Decoder::default(),
            accept,
            unflushed: false,
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Future for Driver<Io> {
    type Output = Reason;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reason> {
        let this = &mut *self;
        {
            let mut state = this.tunnel.state.borrow_mut();
            match &mut state.driver {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
        }
        let reason = match this.read(cx).and_then(|()| this.write(cx)) {
            Ok(()) => {
                let state = this.tunnel.state.borrow();
                match state.ended {
                    Some(reason) => reason,
                    // All was said.
                    None if state.draining
                        && state.streams.is_empty()
                        && state.out.is_empty()
                        && !this.unflushed =>
                    {
                        Reason::Drained
                    }
                    None => return Poll::Pending,
                }
            }
            Err(reason) => reason,
        };
        this.tunnel.state.borrow_mut().lose(reason);
        // The peer learns that nothing was cut off, if it can be told at once.
        let _ = Pin::new(&mut this.io).poll_shutdown(cx);
        Poll::Ready(reason)
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Driver<Io> {
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), Reason> {
        scratch::with(|scratch| {
            for _ in 0..READS_A_TURN {
                let mut buffer = ReadBuf::new(scratch);
                match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Err(_)) => return Err(Reason::Lost),
                    Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Err(Reason::Lost),
                    Poll::Ready(Ok(())) => self.take(buffer.filled())?,
                }
            }
            cx.waker().wake_by_ref();
            Ok(())
        })
    }

    fn take(&mut self, mut input: &[u8]) -> Result<(), Reason> {
        let mut state = self.tunnel.state.borrow_mut();
        state.heard = state.tick.get();
        state.pinged = false;
        loop {
            let frame = self.decoder.next(&mut input);
            let Some(frame) = frame.map_err(|_| Reason::Protocol)? else {
                return Ok(());
            };
            // Whoever asks and does not listen: answers are not kept without bound.
            if state.out.len() > 2 * OUT_HIGH_BYTES {
                return Err(Reason::Protocol);
            }
            if let Some(opened) = state.take(frame)? {
                let Some(accept) = &self.accept else {
                    return Err(Reason::Protocol);
                };
                // It will want the state.
                drop(state);
                accept(&self.tunnel, opened);
                state = self.tunnel.state.borrow_mut();
            }
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Reason> {
        let tunnel = self.tunnel.clone();
        let mut state = tunnel.state.borrow_mut();
        match self.flush(&mut state, cx) {
            Poll::Ready(Err(_)) => return Err(Reason::Lost),
            Poll::Ready(Ok(())) => state.out = BytesMut::new(),
            Poll::Pending => {}
        }
        if state.out.len() < OUT_HIGH_BYTES / 2 && !state.held_back.is_empty() {
            state.release();
        }
        Ok(())
    }

    fn flush(&mut self, state: &mut State, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !state.out.is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, &state.out))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            state.out.advance(count);
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl State {
    /// A frame's effect; the id of a stream that was opened by it.
    fn take(&mut self, frame: Frame<'_>) -> Result<Option<u32>, Reason> {
        match frame {
            Frame::Open { stream, window } => return self.opened(stream, window),
            Frame::Data { stream, bytes } => self.data(stream, bytes)?,
            Frame::Fin { stream } => {
                if let Some(slot) = self.streams.get_mut(&stream) {
                    slot.finished_in = true;
                    slot.wake();
                }
            }
            Frame::Reset { stream, reason } => {
                if let Some(slot) = self.streams.get_mut(&stream) {
                    slot.reset.get_or_insert(reason);
                    slot.wake();
                }
            }
            Frame::Credit { bytes: 0, .. } => return Err(Reason::Protocol),
            Frame::Credit { stream, bytes } => {
                if let Some(slot) = self.streams.get_mut(&stream) {
                    slot.credit = slot.credit.checked_add(bytes).ok_or(Reason::Protocol)?;
                    slot.wake();
                }
            }
            Frame::Ping(value) => {
                wire::encode(Frame::Pong(value), &mut self.out);
            }
            Frame::Pong(_) => {}
            Frame::GoAway(_) => self.draining = true,
        }
        Ok(None)
    }

    fn opened(&mut self, stream: u32, window: u32) -> Result<Option<u32>, Reason> {
        if self.opens || stream <= self.last_opened {
            return Err(Reason::Protocol);
        }
        self.last_opened = stream;
        let reason = if self.draining {
            Reason::Drained
        } else if self.streams.len() >= STREAMS_MAX {
            Reason::Limit
        } else {
            let slot = Slot::new(window, self.tick.get());
            self.streams.insert(stream, slot);
            return Ok(Some(stream));
        };
        wire::encode(Frame::Reset { stream, reason }, &mut self.out);
        Ok(None)
    }

    /// Straight to the application, if nothing waits before it and it takes it.
    fn data(&mut self, stream: u32, bytes: &[u8]) -> Result<(), Reason> {
        let Some(slot) = self.streams.get_mut(&stream) else {
            // In flight when we reset it; or never opened.
            let known = self.opens && stream < self.next_stream || stream <= self.last_opened;
            return if known { Ok(()) } else { Err(Reason::Protocol) };
        };
        let count = bytes.len() as u32;
        if slot.granted < count || slot.finished_in {
            return Err(Reason::Protocol);
        }
        if slot.reset.is_some() {
            return Ok(()); // denied, or given up: in flight when it was
        }
        slot.granted -= count;
        slot.received += u64::from(count);
        slot.touched = self.tick.get();
        let mut taken = 0;
        if slot.waiting.is_empty()
            && let Some(local) = &slot.local
        {
            taken = local.try_write(bytes).unwrap_or_default();
        }
        if taken < bytes.len() {
            slot.waiting.extend_from_slice(&bytes[taken..]);
            slot.wake();
        }
        slot.thank(stream, taken, &mut self.out);
        Ok(())
    }
}

const _: () = assert!(
    WINDOW as usize <= SCRATCH_BYTES,
    "a window's worth is read at once"
);
