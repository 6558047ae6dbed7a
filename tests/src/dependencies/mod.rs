//! What vbr is built from: the graph that `cargo metadata` tells, held against the rules in `.deny.toml`, and written
//! down as a bill of materials.
//!
//! Works without network: `cargo metadata` and `cargo tree` read what a build has fetched already. Advisories are not its job; `cargo deny` has them,
//! and [`check`] says so where it is not there. Owns nothing.

pub mod bundled;
pub mod check;
pub mod licence;
pub mod sbom;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::process::finish;

/// The platform that packages are built for here.
pub const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// What `cargo metadata` says.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
    workspace_members: BTreeSet<String>,
}

/// One crate in one version.
#[derive(Clone, Debug, Deserialize)]
pub struct Package {
    /// Unique.
    pub id: String,
    /// Its name in the registry.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SPDX expression, or with slashes as it was written formerly.
    pub license: Option<String>,
    /// Where it comes from; none for our own.
    pub source: Option<String>,
    /// Where it is developed.
    pub repository: Option<String>,
    /// The native library that it brings or binds to.
    pub links: Option<String>,
    /// What it asks for.
    pub dependencies: Vec<Wanted>,
}

/// A dependency as a manifest writes it.
#[derive(Clone, Debug, Deserialize)]
pub struct Wanted {
    /// Of what.
    pub name: String,
    /// Which versions.
    pub req: String,
    /// A place on this machine, for our own.
    pub path: Option<String>,
    /// None, `dev` or `build`.
    pub kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// How a crate is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// It becomes part of the programs.
    Product,
    /// It runs while they are built.
    Build,
    /// Tests alone use it.
    Test,
}

impl Metadata {
    /// Of the workspace in this directory, from what has been fetched.
    pub fn read(root: &Path) -> Result<Self> {
        let mut command = Command::new(cargo());
        command.args(["metadata", "--format-version", "1", "--locked", "--offline"]);
        command.args(["--filter-platform", PLATFORM]).current_dir(root);
        let output =
            finish(&mut command).context("what is missing can be had with `cargo fetch --locked`")?;
        Self::parse(&output.stdout)
    }

    /// From its JSON.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let metadata: Self = serde_json::from_slice(json).context("cargo metadata printed something else")?;
        ensure!(!metadata.packages.is_empty(), "cargo metadata names no packages");
        Ok(metadata)
    }

    /// Our own packages.
    pub fn own(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }

    /// One package.
    pub fn package(&self, id: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.id == id)
    }

    /// What a package needs on this platform, without what its tests alone need.
    pub fn needs(&self, id: &str) -> Vec<&str> {
        let node = self.resolve.nodes.iter().find(|node| node.id == id);
        let edges = node.into_iter().flat_map(|node| &node.deps);
        edges.filter(|edge| edge.is(|kind| kind != Some("dev"))).map(|edge| edge.pkg.as_str()).collect()
    }

    /// Which of them are reached, and how.
    pub fn reached<'a>(&'a self, reached: &Reached) -> BTreeMap<&'a str, Reach> {
        let known = self.packages.iter();
        known.filter_map(|package| Some((package.id.as_str(), reached.of(package)?))).collect()
    }
}

/// Crates by name and version, as cargo's own resolver reaches them. `cargo metadata` says too much: it takes optional
/// dependencies of optional dependencies along, which no build does.
#[derive(Debug, Default)]
pub struct Reached(BTreeMap<(String, String), Reach>);

impl Reached {
    /// From these packages of ours, or all of them.
    pub fn read(root: &Path, from: &[&str]) -> Result<Self> {
        let mut reached = Self::default();
        // The closest way last: it counts.
        for (reach, edges) in [
            (Reach::Test, "normal,build,dev"),
            (Reach::Build, "normal,build"),
            (Reach::Product, "normal,no-proc-macro"),
        ] {
            let mut command = Command::new(cargo());
            command.args(["tree", "--locked", "--offline", "--target", PLATFORM, "--edges", edges]);
            command.args(["--prefix", "none", "--format", "{p}"]).current_dir(root);
            if from.is_empty() {
                command.arg("--workspace");
            } else {
                command.args(from.iter().flat_map(|name| ["--package", name]));
            }
            reached.enter(&String::from_utf8(finish(&mut command)?.stdout)?, reach)?;
        }
        Ok(reached)
    }

