//! SDKs: a script of ours in their language, which ends with a line for each thing that it checked.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{Stage, number, text};
use crate::Failure;
use crate::process::run_any;
use crate::scenario::{Passed, require};
use crate::subject::ADMIN_TOKEN;

const SCRIPT: &str = include_str!("session.py");
/// Of the whole script.
const LIMIT: Duration = Duration::from_secs(240);

/// Runs the script on both daemons.
pub(super) fn play(s: &Stage<'_>, package: &Path) -> Result<Passed, Failure> {
    let folder = &s.a.folder;
    let script = folder.join("session.py");
    std::fs::write(&script, SCRIPT)?;
    // Networks are made by the operator, not by an SDK.
    let owner = number(&s.a)?.to_string();
    let network = |name: &str, rules: &[&str]| -> Result<String, Failure> {
        let words = ["network", "create", "--name", name, "--node-id", &owner];
        Ok(s.ok(&s.a, &[&words, rules].concat())?["network_id"].to_string())
    };
    let open = network("sdk-open", &[])?;
    let invite = network("sdk-invite", &["--join-rule", "invite", "--enterprise"])?;
    let mut command = Command::new("python3");
    command.arg(&script).env("HOME", folder).env("PYTHONPATH", package).env("PYTHONDONTWRITEBYTECODE", "1");
    let places = ["pilotprotocol/libpilot.so", "pilotprotocol/bin/libpilot.so"];
    if let Some(library) = places.iter().map(|place| package.join(place)).find(|path| path.is_file()) {
        command.env("PILOT_LIB_PATH", library);
    }
    for (name, node) in [("A", &s.a), ("B", &s.b)] {
        command.env(format!("SESSION_{name}_SOCKET"), node.folder.join("pilot.sock"));
        command.env(format!("SESSION_{name}_ADDRESS"), &node.address);
    }
    command.env("SESSION_B_RECEIVED", s.b.folder.join(".pilot/received"));
    command.env("SESSION_OPEN", open).env("SESSION_INVITE", invite);
    command.env("SESSION_OURS", if s.ours() { "1" } else { "" });
    command.env("PILOT_REGISTRY", s.hub.registry.to_string()).env("PILOT_ADMIN_TOKEN", ADMIN_TOKEN);
    let ended = run_any(&mut command, &[], LIMIT)?;
    let said = text(&ended.out);
    require(ended.status.success(), || {
        let last = said.lines().last().unwrap_or_default();
        let why = text(&ended.err);
        format!("{}: after {last:?}: {}", ended.status, why.lines().last().unwrap_or_default())
    })?;
    let checks = said.lines().filter(|line| line.starts_with("ok ")).count();
    let last = said.lines().last().unwrap_or_default();
    require(last == format!("done {checks}") && checks > 0, || format!("the script ended with {last:?}"))?;
    let version = said.lines().find_map(|line| line.strip_prefix("sdk ")).unwrap_or("of no version");
    let absent = said.lines().find_map(|line| line.strip_prefix("absent ")).unwrap_or("nothing");
    let reason = format!("{checks} calls checked, SDK {version}; not offered by it: {absent}");
    Ok(Passed::because(reason).with_figure(checks as f64, "answers"))
}
