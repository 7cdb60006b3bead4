//! TLS 1.3 over kernel TCP: rustls with aws-lc-rs, blocking sockets.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};

use crate::exchange::{ClientResult, Payload, ServerResult, Sink, run_client, run_server};
use crate::runner::Announce;
use crate::settings::Options;
use crate::{Failure, certificate, tcp};

/// Plaintext that rustls may hold before it must write to the socket, in bytes.
const TLS_BUFFER: usize = 256 << 10;

/// The receiver.
pub fn server(
    options: &Options,
    addr: SocketAddr,
    scratch: &Path,
    announce: Announce,
) -> Result<ServerResult, Failure> {
    let config = Arc::new(certificate::server_config(scratch, false)?);
    let mut sink = Sink::new(options.verify, options.size)?;
    let listener = tcp::listen(options, addr)?;
    announce.ready()?;
    let (socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, socket);
    stream.conn.set_buffer_limit(Some(TLS_BUFFER));
    run_server(&mut stream, options, &mut sink)
}

/// The sender.
pub fn client(
    options: &Options,
    addr: SocketAddr,
    scratch: &Path,
    payload: &Payload,
) -> Result<ClientResult, Failure> {
    let config = Arc::new(certificate::client_config(scratch, false)?);
    let started = Instant::now();
    let socket = tcp::connect(options, addr)?;
    let mut conn = ClientConnection::new(config, ServerName::try_from("localhost")?)?;
    conn.set_buffer_limit(Some(TLS_BUFFER));
    let mut stream = StreamOwned::new(conn, socket);
    let mut result = run_client(&mut stream, options, payload, started)?;
    result.note =
        stream.conn.negotiated_cipher_suite().map_or(String::new(), |suite| format!("{:?}", suite.suite()));
    Ok(result)
}
