//! A stream to the echo service of the peer, with a number sent at every tick: what comes back, when, and in order.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pilotage_lab::Namespace;

use crate::Failure;
use crate::stop;

/// How long the last numbers may take to come back.
const DRAIN: Duration = Duration::from_secs(5);

/// What the threads write down.
#[derive(Debug, Default)]
struct Notes {
    sent: Vec<Instant>,
    back: Vec<Instant>,
    /// The first number that came out of order, if one did.
    wrong: bool,
}

/// The running stream.
pub(crate) struct Echo {
    dialled: Instant,
    child: Child,
    notes: Arc<Mutex<Notes>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    errors: std::path::PathBuf,
}

/// What became of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// From the dial to the first byte that came back.
    pub(crate) first_byte: Option<Duration>,
    /// Numbers that did not come back, or not in order.
    pub(crate) lost: usize,
    /// Each number's way there and back.
    pub(crate) round_trips: Vec<Duration>,
    /// When each was sent, in order.
    pub(crate) sent: Vec<Instant>,
}

impl Echo {
    /// Dials: `pilotage connect PEER 7` through the node of this state directory.
    pub(crate) fn dial(
        binary: &Path,
        room: &Namespace,
        state: &Path,
        peer: &str,
        tick: Duration,
        folder: &Path,
    ) -> Result<Self, Failure> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let errors = folder.join(format!("connect{number}.err"));
        let dialled = Instant::now();
        let mut command = room.command(binary);
        command.args(["connect", peer, "7", "--state"]).arg(state).args(["--connect-timeout", "30s"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(std::fs::File::create(&errors)?);
        let mut child = command.spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (notes, stop) = (Arc::<Mutex<Notes>>::default(), Arc::<AtomicBool>::default());
        let mut threads = Vec::new();
        if let Some(mut stdin) = stdin {
            let (notes, stop) = (notes.clone(), stop.clone());
            threads.push(std::thread::spawn(move || {
                for number in 0_u64.. {
                    lock(&notes).sent.push(Instant::now());
                    if stop.load(Ordering::Acquire) || stdin.write_all(&number.to_be_bytes()).is_err() {
                        // This one was not sent.
                        lock(&notes).sent.pop();
                        break;
                    }
                    std::thread::sleep(tick);
                }
            }));
        }
        if let Some(mut stdout) = stdout {
            let notes = notes.clone();
            threads.push(std::thread::spawn(move || {
                let mut buffer = [0; 8];
                for number in 0_u64.. {
                    if stdout.read_exact(&mut buffer).is_err() {
                        break;
                    }
                    let mut notes = lock(&notes);
                    notes.wrong |= u64::from_be_bytes(buffer) != number;
                    notes.back.push(Instant::now());
                }
            }));
        }
        Ok(Self { dialled, child, notes, stop, threads, errors })
    }

    /// When it was dialled.
    pub(crate) fn dialled(&self) -> Instant {
        self.dialled
    }

    /// From the dial to the first byte that came back.
    pub(crate) fn first_byte(&self) -> Option<Duration> {
        lock(&self.notes).back.first().map(|at| at.duration_since(self.dialled))
    }

    /// Waits for the first byte.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<Duration, Failure> {
        let end = self.dialled + patience;
        loop {
            if let Some(time) = self.first_byte() {
                return Ok(time);
            }
            stop::check()?;
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() >= end {
                return Err(self.complaint().into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Why there is no connection, in the program's words.
    fn complaint(&self) -> String {
        let text = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let words = text.lines().filter(|line| !line.starts_with("connected")).collect::<Vec<_>>().join(" ");
        if words.trim().is_empty() {
            "no answer, and nothing said".into()
        } else {
            words.chars().take(200).collect()
        }
    }

    /// Sends no more, waits for what is under way, and says what became of it.
    pub(crate) fn finish(mut self) -> Outcome {
        self.stop.store(true, Ordering::Release);
        let end = Instant::now() + DRAIN;
        let is_open = |echo: &mut Self| matches!(echo.child.try_wait(), Ok(None));
        while is_open(&mut self) && Instant::now() < end && !stop::requested() {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.end();
        let notes = lock(&self.notes);
        let lost = notes.sent.len().saturating_sub(notes.back.len());
        let round_trips = notes.sent.iter().zip(&notes.back).map(|(sent, back)| back.duration_since(*sent));
        Outcome {
            first_byte: notes.back.first().map(|at| at.duration_since(self.dialled)),
            lost: if notes.wrong { notes.sent.len() } else { lost },
            round_trips: round_trips.collect(),
            sent: notes.sent.clone(),
        }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        // One that has ended needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}
