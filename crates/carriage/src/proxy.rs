//! Proxies: which one, from the variables that other programs know; and what it answers to `CONNECT` (RFC 9110 §9.3.6).

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::url::{check_host, split_authority};

/// Longest proxy URL, in bytes.
const MAX_LEN: usize = 1024;
/// Port of a proxy that names none.
const DEFAULT_PORT: u16 = 80;
/// Most entries of `NO_PROXY` that are looked at.
const MAX_EXCEPTIONS: usize = 256;

/// An HTTP proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Name or IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Value of `Proxy-Authorization`, if the URL has a user.
    authorization: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password stays out of logs.
        write!(f, "Proxy({}:{})", self.host, self.port)
    }
}

/// Why a proxy cannot be used. The text never holds a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Not `http://[USER:PASSWORD@]HOST[:PORT]`.
    #[error("{variable}: expected http://[USER:PASSWORD@]HOST[:PORT]; other kinds of proxies are not spoken")]
    Variable {
        /// Where it stands.
        variable: &'static str,
    },
    /// The answer is no HTTP.
    #[error("the proxy's answer is no HTTP")]
    NotHttp,
    /// It said no.
    #[error("the proxy refused: {status}")]
    Refused {
        /// Its status.
        status: u16,
    },
}

/// In this order; curl takes the small letters first as well.
const VARIABLES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
const EXCEPTIONS: [&str; 2] = ["no_proxy", "NO_PROXY"];

impl Proxy {
    /// The proxy for connections to `host:port`, by the variables that `variable` knows; `None` for none.
    ///
    /// # Errors
    /// The variable that counts is not understood. Then nothing is dialled: a user who names a proxy wants one.
    pub fn from_environment(
        host: &str,
        port: u16,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ProxyError> {
        // A proxy's loopback is not ours.
        if host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback()) {
            return Ok(None);
        }
        let set = |name: &&str| variable(name).filter(|value| !value.is_empty());
        let Some((name, value)) = VARIABLES.iter().find_map(|name| Some((*name, set(name)?))) else {
            return Ok(None);
        };
        if EXCEPTIONS.iter().find_map(set).is_some_and(|list| is_excepted(&list, host, port)) {
            return Ok(None);
        }
        Self::parse(&value).map(Some).ok_or(ProxyError::Variable { variable: name })
    }

    /// `[http://][USER[:PASSWORD]@]HOST[:PORT][/]`.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_LEN {
            return None;
        }
        let rest = match text.split_once("://") {
            Some((scheme, rest)) => scheme.eq_ignore_ascii_case("http").then_some(rest)?,
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, authority) = match rest.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, rest),
        };
        let (host, port) = split_authority(authority)?;
        check_host(host).ok()?;
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port != 0)?,
            None => DEFAULT_PORT,
        };
        let authorization = match user {
            Some(user) => {
                let (name, password) = user.split_once(':').unwrap_or((user, ""));
                let pair = [percent_decode(name)?, b":".to_vec(), percent_decode(password)?].concat();
                Some(format!("Basic {}", STANDARD.encode(pair)))
            }
            None => None,
        };
        Some(Self { host: host.to_owned(), port, authorization })
    }

    /// The request for a connection to `authority` (`HOST:PORT`).
    pub(crate) fn request(&self, authority: &str) -> String {
        let authorization = match &self.authorization {
            Some(value) => format!("Proxy-Authorization: {value}\r\n"),
            None => String::new(),
        };
        format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n")
    }
}

/// The answer of a proxy, up to and with the empty line.
///
/// # Errors
/// It refused, or speaks something else.
pub fn connect_reply(head: &[u8]) -> Result<(), ProxyError> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| ProxyError::NotHttp)?.trim_end_matches('\r');
    let mut words = line.split(' ');
    let version = words.next().unwrap_or_default();
    let status =
        words.next().filter(|word| word.len() == 3 && word.bytes().all(|byte| byte.is_ascii_digit()));
    match (matches!(version, "HTTP/1.1" | "HTTP/1.0"), status.and_then(|word| word.parse::<u16>().ok())) {
        (true, Some(200..=299)) => Ok(()),
        (true, Some(status)) => Err(ProxyError::Refused { status }),
        _ => Err(ProxyError::NotHttp),
    }
}

