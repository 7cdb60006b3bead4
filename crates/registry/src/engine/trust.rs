//! Trust between nodes and the relay of handshakes (spec/registry.md §11).
//!
//! A *consent* goes one way: the first lets the second know where it is. It is given by `report_trust` and by accepting;
//! asking somebody is a consent as soon as that one has consented. Two nodes trust each other when both have consented.
//! So nobody gains anything by what it says alone (reference defect A5).
//!
//! The reference's daemons ask a public node directly, and the registry does not hear of it. What it hears is that one
//! looked up where the other is, signed. Such a *call* counts as asking for ten minutes, towards a peer that has given
//! its consent, and is kept in memory only (spec/registry.md §11.4).

use super::rows::Kind;
use super::{ConnState, Context, Engine, Refusal, Row, RowKey};
use pilotage_wire::NodeId;
use pilotage_wire::registry as wire;
use pilotage_wire::registry::{HandshakeRequest, HandshakeResponse, Reply, Request};
use std::time::{Duration, Instant};

/// Longest justification, bytes.
pub(super) const MAX_JUSTIFICATION: usize = 1_024;
/// JSON text of inbox entries that one reply takes, bytes; the others wait for the next poll.
const MAX_POLL: usize = 60_000;
/// Fields of one inbox entry in JSON, at most, bytes.
const ENTRY: usize = 96;

/// How long a call counts.
const CALL_LIFE: Duration = Duration::from_secs(600);
/// A full table of calls is searched for old ones at most this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

const FIRST: NodeId = NodeId(0);
const LAST: NodeId = NodeId(u32::MAX);

impl Engine {
    /// What `from` has said about `to`: `None`, asked (`false`), or given (`true`).
    fn consent(&self, from: NodeId, to: NodeId) -> Option<bool> {
        match self.rows.get(&RowKey::Consent(from, to)) {
            Some(Row::Consent { given }) => Some(*given),
            _ => None,
        }
    }

    /// `from` has lately looked up where `to` is.
    fn has_called(&self, from: NodeId, to: NodeId, now: Instant) -> bool {
        self.calls.get(&(from, to)).is_some_and(|at| now.duration_since(*at) < CALL_LIFE)
    }

    /// Remembers a call, if there is room: it only makes things easier.
    pub(super) fn note_call(&mut self, from: NodeId, to: NodeId, now: Instant) {
        if from == to {
            return;
        }
        self.tell_call(from, to);
        self.remember_call(from, to, now);
    }

    /// Of another node of the cluster, or our own.
    pub(super) fn remember_call(&mut self, from: NodeId, to: NodeId, now: Instant) {
        let full = self.calls.len() >= self.config.social.calls;
        if full && !self.calls.contains_key(&(from, to)) {
            let due = self.calls_swept.is_none_or(|at| now.duration_since(at) >= SWEEP_INTERVAL);
            if due {
                self.calls_swept = Some(now);
                self.calls.retain(|_, at| now.duration_since(*at) < CALL_LIFE);
            }
            if self.calls.len() >= self.config.social.calls {
                return;
            }
        }
        self.calls.insert((from, to), now);
    }

    /// `from` lets `to` know where it is.
    pub(super) fn consents(&self, from: NodeId, to: NodeId, now: Instant) -> bool {
        match (self.consent(from, to), self.consent(to, from)) {
            (Some(true), _) | (Some(false), Some(_)) => true,
            (None, Some(true)) => self.has_called(from, to, now),
            _ => false,
        }
    }

    /// Both have consented.
    pub(super) fn trusted(&self, a: NodeId, b: NodeId, now: Instant) -> bool {
        match (self.consent(a, b), self.consent(b, a)) {
            (Some(_), Some(_)) => true,
            (Some(true), None) => self.has_called(b, a, now),
            (None, Some(true)) => self.has_called(a, b, now),
            _ => false,
        }
    }

    fn give_consent(&mut self, from: NodeId, to: NodeId, given: bool) -> Result<(), Refusal> {
        let old = self.consent(from, to);
        if old.is_none() {
            let bounds = &self.config.social;
            if self.rows.count(Kind::Consent) >= bounds.consents {
                return Err(Refusal::TooMany("the registry keeps no more trust; revoke some"));
            }
            let own = self.rows.range(RowKey::Consent(from, FIRST), RowKey::Consent(from, LAST));
            if own.take(bounds.consents_per_node).count() >= bounds.consents_per_node {
                return Err(Refusal::TooMany("this node trusts too many others; revoke some"));
            }
        }
        let given = given || old == Some(true);
        self.put_row(RowKey::Consent(from, to), Row::Consent { given })
    }

    /// The peer of a pair: another node, known here.
    fn check_peer(&self, id: NodeId, peer: NodeId) -> Result<(), Refusal> {
        if id == peer {
            return Err(Refusal::Oneself);
        }
        self.table.get(peer).map(drop).ok_or(Refusal::NotVisible(peer))
    }

    pub(super) fn report_trust(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        pair: &wire::TrustPair,
    ) -> Result<Reply, Refusal> {
        let id = self.authorize(ctx, conn, request)?;
        self.check_peer(id, pair.peer_id)?;
        self.give_consent(id, pair.peer_id, true)?;
        Ok(Reply::TrustReported)
    }

