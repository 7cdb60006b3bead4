//! Where results and remarks go.
//!
//! Results go to standard output: text for people, or JSON lines under `--json`. Remarks, progress
//! and errors go to standard error. Where standard output carries user data (`connect`, `listen`,
//! `recv -o -`), JSON lines go to standard error instead.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::error::CliError;

/// How a command talks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    /// Standard output belongs to the user's data.
    data_on_stdout: Arc<AtomicBool>,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, data_on_stdout: Arc::default() }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// From now on standard output carries data, everything else goes to standard error.
    pub(crate) fn reserve_stdout(&self) {
        self.data_on_stdout.store(true, Ordering::Release);
    }

    /// Whether a progress bar makes sense.
    pub(crate) fn wants_progress(&self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }

    /// A result: `text` for people, `value` under `--json`.
    pub(crate) fn result(&self, text: impl Display, value: &Value) {
        if self.json {
            self.line(value);
        } else {
            self.line(text);
        }
    }

    /// A JSON line under `--json`, nothing otherwise.
    pub(crate) fn event(&self, value: &Value) {
        if self.json {
            self.line(value);
        }
    }

    /// A remark for people on standard error; silent under `--json` and `-q`.
    pub(crate) fn note(&self, text: impl Display) {
        if !self.json && !self.quiet {
            // A closed standard error leaves nobody to tell.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Reports a failure.
    pub(crate) fn error(&self, error: &CliError) {
        if self.json {
            self.line(error.to_json());
        } else {
            let _ = writeln!(io::stderr(), "{error}");
        }
    }

    fn line(&self, text: impl Display) {
        // One write per line, so that lines of several threads do not mix.
        let line = format!("{text}\n");
        if self.data_on_stdout.load(Ordering::Acquire) {
            let _ = io::stderr().write_all(line.as_bytes());
            return;
        }
        let mut out = io::stdout().lock();
        let written = out.write_all(line.as_bytes()).and_then(|()| out.flush());
        if let Err(error) = written
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            // Whoever read us (`| head`) has had enough: end like other tools that die of SIGPIPE.
            std::process::exit(141);
        }
    }
}
