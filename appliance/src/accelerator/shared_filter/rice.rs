//! Golomb-Rice: sorted numbers as the gaps between them. Pure.
//!
//! A byte with the number of low bits, the count u32 big endian, then for each gap its high part
//! in unary (ones, then a zero) and its low bits, most significant bit first; the last byte is filled
//! with zeroes. No bytes at all stand for no numbers. Numbers may repeat.
//!
//! Bounds: the caller's count; a gap's unary part ends with the input, so decoding takes time in its length.

const HEAD_BYTES: usize = 5;

/// Codes numbers below 2^`bits`; sorts them.
pub(super) fn encode(mut numbers: Vec<u64>, bits: u32) -> Vec<u8> {
    if numbers.is_empty() {
        return Vec::new();
    }
    numbers.sort_unstable();
    // The best number of low bits for gaps that are spread as those of a random set: log2(mean * ln 2).
    let mean = (1u64 << bits) as f64 / numbers.len() as f64 * std::f64::consts::LN_2;
    let low = (mean.log2().round().max(0.0) as u32).min(bits);
    let mut out = vec![low as u8];
    out.extend_from_slice(&(numbers.len() as u32).to_be_bytes());
    let mut writer = BitWriter { out, held: 0, count: 0 };
    let mut last = 0;
    for number in numbers {
        let gap = number - last;
        last = number;
        (0..gap >> low).for_each(|_| writer.bit(true));
        writer.bit(false);
        (0..low).rev().for_each(|n| writer.bit(gap >> n & 1 == 1));
    }
    writer.finish()
}

/// The reverse, for at most `count_max` numbers below 2^`bits`. Strict: nothing may be left over.
pub(super) fn decode(bytes: &[u8], bits: u32, count_max: usize) -> Result<Vec<u64>, &'static str> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let (head, coded) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or("its head is cut short")?;
    let [low, count @ ..] = *head;
    let (low, count) = (u32::from(low), u32::from_be_bytes(count) as usize);
    // A number takes a bit at least.
    if low > bits || count > count_max || count > coded.len().saturating_mul(8) {
        return Err("its head is impossible");
    }
    let mut reader = BitReader { bytes: coded, at: 0 };
    let mut numbers = Vec::with_capacity(count);
    let mut last = 0u64;
    for _ in 0..count {
        let mut high = 0u64;
        while reader.bit().ok_or("it is cut short")? {
            high += 1;
        }
        let mut gap = high;
        for _ in 0..low {
            let bit = u64::from(reader.bit().ok_or("it is cut short")?);
            gap = gap.checked_mul(2).and_then(|gap| gap.checked_add(bit)).ok_or("a gap is too large")?;
        }
        last = last.checked_add(gap).filter(|n| n >> bits == 0).ok_or("a number is too large")?;
        numbers.push(last);
    }
    if coded.len() != reader.at.div_ceil(8) || reader.rest_has_ones() {
        return Err("something follows its end");
    }
    Ok(numbers)
}

struct BitWriter {
    out: Vec<u8>,
    held: u8,
    count: u32,
}

impl BitWriter {
    fn bit(&mut self, bit: bool) {
        self.held = self.held << 1 | u8::from(bit);
        self.count += 1;
        if self.count == 8 {
            self.out.push(self.held);
            (self.held, self.count) = (0, 0);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        while self.count != 0 {
            self.bit(false);
        }
        self.out
    }
}

struct BitReader<'a> {
    bytes: &'a [u8],
    /// In bits.
    at: usize,
}

impl BitReader<'_> {
    fn bit(&mut self) -> Option<bool> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = byte >> (7 - self.at % 8) & 1 == 1;
        self.at += 1;
        Some(bit)
    }

    fn rest_has_ones(&mut self) -> bool {
        std::iter::from_fn(|| self.bit()).any(|bit| bit)
    }
}
