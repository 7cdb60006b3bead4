//! The control socket of a running node: `control.sock` in its state directory.
//!
//! One request and one answer per connection, each a JSON line. Only the owner can open it (mode
//! 0600). Bounds: [`MAX_CLIENTS`] at a time, [`MAX_REQUEST`] bytes in, [`MAX_REPLY`] bytes out,
//! [`TIMEOUT`] per step.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

/// Longest request line, in bytes: the longest description of a task, with every character escaped.
pub(crate) const MAX_REQUEST: u64 = 512 * 1024;

/// Longest reply line that a client reads, in bytes.
pub(crate) const MAX_REPLY: u64 = 16 * 1024 * 1024;

/// Clients served at a time; further ones wait in the kernel's queue.
pub(crate) const MAX_CLIENTS: usize = 8;

/// How long one step of a conversation may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Where the socket of a state directory is.
pub(crate) fn path(state: &Path) -> PathBuf {
    state.join("control.sock")
}

/// One request on a connection: reads a line, answers with what `answer` says.
fn converse<S: Read + Write>(stream: &mut S, answer: &dyn Fn(&str, &Value) -> Value) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(Read::by_ref(stream).take(MAX_REQUEST)).read_line(&mut line)?;
    let reply = match serde_json::from_str::<Value>(&line) {
        Ok(request) => match request["cmd"].as_str() {
            Some(command) => answer(command, &request),
            None => json!({ "error": "the request has no \"cmd\"" }),
        },
        Err(_) => json!({ "error": "the request is not one line of JSON of at most 512 KiB" }),
    };
    stream.write_all(format!("{reply}\n").as_bytes())
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
            answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static,
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
        A: Fn(&str, &Value) -> Value + Send + Sync + 'static,
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
                let _ = converse(&mut stream, &*answer);
                done.fetch_sub(1, Ordering::AcqRel);
            });
            if spawned.is_err() {
                running.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// Asks the node of a state directory; `NotFound` or `ConnectionRefused` if none runs.
    pub(crate) fn request(state: &Path, command: &str) -> io::Result<Value> {
        request_with(state, &json!({ "cmd": command }), TIMEOUT)
    }

    /// As [`request`], with more than a command, and the time that the answer may take.
    pub(crate) fn request_with(state: &Path, request: &Value, time: Duration) -> io::Result<Value> {
        let mut stream = UnixStream::connect(path(state))?;
        stream.set_read_timeout(Some(time))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_REPLY)).read_line(&mut line)?;
        serde_json::from_str(&line).map_err(io::Error::from)
    }
}

#[cfg(unix)]
pub(crate) use unix::{Server, request, request_with};

#[cfg(not(unix))]
mod other {
    use super::*;

    /// This platform has no control socket yet.
    pub(crate) struct Server;

    impl Server {
        pub(crate) fn start(
            _state: &Path,
            _answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static,
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

    fn echo(command: &str, _: &Value) -> Value {
        json!({ "you_said": command })
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
