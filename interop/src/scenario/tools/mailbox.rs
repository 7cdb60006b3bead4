//! Files, messages, events, tasks.

use std::time::Instant;

use serde_json::json;

use super::{SOON, Stage, number};
use crate::Failure;
use crate::scenario::{content, require};

/// Bytes of the file: many segments. The reference's driver puts a file into one message, which holds 1 MiB.
const FILE_BYTES: usize = 900 << 10;

/// Sent by one daemon, taken by a service of the other.
pub(super) fn play(s: &Stage<'_>) -> Result<(), Failure> {
    file(s)?;
    messages(s)?;
    events(s)?;
    tasks(s)
}

fn file(s: &Stage<'_>) -> Result<(), Failure> {
    let (bytes, path) = (content(FILE_BYTES, 5), s.a.folder.join("sample.bin"));
    std::fs::write(&path, &bytes)?;
    let sent = json!({ "filename": "sample.bin", "bytes": FILE_BYTES, "destination": s.b.address });
    let sent = s.says(&s.a, &["send-file", "bnode", &path.to_string_lossy()], &sent)?;
    let ack = sent["ack"].as_str().unwrap_or_default();
    require(ack.starts_with("ACK FILE") && ack.contains(&FILE_BYTES.to_string()), || {
        format!("send-file: {sent}")
    })?;
    let received = s.ok(&s.b, &["received"])?;
    let files = received["files"].as_array().map(Vec::as_slice).unwrap_or_default();
    // The reference puts the time into the name.
    let ours = |file: &&serde_json::Value| file["name"].as_str().is_some_and(|name| name.contains("sample"));
    let file = files.iter().find(ours).ok_or_else(|| format!("received: {received}"))?;
    require(file["bytes"] == FILE_BYTES, || format!("received: {file}"))?;
    let arrived = std::fs::read(file["path"].as_str().unwrap_or_default())?;
    require(arrived == bytes, || "the received file differs".into())?;
    s.refused(&s.a, &["send-file", "bnode", "/no/such/file"], "not_found")?;
    s.ok(&s.b, &["received", "--clear"])?;
    s.says(&s.b, &["received"], &json!({ "total": 0 }))?;
    // A message that is too long ends its client and nothing else.
    std::fs::write(&path, content(2 << 20, 6))?;
    s.refused(&s.a, &["send-file", "bnode", &path.to_string_lossy()], "connection_failed")?;
    s.says(&s.a, &["health"], &json!({ "status": "ok" })).map(drop)
}

fn messages(s: &Stage<'_>) -> Result<(), Failure> {
    for (kind, word, data) in
        [("text", "TEXT", "plain words"), ("json", "JSON", "{\"answer\":42}"), ("binary", "BINARY", "bytes")]
    {
        let ack = format!("ACK {word} {} bytes", data.len());
        let sent = json!({ "target": s.b.address, "type": kind, "bytes": data.len(), "ack": ack });
        s.says(&s.a, &["send-message", "bnode", "--data", data, "--type", kind], &sent)?;
    }
    s.refused(&s.a, &["send-message", "bnode", "--data", "x", "--type", "other"], "invalid_argument")?;
    s.refused(&s.a, &["send-message", "nobody", "--data", "x"], "not_found").map(drop)
}

fn events(s: &Stage<'_>) -> Result<(), Failure> {
    s.none_listed(&s.b)?;
    let waiting = s.begin(&s.a, &["subscribe", "bnode", "news", "--count", "2", "--timeout", "40s"])?;
    let open = json!({ "remote_addr": s.a.address, "local_port": 1002, "state": "ESTABLISHED" });
    // The subscription itself is behind the connection.
    let (deadline, answers) = (Instant::now() + SOON, s.answers.get());
    while s.listed(&s.b, &open)?["bytes_recv"].as_u64() == Some(0) {
        require(Instant::now() < deadline, || "the subscription did not come".into())?;
        s.answers.set(answers);
    }
    // From either side: who has the broker publishes by calling itself.
    for (from, topic, data) in
        [(&s.a, "other", "not this"), (&s.a, "news", "it happened"), (&s.b, "news", "and more")]
    {
        let published = json!({ "target": s.b.address, "topic": topic, "bytes": data.len() });
        s.says(from, &["publish", &s.b.address, topic, "--data", data], &published)?;
    }
    let event = |data: &str| json!({ "topic": "news", "data": data, "bytes": data.len() });
    waiting.ends_with(&json!({ "timeout": false, "events": [event("it happened"), event("and more")] }))?;
    let nothing = json!({ "timeout": true, "events": null });
    s.says(&s.a, &["subscribe", "bnode", "quiet", "--count", "1", "--timeout", "1s"], &nothing).map(drop)
}

/// Tasks are handed in and listed. What is done with received ones the command line does with files of a daemon of
/// the reference, not by the socket.
fn tasks(s: &Stage<'_>) -> Result<(), Failure> {
    s.says(&s.b, &["enable-tasks"], &json!({ "node_id": number(&s.b)?, "task_exec": true }))?;
    let taken = json!({ "target": s.b.address, "task": "count to ten", "accepted": true, "status": 200 });
    let taken = s.says(&s.a, &["task", "submit", "bnode", "--task", "count to ten"], &taken)?;
    let id = taken["task_id"].as_str().unwrap_or_default().to_owned();
    let listed = s.ok(&s.a, &["task", "list", "--type", "submitted"])?;
    require(id.len() >= 32 && listed.to_string().contains(&id), || format!("task list: {listed}, not {id}"))?;
    s.ok(&s.b, &["disable-tasks"]).map(drop)
}
