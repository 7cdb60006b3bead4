//! What both sides say to each other, the same over every transport.
//!
//! ```text
//! client → server   u64 bytes, u64 round trips           (big-endian)
//! server → client   1 byte: ready                        clocks start
//! client → server   the bytes
//! server → client   1 byte: all received                 clocks stop
//! server → client   32 bytes: BLAKE3 of what was received
//! then              64-byte requests, each answered with the same 64 bytes
//! ```

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::measure::Stopwatch;
use crate::settings::{IO_CHUNK, Options, Verify};

/// Size of a request and of its reply, in bytes.
pub const REQUEST_LEN: usize = 64;
/// Length of the opening message, in bytes.
pub const HEADER_LEN: usize = 16;

/// What the sending process measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientResult {
    /// Start of the connection attempt to the first answer from the application, in microseconds.
    pub connect_us: u64,
    /// First byte written to the receiver's confirmation, in seconds.
    pub seconds: f64,
    /// CPU time of the sender in that time, in seconds.
    pub cpu_seconds: f64,
    /// Whether the receiver's BLAKE3 equals the sender's.
    pub verified: bool,
    /// Round-trip times of the 64-byte requests, sorted, in nanoseconds.
    pub round_trips_ns: Vec<u64>,
    /// What the transport says about itself (path, datagram size, retransmissions).
    pub note: String,
}

/// What the receiving process measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerResult {
    /// CPU time of the receiver from ready to all received, in seconds.
    pub cpu_seconds: f64,
}

/// The bytes of the comparison and their hash, made before any clock runs.
#[derive(Debug)]
pub struct Payload {
    /// An extendable-output stream of BLAKE3 over the seed.
    pub bytes: Vec<u8>,
    /// BLAKE3 of the bytes.
    pub hash: blake3::Hash,
}

impl Payload {
    /// The bytes of this seed.
    pub fn new(seed: u64, size: u64) -> Result<Self, Failure> {
        let size = usize::try_from(size).map_err(|_| "size does not fit this machine's memory")?;
        let mut bytes = vec![0_u8; size];
        blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
        let hash = blake3::hash(&bytes);
        Ok(Self { bytes, hash })
    }
}

/// Where the receiver puts bytes.
#[derive(Debug)]
pub struct Sink {
    buffer: Vec<u8>,
    filled: usize,
    inline: Option<Box<blake3::Hasher>>,
    left: u64,
}

impl Sink {
    /// A sink for `size` bytes whose memory is touched now, before any clock runs.
    pub fn new(verify: Verify, size: u64) -> Result<Self, Failure> {
        let memory = match verify {
            Verify::After => usize::try_from(size).map_err(|_| "size does not fit this machine's memory")?,
            Verify::Inline => IO_CHUNK,
        };
        let mut buffer = vec![0_u8; memory];
        // A zeroed allocation is mapped lazily: write to every page so that faults stay out of the timed section.
        buffer.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        let inline = (verify == Verify::Inline).then(|| Box::new(blake3::Hasher::new()));
        Ok(Self { buffer, filled: 0, inline, left: size })
    }

    /// Room for the next read; empty once everything has come.
    pub fn space(&mut self) -> &mut [u8] {
        let wanted = IO_CHUNK.min(usize::try_from(self.left).unwrap_or(IO_CHUNK));
        let start = if self.inline.is_some() { 0 } else { self.filled };
        &mut self.buffer[start..start + wanted]
    }

    /// `count` bytes were read into [`Sink::space`].
    pub fn advance(&mut self, count: usize) {
        if let Some(hasher) = &mut self.inline {
            hasher.update(&self.buffer[..count]);
        }
        self.filled += count;
        self.left -= count as u64;
    }

    /// Whether everything has come.
    pub fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// BLAKE3 of everything received.
    pub fn hash(&self) -> [u8; 32] {
        match &self.inline {
            Some(hasher) => *hasher.finalize().as_bytes(),
            None => *blake3::hash(&self.buffer[..self.filled]).as_bytes(),
        }
    }
}

/// The opening message.
pub fn encode_header(size: u64, round_trips: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(&size.to_be_bytes());
    header[8..].copy_from_slice(&u64::from(round_trips).to_be_bytes());
    header
}

/// Reads the opening message: bytes and round trips.
pub fn decode_header(header: [u8; HEADER_LEN]) -> (u64, u64) {
    let number =
        |range: std::ops::Range<usize>| header[range].iter().fold(0, |n, b| (n << 8) | u64::from(*b));
    (number(0..8), number(8..16))
}

