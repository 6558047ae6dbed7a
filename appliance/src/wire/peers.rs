//! The peer book: who is paired, under which name, in which dedup domain, and what it may do here.
//!
//! Who follows whom, when keys change or sites are rebuilt, is in [`succession`].
//!
//! Owns `peers.json` and `domains.json` (0600; written to a temporary file, synced, renamed, the
//! directory synced). Readers never wait for the disk: a change is durable first and visible second.
//! Blocking: changes run on blocking threads. Bound: [`PEERS_MAX`] peers.

mod succession;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use data_encoding::HEXLOWER;
use libp2p::PeerId;
use serde::{Deserialize, Serialize};
use vbr_api::{GrantRequest, PeerQuota};

use crate::block::{DomainKey, DomainTag};
use crate::error::Problem;
use crate::limits::PEERS_MAX;

/// The grant that lets a peer's consoles give orders here.
pub const MANAGE: &str = "manage";
/// The grant to fill replicas here.
pub const REPLICATE: &str = "replicate";

/// What the rest of vbr knows of a paired peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Its name here.
    pub name: String,
    /// Its identity.
    pub peer_id: String,
    /// Identities that it had before, oldest first: what they own is its own.
    pub former: Vec<String>,
    /// Name of the dedup domain here.
    pub domain: String,
    /// The domain's key.
    pub domain_key: DomainKey,
    /// What it may do here: `replicate`, …
    pub grants: Vec<String>,
    /// What it may fill here; where it has no bound of its own the site's holds.
    pub quota: PeerQuota,
}

/// A line of `peers.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name here.
    pub name: String,
    /// Its identity.
    pub peer_id: String,
    /// Where to dial it; empty for a peer that dials us.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Name of its dedup domain in `domains.json`.
    pub domain: String,
    /// What it may do here.
    #[serde(default)]
    pub grants: Vec<String>,
    /// What it may fill here.
    #[serde(default)]
    pub quota: PeerQuota,
    /// When the pairing was made.
    pub paired_at: jiff::Timestamp,
    /// No longer paired, kept for its name.
    #[serde(default)]
    pub revoked: bool,
    /// What this site may do there, as it last said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub granted: Vec<String>,
    /// The identity that it will have, as it announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Identities that it had, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<String>,
    /// The peer that has its place now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<String>,
    /// And the name that one was paired under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor_came_as: Option<String>,
}