    /// Lines of `NAME vVERSION`, and something behind them.
    fn enter(&mut self, tree: &str, reach: Reach) -> Result<()> {
        for line in tree.lines().filter(|line| !line.is_empty()) {
            let mut words = line.split_whitespace();
            let (name, version) = (words.next(), words.next().and_then(|word| word.strip_prefix('v')));
            let (Some(name), Some(version)) = (name, version) else { bail!("cargo tree printed {line:?}") };
            self.0.insert((name.to_owned(), version.to_owned()), reach);
        }
        Ok(())
    }

    fn of(&self, package: &Package) -> Option<Reach> {
        self.0.get(&(package.name.clone(), package.version.clone())).copied()
    }
}

fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

impl Edge {
    fn is(&self, wanted: impl Fn(Option<&str>) -> bool) -> bool {
        self.dep_kinds.iter().any(|kind| wanted(kind.kind.as_deref()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A workspace of `app` and `probe`: `app` needs `zlib-sys` (which builds with `cc`), tests it with `prop`.
    pub fn sample() -> serde_json::Value {
        let package = |id: &str, license: &str, source: Option<&str>| {
            let (name, version) = id.split_once(' ').unwrap();
            serde_json::json!({
                "id": id, "name": name, "version": version, "license": license, "source": source,
                "repository": null, "links": name.strip_suffix("-sys"), "dependencies": [],
            })
        };
        let registry = Some(check::REGISTRY);
        serde_json::json!({
            "packages": [
                package("app 0.1.0", "Apache-2.0", None), package("probe 0.1.0", "Apache-2.0", None),
                package("zlib-sys 1.2.0+3.1.4", "Zlib", registry), package("cc 1.0.0", "MIT OR Apache-2.0", registry),
                package("prop 2.0.0", "MIT", registry), package("elsewhere 1.0.0", "GPL-3.0-only", registry),
            ],
            "workspace_members": ["app 0.1.0", "probe 0.1.0"],
            "resolve": {"nodes": [
                {"id": "app 0.1.0", "deps": [
                    {"pkg": "zlib-sys 1.2.0+3.1.4", "dep_kinds": [{"kind": null}]},
                    {"pkg": "prop 2.0.0", "dep_kinds": [{"kind": "dev"}]},
                ]},
                {"id": "probe 0.1.0", "deps": [{"pkg": "prop 2.0.0", "dep_kinds": [{"kind": null}]}]},
                {"id": "zlib-sys 1.2.0+3.1.4", "deps": [{"pkg": "cc 1.0.0", "dep_kinds": [{"kind": "build"}]}]},
                {"id": "cc 1.0.0", "deps": []}, {"id": "prop 2.0.0", "deps": []},
                {"id": "elsewhere 1.0.0", "deps": []},
            ]},
        })
    }

    pub fn parsed(json: &serde_json::Value) -> Metadata {
        Metadata::parse(json.to_string().as_bytes()).unwrap()
    }

    /// What cargo tree says of `app` (and `probe`).
    pub fn reached() -> Reached {
        let mut reached = Reached::default();
        reached.enter("app v0.1.0 (/x)\nprop v2.0.0\ncc v1.0.0\nzlib-sys v1.2.0+3.1.4\nzstd-sys v1.2.0+zstd.3.1.4\n", Reach::Test).unwrap();
        reached.enter("app v0.1.0 (/x)\ncc v1.0.0\n\nzlib-sys v1.2.0+3.1.4 (*)\n", Reach::Build).unwrap();
        reached
            .enter("app v0.1.0 (/x)\nzlib-sys v1.2.0+3.1.4 (*)\nzstd-sys v1.2.0+zstd.3.1.4\n", Reach::Product)
            .unwrap();
        reached
    }

    #[test]
    fn what_is_reached_and_how() {
        let metadata = parsed(&sample());
        let app = metadata.reached(&reached());
        assert_eq!(app["zlib-sys 1.2.0+3.1.4"], Reach::Product);
        assert_eq!((app["cc 1.0.0"], app["prop 2.0.0"]), (Reach::Build, Reach::Test));
        assert!(!app.contains_key("elsewhere 1.0.0") && !app.contains_key("probe 0.1.0"));
        assert_eq!(metadata.needs("app 0.1.0"), ["zlib-sys 1.2.0+3.1.4"]);
        assert!(Metadata::parse(b"{}").is_err());
        assert!(Reached::default().enter("error: nothing", Reach::Build).is_err());
    }
}
