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

use crate::NodeId;
use json::{as_optional_u32, as_u32, empty_key_is_none, encode, null_is_empty, parse};

mod json;
mod names;
mod signing;

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

/// A request to the registry (spec/registry.md §3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Asks for a nonce to sign (ours).
    Challenge,
    /// Claims or renews an address.
    Register(Register),
    /// "Still here".
    Heartbeat(Heartbeat),
    /// Who is node N?
    Lookup(Lookup),
    /// Where is node N?
    Resolve(Resolve),
    /// Which node has this name?
    ResolveHostname(ResolveHostname),
    /// Claims, changes or (empty) gives up a name.
    SetHostname(SetHostname),
    /// Public or private.
    SetVisibility(SetVisibility),
    /// Leaves; the address stays reserved for the key.
    Deregister(Deregister),
    /// A beacon announces itself.
    BeaconRegister(BeaconRegister),
    /// Known beacons.
    BeaconList,
}

/// All `type` values that [`Request::parse`] knows.
pub const REQUEST_TYPES: [&str; 11] = [
    "challenge",
    "register",
    "heartbeat",
    "lookup",
    "resolve",
    "resolve_hostname",
    "set_hostname",
    "set_visibility",
    "deregister",
    "beacon_register",
    "beacon_list",
];

impl Request {
    /// Reads the JSON text of one message.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn parse(json: &[u8]) -> Result<Self, MessageError> {
        parse(json, &REQUEST_TYPES)
    }

    /// Appends the framed message to `out`.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        encode(self, out)
    }

    /// The `type` value.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Challenge => "challenge",
            Self::Register(_) => "register",
            Self::Heartbeat(_) => "heartbeat",
            Self::Lookup(_) => "lookup",
            Self::Resolve(_) => "resolve",
            Self::ResolveHostname(_) => "resolve_hostname",
            Self::SetHostname(_) => "set_hostname",
            Self::SetVisibility(_) => "set_visibility",
            Self::Deregister(_) => "deregister",
            Self::BeaconRegister(_) => "beacon_register",
            Self::BeaconList => "beacon_list",
        }
    }

    /// What a `proof` of this request signs (spec/registry.md §5.1); `None` for the types that take none.
    #[must_use]
    pub fn proof_message(&self, nonce: &[u8; NONCE_LEN]) -> Option<Vec<u8>> {
        Some(match self {
            Self::Register(r) => register_proof(nonce, r),
            Self::SetHostname(r) => set_hostname_proof(nonce, r.node_id, &r.hostname),
            Self::SetVisibility(r) => set_visibility_proof(nonce, r.node_id, r.public),
            Self::Deregister(r) => deregister_proof(nonce, r.node_id),
            _ => return None,
        })
    }
}

/// `register`. `owner`, `identity_token` and other fields of the reference are ignored: an owner string never gives
/// a claim to a node (spec/registry.md §5.4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// "host:port" of the node's UDP socket; the registry keeps only the port.
    pub listen_addr: String,
    /// Ed25519 public key.
    pub public_key: Key,
    /// Name to claim. Empty is the same as absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Addresses for peers on the same LAN.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub lan_addrs: Vec<String>,
    /// Visibility wanted (ours; the reference uses `set_visibility`). Absent: unchanged, private for a new node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
    /// Signature over [`register_string`], as later reference clients send it. Not fresh: see spec/registry.md §5.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Signature over [`register_proof`] with the nonce of this connection (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `heartbeat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who is alive.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// New "host:port", sent by later reference clients; the signed string then contains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_addr: Option<String>,
    /// Over [`heartbeat_string`] or [`heartbeat_addr_string`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// `lookup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// Whom to describe.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
}

/// `resolve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolve {
    /// Whom to locate.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Who asks.
    #[serde(with = "as_u32")]
    pub requester_id: NodeId,
    /// Over [`resolve_string`], by the requester.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// `resolve_hostname`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveHostname {
    /// Name to find.
    pub hostname: String,
    /// Who asks (unsigned in the reference's protocol, so it proves nothing).
    #[serde(default, with = "as_optional_u32", skip_serializing_if = "Option::is_none")]
    pub requester_id: Option<NodeId>,
}

/// `set_hostname`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetHostname {
    /// Whose name.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// New name; empty gives the name up.
    pub hostname: String,
    /// Over [`set_hostname_string`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`set_hostname_proof`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `set_visibility`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetVisibility {
    /// Whose visibility.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// True: any registered node may resolve it.
    pub public: bool,
    /// Over [`set_visibility_string`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`set_visibility_proof`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `deregister`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deregister {
    /// Who leaves.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Over [`deregister_string`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Over [`deregister_proof`] (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Signature>,
}

/// `beacon_register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeaconRegister {
    /// Number chosen by the operator.
    pub beacon_id: u32,
    /// "host:port" of its UDP socket.
    pub addr: String,
}

