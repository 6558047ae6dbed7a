//! `setup`, below a root of its own: what it writes, what it leaves alone, and that a second run changes nothing.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::fake::{Answer, Fake, Request, Run, error};

const PACKAGED: &str = include_str!("../../../packaging/etc/vbrd.toml");
const CONFIG: &str = "etc/vbr/vbrd.toml";
const DROP_IN: &str = "etc/systemd/system/vbrd.service.d/50-vbr-setup.conf";

struct Lab {
    fake: Fake,
    root: PathBuf,
}

/// A machine on which the package was installed. Nothing answers there.
fn lab() -> Lab {
    let fake = Fake::start(|_: &Request| Answer::HangUp);
    let root = fake.path("root");
    for dir in ["etc/vbr", "srv/vm", "srv/other/site", "var/lib/vbr"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\nvbr:x:61901:61902::/:/x\nann:x:61910:61910::/:/x\n",
    )
    .unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\nvbradm:x:61903:ann\nimages:x:61904:\n").unwrap();
    std::fs::write(root.join(CONFIG), PACKAGED).unwrap();
    std::fs::write(root.join("srv/vm/web.img"), vec![1; 4096]).unwrap();
    std::fs::write(root.join("srv/other/site/file"), "x").unwrap();
    for dir in [fake.dir.path(), &root] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    Lab { fake, root }
}

impl Lab {
    fn setup(&self, words: &[&str]) -> Run {
        let root = self.root.display().to_string();
        self.fake.run(&[&["setup", "--root", &root], words].concat())
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }

    /// Everything below the root, with owners and contents.
    fn picture(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.root, &mut found);
        found.sort();
        found
    }
}

fn walk(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let content =
            if meta.is_file() { std::fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        found.push(format!("{} {:o} {}:{} {content}", path.display(), meta.mode(), meta.uid(), meta.gid()));
        if meta.is_dir() {
            walk(&path, found);
        }
    }
}

const WORDS: [&str; 14] = [
    "--name",
    "branch-7",
    "--role",
    "both",
    "--datastore",
    "/srv/replicas",
    "--cache-size",
    "20GiB",
    "--advertise",
    "dr.example.com",
    "--disks",
    "/srv/vm/web.img",
    "--listen",
    "7301",
];

