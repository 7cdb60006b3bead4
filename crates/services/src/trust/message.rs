//! The messages of port 444 (spec/trust.md §2): one JSON object per stream, unframed.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use pilotage::{Identity, verify};

    fn cases() -> Vec<serde_json::Value> {
        let text = include_str!("../../../../spec/vectors/port444.json");
        let file: serde_json::Value = serde_json::from_str(text).expect("vectors");
        file["cases"].as_array().expect("cases").clone()
    }

    #[test]
    fn the_vectors_are_read_written_and_verified() {
        let kinds = [Kind::Request, Kind::Accept, Kind::Reject, Kind::Revoke];
        let cases = cases();
        assert_eq!(cases.len(), kinds.len());
        for (case, kind) in cases.iter().zip(kinds) {
            let json = case["json"].as_str().expect("text");
            let message = Message::parse(json.as_bytes()).expect("a message");
            assert_eq!(message.kind, kind);
            assert_eq!(String::from_utf8(message.encode()).expect("text"), json);
            let to = u32::try_from(case["to"].as_u64().expect("number")).expect("id");
            let signed = signed_string(message.node, to);
            assert_eq!(Some(signed.as_str()), case["signed_string"].as_str());
            assert!(verify(&message.public_key, signed.as_bytes(), &message.signature));
            let seed: Vec<u8> = (0..32)
                .map(|i| {
                    let text = case["ed25519_seed"].as_str().expect("hex");
                    u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex")
                })
                .collect();
            let identity = Identity::from_seed(seed.try_into().expect("32 bytes"));
            assert_eq!(identity.sign(signed.as_bytes()), message.signature);
        }
    }

    #[test]
    fn what_is_no_message_says_why() {
        let good = cases()[0]["json"].as_str().expect("text").to_owned();
        for (bad, expected) in [
            (String::new(), "EOF"),
            (good[..good.len() - 1].to_owned(), "EOF"),
            (good.clone() + "x", "trailing"),
            (good.replace("handshake_request", "handshake_hello"), "unknown variant"),
            (good.replace("\"node_id\":10", "\"node_id\":4294967296"), "invalid value"),
            (good.replace("\"node_id\":10", "\"node_id\":10,\"node_id\":11"), "duplicate"),
            (good.replace("ebVWLo", "%%"), "public_key"),
            (good.replace("\"signature\":\"", "\"signature\":\"AAAA"), "signature"),
            (good.replace("please", &"x".repeat(MAX_READ)), "longer"),
        ] {
            let error = Message::parse(bad.as_bytes()).expect_err(&bad).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let unsigned = r#"{"type":"handshake_accept","node_id":1,"public_key":"","timestamp":1}"#;
        assert_eq!(Message::parse(unsigned.as_bytes()), Err(MessageError::Field("public_key", 32)));
        let long = Message::parse(good.replace("please", &"é\u{1b}".repeat(400)).as_bytes());
        assert!(long.is_err(), "JSON allows no raw control characters");
        let long = good.replace("please", &"é\\u001b".repeat(400));
        let text = Message::parse(long.as_bytes()).expect("cut").justification;
        assert!(text.len() <= MAX_TEXT && text.starts_with("é é ") && !text.chars().any(char::is_control));
    }

    #[test]
    fn a_message_is_known_to_be_whole() {
        let good = cases()[0]["json"].as_str().expect("text").as_bytes().to_vec();
        assert!((0..good.len()).all(|len| is_incomplete(&good[..len])));
        assert!(!is_incomplete(&good) && !is_incomplete(b"nonsense") && !is_incomplete(b"{}}"));
    }
}
