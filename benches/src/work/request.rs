//! 64-byte requests, each answered with the same 64 bytes: one in flight on each stream.

use std::sync::Arc;
use std::time::Instant;

use super::{Outcome, Work, fill_part, send};
use crate::Failure;
use crate::control::Control;
use crate::measure::Stopwatch;
use crate::settings::Options;
use crate::transport::exec::Exec;
use crate::transport::{Client, Job, Link, Stream};

/// Size of a request and of its reply, in bytes.
pub const REQUEST_LEN: usize = 64;
/// How many times more requests there are where many are in flight.
const MORE_IN_FLIGHT: u32 = 20;
/// One in so many requests is made beforehand, to warm up.
const WARM_UP: u32 = 10;

/// Requests of a work.
pub fn total(options: &Options, work: Work) -> u32 {
    match work {
        Work::Request64 | Work::Request64Core => options.round_trips.saturating_mul(MORE_IN_FLIGHT),
        _ => options.round_trips,
    }
}

/// The client's part.
#[derive(Debug)]
pub struct Requests {
    /// Streams, and so requests in flight.
    pub in_flight: u32,
    /// Requests over all streams.
    pub total: u32,
    /// To the server's clock.
    pub control: Control,
}

impl Job for Requests {
    async fn run<C: Client>(mut self, client: C, exec: Exec) -> Result<Outcome, Failure> {
        let link = Arc::new(client.dial().await?);
        let mut streams = Vec::new();
        for _ in 0..self.in_flight {
            let mut stream = link.open().await?;
            round_trip(&mut stream, 0).await?;
            streams.push(stream);
        }
        let each = (self.total / self.in_flight).max(1);
        let warm_up = streams.into_iter().map(|stream| requests(stream, each.div_ceil(WARM_UP)));
        let warm = exec.all(warm_up.collect()).await?;
        self.control.start()?;
        let watch = Stopwatch::start()?;
        let measured = warm.into_iter().map(|(stream, _)| requests(stream, each));
        let done = exec.all(measured.collect()).await?;
        let (wall, cpu) = watch.stop()?;
        let cpu = cpu.as_secs_f64() + self.control.stop()?;
        let (_streams, times): (Vec<_>, Vec<_>) = done.into_iter().unzip();
        let mut times: Vec<u64> = times.into_iter().flatten().collect();
        let count = times.len() as f64;
        let note = link.note();
        self.control.quit()?;
        Ok(Outcome { note, ..latencies(&mut times) }
            .with("requests_per_s", count / wall.as_secs_f64())
            .with("cpu_us_per_request", cpu * 1e6 / count))
    }
}

/// The percentiles of times in nanoseconds.
pub fn latencies(times: &mut [u64]) -> Outcome {
    times.sort_unstable();
    Outcome::default()
        .with("p50_us", percentile(times, 500) / 1e3)
        .with("p99_us", percentile(times, 990) / 1e3)
        .with("p999_us", percentile(times, 999) / 1e3)
}

/// The nearest-rank percentile of sorted values, in tenths of a percent; 0 if there are none.
pub fn percentile(sorted: &[u64], per_mille: usize) -> f64 {
    let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
    sorted.get(rank - 1).map_or(0.0, |value| *value as f64)
}

async fn requests<S: Stream>(mut stream: S, count: u32) -> Result<(S, Vec<u64>), Failure> {
    let mut times = Vec::with_capacity(count as usize);
    for index in 0..count {
        let sent = Instant::now();
        round_trip(&mut stream, index as u8).await?;
        times.push(sent.elapsed().as_nanos() as u64);
    }
    Ok((stream, times))
}

/// One request and its reply.
pub async fn round_trip<S: Stream>(stream: &mut S, mark: u8) -> Result<(), Failure> {
    let request = [mark; REQUEST_LEN];
    send(stream, &request).await?;
    let mut reply = [0; REQUEST_LEN + 1];
    if !fill_part(stream, &mut reply, REQUEST_LEN).await? {
        return Err("the stream ended before the reply".into());
    }
    if reply[..REQUEST_LEN] == request { Ok(()) } else { Err("a reply differs from its request".into()) }
}

/// The server's part.
pub async fn echo<S: Stream>(mut stream: S) -> Result<(), Failure> {
    let mut request = [0; REQUEST_LEN + 1];
    while fill_part(&mut stream, &mut request, REQUEST_LEN).await? {
        send(&mut stream, &request[..REQUEST_LEN]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let sorted: Vec<u64> = (1..=1000).collect();
        assert_eq!(percentile(&sorted, 500), 500.0);
        assert_eq!(percentile(&sorted, 990), 990.0);
        assert_eq!(percentile(&sorted, 999), 999.0);
        assert_eq!(percentile(&[], 990), 0.0);
        assert_eq!(percentile(&[7], 500), 7.0);
    }
}
