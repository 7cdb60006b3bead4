//! The threads of [`Trust`](super::Trust): one accepts on port 444, one works off what the registry has to be told or
//! asked; streams with peers have short-lived ones.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilotage::{Address, EventReceiver, HubError, Listener, NodeEvent, Stream, verify};
use pilotage_wire::NodeId;
use serde_json::{Value, json};

use super::book::{Act, Incoming, Outcome, Refusal};
use super::message::{self, Kind, MAX_READ, Message};
use super::{Delivery, Inner, PORT, TrustError, TrustEvent, now, said};

/// Streams of port 444, in and out, that may be under way at a time; further ones are reset.
pub const MAX_STREAMS: usize = 32;

/// How often a thread looks whether it should stop.
const STOP_POLL: Duration = Duration::from_millis(200);
/// How long a message may take to come.
const READ_TIME: Duration = Duration::from_secs(5);
/// How long a message may take to be acknowledged.
const WRITE_TIME: Duration = Duration::from_secs(5);
/// A sender closes this long after its message (draft-01 facts §14): the reference reads only what came before the end.
const BEFORE_CLOSE: Duration = Duration::from_millis(500);
/// How long an attempt to reach a peer directly may keep the caller of `request` waiting.
const DIRECT_TIME: Duration = Duration::from_secs(6);
/// Relayed requests and answers that are taken from one reply of the registry.
const MAX_RELAYED: usize = 1_024;

/// What the worker has to do.
#[derive(Debug)]
pub(super) enum Job {
    /// Tell a peer or the registry.
    Act(Act),
    /// Ask about a caller.
    Check(NodeId),
}

/// What the registry knows of a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Entry {
    pub(super) key: Option<[u8; 32]>,
    networks: Vec<u16>,
}

pub(super) fn start(inner: &Arc<Inner>, listener: Listener, work: Receiver<Job>) -> io::Result<()> {
    let serving = inner.clone();
    thread::Builder::new().name("trust-accept".into()).spawn(move || serving.accept(&listener))?;
    let working = inner.clone();
    let events = inner.node.events();
    thread::Builder::new().name("trust".into()).spawn(move || working.work(&work, &events))?;
    Ok(())
}

/// A place among the streams under way.
struct Place(Arc<Inner>);

