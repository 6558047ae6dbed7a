//! The package that is tried: what it says of itself, and how another version is made of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::process::run;

/// A .deb file.
#[derive(Clone, Debug)]
pub struct Package {
    path: PathBuf,
}

impl Package {
    /// One that exists.
    pub fn open(path: &Path) -> Result<Self> {
        let path = path.canonicalize().with_context(|| format!("{}: run `make deb`", path.display()))?;
        let package = Self { path };
        let name = package.field("Package")?;
        ensure!(name == "vbr", "{} is a package {name}, not vbr", package.path.display());
        Ok(package)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A field of its control file; empty where it has none.
    pub fn field(&self, name: &str) -> Result<String> {
        let path = self.path.to_string_lossy();
        Ok(run("dpkg-deb", ["--field", path.as_ref(), name])?.trim().to_owned())
    }

    /// Names of the packages that apt installs with it: the first of alternatives, without versions.
    pub fn wanted(&self) -> Result<BTreeSet<String>> {
        let all = [self.field("Depends")?, self.field("Recommends")?].join(",");
        Ok(names(&all))
    }

    /// The same files under a higher version, at `to`.
    pub fn raised(&self, work: &Path, to: &Path) -> Result<Self> {
        let (tree, version) = (work.join("raised"), format!("{}+later", self.field("Version")?));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        run("dpkg-deb", ["--raw-extract", &text(&self.path), &text(&tree)])?;
        let control = tree.join("DEBIAN/control");
        let lines = std::fs::read_to_string(&control)?;
        let raised: String = lines
            .lines()
            .map(|line| match line.starts_with("Version:") {
                true => format!("Version: {version}\n"),
                false => format!("{line}\n"),
            })
            .collect();
        std::fs::write(&control, raised)?;
        run("dpkg-deb", ["--root-owner-group", "-Znone", "--build", &text(&tree), &text(to)])?;
        std::fs::remove_dir_all(&tree)?;
        Self::open(to)
    }
}

fn names(relations: &str) -> BTreeSet<String> {
    let first = |relation: &str| {
        let relation = relation.split('|').next().unwrap_or_default();
        relation.split_whitespace().next().map(str::to_owned)
    };
    relations.split(',').filter_map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_read() {
        let found = names("libc6 (>= 2.36), qemu-utils, a | b, ");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "libc6", "qemu-utils"]);
    }

    #[test]
    fn a_package_is_raised() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        let control = "Package: vbr\nVersion: 0.1-1\nArchitecture: all\nMaintainer: x <x@example.org>\n\
                       Depends: libc6 (>= 2.3)\nDescription: x\n";
        std::fs::write(tree.join("DEBIAN/control"), control).unwrap();
        let (first, second) = (dir.path().join("1.deb"), dir.path().join("2.deb"));
        run("dpkg-deb", ["-b", tree.to_str().unwrap(), first.to_str().unwrap()]).unwrap();
        let package = Package::open(&first).unwrap();
        let raised = package.raised(dir.path(), &second).unwrap();
        assert_eq!(raised.field("Version").unwrap(), "0.1-1+later");
        assert_eq!(raised.field("Depends").unwrap(), package.field("Depends").unwrap());
        assert_eq!(raised.field("Recommends").unwrap(), "");
    }
}
