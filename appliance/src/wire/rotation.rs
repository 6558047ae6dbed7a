//! This site's key pair changes: the next key is made, every peer is told, and the next start takes it into use.
//!
//! Owns `key.next` and `rotation.json` beside the key. In order, each step durable before the next: `key.next`;
//! `rotation.json`, which names it; each peer that answered, entered there; the rename of `key.next` to `key`, at a start
//! that finds every peer told; `rotation.json` removed. So the key in use is one that every peer lets in, whenever a crash
//! comes. Blocking. Bound: one change at a time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey};
use serde::{Deserialize, Serialize};

use super::handle::Wire;
use super::peers::{PeerBook, write_private};
use super::site_requests::RotationNotice;
use super::{blocking, driver::Driver, driver::Order};
use crate::error::Problem;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// The identity of `key.next`.
    next: String,
    /// Identities of peers that let it in.
    told: BTreeSet<String>,
}

struct Change {
    record: Record,
    key: Keypair,
}

/// A change of the key pair, if one is under way.
pub(super) struct RotationFiles {
    key_file: PathBuf,
    change: Mutex<Option<Change>>,
}

/// Where a change stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RotationState {
    /// The next identity; none: no change is under way.
    pub next: Option<String>,
    /// Names of peers that let it in.
    pub told: Vec<String>,
    /// Peers that do not yet: name and identity.
    pub untold: Vec<(String, String)>,
}

/// The identity of a key file.
pub fn identity_of(key_file: &Path) -> Result<String, Problem> {
    Ok(read_key(key_file)?.public().to_peer_id().to_string())
}

/// True where a change of the key pair is under way in a state directory.
pub fn is_rotating(key_file: &Path) -> bool {
    next_file(key_file).exists() && record_file(key_file).exists()
}

fn next_file(key_file: &Path) -> PathBuf {
    key_file.with_extension("next")
}

fn record_file(key_file: &Path) -> PathBuf {
    key_file.with_file_name("rotation.json")
}

fn read_key(path: &Path) -> Result<Keypair, Problem> {
    let what = || format!("read the key {}", path.display());
    let bytes = fs::read(path).map_err(|error| Problem::io(what(), &error))?;
    Keypair::from_protobuf_encoding(&bytes)
        .map_err(|error| Problem::new("damaged", what(), error.to_string(), "restore the file from a copy"))
}

fn read_record(path: &Path) -> Result<Option<Record>, Problem> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
            let next = "move the file and `key.next` away; the key in use stays good";
            Problem::new("damaged", format!("read {}", path.display()), error.to_string(), next)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Problem::io(format!("read {}", path.display()), &error)),
    }
}

