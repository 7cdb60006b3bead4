//! A SOCKS5 proxy whose clients name peers: `bob.pilot`, or an address.
//!
//! CONNECT only. Without a password it listens on loopback alone: whoever reaches it speaks as our node.

pub mod wire;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use pilotage::Peer;

use super::relay::write_all;
use super::sessions::{Place, Running, Sessions, accept_tcp};
use super::{Dialer, Limits, Observer};
use crate::Duplex;
use wire::{Answer, Host};

/// What names of peers end in, for a proxy.
pub const SUFFIX: &str = ".pilot";

/// Who may use the proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Password {
    name: blake3::Hash,
    password: blake3::Hash,
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

impl Password {
    /// Clients must show this name and password, each 1 to 255 bytes; `None` otherwise.
    pub fn new(name: &str, password: &str) -> Option<Self> {
        let fits = |text: &str| (1..=255).contains(&text.len());
        let hash = |text: &str| blake3::hash(text.as_bytes());
        (fits(name) && fits(password)).then(|| Self { name: hash(name), password: hash(password) })
    }

    /// Hashes compare in constant time.
    fn admits(&self, shown: &wire::Credentials<'_>) -> bool {
        let name = blake3::hash(shown.name) == self.name;
        let password = blake3::hash(shown.password) == self.password;
        name & password
    }
}

/// Listens on `local` for SOCKS5 clients.
///
/// # Errors
/// `PermissionDenied` for an address other than loopback without a password; otherwise the address cannot be listened
/// on, or there is no thread.
pub fn socks5(
    dialer: Arc<dyn Dialer>,
    local: SocketAddr,
    password: Option<Password>,
    limits: Limits,
    observer: Observer,
) -> io::Result<Running> {
    if password.is_none() && !local.ip().is_loopback() {
        let text = "a proxy without a password listens on loopback only, as its clients speak as this node";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let listener = TcpListener::bind(local)?;
    let sessions = Sessions::new(limits, observer);
    let local = accept_tcp(listener, &sessions, "SOCKS5 proxy", move |place, stream, from| {
        handle(place, stream, from, &*dialer, password.as_ref());
    })?;
    Ok(Running { sessions, local: vec![local] })
}

/// Which peer a client means. `None` for names that lie outside the overlay.
pub fn peer_of(host: &Host<'_>) -> Option<Peer> {
    let Host::Name(name) = host else { return None };
    let name = name.strip_suffix('.').unwrap_or(name);
    let cut = name.len().checked_sub(SUFFIX.len()).filter(|cut| name.is_char_boundary(*cut))?;
    let (stem, suffix) = name.split_at(cut);
    let text = if suffix.eq_ignore_ascii_case(SUFFIX) { stem.to_ascii_lowercase() } else { name.to_owned() };
    match text.parse() {
        Ok(Peer::Name(_)) if text.len() == name.len() => None,
        // Whose UDP endpoint is asked is not for a proxy's client to say.
        Ok(Peer::At(..)) | Err(_) => None,
        Ok(peer) => Some(peer),
    }
}

fn handle(
    place: &Place,
    stream: TcpStream,
    from: SocketAddr,
    dialer: &dyn Dialer,
    password: Option<&Password>,
) {
    let from = from.to_string();
    let stream: Arc<dyn Duplex> = Arc::new(stream);
    place.track(&stream);
    let mut client = Client {
        stream: &stream,
        came: Vec::new(),
        deadline: Instant::now() + place.sessions().limits.patience,
    };
    let target = match client.negotiate(password) {
        Ok(target) => target,
        Err(error) => {
            place.sessions().refuse(&from, "?", error);
            return;
        }
    };
    let to = format!("{} port {}", target.peer, target.port);
    match dialer.dial(&target.peer, target.port) {
        Ok(far) => {
            // The greeting is over: from here on silence is the client's own affair.
            let begun = stream
                .set_read_timeout(None)
                .and_then(|()| write_all(&*stream, &Answer::Succeeded.encode()))
                // What a client sent without waiting for the answer.
                .and_then(|()| write_all(&*far, &client.came));
            match begun {
                Ok(()) => place.join((&from, &stream), (&to, &far)),
                Err(error) => {
                    far.abort();
                    place.sessions().refuse(&from, &to, error);
                }
            }
        }
        Err(error) => {
            let _ = client.answer(answer_to(error.kind));
            place.sessions().refuse(&from, &to, error);
        }
    }
}

fn answer_to(kind: io::ErrorKind) -> Answer {
    match kind {
        io::ErrorKind::ConnectionRefused => Answer::Refused,
        io::ErrorKind::TimedOut => Answer::TimedOut,
        io::ErrorKind::NotFound | io::ErrorKind::HostUnreachable => Answer::HostUnreachable,
        io::ErrorKind::PermissionDenied => Answer::NotAllowed,
        _ => Answer::Failed,
    }
}

/// Where a client wants to go.
struct Target {
    peer: Peer,
    port: u16,
}

/// A client until it is connected.
struct Client<'a> {
    stream: &'a Arc<dyn Duplex>,
    /// What came and was not used yet.
    came: Vec<u8>,
    deadline: Instant,
}

