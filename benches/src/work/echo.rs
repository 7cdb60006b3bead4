//! 1 MiB to an echo service and back, on a new stream in a living tunnel: the one work that the Go reference has a command for.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Outcome, send};
use crate::Failure;
use crate::control::Control;
use crate::measure::Stopwatch;
use crate::transport::exec::Exec;
use crate::transport::{Client, Job, Link, Stream};

/// Bytes sent, and the same number back.
pub const SIZE: usize = 1 << 20;
/// What the server reads at once.
const CHUNK: usize = 64 << 10;

/// The client's part.
#[derive(Debug)]
pub struct Echo {
    /// To the server's clock.
    pub control: Control,
}

impl Job for Echo {
    async fn run<C: Client>(mut self, client: C, _: Exec) -> Result<Outcome, Failure> {
        let link = client.dial().await?;
        // The first stream makes the tunnel.
        let mut first = link.open().await?;
        send(&mut first, &[1]).await?;
        first.read_exact(&mut [0; 1]).await?;
        let bytes: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
        self.control.start()?;
        let (watch, started) = (Stopwatch::start()?, Instant::now());
        let mut stream = link.open().await?;
        // Both directions fit the buffers, so nobody has to read meanwhile.
        send(&mut stream, &bytes).await?;
        let mut back = vec![0; SIZE];
        stream.read_exact(&mut back).await?;
        let seconds = started.elapsed().as_secs_f64();
        let cpu = watch.stop()?.1.as_secs_f64() + self.control.stop()?;
        if back != bytes {
            return Err("other bytes came back than were sent".into());
        }
        let note = link.note();
        self.control.quit()?;
        Ok(Outcome { note, ..outcome(seconds, cpu) })
    }
}

/// The metrics of an echo.
pub fn outcome(seconds: f64, cpu_seconds: f64) -> Outcome {
    Outcome::default()
        .with("goodput_mbps", SIZE as f64 * 8.0 / seconds / 1e6)
        .with("cpu_s_per_gb", cpu_seconds / (SIZE as f64 / 1e9))
}

/// The server's part.
pub async fn give_back<S: Stream>(mut stream: S) -> Result<(), Failure> {
    let mut buffer = vec![0; CHUNK];
    // A reset where the client has gone is an end like any other.
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        stream.write_all(&buffer[..count]).await?;
        stream.flush().await?;
    }
    Ok(())
}
