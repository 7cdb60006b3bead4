//! What a data frame carries sealed: a row of frames. `spec/secure.md §11`.
//!
//! | type | frame | fields |
//! |---|---|---|
//! | 00 | PADDING | |
//! | 01 | PING | |
//! | 02 | ACK | largest v, delay v, more ranges v, first range v, { gap v, range v } … |
//! | 03 | ACK of another session | index 4, as ACK |
//! | 04 | ACK_FREQUENCY | seq v, packets v, delay in µs v, reordering v |
//! | 05 | IMMEDIATE_ACK | |
//! | 06 | RESET_STREAM | stream v, code v, final size v |
//! | 07 | STOP_SENDING | stream v, code v |
//! | 08 | MAX_DATA | bytes v |
//! | 09 | MAX_STREAM_DATA | stream v, bytes v |
//! | 0A | MAX_STREAMS | streams v |
//! | 0B | DATA_BLOCKED | bytes v |
//! | 0C | STREAM_DATA_BLOCKED | stream v, bytes v |
//! | 0D | STREAMS_BLOCKED | streams v |
//! | 0E, 0F | PATH_CHALLENGE, PATH_RESPONSE | data 8 |
//! | 10 | NEW_INDEX | seq v, retire all before v, index 4, token 16 |
//! | 11 | RETIRE_INDEX | seq v |
//! | 12 | CLOSE | code v, length v, reason |
//! | 13 | RECORD | length v, record |
//! | 14 | REKEY | |
//! | 15 | LIFE | sender's 8, receiver's 8 |
//! | 16 | UPGRADE | part 1; 592 bytes of a key (parts 0, 1), 544 of a ciphertext (2, 3), nothing (4) |
//! | 18, 19 | DATAGRAM | source port 2, destination port 2, [length v in 19], bytes |
//! | 1A, 1B | LEGACY | [length v in 1B], a packet of the draft |
//! | 20 to 2F | STREAM | stream v, [ports 4], [offset v], [length v], bytes; see [`stream`](super::stream) |
//!
//! v is a number of variable length (RFC 9000 §16) in its shortest form.

use super::ack::Ack;
use super::cursor::{Reader, Writer};
use super::stream::Stream;
use super::{Malformed, TOKEN_LEN};
use crate::error::EncodeError;

