//! The services of the draft between ours and the reference: each is a list of command lines for either side, so that a
//! service needs nothing here but its words.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::lab::Lab;
use super::meeting::{Meeting, Place};
use super::{Outcome, Scenario, require};
use crate::Failure;
use crate::process::{Background, run};
use crate::subject::{Kind, Node};

/// What a command line may name: `{server}`, `{client}`, `{endpoint}` (UDP address of the server).
type Words = &'static [&'static str];

/// How long a background step may take to be ready, and to its end after the last step.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the registry keeps for a node is fetched each 30 s; answers are first tried directly.
const POLLED: Duration = Duration::from_secs(75);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Client,
    Server,
}

/// One command.
struct Step {
    who: Who,
    /// Nothing to do where there are no words.
    ours: Words,
    theirs: Words,
    /// Of the command, on its standard input.
    input: &'static str,
    /// Runs while the next steps do.
    meanwhile: bool,
    /// Is in its output.
    says: &'static str,
    /// Is not in its output.
    lacks: &'static str,
    /// It must not succeed.
    fails: bool,
    /// It may take this long until its output is right: the command is run again meanwhile.
    within: Duration,
}

const STEP: Step = Step {
    who: Who::Client,
    ours: &[],
    theirs: &[],
    input: "",
    meanwhile: false,
    says: "",
    lacks: "",
    fails: false,
    within: Duration::ZERO,
};

/// A service.
struct Service {
    /// Command of ours without which it cannot run.
    needs: &'static str,
    server: Place,
    client_up: bool,
    steps: &'static [Step],
}

const SOON: Duration = Duration::from_secs(5);

const STDIO: Service = Service {
    needs: "listen",
    server: Place::Command,
    client_up: false,
    steps: &[
        Step {
            who: Who::Server,
            ours: &["listen", "--bind", "{endpoint}", "--name", "bnode", "1000"],
            theirs: &["recv", "1000", "--count", "1", "--timeout", "30s"],
            meanwhile: true,
            says: "over to you",
            ..STEP
        },
        Step {
            ours: &["connect", "{server}", "1000"],
            theirs: &["send", "{server}", "1000", "--data", "over to you"],
            input: "over to you",
            ..STEP
        },
    ],
};

const MESSAGES: Service = Service {
    needs: "message",
    server: Place::Node,
    client_up: false,
    steps: &[
        Step {
            ours: &["message", "{server}", "plain text"],
            theirs: &["send-message", "{server}", "--data", "plain text", "--type", "text"],
            ..STEP
        },
        Step {
            ours: &["message", "--json-payload", "{server}", "{\"answer\":42}"],
            theirs: &["send-message", "{server}", "--data", "{\"answer\":42}", "--type", "json"],
            ..STEP
        },
        Step {
            ours: &["message", "--binary", "-", "{server}"],
            theirs: &["send-message", "{server}", "--data", "raw bytes", "--type", "binary"],
            input: "raw bytes",
            ..STEP
        },
        Step { who: Who::Server, ours: &["inbox"], theirs: &["inbox"], says: "plain text", ..STEP },
        Step { who: Who::Server, ours: &["inbox"], theirs: &["inbox"], says: "answer", ..STEP },
        Step { who: Who::Server, ours: &["inbox"], theirs: &["inbox"], says: "BINARY", ..STEP },
    ],
};

const EVENTS: Service = Service {
    needs: "subscribe",
    server: Place::Node,
    client_up: false,
    steps: &[
        Step {
            ours: &["subscribe", "--count", "1", "{server}", "news"],
            theirs: &["subscribe", "{server}", "news", "--count", "1", "--timeout", "30s"],
            meanwhile: true,
            says: "it happened",
            ..STEP
        },
        Step {
            ours: &["publish", "--ephemeral", "{server}", "news", "it happened"],
            theirs: &["publish", "{server}", "news", "--data", "it happened"],
            ..STEP
        },
    ],
};

