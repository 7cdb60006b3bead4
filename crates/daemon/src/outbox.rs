//! What waits to be written to a client: a queue of bounded size, and the thread that empties it.

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pilotage_wire::ipc::Reply;

/// The queue. Whoever puts something in waits while it is full, or is told so.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Something was put in, or it is over.
    filled: Condvar,
    /// Something was taken out, or it is over.
    emptied: Condvar,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Vec<u8>>,
    /// Bytes of `frames` and of the frame that is being written.
    bytes: usize,
    over: bool,
}

impl Outbox {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            max_bytes: max_bytes.max(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until there is room, then puts the message in; false once the client is gone.
    pub(crate) fn push(&self, reply: &Reply<'_>) -> bool {
        let Some(frame) = encode(reply) else { return true };
        let mut state = self.lock();
        while state.bytes >= self.max_bytes && !state.over {
            state = self.emptied.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        self.put(state, frame)
    }

    /// Puts the message in if there is room; false if there is none.
    pub(crate) fn try_push(&self, reply: &Reply<'_>) -> bool {
        let Some(frame) = encode(reply) else { return true };
        let state = self.lock();
        state.bytes < self.max_bytes && self.put(state, frame)
    }

    fn put(&self, mut state: MutexGuard<'_, State>, frame: Vec<u8>) -> bool {
        if state.over {
            return false;
        }
        state.bytes += frame.len();
        state.frames.push_back(frame);
        drop(state);
        self.filled.notify_one();
        true
    }

    /// Waits until everything is written, or the client is gone, or the time is over.
    pub(crate) fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        while state.bytes > 0 && !state.over {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.emptied.wait_timeout(state, left);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    /// Nothing more goes out; everybody who waits is told.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        state.frames.clear();
        drop(state);
        self.filled.notify_all();
        self.emptied.notify_all();
    }

    /// Writes to the client until the end. Whoever ends it also shuts the socket, so that no write blocks for ever.
    pub(crate) fn run(&self, socket: &UnixStream) {
        let mut socket = socket;
        loop {
            let mut state = self.lock();
            let frame = loop {
                if state.over {
                    return;
                }
                match state.frames.pop_front() {
                    Some(frame) => break frame,
                    None => {
                        state = self.filled.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                    }
                }
            };
            drop(state);
            let written = socket.write_all(&frame);
            let mut state = self.lock();
            state.bytes -= frame.len();
            drop(state);
            self.emptied.notify_all();
            if written.is_err() {
                self.end();
                return;
            }
        }
    }
}

/// `None` for a message beyond the protocol's bound: it cannot be said, and the client can do without.
fn encode(reply: &Reply<'_>) -> Option<Vec<u8>> {
    let mut frame = vec![0; reply.encoded_len()];
    match reply.encode(&mut frame) {
        Ok(_) => Some(frame),
        Err(error) => {
            tracing::warn!(%error, "a message for a client was left out");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::sync::Arc;
    use std::thread;

    const PUSH: Reply<'_> = Reply::Recv { connection: 1, data: &[7; 100] };

    #[test]
    fn a_full_queue_holds_writers_back_and_refuses_datagrams() {
        let outbox = Arc::new(Outbox::new(500));
        let mut put = 0;
        while outbox.try_push(&PUSH) {
            put += 1;
        }
        assert_eq!(put, 5, "500 bytes and less than one message more");
        let waiting = outbox.clone();
        let pusher = thread::spawn(move || waiting.push(&PUSH));
        thread::sleep(Duration::from_millis(30));
        assert!(!pusher.is_finished());
        let (here, mut there) = UnixStream::pair().expect("pair");
        let writing = outbox.clone();
        let writer = thread::spawn(move || writing.run(&here));
        let mut bytes = vec![0; 6 * PUSH.encoded_len()];
        there.read_exact(&mut bytes).expect("all six");
        assert!(pusher.join().expect("no panic"));
        outbox.end();
        writer.join().expect("no panic");
    }

    #[test]
    fn the_end_wakes_everybody() {
        let outbox = Arc::new(Outbox::new(1));
        assert!(outbox.push(&PUSH));
        let waiting = outbox.clone();
        let pusher = thread::spawn(move || waiting.push(&PUSH));
        thread::sleep(Duration::from_millis(10));
        outbox.end();
        assert!(!pusher.join().expect("no panic"), "the client is gone");
        assert!(!outbox.try_push(&PUSH));
    }
}
