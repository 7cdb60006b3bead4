//! Frames over Pilotage streams: who may speak, and what is answered. `spec/cluster.md §4`.
//!
//! # Contract
//! * A stream is a member's if the tunnel proved the member's key; the id in [`Hello`] only says which file is meant.
//! * A stranger may say one thing, [`Join`](crate::frame::Join), and only where there is a token.
//! * Bounds: [`STREAMS`] streams of members, [`STRANGERS`] of strangers, one frame of each at a time, [`IDLE`] of silence.

mod link;
pub(crate) mod message;
mod serve;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use pilotage::{Node, Stream};

pub(crate) use self::link::{CallError, Link, Links, read_reply};
pub(crate) use self::serve::{Service, serve};
use crate::faults::Faults;
use crate::types::RaftId;

/// The cluster's port on every member's node.
pub const PORT: u16 = 1_015;
/// Most streams of members that are served at once; further ones are reset.
pub const STREAMS: usize = 512;
/// Most streams of strangers that are served at once; further ones are reset.
pub const STRANGERS: usize = 8;
/// A member's stream with no question for so long is closed.
pub(crate) const IDLE: Duration = Duration::from_secs(60);
/// A stranger, or a member that has begun a frame, has so long to finish it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// What all streams of this node share.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) node: Node,
    pub(crate) me: RaftId,
    pub(crate) faults: Faults,
    /// Known once the cluster was founded or joined.
    pub(crate) cluster: OnceLock<[u8; 16]>,
    served: Mutex<Served>,
}

#[derive(Debug, Default)]
struct Served {
    members: usize,
    strangers: usize,
}

impl Net {
    pub(crate) fn new(node: Node, me: RaftId, faults: Faults) -> Arc<Self> {
        Arc::new(Self { node, me, faults, cluster: OnceLock::new(), served: Mutex::default() })
    }

    pub(crate) fn cluster(&self) -> [u8; 16] {
        self.cluster.get().copied().unwrap_or_default()
    }

    /// The key that the tunnel below a stream has proved.
    pub(crate) fn key_of(&self, stream: &Stream) -> Option<[u8; 32]> {
        let peer = stream.peer().address.node;
        let tunnel = self.node.peers().into_iter().find(|tunnel| tunnel.peer.node == peer)?;
        tunnel.key.filter(|_| tunnel.established && tunnel.authenticated)
    }

    /// A place among those that are served; given back when it is dropped.
    fn seat(self: &Arc<Self>, stranger: bool) -> Option<Seat> {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, most) =
            if stranger { (&mut served.strangers, STRANGERS) } else { (&mut served.members, STREAMS) };
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Seat { net: self.clone(), stranger })
    }
}

struct Seat {
    net: Arc<Net>,
    stranger: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut served = self.net.served.lock().unwrap_or_else(PoisonError::into_inner);
        let count = if self.stranger { &mut served.strangers } else { &mut served.members };
        *count = count.saturating_sub(1);
    }
}
