//! An agent's refresh and heartbeats: the only repair there is. `spec/replica.md §4.5, §5`.
//!
//! Driven from outside: [`Agent::step`] does what is due and says how it went; [`Agent::due`] says when the next step is.

use super::find::Finder;
use super::presence::{heartbeat, hello_signed, is_unknown, open_token, public, welcome_signed};
use super::{owner_key, owner_of};
use crate::book::message::{Ask, Hello, OwnerKey, RecordAnswer, Told};
use crate::placement::{MapNode, Refresh};
use ed25519_dalek::{Signature, VerifyingKey};
use pilotage_wire::{NetworkId, addressing};
use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

/// Signs with the agent's key.
pub type Sign = Arc<dyn Fn(&[u8]) -> [u8; 64] + Send + Sync>;
/// Nodes that heartbeats go to.
const MAX_SLOTS: usize = crate::placement::MAX_REPLICAS;
/// How soon a node that gave no slot is asked again, milliseconds.
const AGAIN: u64 = 5_000;

/// What an agent publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Encoded claim of its address.
    pub claim: Vec<u8>,
    /// Encoded record.
    pub record: Vec<u8>,
}

/// How a step went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Nodes that hold the record now.
    pub stored: usize,
    /// Nodes that did not answer.
    pub failed: usize,
    /// What nodes said against it.
    pub refused: Vec<String>,
    /// A node has a newer record of this agent, with this number.
    pub newer: Option<u64>,
    /// Heartbeats sent.
    pub heartbeats: usize,
    /// Whether a refresh was due.
    pub refreshed: bool,
}

struct Slot {
    number: u32,
    token: [u8; 32],
    to: SocketAddr,
    interval: u64,
    due: u64,
}

