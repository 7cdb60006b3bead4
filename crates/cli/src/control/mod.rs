//! The control socket of a running node: `control.sock` in its state directory.
//!
//! One request and one answer per connection, each a JSON line; a request for a stream is followed by the stream itself
//! ([`frames`]). Only the owner can open it (mode 0600). Bounds: [`MAX_CLIENTS`] requests and [`streams::MAX_STREAMS`]
//! streams at a time, [`MAX_REQUEST`] bytes in, [`MAX_REPLY`] bytes out, [`TIMEOUT`] per step.

#[cfg(unix)]
pub(crate) mod frames;
#[cfg(unix)]
pub(crate) mod streams;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

/// Longest request line, in bytes: the longest description of a task, with every character escaped.
pub(crate) const MAX_REQUEST: u64 = 512 * 1024;

/// Longest reply line that a client reads, in bytes.
pub(crate) const MAX_REPLY: u64 = 16 * 1024 * 1024;

/// Requests answered at a time; further ones wait in the kernel's queue.
pub(crate) const MAX_CLIENTS: usize = 64;

/// How long one step of a conversation may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Where the socket of a state directory is.
pub(crate) fn path(state: &Path) -> PathBuf {
    state.join("control.sock")
}

/// What a request gets.
pub(crate) enum Reply {
    /// One line.
    Line(Value),
    /// One line, and then the connection belongs to this function. It runs on the connection's thread, which no longer
    /// counts as one that answers a request.
    #[cfg(unix)]
    Take(Value, Box<dyn FnOnce(std::os::unix::net::UnixStream) + Send>),
}

/// The answer to a line that should be a request.
fn consider(line: &[u8], answer: &dyn Fn(&Value) -> Reply) -> Reply {
    match serde_json::from_slice::<Value>(line) {
        Ok(request) if request["cmd"].is_string() => answer(&request),
        Ok(_) => Reply::Line(json!({ "error": "the request has no \"cmd\"" })),
        Err(_) => {
            Reply::Line(json!({ "error": "the request is not one line of JSON of at most 4096 bytes" }))
        }
    }
}

