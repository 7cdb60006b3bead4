//! `wss://HOST[:PORT][/PATH]`.

use std::fmt;
use std::str::FromStr;

use super::PATH;

/// Port where none is given.
const DEFAULT_PORT: u16 = 443;
/// Longest URL, in bytes.
const MAX_LEN: usize = 1024;

/// Where a hub takes links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WssUrl {
    /// Name or IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Resource, with its slash.
    pub path: String,
}

/// Why a text is no such URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme, or none.
    #[error("expected wss://HOST[:PORT][/PATH]")]
    Scheme,
    /// No host, or one with characters that no host has.
    #[error("the host is missing or has characters that do not belong there")]
    Host,
    /// Not 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// The path has characters that do not belong there, or all of it is too long.
    #[error("the path has characters that do not belong there, or the URL is longer than 1,024 bytes")]
    Path,
}

impl WssUrl {
    /// Port 443 of a host, the usual path.
    ///
    /// # Errors
    /// The text is no host.
    pub fn of_host(host: &str) -> Result<Self, UrlError> {
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        check_host(host)?;
        Ok(Self { host: host.to_owned(), port: DEFAULT_PORT, path: PATH.to_owned() })
    }

    /// `HOST:PORT`, with brackets where needed.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for WssUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wss://{}{}", self.authority(), self.path)
    }
}

impl FromStr for WssUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.len() > MAX_LEN {
            return Err(UrlError::Path);
        }
        let scheme = text.get(..6).filter(|scheme| scheme.eq_ignore_ascii_case("wss://"));
        let rest = &text[scheme.ok_or(UrlError::Scheme)?.len()..];
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, PATH),
        };
        let path = if path == "/" { PATH } else { path };
        if !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(UrlError::Path);
        }
        let (host, port) = split_authority(authority).ok_or(UrlError::Host)?;
        check_host(host)?;
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(UrlError::Port)?,
        };
        Ok(Self { host: host.to_owned(), port, path: path.to_owned() })
    }
}

/// `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`.
pub(crate) fn split_authority(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        return match after.strip_prefix(':') {
            Some(port) => Some((host, Some(port))),
            None if after.is_empty() => Some((host, None)),
            None => None,
        };
    }
    match text.split_once(':') {
        Some((host, port)) => Some((host, Some(port))),
        None => Some((text, None)),
    }
}

/// What may stand in a header without ending it: letters, digits, `-`, `.`, `_`, and `:` of IPv6.
pub(crate) fn check_host(host: &str) -> Result<(), UrlError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    let v6 = !host.contains(':') || host.parse::<std::net::Ipv6Addr>().is_ok();
    if !host.is_empty() && host.len() <= 255 && host.bytes().all(good) && v6 {
        Ok(())
    } else {
        Err(UrlError::Host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, shown) in [
            ("wss://hub.example", "wss://hub.example:443/pilotage/beacon"),
            ("WSS://hub.example/", "wss://hub.example:443/pilotage/beacon"),
            ("wss://hub.example:8443/x?y=z", "wss://hub.example:8443/x?y=z"),
            ("wss://[::1]:4430", "wss://[::1]:4430/pilotage/beacon"),
            ("wss://192.0.2.1", "wss://192.0.2.1:443/pilotage/beacon"),
        ] {
            let url: WssUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(shown.parse::<WssUrl>().unwrap(), url);
        }
        assert_eq!(WssUrl::of_host("[::1]").unwrap().authority(), "[::1]:443");
        for (text, error) in [
            ("hub.example", UrlError::Scheme),
            ("ws://hub.example", UrlError::Scheme),
            ("wss://", UrlError::Host),
            ("wss://a b", UrlError::Host),
            ("wss://::1", UrlError::Host),
            ("wss://[::1", UrlError::Host),
            ("wss://[::1]x", UrlError::Host),
            ("wss://h:0", UrlError::Port),
            ("wss://h:65536", UrlError::Port),
            ("wss://h/a\r\nb", UrlError::Path),
        ] {
            assert_eq!(text.parse::<WssUrl>(), Err(error), "{text}");
        }
        assert_eq!(format!("wss://h/{}", "x".repeat(2000)).parse::<WssUrl>(), Err(UrlError::Path));
        assert!(WssUrl::of_host("a:b").is_err() && WssUrl::of_host("é").is_err());
    }
}