/// Keeps one agent's record where it belongs.
pub struct Agent {
    finder: Arc<Finder>,
    key: [u8; 32],
    owner: OwnerKey,
    sign: Sign,
    publication: Publication,
    refresh: Refresh,
    socket: Option<UdpSocket>,
    slots: HashMap<[u8; 32], Slot>,
    /// Nodes to have slots at, and when to ask next.
    wanted: Vec<(MapNode, u64)>,
    counter: u64,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Agent {
    /// Refreshes each `interval` milliseconds, a tenth more or less, beginning at once. `socket`: for heartbeats, if there
    /// are to be any; it must not block.
    #[must_use]
    pub fn new(
        finder: Arc<Finder>,
        (key, network): ([u8; 32], NetworkId),
        sign: Sign,
        publication: Publication,
        (now, interval): (u64, u64),
        socket: Option<UdpSocket>,
    ) -> Self {
        let id = addressing::agent_id(&key);
        let seed = id.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let refresh = Refresh::begin_at_once(now, interval, seed);
        Self {
            finder,
            key,
            owner: owner_key(&id, network),
            sign,
            publication,
            refresh,
            socket,
            slots: HashMap::new(),
            wanted: Vec::new(),
            counter: 0,
        }
    }

    /// From now on this is published; at once.
    pub fn publish(&mut self, now: u64, publication: Publication) {
        if self.publication != publication {
            self.publication = publication;
            self.refresh.hurry(now);
        }
    }

    /// When the next step is due; milliseconds.
    #[must_use]
    pub fn due(&self) -> u64 {
        let beats = self.slots.values().map(|slot| slot.due);
        let hellos = self.wanted.iter().filter(|(node, _)| !self.slots.contains_key(&node.key));
        let hellos = hellos.map(|(_, due)| *due).filter(|_| self.socket.is_some());
        beats.chain(hellos).fold(self.refresh.due(), u64::min)
    }

    /// Does what is due. `now`: milliseconds of a clock that does not go back; `unix`: Unix milliseconds; `secret`: 32
    /// unpredictable bytes each time that it is called.
    pub fn step(&mut self, now: u64, unix: u64, secret: impl FnMut() -> [u8; 32]) -> Step {
        let mut step = Step::default();
        self.put(now, &mut step);
        self.beat(now, unix, secret, &mut step);
        step
    }

    fn put(&mut self, now: u64, step: &mut Step) {
        let (id, _) = owner_of(&self.owner);
        let map = self.finder.map();
        let Some(targets) = self.refresh.poll(now, &map, &id) else { return };
        step.refreshed = true;
        let mut targets: Vec<MapNode> = targets.into_iter().cloned().collect();
        let mut asked: Vec<[u8; 32]> = Vec::new();
        let mut holders: Vec<MapNode> = Vec::new();
        while let Some(node) = targets.pop() {
            asked.push(node.key);
            match self.finder.put(&node, &self.publication.claim, &self.publication.record) {
                Ok(answer) => {
                    self.refresh.succeeded(&node.key);
                    match answer {
                        RecordAnswer::Stored => step.stored += 1,
                        RecordAnswer::Older(seq) => step.newer = step.newer.max(Some(seq)),
                        RecordAnswer::Refused(why) => step.refused.push(why),
                        RecordAnswer::None => {}
                    }
                    holders.push(node);
                }
                Err(why) => {
                    step.failed += 1;
                    tracing::debug!(%why, node = ?node.endpoints, "record not refreshed there");
                    let instead = self.refresh.failed(now, &map, &id, &node.key).cloned();
                    let new = |node: &MapNode| !asked.contains(&node.key) && !targets.contains(node);
                    targets.extend(instead.filter(new));
                }
            }
        }
        holders.truncate(MAX_SLOTS);
        self.slots.retain(|key, _| holders.iter().any(|node| node.key == *key));
        self.wanted = holders.into_iter().map(|node| (node, now)).collect();
    }

    fn beat(&mut self, now: u64, unix: u64, mut secret: impl FnMut() -> [u8; 32], step: &mut Step) {
        let Some(socket) = &self.socket else { return };
        // Who does not know its slot is asked for another one.
        let mut reply = [0; 64];
        while let Ok((len, from)) = socket.recv_from(&mut reply) {
            self.slots.retain(|_, slot| slot.to != from || !is_unknown(&reply[..len], slot.number));
        }
        let wanted = self.wanted.clone();
        for (at, (node, due)) in wanted.iter().enumerate() {
            if self.slots.contains_key(&node.key) || *due > now {
                continue;
            }
            self.wanted[at].1 = now + AGAIN;
            match self.hello(node, unix / 1_000, secret()) {
                Ok(slot) => drop(self.slots.insert(node.key, Slot { due: now, ..slot })),
                Err(why) => tracing::debug!(%why, "no slot for heartbeats"),
            }
        }
        self.counter = unix.max(self.counter + 1);
        let Some(socket) = &self.socket else { return };
        for slot in self.slots.values_mut().filter(|slot| slot.due <= now) {
            slot.due = now + slot.interval;
            let datagram = heartbeat(slot.number, self.counter, &slot.token);
            step.heartbeats += usize::from(socket.send_to(&datagram, slot.to).is_ok());
        }
    }

    fn hello(&self, node: &MapNode, time: u64, secret: [u8; 32]) -> Result<Slot, String> {
        let (_, network) = owner_of(&self.owner);
        let mut hello =
            Hello { key: self.key, network, ephemeral: public(&secret), time, signature: [0; 64] };
        hello.signature = (self.sign)(&hello_signed(&node.key, &hello));
        let Told::Welcome(welcome) = self.finder.ask(node, &Ask::Hello(hello.clone()))? else {
            return Err("it answered something else".into());
        };
        let signed = welcome_signed(&hello, &welcome);
        VerifyingKey::from_bytes(&node.key)
            .and_then(|key| key.verify_strict(&signed, &Signature::from_bytes(&welcome.signature)))
            .map_err(|_| "its answer is not signed by its key")?;
        let token =
            open_token(&welcome.sealed, &secret, &welcome.ephemeral).ok_or("its token does not open")?;
        let host = node.endpoints.first().ok_or("it has no endpoint")?;
        let to = SocketAddr::new(host.ip(), welcome.port);
        let interval = u64::from(welcome.interval).clamp(1, 3_600) * 1_000;
        Ok(Slot { number: welcome.slot, token, to, interval, due: 0 })
    }
}
