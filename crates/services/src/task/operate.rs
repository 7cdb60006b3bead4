//! What the operator of a node does with tasks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine;
use pilotage::{ConnectFailure, Node, Peer};
use pilotage_wire::Address;

use super::PORT;
use super::client::{self, ClientError};
use super::store::{NOTICE_LIFE, ResultRecord, Side, Store, StoreError, TOO_LATE, Task};
use super::wire::{MAX_JSON, MAX_TEXT, Message, Results, State, Status, Submission, TaskId};
use crate::clock::{rfc3339, unix_millis};
use crate::file::{NameError, check_name};

/// How long the other side may take to acknowledge a notice.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(15);

/// Peers that are told something at a time.
pub const TELLERS: usize = 8;

/// Largest file of results, in bytes: in base64 and with the rest it still fits in a message.
pub const MAX_FILE: usize = 12 * 1024 * 1024 - 4096;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperateError {
    /// The peer cannot be reached.
    #[error("{0}")]
    Connect(#[from] ConnectFailure),
    /// The peer did not take it.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// Our own list.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Longer than [`MAX_TEXT`], or a file longer than [`MAX_FILE`].
    #[error("too long: {0} bytes")]
    TooLong(usize),
    /// The name of a result file.
    #[error("file name: {0}")]
    Name(#[from] NameError),
    /// The system gave no random bytes.
    #[error("no random numbers: {0}")]
    Random(String),
}

/// What came out of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// A text of at most [`MAX_TEXT`].
    Text(String),
    /// A file of at most [`MAX_FILE`].
    File {
        /// Its name, without directory.
        name: String,
        /// Its content.
        data: Vec<u8>,
    },
}

/// The tasks of a running node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tasks {
    store: Arc<Store>,
    node: Node,
    /// Something is to be told.
    poked: Arc<AtomicBool>,
}

impl Tasks {
    /// The tasks in `store`, told to others through `node`.
    #[must_use]
    pub fn new(store: Arc<Store>, node: Node) -> Self {
        Self { store, node, poked: Arc::new(AtomicBool::new(true)) }
    }

    /// The list itself.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Asks `peer` to do something. Blocks for the connection and the peer's reply.
    ///
    /// # Errors
    /// See [`OperateError`]. A task that the peer refused stays in the list as declined.
    pub fn submit(&self, peer: &Peer, description: &str) -> Result<Task, OperateError> {
        if description.len() > MAX_TEXT {
            return Err(OperateError::TooLong(description.len()));
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| OperateError::Random(error.to_string()))?;
        let id = TaskId::from_random(random);
        let stream = self.node.connect(peer.clone(), PORT)?;
        let address = stream.peer().address;
        let now = now();
        let task = Task {
            id: id.clone(),
            side: Side::Submitted,
            peer: address.to_string(),
            description: description.to_owned(),
            state: State::New,
            justification: String::new(),
            created: now,
            accepted: None,
            begun: None,
            changed: now,
            result: None,
            untold: false,
        };
        // Before it is sent: results may come even if we are killed in between.
        self.store.add(task)?;
        let submission = Submission {
            task_id: id.clone(),
            task_description: description.to_owned(),
            from_addr: self.node.address().to_string(),
            to_addr: address.to_string(),
        };
        if let Err(error) = client::submit(&stream, &submission) {
            let (state, why) = match &error {
                ClientError::Refused(why) => (State::Declined, why.clone()),
                other => (State::Cancelled, format!("not submitted: {other}")),
            };
            let changed = self.store.change(Side::Submitted, &id, |task| {
                task.set(state, super::operate::now(), &why);
                Ok(())
            });
            changed?;
            return Err(error.into());
        }
        self.store.get(Side::Submitted, &id).ok_or_else(|| StoreError::Unknown(id.to_string()).into())
    }

    /// Takes a received task on.
    ///
    /// # Errors
    /// It is unknown, or not new.
    pub fn accept(&self, id: &TaskId, justification: &str) -> Result<Task, StoreError> {
        self.decide(Side::Received, id, State::Accepted, justification, &[State::New])
    }

