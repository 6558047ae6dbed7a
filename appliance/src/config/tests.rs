use super::resolve::{GIB, MIB, directories};
use super::*;
use crate::limits::CACHE_BYTES_MIN;

fn overrides() -> Overrides {
    Overrides {
        state: Some("/srv/vbr-test".into()),
        hostname: Some("Branch-7.example.com\n".into()),
        ..Overrides::default()
    }
}

fn resolve(text: &str) -> Result<Config, ConfigError> {
    Config::resolve(Some("/etc/vbr/vbrd.toml".into()), text, &overrides())
}

fn faults(text: &str) -> Vec<String> {
    resolve(text).expect_err("is wrong").0.iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_file_means_sane_defaults() {
    let config = resolve("").expect("defaults");
    assert_eq!(config.site, "branch-7");
    assert_eq!(config.wire.listen, ["/ip4/0.0.0.0/tcp/7300"]);
    assert_eq!(config.datastores[0].name, "default");
    assert_eq!(config.datastores[0].path, Path::new("/srv/vbr-test/datastore"));
    assert!(config.datastores[0].reserve_bytes >= 64 * MIB && config.datastores[0].reserve_bytes <= 20 * GIB);
    assert!(config.cache.size_bytes >= CACHE_BYTES_MIN && config.cache.size_bytes <= 10 * GIB);
    assert_eq!(config.socket, Path::new("/srv/vbr-test/run/vbrd.sock"));
    assert_eq!(config.retention_min_age, Duration::from_secs(604_800));
    assert_eq!((config.quota.bytes, config.quota.points), (None, Some(20_000)));
}

#[test]
fn every_option_is_read() {
    let config = resolve(
        r#"
[site]
name = "dr"
[wire]
listen = ["/ip4/127.0.0.1/udp/7301/quic-v1"]
advertise = ["/dns/dr.example.com/udp/7301/quic-v1"]
transport = "quic"
congestion = "system"
connections = 2
rate = "20Mbit"
[datastore.fast]
path = "/srv/fast"
reserve = "1GiB"
[datastore.slow]
path = "/srv/slow/"
reserve = "10%"
[cache]
size = "2GiB"
path = "/srv/packs"
reserve = "100MB"
[source]
snapshot_dirs = ["/srv/images/.vbr"]
snapshot_floor = "5GiB"
[retention]
min_age = "2d"
[quota]
bytes = "2TiB"
points = 400
[schedule]
window = "Mon..Fri 20:00-06:00"
link_wait = "2h"
stall_warning = "1m"
stall_cut = "2m"
[resources]
host_slots = 2
link_slots = 16
datastore_slots = 1
latency_ceiling = "40ms"
[metrics]
listen = "[::1]:9469"
[api]
socket = "/srv/vbrd.sock"
[log]
level = "info,vbr_appliance::wire=debug"
format = "json"
[memory]
database = "128MiB"
"#,
    )
    .expect("good");
    assert_eq!(config.site, "dr");
    assert_eq!((config.wire.transport, config.wire.rate_bps), (Transport::Quic, Some(20_000_000)));
    assert_eq!((config.wire.congestion, config.wire.connections), (Congestion::System, 2));
    assert_eq!(config.datastores.len(), 2);
    assert_eq!(config.datastores[0].reserve_bytes, GIB);
    assert_eq!(config.datastores[1].path, Path::new("/srv/slow"));
    assert_eq!((config.cache.size_bytes, config.cache.reserve_bytes), (2 * GIB, 100_000_000));
    assert_eq!(config.source.snapshot_floor_bytes, 5 * GIB);
    assert_eq!(config.retention_min_age, Duration::from_secs(172_800));
    assert_eq!((config.quota.bytes, config.quota.points), (Some(2 << 40), Some(400)));
    assert_eq!(config.window.as_ref().map(ToString::to_string).as_deref(), Some("Mon..Fri 20:00-06:00"));
    assert_eq!(config.metrics.map(|listen| listen.port()), Some(9469));
    let seconds = |wait: Duration| wait.as_secs();
    let waits = config.waits;
    assert_eq!([waits.link, waits.stall_warning, waits.stall_cut].map(seconds), [7200, 60, 120]);
    let slots = config.resources;
    assert_eq!([slots.host_slots, slots.link_slots, slots.datastore_slots], [2, 16, 1]);
    assert_eq!(slots.latency_ceiling, Some(Duration::from_millis(40)));
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.database_memory_bytes, 128 << 20);

    // What `config show` prints means the same.
    let again = resolve(&config.to_toml()).expect("its own print");
    assert_eq!(again, config);
}

