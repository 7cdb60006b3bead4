//! Child processes inside a laboratory.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use pilotage_lab::Lab;

use super::options::Peer;
use super::side::Task;
use crate::Failure;

/// How long a server may take to listen.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// Ports of the servers and of our clients; one more for each flow.
const SERVER_PORT: u16 = 5_000;
const CLIENT_PORT: u16 = 6_000;

/// Real-time priority of the ends, if they are to have one.
const PRIORITY: &str = "10";

/// A folder that is removed in the end.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Result<Self, Failure> {
        let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        let path = std::env::temp_dir().join(format!("pilotage-links-{}-{stamp}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover folder in the temporary directory harms nothing.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Server and client of one flow.
pub(super) struct Pair {
    pub(super) server: Process,
    addresses: (SocketAddr, SocketAddr),
    peer: Peer,
    real_time: bool,
    scratch: Scratch,
}

impl Pair {
    /// Starts the server in the second namespace and waits until it listens.
    pub(super) fn serve(lab: &Lab, peer: Peer, flow: u16, real_time: bool) -> Result<Self, Failure> {
        let scratch = Scratch::new()?;
        let server = SocketAddr::from((lab.namespace(1).address(), SERVER_PORT + flow));
        let client = SocketAddr::from((lab.namespace(0).address(), CLIENT_PORT + flow));
        let what = (&*serde_json::to_string(&(peer.to_string(), Task::Serve))?, real_time);
        let mut process = Process::start(lab, 1, what, (server, client), &scratch.0)?;
        match process.line(Instant::now() + READY_WITHIN)? {
            Some(line) if line == "ready" => {}
            other => return Err(format!("server of {peer}: {other:?} instead of ready").into()),
        }
        Ok(Self { server: process, addresses: (server, client), peer, real_time, scratch })
    }

    /// Starts the client in the first namespace.
    pub(super) fn start(&self, lab: &Lab, task: Task) -> Result<Process, Failure> {
        let what = (&*serde_json::to_string(&(self.peer.to_string(), task))?, self.real_time);
        Process::start(lab, 0, what, self.addresses, &self.scratch.0)
    }

    /// What the server has received by now, with the time in microseconds since 1970, each time it told.
    pub(super) fn received(&self) -> Vec<(u64, u64)> {
        let lines = self.server.lines.try_iter();
        lines.filter_map(|line| parse_bytes(&line)).collect()
    }
}

fn parse_bytes(line: &str) -> Option<(u64, u64)> {
    let mut words = line.strip_prefix("bytes ")?.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// One side; ended when dropped.
pub(super) struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    fn start(
        lab: &Lab,
        namespace: usize,
        (side, real_time): (&str, bool),
        (server, client): (SocketAddr, SocketAddr),
        scratch: &Path,
    ) -> Result<Self, Failure> {
        let own = std::env::current_exe()?;
        let mut command = if real_time {
            let mut command = lab.namespace(namespace).command("chrt");
            command.args(["--fifo", PRIORITY]).arg(own);
            command
        } else {
            lab.namespace(namespace).command(own)
        };
        let mut child = command
            .args(["--side", side])
            .args(["--server", &server.to_string(), "--client", &client.to_string()])
            .arg("--scratch")
            .arg(scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the child has no standard output")?;
        let (give, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if give.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The next line, or `None` at the deadline.
    pub(super) fn line(&mut self, deadline: Instant) -> Result<Option<String>, Failure> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err("a side ended early (its message is above)".into()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to stop.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_bytes_are_read_and_others_are_not() {
        assert_eq!(parse_bytes("bytes 17 4"), Some((17, 4)));
        for line in ["ready", "bytes", "bytes 1", "bytes x 4"] {
            assert_eq!(parse_bytes(line), None, "{line}");
        }
    }
}
