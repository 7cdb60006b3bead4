//! The first bytes of a benchmark stream: what the client wants (spec/services.md §4).

use std::io;

/// Version of the protocol in the hello.
pub const VERSION: u8 = 1;

/// Largest request and reply in request/reply mode, in bytes.
pub const MAX_MESSAGE: u32 = 1024 * 1024;

const MAGIC: [u8; 4] = *b"PLBN";
/// Bytes of the hello.
pub(super) const HELLO_LEN: usize = 16;

/// What the client asks for in its first 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// The server reads to the end and answers how many bytes came.
    Sink,
    /// The server sends this many bytes and ends.
    Source {
        /// Bytes to send.
        bytes: u64,
    },
    /// The server answers each request of `request` bytes with `reply` bytes.
    RequestReply {
        /// Bytes of a request, 1 to [`MAX_MESSAGE`].
        request: u32,
        /// Bytes of a reply, 1 to [`MAX_MESSAGE`].
        reply: u32,
    },
}

impl Mode {
    /// `"PLBN" | version u8 | mode u8 | reserved u16 | a u32 | b u32`, big-endian.
    pub(super) fn encode(self) -> [u8; HELLO_LEN] {
        let (mode, argument): (u8, u64) = match self {
            Self::Sink => (1, 0),
            Self::Source { bytes } => (2, bytes),
            Self::RequestReply { request, reply } => (3, u64::from(request) << 32 | u64::from(reply)),
        };
        let mut hello = [0; HELLO_LEN];
        hello[..4].copy_from_slice(&MAGIC);
        hello[4] = VERSION;
        hello[5] = mode;
        hello[8..].copy_from_slice(&argument.to_be_bytes());
        hello
    }

    pub(super) fn decode(hello: &[u8; HELLO_LEN]) -> io::Result<Self> {
        let bad = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if hello[..4] != MAGIC || hello[4] != VERSION {
            return bad("not a benchmark hello of version 1");
        }
        let mut argument = [0; 8];
        argument.copy_from_slice(&hello[8..]);
        let argument = u64::from_be_bytes(argument);
        match hello[5] {
            1 => Ok(Self::Sink),
            2 => Ok(Self::Source { bytes: argument }),
            3 => {
                let (request, reply) = ((argument >> 32) as u32, argument as u32);
                let valid = 1..=MAX_MESSAGE;
                if valid.contains(&request) && valid.contains(&reply) {
                    Ok(Self::RequestReply { request, reply })
                } else {
                    bad("request and reply must have 1 byte to 1 MiB")
                }
            }
            _ => bad("unknown benchmark mode"),
        }
    }
}
