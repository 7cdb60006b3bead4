//! One connection at the hub: first its handshakes, then a link.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use mio::net::TcpStream;
use rustls::ServerConnection;
use tungstenite::handshake::MidHandshake;
use tungstenite::handshake::server::{Callback, ErrorResponse, Request, Response, ServerHandshake};
use tungstenite::http::{HeaderValue, StatusCode};
use tungstenite::{HandshakeError, WebSocket};

use super::Limits;
use super::side::Shared;
use crate::dial::unix_ms;
use crate::link::{Link, websocket_config};
use crate::tls::TlsStream;
use crate::{PATH, SUBPROTOCOL, TIME_HEADER};

/// Datagrams read from one link before the others get their turn.
const TURN: usize = 64;

type Stream = TlsStream<TcpStream>;
type Handshake = MidHandshake<ServerHandshake<Stream, Gatekeeper>>;

/// How it goes on with a connection.
pub(super) enum Fate {
    /// Nothing to do until the socket says so.
    Done,
    /// There is more to read.
    More,
    /// It has ended.
    Over(&'static str),
}

enum Phase {
    Handshake(Box<Handshake>),
    Open(Box<Link>),
    /// Taken out while it is worked on.
    Gone,
}

pub(super) struct Connection {
    phase: Phase,
    source: IpAddr,
    address: SocketAddr,
    began: Instant,
    heard: Instant,
    limits: Limits,
    datagrams: Bucket,
    bytes: Bucket,
}

impl Connection {
    pub(super) fn new(
        stream: TcpStream,
        session: ServerConnection,
        source: IpAddr,
        address: SocketAddr,
        now: Instant,
        limits: Limits,
    ) -> Self {
        let stream = TlsStream::new(session.into(), stream);
        let handshake = ServerHandshake::start(stream, Gatekeeper, Some(websocket_config()));
        Self {
            phase: Phase::Handshake(Box::new(handshake)),
            source,
            address,
            began: now,
            heard: now,
            limits,
            datagrams: Bucket::new(limits.datagrams_per_second, now),
            bytes: Bucket::new(limits.bytes_per_second, now),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn source(&self) -> IpAddr {
        self.source
    }

    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Open(_) => now.saturating_duration_since(self.heard) > self.limits.idle,
            _ => now.saturating_duration_since(self.began) > self.limits.handshake,
        }
    }

    pub(super) fn close(self) {
        if let Phase::Open(link) = self.phase {
            link.close();
        }
    }

    /// Goes on as far as the socket allows, but not for too long.
    pub(super) fn advance(&mut self, now: Instant, shared: &Shared) -> Fate {
        match std::mem::replace(&mut self.phase, Phase::Gone) {
            Phase::Handshake(handshake) => match handshake.handshake() {
                Ok(socket) => self.open(socket, now, shared),
                Err(HandshakeError::Interrupted(handshake)) => {
                    self.phase = Phase::Handshake(Box::new(handshake));
                    Fate::Done
                }
                Err(HandshakeError::Failure(_)) => Fate::Over("no handshake"),
            },
            Phase::Open(mut link) => {
                let fate = self.exchange(&mut link, now, shared);
                self.phase = Phase::Open(link);
                fate
            }
            Phase::Gone => Fate::Over("gone"),
        }
    }

    fn open(&mut self, socket: WebSocket<Stream>, now: Instant, shared: &Shared) -> Fate {
        shared.know(self.address);
        self.heard = now;
        let mut link = Box::new(Link::new(socket));
        let fate = self.exchange(&mut link, now, shared);
        self.phase = Phase::Open(link);
        fate
    }

    fn exchange(&mut self, link: &mut Link, now: Instant, shared: &Shared) -> Fate {
        let mut fate = Fate::More;
        for _ in 0..TURN {
            match link.receive() {
                Ok(Some(data)) => {
                    self.heard = now;
                    let bytes = data.len() as f64;
                    if self.datagrams.take(1.0, now) && self.bytes.take(bytes, now) {
                        shared.arrived(self.address, data.to_vec());
                    } else {
                        shared.stats.drop_budget.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(None) => {
                    fate = Fate::Done;
                    break;
                }
                Err(_) => {
                    shared.stats.drop_strange.fetch_add(link.strange, Ordering::Relaxed);
                    return Fate::Over("ended by the other side");
                }
            }
        }
        shared.stats.drop_strange.fetch_add(std::mem::take(&mut link.strange), Ordering::Relaxed);
        match self.write(link, shared) {
            Ok(()) => fate,
            Err(reason) => Fate::Over(reason),
        }
    }

    fn write(&self, link: &mut Link, shared: &Shared) -> Result<(), &'static str> {
        while let Some(datagram) = shared.next_for(self.address) {
            match link.send(&datagram) {
                Ok(true) => {
                    shared.stats.datagrams_out.fetch_add(1, Ordering::Relaxed);
                }
                Ok(false) => {
                    shared.put_back(self.address, datagram);
                    break;
                }
                Err(_) => return Err("not to be written to"),
            }
        }
        link.flush().map(drop).map_err(|_| "not to be written to")
    }
}

/// Lets those in that ask for our resource and speak our version.
struct Gatekeeper;

impl Callback for Gatekeeper {
    fn on_request(self, request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
        let refuse = |status| {
            let mut refusal = ErrorResponse::new(None);
            *refusal.status_mut() = status;
            refusal
        };
        if request.uri().path() != PATH {
            return Err(refuse(StatusCode::NOT_FOUND));
        }
        let asked = request.headers().get("Sec-WebSocket-Protocol").and_then(|value| value.to_str().ok());
        if !asked.is_some_and(|asked| asked.split(',').any(|one| one.trim() == SUBPROTOCOL)) {
            return Err(refuse(StatusCode::BAD_REQUEST));
        }
        response.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
        response.headers_mut().insert(TIME_HEADER, HeaderValue::from(unix_ms(SystemTime::now())));
        Ok(response)
    }
}

/// So much per second, and as much at once.
struct Bucket {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second: per_second.into(), left: per_second.into(), at: now }
    }

    fn take(&mut self, amount: f64, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + since * self.per_second).min(self.per_second);
        let allowed = self.left >= amount;
        if allowed {
            self.left -= amount;
        }
        allowed
    }
}
