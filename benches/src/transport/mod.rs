//! The transports behind one small set of traits, so that every work is written once.
//!
//! A work is an async function over [`Client`], [`Link`] and [`Stream`]. Transports with an event loop of their
//! own kind (quinn, s2n-quic) run it on a single-threaded tokio runtime. Those with blocking calls (TCP, TLS, Pilotage)
//! can also run it on plain threads: their streams are wrapped in [`Blocking`], which is always ready after the
//! call returned, so nothing ever waits in a scheduler. [`Api`] says which of the two is used.

pub mod exec;
pub mod pilotage;
pub mod quinn;
pub mod s2n;
pub mod tcp;
pub mod tls;
pub mod udp;

use std::future::Future;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::Failure;
use crate::settings::{Api, Congestion};
use crate::subject::{Family, Subject};
use crate::work::Outcome;
use exec::Exec;

/// UDP payload of the 1,500-byte-MTU subjects (1,500 less the headers of IPv4 and UDP, and 20 for a tunnel around).
pub const ETHERNET_PAYLOAD: u16 = 1_452;
/// Socket buffers asked for by the tuned QUIC subjects, in bytes.
pub const SOCKET_BUFFER: usize = 4 << 20;
/// Stream window of the tuned QUIC subjects, in bytes.
pub const QUIC_STREAM_WINDOW: u32 = 32 << 20;
/// Connection window and send window of the tuned QUIC subjects, in bytes.
pub const QUIC_CONNECTION_WINDOW: u32 = 64 << 20;

/// What one side of a run needs to know.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Who runs.
    pub subject: Subject,
    /// Blocking calls or tokio, for those that have both.
    pub api: Api,
    /// Where the server listens, TCP and UDP.
    pub server: SocketAddr,
    /// A free UDP address for the client.
    pub client: SocketAddr,
    /// Where the server leaves its certificate.
    pub scratch: PathBuf,
    /// Congestion control of the Pilotage subjects.
    pub congestion: Congestion,
    /// Streams of one connection or tunnel that must fit at once; 0 leaves the limits of the transport alone.
    pub many_streams: u32,
}

/// A reliable stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Writes bytes that stay in memory anyway. Transports whose interface takes counted references use it.
    fn write_bytes(&mut self, bytes: Bytes) -> impl Future<Output = io::Result<()>> + Send {
        async move { self.write_all(&bytes).await }
    }
}

/// A connection (QUIC), a tunnel (Pilotage), or nothing but an address (TCP, TLS).
pub trait Link: Send + Sync + 'static {
    /// Its streams.
    type Stream: Stream;

    /// A new stream. QUIC announces it to the server only with the first bytes.
    fn open(&self) -> impl Future<Output = Result<Self::Stream, Failure>> + Send;

    /// What the transport says about itself.
    fn note(&self) -> String {
        String::new()
    }
}

/// The side that begins.
pub trait Client: Send + Sync + 'static {
    /// What it makes.
    type Link: Link;

    /// Forgets everything about the server and opens fresh sockets: the next [`Client::dial`] is a cold contact.
    fn fresh(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// A new link.
    fn dial(&self) -> impl Future<Output = Result<Self::Link, Failure>> + Send;
}

/// What the server does with a stream.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Serves one stream to its end.
    fn handle<S: Stream>(&self, stream: S) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// What the client does; generic over the transport.
pub trait Job: Send + 'static {
    /// Does it.
    fn run<C: Client>(self, client: C, exec: Exec) -> impl Future<Output = Result<Outcome, Failure>> + Send;
}

/// Tells the parent that the server listens.
#[derive(Debug)]
pub struct Announce(pub(crate) Option<std::sync::mpsc::Sender<()>>);

impl Announce {
    /// The client may be started.
    pub fn ready(self) -> Result<(), Failure> {
        match self.0 {
            Some(waiting) => Ok(waiting.send(())?),
            None => Ok(()),
        }
    }
}

/// Serves streams until the process ends.
pub fn serve<H: Handler>(setup: &Setup, announce: Announce, handler: &H) -> Result<(), Failure> {
    match setup.subject.family() {
        Family::Tcp => tcp::serve(setup, announce, handler),
        Family::Tls => tls::serve(setup, announce, handler),
        Family::Quinn => quinn::serve(setup, announce, handler),
        Family::S2n => s2n::serve(setup, announce, handler),
        Family::Pilotage => pilotage::serve(setup, announce, handler),
        Family::Ceiling | Family::Reference => Err("this subject has no streams of ours".into()),
    }
}

/// Runs the client's part.
pub fn drive<J: Job>(setup: &Setup, job: J) -> Result<Outcome, Failure> {
    match setup.subject.family() {
        Family::Tcp => tcp::drive(setup, job),
        Family::Tls => tls::drive(setup, job),
        Family::Quinn => quinn::drive(setup, job),
        Family::S2n => s2n::drive(setup, job),
        Family::Pilotage => pilotage::drive(setup, job),
        Family::Ceiling | Family::Reference => Err("this subject has no streams of ours".into()),
    }
}

/// A stream with blocking calls in the dress of an async one: ready as soon as the call has returned.
#[derive(Debug)]
pub struct Blocking<S>(pub S);

impl<S: Read + Write + Unpin + Send + 'static> Stream for Blocking<S> {}

impl<S: Read + Unpin> AsyncRead for Blocking<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.0.read(buffer.initialize_unfilled());
        Poll::Ready(read.map(|count| buffer.advance(count)))
    }
}

impl<S: Write + Unpin> AsyncWrite for Blocking<S> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.write(bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // No work ends one direction alone.
        Poll::Ready(Ok(()))
    }
}

/// A local address to send to `server` from.
pub(crate) fn local_for(server: SocketAddr) -> SocketAddr {
    match server {
        SocketAddr::V4(_) if server.ip().is_loopback() => ([127, 0, 0, 1], 0).into(),
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}
