//! Starting other programs, and where things are.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Failure;

/// The root folder of the repository.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// A cargo command in the root folder, with the toolchain that runs this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// Where cargo puts what it builds of the workspace.
pub(crate) fn target_folder() -> Result<PathBuf, Failure> {
    let text = output(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    Ok(metadata["target_directory"].as_str().ok_or("cargo metadata names no target directory")?.into())
}

/// Any other program in the root folder.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// Runs with the output shown; `Ok(false)` if it ended with a failure.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool, Failure> {
    let shown = show(command);
    eprintln!("$ {shown}");
    Ok(command.status().map_err(|e| format!("cannot start `{shown}`: {e}"))?.success())
}

/// Runs and returns standard output; an error carries what it wrote to standard error.
pub(crate) fn output(command: &mut Command) -> Result<String, Failure> {
    let shown = show(command);
    let out = command.output().map_err(|e| format!("cannot start `{shown}`: {e}"))?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        return Err(format!("`{shown}` failed: {}", text.trim()).into());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Which of the two output streams to read along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listen {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Runs with the output shown and hands every line of one stream to `line`.
pub(crate) fn watch(
    command: &mut Command,
    listen: Listen,
    mut line: impl FnMut(&str),
) -> Result<bool, Failure> {
    let shown = show(command);
    eprintln!("$ {shown}");
    match listen {
        Listen::Out => command.stdout(Stdio::piped()),
        Listen::Err => command.stderr(Stdio::piped()),
    };
    let mut child = command.spawn().map_err(|e| format!("cannot start `{shown}`: {e}"))?;
    let reader: Box<dyn BufRead> = match listen {
        Listen::Out => Box::new(BufReader::new(child.stdout.take().ok_or("no standard output")?)),
        Listen::Err => Box::new(BufReader::new(child.stderr.take().ok_or("no standard error")?)),
    };
    for text in reader.split(b'\n') {
        let text = String::from_utf8_lossy(&text?).into_owned();
        match listen {
            Listen::Out => println!("{text}"),
            Listen::Err => eprintln!("{text}"),
        }
        line(&text);
    }
    Ok(child.wait()?.success())
}

/// Whether a program can be found in PATH.
pub(crate) fn is_installed(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
        // Administration tools of Debian live here, and not every PATH names the folder.
        || ["/usr/sbin", "/sbin"].iter().any(|folder| Path::new(folder).join(name).is_file())
}

/// Whether this process may install packages.
pub(crate) fn is_root() -> bool {
    output(program("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Says that something was left out; never counts as passed.
pub(crate) fn skipped(what: &str) {
    eprintln!("SKIPPED: {what}");
}

fn show(command: &Command) -> String {
    let name =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    command.get_args().fold(name, |text, argument| format!("{text} {}", argument.to_string_lossy()))
}
