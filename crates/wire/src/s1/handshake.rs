//! Handshake frames as they lie on the wire; what is sealed in them is in [`payload`](super::payload).
//! `spec/secure.md §4`.
//!
//! ```text
//! PILI initiation | "PILI" 4 | version 1 | flags 1 | 0 2 | sender 4 | prekey id 8 | ephemeral 32 | sealed static 48
//!                 | sealed payload 172 to 1,068 | mac1 16 | mac2 16 |
//! PILR response   | "PILR" 4 | version 1 | flags 1 | 0 2 | sender 4 | receiver 4 | ephemeral 32 | sealed payload 96
//!                 | mac1 16 |
//! PILC cookie     | "PILC" 4 | receiver 4 | nonce 24 | sealed cookie 32 |
//! PILN new prekey | "PILN" 4 | receiver 4 | mac1 of the PILI answered 16 | prekey 32 | certificate 84 |
//! PILX reset      | "PILX" 4 | index seen 4 | token 16 |
//! ```

use super::cursor::Reader;
use super::payload::{CERTIFICATE_LEN, PAYLOAD_1_LEN, PAYLOAD_2_LEN, PrekeyCertificate};
use super::{MAC_LEN, Malformed, TAG_LEN, TOKEN_LEN, VERSION};

/// Bytes of PILI before its key: what the Noise prologue covers.
pub const INITIATION_HEADER_LEN: usize = 20;
/// Bytes of PILI before its sealed payload.
pub const INITIATION_FIXED_LEN: usize = INITIATION_HEADER_LEN + 32 + 48;
/// Bytes of the shortest PILI: no early data.
pub const INITIATION_LEN: usize = INITIATION_FIXED_LEN + PAYLOAD_1_LEN + TAG_LEN + 2 * MAC_LEN;
/// Bytes of the longest PILI: what any path carries.
pub const INITIATION_MAX: usize = 1_200;
/// Most early data, bytes.
pub const EARLY_MAX: usize = INITIATION_MAX - INITIATION_LEN;
/// Bytes of PILR before its key.
pub const RESPONSE_HEADER_LEN: usize = 16;
/// Bytes of PILR.
pub const RESPONSE_LEN: usize = RESPONSE_HEADER_LEN + 32 + PAYLOAD_2_LEN + TAG_LEN + MAC_LEN;
/// Bytes of PILC.
pub const COOKIE_LEN: usize = 64;
/// Bytes of PILN.
pub const NEW_PREKEY_LEN: usize = 24 + 32 + CERTIFICATE_LEN;
/// Bytes of PILX.
pub const RESET_LEN: usize = 24;
/// A frame must be longer than PILX, by enough that resets cannot answer resets for ever, to be answered by one.
pub const RESET_CAUSE_MIN: usize = 43;

/// Flags of PILI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags {
    /// The sealed payload holds early data.
    pub early: bool,
    /// The frame goes by a relay.
    pub relayed: bool,
    /// The sender can do the post-quantum upgrade, and would like it.
    pub post_quantum: bool,
}

impl Flags {
    /// As the byte on the wire.
    pub const fn to_byte(self) -> u8 {
        self.early as u8 | (self.relayed as u8) << 1 | (self.post_quantum as u8) << 2
    }

    /// From the byte on the wire.
    ///
    /// # Errors
    ///
    /// [`Malformed::Value`] for bits that have no meaning.
    pub const fn from_byte(byte: u8) -> Result<Self, Malformed> {
        if byte > 7 {
            return Err(Malformed::Value("flags"));
        }
        Ok(Self { early: byte & 1 != 0, relayed: byte & 2 != 0, post_quantum: byte & 4 != 0 })
    }
}

/// A PILI. Nothing in it has been checked but its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initiation<'a> {
    /// Flags.
    pub flags: Flags,
    /// Index that the answer has to name.
    pub sender: u32,
    /// Which of the responder's prekeys was used.
    pub prekey_id: [u8; 8],
    /// The initiator's ephemeral X25519 key.
    pub ephemeral: &'a [u8; 32],
    /// The initiator's prekey, sealed.
    pub sealed_static: &'a [u8; 48],
    /// `payload_1`, sealed.
    pub sealed_payload: &'a [u8],
    /// Shows that the sender knows the responder's identity key.
    pub mac1: &'a [u8; MAC_LEN],
    /// Shows that the sender receives at its address, or zero.
    pub mac2: &'a [u8; MAC_LEN],
    /// The first 20 bytes.
    pub header: &'a [u8; INITIATION_HEADER_LEN],
    /// All before `mac1`.
    pub before_mac1: &'a [u8],
    /// All before `mac2`.
    pub before_mac2: &'a [u8],
}

