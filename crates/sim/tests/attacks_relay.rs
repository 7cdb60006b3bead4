//! A beacon that lies, and people who pretend to be the beacon: they can drop or delay, nothing else (rule C15).

mod attacks_common;

use std::net::SocketAddr;
use std::time::Duration;

use attacks_common::{Dice, Duel, attacker, ms};
use pilotage_proto::Event;
use pilotage_sim::rogue::{Arena, Rogue};
use pilotage_sim::{Link, Pair, Side, pattern, seeds};
use pilotage_wire::NodeId;
use pilotage_wire::beacon::Message;

fn beacon() -> SocketAddr {
    ([192, 0, 2, 200], 9001).into()
}

fn encoded(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = vec![0; message.encoded_len()];
    message.encode(&mut bytes).expect("the buffer has room");
    bytes
}

/// Beacon messages from anybody but the beacon are dropped and counted; nothing is sent because of them.
#[test]
fn beacon_messages_from_elsewhere_are_without_effect() {
    let mut pair = Pair::new(1, Link::default());
    pair.add_beacon();
    let mut duel = Duel::new(&mut pair, 100, 2 << 20);
    let victim: SocketAddr = "203.0.113.80:80".parse().expect("an address");
    let observed = pair.endpoint(Side::B).observed_address();
    let paths = duel.paths(&mut pair);
    let before = pair.endpoint(Side::B).stats();
    let a = pair.host(Side::A).address.node;
    let real = pair.host(Side::A).addr;
    let mut count = 0;
    pair.record = true;
    for _ in 0..2_000 {
        for from in [attacker(), real, SocketAddr::new(beacon().ip(), 9_002)] {
            let frame = pattern(100, 1);
            let messages = [
                Message::DiscoverReply { addr: victim },
                Message::PunchCommand { addr: victim },
                Message::Deliver { src: a, frame: &frame },
                Message::DeliverEx { src: a, dst: NodeId(0x1001), frame: &frame },
                Message::Discover { node: a },
                Message::PunchRequest { node: a, target: NodeId(0x1001) },
                Message::Relay { src: a, dst: NodeId(0x1001), frame: b"PILP" },
            ];
            for message in messages {
                pair.inject(from, Side::B, &encoded(&message));
                count += 1;
            }
        }
        pair.run_for(Duration::from_micros(200));
        duel.pump(&mut pair);
    }
    let after = pair.endpoint(Side::B).stats();
    // A few of its own probes come back unasked for: what it sent to its own outer address.
    assert!((count..count + 8).contains(&(after.drop_beacon - before.drop_beacon)));
    assert_eq!(pair.endpoint(Side::B).observed_address(), observed);
    assert_eq!(duel.paths(&mut pair), paths);
    assert!(
        !pair.recorded.iter().any(|(side, b)| *side == Side::B && b.starts_with(b"PILP")),
        "no punch was sent"
    );
    duel.finish(&mut pair);
}

/// A beacon that has turned rogue orders punches to victims: a few bytes each, and few.
#[test]
fn a_rogue_beacon_cannot_make_a_flood_of_punches() {
    let mut arena = Arena::new(2);
    arena.target.set_beacon(arena.now, Some(beacon()));
    let victim: SocketAddr = "203.0.113.80:80".parse().expect("an address");
    let mut others = 0u64;
    for i in 0..20_000u32 {
        arena.send(beacon(), &encoded(&Message::PunchCommand { addr: victim }));
        let other = SocketAddr::from(([198, 51, (i >> 8) as u8, i as u8], 53));
        arena.send(beacon(), &encoded(&Message::PunchCommand { addr: other }));
        arena.run_for(Duration::from_micros(500));
    }
    let came = arena.ledger[&beacon()].bytes_in;
    let mut went = 0;
    for (addr, ledger) in &arena.ledger {
        if *addr != beacon() {
            went += ledger.bytes_out;
            others += ledger.datagrams_out;
        }
    }
    let at_victim = arena.ledger.get(&victim).copied().unwrap_or_default();
    println!(
        "punches in 10 s: {others} in all, {} to the victim, {went} bytes for {came}",
        at_victim.datagrams_out
    );
    assert!(went * 10 <= came, "{went} bytes for {came}");
    assert!(at_victim.datagrams_out <= 20, "{at_victim:?}");
}

/// What a rogue relay can do to two peers that meet only through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Malice {
    Drop,
    Delay,
    Duplicate,
    Mutate,
    Replay,
    Reflect,
    Relabel,
}

const ALL: [Malice; 7] = [
    Malice::Drop,
    Malice::Delay,
    Malice::Duplicate,
    Malice::Mutate,
    Malice::Replay,
    Malice::Reflect,
    Malice::Relabel,
];

