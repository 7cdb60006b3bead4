//! Kernel TCP; also the carrier of TLS.

use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::exec::{Exec, block_on, detach_task, runtime, serve_in_turns};
use super::{Announce, Blocking, Client, Handler, Job, Link, Setup, Stream};
use crate::Failure;
use crate::settings::Api;
use crate::work::Outcome;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4_096;

/// A listening socket (accepted sockets inherit its congestion control).
pub fn listen(addr: SocketAddr, congestion: &str) -> Result<TcpListener, Failure> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    set_congestion(&socket, congestion)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(addr))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A connected socket.
pub fn connect(addr: SocketAddr, congestion: &str) -> Result<TcpStream, Failure> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    set_congestion(&socket, congestion)?;
    socket.connect(&SockAddr::from(addr))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

fn set_congestion(socket: &Socket, congestion: &str) -> Result<(), Failure> {
    socket
        .set_tcp_congestion(congestion.as_bytes())
        .map_err(|e| format!("TCP congestion control `{congestion}`: {e}").into())
}

/// Puts a connected socket on the current tokio runtime.
pub fn on_tokio(socket: TcpStream) -> Result<tokio::net::TcpStream, Failure> {
    socket.set_nonblocking(true)?;
    Ok(tokio::net::TcpStream::from_std(socket)?)
}

impl Stream for tokio::net::TcpStream {}

/// Accepts for ever, on threads that take turns.
pub fn accept_all(
    setup: &Setup,
    announce: Announce,
    each: impl Fn(TcpStream) -> Result<(), Failure> + Clone + Send + 'static,
) -> Result<(), Failure> {
    let listener = listen(setup.server, setup.subject.tcp_congestion())?;
    announce.ready()?;
    let accept = move || {
        let (socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        Ok(socket)
    };
    serve_in_turns(accept, each)
}

/// As [`accept_all`], on tokio.
pub async fn accept_all_tokio(
    setup: &Setup,
    announce: Announce,
    mut each: impl FnMut(tokio::net::TcpStream) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let listener = listen(setup.server, setup.subject.tcp_congestion())?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    announce.ready()?;
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        each(socket)?;
    }
}

/// Serves streams until the process ends.
pub fn serve<H: Handler>(setup: &Setup, announce: Announce, handler: &H) -> Result<(), Failure> {
    match setup.api {
        Api::Blocking => {
            let handler = handler.clone();
            accept_all(setup, announce, move |socket| block_on(handler.handle(Blocking(socket))))
        }
        Api::Tokio => runtime()?.block_on(accept_all_tokio(setup, announce, |socket| {
            let handler = handler.clone();
            detach_task(async move { handler.handle(socket).await });
            Ok(())
        })),
    }
}

/// Runs the client's part.
pub fn drive<J: Job>(setup: &Setup, job: J) -> Result<Outcome, Failure> {
    let (server, congestion) = (setup.server, setup.subject.tcp_congestion());
    match setup.api {
        Api::Blocking => block_on(job.run(Plain { server, congestion }, Exec::Threads)),
        Api::Tokio => runtime()?.block_on(job.run(PlainTokio(Plain { server, congestion }), Exec::Tokio)),
    }
}

/// Blocking sockets. A link is nothing but the address: every stream is a connection.
#[derive(Debug, Clone, Copy)]
struct Plain {
    server: SocketAddr,
    congestion: &'static str,
}

impl Client for Plain {
    type Link = Self;

    async fn fresh(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn dial(&self) -> Result<Self, Failure> {
        Ok(*self)
    }
}

impl Link for Plain {
    type Stream = Blocking<TcpStream>;

    async fn open(&self) -> Result<Self::Stream, Failure> {
        connect(self.server, self.congestion).map(Blocking)
    }
}

/// Sockets on tokio.
#[derive(Debug, Clone, Copy)]
struct PlainTokio(Plain);

impl Client for PlainTokio {
    type Link = Self;

    async fn fresh(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn dial(&self) -> Result<Self, Failure> {
        Ok(*self)
    }
}

impl Link for PlainTokio {
    type Stream = tokio::net::TcpStream;

    async fn open(&self) -> Result<Self::Stream, Failure> {
        on_tokio(connect(self.0.server, self.0.congestion)?)
    }
}
