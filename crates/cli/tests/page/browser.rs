//! Headless Chromium, driven through its DevTools protocol: what a page shows, asks for and complains of.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

/// Names that Chromium has.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
/// Longest wait for the browser to start or to answer; a machine that builds is slow.
const PATIENCE: Duration = Duration::from_secs(40);

/// The program: as `PILOTAGE_CHROMIUM` says, else what is found. `None` is said loudly.
pub(crate) fn find() -> Option<String> {
    let runs = |name: &&str| {
        let mut command = Command::new(name);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let named = std::env::var("PILOTAGE_CHROMIUM").ok();
    let found = named.or_else(|| NAMES.iter().copied().find(runs).map(str::to_owned));
    if found.is_none() {
        eprintln!(
            "SKIPPED: the page was not looked at by a browser: no Chromium found; PILOTAGE_CHROMIUM=PROGRAM names one"
        );
    }
    found
}

/// A browser with one page; killed with all its processes when dropped.
pub(crate) struct Browser {
    child: Child,
    socket: WebSocket<TcpStream>,
    session: Value,
    number: u64,
    /// What it told without being asked.
    told: Vec<Value>,
    /// `/api/state` as it is answered instead of by the hub.
    instead: Option<(String, String)>,
    _profile: tempfile::TempDir,
}

impl Browser {
    pub(crate) fn start(program: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new(program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
            ])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-extensions"])
            // Nothing leaves this machine, whatever a page asks for.
            .args(["--remote-debugging-port=0", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            // What it leaves behind when it is killed goes with the profile.
            .env("TMPDIR", profile.path())
            .env("HOME", profile.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let stderr = child.stderr.take().unwrap();
        let (say, said) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some(url) = line.strip_prefix("DevTools listening on ") {
                    let _ = say.send(url.to_owned());
                }
            }
        });
        let url = said.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            end(&mut child);
            panic!("{program} says no DevTools address within {PATIENCE:?}");
        });
        let at = url.strip_prefix("ws://").and_then(|rest| rest.split('/').next()).unwrap();
        let stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let socket = connect(&url, stream);
        let mut browser = Self {
            child,
            socket,
            session: Value::Null,
            number: 0,
            told: Vec::new(),
            instead: None,
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].clone();
        for domain in ["Page", "Network", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Asks, and waits for the answer.
    fn call(&mut self, method: &str, params: Value) -> Value {
        let number = self.send(method, params);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let Some(message) = self.read() else { continue };
            if message["id"] == number {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
        }
        panic!("{method}: no answer within {PATIENCE:?}");
    }

    fn send(&mut self, method: &str, params: Value) -> u64 {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": params });
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        self.socket.send(Message::text(message.to_string())).unwrap();
        self.number
    }

    /// A message; `None` if none comes for a moment.
    fn read(&mut self) -> Option<Value> {
        let message = match self.socket.read() {
            Ok(message) => message,
            Err(tungstenite::Error::Io(error))
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                return None;
            }
            Err(error) => panic!("the browser is gone: {error}"),
        };
        let message: Value = serde_json::from_str(message.to_text().ok()?).ok()?;
        if message["method"] == "Fetch.requestPaused" {
            self.answer_instead(&message["params"]["requestId"]);
        }
        if message["method"].is_string() {
            self.told.push(message.clone());
        }
        Some(message)
    }

    fn answer_instead(&mut self, request: &Value) {
        let Some((kind, body)) = self.instead.clone() else { return };
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(body);
        let headers = json!([{ "name": "Content-Type", "value": kind }]);
        let answer =
            json!({ "requestId": request, "responseCode": 200, "responseHeaders": headers, "body": body });
        self.send("Fetch.fulfillRequest", answer);
    }

    /// From now on requests to addresses of this pattern get this answer, and the hub is not asked.
    pub(crate) fn answer(&mut self, pattern: &str, kind: &str, body: &str) {
        self.instead = Some((kind.to_owned(), body.to_owned()));
        self.call("Fetch.enable", json!({ "patterns": [{ "urlPattern": pattern }] }));
    }

    pub(crate) fn open(&mut self, url: &str) {
        let reply = self.call("Page.navigate", json!({ "url": url }));
        assert!(reply["errorText"].is_null(), "{url}: {reply}");
    }

    /// The value of an expression in the page.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let reply = self.call("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true }));
        reply["result"]["value"].clone()
    }

    /// The text of what a selector finds first; empty if there is nothing.
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let found = self.value(&format!("document.querySelector({selector:?})?.innerText ?? ''"));
        found.as_str().unwrap_or_default().to_owned()
    }

    /// Waits, in real time, until the text of what the selector finds has this in it.
    pub(crate) fn until(&mut self, selector: &str, part: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.text(selector);
            if text.contains(part) {
                return;
            }
            if Instant::now() >= deadline {
                let page = self.value("document.documentElement.outerHTML");
                panic!("{selector} never has {part:?}; it has {text:?} in {page} {:#?}", self.complaints());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Addresses that the page has asked for, or wanted to.
    pub(crate) fn requests(&self) -> Vec<String> {
        let asked = self.told.iter().filter(|told| told["method"] == "Network.requestWillBeSent");
        asked.filter_map(|told| told["params"]["request"]["url"].as_str().map(str::to_owned)).collect()
    }

    /// Errors and warnings of scripts, of the policy, and of requests that failed.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let bad = |told: &&Value| match told["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => {
                matches!(told["params"]["type"].as_str(), Some("error" | "warning" | "assert"))
            }
            Some("Log.entryAdded") => {
                matches!(told["params"]["entry"]["level"].as_str(), Some("error" | "warning"))
            }
            _ => false,
        };
        self.told.iter().filter(bad).map(|told| told["params"].to_string()).collect()
    }

    /// Forgets what was asked for and complained of.
    pub(crate) fn forget(&mut self) {
        self.told.clear();
    }
}

fn connect(url: &str, stream: TcpStream) -> WebSocket<TcpStream> {
    let mut outcome = tungstenite::client(url, stream);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match outcome {
            Ok((socket, _)) => return socket,
            Err(tungstenite::HandshakeError::Interrupted(half)) if Instant::now() < deadline => {
                outcome = half.handshake();
            }
            Err(error) => panic!("{url}: {error}"),
        }
    }
}

/// The browser and the processes that it has made: its own group.
fn end(child: &mut Child) {
    let group = format!("-{}", child.id());
    let _ = Command::new("kill").args(["-9", "--", &group]).status();
    let _ = child.wait();
}

impl Drop for Browser {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
