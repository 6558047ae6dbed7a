//! Overhead on what cannot be made smaller: random, encrypted and already compressed data.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Result;

use super::carry::Bench;
use super::record::Line;
use super::tools::ours::{Ours, Setup};
use super::{Effort, Figure};
use crate::disk::{self, MIB, Seeded};

const LIMIT_PERCENT: f64 = 0.5;

/// Makes a disk of a length.
type Fill = fn(&Path, u64) -> Result<()>;

/// Bytes on the line beyond the bytes of the disk.
pub fn overhead(effort: &Effort) -> Result<Vec<Figure>> {
    let len = 256 * MIB / effort.divide;
    let dir = crate::work::WorkDir::new()?;
    let mut bench = Bench::new(Box::new(Ours::new(Line::UNSHAPED.config(), Setup::default())?))?;
    let (mut steps, mut figures) = (Vec::new(), Vec::new());
    let kinds: [(&str, Fill); 3] = [("random", random), ("encrypted", encrypted), ("compressed", compressed)];
    for (kind, fill) in kinds {
        let image = dir.join(format!("{kind}.img"));
        fill(&image, len)?;
        let mut step = bench.step(&image)?;
        std::fs::remove_file(&image)?;
        step.data = len;
        let percent = 100.0 * (step.bytes() as f64 / len as f64 - 1.0);
        figures.push(Figure::promised(
            &format!("overhead on {kind} data, both ways on the line"),
            &format!("<= {LIMIT_PERCENT} %"),
            format!("{percent:.2} %"),
            vec![percent],
            percent <= LIMIT_PERCENT,
        ));
        steps.push(step);
    }
    bench.record("overhead", "vbr keep", Line::UNSHAPED, steps)?.save(&effort.out)?;
    Ok(figures)
}

fn random(path: &Path, len: u64) -> Result<()> {
    disk::random(path, len, 3)
}

/// Text under a stream cipher: a keystream over what compresses well.
fn encrypted(path: &Path, len: u64) -> Result<()> {
    let (mut key, mut file) = (Seeded::new(71), File::create(path)?);
    let mut block = vec![0u8; MIB as usize];
    for at in 0..len / MIB {
        key.fill(&mut block);
        let text = format!("row {at:08} of a table that compresses well; ");
        for (byte, plain) in block.iter_mut().zip(text.bytes().cycle()) {
            *byte ^= plain;
        }
        file.write_all(&block)?;
    }
    Ok(())
}

/// An archive: frames of compressed text, one after another.
fn compressed(path: &Path, len: u64) -> Result<()> {
    let (mut seed, mut file) = (Seeded::new(72), File::create(path)?);
    let mut written = 0;
    while written < len {
        let text: String = (0..20_000).map(|_| WORDS[seed.below(WORDS.len() as u64) as usize]).collect();
        let frame = zstd::bulk::compress(text.as_bytes(), 3)?;
        file.write_all(&frame)?;
        written += frame.len() as u64;
    }
    file.set_len(len)?;
    Ok(())
}

const WORDS: [&str; 16] = [
    "order ", "item ", "price ", "stock ", "vendor ", "cart ", "user ", "login ", "GET ", "POST ", "200 ",
    "404 ", "2026-01-", "error ", "retry ", "done\n",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_makes_them_smaller() {
        let dir = tempfile::tempdir().unwrap();
        for (number, fill) in [random as Fill, encrypted, compressed].into_iter().enumerate() {
            let path = dir.path().join(number.to_string());
            fill(&path, 2 * MIB).unwrap();
            let plain = std::fs::read(&path).unwrap();
            assert_eq!(plain.len() as u64, 2 * MIB);
            let packed = zstd::bulk::compress(&plain, 9).unwrap().len();
            assert!(packed * 1000 > plain.len() * 995, "{number}: {packed}");
        }
    }
}
