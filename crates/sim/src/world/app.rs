//! The applications: they connect, write, read, end streams, and send datagrams.

use std::time::Duration;

use pilotage_proto::{ConnectionId, Event, ReadError, WriteError};
use pilotage_wire::SocketAddress;

use super::audit::Invariant;
use super::host::Power;
use super::registry::Errand;
use super::traffic::{DATAGRAM_PORT, End, Ending, FlowPlan, STREAM_PORT, Unnamed, why_read, why_write};
use super::{What, World};
use crate::link::below;
use crate::network::HostId;

/// Bytes that a flow reads in one call.
const READ: usize = 64 * 1024;
/// How long a slow reader waits between two reads.
const SLOW: Duration = Duration::from_millis(50);

impl World {
    /// Plans a flow and returns its number.
    pub fn plan_flow(&mut self, plan: FlowPlan) -> usize {
        let at = (self.start + plan.start).max(self.now);
        let number = self.traffic.add(plan);
        self.schedule(at, What::StartFlow(number));
        number
    }

    /// Plans a datagram.
    pub fn plan_datagram(&mut self, at: Duration, from: HostId, to: HostId, len: usize) {
        self.schedule((self.start + at).max(self.now), What::Datagram { from, to, len });
    }

    /// Plans a ping.
    pub fn plan_ping(&mut self, at: Duration, from: HostId, to: HostId) {
        self.schedule((self.start + at).max(self.now), What::Ping { from, to });
    }

    fn runs(&self, host: HostId) -> bool {
        self.hosts[host].power == Power::Up
    }

    /// Where a node's listener is, as others dial it. Makes sure that the dialler knows the node. `None` if it has to
    /// ask the registry: then the errand comes back.
    fn dial(
        &mut self,
        from: HostId,
        to: HostId,
        port: u16,
        errand: Errand,
        asked: bool,
    ) -> Option<SocketAddress> {
        let address = self.hosts[to].node()?.address;
        let known = self.hosts[from].node()?.endpoint.peer(address.node).is_some();
        // A node asks its registry before it dials; during chaos it may not get an answer.
        if !asked && (!known || self.registry_answers || below(&mut self.rng, 2) == 0) {
            if self.inquire(from, address.node, errand) {
                return None;
            }
            self.introduce(from, to);
        }
        Some(SocketAddress { address, port })
    }

    pub(super) fn start_flow(&mut self, flow: usize, asked: bool) {
        let (from, to) = (self.traffic.flows[flow].plan.from, self.traffic.flows[flow].plan.to);
        if !self.runs(from) {
            self.traffic.flows[flow].fail(0, "its host does not run".into());
            self.traffic.flows[flow].fail(1, "never began".into());
            return;
        }
        let Some(target) = self.dial(from, to, STREAM_PORT, Errand::Flow(flow), asked) else { return };
        let now = self.local(from);
        let nodelay = self.traffic.flows[flow].plan.nodelay;
        let boot = self.hosts[from].boot;
        let Some(endpoint) = self.endpoint(from) else { return };
        match endpoint.connect(now, target) {
            Ok(id) => {
                endpoint.set_nodelay(now, id, nodelay);
                self.traffic.flows[flow].ends[0] = End::Open;
                self.bind(flow, 0, from, boot, id);
                self.write_flow(flow, 0);
            }
            Err(error) => {
                self.traffic.flows[flow].fail(0, format!("connect: {error:?}"));
                self.traffic.flows[flow].fail(1, "never began".into());
            }
        }
    }

    fn bind(&mut self, flow: usize, side: usize, host: HostId, boot: u32, id: ConnectionId) {
        self.traffic.flows[flow].ids[side] = Some((boot, id));
        self.traffic.by_id.insert((host, boot, id), (flow, side));
    }

    pub(super) fn on_application_event(&mut self, host: HostId, event: &Event) {
        let boot = self.hosts[host].boot;
        match event {
            Event::Incoming { port } => self.accept_all(host, *port),
            Event::Connected(id) | Event::Writable(id) => {
                self.check_closed(host, boot, *id);
                if let Some(&(flow, side)) = self.traffic.by_id.get(&(host, boot, *id)) {
                    self.write_flow(flow, side);
                }
            }
            Event::Readable(id) => {
                // Allowed after the end: what was received can still be read.
                self.on_readable(host, boot, *id);
            }
            Event::Closed(id) => {
                self.check_closed(host, boot, *id);
                self.traffic.closed.insert((host, boot, *id));
                if self.sabotage == Some(Invariant::ClosedOnce) {
                    self.check_closed(host, boot, *id);
                }
                self.on_closed(host, boot, *id);
            }
            Event::Datagram { port } => self.receive_datagrams(host, *port),
            _ => {}
        }
    }

