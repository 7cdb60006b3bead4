//! Strings that are signed with the node's Ed25519 key.
//!
//! Two families. The reference's strings (ASCII, spec/registry.md §5.2) name the operation and the node but neither
//! the arguments nor anything fresh: whoever sees one can repeat it for ever. Ours (spec/registry.md §5.1) bind the
//! operation, the registry's nonce for this connection and every argument:
//!
//! ```text
//! "pilotage-registry-v1" 00 | operation 00 | nonce 32 | arguments
//! bytes and text: length u32 BE | bytes      node id: u32 BE      bool: 00 or 01
//! optional X: 00, or 01 | X                  list: count u32 BE | items
//! ```

use super::{Key, NONCE_LEN, Register};
use crate::NodeId;

/// First bytes of every proof: it can be mistaken for no other signature of the same key.
pub const PROOF_DOMAIN: &[u8] = b"pilotage-registry-v1\0";

/// Signed by `register` with `proof`: nonce, listen_addr, public key, hostname, public, lan_addrs.
#[must_use]
pub fn register_proof(nonce: &[u8; NONCE_LEN], request: &Register) -> Vec<u8> {
    let mut message = Message::new("register", nonce);
    message.bytes(request.listen_addr.as_bytes());
    message.bytes(&request.public_key.0);
    message.optional(request.hostname.as_deref(), |m, name| m.bytes(name.as_bytes()));
    message.optional(request.public, Message::flag);
    message.u32(u32::try_from(request.lan_addrs.len()).unwrap_or(u32::MAX));
    for addr in &request.lan_addrs {
        message.bytes(addr.as_bytes());
    }
    message.0
}

/// Signed by `set_hostname` with `proof`.
#[must_use]
pub fn set_hostname_proof(nonce: &[u8; NONCE_LEN], node: NodeId, hostname: &str) -> Vec<u8> {
    let mut message = Message::new("set_hostname", nonce);
    message.u32(node.0);
    message.bytes(hostname.as_bytes());
    message.0
}

/// Signed by `set_visibility` with `proof`.
#[must_use]
pub fn set_visibility_proof(nonce: &[u8; NONCE_LEN], node: NodeId, public: bool) -> Vec<u8> {
    let mut message = Message::new("set_visibility", nonce);
    message.u32(node.0);
    message.flag(public);
    message.0
}

/// Signed by `deregister` with `proof`.
#[must_use]
pub fn deregister_proof(nonce: &[u8; NONCE_LEN], node: NodeId) -> Vec<u8> {
    let mut message = Message::new("deregister", nonce);
    message.u32(node.0);
    message.0
}

/// `register:<listen_addr>:<public_key>`, key in base64 (later reference clients).
#[must_use]
pub fn register_string(listen_addr: &str, public_key: &Key) -> String {
    format!("register:{listen_addr}:{public_key}")
}

/// `heartbeat:<id>`.
#[must_use]
pub fn heartbeat_string(node: NodeId) -> String {
    format!("heartbeat:{}", node.0)
}

/// `heartbeat:<id>:<listen_addr>`, when the heartbeat carries an address.
#[must_use]
pub fn heartbeat_addr_string(node: NodeId, listen_addr: &str) -> String {
    format!("heartbeat:{}:{listen_addr}", node.0)
}

/// `resolve:<requester>:<target>`.
#[must_use]
pub fn resolve_string(requester: NodeId, target: NodeId) -> String {
    format!("resolve:{}:{}", requester.0, target.0)
}

/// `set_hostname:<id>`.
#[must_use]
pub fn set_hostname_string(node: NodeId) -> String {
    format!("set_hostname:{}", node.0)
}

/// `set_visibility:<id>`.
#[must_use]
pub fn set_visibility_string(node: NodeId) -> String {
    format!("set_visibility:{}", node.0)
}

/// `deregister:<id>`.
#[must_use]
pub fn deregister_string(node: NodeId) -> String {
    format!("deregister:{}", node.0)
}

/// Unambiguous concatenation.
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    pub(super) fn new(operation: &str, nonce: &[u8; NONCE_LEN]) -> Self {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(PROOF_DOMAIN);
        out.extend_from_slice(operation.as_bytes());
        out.push(0);
        out.extend_from_slice(nonce);
        Self(out)
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub(super) fn flag(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    /// Messages are ≤ 64 KiB, so lengths fit; a longer string could only make the signature useless.
    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(value);
    }

    pub(super) fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Base64;
    use super::*;
    use proptest::prelude::*;

    fn arbitrary() -> impl Strategy<Value = Register> {
        (
            ".{0,12}",
            any::<[u8; 32]>(),
            proptest::option::of(".{0,6}"),
            proptest::collection::vec(".{0,6}", 0..4),
            any::<Option<bool>>(),
        )
            .prop_map(|(listen_addr, key, hostname, lan_addrs, public)| Register {
                listen_addr,
                public_key: Base64(key),
                hostname,
                lan_addrs,
                public,
                signature: None,
                proof: None,
            })
    }

    proptest! {
        /// Two different registrations never share a signed message: moving bytes from one argument to the next,
        /// or leaving one out, changes it.
        #[test]
        fn register_proof_is_injective(a in arbitrary(), b in arbitrary(), n in any::<[u8; 32]>(), m in any::<[u8; 32]>()) {
            prop_assert_eq!(register_proof(&n, &a) == register_proof(&m, &b), a == b && n == m);
        }
    }

    #[test]
    fn moved_bytes_change_the_proof() {
        let base = Register {
            listen_addr: "1.2.3.4:5".into(),
            public_key: Base64([7; 32]),
            hostname: None,
            lan_addrs: vec!["ab".into(), "c".into()],
            public: None,
            signature: None,
            proof: None,
        };
        let mut other = base.clone();
        other.lan_addrs = vec!["a".into(), "bc".into()];
        assert_ne!(register_proof(&[0; 32], &base), register_proof(&[0; 32], &other));
        other = base.clone();
        other.hostname = Some(String::new());
        assert_ne!(register_proof(&[0; 32], &base), register_proof(&[0; 32], &other));
    }

    #[test]
    fn layout_is_the_specified_one() {
        let mut expected = b"pilotage-registry-v1\0set_hostname\0".to_vec();
        expected.extend_from_slice(&[9; 32]);
        expected.extend_from_slice(&[0, 0, 1, 2, 0, 0, 0, 3]);
        expected.extend_from_slice(b"bob");
        assert_eq!(set_hostname_proof(&[9; 32], NodeId(258), "bob"), expected);
        let tail = |m: Vec<u8>, n: usize| m[m.len() - n..].to_vec();
        assert_eq!(tail(set_visibility_proof(&[0; 32], NodeId(1), true), 5), [0, 0, 0, 1, 1]);
        assert_eq!(tail(deregister_proof(&[0; 32], NodeId(1)), 4), [0, 0, 0, 1]);
    }

    #[test]
    fn reference_strings() {
        assert_eq!(heartbeat_string(NodeId(1)), "heartbeat:1");
        assert_eq!(heartbeat_addr_string(NodeId(1), "a:2"), "heartbeat:1:a:2");
        assert_eq!(resolve_string(NodeId(1), NodeId(2)), "resolve:1:2");
        assert_eq!(set_hostname_string(NodeId(1)), "set_hostname:1");
        assert_eq!(set_visibility_string(NodeId(1)), "set_visibility:1");
        assert_eq!(deregister_string(NodeId(1)), "deregister:1");
        let key = "register:h:1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
        assert_eq!(register_string("h:1", &Base64([7; 32])), key);
    }
}
