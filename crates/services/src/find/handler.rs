//! Who does the work of a call at the provider: a closure, a program, or a TCP service.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pilotage_discover::wire::MAX_BODY;

/// Longest time that a handler may take.
pub const MAX_RUN: Duration = Duration::from_secs(600);

/// How often a program is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Why a call was not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandlerError {
    /// Nothing was begun.
    #[error("{0}")]
    NotBegun(String),
    /// It was begun, and failed.
    #[error("{0}")]
    Failed(String),
}

/// Serves calls of one capability. Runs on a thread of its own for each call.
pub trait Handler: Send + Sync {
    /// Does the work: `body` in, result out (at most [`MAX_BODY`] bytes).
    ///
    /// # Errors
    /// Whether it began decides whether the caller may go elsewhere.
    fn handle(&self, tag: &str, body: &[u8]) -> Result<Vec<u8>, HandlerError>;
}

impl<F> Handler for F
where
    F: Fn(&str, &[u8]) -> Result<Vec<u8>, HandlerError> + Send + Sync,
{
    fn handle(&self, tag: &str, body: &[u8]) -> Result<Vec<u8>, HandlerError> {
        self(tag, body)
    }
}

/// A program that gets the body on its standard input and prints the result. It is the operator's choice, as is who may
/// call; the caller chooses nothing but the body. The tag is in the environment as `PILOTAGE_SKILL`.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// How long it may run; at most [`MAX_RUN`]. Then it is killed.
    pub time: Duration,
}

impl Handler for Program {
    fn handle(&self, tag: &str, body: &[u8]) -> Result<Vec<u8>, HandlerError> {
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| HandlerError::NotBegun("no program is configured".into()))?;
        let mut child = Command::new(program)
            .args(arguments)
            .env("PILOTAGE_SKILL", tag)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| HandlerError::NotBegun(format!("the program cannot be started: {error}")))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let body = body.to_vec();
        // Both ways at once: a program that answers before it has read all would wait for us for ever.
        let feeding = thread::spawn(move || {
            // A program need not read its input.
            let _ = stdin.map(|mut stdin| stdin.write_all(&body));
        });
        let reading = thread::spawn(move || stdout.map(read_bounded));
        let deadline = Instant::now() + self.time.min(MAX_RUN);
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Ok(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(LOOK),
                Ok(None) => break Err("the program took too long".to_owned()),
                Err(error) => break Err(error.to_string()),
            }
        };
        if status.is_err() {
            let _ = child.kill();
            let _ = child.wait();
            // Its children may hold the pipes: the threads are left to end with them.
            return Err(HandlerError::Failed(status.err().unwrap_or_default()));
        }
        let _ = feeding.join();
        let result = reading.join().ok().flatten();
        match (status, result) {
            (Ok(status), Some(Ok(result))) if status.success() => Ok(result),
            (Ok(status), Some(Ok(_))) => {
                Err(HandlerError::Failed(format!("the program ended with {status}")))
            }
            (_, Some(Err(error))) => Err(HandlerError::Failed(error.to_string())),
            _ => Err(HandlerError::Failed("the program's output is lost".into())),
        }
    }
}

/// A TCP service: it gets the body and the end of the stream, and answers until it ends the stream.
#[derive(Debug, Clone)]
pub struct Tcp {
    /// `HOST:PORT`.
    pub target: String,
    /// How long all of it may take; at most [`MAX_RUN`].
    pub time: Duration,
}

impl Handler for Tcp {
    fn handle(&self, _tag: &str, body: &[u8]) -> Result<Vec<u8>, HandlerError> {
        let not_begun = |error: io::Error| HandlerError::NotBegun(format!("{}: {error}", self.target));
        let failed = |error: io::Error| HandlerError::Failed(format!("{}: {error}", self.target));
        let time = self.time.clamp(LOOK, MAX_RUN);
        let mut targets = self.target.to_socket_addrs().map_err(not_begun)?;
        let target =
            targets.next().ok_or_else(|| HandlerError::NotBegun(format!("{}: unknown", self.target)))?;
        let mut stream = TcpStream::connect_timeout(&target, time).map_err(not_begun)?;
        stream.set_write_timeout(Some(time)).map_err(not_begun)?;
        stream.set_read_timeout(Some(time)).map_err(not_begun)?;
        stream.write_all(body).map_err(failed)?;
        stream.shutdown(Shutdown::Write).map_err(failed)?;
        read_bounded(stream).map_err(failed)
    }
}

fn read_bounded(source: impl Read) -> io::Result<Vec<u8>> {
    let mut result = Vec::new();
    source.take(MAX_BODY as u64 + 1).read_to_end(&mut result)?;
    if result.len() > MAX_BODY {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the result is longer than 4 MiB"));
    }
    Ok(result)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn program(command: &[&str], time: Duration) -> Program {
        Program { command: command.iter().map(|part| (*part).to_owned()).collect(), time }
    }

    #[test]
    fn a_program_gets_the_body_and_gives_the_result() {
        let body = vec![b'x'; 300_000];
        let cat = program(&["cat"], Duration::from_secs(60));
        assert_eq!(cat.handle("a.b", &body).unwrap(), body);
        let skill = program(&["sh", "-c", "printf %s $PILOTAGE_SKILL"], Duration::from_secs(60));
        assert_eq!(skill.handle("a.b", b"").unwrap(), b"a.b");
    }

    #[test]
    fn what_cannot_begin_says_so_and_what_fails_too() {
        let minute = Duration::from_secs(60);
        let missing = program(&["/nonexistent/program"], minute).handle("a", b"");
        assert!(matches!(missing, Err(HandlerError::NotBegun(_))));
        assert!(matches!(program(&[], minute).handle("a", b""), Err(HandlerError::NotBegun(_))));
        assert!(matches!(program(&["false"], minute).handle("a", b""), Err(HandlerError::Failed(_))));
        let slow = program(&["sleep", "60"], Duration::from_millis(50)).handle("a", b"");
        assert_eq!(slow, Err(HandlerError::Failed("the program took too long".into())));
        let endless = program(&["yes"], minute).handle("a", b"");
        assert!(matches!(endless, Err(HandlerError::Failed(_))));
    }

    #[test]
    fn a_tcp_service_answers() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap().to_string();
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut body = Vec::new();
            stream.read_to_end(&mut body).unwrap();
            stream.write_all(&[b"re:", &body[..]].concat()).unwrap();
        });
        let tcp = Tcp { target, time: Duration::from_secs(60) };
        assert_eq!(tcp.handle("a", b"body").unwrap(), b"re:body");
        served.join().unwrap();
        assert!(matches!(tcp.handle("a", b""), Err(HandlerError::NotBegun(_))));
    }
}
