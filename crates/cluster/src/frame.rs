//! Frames between the nodes of a cluster: an 8-byte header, then a body. `spec/cluster.md §4`.
//!
//! Pure: no IO, and nothing of openraft, so that a fuzzer can read this file alone.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Bytes of a header.
pub const HEADER: usize = 8;
/// Version of the frames, and of everything in them.
pub const VERSION: u8 = 1;

/// What a frame is; each kind has its own longest body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// First frame of a member's stream.
    Hello = 1,
    /// First and only frame of a stranger's stream.
    Join = 2,
    /// Raft: entries, or a heartbeat.
    Append = 3,
    /// Raft: a candidate asks.
    Vote = 4,
    /// Raft: a part of a snapshot.
    Snapshot = 5,
    /// A command for the leader.
    Propose = 6,
    /// Which index a read must have seen.
    ReadIndex = 7,
    /// A member asks the leader to admit a stranger that proved the token.
    Admit = 8,
    /// A member asks the leader to remove a member.
    Remove = 9,
    /// How the node is.
    Status = 10,
    /// A member asks for a signature under what follows from the state.
    Attest = 11,
    /// What a member has seen and no log orders.
    Notice = 12,
    /// The answer to the frame before.
    Reply = 0x80,
}

impl Kind {
    /// Longest body, bytes.
    #[must_use]
    pub const fn limit(self) -> usize {
        match self {
            Self::Hello | Self::ReadIndex | Self::Remove | Self::Status => 64,
            Self::Join | Self::Admit | Self::Vote | Self::Attest => 512,
            Self::Append | Self::Snapshot | Self::Reply => 2 << 20,
            Self::Propose => 520 << 10,
            Self::Notice => 304 << 10,
        }
    }

    const fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Join,
            3 => Self::Append,
            4 => Self::Vote,
            5 => Self::Snapshot,
            6 => Self::Propose,
            7 => Self::ReadIndex,
            8 => Self::Admit,
            9 => Self::Remove,
            10 => Self::Status,
            11 => Self::Attest,
            12 => Self::Notice,
            0x80 => Self::Reply,
            _ => return None,
        })
    }
}

/// Why bytes are not a frame. The stream is of no further use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Another version speaks.
    #[error("cluster frame of version {0}; run the same version on all nodes")]
    Version(u8),
    /// No such kind.
    #[error("unknown cluster frame {0}")]
    Kind(u8),
    /// Reserved bytes are in use.
    #[error("cluster frame with reserved bytes")]
    Reserved,
    /// Longer than its kind may be.
    #[error("cluster frame {kind:?} of {len} bytes is too long")]
    TooLong {
        /// What it is.
        kind: Kind,
        /// Bytes of its body.
        len: usize,
    },
    /// The body is not what the kind says.
    #[error("cluster frame {0:?} cannot be read")]
    Body(Kind),
}

/// What comes before a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// How many bytes follow.
    pub len: usize,
}

impl Header {
    /// Version (1), kind (1), zero (2), length (4, big-endian).
    #[must_use]
    pub fn encode(self) -> [u8; HEADER] {
        let [a, b, c, d] = (self.len as u32).to_be_bytes();
        [VERSION, self.kind as u8, 0, 0, a, b, c, d]
    }

    /// Reads a header; nothing is allocated for a body before this says yes.
    ///
    /// # Errors
    /// [`FrameError`], whatever is wrong first.
    pub fn parse(bytes: [u8; HEADER]) -> Result<Self, FrameError> {
        let [version, kind, reserved @ .., a, b, c, d] = bytes;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = Kind::parse(kind).ok_or(FrameError::Kind(kind))?;
        if reserved != [0, 0] {
            return Err(FrameError::Reserved);
        }
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if len > kind.limit() { Err(FrameError::TooLong { kind, len }) } else { Ok(Self { kind, len }) }
    }
}

/// Which node of which cluster a stream is for, and from whom it says it is (the key proves it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The caller's id.
    pub from: u64,
    /// Whom it wants: a node that lost its file has another id, and must not answer for the old one.
    pub to: u64,
}

/// Asks to become a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The id of the stranger's file.
    pub id: u64,
    /// The key of its stream; in [`Kind::Admit`], whom the sender vouches for.
    pub key: [u8; 32],
    /// Where its cluster port is.
    pub endpoint: SocketAddr,
    /// Its share of records.
    pub weight: u16,
    /// Proof that it knows the cluster's token ([`proof`]).
    pub proof: [u8; 32],
}

