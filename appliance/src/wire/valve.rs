//! Holding bytes back: what stands between a connection and its socket while throttling rules apply.
//!
//! Everything that this site sends over TCP passes here, right above the socket: payload, Noise, Yamux, control. What
//! one connection may send is booked in the buckets of all rules that apply to it ([`crate::throttle`]); the buckets are
//! shared with the other connections that those rules bound. What the kernel sends again is charged afterwards.
//!
//! Nothing piles up behind it: [`super::stream::Outbox`] hands on little more than what goes at once, so that a frame
//! of control waits for some 70 ms of bulk. (A limiter below Yamux without that stalled control for a second.)
//! Over QUIC nobody sees the packets; there the frames are booked, with a guess of what is around them.
//! Not its job: which rules apply, which is the swarm task's (`throttling`).

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use crate::throttle::SharedBucket;

/// What UDP, QUIC and its acknowledgements add to frames, one part in so many.
const QUIC_OVERHEAD_PART: u64 = 25;

/// What bounds one connection.
#[derive(Debug, Default)]
pub struct Valve {
    limited: AtomicBool,
    /// Changes with the buckets and with their rates.
    generation: AtomicU64,
    /// Bytes that went to the socket.
    written: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    buckets: Vec<Arc<SharedBucket>>,
    waker: Option<Waker>,
}

/// Bytes that may go from some moment on.
#[derive(Clone, Copy, Debug)]
struct Booking {
    due: Instant,
    bytes: usize,
    generation: u64,
    waited: bool,
}

