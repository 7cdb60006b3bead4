//! What the operator of a hub sees and does: status, page (without a browser: `page.rs`), metrics, backup and restore, with real processes.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Running, STEP, event, lines, run, text};
use serde_json::Value;

fn hub(state: &Path, more: &[&str]) -> (Running, Value) {
    let own = [
        "hub",
        "--json",
        "--listen",
        "127.0.0.1",
        "--registry-port",
        "0",
        "--state",
        state.to_str().unwrap(),
    ];
    let hub = Running::start(&[&own[..], more].concat());
    let ready = hub.expect("ready", STEP);
    (hub, ready)
}

fn node(ready: &Value, state: &Path, name: &str) -> Running {
    let word = |key: &str| ready[key].as_str().unwrap().to_owned();
    let (registry, beacon) = (word("registry"), word("beacon"));
    let args = [
        "up",
        "--json",
        "--state",
        state.to_str().unwrap(),
        "--registry",
        &registry,
        "--beacon",
        &beacon,
        "--bind",
        "127.0.0.1:0",
        "--no-lan",
        "--name",
        name,
    ];
    let node = Running::start(&args);
    node.expect("ready", STEP);
    node
}

/// Sends bytes and reads to the end, or to the bound of what is asked.
fn http(at: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(STEP)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    text(&answer)
}

fn get(at: &str, path: &str) -> String {
    http(at, &format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n"))
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[test]
fn the_page_shows_agents_and_tells_what_happens() {
    let dir = tempfile::tempdir().unwrap();
    let (_hub, ready) = hub(&dir.path().join("hub"), &["--web", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    let (web, metrics) = (ready["web"].as_str().unwrap(), ready["metrics"].as_str().unwrap());
    let page = get(web, "/");
    for part in ["200 OK", "default-src 'none'; script-src 'self'", "nosniff", "<title>Pilotage hub</title>"]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(get(web, "/app.js").contains("EventSource") && get(web, "/style.css").contains("text/css"));
    for (request, status) in [
        (format!("POST / HTTP/1.1\r\nHost: {web}\r\n\r\n"), "405"),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".into(), "421"),
        (format!("GET /../../etc/passwd HTTP/1.1\r\nHost: {web}\r\n\r\n"), "404"),
        (format!("GET / HTTP/1.1\r\nHost: {web}\r\nX: {}\r\n\r\n", "x".repeat(10_000)), "431"),
    ] {
        let answer = http(web, &request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
    }
    // Somebody listens when an agent comes.
    let mut events = TcpStream::connect(web).unwrap();
    events.set_read_timeout(Some(STEP)).unwrap();
    events.write_all(format!("GET /api/events HTTP/1.1\r\nHost: {web}\r\n\r\n").as_bytes()).unwrap();
    let _node = node(&ready, &dir.path().join("bob"), "bob");
    let mut told = Vec::new();
    let mut part = [0; 1024];
    while !text(&told).contains("agent bob is new") {
        let count = events.read(&mut part).expect("an event in time");
        assert!(count > 0, "{}", text(&told));
        told.extend_from_slice(&part[..count]);
    }
    let told = text(&told);
    assert!(told.contains("text/event-stream") && told.contains("id: 1\ndata: {"), "{told}");
    // Who comes later hears of it, too.
    let state: Value = serde_json::from_str(body(&get(web, "/api/state"))).unwrap();
    assert_eq!(state["agents"][0]["hostname"], "bob", "{state}");
    assert!(state["agents"][0]["real_addr"].is_null(), "where agents are is not told");
    assert_eq!(state["status"]["hub"]["registry"]["nodes"], 1);
    let counters = get(metrics, "/metrics");
    assert!(counters.contains("\npilotage_hub_registry_nodes 1\n"), "{counters}");
    assert!(get(metrics, "/").starts_with("HTTP/1.1 404"));
}

#[test]
fn status_backup_and_restore() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("hub");
    let own = ["--json", "--state", state.to_str().unwrap()];
    let asked = |action: &[&str]| run(&[&["hub"], action, &own[..]].concat());
    let nobody = run(&["hub", "status", "--state", state.to_str().unwrap()]);
    assert!(
        !nobody.status.success() && text(&nobody.stderr).contains("pilotage hub"),
        "{}",
        text(&nobody.stderr)
    );
    let (mut first, ready) = hub(&state, &[]);
    let bob = node(&ready, &dir.path().join("bob"), "bob");
    let status = lines(&asked(&["status"]).stdout).remove(0);
    assert_eq!(
        (&status["hub"]["registry"]["nodes"], &status["cluster"]),
        (&1.into(), &Value::Null),
        "{status}"
    );
    let words = text(&run(&["hub", "status", "--state", state.to_str().unwrap()]).stdout);
    assert!(words.contains("1 nodes, 1 names") && words.contains("store"), "{words}");
    // While it runs, and somebody writes.
    let file = dir.path().join("hub.backup");
    let file = file.to_str().unwrap();
    let made = asked(&["backup", file]);
    assert!(made.status.success(), "{}", text(&made.stdout));
    drop(bob);
    let busy = asked(&["restore", file, "--force"]);
    assert!(text(&busy.stdout).contains("in use"), "{}", text(&busy.stdout));
    first.kill();
    // All is lost.
    std::fs::remove_file(state.join("registry.redb")).unwrap();
    std::fs::remove_file(state.join("registry.claims.redb")).unwrap();
    let restored = asked(&["restore", file]);
    assert_eq!(event(&lines(&restored.stdout), "restored")["nodes"], 1, "{}", text(&restored.stdout));
    let again = asked(&["restore", file]);
    assert!(!again.status.success() && text(&again.stdout).contains("--force"), "{}", text(&again.stdout));
    let (_second, after) = hub(&state, &[]);
    assert_eq!(after["registry_key"], ready["registry_key"], "the key that signs heads came back");
    let deadline = Instant::now() + STEP;
    loop {
        let status = lines(&asked(&["status"]).stdout).remove(0);
        if status["hub"]["registry"]["names"] == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{status}");
        std::thread::sleep(Duration::from_millis(100));
    }
    // A byte of it is wrong.
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
    let refused = run(&["hub", "restore", file, "--state", dir.path().join("other").to_str().unwrap()]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("hash"), "{}", text(&refused.stderr));
}

#[test]
fn pages_for_everybody_are_wanted_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let refused = run(&["hub", "--state", state, "--registry-port", "0", "--web", "0.0.0.0:0"]);
    assert!(
        !refused.status.success() && text(&refused.stderr).contains("--http-anywhere"),
        "{}",
        text(&refused.stderr)
    );
}
