//! Events that a daemon posts.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{SOON, Stage, number};
use crate::Failure;
use crate::driver::Driver;
use crate::process::json_lines;
use crate::scenario::require;

/// Set, heard from, cleared, silent.
pub(super) fn play(s: &Stage<'_>) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/events", listener.local_addr()?);
    let events = collect(listener);
    s.says(&s.b, &["set-webhook", &url], &json!({ "webhook": url, "applied": true }))?;
    let mut driver = Driver::open(&s.a.folder.join("pilot.sock"))?;
    driver.datagram(&s.b.address, 6100, b"for the hook")?;
    let event = next(&events, "data.datagram")?;
    super::holds("webhook", &event, &json!({ "node_id": number(&s.b)?, "data": { "size": 12 } }))?;
    require(event["event_id"].as_u64() > Some(0), || format!("webhook: {event}"))?;
    require(event["timestamp"].as_str().is_some_and(|t| t.starts_with("20")), || {
        format!("webhook: {event}")
    })?;
    s.refused(&s.b, &["set-webhook", "ftp://127.0.0.1/"], "invalid_argument")?;
    // Ours speaks plain HTTP only, and says so; the command line only says that it was not applied.
    if s.ours() {
        let secure = "https://127.0.0.1:1/";
        s.says(&s.b, &["set-webhook", secure], &json!({ "webhook": secure, "applied": false }))?;
    }
    s.says(&s.b, &["clear-webhook"], &json!({ "webhook": "", "applied": true }))?;
    while events.try_recv().is_ok() {}
    driver.datagram(&s.b.address, 6100, b"for nobody")?;
    let silent = events.recv_timeout(Duration::from_secs(1));
    require(silent == Err(RecvTimeoutError::Timeout), || format!("after clear-webhook: {silent:?}"))
}

/// The bodies of requests, until nobody wants them.
fn collect(listener: TcpListener) -> Receiver<Value> {
    let (out, events) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            // A body that does not come must not stop those behind it.
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let (mut text, mut chunk) = (String::new(), [0; 4096]);
            let body = loop {
                let line = text.split_once("\r\n\r\n").and_then(|(_, body)| json_lines(body).pop());
                match line.map_or_else(|| stream.read(&mut chunk).map(Err), |line| Ok(Ok(line))) {
                    Ok(Ok(line)) => break Some(line),
                    Ok(Err(len @ 1..)) => text.push_str(&String::from_utf8_lossy(&chunk[..len])),
                    _ => break None,
                }
            };
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
            if body.is_some_and(|body| out.send(body).is_err()) {
                return;
            }
        }
    });
    events
}

fn next(events: &Receiver<Value>, wanted: &str) -> Result<Value, Failure> {
    let deadline = Instant::now() + SOON;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left).map_err(|_| format!("no event {wanted} was posted"))?;
        if event["event"] == wanted {
            return Ok(event);
        }
    }
}
