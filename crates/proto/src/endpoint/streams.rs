//! Streams and datagrams as the application sees them (spec/stream.md §2, spec/tunnel.md §7).

use std::time::{Duration, Instant};

use pilotage_fault as fault;
use pilotage_wire::packet::Header;
use pilotage_wire::{Address, NodeId, SocketAddress};
use rand_chacha::ChaCha20Rng;
use rand_core::Rng;

use super::{ConnRef, Endpoint, HalfOpen, ListenQueue};
use crate::connection::{Connection, Cx, State};
use crate::event::{
    ConnectError, ConnectionId, ConnectionStats, DatagramIn, Event, PathInfo, ReadError, SendDatagramError,
    WriteError,
};
use crate::tunnel::DatagramOut;

/// Draft "Ports": ephemeral ports.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// A connection that is half-open for this long may have to give its place in the accept queue to another peer's.
const STALE_HALF_OPEN: Duration = Duration::from_secs(1);

/// Where the upward search for free ports begins: random, so that a restarted node does not reuse ports
/// that its peers still remember.
pub(super) fn first_ephemeral_port(rng: &mut ChaCha20Rng) -> u16 {
    let span = u32::from(*EPHEMERAL.end() - *EPHEMERAL.start()) + 1;
    *EPHEMERAL.start() + (rng.next_u32() % span) as u16
}

impl Endpoint {
    // ------------------------------------------------------------------ listening

    /// Accepts connections to `port` from now on.
    ///
    /// # Errors
    ///
    /// [`ConnectError::LimitReached`] if the port is listened on already.
    pub fn listen(&mut self, port: u16) -> Result<(), ConnectError> {
        if self.listeners.contains_key(&port) {
            return Err(ConnectError::LimitReached);
        }
        self.listeners.insert(port, ListenQueue::default());
        Ok(())
    }

    /// Refuses connections to `port` from now on; those that wait to be accepted are reset.
    pub fn unlisten(&mut self, now: Instant, port: u16) {
        if let Some(queue) = self.listeners.remove(&port) {
            for id in queue.waiting.into_iter().chain(queue.behind) {
                self.reset(now, id);
                self.close(now, id);
            }
        }
    }

    /// The next established connection to `port`, with its peer.
    pub fn accept(&mut self, port: u16) -> Option<(ConnectionId, SocketAddress)> {
        loop {
            let id = self.listeners.get_mut(&port)?.waiting.pop_front()?;
            self.move_up(port);
            if let Some(peer) = self.connection_peer(id) {
                return Some((id, peer));
            }
        }
    }

    /// A SYN for which there is no connection.
    pub(super) fn on_syn(&mut self, now: Instant, index: u32, hdr: &Header) {
        // A crowd at the door is no refusal: the SYN is dropped and comes again (as TCP does).
        let crowd = fault::point!("proto.endpoint.accept_queue_full");
        if !self.closing && (crowd || !self.has_place_for(now, index, hdr.dst_port)) {
            self.stats.drop_segment += 1;
            return;
        }
        let listening = self.listeners.get(&hdr.dst_port);
        let crowded = self.open_connections >= self.cfg.max_connections
            || self.tunnel(index).is_none_or(|t| t.slots.len() >= self.cfg.max_connections_per_peer);
        if listening.is_none() || crowded || self.closing {
            if listening.is_some() {
                self.stats.refused += 1;
            }
            if let Some(tunnel) = self.tunnel_mut(index) {
                tunnel.refuse(hdr, 0);
            }
            return;
        }
        let id = self.new_id();
        let isn = self.new_isn();
        let local = SocketAddress { address: hdr.dst, port: hdr.dst_port };
        let remote = SocketAddress { address: hdr.src, port: hdr.src_port };
        let Some((tunnel, cx)) = split!(self, index, now) else { return };
        let ccx = Cx { now, path: &mut tunnel.path, dialect: tunnel.dialect, cfg: cx.cfg };
        let conn = Box::new(Connection::accept(id, local, remote, isn, hdr, &ccx));
        let slot = tunnel.slots.insert(conn);
        self.bind_id(id, slot.map(|s| (index, s)));
        if let Some(slot) = slot {
            if let Some(queue) = self.listeners.get_mut(&hdr.dst_port) {
                queue.half_open.push_back(HalfOpen { tunnel: index, id, since: now });
            }
            self.open_connections += 1;
            if let Some(tunnel) = self.tunnel_mut(index) {
                tunnel.slots.touch(slot);
            }
        }
    }