    fn check_closed(&mut self, host: HostId, boot: u32, id: ConnectionId) {
        let again = self.traffic.closed.contains(&(host, boot, id));
        self.audit
            .require(!again, Invariant::ClosedOnce, || format!("host {host}: news of {id:?} after its end"));
    }

    fn accept_all(&mut self, host: HostId, port: u16) {
        let boot = self.hosts[host].boot;
        while let Some((id, peer)) = self.endpoint(host).and_then(|e| e.accept(port)) {
            let unnamed = Unnamed { peer: peer.address, head: Vec::new() };
            self.traffic.unnamed.insert((host, boot, id), unnamed);
            self.on_readable(host, boot, id);
        }
    }

    fn on_readable(&mut self, host: HostId, boot: u32, id: ConnectionId) {
        if self.traffic.unnamed.contains_key(&(host, boot, id)) && !self.read_number(host, boot, id) {
            return;
        }
        if let Some(&(flow, side)) = self.traffic.by_id.get(&(host, boot, id)) {
            self.read_flow(flow, side);
        }
    }

    /// Reads the number in front of an accepted stream. Whether it is complete.
    fn read_number(&mut self, host: HostId, boot: u32, id: ConnectionId) -> bool {
        let now = self.local(host);
        let key = (host, boot, id);
        let have = self.traffic.unnamed.get(&key).map_or(0, |u| u.head.len());
        let mut buf = [0; 8];
        let read = self.endpoint(host).map(|e| e.read(now, id, &mut buf[..8 - have]));
        match read {
            Some(Ok(n)) if n > 0 => {
                let Some(unnamed) = self.traffic.unnamed.get_mut(&key) else { return false };
                unnamed.head.extend_from_slice(&buf[..n]);
                if unnamed.head.len() < 8 {
                    return self.read_number(host, boot, id);
                }
                self.name(host, boot, id)
            }
            Some(Err(ReadError::Blocked)) => false,
            _ => {
                self.traffic.unnamed.remove(&key);
                self.close_handle(host, id);
                false
            }
        }
    }

    /// The number is complete: this is the other end of a flow.
    fn name(&mut self, host: HostId, boot: u32, id: ConnectionId) -> bool {
        let Some(unnamed) = self.traffic.unnamed.remove(&(host, boot, id)) else { return false };
        let number = unnamed.head.first_chunk::<8>().map_or(u64::MAX, |b| u64::from_le_bytes(*b));
        let flow = usize::try_from(number).unwrap_or(usize::MAX);
        let Some(known) = self.traffic.flows.get(flow) else {
            self.audit.fail(Invariant::Prefix, || format!("host {host}: a stream begins with {number}"));
            return false;
        };
        let (from, to, fresh) = (known.plan.from, known.plan.to, known.ids[1].is_none());
        let sender = self.hosts[from].node().map(|n| n.address.node);
        let sabotaged = self.sabotage == Some(Invariant::Authentic);
        self.audit.require(
            to == host && sender == Some(unnamed.peer.node) && fresh && !sabotaged,
            Invariant::Authentic,
            || format!("flow {flow} came to host {host} from {}", unnamed.peer),
        );
        self.traffic.flows[flow].ends[1] = End::Open;
        self.bind(flow, 1, host, boot, id);
        self.traffic.on_bytes(flow, 0, &unnamed.head, &mut self.audit);
        true
    }

    // ------------------------------------------------------------------ writing

