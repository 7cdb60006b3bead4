//! One stream of the frame layer, and the table of all of them.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use pilotage_wire::SocketAddress;

use super::recv_stream::RecvHalf;
use super::send_stream::SendHalf;
use crate::connection::{Failure, Notify};
use crate::event::{ConnectionId, ConnectionStats};

/// Places for streams that are kept when there are none.
const ROOM_KEPT: usize = 16;

/// Lists in which a stream stands.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Lists {
    pub(crate) ready: bool,
    pub(crate) urgent: bool,
    pub(crate) control: bool,
    pub(crate) parked: bool,
    pub(crate) touched: bool,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: ConnectionId,
    pub(crate) local: SocketAddress,
    pub(crate) remote: SocketAddress,
    /// Given when the first frame leaves, as far as the peer lets us.
    pub(crate) number: Option<u64>,
    pub(crate) incoming: bool,
    /// The accept queue was told.
    pub(crate) announced: bool,
    /// Nobody has said yet whether the peer may call us.
    pub(crate) gated: bool,
    /// The application dropped its handle.
    pub(crate) detached: bool,
    pub(crate) notify: Notify,
    pub(crate) queued: Notify,
    pub(crate) closed_told: bool,
    pub(crate) lists: Lists,
    /// Memory of ours that the endpoint has counted.
    pub(crate) counted_unread: usize,
    pub(crate) send: SendHalf,
    pub(crate) recv: RecvHalf,
    pub(crate) failure: Option<Failure>,
    /// When the first frame of ours left.
    pub(crate) first_sent: Option<Instant>,
    pub(crate) stats: ConnectionStats,
}

impl Stream {
    /// It has a number in the peer's present life: its bytes count for the window of the tunnel. Those of an earlier life
    /// may still be read, and count for nothing.
    pub(crate) fn is_of_this_life(&self) -> bool {
        self.number.is_some()
    }

    /// Whether a read would do and say no more than that there is nothing yet.
    pub(crate) fn read_waits(&self) -> bool {
        let recv = &self.recv;
        let opens = self.send.opening && self.first_sent.is_none() && !self.send.open_due;
        let over = self.failure.is_some() || recv.reset.is_some() || (recv.is_at_end() && !recv.discarding);
        recv.asm.readable() == 0 && !over && !opens
    }

    /// Both directions are over, or it failed; nothing is left to be told to the peer.
    pub(crate) fn is_over(&self) -> bool {
        let told = !self.send.reset.is_open() && !self.recv.stop.is_open();
        match self.failure {
            Some(_) => told,
            None => self.send.is_over() && self.recv.is_over() && told,
        }
    }

    /// Both directions are over for the application.
    pub(crate) fn is_ended(&self) -> bool {
        self.failure.is_some() || (self.send.is_over() && self.recv.is_over())
    }

    /// It may be written to and read from.
    pub(crate) fn is_open(&self) -> bool {
        self.failure.is_none() && !self.is_ended()
    }
}

/// Streams by slot, with the rounds of those that want something.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    slots: Vec<Option<Box<Stream>>>,
    free: Vec<u32>,
    by_number: HashMap<u64, u32>,
    last: Option<(u64, u32)>,
    /// In turn: with data, with data to be sent again, with something to say, and those for which there is no credit.
    pub(crate) ready: VecDeque<u32>,
    pub(crate) urgent: VecDeque<u32>,
    pub(crate) control: VecDeque<u32>,
    parked: Vec<u32>,
    touched: Vec<u32>,
}

