// SPDX-License-Identifier: Apache-2.0

//! The messages that a tunnel has received and its socket has not yet taken. The task that reads the shared stream
//! pushes them and never waits; the tunnel's own task takes them. An inbox over its limit refuses data, and then its
//! tunnel, but no other one, is closed.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use prometheus::IntGauge;
use thiserror::Error;

use super::Limits;
use super::budget::Budget;

/// The memory of an item in addition to its data, in bytes.
const OVERHEAD: usize = 64;

/// Data shorter than this is always copied. A reference would keep the stream's whole buffer, which contains data of
/// other tunnels too.
const SHORT: usize = 2048;

/// How many bytes of short data may wait in the stream's buffers. The data behind it waits longer, and is copied.
/// Without this limit, a stalled tunnel would keep several times as much memory as is counted.
const LENT: usize = 64 * 1024;

/// Data of at least this length makes up most of the buffer that it was received in, so it is not copied.
const LONG: usize = 16 * 1024;

/// The maximum number of waiting items. Only a malicious peer sends so many: further data is refused, and further
/// events are dropped.
const MOST: usize = 65_536;

/// What a tunnel has received, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item<E> {
    /// Data.
    Data(Bytes),
    /// Any other event.
    Event(E),
}

/// Why an inbox refuses data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Overflow {
    /// The inbox has been over its limit for too long, in seconds.
    #[error("nothing, or too little, was read from the tunnel for {0} s while its buffer was full")]
    Stalled(u64),
    /// The memory of all inboxes together is exhausted.
    #[error(
        "its reader is slower than its sender, and the memory for that is used up (--buffer-budget)"
    )]
    Budget,
}

impl Overflow {
    /// Returns the label in metrics.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Stalled(_) => "stalled",
            Self::Budget => "budget",
        }
    }
}

