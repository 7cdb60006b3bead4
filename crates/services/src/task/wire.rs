//! Messages of the task service (spec/services.md §7.2).
//!
//! ```text
//! frame    type u32 | length u32 (at most 16 MiB) | JSON
//! types    1 submission and its reply, 2 a result of old peers, 3 status, 4 results
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of a frame's header.
pub const HEADER: usize = 8;

/// Longest JSON of a frame, in bytes.
pub const MAX_JSON: usize = 16 * 1024 * 1024;

/// Longest description and result text that we take as such, in bytes of UTF-8.
pub const MAX_TEXT: usize = 64 * 1024;

/// Why bytes are not this protocol.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The JSON is longer than [`MAX_JSON`].
    #[error("a task message of {0} bytes is above the limit of 16 MiB")]
    TooLong(usize),
    /// A type that nobody sends.
    #[error("unknown task message type {0}")]
    Type(u32),
    /// Not the JSON of its type.
    #[error("task message of type {kind}: {error}")]
    Json {
        /// The type.
        kind: u32,
        /// What is wrong.
        error: serde_json::Error,
    },
}

/// The name of a task: a UUID in hex, `8-4-4-4-12` digits, in lower case. So it is a safe part of a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(String);

/// Not the form of a [`TaskId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a task id has the form 8-4-4-4-12 of hex digits")]
pub struct TaskIdError;

impl TaskId {
    /// The id of 16 random bytes (version and variant bits of RFC 9562 are set).
    #[must_use]
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0F | 0x40;
        bytes[8] = bytes[8] & 0x3F | 0x80;
        let mut text = String::with_capacity(36);
        for (at, byte) in bytes.iter().enumerate() {
            if [4, 6, 8, 10].contains(&at) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        Self(text)
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TaskId {
    type Err = TaskIdError;

    fn from_str(text: &str) -> Result<Self, TaskIdError> {
        let digits = |part: &str, count| part.len() == count && part.bytes().all(|b| b.is_ascii_hexdigit());
        let parts: Vec<&str> = text.splitn(6, '-').collect();
        let [a, b, c, d, e] = parts.as_slice() else { return Err(TaskIdError) };
        let fits = digits(a, 8) && digits(b, 4) && digits(c, 4) && digits(d, 4) && digits(e, 12);
        if fits { Ok(Self(text.to_ascii_lowercase())) } else { Err(TaskIdError) }
    }
}

impl TryFrom<String> for TaskId {
    type Error = TaskIdError;

    fn try_from(text: String) -> Result<Self, TaskIdError> {
        text.parse()
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> Self {
        id.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// Submitted, not decided.
    New,
    /// The receiver will do it.
    Accepted,
    /// The receiver will not do it.
    Declined,
    /// The receiver is at it.
    Executing,
    /// Done, the results not delivered yet.
    Completed,
    /// Done, with results delivered.
    Succeeded,
    /// Given up by one of the two, or not decided in time.
    Cancelled,
    /// Accepted but not begun in time.
    Expired,
}

impl State {
    /// Whether nothing more is to be done for it.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Declined | Self::Succeeded | Self::Cancelled | Self::Expired)
    }
}

/// The name on the wire.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "NEW",
            Self::Accepted => "ACCEPTED",
            Self::Declined => "DECLINED",
            Self::Executing => "EXECUTING",
            Self::Completed => "COMPLETED",
            Self::Succeeded => "SUCCEEDED",
            Self::Cancelled => "CANCELLED",
            Self::Expired => "EXPIRED",
        })
    }
}

/// Type 1, from the submitter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The task.
    pub task_id: TaskId,
    /// What is to be done.
    pub task_description: String,
    /// The submitter's address, as it says.
    #[serde(default)]
    pub from_addr: String,
    /// The receiver's address, as the submitter says.
    #[serde(default)]
    pub to_addr: String,
}

/// Type 1, the receiver's answer on the same stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The task, as the submission said.
    pub task_id: String,
    /// [`Reply::TAKEN`] or [`Reply::REFUSED`].
    pub status: u16,
    /// For a person.
    #[serde(default)]
    pub message: String,
}

impl Reply {
    /// The task is in the receiver's list.
    pub const TAKEN: u16 = 200;
    /// It is not; the message says why.
    pub const REFUSED: u16 = 400;
}

/// Type 3: how a task stands now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The task.
    pub task_id: TaskId,
    /// Its state.
    pub status: State,
    /// Why.
    #[serde(default)]
    pub justification: String,
}

/// Type 4: what came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Results {
    /// The task.
    pub task_id: TaskId,
    /// `text` or `file`.
    pub result_type: String,
    /// The text, where it is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub result_text: String,
    /// The file's name, where it is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub filename: String,
    /// The file in base64 with padding.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file_data: String,
    /// RFC 3339.
    #[serde(default)]
    pub completed_at: String,
    /// Milliseconds from submission to decision.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub time_idle_ms: u64,
    /// Milliseconds from decision to begin.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub time_staged_ms: u64,
    /// Milliseconds from begin to end.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub time_cpu_ms: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// What a receiver of tasks is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Type 1.
    Submission(Submission),
    /// Type 2: nobody sends it any more; its content means nothing here.
    Legacy,
    /// Type 3.
    Status(Status),
    /// Type 4.
    Results(Box<Results>),
}

impl Message {
    /// Reads the JSON of a type.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn decode(kind: u32, json: &[u8]) -> Result<Self, WireError> {
        if json.len() > MAX_JSON {
            return Err(WireError::TooLong(json.len()));
        }
        let broken = |error| WireError::Json { kind, error };
        Ok(match kind {
            1 => Self::Submission(serde_json::from_slice(json).map_err(broken)?),
            2 => Self::Legacy,
            3 => Self::Status(serde_json::from_slice(json).map_err(broken)?),
            4 => Self::Results(Box::new(serde_json::from_slice(json).map_err(broken)?)),
            other => return Err(WireError::Type(other)),
        })
    }

    /// The whole frame in one buffer.
    ///
    /// # Errors
    /// It is too long.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        match self {
            Self::Submission(submission) => frame(1, submission),
            Self::Legacy => frame(2, &serde_json::Map::new()),
            Self::Status(status) => frame(3, status),
            Self::Results(results) => frame(4, results),
        }
    }
}

impl Reply {
    /// Reads the JSON of a reply.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn decode(kind: u32, json: &[u8]) -> Result<Self, WireError> {
        if kind != 1 {
            return Err(WireError::Type(kind));
        }
        serde_json::from_slice(json).map_err(|error| WireError::Json { kind, error })
    }

    /// The whole frame in one buffer.
    ///
    /// # Errors
    /// It is too long.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        frame(1, self)
    }
}

/// Type and length of a frame.
///
/// # Errors
/// The JSON would be too long.
pub fn header(bytes: [u8; HEADER]) -> Result<(u32, usize), WireError> {
    let [a, b, c, d, e, f, g, h] = bytes;
    let length = u32::from_be_bytes([e, f, g, h]) as usize;
    if length > MAX_JSON {
        return Err(WireError::TooLong(length));
    }
    Ok((u32::from_be_bytes([a, b, c, d]), length))
}

fn frame(kind: u32, value: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let json = serde_json::to_vec(value).map_err(|error| WireError::Json { kind, error })?;
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= MAX_JSON);
    let length = length.ok_or(WireError::TooLong(json.len()))?;
    let mut bytes = Vec::with_capacity(HEADER + json.len());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&json);
    Ok(bytes)
}
