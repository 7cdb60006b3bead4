//! What the fuzz harnesses check and what their inputs are relative to.

use super::{Connection, State};

/// Numbers of one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    /// Our sequence number of offset 0.
    pub(crate) first_seq: u32,
    /// The peer's sequence number of offset 0.
    pub(crate) peer_first_seq: u32,
    /// First offset of ours that is not acknowledged, and first that was never sent (FIN included).
    pub(crate) una: u64,
    pub(crate) nxt: u64,
    /// First offset that the peer's window does not allow.
    pub(crate) window_edge: u64,
    /// Bytes of ours neither acknowledged nor known to be lost.
    pub(crate) in_flight: u64,
    /// First offset of the peer that is missing, and the right edge of the window that we promised.
    pub(crate) received: u64,
    pub(crate) advertised_edge: u64,
    /// Received bytes in memory and segments that are remembered.
    pub(crate) held: usize,
    pub(crate) segments: usize,
    pub(crate) sacks_kept: usize,
    /// Both directions ended, or failed.
    pub(crate) ended: bool,
    pub(crate) failed: bool,
    pub(crate) established: bool,
}

impl Connection {
    pub(crate) fn view(&self) -> View {
        View {
            first_seq: self.isn.wrapping_add(1),
            peer_first_seq: self.peer_isn.wrapping_add(1),
            una: self.board.una(),
            nxt: self.board.nxt(),
            window_edge: self.window_edge,
            in_flight: self.board.in_flight(),
            received: self.recv.next(),
            advertised_edge: self.advertised_edge,
            held: self.recv.held(),
            segments: self.board.len(),
            sacks_kept: self.sacks_kept.len(),
            ended: matches!(self.state, State::Done | State::Failed(_)),
            failed: matches!(self.state, State::Failed(_)),
            established: self.state == State::Established,
        }
    }
}
