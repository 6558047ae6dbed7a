//! From what is wanted to steps: only what differs from what is there. And the steps, done.
//!
//! Nothing is destroyed: a changed configuration leaves its old text beside it, a directory with somebody else's files is
//! refused, a datastore that holds replicas is not turned away from, a site that has peers keeps its name.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::Value;
use vbr_api::Moment;

use super::access::Access;
use super::answers::{Answers, Cache};
use super::config_file::{self, Setting};
use super::drop_in::DropIn;
use super::machine::{GROUP, Identity, Machine};
use super::{CONFIG, DROP_IN, advice};
use crate::command::doctor::machine::vbrd;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;

/// vbrd's own places.
pub const STATE: &str = "/var/lib/vbr";
pub const DATASTORE: &str = "/var/lib/vbr/datastore";

/// Something to be done.
#[derive(Debug)]
pub struct Step {
    /// A line for the operator.
    pub what: String,
    pub action: Action,
}

#[derive(Debug)]
pub enum Action {
    /// The configuration, checked by vbrd before it takes its place.
    Configure {
        text: String,
    },
    DropIn {
        text: String,
    },
    /// For vbrd alone.
    Directory {
        path: PathBuf,
        owner: Identity,
    },
    Acl {
        path: PathBuf,
        entry: String,
    },
    Member {
        user: String,
        group: &'static str,
    },
}

impl Action {
    /// True where the service has to be restarted for it.
    pub fn restarts(&self) -> bool {
        matches!(self, Self::Configure { .. } | Self::DropIn { .. })
    }
}

/// What is there by now.
pub struct Present {
    pub config: String,
    pub drop_in: DropIn,
}

impl Present {
    pub fn read(machine: &Machine) -> Result<Self, Failure> {
        let config = machine.read(CONFIG);
        if let Err(error) = toml::from_str::<toml::Table>(&config) {
            let why = error.to_string().lines().map(str::trim).collect::<Vec<_>>().join("; ");
            return Err(refused(CONFIG, &why, "correct it (vbrd check-config), then run setup again"));
        }
        let drop_in = DropIn::parse(&machine.read(DROP_IN)).map_err(|why| {
            refused(
                DROP_IN,
                &why,
                "move that line to a drop-in of your own (systemctl edit vbrd), then run setup again",
            )
        })?;
        Ok(Self { config, drop_in })
    }

    pub fn text(&self, path: &[&str]) -> Option<String> {
        config_file::get(&self.config, path).and_then(|value| value.as_str().map(str::to_owned))
    }

    pub fn list(&self, path: &[&str]) -> Option<Vec<String>> {
        let value = config_file::get(&self.config, path)?;
        Some(value.as_array()?.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect())
    }

    /// Where replicas are kept by now.
    pub fn datastore(&self) -> String {
        self.text(&["datastore", "default", "path"]).unwrap_or_else(|| DATASTORE.into())
    }
}

fn refused(file: &str, why: &str, next: &str) -> Failure {
    Failure::new(Exit::Failed, "not_understood", format!("Cannot change {file}"), why, next)
}

/// The steps, in the order in which they are done.
pub fn steps(
    machine: &Machine,
    who: Identity,
    present: &Present,
    answers: &Answers,
    access: &Access,
) -> Result<Vec<Step>, Failure> {
    let mut steps = Vec::new();
    let mut drop_in = access.drop_in.clone();
    if let Some(path) = &answers.datastore {
        steps.extend(datastore(machine, who, present, path)?);
        if !path.starts_with(STATE) {
            drop_in.write.insert(path.clone());
        }
    }
    let made = access.snapshots.iter().filter(|place| !machine.at(place).exists());
    steps.extend(made.map(|place| Step {
        what: format!("make {}, where clones of disks lie while they are read", place.display()),
        action: Action::Directory { path: place.clone(), owner: who },
    }));
    for (path, entry) in &access.acls {
        let right = if entry.ends_with("r--") || entry.ends_with("r-x") { "read" } else { "go through" };
        steps.push(Step {
            what: format!("let the user of vbrd {right} {} (ACL {entry})", path.display()),
            action: Action::Acl { path: path.clone(), entry: entry.clone() },
        });
    }
    steps.extend(configure(machine, present, answers, access)?);
    if drop_in != present.drop_in {
        let text = drop_in.text();
        let lines = text.lines().filter(|line| line.contains('=') && !line.starts_with('#'));
        let what = format!("write {DROP_IN}: {}", lines.collect::<Vec<_>>().join(", "));
        steps.push(Step { what, action: Action::DropIn { text } });
    }
    for user in &answers.admins {
        if !machine.has_user(user) {
            let next = "name a user of this machine with --admin";
            return Err(Failure::usage(
                format!("Cannot let {user} use vbrctl"),
                "there is no such user",
                next,
            ));
        }
        if !machine.group(GROUP).is_some_and(|(_, members)| members.contains(user)) {
            steps.push(Step {
                what: format!("add {user} to the group {GROUP}, who may order everything"),
                action: Action::Member { user: user.clone(), group: GROUP },
            });
        }
    }
    Ok(steps)
}

