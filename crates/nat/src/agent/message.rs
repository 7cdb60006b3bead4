//! The message in which two Pilotage peers tell each other where they are (spec/tunnel.md §7.6).
//!
//! ```text
//!  0  8  mark "PLTGpath"
//!  8  1  version, 1
//!  9  1  bits 0 and 1: NAT mapping of the sender; bit 2: it sends by the relay because the direct way is
//!       lost; bit 3: it knows that the receiver has this offer
//! 10  4  sequence number of this offer, from 1 on
//! 14  4  sequence number of the newest offer that the sender has from the receiver, 0 if none
//! 18  1  number of candidates, at most 16
//! 19 ..  each: kind (1), family 4 or 6 (1), address (4 or 16), port (2)
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::candidate::{CANDIDATES_MAX, Candidate, CandidateKind};

/// First bytes of the message.
pub const OFFER_MARK: [u8; 8] = *b"PLTGpath";
const VERSION: u8 = 1;
const FIXED: usize = 19;
/// Longest message.
pub const OFFER_MAX: usize = FIXED + CANDIDATES_MAX * 20;

/// How a NAT chooses the external port of one internal port (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NatMapping {
    /// Not known (yet).
    #[default]
    Unknown,
    /// The same for all destinations, or there is no NAT.
    EndpointIndependent,
    /// One for each destination address.
    AddressDependent,
    /// One for each destination address and port.
    AddressAndPortDependent,
}

impl NatMapping {
    /// Whether nobody can tell from outside which port will be taken for a new peer.
    pub fn is_hard(self) -> bool {
        matches!(self, Self::AddressDependent | Self::AddressAndPortDependent)
    }

    fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::EndpointIndependent => 1,
            Self::AddressDependent => 2,
            Self::AddressAndPortDependent => 3,
        }
    }

    fn from_code(code: u8) -> Self {
        match code & 3 {
            1 => Self::EndpointIndependent,
            2 => Self::AddressDependent,
            3 => Self::AddressAndPortDependent,
            _ => Self::Unknown,
        }
    }
}

/// Where a node can be reached, as it says itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Its NAT.
    pub mapping: NatMapping,
    /// The direct way has died for it: it sends by the relay now.
    pub lost: bool,
    /// It knows that the receiver has this offer, so it waits for no answer.
    pub settled: bool,
    /// Number of this offer. Later ones have higher numbers, modulo 2^32; 0 is none.
    pub sequence: u32,
    /// The newest offer of the receiver that it knows, 0 if none.
    pub seen: u32,
    /// Its addresses, at most [`CANDIDATES_MAX`], best first.
    pub candidates: Vec<Candidate>,
}

impl Offer {
    /// Writes the message; `None` if it does not fit. Candidates beyond the bound are left out.
    pub fn encode(&self, buf: &mut [u8]) -> Option<usize> {
        let candidates = &self.candidates[..self.candidates.len().min(CANDIDATES_MAX)];
        let len = FIXED + candidates.iter().map(|c| 4 + if c.addr.is_ipv4() { 4 } else { 16 }).sum::<usize>();
        let buf = buf.get_mut(..len)?;
        buf[..8].copy_from_slice(&OFFER_MARK);
        buf[8] = VERSION;
        buf[9] = self.mapping.code() | u8::from(self.lost) << 2 | u8::from(self.settled) << 3;
        buf[10..14].copy_from_slice(&self.sequence.to_be_bytes());
        buf[14..18].copy_from_slice(&self.seen.to_be_bytes());
        buf[18] = candidates.len() as u8;
        let mut at = FIXED;
        for candidate in candidates {
            buf[at] = candidate.kind.code();
            at += 2;
            let size = match candidate.addr.ip() {
                IpAddr::V4(ip) => {
                    buf[at - 1] = 4;
                    buf[at..at + 4].copy_from_slice(&ip.octets());
                    4
                }
                IpAddr::V6(ip) => {
                    buf[at - 1] = 6;
                    buf[at..at + 16].copy_from_slice(&ip.octets());
                    16
                }
            };
            at += size;
            buf[at..at + 2].copy_from_slice(&candidate.addr.port().to_be_bytes());
            at += 2;
        }
        Some(at)
    }

    /// Reads the message. `None` for everything else, for another version, more candidates than allowed, and a
    /// message that ends early. Candidates of an unknown kind are left out; bytes behind the last are ignored.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(&OFFER_MARK) || *bytes.get(8)? != VERSION {
            return None;
        }
        let flags = *bytes.get(9)?;
        let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let (sequence, seen) = (number(10)?, number(14)?);
        let count = usize::from(*bytes.get(18)?);
        if count > CANDIDATES_MAX || sequence == 0 {
            return None;
        }
        let mut candidates = Vec::with_capacity(count);
        let mut rest = &bytes[FIXED..];
        for _ in 0..count {
            let (head, tail) = rest.split_at_checked(2)?;
            let size = match head[1] {
                4 => 4,
                6 => 16,
                _ => return None,
            };
            let (address, tail) = tail.split_at_checked(size)?;
            let (port, tail) = tail.split_at_checked(2)?;
            rest = tail;
            let ip = match <[u8; 4]>::try_from(address) {
                Ok(v4) => IpAddr::V4(Ipv4Addr::from(v4)),
                Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)),
            };
            let addr = SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]]));
            if let Some(kind) = CandidateKind::from_code(head[0]) {
                candidates.push(Candidate { addr, kind });
            }
        }
        Some(Self {
            mapping: NatMapping::from_code(flags),
            lost: flags & 4 != 0,
            settled: flags & 8 != 0,
            sequence,
            seen,
            candidates,
        })
    }
}

/// Whether a sequence number is newer than another, 0 being older than all.
pub(super) fn is_newer(a: u32, b: u32) -> bool {
    b == 0 || (a != b && a.wrapping_sub(b) < 1 << 31)
}
