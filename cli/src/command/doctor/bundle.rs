//! A bundle for support: what doctor found, what vbrd answers, its log, and the machine around it; redacted.
//!
//! Everything is gathered first, names are learned from vbrd's answers, then each text is redacted. What cannot be had
//! (vbrd away, a program missing, no right) is told in the bundle and stops nothing. The file is new, and for its owner alone.
//! Bounds: [`ITEM_BYTES_MAX`] an item, its end; [`JOBS_MAX`] jobs with their histories and logs.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::{Value, json};
use vbr_api::{DoctorReport, Moment};

use super::archive::{Entry, Form, compress, tar};
use super::machine::{CONFIG, told};
use super::redact::Redactor;
use super::{network, render};
use crate::client::encode;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::View;

/// Of one item; what is longer loses its beginning.
const ITEM_BYTES_MAX: usize = 8 << 20;
/// Whose histories and logs go in.
const JOBS_MAX: usize = 50;
/// Answers of vbrd: path, and what the items are whose names are learned.
const ANSWERS: &[(&str, Option<&str>)] = &[
    ("/v1/status", None),
    ("/v1/peers", Some("site")),
    ("/v1/hosts", Some("host")),
    ("/v1/vms", Some("vm")),
    ("/v1/jobs", Some("job")),
    ("/v1/sessions", None),
    ("/v1/repositories", None),
    ("/v1/replicas", Some("job")),
    ("/v1/restore-points", None),
    ("/v1/throttle", Some("rule")),
    ("/v1/notify", Some("hook")),
    ("/v1/tasks", None),
    ("/v1/cache", None),
    ("/v1/rotation", None),
];
/// Files of the machine.
const FILES: &[&str] = &[
    "/etc/os-release",
    "/proc/version",
    "/proc/meminfo",
    "/proc/loadavg",
    "/proc/mounts",
    "/proc/sys/net/ipv4/tcp_available_congestion_control",
    "/proc/sys/net/ipv4/tcp_allowed_congestion_control",
    "/proc/sys/net/ipv4/tcp_congestion_control",
    "/proc/sys/net/ipv4/tcp_rmem",
    "/proc/sys/net/ipv4/tcp_wmem",
    "/proc/sys/net/core/default_qdisc",
];
/// Programs that tell about the machine.
const PROGRAMS: &[&[&str]] = &[
    &["vbrd", "--version"],
    &["systemctl", "status", "vbrd", "--no-pager", "--lines=0"],
    &["systemctl", "show", "vbrd"],
    &["systemctl", "cat", "vbrd"],
    &["id", "vbr"],
    &["df", "-PT"],
    &["df", "-Pi"],
    &["ip", "-s", "link"],
    &["ip", "address"],
    &["ip", "route"],
    &["timedatectl", "status", "--no-pager"],
    &["qemu-img", "--version"],
    &["dpkg-query", "-W", "vbr", "qemu-utils", "systemd", "linux-image-*"],
];

/// What was asked for.
pub struct Wanted<'a> {
    pub path: &'a Path,
    pub plain_names: bool,
    pub lines: u32,
    pub config: Option<&'a Path>,
}

/// An item before it is redacted.
struct Item {
    name: String,
    content: Content,
}

enum Content {
    Json(Value),
    Text(String),
}

/// Gathers, redacts, writes, and tells what is in it.
pub async fn write(context: &Context, report: &DoctorReport, wanted: &Wanted<'_>) -> Result<(), Failure> {
    let what = "Cannot write the bundle";
    let form = Form::of(wanted.path).ok_or_else(|| {
        let why = format!("{} ends neither in .tar.zst nor in .tar.gz", wanted.path.display());
        Failure::usage(what, why, "name a file with one of these endings")
    })?;
    // Before the work: and the place is ours from here on.
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(wanted.path);
    let mut file = created.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            let why = format!("{} is there already", wanted.path.display());
            Failure::new(Exit::Failed, "exists", what, why, "choose another name: nothing is overwritten")
        }
        _ => Failure::io(what, wanted.path, &error),
    })?;
    let bytes = pack(context, report, wanted, form).await;
    let written = bytes.and_then(|(bytes, names)| {
        let write = file.write_all(&bytes).and_then(|()| file.sync_all());
        write.map(|()| (bytes.len(), names)).map_err(|error| Failure::io(what, wanted.path, &error))
    });
    let (length, names) = written.inspect_err(|_| drop(std::fs::remove_file(wanted.path)))?;
    tell(context, wanted, length, &names)
}

