//! The controller on a line, two compressors and a processor in virtual time.

use super::controller::FAST_LINE;
use super::line::Line;
use super::*;

const MBIT: f64 = 1e6 / 8.0;
/// Of each tier, plain bytes a second of one core, as on two cores of our machine.
const SPEED: [f64; 6] = [500e6, 300e6, 150e6, 35e6, 4.2e6, 3.5e6];
/// Stored for each plain byte. Files of an operating system.
const FILES: [f64; 6] = [0.34, 0.31, 0.305, 0.3, 0.285, 0.281];
/// A database's day, of which bases explain nearly everything.
const DATABASE: [f64; 6] = [0.16, 0.15, 0.01, 0.009, 0.0085, 0.0085];
/// Batches that can be packed and wait.
const ROOMS: usize = 13;
/// What may be sent and not durable.
const CREDIT: f64 = 3.5 * 1024.0 * 1024.0;
/// Round trip and commit on a long line, and between two machines in a rack; seconds.
const LATENCY: [f64; 2] = [0.09, 0.004];
/// Lines faster than this are in a rack: on a long one credit would end at 300 Mbit/s what they do.
const RACK: f64 = 500.0 * MBIT;

enum Event {
    Made(Made),
    Seen(Seen),
}

/// One session in virtual time.
struct World {
    controller: Controller,
    line: f64,
    latency: f64,
    ratio: [f64; 6],
    /// What the tiers that are tried come to against that, batch by batch, in turn.
    gains: Vec<f64>,
    /// What the controller is told, and when.
    events: Vec<(f64, Event)>,
    /// When each batch was sent and when it became durable, and its stored bytes.
    batches: Vec<(f64, f64, f64)>,
    /// When the batcher, and each compressor, has time again.
    batcher: f64,
    compressors: [f64; 2],
    ready: f64,
    crossed: f64,
    before: (f64, f64),
    /// Every so many batches one takes ten times as long where it is worked on harder; 0 is none.
    slow_every: usize,
}

/// What came out, without the first batches.
struct Came {
    /// The tier in the middle of all.
    tier: usize,
    /// Plain bytes a second.
    speed: f64,
    /// Stored for each plain byte.
    stored: f64,
    /// Of the time, while the line was busy.
    busy: f64,
}

impl World {
    fn new(line: f64, ratio: [f64; 6]) -> Self {
        Self {
            controller: Controller::default(),
            line,
            latency: LATENCY[usize::from(line > RACK)],
            ratio,
            gains: vec![1.0],
            events: Vec::new(),
            batches: Vec::new(),
            batcher: 0.0,
            compressors: [0.0; 2],
            ready: 0.0,
            crossed: 0.0,
            before: (0.0, 0.0),
            slow_every: 0,
        }
    }

    /// Bytes that were sent (and durable) by then.
    fn bytes(&self, at: f64) -> (f64, f64) {
        let sum = |which: fn(&(f64, f64, f64)) -> f64| {
            self.batches.iter().rev().take(4000).filter(|b| which(b) <= at).map(|b| b.2).sum::<f64>()
        };
        (sum(|batch| batch.0), sum(|batch| batch.1))
    }

    fn tell(&mut self, until: f64) {
        self.events.sort_by(|a, b| a.0.total_cmp(&b.0));
        let later = self.events.iter().position(|(at, _)| *at > until).unwrap_or(self.events.len());
        for (_, event) in self.events.drain(..later) {
            match event {
                Event::Made(made) => self.controller.made(made),
                Event::Seen(seen) => self.controller.seen(seen),
            }
        }
    }

