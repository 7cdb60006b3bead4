//! Attacks with spoofed addresses: whom the endpoint can be made to send to, and how much (spec/tunnel.md §6).

use std::net::SocketAddr;
use std::time::Duration;

use pilotage_proto::Event;
use pilotage_sim::pattern;
use pilotage_sim::rogue::{Arena, Rogue};
use pilotage_wire::frame::{self, PilaTrailer};
use pilotage_wire::packet::Flags;

const VICTIM: ([u8; 4], u16) = ([203, 0, 113, 80], 80);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn victim() -> SocketAddr {
    VICTIM.into()
}

/// The victim never got more bytes than came in its name, headers of IPv4 and UDP included.
#[track_caller]
fn assert_no_amplification(arena: &Arena) {
    let ledger = arena.ledger.get(&victim()).copied().unwrap_or_default();
    let (came, went) =
        (ledger.bytes_in + 28 * ledger.datagrams_in, ledger.bytes_out + 28 * ledger.datagrams_out);
    assert!(went <= came, "amplified: {ledger:?}");
}

/// An authenticated rogue names a victim as its new address and acknowledges blindly what goes there.
#[test]
fn a_stream_cannot_be_turned_on_a_victim() {
    let mut arena = Arena::new(1);
    let mut rogue = Rogue::introduced(&mut arena, 1);
    assert!(rogue.shake_hands(&mut arena));
    let mut stream = rogue.connect(&mut arena, 80).expect("connects");
    let data = pattern(4 << 20, 1);
    let now = arena.now;
    arena.target.write(now, stream.at_target(), &data).expect("room");
    arena.run_for(ms(15));
    rogue.receive(&mut arena);
    rogue.addr = victim();
    stream.window = u16::MAX;
    let mut acked = 0;
    for _ in 0..400 {
        // The rogue sees nothing of it and guesses: too far is refused, so it goes by segments and stays behind.
        for _ in 0..20 {
            acked += 1_130;
            let ack = stream.ack(0, acked);
            rogue.say(&mut arena, &ack, &[]);
            assert_no_amplification(&arena);
        }
        arena.run_for(ms(5));
        assert_no_amplification(&arena);
    }
    let path = arena.target.connection_path(stream.at_target()).expect("path");
    assert_eq!(path.remote, Rogue::new(1).addr, "the path stays where the peer answers");
}

/// A peer that really moved is served again, at once and in full.
#[test]
fn a_peer_that_moved_and_answers_is_served_at_its_new_address() {
    let mut arena = Arena::new(2);
    let mut rogue = Rogue::introduced(&mut arena, 1);
    assert!(rogue.shake_hands(&mut arena));
    let stream = rogue.connect(&mut arena, 80).expect("connects");
    rogue.addr = "198.51.100.77:1234".parse().expect("an address");
    let ping = rogue.echo_request(&arena, 5);
    rogue.say(&mut arena, &ping, b"here now");
    for _ in 0..20 {
        arena.run_for(ms(10));
        for (header, payload) in rogue.receive(&mut arena) {
            if header.dst_port == 0 && header.src_port != 0 && !header.flags.contains(Flags::ACK) {
                let mut answer = header;
                (answer.src, answer.dst) = (header.dst, header.src);
                (answer.src_port, answer.dst_port) = (0, header.src_port);
                (answer.flags, answer.ack) = (Flags::ACK, header.seq.wrapping_add(1));
                rogue.say(&mut arena, &answer, &payload);
            }
        }
    }
    let now = arena.now;
    arena.target.write(now, stream.at_target(), &pattern(100_000, 2)).expect("room");
    arena.run_for(ms(30));
    let bytes: usize = rogue.receive(&mut arena).iter().map(|(_, p)| p.len()).sum();
    assert!(bytes >= 10 * 1_130, "an initial window arrives at the new address: {bytes} bytes");
}

/// Nobody who is not known makes us send anything; who is known makes us send no more than came.
#[test]
fn key_exchange_is_no_amplifier() {
    let mut arena = Arena::new(3);
    let mut rogue = Rogue::introduced(&mut arena, 1);
    // A sealed frame of a known peer for which there are no keys: the shortest that exists, and longer ones.
    for len in [36usize, 37, 70, 100, 142, 143, 200] {
        let mut bytes = vec![7; len];
        frame::encode_pils_header(rogue.node(), &[1; 12], &mut bytes).expect("fits");
        for _ in 0..10 {
            arena.send(victim(), &bytes);
            arena.run_for(ms(400));
            assert_no_amplification(&arena);
        }
    }
    // Replayed key exchange frames, cut to the shortest that verifies, in the victim's name.
    let full = rogue.pila(PilaTrailer::REQUEST);
    for len in [136, 137, 138, 140, full.len()] {
        for _ in 0..10 {
            arena.send(victim(), &full[..len]);
            arena.run_for(ms(400));
            assert_no_amplification(&arena);
        }
    }
    // The peer itself is answered where it is.
    assert!(rogue.shake_hands(&mut arena));
}

/// Strangers in the victim's name: look-ups are bounded and bring nothing to the victim.
#[test]
fn strangers_in_the_name_of_a_victim_cost_it_nothing() {
    let mut arena = Arena::new(4);
    let stranger = Rogue::new(77);
    for round in 0..2_000u32 {
        let mut pils = vec![9; 36];
        frame::encode_pils_header(pilotage_wire::NodeId(round), &[1; 12], &mut pils).expect("fits");
        arena.send(victim(), &pils);
        arena.send(victim(), &stranger.pila(1));
        arena.send(victim(), b"PILP");
    }
    arena.run_for(Duration::from_secs(2));
    let lookups = arena.events.iter().filter(|e| matches!(e, Event::LookupPeer { .. })).count();
    assert!(lookups <= 64, "{lookups}");
    // The application knows one of them after all, but not where it is.
    let node = stranger.node();
    let now = arena.now;
    let peer = pilotage_proto::PeerConfig {
        address: stranger.address,
        key: Some(stranger.identity.public_key()),
        endpoint: None,
        policy: pilotage_proto::PeerPolicy::default(),
        prekey: None,
    };
    arena.send(victim(), &stranger.pila(1));
    arena.run_for(ms(50));
    arena.target.resolve_peer(now, node, Some(peer));
    arena.run_for(Duration::from_secs(5));
    assert_no_amplification(&arena);
}

/// A rogue registers a victim's address as its own, learns our key through the relay, and sends and acknowledges blindly
/// in the victim's name.
#[test]
fn an_introduced_address_that_never_answers_gets_little() {
    let mut arena = Arena::new(9);
    let mut rogue = Rogue::new(1);
    rogue.addr = victim();
    arena.introduce(rogue.address, rogue.identity.public_key(), Some(victim()));
    // What the relay would hand it: our answer. From here on it sees nothing.
    assert!(rogue.shake_hands(&mut arena));
    let mut stream = rogue.connect(&mut arena, 80).expect("connects");
    let now = arena.now;
    arena.target.write(now, stream.at_target(), &pattern(4 << 20, 1)).expect("room");
    stream.window = u16::MAX;
    let mut acked = 0;
    for _ in 0..400 {
        for _ in 0..20 {
            acked += 1_130;
            let ack = stream.ack(0, acked);
            rogue.say(&mut arena, &ack, &[]);
        }
        arena.run_for(ms(5));
    }
    let ledger = arena.ledger[&victim()];
    println!("{ledger:?}");
    assert!(ledger.bytes_out <= ledger.bytes_in + (64 << 10), "{ledger:?}");
}