#[test]
fn faults_say_where_and_what_is_allowed() {
    let text = "[site]\nname = \"DR Site\"\n\n[wire]\nlisten = [\"0.0.0.0:7300\"]\n  rate = \"fast\"\ntransport = \"udp\"\ncongestion = \"cubic\"\nconnections = 0\n\
                [retention]\nmin_age = \"7 moons\"\n[cache]\nsize = \"1MiB\"\npath = \"packs\"\n[schedule]\nwindow = \"20:00\"\n[log]\nlevel = \"inof\"\n\
                [resources]\nhost_slots = 0\n[metrics]\nlisten = \"0.0.0.0:9469\"\n";
    let faults = faults(text);
    assert_eq!(faults.len(), 13, "{faults:#?}");
    let has = |start: &str, word: &str| {
        assert!(
            faults.iter().any(|f| f.starts_with(start) && f.contains(word)),
            "{start} {word}: {faults:#?}"
        );
    };
    has("/etc/vbr/vbrd.toml:2:8: site.name: \"DR Site\"", "a-z");
    has("/etc/vbr/vbrd.toml:5:11: wire.listen:", "/ip4/0.0.0.0/tcp/7300");
    has("/etc/vbr/vbrd.toml:6:10: wire.rate:", "20Mbit");
    has("/etc/vbr/vbrd.toml:7:13: wire.transport:", "\"quic\"");
    has("/etc/vbr/vbrd.toml:8:14: wire.congestion:", "\"system\"");
    has("/etc/vbr/vbrd.toml:9:15: wire.connections:", "1 to 6");
    has("/etc/vbr/vbrd.toml:11:11: retention.min_age:", "7d");
    has("/etc/vbr/vbrd.toml:22:10: metrics.listen:", "127.0.0.1:9469");
    has("/etc/vbr/vbrd.toml:16:10: schedule.window:", "20:00-06:00");
    has("/etc/vbr/vbrd.toml:13:8: cache.size:", "too small");
    has("/etc/vbr/vbrd.toml:14:8: cache.path:", "absolute");
    has("/etc/vbr/vbrd.toml:18:9: log.level:", "info");
    has("/etc/vbr/vbrd.toml:20:14: resources.host_slots:", "1 to 64");
}

#[test]
fn a_stall_is_told_before_it_is_cut() {
    let config = resolve("[schedule]\nstall_warning = \"10m\"\n").expect("good");
    assert_eq!(config.waits.stall_cut, Duration::from_secs(1800));
    let wrong = faults("[schedule]\nstall_warning = \"10m\"\nstall_cut = \"5m\"\nlink_wait = \"1s\"\n");
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(wrong.iter().any(|fault| fault.contains("schedule.stall_cut: is no longer")), "{wrong:?}");
}

#[test]
fn unknown_keys_and_wrong_types_are_located() {
    let unknown = faults("[cache]\nsize = \"2GiB\"\nresreve = \"1GiB\"\n");
    assert!(unknown[0].starts_with("/etc/vbr/vbrd.toml:3:1: cache.resreve: unknown field"), "{unknown:?}");
    assert!(unknown[0].contains("reserve"), "{unknown:?}");
    let wrong = faults("[wire]\nrate = 20\n");
    assert!(wrong[0].starts_with("/etc/vbr/vbrd.toml:2:8: wire.rate: invalid type"), "{wrong:?}");
    let broken = faults("[wire\nrate = 20\n");
    assert!(broken[0].starts_with("/etc/vbr/vbrd.toml:1:"), "{broken:?}");
    let no_path = faults("[datastore.a]\nreserve = \"1GiB\"\n");
    assert!(no_path[0].contains("datastore.a: `path` is missing"), "{no_path:?}");
    let twice = faults("[datastore.a]\npath = \"/srv/x\"\n[datastore.b]\npath = \"/srv/x/\"\n");
    assert!(twice[0].contains("datastore.b.path") && twice[0].contains("already"), "{twice:?}");
}

#[test]
fn flags_win_over_the_file() {
    let flags = Overrides {
        name: Some("other".into()),
        socket: Some("/srv/s.sock".into()),
        listen: vec!["/ip4/127.0.0.1/tcp/0".into()],
        ..overrides()
    };
    let text =
        "[site]\nname = \"dr\"\n[api]\nsocket = \"/run/x.sock\"\n[wire]\nlisten = [\"/ip4/0.0.0.0/tcp/1\"]\n";
    let config = Config::resolve(None, text, &flags).expect("good");
    assert_eq!((config.site.as_str(), config.socket.to_str()), ("other", Some("/srv/s.sock")));
    assert_eq!(config.wire.listen, ["/ip4/127.0.0.1/tcp/0"]);

    let bad = Overrides { name: Some("Ä".into()), listen: vec!["7300".into()], ..overrides() };
    let error = Config::resolve(None, "", &bad).expect_err("bad flags");
    assert!(error.0.iter().any(|f| f.place == "--name") && error.0.iter().any(|f| f.place == "--listen"));
    let long = Overrides { socket: Some(format!("/{}", "x".repeat(120)).into()), ..overrides() };
    assert!(Config::resolve(None, "", &long).expect_err("long").to_string().contains("107"));
}