    /// One batch: its tier, plain and stored bytes.
    fn batch(&mut self) -> (usize, f64, f64) {
        let seconds = Duration::from_secs_f64;
        let count = self.batches.len();
        // Room among what is packed: a batch some before it was handed on.
        let room = count.checked_sub(ROOMS).map_or(0.0, |n| self.batches[n].0);
        let free = usize::from(self.compressors[1] < self.compressors[0]);
        let start = self.batcher.max(room).max(self.compressors[free]);
        self.tell(start);
        let all: f64 = self.batches.iter().map(|batch| batch.2).sum();
        let backlog = all - self.bytes(start).1;
        let taken = self.batches.iter().rev().take(ROOMS).filter(|batch| batch.0 > start).count();
        let spare = Spare { backlog: backlog as u64, fill: taken as f64 / (ROOMS - 1) as f64 };
        let choice = self.controller.choose(spare, usize::MAX);
        let plain = choice.plain_bytes as f64;
        let sampled = (plain * self.ratio[0]) as usize;
        let content = Content { plain: plain as usize, prefix: 0, sampled };
        let gain = self.gains[count % self.gains.len()];
        let trial = || self.ratio[TRIED] / self.ratio[TRIED - 1] * gain;
        let harder = self.controller.harder(spare, content, trial);
        let mut tier = harder.map_or(choice.effort, |harder| harder.effort).tier();
        let mut work = plain / SPEED[tier];
        let mut late = None;
        if let Some(harder) = harder
            && self.slow_every > 0
            && count.is_multiple_of(self.slow_every)
        {
            work *= 10.0;
            let within = harder.within.as_secs_f64();
            if work > within {
                late = Some(Late { tier, part: within / work, work: harder.within });
                tier = choice.effort.tier();
                work = plain / SPEED[tier];
            }
        }
        let stored = plain * self.ratio[tier] * if tier >= TRIED { gain } else { 1.0 };
        let end = start + work + late.map_or(0.0, |late: Late| late.work.as_secs_f64());
        self.compressors[free] = end;
        self.batcher = if harder.is_some() { start } else { end };
        let ready = end.max(self.ready);
        // Handed on: the one before is, and credit allows it.
        let turn = self.batches.last().map_or(0.0, |batch| batch.0);
        let mut sent = ready.max(turn);
        let (given, mut durable) = self.bytes(sent);
        let outstanding = (given - durable) as u64;
        let taken = sent;
        let (crossed, queued) = (durable, self.crossed > taken);
        for batch in self.batches.clone() {
            if all + stored - durable > CREDIT && batch.1 > sent {
                (sent, durable) = (batch.1, self.bytes(batch.1).1);
            }
        }
        self.crossed = self.crossed.max(sent) + stored / self.line;
        self.batches.push((sent, self.crossed + self.latency, stored));
        self.ready = ready;
        let made = Made {
            tier,
            plain: plain as usize,
            prefix: 0,
            stored: stored as usize,
            sampled,
            work: seconds(work),
            late,
        };
        self.events.push((end, Event::Made(made)));
        let seen = Seen {
            took: seconds(taken - self.before.0),
            crossed: (crossed - self.before.1) as u64,
            outstanding,
            waited: ready < turn,
            queued,
            ..Seen::default()
        };
        self.before = (taken, crossed);
        self.events.push((taken, Event::Seen(seen)));
        (tier, plain, stored)
    }

    fn run(mut self) -> Came {
        for _ in 0..150 {
            self.batch();
        }
        let (from, mut made) = (self.crossed, Vec::new());
        (0..350).for_each(|_| made.push(self.batch()));
        let took = self.crossed - from;
        let sum = |which: fn(&(usize, f64, f64)) -> f64| made.iter().map(which).sum::<f64>();
        let (plain, stored) = (sum(|made| made.1), sum(|made| made.2));
        let mut tiers: Vec<usize> = made.iter().map(|made| made.0).collect();
        tiers.sort();
        let tier = tiers[tiers.len() / 2];
        Came { tier, speed: plain / took, stored: stored / plain, busy: stored / self.line / took }
    }
}

fn settle(mbit: f64, ratio: [f64; 6]) -> Came {
    World::new(mbit * MBIT, ratio).run()
}

#[test]
fn slow_lines_get_the_most_work_and_fast_ones_the_least() {
    let rates = [1.0, 5.0, 20.0, 100.0, 1000.0, 10_000.0];
    let tiers: Vec<usize> = rates.iter().map(|rate| settle(*rate, FILES).tier).collect();
    assert!(tiers.is_sorted_by(|a, b| a >= b), "{tiers:?}");
    assert_eq!((tiers[0], tiers[5]), (5, 0), "{tiers:?}");
    assert!(tiers[2] >= 3 && tiers[4] <= 1, "{tiers:?}");
}

