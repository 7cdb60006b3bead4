//! Objects of 64 KiB: an 8-byte request, answered with as many bytes as it says. Each worker keeps its stream.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::request::latencies;
use super::{Outcome, Work, fill_part, send};
use crate::Failure;
use crate::control::Control;
use crate::measure::Stopwatch;
use crate::settings::Options;
use crate::transport::exec::Exec;
use crate::transport::{Client, Job, Link, Stream};

/// Size of an object, in bytes.
pub const OBJECT: usize = 64 << 10;
/// How many times more fetches there are where many run at a time.
const MORE_AT_ONCE: u32 = 10;

/// Fetches of a work.
pub fn total(options: &Options, work: Work) -> u32 {
    if work == Work::Fetch20 { options.fetches.saturating_mul(MORE_AT_ONCE) } else { options.fetches }
}

/// The client's part.
#[derive(Debug)]
pub struct Fetches {
    /// Streams, and so fetches at a time.
    pub at_once: u32,
    /// Fetches over all streams.
    pub total: u32,
    /// To the server's clock.
    pub control: Control,
}

impl Job for Fetches {
    async fn run<C: Client>(mut self, client: C, exec: Exec) -> Result<Outcome, Failure> {
        let link = Arc::new(client.dial().await?);
        let mut streams = Vec::new();
        for _ in 0..self.at_once {
            let mut stream = link.open().await?;
            fetch(&mut stream, &mut vec![0; OBJECT + 1]).await?;
            streams.push(stream);
        }
        let each = (self.total / self.at_once).max(1);
        self.control.start()?;
        let watch = Stopwatch::start()?;
        let done = exec.all(streams.into_iter().map(|stream| fetches(stream, each)).collect()).await?;
        let (wall, cpu) = watch.stop()?;
        let cpu = cpu.as_secs_f64() + self.control.stop()?;
        let (_streams, times): (Vec<_>, Vec<_>) = done.into_iter().unzip();
        let mut times: Vec<u64> = times.into_iter().flatten().collect();
        let count = times.len() as f64;
        let note = link.note();
        self.control.quit()?;
        Ok(Outcome { note, ..latencies(&mut times) }
            .with("fetches_per_s", count / wall.as_secs_f64())
            .with("goodput_gbps", count * OBJECT as f64 * 8.0 / wall.as_secs_f64() / 1e9)
            .with("cpu_us_per_fetch", cpu * 1e6 / count))
    }
}

async fn fetches<S: Stream>(mut stream: S, count: u32) -> Result<(S, Vec<u64>), Failure> {
    let mut times = Vec::with_capacity(count as usize);
    let mut object = vec![0; OBJECT + 1];
    for _ in 0..count {
        let sent = Instant::now();
        fetch(&mut stream, &mut object).await?;
        times.push(sent.elapsed().as_nanos() as u64);
    }
    Ok((stream, times))
}

async fn fetch<S: Stream>(stream: &mut S, object: &mut [u8]) -> Result<(), Failure> {
    send(stream, &(OBJECT as u64).to_be_bytes()).await?;
    if !fill_part(stream, object, OBJECT).await? {
        return Err("the stream ended before the object".into());
    }
    // Cheap, and enough to notice bytes of another object or place.
    if object[..OBJECT].iter().step_by(4099).enumerate().any(|(n, byte)| *byte != pattern(n * 4099)) {
        return Err("an object differs from what was asked for".into());
    }
    Ok(())
}

/// The byte of an object at a place.
fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

/// The server's part.
pub async fn give<S: Stream>(mut stream: S) -> Result<(), Failure> {
    let object: Bytes = (0..OBJECT).map(pattern).collect::<Vec<_>>().into();
    let mut wanted = [0; 9];
    while fill_part(&mut stream, &mut wanted, 8).await? {
        if wanted[..8] != (OBJECT as u64).to_be_bytes() {
            return Err("fetch: another length than that of the objects".into());
        }
        stream.write_bytes(object.clone()).await?;
        tokio::io::AsyncWriteExt::flush(&mut stream).await?;
    }
    Ok(())
}
