//! What is done over each transport. A work is a [`Job`](crate::transport::Job) of the client and a service of the server.

pub mod bulk;
pub mod ceiling;
pub mod contact;
pub mod echo;
pub mod fetch;
pub mod idle;
pub mod request;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Failure;
use crate::control::{Control, Left};
use crate::settings::{Api, Options};
use crate::subject::{Family, Subject};
use crate::transport::{self, Announce, Handler, Setup, Stream};

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Bulk data over one stream.
    #[value(name = "bulk-1")]
    Bulk1,
    /// Bulk data over 100 streams at once.
    #[value(name = "bulk-100")]
    Bulk100,
    /// 64-byte requests and replies, one in flight, a core for each side.
    #[value(name = "request-1")]
    Request1,
    /// The same with both sides on one core.
    #[value(name = "request-1-core")]
    Request1Core,
    /// 64-byte requests and replies, 64 in flight on 64 streams, a core for each side.
    #[value(name = "request-64")]
    Request64,
    /// The same with both sides on one core.
    #[value(name = "request-64-core")]
    Request64Core,
    /// Objects of 64 KiB, one at a time.
    #[value(name = "fetch-1")]
    Fetch1,
    /// Objects of 64 KiB, 20 at a time on 20 streams.
    #[value(name = "fetch-20")]
    Fetch20,
    /// From nothing to the first reply: no keys, no tickets, a fresh socket.
    Cold,
    /// A new stream or connection in a living tunnel to its first reply, beside a round trip on an old one.
    Warm,
    /// Memory of idle tunnels (QUIC: connections) without streams.
    IdleTunnels,
    /// Memory of idle connections (QUIC: streams) in one tunnel.
    IdleConnections,
    /// 1 MiB to an echo service and back: what the Go reference has a command for.
    #[value(name = "echo-1mib")]
    EchoMib,
}

/// Streams of [`Work::Bulk100`].
pub const BULK_STREAMS: u32 = 100;
/// Requests in flight of [`Work::Request64`].
pub const REQUESTS_IN_FLIGHT: u32 = 64;
/// Fetches at a time of [`Work::Fetch20`].
pub const FETCHES_AT_ONCE: u32 = 20;
/// Repeats of the works about memory.
const MEMORY_REPEATS: u32 = 2;
/// Streams that QUIC libraries permit without being told.
const USUAL_STREAMS: u32 = 100;

impl Work {
    /// All works in the order of the tables.
    pub fn all() -> &'static [Work] {
        Work::value_variants()
    }

    /// The name on the command line and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bulk1 => "bulk-1",
            Self::Bulk100 => "bulk-100",
            Self::Request1 => "request-1",
            Self::Request1Core => "request-1-core",
            Self::Request64 => "request-64",
            Self::Request64Core => "request-64-core",
            Self::Fetch1 => "fetch-1",
            Self::Fetch20 => "fetch-20",
            Self::Cold => "cold",
            Self::Warm => "warm",
            Self::IdleTunnels => "idle-tunnels",
            Self::IdleConnections => "idle-connections",
            Self::EchoMib => "echo-1mib",
        }
    }

    /// Whether both sides share a core.
    pub fn is_on_one_core(self) -> bool {
        matches!(self, Self::Request1Core | Self::Request64Core)
    }

    /// Whether a subject takes part. Those that differ from another only for bulk data do bulk data only.
    pub fn suits(self, subject: Subject) -> bool {
        if self == Self::EchoMib || subject == Subject::Reference {
            return self == Self::EchoMib && matches!(subject, Subject::Pilotage | Subject::Reference);
        }
        match self {
            Self::Bulk1 => true,
            Self::Bulk100 => subject.family() != Family::Ceiling,
            Self::IdleConnections => {
                // A TCP connection carries one stream: what it takes is in the other memory work.
                !subject.is_for_bulk_only() && !matches!(subject.family(), Family::Tcp | Family::Tls)
            }
            _ => !subject.is_for_bulk_only(),
        }
    }

    /// Whether another repeat says something: memory hardly differs from run to run, and takes long to fill.
    pub fn wants_repeat(self, repeat: u32) -> bool {
        repeat <= MEMORY_REPEATS || !matches!(self, Self::IdleTunnels | Self::IdleConnections)
    }

    /// How many streams at once.
    pub fn streams(self, options: &Options) -> u32 {
        match self {
            Self::Bulk100 => BULK_STREAMS,
            Self::Request64 | Self::Request64Core => REQUESTS_IN_FLIGHT,
            Self::Fetch20 => FETCHES_AT_ONCE,
            Self::IdleConnections => options.idle,
            Self::Bulk1 | Self::Request1 | Self::Request1Core | Self::Fetch1 | Self::Cold | Self::Warm => 1,
            // One at a time, but each is kept: threads would be many.
            Self::IdleTunnels => 1,
            Self::EchoMib => 1,
        }
    }

    /// The calls that suit it best.
    pub fn api(self, options: &Options) -> Api {
        let best = match self {
            Self::IdleTunnels => Api::Tokio,
            _ if self.streams(options) > 1 => Api::Tokio,
            _ => Api::Blocking,
        };
        options.api.unwrap_or(best)
    }

    /// Streams that limits must be raised for; 0 if the libraries' own suffice.
    pub fn many_streams(self, options: &Options) -> u32 {
        let streams = self.streams(options);
        if streams > USUAL_STREAMS { streams } else { 0 }
    }

    /// What was done, for the report.
    pub fn settings(self, options: &Options) -> BTreeMap<String, String> {
        let (server, client) = options.cores_of(self);
        let mut settings = BTreeMap::from([
            ("cores".to_owned(), format!("server {server}, client {client}")),
            ("api".to_owned(), self.api(options).name().to_owned()),
        ]);
        let amount = match self {
            Self::Bulk1 | Self::Bulk100 => ("bytes", options.size),
            Self::Request1 | Self::Request1Core => ("requests", u64::from(options.round_trips)),
            Self::Request64 | Self::Request64Core => ("requests", u64::from(request::total(options, self))),
            Self::Fetch1 | Self::Fetch20 => ("fetches", u64::from(fetch::total(options, self))),
            Self::Cold | Self::Warm => ("contacts", u64::from(options.contacts)),
            Self::EchoMib => ("bytes", echo::SIZE as u64),
            Self::IdleTunnels | Self::IdleConnections => ("idle", u64::from(options.idle)),
        };
        settings.insert(amount.0.to_owned(), amount.1.to_string());
        settings
    }
}