    /// Whether a SYN of this peer finds a place in the port's queue (or nobody listens, which is said elsewhere).
    ///
    /// The last quarter of the places is for peers that hold few. In a full queue the oldest half-open connection of
    /// the peer that holds most of them (two more than this one at least) gives way, if an honest handshake would have been over long ago.
    fn has_place_for(&mut self, now: Instant, index: u32, port: u16) -> bool {
        let max = self.cfg.accept_queue;
        let Some(queue) = self.listeners.get(&port) else { return true };
        let held = |tunnel: u32| queue.half_open.iter().filter(|h| h.tunnel == tunnel).count();
        let taken = queue.waiting.len() + queue.half_open.len();
        if taken < max {
            return taken < max - max / 4 || held(index) < max.div_ceil(8);
        }
        let Some(greediest) = queue.half_open.iter().map(|h| h.tunnel).max_by_key(|t| held(*t)) else {
            return false;
        };
        let oldest = queue.half_open.iter().find(|h| h.tunnel == greediest);
        let stale = oldest.filter(|h| now.saturating_duration_since(h.since) >= STALE_HALF_OPEN);
        let Some(HalfOpen { id, .. }) = stale.copied() else { return false };
        if held(greediest) <= held(index) + 1 {
            return false;
        }
        let Some(queue) = self.listeners.get_mut(&port) else { return true };
        queue.half_open.retain(|h| h.id != id);
        queue.outside.push_back(id);
        let last = if queue.outside.len() > max { queue.outside.pop_front() } else { None };
        if let Some((tunnel, slot)) = last.and_then(|id| self.place(id)) {
            self.forget(tunnel, slot, now);
        }
        true
    }

    /// An incoming connection is established: into the accept queue with it.
    pub(super) fn announce(&mut self, index: u32, slot: u32, id: ConnectionId, port: u16, now: Instant) {
        let max = self.cfg.accept_queue;
        let room = self.listeners.get_mut(&port).filter(|q| q.waiting.len() < max);
        if let Some(queue) = room {
            queue.half_open.retain(|h| h.id != id);
            queue.outside.retain(|o| *o != id);
            queue.waiting.push_back(id);
            if !queue.announced {
                queue.announced = true;
                self.events.push_back(Event::Incoming { port });
            }
            if let Some(conn) = self.tunnel_mut(index).and_then(|t| t.slots.get_mut(slot)) {
                conn.announced = true;
            }
            return;
        }
        self.stats.refused += 1;
        self.reset(now, id);
        self.close(now, id);
    }

    // ------------------------------------------------------------------ connections

    /// Begins a connection. The peer must have been introduced. [`Event::Connected`] or [`Event::Closed`] follows.
    ///
    /// # Errors
    ///
    /// [`ConnectError::UnknownPeer`], [`ConnectError::LimitReached`], [`ConnectError::Closing`].
    pub fn connect(&mut self, now: Instant, to: SocketAddress) -> Result<ConnectionId, ConnectError> {
        if self.closing {
            return Err(ConnectError::Closing);
        }
        let &index = self.by_node.get(&to.address.node).ok_or(ConnectError::UnknownPeer)?;
        let tunnel = self.tunnel(index).ok_or(ConnectError::UnknownPeer)?;
        if self.open_connections >= self.cfg.max_connections
            || tunnel.open_count() >= self.cfg.max_connections_per_peer
        {
            return Err(ConnectError::LimitReached);
        }
        if tunnel.path.route.is_none() && !tunnel.may_be_reached(self.beacon_addr) {
            return Err(ConnectError::NoPath);
        }
        let port = self.free_port(index, to.port).ok_or(ConnectError::LimitReached)?;
        // The peer answers to the network that it was called by, so we speak from the same one.
        let local_address = Address { network: to.address.network, node: self.local.node };
        let local = SocketAddress { address: local_address, port };
        if self.tunnel(index).is_some_and(crate::tunnel::Tunnel::may_open_stream) {
            let id = self.open_stream(now, index, local, to).ok_or(ConnectError::LimitReached)?;
            self.on_call(now, index, to.address.node);
            return Ok(id);
        }
        let id = self.new_id();
        let isn = self.new_isn();
        let conn = Box::new(Connection::connect(id, local, to, isn, now, &self.cfg));
        let tunnel = self.tunnel_mut(index).ok_or(ConnectError::UnknownPeer)?;
        let slot = tunnel.slots.insert(conn).ok_or(ConnectError::LimitReached)?;
        tunnel.slots.touch(slot);
        self.open_connections += 1;
        self.bind_id(id, Some((index, slot)));
        self.on_call(now, index, to.address.node);
        Ok(id)
    }

