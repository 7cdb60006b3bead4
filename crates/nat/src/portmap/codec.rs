//! The messages (RFC 6886 §3, RFC 6887 §7 and §11). Only what a client of one UDP port needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of the longest message that is sent: PCP's MAP.
pub const MAX_MESSAGE: usize = 60;

const PCP_VERSION: u8 = 2;
const PMP_VERSION: u8 = 0;
const MAP: u8 = 1;
const RESPONSE: u8 = 0x80;
const UDP: u8 = 17;
/// PCP's result "unsupported version", and NAT-PMP's.
const UNSUPPORTED_VERSION: u16 = 1;

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// NAT-PMP: the router's own address.
    Address,
    /// NAT-PMP: a UDP port. Lifetime 0 gives it back.
    Map {
        /// Ours.
        internal: u16,
        /// The router's, as we would like it.
        external: u16,
        /// Seconds.
        lifetime: u32,
    },
    /// PCP: a UDP port. Lifetime 0 gives it back.
    Pcp {
        /// Our address as the router must see it.
        client: IpAddr,
        /// Who answers must know it.
        nonce: [u8; 12],
        /// Ours.
        internal: u16,
        /// The router's, as we would like it.
        external: u16,
        /// Seconds.
        lifetime: u32,
    },
}

/// What a router answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// NAT-PMP: its own address.
    Address {
        /// 0 for success.
        result: u16,
        /// Seconds since it lost its state.
        epoch: u32,
        /// The address.
        address: Ipv4Addr,
    },
    /// NAT-PMP: a UDP port.
    Map {
        /// 0 for success.
        result: u16,
        /// Seconds since it lost its state.
        epoch: u32,
        /// Ours.
        internal: u16,
        /// The router's.
        external: u16,
        /// Seconds.
        lifetime: u32,
    },
    /// PCP: a UDP port.
    Pcp {
        /// 0 for success.
        result: u16,
        /// Seconds; with an error, how long it will last.
        lifetime: u32,
        /// Seconds since it lost its state.
        epoch: u32,
        /// As in the request.
        nonce: [u8; 12],
        /// Ours.
        internal: u16,
        /// The router's address and port.
        external: SocketAddr,
    },
    /// The version that we spoke is not spoken there.
    Unsupported,
}

/// Not an answer that a client of one UDP port can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeError;

impl Request {
    /// Writes the message; its length.
    pub fn encode(&self, buf: &mut [u8; MAX_MESSAGE]) -> usize {
        buf.fill(0);
        match *self {
            Self::Address => 2,
            Self::Map { internal, external, lifetime } => {
                buf[1] = MAP;
                buf[4..6].copy_from_slice(&internal.to_be_bytes());
                buf[6..8].copy_from_slice(&external.to_be_bytes());
                buf[8..12].copy_from_slice(&lifetime.to_be_bytes());
                12
            }
            Self::Pcp { client, nonce, internal, external, lifetime } => {
                buf[0] = PCP_VERSION;
                buf[1] = MAP;
                buf[4..8].copy_from_slice(&lifetime.to_be_bytes());
                buf[8..24].copy_from_slice(&wide(client).octets());
                buf[24..36].copy_from_slice(&nonce);
                buf[36] = UDP;
                buf[40..42].copy_from_slice(&internal.to_be_bytes());
                buf[42..44].copy_from_slice(&external.to_be_bytes());
                // "Any address", of the family that is wanted (RFC 6887 §11.1).
                let any = if client.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()
                } else {
                    Ipv6Addr::UNSPECIFIED
                };
                buf[44..60].copy_from_slice(&any.octets());
                MAX_MESSAGE
            }
        }
    }
}

impl Reply {
    /// Reads an answer. Bytes behind it are ignored: PCP may add options.
    ///
    /// # Errors
    /// It is something else, or too short.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        match data {
            [PCP_VERSION, ..] => Self::decode_pcp(data),
            [PMP_VERSION, ..] => Self::decode_pmp(data),
            _ => Err(DecodeError),
        }
    }

    fn decode_pmp(data: &[u8]) -> Result<Self, DecodeError> {
        let kind = *data.get(1).ok_or(DecodeError)?;
        let result = be16(data, 2)?;
        if result == UNSUPPORTED_VERSION && kind & RESPONSE != 0 {
            return Ok(Self::Unsupported);
        }
        let epoch = be32(data, 4)?;
        match kind {
            // With an error the rest may be missing.
            0x80 => {
                let address = match be32(data, 8) {
                    Ok(bits) => Ipv4Addr::from_bits(bits),
                    Err(_) if result != 0 => Ipv4Addr::UNSPECIFIED,
                    Err(error) => return Err(error),
                };
                Ok(Self::Address { result, epoch, address })
            }
            0x81 => Ok(Self::Map {
                result,
                epoch,
                internal: be16(data, 8)?,
                external: be16(data, 10)?,
                lifetime: be32(data, 12)?,
            }),
            _ => Err(DecodeError),
        }
    }

    fn decode_pcp(data: &[u8]) -> Result<Self, DecodeError> {
        let (kind, result) = (*data.get(1).ok_or(DecodeError)?, *data.get(3).ok_or(DecodeError)?);
        if kind & RESPONSE == 0 {
            return Err(DecodeError);
        }
        if u16::from(result) == UNSUPPORTED_VERSION {
            return Ok(Self::Unsupported);
        }
        if kind != RESPONSE | MAP || data.get(36) != Some(&UDP) {
            return Err(DecodeError);
        }
        let nonce = data.get(24..36).and_then(|bytes| bytes.try_into().ok()).ok_or(DecodeError)?;
        let ip: [u8; 16] = data.get(44..60).and_then(|bytes| bytes.try_into().ok()).ok_or(DecodeError)?;
        Ok(Self::Pcp {
            result: result.into(),
            lifetime: be32(data, 4)?,
            epoch: be32(data, 8)?,
            nonce,
            internal: be16(data, 40)?,
            external: SocketAddr::new(IpAddr::from(ip).to_canonical(), be16(data, 42)?),
        })
    }
}

fn wide(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn be16(data: &[u8], at: usize) -> Result<u16, DecodeError> {
    let bytes = data.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u16::from_be_bytes).ok_or(DecodeError)
}

fn be32(data: &[u8], at: usize) -> Result<u32, DecodeError> {
    let bytes = data.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_be_bytes).ok_or(DecodeError)
}
