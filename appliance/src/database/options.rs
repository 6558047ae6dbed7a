//! How RocksDB is opened: one memory budget for all column families, few files, partitioned indexes.
//!
//! Pure configuration; owns nothing. `open_cf` would silently give every column family the default
//! options, hence descriptors.

use std::path::Path;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRecoveryMode, Error, LogLevel, LruCacheOptions, Options, WriteBufferManager,
};

use super::cf;

/// Below this RocksDB thrashes; smaller wishes are raised to it.
const MEMORY_BYTES_MIN: usize = 16 * 1024 * 1024;
const OPEN_FILES_MAX: i32 = 256;
const WAL_BYTES_MAX: u64 = 64 * 1024 * 1024;
const SYNC_STEP_BYTES: u64 = 1024 * 1024;

pub(super) fn open(dir: &Path, memory_bytes: usize) -> Result<DB, Error> {
    let memory_bytes = memory_bytes.max(MEMORY_BYTES_MIN);
    let mut lru = LruCacheOptions::default();
    lru.set_capacity(memory_bytes);
    lru.set_num_shard_bits(2);
    let cache = Cache::new_lru_cache_opts(&lru);
    let columns: Vec<ColumnFamilyDescriptor> = cf::ALL
        .iter()
        .map(|name| ColumnFamilyDescriptor::new(*name, column_options(name, memory_bytes, &cache)))
        .collect();
    DB::open_cf_descriptors(&database_options(memory_bytes, &cache), dir, columns)
}

fn database_options(memory_bytes: usize, cache: &Cache) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_table_cache_num_shard_bits(4);
    options.set_max_background_jobs(2);
    // Write buffers are charged to the block cache: one number bounds both.
    options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(
        memory_bytes / 3,
        false,
        cache.clone(),
    ));
    // A damaged log gives back everything up to the damage, in all column families alike: an older
    // index, never a torn one. A log that is missing altogether counts as damage.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_wal_bytes_per_sync(SYNC_STEP_BYTES);
    options.set_bytes_per_sync(SYNC_STEP_BYTES);
    options.set_paranoid_checks(true);
    options.set_skip_stats_update_on_db_open(true);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1024 * 1024);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn column_options(name: &str, memory_bytes: usize, cache: &Cache) -> Options {
    let point_lookups = matches!(name, cf::CHUNK | cf::CHUNK_DISK);
    let mut options = Options::default();
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_pin_top_level_index_and_filter(true);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(4096);
    table.set_optimize_filters_for_memory(true);
    if point_lookups {
        // One 4 KiB read a lookup. Bloom where tables are young, ribbon (30 % smaller) below.
        table.set_block_size(4096);
        table.set_hybrid_ribbon_filter(10.0, 1);
        options.set_write_buffer_size((memory_bytes / 8).clamp(2 << 20, 32 << 20));
        options.set_max_write_buffer_number(3);
    } else {
        table.set_block_size(16 * 1024);
        table.set_bloom_filter(10.0, false);
        options.set_write_buffer_size((memory_bytes / 16).clamp(1 << 20, 16 << 20));
        options.set_max_write_buffer_number(2);
    }
    options.set_block_based_table_factory(&table);
    // Ids are random: compressing them only costs CPU.
    options.set_compression_type(match name {
        cf::SESSION | cf::HISTORY | cf::META => DBCompressionType::Zstd,
        _ => DBCompressionType::None,
    });
    options
}
