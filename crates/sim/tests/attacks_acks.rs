//! What an authenticated peer can try with acknowledgements: too far, too early, SACK nonsense, windows (spec/recovery.md
//! R4, spec/stream.md §4, §5).

mod attacks_common;

use attacks_common::{Dice, ms};
use pilotage_proto::ReadError;
use pilotage_sim::pattern;
use pilotage_sim::rogue::{Arena, Rogue, RogueStream};
use pilotage_wire::packet::{Flags, Header};

/// A rogue with an open connection on which the endpoint has `len` bytes to send, or as many as it takes at once.
fn with_sender(seed: u64, len: usize) -> (Arena, Rogue, RogueStream, Vec<u8>) {
    let mut arena = Arena::new(seed);
    let mut rogue = Rogue::introduced(&mut arena, 1);
    assert!(rogue.shake_hands(&mut arena));
    let stream = rogue.connect(&mut arena, 80).expect("connects");
    let data = pattern(len.min(arena.target.writable(stream.at_target())), seed);
    let now = arena.now;
    assert_eq!(arena.target.write(now, stream.at_target(), &data).expect("room"), data.len());
    (arena, rogue, stream, data)
}

/// Receives like an honest peer until `len` bytes are there; returns them in order.
fn receive_honestly(
    arena: &mut Arena,
    rogue: &mut Rogue,
    stream: &mut RogueStream,
    len: usize,
    from: usize,
) -> Vec<u8> {
    let mut got = vec![0; len];
    let mut have = vec![false; len];
    let mut next = from;
    have[..from].fill(true);
    for _ in 0..20_000 {
        let packets = rogue.receive(arena);
        for (header, payload) in packets.iter().filter(|(h, _)| stream.owns(h)) {
            assert!(!header.flags.contains(Flags::RST), "the endpoint gave up");
            let at = stream.offset_of(header) as usize;
            if !payload.is_empty() && at + payload.len() <= len {
                got[at..at + payload.len()].copy_from_slice(payload);
                have[at..at + payload.len()].fill(true);
            }
        }
        while next < len && have[next] {
            next += 1;
        }
        if next == len {
            break;
        }
        let ack = stream.ack(0, next as u64);
        rogue.say(arena, &ack, &[]);
        arena.run_for(ms(5));
    }
    assert_eq!(next, len, "everything arrives");
    got
}

fn unread_error(arena: &mut Arena, stream: &RogueStream) -> ReadError {
    let now = arena.now;
    arena.target.read(now, stream.at_target(), &mut [0; 8]).expect_err("nothing was written by the rogue")
}

/// An acknowledgement of what was never sent is dropped, counted, answered once, and changes nothing.
#[test]
fn an_ack_beyond_what_was_sent_is_refused() {
    let (mut arena, mut rogue, mut stream, data) = with_sender(1, 60_000);
    arena.run_for(ms(15));
    let before = arena.target.stats();
    let in_flight = arena.target.connection_path(stream.at_target()).expect("path").in_flight;
    let writable = arena.target.writable(stream.at_target());
    let sent: usize = rogue.receive(&mut arena).iter().map(|(_, p)| p.len()).sum();
    let mut count = 0;
    for beyond in [60_001u64, 60_002, 100_000, 1 << 20, 1 << 30, (1 << 31) - 1] {
        for window in [0, 1, u16::MAX] {
            stream.window = window;
            let ack = stream.ack(0, beyond);
            rogue.hit(&mut arena, &ack, &[]);
            count += 1;
        }
    }
    assert_eq!(arena.target.stats().drop_segment - before.drop_segment, count);
    assert_eq!(arena.target.connection_path(stream.at_target()).expect("path").in_flight, in_flight);
    assert_eq!(arena.target.connection_stats(stream.at_target()).expect("open").bytes_acked, 0);
    arena.settle();
    arena.run_for(ms(15));
    assert_eq!((sent > 0, arena.target.writable(stream.at_target())), (true, writable));
    stream.window = 4_096;
    rogue.received.clear();
    let got = receive_honestly(&mut arena, &mut rogue, &mut stream, data.len(), 0);
    assert!(got == data, "exact all the same");
}