impl<'a> Initiation<'a> {
    /// Reads a whole datagram.
    ///
    /// # Errors
    ///
    /// [`Malformed`], whatever is wrong first.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, Malformed> {
        if datagram.len() < INITIATION_LEN {
            return Err(Malformed::Truncated);
        }
        if datagram.len() > INITIATION_MAX {
            return Err(Malformed::TooLong);
        }
        let before_mac2 = &datagram[..datagram.len() - MAC_LEN];
        let before_mac1 = &before_mac2[..before_mac2.len() - MAC_LEN];
        let mut read = Reader(datagram);
        let header = read.array::<INITIATION_HEADER_LEN>()?;
        let mut fields = Reader(header);
        if fields.array::<4>()? != b"PILI" {
            return Err(Malformed::Magic);
        }
        let flags = version_and_flags(&mut fields)?;
        let flags = Flags::from_byte(flags)?;
        let sender = index(&mut fields)?;
        let prekey_id = *fields.array()?;
        let (ephemeral, sealed_static) = (read.array()?, read.array()?);
        let sealed_payload = read.bytes((before_mac1.len() - INITIATION_FIXED_LEN) as u64)?;
        if flags.early != (datagram.len() > INITIATION_LEN) {
            return Err(Malformed::Value("flags"));
        }
        let (mac1, mac2) = (read.array()?, read.array()?);
        Ok(Self {
            flags,
            sender,
            prekey_id,
            ephemeral,
            sealed_static,
            sealed_payload,
            mac1,
            mac2,
            header,
            before_mac1,
            before_mac2,
        })
    }
}

/// The first 20 bytes of PILI. The key, the sealed parts and the MACs follow.
pub fn initiation_header(flags: Flags, sender: u32, prekey_id: &[u8; 8]) -> [u8; INITIATION_HEADER_LEN] {
    let mut header = [0; INITIATION_HEADER_LEN];
    header[..4].copy_from_slice(b"PILI");
    header[4] = VERSION;
    header[5] = flags.to_byte();
    header[8..12].copy_from_slice(&sender.to_be_bytes());
    header[12..].copy_from_slice(prekey_id);
    header
}

/// A PILR. Nothing in it has been checked but its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// The early data of the PILI was taken. Repeated in the sealed payload, which alone counts.
    pub early_accepted: bool,
    /// The session will have the post-quantum upgrade. Repeated in the sealed payload.
    pub post_quantum: bool,
    /// Index that frames to the responder have to name. Repeated in the sealed payload.
    pub sender: u32,
    /// The initiator's index.
    pub receiver: u32,
    /// The responder's ephemeral X25519 key.
    pub ephemeral: &'a [u8; 32],
    /// `payload_2`, sealed.
    pub sealed_payload: &'a [u8; PAYLOAD_2_LEN + TAG_LEN],
    /// Shows that the sender knows the initiator's identity key.
    pub mac1: &'a [u8; MAC_LEN],
    /// All before `mac1`.
    pub before_mac1: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads a whole datagram.
    ///
    /// # Errors
    ///
    /// [`Malformed`], whatever is wrong first.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let datagram = exactly::<RESPONSE_LEN>(datagram, b"PILR")?;
        let mut read = Reader(&datagram[4..]);
        let flags = version_and_flags(&mut read)?;
        if flags > 3 {
            return Err(Malformed::Value("flags"));
        }
        let (sender, receiver) = (index(&mut read)?, index(&mut read)?);
        Ok(Self {
            early_accepted: flags & 1 != 0,
            post_quantum: flags & 2 != 0,
            sender,
            receiver,
            ephemeral: read.array()?,
            sealed_payload: read.array()?,
            mac1: read.array()?,
            before_mac1: &datagram[..RESPONSE_LEN - MAC_LEN],
        })
    }
}

/// The first 16 bytes of PILR. The key, the sealed payload and the MAC follow.
pub fn response_header(
    (early_accepted, post_quantum): (bool, bool),
    sender: u32,
    receiver: u32,
) -> [u8; RESPONSE_HEADER_LEN] {
    let mut header = [0; RESPONSE_HEADER_LEN];
    header[..4].copy_from_slice(b"PILR");
    header[4] = VERSION;
    header[5] = u8::from(early_accepted) | u8::from(post_quantum) << 1;
    header[8..12].copy_from_slice(&sender.to_be_bytes());
    header[12..].copy_from_slice(&receiver.to_be_bytes());
    header
}