impl Streams {
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.slots.iter().flatten().map(Box::as_ref)
    }

    pub(crate) fn slots(&self) -> Vec<u32> {
        (0..).zip(&self.slots).filter(|(_, s)| s.is_some()).map(|(slot, _)| slot).collect()
    }

    pub(crate) fn insert(&mut self, stream: Box<Stream>) -> u32 {
        let number = stream.number;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() as u32 - 1
            }
        };
        self.slots[slot as usize] = Some(stream);
        if let Some(number) = number {
            self.by_number.insert(number, slot);
        }
        self.touch(slot);
        slot
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&Stream> {
        self.slots.get(slot as usize)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Stream> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// The stream of a frame that was sent: the place may have another one by now.
    pub(crate) fn of_item(&mut self, slot: u32, number: u64) -> Option<&mut Stream> {
        self.get_mut(slot).filter(|s| s.number == Some(number))
    }

    /// The stream with a number; the last answer is kept, since frames come in runs.
    pub(crate) fn find(&mut self, number: u64) -> Option<u32> {
        if let Some((last, slot)) = self.last
            && last == number
        {
            return Some(slot);
        }
        let slot = *self.by_number.get(&number)?;
        self.last = Some((number, slot));
        Some(slot)
    }

    /// Gives a stream its number, or takes it.
    pub(crate) fn set_number(&mut self, slot: u32, number: Option<u64>) {
        self.last = None;
        let Some(stream) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut) else { return };
        if let Some(old) = std::mem::replace(&mut stream.number, number) {
            self.by_number.remove(&old);
        }
        if let Some(number) = number {
            self.by_number.insert(number, slot);
        }
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<Box<Stream>> {
        let stream = self.slots.get_mut(slot as usize)?.take()?;
        if let Some(number) = stream.number {
            self.by_number.remove(&number);
        }
        self.last = None;
        // Whoever is gone has no work, and must not look as if it had.
        let Lists { ready, urgent, control, .. } = stream.lists;
        for (listed, round) in [(ready, Round::Ready), (urgent, Round::Urgent), (control, Round::Control)] {
            if listed {
                self.queue(round).retain(|other| *other != slot);
            }
        }
        self.free.push(slot);
        if self.len() == 0 && self.slots.len() > ROOM_KEPT {
            *self = Self::default();
        }
        Some(stream)
    }

    // ---- rounds

    /// Nobody has anything to send any more.
    pub(crate) fn clear_rounds(&mut self) {
        for stream in self.slots.iter_mut().flatten() {
            stream.lists = Lists { touched: stream.lists.touched, ..Lists::default() };
        }
        self.ready.clear();
        self.urgent.clear();
        self.control.clear();
        self.parked.clear();
    }

    /// Notes that a stream's notifications may have changed.
    pub(crate) fn touch(&mut self, slot: u32) {
        if let Some(stream) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut)
            && !std::mem::replace(&mut stream.lists.touched, true)
        {
            self.touched.push(slot);
        }
    }

    pub(crate) fn take_touched(&mut self) -> Option<u32> {
        let slot = self.touched.pop()?;
        if let Some(stream) = self.get_mut(slot) {
            stream.lists.touched = false;
        }
        Some(slot)
    }

    /// Puts a stream into the rounds in which it wants to be.
    pub(crate) fn mark(&mut self, slot: u32) {
        let Some(stream) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut) else { return };
        if stream.send.has_lost() && !stream.lists.urgent {
            stream.lists.urgent = true;
            self.urgent.push_back(slot);
        }
        if stream.send.wants_to_send() && !stream.lists.ready && !stream.lists.parked {
            stream.lists.ready = true;
            self.ready.push_back(slot);
        }
        let due = |e: super::send_stream::Ending| matches!(e, super::send_stream::Ending::Due(_));
        let says = stream.recv.max_due || due(stream.send.reset) || due(stream.recv.stop);
        if says && !stream.lists.control {
            stream.lists.control = true;
            self.control.push_back(slot);
        }
        // Names of streams that are gone, and of their successors in the same places.
        let most = 2 * self.slots.len() + ROOM_KEPT;
        for round in [&mut self.ready, &mut self.urgent, &mut self.control] {
            if round.len() > most {
                let mut seen = vec![false; self.slots.len()];
                round.retain(|slot| !std::mem::replace(&mut seen[*slot as usize], true));
            }
        }
    }

    /// The front of a round, without those that are gone or want nothing any more.
    pub(crate) fn front(&mut self, round: Round) -> Option<u32> {
        loop {
            let queue = self.queue(round);
            let slot = *queue.front()?;
            if self.get(slot).is_some_and(|s| round.wants(s)) {
                return Some(slot);
            }
            self.drop_front(round);
        }
    }

    pub(crate) fn queue(&mut self, round: Round) -> &mut VecDeque<u32> {
        match round {
            Round::Ready => &mut self.ready,
            Round::Urgent => &mut self.urgent,
            Round::Control => &mut self.control,
        }
    }

    pub(crate) fn drop_front(&mut self, round: Round) {
        if let Some(slot) = self.queue(round).pop_front()
            && let Some(stream) = self.get_mut(slot)
        {
            match round {
                Round::Ready => stream.lists.ready = false,
                Round::Urgent => stream.lists.urgent = false,
                Round::Control => stream.lists.control = false,
            }
        }
    }

    pub(crate) fn rotate(&mut self, round: Round) {
        let queue = self.queue(round);
        if queue.len() > 1 {
            queue.rotate_left(1);
        }
    }

    /// The front of the round of those with data waits for credit, or for leave to open.
    pub(crate) fn park_front(&mut self) {
        if let Some(slot) = self.ready.pop_front()
            && let Some(stream) = self.get_mut(slot)
        {
            stream.lists.ready = false;
            if !std::mem::replace(&mut stream.lists.parked, true) {
                self.parked.push(slot);
            }
        }
    }

    /// There is credit again.
    pub(crate) fn unpark(&mut self) {
        for slot in std::mem::take(&mut self.parked) {
            if let Some(stream) = self.get_mut(slot)
                && std::mem::take(&mut stream.lists.parked)
            {
                self.mark(slot);
            }
        }
    }
}

/// One of the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    Ready,
    Urgent,
    Control,
}

impl Round {
    fn wants(self, stream: &Stream) -> bool {
        use super::send_stream::Ending;
        match self {
            Self::Ready => stream.lists.ready && stream.send.wants_to_send(),
            Self::Urgent => stream.lists.urgent && stream.send.has_lost(),
            Self::Control => {
                let due = |e: Ending| matches!(e, Ending::Due(_));
                stream.lists.control
                    && (stream.recv.max_due || due(stream.send.reset) || due(stream.recv.stop))
            }
        }
    }
}