    /// Either side ends it for both.
    pub(super) fn revoke_trust(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        pair: &wire::TrustPair,
    ) -> Result<Reply, Refusal> {
        let id = self.authorize(ctx, conn, request)?;
        let peer = pair.peer_id;
        let own = self.remove_row(RowKey::Consent(id, peer))?;
        let theirs = self.remove_row(RowKey::Consent(peer, id))?;
        if own || theirs { Ok(Reply::TrustRevoked) } else { Err(Refusal::NoTrust(id, peer)) }
    }

    /// Not signed by the reference, so it is answered only to the network address of one of the two.
    pub(super) fn check_trust(&self, ctx: &Context<'_>, pair: &wire::TrustPair) -> Reply {
        let (a, b) = (pair.node_id, pair.peer_id);
        let concerned = self.comes_from(ctx, a) || self.comes_from(ctx, b);
        Reply::Trust { trusted: concerned && self.trusted(a, b, ctx.now) }
    }

    pub(super) fn request_handshake(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        asked: &wire::RequestHandshake,
    ) -> Result<Reply, Refusal> {
        let id = self.authorize(ctx, conn, request)?;
        let peer = asked.to_node_id;
        self.check_peer(id, peer)?;
        if asked.justification.len() > MAX_JUSTIFICATION {
            return Err(Refusal::BadArgument("justification is longer than 1024 bytes"));
        }
        let key = RowKey::Request(peer, id);
        if self.rows.get(&key).is_some() {
            return Err(Refusal::AskedAlready(peer));
        }
        // Two entries at most: the request, and the answer that the peer has given before it was asked.
        self.check_inbox(RowKey::Request(peer, FIRST), RowKey::Request(peer, LAST))?;
        self.give_consent(id, peer, false)?;
        let justification = asked.justification.as_str().into();
        self.put_row(key, Row::Request { justification, at: ctx.unix })?;
        if self.consent(peer, id) == Some(true) {
            self.put_row(RowKey::Response(id, peer), Row::Response { accept: true, at: ctx.unix })?;
        }
        Ok(Reply::HandshakeRequested { status: "delivered".to_owned() })
    }

    fn check_inbox(&self, first: RowKey, last: RowKey) -> Result<(), Refusal> {
        let bounds = &self.config.social;
        if self.rows.count(Kind::Inbox) >= bounds.inbox {
            return Err(Refusal::TooMany("the registry's inboxes are full; retry later"));
        }
        if self.rows.range(first, last).count() >= bounds.inbox_per_node {
            return Err(Refusal::TooMany("the inbox of that node is full; retry later"));
        }
        Ok(())
    }

    /// What is told is removed, in the same transaction.
    pub(super) fn poll_handshakes(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
    ) -> Result<Reply, Refusal> {
        let id = self.authorize(ctx, conn, request)?;
        let (mut requests, mut responses, mut told) = (Vec::new(), Vec::new(), Vec::new());
        let mut size = 0;
        let answers = self.rows.range(RowKey::Response(id, FIRST), RowKey::Response(id, LAST));
        let questions = self.rows.range(RowKey::Request(id, FIRST), RowKey::Request(id, LAST));
        for (key, row) in answers.chain(questions) {
            size += ENTRY;
            if let Row::Request { justification, .. } = row {
                size += escaped_len(justification);
            }
            if size > MAX_POLL {
                break;
            }
            match (*key, row) {
                (RowKey::Request(_, from_node_id), Row::Request { justification, at }) => {
                    let justification = justification.to_string();
                    requests.push(HandshakeRequest { from_node_id, justification, timestamp: *at });
                }
                (RowKey::Response(_, from_node_id), Row::Response { accept, at }) => {
                    responses.push(HandshakeResponse { from_node_id, accept: *accept, timestamp: *at });
                }
                _ => continue,
            }
            told.push(*key);
        }
        for key in told {
            self.remove_row(key)?;
        }
        Ok(Reply::Handshakes { requests, responses })
    }

    /// An acceptance that nobody has asked for waits as a consent, and is delivered when the peer asks.
    pub(super) fn respond_handshake(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        answer: &wire::RespondHandshake,
    ) -> Result<Reply, Refusal> {
        let id = self.authorize(ctx, conn, request)?;
        let (peer, accept) = (answer.peer_id, answer.accept);
        self.check_peer(id, peer)?;
        let asked = self.consent(peer, id).is_some() || self.has_called(peer, id, ctx.now);
        if asked {
            self.check_inbox(RowKey::Response(peer, FIRST), RowKey::Response(peer, LAST))?;
        }
        if accept {
            self.give_consent(id, peer, true)?;
        } else {
            self.remove_row(RowKey::Consent(id, peer))?;
            self.remove_row(RowKey::Consent(peer, id))?;
        }
        self.remove_row(RowKey::Request(id, peer))?;
        if asked {
            self.put_row(RowKey::Response(peer, id), Row::Response { accept, at: ctx.unix })?;
        }
        Ok(Reply::HandshakeAnswered { accept, peer_id: peer })
    }
}

/// Bytes of a text inside a JSON string, at most.
pub(super) fn escaped_len(text: &str) -> usize {
    let cost = |byte: u8| if byte < 0x20 { 6 } else { 1 + usize::from(byte == b'"' || byte == b'\\') };
    text.bytes().map(cost).sum()
}
