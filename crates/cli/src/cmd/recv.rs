//! `pilotage recv`: takes files on port 1010 without the rest of a node's services.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pilotage_services::file::{self, ReceiveError, Received, Target};
use serde_json::{Value, json};

use super::Context;
use super::ping::micros;
use crate::args::RecvArgs;
use crate::error::{CliError, Exit};
use crate::progress::Progress;
use crate::session::{self, Channel, Port};
use crate::units::{format_bytes, format_duration};

pub(crate) fn run(context: &Context, args: &RecvArgs) -> Result<(), CliError> {
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    check(args)?;
    if to_stdout {
        context.output.reserve_stdout();
    }
    let node = session::open(context, &args.node)?;
    let listener = node.listen(file::PORT).map_err(|error| CliError {
        next: "only one receiver can run on a node: a running `up` takes files itself, unless started with --no-files".into(),
        ..error
    })?;
    let mut ready = node.describe();
    ready["event"] = "ready".into();
    context.output.event(&ready);
    context.output.note(format!("waiting for a file\n{}", node.describe_text()));
    let mut received = 0;
    while let Some(stream) = accept(context, &listener)? {
        let outcome = take(context, args, &stream);
        // With a limit the command stands for exactly these files, so a failure is its failure.
        match outcome {
            Ok(()) => received += 1,
            Err(error) if args.count != 0 => {
                node.close();
                return Err(error);
            }
            Err(error) => context.output.error(&error),
        }
        if args.count != 0 && received >= args.count {
            drop(stream);
            node.close();
            return Ok(());
        }
    }
    Err(CliError::interrupted())
}

/// What can be found wrong before a node is started.
fn check(args: &RecvArgs) -> Result<(), CliError> {
    if args.output.is_some() && args.count != 1 {
        return Err(CliError::usage(
            "command line",
            "-o takes one file only",
            "leave out --count, or use --dir",
        ));
    }
    if args.output.is_none() && !args.dir.is_dir() {
        return Err(CliError::failure(
            "inbox",
            format!("{} is not a directory", args.dir.display()),
            "make it, or name another one with --dir DIR",
        ));
    }
    match &args.output {
        Some(path) if path != Path::new("-") && !args.force && path.symlink_metadata().is_ok() => {
            Err(CliError::failure(
                "store file",
                format!("{} exists already", path.display()),
                "choose another name, or replace it with --force",
            ))
        }
        _ => Ok(()),
    }
}

/// The next stream; `None` when the command was asked to end.
pub(crate) fn accept(context: &Context, listener: &Port) -> Result<Option<Channel>, CliError> {
    loop {
        if context.stop.requested() {
            return Ok(None);
        }
        match listener.accept_timeout(Duration::from_millis(200)) {
            Ok(Some(stream)) => return Ok(Some(stream)),
            Ok(None) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) if context.stop.requested() => return Ok(None),
            Err(error) => return Err(CliError::stream("accept", &error)),
        }
    }
}

fn take(context: &Context, args: &RecvArgs, stream: &Channel) -> Result<(), CliError> {
    let (force, fsync) = (args.force, args.fsync);
    let target = match &args.output {
        Some(path) if path == Path::new("-") => Target::Writer(Box::new(io::stdout())),
        Some(path) => Target::File { path: path.clone(), force, fsync },
        None => Target::Directory { dir: args.dir.clone(), force, fsync, quota: None },
    };
    let peer = stream.peer().address;
    let output = &context.output;
    let mut progress: Option<Progress> = None;
    let outcome = file::receive(stream, target, &mut |offer, bytes| {
        let progress = progress.get_or_insert_with(|| Progress::bytes(output, &offer.name, offer.size));
        progress.set(bytes);
        if output.is_json() && progress.is_due() {
            output.event(&json!({ "event": "progress", "bytes": bytes, "total": offer.size }));
        }
    });
    drop(progress);
    let received = outcome.map_err(|error| explain(&error))?;
    let text = received_text(&peer.to_string(), &received);
    if args.output.as_deref() == Some(Path::new("-")) {
        output.note(&text);
        output.event(&received_json(&peer.to_string(), &received));
    } else {
        output.result(text, &received_json(&peer.to_string(), &received));
    }
    Ok(())
}

pub(crate) fn received_text(peer: &str, received: &Received) -> String {
    let place = received.path.as_ref().map_or("standard output".into(), |path| path.display().to_string());
    format!(
        "received {} from {peer} in {}: {place}\nverified, blake3 {}",
        format_bytes(received.bytes),
        format_duration(received.elapsed),
        hex::encode(received.hash),
    )
}

pub(crate) fn received_json(peer: &str, received: &Received) -> Value {
    json!({
        "event": "received",
        "verified": true,
        "peer": peer,
        "name": received.name,
        "path": received.path.as_ref().map(|path: &PathBuf| path.display().to_string()),
        "bytes": received.bytes,
        "blake3": hex::encode(received.hash),
        "elapsed_us": micros(received.elapsed),
    })
}

/// Stage, next step and exit code for a file that did not come.
pub(crate) fn explain(error: &ReceiveError) -> CliError {
    let stage = "receive file";
    match error {
        ReceiveError::Wire(file::WireError::Io(error)) => CliError::stream(stage, error),
        ReceiveError::Truncated { .. } => {
            CliError::new(Exit::Unreachable, stage, error, "nothing was stored: let the peer send it again")
        }
        error if error.is_verification() => {
            CliError::new(Exit::Verification, stage, error, "nothing was stored: let the peer send it again")
        }
        ReceiveError::Exists(_) => {
            CliError::failure(stage, error, "replace it with --force, or use another directory")
        }
        ReceiveError::Storage { .. } => CliError::failure(
            stage,
            error,
            "make room or correct the permissions, then let the peer send it again",
        ),
        _ => CliError::failure(stage, error, "let the peer send it again"),
    }
}
