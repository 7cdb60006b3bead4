//! Receiving side of the data exchange.

use std::io::{self, Read, Write};
use std::time::Duration;

use super::BUFFER;
use super::inbox::{Inbox, Stored};
use super::wire::{self, Answer, HEADER, Header, Kind};
use crate::duplex::{Duplex, Io};

/// How long a stream may be silent between two frames.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long it may be silent inside a frame.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves one stream until the sender ends it; returns the frames that were taken. `stored` hears of each.
///
/// A frame that cannot be stored is read to its end and answered with `ERR`, and the stream goes on.
///
/// # Errors
/// The stream fails, ends inside a frame, or announces a frame above 16 MiB: that one is answered and ends the stream,
/// as nobody knows where the next one begins.
pub fn serve<D: Duplex + ?Sized>(
    stream: &D,
    inbox: &Inbox,
    peer: &str,
    stored: &mut dyn FnMut(Stored),
) -> io::Result<u64> {
    stream.set_nodelay(true)?;
    let mut taken = 0;
    while let Some(header) = next_header(stream)? {
        let header = match Header::decode(header) {
            Ok(header) => header,
            Err(error) => {
                Io(stream).write_all(&Answer::Refused(error.to_string()).encode())?;
                stream.finish()?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        };
        stream.set_read_timeout(Some(FRAME_TIMEOUT))?;
        let answer = match take(stream, inbox, header, peer)? {
            Ok(item) => {
                let answer = Answer::ack(header.kind, item.bytes);
                stored(item);
                taken += 1;
                answer
            }
            Err(why) => Answer::not_saved(header.kind, &why),
        };
        Io(stream).write_all(&answer.encode())?;
    }
    stream.finish()?;
    Ok(taken)
}

/// The next header; `None` at the end of the stream.
fn next_header<D: Duplex + ?Sized>(stream: &D) -> io::Result<Option<[u8; HEADER]>> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let mut header = [0; HEADER];
    let mut filled = 0;
    while filled < HEADER {
        match stream.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(header))
}

/// Reads one payload to its end. The inner error is for the sender.
fn take<D: Duplex + ?Sized>(
    stream: &D,
    inbox: &Inbox,
    header: Header,
    peer: &str,
) -> io::Result<Result<Stored, String>> {
    let (name, left) = match header.kind {
        Kind::File => match file_name(stream, header.length)? {
            Ok((name, left)) => (Some(name), left),
            Err((why, left)) => {
                copy(stream, left, &mut |_| {})?;
                return Ok(Err(why));
            }
        },
        _ => (None, header.length.into()),
    };
    let mut draft = inbox.begin(header.kind, name);
    copy(stream, left, &mut |data| {
        if let Ok(open) = &mut draft
            && let Err(error) = open.write(data)
        {
            draft = Err(error);
        }
    })?;
    Ok(draft.and_then(|draft| draft.commit(peer)).map_err(|error| error.public_text()))
}

/// The name of a file frame, and how many bytes of data follow; on a bad name, why, and how many bytes to skip.
type Named = Result<(String, u64), (String, u64)>;

fn file_name<D: Duplex + ?Sized>(stream: &D, length: u32) -> io::Result<Named> {
    if length < 2 {
        return Ok(Err(("the frame has no name".into(), length.into())));
    }
    let mut bytes = [0; 2];
    Io(stream).read_exact(&mut bytes)?;
    let (name_length, data) = match wire::file_lengths(length, bytes) {
        Ok(lengths) => lengths,
        Err(error) => return Ok(Err((error.to_string(), u64::from(length) - 2))),
    };
    let mut name = vec![0; name_length];
    Io(stream).read_exact(&mut name)?;
    Ok(String::from_utf8(name).map(|name| (name, data)).map_err(|_| ("the name is not UTF-8".into(), data)))
}

/// Reads exactly `left` bytes, in pieces.
fn copy<D: Duplex + ?Sized>(stream: &D, mut left: u64, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut buf = vec![0; usize::try_from(left).unwrap_or(BUFFER).min(BUFFER)];
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        match stream.read(&mut buf[..wanted]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                each(&buf[..len]);
                left -= len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
