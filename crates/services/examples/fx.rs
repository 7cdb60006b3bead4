//! Exchange rates by capability: three providers, one asker, one provider killed in the middle.
//!
//!     cargo run --release -p pilotage-services --example fx            (--calls 300 --json)
//!
//! All four are real nodes on the loopback interface, the providers in processes of their own, and no registry is involved: the asker asks the three whether they
//! have `finance.fx.rate`, calls the best one, and goes to the next when one fails. A third of the way through the
//! provider that serves is killed (SIGKILL: it says farewell to nobody). Printed are the success
//! rate, the latency of calls before, at and after the death, and the same calls made straight to one provider's port, so
//! that what the discovery and the re-routing add is seen.

#[path = "support/fx.rs"]
mod support;

use std::process::Command;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = support::Options { calls: 300, patience: Duration::from_secs(1), process };
    let mut json = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--provide" => return support::provide(&arguments.next().ok_or("--provide SUMMARY")?),
            "--json" => json = true,
            "--calls" => options.calls = arguments.next().ok_or("--calls N")?.parse()?,
            other => return Err(format!("unknown option {other}: --calls N, --json").into()),
        }
    }
    let report = support::run(&options)?;
    if json {
        println!("{}", report.json())
    } else {
        println!("{report}")
    }
    Ok(())
}

/// This program again, as a provider.
fn process(summary: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "fx".into()));
    command.args(["--provide", summary]);
    command
}
