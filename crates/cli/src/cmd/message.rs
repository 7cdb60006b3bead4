//! `pilotage message`, `inbox`, and `send` to peers that know only draft-01: the data exchange of port 1001.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use pilotage::Peer;
use pilotage_services::clock::rfc3339;
use pilotage_services::message::{self, Entry, Kind, MAX_PAYLOAD, SendError};
use pilotage_services::server::Notice;
use serde_json::{Value, json};

use super::Context;
use crate::args::{InboxArgs, MessageArgs};
use crate::error::{CliError, Exit};
use crate::session::{self, Session};
use crate::units::format_bytes;

/// Bytes of a text that `inbox` shows.
const PREVIEW: u64 = 1024;

pub(crate) fn run(context: &Context, args: &MessageArgs) -> Result<(), CliError> {
    session::check_peer(context, &args.node, &args.peer)?;
    let (kind, payload) = payload(args)?;
    let node = session::open(context, &args.node)?;
    let stream = node.connect(&args.peer, message::PORT)?;
    message::send(&stream, kind, &payload).map_err(|error| explain("send message", &error))?;
    let peer = stream.peer().address.to_string();
    context.output.result(
        format!("sent {} as {kind} to {peer}; the peer confirmed it", format_bytes(payload.len() as u64)),
        &json!({ "event": "sent", "kind": kind.to_string(), "bytes": payload.len(), "peer": peer }),
    );
    drop(stream);
    node.close();
    Ok(())
}

fn payload(args: &MessageArgs) -> Result<(Kind, Vec<u8>), CliError> {
    if let Some(path) = &args.binary {
        return Ok((Kind::Binary, read_whole(path, MAX_PAYLOAD.into())?));
    }
    let text = match args.text.as_deref() {
        Some("-") | None => read_whole(Path::new("-"), MAX_PAYLOAD.into())?,
        Some(text) => text.as_bytes().to_vec(),
    };
    if !args.json_payload {
        return Ok((Kind::Text, text));
    }
    match serde_json::from_slice::<serde::de::IgnoredAny>(&text) {
        Ok(_) => Ok((Kind::Json, text)),
        Err(error) => Err(CliError::usage("command line", format!("not JSON: {error}"), "correct the text")),
    }
}

/// A file, or standard input, of at most `limit` bytes.
pub(crate) fn read_whole(path: &Path, limit: u64) -> Result<Vec<u8>, CliError> {
    let read = |source: &mut dyn Read| {
        let mut bytes = Vec::new();
        source.take(limit + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = match path == Path::new("-") {
        true => read(&mut io::stdin().lock()),
        false => File::open(path).and_then(|mut file| read(&mut file)),
    };
    let stage = "open file";
    let bytes = bytes.map_err(|error| {
        CliError::failure(stage, format!("{}: {error}", path.display()), "check the path and its permissions")
    })?;
    if bytes.len() as u64 > limit {
        return Err(CliError::failure(
            stage,
            format!("{} has more than {limit} bytes, the limit of draft-01", path.display()),
            "send it in parts, or to a Pilotage node with `pilotage send`",
        ));
    }
    Ok(bytes)
}

/// `send` with what every draft-01 peer knows.
pub(crate) fn send_file(
    context: &Context,
    node: &Session,
    peer: &Peer,
    name: &str,
    file: &Path,
) -> Result<(), CliError> {
    let room = u64::from(MAX_PAYLOAD) - 2 - name.len() as u64;
    let data = read_whole(file, room)?;
    let stream = node.connect(peer, message::PORT)?;
    message::send_file(&stream, name, &data).map_err(|error| explain("send file", &error))?;
    let peer = stream.peer().address.to_string();
    context.output.result(
        format!(
            "sent {} as {name:?} to {peer}; the peer confirmed the length",
            format_bytes(data.len() as u64)
        ),
        &json!({
            "event": "sent",
            "verified": false,
            "name": name,
            "bytes": data.len(),
            "peer": peer,
            "protocol": "data exchange",
        }),
    );
    Ok(())
}

/// Whether nobody listens at the file service of a peer that is known not to be Pilotage.
pub(crate) fn only_draft(node: &Session, failure: &CliError) -> bool {
    failure.kind() == io::ErrorKind::ConnectionRefused && node.has_foreign_peer()
}

fn explain(stage: &str, error: &SendError) -> CliError {
    match error {
        SendError::Stream(error) => CliError::stream(stage, error),
        SendError::Refused(_) => {
            CliError::failure(stage, error, "see what the peer says; its inbox may be full")
        }
        SendError::Mismatch { .. } => CliError::new(Exit::Verification, stage, error, "send it again"),
        _ => CliError::failure(stage, error, "check that the peer serves port 1001 as draft-01 says"),
    }
}

pub(crate) fn inbox(context: &Context, args: &InboxArgs) -> Result<(), CliError> {
    let dir = context.settings.inbox(args.inbox.as_deref());
    let entries = message::list(&dir).map_err(|error| {
        CliError::failure(
            "inbox",
            format!("{}: {error}", dir.display()),
            "name its directory with --inbox DIR",
        )
    })?;
    let first = if args.count == 0 { 0 } else { entries.len().saturating_sub(args.count) };
    for entry in &entries[first..] {
        show(context, &dir, entry);
    }
    if entries.is_empty() {
        context.output.note(format!("nothing has come into {}", dir.display()));
    }
    Ok(())
}

fn show(context: &Context, dir: &Path, entry: &Entry) {
    let path = dir.join(&entry.file);
    let there = path.is_file();
    let text = match entry.kind.as_str() {
        "TEXT" | "JSON" if there => preview(&path),
        _ => None,
    };
    let at = rfc3339(entry.at);
    let mut line =
        format!("{at}  {}  {}  {}  {}", entry.peer, entry.kind, format_bytes(entry.bytes), entry.file);
    if !there {
        line.push_str("  (removed)");
    }
    if let Some(text) = &text {
        line.push_str(&format!("\n    {}", printable(text)));
    }
    context.output.result(
        line,
        &json!({
            "event": "item",
            "at": at,
            "peer": entry.peer,
            "kind": entry.kind,
            "bytes": entry.bytes,
            "path": path.display().to_string(),
            "removed": !there,
            "text": text,
        }),
    );
}

fn preview(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(PREVIEW).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A stranger's text for a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// What `up` says of a message, or of a task.
pub(crate) fn notice(notice: &Notice) -> Option<(String, Value)> {
    match notice {
        Notice::MessageReceived { peer, message } => {
            let (peer, kind) = (peer.address.to_string(), message.kind.to_string());
            let path = message.path.display().to_string();
            let text = format!("{kind} of {} from {peer}: {path}", format_bytes(message.bytes));
            let value = json!({
                "event": "message",
                "peer": peer,
                "kind": kind,
                "name": message.name,
                "path": path,
                "bytes": message.bytes,
            });
            Some((text, value))
        }
        Notice::TaskChanged(task) => Some((super::task::text(task), super::task::json(task, None))),
        _ => None,
    }
}
