//! What a command reports when it fails: stage, cause, next step and exit code.

use std::fmt;
use std::io;

use pilotage::{ConnectFailure, StartError};
use serde_json::{Value, json};

/// Exit codes of every command, as `--help` documents them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Something failed.
    Failure = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The peer or the hub could not be reached, or stopped answering.
    Unreachable = 3,
    /// Data arrived but is not what was sent.
    Verification = 4,
    /// Ctrl-C, SIGTERM or SIGHUP.
    Interrupted = 130,
}

/// A failed command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CliError {
    /// What was being done.
    pub(crate) stage: String,
    /// What went wrong.
    pub(crate) cause: String,
    /// What the user can do.
    pub(crate) next: String,
    /// How the process ends.
    pub(crate) exit: Exit,
}

impl CliError {
    pub(crate) fn new(
        exit: Exit,
        stage: impl Into<String>,
        cause: impl fmt::Display,
        next: impl Into<String>,
    ) -> Self {
        Self { stage: stage.into(), cause: cause.to_string(), next: next.into(), exit }
    }

    /// Exit code 1.
    pub(crate) fn failure(
        stage: impl Into<String>,
        cause: impl fmt::Display,
        next: impl Into<String>,
    ) -> Self {
        Self::new(Exit::Failure, stage, cause, next)
    }

    /// Exit code 2.
    pub(crate) fn usage(stage: impl Into<String>, cause: impl fmt::Display, next: impl Into<String>) -> Self {
        Self::new(Exit::Usage, stage, cause, next)
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted", "stopped by a signal", "run the command again")
    }

    /// A stream that was working and failed.
    pub(crate) fn stream(stage: &str, error: &io::Error) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotConnected, TimedOut,
            UnexpectedEof,
        };
        let (exit, next) = match error.kind() {
            TimedOut => (
                Exit::Unreachable,
                "check that the peer is running and reachable (pilotage ping), then try again",
            ),
            ConnectionReset | ConnectionAborted | UnexpectedEof | BrokenPipe => {
                (Exit::Unreachable, "the peer ended the connection: see its messages, then try again")
            }
            ConnectionRefused => (Exit::Unreachable, "start a listener on that port at the peer"),
            NotConnected => (Exit::Failure, "the local node has been closed: start the command again"),
            _ => (Exit::Failure, "see the cause; -v tells more"),
        };
        Self::new(exit, stage, error, next)
    }

    /// What [`CliError::to_json`] wrote, from another process of the same version.
    pub(crate) fn from_json(value: &Value) -> Self {
        let text = |key: &str| value[key].as_str().unwrap_or("unknown").to_owned();
        let exit = match value["exit_code"].as_u64() {
            Some(2) => Exit::Usage,
            Some(3) => Exit::Unreachable,
            Some(4) => Exit::Verification,
            Some(130) => Exit::Interrupted,
            _ => Exit::Failure,
        };
        let stage = value["stage"].as_str().unwrap_or("control socket").to_owned();
        // A node of another version answers with a text alone.
        let cause = value.as_str().map_or_else(|| text("cause"), str::to_owned);
        Self { stage, cause, next: text("next"), exit }
    }

    /// The kind of failure, as far as the stage and exit code tell it.
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match (self.exit, self.stage.as_str()) {
            (_, "resolve") => io::ErrorKind::NotFound,
            (Exit::Unreachable, _) if self.cause.contains("refused") => io::ErrorKind::ConnectionRefused,
            (Exit::Unreachable, _) => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::Other,
        }
    }

    /// The one line of `--json`.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "event": "error",
            "stage": self.stage,
            "cause": self.cause,
            "next": self.next,
            "exit_code": self.exit as u8,
        })
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}: {}\n  next: {}", self.stage, self.cause, self.next)
    }
}

impl From<ConnectFailure> for CliError {
    fn from(failure: ConnectFailure) -> Self {
        use io::ErrorKind::{InvalidInput, OutOfMemory, PermissionDenied};
        let exit = match failure.kind() {
            InvalidInput | OutOfMemory | PermissionDenied => Exit::Failure,
            _ => Exit::Unreachable,
        };
        let next = match &failure.cause {
            pilotage::FailureCause::NoHub(_) => {
                "name a hub with --hub HOST, or give the peer as ADDRESS@IP:PORT".into()
            }
            _ => failure.hint.clone(),
        };
        Self::new(exit, failure.stage.to_string(), &failure.cause, next)
    }
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        let exit = match &error {
            StartError::Register { .. } => Exit::Unreachable,
            StartError::HubAddress { .. } => Exit::Usage,
            _ => Exit::Failure,
        };
        if let StartError::StateInUse { directory, pid } = &error {
            let holder = if *pid == 0 { "another process".into() } else { format!("process {pid}") };
            return Self::new(
                exit,
                "start",
                format!("the state directory {} is in use by {holder}", directory.display()),
                "stop that process, or use --state OTHER, or --ephemeral for a throwaway identity",
            );
        }
        let text = error.to_string();
        let (text, next) = text.split_once(" – next: ").unwrap_or((&text, "see the cause; -v tells more"));
        let (stage, cause) = text.split_once(": ").unwrap_or(("start", text));
        Self::new(exit, stage, cause, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_errors_are_split_into_stage_cause_and_next() {
        let error: CliError = StartError::System(io::Error::other("no threads")).into();
        assert_eq!((error.stage.as_str(), error.cause.as_str()), ("start", "no threads"));
        assert_eq!(error.next, "check the limits of this process");
        assert_eq!(error.to_string(), "error: start: no threads\n  next: check the limits of this process");
    }

    #[test]
    fn a_state_directory_in_use_names_the_process_and_the_way_out() {
        let error: CliError = StartError::StateInUse { directory: "/x".into(), pid: 42 }.into();
        assert!(error.cause.contains("process 42"));
        assert!(error.next.contains("--ephemeral"));
    }

    #[test]
    fn json_has_all_parts() {
        let value = CliError::usage("a", "b", "c").to_json();
        assert_eq!(value["exit_code"], 2);
        assert_eq!(value["event"], "error");
        assert_eq!(CliError::from_json(&value), CliError::usage("a", "b", "c"));
        assert_eq!(CliError::from_json(&json!("text")).cause, "text");
    }
}