#[derive(Debug)]
struct State<E> {
    items: VecDeque<Item<E>>,
    /// The number of data bytes in `items`.
    bytes: usize,
    /// The bytes reserved for them in the regular and in the excess part of the budget.
    regular: usize,
    excess: usize,
    full_since: Option<Instant>,
    /// The inbox is closed: further messages are dropped.
    closed: bool,
    /// The waiting messages were dropped, and the socket must be cut.
    cut: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The inbox of one tunnel.
#[derive(Debug)]
pub struct Inbox<E> {
    state: Mutex<State<E>>,
    budget: Arc<Budget>,
    limits: Limits,
    full: [Option<IntGauge>; 2],
}

impl<E> Inbox<E> {
    /// Creates an empty inbox. The gauges `full` count the inboxes that are over their limit.
    #[must_use]
    pub const fn new(budget: Arc<Budget>, limits: Limits, full: [Option<IntGauge>; 2]) -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                bytes: 0,
                regular: 0,
                excess: 0,
                full_since: None,
                closed: false,
                cut: false,
                reader: None,
                writer: None,
            }),
            budget,
            limits,
            full,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        // A panic while the lock is held leaves the counters consistent.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds data. Returns true if the inbox has just exceeded its limit.
    ///
    /// # Errors
    /// Returns an error if the tunnel must be closed; the data is dropped.
    pub fn push_data(&self, data: Bytes) -> Result<bool, Overflow> {
        let mut state = self.lock();
        if state.closed || data.is_empty() {
            return Ok(false);
        }
        let was_full = state.full_since.is_some();
        let length = data.len();
        let is_within = state.bytes + length <= self.limits.tunnel;
        let cost = length + OVERHEAD;
        if state.items.len() >= MOST {
            return Err(Overflow::Budget);
        }
        if is_within {
            if !self.budget.regular.take(cost) {
                return Err(Overflow::Budget);
            }
            state.regular += cost;
        } else {
            let since = *state.full_since.get_or_insert_with(|| {
                self.full.iter().flatten().for_each(IntGauge::inc);
                Instant::now()
            });
            if since.elapsed() > self.limits.stall {
                return Err(Overflow::Stalled(self.limits.stall.as_secs()));
            }
            if !self.budget.excess.take(cost) {
                return Err(Overflow::Budget);
            }
            state.excess += cost;
        }
        let keeps_little = length >= LONG || (length >= SHORT && state.bytes < LENT);
        state.bytes += length;
        let data = if is_within && keeps_little {
            data
        } else {
            Bytes::copy_from_slice(&data)
        };
        state.items.push_back(Item::Data(data));
        wake(&mut state.reader);
        Ok(!was_full && state.full_since.is_some())
    }

    /// Adds an event.
    pub fn push(&self, event: E) {
        let mut state = self.lock();
        if !state.closed && state.items.len() < MOST {
            state.items.push_back(Item::Event(event));
            wake(&mut state.reader);
        }
    }

    /// Replaces the waiting messages by an event. Wakes a task that waits for the socket together with [`Self::cut`].
    pub fn cut_with(&self, event: E) {
        let mut state = self.lock();
        if !state.closed {
            self.clear(&mut state);
            state.cut = true;
            state.items.push_back(Item::Event(event));
            wake(&mut state.reader);
            wake(&mut state.writer);
        }
    }

    /// Polls for the next item.
    pub fn poll_next(&self, context: &mut Context<'_>) -> Poll<Item<E>> {
        let mut state = self.lock();
        if let Some(item) = self.pop(&mut state) {
            return Poll::Ready(item);
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// Waits for the next item and returns it.
    pub async fn next(&self) -> Item<E> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// Moves waiting data to `chunks`, without blocking, until `chunks` has `most` elements.
    pub fn more(&self, chunks: &mut Vec<Bytes>, most: usize) {
        let mut state = self.lock();
        while chunks.len() < most && matches!(state.items.front(), Some(Item::Data(_))) {
            if let Some(Item::Data(data)) = self.pop(&mut state) {
                chunks.push(data);
            }
        }
    }

    /// Waits until [`Self::cut_with`] is called.
    pub async fn cut(&self) {
        poll_fn(|context| {
            let mut state = self.lock();
            if state.cut {
                return Poll::Ready(());
            }
            state.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Drops the waiting messages and all later ones.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.clear(&mut state);
    }

    fn pop(&self, state: &mut State<E>) -> Option<Item<E>> {
        let item = state.items.pop_front()?;
        if let Item::Data(data) = &item {
            state.bytes -= data.len();
            let cost = data.len() + OVERHEAD;
            let excess = cost.min(state.excess);
            state.excess -= excess;
            state.regular -= cost - excess;
            self.budget.excess.give(excess);
            self.budget.regular.give(cost - excess);
            if state.bytes <= self.limits.tunnel {
                self.no_longer_full(state);
            }
        }
        if state.items.is_empty() {
            // Frees the queue's memory, so that an idle tunnel holds none.
            state.items = VecDeque::new();
        }
        Some(item)
    }

    fn no_longer_full(&self, state: &mut State<E>) {
        if state.full_since.take().is_some() {
            self.full.iter().flatten().for_each(IntGauge::dec);
        }
    }

    fn clear(&self, state: &mut State<E>) {
        self.no_longer_full(state);
        self.budget.excess.give(state.excess);
        self.budget.regular.give(state.regular);
        state.excess = 0;
        state.regular = 0;
        state.bytes = 0;
        state.items = VecDeque::new();
    }
}

impl<E> Drop for Inbox<E> {
    fn drop(&mut self) {
        self.close();
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::WINDOW;
    use super::*;

    fn inbox(budget: usize, stall: Duration) -> (Inbox<&'static str>, Arc<Budget>) {
        let budget = Arc::new(Budget::new(budget));
        let limits = Limits { tunnel: 10, stall };
        (
            Inbox::new(Arc::clone(&budget), limits, [None, None]),
            budget,
        )
    }

    fn bytes(length: usize) -> Bytes {
        vec![0; length].into()
    }

    #[tokio::test]
    async fn keeps_the_order() {
        let (inbox, budget) = inbox(1000, Duration::ZERO);
        inbox.push_data(bytes(3)).unwrap();
        inbox.push("end");
        assert_eq!(budget.used(), 3 + OVERHEAD);
        assert_eq!(inbox.next().await, Item::Data(bytes(3)));
        assert_eq!(inbox.next().await, Item::Event("end"));
        assert_eq!(budget.used(), 0);
    }

    /// Messages that wait for long must not keep the stream's larger buffers.
    #[tokio::test]
    async fn few_bytes_stay_in_the_buffer_that_they_came_in() {
        let budget = Arc::new(Budget::new(8 << 20));
        let inbox = Inbox::<()>::new(budget, Limits::default(), [None, None]);
        let buffer = bytes(LONG * 4);
        let within = buffer.as_ptr_range();
        for length in [SHORT - 1, SHORT, LONG] {
            let mut lent = 0;
            for _ in 0..100 {
                inbox.push_data(buffer.slice(..length)).unwrap();
            }
            for _ in 0..100 {
                let Item::Data(data) = inbox.next().await else {
                    panic!("no bytes");
                };
                assert_eq!(data.len(), length);
                lent += usize::from(within.contains(&data.as_ptr())) * length;
            }
            let most = match length {
                LONG => WINDOW as usize,
                SHORT => LENT,
                _ => 0,
            };
            assert!(lent <= most, "{lent} of {length} each");
            assert!(lent > most / 2 || most == 0, "{lent} of {length} each");
        }
    }

    #[test]
    fn beyond_its_limit_only_for_a_while() {
        let (inbox, _) = inbox(1000, Duration::from_millis(20));
        assert!(!inbox.push_data(bytes(10)).unwrap());
        assert!(inbox.push_data(bytes(1)).unwrap());
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(inbox.push_data(bytes(1)), Err(Overflow::Stalled(0)));
    }

    #[tokio::test]
    async fn a_reader_that_catches_up_is_not_stalled() {
        let (inbox, budget) = inbox(1000, Duration::from_millis(20));
        inbox.push_data(bytes(10)).unwrap();
        inbox.push_data(bytes(5)).unwrap();
        inbox.next().await;
        std::thread::sleep(Duration::from_millis(30));
        inbox.push_data(bytes(5)).unwrap();
        inbox.push_data(bytes(5)).unwrap();
        inbox.close();
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn excess_does_not_use_up_what_others_need() {
        let (offender, budget) = inbox(4 * (10 + OVERHEAD), Duration::from_secs(9));
        let other: Inbox<()> = Inbox::new(
            Arc::clone(&budget),
            Limits {
                tunnel: 10,
                stall: Duration::from_secs(9),
            },
            [None, None],
        );
        for _ in 0..3 {
            offender.push_data(bytes(10)).unwrap();
        }
        assert_eq!(offender.push_data(bytes(1)), Err(Overflow::Budget));
        other.push_data(bytes(10)).unwrap();
        drop(offender);
        assert_eq!(budget.used(), 10 + OVERHEAD);
    }

    #[tokio::test]
    async fn a_cut_drops_what_waits_and_is_seen_at_once() {
        let (inbox, budget) = inbox(1000, Duration::ZERO);
        inbox.push_data(bytes(9)).unwrap();
        inbox.cut_with("lost");
        assert_eq!(budget.used(), 0);
        inbox.cut().await;
        assert_eq!(inbox.next().await, Item::Event("lost"));
    }
}