    /// Refuses a received task.
    ///
    /// # Errors
    /// It is unknown, or not new.
    pub fn decline(&self, id: &TaskId, justification: &str) -> Result<Task, StoreError> {
        self.decide(Side::Received, id, State::Declined, justification, &[State::New])
    }

    /// Begins an accepted task: this one, or the one that waits longest.
    ///
    /// # Errors
    /// It is unknown or not accepted, or none is.
    pub fn execute(&self, id: Option<&TaskId>) -> Result<Task, StoreError> {
        let waiting = || {
            let tasks = self.store.list().into_iter();
            let mut accepted =
                tasks.filter(|task| task.side == Side::Received && task.state == State::Accepted);
            accepted.next().map(|task| task.id)
        };
        let id =
            id.cloned().or_else(waiting).ok_or_else(|| StoreError::Unknown("that is accepted".into()))?;
        self.decide(Side::Received, &id, State::Executing, "", &[State::Accepted])
    }

    /// Gives a task up, received or submitted.
    ///
    /// # Errors
    /// It is unknown, or finished.
    pub fn cancel(&self, id: &TaskId, justification: &str) -> Result<Task, StoreError> {
        let side = match self.store.get(Side::Received, id) {
            Some(_) => Side::Received,
            None => Side::Submitted,
        };
        let from = [State::New, State::Accepted, State::Executing];
        self.decide(side, id, State::Cancelled, justification, &from)
    }

    /// Stores what came out of a received task; it is sent to the submitter.
    ///
    /// # Errors
    /// See [`OperateError`]: the task is unknown or not being done, or the output is too long.
    pub fn results(&self, id: &TaskId, output: Output) -> Result<Task, OperateError> {
        let completed_at = rfc3339(now());
        let (record, data) = match output {
            Output::Text(text) if text.len() > MAX_TEXT => return Err(OperateError::TooLong(text.len())),
            Output::Text(text) => {
                let bytes = text.len() as u64;
                (ResultRecord { text: Some(text), name: None, bytes, completed_at }, Vec::new())
            }
            Output::File { data, .. } if data.len() > MAX_FILE => {
                return Err(OperateError::TooLong(data.len()));
            }
            Output::File { name, data } => {
                check_name(&name)?;
                let bytes = data.len() as u64;
                (ResultRecord { text: None, name: Some(name), bytes, completed_at }, data)
            }
        };
        let task = self.store.add_result(Side::Received, id, &data, |task| {
            if !matches!(task.state, State::Accepted | State::Executing) {
                return Err(StoreError::State { state: task.state, wanted: State::Completed });
            }
            task.set(State::Completed, now(), "");
            task.result = Some(record);
            task.untold = true;
            Ok(())
        })?;
        self.poke();
        Ok(task)
    }

    fn decide(
        &self,
        side: Side,
        id: &TaskId,
        wanted: State,
        justification: &str,
        from: &[State],
    ) -> Result<Task, StoreError> {
        let text: String = justification.chars().take(1024).collect();
        let task = self.store.change(side, id, |task| {
            if !from.contains(&task.state) {
                return Err(StoreError::State { state: task.state, wanted });
            }
            task.set(wanted, now(), &text);
            task.untold = true;
            Ok(())
        })?;
        self.poke();
        Ok(task)
    }

    /// Whether something was decided since the last call: then [`Tasks::tell`] should be called soon.
    #[must_use]
    pub fn take_poke(&self) -> bool {
        self.poked.swap(false, Ordering::AcqRel)
    }

    /// Asks that [`Tasks::tell`] be called soon.
    pub fn poke(&self) {
        self.poked.store(true, Ordering::Release);
    }