/// A receiver that acknowledges what it has not received can only hurt its own stream: what the endpoint has in flight
/// stays within the window that the receiver gave and what the application wrote, and another peer's stream is exact.
#[test]
fn an_optimistic_ack_stays_within_the_window_and_hurts_no_other() {
    let (mut arena, mut rogue, mut stream, data) = with_sender(2, 4 << 20);
    let mut honest = Rogue::introduced(&mut arena, 2);
    assert!(honest.shake_hands(&mut arena));
    let mut other = honest.connect(&mut arena, 81).expect("connects");
    let text = pattern(300_000, 9);
    let now = arena.now;
    arena.target.write(now, other.at_target(), &text).expect("room");
    stream.window = 64; // 256 KiB
    let window = 64 * 4_096;
    let mut acked = 0u64;
    let (mut refused, mut most) = (0, 0);
    for round in 0..3_000u64 {
        let before = arena.target.stats().drop_segment;
        let ack = stream.ack(0, acked + 1_130);
        rogue.hit(&mut arena, &ack, &[]);
        if arena.target.stats().drop_segment == before {
            acked += 1_130;
        } else {
            refused += 1;
        }
        arena.settle();
        let path = arena.target.connection_path(stream.at_target()).expect("path");
        most = most.max(path.in_flight);
        assert!(path.in_flight <= window, "{} in flight", path.in_flight);
        if round % 50 == 0 {
            arena.run_for(ms(1));
        }
    }
    assert!(
        refused > 100,
        "too early is too far as soon as the sender has nothing more under way: {refused}"
    );
    assert!(most > 10_000 && acked <= data.len() as u64);
    let stats = arena.target.connection_stats(stream.at_target()).expect("open");
    assert_eq!(stats.bytes_acked, acked);
    let got = receive_honestly(&mut arena, &mut honest, &mut other, text.len(), 0);
    assert!(got == text, "the honest peer's stream is exact");
    assert_eq!(unread_error(&mut arena, &stream), ReadError::Blocked);
}

/// SACK blocks that mean nothing release nothing, cost little, and the stream stays exact.
#[test]
fn nonsense_in_sack_blocks_releases_nothing() {
    for seed in 0..20 {
        let (mut arena, mut rogue, mut stream, data) = with_sender(seed, 200_000);
        arena.run_for(ms(15));
        let mut dice = Dice(seed);
        for _ in 0..2_000 {
            let any = |dice: &mut Dice| match dice.below(5) {
                0 => dice.next() % 20_000,
                1 => 0,
                2 => 1 << (dice.next() % 33),
                3 => u64::MAX - dice.next() % 100_000,
                _ => 200_000 + dice.next() % 4,
            };
            let blocks: Vec<_> = (0..=dice.below(4)).map(|_| (any(&mut dice), any(&mut dice))).collect();
            let payload = stream.sack(&blocks);
            let ack = stream.ack(0, 0);
            rogue.hit(&mut arena, &ack, &payload);
        }
        let stats = arena.target.connection_stats(stream.at_target()).expect("open");
        assert_eq!(stats.bytes_acked, 0, "nothing is released by a SACK");
        arena.settle();
        // Nonsense that is no SACK counts as data of the rogue's; only its own stream can suffer from that.
        let got = receive_honestly(&mut arena, &mut rogue, &mut stream, data.len(), 0);
        assert!(got == data, "seed {seed}");
    }
}