impl Entry {
    fn new(name: &str, peer: PeerId, domain: &str) -> Self {
        Self {
            name: name.to_owned(),
            peer_id: peer.to_string(),
            addresses: Vec::new(),
            domain: domain.to_owned(),
            grants: Vec::new(),
            quota: PeerQuota::default(),
            paired_at: jiff::Timestamp::now(),
            revoked: false,
            granted: Vec::new(),
            next: None,
            former: Vec::new(),
            replaced_by: None,
            successor_came_as: None,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct PeersFile {
    version: u32,
    peers: Vec<Entry>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct DomainsFile {
    version: u32,
    /// Name to key, 64 hexadecimal digits.
    domains: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default)]
struct Book {
    peers: BTreeMap<PeerId, Entry>,
    domains: BTreeMap<String, DomainKey>,
}

/// See the module.
pub struct PeerBook {
    peers_file: PathBuf,
    domains_file: PathBuf,
    /// Held by whoever changes the files.
    writer: Mutex<()>,
    book: RwLock<Arc<Book>>,
}

impl PeerBook {
    /// Reads both files; missing ones are an empty book, damaged ones an error that names the file.
    pub fn open(peers_file: &Path, domains_file: &Path) -> Result<Self, Problem> {
        let peers: PeersFile = read_json(peers_file)?;
        let domains: DomainsFile = read_json(domains_file)?;
        let mut book = Book::default();
        for entry in peers.peers {
            let id = entry.peer_id.parse().map_err(|_| damaged(peers_file, "a peer id does not parse"))?;
            book.peers.insert(id, entry);
        }
        for (name, hex) in domains.domains {
            let key = HEXLOWER.decode(hex.as_bytes()).ok().and_then(|key| key.try_into().ok());
            let key = key.ok_or_else(|| damaged(domains_file, "a key is not 64 hexadecimal digits"))?;
            book.domains.insert(name, DomainKey(key));
        }
        Ok(Self {
            peers_file: peers_file.to_owned(),
            domains_file: domains_file.to_owned(),
            writer: Mutex::new(()),
            book: RwLock::new(Arc::new(book)),
        })
    }

    /// True where the peer may connect.
    pub fn is_paired(&self, peer: &PeerId) -> bool {
        self.book().admitting(peer).is_some()
    }

    /// Every line, in order of name.
    pub fn entries(&self) -> Vec<(PeerId, Entry)> {
        let mut all: Vec<_> = self.book().peers.iter().map(|(id, entry)| (*id, entry.clone())).collect();
        all.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        all
    }

    /// A paired peer by its identity.
    pub fn by_id(&self, peer: &PeerId) -> Option<PeerRecord> {
        let book = self.book();
        book.admitting(peer).and_then(|entry| record(&book, entry))
    }

    /// A paired peer by its name here.
    pub fn by_name(&self, name: &str) -> Option<PeerRecord> {
        let book = self.book();
        let entry = book.peers.values().find(|entry| entry.name == name && !entry.revoked)?;
        record(&book, entry)
    }

    /// A line by name, a revoked one too.
    pub fn entry(&self, name: &str) -> Option<(PeerId, Entry)> {
        let book = self.book();
        book.peers.iter().find(|(_, entry)| entry.name == name).map(|(id, entry)| (*id, entry.clone()))
    }

    /// The key of a domain, by the tag that is derived from it.
    pub fn domain_key(&self, tag: DomainTag) -> Option<DomainKey> {
        self.book().domains.values().find(|key| key.tag() == tag).cloned()
    }

    /// The key of one of our domains; made on first use. Durable when it returns.
    pub fn domain_or_new(&self, name: &str) -> Result<DomainKey, Problem> {
        if let Some(key) = self.book().domains.get(name) {
            return Ok(key.clone());
        }
        let mut key = [0; 32];
        super::random(&mut key)?;
        self.change(|book| Ok(book.domains.entry(name.to_owned()).or_insert(DomainKey(key)).clone()))
    }

    /// The inviter's side: stores the joiner, under its own name or one like it. Durable when it returns.
    pub fn admit(&self, peer: PeerId, site: &str, domain: &str) -> Result<Entry, Problem> {
        let old = self.book().peers.get(&peer).cloned();
        let entry = Entry {
            grants: vec![REPLICATE.to_owned()],
            // Pairing again must not lift a bound, nor lose what it owns.
            quota: old.as_ref().map(|old| old.quota).unwrap_or_default(),
            former: old.map(|old| old.former).unwrap_or_default(),
            ..Entry::new(site, peer, domain)
        };
        self.change(|book| insert(book, peer, entry))
    }

    /// The joiner's side: stores the inviter and the domain's key. Durable when it returns.
    pub fn adopt(
        &self,
        peer: PeerId,
        name: &str,
        addresses: Vec<String>,
        domain: &str,
        key: DomainKey,
    ) -> Result<Entry, Problem> {
        self.change(|book| {
            // Two targets may both call their domain `default`; the keys tell them apart.
            let known = book.domains.iter().find(|(_, known)| **known == key).map(|(name, _)| name.clone());
            let local = known.unwrap_or_else(|| {
                let taken = |name: &str| book.domains.contains_key(name);
                if taken(domain) { unique(&format!("{domain}-{name}"), taken) } else { domain.to_owned() }
            });
            book.domains.insert(local.clone(), key);
            let old = book.peers.get(&peer).cloned();
            let entry = Entry {
                addresses,
                // Being joined gives the inviter no rights here; what it already had it keeps.
                grants: old.as_ref().map(|old| old.grants.clone()).unwrap_or_default(),
                quota: old.as_ref().map(|old| old.quota).unwrap_or_default(),
                former: old.map(|old| old.former).unwrap_or_default(),
                ..Entry::new(name, peer, &local)
            };
            insert(book, peer, entry)
        })
    }

    /// Sets what a peer may fill here, 0 takes its own bound away, whether it may at all, and whether its consoles may give orders. Durable
    /// when it returns.
    pub fn grant(&self, name: &str, request: &GrantRequest) -> Result<PeerId, Problem> {
        self.change(|book| {
            let (id, entry) = find(book, name)?;
            if let Some(bytes) = request.quota_bytes {
                entry.quota.bytes = Some(bytes).filter(|bytes| *bytes > 0);
            }
            if let Some(points) = request.max_points {
                entry.quota.points = Some(points).filter(|points| *points > 0);
            }
            for (word, wanted) in [(MANAGE, request.manage), (REPLICATE, request.replicate)] {
                let Some(wanted) = wanted else { continue };
                if entry.revoked {
                    let next = "pair it again: vbrctl peer invite, and vbrctl peer join there";
                    return Err(Problem::conflict(format!("peer {name}"), "it is revoked", next));
                }
                entry.grants.retain(|grant| grant != word);
                entry.grants.extend(wanted.then(|| word.to_owned()));
            }
            Ok(id)
        })
    }

    /// Ends the pairing; the line stays. Durable when it returns.
    pub fn revoke(&self, name: &str) -> Result<PeerId, Problem> {
        self.change(|book| {
            let (id, entry) = find(book, name)?;
            entry.revoked = true;
            entry.next = None;
            entry.granted.clear();
            entry.grants.clear();
            Ok(id)
        })
    }

    /// Forgets a peer. Durable when it returns.
    pub fn remove(&self, name: &str) -> Result<PeerId, Problem> {
        self.change(|book| {
            let (id, _) = find(book, name)?;
            book.peers.remove(&id);
            Ok(id)
        })
    }

    fn book(&self) -> Arc<Book> {
        self.book.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Book) -> Result<T, Problem>) -> Result<T, Problem> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.book();
        let mut new = Book::clone(&old);
        let answer = change(&mut new)?;
        // Domains first: a peer must never name a domain whose key was lost.
        if new.domains != old.domains {
            let domains = new.domains.iter().map(|(name, key)| (name.clone(), HEXLOWER.encode(&key.0)));
            write_json(&self.domains_file, &DomainsFile { version: 1, domains: domains.collect() })?;
        }
        if new.peers != old.peers {
            let peers = new.peers.values().cloned().collect();
            write_json(&self.peers_file, &PeersFile { version: 1, peers })?;
        }
        *self.book.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(answer)
    }
}

fn record(book: &Book, entry: &Entry) -> Option<PeerRecord> {
    Some(PeerRecord {
        name: entry.name.clone(),
        peer_id: entry.peer_id.clone(),
        former: entry.former.clone(),
        domain: entry.domain.clone(),
        domain_key: book.domains.get(&entry.domain)?.clone(),
        grants: entry.grants.clone(),
        quota: entry.quota,
    })
}

fn find<'a>(book: &'a mut Book, name: &str) -> Result<(PeerId, &'a mut Entry), Problem> {
    let found = book.peers.iter_mut().find(|(_, entry)| entry.name == name);
    found
        .map(|(id, entry)| (*id, entry))
        .ok_or_else(|| Problem::not_found(format!("peer {name}"), "list the peers with `vbrctl peer list`"))
}

