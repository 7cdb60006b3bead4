//! Registry protocol: framing, JSON messages, name rules and signed strings.
//!
//! ```text
//! ┌───────────────┬──────────────────────────────┐
//! │ length u32 BE │ one JSON object, ≤ 65,536 B  │   (spec/registry.md §2)
//! └───────────────┴──────────────────────────────┘
//! ```
//!
//! One request, one reply, in order, over a TCP connection that stays open. The draft gives no wire format; the
//! messages are those that the reference's nodes and registry exchange, plus `challenge` and the fields `proof` and
//! `public` of `register`, which the reference ignores (spec/registry.md §4). Unknown fields are ignored on both sides.
//!
//! Nothing here checks a signature or reads a clock; no input makes it panic.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use core::fmt;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod json;
mod messages;
mod names;
mod networks;
mod proofs;
mod reply;
mod request;
mod signing;
mod time;
mod trust;

pub use messages::*;
pub use networks::*;
pub use proofs::Credentials;
pub use reply::{REPLY_TYPES, Reply};
pub use request::{REQUEST_TYPES, Request};
pub use time::{parse_rfc3339, rfc3339};
pub use trust::*;

pub use names::{
    HostnameError, MAX_HOSTNAME, MAX_TAG, MAX_TAGS, RESERVED_HOSTNAMES, TagError, check_hostname,
    normalize_tags,
};
pub use signing::{
    PROOF_DOMAIN, deregister_proof, deregister_string, heartbeat_addr_string, heartbeat_string,
    register_proof, register_string, resolve_string, set_hostname_proof, set_hostname_string,
    set_visibility_proof, set_visibility_string,
};

/// Largest JSON object of one message, in bytes, in either direction (spec/registry.md §2.2; the reference's limit).
pub const MAX_MESSAGE: usize = 65_536;
/// Bytes of the length prefix.
pub const LENGTH_PREFIX: usize = 4;
/// Deepest nesting of objects and arrays in a message (spec/registry.md §2.3; ours, real messages need 3).
pub const MAX_NESTING: usize = 16;
/// `protocol_version` that a registry reports.
pub const PROTOCOL_VERSION: u32 = 1;
/// `code` of an error reply to `challenge`: try again later.
pub const CODE_RETRY: &str = "retry";
/// Bytes of a challenge nonce.
pub const NONCE_LEN: usize = 32;

/// Finds the first complete message in `buf`.
///
/// `Ok(Some(json))`: the message occupies the first `LENGTH_PREFIX + json.len()` bytes. `Ok(None)`: more bytes are
/// needed. The content is not looked at.
///
/// # Errors
/// [`FrameError::TooLong`] when the prefix announces more than [`MAX_MESSAGE`] bytes; the connection is then useless.
pub fn next_frame(buf: &[u8]) -> Result<Option<&[u8]>, FrameError> {
    let Some((prefix, rest)) = buf.split_first_chunk::<LENGTH_PREFIX>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*prefix) as usize;
    if len > MAX_MESSAGE {
        return Err(FrameError::TooLong { len });
    }
    Ok(rest.get(..len))
}

/// Why a message cannot be framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The message is longer than [`MAX_MESSAGE`].
    TooLong {
        /// Announced or actual length of the JSON text, bytes.
        len: usize,
    },
    /// Not representable as JSON (cannot happen for the types of this module).
    Encode,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { len } => write!(
                f,
                "message of {len} bytes is longer than the registry protocol allows ({MAX_MESSAGE})"
            ),
            Self::Encode => f.write_str("message cannot be written as JSON"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Why a message was not understood. The texts are sent to the peer: they say what is wrong with *its* message and
/// repeat at most 64 bytes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageError {
    /// Not one JSON object in UTF-8.
    NotJson {
        /// What the JSON parser met.
        detail: String,
    },
    /// Nested deeper than [`MAX_NESTING`].
    TooDeep,
    /// No `type` field, or it is not a string.
    MissingType,
    /// A type that this implementation does not serve.
    UnknownType(String),
    /// A known type with a missing, repeated or ill-typed field.
    BadField {
        /// Type of the message.
        kind: String,
        /// What is wrong.
        detail: String,
    },
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson { detail } => write!(f, "message is not a JSON object: {detail}"),
            Self::TooDeep => write!(f, "message is nested deeper than {MAX_NESTING} levels"),
            Self::MissingType => f.write_str("message has no \"type\""),
            Self::UnknownType(kind) => write!(f, "unknown message type: {kind}"),
            Self::BadField { kind, detail } => write!(f, "bad {kind} message: {detail}"),
        }
    }
}

impl std::error::Error for MessageError {}

/// Fixed-size bytes that travel as standard base64 with padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Base64<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Display for Base64<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl<const N: usize> Serialize for Base64<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Base64<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        // An absurdly long string is refused before it is decoded.
        if text.len() > N.div_ceil(3) * 4 {
            return Err(D::Error::custom(format_args!("expected {N} bytes in base64")));
        }
        STANDARD
            .decode(text.as_bytes())
            .ok()
            .and_then(|bytes| <[u8; N]>::try_from(bytes).ok())
            .map(Self)
            .ok_or_else(|| D::Error::custom(format_args!("expected {N} bytes in base64")))
    }
}

/// A 32-byte Ed25519 public key or challenge nonce.
pub type Key = Base64<32>;
/// A 64-byte Ed25519 signature.
pub type Signature = Base64<64>;

/// Input function of the fuzz target `registry`: framing, requests, replies and names; asserts that whatever was
/// understood survives being written and read again.
#[doc(hidden)]
pub fn fuzz_input(data: &[u8]) {
    let json = match next_frame(data) {
        Ok(Some(json)) => json,
        Ok(None) => data,
        Err(FrameError::TooLong { len }) => return assert!(len > MAX_MESSAGE),
        Err(FrameError::Encode) => unreachable!("reading does not encode"),
    };
    let mut out = Vec::new();
    if let Ok(request) = Request::parse(json)
        && request.encode(&mut out).is_ok()
    {
        let frame = next_frame(&out).expect("own frame").expect("complete");
        assert_eq!(Request::parse(frame).as_ref(), Ok(&request));
    }
    out.clear();
    if let Ok(reply) = Reply::parse(json)
        && reply.encode(&mut out).is_ok()
    {
        let frame = next_frame(&out).expect("own frame").expect("complete");
        assert_eq!(Reply::parse(frame).as_ref(), Ok(&reply));
    }
    if let Ok(text) = core::str::from_utf8(json) {
        assert!(check_hostname(text).is_err() || text.len() <= MAX_HOSTNAME);
        if let Ok(tags) = normalize_tags(&[text]) {
            assert_eq!(normalize_tags(&tags), Ok(tags));
        }
    }
}

#[cfg(test)]
mod tests;
