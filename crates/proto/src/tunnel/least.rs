//! The least mode of a tunnel, when it comes to be known late (spec/secure.md §12.1).

use super::{PREVIOUS_KEPT, Tunnel, TunnelCx};
use crate::secure::Mode;

impl Tunnel {
    /// The peer, by its record, or the operator demands so much. What the draft's keys sealed so far is under way; nothing more
    /// leaves under them.
    pub(crate) fn demand(&mut self, least: Mode, cx: &mut TunnelCx<'_>) {
        self.floor = self.floor.max(least);
        let asks_draft = self.exchange.is_running() && !self.is_asking_s1();
        let draft = self.current.is_some() || !self.candidates.is_empty() || asks_draft;
        if self.floor < Mode::S1 || !draft {
            return;
        }
        if let Some(old) = self.current.take() {
            self.previous = Some((old, cx.now + PREVIOUS_KEPT));
        }
        self.candidates.clear();
        self.exchange.end();
        self.revive_at = None;
        if self.open_count() > 0 || self.has_work() {
            self.want_keys(cx);
        }
    }
}
