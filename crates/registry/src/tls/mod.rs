//! TLS of the registry port: one self-signed certificate, known by its fingerprint.
//!
//! The reference's nodes pin the SHA-256 of the server's certificate (DER, leaf); names, issuers and dates mean nothing.
//! So do we, on both sides, with TLS 1.3 only (spec/registry.md §1.3).

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "server")]
mod server;

#[cfg(feature = "client")]
pub(crate) use client::session as client_session;
#[cfg(feature = "server")]
pub use server::{ServerTls, TlsError};
use sha2::{Digest as _, Sha256};

/// SHA-256 of a certificate in DER, as it is pinned.
#[must_use]
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// Lower-case hex digits without separators, the form in which the reference takes a pin.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
