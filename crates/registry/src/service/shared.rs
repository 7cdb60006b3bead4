//! The service of a hub whose registry is a cluster's (`spec/cluster.md §10`).
//!
//! One batch of this node is on its way at a time. Requests that come meanwhile wait for the next: all of them are decided one
//! after the other upon what the ones before would change, then everything is undone and proposed. Questions are answered at
//! once from what was agreed; one that would be refused for want of knowledge waits until the node has caught up, once.

use super::{MAX_BATCH, Service, Session, Surroundings, context};
use crate::engine::{ConnState, Outcome, changes};
use crate::ledger::{self, Key, Ledger, Value, Verdict};
use pilotage_wire::registry::{Reply, Request};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// How often a request is decided anew because another hub was faster.
pub const MAX_TRIES: u8 = 16;
/// Room that is left in a batch for the next transaction, bytes: none is longer.
const MAX_TRANSACTION: usize = 64 << 10;
/// Most requests that wait for a batch; further ones are told that the registry is busy.
const MAX_PARKED: usize = 16_384;
const CROWDED: &str = "registry is busy: too many changes wait for the other hubs; try again in a moment";
const BUSY: &str = "registry is busy: other hubs change the same thing all the time; try again in a moment";
const FULL: &str = "registry is full; ask its operator";

/// A request that was answered after its turn.
#[derive(Debug)]
pub struct Finished {
    /// Of [`Service::decide`].
    pub conn: usize,
    /// To be sent if [`Session::resume`] says that it is this session's.
    pub reply: Reply,
    pub(super) ticket: u64,
    pub(super) state: ConnState,
}

/// A request that waits. There is one per session at most.
#[derive(Debug)]
struct Waiter {
    conn: usize,
    ticket: u64,
    source: IpAddr,
    request: Request,
    /// The session's state that the request met.
    state: ConnState,
    caught_up: bool,
    tries: u8,
}

/// A request whose batch is on its way, with its outcome if the batch is applied.
#[derive(Debug)]
struct Flying {
    waiter: Waiter,
    reply: Reply,
    state: ConnState,
    /// It has a transaction of its own.
    writes: bool,
}

enum Event {
    Decided(Result<Vec<Verdict>, String>),
    CaughtUp(u64),
}

pub(super) struct Shared {
    ledger: Arc<dyn Ledger>,
    wake: Arc<dyn Fn() + Send + Sync>,
    revision: u64,
    next_ticket: u64,
    /// Wait for the next batch.
    parked: VecDeque<Waiter>,
    flight: Option<Vec<Flying>>,
    /// Wait until the node has caught up.
    late: HashMap<u64, Waiter>,
    done: Vec<Finished>,
    events: Receiver<Event>,
    sender: Sender<Event>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("revision", &self.revision).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn is_writable(&self) -> bool {
        self.ledger.is_writable()
    }

    fn finish(&mut self, waiter: Waiter, reply: Reply, state: ConnState) {
        self.done.push(Finished { conn: waiter.conn, reply, ticket: waiter.ticket, state });
    }

    /// Gives the waiter back if too many wait already.
    fn wait_to_catch_up(&mut self, waiter: Waiter) -> Option<Waiter> {
        let ticket = waiter.ticket;
        let (sender, wake) = (self.sender.clone(), self.wake.clone());
        let then = move || {
            // The service has ended otherwise.
            if sender.send(Event::CaughtUp(ticket)).is_ok() {
                wake();
            }
        };
        if !self.ledger.catch_up(Box::new(then)) {
            return Some(waiter);
        }
        self.late.insert(ticket, waiter);
        None
    }
}

impl Service {
    /// From now on the state is that of `ledger`, and nothing is written into the store. `wake` is called, from any thread, when
    /// [`Service::receive`] has something to do. For a service that has no nodes of its own.
    pub fn share(
        &mut self,
        ledger: Arc<dyn Ledger>,
        wake: Arc<dyn Fn() + Send + Sync>,
        env: &Surroundings<'_>,
    ) {
        ledger.wake_by(wake.clone());
        let (sender, events) = channel();
        self.shared = Some(Box::new(Shared {
            ledger,
            wake,
            // Ahead of any: the first question gets everything.
            revision: u64::MAX,
            next_ticket: 0,
            parked: VecDeque::new(),
            flight: None,
            late: HashMap::new(),
            done: Vec::new(),
            events,
            sender,
        }));
        self.engine.share();
        self.absorb(env);
    }

