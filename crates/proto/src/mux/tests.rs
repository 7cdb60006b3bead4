//! Two ends of the layer over a path that loses, copies and mixes up, without tunnels and keys.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pilotage_wire::s1::data::OVERHEAD;
use pilotage_wire::s1::frames::{Frame, Frames};
use pilotage_wire::s1::stream::Stream as Piece;
use pilotage_wire::{Address, SocketAddress};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::*;
use crate::connection::Notify;
use crate::event::{ConnectError, ConnectionId, ReadError, WriteError};
use crate::send_buffer::SendBuffer;
use crate::tunnel::DatagramOut;
use crate::tunnel::path::Route;

mod misbehaviour;
mod random;
mod turns;

const MS: Duration = Duration::from_millis(1);
/// Frames that fit into a packet.
const ROOM: usize = 1_175;

/// A packet under way.
#[derive(Debug, Clone)]
struct Flight {
    at: Instant,
    order: u64,
    session: u32,
    number: u64,
    frames: Vec<u8>,
}

/// One end.
struct End {
    mux: Mux,
    path: Path,
    cfg: Config,
    address: Address,
    /// The session that sends; its index is the number of the session and 100 more.
    session: u32,
    sealed: Vec<u64>,
    datagrams: VecDeque<DatagramOut>,
    /// Slots of streams that came in.
    incoming: Vec<u32>,
    next_id: u32,
}

/// What the path does.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    delay: Duration,
    loss: f64,
    late: f64,
}

const CLEAN: Trouble = Trouble { delay: Duration::from_millis(10), loss: 0.0, late: 0.0 };

/// Two ends.
struct Pair {
    now: Instant,
    ends: [End; 2],
    flights: [Vec<Flight>; 2],
    trouble: Trouble,
    rng: ChaCha8Rng,
    order: u64,
    /// Packets that left, by side.
    packets: [usize; 2],
    /// Frames of every packet that left, if they are kept.
    seen: Option<Vec<(usize, Vec<u8>)>>,
    /// Codes with which an end wanted to end the session.
    errors: Vec<u64>,
}

#[allow(clippy::disallowed_methods)] // a base for virtual time
fn base() -> Instant {
    Instant::now()
}

impl End {
    fn new(smaller: bool, cfg: &Config, life: u64, began: Instant) -> Self {
        let route = Route::Direct("192.0.2.1:1".parse().expect("address"));
        Self {
            mux: Mux::new(smaller, life, began, cfg),
            path: Path::new(Some(route), cfg),
            cfg: cfg.clone(),
            address: Address::new(0, 1 + u32::from(smaller)),
            session: 0,
            sealed: Vec::new(),
            datagrams: VecDeque::new(),
            incoming: Vec::new(),
            next_id: 0,
        }
    }

    fn cx(&mut self, now: Instant) -> (&mut Mux, Cx<'_>) {
        (&mut self.mux, Cx { now, path: &mut self.path, cfg: &self.cfg })
    }

    fn under(&self) -> Under {
        let sealed = self.sealed[self.session as usize];
        let former = self.session.checked_sub(1).map(|s| (s, self.sealed[s as usize]));
        Under { session: self.session, index: self.session + 100, sealed, former }
    }

    fn begin_session(&mut self, session: u32, told: &TransportParameters, speak: bool) {
        self.session = session;
        self.sealed.resize(self.sealed.len().max(session as usize + 1), 0);
        let under = self.under();
        self.mux.on_session(under, told, speak);
    }

    fn open(&mut self, now: Instant, port: u16) -> u32 {
        self.next_id += 1;
        let address = self.address;
        let new = NewStream {
            id: ConnectionId { index: self.next_id, generation: 0 },
            local: SocketAddress { address, port: 50_000 + self.next_id as u16 },
            remote: SocketAddress { address, port },
            buf: SendBuffer::new(self.cfg.send_buffer),
            fin_queued: false,
            detached: false,
            write_blocked: false,
            queued: Notify::default(),
        };
        let (mux, cx) = self.cx(now);
        mux.connect(new, &cx)
    }

    fn stream(&self, slot: u32) -> &Stream {
        self.mux.streams.get(slot).expect("not forgotten")
    }

