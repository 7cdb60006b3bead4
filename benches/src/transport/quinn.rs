//! QUIC: quinn on a single-threaded tokio runtime.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use ::quinn::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, RecvStream, SendStream,
    TokioRuntime, TransportConfig, VarInt,
};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::exec::{Exec, detach_task, runtime};
use super::{
    Announce, Client, Handler, Job, Link, QUIC_CONNECTION_WINDOW, QUIC_STREAM_WINDOW, SOCKET_BUFFER, Setup,
    Stream, local_for, udp,
};
use crate::work::Outcome;
use crate::{Failure, certificate};

/// Idle timeout, in milliseconds: work that leaves connections idle must not lose them.
const IDLE_TIMEOUT_MS: u32 = 300_000;

fn transport(setup: &Setup) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config.max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))));
    if setup.many_streams > 0 {
        // Not set where it is not needed: quinn allocates state for every permitted stream at set-up.
        config.max_concurrent_bidi_streams(setup.many_streams.into());
    }
    if setup.subject.is_tuned() {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(setup.subject.max_datagram().unwrap_or(super::ETHERNET_PAYLOAD));
        config
            .stream_receive_window(QUIC_STREAM_WINDOW.into())
            .receive_window(QUIC_CONNECTION_WINDOW.into())
            .send_window(QUIC_CONNECTION_WINDOW.into())
            .mtu_discovery_config(Some(discovery));
    }
    Arc::new(config)
}

fn endpoint(
    setup: &Setup,
    addr: SocketAddr,
    server: Option<::quinn::ServerConfig>,
) -> Result<Endpoint, Failure> {
    let mut config = EndpointConfig::default();
    if setup.subject.is_tuned() {
        config.max_udp_payload_size(setup.subject.max_datagram().unwrap_or_default().max(1_472))?;
    }
    let socket = udp::socket(addr, setup.subject.is_tuned().then_some(SOCKET_BUFFER))?;
    Ok(Endpoint::new(config, server, socket, Arc::new(TokioRuntime))?)
}

/// Serves streams until the process ends.
pub fn serve<H: Handler>(setup: &Setup, announce: Announce, handler: &H) -> Result<(), Failure> {
    let tls = certificate::server_config_for(&setup.scratch, setup.subject.suite(), true)?;
    let mut config = ::quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport(setup));
    runtime()?.block_on(async {
        let endpoint = endpoint(setup, setup.server, Some(config))?;
        announce.ready()?;
        while let Some(incoming) = endpoint.accept().await {
            let handler = handler.clone();
            detach_task(async move {
                let connection = incoming.await?;
                // The loop ends with the connection.
                while let Ok((send, recv)) = connection.accept_bi().await {
                    let handler = handler.clone();
                    detach_task(async move { handler.handle(QuinnStream { send, recv }).await });
                }
                Ok(())
            });
        }
        Ok(())
    })
}

/// Runs the client's part.
pub fn drive<J: Job>(setup: &Setup, job: J) -> Result<Outcome, Failure> {
    let tls = certificate::client_config_for(&setup.scratch, setup.subject.suite(), true)?;
    let mut config = ::quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport(setup));
    runtime()?.block_on(async {
        let endpoint = endpoint(setup, local_for(setup.server), None)?;
        job.run(Dialer { setup: setup.clone(), endpoint, config }, Exec::Tokio).await
    })
}

struct Dialer {
    setup: Setup,
    endpoint: Endpoint,
    config: ::quinn::ClientConfig,
}

impl Client for Dialer {
    type Link = Connection;

    async fn fresh(&mut self) -> Result<(), Failure> {
        let old =
            std::mem::replace(&mut self.endpoint, endpoint(&self.setup, local_for(self.setup.server), None)?);
        old.close(0_u32.into(), b"done");
        Ok(())
    }

    async fn dial(&self) -> Result<Connection, Failure> {
        Ok(self.endpoint.connect_with(self.config.clone(), self.setup.server, "localhost")?.await?)
    }
}

impl Link for Connection {
    type Stream = QuinnStream;

    async fn open(&self) -> Result<QuinnStream, Failure> {
        let (send, recv) = self.open_bi().await?;
        Ok(QuinnStream { send, recv })
    }

    fn note(&self) -> String {
        let path = self.stats().path;
        format!("datagram {} B, lost packets {}", path.current_mtu, path.lost_packets)
    }
}

/// Both halves of a stream.
#[derive(Debug)]
pub struct QuinnStream {
    send: SendStream,
    recv: RecvStream,
}

impl Stream for QuinnStream {
    async fn write_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        Ok(self.send.write_chunk(bytes).await?)
    }
}

impl AsyncRead for QuinnStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), context, buffer)
    }
}

impl AsyncWrite for QuinnStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), context)
    }
}
