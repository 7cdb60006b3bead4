//! Scenarios between ours and the reference, each in the pairings ours → theirs, theirs → ours and theirs → theirs
//! through a hub of ours. The last is the baseline: what the reference cannot do with itself is no fault of ours.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::lab::Lab;
use super::meeting::{Meeting, PipeEnd, Place};
use super::{Outcome, Passed, content, require};
use crate::Failure;
use crate::driver::Driver;
use crate::process::Background;
use crate::subject::Kind;

/// Echo service of every implementation.
const ECHO: &str = "7";
/// Idle for longer than the reference lets an idle connection live (120 s and a sweep of 15 s).
const IDLE: Duration = Duration::from_secs(180);
/// Connections that are opened and closed one after another.
const CLOSED: usize = 5;
/// When a reference daemon has forgotten a closed connection: TIME_WAIT 10 s, swept each 15 s.
const FORGOTTEN: Duration = Duration::from_secs(45);
/// For how long a slow reader reads nothing.
const STALL: Duration = Duration::from_secs(4);

/// A stream with much data in one direction.
pub(super) fn stream(lab: &Lab<'_>, kinds: (Kind, Kind), down: bool) -> Result<Passed, Failure> {
    let sender = if down { kinds.1 } else { kinds.0 };
    let len = amount(lab, kinds, sender);
    let meeting = Meeting::start(lab, kinds, Place::Command)?;
    let piped = meeting.pipe(&content(len, lab.plan.seed), down)?;
    let unharmed = meeting.is_unharmed()?;
    let counts = if down { piped.seen.down.counts } else { piped.seen.up.counts };
    // Of the few datagrams of a slow sender it may be that none is lost.
    let lossless = lab.plan.up.loss.is_some() && counts.lost == 0 && counts.offered > 200;
    require(!lossless, || "the link lost nothing".into())?;
    let said = format!("{} KiB, {} of {} datagrams lost on the link", len >> 10, counts.lost, counts.offered);
    Ok(unharmed.passed(said).with_figure(piped.mbytes_per_second(), "MB/s"))
}

/// How many bytes are moved: the reference is slow, and slower with itself, and a rate needs no more.
fn amount(lab: &Lab<'_>, kinds: (Kind, Kind), sender: Kind) -> usize {
    let index = match (kinds, sender) {
        ((Kind::Reference, Kind::Reference), _) => 2,
        (_, Kind::Reference) => 1,
        (_, Kind::Pilotage) => 0,
    };
    lab.plan.files.get(index).copied().unwrap_or_default()
}

/// The server, or the client, is a new process with the old identity.
pub(super) fn restart(lab: &Lab<'_>, kinds: (Kind, Kind), server: bool) -> Result<Passed, Failure> {
    let mut meeting = Meeting::start(lab, kinds, Place::Node)?;
    let before = meeting.echo()?;
    if server {
        meeting.restart_server()?
    } else {
        meeting.restart_client()?
    }
    let after = meeting.echo()?;
    let unharmed = meeting.is_unharmed()?;
    Ok(unharmed
        .passed(format!("echo in {} ms before", before.as_millis()))
        .with_figure(after.as_secs_f64(), "s to the echo after"))
}

/// A connection on which nothing is said for three minutes.
pub(super) fn idle(lab: &Lab<'_>, kinds: (Kind, Kind)) -> Result<Passed, Failure> {
    let meeting = Meeting::start(lab, kinds, Place::Node)?;
    let mut pipe = meeting.connect(ECHO, Stdio::piped(), false)?;
    let mut input = pipe.process().take_input().ok_or("no input")?;
    input.write_all(b"before\n")?;
    await_output(&mut pipe, b"before\n", Duration::from_secs(40))?;
    let before = meeting.proxy.seen();
    std::thread::sleep(IDLE);
    let passed = meeting.proxy.seen();
    let frames = |seen: &crate::proxy::Seen| seen.up.counts.offered + seen.down.counts.offered;
    let kept = frames(&passed) - frames(&before);
    input.write_all(b"after\n").map_err(|e| format!("the stream ended meanwhile: {e}"))?;
    await_output(&mut pipe, b"before\nafter\n", Duration::from_secs(20))?;
    require(kept <= 200, || format!("{kept} packets while nothing was said"))?;
    drop(input);
    drop(pipe);
    let unharmed = meeting.is_unharmed()?;
    Ok(unharmed.passed(format!("{kept} packets in 180 s kept it alive")))
}

