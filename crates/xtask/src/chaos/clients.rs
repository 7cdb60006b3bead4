//! Clients that race: each name is claimed by three of them, over whichever node answers; and clients that look up.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Failure;

/// How long a client waits for a node.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a look-up waits for a node: it needs nobody else.
const LOOKUP_PATIENCE: Duration = Duration::from_millis(500);
/// Clients that race for one name.
const RACERS: u64 = 3;
/// Clients that only look up.
const LOOKERS: u64 = 2;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Claim,
    /// A look-up that must see everything that was acknowledged before.
    Fresh,
    /// A look-up at one node.
    Lookup,
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Granted,
    /// To a claim: taken by this one. To a look-up: the holder.
    Holder(Option<u64>),
    /// Nothing certain.
    Unknown,
}

/// One question of one client. Times count from the beginning, by one clock for all.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) name: u64,
    /// Who claims; 0 for look-ups.
    pub(super) owner: u64,
    pub(super) start: Duration,
    pub(super) end: Duration,
    pub(super) answer: Answer,
}

impl Record {
    pub(super) fn answered(&self) -> bool {
        self.answer != Answer::Unknown
    }

    pub(super) fn granted(&self) -> bool {
        self.kind == Kind::Claim && self.answer == Answer::Granted
    }
}

/// What all clients know.
pub(super) struct Plan {
    pub(super) begin: Instant,
    pub(super) until: Instant,
    pub(super) controls: Vec<SocketAddr>,
    /// Same for all claims: asking twice is then the same claim.
    pub(super) expires: u64,
    pub(super) pause: Duration,
}

/// Clients at work.
pub(super) struct Work(Vec<JoinHandle<Vec<Record>>>);

pub(super) fn start(plan: Arc<Plan>, clients: u64) -> Result<Work, Failure> {
    let next = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    for client in 0..clients + LOOKERS {
        let (plan, next) = (plan.clone(), next.clone());
        let work = move || {
            let client = Client { owner: client + 1, nodes: Nodes::new(&plan.controls, client), plan: &plan };
            if client.owner > clients { client.look(&next) } else { client.claim(&next) }
        };
        threads.push(std::thread::Builder::new().spawn(work)?);
    }
    Ok(Work(threads))
}

impl Work {
    pub(super) fn finish(self) -> Result<Vec<Record>, Failure> {
        let mut all = Vec::new();
        for thread in self.0 {
            all.extend(thread.join().map_err(|_| "a client panicked")?);
        }
        Ok(all)
    }
}

struct Client<'a> {
    owner: u64,
    nodes: Nodes,
    plan: &'a Plan,
}

impl Client<'_> {
    fn claim(mut self, next: &AtomicU64) -> Vec<Record> {
        let mut records = Vec::new();
        while Instant::now() < self.plan.until {
            let name = next.fetch_add(1, Ordering::Relaxed) / RACERS;
            let begun = Instant::now();
            let question = json!({ "op": "claim", "name": text(name), "owner": self.owner, "expires": self.plan.expires });
            records.push(self.record(Kind::Claim, name, self.owner, |nodes| {
                let reply = nodes.ask(&question, PATIENCE)?;
                if reply.get("granted").is_some_and(Value::is_u64) {
                    return Some(Answer::Granted);
                }
                reply.get("taken").map(|holder| Answer::Holder(holder.as_u64()))
            }));
            if records.len().is_multiple_of(8) {
                records.push(self.fresh(name));
            }
            std::thread::sleep(self.plan.pause.saturating_sub(begun.elapsed()));
        }
        records
    }

    fn fresh(&mut self, name: u64) -> Record {
        let question = json!({ "op": "get", "name": text(name), "fresh": true });
        self.record(Kind::Fresh, name, 0, |nodes| holder(&nodes.ask(&question, PATIENCE)?))
    }

    /// Look-ups go on while no claim can be made: every node answers from what it has.
    fn look(mut self, next: &AtomicU64) -> Vec<Record> {
        let mut records = Vec::new();
        while Instant::now() < self.plan.until {
            let name = (next.load(Ordering::Relaxed) / RACERS).saturating_sub(200);
            let question = json!({ "op": "get", "name": text(name) });
            records.push(self.record(Kind::Lookup, name, 0, |nodes| {
                // A client asks the next replica at once.
                (0..nodes.count())
                    .find_map(|_| nodes.ask(&question, LOOKUP_PATIENCE).and_then(|reply| holder(&reply)))
            }));
            std::thread::sleep(Duration::from_millis(5));
        }
        records
    }

    fn record(
        &mut self,
        kind: Kind,
        name: u64,
        owner: u64,
        ask: impl FnOnce(&mut Nodes) -> Option<Answer>,
    ) -> Record {
        let start = self.plan.begin.elapsed();
        let answer = ask(&mut self.nodes).unwrap_or(Answer::Unknown);
        Record { kind, name, owner, start, end: self.plan.begin.elapsed(), answer }
    }
}

/// A hostname of the number.
pub(super) fn text(name: u64) -> String {
    format!("chaos-{name}")
}

fn holder(reply: &Value) -> Option<Answer> {
    let holder = reply.get("holder")?;
    Some(Answer::Holder(holder.as_u64()))
}

/// Connections to all nodes; the one that fails is left for the next.
pub(super) struct Nodes {
    controls: Vec<SocketAddr>,
    at: usize,
    open: Option<BufReader<TcpStream>>,
}

impl Nodes {
    pub(super) fn new(controls: &[SocketAddr], first: u64) -> Self {
        Self { controls: controls.to_vec(), at: first as usize, open: None }
    }

    fn count(&self) -> usize {
        self.controls.len()
    }

    /// `None`: no answer, or one that says that there is none. The next question goes to the next node.
    pub(super) fn ask(&mut self, question: &Value, patience: Duration) -> Option<Value> {
        let reply = self.exchange(question, patience).filter(|reply| reply.get("error").is_none());
        if reply.is_none() {
            self.open = None;
            self.at += 1;
        }
        reply
    }

    fn exchange(&mut self, question: &Value, patience: Duration) -> Option<Value> {
        if self.open.is_none() {
            let at = self.controls.get(self.at % self.controls.len().max(1))?;
            let stream = TcpStream::connect_timeout(at, LOOKUP_PATIENCE).ok()?;
            stream.set_nodelay(true).ok()?;
            self.open = Some(BufReader::new(stream));
        }
        let reader = self.open.as_mut()?;
        reader.get_ref().set_read_timeout(Some(patience)).ok()?;
        reader.get_mut().write_all(format!("{question}\n").as_bytes()).ok()?;
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }
}
