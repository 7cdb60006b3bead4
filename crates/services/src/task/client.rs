//! Sending side of the task service. A stream for each message: peers read one frame per connection.

use std::io::{self, Read, Write};
use std::time::Duration;

use super::wire::{self, HEADER, Message, Reply, Submission, WireError};
use crate::duplex::{Duplex, Io};

/// How long the receiver may take to answer a submission.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest reply that is read, in bytes.
const MAX_REPLY: usize = 64 * 1024;

/// Why a message was not delivered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// It cannot be sent, or the reply was not understood.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The stream failed.
    #[error("stream: {0}")]
    Stream(#[from] io::Error),
    /// The receiver did not take the task; the text is its own.
    #[error("the peer refused the task: {0}")]
    Refused(String),
}

/// Submits a task on a fresh stream and waits for the reply.
///
/// # Errors
/// See [`ClientError`].
pub fn submit<D: Duplex + ?Sized>(stream: &D, submission: &Submission) -> Result<Reply, ClientError> {
    deliver(stream, &Message::Submission(submission.clone()))?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    let mut bytes = [0; HEADER];
    Io(stream).read_exact(&mut bytes)?;
    let (kind, length) = wire::header(bytes)?;
    if length > MAX_REPLY {
        return Err(WireError::TooLong(length).into());
    }
    let mut json = vec![0; length];
    Io(stream).read_exact(&mut json)?;
    let mut reply = Reply::decode(kind, &json)?;
    // It goes to a terminal.
    reply.message = reply.message.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    match reply.status {
        Reply::TAKEN => Ok(reply),
        _ => Err(ClientError::Refused(reply.message)),
    }
}

/// Sends one message on a fresh stream. Status and results have no reply: the caller ends the stream, and waits until the
/// peer has everything.
///
/// # Errors
/// See [`ClientError`].
pub fn deliver<D: Duplex + ?Sized>(stream: &D, message: &Message) -> Result<(), ClientError> {
    let frame = message.encode()?;
    stream.set_nodelay(true)?;
    Io(stream).write_all(&frame)?;
    Ok(())
}
