//! Scenarios of two nodes that find each other by a hub, without impairment: every combination of
//! implementations of hub, client and server.

use std::path::PathBuf;
use std::time::Duration;

use super::{Passed, Scenario, content};
use crate::Failure;
use crate::process::{Scratch, run};
use crate::subject::{Hub, Kind, Node, Programs};

/// Bytes of the transfer scenario.
const TRANSFER_BYTES: usize = 1 << 20;
/// Echo service of every implementation.
const ECHO_PORT: &str = "7";
/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A hub with two nodes.
pub(crate) struct Stage<'a> {
    hub: Hub,
    responder: Node,
    initiator: Node,
    programs: &'a Programs,
}

impl<'a> Stage<'a> {
    /// Starts everything.
    pub(crate) fn start(
        hub: Kind,
        initiator: Kind,
        responder: Kind,
        programs: &'a Programs,
        scratch: &Scratch,
    ) -> Result<Self, Failure> {
        let hub = programs.start_hub(hub, &scratch.folder("hub")?)?;
        let responder = programs.start_responder(responder, scratch.folder("b")?, "bnode", &hub)?;
        let initiator = programs.start_initiator(initiator, scratch.folder("a")?, "anode", &hub)?;
        Ok(Self { hub, responder, initiator, programs })
    }
}

/// Runs one scenario of this family; the text says what was seen.
pub(crate) fn play(scenario: Scenario, stage: &Stage<'_>) -> Result<Passed, Failure> {
    match (scenario, stage.initiator.kind, stage.responder.kind) {
        (Scenario::Ping, Kind::Pilotage, _) => pilotage_ping(stage)?,
        (Scenario::Ping, Kind::Reference, _) => reference(stage, &["ping"], &["--count", "3"])?,
        (Scenario::Echo, Kind::Pilotage, _) => pilotage_echo(stage, b"hello from the other side\n")?,
        (Scenario::Echo, Kind::Reference, _) => {
            reference(stage, &["connect"], &[ECHO_PORT, "--message", "hello", "--timeout", "10s"])?;
        }
        (_, Kind::Pilotage, Kind::Pilotage) => pilotage_file(stage)?,
        (_, Kind::Pilotage, Kind::Reference) => pilotage_echo(stage, &content(TRANSFER_BYTES, 0))?,
        (_, Kind::Reference, _) => reference(stage, &["bench"], &["1", "--timeout", "50s"])?,
    }
    Ok(Passed::because(match scenario {
        Scenario::Ping => "3 of 3 answered",
        Scenario::Echo => "the text came back unchanged",
        _ => "1 MiB arrived unchanged",
    }))
}

fn pilotage_ping(stage: &Stage<'_>) -> Result<(), Failure> {
    let mut command = stage.programs.pilotage("ping", &stage.initiator.folder, &stage.hub);
    command.args([stage.responder.name, "--count", "3", "--interval", "100ms"]);
    run(&mut command, &[], LIMIT).map(|_| ())
}

fn pilotage_echo(stage: &Stage<'_>, bytes: &[u8]) -> Result<(), Failure> {
    let mut command = stage.programs.pilotage("connect", &stage.initiator.folder, &stage.hub);
    command.args([stage.responder.name, ECHO_PORT]);
    let back = run(&mut command, bytes, LIMIT)?;
    if back == bytes {
        return Ok(());
    }
    let same = back.iter().zip(bytes).take_while(|(a, b)| a == b).count();
    Err(format!("{} bytes sent, {} came back, the first {same} equal", bytes.len(), back.len()).into())
}

fn pilotage_file(stage: &Stage<'_>) -> Result<(), Failure> {
    let bytes = content(TRANSFER_BYTES, 0);
    let file: PathBuf = stage.initiator.folder.join("sample.bin");
    std::fs::write(&file, &bytes)?;
    let mut command = stage.programs.pilotage("send", &stage.initiator.folder, &stage.hub);
    command.arg(stage.responder.name).arg(&file);
    run(&mut command, &[], LIMIT)?;
    let received = std::fs::read(stage.responder.folder.join("inbox").join("sample.bin"))
        .map_err(|e| format!("the receiver's inbox: {e}"))?;
    if received == bytes { Ok(()) } else { Err("the received file differs".into()) }
}

fn reference(stage: &Stage<'_>, command: &[&str], arguments: &[&str]) -> Result<(), Failure> {
    let mut process = stage.programs.pilotctl(&stage.initiator.folder, &stage.hub)?;
    process.args(command).arg(stage.responder.name).args(arguments);
    run(&mut process, &[], LIMIT).map(|_| ())
}