/// Both begin at the same moment and know nothing of each other.
pub(super) fn simultaneous(lab: &Lab<'_>, kinds: (Kind, Kind)) -> Result<Passed, Failure> {
    let meeting = Meeting::start(lab, kinds, Place::Node)?;
    // A daemon dials back while our node's first packets are under way.
    let (daemon, other) = match kinds {
        (Kind::Reference, _) => (&meeting.client, &meeting.server),
        _ => (&meeting.server, &meeting.client),
    };
    let mut dial = meeting.driver(daemon, &["connect", &other.address, ECHO])?;
    let log = daemon.folder.join("back.log");
    let started = Instant::now();
    let back = Background::start_with(&mut dial, Stdio::piped(), &log)?;
    let there = if kinds.1 == Kind::Pilotage { None } else { Some(meeting.echo()?) };
    let took = match there {
        Some(took) => took,
        None => {
            // Our server has no command that dials; the daemon's own stream is what has to work.
            wait_for(&log, "connected", Duration::from_secs(20))?;
            started.elapsed()
        }
    };
    drop(back);
    let again = meeting.echo()?;
    let unharmed = meeting.is_unharmed()?;
    Ok(unharmed
        .passed(format!("and again in {} ms", again.as_millis()))
        .with_figure(took.as_secs_f64(), "s to the echo"))
}

