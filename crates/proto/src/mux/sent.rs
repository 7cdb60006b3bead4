//! What was sent and not acknowledged, over all sessions, and what of it is taken for lost (RFC 9002, RFC 8985).
//!
//! Packets stand in the order in which they left. Each remembers what was in it as [`Item`]s: what is lost is sent again as
//! items, in packets and sessions that may be others. Only packets that want an acknowledgement stand here.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::rtt::RttEstimator;

/// Most packets that are remembered; at the bound nothing new is sent.
pub(crate) const PACKETS_MAX: usize = 1 << 16;
/// Sessions whose packets may still be acknowledged.
const EPOCHS_MAX: usize = 4;
/// Indices that packets of one session named.
const INDICES_MAX: usize = 16;
/// So many later packets must have arrived before one is lost, while no reordering was seen (RFC 9002 §6.1.1).
const PACKET_THRESHOLD: u64 = 3;
/// Shortest time between packets out of order that is not forgiven (RFC 9002 §6.1.2).
const WINDOW_MIN: Duration = Duration::from_millis(1);
/// Most packets that are repeated at once because somebody moved.
const REPEATED_MAX: usize = 64;
/// RFC 8985 §5.3, and a bound of the window in quarters of the lowest round trip.
const PERSIST: u32 = 16;
const WIDENED_MAX: u32 = 15;

/// Something in a packet that its loss makes due again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item {
    Stream {
        slot: u32,
        number: u64,
        offset: u64,
        len: u32,
        fin: bool,
    },
    MaxStreamData {
        slot: u32,
        number: u64,
    },
    Reset {
        slot: u32,
        number: u64,
    },
    Stop {
        slot: u32,
        number: u64,
    },
    MaxData,
    MaxStreams,
    Life {
        session: u32,
    },
    /// An acknowledgement of a session's packets up to a number. Not sent again: the next says more.
    Ack {
        session: u32,
        largest: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InFlight,
    /// Sent again; remembered for a while, since it may arrive all the same.
    Lost,
    Done,
}

#[derive(Debug)]
struct Packet {
    epoch: u32,
    number: u64,
    at: Instant,
    /// Datagram size, bytes.
    size: u32,
    /// Where its items stand, and how many there are.
    first: u64,
    items: u32,
    state: State,
    app_limited: bool,
    /// From here on so many packets are done: acknowledgements repeat themselves.
    skip: u32,
}

#[derive(Debug)]
struct Epoch {
    epoch: u32,
    session: u32,
    indices: Vec<u32>,
    /// Packets that the session had sealed when another replaced it.
    sealed: Option<u64>,
}

/// What an acknowledgement brought.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Bytes newly delivered, and the largest packet among them.
    pub(crate) bytes: u64,
    pub(crate) largest_size: usize,
    /// When the newest of them left, and whether nothing more was to be sent then.
    pub(crate) newest: Option<(Instant, bool)>,
    /// Time since the highest packet that it names left, if that is news.
    pub(crate) sample: Option<Duration>,
    /// Bytes that had been taken for lost.
    pub(crate) spurious: u64,
    pub(crate) in_flight_before: u64,
}

/// What was taken for lost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) bytes: u64,
    pub(crate) largest_size: usize,
    pub(crate) newest: Option<Instant>,
}

/// Packets under way.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    packets: VecDeque<Packet>,
    /// Number of the first of them in the order of leaving.
    base: u64,
    items: VecDeque<Item>,
    items_base: u64,
    /// Items of the packet that is being written.
    staged: u32,
    epochs: Vec<Epoch>,
    next_epoch: u32,
    pub(crate) in_flight: u64,
    in_flight_packets: usize,
    /// The newest that arrived: when it left, its place, and its round trip.
    newest: Option<(Instant, u64, Duration)>,
    reordering: bool,
    widened: u32,
    persist: u32,
    /// Not widened again before a packet from this place on has arrived.
    widen_after: u64,
    loss_at: Option<Instant>,
    /// Items that were acknowledged, or are to be sent again, for the caller to take.
    pub(crate) acked: Vec<Item>,
    pub(crate) lost: Vec<Item>,
}

