//! How large the cache should be, and why.
//!
//! From sizes that stay: what a run advises, the next one advises, too, however full the disk is by then. Pure.

/// Below this a cache holds hardly anything of use.
const LEAST: u64 = 1 << 30;
/// vbrd's own rule where nothing is known of disks.
const USUAL: u64 = 10 << 30;
/// Of the disks that are replicated.
const OF_DISKS_PERCENT: u64 = 5;
/// Of the file system, whatever else is true.
const OF_FILE_SYSTEM_PERCENT: u64 = 20;

/// What is advised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// None: vbrd's own rule says the same, so the key stays unset.
    pub bytes: Option<u64>,
    /// Bytes that come of it.
    pub effective: u64,
    pub why: String,
}

/// `disks`: bytes of the disks that this site replicates, 0 where they are not known yet.
pub fn cache_size(disks: u64, file_system: u64) -> Advice {
    let percent = |bytes: u64, percent: u64| (u128::from(bytes) * u128::from(percent) / 100) as u64;
    let most = percent(file_system, OF_FILE_SYSTEM_PERCENT);
    let gib = |bytes: u64| bytes.div_ceil(1 << 30);
    if disks == 0 {
        let effective = USUAL.min(most);
        let why = "10 GiB, at most a fifth of its file system: vbrd's own rule. A target finds most content in its restore \
                   points; the cache has what no point keeps any more";
        return Advice { bytes: None, effective, why: why.to_owned() };
    }
    let wanted = percent(disks, OF_DISKS_PERCENT).max(LEAST);
    let bytes = (gib(wanted) << 30).min(most >> 30 << 30);
    if bytes < LEAST {
        let why = "its file system is small: vbrd's own rule, a fifth of it";
        return Advice { bytes: None, effective: USUAL.min(most), why: why.to_owned() };
    }
    let bound = if wanted > bytes { "; bounded by a fifth of its file system" } else { "" };
    let why = format!(
        "{OF_DISKS_PERCENT} % of the disks ({} GiB){bound}: a source keeps what was overwritten there, the best base of what replaces it",
        gib(disks)
    );
    Advice { bytes: Some(bytes), effective: bytes, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn by_disks_and_file_system() {
        assert_eq!(cache_size(0, 1000 * GIB).bytes, None);
        assert_eq!(cache_size(0, 10 * GIB).effective, 2 * GIB);
        assert_eq!(cache_size(400 * GIB, 1000 * GIB).bytes, Some(20 * GIB));
        assert_eq!(cache_size(GIB, 1000 * GIB).bytes, Some(GIB));
        let bounded = cache_size(8000 * GIB, 100 * GIB);
        assert_eq!(bounded.bytes, Some(20 * GIB));
        assert!(bounded.why.contains("a fifth"), "{}", bounded.why);
        assert_eq!(cache_size(400 * GIB, 2 * GIB).bytes, None);
    }
}