/// Connections are closed; afterwards it is quiet, and a daemon has forgotten them.
pub(super) fn close(lab: &Lab<'_>, kinds: (Kind, Kind)) -> Result<Passed, Failure> {
    let meeting = Meeting::start(lab, kinds, Place::Node)?;
    for _ in 0..CLOSED {
        meeting.echo()?;
    }
    let unharmed = meeting.is_unharmed()?;
    let deadline = Instant::now() + FORGOTTEN;
    for node in [&meeting.client, &meeting.server].into_iter().filter(|node| node.kind == Kind::Reference) {
        let mut driver = Driver::open(&node.folder.join("pilot.sock"))?;
        loop {
            let left = driver.info()?["conn_list"].as_array().map_or(0, Vec::len);
            if left == 0 {
                break;
            }
            require(Instant::now() < deadline, || {
                format!("{left} closed connections are still held; {unharmed}")
            })?;
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    Ok(unharmed.passed(format!("{CLOSED} connections, all forgotten")))
}

/// A reader that stalls loses nothing and stops nobody else.
pub(super) fn slow_reader(lab: &Lab<'_>, kinds: (Kind, Kind)) -> Result<Passed, Failure> {
    // A reference daemon queues 512 segments, which may be of 64 KiB each.
    let len = amount(lab, kinds, kinds.0);
    let bytes = content(len, lab.plan.seed);
    let source = lab.scratch.folder("files")?.join("source.bin");
    std::fs::write(&source, &bytes)?;
    let meeting = Meeting::start(lab, kinds, Place::Command)?;
    let mut server = meeting.listen_unread("5000")?;
    let mut reader = server.process().take_output().ok_or("no output")?;
    let mut client = meeting.connect("5000", std::fs::File::open(&source)?.into(), true)?;
    std::thread::sleep(STALL);
    require(!client.process().has_ended()?, || {
        format!("the sender ended while nobody read: {}", client.process().output())
    })?;
    let stalled = meeting.proxy.seen().up.counts.delivered_bytes;
    let (done, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut arrived = Vec::new();
        let result = reader.read_to_end(&mut arrived).map(|_| arrived);
        // The receiver is gone only if the scenario has failed.
        let _ = done.send(result);
    });
    client.process().ends_well("the client", lab.plan.limit())?;
    let arrived = received.recv_timeout(lab.plan.limit())??;
    server.process().ends_well("the server", lab.plan.limit())?;
    require(arrived == bytes, || format!("{} bytes sent, {} arrived", bytes.len(), arrived.len()))?;
    let unharmed = meeting.is_unharmed()?;
    let (all, early) = (bytes.len() >> 20, stalled >> 10);
    Ok(unharmed.passed(format!("{all} MiB, of which {early} KiB moved before the reader began")))
}

/// Datagrams of 1,000 bytes over a daemon's local socket.
pub(super) fn datagrams(lab: &Lab<'_>, kinds: (Kind, Kind)) -> Result<Outcome, Failure> {
    let baseline = kinds == (Kind::Reference, Kind::Reference);
    if !baseline && !lab.programs.local_socket {
        return Ok(Outcome::Skipped("this pilotage has no local socket for drivers".into()));
    }
    let mut meeting = Meeting::start(lab, kinds, Place::Node)?;
    meeting.client_up()?;
    // The first way opens the tunnel, through the proxy.
    for (from, to) in [(&meeting.client, &meeting.server), (&meeting.server, &meeting.client)] {
        let mut receive = meeting.driver(to, &["recv-datagrams", "9998", "20"])?;
        let log = to.folder.join("datagrams.log");
        let mut receiver = Background::start(&mut receive, &log)?;
        wait_for(&log, "listening", Duration::from_secs(20))?;
        let mut send = meeting.driver(from, &["send-datagrams", &to.address, "9998", "20", "1000"])?;
        crate::process::run(&mut send, &[], Duration::from_secs(20))?;
        receiver.ends_well("the receiver", Duration::from_secs(20))?;
        let sizes = receiver.output().lines().filter(|line| *line == "1000").count();
        require(sizes == 20, || format!("{sizes} of 20 datagrams to {}", to.name))?;
    }
    let unharmed = meeting.is_unharmed()?;
    Ok(Outcome::Passed(unharmed.passed("20 of 20 datagrams each way")))
}

/// A file by the data exchange; either implementation stores it under a name of its own.
pub(super) fn file(lab: &Lab<'_>, kinds: (Kind, Kind)) -> Result<Passed, Failure> {
    let bytes = content(lab.plan.files.first().copied().unwrap_or_default(), lab.plan.seed);
    let source = lab.scratch.folder("files")?.join("sample.bin");
    std::fs::write(&source, &bytes)?;
    let meeting = Meeting::start(lab, kinds, Place::Node)?;
    let path = source.to_string_lossy();
    match kinds.0 {
        Kind::Pilotage => meeting.client_runs(&["send", "--draft", meeting.server.name, &path], &[])?,
        Kind::Reference => meeting.client_runs(&["send-file", &meeting.server.address, &path], &[])?,
    };
    let stored = meeting.server.folder.join(match kinds.1 {
        Kind::Pilotage => "inbox",
        Kind::Reference => ".pilot/received",
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds(&stored, &bytes) {
        require(Instant::now() < deadline, || format!("no such file in {}", stored.display()))?;
        std::thread::sleep(Duration::from_millis(20));
    }
    let unharmed = meeting.is_unharmed()?;
    Ok(unharmed.passed(format!("{} KiB stored unchanged", bytes.len() >> 10)))
}

/// Whether a file in the folder has this content.
fn holds(folder: &std::path::Path, bytes: &[u8]) -> bool {
    let Ok(files) = std::fs::read_dir(folder) else { return false };
    files.flatten().any(|file| std::fs::read(file.path()).is_ok_and(|content| content == bytes))
}

fn await_output(pipe: &mut PipeEnd, expected: &[u8], limit: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    loop {
        let got = std::fs::read(&pipe.output)?;
        if got == expected {
            return Ok(());
        }
        require(!pipe.process().has_ended()?, || {
            format!("the stream ended: {}", pipe.process().output().trim())
        })?;
        require(Instant::now() < deadline, || {
            format!("{} of {} bytes came back", got.len(), expected.len())
        })?;
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_for(log: &std::path::Path, line: &str, limit: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    loop {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        if text.lines().any(|l| l == line) {
            return Ok(());
        }
        require(Instant::now() < deadline, || format!("no `{line}` within {} s: {text}", limit.as_secs()))?;
        std::thread::sleep(Duration::from_millis(5));
    }
}