impl Place {
    fn take(inner: &Arc<Inner>) -> Option<Self> {
        if inner.streams.fetch_add(1, Ordering::AcqRel) < MAX_STREAMS {
            return Some(Self(inner.clone()));
        }
        inner.streams.fetch_sub(1, Ordering::AcqRel);
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Inner {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    // ------------------------------------------------------------------ messages in

    fn accept(self: &Arc<Self>, listener: &Listener) {
        while !self.stopped() {
            let stream = match listener.accept_timeout(STOP_POLL) {
                Ok(Some(stream)) => stream,
                Ok(None) => continue,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    continue;
                }
                Err(_) => return, // the node is closed
            };
            let Some(place) = Place::take(self) else {
                stream.reset();
                continue;
            };
            let spawned =
                thread::Builder::new().name("trust-read".into()).spawn(move || place.0.take_message(stream));
            if let Err(error) = spawned {
                tracing::warn!(%error, "no thread for a trust message: it is dropped");
            }
        }
    }

    fn take_message(self: &Arc<Self>, mut stream: Stream) {
        let node = stream.peer().address.node;
        let bytes = match read_message(&mut stream) {
            Ok(bytes) => bytes,
            Err(error) => return tracing::debug!(%node, %error, "no trust message came"),
        };
        if let Err(reason) = self.handle(node, &bytes) {
            self.tell(TrustEvent::Refused { node, reason });
        }
        // Let the sender close first: that is what the reference's senders expect.
        let _ = stream.set_read_timeout(Some(4 * BEFORE_CLOSE));
        let _ = stream.read(&mut [0; 64]);
    }

    /// Checks a message and acts on it; the error says why it does not count.
    pub(super) fn handle(&self, node: NodeId, bytes: &[u8]) -> Result<(), String> {
        let message = Message::parse(bytes).map_err(|error| error.to_string())?;
        if message.node != node.0 {
            return Err(format!("it is signed as node {}", NodeId(message.node)));
        }
        let tunnel = self.node.peer(node).filter(|tunnel| tunnel.authenticated);
        if tunnel.and_then(|tunnel| tunnel.key) != Some(message.public_key) {
            return Err("its key is not that of the tunnel".into());
        }
        let signed = message::signed_string(node.0, self.us().0);
        if !verify(&message.public_key, signed.as_bytes(), &message.signature) {
            return Err("its signature is wrong".into());
        }
        let mut replays = self.replays.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        replays.note(now(), node, message.timestamp, bytes).map_err(|stale| stale.to_string())?;
        drop(replays);
        let entry = self.look_up(node).unwrap_or_default();
        if entry.key.is_some_and(|key| key != message.public_key) {
            return Err("the registry names another key for it".into());
        }
        self.act_on(node, message, &entry).map_err(|error| error.to_string())
    }

    fn act_on(&self, node: NodeId, message: Message, entry: &Entry) -> Result<(), TrustError> {
        let key = message.public_key;
        match message.kind {
            Kind::Request => {
                let justification = message.justification;
                let network = self.common_network(entry);
                self.take_request(Incoming { node, key: Some(key), justification, relayed: false, network })
            }
            Kind::Accept => {
                if let Some(acts) = self.change(|book| book.on_accept(now(), node, Some(key)))? {
                    self.carry_out(acts);
                    self.tell(TrustEvent::Agreed(node));
                }
                Ok(())
            }
            Kind::Reject => {
                self.change(|book| book.on_reject(node))?;
                self.tell(TrustEvent::Rejected(node));
                Ok(())
            }
            Kind::Revoke => {
                let acts = self.change(|book| book.on_revoke(node, key))?;
                self.carry_out(acts);
                self.tell(TrustEvent::Revoked(node));
                Ok(())
            }
        }
    }

    fn take_request(&self, incoming: Incoming) -> Result<(), TrustError> {
        let node = incoming.node;
        let outcome = self.change(|book| book.on_request(now(), incoming))?;
        match outcome {
            Outcome::Trusted(acts) => {
                self.carry_out(acts);
                self.tell(TrustEvent::Agreed(node));
            }
            Outcome::Waits => {
                let pending = self.book().pending.get(&node).cloned();
                if let Some(pending) = pending {
                    self.tell(TrustEvent::Requested(pending));
                }
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------------ messages out

    /// Tries the peer itself if the registry says where it is or there is a tunnel, then the registry's relay.
    pub(super) fn deliver_request(
        self: &Arc<Self>,
        to: NodeId,
        message: &[u8],
        justification: &str,
    ) -> Result<Delivery, TrustError> {
        let us = self.us();
        let direct = match self.can_be_reached(to) {
            Err(error) => error.to_string(),
            Ok(()) => match self.send_within(to, message.to_vec(), DIRECT_TIME) {
                Ok(()) => return Ok(Delivery::Direct),
                Err(error) => error,
            },
        };
        let request = json!({
            "type": "request_handshake", "from_node_id": us.0, "to_node_id": to.0, "justification": justification,
        });
        match self.node.registry_call(request, Some(&message::signed_string(us.0, to.0))) {
            Ok(_) => Ok(Delivery::Relayed),
            Err(relay) => Err(TrustError::NotDelivered { direct, relay }),
        }
    }

    fn can_be_reached(&self, node: NodeId) -> Result<(), HubError> {
        if self.node.peer(node).is_some_and(|tunnel| tunnel.established) {
            return Ok(());
        }
        let us = self.us();
        let resolve = json!({ "type": "resolve", "node_id": node.0, "requester_id": us.0 });
        match self.node.registry_call(resolve, Some(&format!("resolve:{}:{}", us.0, node.0))) {
            // Without a registry only peers that the operator introduced can be reached: the attempt will tell.
            Ok(_) | Err(HubError::NotConfigured) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sends on a thread of its own, for an attempt may take longer than we want to wait.
    fn send_within(self: &Arc<Self>, to: NodeId, message: Vec<u8>, time: Duration) -> Result<(), String> {
        let place = Place::take(self).ok_or("too many streams of port 444 are under way")?;
        let (done, wait) = std::sync::mpsc::channel();
        thread::Builder::new()
            .name("trust-send".into())
            .spawn(move || {
                // Whoever waited may have given up.
                let _ = done.send(place.0.send(to, &message));
            })
            .map_err(|error| error.to_string())?;
        match wait.recv_timeout(time) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(format!("no answer within {} s", time.as_secs())),
            Err(RecvTimeoutError::Disconnected) => Err("the thread ended".into()),
        }
    }

    fn send(&self, to: NodeId, message: &[u8]) -> Result<(), String> {
        let mut stream = self.node.connect(Address::new(0, to.0), PORT).map_err(|failure| said(&failure))?;
        let sent = stream.write_all(message).and_then(|()| stream.wait_flushed(WRITE_TIME));
        sent.map_err(|error| error.to_string())?;
        thread::sleep(BEFORE_CLOSE);
        Ok(())
    }

    // ------------------------------------------------------------------ the worker

    #[allow(clippy::disallowed_methods, reason = "services are the IO edge")]
    fn work(self: &Arc<Self>, work: &Receiver<Job>, events: &EventReceiver) {
        let mut next_poll = Instant::now();
        // The registry may have lost what it was told in an earlier run.
        self.report_all();
        while !self.stopped() {
            match work.recv_timeout(STOP_POLL) {
                Ok(Job::Act(act)) => self.do_act(act),
                Ok(Job::Check(node)) => self.check_caller(node),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Some(event) = events.try_recv() {
                match event {
                    NodeEvent::Registered { .. } => {
                        self.report_all();
                        next_poll = Instant::now();
                    }
                    NodeEvent::Closed => return,
                    _ => {}
                }
            }
            if Instant::now() >= next_poll {
                next_poll = Instant::now() + self.node.keepalive();
                if self.node.hub_status().is_some_and(|hub| hub.registered) {
                    self.poll();
                }
            }
        }
    }

    /// Tells the registry of everybody whom we trust.
    fn report_all(self: &Arc<Self>) {
        if !self.node.hub_status().is_some_and(|hub| hub.registered) {
            return;
        }
        let reports = self.book().reports();
        for act in reports {
            if self.stopped() {
                return;
            }
            self.do_act(act);
        }
    }

    fn do_act(self: &Arc<Self>, act: Act) {
        let us = self.us().0;
        let (request, signed) = match act {
            Act::Tell { to, kind, reason } => return self.do_tell(to, kind, &reason),
            Act::Respond { to, accept } => (
                json!({ "type": "respond_handshake", "node_id": us, "peer_id": to.0, "accept": accept }),
                format!("respond:{us}:{}", to.0),
            ),
            Act::Report { with } => (
                json!({ "type": "report_trust", "node_id": us, "peer_id": with.0 }),
                format!("report_trust:{us}:{}", with.0),
            ),
            Act::Forget { with } => (
                json!({ "type": "revoke_trust", "node_id": us, "peer_id": with.0 }),
                format!("revoke_trust:{us}:{}", with.0),
            ),
            Act::Dismiss { .. } => return, // done where it was decided
        };
        match self.node.registry_call(request, Some(&signed)) {
            Ok(_) | Err(HubError::NotConfigured) => {}
            Err(error) => tracing::debug!(%error, what = %signed, "the registry did not note it"),
        }
    }

    /// Tells a peer if it can be reached without much ado: it also learns through the registry, or when it calls.
    fn do_tell(self: &Arc<Self>, to: NodeId, kind: Kind, reason: &str) {
        let Some(place) = Place::take(self) else {
            return tracing::info!(%to, ?kind, "not told: too many streams of port 444 are under way");
        };
        let message = self.message(kind, to, "", reason);
        let tell = move || {
            if let Err(error) = place.0.send(to, &message) {
                tracing::info!(%to, ?kind, %error, "not told directly");
            }
        };
        if let Err(error) = thread::Builder::new().name("trust-send".into()).spawn(tell) {
            tracing::warn!(%error, "no thread for a trust message: it is dropped");
        }
    }

    /// Fetches what the registry keeps for us. It forgets it with the reply, so all of it is dealt with.
    pub(super) fn poll(&self) {
        let us = self.us().0;
        let request = json!({ "type": "poll_handshakes", "node_id": us });
        let reply = match self.node.registry_call(request, Some(&format!("poll_handshakes:{us}"))) {
            Ok(reply) => reply,
            Err(error) => return tracing::debug!(%error, "nothing relayed"),
        };
        for request in list(&reply["requests"]) {
            let Some(node) = node_id(&request["from_node_id"]) else { continue };
            let justification = request["justification"].as_str().unwrap_or_default().to_owned();
            let entry = self.look_up(node).unwrap_or_default();
            let network = self.common_network(&entry);
            let incoming = Incoming { node, key: entry.key, justification, relayed: true, network };
            if let Err(error) = self.take_request(incoming) {
                self.tell(TrustEvent::Refused { node, reason: error.to_string() });
            }
        }
        for response in list(&reply["responses"]) {
            let Some(node) = node_id(&response["from_node_id"]) else { continue };
            match self.take_response(node, response["accept"] == Value::Bool(true)) {
                Ok(Some(event)) => self.tell(event),
                Ok(None) => {}
                // The peer has mostly told us itself.
                Err(TrustError::Refused(Refusal::NotAsked)) => tracing::debug!(%node, "an answer too many"),
                Err(error) => self.tell(TrustEvent::Refused { node, reason: error.to_string() }),
            }
        }
    }

    /// An answer that came by the registry.
    fn take_response(&self, node: NodeId, accept: bool) -> Result<Option<TrustEvent>, TrustError> {
        if !accept {
            self.change(|book| book.on_reject(node))?;
            return Ok(Some(TrustEvent::Rejected(node)));
        }
        let key = self.key_of(node);
        let acts = self.change(|book| book.on_accept(now(), node, key))?;
        Ok(acts.map(|acts| {
            self.carry_out(acts);
            TrustEvent::Agreed(node)
        }))
    }

    // ------------------------------------------------------------------ questions to the registry

    /// The node's key: what a tunnel has shown, or what the registry says.
    pub(super) fn key_of(&self, node: NodeId) -> Option<[u8; 32]> {
        let shown = self.node.peer(node).filter(|tunnel| tunnel.authenticated).and_then(|tunnel| tunnel.key);
        shown.or_else(|| self.look_up(node)?.key)
    }

    pub(super) fn look_up(&self, node: NodeId) -> Option<Entry> {
        let reply = self.node.registry_call(json!({ "type": "lookup", "node_id": node.0 }), None).ok()?;
        if node_id(&reply["node_id"]) != Some(node) {
            return None;
        }
        let key = reply["public_key"].as_str().and_then(|text| STANDARD.decode(text).ok()?.try_into().ok());
        let networks = reply["networks"].as_array().map(Vec::as_slice).unwrap_or_default();
        let networks = networks.iter().filter_map(|network| u16::try_from(network.as_u64()?).ok());
        Some(Entry { key, networks: networks.filter(|network| *network != 0).collect() })
    }

    /// A network other than the backbone that we are in, too.
    pub(super) fn common_network(&self, other: &Entry) -> Option<u16> {
        if other.networks.is_empty() {
            return None;
        }
        let ours = self.look_up(self.us())?.networks;
        other.networks.iter().find(|network| ours.contains(network)).copied()
    }
}

fn node_id(value: &Value) -> Option<NodeId> {
    u32::try_from(value.as_u64()?).ok().map(NodeId)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter().take(MAX_RELAYED)
}

/// Reads until there is a whole JSON value, or nothing more comes.
#[allow(clippy::disallowed_methods, reason = "services are the IO edge")]
fn read_message(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + READ_TIME;
    let mut bytes = Vec::new();
    let mut buffer = [0; 2_048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(len) => bytes.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if bytes.len() > MAX_READ || !message::is_incomplete(&bytes) {
            return Ok(bytes);
        }
    }
}
