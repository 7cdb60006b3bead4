//! Bytes of the secure channel (spec/services.md §9.2). All integers big-endian. No cryptography here.
//!
//! ```text
//! key      X25519 32
//! frame    length u32 (of the rest, 28 to 16 MiB) | nonce 12 | ciphertext | tag 16
//! nonce    00000001 (server) or 00000002 (client) | counter u64, from 1
//! auth     node u32 | time u64 | random 16 | Ed25519 64
//! signed   "pilot-secure-auth:" | node u32 | own X25519 32 | time u64 | random 16
//! ```

/// Bytes of a frame's length field.
pub const LENGTH: usize = 4;

/// Bytes of a nonce.
pub const NONCE: usize = 12;

/// Bytes of a tag.
pub const TAG: usize = 16;

/// Longest frame behind its length field.
pub const MAX_FRAME: usize = 16 * 1024 * 1024;

/// Bytes of an auth message.
pub const AUTH: usize = 92;

const SIGNED_PREFIX: &[u8] = b"pilot-secure-auth:";

/// Which end of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Who accepted the stream.
    Server,
    /// Who opened it.
    Client,
}

impl Role {
    /// The other end.
    #[must_use]
    pub fn peer(self) -> Self {
        match self {
            Self::Server => Self::Client,
            Self::Client => Self::Server,
        }
    }

    /// First bytes of the nonces of this end; also the additional data of its frames.
    #[must_use]
    pub fn prefix(self) -> [u8; 4] {
        match self {
            Self::Server => [0, 0, 0, 1],
            Self::Client => [0, 0, 0, 2],
        }
    }

    /// The nonce of a frame.
    #[must_use]
    pub fn nonce(self, counter: u64) -> [u8; NONCE] {
        let mut nonce = [0; NONCE];
        nonce[..4].copy_from_slice(&self.prefix());
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        nonce
    }
}

/// Checks a length field; returns the bytes of ciphertext and tag behind the nonce.
#[must_use]
pub fn sealed_length(field: [u8; LENGTH]) -> Option<usize> {
    let length = u32::from_be_bytes(field) as usize;
    if length > MAX_FRAME {
        return None;
    }
    length.checked_sub(NONCE).filter(|sealed| *sealed >= TAG)
}

/// The head of a frame with so many bytes of plaintext: length field and nonce.
#[must_use]
pub fn head(plain: usize, nonce: [u8; NONCE]) -> Option<[u8; LENGTH + NONCE]> {
    let length = plain.checked_add(NONCE + TAG).filter(|length| *length <= MAX_FRAME)?;
    let mut head = [0; LENGTH + NONCE];
    head[..LENGTH].copy_from_slice(&u32::try_from(length).ok()?.to_be_bytes());
    head[LENGTH..].copy_from_slice(&nonce);
    Some(head)
}

/// What one end says about itself inside the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Auth {
    /// Its node id.
    pub node: u32,
    /// Its clock, in seconds since 1970.
    pub time: u64,
    /// Drawn for this channel.
    pub random: [u8; 16],
    /// Ed25519 over [`Auth::signed`].
    pub signature: [u8; 64],
}

impl Auth {
    /// Reads one.
    #[must_use]
    pub fn decode(bytes: &[u8; AUTH]) -> Self {
        let mut auth = Self {
            node: u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            time: 0,
            random: [0; 16],
            signature: [0; 64],
        };
        let mut time = [0; 8];
        time.copy_from_slice(&bytes[4..12]);
        auth.time = u64::from_be_bytes(time);
        auth.random.copy_from_slice(&bytes[12..28]);
        auth.signature.copy_from_slice(&bytes[28..]);
        auth
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; AUTH] {
        let mut bytes = [0; AUTH];
        bytes[..4].copy_from_slice(&self.node.to_be_bytes());
        bytes[4..12].copy_from_slice(&self.time.to_be_bytes());
        bytes[12..28].copy_from_slice(&self.random);
        bytes[28..].copy_from_slice(&self.signature);
        bytes
    }

    /// The message that is signed by an end with this X25519 key.
    #[must_use]
    pub fn signed(&self, own_key: &[u8; 32]) -> Vec<u8> {
        let mut message = SIGNED_PREFIX.to_vec();
        message.extend_from_slice(&self.node.to_be_bytes());
        message.extend_from_slice(own_key);
        message.extend_from_slice(&self.time.to_be_bytes());
        message.extend_from_slice(&self.random);
        message
    }
}
