//! The `pilotage` command. Start reading in [`args`] (what there is) and [`cmd`] (what it does).

mod args;
mod cmd;
mod config;
mod control;
mod decode;
mod demo;
mod error;
mod hub;
mod node;
mod output;
mod progress;
mod session;
mod stop;
mod units;

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::Cli;
use crate::cmd::Context;
use crate::config::Settings;
use crate::error::{CliError, Exit};
use crate::output::Output;
use crate::stop::Stop;

/// How long an interrupted command may take to end in order.
const GRACE: Duration = Duration::from_secs(4);

/// What wakes the main thread.
enum Wake {
    /// The command has ended.
    Done(Result<(), CliError>),
    /// First signal.
    Signal,
}

fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let output = Output::new(cli.global.json, cli.global.quiet);
    match start(cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.exit as u8)
        }
    }
}

/// Runs the command on a thread of its own; the main thread waits for it and for signals.
fn start(cli: Cli, output: &Output) -> Result<(), CliError> {
    let settings = Settings::load(&cli.global)?;
    init_logging(&settings, cli.global.verbose, cli.global.quiet)?;
    let (wake_tx, wake) = channel();
    install_signal_handler(wake_tx.clone())?;
    let stop = Stop::default();
    let context = Context { settings, output: output.clone(), stop: stop.clone() };
    let started = thread::Builder::new().name("command".into()).spawn(move || {
        // The signal handler keeps a sender, so a panic would not close the channel: report it.
        let run = std::panic::AssertUnwindSafe(|| cmd::run(&context, cli.command));
        let result = std::panic::catch_unwind(run).unwrap_or_else(|_| {
            Err(CliError::failure("internal", "the command ended unexpectedly", "please report this"))
        });
        let _ = wake_tx.send(Wake::Done(result));
    });
    let thread = started.map_err(|error| {
        CliError::failure("start", format!("no thread: {error}"), "check the limits of this process")
    })?;
    match wake.recv() {
        Ok(Wake::Done(result)) => {
            let _ = thread.join();
            result
        }
        Ok(Wake::Signal) => {
            stop.request();
            after_signal(&wake)
        }
        Err(_) => Err(CliError::failure("internal", "the command disappeared", "please report this")),
    }
}

/// The command was asked to end: give it time. What it says in that time counts only if it ended
/// in order.
fn after_signal(wake: &Receiver<Wake>) -> Result<(), CliError> {
    match wake.recv_timeout(GRACE) {
        Ok(Wake::Done(Ok(()))) => Ok(()),
        _ => Err(CliError::interrupted()),
    }
}

/// The first signal wakes the main thread, the second one ends the process.
fn install_signal_handler(wake: Sender<Wake>) -> Result<(), CliError> {
    let mut first = true;
    ctrlc::set_handler(move || {
        if !std::mem::take(&mut first) {
            std::process::exit(i32::from(Exit::Interrupted as u8));
        }
        let _ = wake.send(Wake::Signal);
    })
    .map_err(|error| {
        CliError::failure("start", format!("no signal handler: {error}"), "check the limits of this process")
    })
}

/// Parses the command line; errors are JSON too where `--json` was given.
fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| {
        let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        if !asked_for && std::env::args_os().any(|arg| arg == "--json") {
            let text = error.render().to_string();
            // The first paragraph is the cause; usage and hints follow.
            let cause: Vec<_> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
            let cause = cause.join(" ");
            let cause = cause.trim_start_matches("error: ");
            Output::new(true, false).error(&CliError::usage("command line", cause, "pilotage --help"));
        } else {
            let _ = error.print();
        }
        ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8))
    })
}

/// Logs go to standard error; `--log` (or `RUST_LOG`) wins over `-v`.
fn init_logging(settings: &Settings, verbose: u8, quiet: bool) -> Result<(), CliError> {
    let level = match (quiet, verbose) {
        // What openraft calls an error is each heartbeat to a node that is away: `hub status` says that better.
        (true, 0) => "error,openraft=off",
        (_, 0) => "warn,openraft=off",
        (_, 1) => "info,openraft=warn",
        (_, 2) => "debug",
        _ => "trace",
    };
    let filter = settings.log.as_deref().unwrap_or(level);
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|error| {
        CliError::usage("log filter", error, "use a filter such as info or pilotage=debug,warn")
    })?;
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .try_init();
    Ok(())
}
