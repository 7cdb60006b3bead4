//! `pilotage completions`: a completion script on standard output.

use std::io::{self, Write};

use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs};
use crate::error::CliError;

pub(crate) fn run(args: &CompletionsArgs) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pilotage", &mut script);
    io::stdout()
        .write_all(&script)
        .map_err(|error| CliError::failure("write", error, "check where standard output goes"))
}
