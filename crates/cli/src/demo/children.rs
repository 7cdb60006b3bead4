//! The processes of the demo: started, listened to, and ended on every way out.
//!
//! Each child has a pipe as standard input and ends when that closes, so none survives us, however
//! we die. On an orderly way out the pipes are closed first and stragglers are killed by handle.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cmd::Context;
use crate::error::{CliError, Exit};

/// How long children may take to end after their standard input was closed.
const END_TIMEOUT: Duration = Duration::from_millis(2500);

/// Longest line that is read from a child, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// Bytes of a child's log that are shown when it fails.
const LOG_TAIL: usize = 2000;

/// Settings of the user's own node must not leak into the demo.
const FOREIGN_SETTINGS: [&str; 8] = [
    "PILOTAGE_STATE",
    "PILOTAGE_CONFIG",
    "PILOTAGE_HUB",
    "PILOTAGE_REGISTRY",
    "PILOTAGE_BEACON",
    "PILOTAGE_NAME",
    "PILOTAGE_BIND",
    "RUST_BACKTRACE",
];

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Hub,
    NodeA,
    NodeB,
}

impl Role {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::NodeA => "node A",
            Self::NodeB => "node B",
        }
    }

    pub(super) fn directory(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::NodeA => "a",
            Self::NodeB => "b",
        }
    }
}

/// What a child said.
struct Said {
    role: Role,
    /// A JSON line; `None` = its output has ended.
    line: Option<Value>,
}

/// All children.
pub(super) struct Children<'a> {
    context: &'a Context,
    dir: &'a Path,
    running: Vec<(Role, Child)>,
    said: Receiver<Said>,
    speak: Sender<Said>,
    /// Lines that came while another child was waited for.
    waiting: Vec<Said>,
}

impl<'a> Children<'a> {
    pub(super) fn new(context: &'a Context, dir: &'a Path) -> Self {
        let (speak, said) = channel();
        Self { context, dir, running: Vec::new(), said, speak, waiting: Vec::new() }
    }