impl Sent {
    // ------------------------------------------------------------------ sending

    /// Packets leave under this session from now on, naming that index. Whether it is another session than before.
    pub(crate) fn on_session(&mut self, session: u32, index: u32, previous_sealed: u64) -> bool {
        if let Some(last) = self.epochs.last_mut()
            && last.session == session
        {
            if last.indices.last() != Some(&index) {
                if last.indices.len() >= INDICES_MAX {
                    last.indices.remove(0);
                }
                last.indices.push(index);
            }
            return false;
        }
        if let Some(last) = self.epochs.last_mut() {
            last.sealed = Some(previous_sealed);
        }
        if self.epochs.len() >= EPOCHS_MAX {
            self.epochs.remove(0);
        }
        self.next_epoch += 1;
        let epoch = Epoch { epoch: self.next_epoch, session, indices: vec![index], sealed: None };
        self.epochs.push(epoch);
        true
    }

    /// Whether one more packet may be remembered.
    pub(crate) fn has_room(&self) -> bool {
        self.packets.len() < PACKETS_MAX
    }

    /// Notes what is in the packet that is being written.
    pub(crate) fn stage(&mut self, item: Item) {
        self.items.push_back(item);
        self.staged += 1;
    }

    /// The packet left. If it wants no acknowledgement nothing of it is remembered.
    pub(crate) fn commit(
        &mut self,
        now: Instant,
        number: u64,
        size: usize,
        eliciting: bool,
        app_limited: bool,
    ) {
        let items = std::mem::take(&mut self.staged);
        if !eliciting {
            self.items.truncate(self.items.len() - items as usize);
            return;
        }
        self.in_flight += size as u64;
        self.in_flight_packets += 1;
        if self.packets.len() >= PACKETS_MAX {
            self.drop_oldest(items as usize);
        }
        let first = self.items_base + self.items.len() as u64 - u64::from(items);
        let (epoch, size) = (self.next_epoch, size as u32);
        self.packets.push_back(Packet {
            epoch,
            number,
            at: now,
            size,
            first,
            items,
            state: State::InFlight,
            app_limited,
            skip: 0,
        });
    }

    /// Makes room: what was in the oldest packet is due again. `staged` items are not in a packet yet.
    fn drop_oldest(&mut self, staged: usize) {
        if self.packets.front().is_some_and(|p| p.state == State::InFlight) {
            self.lose(0, &mut Lost::default());
        }
        if let Some(oldest) = self.packets.pop_front() {
            let items = (oldest.items as usize).min(self.items.len() - staged);
            self.base += 1;
            self.items.drain(..items);
            self.items_base += items as u64;
        }
    }

    /// The packet could not be sealed: what was to be in it is due again.
    pub(crate) fn abort(&mut self) {
        let staged = std::mem::take(&mut self.staged) as usize;
        let from = self.items.len() - staged;
        self.lost.extend(self.items.drain(from..));
    }

    /// Forgets everything: the peer has. Returns the bytes that were in flight.
    pub(crate) fn forget(&mut self) -> u64 {
        self.base += self.packets.len() as u64;
        self.packets.clear();
        self.items_base += self.items.len() as u64;
        self.items.clear();
        self.staged = 0;
        self.acked.clear();
        self.lost.clear();
        self.loss_at = None;
        self.in_flight_packets = 0;
        std::mem::take(&mut self.in_flight)
    }

    // ------------------------------------------------------------------ acknowledgements

    /// The session whose packets an acknowledgement is about: by the session that carried it, or by the index that they named.
    fn epoch_of(&self, session: u32, index: Option<u32>) -> Option<&Epoch> {
        let named = |e: &&Epoch| match index {
            Some(index) => e.indices.contains(&index),
            None => e.session == session,
        };
        self.epochs.iter().rev().find(named)
    }