    /// Tells the other sides of what they do not know yet; returns how many tasks remain untold. Blocks for connections,
    /// [`TELLERS`] at a time; of the tasks of a peer that does not answer only one is tried.
    pub fn tell(&self) -> usize {
        let mut by_peer: BTreeMap<Address, Vec<Task>> = BTreeMap::new();
        for task in self.store.list().into_iter().filter(|task| task.untold) {
            if let Ok(peer) = task.peer.parse() {
                by_peer.entry(peer).or_default().push(task);
            }
        }
        let tellers = by_peer.len().min(TELLERS);
        let (peers, left) = (Mutex::new(by_peer.into_iter()), AtomicUsize::new(0));
        let next = || peers.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some((peer, tasks)) = next() {
                let told = tasks.iter().take_while(|task| self.tell_one(task, peer)).count();
                left.fetch_add(tasks.len() - told, Ordering::Relaxed);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..tellers {
                scope.spawn(work);
            }
        });
        left.into_inner()
    }

    /// One task; `false` if the other side still does not know everything.
    fn tell_one(&self, task: &Task, peer: Address) -> bool {
        let mut state = task.state;
        let mut outcome = Ok(());
        if state == State::Completed {
            outcome = self
                .results_of(task)
                .and_then(|results| self.send(peer, &Message::Results(Box::new(results))));
            state = State::Succeeded;
            if outcome.is_ok() {
                // The results have gone: never again, even if the rest fails.
                let _ = self.store.change(task.side, &task.id, |now| {
                    if now.state == State::Completed {
                        now.set(State::Succeeded, super::operate::now(), "");
                    }
                    Ok(())
                });
            }
        }
        let status =
            Status { task_id: task.id.clone(), status: state, justification: task.justification.clone() };
        // On a stream of its own: old peers read one message from each.
        let outcome = outcome.and_then(|()| self.send(peer, &Message::Status(status)));
        // What only time has decided is said once: strangers could make us call many who do not answer.
        let given_up = now().saturating_sub(task.changed) > NOTICE_LIFE.as_millis() as u64
            || task.justification == TOO_LATE;
        if let Err(error) = &outcome {
            tracing::debug!(%peer, task = %task.id, %error, "the other side of a task was not told");
            if !given_up {
                return false;
            }
        }
        let changed = self.store.change(task.side, &task.id, |now| {
            // Something else may have been decided in the meantime.
            now.untold = now.state != state;
            Ok(())
        });
        changed.is_ok_and(|task| !task.untold)
    }

    fn send(&self, peer: Address, message: &Message) -> Result<(), OperateError> {
        let stream = self.node.connect(peer, PORT)?;
        client::deliver(&stream, message)?;
        stream.wait_flushed(FLUSH_TIMEOUT).map_err(|error| ClientError::Stream(error).into())
    }

    fn results_of(&self, task: &Task) -> Result<Results, OperateError> {
        let record = task.result.clone().ok_or_else(|| StoreError::Unknown(task.id.to_string()))?;
        let mut results = Results {
            task_id: task.id.clone(),
            result_type: if record.text.is_some() { "text" } else { "file" }.into(),
            result_text: record.text.unwrap_or_default(),
            filename: record.name.unwrap_or_default(),
            file_data: String::new(),
            completed_at: record.completed_at,
            time_idle_ms: task.accepted.map_or(0, |at| at.saturating_sub(task.created)),
            time_staged_ms: between(task.accepted, task.begun),
            time_cpu_ms: between(task.begun, Some(task.changed)),
        };
        if results.result_type == "file" {
            let path = self.store.result_path(task.side, &task.id).ok_or(StoreError::NoRoom)?;
            let length = std::fs::metadata(&path).map_err(StoreError::Io)?.len();
            if length > MAX_FILE as u64 {
                return Err(OperateError::TooLong(usize::try_from(length).unwrap_or(MAX_JSON)));
            }
            let data = std::fs::read(&path).map_err(StoreError::Io)?;
            results.file_data = base64::engine::general_purpose::STANDARD.encode(data);
        }
        Ok(results)
    }
}

fn between(from: Option<u64>, to: Option<u64>) -> u64 {
    from.zip(to).map_or(0, |(from, to)| to.saturating_sub(from))
}

fn now() -> u64 {
    unix_millis(SystemTime::now())
}
