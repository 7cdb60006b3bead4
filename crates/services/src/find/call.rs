//! Carrying a call out, with another provider when one fails or is slow.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use pilotage_discover::Tag;
use pilotage_discover::evidence::{Book, Experience};
use pilotage_discover::plan::{Attempt, Began, Candidate, Next, Plan, Stop};
use pilotage_discover::wire::{CallHead, CallReply, MAX_BODY, MAX_REQUEST};

use super::ask::Provider;
use super::host::GO;
use super::{CALL_PORT, Reach, frame, unix_seconds};
use crate::duplex::{Duplex, Io};

/// How to call.
#[derive(Debug, Clone)]
pub struct CallOptions {
    /// To do it twice does no harm, whoever does it.
    pub idempotent: bool,
    /// Providers to try at most.
    pub attempts: usize,
    /// How long one of them may take.
    pub time: Duration,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self { idempotent: false, attempts: 4, time: Duration::from_secs(30) }
    }
}

/// A call that was served.
#[derive(Debug, Clone)]
pub struct Served {
    /// Place of the provider in the list.
    pub by: usize,
    /// What it gave.
    pub result: Vec<u8>,
    /// What failed before.
    pub attempts: Vec<Attempt>,
    /// How long the last one took.
    pub took: Duration,
}

/// A call that was not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{stop}")]
pub struct CallFailed {
    /// Why no other provider was tried.
    pub stop: Stop,
    /// What failed.
    pub attempts: Vec<Attempt>,
}

/// Calls `tag` with `body` at the best of `providers`; at the next one when it fails, and beside it when it takes longer
/// than almost all did before, each where that is safe (`pilotage_discover::plan`). `book` learns what happened; `observer`
/// is told of each failure as it happens.
///
/// # Errors
/// Nobody served it; a body above [`MAX_BODY`] is refused by every provider.
pub fn call(
    reach: &Arc<dyn Reach>,
    providers: &[Provider],
    tag: &Tag,
    body: &[u8],
    options: &CallOptions,
    book: &mut Book,
    observer: &mut dyn FnMut(&Attempt),
) -> Result<Served, CallFailed> {
    let now = unix_seconds();
    let candidates = providers.iter().map(|provider| {
        let card = provider.hit.card.card();
        let skill = card.declaration.skill_for(tag);
        Candidate {
            key: card.key,
            idempotent: skill.is_some_and(|skill| skill.idempotent),
            left_alone_for: book.left_alone_for(&card.key, now),
        }
    });
    let plan = Plan::new(candidates.collect(), options.idempotent, options.attempts);
    let (say, said) = channel();
    let work = Work { reach: reach.clone(), tag: tag.clone(), body: body.into(), time: options.time, say };
    let mut calling =
        Calling { providers, plan, work, begun: HashMap::new(), beside_at: None, book, observer };
    loop {
        if let Some(stop) = calling.try_next() {
            return Err(CallFailed { stop, attempts: calling.plan.attempts().to_vec() });
        }
        loop {
            let said = match calling.beside_at {
                Some(at) => said.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => said.recv().map_err(RecvTimeoutError::from),
            };
            match said {
                Ok(said) => match calling.hear(said) {
                    Heard::Served(served) => return Ok(*served),
                    Heard::Failed => break,
                    Heard::GoesOn => {}
                },
                // Waited for long enough: another one beside.
                Err(_) => break,
            }
        }
    }
}

/// What all attempts of a call share.
#[derive(Clone)]
struct Work {
    reach: Arc<dyn Reach>,
    tag: Tag,
    body: Arc<[u8]>,
    time: Duration,
    say: Sender<Said>,
}

/// What an attempt tells the one that waits.
enum Said {
    /// It is about to give the go-ahead, and does so if the answer is yes.
    MayGo(usize, SyncSender<bool>),
    /// It ended.
    Done(usize, Result<Vec<u8>, (Began, String)>),
}

enum Heard {
    Served(Box<Served>),
    Failed,
    GoesOn,
}

struct Calling<'a> {
    providers: &'a [Provider],
    plan: Plan,
    work: Work,
    /// When each attempt began, and when it got the go-ahead.
    begun: HashMap<usize, (Instant, Option<Instant>)>,
    /// When another one is tried beside those that run.
    beside_at: Option<Instant>,
    book: &'a mut Book,
    observer: &'a mut dyn FnMut(&Attempt),
}

