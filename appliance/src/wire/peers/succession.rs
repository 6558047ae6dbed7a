//! Who follows whom: a peer that changes its key pair, and a rebuilt site in the place of the one that was lost.
//!
//! A peer that announced another identity is let in under either, until it comes under the new one: from then on the old
//! one is refused. What a peer owned under former identities is its own: the book remembers them ([`PeerRecord::former`]).
//! Each change is one write of `peers.json`, so a crash leaves the old state or the new one.

use libp2p::PeerId;

use super::{Book, Entry, PeerBook, PeerRecord, find, unique};
use crate::error::Problem;

/// Former identities that are remembered of a peer, newest last.
const FORMER_MAX: usize = 64;

impl PeerRecord {
    /// True where this identity is the peer's, or was.
    pub fn is_or_was(&self, peer_id: &str) -> bool {
        self.peer_id == peer_id || self.former.iter().any(|former| former == peer_id)
    }

    /// Its first identity: what stays the same over changes of keys.
    pub fn origin(&self) -> &str {
        self.former.first().unwrap_or(&self.peer_id)
    }
}

impl Book {
    /// The entry that lets this identity in.
    pub(super) fn admitting(&self, peer: &PeerId) -> Option<&Entry> {
        let entry = self.peers.get(peer).or_else(|| {
            let id = peer.to_string();
            self.peers.values().find(|entry| entry.next.as_ref() == Some(&id))
        });
        entry.filter(|entry| !entry.revoked)
    }
}

/// Moves an entry to another identity.
fn follow(entry: &mut Entry, peer: PeerId) {
    let old = std::mem::replace(&mut entry.peer_id, peer.to_string());
    entry.former.push(old);
    if entry.former.len() > FORMER_MAX {
        // Not the first one: it names the peer where its past counts.
        entry.former.remove(1);
    }
    entry.next = None;
}

/// True where somebody else holds an identity, or held it, or announced it.
fn is_others(book: &Book, own: &str, peer: &PeerId) -> bool {
    let id = peer.to_string();
    book.peers
        .values()
        .filter(|entry| entry.name != own)
        .any(|entry| entry.peer_id == id || entry.next.as_ref() == Some(&id) || entry.former.contains(&id))
}

impl PeerBook {
    /// Refuses an identity that was given up: whoever has that key is not the peer any more.
    pub(super) fn check_not_former(book: &Book, peer: &PeerId) -> Result<(), Problem> {
        let id = peer.to_string();
        let Some(successor) = book.peers.values().find(|entry| entry.former.contains(&id)) else {
            return Ok(());
        };
        Err(Problem::not_allowed(
            "pair with this site",
            format!("its key was given up; peer {} has another one", successor.name),
            "give the site a new key: stop vbrd there, move `key` out of its state directory, start it, and pair again",
        ))
    }

    /// Every identity that may be dialled, with its entry.
    pub fn dialled(&self) -> Vec<(PeerId, Entry)> {
        let mut all = self.entries();
        let next = |(_, entry): &(PeerId, Entry)| Some((entry.next.as_ref()?.parse().ok()?, entry.clone()));
        let announced: Vec<_> = all.iter().filter_map(next).collect();
        all.extend(announced);
        all
    }

    /// Lets a peer in under another identity as well. Durable when it returns.
    pub fn announce(&self, peer: &PeerId, next: &PeerId) -> Result<(), Problem> {
        self.change(|book| {
            let name = book.admitting(peer).map(|entry| entry.name.clone());
            let what = "take note of a peer's new identity";
            let name =
                name.ok_or_else(|| Problem::not_allowed(what, "it is not paired with this site", ""))?;
            if is_others(book, &name, next) {
                return Err(Problem::conflict(
                    what,
                    "that identity is another peer's, or was",
                    "begin again with another key: vbrctl peer rotate --cancel, vbrctl peer rotate",
                ));
            }
            let (_, entry) = find(book, &name)?;
            let id = next.to_string();
            // It came under that identity already: this is an old message.
            if entry.peer_id != id {
                entry.next = Some(id);
            }
            Ok(())
        })
    }

