//! How long the first reply takes: from nothing, and over a new stream in a living tunnel.

use std::time::Instant;

use super::Outcome;
use super::request::{latencies, percentile, round_trip};
use crate::Failure;
use crate::control::Control;
use crate::measure::Stopwatch;
use crate::transport::exec::Exec;
use crate::transport::{Client, Job, Link};

/// Contacts made beforehand, to warm up.
const WARM_UP: u32 = 5;

/// From nothing: no keys, no tickets, a fresh socket (made before the clock starts).
#[derive(Debug)]
pub struct Cold {
    /// How many, one after the other.
    pub contacts: u32,
    /// To the server's clock.
    pub control: Control,
}

impl Job for Cold {
    async fn run<C: Client>(mut self, mut client: C, _: Exec) -> Result<Outcome, Failure> {
        for _ in 0..WARM_UP {
            contact(&mut client).await?;
        }
        self.control.start()?;
        let watch = Stopwatch::start()?;
        let mut times = Vec::with_capacity(self.contacts as usize);
        for _ in 0..self.contacts {
            times.push(contact(&mut client).await?);
        }
        let (_, cpu) = watch.stop()?;
        let cpu = cpu.as_secs_f64() + self.control.stop()?;
        self.control.quit()?;
        Ok(latencies(&mut times).with("cpu_us_per_contact", cpu * 1e6 / f64::from(self.contacts)))
    }
}

async fn contact<C: Client>(client: &mut C) -> Result<u64, Failure> {
    client.fresh().await?;
    let started = Instant::now();
    let link = client.dial().await?;
    let mut stream = link.open().await?;
    round_trip(&mut stream, 3).await?;
    Ok(started.elapsed().as_nanos() as u64)
}

/// Over a new stream in a living tunnel, in turns with a round trip on an old stream.
#[derive(Debug)]
pub struct Warm {
    /// How many, one after the other.
    pub contacts: u32,
    /// To the server's clock.
    pub control: Control,
}

impl Job for Warm {
    async fn run<C: Client>(mut self, client: C, _: Exec) -> Result<Outcome, Failure> {
        let link = client.dial().await?;
        let mut old = link.open().await?;
        for _ in 0..WARM_UP {
            round_trip(&mut old, 1).await?;
        }
        let (mut new_times, mut old_times) = (Vec::new(), Vec::new());
        for _ in 0..self.contacts {
            let started = Instant::now();
            round_trip(&mut old, 1).await?;
            old_times.push(started.elapsed().as_nanos() as u64);
            let started = Instant::now();
            let mut stream = link.open().await?;
            round_trip(&mut stream, 2).await?;
            new_times.push(started.elapsed().as_nanos() as u64);
        }
        let note = link.note();
        self.control.quit()?;
        old_times.sort_unstable();
        let old_p50 = percentile(&old_times, 500) / 1e3;
        let outcome = latencies(&mut new_times);
        let new_p50 = outcome.metrics.get("p50_us").copied().unwrap_or_default();
        Ok(Outcome { note, ..outcome }
            .with("established_p50_us", old_p50)
            .with("to_established_ratio", new_p50 / old_p50))
    }
}