    /// Takes an acknowledgement. `sealed`: packets that the session in use has sealed. `None` if it names one that was never sent.
    pub(crate) fn on_ack(
        &mut self,
        now: Instant,
        (session, index): (u32, Option<u32>),
        largest: u64,
        ranges: impl Iterator<Item = RangeInclusive<u64>>,
        sealed: u64,
    ) -> Option<Outcome> {
        let mut outcome = Outcome { in_flight_before: self.in_flight, ..Outcome::default() };
        let Some(epoch) = self.epoch_of(session, index) else { return Some(outcome) };
        if largest >= epoch.sealed.unwrap_or(sealed) {
            return None;
        }
        let epoch = epoch.epoch;
        let arrived = self.newest.map_or(0, |n| n.1);
        for range in ranges {
            let from = self.packets.partition_point(|p| (p.epoch, p.number) < (epoch, *range.start()));
            let mut at = from;
            while let Some(packet) = self.packets.get(at) {
                if packet.epoch != epoch || packet.number > *range.end() {
                    break;
                }
                if packet.state == State::Done {
                    at += packet.skip.max(1) as usize;
                    continue;
                }
                if packet.number == largest {
                    outcome.sample = Some(now.saturating_duration_since(packet.at));
                }
                self.deliver(at, now, arrived, &mut outcome);
                at += 1;
            }
            if at > from {
                let at = at.min(self.packets.len());
                self.packets[from].skip = (at - from) as u32;
            }
        }
        Some(outcome)
    }

    /// One packet has arrived.
    fn deliver(&mut self, at: usize, now: Instant, arrived: u64, outcome: &mut Outcome) {
        let place = self.base + at as u64;
        let packet = &mut self.packets[at];
        let (size, was, sent) = (u64::from(packet.size), packet.state, packet.at);
        let first = (packet.first - self.items_base) as usize;
        self.acked.extend(self.items.range(first..first + packet.items as usize));
        packet.state = State::Done;
        packet.skip = 1;
        if was == State::Lost {
            outcome.spurious += size;
            self.reordering = true;
            self.persist = PERSIST;
            if place >= self.widen_after {
                self.widened = (self.widened + 1).min(WIDENED_MAX);
                self.widen_after = self.base + self.packets.len() as u64;
            }
        } else {
            self.in_flight -= size;
            self.in_flight_packets -= 1;
            self.reordering |= place < arrived;
        }
        let app_limited = self.packets[at].app_limited;
        outcome.bytes += size;
        outcome.largest_size = outcome.largest_size.max(size as usize);
        if outcome.newest.is_none_or(|(t, _)| t <= sent) {
            outcome.newest = Some((sent, app_limited));
        }
        if self.newest.is_none_or(|(t, p, _)| (t, p) < (sent, place)) {
            self.newest = Some((sent, place, now.saturating_duration_since(sent)));
        }
    }

    // ------------------------------------------------------------------ loss

    /// How much later than one that left after it a packet may arrive.
    fn window(&self, rtt: &RttEstimator) -> Duration {
        (rtt.min() / 4 * (1 + self.widened)).min(rtt.smoothed()).max(WINDOW_MIN)
    }

    /// Takes for lost what should have arrived before something that did; its items go to `lost`. Forgets what is over.
    pub(crate) fn detect(&mut self, now: Instant, rtt: &RttEstimator) -> Lost {
        let mut lost = Lost::default();
        self.loss_at = None;
        let Some((newest_sent, newest_place, newest_rtt)) = self.newest else { return lost };
        let patience = newest_rtt.max(rtt.latest()) + self.window(rtt);
        let mut at = 0;
        while let Some(packet) = self.packets.get(at) {
            let place = self.base + at as u64;
            if place >= newest_place || packet.at > newest_sent {
                break;
            }
            if packet.state != State::InFlight {
                at += packet.skip.max(1) as usize;
                continue;
            }
            let due = packet.at + patience;
            let overtaken = !self.reordering && newest_place - place >= PACKET_THRESHOLD;
            if due <= now || overtaken {
                self.lose(at, &mut lost);
            } else {
                self.loss_at = Some(self.loss_at.map_or(due, |t| t.min(due)));
            }
            at += 1;
        }
        if lost.bytes > 0 && self.persist > 0 {
            self.persist -= 1;
            if self.persist == 0 {
                self.widened = 0;
                self.reordering = false;
            }
        }
        self.forget_old(now, patience);
        lost
    }