/// Type of ACK.
pub const ACK: u8 = 0x02;
/// Type of ACK of another session.
pub const ACK_OTHER: u8 = 0x03;
/// First type of STREAM; the low four bits are flags.
pub const STREAM: u8 = 0x20;
const UPGRADE: u8 = 0x16;
const DATAGRAM: u8 = 0x18;
/// Type of LEGACY whose packet reaches to the end.
pub const LEGACY: u8 = 0x1A;
/// Longest reason of CLOSE, bytes.
pub const REASON_MAX: usize = 256;
/// Longest record, bytes.
pub const RECORD_MAX: usize = 900;
/// Bytes of half an ML-KEM-768 encapsulation key.
pub const HALF_KEY: usize = 592;
/// Bytes of half an ML-KEM-768 ciphertext.
pub const HALF_CIPHERTEXT: usize = 544;
/// Most streams of one kind.
pub const STREAMS_MAX: u64 = 1 << 60;

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// So many zero bytes; at least one.
    Padding(usize),
    /// Wants an acknowledgement and nothing else.
    Ping,
    /// Packets that arrived.
    Ack(Ack<'a>),
    /// How often the sender of the frame wants acknowledgements.
    AckFrequency {
        /// A greater one replaces a smaller one.
        seq: u64,
        /// Packets that may arrive before one is acknowledged; at least 1.
        packets: u64,
        /// Longest delay, µs.
        delay_us: u64,
        /// Acknowledge at once what arrives this many numbers out of order; 0: never for that reason.
        reordering: u64,
    },
    /// Acknowledge at once.
    ImmediateAck,
    /// The sender gives its side of a stream up.
    ResetStream {
        /// The stream.
        stream: u64,
        /// The application's reason.
        code: u64,
        /// Bytes that it ever sent of the stream.
        final_size: u64,
    },
    /// The receiver wants no more of a stream.
    StopSending {
        /// The stream.
        stream: u64,
        /// The application's reason.
        code: u64,
    },
    /// All streams together may send up to so many bytes.
    MaxData(u64),
    /// A stream may send up to an offset.
    MaxStreamData {
        /// The stream.
        stream: u64,
        /// The offset.
        max: u64,
    },
    /// So many streams may be opened in all.
    MaxStreams(u64),
    /// The sender would like to send, and [`Self::MaxData`] of so many bytes keeps it from that.
    DataBlocked(u64),
    /// As [`Self::DataBlocked`], for one stream.
    StreamDataBlocked {
        /// The stream.
        stream: u64,
        /// The limit.
        max: u64,
    },
    /// The sender would like to open more than so many streams.
    StreamsBlocked(u64),
    /// To be sent back to where it came from.
    PathChallenge([u8; 8]),
    /// What a [`Self::PathChallenge`] held.
    PathResponse([u8; 8]),
    /// Another index that the sender of the frame listens to.
    NewIndex {
        /// Number of the index; 0 is that of the handshake, of which it tells the token.
        seq: u64,
        /// All numbers below are to be retired.
        retire: u64,
        /// The index; not 0.
        index: u32,
        /// Its token of a stateless reset.
        token: [u8; TOKEN_LEN],
    },
    /// The sender of the frame uses an index of the other side no more.
    RetireIndex(u64),
    /// The session ends.
    Close {
        /// 0: no error; below 256 errors of the protocol, above those of applications.
        code: u64,
        /// For humans; at most [`REASON_MAX`] bytes.
        reason: &'a str,
    },
    /// The sender's signed record, at most [`RECORD_MAX`] bytes.
    Record(&'a [u8]),
    /// Please begin a new handshake.
    Rekey,
    /// A step of the post-quantum upgrade.
    Upgrade(Upgrade<'a>),
    /// Which streams, limits and offsets the sender means: with another number of its own it has forgotten all that were
    /// before.
    Life {
        /// Of the sender; not 0.
        own: u64,
        /// Of the receiver as the sender knows it; 0 if it knows none.
        peer: u64,
        /// For how long the sender has had its own at least, milliseconds.
        age: u32,
    },
    /// A message between two ports.
    Datagram {
        /// Port of the sender.
        source: u16,
        /// Port of the receiver.
        destination: u16,
        /// The message.
        data: &'a [u8],
        /// It reaches to the end of the packet, and says no length.
        to_end: bool,
    },
    /// A packet of the draft.
    Legacy {
        /// Its bytes, not yet decoded; never empty.
        packet: &'a [u8],
        /// It reaches to the end of the packet, and says no length.
        to_end: bool,
    },
    /// A piece of a stream.
    Stream(Stream<'a>),
}

/// A step of the post-quantum upgrade (`spec/secure.md §9.5`). Halves, so that each fits into any path's datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade<'a> {
    /// A half of the initiator's encapsulation key: the second, and its bytes.
    Key(bool, &'a [u8; HALF_KEY]),
    /// A half of the responder's ciphertext.
    Ciphertext(bool, &'a [u8; HALF_CIPHERTEXT]),
    /// The sender has both, and sends under keys that need them.
    Done,
}

impl<'a> Upgrade<'a> {
    fn write(&self, out: &mut Writer<'_>) {
        out.u8(UPGRADE);
        match *self {
            Self::Key(second, half) => {
                out.u8(second.into());
                out.put(half);
            }
            Self::Ciphertext(second, half) => {
                out.u8(2 + u8::from(second));
                out.put(half);
            }
            Self::Done => out.u8(4),
        }
    }

    fn read(read: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(match read.u8()? {
            part @ (0 | 1) => Self::Key(part == 1, read.array()?),
            part @ (2 | 3) => Self::Ciphertext(part == 3, read.array()?),
            4 => Self::Done,
            _ => return Err(Malformed::Value("part")),
        })
    }
}

impl<'a> Frame<'a> {
    /// Whether it may be early data: nothing that answers, acknowledges or steers.
    pub fn may_be_early(&self) -> bool {
        matches!(
            self,
            Self::Padding(_) | Self::Ping | Self::Datagram { .. } | Self::Legacy { .. } | Self::Stream(_)
        )
    }

    /// Whether a packet with it wants an acknowledgement.
    pub fn is_eliciting(&self) -> bool {
        !matches!(self, Self::Padding(_) | Self::Ack(_) | Self::Close { .. } | Self::Legacy { .. })
    }

    /// Writes the frame and returns its length.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] if the buffer is too small, or a number, a reason or a record too large.
    pub fn encode(&self, buf: &mut [u8]) -> Result<usize, EncodeError> {
        let mut out = Writer::new(buf);
        match *self {
            Self::Padding(len) => (0..len).for_each(|_| out.u8(0)),
            Self::Ping => out.u8(0x01),
            Self::Ack(ack) => ack.write(&mut out),
            Self::AckFrequency { seq, packets, delay_us, reordering } => {
                numbers(&mut out, 0x04, &[seq, packets, delay_us, reordering]);
            }
            Self::ImmediateAck => out.u8(0x05),
            Self::ResetStream { stream, code, final_size } => {
                numbers(&mut out, 0x06, &[stream, code, final_size]);
            }
            Self::StopSending { stream, code } => numbers(&mut out, 0x07, &[stream, code]),
            Self::MaxData(max) => numbers(&mut out, 0x08, &[max]),
            Self::MaxStreamData { stream, max } => numbers(&mut out, 0x09, &[stream, max]),
            Self::MaxStreams(max) => numbers(&mut out, 0x0A, &[max]),
            Self::DataBlocked(max) => numbers(&mut out, 0x0B, &[max]),
            Self::StreamDataBlocked { stream, max } => numbers(&mut out, 0x0C, &[stream, max]),
            Self::StreamsBlocked(max) => numbers(&mut out, 0x0D, &[max]),
            Self::PathChallenge(data) => tagged(&mut out, 0x0E, &data),
            Self::PathResponse(data) => tagged(&mut out, 0x0F, &data),
            Self::NewIndex { seq, retire, index, token } => {
                numbers(&mut out, 0x10, &[seq, retire]);
                out.put(&index.to_be_bytes());
                out.put(&token);
            }
            Self::RetireIndex(seq) => numbers(&mut out, 0x11, &[seq]),
            Self::Close { code, reason } => {
                limit(reason.len(), REASON_MAX)?;
                numbers(&mut out, 0x12, &[code]);
                out.prefixed(reason.as_bytes());
            }
            Self::Record(record) => {
                limit(record.len(), RECORD_MAX)?;
                out.u8(0x13);
                out.prefixed(record);
            }
            Self::Rekey => out.u8(0x14),
            Self::Upgrade(upgrade) => upgrade.write(&mut out),
            Self::Life { own, peer, age } => {
                tagged(&mut out, 0x15, &own.to_be_bytes());
                out.put(&peer.to_be_bytes());
                out.put(&age.to_be_bytes());
            }
            Self::Datagram { source, destination, data, to_end } => {
                out.u8(DATAGRAM | u8::from(!to_end));
                out.put(&source.to_be_bytes());
                out.put(&destination.to_be_bytes());
                bytes(&mut out, data, to_end);
            }
            Self::Legacy { packet, to_end } => {
                out.u8(LEGACY | u8::from(!to_end));
                bytes(&mut out, packet, to_end);
            }
            Self::Stream(stream) => {
                stream.write_head(stream.data.len(), &mut out);
                out.put(stream.data);
            }
        }
        out.finish()
    }
}

fn numbers(out: &mut Writer<'_>, kind: u8, values: &[u64]) {
    out.u8(kind);
    values.iter().for_each(|value| out.varint(*value));
}

fn tagged(out: &mut Writer<'_>, kind: u8, data: &[u8; 8]) {
    out.u8(kind);
    out.put(data);
}

fn bytes(out: &mut Writer<'_>, data: &[u8], to_end: bool) {
    if to_end { out.put(data) } else { out.prefixed(data) }
}

fn limit(len: usize, max: usize) -> Result<(), EncodeError> {
    if len > max { Err(EncodeError::TooLong { len, max }) } else { Ok(()) }
}

/// The frames of a packet, in order. After the first malformed one there are no more.
///
/// A receiver should look through all of them before it acts on the first: a packet with a malformed frame counts as a
/// whole (`spec/secure.md §11.1`).
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    read: Reader<'a>,
}

impl<'a> Frames<'a> {
    /// The frames of an opened packet. No bytes at all are no packet: [`check`](Self::check) says so.
    pub fn new(packet: &'a [u8]) -> Self {
        Self { read: Reader(packet) }
    }

    /// Whether every frame is well-formed, and there is one.
    ///
    /// # Errors
    ///
    /// What is wrong with the first that is not.
    pub fn check(packet: &'a [u8]) -> Result<(), Malformed> {
        if packet.is_empty() {
            return Err(Malformed::Truncated);
        }
        Self::new(packet).try_for_each(|frame| frame.map(drop))
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (&kind, rest) = self.read.0.split_first()?;
        self.read.0 = rest;
        let frame = match kind {
            STREAM..=0x2F => Stream::read(kind, &mut self.read).map(Frame::Stream),
            ACK | ACK_OTHER => Ack::read(&mut self.read, kind == ACK_OTHER).map(Frame::Ack),
            0x18..=0x1B => read_message(kind, &mut self.read),
            0x00 => Ok(read_padding(&mut self.read)),
            _ => read_control(kind, &mut self.read),
        };
        if frame.is_err() {
            self.read.0 = &[];
        }
        Some(frame)
    }
}

fn read_padding<'a>(read: &mut Reader<'a>) -> Frame<'a> {
    let more = read.0.iter().take_while(|byte| **byte == 0).count();
    read.0 = &read.0[more..];
    Frame::Padding(1 + more)
}

fn read_message<'a>(kind: u8, read: &mut Reader<'a>) -> Result<Frame<'a>, Malformed> {
    let to_end = kind & 1 == 0;
    if kind & !1 == LEGACY {
        let packet = message_bytes(read, to_end)?;
        return if packet.is_empty() {
            Err(Malformed::Value("empty"))
        } else {
            Ok(Frame::Legacy { packet, to_end })
        };
    }
    let (source, destination) = (read.u16()?, read.u16()?);
    Ok(Frame::Datagram { source, destination, data: message_bytes(read, to_end)?, to_end })
}