/// Removes a file that may be gone already. Durable when it returns.
fn remove(path: &Path) -> Result<(), Problem> {
    let fail = |error: io::Error| Problem::io(format!("remove {}", path.display()), &error);
    match fs::remove_file(path) {
        Ok(()) => sync_directory(path).map_err(fail),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

impl RotationFiles {
    /// At the start, before the key is read: finishes or forgets what a crash interrupted, and takes the next key into
    /// use where every peer lets it in.
    pub(super) fn open(key_file: &Path, book: &PeerBook) -> Result<Self, Problem> {
        let (next, record_path) = (next_file(key_file), record_file(key_file));
        let record = read_record(&record_path)?;
        let change = match (record, next.exists()) {
            (Some(record), true) => {
                let key = read_key(&next)?;
                let is_same = key.public().to_peer_id().to_string() == record.next;
                is_same.then_some(Change { record, key })
            }
            _ => None,
        };
        let Some(change) = change else {
            // Taken into use already, or never told to anybody.
            remove(&record_path)?;
            remove(&next)?;
            return Ok(Self { key_file: key_file.to_owned(), change: Mutex::new(None) });
        };
        let all_told = book
            .entries()
            .iter()
            .all(|(id, entry)| entry.revoked || change.record.told.contains(&id.to_string()));
        if !all_told {
            return Ok(Self { key_file: key_file.to_owned(), change: Mutex::new(Some(change)) });
        }
        let what = || format!("take {} into use", next.display());
        fs::rename(&next, key_file)
            .and_then(|()| sync_directory(key_file))
            .map_err(|error| Problem::io(what(), &error))?;
        remove(&record_path)?;
        tracing::info!(peer_id = %change.record.next, "the new key is in use; the old one is gone");
        Ok(Self { key_file: key_file.to_owned(), change: Mutex::new(None) })
    }

    fn change(&self) -> MutexGuard<'_, Option<Change>> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Result<(), Problem> {
        let mut change = self.change();
        if change.is_some() {
            return Ok(());
        }
        let key = Keypair::generate_ed25519();
        let bytes = key
            .to_protobuf_encoding()
            .map_err(|error| Problem::new("internal", "make a key", error.to_string(), "report this"))?;
        let next = next_file(&self.key_file);
        write_private(&next, &bytes)
            .map_err(|error| Problem::io(format!("write the key {}", next.display()), &error))?;
        let record =
            Record { version: 1, next: key.public().to_peer_id().to_string(), told: BTreeSet::new() };
        self.store(&record)?;
        *change = Some(Change { record, key });
        Ok(())
    }

    fn store(&self, record: &Record) -> Result<(), Problem> {
        let path = record_file(&self.key_file);
        let text = serde_json::to_vec_pretty(record)
            .map_err(|error| Problem::new("internal", "write", error.to_string(), "report this"))?;
        write_private(&path, &text).map_err(|error| Problem::io(format!("write {}", path.display()), &error))
    }

    /// A peer lets the identity `next` in. Durable when it returns.
    fn told(&self, next: &str, peer_id: &str) -> Result<(), Problem> {
        let mut change = self.change();
        let Some(change) = change.as_mut().filter(|change| change.record.next == next) else { return Ok(()) };
        let mut record = change.record.clone();
        record.told.insert(peer_id.to_owned());
        self.store(&record)?;
        change.record = record;
        Ok(())
    }

    fn cancel(&self) -> Result<(), Problem> {
        let mut change = self.change();
        // The record first: a key without one was never told.
        remove(&record_file(&self.key_file))?;
        remove(&next_file(&self.key_file))?;
        *change = None;
        Ok(())
    }
}

/// What both keys sign.
fn words(old: &PeerId, next: &PeerId) -> Vec<u8> {
    [&b"vbr rotation 1"[..], &old.to_bytes(), &next.to_bytes()].concat()
}

fn notice(old: &Keypair, next: &Keypair) -> Result<RotationNotice, Problem> {
    let words = words(&old.public().to_peer_id(), &next.public().to_peer_id());
    let sign = |key: &Keypair| {
        key.sign(&words).map_err(|error| Problem::new("internal", "sign", error.to_string(), "report this"))
    };
    Ok(RotationNotice { next: next.public().encode_protobuf(), by_old: sign(old)?, by_new: sign(next)? })
}

/// The identity that a peer will have, if it proved both.
fn check(peer: &PeerId, notice: &RotationNotice) -> Result<PeerId, Problem> {
    let refuse = |why: &str| {
        Problem::not_allowed(
            "take note of a peer's new identity",
            why,
            "update vbr at both sites to the same version",
        )
    };
    // An ed25519 identity is its public key.
    let old = PublicKey::try_decode_protobuf(peer.as_ref().digest())
        .map_err(|_| refuse("its key is of another kind"))?;
    let next =
        PublicKey::try_decode_protobuf(&notice.next).map_err(|_| refuse("the new key does not parse"))?;
    let id = next.to_peer_id();
    // No other kind: what comes later must be able to do the same.
    if PublicKey::try_decode_protobuf(id.as_ref().digest()).is_err() {
        return Err(refuse("the new key is of another kind"));
    }
    let words = words(peer, &id);
    if !old.verify(&words, &notice.by_old) || !next.verify(&words, &notice.by_new) {
        return Err(refuse("a signature is wrong"));
    }
    Ok(id)
}

impl Wire {
    /// How far the change of the key pair has got.
    pub fn rotation(&self) -> RotationState {
        let change = self.inner.rotation.change();
        let Some(change) = change.as_ref() else { return RotationState::default() };
        let mut state = RotationState { next: Some(change.record.next.clone()), ..RotationState::default() };
        for (id, entry) in self.inner.gate.book.entries().into_iter().filter(|(_, entry)| !entry.revoked) {
            let id = id.to_string();
            match change.record.told.contains(&id) {
                true => state.told.push(entry.name),
                false => state.untold.push((entry.name, id)),
            }
        }
        state
    }

    /// Makes the next key where there is none. Durable when it returns.
    pub async fn begin_rotation(&self) -> Result<(), Problem> {
        let inner = self.inner.clone();
        blocking(move || inner.rotation.begin()).await
    }

    /// Forgets the next key. Blocking; durable when it returns.
    pub fn cancel_rotation(&self) -> Result<(), Problem> {
        self.inner.rotation.cancel()
    }

    /// What peers are told, and the identity that it is about.
    pub fn rotation_notice(&self) -> Result<Option<(String, RotationNotice)>, Problem> {
        let change = self.inner.rotation.change();
        let Some(change) = change.as_ref() else { return Ok(None) };
        Ok(Some((change.record.next.clone(), notice(&self.inner.key, &change.key)?)))
    }

    /// A peer answered that it lets the identity in. Blocking; durable when it returns.
    pub fn rotation_told(&self, next: &str, peer_id: &str) -> Result<(), Problem> {
        self.inner.rotation.told(next, peer_id)
    }

    /// A peer will have another identity: it is let in under either from now on. Blocking; durable when it returns.
    pub fn announced(&self, peer_id: &str, notice: &RotationNotice) -> Result<(), Problem> {
        let what = "take note of a peer's new identity";
        let peer = peer_id.parse().map_err(|_| Problem::invalid(what, "the peer has no identity", ""))?;
        let next = check(&peer, notice)?;
        self.inner.gate.book.announce(&peer, &next)?;
        tracing::info!(peer = %peer, %next, "a peer will have another identity");
        Ok(())
    }

    /// `new` takes the place of `old`, whose connections are cut.
    pub async fn replace(&self, old: &str, new: &str) -> Result<vbr_api::Peer, Problem> {
        let (gate, from, to) = (self.inner.gate.clone(), old.to_owned(), new.to_owned());
        let gone = blocking(move || gate.book.replace(&from, &to)).await?;
        self.order(Order::Cut { peer: gone }).await;
        tracing::info!(peer = old, by = new, "a peer was replaced");
        let entry = self.inner.gate.book.entry(old);
        entry.map(|(peer, entry)| self.describe(peer, &entry)).ok_or_else(|| {
            Problem::not_found(format!("peer {old}"), "list the peers with `vbrctl peer list`")
        })
    }

    /// Every identity that a peer has or had, revoked or not; none: there is no such peer.
    pub fn identities(&self, name: &str) -> Option<Vec<String>> {
        let (_, entry) = self.inner.gate.book.entry(name)?;
        Some(entry.former.into_iter().chain([entry.peer_id]).collect())
    }

    /// Remembers what a peer grants this site. Blocking.
    pub fn note_granted(&self, peer_id: &str, granted: &[String]) -> Result<(), Problem> {
        match peer_id.parse() {
            Ok(peer) => self.inner.gate.book.note_granted(&peer, granted),
            Err(_) => Ok(()),
        }
    }
}

impl Driver {
    /// A peer that came under the identity it announced is not let in under the old one any more.
    pub(super) fn settle_identity(&self, peer: PeerId) {
        let book = self.parts.gate.book.clone();
        if !book.is_announced(&peer) {
            return;
        }
        let orders = self.parts.orders.clone();
        self.parts.tracker.spawn(async move {
            match blocking(move || book.settle(&peer)).await {
                Ok(Some(old)) => {
                    tracing::info!(%peer, %old, "a peer has a new identity; the old one is refused");
                    let _ = orders.send(Order::Cut { peer: old }).await;
                }
                Ok(None) => {}
                Err(problem) => {
                    tracing::error!(%peer, %problem, "a peer's new identity could not be written down; both stay good");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> (PeerBook, PathBuf) {
        let book = PeerBook::open(&dir.join("peers.json"), &dir.join("domains.json")).unwrap();
        (book, dir.join("key"))
    }

    #[test]
    fn both_keys_must_have_signed() {
        let (old, next, other) =
            (Keypair::generate_ed25519(), Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let id = old.public().to_peer_id();
        let good = notice(&old, &next).unwrap();
        assert_eq!(check(&id, &good).unwrap(), next.public().to_peer_id());
        assert!(check(&other.public().to_peer_id(), &good).is_err());
        let foreign = notice(&other, &next).unwrap();
        assert!(check(&id, &RotationNotice { by_old: foreign.by_old, ..good.clone() }).is_err());
        let unproven = RotationNotice { by_new: good.by_old.clone(), ..good.clone() };
        assert!(check(&id, &unproven).is_err());
        assert!(check(&id, &RotationNotice { next: vec![1], ..good }).is_err());
    }

    /// A crash between any two steps: the start finds a key that every peer lets in.
    #[test]
    fn a_crash_at_each_step() {
        let dir = tempfile::tempdir().unwrap();
        let (book, key_file) = files(dir.path());
        let peer = PeerId::random();
        book.domain_or_new("default").unwrap();
        book.admit(peer, "web", "default").unwrap();
        let old = Keypair::generate_ed25519();
        write_private(&key_file, &old.to_protobuf_encoding().unwrap()).unwrap();
        let old = old.public().to_peer_id().to_string();
        let in_use = || identity_of(&key_file).unwrap();

        // After the key, before the record: nobody was told, so it is forgotten.
        let next = Keypair::generate_ed25519().to_protobuf_encoding().unwrap();
        write_private(&next_file(&key_file), &next).unwrap();
        let files = RotationFiles::open(&key_file, &book).unwrap();
        assert!(files.change().is_none() && !next_file(&key_file).exists() && in_use() == old);

        // Begun, nobody told: a restart changes nothing.
        files.begin().unwrap();
        files.begin().unwrap();
        let next = identity_of(&next_file(&key_file)).unwrap();
        let files = RotationFiles::open(&key_file, &book).unwrap();
        assert_eq!(files.change().as_ref().map(|change| change.record.next.clone()), Some(next.clone()));
        assert!(in_use() == old && is_rotating(&key_file));

        // Told under another key: that does not count.
        files.told("another", &peer.to_string()).unwrap();
        files.told(&next, &PeerId::random().to_string()).unwrap();
        RotationFiles::open(&key_file, &book).unwrap();
        assert_eq!(in_use(), old);

        files.told(&next, &peer.to_string()).unwrap();
        let record = fs::read(record_file(&key_file)).unwrap();
        let done = RotationFiles::open(&key_file, &book).unwrap();
        assert!(done.change().is_none() && in_use() == next && !is_rotating(&key_file));

        // Renamed, and the record not removed yet.
        write_private(&record_file(&key_file), &record).unwrap();
        let again = RotationFiles::open(&key_file, &book).unwrap();
        assert!(again.change().is_none() && in_use() == next && !record_file(&key_file).exists());
    }

    #[test]
    fn given_up_it_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (book, key_file) = files(dir.path());
        let files = RotationFiles::open(&key_file, &book).unwrap();
        files.begin().unwrap();
        files.cancel().unwrap();
        files.cancel().unwrap();
        assert!(!is_rotating(&key_file) && !next_file(&key_file).exists());
    }
}
