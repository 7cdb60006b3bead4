//! The links between hosts, and the way through them.

use std::collections::BTreeMap;
use std::time::Instant;

use rand_chacha::ChaCha8Rng;

use crate::link::{Arrival, Fate, Link, LinkState};

/// Number of a host in its world.
pub type HostId = usize;

/// One node in the list of links.
#[derive(Debug)]
struct Node {
    link: Link,
    state: LinkState,
}

/// A list of links. Every host has an uplink and a downlink; a datagram passes the uplink of its sender and the
/// downlink of its receiver, so hosts compete where they share one.
#[derive(Debug, Default)]
pub struct Network {
    links: Vec<Node>,
    /// Uplink and downlink of each host.
    access: Vec<(usize, usize)>,
    /// Pairs that nothing passes between, in this direction.
    walls: BTreeMap<(HostId, HostId), ()>,
}

impl Network {
    /// Adds a host with its two links and returns its number.
    pub fn add_host(&mut self, up: Link, down: Link) -> HostId {
        let first = self.links.len();
        for link in [up, down] {
            self.links.push(Node { link, state: LinkState::default() });
        }
        self.access.push((first, first + 1));
        self.access.len() - 1
    }

    /// The link from a host into the network.
    pub fn up(&mut self, host: HostId) -> &mut Link {
        &mut self.links[self.access[host].0].link
    }

    /// The link from the network to a host.
    pub fn down(&mut self, host: HostId) -> &mut Link {
        &mut self.links[self.access[host].1].link
    }

    /// Builds or removes a wall from one host to another.
    pub fn set_wall(&mut self, from: HostId, to: HostId, wall: bool) {
        if wall {
            self.walls.insert((from, to), ());
        } else {
            self.walls.remove(&(from, to));
        }
    }

    /// Removes all walls.
    pub fn clear_walls(&mut self) {
        self.walls.clear();
    }

    /// Whether a wall stands between two hosts.
    #[must_use]
    pub fn has_wall(&self, from: HostId, to: HostId) -> bool {
        self.walls.contains_key(&(from, to))
    }

    /// Puts a datagram into its sender's uplink. What comes out of it is appended to `out`: it has to be given to
    /// [`Self::leave`] at its time, so that those who share a downlink queue up in the order in which they reach it.
    pub fn enter(
        &mut self,
        now: Instant,
        from: HostId,
        to: HostId,
        bytes: &[u8],
        rng: &mut ChaCha8Rng,
        out: &mut Vec<Arrival>,
    ) -> (Fate, Option<usize>) {
        if self.has_wall(from, to) {
            return (Fate::Down, None);
        }
        self.pass(self.access[from].0, now, bytes, rng, out)
    }

    /// Puts a datagram that has passed the sender's uplink into the downlink of its receiver.
    pub fn leave(
        &mut self,
        now: Instant,
        to: HostId,
        bytes: &[u8],
        rng: &mut ChaCha8Rng,
        out: &mut Vec<Arrival>,
    ) -> (Fate, Option<usize>) {
        self.pass(self.access[to].1, now, bytes, rng, out)
    }

    /// The fate on one link, and what the sender is told if it is too narrow and says so.
    fn pass(
        &mut self,
        link: usize,
        now: Instant,
        bytes: &[u8],
        rng: &mut ChaCha8Rng,
        out: &mut Vec<Arrival>,
    ) -> (Fate, Option<usize>) {
        let Node { link, state } = &mut self.links[link];
        let fate = link.carry(now, bytes, state, rng, out);
        (fate, (fate == Fate::TooBig && link.icmp).then_some(link.mtu))
    }
}
