//! The server's side: a key and a certificate in the state folder, made once and kept.

use super::{fingerprint, hex};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// P-256 private key, PKCS#8 in DER, mode 0600.
const KEY_FILE: &str = "registry-tls-key.der";
/// The certificate that goes with it, DER.
const CERTIFICATE_FILE: &str = "registry-tls-cert.der";
/// Name in the certificate. Nobody checks it.
const NAME: &str = "pilotage registry";
/// A file longer than this is none of ours. Bytes.
const MAX_FILE: u64 = 16 * 1024;

/// Why there is no certificate. The text names the file and the next step.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("TLS of the registry: {}: {source}; check the folder, its owner and the disk", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The files are there and cannot be used.
    #[error("TLS of the registry: {}: {detail}; restore both {KEY_FILE} and {CERTIFICATE_FILE} from a backup, or remove both for a new pair (nodes then need the new fingerprint)", path.display())]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

/// Key and certificate of a registry's port. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    fingerprint: [u8; 32],
}

impl ServerTls {
    /// Reads key and certificate from `dir`, or makes them there. The certificate is for ever: its fingerprint is what
    /// nodes know.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load_or_create(dir: &Path) -> Result<Self, TlsError> {
        let (key_path, certificate_path) = (dir.join(KEY_FILE), dir.join(CERTIFICATE_FILE));
        let unusable = |detail: String| TlsError::Unusable { path: dir.to_owned(), detail };
        let key = read(&key_path)?;
        let certificate = read(&certificate_path)?;
        let (key, certificate) = match (key, certificate) {
            (Some(key), Some(certificate)) => (key, certificate),
            (None, Some(_)) => return Err(unusable("the certificate is there and its key is not".into())),
            // No certificate: a new folder, or a process that died between the two files.
            (key, None) => {
                let key = match key {
                    Some(der) => {
                        KeyPair::try_from(der).map_err(|error| unusable(format!("the key: {error}")))?
                    }
                    None => KeyPair::generate().map_err(|error| unusable(error.to_string()))?,
                };
                let certificate = certify(&key).map_err(|error| unusable(error.to_string()))?;
                let der = key.serialize_der();
                write(&key_path, &der)?;
                write(&certificate_path, &certificate)?;
                (der, certificate)
            }
        };
        let fingerprint = fingerprint(&certificate);
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map(|builder| builder.with_no_client_auth())
            .and_then(|builder| {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
                builder.with_single_cert(vec![CertificateDer::from(certificate)], key)
            })
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self { config: Arc::new(config), fingerprint })
    }

    /// SHA-256 of the certificate: what nodes pin.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// [`ServerTls::fingerprint`] as nodes take it: 64 lower-case hex digits.
    #[must_use]
    pub fn fingerprint_hex(&self) -> String {
        hex(&self.fingerprint)
    }

    /// What a TLS server needs. The hub's WebSocket shows the same certificate.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

fn certify(key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, NAME);
    Ok(params.self_signed(key)?.der().to_vec())
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, TlsError> {
    let failed = |source| TlsError::Io { path: path.to_owned(), source };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
        Ok(found) if found.len() > MAX_FILE => Err(failed(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => fs::read(path).map(Some).map_err(failed),
    }
}

/// Whole or not at all, and for the owner only.
fn write(path: &Path, bytes: &[u8]) -> Result<(), TlsError> {
    let part = path.with_extension("der.new");
    let attempt = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    attempt().map_err(|source| TlsError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pair_is_made_once_and_a_lost_half_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let first = ServerTls::load_or_create(dir.path()).unwrap();
        let again = ServerTls::load_or_create(dir.path()).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert_eq!(first.fingerprint_hex().len(), 64);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        // Died between the two files: the key stays, the certificate is made anew.
        fs::remove_file(dir.path().join(CERTIFICATE_FILE)).unwrap();
        let key = fs::read(dir.path().join(KEY_FILE)).unwrap();
        ServerTls::load_or_create(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join(KEY_FILE)).unwrap(), key);
        // The key of another pair, garbage, or none.
        let other = tempfile::tempdir().unwrap();
        ServerTls::load_or_create(other.path()).unwrap();
        fs::copy(other.path().join(KEY_FILE), dir.path().join(KEY_FILE)).unwrap();
        assert!(matches!(ServerTls::load_or_create(dir.path()), Err(TlsError::Unusable { .. })));
        fs::write(dir.path().join(KEY_FILE), b"nonsense").unwrap();
        assert!(matches!(ServerTls::load_or_create(dir.path()), Err(TlsError::Unusable { .. })));
        fs::write(dir.path().join(KEY_FILE), vec![0; 20_000]).unwrap();
        assert!(matches!(ServerTls::load_or_create(dir.path()), Err(TlsError::Io { .. })));
        fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
        assert!(matches!(ServerTls::load_or_create(dir.path()), Err(TlsError::Unusable { .. })));
        assert!(matches!(ServerTls::load_or_create(&dir.path().join("missing")), Err(TlsError::Io { .. })));
    }
}
