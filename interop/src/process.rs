//! Child processes that end with us, bounded waits, free ports.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::Failure;

/// Where ports are taken from, and how many there are.
const FIRST_PORT: u16 = 12_000;
const PORTS: u16 = 20_000;

/// A folder that is removed in the end, unless it is to be kept.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    pub(crate) fn new(keep: bool) -> Result<Self, Failure> {
        let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        let path = std::env::temp_dir().join(format!("pilotage-interop-{}-{stamp}", std::process::id()));
        private_folder(&path)?;
        if keep {
            eprintln!("interop: state and logs are kept in {}", path.display());
        }
        Ok(Self { path, keep })
    }

    /// A new folder inside.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.path.join(name);
        private_folder(&path)?;
        Ok(path)
    }
}

/// Local sockets want a folder that nobody else can enter.
fn private_folder(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            // A leftover in the temporary directory harms nothing.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// A long-running process; stopped on drop. Its output goes to a log file.
#[derive(Debug)]
pub(crate) struct Background {
    child: Child,
    log: PathBuf,
}

impl Background {
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self, Failure> {
        Self::start_with(command, Stdio::null(), log)
    }

    /// The same with an input.
    pub(crate) fn start_with(command: &mut Command, input: Stdio, log: &Path) -> Result<Self, Failure> {
        let file = File::create(log)?;
        let child = command
            .stdin(input)
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", command.get_program().to_string_lossy()))?;
        Ok(Self { child, log: log.to_path_buf() })
    }

    /// The same with an input, and its output apart from its log.
    pub(crate) fn start_split(
        command: &mut Command,
        input: Stdio,
        output: &Path,
        log: &Path,
    ) -> Result<Self, Failure> {
        let child = command
            .stdin(input)
            .stdout(File::create(output)?)
            .stderr(File::create(log)?)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", command.get_program().to_string_lossy()))?;
        Ok(Self { child, log: log.to_path_buf() })
    }

    /// The same with output through a pipe that nobody reads yet.
    pub(crate) fn start_unread(command: &mut Command, log: &Path) -> Result<Self, Failure> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(log)?)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", command.get_program().to_string_lossy()))?;
        Ok(Self { child, log: log.to_path_buf() })
    }

    /// The writing end of its input, if that is a pipe.
    pub(crate) fn take_input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The reading end of its output, if that is a pipe.
    pub(crate) fn take_output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> Result<bool, Failure> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end, which must be a success.
    pub(crate) fn ends_well(&mut self, what: &str, limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("{what}: {status}: {}", self.log_tail()).into()),
                None if Instant::now() >= deadline => {
                    return Err(format!("{what}: no end within {} s", limit.as_secs()).into());
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Waits until `ready` says so; an error shows the end of the log.
    pub(crate) fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if ready() {
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() >= deadline {
                let why = ended.map_or("did not get ready in 60 s".to_owned(), |status| status.to_string());
                return Err(format!("{what}: {why}; log ends: {}", self.log_tail()).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a JSON line with this event in its output.
    pub(crate) fn wait_for_event(&mut self, event: &str) -> Result<serde_json::Value, Failure> {
        let log = self.log.clone();
        let mut found = None;
        self.wait_until(event, || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            found = json_lines(&text).into_iter().find(|line| line["event"] == event);
            found.is_some()
        })?;
        found.ok_or_else(|| format!("no event {event}").into())
    }

    /// All of its output so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to stop.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a program ended, and all that it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
}

/// Runs a program to its end within a time limit, with these bytes as its input, and returns its output.
pub(crate) fn run(command: &mut Command, input: &[u8], limit: Duration) -> Result<Vec<u8>, Failure> {
    let Ended { status, out, err } = run_any(command, input, limit)?;
    if !status.success() {
        let text = String::from_utf8_lossy(if err.is_empty() { &out } else { &err }).trim().to_owned();
        return Err(format!("{}: {status}: {}", name_of(command), cause(&text)).into());
    }
    Ok(out)
}

fn name_of(command: &Command) -> String {
    Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The same where a failure is an answer, too.
pub(crate) fn run_any(command: &mut Command, input: &[u8], limit: Duration) -> Result<Ended, Failure> {
    let name = name_of(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start {name}: {e}"))?;
    let mut stdin = child.stdin.take().ok_or("no standard input")?;
    let stdout = child.stdout.take().ok_or("no standard output")?;
    let stderr = child.stderr.take().ok_or("no standard error")?;
    let input = input.to_vec();
    // A program that ends early closes its input: the write error says nothing that its status does not.
    std::thread::spawn(move || stdin.write_all(&input).is_ok());
    let out = std::thread::spawn(move || read_all(stdout));
    let err = std::thread::spawn(move || read_all(stderr));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(format!("{name}: no end within {} s", limit.as_secs()).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let out = out.join().map_err(|_| "reading standard output failed")?;
    let err = err.join().map_err(|_| "reading standard error failed")?;
    Ok(Ended { status, out, err })
}

/// What a failed program says: the cause in its JSON, else its last line.
fn cause(text: &str) -> String {
    let error = json_lines(text).into_iter().rev().find(|line| line["event"] == "error");
    let said = error.map(|line| format!("{}: {}", line["stage"], line["cause"]));
    said.unwrap_or_else(|| text.lines().last().unwrap_or_default().to_owned())
}

/// The lines that are JSON objects.
pub(crate) fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .filter(|line| line.starts_with('{'))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn read_all(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What came before an error is what there is to show.
    let _ = from.read_to_end(&mut bytes);
    bytes
}

/// A loopback port that is free for TCP and UDP just now.
pub(crate) fn free_address() -> Result<SocketAddr, Failure> {
    // Below those that the system gives to sockets without a wish, which would take one that was free a moment ago.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = std::process::id() as u16;
    for _ in 0..PORTS {
        let number = own.wrapping_mul(61).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let addr = SocketAddr::from(([127, 0, 0, 1], FIRST_PORT + number));
        if TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
    Err("no port is free for both TCP and UDP".into())
}

/// Whether something accepts TCP connections there.
pub(crate) fn accepts(addr: SocketAddr) -> bool {
    TcpStream::connect_timeout(&addr, Duration::from_millis(200)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_its_input_and_is_stopped_at_the_limit() {
        let mut cat = Command::new("cat");
        let input = vec![7_u8; 300_000];
        assert_eq!(run(&mut cat, &input, Duration::from_secs(10)).expect("cat"), input);
        let error = run(Command::new("sleep").arg("30"), &[], Duration::from_millis(100)).expect_err("limit");
        assert!(error.to_string().contains("no end within"), "{error}");
        let error =
            run(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), &[], Duration::from_secs(10))
                .expect_err("status");
        assert!(error.to_string().contains("why"), "{error}");
    }

    #[test]
    fn a_process_that_ends_before_it_is_ready_is_an_error_with_its_log() {
        let folder = tempfile::tempdir().expect("folder");
        let mut command = Command::new("sh");
        command.args(["-c", "echo port in use; exit 1"]);
        let mut background = Background::start(&mut command, &folder.path().join("log")).expect("start");
        let error = background.wait_until("hub", || false).expect_err("not ready");
        assert!(error.to_string().contains("port in use"), "{error}");
    }
}