    /// A connection was begun: keys may be wanted for it.
    fn on_call(&mut self, now: Instant, index: u32, node: NodeId) {
        let until = now + self.cfg.connect_timeout;
        let Some(tunnel) = self.tunnel_mut(index) else { return };
        tunnel.prolong_exchange(until);
        if !tunnel.can_send() {
            self.ask_to_punch(now, node);
        }
        self.mark_dirty(index, now);
    }

    /// RFC 6528: not to be guessed, and never the same for two connections on the same ports.
    fn new_isn(&mut self) -> u32 {
        let random = self.rng.next_u32();
        self.cfg.initial_sequence_number.map_or(random, |base| base.wrapping_sub(random >> 20))
    }

    fn free_port(&mut self, index: u32, remote_port: u16) -> Option<u16> {
        for _ in 0..=(EPHEMERAL.end() - EPHEMERAL.start()) {
            let port = self.next_port;
            self.next_port = if port == *EPHEMERAL.end() { *EPHEMERAL.start() } else { port + 1 };
            let taken = self.tunnel(index).is_some_and(|t| t.slots.contains((port, remote_port)));
            if !taken && !self.listeners.contains_key(&port) {
                return Some(port);
            }
        }
        None
    }

    /// Copies received bytes into `buf`. `Ok(0)` for a non-empty `buf` is the end of the stream.
    ///
    /// # Errors
    ///
    /// [`ReadError::Blocked`] if nothing has come yet; otherwise why nothing more will come.
    pub fn read(&mut self, now: Instant, id: ConnectionId, buf: &mut [u8]) -> Result<usize, ReadError> {
        if self.stream_place(id).is_some() {
            let read = self.on_stream(now, id, |mux, slot, cx| mux.read(slot, buf, cx));
            return read.unwrap_or(Err(ReadError::Unknown));
        }
        self.on_connection(now, id, |c, cx| c.read(buf, cx)).unwrap_or(Err(ReadError::Unknown))
    }

    /// Takes as many bytes of `data` as fit the send buffer.
    ///
    /// # Errors
    ///
    /// [`WriteError::Blocked`] if none fits; otherwise why none will ever be taken.
    pub fn write(&mut self, now: Instant, id: ConnectionId, data: &[u8]) -> Result<usize, WriteError> {
        let written = self.on_stream(now, id, |mux, slot, _| mux.write(slot, data));
        let written = written.or_else(|| {
            let (index, _) = self.place(id)?;
            let ready = self.tunnel(index)?.slots.ready_len();
            self.on_connection(now, id, |c, _| c.write_beside(ready, data))
        });
        written.unwrap_or(Err(WriteError::Unknown))
    }

    /// Ends our direction behind everything written (ordered FIN); reading goes on.
    ///
    /// # Errors
    ///
    /// As [`Self::write`]; not an error if it was shut down already.
    pub fn shutdown(&mut self, now: Instant, id: ConnectionId) -> Result<(), WriteError> {
        let ended = self.on_stream(now, id, |mux, slot, _| mux.shutdown(slot));
        let ended = ended.or_else(|| self.on_connection(now, id, |c, _| c.shutdown()));
        ended.unwrap_or(Err(WriteError::Unknown))
    }

    /// Gives up both directions and tells the peer (RST).
    pub fn reset(&mut self, now: Instant, id: ConnectionId) {
        if !self.reset_stream(now, id) {
            self.on_connection(now, id, |c, cx| c.reset(cx.path));
        }
    }

