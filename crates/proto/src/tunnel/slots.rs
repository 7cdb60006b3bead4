//! The connections of one tunnel: found by port pair, polled in turn, remembered for a while after their end.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::connection::Connection;

/// Closed connections of one tunnel that are still answered (TIME_WAIT). The oldest goes first.
const TIME_WAIT_MAX: usize = 4_096;
/// Answers to FIN in TIME_WAIT: a reference peer that repeats FIN|ACK for ever is told so often, then ignored (rule C12).
const TIME_WAIT_ANSWERS: u8 = 4;

/// Places for connections that a tunnel keeps when it has none; the memory of more is given back.
const ROOM_KEPT: usize = 16;

/// Local and remote port. The network part of the address is left out: reference peers answer from
/// network 0 whatever network was dialled (draft-01 facts §2).
pub(crate) type PortPair = (u16, u16);

/// What is remembered of a closed connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeWait {
    /// Our next sequence number.
    pub(crate) seq: u32,
    /// What we acknowledged last.
    pub(crate) ack: u32,
    answers_left: u8,
    expires: Instant,
}

/// Connections by slot index.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Option<Box<Connection>>>,
    free: Vec<u32>,
    by_ports: HashMap<PortPair, u32>,
    last: Option<(PortPair, u32)>,
    ready: VecDeque<u32>,
    touched: Vec<u32>,
    /// Connections that hold an acknowledgement back, or did: each at most once.
    held: Vec<u32>,
    /// Connections with something to send again, which go first. All of them are in the round as well.
    urgent: VecDeque<u32>,
    time_wait: HashMap<PortPair, TimeWait>,
    time_wait_order: VecDeque<(Instant, PortPair)>,
}