    fn read(&mut self, now: Instant, slot: u32, buf: &mut [u8]) -> Result<usize, ReadError> {
        let (mux, mut cx) = self.cx(now);
        mux.read(slot, buf, &mut cx)
    }

    /// Reads all that is there; whether the end was reached.
    fn drain(&mut self, now: Instant, slot: u32, into: &mut Vec<u8>) -> bool {
        let mut buf = [0; 8_192];
        loop {
            match self.read(now, slot, &mut buf) {
                Ok(0) => return true,
                Ok(n) => into.extend_from_slice(&buf[..n]),
                Err(_) => return false,
            }
        }
    }

    /// Writes as much as is taken of `data[*at..]`; ends the direction behind it.
    fn fill(&mut self, slot: u32, data: &[u8], at: &mut usize) {
        while *at < data.len() {
            match self.mux.write(slot, &data[*at..]) {
                Ok(n) => *at += n,
                Err(_) => return,
            }
        }
        let _ = self.mux.shutdown(slot);
    }
}

impl Pair {
    fn new(seed: u64, trouble: Trouble) -> Self {
        Self::with(seed, trouble, &Config::default())
    }

    fn with(seed: u64, trouble: Trouble, cfg: &Config) -> Self {
        let began = base();
        let mut pair = Self {
            now: began + Duration::from_secs(1),
            ends: [End::new(true, cfg, 111, began), End::new(false, cfg, 222, began)],
            flights: [Vec::new(), Vec::new()],
            trouble,
            rng: ChaCha8Rng::seed_from_u64(seed),
            order: 0,
            packets: [0; 2],
            seen: None,
            errors: Vec::new(),
        };
        pair.new_session(0);
        pair
    }

    /// Both ends have new keys.
    fn new_session(&mut self, session: u32) {
        for side in 0..2 {
            let told = parameters(&self.ends[1 - side].cfg);
            self.ends[side].begin_session(session, &told, side == 0);
        }
    }

    fn chance(&mut self, p: f64) -> bool {
        f64::from(self.rng.next_u32()) < p * f64::from(u32::MAX)
    }

    /// Sends everything that may leave now.
    fn flush(&mut self) {
        for side in 0..2 {
            let mut space = [0; ROOM];
            while let Some(len) = self.poll(side, &mut space) {
                self.packets[side] += 1;
                let frames = space[..len].to_vec();
                Frames::check(&frames).expect("our own frames are well-formed");
                if let Some(seen) = &mut self.seen {
                    seen.push((side, frames.clone()));
                }
                let end = &self.ends[side];
                let (session, number) = (end.session, end.sealed[end.session as usize] - 1);
                self.put(side, session, number, frames);
            }
        }
    }

    /// One packet of a side.
    fn poll(&mut self, side: usize, space: &mut [u8]) -> Option<usize> {
        let now = self.now;
        let end = &mut self.ends[side];
        let under = end.under();
        end.mux.enter(under);
        let mut cx = Cx { now, path: &mut end.path, cfg: &end.cfg };
        match end.mux.poll((ROOM, ROOM), &mut end.datagrams, space, &mut cx) {
            Polled::Packet { len, eliciting, counted } => {
                end.mux.commit(under.sealed, if counted { len + OVERHEAD } else { 0 }, eliciting, &mut cx);
                end.sealed[under.session as usize] += 1;
                Some(len)
            }
            _ => None,
        }
    }

    fn put(&mut self, side: usize, session: u32, number: u64, frames: Vec<u8>) {
        if self.chance(self.trouble.loss) {
            return;
        }
        let late = if self.chance(self.trouble.late) { self.trouble.delay / 2 } else { Duration::ZERO };
        self.order += 1;
        let at = self.now + self.trouble.delay + late;
        let flight = Flight { at, order: self.order, session, number, frames };
        // Copies do not come through the replay window of the session, so none is made here.
        self.flights[1 - side].push(flight);
    }

