//! How often a peer's key exchange frames are answered.

use std::time::Instant;

/// Answers that one peer gets in a row by each kind of way; then one a second (rules C1, C2).
const ANSWER_BURST: u32 = 4;

/// How many answers may still be given in a row.
#[derive(Debug, Default)]
pub(super) struct Answers {
    left: u32,
    refilled: Option<Instant>,
}

impl Answers {
    /// Whether one may be given now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        match self.refilled {
            None => self.left = ANSWER_BURST,
            Some(at) => {
                let seconds = now.saturating_duration_since(at).as_secs() as u32;
                if seconds == 0 && self.left == 0 {
                    return false;
                }
                self.left = self.left.saturating_add(seconds).min(ANSWER_BURST);
                if seconds == 0 {
                    self.left -= 1;
                    return true;
                }
            }
        }
        self.refilled = Some(now);
        self.left = self.left.saturating_sub(1);
        true
    }
}
