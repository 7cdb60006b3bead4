//! `pilotage bench`: throughput, round trips and datagram loss to a peer's port 1011.

use std::io;
use std::time::{Duration, Instant};

use pilotage::{Address, DatagramSocket, Node, Peer};
use pilotage_services::Duplex;
use pilotage_services::bench::{self, Bulk, DatagramMessage};
use serde_json::{Value, json};

use super::Context;
use super::ping::{micros, path_json};
use crate::args::BenchArgs;
use crate::error::CliError;
use crate::progress::Progress;
use crate::session::{self, Channel, Session};
use crate::units::{format_duration, format_rate};

/// How often the count of a burst is asked for, and how long each answer may take.
const QUERIES: usize = 10;
const QUERY_TIMEOUT: Duration = Duration::from_millis(300);

/// Datagrams that are sent before the queue is given time to empty.
const BURST: u32 = 32;

pub(crate) fn run(context: &Context, args: &BenchArgs) -> Result<(), CliError> {
    let message = u32::try_from(args.message).ok().filter(|size| (1..=bench::MAX_MESSAGE).contains(size));
    let message = message.ok_or_else(|| {
        CliError::usage("command line", "--message must be 1 byte to 1 MiB", "choose another size")
    })?;
    session::check_peer(context, &args.node, &args.peer)?;
    let node = session::open(context, &args.node)?;
    let mut value = json!({ "event": "bench", "peer": args.peer.to_string() });
    if args.size > 0 {
        let stream = open(&node, &args.peer)?;
        let up = bulk(context, "upload", args.size, |progress| bench::upload(&stream, args.size, progress))?;
        value["upload"] = bulk_json(&up);
        let stream = open(&node, &args.peer)?;
        let down =
            bulk(context, "download", args.size, |progress| bench::download(&stream, args.size, progress))?;
        value["download"] = bulk_json(&down);
        if !context.output.is_json() {
            context.output.result(
                format!(
                    "upload       {}\ndownload     {}",
                    format_rate(up.bits_per_second()),
                    format_rate(down.bits_per_second())
                ),
                &Value::Null,
            );
        }
    }
    if args.round_trips > 0 {
        let stream = open(&node, &args.peer)?;
        let times = round_trips(context, &stream, args.round_trips, message)?;
        value["rtt_us"] = times.to_json();
        if !context.output.is_json() {
            context.output.result(format!("round trips  {}", times.text()), &Value::Null);
        }
        value["path"] = json!(stream.path().as_ref().map(path_json));
    }
    if args.datagrams > 0 && !matches!(node, Session::Own(_)) {
        context
            .output
            .note("note: datagrams are not measured through a running node; use --ephemeral for that");
    }
    if let Session::Own(node) = &node
        && args.datagrams > 0
    {
        let size = usize::try_from(args.datagram_size).unwrap_or(usize::MAX);
        let count = datagrams(context, node, &args.peer, args.datagrams, size)?;
        value["datagrams"] = count.to_json();
        if !context.output.is_json() {
            context.output.result(format!("datagrams    {}", count.text()), &Value::Null);
        }
    }
    context.output.event(&value);
    node.close();
    Ok(())
}

fn open(node: &Session, peer: &Peer) -> Result<Channel, CliError> {
    node.connect(peer, bench::PORT)
}

fn bulk(
    context: &Context,
    label: &str,
    size: u64,
    run: impl FnOnce(&mut dyn FnMut(u64)) -> io::Result<Bulk>,
) -> Result<Bulk, CliError> {
    let progress = Progress::bytes(&context.output, label, Some(size));
    run(&mut |bytes| progress.set(bytes)).map_err(|error| CliError::stream(label, &error))
}

fn bulk_json(bulk: &Bulk) -> Value {
    json!({
        "bytes": bulk.bytes,
        "elapsed_us": micros(bulk.elapsed),
        "bps": bulk.bits_per_second() as u64,
    })
}