fn datastore(
    machine: &Machine,
    who: Identity,
    present: &Present,
    path: &Path,
) -> Result<Option<Step>, Failure> {
    let what = format!("Cannot keep replicas in {}", path.display());
    if !path.is_absolute()
        || ["/", "/tmp", "/var/tmp", "/etc", "/usr"].iter().any(|bad| path == Path::new(bad))
    {
        let next = "name a directory of its own, like /srv/replicas";
        return Err(Failure::usage(what, "that is no directory for it", next));
    }
    if ["/tmp", "/var/tmp", "/home", "/root"].iter().any(|hidden| path.starts_with(hidden)) {
        let why = "the service cannot write there: it has a /tmp of its own and never writes below /home";
        return Err(Failure::usage(what, why, "name a directory elsewhere, like /srv/replicas"));
    }
    let old = present.datastore();
    if Path::new(&old) != path && holds_replicas(&machine.at(&old)) {
        let why = format!("{old} holds replicas, and vbrd would not find them any more");
        let next = format!(
            "keep it, or stop vbrd, move all of {old} to the new place, set datastore.default.path in {CONFIG}, and run setup again"
        );
        return Err(Failure::new(Exit::Failed, "conflict", what, why, next));
    }
    let place = machine.at(path);
    let Ok(meta) = fs::metadata(&place) else {
        let made = format!("make {}, where replicas are kept, for vbrd alone", path.display());
        // systemd makes what lies in the state directory's own place, vbrd the rest.
        let is_own = path.starts_with(STATE);
        return Ok((!is_own)
            .then(|| Step { what: made, action: Action::Directory { path: path.into(), owner: who } }));
    };
    if meta.uid() == who.uid {
        return Ok(None);
    }
    let is_empty = fs::read_dir(&place)
        .is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == "lost+found"));
    if !meta.is_dir() || !is_empty {
        let next = format!("name a directory of its own, like {}", path.join("vbr").display());
        return Err(Failure::new(
            Exit::Failed,
            "conflict",
            what,
            "something else lies there, which vbrd must not touch",
            next,
        ));
    }
    let what = format!("give the empty {} to vbrd, for replicas", path.display());
    Ok(Some(Step { what, action: Action::Directory { path: path.into(), owner: who } }))
}

/// A directory in it is a site's.
fn holds_replicas(path: &Path) -> bool {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().is_dir())
        .any(|entry| entry.file_name() != "seed" && entry.file_name() != "lost+found")
}

fn configure(
    machine: &Machine,
    present: &Present,
    answers: &Answers,
    access: &Access,
) -> Result<Option<Step>, Failure> {
    let mut settings = Vec::new();
    let mut put = |path: &[&'static str], value: Value, usual: Option<Value>| {
        let now = config_file::get(&present.config, path);
        // What is so without being said need not be said.
        if now.as_ref() != Some(&value) && (now.is_some() || usual.as_ref() != Some(&value)) {
            settings.push(Setting::new(path, value));
        }
    };
    if let Some(name) = &answers.name {
        let host = machine.read("/proc/sys/kernel/hostname").trim().to_ascii_lowercase();
        put(&["site", "name"], name.as_str().into(), machine.is_live().then(|| host.into()));
    }
    if let Some(listen) = &answers.listen {
        put(&["wire", "listen"], texts(listen), Some(texts(&["/ip4/0.0.0.0/tcp/7300".to_owned()])));
    }
    if let Some(advertise) = &answers.advertise {
        put(&["wire", "advertise"], texts(advertise), Some(texts(&[])));
    }
    if let Some(path) = &answers.datastore {
        put(&["datastore", "default", "path"], path.display().to_string().into(), Some(DATASTORE.into()));
    }
    match &answers.cache {
        Cache::Keep => {}
        Cache::Size(size) => put(&["cache", "size"], size.as_str().into(), None),
        Cache::Auto => {
            let advice = advice::cache_size(access.bytes, file_system(machine, present));
            if let Some(bytes) = advice.bytes {
                put(&["cache", "size"], format!("{}GiB", bytes >> 30).into(), None);
            }
        }
    }
    if !access.snapshots.is_empty() {
        let places: Vec<String> = access.snapshots.iter().map(|place| place.display().to_string()).collect();
        put(&["source", "snapshot_dirs"], texts(&places), None);
    }
    if settings.is_empty() {
        return Ok(None);
    }
    if settings.iter().any(|setting| setting.path == ["site", "name"]) && has_peers(machine) {
        return Err(Failure::new(
            Exit::Failed,
            "conflict",
            "Cannot give this site another name",
            "it is paired, and its peers file its replicas under the name it has",
            "leave --name out",
        ));
    }
    let text = config_file::apply(&present.config, &settings)
        .map_err(|why| refused(CONFIG, &why, "set it by hand, then run setup again"))?;
    let said = settings.iter().map(|setting| format!("{} = {}", setting.name(), setting.value));
    let what = format!("set in {CONFIG}: {}", said.collect::<Vec<_>>().join(", "));
    Ok(Some(Step { what, action: Action::Configure { text } }))
}