    /// The application drops its handle: unread bytes are discarded, written ones and FIN still delivered.
    pub fn close(&mut self, now: Instant, id: ConnectionId) {
        if self.on_stream(now, id, |mux, slot, cx| mux.detach(slot, cx.now)).is_none() {
            self.on_connection(now, id, |c, cx| c.detach(cx.now));
        }
    }

    /// Bytes that can be read at once.
    pub fn readable(&self, id: ConnectionId) -> usize {
        let stream = self.stream(id).map(|s| s.recv.asm.readable());
        stream.or_else(|| self.look(id).map(Connection::readable)).unwrap_or(0)
    }

    /// Whether a [`read`](Self::read) would only be [`Blocked`](ReadError::Blocked). Needs no time and changes nothing.
    pub fn read_waits(&self, id: ConnectionId) -> bool {
        let stream = self.stream(id).map(crate::mux::Stream::read_waits);
        stream.or_else(|| self.look(id).map(Connection::read_waits)).unwrap_or(false)
    }

    /// Bytes that can be written at once.
    pub fn writable(&self, id: ConnectionId) -> usize {
        let stream = self.stream(id).map(|s| s.send.buf.free());
        stream.or_else(|| self.look(id).map(Connection::writable)).unwrap_or(0)
    }

    /// Bytes that were written and not yet sent for the first time.
    pub fn unsent(&self, id: ConnectionId) -> usize {
        let stream = self.stream(id).map(|s| s.send.buf.unsent() as usize);
        stream.or_else(|| self.look(id).map(Connection::unsent)).unwrap_or(0)
    }

    /// Whether the peer acknowledged everything written (and the end of our direction, if it was ended).
    pub fn is_flushed(&self, id: ConnectionId) -> bool {
        let stream = self.stream(id).map(|s| s.send.is_flushed());
        stream.or_else(|| self.look(id).map(Connection::is_flushed)).unwrap_or(true)
    }

    /// Whether the peer's node has taken the connection. One of the draft is when it is connected; a stream of S1 may be written to before.
    pub fn is_accepted(&self, id: ConnectionId) -> bool {
        let stream = self.stream(id).map(|s| s.connect_error().is_none() && !s.send.opening);
        let established = |c: &Connection| matches!(c.state, State::Established | State::Done);
        stream.or_else(|| self.look(id).map(established)).unwrap_or(false)
    }

    /// Somebody waits for [`Endpoint::is_accepted`]: a stream is opened even if nothing is written.
    pub fn open_now(&mut self, now: Instant, id: ConnectionId) {
        self.on_stream(now, id, |mux, slot, _| mux.open_now(slot));
    }

    /// Whether the connection is established and neither finished nor failed.
    pub fn is_open(&self, id: ConnectionId) -> bool {
        let stream = self.stream(id).is_some_and(crate::mux::Stream::is_open);
        stream || self.look(id).is_some_and(|c| c.state == State::Established)
    }

    /// Why the connection could not be made, once it failed.
    pub fn connect_error(&self, id: ConnectionId) -> Option<ConnectError> {
        if let Some(stream) = self.stream(id) {
            return stream.connect_error();
        }
        self.look(id)?.connect_error()
    }

    /// Turns off Nagle's algorithm (RFC 896): small writes leave at once.
    pub fn set_nodelay(&mut self, now: Instant, id: ConnectionId, nodelay: bool) {
        self.on_connection(now, id, |c, _| c.set_nodelay(nodelay));
    }

    /// Counters of a connection.
    pub fn connection_stats(&self, id: ConnectionId) -> Option<ConnectionStats> {
        let stream = self.stream(id).map(crate::mux::Stream::stats);
        stream.or_else(|| self.look(id).map(Connection::stats))
    }

    /// The path that a connection uses now.
    pub fn connection_path(&self, id: ConnectionId) -> Option<PathInfo> {
        self.tunnel(self.place(id)?.0)?.path.info()
    }

    /// The other end of a connection.
    pub fn connection_peer(&self, id: ConnectionId) -> Option<SocketAddress> {
        self.stream(id).map(|s| s.remote).or_else(|| self.look(id).map(|c| c.remote))
    }

