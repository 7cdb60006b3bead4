//! Forged frames by the million, and plaintext into an encrypted tunnel (spec/tunnel.md §5, §6 C6, C7).
//!
//! The whole of acceptance 3 (10^8 frames): `PILOTAGE_FORGED=100000000 cargo test --profile sim -p pilotage-sim
//! --test attacks_forged -- --nocapture a_forged`.

mod attacks_common;

use std::net::SocketAddr;
use std::time::Duration;

use attacks_common::{Dice, Duel, attacker, ms, of_kind, path_changes, stats};
use pilotage_proto::{Event, RecvMeta};
use pilotage_sim::{Link, Pair, Side};
use pilotage_wire::frame::{self, PILS_HEADER_LEN};
use pilotage_wire::packet::{Flags, Header, Protocol};
use pilotage_wire::{NodeId, sack};

/// Frames of an ordinary test run.
const FORGED: u64 = 300_000;

/// Makes frames that look sealed, from what an observer knows.
struct Forger {
    dice: Dice,
    /// True frames of A to B.
    captured: Vec<Vec<u8>>,
    /// True frames of B to A.
    reflected: Vec<Vec<u8>>,
    a: NodeId,
    b: NodeId,
}

impl Forger {
    /// Writes the next forgery to `buf` and returns its length. None of them is a true frame.
    fn next(&mut self, buf: &mut [u8; 2048]) -> usize {
        let choice = self.dice.next();
        let model = &self.captured[self.dice.below(self.captured.len())];
        if choice % 8 < 3 {
            return self.spoil(choice >> 8, buf);
        }
        let mut nonce = [0; 12];
        let own = &self.reflected[self.dice.below(self.reflected.len())];
        match choice >> 8 & 3 {
            0 => nonce[..4].copy_from_slice(&model[8..12]),
            1 => nonce[..4].copy_from_slice(&own[8..12]),
            _ => nonce[..4].copy_from_slice(&self.dice.next().to_be_bytes()[..4]),
        }
        let seen = u64::from_be_bytes(model[12..20].try_into().expect("a counter"));
        let counter = match choice >> 12 & 7 {
            0 => u64::MAX,
            1 => u64::MAX - self.dice.next() % 10_000,
            2 => 0,
            3 => seen,
            4 => seen + 1 + self.dice.next() % 9_000,
            5 => 1 << (self.dice.next() % 64),
            _ => self.dice.next(),
        };
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        let sender = match choice >> 16 & 15 {
            0 => self.b,
            1 => NodeId(self.dice.next() as u32),
            _ => self.a,
        };
        // Mostly short ones, so that the number is reached in minutes.
        let body = match choice >> 24 & 31 {
            0 => self.dice.below(16),
            1 => self.dice.below(1_400),
            n => 16 + n as usize,
        };
        frame::encode_pils_header(sender, &nonce, buf).expect("fits");
        let fill = self.dice.next().to_le_bytes();
        for (i, byte) in buf[PILS_HEADER_LEN..PILS_HEADER_LEN + body].iter_mut().enumerate() {
            *byte = fill[i % 8] ^ i as u8;
        }
        PILS_HEADER_LEN + body
    }

    /// A true frame with something changed: a bit, its length, its counter, its sender.
    fn spoil(&mut self, choice: u64, buf: &mut [u8; 2048]) -> usize {
        let from_b = choice & 7 == 0;
        let all = if from_b { &self.reflected } else { &self.captured };
        let model = &all[self.dice.next() as usize % all.len()];
        let len = model.len().min(buf.len());
        buf[..len].copy_from_slice(&model[..len]);
        match choice >> 3 & 3 {
            0 => buf[4 + self.dice.below(len - 4)] ^= 1 << (choice >> 8 & 7),
            1 => return 20 + self.dice.below(len - 20),
            2 => buf[12..20].copy_from_slice(&self.dice.next().to_be_bytes()),
            _ => {
                buf[len..len + 4].fill(0);
                return len + 1 + self.dice.below(4);
            }
        }
        len
    }
}