fn insert(book: &mut Book, peer: PeerId, mut entry: Entry) -> Result<Entry, Problem> {
    PeerBook::check_not_former(book, &peer)?;
    if book.peers.len() >= PEERS_MAX && !book.peers.contains_key(&peer) {
        return Err(Problem::conflict(
            format!("pair with {}", entry.name),
            format!("this site has {PEERS_MAX} peers, the most it can have"),
            "remove a peer that is not used any more with `vbrctl peer remove`",
        ));
    }
    let others = |name: &str| book.peers.iter().any(|(id, other)| *id != peer && other.name == name);
    entry.name = unique(&entry.name, others);
    book.peers.insert(peer, entry.clone());
    Ok(entry)
}

/// `name`, or `name-2`, `name-3`, … where it is taken; never longer than a name may be.
fn unique(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut candidate: String = name.chars().take(64).collect();
    let mut number = 2u32;
    while taken(&candidate) {
        let suffix = format!("-{number}");
        let stem: String = name.chars().take(64 - suffix.len()).collect();
        candidate = stem + &suffix;
        number += 1;
    }
    candidate
}

fn read_json<T: Default + for<'a> Deserialize<'a>>(path: &Path) -> Result<T, Problem> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| damaged(path, &error.to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(Problem::io(format!("read {}", path.display()), &error)),
    }
}

