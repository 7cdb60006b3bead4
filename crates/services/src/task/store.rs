//! The tasks of a node, submitted and received, in memory and on disk.
//!
//! One file for each task, replaced as a whole, and one for its results where they are a file or long: a process that is
//! killed loses nothing that it has said. Bounds: [`MAX_TASKS`] of each side, [`MAX_OPEN_PER_PEER`] open ones of a peer,
//! [`MAX_RESULT_BYTES`] of results; what is finished makes room, the oldest first.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pilotage_wire::{Address, NodeId};
use serde::{Deserialize, Serialize};

use super::wire::{State, TaskId};

/// Tasks kept of each side.
pub const MAX_TASKS: usize = 1000;

/// Open tasks taken from one submitter.
pub const MAX_OPEN_PER_PEER: usize = 64;

/// Bytes of stored results over all tasks.
pub const MAX_RESULT_BYTES: u64 = 256 * 1024 * 1024;

/// A received task that is not decided for so long is cancelled.
pub const DECIDE_WITHIN: Duration = Duration::from_secs(60);

/// An accepted task that is not begun for so long expires.
pub const BEGIN_WITHIN: Duration = Duration::from_secs(3600);

/// A submitted task of which nothing is heard for so long expires here.
pub const HEAR_WITHIN: Duration = Duration::from_secs(24 * 3600);

/// How long the other side is told again of a decision that it did not take.
pub const NOTICE_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Why a task has ended by time.
pub(super) const TOO_LATE: &str = "not decided or begun in time";

/// Largest file of a task that is read back, in bytes.
const MAX_RECORD: u64 = 1024 * 1024;

/// On which side of a task we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Others asked us.
    Received,
    /// We asked.
    Submitted,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Received => "received",
            Self::Submitted => "submitted",
        })
    }
}

/// What came out of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultRecord {
    /// The text, where it is one.
    #[serde(default)]
    pub text: Option<String>,
    /// Name that the other side gave to the file, where it is one. Our own file is named by the task.
    #[serde(default)]
    pub name: Option<String>,
    /// Bytes of text or file.
    pub bytes: u64,
    /// RFC 3339, as the executing side said.
    pub completed_at: String,
}

/// One task. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its name.
    pub id: TaskId,
    /// Ours or theirs.
    pub side: Side,
    /// The other side: the address that the tunnel proved, or that we submitted to.
    pub peer: String,
    /// What is to be done.
    pub description: String,
    /// Where it stands.
    pub state: State,
    /// Why, as the one says who decided.
    #[serde(default)]
    pub justification: String,
    /// When it came or went.
    pub created: u64,
    /// When it was accepted.
    #[serde(default)]
    pub accepted: Option<u64>,
    /// When execution began.
    #[serde(default)]
    pub begun: Option<u64>,
    /// When it got the present state.
    pub changed: u64,
    /// What came out.
    #[serde(default)]
    pub result: Option<ResultRecord>,
    /// The other side does not know the present state yet.
    #[serde(default)]
    pub untold: bool,
}

impl Task {
    /// The node on the other side.
    #[must_use]
    pub fn peer_node(&self) -> Option<NodeId> {
        self.peer.parse::<Address>().ok().map(|address| address.node)
    }
}

/// Why a task was not stored or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No such task on this side.
    #[error("no task {0} is known here")]
    Unknown(String),
    /// The state does not allow it.
    #[error("the task is {state}, and so cannot become {wanted}")]
    State {
        /// Its state.
        state: State,
        /// What was wanted.
        wanted: State,
    },
    /// Another task of that id is there.
    #[error("another task with this id is known already")]
    Exists,
    /// All places are taken by open tasks.
    #[error("too many open tasks")]
    Full,
    /// The results do not fit in the store.
    #[error("the results need more room than there is")]
    NoRoom,
    /// The disk.
    #[error("cannot store the task: {0}")]
    Io(#[from] io::Error),
}

/// All tasks of a node.
#[derive(Debug)]
pub struct Store {
    dir: Option<PathBuf>,
    tasks: Mutex<BTreeMap<(Side, TaskId), Task>>,
}

type Tasks = BTreeMap<(Side, TaskId), Task>;

