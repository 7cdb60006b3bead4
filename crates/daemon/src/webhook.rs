//! Events posted to a URL of the operator: JSON over plain HTTP, in order, none twice. `spec/ipc.md §7`.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pilotage::{Node, NodeEvent};
use serde_json::{Value, json};

use crate::Counters;

/// Events that wait; when there are more the newest is dropped and counted.
const MAX_WAITING: usize = 256;

/// Longest URL that is taken, in bytes.
const MAX_URL: usize = 2_048;

/// How long one post may take, in seconds.
const POST_TIMEOUT: u64 = 5;

/// How often the node is asked for events.
const LOOK_UP: Duration = Duration::from_millis(200);

/// Where events go, if anywhere.
pub(crate) struct Webhook {
    inner: Arc<Inner>,
}

struct Inner {
    node: Node,
    counters: Arc<Counters>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    url: Option<String>,
    waiting: VecDeque<Value>,
    /// Number of the latest event.
    last: u64,
    /// The posting thread runs.
    running: bool,
    over: bool,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn post(&self, event: &str, data: Value) {
        let mut state = self.lock();
        if state.url.is_none() || state.over {
            return;
        }
        state.last += 1;
        if state.waiting.len() >= MAX_WAITING {
            self.counters.dropped_events.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let value = json!({
            "event_id": state.last,
            "event": event,
            "node_id": self.node.address().node.0,
            "timestamp": timestamp(now),
            "data": data,
        });
        state.waiting.push_back(value);
        drop(state);
        self.changed.notify_one();
    }
}

impl Webhook {
    pub(crate) fn new(node: Node, counters: Arc<Counters>) -> Self {
        let inner = Inner { node, counters, state: Mutex::default(), changed: Condvar::new() };
        Self { inner: Arc::new(inner) }
    }

    /// From now on events go to `url`; empty ends that.
    ///
    /// # Errors
    /// What is wrong with the URL, for the user.
    pub(crate) fn set(&self, url: &str) -> Result<(), String> {
        if !url.is_empty() {
            check(url)?;
        }
        let mut state = self.inner.lock();
        state.url = (!url.is_empty()).then(|| url.to_owned());
        state.waiting.clear();
        if url.is_empty() || state.running || state.over {
            return Ok(());
        }
        let inner = self.inner.clone();
        let spawned = thread::Builder::new().name("ipc-webhook".into()).spawn(move || run(&inner));
        state.running = spawned.is_ok();
        spawned.map(drop).map_err(|error| format!("set_webhook: no thread for it: {error}"))
    }

    /// Posts an event, if somebody wants it. Never blocks.
    pub(crate) fn post(&self, event: &str, data: Value) {
        self.inner.post(event, data);
    }

    /// No more events.
    pub(crate) fn end(&self) {
        self.inner.lock().over = true;
        self.inner.changed.notify_all();
    }
}

/// Plain HTTP only: see `spec/ipc.md §7`.
fn check(url: &str) -> Result<(), String> {
    if url.len() > MAX_URL {
        return Err(format!("set_webhook: the URL has {} bytes, at most {MAX_URL} are allowed", url.len()));
    }
    if url.starts_with("https://") {
        return Err(
            "set_webhook: https is not supported; name an http:// URL on this machine that passes events on"
                .into(),
        );
    }
    let host = url.strip_prefix("http://").map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    match host {
        Some(host) if !host.is_empty() && url.chars().all(|c| c.is_ascii_graphic()) => Ok(()),
        _ => Err("set_webhook: expected http://HOST[:PORT]/PATH".into()),
    }
}

fn run(inner: &Inner) {
    let events = inner.node.events();
    loop {
        while let Some(event) = events.try_recv() {
            if let Some((name, data)) = describe(&event) {
                inner.post(name, data);
            }
        }
        let mut state = inner.lock();
        if state.over || state.url.is_none() {
            state.running = false;
            return;
        }
        let Some(value) = state.waiting.pop_front() else {
            let waited = inner.changed.wait_timeout(state, LOOK_UP);
            drop(waited.unwrap_or_else(|poisoned| poisoned.into_inner()));
            continue;
        };
        let url = state.url.clone().unwrap_or_default();
        drop(state);
        if let Err(error) = send(&url, &value) {
            tracing::debug!(%error, "an event was not taken by the webhook");
        }
    }
}

fn send(url: &str, value: &Value) -> Result<(), minreq::Error> {
    let request = minreq::post(url)
        .with_header("Content-Type", "application/json")
        .with_body(value.to_string())
        .with_timeout(POST_TIMEOUT)
        .with_follow_redirects(false);
    // What it answers is of no interest, so none of it is read beyond the headers.
    request.send_lazy().map(drop)
}

fn describe(event: &NodeEvent) -> Option<(&'static str, Value)> {
    Some(match event {
        NodeEvent::TunnelUp { peer, .. } => ("tunnel.established", json!({ "peer_node_id": peer.0 })),
        NodeEvent::TunnelDown { peer, reason } => {
            ("tunnel.down", json!({ "peer_node_id": peer.0, "reason": reason.to_string() }))
        }
        NodeEvent::PathChanged { peer, path } => {
            ("tunnel.path_changed", json!({ "peer_node_id": peer.0, "endpoint": path.remote.to_string() }))
        }
        NodeEvent::PeerRefused { node, reason } => {
            ("security.peer_refused", json!({ "peer_node_id": node.0, "reason": reason }))
        }
        NodeEvent::Registered { address } => ("node.registered", json!({ "address": address.to_string() })),
        NodeEvent::HubLost { reason } => ("node.registry_lost", json!({ "reason": reason })),
        _ => return None,
    })
}

/// RFC 3339, UTC, whole seconds.
fn timestamp(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Days to a date: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time / 3_600, time / 60 % 60, time % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_273_310, "2026-11-21T15:01:50Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn urls() {
        for good in ["http://127.0.0.1:1/h", "http://hook.example", "http://[::1]:8080/?a=b"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let long = format!("http://a/{}", "b".repeat(MAX_URL));
        for bad in ["https://a/", "ftp://a", "http://", "http:///x", "http://a b", "http://a\r\nX: y", &long]
        {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
