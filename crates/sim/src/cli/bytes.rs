//! Very many bytes, every one compared.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;
use pilotage_proto::{Config, ControllerKind};
use pilotage_sim::{Bursts, Link, Pair};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::Failure;
use super::pool::now;

/// Bytes of one transfer.
const TRANSFER: u64 = 1 << 30;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Gigabytes (10^9 bytes) in all
    #[arg(long, default_value_t = 10)]
    gigabytes: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads; all cores by default
    #[arg(long)]
    jobs: Option<usize>,
}

/// A pair whose link loses, damages, repeats and reorders, and whose settings vary.
fn pair(seed: u64) -> Pair {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut up_to = |max: f64| max * f64::from(rng.next_u32()) / f64::from(u32::MAX);
    let link = Link {
        loss: up_to(0.02),
        bursts: (seed.is_multiple_of(3)).then(|| Bursts::new(0.01, 3.0)),
        corrupt: up_to(0.01),
        splice: up_to(0.002),
        duplicate: up_to(0.02),
        reorder: up_to(0.02),
        ..Link::default()
    };
    let config = Config {
        max_datagram_size: [1_452, 8_972, 65_507, 65_507][(seed % 4) as usize],
        congestion: match seed % 5 {
            0 => ControllerKind::NewReno,
            1 | 2 => ControllerKind::Cubic,
            _ => ControllerKind::Bbr,
        },
        initial_sequence_number: Some(u32::MAX - 1_000_000),
        // A burst ends after so many packets, not after some time: who sends two in each back-off may meet none but its
        // own for minutes.
        user_timeout: Duration::from_secs(3_600),
        ..Config::default()
    };
    Pair::with_config(seed, link, config)
}

pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let jobs = options.jobs.map_or_else(|| std::thread::available_parallelism().map(usize::from), Ok)?;
    let count = (options.gigabytes * 1_000_000_000).div_ceil(TRANSFER);
    let next = AtomicU64::new(0);
    let began = now();
    let (mut bytes, mut failures, mut simulated) = (0u64, 0u64, 0.0);
    std::thread::scope(|scope| {
        let (tell, hear) = mpsc::channel();
        for _ in 0..jobs {
            let (tell, next) = (tell.clone(), &next);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let mut pair = pair(options.from + number);
                    let outcome = pair.stream(TRANSFER);
                    // The receiver lives as long as the scope.
                    let _ = tell.send((options.from + number, outcome, pair.elapsed()));
                }
            });
        }
        drop(tell);
        for (seed, outcome, time) in hear {
            simulated += time.as_secs_f64();
            match outcome {
                Ok(n) => bytes += n,
                Err(error) => {
                    failures += 1;
                    eprintln!("seed {seed}: {error:?}; again: bytes --gigabytes 1 --from {seed}");
                }
            }
        }
    });
    let real = now().saturating_duration_since(began).as_secs_f64();
    println!(
        "{bytes} bytes compared, {failures} failures, {simulated:.0} simulated seconds, {real:.0} s on {jobs} threads ({:.0} MB/s)",
        bytes as f64 / real / 1e6
    );
    Ok(failures == 0 && bytes > 0)
}