#[test]
fn bases_are_used_where_they_save_more_than_they_cost() {
    for rate in [5.0, 20.0, 100.0] {
        assert!(settle(rate, DATABASE).tier >= 2, "{rate} Mbit/s");
    }
}

/// What was compressed before and lies elsewhere now: only bases make it smaller, and on a quick line nobody guesses.
#[test]
fn bases_are_tried_on_quick_lines_where_nothing_else_helps() {
    let moved = [1.0, 1.0, 0.02, 0.02, 0.02, 0.02];
    assert!(settle(400.0, moved).tier >= 2);
}

/// Half of the batches at least are worked on harder than could be kept up, and the line is busy.
#[test]
fn time_until_the_line_runs_dry_is_worked_away() {
    let came = settle(20.0, FILES);
    assert!(came.busy > 0.97, "busy {:.3}", came.busy);
    let halfway = (FILES[3] + FILES[5]) / 2.0;
    assert!(came.stored < halfway, "stored {:.4}, halfway {halfway:.4}", came.stored);
}

/// Time goes where it saves most: one batch in five shrinks by a third where it is worked on harder, the others
/// by little; at this rate there is time for about two in five.
#[test]
fn what_gains_most_is_worked_on() {
    let mut world = World::new(35.0 * MBIT, FILES);
    world.gains = vec![0.7, 1.03, 1.03, 1.03, 1.03];
    (0..150).for_each(|_| _ = world.batch());
    let made: Vec<usize> = (0..350).map(|_| world.batch().0).collect();
    let hard = |at: usize| made.iter().skip(at).step_by(5).filter(|tier| **tier >= TRIED).count();
    let (good, other) = (hard(0), hard(1));
    assert!(good > 60 && other < good / 2, "{good} of 70 that gain most, {other} of 70 that do not");
}

#[test]
fn what_gains_nothing_is_not_worked_on() {
    let mut world = World::new(20.0 * MBIT, FILES);
    world.gains = vec![FILES[3] / FILES[4]];
    (0..150).for_each(|_| _ = world.batch());
    assert!((0..100).all(|_| world.batch().0 < TRIED));
}

#[test]
fn a_slow_line_never_runs_dry() {
    for rate in [1.0, 5.0, 10.0, 20.0, 30.0, 50.0] {
        let came = settle(rate, FILES);
        assert!(came.busy > 0.97, "{rate} Mbit/s: busy {:.3}", came.busy);
    }
}

/// What some content takes is not foreseen: it is given up in time, and the others are worked on as hard.
#[test]
fn a_batch_that_takes_too_long_does_not_hold_up_the_line() {
    for rate in [5.0, 20.0, 50.0] {
        let came = World { slow_every: 9, ..World::new(rate * MBIT, FILES) }.run();
        assert!(came.busy > 0.97, "{rate} Mbit/s: busy {:.3}", came.busy);
        if rate <= 20.0 {
            assert!(came.stored < FILES[3] - 0.004, "{rate} Mbit/s: stored {:.4}", came.stored);
        }
    }
}

#[test]
fn never_much_slower_than_the_best_single_tier() {
    // Of a database's day so little is sent that how fast the line is shows late: slower than it
    // could be by less than half, for a fifteenth of the bytes.
    for (ratio, share, rate_max) in [(FILES, 0.85, 1e4), (DATABASE, 0.5, 100.0), ([1.0; 6], 0.85, 1e4)] {
        let rates = [1.0, 5.0, 20.0, 50.0, 100.0, 300.0, 700.0, 1000.0, 10_000.0];
        for rate in rates.into_iter().filter(|rate| *rate <= rate_max) {
            let came = settle(rate, ratio);
            // Credit ends what a long line can do: it comes back a batch at a time.
            let latency = LATENCY[usize::from(rate * MBIT > RACK)];
            let line = (rate * MBIT).min((CREDIT - 768.0 * 1024.0) / latency);
            let single = |tier: usize| (line / ratio[tier]).min(SPEED[tier]);
            let lowest = usize::from(rate * MBIT < FAST_LINE);
            let best = (lowest..6).map(single).fold(0.0, f64::max);
            assert!(came.speed > best * share, "{rate} Mbit/s: {} of {best}, tier {}", came.speed, came.tier);
        }
    }
}

