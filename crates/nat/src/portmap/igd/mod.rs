//! Port mapping by UPnP (UPnP Gateway Committee, WANIPConnection), for routers that speak neither PCP nor NAT-PMP (decision 0051).
//!
//! [`Igd`] is the client for one router and one UDP port, without clock and sockets like [`Mapper`](super::Mapper). It believes the default
//! gateway only, as those protocols do: answers of others, and URLs that lead elsewhere, are dropped.

mod text;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

pub use text::{MAX_ANSWER, is_complete};

use self::text::{Service, Url};
use super::{LIFETIME, Mapping, Protocol, RETRY};

/// Routers answer searches at this port (SSDP).
pub const SSDP_PORT: u16 = 1900;
/// Where all devices of a network hear searches. Some hear nothing else.
pub const SSDP_GROUP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)), SSDP_PORT);

/// Searches, and the time between them: a device may take the second that MX grants.
const SEARCHES: u32 = 3;
const SEARCH_WAIT: Duration = Duration::from_millis(1_500);
/// External ports that are tried: ours, and others if somebody has it.
const PORTS: u32 = 3;
/// The port belongs to another host (WANIPConnection:1 §2.4.16, and what some routers say instead).
const CONFLICTS: [u16; 2] = [718, 501];
/// The router gives ports away for good only.
const ONLY_PERMANENT: u16 = 725;

/// What is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// A datagram, from a socket that stays the same.
    Datagram {
        /// The router, or the group of all devices.
        to: SocketAddr,
        /// A search.
        bytes: Vec<u8>,
    },
    /// A request over a TCP connection of its own. [`Igd::handle_answer`] MUST follow, whatever becomes of it.
    Request {
        /// The router.
        to: SocketAddr,
        /// All of it.
        bytes: Vec<u8>,
    },
}

/// What a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Description,
    Address,
    Map,
    Delete,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Searching {
        sent: u32,
        at: Instant,
    },
    Found(Url),
    /// To be asked, of the service that was found.
    Next(Asked),
    /// An answer is awaited.
    Waiting(Asked),
    Resting {
        at: Instant,
    },
    Released,
}

/// See the module's text. Drain [`Igd::poll`] after every call that takes `now`, and when [`Igd::poll_timeout`] is due.
#[derive(Debug)]
pub struct Igd {
    /// Where the router hears searches.
    router: SocketAddr,
    client: Ipv4Addr,
    port: u16,
    /// Another external port, if ours is taken.
    other: u16,
    step: Step,
    /// A search for all is due beside that for the router.
    to_all: Option<Vec<u8>>,
    /// Where the description is read.
    described: Option<Url>,
    service: Option<Service>,
    address: Option<Ipv4Addr>,
    ports_tried: u32,
    permanent: bool,
    mapping: Option<Mapping>,
    refused: Option<u16>,
}

impl Igd {
    /// A client for the router that hears searches at `router`. `client`: our address on the way to it; `port`: our UDP port; `nonce` chooses
    /// another external port where that one is taken.
    pub fn new(router: SocketAddr, client: Ipv4Addr, port: u16, nonce: u16, now: Instant) -> Self {
        Self {
            router,
            client,
            port,
            other: nonce | 0x8000,
            step: Step::Searching { sent: 0, at: now },
            to_all: None,
            described: None,
            service: None,
            address: None,
            ports_tried: 0,
            permanent: false,
            mapping: None,
            refused: None,
        }
    }

    /// The mapping in force.
    pub fn mapping(&self) -> Option<Mapping> {
        self.mapping
    }

    /// The router's last refusal: a code of UPnP, or the status of HTTP.
    pub fn refused(&self) -> Option<u16> {
        self.refused
    }

    /// The next thing to send.
    pub fn poll(&mut self, now: Instant) -> Option<Outgoing> {
        if let Some(bytes) = self.to_all.take() {
            return Some(Outgoing::Datagram { to: SSDP_GROUP, bytes });
        }
        if self.mapping.is_some_and(|mapping| mapping.until <= now) {
            self.mapping = None;
        }
        if matches!(self.step, Step::Resting { at } if at <= now) {
            self.ports_tried = 0;
            self.step = match self.service {
                Some(_) => Step::Next(Asked::Address),
                None => Step::Searching { sent: 0, at: now },
            };
        }
        match &self.step {
            Step::Searching { sent, at } if *at <= now => {
                let sent = *sent;
                self.search(sent, now)
            }
            Step::Found(url) => {
                let request = Outgoing::Request { to: url.at, bytes: text::get(url) };
                self.described = Some(url.clone());
                self.step = Step::Waiting(Asked::Description);
                Some(request)
            }
            Step::Next(asked) => {
                let asked = *asked;
                self.call(asked)
            }
            _ => None,
        }
    }

