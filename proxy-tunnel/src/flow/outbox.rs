// SPDX-License-Identifier: Apache-2.0

//! The messages to send on one stream, ordered so that the tunnels take turns. Each tunnel has a lane with its own
//! queue, and the stream takes one message from each lane in turn. A lane reports when its source may be read again, so
//! its queue is bounded if the source has flow control.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use thiserror::Error;
use tonic::Status;

use super::{CHUNK, LANE, LINK};
use crate::wire::Message;

/// The error of a send on a stream that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the stream has ended")]
pub struct Ended;

/// The maximum number of waiting messages that belong to no tunnel.
const MOST: usize = 65_536;

#[derive(Debug, Default)]
struct LaneState {
    queue: VecDeque<Message>,
    bytes: usize,
    /// The number of bytes for which the receiver still has room; `None` if it does not support windows. Signed,
    /// because a message may be larger than the remaining room.
    credit: Option<i64>,
    writer: Option<Waker>,
    /// The lane is in `ready`.
    scheduled: bool,
    /// The lane's owner has dropped it; the lane is removed once its queue is empty.
    released: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Queued messages are still sent; new ones are refused.
    Finishing,
    Ended,
}

#[derive(Debug)]
struct State {
    control: VecDeque<Message>,
    ready: VecDeque<u64>,
    lanes: HashMap<u64, LaneState>,
    next: u64,
    bytes: usize,
    /// The total number of bytes taken from the lanes.
    sent: u64,
    phase: Phase,
    status: Option<Status>,
    reader: Option<Waker>,
}

/// The queue of all messages to send on a stream.
#[derive(Debug)]
pub struct Outbox {
    state: Mutex<State>,
}

impl Outbox {
    /// Creates an empty outbox.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                control: VecDeque::new(),
                ready: VecDeque::new(),
                lanes: HashMap::new(),
                next: 0,
                bytes: 0,
                sent: 0,
                phase: Phase::Open,
                status: None,
                reader: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves the queues consistent.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Creates a lane for a new tunnel. With a `window`, no more than that many bytes are sent until the receiver
    /// grants more.
    #[must_use]
    pub fn lane(self: &Arc<Self>, window: Option<u32>) -> Lane {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        let lane = LaneState {
            credit: window.map(i64::from),
            ..LaneState::default()
        };
        state.lanes.insert(id, lane);
        drop(state);
        Lane {
            outbox: Arc::clone(self),
            id,
        }
    }

    /// Sends a message that belongs to no tunnel, ahead of all lanes.
    ///
    /// # Errors
    /// Returns an error if the stream has ended.
    pub fn control(&self, message: Message) -> Result<(), Ended> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(Ended);
        }
        if state.control.len() >= MOST {
            // The peer sends messages that need an answer but does not read the answers: end the stream.
            drop(state);
            self.end();
            return Err(Ended);
        }
        state.control.push_back(message);
        wake(&mut state.reader);
        Ok(())
    }

    /// Ends the stream after all waiting messages have been sent, with an error if `status` is given.
    pub fn finish(&self, status: Option<Status>) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Finishing;
            state.status = status;
            wake(&mut state.reader);
            wake_writers(&mut state);
        }
    }

    /// Ends the stream at once, and drops all waiting messages.
    pub fn end(&self) {
        let mut state = self.lock();
        state.phase = Phase::Ended;
        state.control.clear();
        state.ready.clear();
        state.bytes = 0;
        for lane in state.lanes.values_mut() {
            lane.queue.clear();
            lane.bytes = 0;
            lane.scheduled = false;
        }
        wake(&mut state.reader);
        wake_writers(&mut state);
    }

    /// Returns whether the outbox refuses new messages.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.lock().phase != Phase::Open
    }

    /// Returns the number of waiting bytes.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().bytes
    }

    /// Returns the total number of tunnel bytes that the transport has taken.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.lock().sent
    }

    /// Returns the stream of messages to send. The transport calls this once.
    #[must_use]
    pub fn stream(self: &Arc<Self>) -> OutboxStream {
        OutboxStream(Arc::clone(self))
    }

    fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Result<Message, Status>>> {
        let mut state = self.lock();
        if let Some(message) = state.control.pop_front() {
            return Poll::Ready(Some(Ok(message)));
        }
        while let Some(id) = state.ready.pop_front() {
            let State {
                lanes,
                bytes,
                sent,
                ready,
                ..
            } = &mut *state;
            let Some(lane) = lanes.get_mut(&id) else {
                continue;
            };
            let Some(message) = lane.queue.pop_front() else {
                lane.scheduled = false;
                continue;
            };
            let length = message.payload_len();
            lane.bytes -= length;
            *bytes -= length;
            *sent += length as u64;
            if lane.queue.is_empty() {
                lane.queue = VecDeque::new();
                lane.scheduled = false;
                if lane.released {
                    lanes.remove(&id);
                    return Poll::Ready(Some(Ok(message)));
                }
            } else {
                ready.push_back(id);
            }
            if lane.bytes <= LANE / 2 {
                wake(&mut lane.writer);
            }
            return Poll::Ready(Some(Ok(message)));
        }
        match state.phase {
            Phase::Open => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
            Phase::Finishing | Phase::Ended => {
                state.phase = Phase::Ended;
                Poll::Ready(state.status.take().map(Err))
            }
        }
    }
}

