//! The hub's web page: read-only, for its operator (`--web`). One page, one style sheet, one script of our own.
//!
//! A thread looks at the hub every [`EVERY`]: what it sees is what all readers get, and what changed since the last look are
//! the events. Bounds: [`MAX_AGENTS`] agents and [`MAX_NETWORKS`] networks are shown (above that, numbers only),
//! [`MAX_EVENTS`] events are kept.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pilotage_registry::client::{Client, ClientError, ClientTls};
use serde_json::{Value, json};

use super::http::{Response, Site};
use super::index::own;
use super::ops::Hub;
use crate::stop::Stop;

/// How often the hub is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How long one question to the registry may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most agents that are shown.
const MAX_AGENTS: usize = 1_000;
/// Most networks that are shown.
const MAX_NETWORKS: usize = 500;
/// Most events that are kept for who comes later.
const MAX_EVENTS: usize = 256;

const PAGE: &str = include_str!("web/index.html");
const SCRIPT: &str = include_str!("web/app.js");
const STYLE: &str = include_str!("web/style.css");

/// What was seen last, and what happened.
#[derive(Default)]
pub(super) struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    seen: Value,
    events: VecDeque<(u64, String)>,
    number: u64,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is seen now; what is different becomes events.
    fn put(&self, seen: Value, now: u64) {
        let mut state = self.lock();
        let news = if state.seen.is_null() { Vec::new() } else { differences(&state.seen, &seen) };
        for words in &news {
            state.number += 1;
            let line = json!({ "time": now, "text": words }).to_string();
            let number = state.number;
            state.events.push_back((number, line));
            if state.events.len() > MAX_EVENTS {
                state.events.pop_front();
            }
        }
        state.seen = seen;
        drop(state);
        if !news.is_empty() {
            self.changed.notify_all();
        }
    }

    /// Events after a number (all that are kept, without one); waits so long for one.
    fn events(&self, last: Option<u64>, patience: Duration) -> Vec<(u64, String)> {
        let after = |state: &State| -> Vec<(u64, String)> {
            // A number from before the hub started again means nothing here.
            let last = last.filter(|last| *last <= state.number).unwrap_or(0);
            state.events.iter().filter(|(number, _)| *number > last).cloned().collect()
        };
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, patience, |state| after(state).is_empty());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        after(&state)
    }

    fn seen(&self) -> String {
        self.lock().seen.to_string()
    }
}

/// The pages.
pub(super) fn site(board: Arc<Board>) -> Site {
    Arc::new(move |request| match request.path.as_str() {
        "/" => Response::Whole("text/html", PAGE.into()),
        "/app.js" => Response::Whole("text/javascript", SCRIPT.into()),
        "/style.css" => Response::Whole("text/css", STYLE.into()),
        "/api/state" => Response::Whole("application/json", board.seen().into_bytes()),
        "/api/events" => {
            let board = board.clone();
            Response::Events(Arc::new(move |last, patience| board.events(last, patience)))
        }
        _ => Response::NotFound,
    })
}

/// Where the hub's own registry is asked.
pub(super) struct Registry {
    pub(super) at: SocketAddr,
    pub(super) tls: Option<[u8; 32]>,
    /// The list of all nodes is for who has it.
    pub(super) token: String,
}

/// Looks at the hub until the command is asked to end.
pub(super) fn watch(hub: Arc<Hub>, registry: Registry, stop: Stop) -> std::io::Result<Arc<Board>> {
    let board = Arc::new(Board::default());
    let mut eye = Eye { hub, registry, client: None };
    board.put(eye.look(), unix_time());
    let shown = board.clone();
    thread::Builder::new().name("web-watch".into()).spawn(move || {
        while !stop.requested() {
            thread::sleep(EVERY);
            shown.put(eye.look(), unix_time());
        }
    })?;
    Ok(board)
}

#[allow(clippy::disallowed_methods, reason = "events say when they were seen")]
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

