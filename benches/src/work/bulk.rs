//! Bulk data from client to server over one stream or many.
//!
//! ```text
//! client → server   u64 bytes (big-endian)
//! server → client   1 byte: memory is ready        when all streams have it, the clocks start
//! client → server   the bytes
//! server → client   1 byte: all received           when all streams have it, the clocks stop
//! client → server   1 byte: tell the hash
//! server → client   32 bytes: BLAKE3 of what was received
//! ```

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncReadExt;

use super::{Outcome, fill, send};
use crate::Failure;
use crate::control::Control;
use crate::measure::Stopwatch;
use crate::settings::Options;
use crate::transport::exec::Exec;
use crate::transport::{Client, Job, Link, Stream};

/// Bytes handed to one write call and offered to one read call.
pub const IO_CHUNK: usize = 1 << 20;

/// The bytes of the comparison, made before any clock runs.
pub fn payload(seed: u64, size: u64) -> Result<Bytes, Failure> {
    let size = usize::try_from(size).map_err(|_| "size does not fit this machine's memory")?;
    let mut bytes = vec![0_u8; size];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    Ok(bytes.into())
}

/// Memory of a size with every page touched, so that faults stay out of the timed section.
pub fn touched(size: u64) -> Result<Vec<u8>, Failure> {
    let size = usize::try_from(size).map_err(|_| "size does not fit this machine's memory")?;
    let mut buffer = vec![0_u8; size];
    buffer.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    Ok(buffer)
}

/// The client's part.
#[derive(Debug)]
pub struct Bulk {
    parts: Vec<Bytes>,
    size: u64,
    control: Control,
}

impl Bulk {
    /// Cuts the payload into equal parts, one for each stream.
    pub fn new(options: &Options, streams: u32, control: Control) -> Result<Self, Failure> {
        let part = options.size / u64::from(streams.max(1));
        if part == 0 {
            return Err("--size is smaller than the number of streams".into());
        }
        let size = part * u64::from(streams);
        let payload = payload(options.seed, size)?;
        let part = part as usize;
        let parts = (0..streams as usize).map(|n| payload.slice(n * part..(n + 1) * part)).collect();
        Ok(Self { parts, size, control })
    }
}

impl Job for Bulk {
    async fn run<C: Client>(mut self, client: C, exec: Exec) -> Result<Outcome, Failure> {
        let link = Arc::new(client.dial().await?);
        let mut streams = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let mut stream = link.open().await?;
            send(&mut stream, &(part.len() as u64).to_be_bytes()).await?;
            stream.read_exact(&mut [0; 1]).await?;
            streams.push(stream);
        }
        self.control.start()?;
        let watch = Stopwatch::start()?;
        let sent = streams.into_iter().zip(self.parts.clone()).map(|(stream, part)| transfer(stream, part));
        let streams = exec.all(sent.collect()).await?;
        let (wall, cpu) = watch.stop()?;
        let server_cpu = self.control.stop()?;
        for (mut stream, part) in streams.into_iter().zip(&self.parts) {
            send(&mut stream, &[1]).await?;
            let mut hash = [0; 32];
            stream.read_exact(&mut hash).await?;
            if blake3::hash(part) != hash {
                return Err("the server received other bytes than were sent".into());
            }
        }
        let note = link.note();
        self.control.quit()?;
        Ok(Outcome { note, ..outcome(self.size, wall.as_secs_f64(), cpu.as_secs_f64(), server_cpu) })
    }
}

/// The metrics of a bulk transfer.
pub fn outcome(bytes: u64, seconds: f64, client_cpu: f64, server_cpu: f64) -> Outcome {
    let gigabytes = bytes as f64 / 1e9;
    Outcome::default()
        .with("goodput_gbps", gigabytes * 8.0 / seconds)
        .with("cpu_s_per_gb", (client_cpu + server_cpu) / gigabytes)
        .with("client_cpu_s_per_gb", client_cpu / gigabytes)
        .with("server_cpu_s_per_gb", server_cpu / gigabytes)
}

async fn transfer<S: Stream>(mut stream: S, part: Bytes) -> Result<S, Failure> {
    let mut at = 0;
    while at < part.len() {
        let end = part.len().min(at + IO_CHUNK);
        stream.write_bytes(part.slice(at..end)).await?;
        at = end;
    }
    tokio::io::AsyncWriteExt::flush(&mut stream).await?;
    stream.read_exact(&mut [0; 1]).await?;
    Ok(stream)
}

/// The server's part.
pub async fn take<S: Stream>(mut stream: S) -> Result<(), Failure> {
    let mut size = [0; 8];
    if !fill(&mut stream, &mut size).await? {
        return Ok(());
    }
    let mut buffer = touched(u64::from_be_bytes(size))?;
    send(&mut stream, &[1]).await?;
    let mut filled = 0;
    while filled < buffer.len() {
        let end = buffer.len().min(filled + IO_CHUNK);
        match stream.read(&mut buffer[filled..end]).await? {
            0 => return Err("bulk: the stream ended early".into()),
            count => filled += count,
        }
    }
    send(&mut stream, &[2]).await?;
    stream.read_exact(&mut [0; 1]).await?;
    send(&mut stream, blake3::hash(&buffer).as_bytes()).await?;
    // The stream ends with the client.
    fill(&mut stream, &mut [0; 1]).await.map(drop)
}