    /// When [`Igd::poll`] has something to send, or the mapping ends.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let step = match self.step {
            Step::Searching { at, .. } | Step::Resting { at } => Some(at),
            _ => None,
        };
        [step, self.mapping.map(|mapping| mapping.until)].into_iter().flatten().min()
    }

    /// A datagram came to the socket that searches were sent from.
    pub fn handle_datagram(&mut self, from: SocketAddr, data: &[u8]) {
        let router = self.router.ip();
        if matches!(self.step, Step::Searching { .. })
            && from.ip().to_canonical() == router
            && let Some(url) = text::location(data, router)
        {
            self.to_all = None;
            self.step = Step::Found(url);
        }
    }

    /// The answer to the last request as it came, or `None` if none did within the caller's patience.
    pub fn handle_answer(&mut self, now: Instant, data: Option<&[u8]>) {
        let Step::Waiting(asked) = self.step else { return };
        let answer = data.and_then(text::answer);
        match (asked, answer) {
            (Asked::Delete, _) => self.step = Step::Released,
            (_, None) => self.fail(now, None),
            (Asked::Description, Some((200, body))) => self.on_description(&body, now),
            (Asked::Address, Some((200, body))) => self.on_address(&body, now),
            (Asked::Map, Some((200, _))) => self.on_mapped(now),
            (asked, Some((status, body))) => self.on_refusal(asked, status, &body, now),
        }
    }

    /// Answers to searches are awaited.
    pub fn is_searching(&self) -> bool {
        matches!(self.step, Step::Searching { .. })
    }

    /// Nothing more will be sent.
    pub fn is_released(&self) -> bool {
        self.step == Step::Released
    }

    /// Gives the port back: one request more, if there is a mapping, and nothing after it.
    pub fn release(&mut self) {
        self.to_all = None;
        let waiting = matches!(self.step, Step::Waiting(Asked::Map));
        let mapped = self.mapping.take().is_some() || waiting;
        // What is asked is answered first, at least by `None`; the mapping may come of it.
        self.step = if mapped && self.service.is_some() { Step::Next(Asked::Delete) } else { Step::Released };
    }

    fn search(&mut self, sent: u32, now: Instant) -> Option<Outgoing> {
        if sent >= SEARCHES {
            self.rest(now);
            return None;
        }
        self.step = Step::Searching { sent: sent + 1, at: now + SEARCH_WAIT };
        // Real ones only: a router at another port is one of the tests.
        self.to_all = (self.router.port() == SSDP_PORT).then(|| text::search(SSDP_GROUP));
        Some(Outgoing::Datagram { to: self.router, bytes: text::search(self.router) })
    }

    /// The external port that is asked for, or that we have.
    fn external(&self) -> u16 {
        match self.ports_tried {
            _ if self.mapping.is_some() => self.mapping.map_or(self.port, |mapping| mapping.external.port()),
            0 => self.port,
            tried => self.other.wrapping_add(tried as u16) | 0x8000,
        }
    }

    fn call(&mut self, asked: Asked) -> Option<Outgoing> {
        let Some(service) = &self.service else {
            self.step = Step::Released;
            return None;
        };
        let which = [
            ("NewRemoteHost", String::new()),
            ("NewExternalPort", self.external().to_string()),
            ("NewProtocol", "UDP".into()),
        ];
        let bytes = match asked {
            Asked::Delete => text::call(service, "DeletePortMapping", &which),
            Asked::Map => {
                let lease = if self.permanent { 0 } else { LIFETIME.as_secs() };
                let ours = [
                    ("NewInternalPort", self.port.to_string()),
                    ("NewInternalClient", self.client.to_string()),
                    ("NewEnabled", "1".into()),
                    ("NewPortMappingDescription", "pilotage".into()),
                    ("NewLeaseDuration", lease.to_string()),
                ];
                text::call(service, "AddPortMapping", &[&which[..], &ours].concat())
            }
            Asked::Address | Asked::Description => text::call(service, "GetExternalIPAddress", &[]),
        };
        let to = service.control.at;
        self.step = Step::Waiting(asked);
        Some(Outgoing::Request { to, bytes })
    }

    fn on_description(&mut self, body: &[u8], now: Instant) {
        // The URL that it came from is the base of those in it; it was at the router.
        match self.described.take().and_then(|url| text::service(body, &url)) {
            Some(service) => {
                self.service = Some(service);
                self.step = Step::Next(Asked::Address);
            }
            None => self.fail(now, None),
        }
    }

    fn on_address(&mut self, body: &[u8], now: Instant) {
        let address = text::element(body, "NewExternalIPAddress").and_then(|text| text.parse().ok());
        let usable = |ip: &Ipv4Addr| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
        match address.filter(usable) {
            Some(address) => {
                self.address = Some(address);
                self.step = Step::Next(Asked::Map);
            }
            // It is not connected itself.
            None => self.fail(now, None),
        }
    }

    fn on_mapped(&mut self, now: Instant) {
        let Some(address) = self.address else { return self.fail(now, None) };
        let external = SocketAddr::new(address.into(), self.external());
        self.refused = None;
        self.mapping = Some(Mapping { external, protocol: Protocol::Upnp, until: now + LIFETIME });
        self.step = Step::Resting { at: now + LIFETIME / 2 };
    }

    fn on_refusal(&mut self, asked: Asked, status: u16, body: &[u8], now: Instant) {
        let code = text::element(body, "errorCode").and_then(|text| text.parse().ok());
        let code = code.unwrap_or(status);
        if asked == Asked::Map && code == ONLY_PERMANENT && !self.permanent {
            self.permanent = true;
            self.step = Step::Next(Asked::Map);
        } else if asked == Asked::Map && CONFLICTS.contains(&code) && self.ports_tried + 1 < PORTS {
            self.mapping = None;
            self.ports_tried += 1;
            self.step = Step::Next(Asked::Map);
        } else {
            self.fail(now, Some(code));
        }
    }

    /// This router does not do it, or not now. It is searched anew later: it may have another address in it by then.
    fn fail(&mut self, now: Instant, code: Option<u16>) {
        self.refused = code.or(self.refused);
        if self.mapping.is_none() {
            self.service = None;
        }
        self.rest(now);
    }

    fn rest(&mut self, now: Instant) {
        self.step = Step::Resting { at: now + RETRY };
    }
}

#[cfg(test)]
mod tests;