struct Eye {
    hub: Arc<Hub>,
    registry: Registry,
    client: Option<Client>,
}

impl Eye {
    fn look(&mut self) -> Value {
        let (networks, agents, more) = match self.lists() {
            Ok(lists) => lists,
            Err(error) => {
                tracing::debug!(%error, "the web page could not ask the registry");
                self.client = None;
                (Vec::new(), Vec::new(), true)
            }
        };
        json!({ "status": self.hub.status(), "networks": networks, "agents": agents, "more": more })
    }

    fn lists(&mut self) -> Result<(Vec<Value>, Vec<Value>, bool), ClientError> {
        let networks = self.ask(json!({ "type": "list_networks" }))?;
        let networks = networks["networks"].as_array().cloned().unwrap_or_default();
        let mut networks: Vec<Value> = networks
            .iter()
            .map(|network| {
                let fields = ["id", "network_id", "name", "join_rule", "members", "member_count"];
                pick(network, &fields)
            })
            .collect();
        networks.truncate(MAX_NETWORKS);
        let (mut agents, mut after, mut more) = (Vec::new(), 0, true);
        while agents.len() < MAX_AGENTS && more {
            let token = self.registry.token.clone();
            let page = self.ask(
                json!({ "type": "list_nodes", "network_id": 0, "after": after, "admin_token": token }),
            )?;
            let nodes = page["nodes"].as_array().cloned().unwrap_or_default();
            // Endpoints are left out: who reads the page need not know them.
            let fields = ["node_id", "address", "hostname", "public", "tags", "offline", "last_seen"];
            agents.extend(nodes.iter().map(|node| pick(node, &fields)));
            let next = page["next"].as_u64().filter(|next| *next > after);
            (after, more) = (next.unwrap_or(after), next.is_some());
        }
        more |= agents.len() > MAX_AGENTS;
        agents.truncate(MAX_AGENTS);
        Ok((networks, agents, more))
    }

    fn ask(&mut self, request: Value) -> Result<Value, ClientError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => {
                let tls = self.registry.tls.map_or(ClientTls::Plain, ClientTls::Pinned);
                Client::connect_with(&own(self.registry.at).to_string(), TIMEOUT, tls)?
            }
        };
        let reply = client.call_json(request, None)?;
        self.client = Some(client);
        Ok(reply)
    }
}

fn pick(from: &Value, fields: &[&str]) -> Value {
    let known = fields.iter().filter(|field| !from[**field].is_null());
    known.map(|field| ((*field).to_owned(), from[*field].clone())).collect::<serde_json::Map<_, _>>().into()
}

/// In words, what is different between two looks.
fn differences(before: &Value, now: &Value) -> Vec<String> {
    let mut news = Vec::new();
    if before["more"] == false && now["more"] == false {
        compare(&by(before, "agents", "node_id"), &by(now, "agents", "node_id"), "agent", &mut news);
        compare(&by(before, "networks", "name"), &by(now, "networks", "name"), "network", &mut news);
    }
    let registry = |look: &Value, key: &str| look["status"]["hub"]["registry"][key].clone();
    if registry(before, "read_only") != registry(now, "read_only") {
        news.push(
            match (registry(now, "read_only") == true, registry(now, "shared") == true) {
                (true, true) => "the cluster has no majority: nothing can be changed",
                (false, true) => "the cluster has a majority again",
                (true, false) => "the registry's store cannot be written",
                (false, false) => "the registry's store works again",
            }
            .to_owned(),
        );
    }
    for (key, what) in [
        ("leader", "the cluster's leader"),
        ("role", "our role in the cluster"),
        ("fault", "the cluster's fault"),
    ] {
        let (was, is) = (&before["status"][key], &now["status"][key]);
        if was != is {
            news.push(format!("{what} is {}", is.as_str().unwrap_or("none")));
        }
    }
    let members = |look: &Value| look["status"]["members"].as_array().map_or(0, Vec::len);
    if members(before) != members(now) {
        news.push(format!("the cluster has {} members", members(now)));
    }
    let index = |look: &Value, key: &str| look["status"]["hub"]["index"][key].as_u64().unwrap_or(0);
    for (key, what) in
        [("agents", "agents announce what they can do"), ("groups", "holders of groups are known")]
    {
        if index(before, key) != index(now, key) {
            news.push(format!("{} {what}", index(now, key)));
        }
    }
    news
}