#[test]
fn a_forged_frame_has_no_effect_however_many_come() {
    let total = std::env::var("PILOTAGE_FORGED").ok().and_then(|n| n.parse().ok()).unwrap_or(FORGED);
    let mut pair = Pair::new(51, Link::default());
    pair.record = true;
    Duel::new(&mut pair, 100, 3_000).finish(&mut pair);
    let mut forger = Forger {
        dice: Dice(51),
        captured: of_kind(&pair.recorded, Side::A, b"PILS"),
        reflected: of_kind(&pair.recorded, Side::B, b"PILS"),
        a: pair.host(Side::A).address.node,
        b: pair.host(Side::B).address.node,
    };
    pair.record = false;
    let mut duel = Duel::new(&mut pair, 101, 24 << 20);
    let (paths, changes) = (duel.paths(&mut pair), path_changes(&mut pair));
    let before = stats(&mut pair)[1];
    let tunnels = pair.endpoint(Side::B).peers().len();
    let real = pair.host(Side::A).addr;
    let mut buf = [0; 2048];
    let rounds = 1_000;
    for round in 0..rounds {
        for i in 0..total / rounds {
            let len = forger.next(&mut buf);
            let from: SocketAddr = if i % 2 == 0 { real } else { attacker() };
            let meta = RecvMeta { remote: from, local_ip: None };
            let now = pair.now;
            pair.endpoint(Side::B).handle_datagram(now, &meta, &mut buf[..len]);
        }
        let now = pair.now;
        pair.run_for(ms(1));
        assert!(pair.now > now, "time goes on in round {round}");
        duel.pump(&mut pair);
    }
    assert!(duel.progress() > 1 << 20, "data flowed meanwhile: {}", duel.progress());
    assert_eq!(duel.paths(&mut pair), paths);
    assert_eq!(path_changes(&mut pair), changes);
    let after = stats(&mut pair)[1];
    assert_eq!(after.handshakes, before.handshakes);
    let dropped = after.drop_unauthentic - before.drop_unauthentic + after.drop_replay - before.drop_replay
        + after.drop_malformed
        - before.drop_malformed
        + after.drop_no_session
        - before.drop_no_session;
    assert_eq!(dropped, total / rounds * rounds, "every one was dropped and counted");
    assert!(
        after.drop_unauthentic - before.drop_unauthentic > total / 4,
        "most reached the cipher: {after:?}"
    );
    assert_eq!(pair.endpoint(Side::B).peers().len(), tunnels, "no state came of them");
    let lookups = pair.host(Side::B).events.iter().filter(|e| matches!(e, Event::LookupPeer { .. })).count();
    assert!(lookups <= 64 * (1 + pair.elapsed().as_secs() as usize / 10), "{lookups} look-ups");
    duel.finish(&mut pair);
    Duel::new(&mut pair, 102, 50_000).finish(&mut pair);
}

/// Plaintext packets of every kind into a tunnel with keys: with all flags, true ports, any numbers, from the true address.
#[test]
fn plaintext_into_an_encrypted_tunnel_is_refused() {
    let mut pair = Pair::new(52, Link::default());
    pair.endpoint(Side::B).bind_datagram(53).expect("free");
    let mut duel = Duel::new(&mut pair, 100, 4 << 20);
    let (a, b) = (pair.host(Side::A).address, pair.host(Side::B).address);
    let (addr_a, addr_b) = (pair.host(Side::A).addr, pair.host(Side::B).addr);
    let port = {
        let (id, _) = duel.ids();
        pair.endpoint(Side::A).local_port(id).expect("open")
    };
    let before = stats(&mut pair);
    let mut dice = Dice(52);
    let mut sent = [0; 2];
    for round in 0..20_000u32 {
        let toward_b = round % 2 == 0;
        let (src, dst, ports) = if toward_b { (a, b, (port, 100)) } else { (b, a, (100, port)) };
        let protocol = match dice.below(8) {
            0 => Protocol::Datagram,
            1 => Protocol::Control,
            _ => Protocol::Stream,
        };
        let (src_port, dst_port) = match protocol {
            Protocol::Stream => ports,
            Protocol::Datagram => (9, 53),
            Protocol::Control => (49_152, 0),
        };
        let hdr = Header {
            flags: Flags::from_bits_truncate(round as u8),
            protocol,
            src,
            dst,
            src_port,
            dst_port,
            seq: if dice.below(3) == 0 { 0 } else { dice.next() as u32 },
            ack: if dice.below(3) == 0 { 0 } else { dice.next() as u32 },
            window: dice.next() as u16,
        };
        let mut bytes = vec![0; 128];
        let head = frame::encode_pilt_header(&mut bytes).expect("fits");
        let payload = if dice.below(2) == 0 {
            sack::encode(&[(hdr.ack, hdr.ack.wrapping_add(1_000))], &mut bytes[head + 34..])
        } else {
            dice.below(40)
        };
        let len = hdr.encode(&mut bytes[head..], payload).expect("fits");
        let (to, real) = if toward_b { (Side::B, addr_a) } else { (Side::A, addr_b) };
        pair.inject(if dice.below(2) == 0 { real } else { attacker() }, to, &bytes[..head + len]);
        sent[to as usize] += 1;
        if round % 16 == 0 {
            pair.run_for(Duration::from_micros(500));
            duel.pump(&mut pair);
        }
    }
    pair.run_for(ms(20));
    let after = stats(&mut pair);
    for side in 0..2 {
        let refused = after[side].drop_not_allowed - before[side].drop_not_allowed;
        assert_eq!(refused, sent[side], "each was refused and counted");
        assert_eq!(after[side].drop_segment, before[side].drop_segment, "none reached a connection");
    }
    assert_eq!(pair.endpoint(Side::B).recv_datagram(53), None);
    duel.finish(&mut pair);
}