    fn deliver(&mut self, to: usize, flight: &Flight) {
        let now = self.now;
        let other = self.ends[1 - to].address;
        let end = &mut self.ends[to];
        let packet = PacketIn {
            session: flight.session,
            index: flight.session + 100,
            number: flight.number,
            sealed: end.sealed[end.session as usize],
        };
        let ends = (end.address, other);
        let mut cx = Cx { now, path: &mut end.path, cfg: &end.cfg };
        match end.mux.on_packet(&packet, &flight.frames, ends, &mut cx) {
            Ok(_) => {}
            Err(code) => return self.errors.push(code),
        }
        while let Some(slot) = end.mux.take_fresh() {
            end.mux.streams.get_mut(slot).expect("just opened").gated = false;
            end.incoming.push(slot);
        }
        end.check();
    }

    /// Goes to the next thing that happens.
    fn step(&mut self) -> bool {
        self.flush();
        let now = self.now;
        let flight = self.flights.iter().flatten().map(|f| f.at).min();
        let timers = self.ends.iter().filter_map(|e| e.mux.deadline(now, (&e.path, &e.cfg)));
        let paced = self.ends.iter().filter_map(|e| e.path.paced_until).filter(|t| *t > now);
        let Some(next) = timers.chain(flight).chain(paced).min() else { return false };
        self.now = next.max(now);
        let now = self.now;
        for end in &mut self.ends {
            end.path.paced_until = end.path.paced_until.filter(|t| *t > now);
            if end.mux.deadline(now, (&end.path, &end.cfg)).is_some_and(|t| t <= now) {
                let (mux, mut cx) = end.cx(now);
                mux.on_timeout(&mut cx);
            }
        }
        for to in 0..2 {
            self.flights[to].sort_by_key(|f| (f.at, f.order));
            let due = self.flights[to].iter().take_while(|f| f.at <= now).count();
            let arrived: Vec<Flight> = self.flights[to].drain(..due).collect();
            arrived.iter().for_each(|flight| self.deliver(to, flight));
        }
        true
    }

    fn run(&mut self, time: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let until = self.now + time;
        let mut steps = 0;
        while self.now < until {
            if done(self) {
                return true;
            }
            if !self.step() {
                return done(self);
            }
            steps += 1;
            assert!(steps < 3_000_000, "no end");
        }
        done(self)
    }
}

impl End {
    /// What must hold after every packet.
    fn check(&self) {
        self.mux.check(&self.path);
    }
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(31).wrapping_add(seed * 7) ^ (i >> 9)) as u8).collect()
}

/// Moves `data` there in one stream; the time that it took.
fn transfer(pair: &mut Pair, data: &[u8]) -> Duration {
    let began = pair.now;
    let slot = pair.ends[0].open(began, 7);
    let known = pair.ends[1].incoming.len();
    let (mut at, mut got, mut ended) = (0, Vec::new(), false);
    let done = pair.run(Duration::from_secs(600), |p| {
        p.ends[0].fill(slot, data, &mut at);
        if let Some(&far) = p.ends[1].incoming.get(known) {
            let now = p.now;
            ended = p.ends[1].drain(now, far, &mut got);
        }
        ended
    });
    assert!(done, "{} of {} bytes in {:?}", got.len(), data.len(), pair.now - began);
    assert!(got == data, "the bytes differ");
    assert!(pair.errors.is_empty(), "{:?}", pair.errors);
    pair.now - began
}

#[test]
fn the_first_packet_opens_the_stream_and_carries_data_and_its_end() {
    let mut pair = Pair::new(1, CLEAN);
    let now = pair.now;
    let slot = pair.ends[0].open(now, 7);
    pair.ends[0].mux.write(slot, b"question").expect("room");
    pair.ends[0].mux.shutdown(slot).expect("open");
    pair.run(11 * MS, |_| false);
    assert_eq!(pair.packets[0], 1);
    let far = pair.ends[1].incoming[0];
    assert_eq!(pair.ends[1].stream(far).local.port, 7);
    let (now, mut got) = (pair.now, Vec::new());
    assert!(pair.ends[1].drain(now, far, &mut got));
    assert_eq!(got, b"question");
    pair.ends[1].mux.write(far, b"answer").expect("room");
    pair.ends[1].mux.shutdown(far).expect("open");
    let back = pair.run(10 * MS, |p| p.ends[0].stream(slot).recv.is_at_end());
    assert!(back, "one round trip in all");
    pair.run(Duration::from_secs(1), |_| false);
    assert!(pair.ends[0].stream(slot).is_over() && pair.ends[1].stream(far).is_over());
    assert!(pair.packets[0] <= 4 && pair.packets[1] <= 3, "{:?}", pair.packets);
}

