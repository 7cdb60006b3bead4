//! Kernel TCP with blocking sockets; also the carrier of the TLS contender.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::Failure;
use crate::exchange::{ClientResult, Payload, ServerResult, Sink, run_client, run_server};
use crate::runner::Announce;
use crate::settings::Options;

/// A listening socket with the congestion control of the options (accepted sockets inherit it).
pub fn listen(options: &Options, addr: SocketAddr) -> Result<TcpListener, Failure> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    set_congestion(&socket, options)?;
    socket.bind(&SockAddr::from(addr))?;
    socket.listen(8)?;
    Ok(socket.into())
}

/// A connected socket with the congestion control of the options.
pub fn connect(options: &Options, addr: SocketAddr) -> Result<TcpStream, Failure> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    set_congestion(&socket, options)?;
    socket.connect(&SockAddr::from(addr))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

fn set_congestion(socket: &Socket, options: &Options) -> Result<(), Failure> {
    socket
        .set_tcp_congestion(options.tcp_congestion.as_bytes())
        .map_err(|e| format!("TCP congestion control `{}`: {e}", options.tcp_congestion).into())
}

/// The receiver.
pub fn server(options: &Options, addr: SocketAddr, announce: Announce) -> Result<ServerResult, Failure> {
    let mut sink = Sink::new(options.verify, options.size)?;
    let listener = listen(options, addr)?;
    announce.ready()?;
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    run_server(&mut stream, options, &mut sink)
}

/// The sender.
pub fn client(options: &Options, addr: SocketAddr, payload: &Payload) -> Result<ClientResult, Failure> {
    let started = Instant::now();
    let mut stream = connect(options, addr)?;
    run_client(&mut stream, options, payload, started)
}
