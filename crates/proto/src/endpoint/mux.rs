//! Streams of S1 as the application sees them: the same handles, events and calls as connections of the draft
//! (spec/secure.md §11, §12.6).

use std::time::Instant;

use pilotage_wire::SocketAddress;
use pilotage_wire::packet::{Flags, Header, Protocol};

use super::Endpoint;
use crate::connection::Connection;
use crate::event::{ConnectionId, Event};
use crate::mux::{Cx, Mux, NewStream, REFUSED, Stream};
use crate::send_buffer::SendBuffer;

/// Says in the place of a handle that it is a stream's.
const STREAM: u32 = 1 << 31;

impl Endpoint {
    /// Where a handle of a stream points.
    pub(super) fn stream_place(&self, id: ConnectionId) -> Option<(u32, u32)> {
        self.place(id).filter(|(_, slot)| slot & STREAM != 0).map(|(index, slot)| (index, slot & !STREAM))
    }

    /// The stream of a handle; `None` for connections of the draft.
    pub(super) fn stream(&self, id: ConnectionId) -> Option<&Stream> {
        let (index, slot) = self.stream_place(id)?;
        self.tunnel(index)?.mux.as_ref()?.streams.get(slot)
    }

    /// Runs `f` on the stream of a handle. `None` for connections of the draft.
    pub(super) fn on_stream<R>(
        &mut self,
        now: Instant,
        id: ConnectionId,
        f: impl FnOnce(&mut Mux, u32, &mut Cx<'_>) -> R,
    ) -> Option<R> {
        let (index, slot) = self.stream_place(id)?;
        let (tunnel, cx) = split!(self, index, now)?;
        let result = tunnel.with_mux(&cx, |mux, mcx| {
            let result = f(mux, slot, mcx);
            mux.streams.touch(slot);
            result
        });
        self.mark_dirty(index, now);
        result
    }

    /// Opens a stream to a peer that speaks them, in the session that there is: at once.
    pub(super) fn open_stream(
        &mut self,
        now: Instant,
        index: u32,
        local: SocketAddress,
        remote: SocketAddress,
    ) -> Option<ConnectionId> {
        let buf = SendBuffer::new(self.cfg.send_buffer);
        let id = self.new_id();
        let new = NewStream {
            id,
            local,
            remote,
            buf,
            fin_queued: false,
            detached: false,
            write_blocked: false,
            queued: crate::connection::Notify::default(),
        };
        let (tunnel, cx) = split!(self, index, now)?;
        let slot = tunnel.with_mux(&cx, |mux, mcx| mux.connect(new, mcx))?;
        self.open_connections += 1;
        self.bind_id(id, Some((index, slot | STREAM)));
        Some(id)
    }

    /// A session with streams has begun: connections of the draft that have not said anything become streams.
    pub(super) fn convert(&mut self, index: u32, now: Instant) {
        let Some((tunnel, cx)) = split!(self, index, now) else { return };
        if !std::mem::take(&mut tunnel.convert) || !tunnel.has_own_streams() {
            return;
        }
        let mut moved = Vec::new();
        let silent = |slot: &u32| tunnel.slots.get(*slot).is_some_and(Connection::is_silent);
        let slots: Vec<u32> = tunnel.slots.indices().filter(silent).collect();
        for slot in slots {
            let Some(mut conn) = tunnel.slots.remove(slot) else { continue };
            let registered = conn.registered.take();
            let new = conn.into_stream();
            let id = new.id;
            let slot = tunnel.with_mux(&cx, |mux, mcx| mux.connect(new, mcx));
            moved.push((id, slot, registered));
        }
        for (id, slot, mut registered) in moved {
            self.timers.remove(&mut registered);
            if let Some(slot) = slot {
                self.refs[id.index as usize].place = Some((index, slot | STREAM));
            }
        }
    }

    /// Collects what streams have to tell.
    pub(super) fn settle_streams(&mut self, index: u32, now: Instant) {
        loop {
            let Some(mux) = self.tunnel_mut(index).and_then(|t| t.mux.as_deref_mut()) else { return };
            let Some(slot) = mux.take_fresh() else { break };
            self.on_fresh_stream(index, slot, now);
        }
        loop {
            let Some(mux) = self.tunnel_mut(index).and_then(|t| t.mux.as_deref_mut()) else { return };
            let Some(slot) = mux.streams.take_touched() else { break };
            self.settle_stream(index, slot, now);
        }
    }

    fn settle_stream(&mut self, index: u32, slot: u32, now: Instant) {
        let Some(mux) = self.tunnels.get_mut(index as usize).and_then(Option::as_deref_mut) else { return };
        let Some(stream) = mux.mux.as_deref_mut().and_then(|m| m.streams.get_mut(slot)) else { return };
        let unread = stream.recv.asm.allocated();
        self.unread = self.unread + unread - stream.counted_unread;
        stream.counted_unread = unread;
        let notify = std::mem::take(&mut stream.notify);
        let (id, heard) = (stream.id, !stream.detached && (!stream.incoming || stream.announced));
        if notify.connected {
            self.events.push_back(Event::Connected(id));
        }
        if notify.readable && heard && !std::mem::replace(&mut stream.queued.readable, true) {
            self.events.push_back(Event::Readable(id));
        }
        if notify.writable && heard && !std::mem::replace(&mut stream.queued.writable, true) {
            self.events.push_back(Event::Writable(id));
        }
        if notify.closed && heard {
            self.events.push_back(Event::Closed(id));
        }
        let nobodys = stream.detached || (stream.incoming && !stream.announced);
        if stream.is_over() && nobodys {
            self.forget_stream(index, slot, now);
        }
    }

    pub(super) fn forget_stream(&mut self, index: u32, slot: u32, now: Instant) {
        let Some(tunnel) = self.tunnel_mut(index) else { return };
        let Some(stream) = tunnel.mux.as_deref_mut().and_then(|mux| mux.remove(slot)) else { return };
        if tunnel.open_count() == 0 {
            tunnel.release();
        }
        self.unread -= stream.counted_unread;
        self.open_connections -= 1;
        self.bind_id(stream.id, None);
        self.mark_dirty(index, now);
    }

    // ------------------------------------------------------------------ incoming

    /// The peer has opened a stream.
    fn on_fresh_stream(&mut self, index: u32, slot: u32, now: Instant) {
        let id = self.new_id();
        let Some(mux) = self.tunnel_mut(index).and_then(|t| t.mux.as_deref_mut()) else { return };
        let Some(stream) = mux.streams.get_mut(slot) else {
            self.free_refs.push(id.index);
            return;
        };
        stream.id = id;
        let (local, remote) = (stream.local, stream.remote);
        self.open_connections += 1;
        self.bind_id(id, Some((index, slot | STREAM)));
        let crowded = self.open_connections > self.cfg.max_connections;
        let listening = self.listeners.contains_key(&local.port);
        if !listening || crowded || self.closing {
            self.stats.refused += u64::from(listening);
            self.refuse_stream(index, slot);
            return;
        }
        if self.may_enter(now, index, &knock_header(local, remote), &[]) {
            self.admit_stream(index, slot);
        } else if let Some(mux) = self.tunnel_mut(index).and_then(|t| t.mux.as_deref_mut()) {
            mux.hold(slot, now);
        }
    }

    fn refuse_stream(&mut self, index: u32, slot: u32) {
        if let Some(mux) = self.tunnel_mut(index).and_then(|t| t.mux.as_deref_mut()) {
            mux.refuse(slot, REFUSED);
        }
    }

    /// The peer may call us: into the accept queue with its stream, or behind it.
    fn admit_stream(&mut self, index: u32, slot: u32) {
        let Some(mux) = self.tunnel_mut(index).and_then(|t| t.mux.as_deref_mut()) else { return };
        let Some(stream) = mux.streams.get_mut(slot) else { return };
        stream.gated = false;
        let (id, port) = (stream.id, stream.local.port);
        let max = self.cfg.accept_queue;
        let Some(queue) = self.listeners.get_mut(&port) else {
            self.refuse_stream(index, slot);
            return;
        };
        if queue.waiting.len() >= max {
            queue.behind.push_back(id);
            // Without those that are gone by now, there are no more than connections.
            if queue.behind.len() > 2 * self.cfg.max_connections {
                let behind = std::mem::take(&mut queue.behind);
                let there = behind.into_iter().filter(|id| self.place(*id).is_some()).collect();
                if let Some(queue) = self.listeners.get_mut(&port) {
                    queue.behind = there;
                }
            }
            return;
        }
        queue.waiting.push_back(id);
        if !std::mem::replace(&mut queue.announced, true) {
            self.events.push_back(Event::Incoming { port });
        }
        self.announce_stream(index, slot);
    }

    /// From now on the application hears of the stream, and of what came before.
    fn announce_stream(&mut self, index: u32, slot: u32) {
        let Some(mux) = self.tunnel_mut(index).and_then(|t| t.mux.as_deref_mut()) else { return };
        if let Some(stream) = mux.streams.get_mut(slot) {
            stream.announced = true;
            stream.notify.closed |= stream.closed_told;
            stream.notify.readable |= stream.recv.asm.readable() > 0 || stream.recv.is_over();
        }
        mux.streams.touch(slot);
    }

    /// There is a place in the accept queue again: for the first of those behind it.
    pub(super) fn move_up(&mut self, port: u16) {
        let max = self.cfg.accept_queue;
        loop {
            let Some(queue) = self.listeners.get_mut(&port).filter(|q| q.waiting.len() < max) else { return };
            let Some(id) = queue.behind.pop_front() else { return };
            let Some((index, slot)) = self.stream_place(id) else { continue };
            if let Some(queue) = self.listeners.get_mut(&port) {
                queue.waiting.push_back(id);
                if !std::mem::replace(&mut queue.announced, true) {
                    self.events.push_back(Event::Incoming { port });
                }
            }
            self.announce_stream(index, slot);
            self.mark_dirty(index, self.now);
        }
    }

    /// A verdict on a peer, whose streams wait for it.
    pub(super) fn judge_streams(&mut self, index: u32, admitted: bool) {
        let Some(mux) = self.tunnel_mut(index).and_then(|t| t.mux.as_deref_mut()) else { return };
        let waits = |slot: &u32| mux.streams.get(*slot).is_some_and(|s| s.gated && s.failure.is_none());
        let gated: Vec<u32> = mux.streams.slots().into_iter().filter(waits).collect();
        for slot in gated {
            match admitted {
                true => self.admit_stream(index, slot),
                false => {
                    self.stats.drop_not_admitted += 1;
                    self.refuse_stream(index, slot);
                }
            }
        }
    }

    // ------------------------------------------------------------------ calls

    pub(super) fn reset_stream(&mut self, now: Instant, id: ConnectionId) -> bool {
        self.on_stream(now, id, |mux, slot, _| mux.reset(slot)).is_some()
    }

    /// Resets all streams with a peer.
    pub(super) fn reset_streams(&mut self, index: u32, now: Instant) {
        if let Some(mux) = self.tunnel_mut(index).and_then(|t| t.mux.as_deref_mut()) {
            mux.reset_all(now);
        }
    }

    /// Forgets all streams with a peer without a word to it, after their owners were told.
    pub(super) fn drop_streams(&mut self, index: u32, now: Instant) {
        let Some((tunnel, cx)) = split!(self, index, now) else { return };
        tunnel.with_mux(&cx, |mux, mcx| mux.end(crate::connection::Failure::Reset, mcx));
        self.settle_streams(index, now);
        let Some(mux) = self.tunnel_mut(index).and_then(|t| t.mux.as_deref_mut()) else { return };
        for slot in mux.streams.slots() {
            self.forget_stream(index, slot, now);
        }
    }
}

/// What the gate is shown: a call between two ports. Not a SYN, so that no connection of the draft is made of it.
fn knock_header(local: SocketAddress, remote: SocketAddress) -> Header {
    Header {
        flags: Flags::EMPTY,
        protocol: Protocol::Stream,
        src: remote.address,
        dst: local.address,
        src_port: remote.port,
        dst_port: local.port,
        seq: 0,
        ack: 0,
        window: 0,
    }
}
