//! Packets to ourselves: they stay in this machine, unsealed (spec/tunnel.md §2.7).
//!
//! A tunnel like any other leads to a place that no socket can send to. What it has to send is kept here instead and
//! comes in again with the next timeout, which is due at once. So everything above the frames is as between two nodes.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use pilotage_wire::NodeId;
use pilotage_wire::frame::{self, Frame};

use super::Endpoint;
use crate::config::{PeerConfig, PeerPolicy};
use crate::connection::Dialect;
use crate::event::ConnectError;
use crate::transmit::{Transmit, TransmitBuf};

/// Where the tunnel to ourselves leads: nothing is ever sent to port 0.
const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Frames that wait; further ones are lost, which the connections make good.
pub(super) const WAITING_MAX: usize = 1_024;

/// Frames on their way to ourselves.
#[derive(Debug, Default)]
pub(super) struct Own(VecDeque<Vec<u8>>);

impl Own {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Endpoint {
    /// Whether that is us.
    pub(super) fn is_own(&self, node: NodeId) -> bool {
        node == self.local.node
    }

    /// The tunnel to ourselves, made when it is first asked for.
    pub(super) fn own_tunnel(&mut self, now: Instant) -> Result<u32, ConnectError> {
        if let Some(&index) = self.by_node.get(&self.local.node) {
            return Ok(index);
        }
        let us = PeerConfig {
            address: self.local,
            key: Some(self.identity.public_key()),
            endpoint: Some(HERE),
            policy: PeerPolicy { allow_plaintext: true, ..PeerPolicy::default() },
            prekey: None,
        };
        let index = self.new_tunnel(now, &us)?;
        if let Some(tunnel) = self.tunnel_mut(index) {
            tunnel.dialect = Dialect::Pilotage;
            tunnel.dialect_shown = true;
            tunnel.authenticated = true;
            tunnel.addresses.trust(HERE);
        }
        Ok(index)
    }

    /// Keeps a batch that is for ourselves; `false` if it is not.
    pub(super) fn keep_own(&mut self, transmit: &Transmit, buf: &TransmitBuf) -> bool {
        if transmit.destination != HERE {
            return false;
        }
        for frame in buf.bytes(transmit.size).chunks(transmit.segment_size.unwrap_or(transmit.size).max(1)) {
            if self.own.0.len() < WAITING_MAX {
                self.own.0.push_back(frame.to_vec());
            }
        }
        true
    }

    /// Takes in what waits now. What comes of it waits for the next time.
    pub(super) fn take_own(&mut self, now: Instant) {
        for frame in std::mem::take(&mut self.own.0) {
            let Some(&index) = self.by_node.get(&self.local.node) else { return };
            if let Ok(Frame::Pilt { packet }) = frame::decode(&frame) {
                self.on_plain(now, index, packet);
            }
        }
    }
}
