//! Joining another site, and inviting one.
//!
//! A code can be used once, setup again and again: whom a code is of is read from the code itself (its key, as a peer id),
//! so that a second run sees that the pairing is there. The form of codes is vbrd's; one that cannot be read here is tried.

use vbr_api::{Invite, InviteRequest, JoinRequest, Peer};

use crate::context::Context;
use crate::failure::Failure;

/// Ends of a code: a key and a secret.
const KEY_BYTES: usize = 32;
const SECRET_BYTES: usize = 16;
/// What stands before an ed25519 key in a peer id: an identity hash of 36 bytes, of a key of kind 1 with 32 bytes.
const PEER_ID_HEAD: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
const BASE32: &[u8] = b"abcdefghijklmnopqrstuvwxyz234567";
const BASE58: &[u8] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// How joining ended.
pub enum Joined {
    Now(String),
    /// By an earlier run.
    Before(String),
}

pub async fn join(context: &Context, code: &str) -> Result<Joined, Failure> {
    let peers: Vec<Peer> = context.client.get("/v1/peers").await?.list()?;
    let known = inviter(code)
        .and_then(|inviter| peers.into_iter().find(|peer| peer.peer_id == inviter && !peer.revoked));
    if let Some(peer) = known {
        return Ok(Joined::Before(peer.name));
    }
    let request = JoinRequest { code: code.trim().to_owned(), name: None };
    let peer: Peer = context.client.post_json("/v1/peers/join", &request).await?.one()?;
    Ok(Joined::Now(peer.name))
}

pub async fn invite(context: &Context) -> Result<Invite, Failure> {
    context.client.post_json("/v1/peers/invite", &InviteRequest::default()).await?.one()
}

/// The peer id of who made a code.
fn inviter(code: &str) -> Option<String> {
    let bytes = base32(code)?;
    let from =
        bytes.len().checked_sub(KEY_BYTES + SECRET_BYTES).filter(|from| *from >= 3 && bytes[0] == 1)?;
    let mut id = PEER_ID_HEAD.to_vec();
    id.extend(&bytes[from..from + KEY_BYTES]);
    Some(base58(&id))
}

fn base32(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0u32);
    for c in text.bytes().filter(|c| !c.is_ascii_whitespace()) {
        let value = BASE32.iter().position(|known| *known == c.to_ascii_lowercase())?;
        bits = bits << 5 | value as u32;
        held += 5;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    Some(out)
}

fn base58(bytes: &[u8]) -> String {
    // Little-endian digits of the whole number.
    let mut digits: Vec<u32> = Vec::new();
    for byte in bytes {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            carry += *digit << 8;
            *digit = carry % 58;
            carry /= 58;
        }
        while carry > 0 {
            digits.push(carry % 58);
            carry /= 58;
        }
    }
    let zeroes = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = std::iter::repeat_n(0, zeroes).chain(digits.into_iter().rev());
    digits.map(|digit| char::from(BASE58[digit as usize])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings() {
        assert_eq!(base58(b"Hello World!"), "2NEpo7TZRRrLZSi2U");
        assert_eq!(base58(&[0, 0, 0x28, 0x7f, 0xb4, 0xcd]), "11233QC4");
        assert_eq!(base32("mzxw6ytb").as_deref(), Some(&b"fooba"[..]));
        assert_eq!(base32("MZXW 6YTB").as_deref(), Some(&b"fooba"[..]));
        assert_eq!(base32("a1"), None);
    }

    #[test]
    fn whose_a_code_is() {
        // RFC 8032, test 1: its public key, as libp2p names it.
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let key: Vec<u8> =
            (0..32).map(|at| u8::from_str_radix(&key[2 * at..2 * at + 2], 16).unwrap()).collect();
        let mut bytes = vec![1, 0, 4, 0, 0, 0, 0];
        bytes.extend(&key);
        bytes.extend([7; 16]);
        let id = inviter(&encode(&bytes)).unwrap();
        assert!(id.starts_with("12D3KooW") && id.len() == 52, "{id}");
        bytes[0] = 2;
        assert_eq!(inviter(&encode(&bytes)), None);
        assert_eq!(inviter("short"), None);
    }

    fn encode(bytes: &[u8]) -> String {
        let (mut out, mut bits, mut held) = (String::new(), 0u32, 0);
        for byte in bytes {
            bits = bits << 8 | u32::from(*byte);
            held += 8;
            while held >= 5 {
                held -= 5;
                out.push(char::from(BASE32[(bits >> held & 31) as usize]));
            }
            bits &= (1 << held) - 1;
        }
        if held > 0 {
            out.push(char::from(BASE32[(bits << (5 - held) & 31) as usize]));
        }
        out
    }
}
