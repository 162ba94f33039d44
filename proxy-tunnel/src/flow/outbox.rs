// SPDX-License-Identifier: Apache-2.0

//! The messages to be sent on one stream, ordered so that every tunnel has its turn. Each tunnel
//! has a lane with its own queue; the stream takes one message of each lane in turn. A lane says
//! when its source may be read again, so the queue is bounded where the source has flow control.

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

/// The stream has ended; nothing can be sent on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the stream has ended")]
pub struct Ended;

/// Messages of no tunnel that wait at most.
const MOST: usize = 65_536;

#[derive(Debug, Default)]
struct LaneState {
    queue: VecDeque<Message>,
    bytes: usize,
    /// Bytes for which the receiver still has room; none: it has no windows. A message may be
    /// larger than the rest, hence the sign.
    credit: Option<i64>,
    writer: Option<Waker>,
    /// It stands in `ready`.
    scheduled: bool,
    /// Its owner has gone: it ends when it is empty.
    released: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Queued messages are sent, no others are accepted.
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
    /// Bytes that were taken from lanes, in all.
    sent: u64,
    phase: Phase,
    status: Option<Status>,
    reader: Option<Waker>,
}

/// All that is to be sent on a stream.
#[derive(Debug)]
pub struct Outbox {
    state: Mutex<State>,
}

impl Outbox {
    /// An empty one.
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
        // A panic while it is held leaves queues that are consistent.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A lane for a new tunnel; with `window`, no more than so many bytes are sent before the receiver
    /// grants others.
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

    /// Sends messages that belong to no tunnel, before everything else.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn control(&self, message: Message) -> Result<(), Ended> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(Ended);
        }
        if state.control.len() >= MOST {
            // A peer that sends messages that need an answer and does not read is cut.
            drop(state);
            self.end();
            return Err(Ended);
        }
        state.control.push_back(message);
        wake(&mut state.reader);
        Ok(())
    }

    /// Ends the stream when everything that waits has been sent, with an error if one is given.
    pub fn finish(&self, status: Option<Status>) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Finishing;
            state.status = status;
            wake(&mut state.reader);
            wake_writers(&mut state);
        }
    }

    /// Ends the stream at once. What waits is dropped.
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

    /// Whether nothing can be sent any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.lock().phase != Phase::Open
    }

    /// Bytes that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().bytes
    }

    /// Bytes of tunnels that the transport has taken, in all.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.lock().sent
    }

    /// The messages to send. Taken once, by the transport.
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

/// One tunnel's place in an [`Outbox`]. When it is dropped, its queued messages are still sent.
#[derive(Debug)]
pub struct Lane {
    outbox: Arc<Outbox>,
    id: u64,
}

impl Lane {
    /// How many bytes may be pushed now, or the stream's end.
    ///
    /// # Errors
    /// The stream has ended.
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

    /// Waits until bytes may be pushed, and says how many.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn ready(&self) -> Result<usize, Ended> {
        poll_fn(|context| self.poll_ready(context)).await
    }

    /// Waits until nothing waits to be sent.
    ///
    /// # Errors
    /// The stream has ended.
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

    /// Adds a message. It never waits: a task that pushes bytes calls [`Self::ready`] before.
    ///
    /// # Errors
    /// The stream has ended.
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

    /// The receiver has room for so many more bytes.
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

/// An [`Outbox`] as the transport takes it. When the transport drops it, the outbox ends.
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
