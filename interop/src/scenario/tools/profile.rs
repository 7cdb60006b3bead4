//! What the registry is told about a daemon: name, tags, visibility, tasks; over a restart of the hub; and leaving.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{SOON, Stage, number};
use crate::Failure;
use crate::scenario::require;
use crate::subject::Kind;

/// Set, seen by the other daemon, and taken back.
pub(super) fn play(s: &mut Stage<'_>) -> Result<(), Failure> {
    name(s)?;
    tags_and_tasks(s)?;
    visibility(s)?;
    // A daemon of the reference notices a restarted hub only after some heartbeats of 30 s.
    if s.ours() { restart(s) } else { Ok(()) }
}

fn name(s: &Stage<'_>) -> Result<(), Failure> {
    let a = number(&s.a)?;
    s.says(&s.a, &["set-hostname", "renamed"], &json!({ "hostname": "renamed", "node_id": a }))?;
    s.says(&s.b, &["find", "renamed"], &json!({ "node_id": a, "address": s.a.address }))?;
    s.refused(&s.b, &["find", "anode"], "not_found")?;
    s.says(&s.a, &["info"], &json!({ "hostname": "renamed" }))?;
    let taken = s.refused(&s.a, &["set-hostname", "bnode"], "connection_failed")?;
    require(taken.starts_with("set-hostname: "), || taken)?;
    s.refused(&s.a, &["set-hostname", "Not a name!"], "connection_failed")?;
    s.says(&s.a, &["info"], &json!({ "hostname": "renamed" }))?;
    s.says(&s.a, &["clear-hostname"], &json!({ "hostname": "" }))?;
    s.refused(&s.b, &["find", "renamed"], "not_found")?;
    s.says(&s.a, &["info"], &json!({ "hostname": "" }))?;
    s.says(&s.a, &["set-hostname", "anode"], &json!({ "hostname": "anode", "node_id": a })).map(drop)
}

fn tags_and_tasks(s: &Stage<'_>) -> Result<(), Failure> {
    let (a, lookup) = (number(&s.a)?, number(&s.a)?.to_string());
    let seen = |wanted: Value| s.says(&s.b, &["lookup", &lookup], &wanted).map(drop);
    s.says(&s.a, &["set-tags", "red", "blue"], &json!({ "node_id": a, "tags": ["red", "blue"] }))?;
    seen(json!({ "tags": ["red", "blue"] }))?;
    s.says(&s.a, &["set-tags", "green"], &json!({ "tags": ["green"] }))?;
    seen(json!({ "tags": ["green"] }))?;
    s.refused(&s.a, &["set-tags", "1", "2", "3", "4"], "invalid_argument")?;
    s.refused(&s.a, &["set-tags", "no spaces"], "connection_failed")?;
    seen(json!({ "tags": ["green"] }))?;
    s.says(&s.a, &["clear-tags"], &json!({ "tags": [] }))?;
    let left = s.ok(&s.b, &["lookup", &lookup])?;
    require(left["tags"].as_array().is_none_or(Vec::is_empty), || format!("clear-tags: {left}"))?;
    s.says(&s.a, &["enable-tasks"], &json!({ "node_id": a, "task_exec": true }))?;
    seen(json!({ "task_exec": true }))?;
    s.says(&s.a, &["disable-tasks"], &json!({ "node_id": a, "task_exec": false }))?;
    let left = s.ok(&s.b, &["lookup", &lookup])?;
    require(left["task_exec"] != true, || format!("disable-tasks: {left}"))
}

fn visibility(s: &Stage<'_>) -> Result<(), Failure> {
    let a = number(&s.a)?;
    s.says(&s.a, &["set-private"], &json!({ "node_id": a, "visibility": "private" }))?;
    s.refused(&s.b, &["find", "anode"], "not_found")?;
    s.says(&s.b, &["lookup", &a.to_string()], &json!({ "public": false }))?;
    s.says(&s.a, &["set-public"], &json!({ "node_id": a, "visibility": "public" }))?;
    s.says(&s.b, &["find", "anode"], &json!({ "node_id": a, "public": true })).map(drop)
}

/// What was set last holds when the hub is restarted and the daemons register again.
fn restart(s: &mut Stage<'_>) -> Result<(), Failure> {
    let lookup = number(&s.a)?.to_string();
    s.ok(&s.a, &["set-hostname", "lasting"])?;
    s.ok(&s.a, &["set-tags", "kept"])?;
    s.ok(&s.a, &["set-private"])?;
    let before = registrations(s);
    s.hub.stop();
    let (registry, beacon) = (s.hub.registry, s.hub.beacon.ok_or("a hub without a beacon")?);
    s.hub = s.programs.start_hub_at(Kind::Pilotage, &s.hub_folder, registry, beacon)?;
    let deadline = Instant::now() + SOON;
    while registrations(s) <= before {
        require(Instant::now() < deadline, || "the daemon did not register again".into())?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let kept = json!({ "hostname": "lasting", "public": false, "tags": ["kept"] });
    s.says(&s.b, &["lookup", &lookup], &kept)?;
    s.says(&s.a, &["info"], &json!({ "hostname": "lasting" }))?;
    for words in [&["set-hostname", "anode"][..], &["clear-tags"], &["set-public"]] {
        s.ok(&s.a, words)?;
    }
    s.until(&s.b, &["ping", "anode", "--count", "1"], &json!({ "results": [{ "bytes": 6 }] })).map(drop)
}

/// How often our daemon says that it has registered.
fn registrations(s: &Stage<'_>) -> usize {
    s.a.output().matches("\"event\":\"registered\"").count()
}

/// The last thing: the registry tells nobody any more where the daemon is.
pub(super) fn leave(s: &Stage<'_>) -> Result<(), Failure> {
    s.ok(&s.a, &["deregister"])?;
    s.refused(&s.b, &["find", "anode"], "not_found")?;
    if s.ours() {
        // Not undone by the next heartbeat; a name brings it back.
        std::thread::sleep(Duration::from_secs(5));
        s.refused(&s.b, &["find", "anode"], "not_found")?;
        s.ok(&s.a, &["set-hostname", "again"])?;
        s.until(&s.b, &["ping", &s.a.address, "--count", "1"], &json!({ "results": [{ "bytes": 6 }] }))?;
    }
    s.says(&s.a, &["info"], &json!({ "address": s.a.address })).map(drop)
}