const TASKS: Service = Service {
    needs: "task",
    server: Place::Node,
    client_up: false,
    steps: &[
        Step { who: Who::Server, theirs: &["enable-tasks"], ..STEP },
        Step {
            ours: &["task", "submit", "{server}", "count to ten"],
            theirs: &["task", "submit", "{server}", "--task", "count to ten"],
            ..STEP
        },
        Step {
            who: Who::Server,
            ours: &["task", "list", "--received"],
            theirs: &["task", "list", "--type", "received"],
            says: "count to ten",
            within: SOON,
            ..STEP
        },
    ],
};

const TRUST: Service = Service {
    needs: "trust",
    server: Place::Node,
    client_up: true,
    steps: &[
        Step {
            ours: &["trust", "request", "{server}", "--why", "we met"],
            theirs: &["handshake", "{server}", "we met"],
            ..STEP
        },
        Step {
            who: Who::Server,
            ours: &["trust", "pending"],
            theirs: &["pending"],
            says: "we met",
            within: PATIENCE,
            ..STEP
        },
        Step {
            who: Who::Server,
            ours: &["trust", "approve", "{client}"],
            theirs: &["approve", "{client-number}"],
            ..STEP
        },
        Step {
            ours: &["trust", "list", "--json"],
            theirs: &["trust"],
            says: "{server-number}",
            within: PATIENCE,
            ..STEP
        },
        Step { ours: &["trust", "revoke", "{server}"], theirs: &["untrust", "{server-number}"], ..STEP },
        Step {
            who: Who::Server,
            ours: &["trust", "list", "--json"],
            theirs: &["trust"],
            lacks: "{client-number}",
            within: PATIENCE,
            ..STEP
        },
    ],
};

/// The registry names a private node to nobody, so the request goes by way of the registry; both sides ask it each 30 s.
const PRIVATE: Service = Service {
    needs: "trust",
    server: Place::PrivateNode,
    client_up: true,
    steps: &[
        Step {
            ours: &["connect", "--connect-timeout", "5s", "{server}", "7"],
            theirs: &["connect", "{server}", "7", "--message", "hello", "--timeout", "5s"],
            input: "hello",
            fails: true,
            ..STEP
        },
        Step {
            ours: &["trust", "request", "{server}", "--why", "we met"],
            theirs: &["handshake", "{server-number}", "we met"],
            ..STEP
        },
        Step {
            who: Who::Server,
            ours: &["trust", "pending"],
            theirs: &["pending"],
            says: "we met",
            within: POLLED,
            ..STEP
        },
        Step {
            who: Who::Server,
            ours: &["trust", "approve", "{client}"],
            theirs: &["approve", "{client-number}"],
            ..STEP
        },
        Step {
            ours: &["trust", "list", "--json"],
            theirs: &["trust"],
            says: "{server-number}",
            within: POLLED,
            ..STEP
        },
        Step {
            ours: &["connect", "--connect-timeout", "40s", "{server}", "7"],
            theirs: &["connect", "{server}", "7", "--message", "hello", "--timeout", "30s"],
            input: "hello",
            says: "hello",
            ..STEP
        },
    ],
};

fn service(scenario: Scenario) -> Option<&'static Service> {
    match scenario {
        Scenario::Stdio => Some(&STDIO),
        Scenario::Messages => Some(&MESSAGES),
        Scenario::Events => Some(&EVENTS),
        Scenario::Tasks => Some(&TASKS),
        Scenario::Trust => Some(&TRUST),
        Scenario::Private => Some(&PRIVATE),
        _ => None,
    }
}

