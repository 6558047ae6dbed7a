//! Holds the house rules, so that nobody has to remember them: length of files and functions,
//! charters, directions of import, no shortcuts outside tests, no paths of somebody's machine, a
//! clean root. Every rule is tried on a bad sample first: a rule that cannot fail holds nothing.

#![allow(clippy::expect_used)] // A test: what it cannot read is its failure.

mod tidy {
    pub mod imports;
    pub mod source;
}

use std::path::{Path, PathBuf};

use tidy::imports;
use tidy::source::{Source, functions};

/// Rule 2: a file stays under about 400 lines without its tests; some slack.
const FILE_LINES_MAX: usize = 450;
/// Rule 2: a function under about 70.
const FUNCTION_LINES_MAX: usize = 80;

/// What may lie in the root of the repository.
const ROOT: &[&str] = &[
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".config",
    ".demo",
    ".deny.toml",
    ".git",
    ".github",
    ".gitignore",
    ".rustfmt.toml",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "appliance",
    "cli",
    "docs",
    "packaging",
    "systemd",
    "target",
    "tests",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

/// All files below `dir` with one of these endings, without build products.
fn files(dir: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if path.is_dir() && !path.is_symlink() {
                if !matches!(name.as_str(), ".git" | "target" | ".demo") {
                    open.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Every Rust file of the workspace, by its path inside the repository.
fn sources() -> Vec<Source> {
    let root = root();
    let all: Vec<Source> = ["appliance", "cli", "tests"]
        .iter()
        .flat_map(|dir| files(&root.join(dir), &[".rs"]))
        .map(|path| {
            let name = path.strip_prefix(&root).expect("inside").to_string_lossy().into_owned();
            Source::new(name, &std::fs::read_to_string(&path).expect("readable"))
        })
        .collect();
    assert!(all.len() > 20, "the walk finds the sources");
    all
}

fn is_product(name: &str) -> bool {
    (name.starts_with("appliance/") || name.starts_with("cli/")) && name.contains("src/")
}

fn assert_none(rule: &str, faults: Vec<String>) {
    assert!(faults.is_empty(), "{rule}:\n  {}", faults.join("\n  "));
}

// ---- the rules: each takes a source and answers its faults ----

fn file_length(source: &Source) -> Vec<String> {
    let lines = source.lines_without_tests();
    if source.is_test_file() || lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![format!("{}: {lines} lines without tests; at most {FILE_LINES_MAX}: split it", source.name)]
}

fn function_length(source: &Source) -> Vec<String> {
    if source.is_test_file() {
        return Vec::new();
    }
    functions(source)
        .into_iter()
        .filter(|f| f.lines > FUNCTION_LINES_MAX)
        .map(|f| {
            format!(
                "{}:{}: `{}` has {} lines; at most {FUNCTION_LINES_MAX}",
                source.name, f.line, f.name, f.lines
            )
        })
        .collect()
}

fn charter(source: &Source) -> Vec<String> {
    let first = source.text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if first.starts_with("//!") || source.is_test_file() {
        return Vec::new();
    }
    vec![format!(
        "{}: has no charter; begin with `//!`: what for, whose state, what not, bounds",
        source.name
    )]
}

fn shortcuts(source: &Source) -> Vec<String> {
    if source.is_test_file() {
        return Vec::new();
    }
    let everywhere = ["todo!(", "unimplemented!(", "dbg!("];
    let product = [".unwrap()", ".expect()", "panic!(", "unbounded_channel("];
    let wanted = everywhere.iter().chain(product.iter().filter(|_| is_product(&source.name)));
    let wanted: Vec<&&str> = wanted.collect();
    source
        .code_without_tests()
        .lines()
        .enumerate()
        .flat_map(|(at, line)| {
            // A blanked message leaves spaces; `expect` of our own with arguments is something else.
            let tight = line.replace(' ', "");
            wanted
                .iter()
                .filter(move |word| tight.contains(**word))
                .map(move |word| format!("{}:{}: `{word}` outside tests", source.name, at + 1))
        })
        .collect()
}

fn machine_paths(name: &str, text: &str) -> Vec<String> {
    // Spelt in pieces, or this file would be the first to break the rule.
    let bad = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    text.lines()
        .enumerate()
        .filter(|(_, line)| bad.iter().any(|path| line.contains(path)))
        .map(|(at, line)| format!("{name}:{}: a path of somebody's machine: {}", at + 1, line.trim()))
        .collect()
}

fn stray(entries: &[String]) -> Vec<String> {
    entries
        .iter()
        .filter(|name| !ROOT.contains(&name.as_str()))
        .map(|name| format!("{name}: does not belong into the root of the repository"))
        .collect()
}

// ---- the repository obeys them ----

#[test]
fn files_and_functions_stay_short() {
    let sources = sources();
    assert_none("long files", sources.iter().flat_map(file_length).collect());
    assert_none("long functions", sources.iter().flat_map(function_length).collect());
}

#[test]
fn every_module_has_a_charter() {
    assert_none("charters", sources().iter().flat_map(charter).collect());
}

#[test]
fn no_shortcuts_outside_tests() {
    assert_none("shortcuts", sources().iter().flat_map(shortcuts).collect());
}

#[test]
fn imports_follow_the_data_path() {
    assert_none("imports", sources().iter().flat_map(imports::faults).collect());
}

#[test]
fn nothing_speaks_of_a_machine() {
    let root = root();
    let endings =
        [".rs", ".toml", ".md", ".service", ".conf", "Makefile", "run", ".sh", ".1", ".8", "postinst"];
    let faults = files(&root, &endings).into_iter().flat_map(|path| {
        let name = path.strip_prefix(&root).expect("inside").display().to_string();
        std::fs::read_to_string(&path).map(|text| machine_paths(&name, &text)).unwrap_or_default()
    });
    assert_none("machine paths", faults.collect());
}

#[test]
fn the_root_is_clean() {
    let entries: Vec<String> = std::fs::read_dir(root())
        .expect("root")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert_none("root", stray(&entries));
}

// ---- and each can fail ----

fn sample(name: &str, text: &str) -> Source {
    Source::new(name.to_owned(), text)
}

#[test]
fn rules_fail_on_bad_samples() {
    let long_file = format!("//! x\n{}", "const A: u8 = 1;\n".repeat(FILE_LINES_MAX));
    assert_eq!(file_length(&sample("appliance/src/a.rs", &long_file)).len(), 1);
    let long_tests = format!("//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n", "// x\n".repeat(FILE_LINES_MAX));
    assert!(file_length(&sample("appliance/src/a.rs", &long_tests)).is_empty());

    let body = "    let a = \"}}}\"; // }\n".repeat(FUNCTION_LINES_MAX);
    let long_function =
        format!("//! x\npub async fn long<T>(a: T)\nwhere\n    T: Copy,\n{{\n{body}}}\nfn short() {{}}\n");
    let faults = function_length(&sample("appliance/src/a.rs", &long_function));
    assert!(faults.len() == 1 && faults[0].contains(":2: `long`"), "{faults:?}");

    assert_eq!(charter(&sample("cli/src/a.rs", "\nfn main() {}\n")).len(), 1);
    assert!(charter(&sample("cli/src/a.rs", "//! What for.\nfn main() {}\n")).is_empty());

    for bad in ["todo!()", "a.unwrap()", "a.expect(\"x\")", "panic!(\"x\")", "unimplemented!()", "dbg!(a)"] {
        let text = format!("//! x\nfn a() {{ {bad}; }}\n");
        assert_eq!(shortcuts(&sample("appliance/src/a.rs", &text)).len(), 1, "{bad}");
    }
    for good in
        ["// a.unwrap()", "\"todo!()\"", "a.unwrap_or(1)", "a.expect_err(1)", "a.expect(kind::HELLO, 3)"]
    {
        let text =
            format!("//! x\nfn a() {{\n{good};\n}}\n#[cfg(test)]\nmod tests {{ fn b() {{ a.unwrap() }} }}\n");
        let faults = shortcuts(&sample("appliance/src/a.rs", &text));
        assert!(faults.is_empty(), "{good}: {faults:?}");
    }

    assert_eq!(machine_paths("a.md", concat!("see /wo", "rk/main\nfine\n")).len(), 1);
    assert_eq!(stray(&["Cargo.toml".into(), "notes.txt".into()]).len(), 1);
}

#[test]
fn import_rules_fail_on_bad_samples() {
    for (file, line, faults) in [
        ("appliance/src/wire/a.rs", "use crate::job::Session;", 1),
        ("appliance/src/accelerator/a.rs", "use crate::wire::Wire;", 1),
        ("appliance/src/accelerator/a.rs", "use crate::wire::message::Offer;", 0),
        ("appliance/src/mover/a.rs", "use crate::{block::Geometry, accelerator::{a, b}, host};", 1),
        ("appliance/src/control/a.rs", "fn a() { crate::wire::start(); }", 1),
        ("appliance/src/limits.rs", "use crate::job::Session;", 1),
        ("appliance/src/block.rs", "use crate::limits::X;", 0),
        ("appliance/src/job/a.rs", "use crate::mover::X; use crate::wire::Y; use crate::control::Z;", 1),
        ("appliance/src/job/a.rs", "// use crate::control::Z;", 0),
        ("appliance/src/job/a.rs", "#[cfg(test)]\nmod tests { use crate::control::Z; }", 0),
        ("appliance/src/wire/a.rs", "use crate::unheard_of::X;", 1),
        ("cli/src/a.rs", "use crate::output::X;", 0),
        ("cli/src/a.rs", "use vbr_appliance::wire::X;", 1),
        ("appliance/api/src/a.rs", "use crate::job::X;", 0),
        ("appliance/src/repository/a.rs", "use libp2p::X;", 1),
    ] {
        let source = sample(file, &format!("//! x\n{line}\n"));
        let found = imports::faults(&source);
        assert_eq!(found.len(), faults, "{file}: {line}: {found:?}");
    }
}