/// A PILC: the responder is busy, and the initiator has to show that it receives where it sends from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CookieReply {
    /// The initiator's index.
    pub receiver: u32,
    /// Nonce of the sealed cookie.
    pub nonce: [u8; 24],
    /// The cookie, sealed with XChaCha20-Poly1305.
    pub sealed: [u8; 32],
}

impl CookieReply {
    /// Reads a whole datagram.
    ///
    /// # Errors
    ///
    /// [`Malformed`], whatever is wrong first.
    pub fn decode(datagram: &[u8]) -> Result<Self, Malformed> {
        let datagram = exactly::<COOKIE_LEN>(datagram, b"PILC")?;
        let mut read = Reader(&datagram[4..]);
        Ok(Self { receiver: index(&mut read)?, nonce: *read.array()?, sealed: *read.array()? })
    }

    /// The datagram.
    pub fn encode(&self) -> [u8; COOKIE_LEN] {
        let mut out = [0; COOKIE_LEN];
        out[..4].copy_from_slice(b"PILC");
        out[4..8].copy_from_slice(&self.receiver.to_be_bytes());
        out[8..32].copy_from_slice(&self.nonce);
        out[32..].copy_from_slice(&self.sealed);
        out
    }
}

/// A PILN: the prekey that the initiator used is gone; this is a present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewPrekey {
    /// The initiator's index.
    pub receiver: u32,
    /// `mac1` of the PILI that is answered: only who saw it can answer.
    pub cause: [u8; MAC_LEN],
    /// The prekey.
    pub prekey: [u8; 32],
    /// Its certificate. The signature has NOT been verified.
    pub certificate: PrekeyCertificate,
}

impl NewPrekey {
    /// Reads a whole datagram.
    ///
    /// # Errors
    ///
    /// [`Malformed`], whatever is wrong first.
    pub fn decode(datagram: &[u8]) -> Result<Self, Malformed> {
        let datagram = exactly::<NEW_PREKEY_LEN>(datagram, b"PILN")?;
        let mut read = Reader(&datagram[4..]);
        Ok(Self {
            receiver: index(&mut read)?,
            cause: *read.array()?,
            prekey: *read.array()?,
            certificate: PrekeyCertificate::from_bytes(read.array()?),
        })
    }

    /// The datagram.
    pub fn encode(&self) -> [u8; NEW_PREKEY_LEN] {
        let mut out = [0; NEW_PREKEY_LEN];
        out[..4].copy_from_slice(b"PILN");
        out[4..8].copy_from_slice(&self.receiver.to_be_bytes());
        out[8..24].copy_from_slice(&self.cause);
        out[24..56].copy_from_slice(&self.prekey);
        out[56..].copy_from_slice(&self.certificate.to_bytes());
        out
    }
}

/// A PILX: the receiver of a data frame knows no session of its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// The index of the frame.
    pub index: u32,
    /// What the peer was told under the session's keys.
    pub token: [u8; TOKEN_LEN],
}

impl Reset {
    /// Reads a whole datagram.
    ///
    /// # Errors
    ///
    /// [`Malformed`], whatever is wrong first.
    pub fn decode(datagram: &[u8]) -> Result<Self, Malformed> {
        let datagram = exactly::<RESET_LEN>(datagram, b"PILX")?;
        let mut read = Reader(&datagram[4..]);
        Ok(Self { index: index(&mut read)?, token: *read.array()? })
    }

    /// The datagram.
    pub fn encode(&self) -> [u8; RESET_LEN] {
        let mut out = [0; RESET_LEN];
        out[..4].copy_from_slice(b"PILX");
        out[4..8].copy_from_slice(&self.index.to_be_bytes());
        out[8..].copy_from_slice(&self.token);
        out
    }
}

/// A datagram of one length with one magic.
fn exactly<'a, const N: usize>(datagram: &'a [u8], magic: &[u8; 4]) -> Result<&'a [u8; N], Malformed> {
    if !datagram.starts_with(magic) {
        return Err(if datagram.len() < 4 { Malformed::Truncated } else { Malformed::Magic });
    }
    if datagram.len() > N {
        return Err(Malformed::TooLong);
    }
    datagram.first_chunk().ok_or(Malformed::Truncated)
}

/// Version, flags and the two zero bytes behind them.
fn version_and_flags(read: &mut Reader<'_>) -> Result<u8, Malformed> {
    let (version, flags) = (read.u8()?, read.u8()?);
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    read.zeros::<2>("reserved")?;
    Ok(flags)
}

/// Index 0 names nothing.
fn index(read: &mut Reader<'_>) -> Result<u32, Malformed> {
    match read.u32()? {
        0 => Err(Malformed::Value("index")),
        index => Ok(index),
    }
}
