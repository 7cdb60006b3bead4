//! A fresh self-signed certificate per run, pinned by the client, and one cipher suite for all.
//!
//! No tickets are given and none are kept: every connection is a first one.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};

use crate::Failure;
use crate::subject::Suite;

/// Name of the file that the receiver leaves its certificate in.
pub const FILE_NAME: &str = "server.der";
/// Protocol name; QUIC wants one.
const ALPN: &[u8] = b"bench";

/// Only the suite of the subject and X25519, so that all encrypted subjects do the same work.
fn provider(suite: Suite, quic: bool) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![match suite {
        Suite::Aes256 => aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        Suite::ChaCha20 => aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    }];
    if quic {
        // QUIC protects its first packets with this suite (RFC 9001 §5.2); listed second it is never negotiated.
        provider.cipher_suites.push(aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256);
    }
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

/// As [`server_config_for`] with AES-256-GCM.
pub fn server_config(scratch: &Path, quic: bool) -> Result<ServerConfig, Failure> {
    server_config_for(scratch, Suite::Aes256, quic)
}

/// As [`client_config_for`] with AES-256-GCM.
pub fn client_config(scratch: &Path, quic: bool) -> Result<ClientConfig, Failure> {
    client_config_for(scratch, Suite::Aes256, quic)
}

/// Makes a certificate, leaves it in `scratch` for the client, and returns the server's configuration.
pub fn server_config_for(scratch: &Path, suite: Suite, quic: bool) -> Result<ServerConfig, Failure> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    std::fs::write(scratch.join(FILE_NAME), &certificate)?;
    let mut config = ServerConfig::builder_with_provider(provider(suite, quic))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The client's configuration: accepts exactly the certificate in `scratch`.
pub fn client_config_for(scratch: &Path, suite: Suite, quic: bool) -> Result<ClientConfig, Failure> {
    let provider = provider(suite, quic);
    let pinned = CertificateDer::from(std::fs::read(scratch.join(FILE_NAME))?);
    let verifier = Arc::new(PinnedCertificate { pinned, provider: provider.clone() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Accepts one certificate and checks the handshake signature made with it.
#[derive(Debug)]
struct PinnedCertificate {
    pinned: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.pinned {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("the server shows another certificate than the pinned one".into()))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
