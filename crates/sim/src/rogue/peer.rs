//! A peer made by hand: key exchange for real, then whatever the test wants.

use std::net::SocketAddr;
use std::time::Duration;

use pilotage_proto::crypto::{EphemeralKey, Identity, PacketAead, SessionAead, verify};
use pilotage_wire::frame::{self, Frame, PILA_LEN, PILS_HEADER_LEN, Pila, PilaTrailer, TAG_LEN};
use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Packet, Protocol};
use pilotage_wire::{Address, NodeId};

use super::RogueStream;
use super::arena::{Arena, seed_bytes};

/// Keys that the rogue shares with the endpoint.
pub struct RogueSession {
    aead: SessionAead,
    /// The endpoint's X25519 key.
    pub peer_public: [u8; 32],
    /// Our half: the peer may answer another one with the key that it has.
    own_public: [u8; 32],
    /// Nonce prefix of our frames.
    pub prefix: [u8; 4],
    /// Counter of the last frame that we sealed.
    pub counter: u64,
}

/// An authenticated attacker.
pub struct Rogue {
    /// Its overlay address.
    pub address: Address,
    /// The UDP address that it sends from. Assign another one to move or to spoof.
    pub addr: SocketAddr,
    /// Its long-term key.
    pub identity: Identity,
    /// Its X25519 key pair.
    pub exchange: EphemeralKey,
    /// Keys agreed with the endpoint, the newest last.
    pub sessions: Vec<RogueSession>,
    /// Shows the mark of a Pilotage peer.
    pub mark: bool,
    /// Answers key exchange requests of the endpoint.
    pub polite: bool,
    /// Every packet that it received.
    pub received: Vec<(Header, Vec<u8>)>,
    seed: u64,
    keys_made: u64,
    next_port: u16,
}

impl Rogue {
    /// A rogue with the identity `number`, at the address `198.51.100.number`.
    pub fn new(number: u8) -> Self {
        let seed = 0x0072_6f67_7565_0000 | u64::from(number);
        Self {
            address: Address::new(0, 0x0066_6600 + u32::from(number)),
            addr: SocketAddr::from(([198, 51, 100, number], 6666)),
            identity: Identity::from_seed(seed_bytes(seed, 0)),
            exchange: EphemeralKey::from_bytes(seed_bytes(seed, 1)),
            sessions: Vec::new(),
            mark: true,
            polite: true,
            received: Vec::new(),
            seed,
            keys_made: 1,
            next_port: 50_000,
        }
    }

    /// As [`Self::new`], and the endpoint knows its key and address.
    pub fn introduced(arena: &mut Arena, number: u8) -> Self {
        let rogue = Self::new(number);
        arena.introduce(rogue.address, rogue.identity.public_key(), Some(rogue.addr));
        rogue
    }

    /// Its node id.
    pub fn node(&self) -> NodeId {
        self.address.node
    }

    /// The newest session.
    pub fn session(&mut self) -> &mut RogueSession {
        self.sessions.last_mut().expect("the test shakes hands before it seals")
    }

    // ------------------------------------------------------------------ key exchange

    /// Draws another X25519 key pair; the sessions stay.
    pub fn renew_key(&mut self) {
        self.keys_made += 1;
        self.exchange = EphemeralKey::from_bytes(seed_bytes(self.seed, self.keys_made));
    }

    /// Our key exchange frame with these trailer flags.
    pub fn pila(&self, flags: u64) -> Vec<u8> {
        self.pila_for(self.exchange.public(), flags)
    }

    /// A key exchange frame in which we sign any X25519 key as ours.
    pub fn pila_for(&self, x25519: [u8; 32], flags: u64) -> Vec<u8> {
        let mut trailer = [0; 32];
        let pilotage = self.mark.then_some(1);
        let len = PilaTrailer { capabilities: 0, flags, pilotage }.encode(&mut trailer);
        let pila = Pila {
            sender: self.node(),
            x25519,
            ed25519: self.identity.public_key(),
            signature: self.identity.sign(&frame::pila_signed_message(self.node(), &x25519)),
            trailer: &trailer[..len],
        };
        let mut bytes = vec![0; PILA_LEN + len];
        frame::encode_pila(&pila, &mut bytes).expect("the buffer has room");
        bytes
    }

    /// Takes a key exchange frame of the endpoint. `true` if it made a new session.
    pub fn adopt(&mut self, pila: &Pila<'_>, endpoint_key: [u8; 32]) -> bool {
        let message = frame::pila_signed_message(pila.sender, &pila.x25519);
        if pila.ed25519 != endpoint_key || !verify(&pila.ed25519, &message, &pila.signature) {
            return false;
        }
        let ours = self.exchange.public();
        let Some(key) = self.exchange.tunnel_key(&pila.x25519) else { return false };
        let mut prefix = [0x11, self.seed as u8, 0x33, self.sessions.len() as u8];
        prefix[0] |= if ours > pila.x25519 { 0x80 } else { 0 };
        if self.sessions.iter().any(|s| s.peer_public == pila.x25519 && s.own_public == ours) {
            return false;
        }
        let aead = SessionAead::new(key.as_bytes());
        self.sessions.push(RogueSession {
            aead,
            peer_public: pila.x25519,
            own_public: ours,
            prefix,
            counter: 0,
        });
        true
    }

    /// Asks for keys until there are some and shows them. Whether that worked within 5 s of virtual time.
    pub fn shake_hands(&mut self, arena: &mut Arena) -> bool {
        let had = self.sessions.len();
        for _ in 0..10 {
            let pila = self.pila(PilaTrailer::REQUEST);
            arena.send(self.addr, &pila);
            arena.run_for(Duration::from_millis(500));
            self.receive(arena);
            if self.sessions.len() > had {
                let ping = self.echo_request(arena, 1);
                self.say(arena, &ping, b"hello");
                arena.run_for(Duration::from_millis(100));
                return true;
            }
        }
        false
    }