#[test]
fn who_waits_for_the_peer_to_speak_first_opens_by_reading() {
    let mut pair = Pair::new(1, CLEAN);
    let now = pair.now;
    let slot = pair.ends[0].open(now, 7);
    pair.run(3 * MS, |_| false);
    assert!(pair.ends[0].stream(slot).first_sent.is_none(), "data may follow");
    let (now, mut buf) = (pair.now, [0; 9]);
    assert_eq!(pair.ends[0].read(now, slot, &mut buf), Err(ReadError::Blocked));
    pair.run(15 * MS, |_| false);
    assert_eq!(pair.ends[1].incoming.len(), 1);
    let now = pair.now;
    pair.ends[0].open(now, 8);
    assert!(pair.run(20 * MS, |p| p.ends[1].incoming.len() == 2), "or after a while");
}

#[test]
fn a_large_stream_fills_the_windows_and_they_grow() {
    let mut pair = Pair::new(2, CLEAN);
    let data = pattern(24 << 20, 1);
    let took = transfer(&mut pair, &data);
    // No limit but the window of the controller: far more than two initial windows per round trip.
    assert!(took < Duration::from_secs(2), "{took:?}");
    let far = pair.ends[1].incoming[0];
    assert!(pair.ends[1].stream(far).recv.window.size() > STREAM_WINDOW);
}

#[test]
fn every_byte_arrives_once_and_in_order_whatever_the_path_does() {
    for seed in 0..12 {
        let loss = [0.0, 0.01, 0.05, 0.2][seed as usize % 4];
        let trouble = Trouble { loss, late: 0.1, ..CLEAN };
        let mut pair = Pair::new(seed, trouble);
        let data = pattern(400_000, seed);
        transfer(&mut pair, &data);
        transfer(&mut pair, &data[..50_000]);
    }
}

#[test]
fn a_slow_reader_holds_its_stream_and_no_other() {
    let mut pair = Pair::new(3, CLEAN);
    let now = pair.now;
    let stuck = pair.ends[0].open(now, 7);
    let data = pattern(4 << 20, 5);
    let mut at = 0;
    pair.run(Duration::from_secs(2), |p| {
        p.ends[0].fill(stuck, &data, &mut at);
        false
    });
    let far = pair.ends[1].incoming[0];
    assert_eq!(pair.ends[1].stream(far).recv.highest, STREAM_WINDOW, "no more than was allowed");
    let quick = pattern(1 << 20, 9);
    assert!(transfer(&mut pair, &quick) < Duration::from_secs(1));
    let mut got = Vec::new();
    let done = pair.run(Duration::from_secs(20), |p| {
        p.ends[0].fill(stuck, &data, &mut at);
        let now = p.now;
        p.ends[1].drain(now, far, &mut got)
    });
    assert!(done && got == data);
}

#[test]
fn streams_survive_a_new_session_and_packets_of_the_old_one_are_acknowledged_in_it() {
    let mut pair = Pair::new(4, Trouble { loss: 0.02, ..CLEAN });
    let data = pattern(3 << 20, 3);
    let now = pair.now;
    let slot = pair.ends[0].open(now, 7);
    let (mut at, mut got, mut session) = (0, Vec::new(), 0);
    let mut next = pair.now + 40 * MS;
    let done = pair.run(Duration::from_secs(60), |p| {
        if p.now >= next && session < 20 {
            session += 1;
            next = p.now + 35 * MS;
            p.new_session(session);
        }
        p.ends[0].fill(slot, &data, &mut at);
        let now = p.now;
        p.ends[1].incoming.first().copied().is_some_and(|far| p.ends[1].drain(now, far, &mut got))
    });
    assert!(done && got == data, "{} bytes after {session} sessions", got.len());
    assert!(session > 3 && pair.errors.is_empty());
    let again = pair.ends[0].stream(slot).stats.segments_retransmitted;
    assert!(again < 300, "{again}: what was under way at a change is not sent twice");
}

