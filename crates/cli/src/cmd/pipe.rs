//! `pilotage listen` and `pilotage connect`: a stream joined to standard input and output, like nc.
//!
//! The two directions end separately: the end of standard input ends our direction of the stream,
//! and what the peer still sends is printed until it ends its own.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use pilotage_services::Duplex;
use serde_json::json;

use super::Context;
use super::recv::accept;
use crate::args::{ConnectArgs, ListenArgs};
use crate::error::CliError;
use crate::session::{self, Channel, Session};

/// Bytes moved at a time.
const BUFFER: usize = 64 * 1024;

/// How long the peer may take to acknowledge our last bytes after everything else has ended.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn listen(context: &Context, args: &ListenArgs) -> Result<(), CliError> {
    context.output.reserve_stdout();
    let node = session::open(context, &args.node)?;
    let listener = node.listen(args.port)?;
    let mut ready = node.describe();
    ready["event"] = "ready".into();
    ready["port"] = args.port.into();
    context.output.event(&ready);
    context.output.note(format!("waiting for a connection to port {}\n{}", args.port, node.describe_text()));
    let Some(stream) = accept(context, &listener)? else { return Err(CliError::interrupted()) };
    // One connection, as nc: whoever comes later is refused.
    drop(listener);
    context.output.note(format!("connection from {}", stream.peer()));
    context.output.event(&json!({ "event": "connected", "peer": stream.peer().to_string() }));
    join(context, &node, stream)
}

pub(crate) fn connect(context: &Context, args: &ConnectArgs) -> Result<(), CliError> {
    context.output.reserve_stdout();
    session::check_peer(context, &args.node, &args.peer)?;
    let node = session::open(context, &args.node)?;
    let stream = node.connect(&args.peer, args.port)?;
    context.output.note(format!("connected to {}", stream.peer()));
    context.output.event(&json!({ "event": "connected", "peer": stream.peer().to_string() }));
    join(context, &node, stream)
}

/// One direction has ended.
enum Ended {
    /// Standard input to stream.
    Sending(io::Result<()>),
    /// Stream to standard output.
    Receiving(io::Result<()>),
}

fn join(context: &Context, node: &Session, stream: Channel) -> Result<(), CliError> {
    let (ended, endings) = channel();
    let clone = || stream.try_clone().map_err(|error| CliError::stream("stream", &error));
    let (sender, receiver) = (clone()?, clone()?);
    let ended_ = ended.clone();
    spawn("stdin-to-stream", move || {
        let result = copy(&mut io::stdin().lock(), &mut &sender).and_then(|()| Duplex::finish(&sender));
        let _ = ended_.send(Ended::Sending(result));
    })?;
    spawn("stream-to-stdout", move || {
        let result = copy(&mut &receiver, &mut io::stdout().lock());
        let _ = ended.send(Ended::Receiving(result));
    })?;
    let (mut sending, mut receiving, mut ended_by_peer) = (true, true, false);
    while sending || receiving {
        if context.stop.requested() {
            return Err(CliError::interrupted());
        }
        match endings.recv_timeout(Duration::from_millis(100)) {
            Ok(Ended::Sending(result)) => {
                sending = false;
                result.map_err(|error| CliError::stream("send", &error))?;
            }
            Ok(Ended::Receiving(result)) => {
                receiving = false;
                match result {
                    // The reader of our output is gone: nothing more to do for it.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                    other => other.map_err(|error| CliError::stream("receive", &error))?,
                }
                ended_by_peer = true;
                // Standard output stays open until the process ends, as with nc: say it this way.
                context.output.event(&json!({ "event": "peer_finished" }));
                // A person at a terminal does not expect to have to end the input by hand.
                if io::stdin().is_terminal() {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // Both directions may be over here while our last bytes are still under way.
    match stream.wait_flushed(FLUSH_TIMEOUT) {
        // Reference peers end both directions, and acknowledge nothing once their application has gone.
        Err(error) if ended_by_peer && error.kind() == io::ErrorKind::ConnectionReset => {
            context.output.note("the peer closed without confirming the last bytes");
        }
        result => result.map_err(|error| CliError::stream("send", &error))?,
    }
    node.close();
    Ok(())
}

/// Copies until the end; every read is passed on at once.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buf = vec![0; BUFFER];
    loop {
        let len = match from.read(&mut buf) {
            Ok(0) => return to.flush(),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&buf[..len])?;
        to.flush()?;
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), CliError> {
    thread::Builder::new().name(name.into()).spawn(run).map(drop).map_err(|error| {
        CliError::failure("start", format!("no thread: {error}"), "check the limits of this process")
    })
}
