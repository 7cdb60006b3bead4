//! Which of several beacons relays for us. `spec/nat.md §5.4`.

use std::time::{Duration, Instant};

use super::BeaconClient;
use super::link::Link;

impl BeaconClient {
    /// A frame leaves for the primary beacon to be relayed: it must not be silent for long now.
    pub fn on_relaying(&mut self, now: Instant) {
        if self.links.is_empty() {
            return;
        }
        self.used_since.get_or_insert(now);
        self.used_last = Some(now);
    }

    /// Asks a primary that is used and says nothing, and gives its place to another that answers.
    pub(super) fn watch_primary(&mut self, now: Instant) {
        let several = self.links.len() > 1;
        if self.used_last.is_some_and(|at| now.saturating_duration_since(at) >= IN_USE) {
            (self.used_since, self.used_last) = (None, None);
        }
        if let Some(since) = self.used_since {
            let silent = now.saturating_duration_since(since);
            let (after, again) =
                if several { (PROBE_AFTER, PROBE_AFTER) } else { (PROBE_AFTER_ALONE, PROBE_AGAIN_ALONE) };
            let due =
                self.probed.is_none_or(|at| now.saturating_duration_since(at) >= again) && silent >= after;
            if due {
                self.probed = Some(now);
                self.links.iter_mut().for_each(|link| link.ask_now(now));
            }
            if several && silent >= GIVE_UP_AFTER {
                self.elect(now);
            }
        } else if several && self.unanswered() >= GIVE_UP_UNANSWERED {
            self.elect(now);
        }
    }

    /// Makes the beacon that was heard last the primary, unless it is.
    pub(super) fn elect(&mut self, now: Instant) {
        let heard = |link: &Link| link.heard.filter(|_| link.answers());
        let best = self.links.iter().enumerate().filter_map(|(index, link)| Some((heard(link)?, index)));
        // Of those heard at the same time the first.
        let best = best.max_by_key(|&(at, index)| (at, std::cmp::Reverse(index)));
        let since = self.used_since;
        if let Some((at, index)) = best
            && index != self.primary
            && since.is_none_or(|since| at >= since)
        {
            self.primary = index;
            self.settled = true;
            (self.used_since, self.probed) = (None, None);
            self.discover_nat(now);
        }
    }

    pub(super) fn next_watch(&self, since: Instant) -> Instant {
        let several = self.links.len() > 1;
        let (after, again) =
            if several { (PROBE_AFTER, PROBE_AFTER) } else { (PROBE_AFTER_ALONE, PROBE_AGAIN_ALONE) };
        self.probed.map_or(since + after, |at| (at + again).max(since + after))
    }
}

/// How long a primary beacon in use may be silent before it and the others are asked, and between two questions.
const PROBE_AFTER: Duration = Duration::from_millis(400);
/// How long it may be silent before another takes its place.
const GIVE_UP_AFTER: Duration = Duration::from_millis(1_200);
/// The same where there is no other: it may have forgotten us, or our NAT has.
const PROBE_AFTER_ALONE: Duration = Duration::from_secs(1);
const PROBE_AGAIN_ALONE: Duration = Duration::from_secs(5);
/// Unanswered questions after which a primary that is not in use is replaced.
const GIVE_UP_UNANSWERED: u32 = 3;
/// How long after the last frame for it the primary is in use.
const IN_USE: Duration = Duration::from_secs(2);
