//! Port mapping: asks the router for a port of its own that leads to ours, by PCP (RFC 6887) or NAT-PMP (RFC 6886).
//!
//! [`Mapper`] is the client for one router and one UDP port: it decides what to send and when, believes answers of this
//! router only, renews at half the lifetime, and gives the port back. No clock, no socket: `now` and the nonce come in.
//! [`igd::Igd`] is the same for routers that speak neither, by UPnP.

mod codec;
pub mod igd;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

pub use codec::{DecodeError, MAX_MESSAGE, Reply, Request};

/// Both protocols use this port of the router.
pub const ROUTER_PORT: u16 = 5351;

/// Lifetime that is asked for.
const LIFETIME: Duration = Duration::from_secs(7_200);
/// No answer may bind us for longer, or make us ask more often.
const MAX_LIFETIME: Duration = Duration::from_secs(86_400);
const MIN_LIFETIME: Duration = Duration::from_secs(120);
/// First wait for an answer; it doubles (RFC 6886 §3.1).
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Requests without an answer, per protocol.
const TRIES: u32 = 4;
/// A router that does not map is asked again after this long.
const RETRY: Duration = Duration::from_secs(600);

/// Which protocol the router speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// WANIPConnection of an Internet Gateway Device ([`igd`]).
    Upnp,
}

impl Protocol {
    /// For people and for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
            Self::Upnp => "upnp",
        }
    }
}

/// A port of the router that leads to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Where others reach us.
    pub external: SocketAddr,
    /// How it was agreed.
    pub protocol: Protocol,
    /// Until when.
    pub until: Instant,
}

/// Where a [`Mapper`] stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something is asked, and sent again when `at` comes.
    Asking { tries: u32, at: Instant },
    /// Nothing to do before then.
    Resting { at: Instant },
    /// The port is given back.
    Released,
}

/// See the module's text. Drain [`Mapper::poll_transmit`] after every call that takes `now`, and when
/// [`Mapper::poll_timeout`] is due.
#[derive(Debug)]
pub struct Mapper {
    router: SocketAddr,
    client: IpAddr,
    port: u16,
    nonce: [u8; 12],
    protocol: Protocol,
    step: Step,
    /// NAT-PMP tells the address and the port in two answers.
    address: Option<IpAddr>,
    external_port: Option<u16>,
    mapping: Option<Mapping>,
    /// Code of the last refusal.
    refused: Option<u16>,
    farewell: bool,
}

impl Mapper {
    /// A client for the router at this address. `client`: our address on the way to it; `port`: our UDP port.
    pub fn new(router: IpAddr, client: IpAddr, port: u16, nonce: [u8; 12], now: Instant) -> Self {
        Self {
            router: SocketAddr::new(router, ROUTER_PORT),
            client,
            port,
            nonce,
            protocol: Protocol::Pcp,
            step: Step::Asking { tries: 0, at: now },
            address: None,
            external_port: None,
            mapping: None,
            refused: None,
            farewell: false,
        }
    }

    /// Where requests go.
    pub fn router(&self) -> SocketAddr {
        self.router
    }

    /// The mapping in force.
    pub fn mapping(&self) -> Option<Mapping> {
        self.mapping
    }

    /// There is no mapping, and none is asked for before some minutes are over.
    pub fn has_given_up(&self) -> bool {
        self.mapping.is_none() && matches!(self.step, Step::Resting { .. })
    }

    /// The router's last refusal (RFC 6887 §7.4, RFC 6886 §3.5).
    pub fn refused(&self) -> Option<u16> {
        self.refused
    }

