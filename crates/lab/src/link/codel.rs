//! CoDel, RFC 8289 section 5: drops at the head of the queue when the wait has been too long for too long.

use std::time::{Duration, Instant};

use super::config::CoDelConfig;

/// What CoDel remembers about one queue.
#[derive(Debug, Default)]
pub(super) struct CoDel {
    /// When the wait will have been too long for one interval.
    first_above: Option<Instant>,
    /// When the next packet is dropped.
    drop_next: Option<Instant>,
    count: u32,
    last_count: u32,
    phase: Phase,
}

/// Whether the queue is being drained by drops.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    /// The first drop of a series was just now: the packet behind it passes in any case.
    Begun,
    Dropping,
}

/// A packet about to leave the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    /// How long it waited.
    pub(super) sojourn: Duration,
    /// Bytes that wait behind it.
    pub(super) behind: usize,
}

impl CoDel {
    /// Whether this packet is dropped instead of sent. Called for one head after the other (`first` for the first of
    /// them) until one is kept; no head says that the queue is empty.
    pub(super) fn drops(
        &mut self,
        now: Instant,
        head: Option<Head>,
        config: CoDelConfig,
        first: bool,
    ) -> bool {
        let too_long = self.too_long(now, head, config);
        match self.phase {
            Phase::Idle if too_long => {
                self.begin(now, config);
                true
            }
            Phase::Idle => false,
            Phase::Begun if !first => {
                self.phase = Phase::Dropping;
                false
            }
            Phase::Begun | Phase::Dropping if !too_long => {
                self.phase = Phase::Idle;
                false
            }
            Phase::Begun | Phase::Dropping => {
                self.phase = Phase::Dropping;
                if !first && let Some(next) = self.drop_next {
                    // The head before was dropped just now: the next drop is due later.
                    self.drop_next = Some(control_law(next, config.interval, self.count));
                }
                let due = self.drop_next.is_some_and(|next| now >= next);
                self.count += u32::from(due);
                due
            }
        }
    }

    /// `dodequeue` of the RFC.
    fn too_long(&mut self, now: Instant, head: Option<Head>, config: CoDelConfig) -> bool {
        // One full packet may always wait: at low rates its transmission alone exceeds the target.
        let long = head.is_some_and(|head| head.sojourn >= config.target && head.behind > super::FULL_PACKET);
        if !long {
            self.first_above = None;
            return false;
        }
        match self.first_above {
            None => {
                self.first_above = Some(now + config.interval);
                false
            }
            Some(at) => now >= at,
        }
    }

    /// The first drop of a series. If the last series ended recently, it goes on at the drop rate it had.
    fn begin(&mut self, now: Instant, config: CoDelConfig) {
        let delta = self.count.saturating_sub(self.last_count);
        let recent = self
            .drop_next
            .is_some_and(|next| now.saturating_duration_since(next) < config.interval.saturating_mul(16));
        self.count = if delta > 1 && recent { delta } else { 1 };
        self.last_count = self.count;
        self.drop_next = Some(control_law(now, config.interval, self.count));
        self.phase = Phase::Begun;
    }
}

fn control_law(from: Instant, interval: Duration, count: u32) -> Instant {
    from + interval.div_f64(f64::from(count.max(1)).sqrt())
}
