//! QUIC: s2n-quic on a single-threaded tokio runtime, with rustls so that suite and key exchange are those of all.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use s2n_quic::client::Connect;
use s2n_quic::provider::io::tokio::Provider as Io;
use s2n_quic::provider::limits::Limits;
use s2n_quic::provider::tls::rustls as tls;
use s2n_quic::stream::BidirectionalStream;
use s2n_quic::{Client as S2nClient, Server};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::exec::{Exec, detach_task, runtime};
use super::{
    Announce, Client, Handler, Job, Link, QUIC_CONNECTION_WINDOW, QUIC_STREAM_WINDOW, SOCKET_BUFFER, Setup,
    Stream, local_for,
};
use crate::work::Outcome;
use crate::{Failure, certificate};

/// Idle timeout: work that leaves connections idle must not lose them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// What IPv4 and UDP add to a datagram: s2n-quic counts whole IP packets.
const HEADERS: u16 = 28;

/// Packets that one of many streams may fill in its turn (default 1): one offload batch. Best here of 1, 8, 32 and 128.
const STREAM_BATCH: u8 = 32;

fn limits(setup: &Setup) -> Result<Limits, Failure> {
    let mut limits = Limits::new().with_max_idle_timeout(IDLE_TIMEOUT)?;
    if setup.many_streams > 0 {
        limits = limits
            .with_max_open_local_bidirectional_streams(setup.many_streams.into())?
            .with_max_open_remote_bidirectional_streams(setup.many_streams.into())?;
    }
    if setup.subject.is_tuned() {
        limits = limits
            .with_data_window(QUIC_CONNECTION_WINDOW.into())?
            .with_bidirectional_local_data_window(QUIC_STREAM_WINDOW.into())?
            .with_bidirectional_remote_data_window(QUIC_STREAM_WINDOW.into())?
            .with_max_send_buffer_size(QUIC_STREAM_WINDOW)?
            .with_stream_batch_size(STREAM_BATCH)?;
    }
    Ok(limits)
}

fn io_at(setup: &Setup, addr: SocketAddr) -> Result<Io, Failure> {
    let mut builder = Io::builder().with_receive_address(addr)?;
    if setup.subject.is_tuned() {
        let datagram = setup.subject.max_datagram().unwrap_or(super::ETHERNET_PAYLOAD);
        builder = builder
            .with_max_mtu(datagram + HEADERS)?
            .with_send_buffer_size(SOCKET_BUFFER)?
            .with_recv_buffer_size(SOCKET_BUFFER)?;
    }
    Ok(builder.build()?)
}

/// Serves streams until the process ends.
pub fn serve<H: Handler>(setup: &Setup, announce: Announce, handler: &H) -> Result<(), Failure> {
    let config = certificate::server_config_for(&setup.scratch, setup.subject.suite(), true)?;
    runtime()?.block_on(async {
        let mut server = Server::builder()
            .with_tls(tls::Server::from(config))?
            .with_io(io_at(setup, setup.server)?)?
            .with_limits(limits(setup)?)?
            .start()?;
        announce.ready()?;
        while let Some(mut connection) = server.accept().await {
            let handler = handler.clone();
            detach_task(async move {
                // The loop ends with the connection.
                while let Ok(Some(stream)) = connection.accept_bidirectional_stream().await {
                    let handler = handler.clone();
                    detach_task(async move { handler.handle(S2nStream(stream)).await });
                }
                Ok(())
            });
        }
        Ok(())
    })
}

/// Runs the client's part.
pub fn drive<J: Job>(setup: &Setup, job: J) -> Result<Outcome, Failure> {
    runtime()?.block_on(async {
        let dialer = Dialer { setup: setup.clone(), client: client(setup)? };
        job.run(dialer, Exec::Tokio).await
    })
}

fn client(setup: &Setup) -> Result<S2nClient, Failure> {
    let config = certificate::client_config_for(&setup.scratch, setup.subject.suite(), true)?;
    Ok(S2nClient::builder()
        .with_tls(tls::Client::from(config))?
        .with_io(io_at(setup, local_for(setup.server))?)?
        .with_limits(limits(setup)?)?
        .start()?)
}

struct Dialer {
    setup: Setup,
    client: S2nClient,
}

impl Client for Dialer {
    type Link = S2nLink;

    async fn fresh(&mut self) -> Result<(), Failure> {
        self.client = client(&self.setup)?;
        Ok(())
    }

    async fn dial(&self) -> Result<S2nLink, Failure> {
        let target = Connect::new(self.setup.server).with_server_name("localhost");
        Ok(S2nLink(self.client.connect(target).await?.handle()))
    }
}

/// A connection; it lives as long as a handle or a stream.
#[derive(Debug)]
pub struct S2nLink(s2n_quic::connection::Handle);

impl Link for S2nLink {
    type Stream = S2nStream;

    async fn open(&self) -> Result<S2nStream, Failure> {
        Ok(S2nStream(self.0.clone().open_bidirectional_stream().await?))
    }
}

/// A stream whose `flush` waits for nothing, as with TCP: s2n-quic's own waits for the acknowledgement.
#[derive(Debug)]
pub struct S2nStream(BidirectionalStream);

impl Stream for S2nStream {
    async fn write_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        Ok(self.0.send(bytes).await?)
    }
}

impl AsyncRead for S2nStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.0), context, buffer)
    }
}

impl AsyncWrite for S2nStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.0), context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