fn by<'a>(look: &'a Value, list: &str, key: &str) -> BTreeMap<String, &'a Value> {
    let all = look[list].as_array().into_iter().flatten();
    all.map(|one| (one[key].to_string(), one)).collect()
}

fn compare(
    before: &BTreeMap<String, &Value>,
    now: &BTreeMap<String, &Value>,
    what: &str,
    news: &mut Vec<String>,
) {
    let name = |one: &Value| {
        let words = ["hostname", "name", "address"].iter().find_map(|key| one[*key].as_str());
        words.unwrap_or("?").to_owned()
    };
    for (key, one) in now {
        match before.get(key) {
            None => news.push(format!("{what} {} is new", name(one))),
            Some(old) if old["offline"] != one["offline"] => {
                let state = if one["offline"] == true { "is silent" } else { "is here again" };
                news.push(format!("{what} {} {state}", name(one)));
            }
            Some(old) if name(old) != name(one) => {
                news.push(format!("{what} {} is called {} now", name(old), name(one)));
            }
            Some(_) => {}
        }
    }
    let gone = before.iter().filter(|(key, _)| !now.contains_key(*key));
    news.extend(gone.map(|(_, one)| format!("{what} {} is gone", name(one))));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(agents: Value, networks: Value) -> Value {
        json!({ "status": { "hub": { "registry": { "read_only": false } } }, "agents": agents, "networks": networks, "more": false })
    }

    #[test]
    fn what_changed_becomes_events() {
        let before = look(
            json!([{ "node_id": 1, "hostname": "bob", "offline": false }, { "node_id": 2, "address": "0:2" }]),
            json!([]),
        );
        let mut now = look(
            json!([{ "node_id": 1, "hostname": "bob", "offline": true }, { "node_id": 3, "hostname": "eve" }]),
            json!([{ "name": "sky" }]),
        );
        now["status"]["hub"]["registry"]["read_only"] = true.into();
        now["status"]["leader"] = "ab".into();
        assert_eq!(
            differences(&before, &now),
            [
                "agent bob is silent",
                "agent eve is new",
                "agent 0:2 is gone",
                "network sky is new",
                "the registry's store cannot be written",
                "the cluster's leader is ab",
            ]
        );
        assert!(differences(&now, &now).is_empty());
        // Where not all agents are shown, one that is not shown any more is not gone.
        now["more"] = true.into();
        assert_eq!(differences(&before, &now).len(), 2);
    }

    #[test]
    fn events_are_kept_up_to_the_bound_and_resumed() {
        let board = Board::default();
        assert!(board.events(None, Duration::ZERO).is_empty());
        for number in 0..MAX_EVENTS as u64 + 20 {
            board.put(look(json!([{ "node_id": number }]), json!([])), number);
        }
        let all = board.events(None, Duration::ZERO);
        assert_eq!(all.len(), MAX_EVENTS);
        let last = all[all.len() - 1].0;
        assert_eq!(board.events(Some(last - 3), Duration::ZERO).len(), 3);
        assert!(board.events(Some(last), Duration::ZERO).is_empty());
        assert_eq!(board.events(Some(last + 1_000), Duration::ZERO).len(), MAX_EVENTS, "of another start");
    }

    #[test]
    fn the_page_has_no_script_but_ours() {
        assert!(!PAGE.contains("<style") && !PAGE.contains("style=") && !PAGE.contains("http:"));
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert!(!SCRIPT.contains("innerHTML") && !SCRIPT.contains("eval"));
    }
}