    /// True where a peer announced this identity and did not come under it yet.
    pub fn is_announced(&self, peer: &PeerId) -> bool {
        let book = self.book();
        !book.peers.contains_key(peer) && book.admitting(peer).is_some()
    }

    /// A peer came under the identity that it announced: the old one, which is answered, is refused from now on. Durable
    /// when it returns.
    pub fn settle(&self, peer: &PeerId) -> Result<Option<PeerId>, Problem> {
        if !self.is_announced(peer) {
            return Ok(None);
        }
        self.change(|book| {
            let id = peer.to_string();
            let found =
                book.peers.iter().find(|(_, entry)| entry.next.as_ref() == Some(&id) && !entry.revoked);
            let Some(old) = found.map(|(old, _)| *old) else { return Ok(None) };
            if let Some(mut entry) = book.peers.remove(&old) {
                follow(&mut entry, *peer);
                book.peers.insert(*peer, entry);
            }
            Ok(Some(old))
        })
    }

    /// `new` takes the place of `old`: its name, grants, quota, and what it owned. The old entry stays under another name
    /// and is refused. Answers the old identity. Durable when it returns; the same again is success.
    pub fn replace(&self, old: &str, new: &str) -> Result<PeerId, Problem> {
        let what = || format!("put peer {new} in the place of peer {old}");
        self.change(|book| {
            if old == new {
                return Err(Problem::invalid(
                    what(),
                    "they are the same peer",
                    "name the peer that was paired anew",
                ));
            }
            let again = |entry: &Entry| {
                entry.replaced_by.as_deref() == Some(old) && entry.successor_came_as.as_deref() == Some(new)
            };
            if let Some((gone, _)) = book.peers.iter().find(|(_, entry)| again(entry)) {
                return Ok(*gone);
            }
            let (gone, lost) = find(book, old).map(|(id, entry)| (id, entry.clone()))?;
            let (came, rebuilt) = find(book, new).map(|(id, entry)| (id, entry.clone()))?;
            if rebuilt.revoked {
                let next = format!("pair it again: vbrctl peer remove {new}, vbrctl peer invite");
                return Err(Problem::conflict(what(), format!("peer {new} is revoked"), next));
            }
            if lost.domain != rebuilt.domain {
                return Err(Problem::conflict(
                    what(),
                    format!("{old} is in the dedup domain {}, {new} in {}", lost.domain, rebuilt.domain),
                    format!(
                        "vbrctl peer remove {new}, then pair it again with vbrctl peer invite --domain {}",
                        lost.domain
                    ),
                ));
            }
            let away = unique(&format!("{old}-replaced"), |name| {
                book.peers.values().any(|entry| entry.name == name)
            });
            let mut former = lost.former.clone();
            former.push(lost.peer_id.clone());
            former.extend(rebuilt.former.iter().cloned());
            let merged = Entry {
                name: old.to_owned(),
                former,
                // What was revoked before it was lost comes back: this is the approval.
                grants: if lost.revoked { rebuilt.grants.clone() } else { lost.grants.clone() },
                quota: lost.quota,
                ..rebuilt
            };
            book.peers.insert(came, merged);
            let left = Entry {
                name: away,
                revoked: true,
                grants: Vec::new(),
                granted: Vec::new(),
                former: Vec::new(),
                next: None,
                replaced_by: Some(old.to_owned()),
                successor_came_as: Some(new.to_owned()),
                ..lost
            };
            book.peers.insert(gone, left);
            Ok(gone)
        })
    }