    fn lose(&mut self, at: usize, lost: &mut Lost) {
        let packet = &mut self.packets[at];
        packet.state = State::Lost;
        packet.skip = 1;
        let size = u64::from(packet.size);
        let first = (packet.first - self.items_base) as usize;
        self.lost.extend(self.items.range(first..first + packet.items as usize));
        self.in_flight -= size;
        self.in_flight_packets -= 1;
        lost.bytes += size;
        lost.largest_size = lost.largest_size.max(size as usize);
        lost.newest = lost.newest.max(Some(packet.at));
    }

    /// Takes everything under way for lost.
    pub(crate) fn lose_all(&mut self) -> Lost {
        let mut lost = Lost::default();
        for at in 0..self.packets.len() {
            if self.packets[at].state == State::InFlight {
                self.lose(at, &mut lost);
            }
        }
        self.loss_at = None;
        lost
    }

    /// Takes the oldest packets under way for lost: so many that count, and those that do not among them.
    pub(crate) fn lose_oldest(&mut self, packets: usize) {
        let (mut lost, mut left) = (Lost::default(), packets);
        for at in 0..self.packets.len() {
            if left > 0 && self.packets[at].state == State::InFlight {
                left -= usize::from(self.packets[at].size > 0);
                self.lose(at, &mut lost);
            }
        }
    }

    /// Makes the items of the oldest packets under way due again, although they may still arrive: for probes.
    pub(crate) fn repeat_oldest(&mut self, packets: usize) {
        let oldest = self.packets.iter().filter(|p| p.state == State::InFlight).take(packets);
        for packet in oldest {
            let first = (packet.first - self.items_base) as usize;
            self.lost.extend(self.items.range(first..first + packet.items as usize));
        }
    }

    /// As [`Self::repeat_oldest`], for so many bytes of datagrams, but at least one. Whether any is under way.
    pub(crate) fn repeat_bytes(&mut self, most: usize) -> bool {
        let (mut bytes, mut any) = (0, false);
        for packet in self.packets.iter().filter(|p| p.state == State::InFlight).take(REPEATED_MAX) {
            bytes += packet.size as usize;
            if any && bytes > most {
                break;
            }
            any = true;
            let first = (packet.first - self.items_base) as usize;
            self.lost.extend(self.items.range(first..first + packet.items as usize));
        }
        any
    }

    /// What arrived needs no memory, and what was lost so long ago will not arrive.
    fn forget_old(&mut self, now: Instant, patience: Duration) {
        let long_ago = |at: Instant| now.saturating_duration_since(at) > 4 * patience;
        while let Some(front) = self.packets.front() {
            let over = match front.state {
                State::InFlight => false,
                State::Done => true,
                State::Lost => long_ago(front.at),
            };
            if !over {
                break;
            }
            let items = front.items as usize;
            self.packets.pop_front();
            self.base += 1;
            self.items.drain(..items);
            self.items_base += items as u64;
        }
    }

    /// Something waits to be taken from `lost`.
    pub(crate) fn has_lost_items(&self) -> bool {
        !self.lost.is_empty()
    }

    /// When [`Self::detect`] has something to do.
    pub(crate) fn loss_deadline(&self) -> Option<Instant> {
        self.loss_at
    }

    /// Something is under way.
    pub(crate) fn is_waiting(&self) -> bool {
        self.in_flight_packets > 0
    }

    /// Packets and items that are remembered.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.packets.len(), self.items.len())
    }

    /// Bytes under way as its packets say; must equal `in_flight`.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn counted(&self) -> u64 {
        self.packets.iter().filter(|p| p.state == State::InFlight).map(|p| u64::from(p.size)).sum()
    }
}