/// A tunnel's lane in an [`Outbox`]. After the lane is dropped, its queued messages are still sent.
#[derive(Debug)]
pub struct Lane {
    outbox: Arc<Outbox>,
    id: u64,
}

impl Lane {
    /// Returns how many bytes may be pushed now, or pending if there is no room.
    ///
    /// # Errors
    /// Returns an error if the stream has ended.
    pub fn poll_ready(&self, context: &mut Context<'_>) -> Poll<Result<usize, Ended>> {
        let mut state = self.outbox.lock();
        if state.phase != Phase::Open {
            return Poll::Ready(Err(Ended));
        }
        let is_link_full = state.bytes >= LINK;
        let Some(lane) = state.lanes.get_mut(&self.id) else {
            return Poll::Ready(Err(Ended));
        };
        let limit = if is_link_full { 1 } else { LANE };
        let credit = lane.credit.unwrap_or(i64::MAX);
        if lane.bytes < limit && credit > 0 {
            return Poll::Ready(Ok(
                usize::try_from(credit).map_or(CHUNK, |credit| credit.min(CHUNK))
            ));
        }
        lane.writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// Waits until bytes may be pushed, and returns how many.
    ///
    /// # Errors
    /// Returns an error if the stream has ended.
    pub async fn ready(&self) -> Result<usize, Ended> {
        poll_fn(|context| self.poll_ready(context)).await
    }

    /// Waits until none of the lane's bytes are waiting.
    ///
    /// # Errors
    /// Returns an error if the stream has ended.
    pub fn poll_empty(&self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let mut state = self.outbox.lock();
        let has_ended = state.phase == Phase::Ended;
        match state.lanes.get_mut(&self.id) {
            Some(lane) if lane.bytes > 0 => {
                lane.writer = Some(context.waker().clone());
                Poll::Pending
            }
            _ if has_ended => Poll::Ready(Err(Ended)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Adds a message without waiting. A task that pushes data calls [`Self::ready`] first.
    ///
    /// # Errors
    /// Returns an error if the stream has ended.
    pub fn push(&self, message: Message) -> Result<(), Ended> {
        let mut state = self.outbox.lock();
        if state.phase != Phase::Open {
            return Err(Ended);
        }
        let length = message.payload_len();
        let State {
            lanes,
            ready,
            reader,
            bytes,
            ..
        } = &mut *state;
        let lane = lanes.get_mut(&self.id).ok_or(Ended)?;
        if let Some(credit) = &mut lane.credit {
            *credit -= i64::try_from(length).unwrap_or(i64::MAX);
        }
        lane.bytes += length;
        *bytes += length;
        lane.queue.push_back(message);
        if !lane.scheduled {
            lane.scheduled = true;
            ready.push_back(self.id);
        }
        wake(reader);
        Ok(())
    }

    /// Records that the receiver has room for `bytes` more bytes.
    pub fn grant(&self, bytes: u32) {
        let mut state = self.outbox.lock();
        if let Some(lane) = state.lanes.get_mut(&self.id)
            && let Some(credit) = &mut lane.credit
        {
            *credit = credit.saturating_add(i64::from(bytes));
            wake(&mut lane.writer);
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut state = self.outbox.lock();
        if let Some(lane) = state.lanes.get_mut(&self.id) {
            lane.released = true;
            if lane.queue.is_empty() {
                state.lanes.remove(&self.id);
            }
        }
    }
}

/// The messages of an [`Outbox`], as the transport polls them. The outbox ends when the transport drops this stream.
#[derive(Debug)]
pub struct OutboxStream(Arc<Outbox>);

impl Stream for OutboxStream {
    type Item = Result<Message, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next(context)
    }
}

impl Drop for OutboxStream {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn wake_writers(state: &mut State) {
    for lane in state.lanes.values_mut() {
        wake(&mut lane.writer);
    }
}

#[cfg(test)]
mod tests;