/// All steps in order; then the commands that ran meanwhile must have ended well.
pub(super) fn play(scenario: Scenario, lab: &Lab<'_>, kinds: (Kind, Kind)) -> Result<Outcome, Failure> {
    let service = service(scenario).ok_or("no such service")?;
    let ours = kinds.0 == Kind::Pilotage || kinds.1 == Kind::Pilotage;
    if ours && !lab.programs.has_command(service.needs) {
        return Ok(Outcome::Skipped(format!("this pilotage has no command `{}`", service.needs)));
    }
    let mut meeting = Meeting::start(lab, kinds, service.server)?;
    if service.client_up {
        meeting.client_up()?;
    }
    let mut running = Vec::new();
    for (number, step) in service.steps.iter().enumerate() {
        let stage = |e: Failure| format!("step {}: {e}", number + 1);
        match begin(&meeting, number, step).map_err(stage)? {
            Some(process) => running.push((number, step, process)),
            None => take(&meeting, step).map_err(stage)?,
        }
    }
    for (number, step, mut process) in running {
        let what = format!("step {}", number + 1);
        process.ends_well(&what, PATIENCE)?;
        require(process.output().contains(step.says), || format!("{what} said {}", process.output()))?;
    }
    let unharmed = meeting.is_unharmed()?;
    Ok(Outcome::Passed(unharmed.passed(format!("{} steps", service.steps.len()))))
}

fn words_of(meeting: &Meeting<'_>, step: &Step) -> Vec<String> {
    let node = whose(meeting, step);
    let words = if node.kind == Kind::Pilotage { step.ours } else { step.theirs };
    words.iter().map(|word| meeting.fill_in(word)).collect()
}

fn whose<'a>(meeting: &'a Meeting<'_>, step: &Step) -> &'a Node {
    if step.who == Who::Client { &meeting.client } else { &meeting.server }
}

/// Starts a step that runs meanwhile, if it is one.
fn begin(meeting: &Meeting<'_>, number: usize, step: &Step) -> Result<Option<Background>, Failure> {
    let words = words_of(meeting, step);
    if !step.meanwhile || words.is_empty() {
        return Ok(None);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let node = whose(meeting, step);
    let mut command = meeting.command_of(node, &words)?;
    let log = node.folder.join(format!("step-{number}.log"));
    // Its standard input ends at once; what it waits for comes from the peer.
    let process = Background::start_with(&mut command, Stdio::null(), &log)?;
    // None of the programs says when the peer has heard of it.
    std::thread::sleep(Duration::from_millis(2_500));
    Ok(Some(process))
}

/// Runs a step to its end, again and again while its words are not yet there.
fn take(meeting: &Meeting<'_>, step: &Step) -> Result<(), Failure> {
    let words = words_of(meeting, step);
    if words.is_empty() {
        return Ok(());
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (node, says, lacks) = (whose(meeting, step), meeting.fill_in(step.says), meeting.fill_in(step.lacks));
    let deadline = Instant::now() + step.within;
    loop {
        let mut command = meeting.command_of(node, &words)?;
        let result = run(&mut command, step.input.as_bytes(), meeting.lab.plan.limit());
        if step.fails {
            return require(result.is_err(), || format!("`{}` succeeded", words.join(" ")));
        }
        let text = String::from_utf8_lossy(&result?).into_owned();
        if text.contains(&says) && (lacks.is_empty() || !text.contains(&lacks)) {
            return Ok(());
        }
        require(Instant::now() < deadline, || format!("`{}` said {}", words.join(" "), text.trim()))?;
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_says_something_and_names_only_what_is_filled_in() {
        for scenario in Scenario::all().iter().filter(|s| s.is_service()) {
            let service = service(*scenario).expect("a list of steps");
            assert!(service.steps.iter().any(|step| !step.says.is_empty()), "{scenario:?}");
            assert!(service.steps.iter().all(|step| !step.fails || step.says.is_empty()), "{scenario:?}");
            for word in service.steps.iter().flat_map(|step| step.ours.iter().chain(step.theirs)) {
                let rest =
                    Meeting::NAMES.iter().fold((*word).to_owned(), |text, name| text.replace(name, ""));
                assert!(!rest.contains("{s") && !rest.contains("{c") && !rest.contains("{e"), "{word}");
            }
        }
    }
}