fn damaged(path: &Path, why: &str) -> Problem {
    Problem::new(
        "damaged",
        format!("read {}", path.display()),
        why,
        "restore the file from a copy, or move it away and pair the sites again",
    )
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Problem> {
    let what = || format!("write {}", path.display());
    let text = serde_json::to_vec_pretty(value)
        .map_err(|error| Problem::new("internal", what(), error.to_string(), "report this"))?;
    write_private(path, &text).map_err(|error| Problem::io(what(), &error))
}

/// Replaces a file by one that only its owner can read. Durable when it returns.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    // One that a crash left behind would keep its mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn open(dir: &Path) -> PeerBook {
        PeerBook::open(&dir.join("peers.json"), &dir.join("domains.json")).unwrap()
    }

    #[test]
    fn a_book_survives_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let book = open(dir.path());
        let (one, two) = (PeerId::random(), PeerId::random());
        let key = book.domain_or_new("default").unwrap();
        assert_eq!(book.admit(one, "web", "default").unwrap().name, "web");
        assert_eq!(book.admit(two, "web", "default").unwrap().name, "web-2");
        assert_eq!(book.admit(one, "web", "default").unwrap().name, "web");
        let again = open(dir.path());
        assert_eq!(again.by_name("web-2").unwrap().domain_key, key);
        assert!(again.is_paired(&one));
        let grant = |quota_bytes, max_points| GrantRequest { quota_bytes, max_points, ..Default::default() };
        again.grant("web", &grant(Some(5), None)).unwrap();
        again.grant("web", &grant(None, Some(7))).unwrap();
        again.admit(one, "web", "default").unwrap();
        let quota = open(dir.path()).by_name("web").unwrap().quota;
        assert_eq!(quota, PeerQuota { bytes: Some(5), points: Some(7) });
        again.grant("web", &grant(Some(0), None)).unwrap();
        assert_eq!(
            open(dir.path()).by_name("web").unwrap().quota,
            PeerQuota { bytes: None, points: Some(7) }
        );
        assert_eq!(again.grant("nobody", &grant(None, None)).unwrap_err().code, "not_found");
        again.revoke("web").unwrap();
        assert!(!open(dir.path()).is_paired(&one) && open(dir.path()).by_name("web").is_none());
        assert_eq!(open(dir.path()).entries().len(), 2);
        for file in ["peers.json", "domains.json"] {
            assert_eq!(fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        again.remove("web").unwrap();
        assert_eq!(again.remove("web").unwrap_err().code, "not_found");
    }

    #[test]
    fn two_targets_with_the_same_domain_name_keep_two_keys() {
        let dir = tempfile::tempdir().unwrap();
        let book = open(dir.path());
        let (one, two) = (PeerId::random(), PeerId::random());
        book.adopt(one, "dr1", vec![], "default", DomainKey([1; 32])).unwrap();
        book.adopt(two, "dr2", vec![], "default", DomainKey([2; 32])).unwrap();
        book.adopt(one, "dr1", vec![], "default", DomainKey([1; 32])).unwrap();
        assert_eq!(book.by_name("dr1").unwrap().domain, "default");
        assert_eq!(book.by_name("dr2").unwrap().domain, "default-dr2");
        assert_eq!(book.by_name("dr2").unwrap().domain_key, DomainKey([2; 32]));
        assert!(book.by_name("dr1").unwrap().grants.is_empty());
    }

    #[test]
    fn a_damaged_book_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("peers.json"), b"{").unwrap();
        let error = PeerBook::open(&dir.path().join("peers.json"), &dir.path().join("domains.json"));
        assert!(error.err().unwrap().what.contains("peers.json"));
    }
}