#[test]
fn a_peer_that_has_forgotten_everything_ends_the_streams_and_new_ones_begin() {
    let mut pair = Pair::new(5, CLEAN);
    let data = pattern(30_000, 3);
    transfer(&mut pair, &data);
    let now = pair.now;
    let old = pair.ends[0].open(now, 7);
    pair.ends[0].mux.write(old, b"one").expect("room");
    pair.run(100 * MS, |_| false);
    // The process dies: whether it had a question that it did not answer is not known.
    let now = pair.now;
    let unsure = pair.ends[0].open(now, 9);
    pair.ends[0].mux.write(unsure, b"six").expect("room");
    // One that asked nothing may be opened twice.
    let silent = pair.ends[0].open(now, 10);
    pair.ends[0].mux.open_now(silent);
    let ended = pair.ends[0].open(now, 11);
    pair.ends[0].mux.shutdown(ended).expect("open");
    pair.flush();
    pair.now += 21 * MS;
    // A new one at the other side, with the same keys' owner.
    let cfg = Config::default();
    let now = pair.now;
    pair.ends[1] = End { address: pair.ends[1].address, ..End::new(false, &cfg, 333, now) };
    pair.flights = [Vec::new(), Vec::new()];
    let late = pair.ends[0].open(now, 8);
    pair.ends[0].mux.write(late, b"two").expect("room");
    pair.new_session(1);
    pair.run(200 * MS, |_| false);
    let now = pair.now;
    assert_eq!(pair.ends[0].read(now, old, &mut [0; 9]), Err(ReadError::Reset));
    assert_eq!(pair.ends[0].mux.write(old, b"x"), Err(WriteError::Reset));
    assert_eq!(pair.ends[0].read(now, unsure, &mut [0; 9]), Err(ReadError::Reset));
    // The first one was taken; of the others nobody has heard that.
    let errors = [old, unsure, ended].map(|slot| pair.ends[0].stream(slot).connect_error());
    assert_eq!(errors, [None, Some(ConnectError::Reset), Some(ConnectError::Reset)]);
    // What only the new process can have had reaches it.
    assert_eq!(pair.ends[1].incoming.len(), 2);
    let to = |end: &End, slot: u32| end.mux.streams.get(slot).expect("there").local.port;
    let far =
        pair.ends[1].incoming.iter().copied().find(|far| to(&pair.ends[1], *far) == 8).expect("the late one");
    assert!(pair.ends[1].incoming.iter().any(|far| to(&pair.ends[1], *far) == 10), "and the silent one");
    let mut got = Vec::new();
    pair.ends[1].drain(now, far, &mut got);
    assert_eq!(got, b"two");
    pair.ends[1].incoming.clear();
    transfer(&mut pair, &data);
    assert!(pair.errors.is_empty());
}

