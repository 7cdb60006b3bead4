//! Runs the real binary, several processes at a time, everything bounded in time and on free ports.
#![allow(dead_code)]

#[path = "../../../cluster/src/free.rs"]
pub(crate) mod free;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Bound of a step that needs no network time-out.
pub(crate) const STEP: Duration = Duration::from_secs(60);

/// A command of the program, free of the settings of whoever runs the tests.
pub(crate) fn pilotage(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilotage"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PILOTAGE_") {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_LOG").env("XDG_CONFIG_HOME", "/nonexistent").args(args);
    command
}

/// Runs to the end, at most `timeout`.
pub(crate) fn run_for(args: &[&str], input: &[u8], timeout: Duration) -> Output {
    let mut child =
        pilotage(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let out = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stdout.read_to_end(&mut bytes);
        bytes
    });
    let err = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stderr.read_to_end(&mut bytes);
        bytes
    });
    let status = wait(&mut child, timeout).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("{args:?} did not end within {timeout:?}");
    });
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

pub(crate) fn run(args: &[&str]) -> Output {
    run_for(args, b"", STEP)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The JSON lines of an output.
pub(crate) fn lines(bytes: &[u8]) -> Vec<Value> {
    text(bytes)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

/// The line of an event.
pub(crate) fn event<'a>(lines: &'a [Value], name: &str) -> &'a Value {
    lines.iter().find(|line| line["event"] == name).unwrap_or_else(|| panic!("no {name} in {lines:#?}"))
}

/// Waits for the end; `None` after `timeout`.
pub(crate) fn wait(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A command that runs in the background; killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    said: Receiver<Value>,
    name: String,
}

impl Running {
    /// Starts a command and reads JSON lines from its standard output, or from standard error if it
    /// has data on standard output.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_with(args, Stdio::null(), false)
    }

    pub(crate) fn start_with(args: &[&str], stdin: Stdio, json_on_stderr: bool) -> Self {
        let mut child = pilotage(args)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(if json_on_stderr { Stdio::piped() } else { Stdio::inherit() })
            .spawn()
            .unwrap();
        let (say, said) = channel();
        let source: Box<dyn Read + Send> = if json_on_stderr {
            Box::new(child.stderr.take().unwrap())
        } else {
            Box::new(child.stdout.take().unwrap())
        };
        thread::spawn(move || {
            for line in BufReader::new(source).lines() {
                let Ok(line) = line else { return };
                if let Ok(value) = serde_json::from_str(&line)
                    && say.send(value).is_err()
                {
                    return;
                }
            }
        });
        Self { child, said, name: args.join(" ") }
    }

    /// Waits for a line of this event.
    pub(crate) fn expect(&self, name: &str, timeout: Duration) -> Value {
        self.expect_one(&[name], timeout)
    }

    pub(crate) fn expect_one(&self, names: &[&str], timeout: Duration) -> Value {
        let deadline = Instant::now() + timeout;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok(line) if names.iter().any(|name| line["event"] == *name) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("{}: no {names:?} within {timeout:?}; seen {seen:#?}", self.name),
            }
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn wait(&mut self, timeout: Duration) -> ExitStatus {
        wait(&mut self.child, timeout)
            .unwrap_or_else(|| panic!("{} did not end within {timeout:?}", self.name))
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The operator's token of the hub of a [`Lab`].
pub(crate) const ADMIN_TOKEN: &str = "token-of-the-lab";

/// A hub and directories for nodes, all of which end and vanish with the value.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) hub: Running,
    pub(crate) registry: String,
    pub(crate) beacon: String,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = start_hub(dir.path(), "0", "0");
        let ready = hub.expect("ready", STEP);
        let word = |key: &str| ready[key].as_str().unwrap().to_owned();
        Self { registry: word("registry"), beacon: word("beacon"), dir, hub }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `args` for a node of this lab with a state directory of its own.
    pub(crate) fn args(&self, node: &str, args: &[&str]) -> Vec<String> {
        let state = self.path(node);
        let own = [
            "--state",
            state.to_str().unwrap(),
            "--registry",
            &self.registry,
            "--beacon",
            &self.beacon,
            "--bind",
            "127.0.0.1:0",
            "--json",
        ];
        args.iter().chain(&own).map(|arg| (*arg).to_owned()).collect()
    }

    pub(crate) fn start(&self, node: &str, args: &[&str]) -> Running {
        let args = self.args(node, args);
        Running::start(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub(crate) fn run(&self, node: &str, args: &[&str], input: &[u8]) -> Output {
        let args = self.args(node, args);
        run_for(&args.iter().map(String::as_str).collect::<Vec<_>>(), input, STEP)
    }

    /// Runs a command that starts no node.
    pub(crate) fn run_tool(&self, node: &str, args: &[&str]) -> Output {
        let state = self.path(node);
        let own = ["--state", state.to_str().unwrap(), "--registry", &self.registry, "--json"];
        run(&args.iter().chain(&own).copied().collect::<Vec<_>>())
    }

    /// `up`, with its ready line.
    pub(crate) fn up(&self, node: &str) -> (Running, Value) {
        let running = self.start(node, &["up", "--name", node]);
        let ready = running.expect("ready", STEP);
        (running, ready)
    }

    /// Kills the hub and starts it again on the same ports and store.
    pub(crate) fn restart_hub(&mut self) {
        self.hub.kill();
        let port = |addr: &str| addr.rsplit(':').next().unwrap().to_owned();
        // In the meantime another program may hold a port: these come from the ephemeral range.
        for _ in 0..50 {
            self.hub = start_hub(self.dir.path(), &port(&self.registry), &port(&self.beacon));
            if self.hub.said.recv_timeout(STEP).is_ok_and(|line| line["event"] == "ready") {
                return;
            }
            thread::sleep(Duration::from_millis(200));
        }
        panic!("the hub does not come back");
    }
}

fn start_hub(dir: &Path, registry_port: &str, beacon_port: &str) -> Running {
    let state = dir.join("hub");
    Running::start(&[
        "hub",
        "--json",
        "--listen",
        "127.0.0.1",
        "--registry-port",
        registry_port,
        "--beacon-port",
        beacon_port,
        "--admin-token",
        ADMIN_TOKEN,
        "--state",
        state.to_str().unwrap(),
    ])
}

/// Bytes that differ everywhere.
pub(crate) fn data(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 253 * 7) as u8).collect()
}

/// Whether a directory holds nothing but what `allowed` names, and perhaps the index of an inbox.
pub(crate) fn only(dir: &Path, allowed: &[&str]) -> bool {
    let index = ".pilotage-inbox.jsonl";
    dir.read_dir().unwrap().all(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name == index || allowed.contains(&name.as_str())
    })
}
