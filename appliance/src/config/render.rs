//! The effective configuration as TOML: what `vbrctl config show` prints. Reads back as itself.

use std::path::Path;

use super::{Config, failover, housekeeping};
use crate::limits::QUOTA_POINTS;

pub(super) fn render(config: &Config) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("# state directory: {}", config.state.display()));
    line(format!("# runtime directory: {}", config.runtime.display()));
    line("\n[site]".into());
    line(format!("name = {}", quoted(&config.site)));
    line("\n[wire]".into());
    line(format!("listen = {}", list(config.wire.listen.iter().map(String::as_str))));
    line(format!("advertise = {}", list(config.wire.advertise.iter().map(String::as_str))));
    line(format!("transport = {}", quoted(config.wire.transport.as_str())));
    line(format!("congestion = {}", quoted(config.wire.congestion.as_str())));
    line(format!("connections = {}", config.wire.connections));
    match config.wire.rate_bps {
        Some(bps) => line(format!("rate = \"{bps}bit\"")),
        None => line("# rate: unlimited".into()),
    }
    for datastore in &config.datastores {
        line(format!("\n[datastore.{}]", quoted(&datastore.name)));
        line(format!("path = {}", path(&datastore.path)));
        line(format!("reserve = \"{}B\"", datastore.reserve_bytes));
    }
    line("\n[cache]".into());
    line(format!("size = \"{}B\"", config.cache.size_bytes));
    line(format!("path = {}", path(&config.cache.path)));
    line(format!("reserve = \"{}B\"", config.cache.reserve_bytes));
    line("\n[source]".into());
    line(format!("snapshot_dirs = {}", list(config.source.snapshot_dirs.iter().filter_map(|p| p.to_str()))));
    line(format!("snapshot_floor = \"{}B\"", config.source.snapshot_floor_bytes));
    line("\n[seed]".into());
    line(format!("directories = {}", list(config.seed_directories.iter().filter_map(|p| p.to_str()))));
    line("\n[retention]".into());
    line(format!("min_age = \"{}s\"", config.retention_min_age.as_secs()));
    line("\n[quota]".into());
    match config.quota.bytes {
        Some(bytes) => line(format!("bytes = \"{bytes}B\"")),
        None => line("# bytes: no bound".into()),
    }
    line(format!("points = {}", config.quota.points.unwrap_or(QUOTA_POINTS)));
    line("\n[schedule]".into());
    match &config.window {
        Some(window) => line(format!("window = {}", quoted(&window.to_string()))),
        None => line("# window: any time".into()),
    }
    line(format!("link_wait = \"{}s\"", config.waits.link.as_secs()));
    line(format!("stall_warning = \"{}s\"", config.waits.stall_warning.as_secs()));
    line(format!("stall_cut = \"{}s\"", config.waits.stall_cut.as_secs()));
    line("\n[resources]".into());
    line(format!("host_slots = {}", config.resources.host_slots));
    line(format!("link_slots = {}", config.resources.link_slots));
    line(format!("datastore_slots = {}", config.resources.datastore_slots));
    match config.resources.latency_ceiling {
        Some(ceiling) => line(format!("latency_ceiling = \"{}ms\"", ceiling.as_millis())),
        None => line("# latency_ceiling: none".into()),
    }
    failover::render(config, &mut line);
    housekeeping::render(config, &mut line);
    if let Some(listen) = &config.metrics {
        line("\n[metrics]".into());
        line(format!("listen = \"{listen}\""));
    }
    line("\n[api]".into());
    line(format!("socket = {}", path(&config.socket)));
    line("\n[log]".into());
    line(format!("level = {}", quoted(&config.log.level)));
    line(format!("format = {}", quoted(config.log.format.as_str())));
    line("\n[memory]".into());
    line(format!("database = \"{}B\"", config.database_memory_bytes));
    line("\n[accelerator]".into());
    line(format!("anchor_memory = \"{}B\"", config.accelerator.anchor_memory_bytes));
    line(format!("block_memory = \"{}B\"", config.accelerator.block_memory_bytes));
    line(format!("keep_sent = {}", config.accelerator.keep_sent));
    line(format!("bases = {}", config.accelerator.bases));
    out
}

pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

pub(super) fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", items.map(quoted).collect::<Vec<_>>().join(", "))
}
