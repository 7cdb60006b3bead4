//! Roaming and NATs that forget, by the names and with the measure of the laboratory (spec/natlab.md §4): a bulk transfer and, beside
//! it, a stream with a number every 20 ms that the other side sends back.

use std::time::{Duration, Instant};

use pilotage_proto::ConnectionId;
use pilotage_sim::nat::{NatKind, NatWorld};
use pilotage_sim::{Link, pattern};

/// A number goes through the stream this often.
const TICK: Duration = Duration::from_millis(20);
/// From node to node and back.
const RTT: Duration = Duration::from_millis(100);

/// As the laboratory's: 10 Mbit/s.
fn access(rtt: Duration) -> Link {
    Link { delay: rtt / 4, rate: Some(1_250_000), queue: 64 << 10, mtu: 1_500, ..Link::default() }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What the numbers and the transfer go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Connections of the draft, under its keys.
    Draft,
    /// Connections of the draft, in sessions of S1: who does not know the other's prekey begins so.
    Within,
    /// The numbers are older than the session of S1, the transfer is not.
    Mixed,
    /// Streams of S1.
    Streams,
}

/// Two nodes, a transfer from the first to the second, and numbers there and back.
struct Run {
    world: NatWorld,
    bulk: (ConnectionId, ConnectionId),
    echo: (ConnectionId, ConnectionId),
    data: Vec<u8>,
    written: usize,
    read: usize,
    sent: Vec<Instant>,
    took: Vec<Duration>,
    partial: Vec<u8>,
    echoed: Vec<u8>,
}

impl Run {
    fn new(seed: u64, rtt: Duration, (a, b): (NatKind, NatKind), direct: bool, mode: Kind) -> Self {
        let mut world = NatWorld::new(seed, 1);
        if mode != Kind::Draft {
            world.speak_s1(mode == Kind::Streams);
        }
        world.add_host(a, access(rtt), None);
        world.add_host(b, access(rtt), None);
        world.run_for(ms(2_000));
        let (a, b, _) = world.connect(0, 1, ms(5_000)).expect("connects");
        let echo = (a, b);
        if mode == Kind::Mixed {
            world.run_for(ms(1_000));
        }
        let (a, b, _) = world.connect(0, 1, ms(5_000)).expect("connects again");
        assert_eq!(world.run_until(ms(5_000), |w| w.is_direct(0, 1)), direct);
        let mut run = Self {
            world,
            bulk: (a, b),
            echo,
            data: pattern(1 << 20, 7),
            written: 0,
            read: 0,
            sent: Vec::new(),
            took: Vec::new(),
            partial: Vec::new(),
            echoed: Vec::new(),
        };
        run.run(ms(3_000));
        run
    }

