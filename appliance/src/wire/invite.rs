//! Invitations: the code that a person carries from one site to the other, and which codes live.
//!
//! A code is base32 without padding, lower case, of: version (1), length of the addresses (2), the
//! addresses (each: length (2), bytes; length 0 is padding), the inviter's ed25519 public key (32)
//! and the secret (16). The secret comes last and there is no checksum: a mistyped secret must reach
//! the inviter, which counts wrong tries.
//! Invitations live in memory only; a restart of vbrd ends them. Bound: [`INVITATIONS_MAX`] at once.
//! Time is given by the caller.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use data_encoding::{BASE32_NOPAD, Encoding};
use libp2p::identity::{PublicKey, ed25519};
use libp2p::{Multiaddr, PeerId};

use crate::limits::INVITATION_TRIES;

/// Invitations that can be open at once.
pub const INVITATIONS_MAX: usize = 64;
/// Addresses that a code carries.
const ADDRESSES_MAX: usize = 8;
/// Longest code that is looked at.
const CODE_BYTES_MAX: usize = 4096;
const CODE_VERSION: u8 = 1;

/// What a code says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// The inviter, checked by the handshake before anything is said.
    pub inviter: PublicKey,
    /// Where to find it.
    pub addresses: Vec<Multiaddr>,
    /// Known to whoever was given the code.
    pub secret: Secret,
}

/// 128 bits, used once.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 16]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// What the joiner says instead of the secret: it holds only between these two peers.
    pub fn proof(&self, joiner: &PeerId, inviter: &PeerId) -> [u8; 32] {
        let key = blake3::derive_key("vbr 2026 pairing proof v1", &self.0);
        let mut hasher = blake3::Hasher::new_keyed(&key);
        for peer in [joiner, inviter] {
            let bytes = peer.to_bytes();
            hasher.update(&(bytes.len() as u32).to_be_bytes());
            hasher.update(&bytes);
        }
        *hasher.finalize().as_bytes()
    }
}

/// Why a code cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// Characters or lengths are wrong.
    #[error("it is not a code of vbr, or a part of it is missing")]
    Malformed,
    /// Made by a newer vbr.
    #[error("it has version {0}, and this vbr knows version {CODE_VERSION}: update this site")]
    Version(u8),
}

impl Code {
    /// The code as text: one word, lower case letters and digits.
    pub fn encode(&self) -> Option<String> {
        let key = self.inviter.clone().try_into_ed25519().ok()?;
        let mut addresses = Vec::new();
        for address in self.addresses.iter().take(ADDRESSES_MAX) {
            let bytes = address.to_vec();
            addresses.extend((bytes.len() as u16).to_be_bytes());
            addresses.extend(bytes);
        }
        // Whole groups of five bytes have no spare bits, so every changed letter changes a byte.
        while !(3 + addresses.len() + 32 + 16).is_multiple_of(5) {
            addresses.extend([0, 0]);
        }
        let mut bytes = vec![CODE_VERSION];
        bytes.extend((addresses.len() as u16).to_be_bytes());
        bytes.extend(addresses);
        bytes.extend(key.to_bytes());
        bytes.extend(self.secret.0);
        Some(base32().encode(&bytes).to_lowercase())
    }

    /// Reads a code; blanks and case do not matter.
    pub fn decode(text: &str) -> Result<Self, CodeError> {
        if text.len() > CODE_BYTES_MAX {
            return Err(CodeError::Malformed);
        }
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let bytes = base32().decode(text.to_uppercase().as_bytes()).map_err(|_| CodeError::Malformed)?;
        let (version, rest) = bytes.split_first().ok_or(CodeError::Malformed)?;
        match *version {
            CODE_VERSION => Self::decode_body(rest).ok_or(CodeError::Malformed),
            // What is far off was never a code.
            newer @ 2..16 => Err(CodeError::Version(newer)),
            _ => Err(CodeError::Malformed),
        }
    }

    fn decode_body(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (mut packed, rest) = rest.split_at_checked(u16::from_be_bytes(*length) as usize)?;
        let (key, rest) = rest.split_first_chunk::<32>()?;
        let secret: [u8; 16] = rest.try_into().ok()?;
        let mut addresses = Vec::new();
        while let Some((length, rest)) = packed.split_first_chunk::<2>() {
            let (address, rest) = rest.split_at_checked(u16::from_be_bytes(*length) as usize)?;
            packed = rest;
            if !address.is_empty() && addresses.len() < ADDRESSES_MAX {
                addresses.push(Multiaddr::try_from(address.to_vec()).ok()?);
            }
        }
        let inviter = ed25519::PublicKey::try_from_bytes(key).ok()?.into();
        Some(Self { inviter, addresses, secret: Secret(secret) })
    }
}