/// One line, byte by byte: what follows it belongs to somebody else.
fn read_line(stream: &mut impl Read, max: u64) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while (line.len() as u64) < max && stream.read(&mut byte)? > 0 && byte != *b"\n" {
        line.push(byte[0]);
    }
    Ok(line)
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;

    /// Serves the socket until dropped, then removes it.
    pub(crate) struct Server {
        path: PathBuf,
        stop: Arc<AtomicBool>,
    }

    impl Server {
        /// Takes the place of a socket left behind by a process that was killed: the caller holds
        /// the lock of the state directory, so nobody else serves it.
        pub(crate) fn start(
            state: &Path,
            answer: impl Fn(&Value) -> Reply + Send + Sync + 'static,
        ) -> io::Result<Self> {
            let path = path(state);
            // Bound under another name first, so that the socket is never open to others.
            let fresh = state.join(format!("control.{}", std::process::id()));
            let _ = fs::remove_file(&fresh);
            let listener = UnixListener::bind(&fresh)?;
            fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
            fs::rename(&fresh, &path)?;
            let stop = Arc::new(AtomicBool::new(false));
            let stopping = stop.clone();
            thread::Builder::new()
                .name("control".into())
                .spawn(move || accept(&listener, &stopping, &Arc::new(answer)))?;
            Ok(Self { path, stop })
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Release);
            // Wakes the accepting thread.
            let _ = UnixStream::connect(&self.path);
            let _ = fs::remove_file(&self.path);
        }
    }

    fn accept<A>(listener: &UnixListener, stop: &AtomicBool, answer: &Arc<A>)
    where
        A: Fn(&Value) -> Reply + Send + Sync + 'static,
    {
        let running = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            if stop.load(Ordering::Acquire) {
                return;
            }
            let Ok(mut stream) = stream else {
                // Out of file descriptors, most likely: do not spin.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            while running.load(Ordering::Acquire) >= MAX_CLIENTS {
                thread::sleep(Duration::from_millis(5));
            }
            running.fetch_add(1, Ordering::AcqRel);
            let (answer, done) = (answer.clone(), running.clone());
            let spawned = thread::Builder::new().name("control-client".into()).spawn(move || {
                let _ = stream.set_read_timeout(Some(TIMEOUT));
                let _ = stream.set_write_timeout(Some(TIMEOUT));
                let replied = converse(&mut stream, &*answer);
                done.fetch_sub(1, Ordering::AcqRel);
                if let Ok(Some(take)) = replied {
                    take(stream);
                }
            });
            if spawned.is_err() {
                running.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    type Take = Box<dyn FnOnce(UnixStream) + Send>;

    /// Reads a line and answers it; what is to be done with the connection afterwards, if anything.
    fn converse(stream: &mut UnixStream, answer: &dyn Fn(&Value) -> Reply) -> io::Result<Option<Take>> {
        let line = read_line(stream, MAX_REQUEST)?;
        let (value, take) = match consider(&line, answer) {
            Reply::Line(value) => (value, None),
            Reply::Take(value, take) => (value, Some(take)),
        };
        stream.write_all(format!("{value}\n").as_bytes())?;
        Ok(take)
    }

    /// Asks the node of a state directory and keeps the connection; `NotFound` or `ConnectionRefused` if none runs.
    /// `patience`: how long the answer may take.
    pub(crate) fn open(state: &Path, request: &Value, patience: Duration) -> io::Result<(Value, UnixStream)> {
        let mut stream = UnixStream::connect(path(state))?;
        stream.set_read_timeout(Some(patience + TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let line = read_line(&mut stream, MAX_REPLY)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((serde_json::from_slice(&line).map_err(io::Error::from)?, stream))
    }

    /// Asks the node of a state directory for something that it knows at once.
    pub(crate) fn request(state: &Path, command: &str) -> io::Result<Value> {
        open(state, &json!({ "cmd": command }), Duration::ZERO).map(|(value, _)| value)
    }

    /// As [`request`], with more than a command, and the time that the answer may take.
    pub(crate) fn request_with(state: &Path, request: &Value, patience: Duration) -> io::Result<Value> {
        open(state, request, patience).map(|(value, _)| value)
    }
}

#[cfg(unix)]
pub(crate) use unix::{Server, open, request, request_with};

#[cfg(not(unix))]
mod other {
    use super::*;

    /// This platform has no control socket yet.
    pub(crate) struct Server;

    impl Server {
        pub(crate) fn start(
            _state: &Path,
            _answer: impl Fn(&Value) -> Reply + Send + Sync + 'static,
        ) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    pub(crate) fn request(_state: &Path, _command: &str) -> io::Result<Value> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn request_with(_state: &Path, _request: &Value, _time: Duration) -> io::Result<Value> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(not(unix))]
pub(crate) use other::{Server, request, request_with};

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    fn echo(request: &Value) -> Reply {
        Reply::Line(json!({ "you_said": request["cmd"] }))
    }

    #[test]
    fn answers_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(request(dir.path(), "x").unwrap_err().kind(), io::ErrorKind::NotFound);
        let server = Server::start(dir.path(), echo).unwrap();
        let mode = std::fs::metadata(path(dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(request(dir.path(), "status").unwrap()["you_said"], "status");
        drop(server);
        assert!(dir.path().read_dir().unwrap().next().is_none());
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(path(dir.path())).unwrap());
        assert_eq!(request(dir.path(), "x").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let _server = Server::start(dir.path(), echo).unwrap();
        assert!(request(dir.path(), "x").is_ok());
    }

    #[test]
    fn long_and_wrong_requests_and_many_clients_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let _server = Server::start(dir.path(), echo).unwrap();
        for text in [&[b'x'; 10_000][..], b"\n", b"[]\n", b"\xff\xfe\n"] {
            let mut stream = UnixStream::connect(path(dir.path())).unwrap();
            let _ = stream.write_all(text);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut reply = String::new();
            let _ = stream.read_to_string(&mut reply);
            assert!(!reply.contains("you_said"), "{reply}");
        }
        // More silent clients than places: they are dropped after the timeout, then it is our turn.
        let silent: Vec<_> =
            (0..MAX_CLIENTS + 2).map(|_| UnixStream::connect(path(dir.path())).unwrap()).collect();
        drop(silent);
        assert!(request(dir.path(), "x").is_ok());
    }
}