/// Whether a list like `.example.com, 10.0.0.0/8, host:8443, *` names this host.
fn is_excepted(list: &str, host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let ip: Option<IpAddr> = host.parse().ok();
    list.split([',', ' ']).filter(|entry| !entry.is_empty()).take(MAX_EXCEPTIONS).any(|entry| {
        let entry = entry.to_ascii_lowercase();
        if entry == "*" {
            return true;
        }
        if let (Some(ip), Some((network, bits))) = (ip, entry.split_once('/')) {
            return in_network(ip, network, bits);
        }
        if let (Some(ip), Ok(entry)) = (ip, entry.parse::<IpAddr>()) {
            return ip.to_canonical() == entry.to_canonical();
        }
        let Some((name, only_port)) = split_authority(&entry) else { return false };
        if only_port.is_some_and(|only| only != port.to_string()) {
            return false;
        }
        let name = name.trim_start_matches('.').trim_end_matches('.');
        let suffix = host.strip_suffix(name);
        !name.is_empty()
            && suffix.is_some_and(|rest| rest.is_empty() || (ip.is_none() && rest.ends_with('.')))
    })
}

fn in_network(ip: IpAddr, network: &str, bits: &str) -> bool {
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let same = |a: u128, b: u128, width: u32| bits == 0 || (bits <= width && (a ^ b) >> (width - bits) == 0);
    match (ip.to_canonical(), network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(host: &str, variables: &[(&str, &str)]) -> Result<Option<Proxy>, ProxyError> {
        Proxy::from_environment(host, 443, |name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_variables_of_other_programs_count() {
        assert_eq!(choose("hub", &[]), Ok(None));
        assert_eq!(choose("127.0.0.1", &[("ALL_PROXY", "http://p:3128")]), Ok(None));
        let proxy =
            choose("hub", &[("ALL_PROXY", "http://p:3128"), ("no_proxy", "localhost")]).unwrap().unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("p", 3128));
        let proxy = choose("hub", &[("ALL_PROXY", "http://p:1"), ("HTTPS_PROXY", "q/")]).unwrap().unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("q", 80));
        let error = choose("hub", &[("HTTPS_PROXY", "socks5://p:1")]);
        assert_eq!(error, Err(ProxyError::Variable { variable: "HTTPS_PROXY" }));
        assert_eq!(choose("hub", &[("HTTPS_PROXY", "socks5://p:1"), ("NO_PROXY", "*")]), Ok(None));
    }

    #[test]
    fn exceptions() {
        for (list, host, excepted) in [
            ("example.com", "example.com", true),
            ("example.com", "a.example.com", true),
            (".example.com", "a.example.com", true),
            ("example.com", "badexample.com", false),
            ("EXAMPLE.com:443", "example.COM", true),
            ("example.com:80", "example.com", false),
            ("a, b , 127.0.0.1", "127.0.0.1", true),
            ("10.0.0.0/8", "10.9.8.7", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("10.0.0.0/99", "10.0.0.1", false),
            ("::1", "::1", true),
            ("2001:db8::/32", "2001:db8::9", true),
            ("0.1", "10.0.0.1", false),
            ("", "x", false),
            (".", "x", false),
        ] {
            assert_eq!(is_excepted(list, host, 443), excepted, "{list} {host}");
        }
    }

    #[test]
    fn a_user_becomes_basic_authorization() {
        let proxy = Proxy::parse("http://Aladdin:open%20sesame@[::1]:8080/").unwrap();
        assert_eq!(proxy.authorization.as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert!(
            proxy.request("hub:443").starts_with("CONNECT hub:443 HTTP/1.1\r\nHost: hub:443\r\nProxy-Auth")
        );
        assert!(!format!("{proxy:?}").contains("QWxh"));
        assert!(!Proxy::parse("p:1").unwrap().request("hub:443").contains("Auth"));
        for bad in ["", "http://", "https://p", "http://p:0", "http://p:x", "http://a%zz@p", "http://p\r\nx"]
        {
            assert_eq!(Proxy::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Proxy::parse(&"p".repeat(2000)), None);
    }

    #[test]
    fn answers_of_proxies() {
        assert_eq!(connect_reply(b"HTTP/1.1 200 Connection established\r\n\r\n"), Ok(()));
        assert_eq!(connect_reply(b"HTTP/1.0 200\r\n\r\n"), Ok(()));
        assert_eq!(connect_reply(b"HTTP/1.1 407 Auth\r\n\r\n"), Err(ProxyError::Refused { status: 407 }));
        for bad in
            [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1 2000 x\r\n", b"HTTP/1.1 +20 x\r\n", b"\xff\xff\r\n"]
        {
            assert_eq!(connect_reply(bad), Err(ProxyError::NotHttp), "{bad:?}");
        }
    }
}