fn message_bytes<'a>(read: &mut Reader<'a>, to_end: bool) -> Result<&'a [u8], Malformed> {
    if to_end {
        return Ok(read.rest());
    }
    let len = read.varint()?;
    read.bytes(len)
}

#[inline(never)]
fn read_control<'a>(kind: u8, read: &mut Reader<'a>) -> Result<Frame<'a>, Malformed> {
    Ok(match kind {
        0x01 => Frame::Ping,
        0x04 => read_ack_frequency(read)?,
        0x05 => Frame::ImmediateAck,
        0x06 => {
            Frame::ResetStream { stream: read.varint()?, code: read.varint()?, final_size: read.varint()? }
        }
        0x07 => Frame::StopSending { stream: read.varint()?, code: read.varint()? },
        0x08 => Frame::MaxData(read.varint()?),
        0x09 => Frame::MaxStreamData { stream: read.varint()?, max: read.varint()? },
        0x0A => Frame::MaxStreams(streams(read)?),
        0x0B => Frame::DataBlocked(read.varint()?),
        0x0C => Frame::StreamDataBlocked { stream: read.varint()?, max: read.varint()? },
        0x0D => Frame::StreamsBlocked(streams(read)?),
        0x0E => Frame::PathChallenge(*read.array()?),
        0x0F => Frame::PathResponse(*read.array()?),
        0x10 => read_new_index(read)?,
        0x11 => Frame::RetireIndex(read.varint()?),
        0x12 => read_close(read)?,
        0x13 => {
            let len = read.varint()?;
            if len > RECORD_MAX as u64 {
                return Err(Malformed::TooLong);
            }
            Frame::Record(read.bytes(len)?)
        }
        0x14 => Frame::Rekey,
        0x15 => read_life(read)?,
        UPGRADE => Frame::Upgrade(Upgrade::read(read)?),
        _ => return Err(Malformed::Type(kind)),
    })
}