#[test]
fn directories_come_from_flags_systemd_or_the_default() {
    let mut o = Overrides::default();
    assert_eq!(directories(&o), (STATE_DEFAULT.into(), RUNTIME_DEFAULT.into()));
    o.state_directory = Some("/var/lib/vbr".into());
    o.runtime_directory = Some("/run/vbr-7".into());
    assert_eq!(directories(&o), ("/var/lib/vbr".into(), "/run/vbr-7".into()));
    o.state = Some("/srv/a".into());
    o.runtime_directory = None;
    assert_eq!(directories(&o), ("/srv/a".into(), "/srv/a/run".into()));
}

#[test]
fn units() {
    assert_eq!(parse_size("10GiB", 0), Ok(10 * GIB));
    assert_eq!(parse_size("5%", 1000), Ok(50));
    for bad in ["", "x", "5%", "-1", "10 apples", "GiB"] {
        assert!(parse_size(bad, 0).is_err(), "{bad}");
    }
    assert_eq!(parse_rate("20Mbit"), Ok(20_000_000));
    assert_eq!(parse_rate("1.5 Gbit/s"), Ok(1_500_000_000));
    for bad in ["", "20", "20MB", "1bit", "Mbit", "9999999Gbit"] {
        assert!(parse_rate(bad).is_err(), "{bad}");
    }
    assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
    assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
    for bad in ["", "7", "7 y", "d", "99999999d"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
    for (host, name) in
        [("web1", "web1"), ("Web_1.lan", "web_1"), ("--x", "x"), ("", "site"), ("äöü", "site")]
    {
        assert_eq!(values::clean_name(host), name, "{host}");
    }
}

#[test]
fn what_needs_a_restart_is_named() {
    let old = resolve("").expect("good");
    let live = resolve("[log]\nlevel = \"debug\"\n[wire]\nrate = \"1Mbit\"\n[retention]\nmin_age = \"1d\"\n")
        .expect("good");
    assert!(old.needs_restart(&live).is_empty());
    let cold = resolve("[cache]\nsize = \"1GiB\"\n[site]\nname = \"x\"\n").expect("good");
    assert_eq!(old.needs_restart(&cold), ["site.name", "cache"]);
}

fn repository_file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn the_reference_documents_every_key_and_no_other() {
    let text = repository_file("docs/configuration.md");
    let documented: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(documented, KEYS);
}

#[test]
fn the_reference_says_the_true_defaults() {
    let text = repository_file("docs/configuration.md");
    let (mut all, mut literal) = (String::new(), 0);
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split(" | ").collect();
        let key = cells[0].trim_start_matches("| `").trim_end_matches('`');
        let Some(value) = cells[1].strip_prefix('`').and_then(|rest| rest.split('`').next()) else {
            continue;
        };
        let (table, key) = key.rsplit_once('.').expect("table and key");
        let is_value = toml::from_str::<toml::Table>(&format!("{key} = {value}")).is_ok();
        // What a named section says by default needs the section.
        if !is_value || table.contains("NAME") {
            continue;
        }
        all.push_str(&format!("{table}.{key} = {value}\n"));
        literal += 1;
    }
    assert!(literal >= 25, "{literal} defaults were found: {all}");
    assert_eq!(resolve(&all).expect("good values"), resolve("").expect("defaults"), "{all}");
    let hook = "[notify.a]\non = [\"failure\"]\nwebhook = \"http://h/p\"\n";
    let timeout = text.lines().find(|line| line.starts_with("| `notify.NAME.timeout`")).expect("the row");
    let timeout = timeout.split('`').nth(3).expect("a value");
    let same = resolve(&format!("{hook}timeout = {timeout}\n")).expect("good");
    assert_eq!(same, resolve(hook).expect("good"));
}

#[test]
fn the_packaged_file_explains_every_key_and_is_good() {
    let text = repository_file("packaging/etc/vbrd.toml");
    let as_shipped = resolve(&text).expect("as shipped");
    assert_eq!(as_shipped, resolve("").expect("defaults"), "as shipped it changes nothing");

    // With every # before an option removed it must be good as well, and name every key.
    let active: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(option) if option.starts_with('[') || option.contains(" = ") && !option.starts_with(' ') => {
                option
            }
            _ => line,
        })
        .map(|line| format!("{line}\n"))
        .collect();
    resolve(&active).expect("with every option active");
    let mut table = String::new();
    let mut keys = Vec::new();
    for line in active.lines() {
        if let Some(head) = line.strip_prefix('[') {
            table = head.trim_end_matches(']').replace("datastore.default", "datastore.NAME");
            table = table.replace("notify.ops", "notify.NAME");
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            keys.push(format!("{table}.{key}"));
        }
    }
    keys.sort();
    let mut all: Vec<String> = KEYS.iter().map(ToString::to_string).collect();
    all.sort();
    assert_eq!(keys, all);
}
