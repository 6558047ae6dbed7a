//! C and C++ that crates bring along, which no registry lists: what a bill of materials would otherwise leave out.
//!
//! A crate that declares a native library (`links`) has to have its row here: [`find`] answers for each, and a crate
//! without a row is an error of whoever asks. Pure.

/// What a crate brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bundled {
    /// The sources of another project, compiled into the programs.
    Sources {
        /// That project.
        name: &'static str,
        /// Its licence.
        licence: &'static str,
        /// Its place, as a package URL without version.
        purl: &'static str,
        /// Where its version is.
        version: Version,
    },
    /// Nothing: its own code, or a library of the system that the programs do not use.
    Nothing(&'static str),
}

/// Where a bundled project's version is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// In the crate's own, behind the plus sign (and this word).
    BehindPlus(&'static str),
    /// It moves with the crate and has none of its own.
    OfCrate,
}

const ROWS: &[(&str, Bundled)] = &[
    (
        "librocksdb-sys",
        Bundled::Sources {
            name: "RocksDB",
            licence: "Apache-2.0",
            purl: "pkg:github/facebook/rocksdb",
            version: Version::BehindPlus(""),
        },
    ),
    (
        "zstd-sys",
        Bundled::Sources {
            name: "Zstandard",
            licence: "BSD-3-Clause",
            purl: "pkg:github/facebook/zstd",
            version: Version::BehindPlus("zstd."),
        },
    ),
    (
        "tikv-jemalloc-sys",
        Bundled::Sources {
            name: "jemalloc",
            licence: "BSD-2-Clause",
            purl: "pkg:github/tikv/jemalloc",
            version: Version::BehindPlus(""),
        },
    ),
    (
        "ring",
        Bundled::Sources {
            name: "BoringSSL and its assembly, as in ring",
            licence: "Apache-2.0 AND ISC",
            purl: "pkg:github/briansmith/ring",
            version: Version::OfCrate,
        },
    ),
    (
        "blake3",
        Bundled::Sources {
            name: "BLAKE3 in C and assembly, as in the crate",
            licence: "CC0-1.0 OR Apache-2.0",
            purl: "pkg:github/BLAKE3-team/BLAKE3",
            version: Version::OfCrate,
        },
    ),
    (
        "aws-lc-sys",
        Bundled::Sources {
            name: "AWS-LC, as in the crate",
            licence: "ISC AND (Apache-2.0 OR ISC) AND Apache-2.0 AND MIT AND BSD-3-Clause",
            purl: "pkg:github/aws/aws-lc",
            version: Version::OfCrate,
        },
    ),
    ("aws-lc-rs", Bundled::Nothing("the key keeps two versions apart; the library is that of aws-lc-sys")),
    ("clang-sys", Bundled::Nothing("libclang writes bindings while vbr is built")),
];

/// The row of a crate.
pub fn find(package: &str) -> Option<Bundled> {
    ROWS.iter().find(|(name, _)| *name == package).map(|(_, row)| *row)
}

/// The version of what a crate of this version brings.
pub fn version(of: Version, crate_version: &str) -> Option<String> {
    match of {
        Version::OfCrate => Some(crate_version.to_owned()),
        Version::BehindPlus(word) => {
            let behind = crate_version.split_once('+')?.1;
            Some(behind.strip_prefix(word)?.split('-').next().unwrap_or(behind).to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found() {
        assert_eq!(version(Version::BehindPlus("zstd."), "2.0.16+zstd.1.5.7").as_deref(), Some("1.5.7"));
        assert_eq!(version(Version::BehindPlus(""), "0.19.0+11.8.1").as_deref(), Some("11.8.1"));
        assert_eq!(version(Version::BehindPlus(""), "0.7.0+5.3.0-1-gabc").as_deref(), Some("5.3.0"));
        assert_eq!(version(Version::BehindPlus(""), "0.19.0"), None);
        assert_eq!(version(Version::OfCrate, "0.17.1").as_deref(), Some("0.17.1"));
    }
}