    /// Whether the state is a cluster's.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// No nodes and no networks: nothing that a cluster could contradict.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.engine.nodes() == 0 && self.store.rows().is_ok_and(|rows| rows.is_empty())
    }

    /// Requests that are answered later. At most one per session.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| {
            shared.parked.len() + shared.late.len() + shared.flight.as_ref().map_or(0, Vec::len)
        })
    }

    /// Takes over what the cluster has agreed on and what others have seen. At the beginning of each turn.
    pub fn receive(&mut self, env: &Surroundings<'_>) {
        let Some(shared) = &mut self.shared else { return };
        // First the events: what they speak of is among the changes that are read after.
        let events: Vec<Event> = shared.events.try_iter().collect();
        let notices = shared.ledger.heard();
        self.absorb(env);
        debug_assert!(self.engine.staged().next().is_none());
        for notice in &notices {
            self.engine.heed(notice, env.now);
        }
        for event in events {
            match event {
                Event::Decided(Ok(verdicts)) => self.decided(env, &verdicts),
                Event::Decided(Err(reason)) => self.refuse_all(env, &reason),
                Event::CaughtUp(ticket) => {
                    let waiter = self.shared.as_mut().and_then(|shared| shared.late.remove(&ticket));
                    if let Some(waiter) = waiter {
                        self.decide_waiter(env, Waiter { caught_up: true, ..waiter });
                    }
                }
            }
        }
    }

    fn absorb(&mut self, env: &Surroundings<'_>) {
        let Some(shared) = &mut self.shared else { return };
        if shared.ledger.revision() == shared.revision {
            return;
        }
        let changes = shared.ledger.changes(shared.revision);
        shared.revision = changes.revision;
        self.keys.put(changes.values.iter().filter_map(|change| match change {
            (Key::Node(id), Some(Value::Node(record))) => Some((*id, record.public_key)),
            _ => None,
        }));
        self.engine.absorb(changes, env.now);
    }

    pub(super) fn decide_shared(
        &mut self,
        env: &Surroundings<'_>,
        conn: usize,
        session: &mut Session,
        request: Request,
    ) {
        let source = session.source;
        if let Some(refused) = self.engine.charge(&context(env, source), &request) {
            return self.push(conn, session, Some(request), refused.reply, false);
        }
        let mut state = session.state.clone();
        let early = (!changes(&request)).then(|| self.look(env, source, &mut state, &request)).flatten();
        if let Some(outcome) = early.as_ref().filter(|outcome| !is_behind(outcome)) {
            let reply = outcome.reply.clone();
            self.push(conn, session, Some(request), reply, false);
            session.state = state;
            return;
        }
        let Some(shared) = &mut self.shared else { return };
        if shared.parked.len() >= MAX_PARKED {
            return self.push(conn, session, Some(request), Reply::error(CROWDED), false);
        }
        shared.next_ticket += 1;
        session.ticket = Some(shared.next_ticket);
        let (ticket, before) = (shared.next_ticket, session.state.clone());
        let waiter = Waiter { conn, ticket, source, request, state: before, caught_up: false, tries: 0 };
        match early {
            Some(outcome) => self.answer(waiter, outcome, state),
            None => self.park(waiter),
        }
    }

    /// The outcome of a request that changes nothing; `None` if it changes something.
    fn look(
        &mut self,
        env: &Surroundings<'_>,
        source: IpAddr,
        state: &mut ConnState,
        request: &Request,
    ) -> Option<Outcome> {
        let outcome = self.engine.reapply(&context(env, source), state, request);
        if outcome.wrote {
            self.engine.rollback();
            return None;
        }
        Some(outcome)
    }

    /// A question of this node's own, asked again after it has caught up; changes wait for their batch.
    fn decide_waiter(&mut self, env: &Surroundings<'_>, waiter: Waiter) {
        let mut state = waiter.state.clone();
        let asks = !changes(&waiter.request);
        match asks.then(|| self.look(env, waiter.source, &mut state, &waiter.request)).flatten() {
            Some(outcome) => self.answer(waiter, outcome, state),
            None => self.park(waiter),
        }
    }

    fn park(&mut self, waiter: Waiter) {
        if let Some(shared) = &mut self.shared {
            shared.parked.push_back(waiter);
        }
    }

    /// For a request that changed nothing.
    fn answer(&mut self, waiter: Waiter, outcome: Outcome, state: ConnState) {
        let Some(shared) = &mut self.shared else { return };
        if waiter.caught_up || !is_behind(&outcome) {
            return shared.finish(waiter, outcome.reply, state);
        }
        if let Some(waiter) = shared.wait_to_catch_up(waiter) {
            shared.finish(waiter, outcome.reply, state);
        }
    }

    /// Decides what waits and proposes the changes, if no batch is on its way.
    pub(super) fn propose(&mut self, env: &Surroundings<'_>) {
        let (mut flight, mut transactions, mut size) = (Vec::new(), Vec::new(), 0);
        while flight.len() < MAX_BATCH && size + MAX_TRANSACTION <= ledger::MAX_BATCH {
            let Some(shared) = self.shared.as_mut().filter(|shared| shared.flight.is_none()) else { return };
            let Some(waiter) = shared.parked.pop_front() else { break };
            let mark = self.engine.mark();
            let mut state = waiter.state.clone();
            let context = context(env, waiter.source);
            let outcome = self.engine.reapply(&context, &mut state, &waiter.request);
            let transaction = self.engine.transaction(mark, &waiter.request);
            if transaction.is_none() && transactions.is_empty() {
                self.answer(waiter, outcome, state);
                continue;
            }
            let writes = transaction.is_some();
            size += transaction.as_ref().map_or(0, ledger::Transaction::size);
            transactions.extend(transaction);
            flight.push(Flying { waiter, reply: outcome.reply, state, writes });
        }
        self.engine.rollback();
        let Some(shared) = self.shared.as_mut().filter(|_| !flight.is_empty()) else { return };
        shared.flight = Some(flight);
        let (sender, wake) = (shared.sender.clone(), shared.wake.clone());
        let decided = move |result| {
            if sender.send(Event::Decided(result)).is_ok() {
                wake();
            }
        };
        shared.ledger.propose(transactions, Box::new(decided));
    }

    fn decided(&mut self, env: &Surroundings<'_>, verdicts: &[Verdict]) {
        let Some(shared) = &mut self.shared else { return };
        let flight = shared.flight.take().unwrap_or_default();
        if flight.iter().filter(|flying| flying.writes).count() != verdicts.len() {
            shared.flight = Some(flight);
            return self.refuse_all(env, "an answer that cannot be read");
        }
        self.commits += 1;
        let all = verdicts.iter().all(|verdict| *verdict == Verdict::Applied);
        let mut verdicts = verdicts.iter();
        let mut again = Vec::new();
        for Flying { waiter, reply, state, writes } in flight {
            // What only looked at changes of the others depends on all of them.
            let own = if writes { verdicts.next().copied() } else { None };
            let verdict = own.unwrap_or(if all { Verdict::Applied } else { Verdict::Conflict });
            let text = match verdict {
                Verdict::Applied => {
                    self.engine.saw_actor(&waiter.request, env.now);
                    None
                }
                Verdict::Conflict if waiter.tries < MAX_TRIES => {
                    again.push(Waiter { tries: waiter.tries + 1, ..waiter });
                    continue;
                }
                Verdict::Conflict => Some(BUSY),
                Verdict::Full => Some(FULL),
                Verdict::Malformed => {
                    tracing::error!(kind = waiter.request.kind(), "the cluster does not understand a change");
                    Some(
                        "the hubs of this registry do not understand each other; run the same version on all",
                    )
                }
            };
            let Some(shared) = &mut self.shared else { return };
            match text {
                None => shared.finish(waiter, reply, state),
                Some(text) => shared.finish(waiter, Reply::error(text), state),
            }
        }
        let Some(shared) = &mut self.shared else { return };
        for waiter in again.into_iter().rev() {
            shared.parked.push_front(waiter);
        }
    }

    /// No majority: everybody who waits for a change is told so. What needs none after all is served.
    fn refuse_all(&mut self, env: &Surroundings<'_>, reason: &str) {
        self.store_failures += 1;
        let Some(shared) = &mut self.shared else { return };
        let text = format!(
            "registry takes no changes now ({reason}); the change may or may not have been made, look-ups go on, try again later"
        );
        let flight = shared.flight.take().unwrap_or_default().into_iter().map(|flying| flying.waiter);
        let waiters: Vec<Waiter> = flight.chain(shared.parked.drain(..)).collect();
        for waiter in waiters {
            let mut state = waiter.state.clone();
            let context = context(env, waiter.source);
            let reply = self.engine.refuse_change(&context, &mut state, &waiter.request, &text).reply;
            let Some(shared) = &mut self.shared else { return };
            shared.finish(waiter, reply, state);
        }
    }

    /// Requests of earlier turns that are answered now. After [`Service::commit`].
    pub fn finished(&mut self) -> Vec<Finished> {
        self.shared.as_mut().map(|shared| std::mem::take(&mut shared.done)).unwrap_or_default()
    }

    /// Tells the other nodes who gave a sign of life. About once a second.
    pub fn tell(&mut self) {
        if let Some(shared) = &self.shared
            && let Some(notice) = self.engine.take_notice()
        {
            shared.ledger.tell(&notice);
        }
    }
}

/// Refused for a reason that may not hold any more, or not here.
fn is_behind(outcome: &Outcome) -> bool {
    outcome.refused.as_ref().is_some_and(crate::engine::Refusal::may_be_behind)
}
