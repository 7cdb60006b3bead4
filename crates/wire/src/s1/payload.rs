//! What handshake frames carry sealed, and certificates of prekeys. `spec/secure.md §5`.

use super::cursor::Reader;
use super::{Malformed, TOKEN_LEN};
use crate::{Address, NodeId};

/// Bytes of `payload_1` without early data.
pub const PAYLOAD_1_LEN: usize = 156;
/// Bytes of `payload_2`.
pub const PAYLOAD_2_LEN: usize = 80;
/// Bytes of a prekey's certificate.
pub const CERTIFICATE_LEN: usize = 84;
/// Bytes that the signature of a certificate covers.
pub const CERTIFICATE_SIGNED_LEN: usize = CERTIFICATE_CONTEXT.len() + 32 + 32 + 4 + 8 + 8;
/// Bytes of transport parameters.
pub const TRANSPORT_LEN: usize = 16;
/// Most suites in a list.
pub const SUITES_MAX: usize = 3;

const CERTIFICATE_CONTEXT: &[u8; 19] = b"pilotage-prekey-v1\0";

/// What an identity states about one of its prekeys. The signature is verified elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrekeyCertificate {
    /// Last second (Unix time) in which the prekey may be used.
    pub not_after: u32,
    /// Number of the record that it belongs to; grows.
    pub seq: u64,
    /// Capabilities of the node.
    pub caps: u64,
    /// Ed25519 over [`Self::signed`].
    pub signature: [u8; 64],
}

impl PrekeyCertificate {
    /// The bytes that the signature covers.
    pub fn signed(&self, identity: &[u8; 32], prekey: &[u8; 32]) -> [u8; CERTIFICATE_SIGNED_LEN] {
        let mut out = [0; CERTIFICATE_SIGNED_LEN];
        out[..19].copy_from_slice(CERTIFICATE_CONTEXT);
        out[19..51].copy_from_slice(identity);
        out[51..83].copy_from_slice(prekey);
        out[83..].copy_from_slice(&self.to_bytes()[..20]);
        out
    }

    /// As it lies on the wire.
    pub fn to_bytes(&self) -> [u8; CERTIFICATE_LEN] {
        let mut out = [0; CERTIFICATE_LEN];
        out[..4].copy_from_slice(&self.not_after.to_be_bytes());
        out[4..12].copy_from_slice(&self.seq.to_be_bytes());
        out[12..20].copy_from_slice(&self.caps.to_be_bytes());
        out[20..].copy_from_slice(&self.signature);
        out
    }

    /// Every 84 bytes are a certificate; whether it is a good one the signature tells.
    pub fn from_bytes(bytes: &[u8; CERTIFICATE_LEN]) -> Self {
        let (mut not_after, mut seq, mut caps, mut signature) = ([0; 4], [0; 8], [0; 8], [0; 64]);
        not_after.copy_from_slice(&bytes[..4]);
        seq.copy_from_slice(&bytes[4..12]);
        caps.copy_from_slice(&bytes[12..20]);
        signature.copy_from_slice(&bytes[20..]);
        Self {
            not_after: u32::from_be_bytes(not_after),
            seq: u64::from_be_bytes(seq),
            caps: u64::from_be_bytes(caps),
            signature,
        }
    }
}

/// Packet suites in order of preference: 1 AES-256-GCM, 2 ChaCha20-Poly1305; others are skipped by whoever chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SuiteList {
    count: u8,
    ids: [u8; SUITES_MAX],
}

impl SuiteList {
    /// A list of one to three ids, none zero, none twice.
    pub fn new(ids: &[u8]) -> Option<Self> {
        let mut list = Self { count: ids.len() as u8, ids: [0; SUITES_MAX] };
        list.ids.get_mut(..ids.len())?.copy_from_slice(ids);
        list.is_valid().then_some(list)
    }

    /// The ids, best first.
    pub fn ids(&self) -> &[u8] {
        &self.ids[..usize::from(self.count).min(SUITES_MAX)]
    }