/// A peer has a question, and none of its words ever arrives. In the next session it may be the same process or another one.
#[test]
fn what_one_life_may_have_had_never_reaches_another() {
    for same in [true, false] {
        let mut pair = Pair::new(9, CLEAN);
        let now = pair.now;
        let asked = pair.ends[0].open(now, 7);
        pair.ends[0].mux.write(asked, b"once").expect("room");
        // Who asked nothing may ask it of both; an end is something that was said.
        let [silent, ended] = [8, 9].map(|port| pair.ends[0].open(now, port));
        pair.ends[0].mux.open_now(silent);
        pair.ends[0].mux.shutdown(ended).expect("open");
        while pair.ends[1].incoming.is_empty() {
            pair.flush();
            pair.flights[0].clear();
            assert!(pair.step(), "the question arrives");
        }
        assert_eq!(pair.ends[0].mux.peer_life, None);
        pair.flights = [Vec::new(), Vec::new()];
        pair.now += 30 * MS;
        if !same {
            let now = pair.now;
            pair.ends[1] =
                End { address: pair.ends[1].address, ..End::new(false, &Config::default(), 333, now) };
        }
        pair.new_session(1);
        assert!(pair.ends[0].mux.held, "it is not known who hears");
        pair.run(300 * MS, |_| false);
        assert!(!pair.ends[0].mux.held && pair.errors.is_empty());
        let now = pair.now;
        if same {
            assert_eq!(pair.ends[0].read(now, asked, &mut [0; 9]), Err(ReadError::Blocked));
            let mut got = Vec::new();
            let far = pair.ends[1].incoming[0];
            pair.ends[1].drain(now, far, &mut got);
            assert_eq!((got.as_slice(), pair.ends[1].incoming.len()), (&b"once"[..], 3));
        } else {
            for slot in [asked, ended] {
                assert_eq!(pair.ends[0].read(now, slot, &mut [0; 9]), Err(ReadError::Reset));
            }
            let [far] = pair.ends[1].incoming[..] else { panic!("one that had asked nothing") };
            assert_eq!(pair.ends[1].stream(far).local.port, 8);
        }
        assert_eq!(pair.ends[0].read(now, silent, &mut [0; 9]), Err(ReadError::Blocked));
    }
}

#[test]
fn a_reset_ends_both_directions_and_a_refusal_says_so() {
    let mut pair = Pair::new(6, CLEAN);
    let now = pair.now;
    let (a, b) = (pair.ends[0].open(now, 7), pair.ends[0].open(now, 9));
    for slot in [a, b] {
        pair.ends[0].mux.write(slot, &[1; 3_000]).expect("room");
    }
    pair.run(15 * MS, |_| false);
    let far = pair.ends[1].incoming.clone();
    pair.ends[1].mux.refuse(far[0], REFUSED);
    pair.ends[0].mux.reset(b);
    pair.run(500 * MS, |_| false);
    let now = pair.now;
    let refused = Err(ReadError::Connect(ConnectError::Refused));
    assert_eq!(pair.ends[0].read(now, a, &mut [0; 9]), refused);
    assert_eq!(pair.ends[0].mux.write(a, b"x"), Err(WriteError::Connect(ConnectError::Refused)));
    let mut got = Vec::new();
    pair.ends[1].drain(now, far[1], &mut got);
    assert_eq!(pair.ends[1].read(now, far[1], &mut [0; 9]), Err(ReadError::Reset));
    assert_eq!(pair.ends[1].mux.write(far[1], b"x"), Err(WriteError::Reset));
    for (side, slot) in [(0, a), (0, b), (1, far[0]), (1, far[1])] {
        assert!(pair.ends[side].stream(slot).is_over(), "{side} {slot}");
    }
    assert!(pair.errors.is_empty());
}

#[test]
fn two_thousand_streams_share_a_tunnel() {
    let cfg = Config { max_connections_per_peer: 4_000, ..Config::default() };
    let mut pair = Pair::with(7, Trouble { loss: 0.01, ..CLEAN }, &cfg);
    let now = pair.now;
    let slots: Vec<u32> = (0..2_000).map(|n| pair.ends[0].open(now, 1 + n % 100)).collect();
    for slot in &slots {
        pair.ends[0].mux.write(*slot, &pattern(700, u64::from(*slot))).expect("room");
        pair.ends[0].mux.shutdown(*slot).expect("open");
    }
    let done = pair.run(Duration::from_secs(60), |p| {
        p.ends[1].incoming.len() == 2_000 && p.ends[1].mux.streams.iter().all(|s| s.recv.is_at_end())
    });
    assert!(done);
    assert!(pair.packets[0] < 2_000, "{} packets for 2,000 streams", pair.packets[0]);
}

