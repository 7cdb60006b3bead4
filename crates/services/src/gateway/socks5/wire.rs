//! SOCKS5 messages: RFC 1928 (greeting, request, reply) and RFC 1929 (name and password).
//!
//! Parsers take what has come so far: `Ok(None)` means "not complete yet". None of them asks for more than
//! [`MAX_MESSAGE`] bytes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest message of a client: version, name and password with their lengths.
pub const MAX_MESSAGE: usize = 513;

/// Method "no authentication".
pub const NO_AUTH: u8 = 0x00;
/// Method "name and password" (RFC 1929).
pub const PASSWORD: u8 = 0x02;
/// No method is acceptable.
pub const NO_METHOD: u8 = 0xFF;

/// What is wrong with a message: the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocksError {
    /// Another version than 5 (or 1 of RFC 1929): a browser set to SOCKS4 or HTTP, most likely.
    Version(u8),
    /// A type of address that RFC 1928 does not have.
    AddressType(u8),
    /// A name that is no UTF-8 or empty.
    Name,
}

impl fmt::Display for SocksError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version {version} where SOCKS 5 was expected"),
            Self::AddressType(kind) => write!(f, "unknown type of address {kind}"),
            Self::Name => f.write_str("the name is empty or not UTF-8"),
        }
    }
}

impl std::error::Error for SocksError {}

/// A parsed message and its length.
pub type Parsed<T> = Result<Option<(T, usize)>, SocksError>;

/// The client's greeting: the methods that it offers.
///
/// # Errors
/// Another version.
pub fn greeting(bytes: &[u8]) -> Parsed<&[u8]> {
    let Some((&version, rest)) = bytes.split_first() else { return Ok(None) };
    if version != 5 {
        return Err(SocksError::Version(version));
    }
    let Some((&count, rest)) = rest.split_first() else { return Ok(None) };
    let count = usize::from(count);
    Ok(rest.get(..count).map(|methods| (methods, 2 + count)))
}

/// Name and password of RFC 1929: any bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The password.
    pub password: &'a [u8],
}

/// The client's name and password.
///
/// # Errors
/// Another version than 1.
pub fn credentials(bytes: &[u8]) -> Parsed<Credentials<'_>> {
    let Some((&version, rest)) = bytes.split_first() else { return Ok(None) };
    if version != 1 {
        return Err(SocksError::Version(version));
    }
    let Some((name, rest)) = counted(rest) else { return Ok(None) };
    let Some((password, _)) = counted(rest) else { return Ok(None) };
    Ok(Some((Credentials { name, password }, 3 + name.len() + password.len())))
}

/// A length byte and that many bytes, and what follows.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(len))
}

/// Whom a client wants to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host<'a> {
    /// A name, or whatever text it sent as one.
    Name(&'a str),
    /// An IP address.
    Ip(IpAddr),
}

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(ip) => write!(f, "{ip}"),
        }
    }
}

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// 1 CONNECT, 2 BIND, 3 UDP ASSOCIATE.
    pub command: u8,
    /// Whom to reach.
    pub host: Host<'a>,
    /// Which port.
    pub port: u16,
}

/// Command CONNECT.
pub const CONNECT: u8 = 1;

/// The client's request.
///
/// # Errors
/// Another version, an unknown type of address, a name that is none.
pub fn request(bytes: &[u8]) -> Parsed<Request<'_>> {
    let Some((&version, rest)) = bytes.split_first() else { return Ok(None) };
    if version != 5 {
        return Err(SocksError::Version(version));
    }
    let [command, _reserved, kind, rest @ ..] = rest else { return Ok(None) };
    let (host, rest) = match kind {
        1 => match rest.split_first_chunk::<4>() {
            Some((ip, rest)) => (Host::Ip(Ipv4Addr::from(*ip).into()), rest),
            None => return Ok(None),
        },
        4 => match rest.split_first_chunk::<16>() {
            Some((ip, rest)) => (Host::Ip(Ipv6Addr::from(*ip).into()), rest),
            None => return Ok(None),
        },
        3 => match counted(rest) {
            Some((name, rest)) => (Host::Name(text(name)?), rest),
            None => return Ok(None),
        },
        other => return Err(SocksError::AddressType(*other)),
    };
    let Some((port, left)) = rest.split_first_chunk::<2>() else { return Ok(None) };
    let request = Request { command: *command, host, port: u16::from_be_bytes(*port) };
    Ok(Some((request, bytes.len() - left.len())))
}

fn text(name: &[u8]) -> Result<&str, SocksError> {
    std::str::from_utf8(name).ok().filter(|name| !name.is_empty()).ok_or(SocksError::Name)
}

