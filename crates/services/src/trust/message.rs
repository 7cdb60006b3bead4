//! The messages of port 444 (spec/services.md §5.2): one JSON object per stream, unframed.
//!
//! fuzz/ includes this file as it is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Longest message that is sent, in bytes: a peer of the reference parses the first segment only, and every known peer
/// carries this much in one.
pub const MAX_SENT: usize = 1_024;

/// Longest message that is read, in bytes.
pub const MAX_READ: usize = 8 * 1_024;

/// Longest justification or reason that is taken from others, in bytes; the rest is cut off.
pub const MAX_TEXT: usize = 512;

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The sender asks to be trusted.
    #[serde(rename = "handshake_request")]
    Request,
    /// The sender trusts the receiver, who asked.
    #[serde(rename = "handshake_accept")]
    Accept,
    /// The sender does not.
    #[serde(rename = "handshake_reject")]
    Reject,
    /// The sender does not any more.
    #[serde(rename = "handshake_revoke")]
    Revoke,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What is said.
    pub kind: Kind,
    /// Who says it.
    pub node: u32,
    /// The sender's Ed25519 key.
    pub public_key: [u8; 32],
    /// Why the sender wants to be trusted.
    pub justification: String,
    /// Ed25519 signature over [`signed_string`].
    pub signature: [u8; 64],
    /// Why not, or not any more.
    pub reason: String,
    /// Seconds since 1970.
    pub timestamp: i64,
}

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Too long to be one.
    #[error("longer than {MAX_READ} bytes")]
    TooLong,
    /// Not the JSON object that it should be, or not all of it.
    #[error("{0}")]
    Json(String),
    /// A binary field is not base64 of the right length. Messages without key or signature are not accepted
    /// (spec/deviations.md N-4).
    #[error("field {0}: not base64 of {1} bytes")]
    Field(&'static str, usize),
}

/// The fields in the order in which deployed peers write them.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "type")]
    kind: Kind,
    node_id: u32,
    #[serde(default)]
    public_key: String,
    #[serde(default)]
    justification: String,
    #[serde(default)]
    signature: String,
    #[serde(default)]
    reason: String,
    timestamp: i64,
}

/// What the sender signs, for all four kinds.
#[must_use]
pub fn signed_string(sender: u32, receiver: u32) -> String {
    format!("handshake:{sender}:{receiver}")
}

impl Message {
    /// Reads a whole message.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > MAX_READ {
            return Err(MessageError::TooLong);
        }
        let wire: Wire =
            serde_json::from_slice(bytes).map_err(|error| MessageError::Json(error.to_string()))?;
        Ok(Self {
            kind: wire.kind,
            node: wire.node_id,
            public_key: binary("public_key", &wire.public_key)?,
            justification: cut(wire.justification),
            signature: binary("signature", &wire.signature)?,
            reason: cut(wire.reason),
            timestamp: wire.timestamp,
        })
    }

    /// The JSON text.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let wire = Wire {
            kind: self.kind,
            node_id: self.node,
            public_key: STANDARD.encode(self.public_key),
            justification: self.justification.clone(),
            signature: STANDARD.encode(self.signature),
            reason: self.reason.clone(),
            timestamp: self.timestamp,
        };
        // Strings and numbers always have a JSON text.
        serde_json::to_vec(&wire).unwrap_or_default()
    }
}

/// Whether what was read so far may be the beginning of a message, and no whole one.
#[must_use]
pub fn is_incomplete(bytes: &[u8]) -> bool {
    let parsed: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(bytes);
    parsed.is_err_and(|error| error.is_eof())
}

/// At most [`MAX_TEXT`] bytes, whole characters, no control characters.
pub(super) fn cut(text: String) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_TEXT));
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > MAX_TEXT {
            break;
        }
        out.push(c);
    }
    out
}

fn binary<const N: usize>(name: &'static str, text: &str) -> Result<[u8; N], MessageError> {
    let wrong = MessageError::Field(name, N);
    let bytes = STANDARD.decode(text).map_err(|_| wrong.clone())?;
    bytes.try_into().map_err(|_| wrong)
}
