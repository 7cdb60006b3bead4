//! What can be chosen on the command line of `transfer`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::reference;
use crate::subject::Subject;
use crate::work::Work;

/// Compares Pilotage with QUIC, TLS over TCP and plain TCP on loopback: same work, same run, one core per side.
#[derive(Debug, Clone, Parser)]
#[command(name = "transfer", version)]
pub struct Options {
    /// Only these works (comma-separated).
    #[arg(long, value_enum, value_delimiter = ',')]
    pub work: Vec<Work>,
    /// Only these subjects (comma-separated).
    #[arg(long, visible_alias = "peers", value_enum, value_delimiter = ',')]
    pub only: Vec<Subject>,
    /// Repeats of every subject; they are interleaved.
    #[arg(long, default_value_t = 5)]
    pub repeats: u32,
    /// Small amounts and few repeats: seconds instead of a quarter of an hour. Shows that everything works; says little about speed.
    #[arg(long)]
    pub quick: bool,
    /// Bulk works: bytes to transfer, such as 64MiB or 1GiB.
    #[arg(long, default_value = "1GiB", value_parser = parse_size)]
    pub size: u64,
    /// Request/reply works: round trips with one in flight; twenty times as many with 64 in flight.
    #[arg(long, default_value_t = 10_000)]
    pub round_trips: u32,
    /// Fetch works: objects of 64 KiB with one at a time; ten times as many with 20 at a time.
    #[arg(long, default_value_t = 2_000)]
    pub fetches: u32,
    /// Contact works: contacts. Pilotage takes 200 key exchanges at once (rule C10), then delays what comes faster.
    #[arg(long, default_value_t = 150)]
    pub contacts: u32,
    /// Memory works: idle tunnels or connections.
    #[arg(long, default_value_t = 10_000)]
    pub idle: u32,
    /// Cores of the server and the client; works on one core use the first.
    #[arg(long, value_delimiter = ',', num_args = 1..=2, default_value = "1,0")]
    pub cores: Vec<usize>,
    /// Congestion control of the Pilotage subjects.
    #[arg(long, value_enum, default_value_t)]
    pub congestion: Congestion,
    /// Calls used by subjects that have both. Default: blocking for one stream, tokio for many.
    #[arg(long, value_enum)]
    pub api: Option<Api>,
    /// Seed of the transferred bytes.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Seconds to wait for an idle machine before each run.
    #[arg(long, default_value_t = 20)]
    pub idle_wait: u64,
    /// Share of foreign CPU time (percent of one core) above which a run is repeated, at most twice.
    #[arg(long, default_value_t = 8.0)]
    pub foreign_limit: f64,
    /// Raise the scheduling priority of this session (needs root; other work on the machine slows down).
    #[arg(long)]
    pub boost: bool,
    /// Print the raw records, one JSON object on a line, instead of tables.
    #[arg(long)]
    pub json: bool,
    /// Also write the raw records to this file, one JSON object on a line.
    #[arg(long)]
    pub records: Option<PathBuf>,
    /// Take no measurements: report the records of these files (from --records, or of `links`).
    #[arg(long)]
    pub report: Vec<PathBuf>,
    /// Write RESULTS.md, results.json and the plots into this folder.
    #[arg(long)]
    pub write: Option<PathBuf>,
    /// The command to name in RESULTS.md. Default: this one.
    #[arg(long, hide = true)]
    pub command: Option<String>,
    /// Internal: run as one side of one subject.
    #[arg(long, hide = true, value_enum)]
    pub role: Option<Role>,
    /// Internal: address of the server.
    #[arg(long, hide = true)]
    pub server_addr: Option<SocketAddr>,
    /// Internal: UDP address of the client.
    #[arg(long, hide = true)]
    pub client_addr: Option<SocketAddr>,
    /// Internal: TCP address over which the two sides agree on when clocks start and stop.
    #[arg(long, hide = true)]
    pub control_addr: Option<SocketAddr>,
    /// Internal: where the server leaves its certificate.
    #[arg(long, hide = true)]
    pub scratch: Option<PathBuf>,
}

/// Amounts of a quick run.
const QUICK_SIZE: u64 = 8 << 20;
const QUICK_ROUND_TRIPS: u32 = 200;
const QUICK_FETCHES: u32 = 20;
const QUICK_CONTACTS: u32 = 10;
const QUICK_IDLE: u32 = 100;

impl Options {
    /// Turns `--quick` into the amounts that it stands for.
    #[must_use]
    pub fn resolved(mut self) -> Self {
        if self.quick {
            self.size = self.size.min(QUICK_SIZE);
            self.round_trips = self.round_trips.min(QUICK_ROUND_TRIPS);
            self.fetches = self.fetches.min(QUICK_FETCHES);
            self.contacts = self.contacts.min(QUICK_CONTACTS);
            self.idle = self.idle.min(QUICK_IDLE);
            self.repeats = self.repeats.min(1);
            self.idle_wait = 0;
        }
        self
    }

    /// The works asked for.
    pub fn works(&self) -> Vec<Work> {
        Work::all().iter().copied().filter(|work| self.work.is_empty() || self.work.contains(work)).collect()
    }

    /// The subjects asked for that take part in a work.
    pub fn subjects(&self, work: Work) -> Vec<Subject> {
        let chosen = |subject: &Subject| self.only.is_empty() || self.only.contains(subject);
        let present = |subject: &Subject| *subject != Subject::Reference || reference::folder().is_some();
        let suited = Subject::all().iter().copied().filter(|subject| work.suits(*subject));
        suited.filter(chosen).filter(present).collect()
    }

    /// Core of the server and of the client in this work.
    pub fn cores_of(&self, work: Work) -> (usize, usize) {
        let server = self.cores.first().copied().unwrap_or_default();
        let client = self.cores.last().copied().unwrap_or(server);
        (server, if work.is_on_one_core() { server } else { client })
    }
}

/// Which calls a subject that has both uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Api {
    /// Blocking calls, a thread for each stream.
    Blocking,
    /// A single-threaded tokio runtime.
    Tokio,
}

impl Api {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Tokio => "tokio",
        }
    }
}

/// Congestion control of the Pilotage subjects.
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

/// One side of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// The side that waits.
    Server,
    /// The side that begins and measures.
    Client,
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
    fn a_quick_run_is_small_and_never_larger_than_asked() {
        let quick = Options::parse_from(["transfer", "--quick", "--size", "1k", "--repeats", "9"]).resolved();
        assert_eq!((quick.size, quick.repeats, quick.idle), (1024, 1, QUICK_IDLE));
    }
}
