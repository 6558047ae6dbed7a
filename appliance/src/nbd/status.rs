//! What the last BLOCK_STATUS said, kept so that walking a fragmented disk asks once a reply and not
//! once an extent. Pure: a window of the disk and the data in it. Not its job: asking.

use super::connection::StatusRun;
use super::protocol::STATE_ZERO;
use crate::block::Extent;

/// A window of the disk whose allocation is known.
#[derive(Default)]
pub(super) struct KnownExtents {
    from: u64,
    to: u64,
    /// Ascending, apart from each other, inside the window.
    data: Vec<Extent>,
}

/// What the window knows of a position.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The next data, inside the window.
    Data(Extent),
    /// Zeroes up to here, where the window ends.
    ZeroesUntil(u64),
    /// Outside the window.
    Unknown,
}

impl KnownExtents {
    /// Takes the runs of a reply that begins at `from`; what goes past `disk_len` is cut.
    pub fn new(from: u64, runs: &[StatusRun], disk_len: u64) -> Self {
        let mut known = Self { from, to: from, data: Vec::new() };
        for run in runs {
            let end = known.to.saturating_add(u64::from(run.len)).min(disk_len);
            let extent = Extent { offset: known.to, len: end - known.to };
            known.to = end;
            match known.data.last_mut() {
                _ if run.flags & STATE_ZERO != 0 || extent.len == 0 => {}
                Some(last) if last.end() == extent.offset => last.len += extent.len,
                _ => known.data.push(extent),
            }
        }
        known
    }

    pub fn answer(&self, at: u64) -> Answer {
        if at < self.from || at >= self.to {
            return Answer::Unknown;
        }
        let index = self.data.partition_point(|extent| extent.end() <= at);
        match self.data.get(index) {
            Some(extent) => {
                let offset = extent.offset.max(at);
                Answer::Data(Extent { offset, len: extent.end() - offset })
            }
            None => Answer::ZeroesUntil(self.to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_answer_what_they_know() {
        let runs = [(10, true), (5, false), (5, false), (4, true), (u32::MAX, false)]
            .map(|(len, zero)| StatusRun { len, flags: if zero { STATE_ZERO } else { 0 } });
        let known = KnownExtents::new(100, &runs, 130);
        assert_eq!(known.answer(99), Answer::Unknown);
        assert_eq!(known.answer(100), Answer::Data(Extent { offset: 110, len: 10 }));
        assert_eq!(known.answer(115), Answer::Data(Extent { offset: 115, len: 5 }));
        assert_eq!(known.answer(120), Answer::Data(Extent { offset: 124, len: 6 }));
        assert_eq!(known.answer(130), Answer::Unknown);
        let zeroes = KnownExtents::new(0, &[StatusRun { len: 64, flags: STATE_ZERO }], 64);
        assert_eq!(zeroes.answer(0), Answer::ZeroesUntil(64));
    }
}
