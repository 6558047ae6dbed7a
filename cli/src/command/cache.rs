//! `vbrctl cache`: the global cache of this site.

mod directory;
mod warm;

use clap::Subcommand;
use vbr_api::CacheStats;

use super::task;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;
use crate::show::{self, Watch};
use crate::table::Facts;

/// The global cache; it saves bandwidth and holds nothing that is not elsewhere
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show its size, content and use since vbrd started
    #[command(after_help = "Example:\n  vbrctl cache stats")]
    Stats {
        #[command(flatten)]
        watch: Watch,
    },
    /// Read and verify all of it now, in the background; what is damaged is dropped and comes again when needed
    #[command(after_help = "Example:\n  vbrctl cache scrub\n  vbrctl task show scrub --watch")]
    Scrub,
    Warm(warm::Arguments),
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::Stats { watch } => show::one(context, "/v1/cache", watch.watch, &facts).await,
            Self::Scrub => task::run(context, "scrub").await,
            Self::Warm(arguments) => arguments.run(context).await,
        }
    }
}

fn facts(stats: &CacheStats, _: &View) -> String {
    let share = |part, whole| human::percent(part, whole);
    let footers = stats.footer_hits.saturating_add(stats.footer_misses);
    let mut facts = Facts::new();
    facts
        .add(
            "Used",
            format!(
                "{} of {} ({})",
                human::size(stats.used_bytes),
                human::size(stats.size_bytes),
                share(stats.used_bytes, stats.size_bytes)
            ),
        )
        .add("Chunks", format!("{} in {}", stats.chunks, human::count(stats.packs, "pack")))
        .add(
            "On disks",
            format!("{} chunk locations in restore points and warmed images", stats.disk_locations),
        )
        .add(
            "Shared",
            format!(
                "{} chunks of two branches or more, in a filter of {}",
                stats.shared_chunks,
                human::size(stats.shared_filter_bytes)
            ),
        )
        .add(
            "Lookups",
            format!("{}, {} hits ({})", stats.lookups, stats.hits, share(stats.hits, stats.lookups)),
        )
        .add("Reads", format!("{} chunks read and verified", stats.reads))
        .add("Footers", format!("{} of {footers} from memory", share(stats.footer_hits, footers)))
        .add("Evicted", human::count(stats.evicted_packs, "pack"))
        .add("Bad records", format!("{} dropped", stats.bad_records));
    facts.finish()
}