const PROOF_CONTEXT: &str = "pilotage 2026 cluster join v1";

/// Proof of the token for one pair of keys: worthless to anybody in between, since the tunnel proves both keys.
#[must_use]
pub fn proof(token: &[u8], prover: &[u8; 32], verifier: &[u8; 32]) -> [u8; 32] {
    let key = blake3::derive_key(PROOF_CONTEXT, token);
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(prover).update(verifier);
    *hasher.finalize().as_bytes()
}

/// Reads a body that is a serde type; all of it.
///
/// # Errors
/// [`FrameError::Body`].
pub fn body<'a, T: Deserialize<'a>>(kind: Kind, bytes: &'a [u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(FrameError::Body(kind)),
    }
}

/// One input of the fuzz target `cluster_frame`: what is understood is within its bounds and is written as it was read.
///
/// # Panics
/// If an invariant does not hold.
#[doc(hidden)]
pub fn fuzz_input(data: &[u8]) {
    let Some((header, rest)) = data.split_first_chunk::<HEADER>() else { return };
    let Ok(parsed) = Header::parse(*header) else { return };
    assert!(parsed.len <= parsed.kind.limit());
    assert_eq!(parsed.encode(), *header);
    if let Ok(hello) = body::<Hello>(Kind::Hello, rest) {
        let again = postcard::to_stdvec(&hello).expect("fits");
        assert!(again.len() <= Kind::Hello.limit());
        assert_eq!(body::<Hello>(Kind::Hello, &again), Ok(hello));
    }
    if let Ok(join) = body::<Join>(Kind::Join, rest) {
        let again = postcard::to_stdvec(&join).expect("fits");
        assert!(again.len() <= Kind::Join.limit());
        let twice = body::<Join>(Kind::Join, &again).expect("own bytes");
        // The scope of an IPv6 address is not carried.
        assert_eq!((twice.id, twice.key, twice.endpoint.port()), (join.id, join.key, join.endpoint.port()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_and_a_long_one_is_refused_before_memory_is_spent() {
        for kind in (0..=u8::MAX).filter_map(Kind::parse) {
            let longest = Header { kind, len: kind.limit() };
            assert_eq!(Header::parse(longest.encode()), Ok(longest));
            let len = kind.limit() + 1;
            assert_eq!(Header::parse(Header { kind, len }.encode()), Err(FrameError::TooLong { kind, len }));
        }
        assert_eq!(Header::parse([2, 1, 0, 0, 0, 0, 0, 0]), Err(FrameError::Version(2)));
        assert_eq!(Header::parse([1, 99, 0, 0, 0, 0, 0, 0]), Err(FrameError::Kind(99)));
        assert_eq!(Header::parse([1, 1, 0, 1, 0, 0, 0, 0]), Err(FrameError::Reserved));
    }

    #[test]
    fn a_proof_is_good_for_one_direction_between_two_keys_only() {
        let (a, b) = ([1; 32], [2; 32]);
        let good = proof(b"a token of some length", &a, &b);
        assert_eq!(good, proof(b"a token of some length", &a, &b));
        for other in [proof(b"another token", &a, &b), proof(b"a token of some length", &b, &a)] {
            assert_ne!(good, other);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_input_breaks_the_parser(data: Vec<u8>, kind: u8) {
            fuzz_input(&data);
            let mut framed = vec![VERSION, kind % 11, 0, 0, 0, 0, 0, 9];
            framed.extend(&data);
            fuzz_input(&framed);
        }

        #[test]
        fn what_is_written_is_read(cluster: [u8; 16], from: u64, to: u64, key: [u8; 32], proof: [u8; 32], weight: u16) {
            let hello = Hello { cluster, from, to };
            let bytes = postcard::to_stdvec(&hello).expect("fits");
            proptest::prop_assert!(bytes.len() <= Kind::Hello.limit());
            proptest::prop_assert_eq!(body::<Hello>(Kind::Hello, &bytes), Ok(hello));
            let endpoint = "[2001:db8::1]:65535".parse().expect("address");
            let join = Join { id: from, key, endpoint, weight, proof };
            let bytes = postcard::to_stdvec(&join).expect("fits");
            proptest::prop_assert_eq!(body::<Join>(Kind::Join, &bytes), Ok(join));
            proptest::prop_assert!(body::<Join>(Kind::Join, &bytes[1..]) != Ok(join));
        }
    }
}
