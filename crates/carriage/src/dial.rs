//! Opening a link: TCP, perhaps a proxy, TLS, WebSocket. Blocks, for a bounded time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

use mio::{Events, Interest, Poll, Token};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tungstenite::HandshakeError;
use tungstenite::client::ClientRequestBuilder;

use crate::link::{Link, websocket_config};
use crate::proxy::{Proxy, ProxyError, connect_reply};
use crate::tls::{TlsStream, fingerprint};
use crate::trust::{Evidence, Trust, client_config};
use crate::url::WssUrl;
use crate::{SUBPROTOCOL, TIME_HEADER};

/// Longest answer of a proxy, in bytes.
const MAX_REPLY: usize = 8 * 1024;
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// Opens links to one hub.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// Where.
    pub url: WssUrl,
    /// Whom to take for the hub.
    pub trust: Trust,
    /// Through which proxy.
    pub proxy: Option<Proxy>,
    /// How long it may take in all, names apart.
    pub timeout: Duration,
}

/// An open link.
#[derive(Debug)]
pub struct Dialed {
    /// The link.
    pub link: Link,
    /// Why the hub was taken for the hub: keep it for the next time.
    pub evidence: Evidence,
    /// SHA-256 of its certificate.
    pub fingerprint: [u8; 32],
    /// Time from the first packet to the open link.
    pub took: Duration,
    /// The hub's clock is ahead of ours by so many milliseconds, give or take the time of its answer.
    pub clock_ahead_ms: Option<i64>,
}

/// At which step it failed, and why.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("{host}: {detail}")]
    Name {
        /// The name.
        host: String,
        /// Why.
        detail: String,
    },
    /// No TCP connection.
    #[error("TCP to {to}: {source}")]
    Connect {
        /// Where to: the hub or the proxy.
        to: String,
        /// Why.
        source: io::Error,
    },
    /// The proxy did not help.
    #[error("proxy {proxy}: {source}")]
    Proxy {
        /// Which.
        proxy: String,
        /// Why.
        source: ProxyError,
    },
    /// TLS failed: the certificate, most likely.
    #[error("TLS with {to}: {detail}")]
    Tls {
        /// The hub.
        to: String,
        /// Why.
        detail: String,
    },
    /// No WebSocket of ours is there.
    #[error("WebSocket at {url}: {detail}")]
    WebSocket {
        /// The URL.
        url: String,
        /// Why.
        detail: String,
    },
}

impl Dialer {
    /// Opens a link.
    ///
    /// # Errors
    /// Say which step failed.
    pub fn dial(&self) -> Result<Dialed, DialError> {
        let start = Instant::now();
        let deadline = start + self.timeout;
        let authority = self.url.authority();
        let stream = match &self.proxy {
            None => connect(&self.url.host, self.url.port, deadline)?,
            Some(proxy) => through(proxy, &authority, deadline)?,
        };
        let tls = |detail: String| DialError::Tls { to: authority.clone(), detail };
        let (config, evidence) = client_config(&self.trust).map_err(|error| tls(error.to_string()))?;
        let name = ServerName::try_from(self.url.host.clone()).map_err(|error| tls(error.to_string()))?;
        let session = ClientConnection::new(config, name).map_err(|error| tls(error.to_string()))?;
        let prepared = stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
        prepared.map_err(|source| DialError::Connect { to: authority.clone(), source })?;
        let stream = TlsStream::new(session.into(), mio::net::TcpStream::from_std(stream));
        let link = self.upgrade(stream, deadline)?;
        let (mut link, fingerprint, clock_ahead_ms) = link;
        let evidence = *evidence.lock().unwrap_or_else(PoisonError::into_inner);
        let evidence = evidence.ok_or_else(|| tls("no certificate was shown".into()))?;
        link.strange = 0;
        Ok(Dialed { link, evidence, fingerprint, took: start.elapsed(), clock_ahead_ms })
    }

