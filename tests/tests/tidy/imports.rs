//! Allowed directions of import: the data path has one direction, and only the job joins its stages.

use super::source::Source;

/// May be used by everybody, and use only each other.
const LEAVES: &[&str] = &[
    "block",
    "block_file",
    "busy",
    "config",
    "database",
    "error",
    "free_space",
    "limits",
    "nbd",
    "notify",
    "pulse",
    "schedule",
    "telemetry",
    "throttle",
    "vm_config",
    "worker",
];

/// What else a module may use. `wire::message` are the frames alone: types and their encoding.
const RULES: &[(&str, &[&str])] = &[
    ("main", &["supervisor"]),
    ("lib", &["*"]),
    // The composition root opens everything and hands it out.
    ("supervisor", &["*"]),
    ("control", &["job", "failover", "repository"]),
    ("job", &["mover", "accelerator", "wire", "repository", "host"]),
    ("failover", &["host", "repository"]),
    ("mover", &["host", "repository", "wire::message"]),
    ("accelerator", &["wire::message"]),
    ("repository", &[]),
    ("host", &[]),
    ("wire", &[]),
];

/// Only these may know the library.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("libp2p", &["wire"]),
    ("libp2p_stream", &["wire"]),
    ("rocksdb", &["database"]),
    ("axum", &["control"]),
    ("utoipa", &["control"]),
    ("sd_notify", &["supervisor"]),
];

pub fn faults(source: &Source) -> Vec<String> {
    if source.is_test_file() {
        return Vec::new();
    }
    if let Some(path) = source.name.strip_prefix("appliance/src/") {
        let module = path.split(['/', '.']).next().unwrap_or_default();
        return in_appliance(source, module);
    }
    if source.name.starts_with("cli/src/") {
        return words(source.code_without_tests(), &["vbr_appliance", "libp2p", "rocksdb"])
            .map(|word| format!("{}: the console uses {word}; it may know vbr-api alone", source.name))
            .collect();
    }
    if source.name.starts_with("appliance/api/src/") {
        return words(source.code_without_tests(), &["vbr_appliance", "tokio", "std::fs", "std::net"])
            .map(|word| format!("{}: the API's types use {word}; they do no IO", source.name))
            .collect();
    }
    Vec::new()
}

fn in_appliance(source: &Source, module: &str) -> Vec<String> {
    let code = source.code_without_tests();
    let mut faults = Vec::new();
    for used in used_modules(code) {
        if !allowed(module, &used) {
            faults.push(format!("{}: `{module}` may not use `{used}`", source.name));
        }
    }
    for (library, users) in LIBRARIES {
        if !users.contains(&module) && words(code, &[*library]).next().is_some() {
            faults.push(format!("{}: only {} may use {library}", source.name, users.join(", ")));
        }
    }
    faults
}

fn allowed(module: &str, used: &str) -> bool {
    let first = used.split("::").next().unwrap_or_default();
    if first == module || LEAVES.contains(&first) {
        return true;
    }
    let rule = RULES.iter().find(|(name, _)| *name == module).map(|(_, uses)| *uses).unwrap_or(&[]);
    rule.iter()
        .any(|use_| *use_ == "*" || *use_ == first || used == *use_ || used.starts_with(&format!("{use_}::")))
}

/// `a::b` for every `crate::a::b` and for every branch of `crate::{…}`.
fn used_modules(code: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(branches(group).iter().map(|branch| two(branch))),
            None => used.push(two(rest)),
        }
    }
    used.retain(|name| !name.is_empty());
    used
}

/// The first two segments of a path.
fn two(path: &str) -> String {
    let path: String =
        path.trim_start().chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect();
    path.split("::").filter(|s| !s.is_empty()).take(2).collect::<Vec<_>>().join("::")
}

/// The branches of a use group at its own level.
fn branches(group: &str) -> Vec<String> {
    let (mut depth, mut branch, mut all) = (0usize, String::new(), Vec::new());
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => all.push(std::mem::take(&mut branch)),
            _ => {
                depth = match c {
                    '{' => depth + 1,
                    '}' => depth - 1,
                    _ => depth,
                };
                branch.push(c);
            }
        }
    }
    all.push(branch);
    all
}

fn words<'a>(code: &'a str, words: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    words.iter().copied().filter(move |word| {
        code.match_indices(word).any(|(at, _)| {
            let edge = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            edge(code[..at].chars().next_back()) && edge(code[at + word.len()..].chars().next())
        })
    })
}
