//! The hub's web page in a real browser: a cluster of hubs, nodes and networks as processes, and what Chromium shows of them.
#![cfg(unix)]

#[path = "page/browser.rs"]
mod browser;
mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::Duration;

use browser::Browser;
use common::free::free;
use common::{ADMIN_TOKEN, Running, STEP, run, text};
use pilotage_registry::client::Client;
use serde_json::{Value, json};

/// A hub of a cluster: the first one, or one that joins it.
fn hub(dir: &Path, first: Option<(&Path, SocketAddr)>, more: &[&str]) -> (Running, Value, SocketAddr) {
    let (state, at) = (dir.to_str().unwrap(), free());
    let bind = at.to_string();
    let mut args = vec!["hub", "--json", "--listen", "127.0.0.1", "--registry-port", "0", "--state", state];
    args.extend(["--cluster", &bind, "--admin-token", ADMIN_TOKEN]);
    args.extend(more);
    let (token, host);
    if let Some((dir, at)) = first {
        (token, host) = (dir.join("cluster/token"), at.to_string());
        args.extend(["--join", &host, "--cluster-token-file", token.to_str().unwrap()]);
    }
    let hub = Running::start(&args);
    let ready = hub.expect("ready", STEP);
    (hub, ready, at)
}

fn node(ready: &Value, state: &Path, name: &str) -> Running {
    let (registry, beacon) = (ready["registry"].as_str().unwrap(), ready["beacon"].as_str().unwrap());
    let own = ["--registry", registry, "--beacon", beacon, "--bind", "127.0.0.1:0", "--no-lan"];
    let node = Running::start(
        &[&["up", "--json", "--state", state.to_str().unwrap(), "--name", name], &own[..]].concat(),
    );
    node.expect("ready", STEP);
    node
}

fn network(registry: &str, node: u64, name: &str) -> Value {
    let mut client = Client::connect(registry, STEP).unwrap();
    let request = json!({
        "type": "create_network", "node_id": node, "name": name, "join_rule": "open", "admin_token": ADMIN_TOKEN,
    });
    client.call_json(request, None).unwrap_or_else(|error| json!({ "error": error.to_string() }))
}

