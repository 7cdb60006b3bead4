//! A small server of HTTP/1.1 for the hub's own pages and metrics: GET only, one answer per connection.
//!
//! Bounds: [`MAX_CONNECTIONS`] at a time, of which [`MAX_STREAMS`] may be streams of events; [`MAX_HEAD`] bytes and
//! [`MAX_FIELDS`] fields of a request, within [`PATIENCE`]; a reader that takes nothing for as long is cut; a stream ends after
//! [`STREAM_LIFE`] (browsers begin it anew).
//!
//! A page of somewhere else must not read this one through a name that it makes lead here: on a loopback address only
//! requests for `localhost` or a loopback address are answered.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::CliError;
use crate::stop::Stop;

/// Connections at a time; further ones are closed.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// Streams of events at a time.
pub(super) const MAX_STREAMS: usize = 16;
/// Longest request.
pub(super) const MAX_HEAD: usize = 8 * 1024;
/// Most fields of a request.
const MAX_FIELDS: usize = 64;
/// How long a request, or one step of an answer, may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a stream of events lasts.
const STREAM_LIFE: Duration = Duration::from_secs(3_600);
/// How often a stream says something, so that both sides see that the other is there.
const BEAT: Duration = Duration::from_secs(15);

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// Without what stands behind a question mark.
    pub(super) path: String,
    /// Number of the last event that was seen, by a stream that begins anew.
    pub(super) last_event: Option<u64>,
    /// HEAD: everything but the body.
    head_only: bool,
}