    fn write_flow(&mut self, flow: usize, side: usize) {
        let f = &self.traffic.flows[flow];
        let (Some((boot, id)), false) = (f.ids[side], f.is_over(side)) else { return };
        let host = f.host(side);
        // B answers when it has read everything.
        if f.shut[side] || (side == 1 && !f.eof[0]) || self.hosts[host].boot != boot {
            return;
        }
        let now = self.local(host);
        let (target, chunk, ending) = (f.target(side), f.plan.chunk.max(1), f.plan.ending);
        let mut bytes = std::mem::take(&mut self.scratch);
        loop {
            let written = self.traffic.flows[flow].written[side];
            if written >= target {
                self.end_direction(flow, side, id);
                break;
            }
            if let (Ending::Reset(after), 0) = (ending, side)
                && written >= after
            {
                if !self.hosts[host].node().is_some_and(|n| n.endpoint.is_open(id)) {
                    break; // once it is connected
                }
                if let Some(endpoint) = self.endpoint(host) {
                    endpoint.reset(now, id);
                }
                self.traffic.flows[flow].ends[0] = End::Finished;
                self.close_handle(host, id);
                break;
            }
            let len = chunk.min((target - written) as usize);
            self.traffic.produce(flow, side, written, &mut bytes, len);
            let Some(endpoint) = self.endpoint(host) else { break };
            match endpoint.write(now, id, &bytes) {
                Ok(n) => self.traffic.flows[flow].written[side] += n as u64,
                Err(WriteError::Blocked) => break,
                Err(error) => {
                    self.traffic.flows[flow].fail(side, why_write(error));
                    self.close_handle(host, id);
                    break;
                }
            }
        }
        self.scratch = bytes;
    }

    /// All is written: ends the direction, or drops the handle.
    fn end_direction(&mut self, flow: usize, side: usize, id: ConnectionId) {
        let host = self.traffic.flows[flow].host(side);
        let now = self.local(host);
        let ending = self.traffic.flows[flow].plan.ending;
        let Some(endpoint) = self.endpoint(host) else { return };
        let ended = endpoint.shutdown(now, id);
        let f = &mut self.traffic.flows[flow];
        match ended {
            Ok(()) => f.shut[side] = true,
            Err(error) => f.fail(side, why_write(error)),
        }
        if side == 0 && ending == Ending::CloseAfterWrite || f.is_over(side) {
            if !f.is_over(side) {
                f.ends[side] = End::Finished;
            }
            self.close_handle(host, id);
        } else {
            self.finish_if_done(flow, side);
        }
    }

    /// Both directions are over for this end: it drops its handle.
    fn finish_if_done(&mut self, flow: usize, side: usize) {
        let f = &mut self.traffic.flows[flow];
        if f.shut[side] && f.eof[1 - side] && !f.is_over(side) {
            f.ends[side] = End::Finished;
            if let Some((_, id)) = f.ids[side] {
                let host = f.host(side);
                self.close_handle(host, id);
            }
        }
    }

    fn close_handle(&mut self, host: HostId, id: ConnectionId) {
        let now = self.local(host);
        if let Some(endpoint) = self.endpoint(host) {
            endpoint.close(now, id);
        }
    }

    // ------------------------------------------------------------------ reading

    pub(super) fn read_flow_again(&mut self, flow: usize) {
        let host = self.traffic.flows[flow].host(1);
        if let Power::Paused(until) = self.hosts[host].power {
            self.schedule(until, What::Read { flow });
            return;
        }
        self.read_flow(flow, 1);
    }

    /// Reads at `side` what the other side wrote.
    fn read_flow(&mut self, flow: usize, side: usize) {
        let f = &self.traffic.flows[flow];
        let (Some((boot, id)), false) = (f.ids[side], f.is_over(side)) else { return };
        let host = f.host(side);
        if self.hosts[host].boot != boot || !self.runs(host) || f.eof[1 - side] {
            return;
        }
        let slow = f.plan.slow_reader.filter(|_| side == 1);
        let now = self.local(host);
        let mut buf = vec![0; slow.unwrap_or(READ)];
        loop {
            let Some(endpoint) = self.endpoint(host) else { return };
            let waits = endpoint.read_waits(id);
            let read = endpoint.read(now, id, &mut buf);
            let blocked = read == Err(ReadError::Blocked);
            assert!(blocked || !waits, "there was something to read");
            assert!(!blocked || endpoint.read_waits(id), "nothing is left to do, and it is not said");
            match read {
                Ok(0) => {
                    self.on_end_of_stream(flow, side);
                    return;
                }
                Ok(n) => {
                    if self.sabotage == Some(Invariant::Prefix) {
                        buf[n / 2] ^= 1;
                    }
                    self.traffic.on_bytes(flow, 1 - side, &buf[..n], &mut self.audit);
                    if self.reader_leaves(flow, side, host, id) {
                        return;
                    }
                    if slow.is_some() {
                        let at = self.now + SLOW;
                        self.schedule(at, What::Read { flow });
                        return;
                    }
                }
                Err(ReadError::Blocked) => return,
                Err(error) => {
                    self.traffic.flows[flow].fail(side, why_read(error));
                    self.close_handle(host, id);
                    return;
                }
            }
        }
    }

