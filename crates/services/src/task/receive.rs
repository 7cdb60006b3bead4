//! Receiving side of the task service.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use pilotage_wire::{Address, NodeId};

use super::client::ClientError;
use super::store::{ResultRecord, Side, Store, StoreError, Task};
use super::wire::{self, HEADER, MAX_TEXT, Message, Reply, Results, State, Status, Submission, WireError};
use crate::budget::Budget;
use crate::clock::unix_millis;
use crate::duplex::{Duplex, Io};
use crate::file::check_name;

/// Looks up a node's polo score at the registry. May block for some seconds.
pub type Scores = Arc<dyn Fn(NodeId) -> Result<i64, String> + Send + Sync>;

/// A stream may be silent for so long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Frames that one stream may bring.
const MAX_FRAMES: usize = 16;

/// Bytes of messages that are being read, over all streams.
const MAX_READING: usize = 64 * 1024 * 1024;

/// Bytes that are read, and taken from the budget, at a time.
const STEP: usize = 64 * 1024;

/// What takes messages for one node.
pub struct Taken {
    store: Arc<Store>,
    own: Box<dyn Fn() -> NodeId + Send + Sync>,
    scores: Option<Scores>,
    reading: Arc<Budget>,
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Taken")
            .field("own", &(self.own)())
            .field("scores", &self.scores.is_some())
            .finish_non_exhaustive()
    }
}

impl Taken {
    /// The list that messages go to.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// For the node that `own` names (a registry may rename it). With `scores`, a submission is refused if the submitter's score is below ours.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        own: impl Fn() -> NodeId + Send + Sync + 'static,
        scores: Option<Scores>,
    ) -> Self {
        Self { store, own: Box::new(own), scores, reading: Budget::new(MAX_READING) }
    }
}

