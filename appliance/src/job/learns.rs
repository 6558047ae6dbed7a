//! What a session at the target teaches the domain's set of shared chunks: which chunks its branch refers to.
//!
//! A branch is a paired source; its number is derived from its PeerId, so it needs no table and survives
//! a restart. Two branches with one number (once in four billion) would only share less. Bounds: none of its own.

use std::sync::Arc;

use crate::accelerator::shared_filter::SharedSet;
use crate::block::ShortId;

/// See the module.
pub struct Learns {
    set: Option<Arc<SharedSet>>,
    branch: u32,
}

impl Learns {
    /// For a session of this peer; without a set nothing is learned.
    pub fn new(set: Option<Arc<SharedSet>>, peer_id: &str) -> Self {
        let [a, b, c, d, ..] = blake3::derive_key("vbr 2026 shared filter branch", peer_id.as_bytes());
        Self { set, branch: u32::from_be_bytes([a, b, c, d]) }
    }

    /// The branch refers to a chunk that is here.
    pub fn note(&self, id: ShortId) {
        if let Some(set) = &self.set {
            set.note(id, self.branch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_peers_are_two_branches() {
        let set = Arc::new(SharedSet::new(1 << 16, [1; 32]));
        let (a, b) = (Learns::new(Some(set.clone()), "12D3KooA"), Learns::new(Some(set.clone()), "12D3KooB"));
        let id = ShortId([5; 16]);
        a.note(id);
        a.note(id);
        assert!(!set.may_contain(id));
        b.note(id);
        assert!(set.may_contain(id));
        assert_eq!(a.branch, Learns::new(None, "12D3KooA").branch);
    }
}