    /// Starts this program again with `args`, in a state directory of its own.
    pub(super) fn start(&mut self, role: Role, args: &[&str]) -> Result<(), CliError> {
        let failed = |error: io::Error| {
            CliError::failure(format!("start {}", role.label()), error, "check the limits of this user")
        };
        let state = self.dir.join(role.directory());
        let log = File::create(self.log(role)).map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command
            .args(args)
            .args(["--json", "--exit-with-stdin"])
            .arg("--state")
            .arg(&state)
            .arg("--config")
            .arg(self.dir.join("empty.toml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        for name in FOREIGN_SETTINGS {
            command.env_remove(name);
        }
        let mut child = command.spawn().map_err(failed)?;
        let stdout = child.stdout.take();
        self.running.push((role, child));
        let speak = self.speak.clone();
        thread::Builder::new()
            .name(format!("{}-output", role.directory()))
            .spawn(move || {
                if let Some(stdout) = stdout {
                    read_lines(stdout, |line| speak.send(Said { role, line: Some(line) }).is_ok());
                }
                let _ = speak.send(Said { role, line: None });
            })
            .map_err(failed)?;
        Ok(())
    }

    /// Waits for a line of `role` with one of these events. Lines of others are kept for later. A
    /// child that ends or reports an error ends the wait.
    pub(super) fn expect(
        &mut self,
        role: Role,
        events: &[&str],
        timeout: Duration,
    ) -> Result<Value, CliError> {
        let deadline = Instant::now() + timeout;
        let wanted = |said: &Said| {
            said.role == role
                && said
                    .line
                    .as_ref()
                    .is_some_and(|line| line["event"].as_str().is_some_and(|e| events.contains(&e)))
        };
        if let Some(index) = self.waiting.iter().position(wanted) {
            return Ok(self.waiting.remove(index).line.unwrap_or_default());
        }
        loop {
            if self.context.stop.requested() {
                return Err(CliError::interrupted());
            }
            let said = match self.said.recv_timeout(Duration::from_millis(100)) {
                Ok(said) => said,
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => continue,
                Err(_) => return Err(self.too_slow(role, events, timeout)),
            };
            match &said.line {
                // A is done, with all its lines kept, while we still wait for B's.
                None if said.role == Role::NodeA && role != Role::NodeA && self.succeeded(Role::NodeA) => {}
                None => return Err(self.ended(said.role)),
                Some(line) if line["event"] == "error" => return Err(self.reported(said.role, line)),
                Some(line) if wanted(&said) => return Ok(line.clone()),
                // A running commentary would fill memory.
                Some(line) if line["event"] == "progress" => {}
                Some(_) => self.waiting.push(said),
            }
        }
    }

    fn log(&self, role: Role) -> PathBuf {
        self.dir.join(format!("{}.log", role.directory()))
    }

    fn too_slow(&self, role: Role, events: &[&str], timeout: Duration) -> CliError {
        CliError::new(
            Exit::Unreachable,
            role.label(),
            format!("no {} within {} s{}", events.join(" or "), timeout.as_secs(), self.log_tail(role)),
            "run the demo again with -v --keep and look at the logs",
        )
    }

    /// Waits for a child whose output has ended.
    fn succeeded(&mut self, role: Role) -> bool {
        let child = self.running.iter_mut().find(|(other, _)| *other == role);
        child.is_some_and(|(_, child)| child.wait().is_ok_and(|status| status.success()))
    }

    fn ended(&mut self, role: Role) -> CliError {
        let child = self.running.iter_mut().find(|(other, _)| *other == role);
        let status = child.and_then(|(_, child)| child.wait().ok());
        let status = status.map_or("unknown status".into(), |status| status.to_string());
        CliError::new(
            Exit::Failure,
            role.label(),
            format!("the process ended early ({status}){}", self.log_tail(role)),
            "run the demo again with --keep and look at the logs",
        )
    }

    /// The child's own error, with its exit code.
    fn reported(&self, role: Role, line: &Value) -> CliError {
        let word = |key: &str| line[key].as_str().unwrap_or("unknown").to_owned();
        let exit = match line["exit_code"].as_u64() {
            Some(3) => Exit::Unreachable,
            Some(4) => Exit::Verification,
            _ => Exit::Failure,
        };
        CliError::new(exit, format!("{}: {}", role.label(), word("stage")), word("cause"), word("next"))
    }

    fn log_tail(&self, role: Role) -> String {
        let text = fs::read(self.log(role)).unwrap_or_default();
        let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]).trim().to_owned();
        if tail.is_empty() {
            String::new()
        } else {
            format!("; its log ends:\n    {}", tail.replace('\n', "\n    "))
        }
    }
}

impl Drop for Children<'_> {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            drop(child.stdin.take());
        }
        let deadline = Instant::now() + END_TIMEOUT;
        for (role, child) in &mut self.running {
            while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
                thread::sleep(Duration::from_millis(10));
            }
            if matches!(child.try_wait(), Ok(None)) {
                tracing::warn!(process = role.label(), pid = child.id(), "did not end in time, killing it");
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}

/// Calls `line` for every JSON line until it returns false or the output ends.
fn read_lines(output: impl Read, mut line: impl FnMut(Value) -> bool) {
    let mut reader = BufReader::new(output);
    let mut text = Vec::new();
    loop {
        text.clear();
        match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut text) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // Anything else on standard output would be a mistake of ours, not worth dying for.
        if let Ok(value) = serde_json::from_slice(&text)
            && !line(value)
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_are_read_and_noise_is_skipped() {
        let mut seen = Vec::new();
        read_lines(&b"{\"a\":1}\nnoise\n{\"b\":2}"[..], |line| {
            seen.push(line);
            true
        });
        assert_eq!(seen, [json!({ "a": 1 }), json!({ "b": 2 })]);
    }
}
