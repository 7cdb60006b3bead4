//! What can be chosen, and what every contender was set to.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

/// Compares Pilotage with TLS over TCP, QUIC and plain TCP: one core per side, same bytes, same run.
#[derive(Debug, Clone, Parser)]
#[command(name = "transfer", version)]
pub struct Options {
    /// Bytes to transfer, such as 64MiB or 1GiB.
    #[arg(long, default_value = "1GiB", value_parser = parse_size)]
    pub size: u64,
    /// Repeats of every contender; they are interleaved.
    #[arg(long, default_value_t = 5)]
    pub repeats: u32,
    /// Only these contenders (comma-separated).
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Subject>,
    /// Request/reply round trips of 64 bytes per repeat.
    #[arg(long, default_value_t = 5_000)]
    pub round_trips: u32,
    /// Cores of the receiver and the sender; give the same number twice for both on one core.
    #[arg(long, value_delimiter = ',', num_args = 1..=2, default_value = "1,0")]
    pub cores: Vec<usize>,
    /// When the receiver hashes the bytes.
    #[arg(long, value_enum, default_value_t = Verify::After)]
    pub verify: Verify,
    /// TCP congestion control of the plain TCP and TLS contenders.
    #[arg(long, default_value = "cubic")]
    pub tcp_congestion: String,
    /// Congestion control of the Pilotage contenders.
    #[arg(long, value_enum, default_value_t)]
    pub congestion: Congestion,
    /// Seed of the transferred bytes.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Seconds to wait for an idle machine before each run.
    #[arg(long, default_value_t = 20)]
    pub idle_wait: u64,
    /// Share of foreign CPU time (percent of both cores) above which a run is repeated, at most twice.
    #[arg(long, default_value_t = 8.0)]
    pub foreign_limit: f64,
    /// Raise the scheduling priority of this session (needs root; other work on the machine slows down).
    #[arg(long)]
    pub boost: bool,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Internal: run as one side of one contender.
    #[arg(long, hide = true, value_enum)]
    pub role: Option<Role>,
    /// Internal: address of the receiver.
    #[arg(long, hide = true)]
    pub server_addr: Option<SocketAddr>,
    /// Internal: UDP address of the sender.
    #[arg(long, hide = true)]
    pub client_addr: Option<SocketAddr>,
    /// Internal: where the receiver leaves its certificate.
    #[arg(long, hide = true)]
    pub scratch: Option<PathBuf>,
}

/// Congestion control of the Pilotage contenders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Congestion {
    /// The draft's AIMD.
    Newreno,
    /// RFC 9438.
    Cubic,
    /// By a model of the path; what a node uses that is not told otherwise.
    #[default]
    Bbr,
}

impl Congestion {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Newreno => "newreno",
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        }
    }
}

/// One side of a contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// The receiver.
    Server,
    /// The sender.
    Client,
}

/// When the receiver hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// Keep all bytes in memory touched beforehand, hash after the clock has stopped.
    After,
    /// Hash while receiving, with the clock running.
    Inline,
}

/// A contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Pilotage, UDP payloads of at most 1,452 bytes.
    Pilotage,
    /// Pilotage, UDP payloads as large as the path takes.
    PilotageLarge,
    /// TLS 1.3 over TCP: rustls with aws-lc-rs.
    Tls,
    /// QUIC: quinn, UDP payloads of at most 1,452 bytes (its default).
    Quinn,
    /// QUIC: quinn, UDP payloads of 6,500 bytes.
    QuinnLarge,
    /// Kernel TCP, not encrypted.
    Tcp,
}

