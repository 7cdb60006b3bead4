//! A declaration under its agent's signature, as it travels (spec/discovery.md §2).
//!
//! ```text
//!  0  4 "PSKC" | 4 1 version = 1
//!  5 32 Ed25519 key | 37 2 network | 39 4 node
//! 43  8 seq | 51 8 issued, seconds since 1970 | 59 4 life in seconds
//! 63  1 count of UDP endpoints (at most 4), each: u8 4 or 6, the IP address, u16 port
//!  …  2 length of the declaration, the declaration
//! end 64 Ed25519 signature over "pilotage-skills-v1\0" and all before
//! ```
//!
//! This is the only module that knows how a declaration is signed: the registry's signed record takes its place by
//! another way to make a [`Card`] here.

use std::net::{IpAddr, SocketAddr};

use ed25519_dalek::{Signature, VerifyingKey};
use pilotage_wire::{Address, NetworkId, NodeId, addressing};

use crate::bytes::Reader;
use crate::declare::{self, Declaration, DeclarationError};

/// What every card begins with.
const MAGIC: [u8; 4] = *b"PSKC";

/// What is signed together with a card, so that the signature is good for nothing else.
const DOMAIN: &[u8] = b"pilotage-skills-v1\0";

/// Most endpoints.
pub const MAX_ENDPOINTS: usize = 4;

/// Longest life, in seconds: a week.
pub const MAX_LIFE: u32 = 7 * 24 * 3_600;

/// How far in the future a card may have been issued, in seconds: clocks differ.
pub const MAX_SKEW: u64 = 120;

/// Longest card, in bytes.
pub const MAX_CARD: usize = 66 + MAX_ENDPOINTS * 19 + declare::MAX_ENCODED + 64;

/// An agent's key.
pub type AgentKey = [u8; 32];

/// Who declares what, since when and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// The agent's Ed25519 key.
    pub key: AgentKey,
    /// Its address.
    pub address: Address,
    /// Rises with each change; of two cards of a key the higher one counts.
    pub seq: u64,
    /// Seconds since 1970.
    pub issued: u64,
    /// Seconds.
    pub life: u32,
    /// Where its UDP socket is, for those who have no registry to ask.
    pub endpoints: Vec<SocketAddr>,
    /// What it says it can do.
    pub declaration: Declaration,
}

/// A card with its bytes, whose signature was checked or made here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCard {
    card: Card,
    bytes: Box<[u8]>,
}

/// Why bytes are no card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// The bytes have another form.
    #[error("not a skill card")]
    Malformed,
    /// The life is 0 or longer than [`MAX_LIFE`], or there are more than [`MAX_ENDPOINTS`] endpoints.
    #[error("a skill card out of bounds")]
    Bounds,
    /// The declaration.
    #[error("declaration: {0}")]
    Declaration(#[from] DeclarationError),
    /// The signature is not that of the key.
    #[error("the signature is wrong")]
    Signature,
    /// Issued in the future, or over.
    #[error("not valid now")]
    Time,
    /// The node number does not follow from the key.
    #[error("the address is not one of its key")]
    Address,
}

impl Card {
    /// Encodes and signs; `sign` makes an Ed25519 signature with the card's key.
    ///
    /// # Errors
    /// [`CardError::Bounds`].
    pub fn sign(self, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Result<SignedCard, CardError> {
        if self.life == 0 || self.life > MAX_LIFE || self.endpoints.len() > MAX_ENDPOINTS {
            return Err(CardError::Bounds);
        }
        let mut bytes = self.encode();
        let signature = sign(&[DOMAIN, &bytes].concat());
        bytes.extend_from_slice(&signature);
        Ok(SignedCard { card: self, bytes: bytes.into() })
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(1);
        bytes.extend_from_slice(&self.key);
        bytes.extend_from_slice(&self.address.network.0.to_be_bytes());
        bytes.extend_from_slice(&self.address.node.0.to_be_bytes());
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(&self.issued.to_be_bytes());
        bytes.extend_from_slice(&self.life.to_be_bytes());
        bytes.push(self.endpoints.len() as u8);
        for endpoint in &self.endpoints {
            match endpoint.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend_from_slice(&ip.octets());
                }
            }
            bytes.extend_from_slice(&endpoint.port().to_be_bytes());
        }
        let mut declaration = Vec::new();
        self.declaration.encode(&mut declaration);
        bytes.extend_from_slice(&(declaration.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&declaration);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, CardError> {
        use CardError::Malformed;
        let mut reader = Reader::new(bytes);
        if reader.array() != Some(MAGIC) || reader.u8() != Some(1) {
            return Err(Malformed);
        }
        let key = reader.array().ok_or(Malformed)?;
        let network = NetworkId(reader.u16().ok_or(Malformed)?);
        let node = NodeId(reader.u32().ok_or(Malformed)?);
        let (seq, issued) = (reader.u64().ok_or(Malformed)?, reader.u64().ok_or(Malformed)?);
        let life = reader.u32().ok_or(Malformed)?;
        let count = usize::from(reader.u8().ok_or(Malformed)?);
        if life == 0 || life > MAX_LIFE || count > MAX_ENDPOINTS {
            return Err(CardError::Bounds);
        }
        let endpoints =
            (0..count).map(|_| endpoint(&mut reader)).collect::<Option<Vec<_>>>().ok_or(Malformed)?;
        let length = usize::from(reader.u16().ok_or(Malformed)?);
        let declaration = Declaration::decode(reader.take(length).ok_or(Malformed)?)?;
        if reader.left() > 0 {
            return Err(Malformed);
        }
        Ok(Self { key, address: Address { network, node }, seq, issued, life, endpoints, declaration })
    }

    /// Whether it counts at `now`, in seconds since 1970.
    #[must_use]
    pub fn is_current(&self, now: u64) -> bool {
        self.issued <= now.saturating_add(MAX_SKEW) && now < self.expires()
    }

    /// When it ends, in seconds since 1970.
    #[must_use]
    pub fn expires(&self) -> u64 {
        self.issued.saturating_add(u64::from(self.life))
    }

    /// Whether the node number is one of the first eight that follow from the key. An assigned one (at a registry of the
    /// reference) is not, and then only the registry's word binds it.
    #[must_use]
    pub fn address_follows(&self) -> bool {
        follows(&self.key, self.address)
    }
}

/// Whether the address is one of the first eight that follow from the key.
#[must_use]
pub fn follows(key: &AgentKey, address: Address) -> bool {
    addressing::node_ids(key).take(8).any(|(_, node)| node == address.node)
}

fn endpoint(reader: &mut Reader<'_>) -> Option<SocketAddr> {
    let ip = match reader.u8()? {
        4 => IpAddr::from(reader.array::<4>()?),
        6 => IpAddr::from(reader.array::<16>()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, reader.u16()?))
}

impl SignedCard {
    /// Reads and checks form, bounds and signature, not the time ([`Card::is_current`]).
    ///
    /// # Errors
    /// See [`CardError`].
    pub fn verify(bytes: &[u8]) -> Result<Self, CardError> {
        let (signed, signature) = split(bytes)?;
        let card = Card::decode(signed)?;
        if !signature_holds(&card.key, &[DOMAIN, signed].concat(), &signature) {
            return Err(CardError::Signature);
        }
        Ok(Self { card, bytes: bytes.into() })
    }