impl Slots {
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// All connections.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.slots.iter().flatten().map(Box::as_ref)
    }

    /// The places of all connections.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.slots).filter(|(_, c)| c.is_some()).map(|(slot, _)| slot)
    }

    /// Adds a connection; `None` if the port pair is taken.
    pub(crate) fn insert(&mut self, conn: Box<Connection>) -> Option<u32> {
        let ports = (conn.local.port, conn.remote.port);
        if self.by_ports.contains_key(&ports) {
            return None;
        }
        self.time_wait.remove(&ports);
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() as u32 - 1
            }
        };
        self.slots[slot as usize] = Some(conn);
        self.by_ports.insert(ports, slot);
        Some(slot)
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&Connection> {
        self.slots.get(slot as usize)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// The connection of a port pair; the last answer is kept, since packets come in runs.
    pub(crate) fn find(&mut self, ports: PortPair) -> Option<u32> {
        if let Some((p, slot)) = self.last
            && p == ports
        {
            return Some(slot);
        }
        let slot = *self.by_ports.get(&ports)?;
        self.last = Some((ports, slot));
        Some(slot)
    }

    pub(crate) fn contains(&self, ports: PortPair) -> bool {
        self.by_ports.contains_key(&ports) || self.time_wait.contains_key(&ports)
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<Box<Connection>> {
        let conn = self.slots.get_mut(slot as usize)?.take()?;
        let ports = (conn.local.port, conn.remote.port);
        if self.by_ports.get(&ports) == Some(&slot) {
            self.by_ports.remove(&ports);
        }
        self.last = None;
        self.free.push(slot);
        if self.len() == 0 && self.slots.len() > ROOM_KEPT {
            // Nobody is left; what was noted about those who were says nothing any more.
            (self.slots, self.free, self.by_ports) = Default::default();
            (self.ready, self.touched, self.held, self.urgent) = Default::default();
        }
        Some(conn)
    }

    /// Frees the ports of a connection that is over, although the application still holds it.
    pub(crate) fn release_ports(&mut self, slot: u32) {
        if let Some(conn) = self.get(slot) {
            let ports = (conn.local.port, conn.remote.port);
            self.by_ports.remove(&ports);
            self.last = None;
        }
    }

    pub(crate) fn any(&self, f: impl Fn(&Connection) -> bool) -> bool {
        self.slots.iter().flatten().any(|c| f(c))
    }

    pub(crate) fn for_each(&mut self, mut f: impl FnMut(&mut Connection)) {
        for conn in self.slots.iter_mut().flatten() {
            f(conn);
        }
    }

    /// Notes that a connection's deadline or notifications may have changed.
    pub(crate) fn touch(&mut self, slot: u32) {
        if let Some(conn) = self.get_mut(slot)
            && !conn.touched
        {
            conn.touched = true;
            self.touched.push(slot);
        }
    }

    /// The next connection that was touched since the last call.
    pub(crate) fn take_touched(&mut self) -> Option<u32> {
        let slot = self.touched.pop()?;
        if let Some(conn) = self.get_mut(slot) {
            conn.touched = false;
        }
        Some(slot)
    }

    /// Touches all connections, after something that concerned them all.
    pub(crate) fn touch_all(&mut self) {
        for slot in 0..self.slots.len() as u32 {
            self.touch(slot);
        }
    }

    // ---- acknowledgements that are held back

    /// Notes that a connection holds an acknowledgement back, if it does.
    pub(crate) fn note_held(&mut self, slot: u32) {
        if let Some(conn) = self.get_mut(slot)
            && !conn.lists.held
            && conn.holds_ack()
        {
            conn.lists.held = true;
            self.held.push(slot);
            if self.held.len() > 2 * self.slots.len() {
                // Names of connections that are gone, and of their successors in the same places.
                let listed = |c: &Option<Box<Connection>>| c.as_ref().is_some_and(|c| c.lists.held);
                self.held.clear();
                self.held.extend((0..).zip(&self.slots).filter(|(_, c)| listed(c)).map(|(slot, _)| slot));
            }
        }
    }

    /// Nothing is held back any longer: who held an acknowledgement back takes part in the round.
    pub(crate) fn release_held(&mut self) {
        while let Some(slot) = self.held.pop() {
            if let Some(conn) = self.get_mut(slot) {
                conn.lists.held = false;
                conn.release_ack();
                self.mark_ready(slot);
                self.touch(slot);
            }
        }
    }

    // ---- the round of connections that want to send

    pub(crate) fn any_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Puts a connection at the end of the round if it wants to send and is not in it.
    pub(crate) fn mark_ready(&mut self, slot: u32) {
        if let Some(conn) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut)
            && !conn.in_ready
            && conn.wants_to_send()
        {
            conn.in_ready = true;
            self.ready.push_back(slot);
        }
        self.mark_urgent(slot);
    }

    fn mark_urgent(&mut self, slot: u32) {
        if let Some(conn) = self.get_mut(slot)
            && !conn.lists.urgent
            && conn.has_lost()
        {
            conn.lists.urgent = true;
            self.urgent.push_back(slot);
            if self.urgent.len() > 2 * self.slots.len() {
                // As above. Retaining what is valid would keep a place once for each that it ever had.
                self.slots.iter_mut().flatten().for_each(|c| c.lists.urgent &= c.has_lost());
                let listed = |c: &Option<Box<Connection>>| is_urgent(c.as_deref());
                self.urgent.clear();
                self.urgent.extend((0..).zip(&self.slots).filter(|(_, c)| listed(c)).map(|(slot, _)| slot));
            }
        }
    }

    /// The connection with something to send again whose turn it is.
    pub(crate) fn front_urgent(&mut self) -> Option<u32> {
        while let Some(&slot) = self.urgent.front() {
            if self.get(slot).is_some_and(|c| is_urgent(Some(c))) {
                return Some(slot);
            }
            self.urgent.pop_front();
            if let Some(conn) = self.get_mut(slot) {
                conn.lists.urgent = false;
            }
        }
        None
    }

    pub(crate) fn front_ready(&self) -> Option<u32> {
        self.ready.front().copied()
    }

    pub(crate) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// The front one has had its share.
    pub(crate) fn rotate(&mut self) {
        if self.urgent.len() > 1 {
            self.urgent.rotate_left(1);
        }
        if self.ready.len() > 1 {
            self.ready.rotate_left(1);
        }
    }

    /// The front one has nothing more to send.
    pub(crate) fn drop_front(&mut self) {
        if let Some(slot) = self.ready.pop_front()
            && let Some(conn) = self.get_mut(slot)
        {
            conn.in_ready = false;
        }
    }

    /// Nobody has anything to send any more.
    pub(crate) fn clear_ready(&mut self) {
        while self.any_ready() {
            self.drop_front();
        }
    }

    // ---- TIME_WAIT

    pub(crate) fn remember(&mut self, ports: PortPair, (seq, ack): (u32, u32), expires: Instant) {
        if self.time_wait_order.len() >= TIME_WAIT_MAX
            && let Some((_, oldest)) = self.time_wait_order.pop_front()
        {
            self.time_wait.remove(&oldest);
        }
        self.time_wait.insert(ports, TimeWait { seq, ack, answers_left: TIME_WAIT_ANSWERS, expires });
        self.time_wait_order.push_back((expires, ports));
    }

    /// The numbers to answer a FIN of a closed connection with; `None` in the inner option once it was answered enough.
    pub(crate) fn answer_time_wait(&mut self, ports: PortPair) -> Option<Option<TimeWait>> {
        let entry = self.time_wait.get_mut(&ports)?;
        if entry.answers_left == 0 {
            return Some(None);
        }
        entry.answers_left -= 1;
        Some(Some(*entry))
    }

    pub(crate) fn is_time_wait(&self, ports: PortPair) -> bool {
        self.time_wait.contains_key(&ports)
    }

    pub(crate) fn next_time_wait(&self) -> Option<Instant> {
        self.time_wait_order.front().map(|(t, _)| *t)
    }

    pub(crate) fn expire_time_wait(&mut self, now: Instant) {
        while self.time_wait_order.front().is_some_and(|(t, _)| *t <= now) {
            if let Some((_, ports)) = self.time_wait_order.pop_front()
                && self.time_wait.get(&ports).is_some_and(|e| e.expires <= now)
            {
                self.time_wait.remove(&ports);
            }
        }
        if self.time_wait_order.is_empty() && self.time_wait_order.capacity() > ROOM_KEPT {
            (self.time_wait, self.time_wait_order) = Default::default();
        }
    }
}

fn is_urgent(conn: Option<&Connection>) -> bool {
    conn.is_some_and(|c| c.lists.urgent && c.has_lost())
}

#[cfg(test)]
mod tests;