/// Largest UDP payload of the "large" quinn contender: ten of them, quinn's batch bound, still fit one
/// segmentation-offload send of 65,507 bytes; with 8,952 bytes quinn loses offload and becomes slower.
pub const QUINN_LARGE: u16 = 6_500;
/// UDP payload of the 1,500-byte-MTU contenders (quinn's own default bound).
pub const ETHERNET_PAYLOAD: u16 = 1_452;
/// Socket buffers asked for by the QUIC contenders, in bytes.
pub const SOCKET_BUFFER: usize = 4 << 20;
/// quinn's stream window, in bytes.
pub const QUIC_STREAM_WINDOW: u32 = 32 << 20;
/// quinn's connection window and send window, in bytes.
pub const QUIC_CONNECTION_WINDOW: u32 = 64 << 20;
/// Bytes handed to one write call and offered to one read call.
pub const IO_CHUNK: usize = 1 << 20;

impl Subject {
    /// All contenders in the order of the table.
    pub const ALL: [Subject; 6] = [
        Subject::Pilotage,
        Subject::PilotageLarge,
        Subject::Tls,
        Subject::Quinn,
        Subject::QuinnLarge,
        Subject::Tcp,
    ];

    /// The name on the command line and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Pilotage => "pilotage",
            Subject::PilotageLarge => "pilotage-large",
            Subject::Tls => "tls",
            Subject::Quinn => "quinn",
            Subject::QuinnLarge => "quinn-large",
            Subject::Tcp => "tcp",
        }
    }

    /// Largest UDP payload this contender may use; `None` for TCP.
    pub fn max_datagram(self) -> Option<u16> {
        match self {
            Subject::Pilotage | Subject::Quinn => Some(ETHERNET_PAYLOAD),
            Subject::PilotageLarge => Some(65_507),
            Subject::QuinnLarge => Some(QUINN_LARGE),
            Subject::Tls | Subject::Tcp => None,
        }
    }

    /// Everything that was set on this contender, for the report.
    pub fn settings(self, options: &Options) -> String {
        match self {
            Subject::Pilotage | Subject::PilotageLarge => format!(
                "AES-256-GCM (aws-lc-rs), {}, default configuration except max_datagram_size {}; driver thread and application thread on one core",
                options.congestion.name(),
                self.max_datagram().unwrap_or_default()
            ),
            Subject::Tls => format!(
                "rustls 0.23 + aws-lc-rs, TLS 1.3, TLS_AES_256_GCM_SHA384, X25519, blocking std::net, kernel-tuned socket buffers, {}, TCP_NODELAY",
                options.tcp_congestion
            ),
            Subject::Quinn | Subject::QuinnLarge => format!(
                "quinn 0.11, rustls + aws-lc-rs, TLS_AES_256_GCM_SHA384, tokio current_thread, CUBIC, stream window {} MiB, connection and send window {} MiB, socket buffers {} MiB, MTU discovery up to {}",
                QUIC_STREAM_WINDOW >> 20,
                QUIC_CONNECTION_WINDOW >> 20,
                SOCKET_BUFFER >> 20,
                self.max_datagram().unwrap_or_default()
            ),
            Subject::Tcp => format!(
                "kernel TCP, no encryption, blocking std::net, kernel-tuned socket buffers, {}, TCP_NODELAY",
                options.tcp_congestion
            ),
        }
    }
}

/// Reads sizes such as `1048576`, `64MiB`, `1GB`, `100k`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 =
        text[..digits].parse().map_err(|_| format!("size `{text}` does not start with a number"))?;
    let factor: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        unit => return Err(format!("size `{text}`: unknown unit `{unit}` (KiB, MiB, GiB, kB, MB, GB)")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("size `{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_binary_and_decimal_units() {
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("1GB"), Ok(1_000_000_000));
        assert_eq!(parse_size("17"), Ok(17));
        assert!(parse_size("MiB").is_err());
        assert!(parse_size("3 parsecs").is_err());
        assert!(parse_size("99999999999GiB").is_err());
    }

    #[test]
    fn ten_large_quinn_datagrams_fit_one_offload_send() {
        assert!(usize::from(QUINN_LARGE) * 10 <= 65_507);
    }
}