fn base32() -> Encoding {
    BASE32_NOPAD
}

/// An open invitation.
#[derive(Debug)]
struct Invitation {
    secret: Secret,
    domain: String,
    expires: Instant,
    tries_left: u32,
}

/// The invitations that are open.
#[derive(Debug, Default)]
pub struct Invitations {
    open: Mutex<Vec<Invitation>>,
}

impl Invitations {
    /// Opens one. False where too many are open.
    pub fn open(&self, secret: Secret, domain: String, expires: Instant, now: Instant) -> bool {
        let mut open = self.living(now);
        if open.len() >= INVITATIONS_MAX {
            return false;
        }
        open.push(Invitation { secret, domain, expires, tries_left: INVITATION_TRIES });
        true
    }

    /// True while strangers may try.
    pub fn is_open(&self, now: Instant) -> bool {
        !self.living(now).is_empty()
    }

    /// A try. The right proof uses its invitation up and answers the domain; a wrong one counts
    /// against every open invitation, since it does not say which one it meant.
    pub fn redeem(
        &self,
        proof: &[u8; 32],
        joiner: &PeerId,
        inviter: &PeerId,
        now: Instant,
    ) -> Option<String> {
        let mut open = self.living(now);
        // blake3's hashes compare in constant time.
        let proof = blake3::Hash::from_bytes(*proof);
        let hit =
            open.iter().position(|one| blake3::Hash::from_bytes(one.secret.proof(joiner, inviter)) == proof);
        if let Some(at) = hit {
            return Some(open.swap_remove(at).domain);
        }
        for one in open.iter_mut() {
            one.tries_left = one.tries_left.saturating_sub(1);
        }
        open.retain(|one| one.tries_left > 0);
        None
    }

    fn living(&self, now: Instant) -> std::sync::MutexGuard<'_, Vec<Invitation>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|one| one.expires > now);
        open
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use libp2p::identity::Keypair;
    use proptest::prelude::*;

    use super::*;

    fn code(addresses: &[&str]) -> Code {
        Code {
            inviter: Keypair::generate_ed25519().public(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            secret: Secret([7; 16]),
        }
    }

    #[test]
    fn codes_come_back() {
        for addresses in
            [&[][..], &["/ip4/10.0.0.1/tcp/7300"], &["/ip4/1.2.3.4/tcp/1", "/dns4/dr.example/tcp/7300"]]
        {
            let code = code(addresses);
            let text = code.encode().unwrap();
            assert_eq!(Code::decode(&text), Ok(code.clone()));
            assert_eq!(Code::decode(&format!(" {}\n", text.to_uppercase())), Ok(code.clone()));
            // Whatever letter at the end is wrong, it is the secret that is wrong.
            for letter in ['a', 'b', '7'] {
                let wrong = format!("{}{letter}", &text[..text.len() - 1]);
                let wrong = Code::decode(&wrong).unwrap();
                assert_eq!((&wrong.inviter, &wrong.addresses), (&code.inviter, &code.addresses));
            }
        }
        assert_eq!(Code::decode("hello"), Err(CodeError::Malformed));
    }

    proptest! {
        #[test]
        fn garbage_is_refused(text in "[a-z2-7]{0,300}") {
            let _ = Code::decode(&text);
        }
    }

    #[test]
    fn invitations_end() {
        let (joiner, inviter) = (PeerId::random(), PeerId::random());
        let (secret, now) = (Secret([1; 16]), Instant::now());
        let (good, later) = (secret.proof(&joiner, &inviter), now + Duration::from_secs(60));
        let open = |book: &Invitations| assert!(book.open(secret.clone(), "d".into(), later, now));

        let book = Invitations::default();
        open(&book);
        for _ in 1..INVITATION_TRIES {
            assert_eq!(book.redeem(&[0; 32], &joiner, &inviter, now), None);
        }
        assert_eq!(
            book.redeem(&good, &joiner, &inviter, now).as_deref(),
            Some("d"),
            "the fifth try is right"
        );
        assert_eq!(book.redeem(&good, &joiner, &inviter, now), None, "used");

        open(&book);
        for _ in 0..INVITATION_TRIES {
            book.redeem(&[0; 32], &joiner, &inviter, now);
        }
        assert!(!book.is_open(now), "five wrong tries");

        open(&book);
        assert_eq!(book.redeem(&good, &inviter, &joiner, now), None, "a proof holds for its joiner alone");
        assert_eq!(book.redeem(&good, &joiner, &inviter, later), None, "expired");
    }
}