    // ------------------------------------------------------------------ sealed packets

    /// Seals a packet under the newest keys, with the next counter.
    pub fn seal(&mut self, header: &Header, payload: &[u8]) -> Vec<u8> {
        let session = self.session();
        session.counter += 1;
        let counter = session.counter;
        self.seal_as(header, payload, counter)
    }

    /// Seals a packet with any counter.
    pub fn seal_as(&mut self, header: &Header, payload: &[u8], counter: u64) -> Vec<u8> {
        let mut plain = vec![0; HEADER_LEN + payload.len()];
        plain[HEADER_LEN..].copy_from_slice(payload);
        header.encode(&mut plain, payload.len()).expect("the buffer has room");
        self.seal_bytes(&plain, counter)
    }

    /// Seals any bytes with any counter.
    pub fn seal_bytes(&mut self, plain: &[u8], counter: u64) -> Vec<u8> {
        let sender = self.node();
        let session = self.session();
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&session.prefix);
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        let mut bytes = vec![0; PILS_HEADER_LEN + plain.len() + TAG_LEN];
        frame::encode_pils_header(sender, &nonce, &mut bytes).expect("the buffer has room");
        bytes[PILS_HEADER_LEN..][..plain.len()].copy_from_slice(plain);
        session.aead.seal_in_place(&nonce, &frame::pils_aad(sender), &mut bytes[PILS_HEADER_LEN..]);
        bytes
    }

    /// Opens a frame of the endpoint with whichever of our keys fits.
    pub fn open(&self, datagram: &[u8]) -> Option<(Header, Vec<u8>)> {
        let Ok(Frame::Pils { sender, nonce, ciphertext }) = frame::decode(datagram) else { return None };
        self.sessions.iter().rev().find_map(|session| {
            let mut copy = ciphertext.to_vec();
            let plain = session.aead.open_in_place(&nonce, &frame::pils_aad(sender), &mut copy)?;
            let packet = Packet::decode(plain).ok()?;
            Some((packet.header, packet.payload.to_vec()))
        })
    }

    /// Seals and sends a packet from our address.
    pub fn say(&mut self, arena: &mut Arena, header: &Header, payload: &[u8]) {
        let bytes = self.seal(header, payload);
        arena.send(self.addr, &bytes);
    }

    /// Seals a packet and hands it to the endpoint at once. For floods.
    pub fn hit(&mut self, arena: &mut Arena, header: &Header, payload: &[u8]) {
        let mut bytes = self.seal(header, payload);
        arena.hit(self.addr, &mut bytes);
    }

    /// Takes what arrived at our address: keeps the packets in [`Self::received`], returns the new ones, and deals
    /// with key exchange frames.
    pub fn receive(&mut self, arena: &mut Arena) -> Vec<(Header, Vec<u8>)> {
        let mut new = Vec::new();
        for datagram in arena.take(self.addr) {
            if let Ok(Frame::Pila(pila)) = frame::decode(&datagram) {
                let answer = PilaTrailer::decode(pila.trailer).flags & PilaTrailer::ANSWER != 0;
                self.adopt(&pila, arena.key);
                if self.polite && !answer {
                    let pila = self.pila(PilaTrailer::ANSWER);
                    arena.send(self.addr, &pila);
                }
            } else if let Some(packet) = self.open(&datagram) {
                new.push(packet);
            }
        }
        self.received.extend(new.iter().cloned());
        new
    }

    // ------------------------------------------------------------------ headers

    /// A stream header from our `src_port` to `dst_port` of the endpoint; numbers and window are zero.
    pub fn header(&self, arena: &Arena, protocol: Protocol, src_port: u16, dst_port: u16) -> Header {
        Header {
            flags: Flags::EMPTY,
            protocol,
            src: self.address,
            dst: arena.address,
            src_port,
            dst_port,
            seq: 0,
            ack: 0,
            window: 0,
        }
    }

    /// The header of an echo request, which the endpoint answers with the same payload.
    pub fn echo_request(&self, arena: &Arena, seq: u32) -> Header {
        Header { seq, ..self.header(arena, Protocol::Control, 49_152, 0) }
    }

    /// Opens a connection to `port` of the endpoint, which is made to listen there, and lets it accept.
    pub fn connect(&mut self, arena: &mut Arena, port: u16) -> Option<RogueStream> {
        let _ = arena.target.listen(port);
        let local_port = self.next_port;
        self.next_port += 1;
        let isn = u32::from_be_bytes([0x7f, 0xff, 0, local_port as u8]);
        let mut syn = self.header(arena, Protocol::Stream, local_port, port);
        (syn.flags, syn.seq, syn.window) = (Flags::SYN, isn, 4096);
        self.say(arena, &syn, &[]);
        let mut answer = None;
        for _ in 0..100 {
            arena.run_for(Duration::from_millis(10));
            let got = self.receive(arena);
            answer = got.into_iter().find(|(h, _)| {
                h.dst_port == local_port && h.flags.contains(Flags::SYN) && h.flags.contains(Flags::ACK)
            });
            if answer.is_some() {
                break;
            }
        }
        let (header, _) = answer?;
        let mut ack = syn;
        (ack.flags, ack.seq, ack.ack) = (Flags::ACK, isn.wrapping_add(1), header.seq.wrapping_add(1));
        self.say(arena, &ack, &[]);
        arena.run_for(Duration::from_millis(50));
        let (id, _) = arena.target.accept(port)?;
        Some(RogueStream::new(id, syn, isn, header.seq))
    }
}
