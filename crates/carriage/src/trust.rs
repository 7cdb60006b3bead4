//! Whom a node takes for its hub.

use std::sync::{Arc, Mutex};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::tls::fingerprint;

/// What is required of the hub's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// One of these certificates (SHA-256 of the DER), and nothing else.
    Pinned(Vec<[u8; 32]>),
    /// What a browser would take; else the certificate of the first time.
    FirstUse(Option<Evidence>),
}

/// Why the hub's certificate was taken: to be kept, and given back the next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// It was this one.
    Certificate([u8; 32]),
    /// An authority that this machine trusts vouches for it. From then on nothing less will do.
    Authority,
}

/// Where a verifier leaves what it has found.
pub(crate) type Found = Arc<Mutex<Option<Evidence>>>;

/// A session's configuration, and where the evidence is found after the handshake.
pub(crate) fn client_config(trust: &Trust) -> Result<(Arc<ClientConfig>, Found), Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let authorities = match trust {
        Trust::Pinned(_) => None,
        Trust::FirstUse(_) => authorities(&provider),
    };
    let evidence = Found::default();
    let verifier = Verifier {
        trust: trust.clone(),
        authorities,
        provider: provider.clone(),
        evidence: evidence.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), evidence))
}

/// The authorities of this machine; `None` where it has none.
fn authorities(provider: &Arc<CryptoProvider>) -> Option<Arc<WebPkiServerVerifier>> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        return None;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().ok()
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    authorities: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
    evidence: Found,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = fingerprint(leaf);
        let vouched = self
            .authorities
            .as_ref()
            .is_some_and(|known| known.verify_server_cert(leaf, intermediates, name, ocsp, now).is_ok());
        let evidence = judge(&self.trust, found, vouched)?;
        *self.evidence.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(evidence);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether this certificate will do. `vouched`: an authority of this machine says that it is the host's.
fn judge(trust: &Trust, found: [u8; 32], vouched: bool) -> Result<Evidence, Error> {
    let hex = |bytes: &[u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match trust {
        Trust::Pinned(pins) if pins.contains(&found) => Ok(Evidence::Certificate(found)),
        Trust::Pinned(_) => Err(Error::General(format!(
            "the certificate's fingerprint is {}, not the pinned one",
            hex(&found)
        ))),
        Trust::FirstUse(_) if vouched => Ok(Evidence::Authority),
        Trust::FirstUse(None) => Ok(Evidence::Certificate(found)),
        Trust::FirstUse(Some(Evidence::Certificate(known))) if *known == found => {
            Ok(Evidence::Certificate(found))
        }
        Trust::FirstUse(Some(Evidence::Certificate(_))) => Err(Error::General(format!(
            "the certificate is not the one of the first time; its fingerprint is {}",
            hex(&found)
        ))),
        Trust::FirstUse(Some(Evidence::Authority)) => {
            Err(Error::General("no authority vouches for the certificate any more".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_taken_for_the_hub() {
        let (a, b) = ([1; 32], [2; 32]);
        let pinned = Trust::Pinned(vec![a]);
        assert_eq!(judge(&pinned, a, false), Ok(Evidence::Certificate(a)));
        assert!(judge(&pinned, b, true).is_err(), "a pin is a pin");
        assert_eq!(judge(&Trust::FirstUse(None), a, false), Ok(Evidence::Certificate(a)));
        let again = Trust::FirstUse(Some(Evidence::Certificate(a)));
        assert_eq!(judge(&again, a, false), Ok(Evidence::Certificate(a)));
        assert!(judge(&again, b, false).is_err());
        assert_eq!(judge(&again, b, true), Ok(Evidence::Authority), "the hub has bought one");
        let bought = Trust::FirstUse(Some(Evidence::Authority));
        assert!(judge(&bought, a, false).is_err(), "no way back");
        assert_eq!(judge(&bought, b, true), Ok(Evidence::Authority));
    }
}