async fn pack(
    context: &Context,
    report: &DoctorReport,
    wanted: &Wanted<'_>,
    form: Form,
) -> Result<(Vec<u8>, Vec<String>), Failure> {
    let mut redactor = Redactor::new(wanted.plain_names);
    let mut items = vec![of_report(report)];
    items.extend(answers(context, &mut redactor).await);
    if context.client.site().is_none() {
        items.extend(machine(wanted).await);
        learn_machine(&mut redactor);
    }
    let entries = redacted(items, &mut redactor, wanted.plain_names);
    let names = entries.iter().map(|entry| entry.name.clone()).collect();
    let seconds = u64::try_from(Moment::now().as_second()).unwrap_or_default();
    let packed = compress(form, tar("vbr-support", &entries, seconds));
    packed
        .map(|bytes| (bytes, names))
        .map_err(|error| Failure::io("Cannot pack the bundle", wanted.path, &error))
}

fn of_report(report: &DoctorReport) -> Item {
    let view = View { wide: true, color: false, now: Moment::now() };
    Item { name: "doctor.txt".into(), content: Content::Text(render(report, &view, true)) }
}

/// What vbrd answers; names are learned on the way.
async fn answers(context: &Context, redactor: &mut Redactor) -> Vec<Item> {
    let mut items = Vec::new();
    let mut jobs = Vec::new();
    for (path, kind) in ANSWERS {
        let name = format!("api/{}.json", path.trim_start_matches("/v1/"));
        let answer = ask(context, path).await;
        redactor.learn_from(*kind, &answer);
        if *path == "/v1/jobs" {
            let listed = answer["items"].as_array().into_iter().flatten();
            jobs = listed.filter_map(|job| job["name"].as_str()).map(str::to_owned).take(JOBS_MAX).collect();
        }
        items.push(Item { name, content: Content::Json(answer) });
    }
    for (number, job) in jobs.iter().enumerate() {
        for what in ["history", "log?lines=500"] {
            let answer = ask(context, &format!("/v1/jobs/{}/{what}", encode(job))).await;
            redactor.learn_from(None, &answer);
            let what = what.split('?').next().unwrap_or_default();
            // Named by number: the name of a file is read by whoever sees the list.
            items.push(Item {
                name: format!("api/jobs/{}-{what}.json", number + 1),
                content: Content::Json(answer),
            });
        }
    }
    let config = ask(context, "/v1/config").await;
    let text = config["toml"].as_str().map_or_else(|| config.to_string(), str::to_owned);
    learn_config(redactor, &text);
    items.push(Item { name: "config-in-effect.toml".into(), content: Content::Text(text) });
    let metrics =
        context.client.get("/v1/metrics").await.map_or_else(|failure| failure.to_text(), |page| page.text);
    items.push(Item { name: "metrics.txt".into(), content: Content::Text(metrics) });
    items
}

async fn ask(context: &Context, path: &str) -> Value {
    match context.client.get(path).await {
        Ok(document) => serde_json::from_str(&document.text).unwrap_or(Value::Null),
        Err(failure) => json!({ "not_had": failure.body }),
    }
}

/// Names of sections are the operator's words.
fn learn_config(redactor: &mut Redactor, text: &str) {
    let table: toml::Table = toml::from_str(text).unwrap_or_default();
    for (section, kind) in [("datastore", "datastore"), ("notify", "hook")] {
        let named = table
            .get(section)
            .and_then(|section| section.as_table())
            .into_iter()
            .flat_map(|table| table.keys());
        named.for_each(|name| redactor.learn(kind, name));
    }
    if let Some(name) = table.get("site").and_then(|site| site.get("name")).and_then(|name| name.as_str()) {
        redactor.learn("site", name);
    }
}

