//! Nameserver, port 53 (spec/services.md §8): names for addresses, networks and services, for five minutes at a time.
//!
//! [`serve`] answers from a [`Table`]; [`ask`] is the client. An address is registered by its own node only.

mod table;
mod wire;

use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pilotage_wire::Address;

pub use table::{LIFE, MAX_PER_NODE, MAX_RECORDS, Table};
pub use wire::{MAX_NAME, MAX_PROVIDERS, MAX_REPLY, MAX_REQUEST, Provider, Reply, Request, WireError};

use crate::duplex::{Duplex, Io};

/// The port that serves it.
pub const PORT: u16 = 53;

/// The request must come within this time, and so must the reply.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A text that is no request yet may go on for so long: nothing marks its end.
const REST_TIMEOUT: Duration = Duration::from_millis(300);

/// Serves one stream of `peer`, the address that the tunnel proved: one request, one reply.
///
/// # Errors
/// The stream fails.
pub fn serve<D: Duplex + ?Sized>(stream: &D, table: &Mutex<Table>, peer: Address) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let reply = match read_request(stream)? {
        Ok(request) => {
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            table.answer(peer, &request, Instant::now())
        }
        Err(error) => Reply::Error(error.to_string()),
    };
    // One write, so that it is one segment where it fits.
    Io(stream).write_all(reply.to_string().as_bytes())?;
    stream.finish()
}

/// Requests end nowhere: what came in the first segment is one, or its beginning.
fn read_request<D: Duplex + ?Sized>(stream: &D) -> io::Result<Result<Request, WireError>> {
    let mut text = vec![0; MAX_REQUEST];
    let mut len = 0;
    loop {
        match stream.read(&mut text[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if len > 0 && is_timeout(&error) => break,
            Err(error) => return Err(error),
        }
        if len == MAX_REQUEST || text[..len].contains(&b'\n') || Request::parse(&text[..len]).is_ok() {
            break;
        }
        stream.set_read_timeout(Some(REST_TIMEOUT))?;
    }
    Ok(Request::parse(&text[..len]))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// Asks the server at the other end of a fresh stream.
///
/// # Errors
/// The stream fails, ends without an answer, or the answer is not understood (`InvalidData`).
pub fn ask<D: Duplex + ?Sized>(stream: &D, request: &Request) -> io::Result<Reply> {
    let invalid = |error: WireError| io::Error::new(io::ErrorKind::InvalidData, error);
    let text = request.to_string();
    // A name with a blank in it would be another request.
    if Request::parse(text.as_bytes()).map_err(invalid)? != *request {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name cannot contain white space"));
    }
    stream.set_nodelay(true)?;
    Io(stream).write_all(text.as_bytes())?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // Our direction stays open: for old peers its end would be the end of both.
    let mut reply = Vec::new();
    Io(stream).take(MAX_REPLY as u64 + 1).read_to_end(&mut reply)?;
    if reply.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Reply::parse(&reply).map_err(invalid)
}

#[cfg(test)]
mod tests;