    /// The next datagram for [`Mapper::router`]; its length.
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut [u8; MAX_MESSAGE]) -> Option<usize> {
        if std::mem::take(&mut self.farewell) {
            return Some(self.request(0).encode(buf));
        }
        self.expire(now);
        match self.step {
            Step::Released => None,
            Step::Resting { at } if at > now => None,
            Step::Resting { .. } => {
                self.address = None;
                self.external_port = None;
                self.ask(0, now, buf)
            }
            Step::Asking { at, .. } if at > now => None,
            Step::Asking { tries, .. } if tries < TRIES => self.ask(tries, now, buf),
            Step::Asking { .. } => self.give_up(now, buf),
        }
    }

    /// When [`Mapper::poll_transmit`] has something to send, or the mapping ends.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let step = match self.step {
            Step::Asking { at, .. } | Step::Resting { at } => Some(at),
            Step::Released => None,
        };
        [step, self.mapping.map(|mapping| mapping.until)].into_iter().flatten().min()
    }

    /// A datagram came. What is not an answer of the router to what was asked changes nothing.
    pub fn handle(&mut self, now: Instant, from: SocketAddr, data: &[u8]) {
        let canonical = SocketAddr::new(from.ip().to_canonical(), from.port());
        if canonical != self.router || self.step == Step::Released {
            return;
        }
        let Ok(reply) = Reply::decode(data) else { return };
        match reply {
            Reply::Pcp { result, lifetime, nonce, internal, external, .. } => {
                // An error may come without the rest, but never without our nonce.
                if self.protocol != Protocol::Pcp || nonce != self.nonce || internal != self.port {
                    return;
                }
                if result == 0 { self.agreed(now, lifetime, external) } else { self.refuse(now, result) }
            }
            Reply::Unsupported
                if self.protocol == Protocol::Pcp && matches!(self.step, Step::Asking { .. }) =>
            {
                self.fall_back(now);
            }
            Reply::Address { result, address, .. } if self.protocol == Protocol::NatPmp => {
                if result != 0 {
                    return self.refuse(now, result);
                }
                self.address = Some(address.into());
                self.join(now, LIFETIME.as_secs() as u32);
            }
            Reply::Map { result, internal, external, lifetime, .. }
                if self.protocol == Protocol::NatPmp && internal == self.port =>
            {
                if result != 0 {
                    return self.refuse(now, result);
                }
                self.external_port = Some(external);
                self.join(now, lifetime);
            }
            _ => {}
        }
    }

    /// Asks anew: the host has joined another network.
    pub fn renew(&mut self, now: Instant) {
        if self.step != Step::Released {
            self.mapping = None;
            self.protocol = Protocol::Pcp;
            self.step = Step::Resting { at: now };
        }
    }

    /// Gives the port back: one datagram more, and nothing after it.
    pub fn release(&mut self) {
        self.farewell = self.mapping.take().is_some();
        self.step = Step::Released;
    }

    fn ask(&mut self, tries: u32, now: Instant, buf: &mut [u8; MAX_MESSAGE]) -> Option<usize> {
        self.step = Step::Asking { tries: tries + 1, at: now + FIRST_WAIT * (1 << tries.min(8)) };
        let request = match (self.protocol, self.address) {
            (Protocol::NatPmp, None) => Request::Address,
            _ => self.request(LIFETIME.as_secs() as u32),
        };
        Some(request.encode(buf))
    }

    fn request(&self, lifetime: u32) -> Request {
        let suggested = self.mapping.map_or(0, |mapping| mapping.external.port());
        match self.protocol {
            Protocol::Pcp => Request::Pcp {
                client: self.client,
                nonce: self.nonce,
                internal: self.port,
                external: if suggested == 0 { self.port } else { suggested },
                lifetime,
            },
            // "Give it back" names no port (RFC 6886 §3.4).
            _ => Request::Map {
                internal: self.port,
                external: if lifetime == 0 { 0 } else { self.port },
                lifetime,
            },
        }
    }

    fn give_up(&mut self, now: Instant, buf: &mut [u8; MAX_MESSAGE]) -> Option<usize> {
        if self.protocol == Protocol::Pcp && self.mapping.is_none() {
            self.fall_back(now);
            return self.ask(0, now, buf);
        }
        self.rest(now, RETRY);
        None
    }

    /// The router does not speak PCP.
    fn fall_back(&mut self, now: Instant) {
        // NAT-PMP has IPv4 only.
        if self.client.is_ipv4() {
            self.protocol = Protocol::NatPmp;
            self.step = Step::Asking { tries: 0, at: now };
        } else {
            self.rest(now, RETRY);
        }
    }

    fn refuse(&mut self, now: Instant, code: u16) {
        self.refused = Some(code);
        self.rest(now, RETRY);
    }

    fn rest(&mut self, now: Instant, time: Duration) {
        // The next round may meet another router.
        if self.mapping.is_none() {
            self.protocol = Protocol::Pcp;
        }
        self.step = Step::Resting { at: now + time };
    }

    /// Both halves of NAT-PMP's answer are there, or the second is asked for.
    fn join(&mut self, now: Instant, lifetime: u32) {
        match (self.address, self.external_port) {
            (Some(address), Some(port)) => self.agreed(now, lifetime, SocketAddr::new(address, port)),
            _ => self.step = Step::Asking { tries: 0, at: now },
        }
    }

    fn agreed(&mut self, now: Instant, lifetime: u32, external: SocketAddr) {
        if !matches!(self.step, Step::Asking { .. }) {
            return;
        }
        let ip = external.ip().to_canonical();
        if ip.is_unspecified() || ip.is_multicast() || external.port() == 0 || lifetime == 0 {
            return self.refuse(now, u16::MAX);
        }
        self.refused = None;
        let lifetime = Duration::from_secs(lifetime.into()).clamp(MIN_LIFETIME, MAX_LIFETIME);
        let external = SocketAddr::new(ip, external.port());
        self.mapping = Some(Mapping { external, protocol: self.protocol, until: now + lifetime });
        self.step = Step::Resting { at: now + lifetime / 2 };
    }

    fn expire(&mut self, now: Instant) {
        if self.mapping.is_some_and(|mapping| mapping.until <= now) {
            self.mapping = None;
        }
    }
}

#[cfg(test)]
mod tests;