/// The sender's side over a blocking stream. `started` is when the connection attempt began.
pub fn run_client(
    stream: &mut (impl Read + Write),
    options: &Options,
    payload: &Payload,
    started: Instant,
) -> Result<ClientResult, Failure> {
    stream.write_all(&encode_header(options.size, options.round_trips))?;
    stream.flush()?;
    let mut byte = [0; 1];
    stream.read_exact(&mut byte)?;
    let connect = started.elapsed();

    let watch = Stopwatch::start()?;
    for chunk in payload.bytes.chunks(IO_CHUNK) {
        stream.write_all(chunk)?;
    }
    stream.flush()?;
    stream.read_exact(&mut byte)?;
    let (wall, cpu) = watch.stop()?;

    let mut hash = [0; 32];
    stream.read_exact(&mut hash)?;
    let mut round_trips_ns = Vec::with_capacity(options.round_trips as usize);
    let mut reply = [0; REQUEST_LEN];
    for index in 0..options.round_trips {
        let request = [index as u8; REQUEST_LEN];
        let sent = Instant::now();
        stream.write_all(&request)?;
        stream.flush()?;
        stream.read_exact(&mut reply)?;
        round_trips_ns.push(sent.elapsed().as_nanos() as u64);
        if reply != request {
            return Err("round trip: the reply differs from the request".into());
        }
    }
    Ok(finish_client(connect, wall, cpu, payload.hash == blake3::Hash::from(hash), round_trips_ns))
}

/// Puts the sender's measurements together.
pub fn finish_client(
    connect: Duration,
    wall: Duration,
    cpu: Duration,
    verified: bool,
    mut round_trips_ns: Vec<u64>,
) -> ClientResult {
    round_trips_ns.sort_unstable();
    ClientResult {
        connect_us: connect.as_micros() as u64,
        seconds: wall.as_secs_f64(),
        cpu_seconds: cpu.as_secs_f64(),
        verified,
        round_trips_ns,
        note: String::new(),
    }
}

/// The receiver's side over a blocking stream.
pub fn run_server(
    stream: &mut (impl Read + Write),
    options: &Options,
    sink: &mut Sink,
) -> Result<ServerResult, Failure> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header)?;
    let (size, round_trips) = decode_header(header);
    if size != options.size {
        return Err("opening message: the two sides were started with different sizes".into());
    }
    let watch = Stopwatch::start()?;
    stream.write_all(&[1])?;
    stream.flush()?;
    while !sink.is_complete() {
        match stream.read(sink.space())? {
            0 => return Err("transfer: the stream ended early".into()),
            count => sink.advance(count),
        }
    }
    stream.write_all(&[2])?;
    stream.flush()?;
    let (_, cpu) = watch.stop()?;
    stream.write_all(&sink.hash())?;
    stream.flush()?;
    let mut request = [0; REQUEST_LEN];
    for _ in 0..round_trips {
        stream.read_exact(&mut request)?;
        stream.write_all(&request)?;
        stream.flush()?;
    }
    Ok(ServerResult { cpu_seconds: cpu.as_secs_f64() })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn transfer(verify: &str, spoil: bool) -> ClientResult {
        let options =
            Options::parse_from(["transfer", "--size", "3000001", "--round-trips", "7", "--verify", verify]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("addr");
        let server_options = options.clone();
        let server = std::thread::spawn(move || {
            let mut sink = Sink::new(server_options.verify, server_options.size).expect("sink");
            let (mut stream, _) = listener.accept().expect("accept");
            if spoil && let Some(hasher) = &mut sink.inline {
                hasher.update(b"one byte too many");
            }
            run_server(&mut stream, &server_options, &mut sink).expect("server");
        });
        let payload = Payload::new(options.seed, options.size).expect("payload");
        let mut stream = std::net::TcpStream::connect(addr).expect("connect");
        let result = run_client(&mut stream, &options, &payload, Instant::now()).expect("client");
        server.join().expect("join");
        result
    }

    #[test]
    fn a_whole_exchange_is_verified_in_both_modes() {
        for verify in ["after", "inline"] {
            let result = transfer(verify, false);
            assert!(result.verified, "{verify}");
            assert_eq!(result.round_trips_ns.len(), 7);
        }
    }

    #[test]
    fn a_differing_hash_is_reported() {
        assert!(!transfer("inline", true).verified);
    }

    #[test]
    fn the_opening_message_survives_a_round_trip() {
        assert_eq!(decode_header(encode_header(1 << 40, 9)), (1 << 40, 9));
    }
}
