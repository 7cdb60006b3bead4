//! `pilotage datagram`: one datagram to a port of a peer, and its answer if one is wanted.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use pilotage::{Address, Node, Peer};
use serde_json::{Value, json};

use super::Context;
use super::message::read_whole;
use super::ping::micros;
use crate::args::DatagramArgs;
use crate::error::CliError;
use crate::session;

/// Longest that an answer is waited for.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(60);
/// Longest that a session with the peer is waited for: it takes the datagram along.
pub(crate) const MAX_SESSION: Duration = Duration::from_secs(15);
/// How often it is looked whether there is one.
const LOOK: Duration = Duration::from_millis(2);
/// More than any datagram holds; what does not fit the path is refused with the size that does.
const MAX_DATA: u64 = 1 << 16;

/// What to send.
pub(crate) struct Message {
    pub(crate) port: u16,
    pub(crate) data: Vec<u8>,
    pub(crate) idempotent: bool,
    pub(crate) wait: Duration,
}

pub(crate) fn run(context: &Context, args: &DatagramArgs) -> Result<(), CliError> {
    session::check_peer(context, &args.node, &args.peer)?;
    let data = match args.text.as_str() {
        "-" => read_whole(Path::new("-"), MAX_DATA)?,
        text => text.as_bytes().to_vec(),
    };
    let wait = args.wait.unwrap_or_default();
    let message = Message { port: args.port, data, idempotent: args.idempotent, wait };
    let bytes = message.data.len();
    let node = session::open(context, &args.node)?;
    let report = node.datagram(&args.peer, &message)?;
    let peer = report["peer"].as_str().unwrap_or_default().to_owned();
    let sent = json!({
        "event": "sent", "peer": peer, "port": args.port, "bytes": bytes, "idempotent": args.idempotent,
        "took_us": report["took_us"],
    });
    context.output.result(format!("sent {bytes} bytes to {peer}:{}", args.port), &sent);
    node.close();
    if args.wait.is_none() {
        return Ok(());
    }
    let data = report["answer"].as_str().and_then(|text| BASE64.decode(text).ok());
    let data = data.ok_or_else(|| {
        let silent = io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
        CliError::stream("datagram", &silent)
    })?;
    let text = String::from_utf8(data.clone()).ok();
    let shown = text.clone().unwrap_or_else(|| format!("{} bytes: {}", data.len(), hex::encode(&data)));
    let answer = json!({
        "event": "answer", "peer": peer, "port": report["from_port"], "bytes": data.len(), "text": text,
        "data": report["answer"], "rtt_us": report["rtt_us"],
    });
    context.output.result(shown, &answer);
    Ok(())
}

/// Sends it from a free port of the node, waits until there is a session that carries it, and then for an answer from that peer if one is wanted:
/// `{"peer", "took_us", "answer": base64 or null, "from_port", "rtt_us"}`.
pub(crate) fn exchange(node: &Node, peer: &Peer, message: &Message) -> Result<Value, CliError> {
    let stage = "datagram";
    let socket = node
        .bind_datagram(0)
        .map_err(|error| CliError::failure(stage, error, "close other datagram ports of this node"))?;
    let to = socket.introduce(peer).map_err(|error| CliError::stream(stage, &error))?;
    let begun = Instant::now();
    let sent = match message.idempotent {
        true => socket.send_idempotent(to, message.port, &message.data),
        false => socket.send_to(to, message.port, &message.data),
    };
    sent.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => {
            CliError::failure(stage, error, "send at most so many bytes, or a stream with `pilotage connect`")
        }
        _ => CliError::stream(stage, &error),
    })?;
    let answer = answer(&socket, to, begun + message.wait.min(MAX_WAIT));
    // An answer shows that it arrived; without one it is under way as soon as there are keys.
    while answer.is_none() && !has_session(node, to) {
        if begun.elapsed() > MAX_SESSION {
            let silent =
                io::Error::new(io::ErrorKind::TimedOut, "no session with the peer in time: it was not sent");
            return Err(CliError::stream(stage, &silent));
        }
        std::thread::sleep(LOOK);
    }
    let took = micros(begun.elapsed());
    let (data, port) = answer.map(|(data, port)| (BASE64.encode(data), port)).unzip();
    let rtt = data.is_some().then_some(took);
    Ok(json!({ "peer": to.to_string(), "took_us": took, "answer": data, "from_port": port, "rtt_us": rtt }))
}

/// The first datagram of this peer, and the port that it left from.
fn answer(socket: &pilotage::DatagramSocket, from: Address, until: Instant) -> Option<(Vec<u8>, u16)> {
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        let datagram = socket.recv_timeout(left)?;
        if datagram.from.address.node == from.node {
            return Some((datagram.data, datagram.from.port));
        }
    }
    None
}

fn has_session(node: &Node, peer: Address) -> bool {
    peer.node == node.address().node
        || node.peers().iter().any(|known| known.peer.node == peer.node && known.established)
}