    fn reader_leaves(&mut self, flow: usize, side: usize, host: HostId, id: ConnectionId) -> bool {
        let f = &mut self.traffic.flows[flow];
        let leaves = matches!(f.plan.ending, Ending::ReaderCloses(n) if side == 1 && f.read[0] >= n);
        if leaves {
            f.ends[1] = End::Finished;
            f.shut[1] = true; // closing ends our direction
            self.close_handle(host, id);
        }
        leaves
    }

    fn on_end_of_stream(&mut self, flow: usize, side: usize) {
        if self.sabotage == Some(Invariant::WholeStream) {
            self.traffic.flows[flow].read[1 - side] = 0;
        }
        self.traffic.on_eof(flow, 1 - side, &mut self.audit);
        if side == 1 {
            self.write_flow(flow, 1);
        }
        self.finish_if_done(flow, side);
    }

    fn on_closed(&mut self, host: HostId, boot: u32, id: ConnectionId) {
        if self.traffic.unnamed.contains_key(&(host, boot, id)) {
            self.on_readable(host, boot, id);
        }
        let Some(&(flow, side)) = self.traffic.by_id.get(&(host, boot, id)) else { return };
        if self.traffic.flows[flow].is_over(side) {
            return;
        }
        // What is left can still be read; then the reason shows.
        self.read_flow(flow, side);
        if !self.traffic.flows[flow].is_over(side) && self.traffic.flows[flow].plan.slow_reader.is_none() {
            self.traffic.flows[flow].fail(side, "closed".into());
            self.close_handle(host, id);
        }
    }

    /// A process died: its ends of all flows are over.
    pub(super) fn applications_died(&mut self, host: HostId) {
        for flow in &mut self.traffic.flows {
            for side in [0, 1] {
                if flow.host(side) == host && flow.ids[side].is_some() {
                    flow.fail(side, "its process was killed".into());
                }
            }
        }
        self.traffic.unnamed.retain(|(h, _, _), _| *h != host);
    }

    // ------------------------------------------------------------------ datagrams and pings

    pub(super) fn send_datagram(&mut self, from: HostId, to: HostId, len: usize, asked: bool) {
        if !self.runs(from) {
            return;
        }
        let errand = Errand::Datagram { to, len };
        let Some(target) = self.dial(from, to, DATAGRAM_PORT, errand, asked) else { return };
        let Some(source) = self.hosts[from].node().map(|n| n.address) else { return };
        let mut bytes = std::mem::take(&mut self.scratch);
        self.traffic.new_datagram(source, to, len, &mut bytes);
        let now = self.local(from);
        if let Some(endpoint) = self.endpoint(from) {
            // A datagram that is not taken is one that is lost; nobody is promised more.
            let _ = endpoint.send_datagram(now, target, DATAGRAM_PORT, &bytes);
        }
        self.scratch = bytes;
    }

    fn receive_datagrams(&mut self, host: HostId, port: u16) {
        while let Some(datagram) = self.endpoint(host).and_then(|e| e.recv_datagram(port)) {
            let from = datagram.from.address;
            self.traffic.on_datagram(host, from, &datagram.data, &mut self.audit);
            if self.sabotage == Some(Invariant::DatagramOnce) {
                self.traffic.on_datagram(host, from, &datagram.data, &mut self.audit);
            }
        }
    }

    pub(super) fn send_ping(&mut self, from: HostId, to: HostId, asked: bool) {
        if !self.runs(from) {
            return;
        }
        let Some(target) = self.dial(from, to, 0, Errand::Ping { to }, asked) else { return };
        let now = self.local(from);
        if let Some(endpoint) = self.endpoint(from) {
            // A ping that is not taken is one without an answer.
            let _ = endpoint.ping(now, target.address);
        }
    }
}
