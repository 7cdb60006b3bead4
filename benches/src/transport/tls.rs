//! TLS 1.3 over kernel TCP: rustls with aws-lc-rs; blocking, or tokio-rustls.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConnection, StreamOwned};

use super::exec::{Exec, block_on, detach_task, runtime};
use super::{Announce, Blocking, Client, Handler, Job, Link, Setup, Stream, tcp};
use crate::settings::Api;
use crate::work::Outcome;
use crate::{Failure, certificate};

/// Plaintext that rustls may hold before it must write to the socket, in bytes.
const TLS_BUFFER: usize = 256 << 10;

type ServerStream = StreamOwned<ServerConnection, TcpStream>;
type ClientStream = StreamOwned<ClientConnection, TcpStream>;

impl Stream for tokio_rustls::server::TlsStream<tokio::net::TcpStream> {}
impl Stream for tokio_rustls::client::TlsStream<tokio::net::TcpStream> {}

/// Serves streams until the process ends.
pub fn serve<H: Handler>(setup: &Setup, announce: Announce, handler: &H) -> Result<(), Failure> {
    let config = Arc::new(certificate::server_config_for(&setup.scratch, setup.subject.suite(), false)?);
    match setup.api {
        Api::Blocking => {
            let (handler, config) = (handler.clone(), config.clone());
            tcp::accept_all(setup, announce, move |socket| {
                let mut stream: ServerStream =
                    StreamOwned::new(ServerConnection::new(config.clone())?, socket);
                stream.conn.set_buffer_limit(Some(TLS_BUFFER));
                block_on(handler.handle(Blocking(stream)))
            })
        }
        Api::Tokio => runtime()?.block_on(tcp::accept_all_tokio(setup, announce, |socket| {
            let (handler, acceptor) = (handler.clone(), tokio_rustls::TlsAcceptor::from(config.clone()));
            detach_task(async move {
                let stream = acceptor.accept_with(socket, |conn| conn.set_buffer_limit(Some(TLS_BUFFER)));
                handler.handle(stream.await?).await
            });
            Ok(())
        })),
    }
}

/// Runs the client's part.
pub fn drive<J: Job>(setup: &Setup, job: J) -> Result<Outcome, Failure> {
    let config = Arc::new(certificate::client_config_for(&setup.scratch, setup.subject.suite(), false)?);
    let dialer = Tls { server: setup.server, congestion: setup.subject.tcp_congestion(), config };
    match setup.api {
        Api::Blocking => block_on(job.run(dialer, Exec::Threads)),
        Api::Tokio => runtime()?.block_on(job.run(TlsTokio(dialer), Exec::Tokio)),
    }
}

/// Blocking; every stream is a connection with a handshake of its own.
#[derive(Debug, Clone)]
struct Tls {
    server: SocketAddr,
    congestion: &'static str,
    config: Arc<ClientConfig>,
}

impl Client for Tls {
    type Link = Self;

    async fn fresh(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn dial(&self) -> Result<Self, Failure> {
        Ok(self.clone())
    }
}

impl Link for Tls {
    type Stream = Blocking<ClientStream>;

    async fn open(&self) -> Result<Self::Stream, Failure> {
        let socket = tcp::connect(self.server, self.congestion)?;
        let mut conn = ClientConnection::new(self.config.clone(), ServerName::try_from("localhost")?)?;
        conn.set_buffer_limit(Some(TLS_BUFFER));
        Ok(Blocking(StreamOwned::new(conn, socket)))
    }
}

/// On tokio.
#[derive(Debug, Clone)]
struct TlsTokio(Tls);

impl Client for TlsTokio {
    type Link = Self;

    async fn fresh(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn dial(&self) -> Result<Self, Failure> {
        Ok(self.clone())
    }
}

impl Link for TlsTokio {
    type Stream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

    async fn open(&self) -> Result<Self::Stream, Failure> {
        let socket = tcp::on_tokio(tcp::connect(self.0.server, self.0.congestion)?)?;
        let connector = tokio_rustls::TlsConnector::from(self.0.config.clone());
        let name = ServerName::try_from("localhost")?;
        Ok(connector.connect_with(name, socket, |conn| conn.set_buffer_limit(Some(TLS_BUFFER))).await?)
    }
}