/// An answer.
pub(super) enum Response {
    /// Type and body.
    Whole(&'static str, Vec<u8>),
    /// Events: called with the number of the last one and how long to wait for another; gives those after it.
    Events(EventSource),
    /// There is no such page.
    NotFound,
}

/// Events after a number: each with its own number and one line of JSON.
pub(super) type EventSource = Arc<dyn Fn(Option<u64>, Duration) -> Vec<(u64, String)> + Send + Sync>;

/// Answers requests.
pub(super) type Site = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

/// Listens; addresses that others reach only if the operator says so.
pub(super) fn listen(what: &'static str, at: SocketAddr, anywhere: bool) -> Result<TcpListener, CliError> {
    if !at.ip().is_loopback() && !anywhere {
        let next =
            "use 127.0.0.1:PORT, and a proxy that asks who they are for others; or add --http-anywhere";
        return Err(CliError::usage(
            what,
            format!("others could read {at}: it asks nobody who they are"),
            next,
        ));
    }
    TcpListener::bind(at).map_err(|error| {
        CliError::failure(what, format!("TCP {at}: {error}"), "choose another port, or 0 for any")
    })
}

/// Serves until the process ends.
pub(super) fn serve(listener: TcpListener, stop: Stop, site: Site) -> io::Result<SocketAddr> {
    let local = listener.local_addr()?;
    let open = Arc::new(Open::default());
    thread::Builder::new().name("http".into()).spawn(move || {
        for stream in listener.incoming() {
            if stop.requested() {
                return;
            }
            let Ok(stream) = stream else {
                // Out of file descriptors, most likely: do not spin.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            let Some(seat) = Seat::take(&open, Place::Connection) else { continue };
            let (site, stop, open) = (site.clone(), stop.clone(), open.clone());
            let run = move || {
                let _seat = seat;
                let _ = converse(&stream, local.ip(), &*site, &open, &stop);
            };
            let _ = thread::Builder::new().name("http-client".into()).spawn(run);
        }
    })?;
    Ok(local)
}

#[derive(Default)]
struct Open {
    connections: AtomicUsize,
    streams: AtomicUsize,
}

#[derive(Clone, Copy)]
enum Place {
    Connection,
    Stream,
}

/// Gives the place back when it is dropped.
struct Seat(Arc<Open>, Place);

impl Seat {
    fn take(open: &Arc<Open>, place: Place) -> Option<Self> {
        let (count, most) = Self::of(open, place);
        if count.fetch_add(1, Ordering::AcqRel) >= most {
            count.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Self(open.clone(), place))
    }

    fn of(open: &Open, place: Place) -> (&AtomicUsize, usize) {
        match place {
            Place::Connection => (&open.connections, MAX_CONNECTIONS),
            Place::Stream => (&open.streams, MAX_STREAMS),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        Self::of(&self.0, self.1).0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why a request gets no page: number and words of the status.
type Wrong = (u16, &'static str);

fn converse(
    stream: &TcpStream,
    local: IpAddr,
    site: &(dyn Fn(&Request) -> Response + Send + Sync),
    open: &Arc<Open>,
    stop: &Stop,
) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let request = match read_head(stream)?.map(|head| understand(&head, local)) {
        Some(Ok(request)) => request,
        Some(Err((status, words))) => {
            return write_whole(stream, status, words, "text/plain", words.as_bytes(), false);
        }
        None => return Ok(()),
    };
    match site(&request) {
        Response::Whole(kind, body) => write_whole(stream, 200, "OK", kind, &body, request.head_only),
        Response::NotFound => {
            write_whole(stream, 404, "Not Found", "text/plain", b"Not Found", request.head_only)
        }
        Response::Events(_) if request.head_only => {
            write_whole(stream, 200, "OK", "text/event-stream", b"", true)
        }
        Response::Events(source) => match Seat::take(open, Place::Stream) {
            Some(_seat) => write_events(stream, &*source, request.last_event, stop),
            None => write_whole(stream, 503, "Service Unavailable", "text/plain", b"too many streams", false),
        },
    }
}

/// Up to the empty line; `None` if nothing was asked.
fn read_head(mut stream: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let deadline = Instant::now() + PATIENCE;
    let (mut head, mut part) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let count = stream.read(&mut part)?;
        if count == 0 {
            return Ok(None);
        }
        head.extend_from_slice(&part[..count]);
        if head.len() > MAX_HEAD {
            break;
        }
    }
    Ok(Some(head))
}

/// What a request asks for.
fn understand(head: &[u8], local: IpAddr) -> Result<Request, Wrong> {
    if head.len() > MAX_HEAD {
        return Err((431, "Request Header Fields Too Large"));
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err((431, "Request Header Fields Too Large")),
        _ => return Err((400, "Bad Request")),
    }
    let head_only = match parsed.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err((405, "Method Not Allowed")),
    };
    let field = |name: &str| {
        let found = parsed.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        found.and_then(|field| std::str::from_utf8(field.value).ok())
    };
    if local.is_loopback() && !field("host").is_some_and(is_here) {
        return Err((421, "Misdirected Request"));
    }
    let path = parsed.path.unwrap_or("/").split('?').next().unwrap_or("/").to_owned();
    Ok(Request { path, last_event: field("last-event-id").and_then(|id| id.trim().parse().ok()), head_only })
}

/// Whether a host's name can only mean this machine.
fn is_here(host: &str) -> bool {
    let host = host.trim();
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, _)) => inside,
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What every answer says: no script but ours, no frame, nothing kept.
const FIELDS: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
Cross-Origin-Resource-Policy: same-origin\r\nCache-Control: no-store\r\nConnection: close\r\n";

fn write_whole(
    mut stream: &TcpStream,
    status: u16,
    words: &str,
    kind: &str,
    body: &[u8],
    head_only: bool,
) -> io::Result<()> {
    let allow = if status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status} {words}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\n{allow}{FIELDS}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    if !head_only {
        stream.write_all(body)?;
    }
    stream.flush()?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // What the other side has still on its way would make the kernel cut our answer short.
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let _ = stream.read(&mut [0; 1024]);
    Ok(())
}

fn write_events(
    mut stream: &TcpStream,
    source: &(dyn Fn(Option<u64>, Duration) -> Vec<(u64, String)> + Send + Sync),
    mut last: Option<u64>,
    stop: &Stop,
) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n{FIELDS}\r\n: begins\n\n"
    );
    stream.write_all(head.as_bytes())?;
    let begun = Instant::now();
    while begun.elapsed() < STREAM_LIFE && !stop.requested() {
        let events = source(last, BEAT);
        if events.is_empty() {
            stream.write_all(b": still here\n\n")?;
        }
        for (number, line) in events {
            stream.write_all(format!("id: {number}\ndata: {line}\n\n").as_bytes())?;
            last = Some(number);
        }
        stream.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_request_is_understood_or_named_wrong() {
        let ask = |text: &str| understand(text.as_bytes(), HERE);
        let good =
            ask("GET /api/events?x=1 HTTP/1.1\r\nHost: localhost:80\r\nLast-Event-ID: 7\r\n\r\n").unwrap();
        assert_eq!((good.path.as_str(), good.last_event, good.head_only), ("/api/events", Some(7), false));
        assert!(ask("HEAD / HTTP/1.0\r\nHost: [::1]:80\r\n\r\n").unwrap().head_only);
        for (text, status) in [
            ("POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
            ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
            ("GET / HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n\r\n", 421),
            ("GET / HTTP/1.1\r\n\r\n", 421),
            ("nonsense\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: localhost\r\n", 400),
        ] {
            assert_eq!(ask(text).unwrap_err().0, status, "{text}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(ask(&many).unwrap_err().0, 431);
        assert_eq!(ask(&"x".repeat(MAX_HEAD + 1)).unwrap_err().0, 431);
        // Where others may come from, they come under any name.
        assert!(
            understand(b"GET / HTTP/1.1\r\nHost: hub.example\r\n\r\n", "192.0.2.1".parse().unwrap()).is_ok()
        );
    }

    #[test]
    fn others_are_not_let_in_by_accident() {
        assert!(listen("web", "0.0.0.0:0".parse().unwrap(), false).is_err());
        assert!(listen("web", "127.0.0.1:0".parse().unwrap(), false).is_ok());
    }

    #[test]
    fn the_bounds_hold() {
        let open = Arc::new(Open::default());
        let seats: Vec<Seat> = (0..MAX_STREAMS).filter_map(|_| Seat::take(&open, Place::Stream)).collect();
        assert_eq!(seats.len(), MAX_STREAMS);
        assert!(Seat::take(&open, Place::Stream).is_none());
        drop(seats);
        assert!(Seat::take(&open, Place::Stream).is_some());
        let all: Vec<Option<Seat>> =
            (0..=MAX_CONNECTIONS).map(|_| Seat::take(&open, Place::Connection)).collect();
        assert_eq!(all.iter().filter(|seat| seat.is_some()).count(), MAX_CONNECTIONS);
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = understand(&bytes, HERE);
            let mut with = b"GET ".to_vec();
            with.extend(bytes);
            with.extend(b"\r\n\r\n");
            let _ = understand(&with, HERE);
        }
    }
}
