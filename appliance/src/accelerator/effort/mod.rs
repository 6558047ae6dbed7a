//! Effort: how much work goes into a byte, decided by where the session waits.
//!
//! Tiers go from "the link is faster than any work is worth" to "the processor idles while a slow line
//! crawls". A plain byte costs the longer of two times, for they run side by side: the work on it, and its
//! stored part's way over the line. The controller measures both (seconds of work for each plain byte by
//! tier; stored for each plain byte; bytes a second that the line takes while it is what the session
//! waits for) and takes the tier at which a byte costs least, of equals the one that sends least. So bases
//! are looked for even where that is slow, if it is quicker than sending what they save.
//!
//! That is what can be kept up. Where the line is what the session waits for there is more: what is packed
//! and has not crossed yet keeps the line busy for a known time, and a batch that is ready before it runs
//! dry costs nothing, however hard it was worked on. So single batches are worked on harder than the rest,
//! as often as the line and the processor allow: beside the others, which wait their turn behind them.
//! What that saves differs a hundredfold from batch to batch (1 KiB to 700 KiB for each second of work), so
//! a few pieces of a batch are tried first, and the more time there is, the less it has to save.
//!
//! What tiers without bases would send is known from pieces of each batch that are compressed anyway; what
//! those with bases would, from the last batch that used some. No setting, because the answer differs
//! from hour to hour: a line is shared, a processor is shared. Pure; time is handed in.
//!
//! `line`: what the line takes. `controller`: the choice.

mod controller;
mod line;
#[cfg(test)]
mod tests;

pub use controller::Controller;
pub use line::Seen;

use std::time::Duration;

/// Largest window of any tier; decoders are told.
pub const WINDOW_LOG_MAX: u32 = 25;

/// How hard to work on a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// For people.
    pub name: &'static str,
    /// zstd level.
    pub level: i32,
    /// Plain bytes in a batch, at most.
    pub batch_bytes: usize,
    /// zstd window.
    pub window_log: u32,
    /// zstd hash and chain tables; the level's own where no prefix is used.
    pub tables: Option<(u32, u32)>,
    /// zstd search log and shortest match, where not the level's own.
    pub search: Option<(u32, u32)>,
    /// Look for bases.
    pub bases: bool,
    /// Work against the first tier, and stored bytes against the first of its kind (with or without
    /// bases), before anything was measured.
    prior: (f64, f64),
}

const TIERS: [Effort; 6] = [
    Effort::without_bases("fast", 1, (1.0, 1.0)),
    Effort::without_bases("plain", 3, (1.7, 0.93)),
    Effort::with_bases("balanced", 3, 1 << 20, (23, 20, 19), (3.5, 1.0)),
    Effort::with_bases("best", 9, 4 << 20, (25, 22, 23), (8.0, 0.955)),
    Effort {
        search: Some((3, 3)),
        ..Effort::with_bases("hardest", 18, 4 << 20, (25, 22, 23), (64.0, 0.905))
    },
    Effort { search: Some((5, 3)), ..Effort::with_bases("utmost", 18, 4 << 20, (25, 22, 23), (77.0, 0.893)) },
];
/// Where a session over an unknown line begins: small sessions end here, and what is unknown about the line is learned
/// at once. (With the next tier a rack's first 32 MB took twice the time.)
const FIRST: usize = 2;
/// The first tier whose gain is tried on pieces of each batch; against the one before it.
const TRIED: usize = 4;

impl Effort {
    /// For a look at what harder work would save: the same search on little data, at two tiers.
    pub const TRIALS: [Effort; 2] = [
        Effort { window_log: 17, tables: None, ..TIERS[TRIED - 1] },
        Effort { window_log: 17, tables: None, ..TIERS[TRIED] },
    ];

    /// For a look at whether data shrinks at all.
    pub const PROBE: Effort = Effort { window_log: 17, ..Effort::without_bases("probe", 1, (1.0, 1.0)) };

    const fn without_bases(name: &'static str, level: i32, prior: (f64, f64)) -> Self {
        Self {
            name,
            level,
            batch_bytes: 4 << 20,
            window_log: 22,
            tables: None,
            search: None,
            bases: false,
            prior,
        }
    }

    const fn with_bases(
        name: &'static str,
        level: i32,
        batch_bytes: usize,
        (window_log, hash_log, chain_log): (u32, u32, u32),
        prior: (f64, f64),
    ) -> Self {
        let tables = Some((hash_log, chain_log));
        Self { name, level, batch_bytes, window_log, tables, search: None, bases: true, prior }
    }

    /// Its place among [`Self::tiers`].
    pub fn tier(&self) -> usize {
        TIERS.iter().position(|tier| tier.name == self.name).unwrap_or(FIRST)
    }

    /// All of them, least work first.
    pub fn tiers() -> &'static [Effort] {
        &TIERS
    }
}

/// What making one batch came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Made {
    /// The effort's place among the tiers.
    pub tier: usize,
    /// Plain bytes.
    pub plain: usize,
    /// Bytes of its prefix.
    pub prefix: usize,
    /// Bytes of the frame.
    pub stored: usize,
    /// What it would have come to at the first tier, from pieces.
    pub sampled: usize,
    /// Time it took, without waiting for anything.
    pub work: Duration,
    /// Where a harder effort was given up for this one.
    pub late: Option<Late>,
}

/// An effort that took too long.
#[derive(Clone, Copy, Debug)]
pub struct Late {
    /// Its place among the tiers.
    pub tier: usize,
    /// The part of the batch that was done.
    pub part: f64,
    /// Time that took.
    pub work: Duration,
}

/// How much time there is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spare {
    /// Bytes that are packed, or being packed, and not durable yet.
    pub backlog: u64,
    /// Of the room for batches that are packed, the part that is taken; 0 to 1.
    pub fill: f64,
}

/// The next batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What can be kept up.
    pub effort: Effort,
    /// Its plain bytes, at most.
    pub plain_bytes: usize,
    /// Look for bases.
    pub bases: bool,
    /// Stored bytes to expect for each plain byte.
    pub ratio: f64,
}

/// A batch that is gathered and not compressed.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    /// Plain bytes.
    pub plain: usize,
    /// Bytes of its prefix.
    pub prefix: usize,
    /// Stored bytes at the first tier, from pieces.
    pub sampled: usize,
}

/// More than can be kept up: other batches are made meanwhile, and after `within` it is given up for what can.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Harder {
    /// How hard to work.
    pub effort: Effort,
    /// Time for it.
    pub within: Duration,
    /// Stored bytes to expect.
    pub stored: u64,
}