/// Frames go through a relay that drops, delays, duplicates, changes, replays, reflects and misroutes: streams are
/// exact, datagrams come at most once, and nothing else happens than delay.
#[test]
fn a_rogue_relay_can_only_drop_and_delay() {
    for seed in seeds(60) {
        let mut pair = Pair::new(seed, Link { delay: ms(5), ..Link::default() });
        pair.add_beacon();
        pair.direct_blocked = true;
        pair.endpoint(Side::B).bind_datagram(53).expect("free");
        let mut duel = Duel::new(&mut pair, 100, 100_000);
        pair.record = true;
        let nodes = [pair.host(Side::A).address.node, pair.host(Side::B).address.node];
        let mut dice = Dice(seed);
        let mut past: Vec<(Side, Vec<u8>)> = Vec::new();
        for round in 0..3_000u32 {
            let until = pair.now + ms(2);
            while pair.step(until) {}
            duel.pump(&mut pair);
            let recorded = std::mem::take(&mut pair.recorded);
            for (side, bytes) in recorded {
                let Ok(Message::Relay { frame, .. }) = Message::decode(&bytes) else { continue };
                let malice = ALL[dice.below(ALL.len())];
                let src = nodes[side as usize];
                mischief(&mut pair, &mut dice, malice, (side, src, frame), &past);
                past.push((side, frame.to_vec()));
            }
            // Now and then the relay holds everything back for a moment.
            pair.links[0].down = round % 100 > 96 && dice.below(2) == 0;
            if duel.is_over() {
                break;
            }
        }
        pair.links[0].down = false;
        pair.record = false;
        duel.finish(&mut pair);
        let now = pair.now;
        let b = pair.host(Side::B).address;
        let to = pilotage_wire::SocketAddress { address: b, port: 53 };
        pair.endpoint(Side::A).send_datagram(now, to, 9, b"once").expect("queued");
        pair.run_for(ms(100));
        assert!(pair.endpoint(Side::B).recv_datagram(53).is_some());
        assert_eq!(pair.endpoint(Side::B).recv_datagram(53), None, "seed {seed}");
        for side in [Side::A, Side::B] {
            let down = pair.host(side).events.iter().any(|e| matches!(e, Event::TunnelDown { .. }));
            assert!(!down, "seed {seed}: the tunnel survived");
        }
    }
}

/// The relay's extra deliveries (the frame itself also arrives, unless the link is down).
fn mischief(
    pair: &mut Pair,
    dice: &mut Dice,
    malice: Malice,
    (side, src, frame): (Side, NodeId, &[u8]),
    past: &[(Side, Vec<u8>)],
) {
    let mut bytes = frame.to_vec();
    let (mut to, mut claimed) = (side.other(), src);
    match malice {
        Malice::Drop => return,
        Malice::Delay | Malice::Duplicate => {}
        Malice::Mutate => {
            let at = dice.below(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
        }
        Malice::Replay => {
            let Some((from, old)) = past.get(dice.below(past.len())) else { return };
            (to, bytes) = (from.other(), old.clone());
        }
        Malice::Reflect => to = side,
        Malice::Relabel => claimed = NodeId(dice.next() as u32),
    }
    let message = encoded(&Message::Deliver { src: claimed, frame: &bytes });
    let copies = if malice == Malice::Duplicate { 3 } else { 1 };
    for _ in 0..copies {
        pair.inject(beacon(), to, &message);
    }
}

/// A peer that sends through the relay in the name of another is refused by the beacon or by the keys.
#[test]
fn relayed_frames_in_anothers_name_do_not_open() {
    let mut arena = Arena::new(4);
    arena.target.set_beacon(arena.now, Some(beacon()));
    let mut rogue = Rogue::introduced(&mut arena, 1);
    let mut honest = Rogue::introduced(&mut arena, 2);
    assert!(rogue.shake_hands(&mut arena) && honest.shake_hands(&mut arena));
    let stream = honest.connect(&mut arena, 80).expect("connects");
    let before = arena.target.stats();
    for round in 0..500 {
        let mut frame = rogue.seal(&stream.data(0), b"not mine");
        if round % 2 == 0 {
            frame[4..8].copy_from_slice(&honest.node().0.to_be_bytes());
        }
        arena.send(beacon(), &encoded(&Message::Deliver { src: honest.node(), frame: &frame }));
    }
    arena.run_for(ms(100));
    let after = arena.target.stats();
    let refused =
        after.drop_unauthentic - before.drop_unauthentic + after.drop_misaddressed - before.drop_misaddressed;
    assert_eq!(refused, 500);
    honest.say(&mut arena, &stream.data(0), b"mine");
    arena.run_for(ms(50));
    assert_eq!(arena.read_all(stream.at_target()), b"mine");
}
