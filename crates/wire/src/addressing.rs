//! Node ids and fingerprints derived from Ed25519 keys. `spec/addressing.md`.
//!
//! A node id is 32 bits and therefore **not** an identity: another key with the same id can be found in
//! minutes (`spec/addressing.md §5`). Trust lists and pins store the full public key; people compare
//! fingerprints.

use core::fmt;
use core::str::FromStr;

use crate::{Address, NetworkId, NodeId};

/// BLAKE3 `derive_key` context of agent ids. `spec/addressing.md §2`.
const AGENT_ID_CONTEXT: &str = "pilotage 2026 agent-id v1";
/// BLAKE3 `derive_key` context of node ids. `spec/addressing.md §3`.
const NODE_ID_CONTEXT: &str = "pilotage 2026 node-id v1";

/// Node ids up to this one are reserved (`spec/addressing.md §3`), as is [`Address::broadcast`]'s.
pub const LAST_RESERVED_NODE_ID: u32 = 15;

/// Whether no key may own this node id: 0 to 15 and `0xFFFF_FFFF`.
///
/// A foreign registry may assign 1 to 15 all the same; such an id is then accepted as assigned.
pub const fn is_reserved(node: NodeId) -> bool {
    node.0 <= LAST_RESERVED_NODE_ID || node.0 == u32::MAX
}

/// The node id of a public key under a salt; `None` where it falls on a reserved id.
///
/// First 4 bytes, big-endian, of BLAKE3 derive_key over key and salt. `spec/addressing.md §3`.
pub fn derive_node_id(public_key: &[u8; 32], salt: u16) -> Option<NodeId> {
    let mut hasher = blake3::Hasher::new_derive_key(NODE_ID_CONTEXT);
    hasher.update(public_key).update(&salt.to_be_bytes());
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    let node = NodeId(u32::from_be_bytes([a, b, c, d]));
    (!is_reserved(node)).then_some(node)
}

/// The node ids that a key may claim, in the order in which it must try them: salts 0, 1, 2, …, reserved
/// ids left out. At most 65,536 items.
pub fn node_ids(public_key: &[u8; 32]) -> impl Iterator<Item = (u16, NodeId)> + use<> {
    let public_key = *public_key;
    (0..=u16::MAX).filter_map(move |salt| Some((salt, derive_node_id(&public_key, salt)?)))
}

/// The address that a key has first claim to in a network: that of the lowest usable salt.
///
/// `None` only if all 65,536 salts fell on reserved ids, which does not happen.
pub fn first_address(network: NetworkId, public_key: &[u8; 32]) -> Option<Address> {
    node_ids(public_key).next().map(|(_, node)| Address { network, node })
}

/// The 32-byte identity of a key: BLAKE3 derive_key. `spec/addressing.md §2`.
pub fn agent_id(public_key: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key(AGENT_ID_CONTEXT, public_key)
}

/// The 128-bit fingerprint of a key as text: `pa1` and 28 characters.
pub fn fingerprint128(public_key: &[u8; 32]) -> String {
    Fingerprint::short(public_key).to_string()
}

/// The 256-bit fingerprint of a key as text: `pb1` and 54 characters.
pub fn fingerprint256(public_key: &[u8; 32]) -> String {
    Fingerprint::long(public_key).to_string()
}

/// Reads a fingerprint of either form, in upper or lower case, without blanks around it.
///
/// # Errors
///
/// [`FingerprintError`] says what is wrong; a mistyped character shows as
/// [`Check`](FingerprintError::Check).
pub fn parse_fingerprint(text: &str) -> Result<Fingerprint, FingerprintError> {
    text.parse()
}

/// What a fingerprint says about a key. `Display` and `FromStr` use the text form of `spec/addressing.md §4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fingerprint {
    /// `pa1…`: the first 128 bits of the agent id.
    Short([u8; 16]),
    /// `pb1…`: the whole agent id.
    Long([u8; 32]),
}

impl Fingerprint {
    /// The 128-bit fingerprint of a key.
    pub fn short(public_key: &[u8; 32]) -> Self {
        let [first, _] = halves(agent_id(public_key));
        Self::Short(first)
    }

    /// The 256-bit fingerprint of a key.
    pub fn long(public_key: &[u8; 32]) -> Self {
        Self::Long(agent_id(public_key))
    }

