//! Documents that go stale by themselves: links between them, and the list of dependencies.

#![allow(clippy::expect_used, clippy::panic)] // A test: what it cannot read is its failure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All Markdown of the repository.
fn documents() -> Vec<PathBuf> {
    let root = root();
    let mut all =
        vec![root.join("README.md"), root.join("tests/README.md"), root.join("appliance/ARCHITECTURE.md")];
    let mut open = vec![root.join("docs")];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).expect("docs").flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                all.push(path);
            }
        }
    }
    all.sort();
    all
}

/// Lines outside blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// Headings as links name them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let count = seen.entry(slug.clone()).and_modify(|count| *count += 1).or_insert(0);
            if *count == 0 { slug } else { format!("{slug}-{count}") }
        })
        .collect()
}

/// What a document points to, without pages of the web.
fn targets(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        for rest in line.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if !target.starts_with("http") && !target.is_empty() {
                found.push(target.to_owned());
            }
        }
    }
    found
}

fn broken(path: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for target in targets(text) {
        let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
        let to = if file.is_empty() { path.to_owned() } else { path.parent().expect("dir").join(file) };
        if !to.exists() {
            faults.push(format!("{}: {target} does not exist", path.display()));
        } else if !anchor.is_empty() && !anchors(&read(&to)).contains(anchor) {
            faults.push(format!("{}: {target} has no such heading", path.display()));
        }
    }
    faults
}

#[test]
fn every_link_leads_somewhere() {
    let documents = documents();
    assert!(documents.len() >= 8, "{documents:?}");
    let faults: Vec<String> = documents.iter().flat_map(|path| broken(path, &read(path))).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // And it can fail.
    let here = root().join("README.md");
    assert_eq!(
        broken(&here, "see [a](docs/nothing.md), [b](README.md#no-such-heading), [c](README.md)").len(),
        2
    );
    assert_eq!(broken(&here, "```\n[a](docs/nothing.md)\n```\n"), Vec::<String>::new());
}

#[test]
fn every_document_can_be_found_from_the_readme() {
    let root = root();
    let mut reached = BTreeSet::new();
    let mut open = vec![root.join("README.md")];
    while let Some(path) = open.pop() {
        if !reached.insert(path.clone()) {
            continue;
        }
        for target in targets(&read(&path)) {
            let file = target.split('#').next().unwrap_or_default();
            if file.ends_with(".md") {
                let to = path.parent().expect("dir").join(file).canonicalize();
                open.extend(to.ok());
            }
        }
    }
    let lost: Vec<PathBuf> = documents().into_iter().filter(|path| !reached.contains(path)).collect();
    assert!(lost.is_empty(), "no way leads from the README to {lost:?}");
}

/// Crates of the registry that a manifest of ours names.
fn direct() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for manifest in ["appliance", "appliance/api", "cli", "tests"] {
        let text = read(&root().join(manifest).join("Cargo.toml"));
        let manifest: toml::Table = text.parse().expect("a manifest");
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let named = manifest.get(section).and_then(|section| section.as_table());
            all.extend(named.into_iter().flat_map(|named| named.keys().cloned()));
        }
    }
    all.retain(|name| !name.starts_with("vbr-"));
    all
}

#[test]
fn every_direct_dependency_is_explained_and_no_other() {
    let text = read(&root().join("docs/dependencies.md"));
    let mut rows = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{line}");
        let name = cells[0].trim_matches('`').to_owned();
        for (cell, what) in [(1, "purpose"), (3, "licence"), (4, "upkeep")] {
            assert!(!cells[cell].is_empty(), "{name} has no {what}");
        }
        assert!(rows.insert(name.clone()), "{name} is there twice");
    }
    let direct = direct();
    assert!(direct.len() > 30, "{direct:?}");
    let (missing, stale): (Vec<_>, Vec<_>) =
        (direct.difference(&rows).collect(), rows.difference(&direct).collect());
    assert!(
        missing.is_empty() && stale.is_empty(),
        "without a row: {missing:?}; rows of what is not used: {stale:?}"
    );
    // What the workspace pins and nobody uses any more is stale as well.
    let workspace: toml::Table = read(&root().join("Cargo.toml")).parse().expect("a manifest");
    let pinned = workspace["workspace"]["dependencies"].as_table().expect("dependencies");
    let unused: Vec<_> =
        pinned.keys().filter(|name| !name.starts_with("vbr-") && !direct.contains(*name)).collect();
    assert!(unused.is_empty(), "pinned and not used: {unused:?}");
}

/// Codes of errors in the product's source: what stands where `Problem::new` takes its code.
fn codes() -> BTreeSet<String> {
    let (mut found, mut open) = (BTreeSet::new(), vec![root().join("appliance/src")]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).expect("sources").flatten() {
            let path = entry.path();
            let name = path.to_string_lossy().into_owned();
            if path.is_dir() {
                open.push(path);
            } else if name.ends_with(".rs") && !name.contains("test") {
                let text = read(&path);
                let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                for call in product.split("Problem::new(").chain(product.split("Self::new(")).skip(1) {
                    let code = call.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
                    found.extend(code.map(str::to_owned));
                }
            }
        }
    }
    found.retain(|code| {
        code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') && !code.is_empty()
    });
    found
}

#[test]
fn every_code_is_explained_and_no_other() {
    let codes = codes();
    assert!(codes.contains("datastore_full") && codes.contains("not_found") && codes.len() > 30, "{codes:?}");
    let text = read(&root().join("docs/faq.md"));
    let table = text.split("## Codes").nth(1).expect("the table");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let explained: BTreeSet<String> = rows.map(str::to_owned).collect();
    let missing: Vec<_> = codes.difference(&explained).collect();
    assert!(missing.is_empty(), "docs/faq.md does not explain {missing:?}");
    let sources = codes.iter().map(String::as_str).chain(["closed", "quota_exceeded", "not_connected"]);
    let known: BTreeSet<&str> = sources.collect();
    let stale: Vec<_> = explained.iter().filter(|code| !known.contains(code.as_str())).collect();
    assert!(stale.is_empty(), "docs/faq.md explains codes that nothing says: {stale:?}");
}

#[test]
fn the_readme_compares_with_figures_that_were_measured() {
    let readme = read(&root().join("README.md"));
    let measured = read(&root().join("docs/benchmarks.md"));
    let measured: BTreeSet<&str> = measured.split(|c: char| !c.is_ascii_digit() && c != '.').collect();
    let section = readme.split("## Beside others").nth(1).expect("the comparison");
    let rows: Vec<&str> = section
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with("| "))
        .collect();
    let mut figures = 0;
    for row in rows.iter().skip(1) {
        for cell in row.split('|').skip(2) {
            let figure = cell.trim().trim_matches('*').trim_end_matches(" s");
            if !figure.is_empty() {
                assert!(
                    measured.contains(figure),
                    "{figure} of the README is not in docs/benchmarks.md: {row}"
                );
                figures += 1;
            }
        }
    }
    assert!(figures > 30, "{figures} figures: {rows:?}");
}
