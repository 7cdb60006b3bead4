//! Events of the event stream (spec/services.md §6.2), in the binary form that real peers speak. Integers are big-endian.
//!
//! ```text
//! event    topic length u16 (at most 1024) | topic | payload length u32 (at most 16 MiB) | payload
//! ```

use std::io::{self, Read};

/// Longest topic, in bytes.
pub const MAX_TOPIC: usize = 1024;

/// Longest payload, in bytes.
pub const MAX_PAYLOAD: usize = 16 * 1024 * 1024;

/// The topic that gets everything.
pub const ALL: &[u8] = b"*";

/// Bytes that are read, and room that is asked for, at a time.
const STEP: usize = 64 * 1024;

/// A message on a topic; as the first one of a connection, a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The topic: any bytes, UTF-8 as a rule.
    pub topic: Vec<u8>,
    /// The content.
    pub payload: Vec<u8>,
}

/// Why no event could be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The stream failed, or ended inside an event.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Longer than [`MAX_TOPIC`].
    #[error("a topic of {0} bytes is above the limit of 1024")]
    TopicTooLong(usize),
    /// Longer than [`MAX_PAYLOAD`].
    #[error("a payload of {0} bytes is above the limit of 16 MiB")]
    PayloadTooLong(usize),
    /// The room that the reader allows is used up.
    #[error("no room for a payload of {0} bytes")]
    NoRoom(usize),
}

impl Event {
    /// A subscription to a topic.
    #[must_use]
    pub fn subscription(topic: &[u8]) -> Self {
        Self { topic: topic.to_vec(), payload: Vec::new() }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// Topic or payload are too long.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let topic = check_topic(self.topic.len())?;
        let payload = check_payload(self.payload.len())?;
        let mut bytes = Vec::with_capacity(6 + self.topic.len() + self.payload.len());
        bytes.extend_from_slice(&topic.to_be_bytes());
        bytes.extend_from_slice(&self.topic);
        bytes.extend_from_slice(&payload.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        Ok(bytes)
    }

    /// Reads one event; `None` if the stream ends before its first byte. `room` is asked before more bytes of a payload
    /// are taken into memory, so an announced length alone costs nothing.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn read(
        input: &mut impl Read,
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<Self>, WireError> {
        let Some(length) = first_two(input)? else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(length));
        check_topic(length)?;
        let mut topic = vec![0; length];
        input.read_exact(&mut topic)?;
        let mut word = [0; 4];
        input.read_exact(&mut word)?;
        let length = u32::from_be_bytes(word) as usize;
        check_payload(length)?;
        let mut payload = Vec::new();
        while payload.len() < length {
            let step = STEP.min(length - payload.len());
            if !room(step) {
                return Err(WireError::NoRoom(length));
            }
            let begin = payload.len();
            payload.resize(begin + step, 0);
            input.read_exact(&mut payload[begin..])?;
        }
        Ok(Some(Self { topic, payload }))
    }

    /// Whether a subscription to `topic` gets this event.
    #[must_use]
    pub fn matches(&self, topic: &[u8]) -> bool {
        topic == ALL || topic == self.topic
    }
}

/// Two bytes, or nothing at the end of the stream.
fn first_two(input: &mut impl Read) -> io::Result<Option<[u8; 2]>> {
    let mut bytes = [0; 2];
    loop {
        match input.read(&mut bytes[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    input.read_exact(&mut bytes[1..])?;
    Ok(Some(bytes))
}

fn check_topic(length: usize) -> Result<u16, WireError> {
    let fits = u16::try_from(length).ok().filter(|_| length <= MAX_TOPIC);
    fits.ok_or(WireError::TopicTooLong(length))
}

fn check_payload(length: usize) -> Result<u32, WireError> {
    let fits = u32::try_from(length).ok().filter(|_| length <= MAX_PAYLOAD);
    fits.ok_or(WireError::PayloadTooLong(length))
}
