//! One connection as an operator sees it.

use super::{Connection, State};
use crate::congestion::Controller;
use crate::event::{ConnectionInfo, ConnectionState};
use crate::tunnel::path::Path;

impl Connection {
    /// What a list of connections shows. Window and round trip are those of the path, which connections share.
    pub(crate) fn info(&self, path: &Path) -> ConnectionInfo {
        ConnectionInfo {
            id: self.id,
            local: self.local,
            remote: self.remote,
            incoming: self.incoming,
            state: match self.state {
                State::SynSent => ConnectionState::SynSent,
                State::SynReceived => ConnectionState::SynReceived,
                State::Established if self.fin_queued => ConnectionState::FinWait,
                State::Established if self.peer_fin_reached => ConnectionState::CloseWait,
                State::Established => ConnectionState::Established,
                State::Done | State::Failed(_) => ConnectionState::Closed,
            },
            stats: self.stats(),
            congestion_window: path.controller.window(),
            slow_start_threshold: path.controller.ssthresh(),
            in_flight: self.board.in_flight(),
            rtt: path.rtt.has_sample().then(|| (path.rtt.smoothed(), path.rtt.variance())),
            unacknowledged: self.unacknowledged(),
            out_of_order: self.recv.held().saturating_sub(self.recv.readable()),
            unread: self.recv.readable(),
            peer_window: self.window_edge.saturating_sub(self.board.una()),
            own_window: self.advertised_edge.saturating_sub(self.recv.next()),
            recovering: self.board.has_lost(),
        }
    }
}
