//! How much virtual time one core goes through in a second.

use std::time::Duration;

use clap::Args;
use pilotage_sim::{Link, Pair, Side};

use super::Failure;
use super::pool::now;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Simulated hours of the idle pair
    #[arg(long, default_value_t = 1_000)]
    hours: u64,
    /// Mebibytes that the busy pair transfers
    #[arg(long, default_value_t = 512)]
    mebibytes: u64,
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let mut pair = Pair::new(1, Link::default());
    pair.connect(7).map_err(|e| format!("connecting: {e:?}"))?;
    let began = now();
    pair.run_for(Duration::from_secs(3600 * options.hours));
    let real = now().saturating_duration_since(began).as_secs_f64();
    println!(
        "idle  {} simulated hours of two nodes with one open stream in {real:.2} s: {:.0} hours per second",
        options.hours,
        options.hours as f64 / real
    );
    let mut pair = Pair::new(2, Link { rate: Some(12_500_000), ..Link::default() });
    let (began, start) = (now(), pair.now);
    let bytes = pair.stream(options.mebibytes << 20).map_err(|e| format!("transfer: {e:?}"))?;
    let real = now().saturating_duration_since(began).as_secs_f64();
    let simulated = pair.now.duration_since(start).as_secs_f64();
    println!(
        "busy  {bytes} bytes over 100 Mbit/s, 20 ms round trip: {simulated:.1} simulated seconds in {real:.2} s: {:.1} per second, {:.0} MB/s, {} datagrams",
        simulated / real,
        bytes as f64 / real / 1e6,
        pair.sent[Side::A as usize] + pair.sent[Side::B as usize]
    );
    Ok(true)
}