/// All requests of a page go to its hub, and it complains of nothing.
fn is_clean(browser: &Browser, page: &str) {
    assert_eq!(browser.complaints(), [""; 0]);
    let requests = browser.requests();
    assert!(requests.iter().any(|url| url.ends_with("/api/events")), "{requests:?}");
    let elsewhere: Vec<_> = requests.iter().filter(|url| !url.starts_with(page)).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

#[test]
fn a_browser_shows_agents_networks_cluster_and_events_as_they_happen() {
    let Some(program) = browser::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let dir = |name: &str| folder.path().join(name);
    let (_first, ready, at) = hub(&dir("a"), None, &["--web", "127.0.0.1:0"]);
    let page = format!("http://{}/", ready["web"].as_str().unwrap());
    let registry = ready["registry"].as_str().unwrap();
    let _bob = node(&ready, &dir("bob"), "bob");
    let nodes = json!({ "type": "list_nodes", "network_id": 0, "admin_token": ADMIN_TOKEN });
    let nodes = Client::connect(registry, STEP).unwrap().call_json(nodes, None).unwrap();
    let bob = nodes["nodes"][0]["node_id"].as_u64().unwrap();
    assert_eq!(network(registry, bob, "harbour")["error"], Value::Null);

    let mut browser = Browser::start(&program);
    browser.open(&page);
    browser.until("#health", "all is well");
    browser.until("#agents", "bob");
    assert!(browser.text("#agents").contains("here"), "{}", browser.text("#agents"));
    browser.until("#networks", "harbour");
    browser.until("#members", &at.to_string());
    assert!(browser.text("#cluster").contains("(leader)"), "{}", browser.text("#cluster"));
    // The page stays open, and learns by itself what happens now.
    let marked = "window.stays = true";
    browser.value(marked);
    let mut eve = node(&ready, &dir("eve"), "eve");
    browser.until("#events", "agent eve is new");
    browser.until("#agents", "eve");
    assert_eq!(network(registry, bob, "quay")["error"], Value::Null);
    browser.until("#events", "network quay is new");
    browser.until("#networks", "quay");
    let (second, _, second_at) = hub(&dir("b"), Some((&dir("a"), at)), &[]);
    browser.until("#members", &second_at.to_string());
    browser.until("#events", "the cluster has 2 members");
    let (third, ..) = hub(&dir("c"), Some((&dir("a"), at)), &[]);
    let state = dir("a");
    let status = || text(&run(&["hub", "status", "--state", state.to_str().unwrap()]).stdout);
    let deadline = std::time::Instant::now() + STEP;
    while status().matches(" voter").count() < 3 || status().contains("come or go") {
        assert!(std::time::Instant::now() < deadline, "{}", status());
        thread::sleep(Duration::from_millis(100));
    }
    // A majority is gone: that is told in the words of a cluster, not as a fault of the disk.
    drop((second, third));
    browser.until("#health", "no majority");
    browser.until("#events", "no majority");
    assert_eq!(browser.value("document.getElementById('health').className"), "bad");
    // What is known is still shown.
    assert!(browser.text("#agents").contains("bob"), "{}", browser.text("#agents"));
    eve.kill();
    assert_eq!(browser.value("window.stays"), true, "it was never loaded again");
    is_clean(&browser, &page);
}

#[test]
fn names_are_never_markup() {
    let Some(program) = browser::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (_hub, ready, _) = hub(&folder.path().join("a"), None, &["--web", "127.0.0.1:0"]);
    let (web, registry) = (ready["web"].as_str().unwrap(), ready["registry"].as_str().unwrap());
    let page = format!("http://{web}/");
    let evil = "<img src=http://elsewhere.example/x onerror=window.evil=1><script>window.evil=1</script>";
    // The registry takes no such name.
    let refused = network(registry, 1, evil);
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("name")), "{refused}");
    // And if one did: the page writes what it is told as text, wherever it stands.
    let mut browser = Browser::start(&program);
    let mut state = state(web);
    state["agents"] =
        json!([{ "node_id": 1, "hostname": evil, "address": evil, "tags": [evil], "last_seen": evil }]);
    state["networks"] = json!([{ "name": evil, "id": evil, "join_rule": evil, "members": evil }]);
    for key in ["cluster", "id", "role", "leader", "fault"] {
        state["status"][key] = evil.into();
    }
    state["status"]["members"] = json!([{ "id": evil, "endpoint": evil }]);
    state["status"]["hub"]["version"] = evil.into();
    browser.answer("*/api/state", "application/json", &state.to_string());
    browser.open(&page);
    browser.until("#health", evil);
    for id in ["#hub", "#cluster", "#members", "#agents", "#networks"] {
        browser.until(id, evil);
    }
    let event = format!("id: 1\ndata: {}\n\n", json!({ "time": 1, "text": evil }));
    browser.answer("*/api/events", "text/event-stream", &event);
    browser.open(&page);
    browser.until("#events", evil);
    assert_eq!(browser.value("document.images.length + document.scripts.length"), 1);
    assert_eq!(browser.value("window.evil ?? 0"), 0);
    let elsewhere = browser.requests().into_iter().find(|url| url.contains("elsewhere"));
    assert_eq!(elsewhere, None);
    // Markup that did get in would find its way barred by the policy.
    browser.forget();
    browser.value("document.body.insertAdjacentHTML('beforeend', '<img src=http://elsewhere.example/x onerror=evil=2>')");
    browser.value("fetch('http://elsewhere.example/y').catch(() => 0)");
    let barred = |browser: &Browser| {
        browser.complaints().iter().filter(|text| text.contains("Content Security Policy")).count()
    };
    for _ in 0..100 {
        browser.value("0");
        if barred(&browser) >= 2 {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert!(barred(&browser) >= 2, "{:?}", browser.complaints());
    assert_eq!(browser.value("window.evil ?? 0"), 0);
}

/// What the page is told now.
fn state(web: &str) -> Value {
    let mut stream = std::net::TcpStream::connect(web).unwrap();
    stream.set_read_timeout(Some(STEP)).unwrap();
    stream.write_all(format!("GET /api/state HTTP/1.1\r\nHost: {web}\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    serde_json::from_str(text(&answer).split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// What the checks above look for they also see: a page that complains and asks somebody else.
#[test]
fn a_page_that_is_not_clean_is_noticed() {
    let Some(program) = browser::find() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let page = format!("http://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 2048]);
            let body = "<p id=health>here</p><img src=http://elsewhere.example/x><script>console.error('oh')</script>";
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    let mut browser = Browser::start(&program);
    browser.open(&page);
    browser.until("#health", "here");
    assert!(
        browser.requests().iter().any(|url| url.contains("elsewhere.example")),
        "{:?}",
        browser.requests()
    );
    assert!(browser.complaints().iter().any(|text| text.contains("oh")), "{:?}", browser.complaints());
}
