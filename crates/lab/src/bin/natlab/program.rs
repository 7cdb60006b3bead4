//! Child processes whose output is read along, line by line.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pilotage_lab::Namespace;
use serde_json::Value;

use crate::Failure;
use crate::stop;

/// How long a program may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(3);
/// How often a waiting thread looks whether all of it should end.
const NAP: Duration = Duration::from_millis(20);
/// Lines of one program that are kept: more than any run has.
const MAX_LINES: usize = 100_000;

/// The lines of one program.
#[derive(Default)]
struct Lines {
    all: Mutex<Vec<(Instant, String)>>,
    more: Condvar,
}

/// A program in the background. It is ended, at the latest when this is dropped.
pub(crate) struct Program {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Arc<Lines>,
    errors: PathBuf,
}

impl Program {
    /// Starts a program in a namespace. Its standard error goes to `folder/name.err`.
    pub(crate) fn start(
        room: &Namespace,
        folder: &Path,
        name: &str,
        program: &Path,
        args: &[&str],
        settings: &[(&str, &OsStr)],
    ) -> Result<Self, Failure> {
        let mut command = room.command(program);
        command.args(args).envs(settings.iter().copied());
        Self::spawn(command, folder, name)
    }

    fn spawn(mut command: Command, folder: &Path, name: &str) -> Result<Self, Failure> {
        let errors = folder.join(format!("{name}.err"));
        let log = File::create(&errors)?;
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn();
        let mut child = child.map_err(|error| format!("cannot start {name}: {error}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let lines = Arc::<Lines>::default();
        let kept = lines.clone();
        let own = name.to_owned();
        if let Some(stdout) = stdout {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok).take(MAX_LINES) {
                    if std::env::var_os("NATLAB_TRACE").is_some() {
                        eprintln!("{own}: {line}");
                    }
                    lock(&kept.all).push((Instant::now(), line));
                    kept.more.notify_all();
                }
            });
        }
        Ok(Self { name: name.to_owned(), child, stdin, lines, errors })
    }

    /// All JSON lines so far, with their times.
    pub(crate) fn events(&self) -> Vec<(Instant, Value)> {
        let parse = |(at, line): &(Instant, String)| Some((*at, serde_json::from_str(line).ok()?));
        lock(&self.lines.all).iter().filter_map(parse).collect()
    }

    /// The first JSON line that fits, when it comes.
    pub(crate) fn wait_for(
        &mut self,
        what: &str,
        patience: Duration,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<(Instant, Value), Failure> {
        let end = Instant::now() + patience;
        let mut seen = 0;
        loop {
            {
                let lines = lock(&self.lines.all);
                for (at, line) in &lines[seen..] {
                    if let Ok(value) = serde_json::from_str(line)
                        && fits(&value)
                    {
                        return Ok((*at, value));
                    }
                }
                seen = lines.len();
                let waited = self.lines.more.wait_timeout(lines, NAP);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
            stop::check()?;
            if let Some(status) = self.child.try_wait()? {
                // What it printed last may still be on its way through the pipe.
                std::thread::sleep(NAP);
                if lock(&self.lines.all).len() == seen {
                    return Err(format!(
                        "{} ended ({status}) before {what}: {}",
                        self.name,
                        self.complaint()
                    )
                    .into());
                }
            }
            if Instant::now() >= end {
                return Err(
                    format!("{}: no {what} after {patience:?}: {}", self.name, self.complaint()).into()
                );
            }
        }
    }

    /// The last words on standard error, or else on standard output.
    pub(crate) fn complaint(&self) -> String {
        let text = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned);
        let said = lock(&self.lines.all).last().map(|(_, line)| line.clone());
        let words = last.or(said).unwrap_or_else(|| "it says nothing".into());
        words.chars().take(300).collect()
    }

    /// Whether it has ended, and well.
    pub(crate) fn ended(&mut self) -> Result<Option<bool>, Failure> {
        Ok(self.child.try_wait()?.map(|status| status.success()))
    }

    /// Ends it at once, as a power cut would.
    pub(crate) fn kill(&mut self) {
        // One that has ended needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The end of the input ends our programs; others are told by a signal.
        drop(self.stdin.take());
        let end = Instant::now() + GRACE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end && !stop::requested() {
            std::thread::sleep(NAP);
        }
        self.kill();
    }
}

/// Runs a program to its end and returns its last JSON line.
pub(crate) fn ask(program: &Path, args: &[&str]) -> Result<Value, Failure> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    last.ok_or_else(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        format!("{} said nothing: {}", args.first().unwrap_or(&""), errors.trim()).into()
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