    /// Whether this is the fingerprint of that key.
    pub fn matches(&self, public_key: &[u8; 32]) -> bool {
        *self
            == match self {
                Self::Short(_) => Self::short(public_key),
                Self::Long(_) => Self::long(public_key),
            }
    }

    fn form(&self) -> &'static Form {
        match self {
            Self::Short(_) => &SHORT,
            Self::Long(_) => &LONG,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Long(bytes) => bytes,
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = self.form();
        let mut text = String::with_capacity(form.prefix.len() + form.body_len + CHECK_LEN);
        text.push_str(form.prefix);
        let mut check = Check::new(form);
        for digit in Digits::new(self.bytes()) {
            check.push(digit);
            text.push(character(digit));
        }
        let [high, low] = check.digits();
        text.push(character(high));
        text.push(character(low));
        f.pad(&text)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let prefix = text.as_bytes().get(..3).ok_or(FingerprintError::Prefix)?;
        let form = [&SHORT, &LONG]
            .into_iter()
            .find(|form| prefix.eq_ignore_ascii_case(form.prefix.as_bytes()))
            .ok_or(FingerprintError::Prefix)?;
        // Characters, not bytes, in what a person is told.
        let length = text.chars().count() - 3;
        let expected = form.body_len + CHECK_LEN;
        if length != expected {
            return Err(FingerprintError::Length { length, expected });
        }
        let mut digits = [0u8; LONG.body_len + CHECK_LEN];
        for ((position, character), digit) in text.chars().enumerate().skip(3).zip(&mut digits) {
            *digit = digit_of(character).ok_or(FingerprintError::Character { position, character })?;
        }
        form.decode(&digits[..expected])
    }
}

/// Why a text is not a fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FingerprintError {
    /// Starts with neither `pa1` nor `pb1`.
    Prefix,
    /// Too short or too long for its prefix.
    Length {
        /// Characters after the prefix.
        length: usize,
        /// Characters that the prefix asks for.
        expected: usize,
    },
    /// A character outside `a`–`z` and `2`–`7`.
    Character {
        /// Where, counted from 0 at the start of the text.
        position: usize,
        /// Which.
        character: char,
    },
    /// The two check characters do not fit the rest: something was mistyped.
    Check,
    /// The last character before the check carries bits that must be zero: not made by any encoder.
    Padding,
}

impl fmt::Display for FingerprintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix => f.write_str("fingerprint: must start with pa1 (128 bits) or pb1 (256 bits)"),
            Self::Length { length, expected } => {
                write!(f, "fingerprint: {length} characters after the prefix, must be {expected}; compare with the original")
            }
            Self::Character { position, character } => write!(
                f,
                "fingerprint: {character:?} at position {position} is not used in fingerprints (a to z and 2 to 7 are)"
            ),
            Self::Check => {
                f.write_str("fingerprint: check characters do not match, so at least one character is wrong; compare with the original")
            }
            Self::Padding => f.write_str("fingerprint: unused bits are set; this text was not made by a correct encoder"),
        }
    }
}

impl core::error::Error for FingerprintError {}

/// One of the two lengths of a fingerprint.
struct Form {
    prefix: &'static str,
    /// Base32 characters between prefix and check.
    body_len: usize,
    /// Start value of the check, so that the two forms never pass for each other.
    check_start: u32,
}

const SHORT: Form = Form { prefix: "pa1", body_len: 26, check_start: 1 };
const LONG: Form = Form { prefix: "pb1", body_len: 52, check_start: 2 };
const CHECK_LEN: usize = 2;

impl Form {
    /// `digits`: body and check, of this form's length.
    fn decode(&self, digits: &[u8]) -> Result<Fingerprint, FingerprintError> {
        let (body, written_check) = digits.split_at(self.body_len);
        let mut check = Check::new(self);
        body.iter().for_each(|&digit| check.push(digit));
        if written_check != check.digits() {
            return Err(FingerprintError::Check);
        }
        let mut bytes = [0u8; 32];
        let mut bits = 0u32;
        let mut pending = 0u32;
        let mut out = bytes.iter_mut();
        for &digit in body {
            pending = pending << 5 | u32::from(digit);
            bits += 5;
            if bits >= 8 {
                bits -= 8;
                if let Some(byte) = out.next() {
                    *byte = (pending >> bits) as u8;
                }
                pending &= (1 << bits) - 1;
            }
        }
        // One text per key: the bits that fill up the last character are zero (RFC 4648 section 3.5).
        if pending != 0 {
            return Err(FingerprintError::Padding);
        }
        let [first, _] = halves(bytes);
        Ok(if self.body_len == SHORT.body_len { Fingerprint::Short(first) } else { Fingerprint::Long(bytes) })
    }
}

