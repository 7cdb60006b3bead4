//! The reference's tools on running daemons: each command once at least, its exit status and its answer checked.
//!
//! A hub of ours and two daemons of one kind, `anode` and `bnode`. With daemons of ours this shows that the tools work
//! unmodified; with those of the reference it shows that what is expected is what the tools are used to.

mod mailbox;
mod network;
mod pilotctl;
mod profile;
mod sdk;
mod trust;
mod webhook;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::lab::Lab;
use super::{Outcome, Passed, require};
use crate::Failure;
use crate::process::{Background, Ended, Scratch, free_address, json_lines, run_any};
use crate::subject::{Hub, Kind, Node, Programs};

/// One command, with connecting and its own time limits.
const LIMIT: Duration = Duration::from_secs(60);
/// Until something is seen that takes a message or two.
const SOON: Duration = Duration::from_secs(40);
/// Heartbeats of our daemons, so that what happens with the next one does not take half a minute.
const KEEPALIVE: &str = "2s";

/// The hub and the daemons.
struct Stage<'a> {
    programs: &'a Programs,
    kind: Kind,
    hub: Hub,
    hub_folder: PathBuf,
    a: Node,
    b: Node,
    /// Answers that were checked.
    answers: Cell<usize>,
}

/// A part of a session.
type Part = fn(&mut Stage<'_>) -> Result<(), Failure>;

/// A command that runs while others do.
struct Running {
    what: String,
    process: Background,
    output: PathBuf,
}

/// `pilotctl`, all of its commands for a running daemon.
pub(super) fn pilotctl(lab: &Lab<'_>, kind: Kind) -> Result<Outcome, Failure> {
    if lab.programs.lacks_socket(kind) {
        return Ok(Outcome::Skipped("this pilotage has no local socket".into()));
    }
    let mut stage = Stage::start(lab.programs, lab.scratch, kind)?;
    let parts: [(&str, Part); 9] = [
        ("identity", |stage| pilotctl::identity(stage)),
        ("reach", |stage| pilotctl::reach(stage)),
        ("streams", |stage| pilotctl::streams(stage)),
        ("profile", profile::play),
        ("mailbox", |stage| mailbox::play(stage)),
        ("networks", |stage| network::play(stage)),
        ("webhook", |stage| webhook::play(stage)),
        ("trust", |stage| trust::play(stage)),
        ("end", |stage| profile::leave(stage)),
    ];
    for (name, part) in parts {
        part(&mut stage).map_err(|error| format!("{name}: {error}"))?;
    }
    let reason = format!("{} answers checked", stage.answers.get());
    Ok(Outcome::Passed(Passed::because(reason).with_figure(stage.answers.get() as f64, "answers")))
}

/// The SDKs, all of their calls.
pub(super) fn python(lab: &Lab<'_>, kind: Kind) -> Result<Outcome, Failure> {
    let wanted = "set PILOT_REF_PYTHON to the folder with the reference's Python package and its library";
    with_sdk(lab, kind, &sdk::PYTHON, lab.programs.python.as_deref(), wanted)
}

pub(super) fn node(lab: &Lab<'_>, kind: Kind) -> Result<Outcome, Failure> {
    let wanted = "set PILOT_REF_NODE to the folder of the reference's Node package, built, with its library";
    with_sdk(lab, kind, &sdk::NODE, lab.programs.node.as_deref(), wanted)
}

fn with_sdk(
    lab: &Lab<'_>,
    kind: Kind,
    language: &sdk::Language,
    package: Option<&Path>,
    wanted: &str,
) -> Result<Outcome, Failure> {
    let Some(package) = package else { return Ok(Outcome::Skipped(wanted.into())) };
    if lab.programs.lacks_socket(kind) {
        return Ok(Outcome::Skipped("this pilotage has no local socket".into()));
    }
    let stage = Stage::start(lab.programs, lab.scratch, kind)?;
    sdk::play(&stage, language, package).map(Outcome::Passed)
}

impl<'a> Stage<'a> {
    fn start(programs: &'a Programs, scratch: &'a Scratch, kind: Kind) -> Result<Self, Failure> {
        let hub_folder = scratch.folder("hub")?;
        let hub = programs.start_hub(Kind::Pilotage, &hub_folder)?;
        let daemon = |folder: &str, name: &'static str| -> Result<Node, Failure> {
            let folder = scratch.folder(folder)?;
            match kind {
                Kind::Reference => programs.start_daemon_at(folder, name, free_address()?, &hub, false),
                Kind::Pilotage => {
                    // Where pilotctl looks for received files.
                    let received = scratch.folder(&format!("{}/.pilot/received", folder_name(&folder)))?;
                    let inbox = received.to_string_lossy().into_owned();
                    let options = ["--keepalive", KEEPALIVE, "--inbox", &inbox];
                    programs.start_up_with(folder, name, free_address()?, &hub, &options)
                }
            }
        };
        let (a, b) = (daemon("a", "anode")?, daemon("b", "bnode")?);
        Ok(Self { programs, kind, hub, hub_folder, a, b, answers: Cell::new(0) })
    }

    fn ours(&self) -> bool {
        self.kind == Kind::Pilotage
    }

    fn command(&self, node: &Node, words: &[&str]) -> Result<Command, Failure> {
        let mut command = self.programs.pilotctl(&node.folder, &self.hub)?;
        command.args(words);
        Ok(command)
    }

    fn ends(&self, node: &Node, words: &[&str], input: &[u8]) -> Result<Ended, Failure> {
        self.answers.set(self.answers.get() + 1);
        run_any(&mut self.command(node, words)?, input, LIMIT)
    }

    /// What a command answers that must succeed.
    fn ok(&self, node: &Node, words: &[&str]) -> Result<Value, Failure> {
        let what = words.join(" ");
        let ended = self.ends(node, words, &[])?;
        data(&what, &ended.out, ended.status.success(), &ended.err)
    }

    /// The same, and the answer must hold this.
    fn says(&self, node: &Node, words: &[&str], wanted: &Value) -> Result<Value, Failure> {
        let got = self.ok(node, words)?;
        holds(&words.join(" "), &got, wanted)?;
        Ok(got)
    }

    /// A command that must fail with this code; its message.
    fn refused(&self, node: &Node, words: &[&str], code: &str) -> Result<String, Failure> {
        let what = words.join(" ");
        let ended = self.ends(node, words, &[])?;
        let said = String::from_utf8_lossy(&ended.err).into_owned();
        let lines = json_lines(&said);
        let error = lines.iter().find(|line| line["status"] == "error");
        let error = error.ok_or_else(|| format!("`{what}` did not fail: {}{said}", text(&ended.out)))?;
        require(ended.status.code() == Some(1), || format!("`{what}`: {}", ended.status))?;
        holds(&what, error, &json!({ "status": "error", "code": code }))?;
        Ok(error["message"].as_str().unwrap_or_default().to_owned())
    }

    /// A command that is repeated until its answer holds this.
    fn until(&self, node: &Node, words: &[&str], wanted: &Value) -> Result<Value, Failure> {
        let (deadline, answers) = (Instant::now() + SOON, self.answers.get());
        loop {
            // However often it has to be asked, it is one answer.
            self.answers.set(answers);
            let got = self.ok(node, words)?;
            match holds(&words.join(" "), &got, wanted) {
                Ok(()) => return Ok(got),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// The one connection in a daemon's list that holds this.
    fn listed(&self, node: &Node, wanted: &Value) -> Result<Value, Failure> {
        if self.ours() {
            let mut listed =
                self.until(node, &["connections"], &json!({ "total": 1, "connections": [wanted] }))?;
            return Ok(listed["connections"][0].take());
        }
        // The reference keeps those that are over for a while.
        let (deadline, answers) = (Instant::now() + SOON, self.answers.get());
        loop {
            self.answers.set(answers);
            let listed = self.ok(node, &["connections"])?;
            let entries = listed["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(entry) = entries.iter().find(|entry| holds("", entry, wanted).is_ok()) {
                return Ok(entry.clone());
            }
            require(Instant::now() < deadline, || format!("connections: {listed} without {wanted}"))?;
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until a daemon of ours lists no connection.
    fn none_listed(&self, node: &Node) -> Result<(), Failure> {
        let nothing = json!({ "total": 0 });
        if self.ours() { self.until(node, &["connections"], &nothing).map(drop) } else { Ok(()) }
    }

    /// Starts a command.
    fn begin(&self, node: &Node, words: &[&str]) -> Result<Running, Failure> {
        self.answers.set(self.answers.get() + 1);
        let output = node.folder.join(format!("running-{}.out", self.answers.get()));
        let log = output.with_extension("log");
        let mut command = self.command(node, words)?;
        let process = Background::start_split(&mut command, Stdio::null(), &output, &log)?;
        Ok(Running { what: words.join(" "), process, output })
    }
}

impl Running {
    /// Waits for its end, and the answer must hold this.
    fn ends_with(mut self, wanted: &Value) -> Result<(), Failure> {
        self.process.ends_well(&self.what, LIMIT)?;
        let got = data(&self.what, &std::fs::read(&self.output)?, true, &[])?;
        holds(&self.what, &got, wanted)
    }

    /// Waits for its end, which must be a failure that says this.
    fn fails_with(mut self, words: &str) -> Result<(), Failure> {
        match self.process.ends_well(&self.what, LIMIT) {
            Ok(()) => Err(format!("`{}` did not fail", self.what).into()),
            Err(error) => require(error.to_string().contains(words), || error.to_string()),
        }
    }
}

impl Programs {
    /// Daemons of this kind offer nothing for the tools.
    fn lacks_socket(&self, kind: Kind) -> bool {
        kind == Kind::Pilotage && !self.local_socket
    }
}

/// The number of a node.
fn number(node: &Node) -> Result<u32, Failure> {
    let digits: String = node.address.chars().skip_while(|c| *c != '.').filter(|c| *c != '.').collect();
    Ok(u32::from_str_radix(&digits, 16).map_err(|error| format!("{}: {error}", node.address))?)
}

/// The answer in its envelope.
fn data(what: &str, out: &[u8], success: bool, err: &[u8]) -> Result<Value, Failure> {
    let said = text(out);
    require(success, || format!("`{what}` failed: {}{}", said, text(err)))?;
    let line = json_lines(&said).into_iter().rev().find(|line| line["status"] == "ok");
    let mut line = line.ok_or_else(|| format!("`{what}` said {said:?} and {}", text(err)))?;
    Ok(line["data"].take())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn folder_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether `got` holds everything that is in `wanted`: the fields of objects, all entries of lists in order, values.
fn holds(what: &str, got: &Value, wanted: &Value) -> Result<(), Failure> {
    let fits = match (got, wanted) {
        (Value::Object(_), Value::Object(fields)) => {
            for (name, value) in fields {
                holds(&format!("{what}: {name}"), &got[name], value)?;
            }
            true
        }
        (Value::Array(has), Value::Array(wants)) => {
            let entries = has.iter().zip(wants).enumerate();
            for (at, (has, wants)) in entries {
                holds(&format!("{what}: [{at}]"), has, wants)?;
            }
            has.len() == wants.len()
        }
        _ => got == wanted,
    };
    require(fits, || format!("{what}: {got} instead of {wanted}"))
}

/// Every one of these fields is a number that is not negative.
fn numbers(what: &str, got: &Value, fields: &[&str]) -> Result<(), Failure> {
    let wrong = fields.iter().find(|field| got[**field].as_f64().is_none_or(|number| number < 0.0));
    wrong.map_or(Ok(()), |field| Err(format!("{what}: {field} is {}", got[*field]).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_its_part_and_nothing_else() {
        let got = json!({ "a": 1, "list": [{ "b": "x", "c": null }], "none": null });
        let fits = |wanted: Value| holds("it", &got, &wanted).map_err(|error| error.to_string());
        assert_eq!(fits(json!({ "a": 1, "list": [{ "b": "x" }] })), Ok(()));
        assert_eq!(fits(json!({ "missing": null })), Ok(()), "nothing is what it is");
        assert_eq!(fits(json!({ "a": "1" })), Err("it: a: 1 instead of \"1\"".into()));
        for wrong in [json!({ "list": [] }), json!({ "list": [{ "b": "y" }] }), json!([1]), json!({ "d": 1 })]
        {
            assert!(fits(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(numbers("it", &got, &["a"]).is_ok() && numbers("it", &got, &["a", "list"]).is_err());
    }

    #[test]
    fn an_answer_is_taken_out_of_its_envelope() {
        let out = b"note\n{\"status\":\"ok\",\"data\":{\"n\":1}}\n";
        assert_eq!(data("it", out, true, b"").expect("data"), json!({ "n": 1 }));
        assert!(data("it", out, false, b"").is_err());
        assert!(data("it", b"{\"status\":\"error\"}", true, b"").is_err());
    }
}