impl Store {
    /// Opens the tasks in `dir`, which is made if it is not there; without one they live in memory. Files that cannot be
    /// read as tasks are left alone.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(dir: Option<&Path>) -> io::Result<Self> {
        let mut tasks = Tasks::new();
        if let Some(dir) = dir {
            fs::create_dir_all(dir)?;
            for entry in fs::read_dir(dir)? {
                // Left by a process that was killed while it wrote.
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "part") {
                    let _ = fs::remove_file(&path);
                }
            }
            tasks = load(dir)?;
        }
        Ok(Self { dir: dir.map(Path::to_owned), tasks: Mutex::new(tasks) })
    }

    /// The tasks in `dir` as they are now, the oldest first, without taking part: another process may be using them.
    ///
    /// # Errors
    /// The directory is there and cannot be read.
    pub fn peek(dir: &Path) -> io::Result<Vec<Task>> {
        match load(dir) {
            Ok(tasks) => Ok(by_age(tasks.into_values())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// All tasks, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Task> {
        by_age(self.lock().values().cloned())
    }

    /// One task.
    #[must_use]
    pub fn get(&self, side: Side, id: &TaskId) -> Option<Task> {
        self.lock().get(&(side, id.clone())).cloned()
    }

    /// Adds a task. The same one a second time changes nothing (its reply was lost).
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn add(&self, task: Task) -> Result<(), StoreError> {
        let mut tasks = self.lock();
        let key = (task.side, task.id.clone());
        if let Some(there) = tasks.get(&key) {
            let same = there.peer_node() == task.peer_node() && there.description == task.description;
            return if same { Ok(()) } else { Err(StoreError::Exists) };
        }
        let open = tasks.values().filter(|other| {
            other.side == task.side && other.peer_node() == task.peer_node() && !other.state.is_final()
        });
        if open.count() >= MAX_OPEN_PER_PEER {
            return Err(StoreError::Full);
        }
        if tasks.keys().filter(|(side, _)| *side == task.side).count() >= MAX_TASKS
            && !self.forget_oldest(&mut tasks, |other| other.side == task.side)
        {
            return Err(StoreError::Full);
        }
        self.write(&task)?;
        tasks.insert(key, task);
        Ok(())
    }

    /// Changes a task: `change` gets a copy, which is stored if it says so.
    ///
    /// # Errors
    /// See [`StoreError`], and what `change` returns.
    pub fn change(
        &self,
        side: Side,
        id: &TaskId,
        change: impl FnOnce(&mut Task) -> Result<(), StoreError>,
    ) -> Result<Task, StoreError> {
        let mut tasks = self.lock();
        let task = tasks.get_mut(&(side, id.clone())).ok_or_else(|| StoreError::Unknown(id.to_string()))?;
        let mut changed = task.clone();
        change(&mut changed)?;
        if changed != *task {
            self.write(&changed)?;
            *task = changed.clone();
        }
        Ok(changed)
    }

    /// Stores what came out of a task, and then makes `change`.
    ///
    /// # Errors
    /// See [`StoreError`], and what `change` returns.
    pub fn add_result(
        &self,
        side: Side,
        id: &TaskId,
        data: &[u8],
        change: impl FnOnce(&mut Task) -> Result<(), StoreError>,
    ) -> Result<Task, StoreError> {
        {
            let mut tasks = self.lock();
            let used = |tasks: &Tasks| {
                tasks.values().filter_map(|t| t.result.as_ref()).map(|r| r.bytes).sum::<u64>()
            };
            while used(&tasks).saturating_add(data.len() as u64) > MAX_RESULT_BYTES {
                let old = |other: &Task| other.result.is_some() && (other.side, &other.id) != (side, id);
                if !self.forget_oldest(&mut tasks, old) {
                    return Err(StoreError::NoRoom);
                }
            }
        }
        if self.dir.is_none() && !data.is_empty() {
            return Err(StoreError::NoRoom);
        }
        // First the data, then the record that names it; a refused change takes the data away again.
        let path = self.result_path(side, id);
        let fresh = path.clone().map(|path| path.with_extension("result.part"));
        if let Some(fresh) = &fresh {
            write_synced(fresh, data)?;
        }
        let changed = self.change(side, id, |task| {
            change(task)?;
            match (&fresh, &path) {
                (Some(fresh), Some(path)) => Ok(fs::rename(fresh, path)?),
                _ => Ok(()),
            }
        });
        if let (Err(_), Some(fresh)) = (&changed, &fresh) {
            let _ = fs::remove_file(fresh);
        }
        changed
    }

    /// Where the results of a task lie, if the store is on disk.
    #[must_use]
    pub fn result_path(&self, side: Side, id: &TaskId) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(format!("{side}-{id}.result")))
    }

    /// Applies the time limits; returns what has changed. `now` in milliseconds since 1970.
    pub fn expire(&self, now: u64) -> Vec<Task> {
        let late = |since: u64, limit: Duration| now.saturating_sub(since) > limit.as_millis() as u64;
        let due: Vec<_> = {
            let tasks = self.lock();
            let due = |task: &Task| match (task.side, task.state) {
                (Side::Received, State::New) => late(task.created, DECIDE_WITHIN).then_some(State::Cancelled),
                (Side::Received, State::Accepted) => {
                    late(task.changed, BEGIN_WITHIN).then_some(State::Expired)
                }
                (Side::Submitted, state) if !state.is_final() => {
                    late(task.changed, HEAR_WITHIN).then_some(State::Expired)
                }
                _ => None,
            };
            tasks
                .values()
                .filter_map(|task| Some((task.side, task.id.clone(), task.state, due(task)?)))
                .collect()
        };
        let mut changed = Vec::new();
        for (side, id, was, state) in due {
            let result = self.change(side, &id, |task| {
                if task.state == was {
                    task.set(state, now, TOO_LATE);
                    task.untold = side == Side::Received;
                }
                Ok(())
            });
            match result {
                Ok(task) => changed.push(task),
                Err(error) => tracing::warn!(%error, "cannot store an expired task"),
            }
        }
        changed
    }

    /// Removes the oldest finished task that `which` allows.
    fn forget_oldest(&self, tasks: &mut Tasks, which: impl Fn(&Task) -> bool) -> bool {
        let finished = tasks.values().filter(|task| task.state.is_final() && !task.untold && which(task));
        let Some(key) = finished.min_by_key(|task| task.changed).map(|task| (task.side, task.id.clone()))
        else {
            return false;
        };
        tasks.remove(&key);
        if let Some(path) = self.result_path(key.0, &key.1) {
            let _ = fs::remove_file(path);
        }
        if let Some(path) = self.record_path(key.0, &key.1) {
            let _ = fs::remove_file(path);
        }
        true
    }

    fn record_path(&self, side: Side, id: &TaskId) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(format!("{side}-{id}.json")))
    }

    fn write(&self, task: &Task) -> io::Result<()> {
        let Some(path) = self.record_path(task.side, &task.id) else { return Ok(()) };
        let fresh = path.with_extension("part");
        write_synced(&fresh, &serde_json::to_vec(task)?)?;
        fs::rename(&fresh, &path)
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Task {
    /// The next state, without any check.
    pub(super) fn set(&mut self, state: State, now: u64, justification: &str) {
        match state {
            State::Accepted => self.accepted = Some(now),
            State::Executing => self.begun = Some(now),
            _ => {}
        }
        self.state = state;
        self.changed = now;
        self.justification = justification.to_owned();
    }
}

fn by_age(tasks: impl Iterator<Item = Task>) -> Vec<Task> {
    let mut tasks: Vec<_> = tasks.collect();
    tasks.sort_by_key(|task| task.created);
    tasks
}

fn load(dir: &Path) -> io::Result<Tasks> {
    let mut tasks = Tasks::new();
    for entry in fs::read_dir(dir)? {
        if tasks.len() >= 2 * MAX_TASKS {
            break;
        }
        if let Some(task) = read(&entry?.path()) {
            tasks.insert((task.side, task.id.clone()), task);
        }
    }
    Ok(tasks)
}

fn write_synced(path: &Path, data: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(data)?;
    file.sync_all()
}

fn read(path: &Path) -> Option<Task> {
    if path.extension().is_none_or(|extension| extension != "json")
        || fs::metadata(path).ok()?.len() > MAX_RECORD
    {
        return None;
    }
    let task: Task = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let own_name = format!("{}-{}.json", task.side, task.id);
    path.file_name().is_some_and(|name| name == own_name.as_str()).then_some(task)
}
