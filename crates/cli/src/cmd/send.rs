//! `pilotage send`: files to a peer's port 1010, each verified by the peer.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pilotage::ConnectionStats;
use pilotage_services::file::{self, SendError, SendOptions, Sent, Status};
use serde_json::{Value, json};

use super::ping::{micros, path_json, path_text};
use super::{Context, message};
use crate::args::SendArgs;
use crate::error::{CliError, Exit};
use crate::output::Output;
use crate::progress::Progress;
use crate::session::{self, Channel, Session};
use crate::units::{format_bytes, format_duration, format_rate};

pub(crate) fn run(context: &Context, args: &SendArgs) -> Result<(), CliError> {
    session::check_peer(context, &args.node, &args.peer)?;
    match args.files.as_slice() {
        [file] => send_one(context, args, file),
        files => send_all(context, args, files),
    }
}

fn send_one(context: &Context, args: &SendArgs, file: &Path) -> Result<(), CliError> {
    // Before a node is started: a wrong file name should cost nothing.
    let (source, options) = open(file, args.as_name.as_deref())?;
    let node = session::open(context, &args.node)?;
    context.output.note(format!("connecting to {} …", args.peer));
    let Some(stream) = connect(context, args, &node, file, &options)? else {
        node.close();
        return Ok(());
    };
    let mut progress = Progress::bytes(&context.output, &options.name, options.size);
    let json = context.output.clone();
    let total = options.size;
    let mut on_progress = |bytes| {
        progress.set(bytes);
        if json.is_json() && progress.is_due() {
            json.event(&json!({ "event": "progress", "bytes": bytes, "total": total }));
        }
    };
    let sent = file::send(&stream, source, &options, &mut on_progress);
    progress.clear();
    let sent = sent.map_err(|error| explain(&error))?;
    // While our direction is open: afterwards the connection and its counters are gone.
    report(&context.output, &stream, &options, &sent);
    node.close();
    Ok(())
}

/// A stream to the file service; `None` if the file has gone by the data exchange instead, because the user wants it so or
/// the peer has nothing else.
fn connect(
    context: &Context,
    args: &SendArgs,
    node: &Session,
    file: &Path,
    options: &SendOptions,
) -> Result<Option<Channel>, CliError> {
    if !args.draft {
        match node.connect(&args.peer, file::PORT) {
            Ok(stream) => return Ok(Some(stream)),
            Err(failure) if message::only_draft(node, &failure) => {}
            Err(failure) => return Err(failure),
        }
    }
    message::send_file(context, node, &args.peer, &options.name, file).map(|()| None)
}

/// Several files over one node and tunnel, `--parallel` at a time. The first failure stops what has not begun.
fn send_all(context: &Context, args: &SendArgs, files: &[PathBuf]) -> Result<(), CliError> {
    if args.as_name.is_some() {
        return Err(CliError::usage("command line", "--as names one file", "send the files one by one"));
    }
    for file in files {
        describe(file, None)?;
    }
    let node = session::open(context, &args.node)?;
    context.output.note(format!("connecting to {} …", args.peer));
    let progress = Progress::steps(&context.output, "files", files.len() as u64);
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = Mutex::new(None);
    let first_failure = || failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let work = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            if first_failure().is_some() || context.stop.requested() {
                return;
            }
            match send_in_turn(context, args, &node, file) {
                Ok(()) => progress.set(done.fetch_add(1, Ordering::Relaxed) as u64 + 1),
                Err(error) => {
                    first_failure().get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..usize::from(args.parallel).min(files.len()) {
            scope.spawn(work);
        }
    });
    progress.clear();
    let failure = first_failure().take();
    match failure {
        _ if context.stop.requested() => Err(CliError::interrupted()),
        Some(error) => Err(error),
        None => {
            node.close();
            Ok(())
        }
    }
}

fn send_in_turn(context: &Context, args: &SendArgs, node: &Session, file: &Path) -> Result<(), CliError> {
    let (source, options) = open(file, None)?;
    let Some(stream) = connect(context, args, node, file, &options)? else { return Ok(()) };
    let sent = file::send(&stream, source, &options, &mut |_| {}).map_err(|error| {
        let mut error = explain(&error);
        error.cause = format!("{}: {}", options.name, error.cause);
        error
    })?;
    report(&context.output, &stream, &options, &sent);
    Ok(())
}

/// Opens the source and finds its name and size.
pub(crate) fn open(
    path: &Path,
    as_name: Option<&str>,
) -> Result<(Box<dyn Read + Send>, SendOptions), CliError> {
    let options = describe(path, as_name)?;
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), options));
    }
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    Ok((Box::new(file), options))
}

fn unreadable(path: &Path, error: &io::Error) -> CliError {
    CliError::failure(
        "open file",
        format!("{}: {error}", path.display()),
        "check the path and its permissions",
    )
}