fn learn_machine(redactor: &mut Redactor) {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    redactor.learn("host", name);
    redactor.learn("host", name.split('.').next().unwrap_or_default());
    let people = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    for line in people.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let uid = fields.get(2).and_then(|uid| uid.parse::<u32>().ok()).unwrap_or_default();
        if (1000..65_000).contains(&uid) {
            redactor.learn("user", fields[0]);
        }
    }
}

/// The machine around vbrd.
async fn machine(wanted: &Wanted<'_>) -> Vec<Item> {
    let mut items = Vec::new();
    let mut push = |name: String, text: String| items.push(Item { name, content: Content::Text(text) });
    let config = wanted.config.unwrap_or(Path::new(CONFIG));
    let text = std::fs::read_to_string(config).unwrap_or_else(|error| format!("not had: {error}\n"));
    let in_use = text.lines().filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty());
    push("config-file.toml".into(), in_use.map(|line| format!("{line}\n")).collect());
    let lines = wanted.lines.to_string();
    let log = said(&["journalctl", "-u", "vbrd", "-n", &lines, "--no-pager", "-o", "short-iso"]).await;
    push("log.txt".into(), log);
    let mut files = String::new();
    for file in FILES {
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| format!("not had: {error}\n"));
        files += &format!("== {file}\n{}\n", text.trim_end());
    }
    push("machine/files.txt".into(), files);
    let mut programs = String::new();
    for words in PROGRAMS {
        programs += &format!("== {}\n{}\n", words.join(" "), said(words).await.trim_end());
    }
    push("machine/programs.txt".into(), programs);
    let ports = network::configured_ports(wanted.config);
    let filter: Vec<String> =
        ports.iter().map(|port| format!("sport = :{port} or dport = :{port}")).collect();
    push("machine/connections.txt".into(), said(&["ss", "-tinem", &filter.join(" or ")]).await);
    items
}

/// What a program says, or why there is nothing.
async fn said(words: &[&str]) -> String {
    let Some((program, rest)) = words.split_first() else { return String::new() };
    match told(program, rest).await {
        Some(output) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text += &String::from_utf8_lossy(&output.stderr);
            text
        }
        None => "not had: the program is missing or gave no answer\n".into(),
    }
}

fn redacted(items: Vec<Item>, redactor: &mut Redactor, plain_names: bool) -> Vec<Entry> {
    let mut entries = Vec::new();
    for Item { name, content } in items {
        let text = match content {
            Content::Json(value) => {
                serde_json::to_string_pretty(&redactor.json(value)).unwrap_or_default() + "\n"
            }
            Content::Text(text) => redactor.text(&text),
        };
        let mut from = text.len().saturating_sub(ITEM_BYTES_MAX);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        entries.push(Entry { name, bytes: text.as_bytes()[from..].to_vec() });
    }
    let mut readme = format!(
        "A bundle of vbr for support, made {} by vbrctl {}.\n\nSecrets are left out: what stands under names like password or token, \
         commands, what URLs hold besides their host, keys, invitation codes; long words of letters and digits are [word-N].\n",
        Moment::now(),
        env!("CARGO_PKG_VERSION")
    );
    readme += if plain_names {
        "Names, paths and addresses are as they were.\n\n"
    } else {
        "Names, paths and addresses are tokens, the same for the same thing in all files: job-1, site-2, host-3, path-4, ip-5.\n\n"
    };
    for entry in &entries {
        readme += &format!("{:>10}  {}\n", entry.bytes.len(), entry.name);
    }
    entries.insert(0, Entry { name: "README".into(), bytes: readme.into_bytes() });
    entries
}

fn tell(context: &Context, wanted: &Wanted<'_>, length: usize, names: &[String]) -> Result<(), Failure> {
    if context.output.format.is_json() {
        let text = json!({ "bundle": wanted.path, "bytes": length, "files": names, "plain_names": wanted.plain_names });
        return context.output.json_object(&text.to_string());
    }
    let mut text =
        format!("{}: {}, for you alone (mode 0600)\n", wanted.path.display(), human::size(length as u64));
    names.iter().for_each(|name| text += &format!("  {name}\n"));
    text += "Look through it before you hand it on: tar -xf FILE; secrets are left out, ";
    text += if wanted.plain_names {
        "names, paths and addresses are in it.\n"
    } else {
        "names, paths and addresses are tokens.\n"
    };
    context.output.emit(&text)
}
