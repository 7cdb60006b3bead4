//! QUIC: quinn.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, EndpointConfig, RecvStream, SendStream, TokioRuntime, TransportConfig};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::runtime::{Handle, Runtime};

use super::{CONNECTION_WINDOW, Client, Duplex, Place, SOCKET_BUFFER, STREAM_WINDOW, Server, runtime, tls};
use crate::Failure;
use crate::links::options::{Controller, Peer};

fn transport(peer: Peer) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    match peer.controller {
        Controller::Bbr => config.congestion_controller_factory(Arc::new(BbrConfig::default())),
        _ => config.congestion_controller_factory(Arc::new(CubicConfig::default())),
    };
    if peer.tuned {
        config
            .stream_receive_window(STREAM_WINDOW.into())
            .receive_window(CONNECTION_WINDOW.into())
            .send_window(CONNECTION_WINDOW.into());
    }
    Arc::new(config)
}

fn socket(peer: Peer, at: SocketAddr) -> Result<std::net::UdpSocket, Failure> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    if peer.tuned {
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
    }
    socket.bind(&SockAddr::from(at))?;
    Ok(socket.into())
}

struct QuinnStream {
    runtime: Handle,
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

impl Read for QuinnStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.runtime.block_on(self.recv.read(buffer)).map_err(io::Error::other)?;
        Ok(read.unwrap_or(0))
    }
}

impl Write for QuinnStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.runtime.block_on(self.send.write(bytes)).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Duplex for QuinnStream {
    fn note(&self) -> String {
        let path = self.connection.stats().path;
        format!("datagram {} B, sent {}, lost {}", path.current_mtu, path.sent_packets, path.lost_packets)
    }
}

struct QuinnServer {
    runtime: Runtime,
    streams: tokio::sync::mpsc::UnboundedReceiver<QuinnStream>,
}

impl Server for QuinnServer {
    fn accept(&mut self) -> Result<Box<dyn Duplex>, Failure> {
        let stream = self.runtime.block_on(self.streams.recv()).ok_or("accept: the endpoint was closed")?;
        Ok(Box::new(stream))
    }
}

pub(super) fn server(peer: Peer, place: &Place) -> Result<Box<dyn Server>, Failure> {
    let crypto = QuicServerConfig::try_from(tls::server(&place.scratch, true)?)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport(peer));
    let (runtime, socket) = (runtime()?, socket(peer, place.server)?);
    let (give, streams) = tokio::sync::mpsc::unbounded_channel();
    let handle = runtime.handle().clone();
    let inside = runtime.enter();
    let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))?;
    drop(inside);
    runtime.spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            // A connection that does not come about is the client's to report.
            let Ok(connection) = incoming.await else { continue };
            while let Ok((send, recv)) = connection.accept_bi().await {
                let stream =
                    QuinnStream { runtime: handle.clone(), connection: connection.clone(), send, recv };
                if give.send(stream).is_err() {
                    return;
                }
            }
        }
    });
    Ok(Box::new(QuinnServer { runtime, streams }))
}

struct QuinnClient {
    runtime: Runtime,
    endpoint: Endpoint,
    server: SocketAddr,
    connection: Mutex<Option<Connection>>,
}

impl Client for QuinnClient {
    fn open(&self) -> Result<Box<dyn Duplex>, Failure> {
        let mut kept = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = match &*kept {
            Some(connection) => connection.clone(),
            None => {
                // Its timers need the runtime, from the first call on.
                let begin =
                    async { Ok::<_, Failure>(self.endpoint.connect(self.server, "localhost")?.await?) };
                let connection = self.runtime.block_on(begin)?;
                kept.insert(connection).clone()
            }
        };
        drop(kept);
        let (send, recv) = self.runtime.block_on(connection.open_bi())?;
        Ok(Box::new(QuinnStream { runtime: self.runtime.handle().clone(), connection, send, recv }))
    }
}

pub(super) fn client(peer: Peer, place: &Place) -> Result<Box<dyn Client>, Failure> {
    let crypto = QuicClientConfig::try_from(tls::client(&place.scratch, true)?)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(peer));
    let (runtime, socket) = (runtime()?, socket(peer, SocketAddr::from(([0, 0, 0, 0], 0)))?);
    let endpoint = {
        let _inside = runtime.enter();
        let mut endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
        endpoint.set_default_client_config(config);
        endpoint
    };
    Ok(Box::new(QuinnClient { runtime, endpoint, server: place.server, connection: Mutex::new(None) }))
}