impl Calling<'_> {
    /// Starts the next attempt if there is one; why not, if nothing runs.
    fn try_next(&mut self) -> Option<Stop> {
        self.beside_at = None;
        loop {
            let (at, ask_first) = match self.plan.next() {
                Next::Try { candidate, ask_first } => (candidate, ask_first),
                Next::Wait => return None,
                Next::Stop(stop) => return Some(stop),
            };
            self.plan.started(at);
            let now = Instant::now();
            self.begun.insert(at, (now, None));
            self.beside_at = now.checked_add(Duration::from_micros(self.book.latencies.hedge_connect()));
            let (work, provider) = (self.work.clone(), self.providers[at].clone());
            // It ends by itself: connecting and reading are bounded in time.
            let run = move || {
                let result = attempt(&work, &provider, at, ask_first);
                let _ = work.say.send(Said::Done(at, result));
            };
            match thread::Builder::new().name("call".into()).spawn(run) {
                Ok(_) => return None,
                Err(error) => self.failed(at, Began::No, format!("no thread: {error}")),
            }
        }
    }

    fn hear(&mut self, said: Said) -> Heard {
        let now = Instant::now();
        match said {
            Said::MayGo(at, answer) => {
                let goes = self.plan.may_go(at);
                if let Some((begun, went)) = self.begun.get_mut(&at)
                    && goes
                {
                    *went = Some(now);
                    self.book.latencies.connected(micros(now - *begun));
                    let late = self.book.latencies.hedge_served(&self.work.tag);
                    self.beside_at = late.and_then(|late| now.checked_add(Duration::from_micros(late)));
                }
                // Whoever asked is waiting for it.
                let _ = answer.send(goes);
                Heard::GoesOn
            }
            Said::Done(at, Ok(result)) => Heard::Served(Box::new(self.served(at, result, now))),
            Said::Done(at, Err((began, reason))) => {
                self.failed(at, began, reason);
                Heard::Failed
            }
        }
    }

    fn served(&mut self, at: usize, result: Vec<u8>, now: Instant) -> Served {
        let (begun, went) = self.begun.get(&at).copied().unwrap_or((now, None));
        self.book.latencies.served(&self.work.tag, micros(now - went.unwrap_or(begun)));
        let key = self.providers[at].hit.card.card().key;
        self.book.note(&key, Experience::Succeeded, unix_seconds());
        // Those that were waited for in vain: they are no failures, and yet the next call need not wait for them again.
        let late: Vec<(usize, bool)> = self.plan.running().filter(|(other, _)| *other != at).collect();
        for (other, went) in late {
            let key = self.providers[other].hit.card.card().key;
            self.book.note(&key, Experience::Missed, unix_seconds());
            let began = if went { Began::Perhaps } else { Began::No };
            self.end(other, began, "another one was quicker".to_owned());
        }
        Served { by: at, result, attempts: self.plan.attempts().to_vec(), took: now - begun }
    }

    fn failed(&mut self, at: usize, began: Began, reason: String) {
        let key = self.providers[at].hit.card.card().key;
        self.book.note(&key, Experience::Failed, unix_seconds());
        self.end(at, began, reason);
    }

    fn end(&mut self, at: usize, began: Began, reason: String) {
        let took = self.begun.get(&at).map_or(Duration::ZERO, |(begun, _)| begun.elapsed());
        self.plan.failed(at, began, reason, micros(took) / 1_000);
        if let Some(last) = self.plan.attempts().last() {
            (self.observer)(last);
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// One provider. Up to the go-ahead every failure is provably before the beginning.
fn attempt(work: &Work, provider: &Provider, at: usize, ask_first: bool) -> Result<Vec<u8>, (Began, String)> {
    let not_begun = |error: io::Error| (Began::No, error.to_string());
    let perhaps = |error: io::Error| (Began::Perhaps, error.to_string());
    let body = &*work.body;
    if body.len() > MAX_BODY {
        return Err((Began::No, format!("the data have {} bytes, more than 4 MiB", body.len())));
    }
    let deadline = Instant::now() + work.time;
    let reached = work.reach.reach(&provider.peer, CALL_PORT);
    let (stream, from) = reached.map_err(|error| (Began::No, error.text))?;
    if from.node != provider.hit.card.card().address.node {
        return Err((Began::No, format!("{from} answers in its place")));
    }
    let stream: &dyn Duplex = &*stream;
    let id = call_id().map_err(not_begun)?;
    let head = CallHead { tag: work.tag.to_string(), id, ask_first, length: body.len() }.encode();
    let mut bytes = Vec::with_capacity(4 + head.len() + body.len());
    bytes.extend_from_slice(&(head.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&head);
    bytes.extend_from_slice(body);
    stream.set_nodelay(true).map_err(not_begun)?;
    Io(stream).write_all(&bytes).map_err(not_begun)?;
    if ask_first {
        match reply(stream, deadline).map_err(not_begun)? {
            CallReply::Ready => {}
            CallReply::Refused { reason } => return Err((Began::No, format!("refused: {reason}"))),
            _ => return Err((Began::Perhaps, "it did not wait for the go-ahead".into())),
        }
    }
    let (answer, may_go) = sync_channel(1);
    let asked = work.say.send(Said::MayGo(at, answer));
    if asked.is_err() || !may_go.recv().unwrap_or(false) {
        return Err((Began::No, "another one has the go-ahead".into()));
    }
    Io(stream).write_all(&[GO]).map_err(perhaps)?;
    match reply(stream, deadline).map_err(perhaps)? {
        CallReply::Done { length } => frame::body(stream, length, deadline).map_err(perhaps),
        CallReply::Refused { reason } => Err((Began::No, format!("refused: {reason}"))),
        CallReply::Failed { reason } => Err((Began::Yes, format!("failed: {reason}"))),
        CallReply::Ready => Err((Began::Perhaps, "it asked twice".into())),
    }
}

fn reply(stream: &dyn Duplex, deadline: Instant) -> io::Result<CallReply> {
    let bytes = frame::read(stream, MAX_REQUEST, deadline)?;
    CallReply::decode(&bytes).map_err(io::Error::other)
}

/// A random name of the call, for the logs of both sides.
fn call_id() -> io::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