    /// The handshakes of TLS and WebSocket.
    fn upgrade(
        &self,
        mut stream: TlsStream<mio::net::TcpStream>,
        deadline: Instant,
    ) -> Result<(Link, [u8; 32], Option<i64>), DialError> {
        let url = self.url.to_string();
        let failed = |detail: String| DialError::WebSocket { url: url.clone(), detail };
        let broken = |error: io::Error| failed(error.to_string());
        let uri = url.parse().map_err(|error| failed(format!("{error}")))?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(SUBPROTOCOL);
        let mut poll = Poll::new().map_err(broken)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream.socket, Token(0), both).map_err(broken)?;
        let mut events = Events::with_capacity(2);
        let mut attempt = tungstenite::client::client_with_config(request, stream, Some(websocket_config()));
        let asked = SystemTime::now();
        let (mut socket, response) = loop {
            match attempt {
                Ok(done) => break done,
                Err(HandshakeError::Failure(error)) => return Err(self.explain(error)),
                Err(HandshakeError::Interrupted(handshake)) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(failed("no answer in time".into()));
                    }
                    match poll.poll(&mut events, Some(left)) {
                        Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                            return Err(broken(error));
                        }
                        _ => attempt = handshake.handshake(),
                    }
                }
            }
        };
        let stream = socket.get_mut();
        poll.registry().deregister(&mut stream.socket).map_err(broken)?;
        let pin = stream.peer_certificate().map(|leaf| fingerprint(leaf)).unwrap_or_default();
        let told =
            response.headers().get(TIME_HEADER).and_then(|value| value.to_str().ok()?.parse::<i64>().ok());
        let ahead =
            told.and_then(|theirs| theirs.checked_sub((unix_ms(asked) + unix_ms(SystemTime::now())) / 2));
        Ok((Link::new(socket), pin, ahead))
    }

    fn explain(&self, error: tungstenite::Error) -> DialError {
        use tungstenite::Error;
        match error {
            // Whatever the session says comes through here.
            Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                DialError::Tls { to: self.url.authority(), detail: error.to_string() }
            }
            Error::Http(response) => DialError::WebSocket {
                url: self.url.to_string(),
                detail: format!("HTTP status {}: this is no hub's WebSocket", response.status().as_u16()),
            },
            other => DialError::WebSocket { url: self.url.to_string(), detail: other.to_string() },
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX / 4)
}

/// TCP to the first address of a name that answers.
fn connect(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, DialError> {
    let name = |detail: String| DialError::Name { host: host.to_owned(), detail };
    let found: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| name(error.to_string()))?
        .take(MAX_ADDRESSES)
        .collect();
    let mut last = None;
    for (tried, address) in found.iter().enumerate() {
        // Each gets its share of the time, so that one that swallows everything does not cost all of it.
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(found.len() - tried).unwrap_or(1);
        match TcpStream::connect_timeout(address, share.max(Duration::from_millis(1))) {
            Ok(stream) => return Ok(stream),
            Err(source) => last = Some(DialError::Connect { to: address.to_string(), source }),
        }
    }
    Err(last.unwrap_or_else(|| name("no address".into())))
}

/// TCP to the hub by way of a proxy.
fn through(proxy: &Proxy, authority: &str, deadline: Instant) -> Result<TcpStream, DialError> {
    let mut stream = connect(&proxy.host, proxy.port, deadline)?;
    let at = format!("{}:{}", proxy.host, proxy.port);
    let broken = |source: io::Error| DialError::Connect { to: at.clone(), source };
    let limit = |stream: &TcpStream| {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        stream.set_read_timeout(Some(left))?;
        stream.set_write_timeout(Some(left))
    };
    limit(&stream).and_then(|()| stream.write_all(proxy.request(authority).as_bytes())).map_err(broken)?;
    let mut head = Vec::new();
    // Byte by byte: what follows belongs to TLS.
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if head.len() >= MAX_REPLY {
            return Err(DialError::Proxy { proxy: at, source: ProxyError::NotHttp });
        }
        match limit(&stream).and_then(|()| stream.read(&mut byte)).map_err(broken)? {
            0 => return Err(DialError::Proxy { proxy: at, source: ProxyError::NotHttp }),
            _ => head.push(byte[0]),
        }
    }
    connect_reply(&head).map_err(|source| DialError::Proxy { proxy: at, source })?;
    Ok(stream)
}
