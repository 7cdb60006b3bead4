//! Keys agreed with one peer: sealing, opening, replay protection (spec/tunnel.md §4, §5).

use std::time::Instant;

use pilotage_wire::NodeId;
use pilotage_wire::frame::{self, PILS_HEADER_LEN, TAG_LEN};

use crate::crypto::{EphemeralKey, PacketAead, SessionAead};
use crate::replay::ReplayWindow;

/// Nonce prefixes of the peer that one session remembers. A Pilotage peer uses one; a reference
/// peer takes a new one on every key exchange frame it receives. At the bound no further one is
/// accepted, because forgetting an old one would let its frames be replayed.
const MAX_PREFIXES: usize = 16;

/// One agreed key.
#[derive(Debug)]
pub(crate) struct Session {
    aead: SessionAead,
    #[cfg(debug_assertions)]
    name: u128,
    /// Our X25519 public key of this session.
    pub(crate) local_public: [u8; 32],
    /// The peer's X25519 public key of this session.
    pub(crate) peer_public: [u8; 32],
    send_prefix: [u8; 4],
    /// Counter of the last sealed frame; the first frame carries 1, as reference peers do.
    pub(crate) counter: u64,
    windows: Vec<([u8; 4], ReplayWindow)>,
    pub(crate) created: Instant,
    /// A frame of the peer has opened under it: the peer holds the key (key confirmation).
    pub(crate) confirmed: bool,
}

/// Why a frame was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// Counter seen before, or too old.
    Replay,
    /// The tag does not verify.
    Unauthentic,
}

impl Session {
    /// `random` makes the nonce prefix. `None` for a low-order public key.
    pub(crate) fn new(
        local: &EphemeralKey,
        peer_public: [u8; 32],
        random: [u8; 4],
        now: Instant,
    ) -> Option<Self> {
        let key = local.tunnel_key(&peer_public)?;
        let local_public = local.public();
        // Rule C5: both directions share one key, so the prefixes must differ. The top bit tells who
        // has the larger public key; towards a reference peer, which draws at random, it halves the risk
        // and `prefix_collides` catches the rest.
        let mut send_prefix = random;
        send_prefix[0] = (send_prefix[0] & 0x7f) | if local_public > peer_public { 0x80 } else { 0 };
        Some(Self {
            aead: SessionAead::new(key.as_bytes()),
            #[cfg(debug_assertions)]
            name: crate::audit::name(key.as_bytes()),
            local_public,
            peer_public,
            send_prefix,
            counter: 0,
            windows: Vec::new(),
            created: now,
            confirmed: false,
        })
    }

    /// Seals the packet at `buf[PILS_HEADER_LEN..PILS_HEADER_LEN + len]` in place and writes the frame
    /// header before and the tag behind it. Returns the frame's length.
    pub(crate) fn seal(&mut self, sender: NodeId, buf: &mut [u8], len: usize) -> Option<usize> {
        let total = PILS_HEADER_LEN + len + TAG_LEN;
        let frame = buf.get_mut(..total)?;
        self.counter += 1;
        let mut nonce = [0u8; 12];
        nonce[..4].copy_from_slice(&self.send_prefix);
        nonce[4..].copy_from_slice(&self.counter.to_be_bytes());
        frame::encode_pils_header(sender, &nonce, frame).ok()?;
        #[cfg(debug_assertions)]
        crate::audit::note(crate::audit::Sealed {
            key: self.name,
            prefix: self.send_prefix,
            counter: self.counter,
        });
        self.aead.seal_in_place(&nonce, &sender.0.to_be_bytes(), &mut frame[PILS_HEADER_LEN..]);
        Some(total)
    }

    /// Whether frames with this prefix came before, so that trying other sessions is pointless.
    pub(crate) fn knows_prefix(&self, prefix: [u8; 4]) -> bool {
        self.windows.iter().any(|(p, _)| *p == prefix)
    }

    /// The peer drew our prefix: frames would repeat nonces, so the session must be replaced (rule C5).
    pub(crate) fn prefix_collides(&self) -> bool {
        self.knows_prefix(self.send_prefix)
    }

    /// Whether a frame would open; destroys `copy`. Changes no state.
    pub(crate) fn would_open(&self, sender: NodeId, nonce: &[u8; 12], copy: &mut [u8]) -> bool {
        self.aead.open_in_place(nonce, &sender.0.to_be_bytes(), copy).is_some()
    }

    /// Opens a frame in place: replay check, tag, then the window moves (rule C7). Also tells whether its
    /// counter is the highest of its prefix so far (rule C3). What the frame proves is the caller's affair (rule C4).
    pub(crate) fn open<'a>(
        &mut self,
        sender: NodeId,
        nonce: &[u8; 12],
        ciphertext: &'a mut [u8],
    ) -> Result<(&'a mut [u8], bool), OpenError> {
        let prefix = [nonce[0], nonce[1], nonce[2], nonce[3]];
        let mut counter = [0u8; 8];
        counter.copy_from_slice(&nonce[4..]);
        let counter = u64::from_be_bytes(counter);
        // A reflection of our own frame fails below: its tag covers our sender id, not the peer's.
        let at = self.windows.iter().position(|(p, _)| *p == prefix);
        match at {
            Some(i) if !self.windows[i].1.check(counter) => return Err(OpenError::Replay),
            None if self.windows.len() >= MAX_PREFIXES => return Err(OpenError::Replay),
            _ => {}
        }
        let aad = sender.0.to_be_bytes();
        let plain = self.aead.open_in_place(nonce, &aad, ciphertext).ok_or(OpenError::Unauthentic)?;
        let window = match at {
            Some(i) => &mut self.windows[i].1,
            None => {
                self.windows.push((prefix, ReplayWindow::new()));
                let last = self.windows.len() - 1;
                &mut self.windows[last].1
            }
        };
        let highest = window.highest().is_none_or(|h| counter > h);
        window.mark(counter);
        Ok((plain, highest))
    }
}

#[cfg(test)]
mod tests;
