//! Somebody on the wire who records everything and sends whatever may do harm.
//!
//! It knows no secret keys. What it can do with keys of its own is the matter of the attack tests.

use std::collections::VecDeque;
use std::net::SocketAddr;

use pilotage_wire::frame::{self, PilaTrailer};
use pilotage_wire::packet::{Flags, Header, Protocol};
use pilotage_wire::{Address, NodeId, beacon};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

use crate::link::{below, chance, damage, spliced};

/// Datagrams that it remembers.
const MEMORY: usize = 512;

/// A datagram seen on the wire.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its source.
    pub from: SocketAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What the adversary does with what it saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trick {
    /// Sends a recorded datagram again, as it was.
    Replay,
    /// Sends it from its own address.
    ReplayFromElsewhere,
    /// Sends it in the name of somebody who has nothing to do with it.
    ReplayFromVictim,
    /// Sends it back to its sender.
    Reflect,
    /// Sends it to another host.
    Misroute,
    /// Changes some bytes.
    Mutate,
    /// Joins the halves of two.
    Splice,
    /// Makes up a sealed frame.
    ForgeSealed,
    /// Makes up a key exchange frame.
    ForgeExchange,
    /// Makes up an unsealed packet.
    ForgePlain,
    /// Makes up a beacon message.
    ForgeBeacon,
    /// Sends random bytes behind a good magic.
    Noise,
}

impl Trick {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Replay,
        Self::ReplayFromElsewhere,
        Self::ReplayFromVictim,
        Self::Reflect,
        Self::Misroute,
        Self::Mutate,
        Self::Splice,
        Self::ForgeSealed,
        Self::ForgeExchange,
        Self::ForgePlain,
        Self::ForgeBeacon,
        Self::Noise,
    ];
}

/// The adversary of a world.
#[derive(Debug)]
pub struct Adversary {
    /// Chance to do something at each datagram that passes.
    pub activity: f64,
    /// Its own address.
    pub addr: SocketAddr,
    /// An address whose owner never says anything.
    pub victim: SocketAddr,
    /// How often each trick was played, in the order of [`Trick::ALL`].
    pub played: [u64; Trick::ALL.len()],
    seen: VecDeque<Seen>,
}

impl Adversary {
    /// An adversary that only watches.
    #[must_use]
    pub fn new(addr: SocketAddr, victim: SocketAddr) -> Self {
        Self { activity: 0.0, addr, victim, played: [0; Trick::ALL.len()], seen: VecDeque::new() }
    }

    /// A datagram passes. `hosts` are the addresses of all hosts. What the adversary sends goes to `out`.
    pub fn watch(
        &mut self,
        passing: Seen,
        hosts: &[(SocketAddr, Option<Address>)],
        rng: &mut ChaCha8Rng,
        out: &mut Vec<Seen>,
    ) {
        if self.activity <= 0.0 {
            return;
        }
        if self.seen.len() >= MEMORY {
            // Old things are the most interesting: forget one at random, not the oldest.
            let at = below(rng, self.seen.len());
            self.seen.swap_remove_back(at);
        }
        self.seen.push_back(passing);
        if chance(rng, self.activity) {
            for _ in 0..=below(rng, 3) {
                let trick = Trick::ALL[below(rng, Trick::ALL.len())];
                if let Some(sent) = self.play(trick, hosts, rng) {
                    self.played[trick as usize] += 1;
                    out.push(sent);
                }
            }
        }
    }

    /// One trick; `None` if it needs something that is not there.
    pub fn play(
        &mut self,
        trick: Trick,
        hosts: &[(SocketAddr, Option<Address>)],
        rng: &mut ChaCha8Rng,
    ) -> Option<Seen> {
        let mut old = self.seen.get(below(rng, self.seen.len()))?.clone();
        match trick {
            Trick::Replay => {}
            Trick::ReplayFromElsewhere => old.from = self.addr,
            Trick::ReplayFromVictim => old.from = self.victim,
            Trick::Reflect => std::mem::swap(&mut old.from, &mut old.to),
            Trick::Misroute => old.to = hosts.get(below(rng, hosts.len()))?.0,
            Trick::Mutate => damage(&mut old.bytes, rng),
            Trick::Splice => {
                let other = self.seen.get(below(rng, self.seen.len()))?;
                old.bytes = spliced(&old.bytes, &other.bytes, rng);
            }
            Trick::ForgeSealed => old.bytes = forged_sealed(&old.bytes, hosts, rng)?,
            Trick::ForgeExchange => old.bytes = forged_exchange(hosts, rng)?,
            Trick::ForgePlain => old.bytes = forged_plain(hosts, rng)?,
            Trick::ForgeBeacon => old.bytes = self.forged_beacon(hosts, rng)?,
            Trick::Noise => old.bytes = noise(rng),
        }
        // Forgeries come in anybody's name.
        if trick as usize >= Trick::Mutate as usize {
            match below(rng, 6) {
                0 => old.from = self.addr,
                1 => old.from = self.victim,
                _ => {}
            }
        }
        Some(old)
    }

