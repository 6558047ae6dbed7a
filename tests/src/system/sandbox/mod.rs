//! What the sandboxes of vbrd and of VMs deny, and which of their settings denies it.
//!
//! Every attempt of [`probe`] is made without a sandbox first, where it must succeed; then in the program's place in the
//! shipped unit, where it must fail in the way expected; then under each setting alone that is said to deny it. So none of them
//! passes because of another, and a setting that is taken out of the unit fails here.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{System, probe, units};
use crate::machine::Machine;

mod vbrd;
mod vm;

const PROGRAM: &str = "/usr/libexec/probe";
/// A process as vbrd is one: of the same user and group.
const BYSTANDER: &str = "bystander.service";

/// A shipped unit, and what is expected of it.
struct Shipped {
    /// Its name; of a template with an instance.
    unit: &'static str,
    /// Where it lies.
    file: &'static str,
    /// Settings that deny together what they deny, without all others.
    layers: &'static [(&'static str, &'static [&'static str])],
    denials: &'static [Denial],
    /// What is not denied: needed, as a sandbox that denies everything would pass the rest; or for others to deny.
    open: &'static [&'static str],
}

/// One denial: the attempt, how it ends where nothing denies it, how in the unit, and how under single layers.
struct Denial {
    attempt: &'static str,
    outside: (&'static str, &'static str),
    inside: &'static str,
    layers: &'static [(&'static str, &'static str)],
}

const fn denied(
    attempt: &'static str,
    inside: &'static str,
    layers: &'static [(&'static str, &'static str)],
) -> Denial {
    Denial { attempt, outside: ("nothing", "done"), inside, layers }
}

/// What a kernel may not offer to anybody.
const OPTIONAL: &[&str] = &["load-module", "realtime", "user-namespace", "kernel-log"];

/// What each attempt said.
type Answers = BTreeMap<String, String>;

pub(super) fn run(system: &System, program: &Path) -> Result<()> {
    let machine = &system.branch;
    let mut count = (0, 0);
    system.step("the sandbox of vbrd denies what it should, each setting by itself", || {
        playground(machine, program)?;
        machine.run(&["systemctl", "stop", "vbrd"])?;
        count = tried(machine, &vbrd::SHIPPED)?;
        Ok(())
    })?;
    say(count);
    system.step("so does that of VMs", || {
        count = tried(machine, &vm::SHIPPED)?;
        Ok(())
    })?;
    say(count);
    system.step("each shipped drop-in opens what it says, and no more", || {
        vbrd::drop_ins(machine)?;
        machine.run(&["systemctl", "stop", BYSTANDER])?;
        machine.run(&["systemctl", "start", "vbrd"])?;
        Ok(())
    })
}

fn say(count: (usize, usize)) {
    println!("{:18}{} attempts denied in the unit, {} times by one setting alone", "", count.0, count.1);
}

fn tried(machine: &Machine, shipped: &Shipped) -> Result<(usize, usize)> {
    let alone = layers(machine, shipped)?;
    let inside = in_the_unit(machine, shipped, None)?;
    judge(shipped, &alone, &inside)
}

/// What the attempts are made on, open to everybody as far as files and modes go.
fn playground(machine: &Machine, program: &Path) -> Result<()> {
    let mode = |inside: &str, mode: u32| {
        let path = machine.path(inside);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            .with_context(|| format!("opening {inside}"))
    };
    for directory in [probe::PLAYGROUND, probe::DATASTORE, "/var/lib/other", probe::HOMES, "/usr/libexec"] {
        std::fs::create_dir_all(machine.path(directory))?;
    }
    for file in [probe::OTHERS_STATE, &probe::in_homes(), probe::SHARED_TMP, probe::SHARED_RUN] {
        machine.write(file, "secret\n")?;
        mode(file, 0o666)?;
    }
    mode(probe::PLAYGROUND, 0o1777)?;
    mode(probe::DATASTORE, 0o777)?;
    machine.copy(program, PROGRAM)?;
    machine.copy(program, probe::RAISED)?;
    mode(PROGRAM, 0o755)?;
    mode(probe::RAISED, 0o4755)?;
    machine.run(&["mknod", "-m", "0666", probe::DEVICE, "b", "7", "0"])?;
    let network = machine.run(&["readlink", "/proc/1/ns/net"])?;
    machine.write(probe::NETWORK, &network)?;
    let start =
        ["systemd-run", "--quiet", "--uid=vbr", "--gid=vbradm", "--unit", BYSTANDER, "/bin/sleep", "600"];
    machine.run(&start)?;
    machine.write(probe::BYSTANDER, &machine.property(BYSTANDER, "MainPID")?)
}