#[test]
fn the_peer_opens_no_more_streams_than_it_may_and_the_others_wait() {
    let cfg = Config { max_connections_per_peer: 10, ..Config::default() };
    let mut pair = Pair::with(8, CLEAN, &cfg);
    let now = pair.now;
    let slots: Vec<u32> = (0..25).map(|_| pair.ends[0].open(now, 7)).collect();
    for slot in &slots {
        pair.ends[0].mux.write(*slot, b"x").expect("room");
        pair.ends[0].mux.shutdown(*slot).expect("open");
    }
    pair.run(200 * MS, |_| false);
    assert_eq!(pair.ends[1].incoming.len(), 10);
    for round in 0..25 {
        let Some(&far) = pair.ends[1].incoming.get(round) else { panic!("{round}") };
        let now = pair.now;
        pair.ends[1].drain(now, far, &mut Vec::new());
        pair.ends[1].mux.detach(far, now);
        pair.run(100 * MS, |p| p.ends[1].stream(far).is_over());
        pair.ends[1].mux.remove(far);
        pair.run(100 * MS, |_| false);
    }
    assert_eq!(pair.ends[1].incoming.len(), 25);
    assert!(pair.errors.is_empty());
}

#[test]
fn datagrams_are_packed_together_and_not_repeated() {
    let mut pair = Pair::new(9, CLEAN);
    pair.seen = Some(Vec::new());
    for n in 0..20u8 {
        let datagram = DatagramOut { to: Address::new(0, 9), from_port: 1, to_port: 2, data: vec![n; 30] };
        pair.ends[0].datagrams.push_back(datagram);
    }
    pair.trouble.loss = 1.0;
    pair.run(5 * MS, |_| false);
    assert_eq!(pair.packets[0], 1);
    pair.trouble.loss = 0.0;
    pair.run(Duration::from_secs(5), |_| false);
    let seen = pair.seen.take().expect("kept");
    let of = |frames: &Vec<u8>| {
        Frames::new(frames).flatten().filter(|f| matches!(f, Frame::Datagram { .. })).count()
    };
    assert_eq!(seen.iter().map(|(_, frames)| of(frames)).sum::<usize>(), 20);
}

#[test]
fn a_silent_peer_is_given_up_after_the_users_patience() {
    let mut pair = Pair::new(10, CLEAN);
    let now = pair.now;
    let slot = pair.ends[0].open(now, 7);
    pair.ends[0].mux.write(slot, b"x").expect("room");
    pair.run(100 * MS, |_| false);
    pair.trouble.loss = 1.0;
    pair.ends[0].mux.write(slot, b"y").expect("room");
    let began = pair.now;
    let dead = pair.run(Duration::from_secs(120), |p| p.ends[0].stream(slot).failure.is_some());
    assert!(dead);
    let took = pair.now - began;
    assert!(took >= Duration::from_secs(29) && took < Duration::from_secs(45), "{took:?}");
    assert!(pair.packets[0] < 60, "{} packets into silence", pair.packets[0]);
    let now = pair.now;
    assert_eq!(pair.ends[0].read(now, slot, &mut [0; 9]), Err(ReadError::TimedOut));
}

#[test]
fn an_idle_pair_with_streams_shows_that_it_lives_and_without_says_nothing() {
    let mut pair = Pair::new(11, CLEAN);
    transfer(&mut pair, &pattern(1_000, 1));
    let slot = pair.ends[0].incoming.len();
    assert_eq!(slot, 0);
    pair.run(Duration::from_secs(1), |_| false);
    let before = pair.packets;
    pair.run(Duration::from_secs(300), |_| false);
    let sent = pair.packets[0] + pair.packets[1] - before[0] - before[1];
    assert!((10..80).contains(&sent), "{sent} packets in five minutes");
}

#[test]
fn after_a_blackout_everything_goes_on() {
    let mut pair = Pair::new(12, CLEAN);
    let data = pattern(2 << 20, 2);
    let now = pair.now;
    let slot = pair.ends[0].open(now, 7);
    let (mut at, mut got) = (0, Vec::new());
    let began = pair.now;
    let done = pair.run(Duration::from_secs(60), |p| {
        let passed = p.now - began;
        p.trouble.loss = if (100 * MS..3_000 * MS).contains(&passed) { 1.0 } else { 0.0 };
        p.ends[0].fill(slot, &data, &mut at);
        let now = p.now;
        p.ends[1].incoming.first().copied().is_some_and(|far| p.ends[1].drain(now, far, &mut got))
    });
    assert!(done && got == data);
    assert!(pair.now - began < Duration::from_secs(12), "{:?}", pair.now - began);
}