/// Name and size of a source, without opening it.
fn describe(path: &Path, as_name: Option<&str>) -> Result<SendOptions, CliError> {
    let stage = "open file";
    let given_name = as_name.map(str::to_owned);
    let options = |name: Option<String>, size| -> Result<SendOptions, CliError> {
        let name = name.ok_or_else(|| {
            CliError::usage(
                stage,
                format!("{} has no file name in UTF-8", path.display()),
                "name it with --as NAME",
            )
        })?;
        file::check_name(&name)
            .map_err(|error| CliError::usage(stage, error, "choose another name with --as NAME"))?;
        Ok(SendOptions { name, size })
    };
    if path == Path::new("-") {
        return options(given_name.or(Some("stdin".into())), None);
    }
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if metadata.is_dir() {
        return Err(CliError::failure(
            stage,
            format!("{} is a directory", path.display()),
            "send an archive of it: tar c DIR | pilotage send PEER - --as NAME.tar",
        ));
    }
    // Pipes and devices have no size that means anything, and files of /proc say 0.
    let size = Some(metadata.len()).filter(|size| metadata.is_file() && *size > 0);
    let own_name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    options(given_name.or(own_name), size)
}

/// Prints a confirmed transfer.
fn report(output: &Output, stream: &Channel, options: &SendOptions, sent: &Sent) {
    let rate = goodput(sent);
    let (path, stats) = stream.details();
    let hash = hex::encode(sent.hash);
    let via = path.as_ref().map(|path| format!(", {}", path_text(path))).unwrap_or_default();
    let text = format!(
        "sent {} as {:?} in {}: {}{via}\nverified by the receiver, blake3 {hash}",
        format_bytes(sent.bytes),
        options.name,
        format_duration(sent.elapsed),
        format_rate(rate),
    );
    let mut value = json!({
        "event": "sent",
        "verified": true,
        "name": options.name,
        "bytes": sent.bytes,
        "blake3": hash,
        "elapsed_us": micros(sent.elapsed),
        "goodput_bps": rate as u64,
        "peer": stream.peer().address.to_string(),
        "path": path.as_ref().map(path_json),
    });
    value["stats"] = stats_json(&stats);
    output.result(text, &value);
}

/// Payload bits per second, from the first byte written to the receiver's verdict.
pub(crate) fn goodput(sent: &Sent) -> f64 {
    let seconds = sent.elapsed.as_secs_f64();
    if seconds > 0.0 { sent.bytes as f64 * 8.0 / seconds } else { 0.0 }
}

pub(crate) fn stats_json(stats: &ConnectionStats) -> Value {
    json!({
        "bytes_acked": stats.bytes_acked,
        "bytes_received": stats.bytes_received,
        "segments_sent": stats.segments_sent,
        "segments_received": stats.segments_received,
        "segments_retransmitted": stats.segments_retransmitted,
        "timeouts": stats.timeouts,
        "tail_loss_probes": stats.tail_loss_probes,
        "duplicates_received": stats.duplicates_received,
    })
}

/// Stage, next step and exit code for a failed transfer.
pub(crate) fn explain(error: &SendError) -> CliError {
    let stage = "send file";
    match error {
        SendError::Stream(error) => CliError::stream(stage, error),
        SendError::Reply(file::WireError::Io(error)) => CliError::stream(stage, error),
        SendError::NoReply => {
            CliError::new(Exit::Unreachable, stage, error, "see what the receiver says, then send again")
        }
        error if error.is_verification() => {
            CliError::new(Exit::Verification, stage, error, "send the file again; it was not stored")
        }
        SendError::Source(_) | SendError::SourceSize { .. } => {
            CliError::failure(stage, error, "make sure that nothing writes to the source, then send again")
        }
        SendError::Rejected { status, .. } => {
            let next = match status {
                Status::Exists => "choose another name with --as NAME, or let the receiver use --force",
                Status::NameRefused => "choose another name with --as NAME",
                Status::Storage => "make room or correct the permissions at the receiver",
                Status::Busy => "try again later",
                _ => "see what the receiver says, then send again",
            };
            CliError::failure(stage, error, next)
        }
        _ => CliError::failure(stage, error, "check that the peer runs `pilotage up` or `pilotage recv`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_of_sources() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        std::fs::write(&path, [0; 10]).unwrap();
        let (_, options) = open(&path, None).unwrap();
        assert_eq!((options.name.as_str(), options.size), ("a.bin", Some(10)));
        assert_eq!(open(&path, Some("b")).unwrap().1.name, "b");
        assert_eq!(open(Path::new("-"), None).unwrap().1.name, "stdin");
        let reason = |result: Result<_, CliError>| result.map(|_: (_, _)| ()).unwrap_err().exit;
        assert_eq!(reason(open(&path, Some("../b"))), Exit::Usage);
        assert_eq!(reason(open(dir.path(), None)), Exit::Failure);
        assert_eq!(reason(open(Path::new("/nonexistent"), None)), Exit::Failure);
    }

    #[test]
    fn exit_codes_of_failures() {
        let timed_out = SendError::Stream(io::ErrorKind::TimedOut.into());
        assert_eq!(explain(&timed_out).exit, Exit::Unreachable);
        assert_eq!(explain(&SendError::Mismatch { bytes: 1 }).exit, Exit::Verification);
        let hash = SendError::Rejected { status: Status::HashMismatch, text: String::new() };
        assert_eq!(explain(&hash).exit, Exit::Verification);
        let exists = SendError::Rejected { status: Status::Exists, text: "x".into() };
        assert_eq!(explain(&exists).exit, Exit::Failure);
    }
}
