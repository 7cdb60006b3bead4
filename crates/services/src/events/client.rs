//! Publisher and subscriber.

use std::io::{self, Write};

use super::wire::{Event, WireError};
use crate::duplex::{Duplex, Io};

/// A subscribed stream.
#[derive(Debug)]
pub struct Subscription<D> {
    stream: D,
}

/// Subscribes a fresh stream to `topic` (`*` gets everything). There is no answer: events come when there are some.
///
/// # Errors
/// The topic is too long, or the stream fails.
pub fn subscribe<D: Duplex>(stream: D, topic: &[u8]) -> Result<Subscription<D>, WireError> {
    stream.set_nodelay(true)?;
    Io(&stream).write_all(&Event::subscription(topic).encode()?)?;
    Ok(Subscription { stream })
}

impl<D: Duplex> Subscription<D> {
    /// Waits for the next event; `None` when the broker ends the stream. At most one event is in memory.
    ///
    /// # Errors
    /// The stream fails, or a read timeout set on it passes between two events or inside one: the latter ends the
    /// subscription.
    pub fn next_event(&self) -> Result<Option<Event>, WireError> {
        Event::read(&mut Io(&self.stream), &mut |_| true)
    }

    /// The stream below.
    pub fn stream(&self) -> &D {
        &self.stream
    }
}

/// Publishes events on a fresh stream. `topic` subscribes it, as every first event does: what others publish there in the
/// meantime comes back and is not read.
///
/// The caller ends the stream, and waits until the peer has everything if that matters.
///
/// # Errors
/// Something is too long (nothing has been sent then), or the stream fails.
pub fn publish<D: Duplex + ?Sized>(stream: &D, topic: &[u8], payloads: &[&[u8]]) -> Result<(), WireError> {
    let mut bytes = Event::subscription(topic).encode()?;
    for payload in payloads {
        let event = Event { topic: topic.to_vec(), payload: payload.to_vec() };
        bytes.extend_from_slice(&event.encode()?);
    }
    let written: io::Result<()> = stream.set_nodelay(true).and_then(|()| Io(stream).write_all(&bytes));
    Ok(written?)
}
