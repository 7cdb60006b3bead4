//! `pilotage-lab`: a laboratory by hand, and its self-test.

use std::io::BufRead;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Parser, Subcommand};
use pilotage_lab::selftest::{self, Extent};
use pilotage_lab::{Lab, LabConfig, LabError, LinkConfig, sweep};

/// Exit code of a run that was skipped.
const SKIPPED: u8 = 77;

/// Network namespaces joined by an emulated link. Needs root and /dev/net/tun; without them it exits with code 77.
#[derive(Debug, Parser)]
#[command(name = "pilotage-lab", version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure round trips, losses and rates, and say up to which rate the emulator can be trusted
    Selftest {
        /// Fewer values, about 15 s
        #[arg(long)]
        quick: bool,
        /// One JSON object instead of lines
        #[arg(long)]
        json: bool,
    },
    /// Make namespaces and keep them until the end of the input
    ///
    /// Each line of the input changes a link (`0 rate=50mbit,loss=2%`) or prints its counters (`0`).
    Run {
        /// The way out of one namespace; give it once for both of two, or once for each of two or more
        #[arg(long, required = true)]
        link: Vec<LinkConfig>,
        /// Largest packet that the kernels send
        #[arg(long, default_value_t = 1_500)]
        mtu: u16,
        /// Seed of all that is random
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Remove what labs left behind whose process is gone
    Sweep,
}

fn main() -> ExitCode {
    match run(&Options::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error @ LabError::Unavailable(_)) => {
            eprintln!("pilotage-lab: SKIPPED: {error}");
            ExitCode::from(SKIPPED)
        }
        Err(error) => {
            eprintln!("pilotage-lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<bool, LabError> {
    match command {
        Command::Selftest { quick, json } => {
            self_test(if *quick { Extent::Quick } else { Extent::Full }, *json)
        }
        Command::Run { link, mtu, seed } => by_hand(link, *mtu, *seed),
        Command::Sweep => {
            sweep()?.iter().for_each(|name| println!("removed {name}"));
            Ok(true)
        }
    }
}

fn self_test(extent: Extent, json: bool) -> Result<bool, LabError> {
    let report = selftest::run(extent, &mut |line| {
        if !json {
            println!("{line}");
        }
    })?;
    if json {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|error| LabError::Failed { stage: "JSON".into(), cause: error.to_string() })?;
        println!("{text}");
    } else {
        println!("trusted up to {} Mbit/s on this machine, as loaded as it is now", report.trusted_mbit);
    }
    Ok(report.passed())
}

fn by_hand(links: &[LinkConfig], mtu: u16, seed: u64) -> Result<bool, LabError> {
    let links = if let [one] = links { vec![one.clone(), one.clone()] } else { links.to_vec() };
    let lab = Lab::new(&links, &LabConfig { device_mtu: mtu, seed, ..LabConfig::default() })?;
    for index in 0..links.len() {
        let namespace = lab.namespace(index);
        println!("{index}: {} at {}, {}", namespace.name(), namespace.address(), lab.link(index));
    }
    let real_time = if lab.is_real_time() { "with" } else { "without" };
    println!("{real_time} real-time priority; `ip netns exec NAME program` runs inside");
    // Ctrl-C ends the process inside `read_line`: take the lab away before.
    let lab = Arc::new(Mutex::new(Some(lab)));
    let (ending, by_signal) = (Arc::new(AtomicBool::new(false)), lab.clone());
    let told = ending.clone();
    ctrlc::set_handler(move || {
        if !told.swap(true, Ordering::SeqCst) {
            drop(by_signal.lock().unwrap_or_else(PoisonError::into_inner).take());
            std::process::exit(130);
        }
    })
    .map_err(|error| LabError::Failed { stage: "signal".into(), cause: error.to_string() })?;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lab) = lab.as_ref() else { break };
        if let Err(error) = obey(lab, links.len(), &line) {
            eprintln!("{error}");
        }
    }
    ending.store(true, Ordering::SeqCst);
    drop(lab.lock().unwrap_or_else(PoisonError::into_inner).take());
    Ok(true)
}

fn obey(lab: &Lab, count: usize, line: &str) -> Result<(), LabError> {
    let (index, change) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    if index.is_empty() {
        return Ok(());
    }
    let index = index.parse().ok().filter(|index: &usize| *index < count);
    let index =
        index.ok_or_else(|| LabError::Setting("a line begins with the number of a namespace".into()))?;
    if !change.is_empty() {
        let mut link = lab.link(index);
        link.set_all(change)?;
        lab.set_link(index, link);
    }
    println!("{index}: {} {:?}", lab.link(index), lab.counters(index));
    Ok(())
}