    /// Remembers what a peer grants this site. Written where it changed.
    pub fn note_granted(&self, peer: &PeerId, granted: &[String]) -> Result<(), Problem> {
        let known = self.book().admitting(peer).map(|entry| (entry.name.clone(), entry.granted == granted));
        let Some((name, false)) = known else { return Ok(()) };
        self.change(|book| {
            find(book, &name)?.1.granted = granted.to_vec();
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn open(dir: &Path) -> PeerBook {
        PeerBook::open(&dir.join("peers.json"), &dir.join("domains.json")).unwrap()
    }

    #[test]
    fn either_identity_until_the_new_one_came() {
        let dir = tempfile::tempdir().unwrap();
        let book = open(dir.path());
        let (old, new, other) = (PeerId::random(), PeerId::random(), PeerId::random());
        book.domain_or_new("default").unwrap();
        book.admit(old, "web", "default").unwrap();
        book.admit(other, "db", "default").unwrap();
        assert_eq!(book.announce(&old, &other).unwrap_err().code, "conflict");
        assert_eq!(book.announce(&PeerId::random(), &new).unwrap_err().code, "not_allowed");
        book.announce(&old, &new).unwrap();
        let again = open(dir.path());
        assert!(again.is_paired(&old) && again.is_paired(&new) && again.is_announced(&new));
        assert_eq!(again.by_id(&new).unwrap().name, "web");
        assert_eq!(again.dialled().len(), 3);
        assert_eq!(again.settle(&new).unwrap(), Some(old));
        assert_eq!(again.settle(&new).unwrap(), None);
        let again = open(dir.path());
        assert!(!again.is_paired(&old) && again.is_paired(&new));
        let record = again.by_name("web").unwrap();
        assert!(record.is_or_was(&old.to_string()) && record.is_or_was(&new.to_string()));
        assert_eq!(record.origin(), old.to_string());
        assert_eq!(record.peer_id, new.to_string());
        // Whoever has the old key cannot come back as somebody else.
        assert_eq!(again.admit(old, "web", "default").unwrap_err().code, "not_allowed");
    }

    #[test]
    fn a_rebuilt_site_takes_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let book = open(dir.path());
        let (old, new, tenant) = (PeerId::random(), PeerId::random(), PeerId::random());
        book.domain_or_new("default").unwrap();
        book.domain_or_new("tenant").unwrap();
        book.admit(old, "web", "default").unwrap();
        let quota = vbr_api::GrantRequest { quota_bytes: Some(9), manage: Some(true), ..Default::default() };
        book.grant("web", &quota).unwrap();
        book.admit(tenant, "other", "tenant").unwrap();
        assert_eq!(book.replace("web", "other").unwrap_err().code, "conflict");
        assert_eq!(book.replace("web", "web").unwrap_err().code, "invalid");
        assert_eq!(book.replace("web", "nobody").unwrap_err().code, "not_found");
        assert_eq!(book.admit(new, "web", "default").unwrap().name, "web-2");
        assert_eq!(book.replace("web", "web-2").unwrap(), old);
        assert_eq!(book.replace("web", "web-2").unwrap(), old);

        let again = open(dir.path());
        assert!(!again.is_paired(&old) && again.is_paired(&new));
        let record = again.by_name("web").unwrap();
        assert_eq!(record.peer_id, new.to_string());
        assert_eq!((record.grants.join(" ").as_str(), record.quota.bytes), ("replicate manage", Some(9)));
        assert!(record.is_or_was(&old.to_string()));
        let (id, left) = again.entry("web-replaced").unwrap();
        assert!(id == old && left.revoked && left.replaced_by.as_deref() == Some("web"));
        assert_eq!(again.admit(old, "web", "default").unwrap_err().code, "not_allowed");
    }

    #[test]
    fn what_a_peer_grants_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let book = open(dir.path());
        let peer = PeerId::random();
        book.domain_or_new("default").unwrap();
        book.admit(peer, "web", "default").unwrap();
        book.note_granted(&peer, &["manage".to_owned()]).unwrap();
        book.note_granted(&PeerId::random(), &[]).unwrap();
        assert_eq!(open(dir.path()).entry("web").unwrap().1.granted, ["manage"]);
    }
}