#[test]
fn what_does_not_shrink_makes_small_batches() {
    let mut world = World::new(20.0 * MBIT, [1.0; 6]);
    for _ in 0..60 {
        world.batch();
    }
    assert!(world.controller.batch_bytes() < 640 * 1024);
}

/// A megabyte that took half a second.
fn seen(outstanding: u64) -> Seen {
    Seen { took: Duration::from_millis(500), crossed: 1 << 20, outstanding, ..Seen::default() }
}

#[test]
fn a_line_that_is_never_dry_is_measured() {
    let mut line = Line::new(None);
    (0..20).for_each(|_| line.seen(seen(3 << 20)));
    assert!(line.waits() && (line.rate().unwrap() / (2 << 20) as f64 - 1.0).abs() < 0.01, "{line:?}");
    // A batch became durable late, and two at once after it: no other line.
    line.seen(Seen { crossed: 0, ..seen(3 << 20) });
    line.seen(Seen { crossed: 2 << 20, ..seen(3 << 20) });
    assert!((line.rate().unwrap() / (2 << 20) as f64 - 1.0).abs() < 0.01, "{line:?}");
}

#[test]
fn a_guess_that_proves_wrong_is_made_later_the_next_time() {
    let full = |line: &mut Line| (0..20).for_each(|_| line.seen(seen(3 << 20)));
    let guessed_after = |line: &mut Line| {
        let before = line.rate().unwrap();
        (1..1000).find(|_| {
            line.seen(seen(0));
            line.rate().unwrap() > before
        })
    };
    let mut line = Line::new(None);
    full(&mut line);
    let mut patience = Vec::new();
    for _ in 0..7 {
        patience.push(guessed_after(&mut line).unwrap());
        assert!(!line.waits());
        full(&mut line);
        assert!(line.waits());
    }
    assert_eq!(patience, [3, 6, 12, 24, 48, 96, 96]);
}

#[test]
fn what_was_delivered_is_no_guess_until_the_line_is_full() {
    let delivered =
        |rate: f64, outstanding| Seen { delivered: Some(rate), queued: true, ..seen(outstanding) };
    let mut line = Line::new(None);
    for rate in [5e6, 20e6, 100e6] {
        line.seen(delivered(rate, 0));
        assert_eq!((line.rate(), line.waits()), (Some(rate), false));
    }
    line.seen(delivered(110e6, 0));
    assert_eq!(line.rate(), Some(100e6), "much the same");
    (0..20).for_each(|_| line.seen(Seen { queued: false, ..delivered(100e6, 64 << 20) }));
    assert_eq!(line.rate(), Some(100e6), "credit held it up");
    (0..20).for_each(|_| line.seen(delivered(100e6, 64 << 20)));
    let part = line.rate().unwrap();
    assert!(line.waits() && part < 3e6, "others have the rest: {line:?}");
    line.seen(delivered(100e6, 0));
    assert_eq!((line.rate(), line.waits()), (Some(part), true));
}

#[test]
fn a_line_of_which_nobody_asked_anything_is_not_taken_for_a_fast_one() {
    let mut line = Line::new(Some(1e6));
    (0..500).for_each(|_| line.seen(Seen { idle: Duration::from_millis(300), ..seen(0) }));
    assert_eq!(line.rate(), Some(1e6));
}

#[test]
fn without_bases_none_are_used() {
    for rate in [1.0, 20.0, 1000.0] {
        let controller = Controller::starting_from(None, false);
        let mut world = World { controller, ..World::new(rate * MBIT, FILES) };
        assert!(
            (0..200).all(|_| !TIERS[world.batch().0].bases && !world.controller.bases()),
            "{rate} Mbit/s"
        );
    }
}