#[test]
fn a_dry_run_changes_nothing_and_needs_no_root() {
    let lab = lab();
    let before = lab.picture();
    let run = lab.setup(&[&WORDS[..], &["--dry-run", "-o", "json"]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    let steps = run.json()["steps"].to_string();
    for word in [
        "/srv/replicas",
        "branch-7",
        "20GiB",
        "/dns/dr.example.com/tcp/7300",
        "/ip4/0.0.0.0/tcp/7301",
        "ReadWritePaths=/srv/replicas",
    ] {
        assert!(steps.contains(word), "{word}: {steps}");
    }
    assert_eq!(run.json()["changed"], false);
    assert_eq!(lab.picture(), before);
}

#[test]
fn it_sets_up_and_a_second_run_changes_nothing() {
    let lab = lab();
    if !rustix::process::geteuid().is_root() {
        let run = lab.setup(&[&WORDS[..], &["--yes"]].concat());
        assert_eq!(run.code, 4, "{run:?}");
        assert!(run.err.contains("sudo vbrctl setup"), "{run:?}");
        return;
    }
    let run = lab.setup(&[&WORDS[..], &["--yes"]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    let config = lab.read(CONFIG);
    assert_eq!(config.lines().count(), PACKAGED.lines().count(), "comments stay");
    for line in [
        "name = \"branch-7\"",
        "listen = [\"/ip4/0.0.0.0/tcp/7301\"]",
        "advertise = [\"/dns/dr.example.com/tcp/7300\"]",
        "[datastore.default]\npath = \"/srv/replicas\"",
        "size = \"20GiB\"",
    ] {
        assert!(config.contains(line), "{line}");
    }
    let drop_in = lab.read(DROP_IN);
    for line in
        ["[Unit]\n", "RequiresMountsFor=/srv/replicas\n", "[Service]\n", "ReadWritePaths=/srv/replicas\n"]
    {
        assert!(drop_in.contains(line), "{drop_in}");
    }
    let store = std::fs::metadata(lab.root.join("srv/replicas")).unwrap();
    assert_eq!((store.uid(), store.gid(), store.mode() & 0o777), (61901, 61903, 0o700));
    let kept: Vec<String> = crate::fake::left_in(&lab.root.join("etc/vbr"));
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert_eq!(lab.read(&format!("etc/vbr/{}", kept[1])), PACKAGED, "the old file is kept");

    let before = lab.picture();
    let again = lab.setup(&[&WORDS[..], &["--yes", "-o", "json"]].concat());
    assert_eq!((again.code, &again.json()["changed"]), (0, &serde_json::Value::Bool(false)), "{again:?}");
    assert!(again.err.contains("Nothing to change"), "{again:?}");
    assert_eq!(lab.picture(), before);
    // Without a word: all as it is.
    assert!(lab.setup(&["--yes"]).err.contains("Nothing to change"));

    // More is added, nothing taken away.
    std::fs::create_dir(lab.root.join("srv/more")).unwrap();
    std::fs::write(lab.root.join("srv/more/db.img"), "x").unwrap();
    let db = lab.root.join("srv/more/db.img");
    std::os::unix::fs::chown(&db, Some(0), Some(61904)).unwrap();
    std::fs::set_permissions(&db, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(lab.setup(&["--disks", "/srv/more", "--yes"]).code, 0);
    let drop_in = lab.read(DROP_IN);
    assert!(drop_in.contains("ReadWritePaths=/srv/replicas\n"), "{drop_in}");
    assert!(drop_in.contains("SupplementaryGroups=images\n"), "{drop_in}");
}

#[test]
fn what_it_must_not_touch() {
    let lab = lab();
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let before = lab.picture();
    let refused = |words: &[&str], code: i32, word: &str| {
        let run = lab.setup(&[words, &["--yes"]].concat());
        assert_eq!(run.code, code, "{words:?}: {run:?}");
        assert!(run.err.contains(word) && run.err.contains("next:"), "{words:?}: {run:?}");
    };
    refused(&["--datastore", "/srv/other"], 1, "something else lies there");
    refused(&["--datastore", "/var/tmp/vbr"], 2, "never writes below /home");
    refused(&["--disks", "/tmp/x.img"], 2, "/tmp");
    refused(&["--disks", "/srv/none.img"], 1, "No such file");
    refused(&["--name", "Not A Name"], 2, "no name");
    refused(&["--cache-size", "1MiB"], 2, "256MiB");
    refused(&["--listen", "/ip4/nonsense/tcp/1"], 2, "");
    refused(&["--admin", "nobody-here"], 2, "no such user");
    assert_eq!(lab.picture(), before);

    std::fs::write(lab.root.join(CONFIG), "[wire\n").unwrap();
    refused(&["--name", "a"], 1, "Cannot change /etc/vbr/vbrd.toml");
    assert_eq!(lab.read(CONFIG), "[wire\n");
    std::fs::write(lab.root.join(CONFIG), PACKAGED).unwrap();
    std::fs::create_dir_all(lab.root.join(DROP_IN).parent().unwrap()).unwrap();
    std::fs::write(lab.root.join(DROP_IN), "[Service]\nUser=root\n").unwrap();
    refused(&["--name", "a"], 1, "User=root");

    // A datastore that holds replicas is not turned away from, and a paired site keeps its name.
    std::fs::remove_file(lab.root.join(DROP_IN)).unwrap();
    std::fs::create_dir_all(lab.root.join("var/lib/vbr/datastore/branch-3/web")).unwrap();
    refused(&["--datastore", "/srv/replicas"], 1, "holds replicas");
    std::fs::write(lab.root.join("var/lib/vbr/peers.json"), r#"{"version":1,"peers":[{"name":"dr"}]}"#)
        .unwrap();
    refused(&["--name", "other"], 1, "it is paired");
}

#[test]
fn setup_is_for_this_machine() {
    let fake = Fake::start(|_: &Request| error(500, "unexpected"));
    let run = fake.run(&["--site", "b1", "setup", "--yes"]);
    assert_eq!(run.code, 4, "{run:?}");
    assert_eq!(fake.run(&["setup", "--role", "neither"]).code, 2);
}
