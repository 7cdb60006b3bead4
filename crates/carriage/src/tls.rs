//! TLS over a socket that may or may not block, for both sides, and the hub's certificate.

use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{Connection, ServerConfig};
use sha2::{Digest as _, Sha256};

/// SHA-256 of a certificate in DER, as it is pinned.
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// Why a certificate and its key cannot be used. The text names file and next step.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read, or holds no such thing.
    #[error("{}: {detail}; expected PEM", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The two do not fit each other.
    #[error("certificate and key cannot be used: {0}; check that they belong together")]
    Unusable(#[from] rustls::Error),
}

/// What a server needs, from a PEM file with the certificate chain and one with the key; and the fingerprint.
///
/// # Errors
/// See [`CertificateError`].
pub fn server_config_from_pem(
    certificate: &Path,
    key: &Path,
) -> Result<(Arc<ServerConfig>, [u8; 32]), CertificateError> {
    let failed = |path: &Path, detail: String| CertificateError::File { path: path.to_owned(), detail };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| failed(certificate, error.to_string()))?;
    let leaf = chain.first().ok_or_else(|| failed(certificate, "no certificate in it".into()))?;
    let pin = fingerprint(leaf);
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error.to_string()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, secret)?;
    Ok((Arc::new(config), pin))
}

/// A TLS session over `S`. Reading goes on while writing is blocked, and the other way round: two ends that both write
/// much would otherwise wait for each other for ever.
#[derive(Debug)]
pub(crate) struct TlsStream<S> {
    session: Connection,
    pub(crate) socket: S,
}

impl<S: Read + Write> TlsStream<S> {
    pub(crate) fn new(session: Connection, socket: S) -> Self {
        Self { session, socket }
    }

    /// The certificate of the other side, once it has been seen.
    pub(crate) fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.session.peer_certificates().and_then(|chain| chain.first())
    }

    /// Writes what the session has for the socket; `WouldBlock` is no error.
    fn push(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl<S: Read + Write> Read for TlsStream<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buf) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            self.push()?;
            if self.session.read_tls(&mut self.socket)? == 0 {
                // The end without a farewell of TLS: nothing that was sealed is missing at a message's border, and
                // WebSocket notices the end inside of one.
                return Ok(0);
            }
            if let Err(error) = self.session.process_new_packets() {
                // The other side learns why.
                let _ = self.push();
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
            self.push()?;
        }
    }
}

impl<S: Read + Write> Write for TlsStream<S> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut taken = self.session.writer().write(data)?;
        self.push()?;
        if taken == 0 && !data.is_empty() {
            taken = self.session.writer().write(data)?;
            if taken == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.push()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()?;
        if self.session.wants_write() { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }
}