impl Client<'_> {
    fn negotiate(&mut self, password: Option<&Password>) -> io::Result<Target> {
        let wanted = if password.is_some() { wire::PASSWORD } else { wire::NO_AUTH };
        let offered =
            self.next(|bytes| Ok(wire::greeting(bytes)?.map(|(m, len)| (m.contains(&wanted), len))))?;
        if !offered {
            self.write(&[5, wire::NO_METHOD])?;
            let text = match password {
                Some(_) => "the client offers no password; set one in it",
                None => "the client insists on a password; leave it out",
            };
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        self.write(&[5, wanted])?;
        if let Some(password) = password {
            let admitted =
                self.next(|bytes| Ok(wire::credentials(bytes)?.map(|(c, len)| (password.admits(&c), len))))?;
            self.write(&[1, u8::from(!admitted)])?;
            if !admitted {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "wrong name or password"));
            }
        }
        let (command, text, peer, port) = self.next(|bytes| {
            let Some((request, len)) = wire::request(bytes)? else { return Ok(None) };
            let (text, peer) = (request.host.to_string(), peer_of(&request.host));
            Ok(Some(((request.command, text, peer, request.port), len)))
        })?;
        if command != wire::CONNECT {
            self.answer(Answer::Command)?;
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("command {command}: only CONNECT"),
            ));
        }
        match peer {
            Some(peer) if port != 0 => Ok(Target { peer, port }),
            _ => {
                self.answer(Answer::NotAllowed)?;
                let text = format!("{text:?} port {port} is no peer: expected NAME{SUFFIX} or an address");
                Err(io::Error::new(io::ErrorKind::InvalidInput, text))
            }
        }
    }

    /// Reads until one message is there; what follows it stays in `came`.
    fn next<T>(
        &mut self,
        parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, wire::SocksError>,
    ) -> io::Result<T> {
        loop {
            match parse(&self.came) {
                Ok(Some((message, len))) => {
                    self.came.drain(..len);
                    return Ok(message);
                }
                Ok(None) => {}
                Err(wire::SocksError::AddressType(kind)) => {
                    self.answer(Answer::AddressType)?;
                    let text = format!("type of address {kind}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
            if self.came.len() >= wire::MAX_MESSAGE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client said too little in time"));
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buf = [0; wire::MAX_MESSAGE];
            match self.stream.read(&mut buf) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.came.extend_from_slice(buf.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn answer(&self, answer: Answer) -> io::Result<()> {
        self.write(&answer.encode())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        write_all(&**self.stream, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_names_are_peers() {
        for (name, peer) in [
            ("bob.pilot", Some("bob")),
            ("BOB.Pilot", Some("bob")),
            ("bob.pilot.", Some("bob")),
            ("0:0000.ABCD.1234", Some("0:0000.ABCD.1234")),
            ("0:0000.abcd.1234.pilot", Some("0:0000.ABCD.1234")),
            ("bob", None),
            ("example.com", None),
            (".pilot", None),
            ("pilot", None),
            ("a.b.pilot", None),
            ("0:0000.ABCD.1234@127.0.0.1:9", None),
            ("äöü.pilot", None),
            ("ü", None),
        ] {
            let found = peer_of(&Host::Name(name)).map(|peer| peer.to_string());
            assert_eq!(found.as_deref(), peer, "{name}");
        }
        assert_eq!(peer_of(&Host::Ip([127, 0, 0, 1].into())), None);
    }

    #[test]
    fn passwords() {
        let password = Password::new("ann", "secret").expect("fits");
        let shown = |name: &'static str, password: &'static str| wire::Credentials {
            name: name.as_bytes(),
            password: password.as_bytes(),
        };
        assert!(password.admits(&shown("ann", "secret")));
        for (name, word) in [("ann", "Secret"), ("bob", "secret"), ("", ""), ("ann", "")] {
            assert!(!password.admits(&shown(name, word)));
        }
        assert!(Password::new("", "x").is_none() && Password::new("x", &"y".repeat(256)).is_none());
    }
}