/// Answers to a request, RFC 1928 §6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// Connected.
    Succeeded = 0,
    /// Something else went wrong.
    Failed = 1,
    /// We do not lead there.
    NotAllowed = 2,
    /// The peer cannot be reached.
    HostUnreachable = 4,
    /// Nothing listens on that port.
    Refused = 5,
    /// The peer did not answer in time.
    TimedOut = 6,
    /// Not CONNECT.
    Command = 7,
    /// Not a type of address that we take.
    AddressType = 8,
}

impl Answer {
    /// The message; the bound address is not known, which RFC 1928 says by zeros.
    pub fn encode(self) -> [u8; 10] {
        [5, self as u8, 0, 1, 0, 0, 0, 0, 0, 0]
    }
}

/// For the fuzzer: what parses whole does not parse when cut, and no parser reads beyond its message.
#[doc(hidden)]
pub fn fuzz_input(bytes: &[u8]) {
    fn check<T: PartialEq + fmt::Debug>(
        bytes: &[u8],
        len: usize,
        again: impl Fn(&[u8]) -> Option<(T, usize)>,
    ) {
        assert!((1..=MAX_MESSAGE).contains(&len) && len <= bytes.len());
        let whole = again(&bytes[..len]);
        assert!(whole.is_some(), "the message alone");
        assert_eq!(whole, again(bytes), "what follows changes nothing");
        assert_eq!(again(&bytes[..len - 1]), None, "cut");
    }
    if let Ok(Some((_, len))) = greeting(bytes) {
        check(bytes, len, |b| greeting(b).ok().flatten().map(|(m, len)| (m.to_vec(), len)));
    }
    if let Ok(Some((_, len))) = credentials(bytes) {
        check(bytes, len, |b| {
            credentials(b).ok().flatten().map(|(c, len)| ((c.name.to_vec(), c.password.to_vec()), len))
        });
    }
    if let Ok(Some((_, len))) = request(bytes) {
        check(bytes, len, |b| {
            request(b).ok().flatten().map(|(r, len)| ((r.command, r.host.to_string(), r.port), len))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_rfcs() {
        assert_eq!(greeting(b"\x05\x02\x00\x02rest"), Ok(Some((&[0, 2][..], 4))));
        assert_eq!(greeting(b"\x05\x00"), Ok(Some((&[][..], 2))));
        assert_eq!(greeting(b"\x04\x01"), Err(SocksError::Version(4)));
        assert_eq!(greeting(b"GET /"), Err(SocksError::Version(b'G')));
        let got = credentials(b"\x01\x03ann\x02pw").expect("version").expect("whole");
        assert_eq!((got.0.name, got.0.password, got.1), (&b"ann"[..], &b"pw"[..], 8));
        let (got, len) = request(b"\x05\x01\x00\x03\x09bob.pilot\x13\x88+").expect("request").expect("whole");
        assert_eq!((got.command, got.host, got.port, len), (CONNECT, Host::Name("bob.pilot"), 5000, 16));
        let (got, _) = request(b"\x05\x01\x00\x01\x7f\0\0\x01\0\x50").expect("request").expect("whole");
        assert_eq!((got.host, got.port), (Host::Ip([127, 0, 0, 1].into()), 80));
        let v6 = [&b"\x05\x01\0\x04"[..], &[0; 15], b"\x01\0\x50"].concat();
        assert_eq!(
            request(&v6).expect("request").expect("whole").0.host,
            Host::Ip(Ipv6Addr::LOCALHOST.into())
        );
        assert_eq!(request(b"\x05\x01\0\x02"), Err(SocksError::AddressType(2)));
        assert_eq!(request(b"\x05\x01\0\x03\0\0\x50"), Err(SocksError::Name));
        assert_eq!(request(b"\x05\x01\0\x03\x01\xFF\0\x50"), Err(SocksError::Name));
        assert_eq!(Answer::Refused.encode(), [5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn cuts_and_tails() {
        let longest = [&[1, 255][..], &[b'u'; 255], &[255], &[b'p'; 255]].concat();
        assert_eq!(longest.len(), MAX_MESSAGE);
        for bytes in [
            &b"\x05\x02\x00\x02rest"[..],
            b"\x01\x03ann\x02pw",
            b"\x05\x01\x00\x03\x09bob.pilot\x13\x88+",
            b"\x05\x01\x00\x01\x7f\0\0\x01\0\x50",
            &longest,
        ] {
            fuzz_input(bytes);
            for cut in 0..bytes.len() {
                fuzz_input(&bytes[..cut]);
            }
        }
    }
}
