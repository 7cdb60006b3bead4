//! Everything that goes wrong, by seed.

use std::net::IpAddr;
use std::time::Duration;

use pilotage_sim::registry::{Ask, Crash, DiskState, Restart};
use pilotage_wire::NodeId;
use pilotage_wire::registry::{BeaconRegister, Request};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::{Net, below};

pub(crate) struct Chaos {
    rng: ChaCha8Rng,
    /// Of a thousand pauses between two troubles, how long each is at most. Seeds differ in how hard they are.
    pause: u64,
}

impl Chaos {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xc4a05);
        let pause = [300, 3_000, 30_000][below(&mut rng, 3) as usize];
        Self { rng, pause }
    }

    pub(crate) fn rage(&mut self, net: &mut Net, time: Duration) -> Result<(), String> {
        let end = net.elapsed() + time;
        while net.elapsed() < end {
            net.run_for(Duration::from_millis(below(&mut self.rng, self.pause)))?;
            self.trouble(net);
            net.host.check()?;
        }
        Ok(())
    }

    fn below(&mut self, bound: u64) -> u64 {
        below(&mut self.rng, bound)
    }

    fn trouble(&mut self, net: &mut Net) {
        let n = self.below(net.agents.len() as u64) as usize;
        match self.below(24) {
            0..3 => net.break_conn(n),
            3 => {
                net.agents[n].silent_until =
                    net.world_now() + Duration::from_millis(self.rng.next_u64() % 20_000)
            }
            4 | 5 => self.crash(net),
            6 => {
                let states = [DiskState::Full, DiskState::SyncFails, DiskState::Healthy];
                net.host.set_disk(states[self.below(3) as usize]);
            }
            7 | 8 => net.host.set_disk(DiskState::Healthy),
            9 => {
                let jump = self.below(7_200) as i64 - 3_600;
                net.jump_clock(jump);
            }
            10 | 11 => {
                let port = 1 + self.below(65_535) as u16;
                net.move_agent(n, port);
            }
            12..22 => {
                let ask = self.ask(net);
                net.ask(n, ask);
            }
            _ => self.intrude(net),
        }
    }

    fn crash(&mut self, net: &mut Net) {
        net.stats.crashes += 1;
        let how = if self.below(2) == 0 { Crash::Process } else { Crash::Power };
        net.host.crash(how);
        let restart = match self.below(4) {
            0 if net.lossy => Restart::OldBackup,
            1 if net.lossy => Restart::Lost,
            _ => Restart::Kept,
        };
        let pause = [0, 500, 5_000, 60_000][self.below(4) as usize];
        net.restart_in(Duration::from_millis(self.below(pause + 1)), restart);
    }

    fn ask(&mut self, net: &Net) -> Ask {
        let other = self.below(net.agents.len() as u64) as usize;
        let node = net.agents[other].agent.node().unwrap_or(NodeId(self.below(100) as u32));
        let name = format!("n{}", self.below(6));
        match self.below(10) {
            0..3 => Ask::Resolve(node),
            3 => Ask::Lookup(node),
            4 | 5 => Ask::Name(name),
            6 => Ask::SetName(name),
            7 => Ask::SetName(String::new()),
            8 => Ask::SetPublic(self.below(3) > 0),
            _ => Ask::Deregister,
        }
    }

    /// Somebody repeats what was seen, or sends nonsense.
    fn intrude(&mut self, net: &mut Net) {
        let source = IpAddr::from([203, 0, 113, 1 + self.below(3) as u8]);
        let bytes = match self.below(6) {
            0 => (0..self.below(300)).map(|_| self.rng.next_u32() as u8).collect(),
            1 => vec![0, 1, 0, 1, b'x'],
            2 => {
                let bytes = b"[".repeat(60_000);
                [&(bytes.len() as u32).to_be_bytes(), &bytes[..]].concat()
            }
            // Many requests at once: more than one turn's share.
            3 => net.captured.concat(),
            // A beacon announces itself and asks for the others.
            4 => {
                let mut bytes = Vec::new();
                let (beacon_id, addr) = (self.below(100) as u32, "192.0.2.77:9001".to_owned());
                let announce = Request::BeaconRegister(BeaconRegister { beacon_id, addr });
                for request in [announce, Request::BeaconList] {
                    request.encode(&mut bytes).expect("short");
                }
                bytes
            }
            _ => {
                let which = self.below(net.captured.len() as u64) as usize;
                let mut bytes = net.captured.get(which).cloned().unwrap_or_default();
                let at = self.below(bytes.len() as u64) as usize;
                if self.below(2) == 0
                    && let Some(byte) = bytes.get_mut(at)
                {
                    *byte ^= 1 << self.below(8);
                }
                bytes
            }
        };
        net.intrude(source, &bytes);
    }
}
