//! QUIC: quinn on a single-threaded tokio runtime.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    Endpoint, EndpointConfig, MtuDiscoveryConfig, RecvStream, SendStream, TokioRuntime, TransportConfig,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::exchange::{
    ClientResult, HEADER_LEN, Payload, REQUEST_LEN, ServerResult, Sink, decode_header, encode_header,
    finish_client,
};
use crate::measure::Stopwatch;
use crate::runner::Announce;
use crate::settings::{
    IO_CHUNK, Options, QUIC_CONNECTION_WINDOW, QUIC_STREAM_WINDOW, SOCKET_BUFFER, Subject,
};
use crate::{Failure, certificate};

fn transport(subject: Subject) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(subject.max_datagram().unwrap_or(1_452));
    config
        .stream_receive_window(QUIC_STREAM_WINDOW.into())
        .receive_window(QUIC_CONNECTION_WINDOW.into())
        .send_window(QUIC_CONNECTION_WINDOW.into())
        .mtu_discovery_config(Some(discovery));
    Arc::new(config)
}

fn endpoint_config(subject: Subject) -> Result<EndpointConfig, Failure> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(subject.max_datagram().unwrap_or(1_452).max(1_472))?;
    Ok(config)
}

fn socket(addr: SocketAddr) -> Result<std::net::UdpSocket, Failure> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.bind(&SockAddr::from(addr))?;
    Ok(socket.into())
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The receiver.
pub fn server(
    options: &Options,
    subject: Subject,
    addr: SocketAddr,
    scratch: &Path,
    announce: Announce,
) -> Result<ServerResult, Failure> {
    let tls = certificate::server_config(scratch, true)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport(subject));
    let mut sink = Sink::new(options.verify, options.size)?;
    runtime()?.block_on(async {
        let endpoint =
            Endpoint::new(endpoint_config(subject)?, Some(config), socket(addr)?, Arc::new(TokioRuntime))?;
        announce.ready()?;
        let incoming = endpoint.accept().await.ok_or("accept: the endpoint was closed")?;
        let connection = incoming.await?;
        let (mut send, mut recv) = connection.accept_bi().await?;
        let result = serve(&mut send, &mut recv, options, &mut sink).await?;
        send.finish()?;
        // Leave only after the sender has everything.
        connection.closed().await;
        Ok(result)
    })
}

async fn serve(
    send: &mut SendStream,
    recv: &mut RecvStream,
    options: &Options,
    sink: &mut Sink,
) -> Result<ServerResult, Failure> {
    let mut header = [0; HEADER_LEN];
    recv.read_exact(&mut header).await?;
    let (size, round_trips) = decode_header(header);
    if size != options.size {
        return Err("opening message: the two sides were started with different sizes".into());
    }
    let watch = Stopwatch::start()?;
    send.write_all(&[1]).await?;
    while !sink.is_complete() {
        match recv.read(sink.space()).await? {
            None => return Err("transfer: the stream ended early".into()),
            Some(count) => sink.advance(count),
        }
    }
    send.write_all(&[2]).await?;
    let (_, cpu) = watch.stop()?;
    send.write_all(&sink.hash()).await?;
    let mut request = [0; REQUEST_LEN];
    for _ in 0..round_trips {
        recv.read_exact(&mut request).await?;
        send.write_all(&request).await?;
    }
    Ok(ServerResult { cpu_seconds: cpu.as_secs_f64() })
}

/// The sender.
pub fn client(
    options: &Options,
    subject: Subject,
    addr: SocketAddr,
    scratch: &Path,
    payload: &Payload,
) -> Result<ClientResult, Failure> {
    let tls = certificate::client_config(scratch, true)?;
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport(subject));
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    runtime()?.block_on(async {
        let endpoint =
            Endpoint::new(endpoint_config(subject)?, None, socket(local)?, Arc::new(TokioRuntime))?;
        let started = Instant::now();
        let connection = endpoint.connect_with(config, addr, "localhost")?.await?;
        let (mut send, mut recv) = connection.open_bi().await?;
        let mut result = run(&mut send, &mut recv, options, payload, started).await?;
        let path = connection.stats().path;
        result.note = format!("datagram {} B, lost packets {}", path.current_mtu, path.lost_packets);
        connection.close(0_u32.into(), b"done");
        endpoint.wait_idle().await;
        Ok(result)
    })
}

async fn run(
    send: &mut SendStream,
    recv: &mut RecvStream,
    options: &Options,
    payload: &Payload,
    started: Instant,
) -> Result<ClientResult, Failure> {
    send.write_all(&encode_header(options.size, options.round_trips)).await?;
    let mut byte = [0; 1];
    recv.read_exact(&mut byte).await?;
    let connect = started.elapsed();

    let watch = Stopwatch::start()?;
    for chunk in payload.bytes.chunks(IO_CHUNK) {
        send.write_all(chunk).await?;
    }
    recv.read_exact(&mut byte).await?;
    let (wall, cpu) = watch.stop()?;

    let mut hash = [0; 32];
    recv.read_exact(&mut hash).await?;
    let mut round_trips_ns = Vec::with_capacity(options.round_trips as usize);
    let mut reply = [0; REQUEST_LEN];
    for index in 0..options.round_trips {
        let request = [index as u8; REQUEST_LEN];
        let sent = Instant::now();
        send.write_all(&request).await?;
        recv.read_exact(&mut reply).await?;
        round_trips_ns.push(sent.elapsed().as_nanos() as u64);
        if reply != request {
            return Err("round trip: the reply differs from the request".into());
        }
    }
    Ok(finish_client(connect, wall, cpu, payload.hash == blake3::Hash::from(hash), round_trips_ns))
}
