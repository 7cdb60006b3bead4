//! The parent: starts both sides of every subject, interleaved, and collects what they measured.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use crate::Failure;
use crate::measure::{LoadGuard, wait_for_idle};
use crate::record::{PEER, Record};
use crate::reference;
use crate::settings::{Options, Role};
use crate::side::{Addresses, Side};
use crate::subject::Subject;
use crate::work::{Outcome, Work};

/// How often a run that foreign load spoiled is repeated.
const MAX_RETRIES: u32 = 2;

/// Runs all works of all subjects, interleaved: every repeat takes every work and every subject in turn.
pub fn run_all(options: &Options) -> Result<Vec<Record>, Failure> {
    if options.boost {
        // Needs root and CONFIG_SCHED_AUTOGROUP; without it the run is only noisier.
        if let Err(error) = std::fs::write("/proc/self/autogroup", "-20") {
            eprintln!("transfer: --boost has no effect: {error}");
        }
    }
    let wanted = options.works().contains(&Work::EchoMib)
        && (options.only.is_empty() || options.only.contains(&Subject::Reference));
    if wanted && reference::folder().is_none() {
        eprintln!("SKIPPED: the Go reference: set {} to the folder of its programs", reference::FOLDER);
    }
    let mut file = options.records.as_ref().map(File::create).transpose()?;
    let mut records = Vec::new();
    for repeat in 1..=options.repeats {
        for work in options.works().into_iter().filter(|work| work.wants_repeat(repeat)) {
            for subject in options.subjects(work) {
                eprintln!(
                    "transfer: repeat {repeat}/{}: {}: {}",
                    options.repeats,
                    work.name(),
                    subject.name()
                );
                let record = run_clean(options, work, subject, repeat);
                if let Some(file) = &mut file {
                    record.write_line(file)?;
                }
                records.push(record);
            }
        }
    }
    Ok(records)
}

/// Repeats a run that foreign load spoiled; returns the last one if none was clean (the record says so).
fn run_clean(options: &Options, work: Work, subject: Subject, repeat: u32) -> Record {
    let record = || {
        let record =
            Record { settings: work.settings(options), ..Record::new(work.name(), subject.name(), repeat) };
        if repeat == 1 { record.setting(PEER, subject.settings(options)) } else { record }
    };
    let mut attempt = 0;
    loop {
        let run = wait_for_idle(options.foreign_limit, Duration::from_secs(options.idle_wait))
            .and_then(|_| run_once(options, work, subject));
        let (outcome, foreign) = match run {
            Ok(run) => run,
            Err(error) => {
                eprintln!("transfer: {}: {}: {error}", work.name(), subject.name());
                return Record { error: Some(error.to_string()), ..record() };
            }
        };
        let disturbed = foreign.is_some_and(|foreign| foreign > options.foreign_limit);
        if !disturbed || attempt == MAX_RETRIES || options.quick {
            let Outcome { metrics, note } = outcome;
            return Record { metrics, note, foreign_cpu: foreign, disturbed, ..record() };
        }
        attempt += 1;
        eprintln!(
            "transfer: {} again: others used {:.0} % of a core",
            subject.name(),
            foreign.unwrap_or_default()
        );
    }
}

fn run_once(options: &Options, work: Work, subject: Subject) -> Result<(Outcome, Option<f64>), Failure> {
    let scratch = Scratch::new()?;
    let guard = LoadGuard::start()?;
    if subject == Subject::Reference {
        let outcome = reference::run(work, options.cores_of(work), &scratch.0, free_address)?;
        return Ok((outcome, guard.foreign_percent()?));
    }
    let addresses = Addresses { server: free_address()?, client: free_address()?, control: free_address()? };
    let mut server = Side::start(options, work, subject, Role::Server, addresses, &scratch.0)?;
    if server.line().map_err(|e| format!("server: {e}"))? != "ready" {
        return Err("server: did not get ready".into());
    }
    let mut client = Side::start(options, work, subject, Role::Client, addresses, &scratch.0)?;
    let outcome = client.line().map_err(|e| format!("client: {e}"))?;
    client.wait().map_err(|e| format!("client: {e}"))?;
    server.wait().map_err(|e| format!("server: {e}"))?;
    Ok((serde_json::from_str(&outcome)?, guard.foreign_percent()?))
}

/// A port that is free for TCP and UDP just now.
fn free_address() -> Result<SocketAddr, Failure> {
    for _ in 0..64 {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        if UdpSocket::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
    Err("no port is free for both TCP and UDP".into())
}

/// A folder that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Failure> {
        let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        let path = std::env::temp_dir().join(format!("pilotage-transfer-{}-{stamp}", std::process::id()));
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