    /// Reads without looking at the signature: for bytes that were verified before they were stored.
    ///
    /// # Errors
    /// See [`CardError`].
    pub fn read_verified(bytes: &[u8]) -> Result<Self, CardError> {
        let (signed, _) = split(bytes)?;
        Ok(Self { card: Card::decode(signed)?, bytes: bytes.into() })
    }

    /// What it says.
    #[must_use]
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// All of it, as it travels.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn split(bytes: &[u8]) -> Result<(&[u8], [u8; 64]), CardError> {
    if bytes.len() > MAX_CARD {
        return Err(CardError::Malformed);
    }
    let (signed, signature) = bytes.split_last_chunk::<64>().ok_or(CardError::Malformed)?;
    Ok((signed, *signature))
}

/// Strict rules (RFC 8032 with canonical encodings and no key of small order).
pub(crate) fn signature_holds(key: &AgentKey, message: &[u8], signature: &[u8; 64]) -> bool {
    let Ok(parsed) = VerifyingKey::from_bytes(key) else { return false };
    // One key, one encoding: decompression would reduce a y of p or above silently.
    parsed.to_edwards().compress().to_bytes() == *key
        && parsed.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
}

#[cfg(test)]
pub(crate) mod testing {
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;
    use crate::declare::Skill;

    /// A card of the agent with this number.
    pub(crate) fn card(number: u16, tags: &[&str], summary: &str) -> SignedCard {
        let declaration = Declaration::new(
            tags.iter().map(|tag| Skill { tag: tag.parse().unwrap(), idempotent: true }).collect(),
            summary,
        );
        signed(number, 1, declaration.unwrap())
    }

    pub(crate) fn signed(number: u16, seq: u64, declaration: Declaration) -> SignedCard {
        let mut seed = [0; 32];
        seed[..2].copy_from_slice(&number.to_be_bytes());
        let key = SigningKey::from_bytes(&seed);
        let public = key.verifying_key().to_bytes();
        let (_, node) = addressing::node_ids(&public).next().unwrap();
        let card = Card {
            key: public,
            address: Address::new(0, node.0),
            seq,
            issued: 1_000,
            life: 3_600,
            endpoints: vec!["127.0.0.1:9".parse().unwrap(), "[::1]:8".parse().unwrap()],
            declaration,
        };
        card.sign(|message| key.sign(message).to_bytes()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::card;
    use super::*;

    #[test]
    fn a_card_survives_and_any_change_is_seen() {
        let signed = card(1, &["a.b", "c"], "does a and c");
        assert_eq!(SignedCard::verify(signed.bytes()).unwrap(), signed);
        assert!(signed.card().address_follows());
        for at in 0..signed.bytes().len() {
            let mut bytes = signed.bytes().to_vec();
            bytes[at] ^= 1;
            assert!(SignedCard::verify(&bytes).is_err(), "{at}");
            assert!(SignedCard::verify(&signed.bytes()[..at]).is_err(), "{at}");
        }
        let longer = [signed.bytes(), &[0]].concat();
        assert!(SignedCard::verify(&longer).is_err());
        assert_eq!(SignedCard::verify(&vec![0; MAX_CARD + 1]), Err(CardError::Malformed));
    }

    #[test]
    fn a_card_has_its_time() {
        let signed = card(1, &["a"], "");
        let card = signed.card();
        assert!(card.is_current(1_000) && card.is_current(4_599) && !card.is_current(4_600));
        assert!(card.is_current(1_000 - MAX_SKEW) && !card.is_current(1_000 - MAX_SKEW - 1));
    }

    #[test]
    fn a_foreign_address_is_noticed() {
        let mut other = card(1, &["a"], "").card().clone();
        other.address.node = NodeId(77);
        assert!(!other.address_follows());
        let too_long = Card { life: MAX_LIFE + 1, ..other };
        assert_eq!(too_long.sign(|_| [0; 64]).unwrap_err(), CardError::Bounds);
    }
}