/// Serves one stream of `peer`, the address that the tunnel proved; returns the messages read. `changed` hears of every
/// task that was added or changed.
///
/// Old peers send several messages on a stream (and read only the first one); all of them are read here.
///
/// # Errors
/// The stream fails, or what comes is not the protocol.
pub fn serve<D: Duplex + ?Sized>(
    stream: &D,
    taken: &Taken,
    peer: Address,
    changed: &mut dyn FnMut(Task),
) -> Result<usize, ClientError> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    for count in 0..MAX_FRAMES {
        let (kind, json) = match read_frame(stream, &taken.reading) {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                stream.finish()?;
                return Ok(count);
            }
            Err(error) => return Err(error),
        };
        match Message::decode(kind, &json) {
            Ok(message) => handle(stream, taken, peer, message, changed)?,
            Err(error) if kind == 1 => {
                let reply =
                    Reply { task_id: String::new(), status: Reply::REFUSED, message: error.to_string() };
                Io(stream).write_all(&reply.encode()?)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    stream.finish()?;
    Ok(MAX_FRAMES)
}

fn handle<D: Duplex + ?Sized>(
    stream: &D,
    taken: &Taken,
    peer: Address,
    message: Message,
    changed: &mut dyn FnMut(Task),
) -> Result<(), ClientError> {
    let now = unix_millis(SystemTime::now());
    let outcome = match message {
        Message::Submission(submission) => {
            let id = submission.task_id.to_string();
            let (reply, task) = match take_submission(taken, peer, submission, now) {
                Ok(task) => (Reply { task_id: id, status: Reply::TAKEN, message: NEW.into() }, Ok(task)),
                Err(message) => {
                    (Reply { task_id: id, status: Reply::REFUSED, message: message.clone() }, Err(message))
                }
            };
            Io(stream).write_all(&reply.encode()?)?;
            task
        }
        Message::Status(status) => take_status(&taken.store, peer, &status, now).map_err(|e| e.to_string()),
        Message::Results(results) => take_results(&taken.store, peer, *results, now),
        Message::Legacy => return Ok(()),
    };
    match outcome {
        Ok(task) => changed(task),
        // The peer is not told: these messages have no reply.
        Err(error) => tracing::debug!(%peer, %error, "task message without effect"),
    }
    Ok(())
}

/// What the reference says; peers show it to their users.
const NEW: &str = "Task received with status NEW";

fn take_submission(taken: &Taken, peer: Address, submission: Submission, now: u64) -> Result<Task, String> {
    // The tunnel has proved who the peer is; a submission in somebody else's name is refused.
    if submission.from_addr.parse::<Address>().is_ok_and(|from| from.node != peer.node) {
        return Err("from_addr is not the address of the submitter".into());
    }
    if submission.task_description.len() > MAX_TEXT {
        return Err("the description is longer than 64 KiB".into());
    }
    if let Some(scores) = &taken.scores {
        let lookup = |node| scores(node).map_err(|error| format!("Polo score lookup failed: {error}"));
        let (submitter, receiver) = (lookup(peer.node)?, lookup((taken.own)())?);
        if submitter < receiver {
            return Err(format!("Polo score too low: submitter={submitter}, receiver={receiver}"));
        }
    }
    let task = Task {
        id: submission.task_id,
        side: Side::Received,
        peer: peer.to_string(),
        description: submission.task_description,
        state: State::New,
        justification: String::new(),
        created: now,
        accepted: None,
        begun: None,
        changed: now,
        result: None,
        untold: false,
    };
    taken.store.add(task.clone()).map_err(|error| match error {
        // Not our paths.
        StoreError::Io(_) => "the receiver cannot store the task".to_owned(),
        other => other.to_string(),
    })?;
    Ok(task)
}

fn take_status(store: &Store, peer: Address, status: &Status, now: u64) -> Result<Task, StoreError> {
    let wanted = status.status;
    let text: String = status.justification.chars().take(1024).collect();
    let theirs =
        |side| store.get(side, &status.task_id).is_some_and(|task| task.peer_node() == Some(peer.node));
    // The one who does the task says how it stands; the one who asked may only take it back.
    let side = match (theirs(Side::Submitted), theirs(Side::Received)) {
        (true, _) => Side::Submitted,
        (false, true) if wanted == State::Cancelled => Side::Received,
        _ => return Err(StoreError::Unknown(status.task_id.to_string())),
    };
    store.change(side, &status.task_id, |task| {
        let forward = rank(wanted) > rank(task.state);
        if task.state.is_final() || !forward {
            return Err(StoreError::State { state: task.state, wanted });
        }
        task.set(wanted, now, &text);
        Ok(())
    })
}

/// States only go upwards.
fn rank(state: State) -> u8 {
    match state {
        State::New => 0,
        State::Accepted => 1,
        State::Executing => 2,
        State::Completed => 3,
        State::Succeeded | State::Declined | State::Cancelled | State::Expired => 4,
    }
}

fn take_results(store: &Store, peer: Address, results: Results, now: u64) -> Result<Task, String> {
    let id = results.task_id.clone();
    let known = store.get(Side::Submitted, &id).filter(|task| task.peer_node() == Some(peer.node));
    known.ok_or_else(|| StoreError::Unknown(id.to_string()).to_string())?;
    let (record, data) = record(results)?;
    let change = |task: &mut Task| {
        if task.result.is_some() || matches!(task.state, State::Declined | State::Cancelled) {
            return Err(StoreError::State { state: task.state, wanted: State::Succeeded });
        }
        task.set(State::Succeeded, now, "");
        task.result = Some(record);
        Ok(())
    };
    store.add_result(Side::Submitted, &id, &data, change).map_err(|error| error.to_string())
}

/// What is kept of results: the record, and the data for the result file.
fn record(results: Results) -> Result<(ResultRecord, Vec<u8>), String> {
    let completed_at: String = results.completed_at.chars().take(64).collect();
    match results.result_type.as_str() {
        "text" => {
            let bytes = results.result_text.len() as u64;
            let (text, data) = match results.result_text {
                short if short.len() <= MAX_TEXT => (Some(short), Vec::new()),
                long => (None, long.into_bytes()),
            };
            Ok((ResultRecord { text, name: None, bytes, completed_at }, data))
        }
        "file" => {
            let data = base64::engine::general_purpose::STANDARD
                .decode(&results.file_data)
                .map_err(|error| format!("file_data: {error}"))?;
            // Only shown: the file itself is named by the task.
            let name = Some(results.filename).filter(|name| check_name(name).is_ok());
            Ok((ResultRecord { text: None, name, bytes: data.len() as u64, completed_at }, data))
        }
        other => Err(format!("unknown result type {other:?}")),
    }
}

fn read_frame<D: Duplex + ?Sized>(
    stream: &D,
    budget: &Arc<Budget>,
) -> Result<Option<(u32, Vec<u8>)>, ClientError> {
    let mut head = [0; HEADER];
    let mut filled = 0;
    while filled < HEADER {
        match stream.read(&mut head[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (kind, length) = wire::header(head)?;
    // An announced length alone takes no memory.
    let mut taken = budget.begin();
    let mut json = Vec::new();
    while json.len() < length {
        let step = STEP.min(length - json.len());
        if !taken.grow(step) {
            return Err(WireError::TooLong(length).into());
        }
        let begin = json.len();
        json.resize(begin + step, 0);
        Io(stream).read_exact(&mut json[begin..])?;
    }
    Ok(Some((kind, json)))
}