fn read_ack_frequency<'a>(read: &mut Reader<'a>) -> Result<Frame<'a>, Malformed> {
    let (seq, packets) = (read.varint()?, read.varint()?);
    let (delay_us, reordering) = (read.varint()?, read.varint()?);
    if packets == 0 {
        return Err(Malformed::Value("packets"));
    }
    Ok(Frame::AckFrequency { seq, packets, delay_us, reordering })
}

fn streams(read: &mut Reader<'_>) -> Result<u64, Malformed> {
    match read.varint()? {
        count if count > STREAMS_MAX => Err(Malformed::Value("streams")),
        count => Ok(count),
    }
}

fn read_new_index<'a>(read: &mut Reader<'a>) -> Result<Frame<'a>, Malformed> {
    let (seq, retire) = (read.varint()?, read.varint()?);
    let (index, token) = (read.u32()?, *read.array()?);
    if index == 0 || retire > seq {
        return Err(Malformed::Value(if index == 0 { "index" } else { "retire" }));
    }
    Ok(Frame::NewIndex { seq, retire, index, token })
}

fn read_life<'a>(read: &mut Reader<'a>) -> Result<Frame<'a>, Malformed> {
    match (read.u64()?, read.u64()?, read.u32()?) {
        (0, ..) => Err(Malformed::Value("life")),
        (own, peer, age) => Ok(Frame::Life { own, peer, age }),
    }
}

fn read_close<'a>(read: &mut Reader<'a>) -> Result<Frame<'a>, Malformed> {
    let (code, len) = (read.varint()?, read.varint()?);
    if len > REASON_MAX as u64 {
        return Err(Malformed::TooLong);
    }
    let reason = core::str::from_utf8(read.bytes(len)?).map_err(|_| Malformed::Value("reason"))?;
    Ok(Frame::Close { code, reason })
}