    fn is_valid(&self) -> bool {
        let used = usize::from(self.count);
        if used == 0 || used > SUITES_MAX {
            return false;
        }
        let (used, unused) = self.ids.split_at(used);
        let distinct = (1..used.len()).all(|at| !used[..at].contains(&used[at]));
        distinct && !used.contains(&0) && unused.iter().all(|id| *id == 0)
    }
}

/// What a side is ready to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransportParameters {
    /// Largest UDP payload, bytes; at least 1,200.
    pub max_datagram: u16,
    /// Silence after which it forgets the session, seconds; 0: never.
    pub idle: u16,
    /// Longest it delays an acknowledgement, in units of 100 µs.
    pub ack_delay: u16,
    /// Streams that the other side may open at first.
    pub streams: u16,
    /// Bytes of all streams together that it takes at first, in KiB.
    pub tunnel_window: u32,
    /// Bytes of one stream that it takes at first, in KiB.
    pub stream_window: u32,
}

impl TransportParameters {
    fn to_bytes(self) -> [u8; TRANSPORT_LEN] {
        let mut out = [0; TRANSPORT_LEN];
        out[..2].copy_from_slice(&self.max_datagram.to_be_bytes());
        out[2..4].copy_from_slice(&self.idle.to_be_bytes());
        out[4..6].copy_from_slice(&self.ack_delay.to_be_bytes());
        out[6..8].copy_from_slice(&self.streams.to_be_bytes());
        out[8..12].copy_from_slice(&self.tunnel_window.to_be_bytes());
        out[12..].copy_from_slice(&self.stream_window.to_be_bytes());
        out
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, Malformed> {
        let this = Self {
            max_datagram: read.u16()?,
            idle: read.u16()?,
            ack_delay: read.u16()?,
            streams: read.u16()?,
            tunnel_window: read.u32()?,
            stream_window: read.u32()?,
        };
        if this.max_datagram < 1_200 { Err(Malformed::Value("max_datagram")) } else { Ok(this) }
    }
}

/// What PILI carries sealed, before its early data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload1 {
    /// Unix time in milliseconds.
    pub time_ms: u64,
    /// Tells apart initiations of the same millisecond.
    pub counter: u32,
    /// The initiator's Ed25519 key.
    pub identity: [u8; 32],
    /// The initiator's address.
    pub address: Address,
    /// How the node id was derived from the key (`addressing.md`).
    pub salt: u16,
    /// The certificate of the initiator's prekey.
    pub certificate: PrekeyCertificate,
    /// Packet suites that it has.
    pub suites: SuiteList,
    /// What it is ready to receive.
    pub transport: TransportParameters,
}

impl Payload1 {
    /// Reads the payload and what follows it: the early data.
    ///
    /// # Errors
    ///
    /// [`Malformed`], whatever is wrong first.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let mut read = Reader(bytes);
        let (time_ms, counter, identity) = (read.u64()?, read.u32()?, *read.array()?);
        let address = Address::from_bytes(*read.array()?);
        let salt = read.u16()?;
        let certificate = PrekeyCertificate::from_bytes(read.array()?);
        let suites = SuiteList { count: read.u8()?, ids: *read.array()? };
        if !suites.is_valid() {
            return Err(Malformed::Value("suites"));
        }
        let transport = TransportParameters::read(&mut read)?;
        let this = Self { time_ms, counter, identity, address, salt, certificate, suites, transport };
        Ok((this, read.rest()))
    }

    /// As it is sealed.
    pub fn encode(&self) -> [u8; PAYLOAD_1_LEN] {
        let mut out = [0; PAYLOAD_1_LEN];
        out[..8].copy_from_slice(&self.time_ms.to_be_bytes());
        out[8..12].copy_from_slice(&self.counter.to_be_bytes());
        out[12..44].copy_from_slice(&self.identity);
        out[44..50].copy_from_slice(&self.address.to_bytes());
        out[50..52].copy_from_slice(&self.salt.to_be_bytes());
        out[52..136].copy_from_slice(&self.certificate.to_bytes());
        out[136] = self.suites.count;
        out[137..140].copy_from_slice(&self.suites.ids);
        out[140..].copy_from_slice(&self.transport.to_bytes());
        out
    }
}

