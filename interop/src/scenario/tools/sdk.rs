//! SDKs: a script of ours in their language, which prints a line for each thing that it checked.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{Stage, number, text};
use crate::Failure;
use crate::process::run_any;
use crate::scenario::{Passed, require};
use crate::subject::ADMIN_TOKEN;

/// Of a whole script.
const LIMIT: Duration = Duration::from_secs(240);

/// What runs a script.
pub(super) struct Language {
    program: &'static str,
    file: &'static str,
    script: &'static str,
    /// Where the package has its library, if the SDK does not find it there by itself.
    libraries: &'static [&'static str],
}

pub(super) const PYTHON: Language = Language {
    program: "python3",
    file: "session.py",
    script: include_str!("session.py"),
    libraries: &["pilotprotocol/libpilot.so", "pilotprotocol/bin/libpilot.so"],
};

pub(super) const NODE: Language = Language {
    program: "node",
    file: "session.mjs",
    script: include_str!("session.mjs"),
    libraries: &["bin/libpilot.so"],
};

/// Runs the script on both daemons with the SDK in `package`.
pub(super) fn play(s: &Stage<'_>, language: &Language, package: &Path) -> Result<Passed, Failure> {
    let folder = &s.a.folder;
    let script = folder.join(language.file);
    std::fs::write(&script, language.script)?;
    // Networks are made by the operator, not by an SDK.
    let owner = number(&s.a)?.to_string();
    let network = |name: &str, rules: &[&str]| -> Result<String, Failure> {
        let words = ["network", "create", "--name", name, "--node-id", &owner];
        Ok(s.ok(&s.a, &[&words, rules].concat())?["network_id"].to_string())
    };
    let open = network("sdk-open", &[])?;
    let invite = network("sdk-invite", &["--join-rule", "invite", "--enterprise"])?;
    let package = std::path::absolute(package)?;
    let mut command = Command::new(language.program);
    command.arg(&script).env("HOME", folder).env("SESSION_SDK", &package);
    command.env("PYTHONPATH", &package).env("PYTHONDONTWRITEBYTECODE", "1");
    if let Some(library) =
        language.libraries.iter().map(|place| package.join(place)).find(|path| path.is_file())
    {
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
        let (last, why) = (said.lines().last().unwrap_or_default(), text(&ended.err));
        let error = why.lines().find(|line| line.contains("Error")).or(why.lines().last());
        format!("{}: after {last:?}: {}", ended.status, error.unwrap_or_default())
    })?;
    judge(&said)
}

/// Counts the checks; the script must have come to its end.
fn judge(said: &str) -> Result<Passed, Failure> {
    let checks = said.lines().filter(|line| line.starts_with("ok ")).count();
    let last = said.lines().last().unwrap_or_default();
    require(last == format!("done {checks}") && checks > 0, || format!("the script ended with {last:?}"))?;
    let told = |word: &str| said.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_default().trim();
    let mut reason = format!("{checks} answers checked");
    for (word, what) in [("sdk", "release"), ("absent", "not offered by this SDK:")] {
        if !told(word).is_empty() {
            reason += &format!("; {what} {}", told(word));
        }
    }
    Ok(Passed::because(reason).with_figure(checks as f64, "answers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_has_passed_only_with_its_last_line() {
        let passed = judge("sdk 1.2\nabsent health\nok one\nok two\ndone 2").expect("passed");
        assert_eq!(passed.reason, "2 answers checked; release 1.2; not offered by this SDK: health");
        for said in ["ok one\nok two", "ok one\ndone 2", "done 0", ""] {
            assert!(judge(said).is_err(), "{said}");
        }
    }
}