/// The check of `spec/addressing.md §4.2`: the body read as a base-32 number, modulo 1021.
///
/// 1021 is the largest prime below 32², so the remainder fits two characters. A prime above 32 catches
/// every single wrong character and every swap of neighbours; 32 has order 68 modulo 1021, more than any
/// body is long, which catches every swap inside the body too.
struct Check(u32);

impl Check {
    fn new(form: &Form) -> Self {
        Self(form.check_start)
    }

    fn push(&mut self, digit: u8) {
        self.0 = (self.0 * 32 + u32::from(digit)) % 1021;
    }

    fn digits(&self) -> [u8; CHECK_LEN] {
        [(self.0 >> 5) as u8, (self.0 & 31) as u8]
    }
}

/// The base32 digits (0 to 31) of bytes, most significant first, the last filled up with zero bits.
struct Digits<'a> {
    bytes: &'a [u8],
    pending: u32,
    bits: u32,
}

impl<'a> Digits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pending: 0, bits: 0 }
    }
}

impl Iterator for Digits<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        if self.bits < 5 {
            match self.bytes.split_first() {
                Some((&byte, rest)) => {
                    self.bytes = rest;
                    self.pending = self.pending << 8 | u32::from(byte);
                    self.bits += 8;
                }
                None if self.bits == 0 => return None,
                None => {
                    self.pending <<= 5 - self.bits;
                    self.bits = 5;
                }
            }
        }
        self.bits -= 5;
        let digit = self.pending >> self.bits;
        self.pending &= (1 << self.bits) - 1;
        Some(digit as u8)
    }
}

/// RFC 4648 section 6, in lower case.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

fn character(digit: u8) -> char {
    char::from(ALPHABET[usize::from(digit & 31)])
}

fn digit_of(character: char) -> Option<u8> {
    match character.to_ascii_lowercase() {
        letter @ 'a'..='z' => Some(letter as u8 - b'a'),
        digit @ '2'..='7' => Some(digit as u8 - b'2' + 26),
        _ => None,
    }
}