/// A receiver that takes back what it SACKed, or SACKs everything but the first byte for ever, gets the data all the same.
#[test]
fn a_receiver_that_reneges_gets_everything_again() {
    let (mut arena, mut rogue, mut stream, data) = with_sender(3, 100_000);
    for _ in 0..200 {
        arena.run_for(ms(5));
        let highest = rogue
            .receive(&mut arena)
            .iter()
            .filter(|(h, p)| stream.owns(h) && !p.is_empty())
            .map(|(h, p)| stream.offset_of(h) + p.len() as u64)
            .max();
        if let Some(highest) = highest.filter(|h| *h > 1) {
            let payload = stream.sack(&[(1, highest)]);
            let ack = stream.ack(0, 0);
            rogue.say(&mut arena, &ack, &payload);
        }
    }
    rogue.received.clear();
    let stats = arena.target.connection_stats(stream.at_target()).expect("open");
    assert_eq!(stats.bytes_acked, 0);
    let got = receive_honestly(&mut arena, &mut rogue, &mut stream, data.len(), 0);
    assert!(got == data, "what was SACKed is not forgotten before it is acknowledged");
}

/// Windows that are closed, shrunk or tiny: the sender stays within them, does not spin, and goes on when they open.
#[test]
fn closed_shrunk_and_tiny_windows_do_not_make_the_sender_spin() {
    let (mut arena, mut rogue, mut stream, data) = with_sender(4, 150_000);
    stream.window = 1;
    let ack = stream.ack(0, 0);
    rogue.say(&mut arena, &ack, &[]);
    stream.window = 0;
    arena.run_for(ms(15));
    let sent_before = arena.target.stats().datagrams_sent;
    for i in 0..60 {
        // Zero, then one unit less than was given, in turn.
        let got: u64 = rogue
            .receive(&mut arena)
            .iter()
            .filter(|(h, p)| stream.owns(h) && !p.is_empty())
            .map(|(h, p)| stream.offset_of(h) + p.len() as u64)
            .max()
            .unwrap_or(0);
        assert!(got <= 16 << 20, "within the first window");
        stream.window = i % 2;
        let ack = stream.ack(0, 0);
        rogue.say(&mut arena, &ack, &[]);
        arena.run_for(ms(500));
    }
    let sent = arena.target.stats().datagrams_sent - sent_before;
    assert!(sent < 3_000, "{sent} datagrams in 30 s against a closed window");
    stream.window = 4_096;
    let got = receive_honestly(&mut arena, &mut rogue, &mut stream, data.len(), 0);
    assert!(got == data);
}

/// Answers to a flood of acknowledgements, keepalives and echoes: never more datagrams than came.
#[test]
fn control_floods_are_answered_at_most_one_to_one() {
    let (mut arena, mut rogue, mut stream, _) = with_sender(5, 1);
    arena.run_for(ms(100));
    stream.acked = 1;
    let mut count = 0u64;
    let flags =
        [Flags::ACK, Flags::FIN | Flags::ACK, Flags::SYN, Flags::SYN | Flags::ACK, Flags::EMPTY, Flags::ACK];
    let start = arena.ledger[&rogue.addr];
    let mut dice = Dice(5);
    for round in 0..20_000u64 {
        let mut header: Header = stream.segment(flags[round as usize % flags.len()], u64::MAX - round % 3);
        if dice.below(3) == 0 {
            header.ack = dice.next() as u32;
        }
        if header.flags.contains(Flags::FIN) {
            header.seq = header.seq.wrapping_sub(1 << 30); // not the end of our stream
        }
        rogue.hit(&mut arena, &header, &[]);
        let ping = rogue.echo_request(&arena, round as u32);
        rogue.hit(&mut arena, &ping, &[7; 16]);
        count += 2;
        if round % 7 == 0 {
            arena.run_for(ms(1));
            rogue.receive(&mut arena);
            let ledger = arena.ledger[&rogue.addr];
            let (came, went) = (ledger.bytes_in - start.bytes_in, ledger.bytes_out - start.bytes_out);
            assert!(went <= came, "{went} bytes for {came}");
        }
    }
    arena.run_for(ms(100));
    let ledger = arena.ledger[&rogue.addr];
    assert!(ledger.datagrams_out - start.datagrams_out <= count, "{ledger:?} for {count}");
    assert!(arena.target.is_open(stream.at_target()), "and the connection lives");
}
