//! QUIC: s2n-quic, with rustls so that suite and key exchange are those of all.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use s2n_quic::client::Connect;
use s2n_quic::connection::Handle as Connection;
use s2n_quic::provider::congestion_controller::{Bbr, Cubic};
use s2n_quic::provider::io::tokio::Provider as Io;
use s2n_quic::provider::limits::Limits;
use s2n_quic::provider::tls::rustls as provider;
use s2n_quic::stream::{BidirectionalStream, ReceiveStream, SendStream};
use s2n_quic::{Client as S2nClient, Server as S2nServer};
use tokio::runtime::{Handle, Runtime};

use super::{CONNECTION_WINDOW, Client, Duplex, Place, SOCKET_BUFFER, STREAM_WINDOW, Server, runtime, tls};
use crate::Failure;
use crate::links::options::{Controller, Peer};

fn limits(peer: Peer) -> Result<Limits, Failure> {
    if !peer.tuned {
        return Ok(Limits::new());
    }
    Ok(Limits::new()
        .with_data_window(CONNECTION_WINDOW.into())?
        .with_bidirectional_local_data_window(STREAM_WINDOW.into())?
        .with_bidirectional_remote_data_window(STREAM_WINDOW.into())?
        .with_max_send_buffer_size(STREAM_WINDOW)?)
}

fn io_at(peer: Peer, at: SocketAddr) -> Result<Io, Failure> {
    let mut builder = Io::builder().with_receive_address(at)?;
    if peer.tuned {
        builder = builder
            .with_max_mtu(1_500)?
            .with_send_buffer_size(SOCKET_BUFFER)?
            .with_recv_buffer_size(SOCKET_BUFFER)?;
    }
    Ok(builder.build()?)
}

struct S2nStream {
    runtime: Handle,
    send: SendStream,
    recv: ReceiveStream,
    /// What came and was not read yet.
    rest: Bytes,
}

impl S2nStream {
    fn new(runtime: &Handle, stream: BidirectionalStream) -> Self {
        let (recv, send) = stream.split();
        Self { runtime: runtime.clone(), send, recv, rest: Bytes::new() }
    }
}

impl Read for S2nStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            match self.runtime.block_on(self.recv.receive())? {
                Some(bytes) => self.rest = bytes,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

impl Write for S2nStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.runtime.block_on(self.send.send(Bytes::copy_from_slice(bytes)))?;
        Ok(bytes.len())
    }

    /// Its own waits for the acknowledgement; this one, as with TCP, for nothing.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Duplex for S2nStream {}

struct Waiting {
    runtime: Runtime,
    streams: tokio::sync::mpsc::UnboundedReceiver<BidirectionalStream>,
}

impl Server for Waiting {
    fn accept(&mut self) -> Result<Box<dyn Duplex>, Failure> {
        let stream = self.runtime.block_on(self.streams.recv()).ok_or("accept: the endpoint was closed")?;
        Ok(Box::new(S2nStream::new(self.runtime.handle(), stream)))
    }
}

pub(super) fn server(peer: Peer, place: &Place) -> Result<Box<dyn Server>, Failure> {
    let config = tls::server(&place.scratch, true)?;
    let runtime = runtime()?;
    let (give, streams) = tokio::sync::mpsc::unbounded_channel();
    let inside = runtime.enter();
    let builder = S2nServer::builder()
        .with_tls(provider::Server::from(config))?
        .with_io(io_at(peer, place.server)?)?
        .with_limits(limits(peer)?)?;
    let mut endpoint = match peer.controller {
        Controller::Bbr => builder.with_congestion_controller(Bbr::default())?.start()?,
        _ => builder.with_congestion_controller(Cubic::default())?.start()?,
    };
    drop(inside);
    runtime.spawn(async move {
        while let Some(mut connection) = endpoint.accept().await {
            while let Ok(Some(stream)) = connection.accept_bidirectional_stream().await {
                if give.send(stream).is_err() {
                    return;
                }
            }
        }
    });
    Ok(Box::new(Waiting { runtime, streams }))
}

struct Beginning {
    runtime: Runtime,
    client: S2nClient,
    server: SocketAddr,
    connection: Mutex<Option<Connection>>,
}

impl Client for Beginning {
    fn open(&self) -> Result<Box<dyn Duplex>, Failure> {
        let mut kept = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connection = match &*kept {
            Some(connection) => connection.clone(),
            None => {
                let target = Connect::new(self.server).with_server_name("localhost");
                let connection = self.runtime.block_on(self.client.connect(target))?.handle();
                kept.insert(connection).clone()
            }
        };
        drop(kept);
        let stream = self.runtime.block_on(connection.open_bidirectional_stream())?;
        Ok(Box::new(S2nStream::new(self.runtime.handle(), stream)))
    }
}

pub(super) fn client(peer: Peer, place: &Place) -> Result<Box<dyn Client>, Failure> {
    let config = tls::client(&place.scratch, true)?;
    let runtime = runtime()?;
    let inside = runtime.enter();
    let builder = S2nClient::builder()
        .with_tls(provider::Client::from(config))?
        .with_io(io_at(peer, SocketAddr::from(([0, 0, 0, 0], 0)))?)?
        .with_limits(limits(peer)?)?;
    let client = match peer.controller {
        Controller::Bbr => builder.with_congestion_controller(Bbr::default())?.start()?,
        _ => builder.with_congestion_controller(Cubic::default())?.start()?,
    };
    drop(inside);
    Ok(Box::new(Beginning { runtime, client, server: place.server, connection: Mutex::new(None) }))
}