impl Valve {
    /// From now on these buckets bound the connection; also to be called when the rate of one of them changed. Whoever
    /// waits is woken.
    pub fn set(&self, buckets: Vec<Arc<SharedBucket>>) {
        let mut state = self.state();
        self.limited.store(!buckets.is_empty(), Ordering::Relaxed);
        state.buckets = buckets;
        self.generation.fetch_add(1, Ordering::Release);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// The lowest rate that bounds it, and whose; none: no rule applies.
    pub fn limit(&self) -> Option<(u64, String)> {
        let state = self.state();
        let rates = state.buckets.iter().map(|bucket| (bucket.lock().rate_bps(), &bucket.rule));
        rates.min().map(|(rate, rule)| (rate, rule.clone()))
    }

    /// The same without a name.
    pub fn limit_bps(&self) -> Option<u64> {
        if !self.is_limited() {
            return None;
        }
        self.state().buckets.iter().map(|bucket| bucket.lock().rate_bps()).min()
    }

    /// Bytes that went to the socket so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Counts what went without having been booked: the handshake, and what the kernel sent again.
    pub fn charge(&self, bytes: u64, now: Instant) {
        self.state().buckets.iter().for_each(|bucket| bucket.lock().charge(bytes, now));
    }

    /// How long a sender of so many bytes of frames waits before its next ones, over QUIC.
    pub fn pause(&self, bytes: u64, now: Instant) -> Duration {
        if !self.is_limited() {
            return Duration::ZERO;
        }
        let (state, all) = (self.state(), bytes + bytes / QUIC_OVERHEAD_PART);
        let due = state.buckets.iter().map(|bucket| bucket.lock().book(all, Duration::ZERO, now)).max();
        due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now))
    }

    fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Books at most `want` bytes. None where nothing bounds them any more.
    fn book(&self, want: usize, late: Duration, now: Instant) -> Option<Booking> {
        let state = self.state();
        let slice = state.buckets.iter().map(|bucket| bucket.lock().slice_bytes()).min()?;
        let bytes = slice.min(want as u64);
        let due = state.buckets.iter().map(|bucket| bucket.lock().book(bytes, late, now)).max()?;
        Some(Booking { due, bytes: bytes as usize, generation: self.generation(), waited: false })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place at its valve: what was booked, and the timer for it.
#[derive(Debug)]
pub struct Turn {
    valve: Arc<Valve>,
    granted: usize,
    booked: Option<Booking>,
    late: Duration,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Turn {
    /// Nothing booked yet.
    pub fn new(valve: Arc<Valve>) -> Self {
        Self { valve, granted: 0, booked: None, late: Duration::ZERO, timer: None }
    }

    /// Writes what may go now: `write` gets as many bytes of `buf` as that.
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        buf: &[u8],
        write: impl FnOnce(&mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let most = if buf.is_empty() { 0 } else { ready!(self.poll(cx, buf.len())) };
        let written = ready!(write(cx, &buf[..most]))?;
        self.valve.written.fetch_add(written as u64, Ordering::Relaxed);
        self.granted = self.granted.saturating_sub(written);
        Poll::Ready(Ok(written))
    }

    fn poll(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<usize> {
        loop {
            if !self.valve.is_limited() {
                (self.granted, self.booked) = (0, None);
                return Poll::Ready(want);
            }
            if self.granted > 0 {
                return Poll::Ready(self.granted.min(want));
            }
            let now = tokio::time::Instant::now().into_std();
            let Some(booked) = self.booked else {
                self.booked = self.valve.book(want, std::mem::take(&mut self.late), now);
                continue;
            };
            if booked.generation != self.valve.generation() {
                self.booked = None;
                continue;
            }
            if booked.due <= now {
                self.late = if booked.waited { now - booked.due } else { Duration::ZERO };
                (self.granted, self.booked) = (booked.bytes, None);
                continue;
            }
            self.booked = Some(Booking { waited: true, ..booked });
            self.valve.state().waker = Some(cx.waker().clone());
            // It may have changed before the waker was there.
            if booked.generation == self.valve.generation() {
                ready!(self.poll_timer(cx, booked.due));
            }
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        let due = tokio::time::Instant::from_std(due);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Writes for so long; answers the bytes.
    async fn push(turn: &mut Turn, time: Duration) -> u64 {
        let (end, before) = (tokio::time::Instant::now() + time, turn.valve.written());
        let data = vec![0; 70_000];
        let all = async {
            loop {
                poll_fn(|cx| turn.poll_write(cx, &data, |_, part| Poll::Ready(Ok(part.len()))))
                    .await
                    .unwrap();
                tokio::task::yield_now().await;
            }
        };
        let _: Result<(), _> = tokio::time::timeout_at(end, all).await;
        turn.valve.written() - before
    }

    #[tokio::test(start_paused = true)]
    async fn the_lowest_rule_holds_and_changes_act_at_once() {
        let valve = Arc::new(Valve::default());
        let (low, high) = (SharedBucket::new("low", 800_000), SharedBucket::new("high", 8_000_000));
        valve.set(vec![high.clone(), low.clone()]);
        assert_eq!(valve.limit(), Some((800_000, "low".to_owned())));
        let mut turn = Turn::new(valve.clone());
        let sent = push(&mut turn, Duration::from_secs(10)).await;
        assert!((980_000..=1_020_000).contains(&sent), "{sent}");
        low.lock().set_rate(64_000, now());
        valve.set(vec![high.clone(), low]);
        let sent = push(&mut turn, Duration::from_secs(10)).await;
        assert!((78_000..=82_000).contains(&sent), "{sent}");
        // Somebody waits for a slice at the low rate, which is lifted.
        let mut later = tokio::task::JoinSet::new();
        later.spawn(async move { push(&mut turn, Duration::from_secs(1)).await });
        tokio::time::sleep(Duration::from_millis(5)).await;
        valve.set(vec![high]);
        let sent = later.join_next().await.unwrap().unwrap();
        assert!((970_000..=1_020_000).contains(&sent), "{sent}");
        assert_eq!(valve.limit_bps(), Some(8_000_000));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_share_a_bucket_and_the_handshake_counts() {
        let bucket = SharedBucket::new("all", 8_000_000);
        let valves = [0; 3].map(|_| Arc::new(Valve::default()));
        let mut tasks = tokio::task::JoinSet::new();
        for valve in &valves {
            let mut turn = Turn::new(valve.clone());
            // Nothing is held back before the peer is known.
            poll_fn(|cx| turn.poll_write(cx, &[0; 1000], |_, part| Poll::Ready(Ok(part.len()))))
                .await
                .unwrap();
            assert_eq!(valve.written(), 1000);
            valve.set(vec![bucket.clone()]);
            valve.charge(valve.written(), now());
            tasks.spawn(async move { push(&mut turn, Duration::from_secs(10)).await });
        }
        let mut sum = 0;
        while let Some(sent) = tasks.join_next().await {
            let sent = sent.unwrap();
            assert!((3_200_000..=3_450_000).contains(&sent), "{sent}");
            sum += sent;
        }
        assert!((9_900_000..=10_100_000).contains(&sum), "{sum}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_kernel_sends_again_is_charged() {
        let valve = Arc::new(Valve::default());
        valve.set(vec![SharedBucket::new("all", 8_000_000)]);
        let mut turn = Turn::new(valve.clone());
        push(&mut turn, Duration::from_secs(1)).await;
        valve.charge(500_000, now());
        let sent = push(&mut turn, Duration::from_secs(1)).await;
        assert!((480_000..=520_000).contains(&sent), "{sent}");
        let pause = valve.pause(100_000, now());
        assert!(pause <= Duration::from_millis(12), "{pause:?}");
        let pause = valve.pause(100_000, now());
        assert!((100..120).contains(&pause.as_millis()), "{pause:?}");
    }
}
