//! Frames of a hostile peer against the frame layer of S1, with a session that stands.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pilotage_wire::s1::data::OVERHEAD;
use pilotage_wire::s1::frames::{Frame, Frames};
use pilotage_wire::{Address, SocketAddress};

use super::Input;
use crate::config::Config;
use crate::connection::{Failure, Notify};
use crate::event::ConnectionId;
use crate::mux::{Cx, Mux, NewStream, PacketIn, Polled, Under, parameters};
use crate::send_buffer::SendBuffer;
use crate::tunnel::DatagramOut;
use crate::tunnel::path::{Path, Route};

/// Streams that the harness opens at most.
const OURS_MAX: u32 = 40;

struct World {
    now: Instant,
    mux: Mux,
    path: Path,
    cfg: Config,
    under: Under,
    number: u64,
    opened: u32,
    datagrams: VecDeque<DatagramOut>,
}

/// Every input is a row of operations: a packet of the peer made of the input's bytes, a call of the application, time, a new
/// session, a packet of ours. Holds: nothing panics; what is held is bounded by the windows; nothing is sent beyond the peer's
/// limits; the count of what is in flight is right.
pub fn s1_mux(base: Instant, data: &[u8]) {
    let cfg = Config {
        recv_buffer: 8 << 10,
        send_buffer: 4 << 10,
        max_connections_per_peer: 8,
        ..Config::default()
    };
    let route = Route::Direct(([192, 0, 2, 1], 1).into());
    let mut world = World {
        now: base,
        mux: Mux::new(true, 1, base, &cfg),
        path: Path::new(Some(route), &cfg),
        under: Under { session: 1, index: 101, sealed: 0, former: None },
        cfg,
        number: 0,
        opened: 0,
        datagrams: VecDeque::new(),
    };
    let told = parameters(&world.cfg);
    world.mux.on_session(world.under, &told, true);
    let mut input = Input::new(data);
    while let Some(op) = input.op() {
        world.step(op, &mut input);
        world.check();
    }
}

impl World {
    fn step(&mut self, op: u8, input: &mut Input<'_>) {
        match op % 8 {
            0..=2 => self.packet(op, input),
            3 => self.send(),
            4 => self.pass(Duration::from_micros(u64::from(input.u16()) * 50)),
            5 => self.call(input),
            6 => self.session(input.u8()),
            _ => self.datagram(input),
        }
    }

    fn packet(&mut self, op: u8, input: &mut Input<'_>) {
        let mut bytes = Vec::new();
        if op & 0x80 == 0 {
            let mut life = [0; 21];
            let frame = Frame::Life {
                own: 1 + u64::from(op >> 6),
                peer: u64::from(op >> 5 & 1),
                age: u32::from(op) << 3,
            };
            if frame.encode(&mut life).is_ok() {
                bytes.extend(life);
            }
        }
        let len = input.len(1_200);
        bytes.extend((0..len).map(|_| input.u8()));
        if Frames::check(&bytes).is_err() {
            return;
        }
        self.number += 1 + u64::from(op >> 3 & 3);
        let packet = PacketIn {
            session: self.under.session,
            index: self.under.index,
            number: self.number,
            sealed: self.under.sealed,
        };
        let ends = (Address::new(0, 1), Address::new(0, 2));
        let mut cx = Cx { now: self.now, path: &mut self.path, cfg: &self.cfg };
        if self.mux.on_packet(&packet, &bytes, ends, &mut cx).is_err() {
            self.mux.end_life(Failure::Reset, &mut cx);
            self.session(op);
        }
        while self.mux.take_fresh().is_some() {}
    }

    fn send(&mut self) {
        let mut space = [0; 1_175];
        for _ in 0..8 {
            let full = space.len();
            self.mux.enter(self.under);
            let mut cx = Cx { now: self.now, path: &mut self.path, cfg: &self.cfg };
            match self.mux.poll((full, full), &mut self.datagrams, &mut space, &mut cx) {
                Polled::Packet { len, eliciting, counted } => {
                    assert!(Frames::check(&space[..len]).is_ok(), "what we send is well-formed");
                    self.mux.commit(
                        self.under.sealed,
                        if counted { len + OVERHEAD } else { 0 },
                        eliciting,
                        &mut cx,
                    );
                    self.under.sealed += 1;
                }
                _ => return,
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.path.paced_until = None;
        for _ in 0..4 {
            let due = self.mux.deadline(self.now, (&self.path, &self.cfg)).is_some_and(|t| t <= self.now);
            if !due {
                return;
            }
            let mut cx = Cx { now: self.now, path: &mut self.path, cfg: &self.cfg };
            self.mux.on_timeout(&mut cx);
        }
    }

    fn call(&mut self, input: &mut Input<'_>) {
        let (what, slot) = (input.u8(), u32::from(input.u8()) % 24);
        let mut cx = Cx { now: self.now, path: &mut self.path, cfg: &self.cfg };
        match what % 8 {
            0 if self.opened < OURS_MAX => {
                self.opened += 1;
                let end = SocketAddress { address: Address::new(0, 1), port: 50_000 };
                let new = NewStream {
                    id: ConnectionId { index: self.opened, generation: 0 },
                    local: end,
                    remote: SocketAddress { port: 7, ..end },
                    buf: SendBuffer::new(self.cfg.send_buffer),
                    fin_queued: false,
                    detached: false,
                    write_blocked: false,
                    queued: Notify::default(),
                };
                self.mux.connect(new, &cx);
            }
            0 | 1 => drop(self.mux.write(slot, &[what; 900])),
            2 => drop(self.mux.read(slot, &mut [0; 700], &mut cx)),
            3 => drop(self.mux.shutdown(slot)),
            4 => self.mux.reset(slot),
            5 => self.mux.detach(slot, self.now),
            6 => self.mux.on_path_gone(self.now, &mut self.path),
            _ => {
                let over = self.mux.streams.get(slot).is_some_and(|s| s.is_over());
                if over {
                    self.mux.remove(slot);
                }
            }
        }
    }

    fn session(&mut self, n: u8) {
        let session = self.under.session + 1;
        let former = Some((self.under.session, self.under.sealed));
        self.under = Under { session, index: 100 + u32::from(n), sealed: 0, former };
        self.number = 0;
        let told = parameters(&self.cfg);
        self.mux.on_session(self.under, &told, n & 1 == 0);
    }

    fn datagram(&mut self, input: &mut Input<'_>) {
        if self.datagrams.len() < 16 {
            let data = vec![1; 1 + input.len(1_100)];
            self.datagrams.push_back(DatagramOut { to: Address::new(0, 2), from_port: 1, to_port: 2, data });
        }
    }

    fn check(&self) {
        self.mux.check(&self.path);
    }
}