    fn forged_beacon(
        &self,
        hosts: &[(SocketAddr, Option<Address>)],
        rng: &mut ChaCha8Rng,
    ) -> Option<Vec<u8>> {
        use beacon::Message;
        let (node, target) = (any_node(hosts, rng)?, any_node(hosts, rng)?);
        let frame = noise(rng);
        let message = match below(rng, 8) {
            0 => Message::Discover { node },
            1 => Message::DiscoverEx { node },
            2 => Message::DiscoverReply { addr: self.victim },
            3 => Message::PunchRequest { node, target },
            4 => Message::PunchCommand { addr: self.victim },
            5 => Message::Relay { src: node, dst: target, frame: &frame },
            6 => Message::Deliver { src: node, frame: &frame },
            _ => Message::DeliverEx { src: node, dst: target, frame: &frame },
        };
        let mut bytes = vec![0; 2_048];
        let len = message.encode(&mut bytes).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }
}

fn any_node(hosts: &[(SocketAddr, Option<Address>)], rng: &mut ChaCha8Rng) -> Option<NodeId> {
    Some(any_address(hosts, rng)?.node)
}

fn any_address(hosts: &[(SocketAddr, Option<Address>)], rng: &mut ChaCha8Rng) -> Option<Address> {
    if chance(rng, 0.1) {
        return Some(Address::new(rng.next_u32() as u16, rng.next_u32()));
    }
    hosts.get(below(rng, hosts.len()))?.1
}

/// A sealed frame with plausible header and no key behind it.
fn forged_sealed(
    old: &[u8],
    hosts: &[(SocketAddr, Option<Address>)],
    rng: &mut ChaCha8Rng,
) -> Option<Vec<u8>> {
    let mut bytes = vec![0; frame::PILS_OVERHEAD + below(rng, 1_200)];
    rng.fill_bytes(&mut bytes);
    let mut nonce = [0; 12];
    // The prefix of a real frame where there is one, so that a window for it exists.
    match old.get(8..12) {
        Some(prefix) if chance(rng, 0.7) => nonce[..4].copy_from_slice(prefix),
        _ => rng.fill_bytes(&mut nonce[..4]),
    }
    let counter = match below(rng, 4) {
        0 => u64::MAX,
        1 => u64::MAX - rng.next_u64() % 1_000,
        2 => rng.next_u64() % 1_000,
        _ => rng.next_u64(),
    };
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    frame::encode_pils_header(any_node(hosts, rng)?, &nonce, &mut bytes).ok()?;
    Some(bytes)
}

fn forged_exchange(hosts: &[(SocketAddr, Option<Address>)], rng: &mut ChaCha8Rng) -> Option<Vec<u8>> {
    let sender = any_node(hosts, rng)?;
    let mut random = |n: usize| {
        let mut bytes = vec![0; n];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    let x25519: [u8; 32] = random(32).try_into().ok()?;
    let ed25519: [u8; 32] = random(32).try_into().ok()?;
    let signature: [u8; 64] = random(64).try_into().ok()?;
    let mut bytes = vec![0; 256];
    if chance(rng, 0.3) {
        let len = frame::encode_pilk(sender, &x25519, &mut bytes).ok()?;
        bytes.truncate(len);
        return Some(bytes);
    }
    let flags = if chance(rng, 0.5) { PilaTrailer::REQUEST } else { PilaTrailer::ANSWER };
    let mut trailer = [0; 32];
    let len = PilaTrailer { capabilities: 0, flags, pilotage: Some(1) }.encode(&mut trailer);
    let pila = frame::Pila { sender, x25519, ed25519, signature, trailer: &trailer[..len] };
    let len = frame::encode_pila(&pila, &mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

fn forged_plain(hosts: &[(SocketAddr, Option<Address>)], rng: &mut ChaCha8Rng) -> Option<Vec<u8>> {
    let flags = [Flags::SYN, Flags::ACK, Flags::FIN, Flags::RST, Flags::FIN | Flags::ACK, Flags::EMPTY];
    let protocols = [Protocol::Stream, Protocol::Datagram, Protocol::Control];
    let header = Header {
        flags: flags[below(rng, flags.len())],
        protocol: protocols[below(rng, protocols.len())],
        src: any_address(hosts, rng)?,
        dst: any_address(hosts, rng)?,
        src_port: 49_152 + (rng.next_u32() % 16_384) as u16,
        dst_port: [super::traffic::STREAM_PORT, super::traffic::DATAGRAM_PORT, 0][below(rng, 3)],
        seq: rng.next_u32(),
        ack: rng.next_u32(),
        window: rng.next_u32() as u16,
    };
    let payload = below(rng, 64);
    let mut packet = vec![0; 34 + payload];
    header.encode(&mut packet, payload).ok()?;
    let mut bytes = b"PILT".to_vec();
    bytes.extend_from_slice(&packet);
    Some(bytes)
}

fn noise(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let magics: [&[u8]; 6] = [b"PILT", b"PILS", b"PILK", b"PILA", b"PILP", b"\x05"];
    let mut bytes = magics[below(rng, magics.len())].to_vec();
    let mut rest = vec![0; below(rng, 300)];
    rng.fill_bytes(&mut rest);
    bytes.extend_from_slice(&rest);
    bytes
}
