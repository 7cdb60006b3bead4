//! `pilotage demo`: a hub and two nodes as separate processes; A finds B by name and sends it a
//! file, B verifies it, then round trips and datagrams. Everything lives in a temporary directory.

mod children;
mod generate;
mod report;
mod sender;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use self::children::{Children, Role};
use self::report::{NodeInfo, Report};
use crate::args::DemoArgs;
use crate::cmd::{Context, create_private_dir};
use crate::error::{CliError, Exit};
use crate::progress::Progress;
use crate::units::format_bytes;

pub(crate) use self::sender::run as sender;

/// How long a process may take to get ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a transfer may stand still before the demo gives up. The transport gives up earlier.
const STALL_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a batch of measurements may take.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) fn run(context: &Context, args: &DemoArgs) -> Result<(), CliError> {
    let dir = WorkDir::create(args.keep).map_err(|error| work_dir_error(&error))?;
    let result = run_in(context, args, dir.path());
    if args.keep {
        context.output.note(format!("kept: {}", dir.path().display()));
    }
    let report = result?;
    context.output.result(report.to_text(), &report.to_json());
    if report.verified {
        Ok(())
    } else {
        Err(CliError::new(
            Exit::Verification,
            "verify",
            "sender and receiver disagree on the file's length or hash",
            "run the demo again with --keep and compare the files",
        ))
    }
}

fn run_in(context: &Context, args: &DemoArgs, dir: &Path) -> Result<Report, CliError> {
    let output = &context.output;
    let (file, expected_hash) = source(context, args, dir)?;
    fs::write(dir.join("empty.toml"), "").map_err(|error| work_dir_error(&error))?;
    let total = fs::metadata(&file).map_err(|error| file_error(&file, &error))?.len();
    let mut children = Children::new(context, dir);
    let (ready_a, ready_b) = start_all(context, args, dir, &file, &mut children)?;
    let connected = children.expect(Role::NodeA, &["connected"], READY_TIMEOUT)?;

    let progress = Progress::bytes(output, "A to B", Some(total));
    let sent = loop {
        let line = children.expect(Role::NodeA, &["progress", "sent"], STALL_TIMEOUT)?;
        progress.set(line["bytes"].as_u64().unwrap_or(0));
        if line["event"] == "sent" {
            break line;
        }
    };
    progress.clear();
    let received = children.expect(Role::NodeB, &["received"], READY_TIMEOUT)?;
    output.note(format!("B has verified {}", format_bytes(received["bytes"].as_u64().unwrap_or(0))));
    let rtt_us = children.expect(Role::NodeA, &["round_trips"], MEASURE_TIMEOUT)?["rtt_us"].take();
    let datagrams = children.expect(Role::NodeA, &["datagrams"], MEASURE_TIMEOUT)?["datagrams"].take();

    let hash = received["blake3"].clone();
    let verified = received["verified"] == true
        && received["bytes"] == total
        && sent["bytes"] == total
        && hash.is_string()
        && sent["blake3"] == hash
        && expected_hash.is_none_or(|expected| hash == hex::encode(expected));
    Ok(Report {
        verified,
        bytes: received["bytes"].as_u64().unwrap_or(0),
        blake3: hash.as_str().unwrap_or_default().to_owned(),
        nodes: vec![NodeInfo::from_ready(&ready_a, "alice"), NodeInfo::from_ready(&ready_b, "bob")],
        connected,
        sent,
        rtt_us,
        datagrams,
    })
}

/// Starts hub, B and A, each after the one before is ready; returns the ready lines of A and B.
fn start_all(
    context: &Context,
    args: &DemoArgs,
    dir: &Path,
    file: &Path,
    children: &mut Children<'_>,
) -> Result<(Value, Value), CliError> {
    let output = &context.output;
    children.start(Role::Hub, &["hub", "--listen", "127.0.0.1", "--registry-port", "0"])?;
    let hub = children.expect(Role::Hub, &["ready"], READY_TIMEOUT)?;
    let (registry, beacon) = (word(&hub, "registry"), word(&hub, "beacon"));
    output.note(format!("hub ready: registry {registry}, beacon {beacon}"));
    let at_hub = ["--registry", registry, "--beacon", beacon, "--bind", "127.0.0.1:0"];

    let inbox = dir.join("inbox");
    let inbox = inbox.to_str().ok_or_else(|| utf8_error(dir))?;
    children.start(Role::NodeB, &[&["up", "--name", "bob", "--inbox", inbox], &at_hub[..]].concat())?;
    let ready_b = children.expect(Role::NodeB, &["ready"], READY_TIMEOUT)?;
    output.note(format!(
        "node B ready: bob, {}, {}",
        word(&ready_b, "address"),
        word(&ready_b, "fingerprint")
    ));

    let path = file.to_str().ok_or_else(|| utf8_error(file))?;
    let (round_trips, datagrams) = (args.round_trips.to_string(), args.datagrams.to_string());
    let own = [
        "demo-sender",
        "bob",
        path,
        "--name",
        "alice",
        "--round-trips",
        &round_trips,
        "--datagrams",
        &datagrams,
    ];
    children.start(Role::NodeA, &[&own[..], &at_hub[..]].concat())?;
    let ready_a = children.expect(Role::NodeA, &["ready"], READY_TIMEOUT)?;
    output.note(format!(
        "node A ready: alice, {}, {}",
        word(&ready_a, "address"),
        word(&ready_a, "fingerprint")
    ));
    Ok((ready_a, ready_b))
}

/// The user's file, or one that is made; with its hash in the latter case.
fn source(context: &Context, args: &DemoArgs, dir: &Path) -> Result<(PathBuf, Option<[u8; 32]>), CliError> {
    if let Some(file) = &args.file {
        let metadata = fs::metadata(file).map_err(|error| file_error(file, &error))?;
        if !metadata.is_file() {
            return Err(file_error(file, &io::Error::other("not a regular file")));
        }
        return Ok((fs::canonicalize(file).map_err(|error| file_error(file, &error))?, None));
    }
    let path = dir.join("demo.bin");
    context.output.note(format!("making {} from seed {}", format_bytes(args.size), args.seed));
    let made = generate::generate(&path, args.size, args.seed, &context.stop);
    match made.map_err(|error| work_dir_error(&error))? {
        Some(hash) => Ok((path, Some(hash))),
        None => Err(CliError::interrupted()),
    }
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("-")
}

fn file_error(path: &Path, error: &io::Error) -> CliError {
    CliError::failure(
        "open file",
        format!("{}: {error}", path.display()),
        "check the path and its permissions",
    )
}

fn utf8_error(path: &Path) -> CliError {
    CliError::usage("open file", format!("{} is not UTF-8", path.display()), "use a path in UTF-8")
}

fn work_dir_error(error: &io::Error) -> CliError {
    CliError::failure(
        "work directory",
        format!("{}: {error}", std::env::temp_dir().display()),
        "make room there (twice the size of the file), name another place with TMPDIR, or use a smaller --size",
    )
}

/// A fresh directory below the system's temporary one, removed at the end.
struct WorkDir {
    path: PathBuf,
    keep: bool,
}

impl WorkDir {
    fn create(keep: bool) -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let path = std::env::temp_dir().join(format!("pilotage-demo-{}", hex::encode(random)));
        if path.symlink_metadata().is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        create_private_dir(&path)?;
        // From now on the drop cleans up.
        let dir = Self { path, keep };
        Ok(dir)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the work directory");
        }
    }
}