/// Where the responder saw the initiator's datagram come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Observed {
    /// It does not say.
    Unknown,
    /// IPv4 address and port.
    V4([u8; 4], u16),
    /// IPv6 address and port.
    V6([u8; 16], u16),
    /// It came by a relay, from this node.
    Relay(NodeId),
}

impl Observed {
    fn to_bytes(self) -> [u8; 19] {
        let mut out = [0; 19];
        match self {
            Self::Unknown => {}
            Self::V4(ip, port) => {
                out[0] = 4;
                out[1..5].copy_from_slice(&ip);
                out[17..].copy_from_slice(&port.to_be_bytes());
            }
            Self::V6(ip, port) => {
                out[0] = 6;
                out[1..17].copy_from_slice(&ip);
                out[17..].copy_from_slice(&port.to_be_bytes());
            }
            Self::Relay(node) => {
                out[0] = 1;
                out[1..5].copy_from_slice(&node.0.to_be_bytes());
            }
        }
        out
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, Malformed> {
        let bytes: &[u8; 19] = read.array()?;
        let (mut v4, mut v6) = ([0; 4], [0; 16]);
        v4.copy_from_slice(&bytes[1..5]);
        v6.copy_from_slice(&bytes[1..17]);
        let port = u16::from_be_bytes([bytes[17], bytes[18]]);
        let this = match bytes[0] {
            0 => Self::Unknown,
            1 => Self::Relay(NodeId(u32::from_be_bytes(v4))),
            4 => Self::V4(v4, port),
            6 => Self::V6(v6, port),
            _ => return Err(Malformed::Value("observed")),
        };
        if this.to_bytes() == *bytes { Ok(this) } else { Err(Malformed::Value("observed")) }
    }
}

/// What PILR carries sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload2 {
    /// The packet suite chosen, never 0.
    pub suite: u8,
    /// The early data was taken.
    pub early_accepted: bool,
    /// The session will have the post-quantum upgrade; only if PILI asked for it.
    pub post_quantum: bool,
    /// Index that frames to the responder have to name.
    pub sender: u32,
    /// What it is ready to receive.
    pub transport: TransportParameters,
    /// Token of a stateless reset of the session.
    pub reset_token: [u8; TOKEN_LEN],
    /// Where the initiator seems to be.
    pub observed: Observed,
    /// Unix time in milliseconds.
    pub time_ms: u64,
    /// `seq` of the responder's present record: a greater one than known is to be fetched.
    pub record_seq: u64,
}

impl Payload2 {
    /// Reads the payload.
    ///
    /// # Errors
    ///
    /// [`Malformed`], whatever is wrong first.
    pub fn decode(bytes: &[u8; PAYLOAD_2_LEN]) -> Result<Self, Malformed> {
        let mut read = Reader(bytes);
        let (suite, flags) = (read.u8()?, read.u8()?);
        if suite == 0 || flags > 3 {
            return Err(Malformed::Value(if suite == 0 { "suite" } else { "flags" }));
        }
        read.zeros::<2>("reserved")?;
        let sender = read.u32()?;
        if sender == 0 {
            return Err(Malformed::Value("index"));
        }
        let this = Self {
            suite,
            early_accepted: flags & 1 != 0,
            post_quantum: flags & 2 != 0,
            sender,
            transport: TransportParameters::read(&mut read)?,
            reset_token: *read.array()?,
            observed: Observed::read(&mut read)?,
            time_ms: read.u64()?,
            record_seq: read.u64()?,
        };
        read.zeros::<5>("reserved")?;
        Ok(this)
    }

    /// As it is sealed.
    pub fn encode(&self) -> [u8; PAYLOAD_2_LEN] {
        let mut out = [0; PAYLOAD_2_LEN];
        out[0] = self.suite;
        out[1] = u8::from(self.early_accepted) | u8::from(self.post_quantum) << 1;
        out[4..8].copy_from_slice(&self.sender.to_be_bytes());
        out[8..24].copy_from_slice(&self.transport.to_bytes());
        out[24..40].copy_from_slice(&self.reset_token);
        out[40..59].copy_from_slice(&self.observed.to_bytes());
        out[59..67].copy_from_slice(&self.time_ms.to_be_bytes());
        out[67..75].copy_from_slice(&self.record_seq.to_be_bytes());
        out
    }
}
