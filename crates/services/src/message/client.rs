//! Sending side of the data exchange.

use std::io::{self, Read, Write};
use std::time::Duration;

use super::wire::{self, Answer, HEADER, Header, Kind, MAX_ANSWER, WireError};
use crate::duplex::{Duplex, Io};

/// How long the receiver may take to answer after our last byte.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a message was not delivered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// It cannot be sent, or the answer was not understood.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The stream failed.
    #[error("stream: {0}")]
    Stream(#[from] io::Error),
    /// The receiver did not take it; the text is its own.
    #[error("the receiver refused it: {0}")]
    Refused(String),
    /// The receiver confirmed something else.
    #[error("the receiver confirmed {confirmed:?} instead of {expected:?}")]
    Mismatch {
        /// What it should have said.
        expected: String,
        /// What it said.
        confirmed: String,
    },
}

/// Sends one message and waits for its answer. Several may follow each other on a stream; the stream is left open.
///
/// # Errors
/// See [`SendError`].
pub fn send<D: Duplex + ?Sized>(stream: &D, kind: Kind, payload: &[u8]) -> Result<(), SendError> {
    exchange(stream, &wire::frame(kind, payload)?, kind, payload.len() as u64)
}

/// Sends one file of at most 16 MiB with its name, and waits for the answer.
///
/// # Errors
/// See [`SendError`].
pub fn send_file<D: Duplex + ?Sized>(stream: &D, name: &str, data: &[u8]) -> Result<(), SendError> {
    exchange(stream, &wire::file_frame(name, data)?, Kind::File, data.len() as u64)
}

fn exchange<D: Duplex + ?Sized>(stream: &D, frame: &[u8], kind: Kind, bytes: u64) -> Result<(), SendError> {
    stream.set_nodelay(true)?;
    Io(stream).write_all(frame)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let answer = read_answer(&mut Io(stream))?;
    let expected = Answer::ack(kind, bytes);
    match answer {
        Answer::Refused(why) => Err(SendError::Refused(why)),
        answer if answer == expected => Ok(()),
        answer => Err(SendError::Mismatch { expected: expected.to_string(), confirmed: answer.to_string() }),
    }
}

/// Frames that a receiver sends before its answer are none of ours and not expected: the first one is the answer.
fn read_answer(input: &mut impl Read) -> Result<Answer, SendError> {
    let mut header = [0; HEADER];
    input.read_exact(&mut header)?;
    let header = Header::decode(header)?;
    if header.length > MAX_ANSWER {
        return Err(WireError::TooLong(header.length.into()).into());
    }
    let mut payload = vec![0; header.length as usize];
    input.read_exact(&mut payload)?;
    Ok(Answer::parse(&payload)?)
}