/// Each layer of the shipped unit in a unit of its own.
fn layers(machine: &Machine, shipped: &Shipped) -> Result<BTreeMap<&'static str, Answers>> {
    let text = std::fs::read_to_string(machine.path(shipped.file))
        .with_context(|| format!("reading {}", shipped.file))?;
    let out = |layer: &str| format!("/run/probe-{layer}.out");
    for (layer, keys) in shipped.layers {
        let settings = units::settings(&text, keys);
        let missing = keys.iter().find(|key| units::settings(&text, &[**key]).is_empty());
        ensure!(missing.is_none(), "{} does not set {}", shipped.file, missing.unwrap_or(&""));
        let unit = units::once(&settings, PROGRAM, &out(layer));
        machine.write(&format!("/run/systemd/system/probe-{layer}.service"), &unit)?;
    }
    machine.run(&["systemctl", "daemon-reload"])?;
    let mut all = BTreeMap::new();
    for (layer, _) in shipped.layers {
        machine.run(&["systemctl", "start", &format!("probe-{layer}.service")])?;
        all.insert(*layer, answers(machine, &out(layer))?);
    }
    Ok(all)
}

/// The probe in the place of the unit's program, with the text of a drop-in besides.
fn in_the_unit(machine: &Machine, shipped: &Shipped, drop_in: Option<&str>) -> Result<Answers> {
    let (out, directory) = ("/run/probe.out", format!("/run/systemd/system/{}.d", shipped.unit));
    let (ours, tried) = (format!("{directory}/probe.conf"), format!("{directory}/shipped.conf"));
    if let Some(text) = drop_in {
        machine.write(&tried, text)?;
    }
    machine.write(&ours, &units::instead(PROGRAM, out))?;
    machine.run(&["systemctl", "daemon-reload"])?;
    let begun = machine.run(&["systemctl", "start", shipped.unit]);
    for path in [ours, tried] {
        let _ = std::fs::remove_file(machine.path(&path));
    }
    let _ = std::fs::remove_dir(machine.path(&directory));
    machine.run(&["systemctl", "daemon-reload"])?;
    begun?;
    answers(machine, out)
}

fn answers(machine: &Machine, out: &str) -> Result<Answers> {
    let text = std::fs::read_to_string(machine.path(out)).with_context(|| format!("reading {out}"))?;
    let pair = |line: &str| line.split_once(' ').map(|(name, said)| (name.to_owned(), said.to_owned()));
    let found: Answers = text.lines().filter_map(pair).collect();
    ensure!(found.len() == probe::ATTEMPTS.len(), "the probe said:\n{text}");
    Ok(found)
}

/// Compares with what is expected; returns how many attempts and single layers were judged.
fn judge(shipped: &Shipped, alone: &BTreeMap<&str, Answers>, inside: &Answers) -> Result<(usize, usize)> {
    let said = |answers: &Answers, attempt: &str| answers.get(attempt).cloned().unwrap_or_default();
    let of = |layer: &str, attempt: &str| {
        alone.get(layer).map(|answers| said(answers, attempt)).unwrap_or_default()
    };
    let (mut faults, mut judged, mut single) = (Vec::new(), 0, 0);
    for attempt in shipped.open {
        if said(inside, attempt) != "done" {
            faults.push(format!("{attempt} should be open and ends with {}", said(inside, attempt)));
        }
    }
    for denial in shipped.denials {
        let (layer, wanted) = denial.outside;
        let outside = of(layer, denial.attempt);
        if outside != wanted {
            if OPTIONAL.contains(&denial.attempt) {
                println!("{:18}not told here: {} ends with {outside} without a sandbox", "", denial.attempt);
            } else {
                faults
                    .push(format!("{} ends with {outside} without a sandbox, not {wanted}", denial.attempt));
            }
            continue;
        }
        judged += 1;
        let found = said(inside, denial.attempt);
        if found != denial.inside {
            faults.push(format!("{} ends with {found} in the unit, not {}", denial.attempt, denial.inside));
        }
        for (layer, wanted) in denial.layers {
            single += 1;
            let found = of(layer, denial.attempt);
            if found != *wanted {
                faults.push(format!(
                    "{} ends with {found} under `{layer}` alone, not {wanted}",
                    denial.attempt
                ));
            }
        }
    }
    let denied = shipped.denials.iter().map(|denial| denial.attempt);
    let named: Vec<&str> = denied.chain(shipped.open.iter().copied()).collect();
    let forgotten = probe::ATTEMPTS.iter().map(|attempt| attempt.name).find(|name| !named.contains(name));
    if let Some(name) = forgotten {
        faults.push(format!("nothing is expected of {name}"));
    }
    if !faults.is_empty() {
        bail!("the sandbox of {} is not what it should be:\n  {}", shipped.unit, faults.join("\n  "));
    }
    Ok((judged, single))
}