fn texts(items: &[String]) -> Value {
    Value::Array(items.iter().map(|item| Value::from(item.as_str())).collect())
}

/// Bytes of the file system that the cache lies on.
pub fn file_system(machine: &Machine, present: &Present) -> u64 {
    let path = present.text(&["cache", "path"]).unwrap_or_else(|| STATE.into());
    let there = Path::new(&path).ancestors().map(|above| machine.at(above)).find(|above| above.exists());
    let found = there.and_then(|path| rustix::fs::statvfs(&path).ok());
    found.map_or(0, |found| found.f_blocks * found.f_frsize)
}

/// The peer book of a vbrd that was paired.
fn has_peers(machine: &Machine) -> bool {
    let book: serde_json::Value =
        serde_json::from_str(&machine.read(format!("{STATE}/peers.json"))).unwrap_or_default();
    let peers = &book["peers"];
    peers.as_array().is_some_and(|peers| !peers.is_empty())
        || peers.as_object().is_some_and(|peers| !peers.is_empty())
}

/// Does a step.
pub fn carry_out(machine: &Machine, step: &Step) -> Result<(), Failure> {
    match &step.action {
        Action::Configure { text } => write_config(machine, text),
        Action::DropIn { text } => write_whole(&machine.at(DROP_IN), text, 0o644),
        Action::Directory { path, owner } => directory(&machine.at(path), *owner),
        Action::Acl { path, entry } => {
            run(Command::new("setfacl").args(["-m", entry]).arg(machine.at(path)), "apt install acl")
        }
        Action::Member { user, group } => {
            let mut command = Command::new("usermod");
            if !machine.is_live() {
                command.arg("--prefix").arg(machine.at("/"));
            }
            run(
                command.args(["-aG", group, user]),
                "add the user to the group with the tools of this machine",
            )
        }
    }
}

fn write_config(machine: &Machine, text: &str) -> Result<(), Failure> {
    let path = machine.at(CONFIG);
    let new = path.with_extension("toml.new");
    write_whole(&new, text, 0o644)?;
    let checked = Command::new(vbrd()).args(["check-config", "--config"]).arg(&new).output();
    let output = checked.map_err(|error| {
        drop(fs::remove_file(&new));
        Failure::io("Cannot have vbrd check the new configuration", Path::new("vbrd"), &error)
    })?;
    if !output.status.success() {
        drop(fs::remove_file(&new));
        let faults = String::from_utf8_lossy(&output.stderr).lines().take(6).collect::<Vec<_>>().join("; ");
        return Err(Failure::usage(
            "The new configuration would not be good",
            faults,
            "give another value; nothing was changed",
        ));
    }
    if path.exists() {
        let stamp: String = Moment::now().to_string().chars().filter(char::is_ascii_digit).take(14).collect();
        let kept = path.with_extension(format!("toml.bak-{stamp}"));
        fs::copy(&path, &kept)
            .map_err(|error| Failure::io("Cannot keep the old configuration", &kept, &error))?;
        // Comments and rights of the old file are the operator's.
        if let Ok(meta) = fs::metadata(&path) {
            let kept = fs::set_permissions(&new, Permissions::from_mode(meta.mode() & 0o7777));
            drop(kept.and_then(|()| chown(&new, Some(meta.uid()), Some(meta.gid()))));
        }
    }
    fs::rename(&new, &path).map_err(|error| Failure::io("Cannot write the configuration", &path, &error))
}

fn write_whole(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let fail = |error| Failure::io("Cannot write a file", path, &error);
    let above = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(above).map_err(fail)?;
    fs::set_permissions(above, Permissions::from_mode(fs::metadata(above).map_err(fail)?.mode() | 0o755))
        .map_err(fail)?;
    let new = path.with_extension("setup-new");
    drop(fs::remove_file(&new));
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new);
    let written = file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        // Whatever the umask is.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&new, path)).map_err(fail)
}

fn directory(path: &Path, owner: Identity) -> Result<(), Failure> {
    let fail = |error| Failure::io("Cannot make a directory for vbrd", path, &error);
    fs::create_dir_all(path).map_err(fail)?;
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(fail)?;
    chown(path, Some(owner.uid), Some(owner.gid)).map_err(fail)
}

fn run(command: &mut Command, next: &str) -> Result<(), Failure> {
    let shown = format!("{command:?}").replace('"', "");
    let failed = |why: String| Failure::new(Exit::Failed, "failed", format!("{shown} failed"), why, next);
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(human::clean(String::from_utf8_lossy(&output.stderr).trim())))
}
