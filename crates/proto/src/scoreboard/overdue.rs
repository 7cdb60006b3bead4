//! Losses that others show: what was delivered of other connections of the path (spec/recovery.md §4.7).

use std::time::Instant;

use super::{Losses, Scoreboard, State};

impl Scoreboard {
    /// Takes for lost what is in flight and `overdue` by its send time, whatever this connection's own acknowledgements say
    /// (R4.18). What is true of a time must be true of all before it.
    pub fn detect_overdue(&mut self, overdue: impl Fn(Instant) -> bool) -> Losses {
        let mut losses = Losses::default();
        let mut index = (self.scan - self.popped) as usize;
        while let Some(segment) = self.segments.get(index) {
            if segment.state == State::InFlight && segment.transmissions == 1 {
                if !overdue(segment.sent) {
                    break;
                }
                self.mark_lost(index, &mut losses);
            }
            index += 1;
        }
        self.scan = self.popped + index as u64;
        while let Some(&resent) = self.resent.front() {
            if let Some(index) = self.find_by_end(resent.end) {
                let segment = &self.segments[index];
                if segment.state == State::InFlight && segment.transmissions == resent.transmissions {
                    if !overdue(segment.sent) {
                        break;
                    }
                    self.mark_lost(index, &mut losses);
                }
            }
            self.resent.pop_front();
        }
        if !self.lost.is_empty() {
            self.drop_stale_lost();
        }
        losses
    }

    /// (R4.20) What other connections of the path have seen: `Some` if there was reordering, with the number of spurious losses
    /// that widen the window.
    pub fn set_reordering(&mut self, elsewhere: Option<u32>) {
        self.rack.elsewhere = elsewhere;
    }

    /// When the segment was sent that [`detect_overdue`](Self::detect_overdue) would look at first. It may have been
    /// delivered meanwhile, and is passed then.
    pub fn oldest_in_flight(&self) -> Option<Instant> {
        let original = self.segments.get((self.scan - self.popped) as usize).map(|s| s.sent);
        let again = self.resent.front().map(|r| r.sent);
        [original, again].into_iter().flatten().min()
    }

    /// When the newest segment was sent that is known to be delivered (RACK.xmit_ts).
    pub fn newest_delivered(&self) -> Option<Instant> {
        self.rack.newest.map(|(sent, _)| sent)
    }

    /// When the segment at `una` was last sent.
    pub fn oldest_sent(&self) -> Option<Instant> {
        self.segments.front().map(|s| s.sent)
    }

    /// How often the segment at `una` was sent; 0 if everything is acknowledged.
    pub fn oldest_transmissions(&self) -> u32 {
        self.segments.front().map_or(0, |s| s.transmissions)
    }
}