/// What the client measured in one run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// By name, as in [`Record`](crate::record::Record).
    pub metrics: BTreeMap<String, f64>,
    /// What the transport says about itself.
    pub note: String,
}

impl Outcome {
    /// Adds a metric.
    #[must_use]
    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.metrics.insert(name.to_owned(), value);
        self
    }
}

/// Runs the server's part of a work until its control connection says `quit`.
pub fn serve(
    work: Work,
    options: &Options,
    setup: &Setup,
    announce: Announce,
    left: &Left,
) -> Result<(), Failure> {
    if setup.subject.family() == Family::Ceiling {
        return ceiling::receive(setup, options.size, announce, left);
    }
    let service = match work {
        Work::Bulk1 | Work::Bulk100 => Service::Bulk,
        Work::Fetch1 | Work::Fetch20 => Service::Fetch,
        Work::EchoMib => Service::EchoAll,
        _ => Service::Echo,
    };
    transport::serve(setup, announce, &service)
}

/// Runs the client's part of a work.
pub fn drive(work: Work, options: &Options, setup: &Setup, control: SocketAddr) -> Result<Outcome, Failure> {
    let control = Control::connect(control)?;
    if setup.subject.family() == Family::Ceiling {
        return ceiling::send(options, setup, control);
    }
    match work {
        Work::Bulk1 | Work::Bulk100 => {
            let job = bulk::Bulk::new(options, work.streams(options), control)?;
            transport::drive(setup, job)
        }
        Work::Request1 | Work::Request1Core | Work::Request64 | Work::Request64Core => {
            let (in_flight, total) = (work.streams(options), request::total(options, work));
            transport::drive(setup, request::Requests { in_flight, total, control })
        }
        Work::Fetch1 | Work::Fetch20 => {
            let (at_once, total) = (work.streams(options), fetch::total(options, work));
            transport::drive(setup, fetch::Fetches { at_once, total, control })
        }
        Work::Cold => transport::drive(setup, contact::Cold { contacts: options.contacts, control }),
        Work::Warm => transport::drive(setup, contact::Warm { contacts: options.contacts, control }),
        Work::EchoMib => transport::drive(setup, echo::Echo { control }),
        Work::IdleTunnels if setup.subject.family() == Family::Pilotage => {
            idle::pilotage_tunnels(setup, options.idle, control)
        }
        Work::IdleTunnels => transport::drive(setup, idle::Tunnels { count: options.idle, control }),
        Work::IdleConnections => transport::drive(setup, idle::Connections { count: options.idle, control }),
    }
}

/// What the server does with each stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Takes bytes and tells their hash.
    Bulk,
    /// Answers 64 bytes with the same.
    Echo,
    /// Gives back whatever comes.
    EchoAll,
    /// Answers a length with as many bytes.
    Fetch,
}

impl Handler for Service {
    async fn handle<S: Stream>(&self, stream: S) -> Result<(), Failure> {
        match self {
            Self::Bulk => bulk::take(stream).await,
            Self::Echo => request::echo(stream).await,
            Self::EchoAll => echo::give_back(stream).await,
            Self::Fetch => fetch::give(stream).await,
        }
    }
}

/// Writes all and sees to it that it leaves.
pub(crate) async fn send<S: Stream>(stream: &mut S, bytes: &[u8]) -> Result<(), Failure> {
    stream.write_all(bytes).await?;
    Ok(stream.flush().await?)
}

/// Reads `wanted` bytes into a buffer that holds at least one more: a read that leaves room tells tokio that nothing
/// else is there, which saves a system call. `false` if the stream ends before the first byte.
pub(crate) async fn fill_part<S: Stream>(
    stream: &mut S,
    buffer: &mut [u8],
    wanted: usize,
) -> Result<bool, Failure> {
    let mut filled = 0;
    while filled < wanted {
        match stream.read(&mut buffer[filled..]).await {
            Ok(count @ 1..) => filled += count,
            // A reset where the other side has gone is an end like any other.
            _ if filled == 0 => return Ok(false),
            Ok(_) => return Err("the stream ended early".into()),
            Err(error) => return Err(error.into()),
        }
    }
    if filled == wanted { Ok(true) } else { Err("more came than was asked for".into()) }
}

/// Fills the buffer; `false` if the stream ends before the first byte.
pub(crate) async fn fill<S: Stream>(stream: &mut S, buffer: &mut [u8]) -> Result<bool, Failure> {
    // A reset where the client has gone is an end like any other.
    let Ok(count @ 1..) = stream.read(buffer).await else { return Ok(false) };
    stream.read_exact(&mut buffer[count..]).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for work in Work::all() {
            assert_eq!(work.to_possible_value().expect("shown").get_name(), work.name());
        }
    }

    #[test]
    fn limits_are_raised_only_where_needed() {
        let options = Options::parse_from(["transfer"]);
        assert_eq!(Work::Bulk100.many_streams(&options), 0, "100 streams are permitted anyway");
        assert_eq!(Work::IdleConnections.many_streams(&options), 10_000);
    }
}
