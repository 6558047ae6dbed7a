//! Prints what a plain method would send for a sequence of images: fixed 64 KiB chunks, each once,
//! zstd-3 in 4 MiB frames, 16 bytes a new chunk; and zstd-3 of all data and of the changed blocks.
//!
//! `vbr-baseline web-v1.img web-v2.img …`; an image is compared with the one before it whose name is
//! the same up to the last `-`. `--json` prints one object a line.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use vbr_tests::counter::{Count, Counter};
use vbr_tests::report::{Table, mib};
use vbr_tests::workload::previous_version;

#[derive(Parser)]
struct Options {
    /// Images, in order.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut counter = Counter::default();
    let mut table =
        Table::new(&["image", "virtual", "data", "changed", "unseen", "counter", "zstd all", "zstd changed"]);
    let mut sum = Count::default();
    for (at, image) in options.images.iter().enumerate() {
        let previous = previous_version(&options.images[..at], image);
        let count = counter.count(image, previous)?;
        let name = image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if options.json {
            println!("{}", serde_json::json!({ "image": name, "count": count }));
        }
        table.row(&cells(&name, &count));
        if at > 0 {
            add(&mut sum, &count);
        }
    }
    if !options.json {
        table.row(&cells("all but the first", &sum));
        println!("{table}\n(MiB)");
    }
    Ok(())
}

fn cells(name: &str, count: &Count) -> [String; 8] {
    [
        name.to_owned(),
        mib(count.virtual_bytes),
        mib(count.data_bytes),
        mib(count.changed_bytes),
        mib(count.unseen_bytes),
        mib(count.counter_bytes),
        mib(count.zstd_all_bytes),
        mib(count.zstd_changed_bytes),
    ]
}

fn add(sum: &mut Count, count: &Count) {
    sum.virtual_bytes += count.virtual_bytes;
    sum.data_bytes += count.data_bytes;
    sum.changed_bytes += count.changed_bytes;
    sum.unseen_bytes += count.unseen_bytes;
    sum.counter_bytes += count.counter_bytes;
    sum.zstd_all_bytes += count.zstd_all_bytes;
    sum.zstd_changed_bytes += count.zstd_changed_bytes;
}