/// A reply of the registry (spec/registry.md §3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Reply {
    /// To `challenge` (ours).
    #[serde(rename = "challenge_ok")]
    Challenge {
        /// To be signed on this connection, once, within a minute.
        nonce: Key,
    },
    /// To `register`.
    #[serde(rename = "register_ok")]
    Registered(Registered),
    /// To `heartbeat`.
    #[serde(rename = "heartbeat_ok")]
    Heartbeat {
        /// Registry's clock, Unix seconds.
        time: u64,
    },
    /// To `lookup`.
    #[serde(rename = "lookup_ok")]
    Lookup(NodeInfo),
    /// To `resolve`.
    #[serde(rename = "resolve_ok")]
    Resolved(Resolved),
    /// To `resolve_hostname`.
    #[serde(rename = "resolve_hostname_ok")]
    Hostname(HostnameInfo),
    /// To `set_hostname`.
    #[serde(rename = "set_hostname_ok")]
    SetHostname {
        /// Whose name.
        #[serde(with = "as_u32")]
        node_id: NodeId,
        /// The name as stored.
        #[serde(default)]
        hostname: String,
    },
    /// To `set_visibility`.
    #[serde(rename = "set_visibility_ok")]
    SetVisibility {
        /// Whose visibility.
        #[serde(with = "as_u32")]
        node_id: NodeId,
        /// "public" or "private".
        visibility: String,
    },
    /// To `deregister`.
    #[serde(rename = "deregister_ok")]
    Deregistered,
    /// To `beacon_register`.
    #[serde(rename = "beacon_register_ok")]
    BeaconRegistered {
        /// As asked.
        beacon_id: u32,
    },
    /// To `beacon_list`.
    #[serde(rename = "beacon_list_ok")]
    BeaconList {
        /// Known beacons.
        #[serde(default, deserialize_with = "null_is_empty")]
        beacons: Vec<Beacon>,
    },
    /// To any request that was refused.
    #[serde(rename = "error")]
    Error {
        /// Reason and, if there is one, the next step.
        error: String,
        /// Machine-readable reason. Ours, and only in replies to `challenge`: it tells a registry that knows challenges
        /// but cannot give one now from a registry that does not know them (spec/registry.md §4.4).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
    },
}

/// All `type` values that [`Reply::parse`] knows.
pub const REPLY_TYPES: [&str; 12] = [
    "challenge_ok",
    "register_ok",
    "heartbeat_ok",
    "lookup_ok",
    "resolve_ok",
    "resolve_hostname_ok",
    "set_hostname_ok",
    "set_visibility_ok",
    "deregister_ok",
    "beacon_register_ok",
    "beacon_list_ok",
    "error",
];

impl Reply {
    /// Reads the JSON text of one message.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn parse(json: &[u8]) -> Result<Self, MessageError> {
        parse(json, &REPLY_TYPES)
    }

    /// Appends the framed message to `out`.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        encode(self, out)
    }

    /// An error reply.
    pub fn error(text: impl fmt::Display) -> Self {
        Self::Error { error: text.to_string(), code: None }
    }
}

/// `register_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The node's id.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// The same as address text in network 0.
    pub address: String,
    /// Always 0.
    #[serde(default)]
    pub network_id: u16,
    /// The key as registered.
    pub public_key: Key,
    /// Where peers will be told to find the node.
    #[serde(default)]
    pub observed_addr: String,
    /// [`PROTOCOL_VERSION`].
    #[serde(default)]
    pub protocol_version: u32,
    /// The node's name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Why the wanted name was not given; the registration itself succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname_error: Option<String>,
}

/// `lookup_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Whom this describes.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Address text in network 0.
    pub address: String,
    /// Networks it belongs to.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub networks: Vec<u16>,
    /// Ed25519 public key; a foreign registry may not know it.
    #[serde(default, deserialize_with = "empty_key_is_none", skip_serializing_if = "Option::is_none")]
    pub public_key: Option<Key>,
    /// Visibility.
    #[serde(default)]
    pub public: bool,
    /// Score of the reference; always 0 here.
    #[serde(default)]
    pub polo_score: i64,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Where it is; only for public nodes that are on line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_addr: Option<String>,
}

/// `resolve_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Whom this locates.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// "ip:port".
    pub real_addr: String,
    /// For peers on the same LAN.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub lan_addrs: Vec<String>,
    /// Days since the key was first registered.
    #[serde(default)]
    pub key_age_days: u64,
}

/// `resolve_hostname_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostnameInfo {
    /// Who has the name.
    #[serde(with = "as_u32")]
    pub node_id: NodeId,
    /// Address text in network 0.
    pub address: String,
    /// Visibility.
    #[serde(default)]
    pub public: bool,
    /// The name.
    pub hostname: String,
}

/// One entry of `beacon_list_ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    /// Number.
    pub id: u32,
    /// "host:port".
    pub addr: String,
}

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