    fn pump(&mut self) {
        let now = self.world.now;
        let [a, b] = self.world.hosts.get_disjoint_mut([0, 1]).expect("two");
        loop {
            let at = self.written % self.data.len();
            let end = (at + (64 << 10)).min(self.data.len());
            match a.endpoint.write(now, self.bulk.0, &self.data[at..end]) {
                Ok(n) if n > 0 => self.written += n,
                _ => break,
            }
        }
        let mut buf = [0; 16 << 10];
        while let Ok(n) = b.endpoint.read(now, self.bulk.1, &mut buf) {
            for byte in &buf[..n] {
                assert_eq!(*byte, self.data[self.read % self.data.len()], "at {}", self.read);
                self.read += 1;
            }
        }
        while let Ok(n) = b.endpoint.read(now, self.echo.1, &mut buf) {
            self.echoed.extend_from_slice(&buf[..n]);
        }
        if let (false, Ok(n)) = (self.echoed.is_empty(), b.endpoint.write(now, self.echo.1, &self.echoed)) {
            self.echoed.drain(..n);
        }
        while let Ok(n) = a.endpoint.read(now, self.echo.0, &mut buf) {
            self.partial.extend_from_slice(&buf[..n]);
        }
        while let Some(number) = self.partial.first_chunk::<8>() {
            assert_eq!(u64::from_be_bytes(*number), self.took.len() as u64, "in order");
            self.took.push(now - self.sent[self.took.len()]);
            self.partial.drain(..8);
        }
        if self.sent.last().is_none_or(|t| now >= *t + TICK) {
            let number = (self.sent.len() as u64).to_be_bytes();
            assert_eq!(a.endpoint.write(now, self.echo.0, &number), Ok(8));
            self.sent.push(now);
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.world.now + time;
        loop {
            self.pump();
            let tick = self.sent.last().map_or(until, |t| (*t + TICK).min(until));
            if !self.world.step(tick) && tick == until {
                self.pump();
                return;
            }
        }
    }

    /// The way there and back of the fastest quarter, and the longest of a number that was sent around each of these times.
    fn verdict(&self, moves: &[Instant]) -> (Duration, Vec<Duration>) {
        let mut all = self.took.clone();
        all.sort_unstable();
        let longest = moves.iter().map(|at| {
            let near =
                |sent: &Instant| *sent + ms(200) >= *at && sent.saturating_duration_since(*at) < ms(1_000);
            self.sent.iter().zip(&self.took).filter(|(sent, _)| near(sent)).map(|(_, t)| *t).max()
        });
        let longest = longest.map(|t| t.expect("numbers around every change")).collect();
        (all[all.len() / 4], longest)
    }
}

/// Says how long changes held numbers up, beyond the usual way.
fn report(name: &str, run: &Run, moves: &[Instant]) -> Duration {
    let (usual, mut longest) = run.verdict(moves);
    let worst = longest.iter().enumerate().max_by_key(|(_, t)| **t).expect("moves").0;
    longest.sort_unstable();
    let (p50, max) = (longest[longest.len() / 2], longest[longest.len() - 1]);
    println!(
        "{name}: usual {usual:?}, after a change p50 {p50:?} max {max:?} (number {worst}), {} kB, {}",
        run.read >> 10,
        run.world.reason(0, 1)
    );
    max.saturating_sub(usual)
}

/// One minute in which a host gets another address each second; the watcher of its interfaces says so 5 ms later.
fn roam(seed: u64, rtt: Duration, pair: (NatKind, NatKind), mover: usize, mode: Kind) -> Duration {
    roam_with(seed, rtt, pair, mover, mode, Duration::ZERO)
}

/// The same; before it has the other address it has none for so long, and what it sends is lost.
fn roam_with(
    seed: u64,
    rtt: Duration,
    (a, b): (NatKind, NatKind),
    mover: usize,
    mode: Kind,
    gap: Duration,
) -> Duration {
    let mut run = Run::new(seed, rtt, (a, b), true, mode);
    let mut moves = Vec::new();
    for _ in 0..60 {
        run.run(ms(1_000));
        moves.push(run.world.now);
        run.world.hosts[mover].link.loss = 1.0;
        run.run(gap);
        run.world.hosts[mover].link.loss = 0.0;
        run.world.roam_host(mover);
        run.run(ms(5));
        run.world.notice_move(mover);
    }
    run.run(ms(3_000));
    let name = format!("roaming each second, {mode:?}, {} -> {}, {mover} moves, {rtt:?}", a.name(), b.name());
    report(&name, &run, &moves)
}

/// The host of the sender gets another address each second for a minute, with connections of the draft.
#[test]
fn roaming_each_second() {
    use NatKind::{FullCone, None, PortRestricted, SymmetricRandom};
    // At 120 ms the offer that is repeated after 100 ms names the new address before that has proven itself.
    for (seed, (rtt, a, b)) in [
        (RTT, None, None),
        (RTT, PortRestricted, FullCone),
        (RTT, SymmetricRandom, None),
        (RTT + TICK, None, None),
    ]
    .into_iter()
    .enumerate()
    {
        let stall = roam(11 + seed as u64, rtt, (a, b), 0, Kind::Draft);
        assert!(stall <= rtt * 3, "{} -> {}: {stall:?}", a.name(), b.name());
    }
}

/// With streams of S1, which is what nodes speak: a round trip and a half at most; 127 to 137 ms seen at 100 ms.
#[test]
fn roaming_each_second_with_streams_of_s1() {
    use NatKind::{FullCone, None, PortRestricted, SymmetricRandom};
    for (rtt, a, b) in [
        (RTT, None, None),
        (RTT, PortRestricted, FullCone),
        (RTT, SymmetricRandom, None),
        (RTT + TICK, None, None),
    ] {
        let stall = roam(11, rtt, (a, b), 0, Kind::Streams);
        assert!(stall <= rtt * 3 / 2, "{} -> {}: {stall:?}", a.name(), b.name());
    }
}

/// For a moment the host has no address at all, and what it sends is lost, which says nothing about the path (R5.8a): 165 ms
/// seen (239 ms, and two thirds of the bytes, when that was taken for congestion), with connections of the draft 257 (914).
#[test]
fn roaming_with_moments_without_an_address() {
    use NatKind::{FullCone, None, PortRestricted, SymmetricRandom};
    for (a, b) in [(None, None), (PortRestricted, FullCone), (SymmetricRandom, None)] {
        for (mode, limit) in [(Kind::Streams, RTT * 2), (Kind::Within, RTT * 2), (Kind::Draft, RTT * 3)] {
            for gap in [ms(20), ms(40)] {
                let stall = roam_with(11, RTT, (a, b), 0, mode, gap);
                assert!(stall <= limit, "{gap:?}, {mode:?}, {} -> {}: {stall:?}", a.name(), b.name());
            }
        }
    }
}

/// Connections of the draft in sessions of S1: two round trips at most, 167 ms seen; beside a stream of S1 more, 390 ms seen.
#[test]
fn roaming_each_second_with_connections_within_s1() {
    use NatKind::{FullCone, None, PortRestricted};
    for (a, b) in [(None, None), (PortRestricted, FullCone)] {
        for (kind, limit) in [(Kind::Within, RTT * 2), (Kind::Mixed, RTT * 4)] {
            let stall = roam(11, RTT, (a, b), 0, kind);
            assert!(stall <= limit, "{kind:?}, {} -> {}: {stall:?}", a.name(), b.name());
        }
    }
}

/// The host that *receives* the transfer moves, behind a NAT that lets in only whom it has written to: the peer hears of the new
/// address by the relay alone, and follows at once (3.3 s before it did; 273 ms seen).
#[test]
fn a_receiver_that_moves_behind_nats_is_followed() {
    let stall = roam(11, RTT, (NatKind::PortRestricted, NatKind::FullCone), 1, Kind::Draft);
    assert!(stall <= RTT * 3, "{stall:?}");
}

/// The NAT of the sender forgets its table: the longest that a number took beyond the usual, for five moments.
fn reboot(seed: u64, (a, b): (NatKind, NatKind), relayed: bool, mode: Kind) -> Duration {
    let one = |turn| {
        let mut run = Run::new(seed + turn, RTT, (a, b), !relayed, mode);
        run.run(ms(2_000 + turn * 37));
        let moves = [run.world.now];
        run.world.reboot_nat(0);
        run.run(ms(6_000));
        report(&format!("NAT reboot, {mode:?}, {} -> {}", a.name(), b.name()), &run, &moves)
    };
    (0..5).map(one).max().unwrap_or_default()
}

/// At most two probe timeouts longer, for the detection and the repair.
#[test]
fn nat_reboot() {
    use NatKind::{FullCone, None, PortRestricted, SymmetricRandom};
    for mode in [Kind::Draft, Kind::Streams] {
        for (seed, (a, b)) in [
            (FullCone, PortRestricted),
            (PortRestricted, PortRestricted),
            (SymmetricRandom, None),
            (SymmetricRandom, SymmetricRandom),
        ]
        .into_iter()
        .enumerate()
        {
            let relayed = a == b && a == SymmetricRandom;
            let stall = reboot(31 + seed as u64 * 10, (a, b), relayed, mode);
            let limit = (RTT * 2 * if relayed { 2 } else { 1 } + ms(25)) * 2;
            assert!(stall <= limit, "{mode:?}, {} -> {}: {stall:?}", a.name(), b.name());
        }
    }
}

/// Nothing is under way when the host moves: all that comes from the new address at first is a check. That pays for the peer's own
/// question, which leaves at once; and the side that chooses between ways does not hold on to an address that is no longer named.
#[test]
fn an_idle_peer_that_moved_is_followed_after_a_round_trip_and_a_half() {
    use NatKind::{FullCone, None, PortRestricted};
    let mut wrong = Vec::new();
    for (a, b) in [(None, None), (PortRestricted, FullCone)] {
        for mover in [0, 1] {
            let mut world = NatWorld::new(5, 1);
            world.add_host(a, access(RTT), Option::None);
            world.add_host(b, access(RTT), Option::None);
            world.run_for(ms(2_000));
            let (from, to, _) = world.connect(0, 1, ms(5_000)).expect("connects");
            assert!(world.run_until(ms(5_000), |w| w.is_direct(0, 1)));
            let other = 1 - mover;
            let id = if other == 0 { from } else { to };
            let remote = |w: &NatWorld| w.hosts[other].endpoint.connection_path(id).expect("path").remote;
            for turn in 0..3 {
                world.run_for(ms(5_000));
                let (before, begun) = (remote(&world), world.now);
                world.roam_host(mover);
                world.notice_move(mover);
                world.run_until(ms(2_000), |w| remote(w) != before);
                let took = world.now - begun;
                println!("{} and {}, {mover} moves: {took:?}", a.name(), b.name());
                if took > RTT * 3 / 2 + ms(5) {
                    wrong.push(format!("{} and {}, {mover}, turn {turn}: {took:?}", a.name(), b.name()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
