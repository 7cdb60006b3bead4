//! Kernel TCP, and TLS over it.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Client, Duplex, Place, Server, tls};
use crate::Failure;
use crate::links::options::Peer;

/// Plaintext that rustls may hold before it must write to the socket, in bytes.
const TLS_BUFFER: usize = 256 << 10;

impl Duplex for TcpStream {}
impl Duplex for StreamOwned<ClientConnection, TcpStream> {}
impl Duplex for StreamOwned<ServerConnection, TcpStream> {}

fn socket(peer: Peer) -> Result<Socket, Failure> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    let name = peer.controller.name();
    socket
        .set_tcp_congestion(name.as_bytes())
        .map_err(|e| format!("TCP congestion control `{name}`: {e}"))?;
    Ok(socket)
}

/// Accepted sockets inherit the controller.
fn listen(peer: Peer, place: &Place) -> Result<TcpListener, Failure> {
    let socket = socket(peer)?;
    socket.bind(&SockAddr::from(place.server))?;
    socket.listen(64)?;
    Ok(socket.into())
}

fn connect(peer: Peer, place: &Place) -> Result<TcpStream, Failure> {
    let socket = socket(peer)?;
    socket.set_tcp_nodelay(true)?;
    socket.connect(&SockAddr::from(place.server))?;
    Ok(socket.into())
}

struct TcpServer(TcpListener);

impl Server for TcpServer {
    fn accept(&mut self) -> Result<Box<dyn Duplex>, Failure> {
        let (stream, _) = self.0.accept()?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

pub(super) fn tcp_server(peer: Peer, place: &Place) -> Result<Box<dyn Server>, Failure> {
    Ok(Box::new(TcpServer(listen(peer, place)?)))
}

struct TcpClient(Peer, Place);

impl Client for TcpClient {
    fn open(&self) -> Result<Box<dyn Duplex>, Failure> {
        Ok(Box::new(connect(self.0, &self.1)?))
    }
}

pub(super) fn tcp_client(peer: Peer, place: &Place) -> Box<dyn Client> {
    Box::new(TcpClient(peer, place.clone()))
}

struct TlsServer(TcpListener, Arc<ServerConfig>);

impl Server for TlsServer {
    fn accept(&mut self) -> Result<Box<dyn Duplex>, Failure> {
        let (stream, _) = self.0.accept()?;
        stream.set_nodelay(true)?;
        let mut connection = ServerConnection::new(self.1.clone())?;
        connection.set_buffer_limit(Some(TLS_BUFFER));
        Ok(Box::new(StreamOwned::new(connection, stream)))
    }
}

pub(super) fn tls_server(peer: Peer, place: &Place) -> Result<Box<dyn Server>, Failure> {
    let config = Arc::new(tls::server(&place.scratch, false)?);
    Ok(Box::new(TlsServer(listen(peer, place)?, config)))
}

struct TlsClient(Peer, Place, Arc<ClientConfig>);

impl Client for TlsClient {
    fn open(&self) -> Result<Box<dyn Duplex>, Failure> {
        let stream = connect(self.0, &self.1)?;
        let mut connection = ClientConnection::new(self.2.clone(), ServerName::try_from("localhost")?)?;
        connection.set_buffer_limit(Some(TLS_BUFFER));
        Ok(Box::new(StreamOwned::new(connection, stream)))
    }
}

pub(super) fn tls_client(peer: Peer, place: &Place) -> Result<Box<dyn Client>, Failure> {
    let config = Arc::new(tls::client(&place.scratch, false)?);
    Ok(Box::new(TlsClient(peer, place.clone(), config)))
}