    /// Our port of a connection.
    pub fn local_port(&self, id: ConnectionId) -> Option<u16> {
        self.stream(id).map(|s| s.local.port).or_else(|| self.look(id).map(|c| c.local.port))
    }

    fn look(&self, id: ConnectionId) -> Option<&Connection> {
        let (index, slot) = self.place(id)?;
        self.tunnel(index)?.slots.get(slot)
    }

    fn on_connection<R>(
        &mut self,
        now: Instant,
        id: ConnectionId,
        f: impl FnOnce(&mut Connection, &mut Cx<'_>) -> R,
    ) -> Option<R> {
        let (index, slot) = self.place(id)?;
        let (tunnel, cx) = split!(self, index, now)?;
        let result = tunnel.with_connection(slot, cx.cfg, now, f);
        tunnel.slots.touch(slot);
        self.mark_dirty(index, now);
        result
    }

    // ------------------------------------------------------------------ ids

    pub(super) fn new_id(&mut self) -> ConnectionId {
        match self.free_refs.pop() {
            Some(index) => ConnectionId { index, generation: self.refs[index as usize].generation },
            None => {
                self.refs.push(ConnRef { generation: 0, place: None });
                ConnectionId { index: self.refs.len() as u32 - 1, generation: 0 }
            }
        }
    }

    pub(super) fn bind_id(&mut self, id: ConnectionId, place: Option<(u32, u32)>) {
        let entry = &mut self.refs[id.index as usize];
        entry.place = place;
        if place.is_none() {
            entry.generation = entry.generation.wrapping_add(1);
            self.free_refs.push(id.index);
        }
    }

    /// Removes a connection that is over and that nobody holds; its end is remembered for late segments.
    pub(super) fn forget(&mut self, index: u32, slot: u32, now: Instant) {
        let time_wait = self.cfg.time_wait;
        let Some(tunnel) = self.tunnel_mut(index) else { return };
        let Some(mut conn) = tunnel.slots.remove(slot) else { return };
        if conn.incoming
            && !conn.announced
            && let Some(queue) = self.listeners.get_mut(&conn.local.port)
        {
            queue.half_open.retain(|h| h.id != conn.id);
            queue.outside.retain(|id| *id != conn.id);
        }
        let Some(tunnel) = self.tunnel_mut(index) else { return };
        if conn.state == State::Done {
            let ports = (conn.local.port, conn.remote.port);
            tunnel.slots.remember(ports, conn.final_numbers(), now + time_wait);
        }
        if tunnel.open_count() == 0 {
            tunnel.release();
        }
        self.timers.remove(&mut conn.registered);
        self.unread -= conn.counted_unread;
        self.open_connections -= 1;
        self.bind_id(conn.id, None);
        self.mark_dirty(index, now);
    }

    // ------------------------------------------------------------------ datagrams

    /// Receives datagrams to `port` from now on.
    ///
    /// # Errors
    ///
    /// [`ConnectError::LimitReached`] if the port is bound already.
    pub fn bind_datagram(&mut self, port: u16) -> Result<(), ConnectError> {
        if self.datagram_ports.contains_key(&port) {
            return Err(ConnectError::LimitReached);
        }
        self.datagram_ports.insert(port, super::DatagramQueue::default());
        Ok(())
    }

    /// Drops datagrams to `port` from now on, and those that wait.
    pub fn unbind_datagram(&mut self, port: u16) {
        self.datagram_ports.remove(&port);
    }

    /// Sends one datagram: unreliable, unordered, never fragmented.
    ///
    /// # Errors
    ///
    /// See [`SendDatagramError`]; a datagram that was not taken is not sent later.
    pub fn send_datagram(
        &mut self,
        now: Instant,
        to: SocketAddress,
        from_port: u16,
        data: &[u8],
    ) -> Result<(), SendDatagramError> {
        self.queue_datagram(now, to, data, from_port, false)
    }

    /// As [`Self::send_datagram`], for a message of which acting twice is the same as acting once: where there are no keys yet and the
    /// peer's prekey for S1 is known, it leaves in the very first packet and arrives after half a round trip
    /// (spec/secure.md §6.4), if it has at most [`EARLY_DATAGRAM_MAX`](crate::EARLY_DATAGRAM_MAX) bytes. Else, and if the peer does not say that it
    /// took it, it leaves as any datagram.
    ///
    /// It may thus be delivered twice. A peer takes one initiation's early data at most once; none in the first 20 s of its
    /// process and none older than 10 s. Who steals the peer's prekey within its life (7 days) can read what left
    /// early, also later, and forge it.
    ///
    /// # Errors
    ///
    /// As [`Self::send_datagram`].
    pub fn send_datagram_idempotent(
        &mut self,
        now: Instant,
        to: SocketAddress,
        from_port: u16,
        data: &[u8],
    ) -> Result<(), SendDatagramError> {
        self.queue_datagram(now, to, data, from_port, true)
    }

    fn queue_datagram(
        &mut self,
        now: Instant,
        to: SocketAddress,
        data: &[u8],
        from_port: u16,
        idempotent: bool,
    ) -> Result<(), SendDatagramError> {
        if self.closing {
            return Err(ConnectError::Closing.into());
        }
        if data.is_empty() {
            return Err(SendDatagramError::Empty);
        }
        let &index = self.by_node.get(&to.address.node).ok_or(ConnectError::UnknownPeer)?;
        let tunnel = self.tunnel_mut(index).ok_or(ConnectError::UnknownPeer)?;
        let max = tunnel.path.mss();
        if data.len() > max {
            return Err(SendDatagramError::TooLarge { max });
        }
        let datagram = DatagramOut { to: to.address, from_port, to_port: to.port, data: data.to_vec() };
        let queued = if idempotent { tunnel.queue_early(datagram) } else { tunnel.queue_datagram(datagram) };
        if !queued {
            return Err(SendDatagramError::QueueFull);
        }
        tunnel.warm(now);
        if !tunnel.can_send() {
            self.ask_to_punch(now, to.address.node);
        }
        self.mark_dirty(index, now);
        Ok(())
    }

    /// The next datagram for `port`.
    pub fn recv_datagram(&mut self, port: u16) -> Option<DatagramIn> {
        self.datagram_ports.get_mut(&port)?.waiting.pop_front()
    }

    pub(super) fn on_datagram(&mut self, index: u32, hdr: &Header, payload: &[u8]) {
        let max = self.cfg.datagram_queue;
        let Some(queue) = self.datagram_ports.get_mut(&hdr.dst_port) else {
            self.on_stray_datagram(hdr, payload);
            return;
        };
        if payload.is_empty() {
            return; // draft-01 facts §7
        }
        if queue.waiting.len() >= max || fault::point!("proto.endpoint.datagram_queue_full") {
            self.stats.drop_datagram_queue += 1;
            return;
        }
        debug_assert!(self.tunnels.get(index as usize).is_some());
        let from = SocketAddress { address: hdr.src, port: hdr.src_port };
        queue.waiting.push_back(DatagramIn { from, data: payload.to_vec() });
        if !queue.announced {
            queue.announced = true;
            self.events.push_back(Event::Datagram { port: hdr.dst_port });
        }
    }

    // ------------------------------------------------------------------ the end

    /// To be called after [`Endpoint::close_all`], when everything has left: repeats the acknowledgements of what came in the last second, so that
    /// one lost datagram leaves no peer waiting for us.
    pub fn acknowledge_again(&mut self, now: Instant) {
        let fresh = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        for index in 0..self.tunnels.len() as u32 {
            if let Some(mux) = self.tunnel_mut(index).and_then(|t| t.mux.as_deref_mut()) {
                mux.acknowledge_again(fresh, now);
                self.mark_dirty(index, now);
            }
        }
    }

    /// Resets all connections and refuses new ones; [`Endpoint::poll_transmit`] still yields what tells the peers.
    pub fn close_all(&mut self, now: Instant) {
        self.closing = true;
        for index in 0..self.tunnels.len() as u32 {
            if let Some((tunnel, _)) = split!(self, index, now) {
                let crate::tunnel::Tunnel { slots, path, .. } = tunnel;
                slots.for_each(|c| c.reset(path));
                slots.touch_all();
            }
            self.reset_streams(index, now);
            self.mark_dirty(index, now);
        }
    }
}