fn halves(bytes: [u8; 32]) -> [[u8; 16]; 2] {
    let mut halves = [[0; 16]; 2];
    halves[0].copy_from_slice(&bytes[..16]);
    halves[1].copy_from_slice(&bytes[16..]);
    halves
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// Fixed keys with ids and fingerprints that an independent program computed (`spec/addressing.md §6`).
    const VECTORS: &str = include_str!("../../../spec/vectors/own-addressing.json");

    fn bytes<const N: usize>(value: &Value) -> [u8; N] {
        hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
    }

    #[test]
    fn own_vectors() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let cases = vectors["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 8);
        let mut salts = 0;
        for case in cases {
            let key = bytes(&case["public_key"]);
            assert_eq!(agent_id(&key), bytes(&case["agent_id"]));
            assert_eq!(fingerprint128(&key), case["fingerprint128"]);
            assert_eq!(fingerprint256(&key), case["fingerprint256"]);
            for entry in case["node_ids"].as_array().unwrap() {
                let salt = u16::try_from(entry["salt"].as_u64().unwrap()).unwrap();
                let node = NodeId(u32::from_be_bytes(bytes(&entry["node_id"])));
                assert_eq!(derive_node_id(&key, salt), Some(node), "salt {salt}");
                salts += 1;
            }
            for text in ["fingerprint128", "fingerprint256"] {
                assert!(parse_fingerprint(case[text].as_str().unwrap()).unwrap().matches(&key));
            }
        }
        assert_eq!(salts, 32);
    }

    #[test]
    fn own_vectors_must_reject() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let cases = vectors["must_reject"].as_array().unwrap();
        assert_eq!(cases.len(), 10);
        for case in cases {
            let error = parse_fingerprint(case["text"].as_str().unwrap()).unwrap_err();
            let kind = match error {
                FingerprintError::Prefix => "prefix",
                FingerprintError::Length { .. } => "length",
                FingerprintError::Character { .. } => "character",
                FingerprintError::Check => "check",
                FingerprintError::Padding => "padding",
            };
            assert_eq!(kind, case["error"].as_str().unwrap(), "{}", case["name"]);
            assert!(error.to_string().starts_with("fingerprint: "));
        }
    }

    #[test]
    fn the_reserved_ids_are_0_to_15_and_all_ones() {
        assert!((0..=15).all(|id| is_reserved(NodeId(id))));
        assert!(is_reserved(NodeId(u32::MAX)));
        assert!(!is_reserved(NodeId(16)) && !is_reserved(NodeId(u32::MAX - 1)));
    }

    /// A key whose salt falls on a reserved id is found by search: 17 ids of 2^32 are too rare for a
    /// test, so the skipping is shown on the iterator's definition instead.
    #[test]
    fn the_iterator_gives_every_salt_that_derives_an_id_in_order() {
        let key = [7; 32];
        let listed: Vec<_> = node_ids(&key).collect();
        assert!(listed.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(listed.iter().all(|&(salt, node)| derive_node_id(&key, salt) == Some(node)));
        let skipped = (0..=u16::MAX).filter(|&salt| derive_node_id(&key, salt).is_none()).count();
        assert_eq!(listed.len() + skipped, 65_536);
        assert_eq!(
            first_address(NetworkId(3), &key).unwrap(),
            Address { network: NetworkId(3), node: listed[0].1 }
        );
    }

    #[test]
    fn every_wrong_character_is_found() {
        for fingerprint in [Fingerprint::short(&[1; 32]), Fingerprint::long(&[1; 32])] {
            let text = fingerprint.to_string();
            for position in 0..text.len() {
                for replacement in (b'a'..=b'z').chain(b'0'..=b'9') {
                    let mut wrong = text.clone().into_bytes();
                    if wrong[position] == replacement {
                        continue;
                    }
                    wrong[position] = replacement;
                    let wrong = String::from_utf8(wrong).unwrap();
                    assert!(parse_fingerprint(&wrong).is_err(), "{wrong}");
                }
            }
        }
    }

    #[test]
    fn every_swap_of_neighbours_and_every_swap_in_the_body_is_found() {
        for key in 0..32 {
            for fingerprint in [Fingerprint::short(&[key; 32]), Fingerprint::long(&[key; 32])] {
                let text = fingerprint.to_string().into_bytes();
                let body_end = text.len() - CHECK_LEN;
                for i in 0..text.len() {
                    for j in i + 1..text.len() {
                        if text[i] == text[j] || (j != i + 1 && j >= body_end) {
                            continue;
                        }
                        let mut swapped = text.clone();
                        swapped.swap(i, j);
                        let swapped = String::from_utf8(swapped).unwrap();
                        assert!(parse_fingerprint(&swapped).is_err(), "{swapped}");
                    }
                }
            }
        }
    }

    #[test]
    fn text_in_upper_case_is_accepted_and_blanks_are_not() {
        let text = fingerprint128(&[9; 32]);
        assert!(parse_fingerprint(&text.to_uppercase()).unwrap().matches(&[9; 32]));
        assert!(parse_fingerprint(&format!(" {text}")).is_err());
        assert!(parse_fingerprint(&format!("{text} ")).is_err());
        assert!(!parse_fingerprint(&text).unwrap().matches(&[8; 32]));
    }

    proptest! {
        #[test]
        fn text_round_trips(key: [u8; 32]) {
            for fingerprint in [Fingerprint::short(&key), Fingerprint::long(&key)] {
                let text = fingerprint.to_string();
                prop_assert_eq!(parse_fingerprint(&text).unwrap(), fingerprint);
            }
            prop_assert_eq!(fingerprint128(&key).len(), 31);
            prop_assert_eq!(fingerprint256(&key).len(), 57);
        }

        #[test]
        fn no_text_panics_and_accepted_text_is_the_only_one(text in "\\PC{0,60}|p[ab]1[a-z2-7]{20,60}") {
            if let Ok(fingerprint) = parse_fingerprint(&text) {
                prop_assert_eq!(fingerprint.to_string(), text.to_lowercase());
            }
        }

        #[test]
        fn no_reserved_id_is_ever_derived(key: [u8; 32], salt: u16) {
            if let Some(node) = derive_node_id(&key, salt) {
                prop_assert!(!is_reserved(node));
            }
        }
    }
}