/// Sorted round-trip times.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    fn at(&self, percent: f64) -> Duration {
        bench::percentile(&self.0, percent).unwrap_or_default()
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "count": self.0.len(),
            "min": micros(self.at(0.0)),
            "p50": micros(self.at(50.0)),
            "p90": micros(self.at(90.0)),
            "p99": micros(self.at(99.0)),
            "max": micros(self.at(100.0)),
        })
    }

    fn text(&self) -> String {
        format!(
            "{}: p50 {}, p99 {}, max {}",
            self.0.len(),
            format_duration(self.at(50.0)),
            format_duration(self.at(99.0)),
            format_duration(self.at(100.0)),
        )
    }
}

/// Round trips one after another on `stream`.
pub(crate) fn round_trips(
    context: &Context,
    stream: &dyn Duplex,
    count: u32,
    size: u32,
) -> Result<Times, CliError> {
    let progress = Progress::steps(&context.output, "round trips", count.into());
    let mut times = bench::round_trips(stream, count as usize, size, &mut |done| progress.set(done as u64))
        .map_err(|error| CliError::stream("round trips", &error))?;
    times.sort_unstable();
    Ok(Times(times))
}

/// Datagrams sent and counted at the other end.
pub(crate) struct Count {
    sent: u32,
    /// Not taken by our own queue, or too large for the path.
    refused: u32,
    received: u32,
}

impl Count {
    pub(crate) fn to_json(&self) -> Value {
        json!({ "sent": self.sent, "refused_locally": self.refused, "received": self.received })
    }

    fn text(&self) -> String {
        format!("{} sent, {} received", self.sent, self.received)
    }
}

/// Sends a burst of datagrams and asks the peer how many came.
pub(crate) fn datagrams(
    context: &Context,
    node: &Node,
    peer: &Peer,
    count: u32,
    size: usize,
) -> Result<Count, CliError> {
    let stage = "datagrams";
    let address = node.resolve(peer)?.address;
    let socket = node
        .bind_datagram(0)
        .map_err(|error| CliError::failure(stage, error, "close other datagram ports of this node"))?;
    // Makes sure that there is a tunnel: a datagram does not wait for one.
    node.ping(peer, Duration::from_secs(10))?;
    let mut run = [0; 4];
    getrandom::fill(&mut run)
        .map_err(|error| CliError::failure(stage, error, "check the system's random source"))?;
    let run = u32::from_be_bytes(run);
    let progress = Progress::steps(&context.output, stage, count.into());
    let mut refused = 0;
    let mut last_refusal = None;
    for number in 0..count {
        if context.stop.requested() {
            return Err(CliError::interrupted());
        }
        let data = bench::encode_data(run, number, size);
        if let Err(error) = socket.send_to(address, bench::PORT, &data) {
            refused += 1;
            last_refusal = Some(error.to_string());
        }
        if number % BURST == BURST - 1 {
            std::thread::sleep(Duration::from_micros(500));
        }
        progress.set(number.into());
    }
    progress.clear();
    if let Some(error) = last_refusal.filter(|_| refused == count) {
        return Err(CliError::failure(stage, error, "choose a smaller --datagram-size"));
    }
    let sent = count - refused;
    let received = ask(&socket, address, run, sent).ok_or_else(|| {
        CliError::stream(stage, &io::Error::new(io::ErrorKind::TimedOut, "no report from the peer"))
    })?;
    Ok(Count { sent, refused, received })
}

/// Asks until the count stands still, as the last datagrams may still be under way.
fn ask(socket: &DatagramSocket, peer: Address, run: u32, sent: u32) -> Option<u32> {
    let query = DatagramMessage::Query { run }.encode();
    let mut last = None;
    for _ in 0..QUERIES {
        let _ = socket.send_to(peer, bench::PORT, &query);
        let deadline = Instant::now() + QUERY_TIMEOUT;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let Some(datagram) = socket.recv_timeout(left) else { break };
            if datagram.from.address.node != peer.node {
                continue;
            }
            if let Some(DatagramMessage::Report { run: of, datagrams, .. }) =
                DatagramMessage::decode(&datagram.data)
                && of == run
            {
                if datagrams >= sent || last == Some(datagrams) {
                    return Some(datagrams);
                }
                last = Some(datagrams);
                std::thread::sleep(Duration::from_millis(20));
                break;
            }
        }
    }
    last
}
