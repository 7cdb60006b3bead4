//! MACs and cookies of handshake frames, reset tokens (spec/secure.md §4.6 to §4.9).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use pilotage_wire::NodeId;
use pilotage_wire::s1::{MAC_LEN, TOKEN_LEN};
use subtle::ConstantTimeEq;

use super::keys::Secret;

/// How long cookies are made with one secret; they are accepted that long again.
pub const COOKIE_LIFE: Duration = Duration::from_secs(120);

/// Where a handshake frame came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// Address of the datagram.
    pub addr: SocketAddr,
    /// The node that it is from, if `addr` is a relay.
    pub relayed: Option<NodeId>,
}

impl Source {
    /// Another process of the same machine, by itself.
    pub(crate) fn is_this_host(&self) -> bool {
        self.relayed.is_none() && self.addr.ip().is_loopback()
    }

    /// As bytes that no other source has.
    fn to_bytes(self) -> [u8; 24] {
        let mut out = [0; 24];
        match self.addr.ip() {
            IpAddr::V4(ip) => {
                out[0] = 4;
                out[1..5].copy_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                out[0] = 6;
                out[1..17].copy_from_slice(&ip.octets());
            }
        }
        out[17..19].copy_from_slice(&self.addr.port().to_be_bytes());
        if let Some(node) = self.relayed {
            out[19] = 1;
            out[20..].copy_from_slice(&node.0.to_be_bytes());
        }
        out
    }
}

fn short(hash: &blake3::Hash) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&hash.as_bytes()[..16]);
    out
}

/// A keyed BLAKE3, cut to 16 bytes.
pub(crate) fn mac(key: &[u8; 32], bytes: &[u8]) -> [u8; 16] {
    short(&blake3::keyed_hash(key, bytes))
}

/// As [`mac`], with a key of 16 bytes.
fn mac_with_cookie(cookie: &[u8; 16], bytes: &[u8]) -> [u8; 16] {
    let mut key = [0; 32];
    key[..16].copy_from_slice(cookie);
    mac(&key, bytes)
}

/// In constant time.
pub(crate) fn equal(a: &[u8; 16], b: &[u8; 16]) -> bool {
    a.ct_eq(b).into()
}

/// What everybody can compute who knows an identity: the keys of MACs and cookies to it.
#[derive(Debug, Clone)]
pub(crate) struct PublicKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl PublicKeys {
    pub(crate) fn of(identity: &[u8; 32]) -> Self {
        Self {
            mac1: blake3::derive_key("pilotage 2026 mac1", identity),
            cookie: blake3::derive_key("pilotage 2026 cookie", identity),
        }
    }

    pub(crate) fn mac1(&self, bytes: &[u8]) -> [u8; MAC_LEN] {
        mac(&self.mac1, bytes)
    }

    pub(crate) fn mac1_is(&self, bytes: &[u8], mac1: &[u8; MAC_LEN]) -> bool {
        equal(&self.mac1(bytes), mac1)
    }

    /// `cause` is the `mac1` of the frame that is answered.
    pub(crate) fn seal_cookie(&self, nonce: &[u8; 24], cookie: &[u8; 16], cause: &[u8; MAC_LEN]) -> [u8; 32] {
        let mut out = [0; 32];
        out[..16].copy_from_slice(cookie);
        let cipher = XChaCha20Poly1305::new((&self.cookie).into());
        let tag = cipher
            .encrypt_inout_detached(nonce.into(), cause, (&mut out[..16]).into())
            .expect("16 bytes are not too many");
        out[16..].copy_from_slice(&tag);
        out
    }

    pub(crate) fn open_cookie(
        &self,
        nonce: &[u8; 24],
        sealed: &[u8; 32],
        cause: &[u8; MAC_LEN],
    ) -> Option<[u8; 16]> {
        let (body, tag) = sealed.split_last_chunk::<16>()?;
        let mut cookie = [0; 16];
        cookie.copy_from_slice(body);
        let cipher = XChaCha20Poly1305::new((&self.cookie).into());
        let tag = (*tag).into();
        cipher.decrypt_inout_detached(nonce.into(), cause, (&mut cookie[..]).into(), &tag).ok()?;
        Some(cookie)
    }
}

/// `mac2` of a frame.
pub(crate) fn mac2(cookie: &[u8; 16], before_mac2: &[u8]) -> [u8; MAC_LEN] {
    mac_with_cookie(cookie, before_mac2)
}

/// Makes cookies and recognises them again, without keeping any.
#[derive(Debug)]
pub(crate) struct Jar {
    root: Secret,
    began: Instant,
    /// The last period that was asked for, and its secret.
    last: (u64, Secret),
}

impl Jar {
    pub(crate) fn new(root: Secret, now: Instant) -> Self {
        let first = Self::secret_of(&root, 0);
        Self { root, began: now, last: (0, first) }
    }

    fn epoch(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs() / COOKIE_LIFE.as_secs()
    }

    fn secret_of(root: &Secret, epoch: u64) -> Secret {
        Secret::new(*blake3::keyed_hash(&root.0, &epoch.to_be_bytes()).as_bytes())
    }

    fn cookie_of(&mut self, source: &Source, epoch: u64) -> [u8; 16] {
        if self.last.0 != epoch {
            self.last = (epoch, Self::secret_of(&self.root, epoch));
        }
        mac(&self.last.1.0, &source.to_bytes())
    }

    pub(crate) fn cookie(&mut self, source: &Source, now: Instant) -> [u8; 16] {
        self.cookie_of(source, self.epoch(now))
    }

    /// Whether `mac2` was made with a cookie that this source was given, now or one period before.
    pub(crate) fn accepts(
        &mut self,
        source: &Source,
        before: &[u8],
        mac2: &[u8; MAC_LEN],
        now: Instant,
    ) -> bool {
        let epoch = self.epoch(now);
        let mut made_in = |epoch| equal(&mac_with_cookie(&self.cookie_of(source, epoch), before), mac2);
        // Most frames of a flood carry no mac2 at all; that is no secret.
        *mac2 != [0; MAC_LEN] && (made_in(epoch) || epoch.checked_sub(1).is_some_and(made_in))
    }
}

/// The token of a stateless reset of an index: survives a restart of the process that keeps `device`.
pub(crate) fn reset_token(device: &Secret, index: u32) -> [u8; TOKEN_LEN] {
    mac(&device.0, &index.to_be_bytes())
}
