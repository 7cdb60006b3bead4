//! Joins two byte streams: what one says the other hears, and the end of each direction separately.

use std::io;
use std::thread;

use crate::Duplex;

/// Bytes held for each direction.
pub const BUFFER: usize = 64 << 10;

/// What went through.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes from the first to the second.
    pub sent: u64,
    /// Bytes from the second to the first.
    pub received: u64,
    /// Why it broke, if it did not end in order.
    pub error: Option<io::Error>,
}

/// Moves bytes both ways until both directions have ended, or one breaks: then both streams are given up.
///
/// Uses one more thread.
pub fn join(first: &dyn Duplex, second: &dyn Duplex) -> Traffic {
    let mut traffic = Traffic::default();
    // Small messages of one side should not wait for the other's acknowledgement.
    let _ = first.set_nodelay(true);
    let _ = second.set_nodelay(true);
    thread::scope(|scope| {
        let back =
            thread::Builder::new().name("gateway-back".into()).spawn_scoped(scope, || copy(second, first));
        let back = match back {
            Ok(back) => back,
            Err(error) => {
                first.abort();
                second.abort();
                traffic.error = Some(error);
                return;
            }
        };
        let (sent, there) = copy(first, second);
        traffic.sent = sent;
        let (received, here) =
            back.join().unwrap_or((0, Err(io::Error::other("the relay ended unexpectedly"))));
        traffic.received = received;
        traffic.error = first_cause(there, here);
    });
    traffic
}

/// The direction that broke first gave up both streams, so the other one reports only a consequence: `ConnectionAborted`
/// and the like. Which one that was is not known, so the more telling error is taken.
fn first_cause(there: io::Result<()>, here: io::Result<()>) -> Option<io::Error> {
    let consequence = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted
        )
    };
    match (there.err(), here.err()) {
        (Some(there), Some(here)) if consequence(&there) => Some(here),
        (Some(there), _) => Some(there),
        (None, here) => here,
    }
}

fn copy(from: &dyn Duplex, to: &dyn Duplex) -> (u64, io::Result<()>) {
    let mut total = 0;
    let result = copy_counted(from, to, &mut total);
    if result.is_err() {
        from.abort();
        to.abort();
    }
    (total, result)
}

fn copy_counted(from: &dyn Duplex, to: &dyn Duplex, total: &mut u64) -> io::Result<()> {
    let mut buf = vec![0; BUFFER];
    loop {
        let len = match from.read(&mut buf) {
            Ok(0) => return to.finish(),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        write_all(to, &buf[..len])?;
        *total += len as u64;
    }
}

/// Writes everything; a stream that takes nothing is broken.
pub(super) fn write_all(to: &dyn Duplex, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match to.write(data) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => data = data.get(len..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duplex::testing::pair;
    use std::io::{Read, Write};
    use std::net::Shutdown;

    #[test]
    fn each_direction_ends_for_itself() {
        let ((mut client, near), (far, mut server)) = (pair(), pair());
        let joined = thread::spawn(move || join(&near, &far));
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "question", "and the end, while the other direction is open");
        server.write_all(b"late answer").unwrap();
        drop(server);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "late answer");
        let traffic = joined.join().unwrap();
        assert_eq!((traffic.sent, traffic.received), (8, 11));
        assert!(traffic.error.is_none(), "{:?}", traffic.error);
    }

    #[test]
    fn a_broken_side_breaks_the_other() {
        let ((mut client, near), (far, server)) = (pair(), pair());
        let joined = thread::spawn(move || join(&near, &far));
        // Unread bytes make the kernel send a reset.
        client.write_all(b"unread").unwrap();
        while server.peek(&mut [0; 8]).unwrap() == 0 {}
        drop(server);
        assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0);
        assert!(joined.join().unwrap().error.is_some());
    }
}
