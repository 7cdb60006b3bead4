//! When our candidates are told, and until when that is repeated.

use std::time::{Duration, Instant};

use super::candidate::Candidate;
use super::message::{Offer, is_newer};
use super::{Locals, PathPolicy, Use};

/// First wait for the peer's confirmation; doubles.
const AGAIN_FIRST: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(4);
/// So often one offer is sent without an answer. An older Pilotage peer does not know the message.
const TRIES_MAX: u32 = 8;
/// At most one answer in this time.
const ANSWER_EVERY: Duration = Duration::from_millis(100);

/// Both directions of the exchange.
#[derive(Debug)]
pub(super) struct Offers {
    /// Offers wait for nothing that was before.
    born: Instant,
    /// Number of our newest offer, 0 before the first.
    sequence: u32,
    /// What it told.
    version: u32,
    /// It has to be told anew although nothing in it changed.
    stale: bool,
    confirmed: bool,
    tries: u32,
    sent: Option<Instant>,
    /// The newest offer of the peer.
    seen: u32,
    /// The peer waits to hear that we have it.
    owed: bool,
}

impl Offers {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            born: now,
            sequence: 0,
            version: 0,
            stale: false,
            confirmed: false,
            tries: 0,
            sent: None,
            seen: 0,
            owed: false,
        }
    }

    /// What we told is old: tell it again.
    pub(super) fn renew(&mut self) {
        self.stale = true;
    }

    /// Takes the peer's; whether it is newer than what we have.
    pub(super) fn on_offer(&mut self, offer: &Offer) -> bool {
        if self.sequence != 0 && offer.seen == self.sequence {
            self.confirmed = true;
        }
        let news = is_newer(offer.sequence, self.seen);
        if news {
            self.seen = offer.sequence;
        }
        // An older one that came late has been answered. Who is settled, and knows our newest, waits for nothing.
        let current = offer.sequence == self.seen;
        self.owed |= current && (!offer.settled || offer.seen != self.sequence);
        news
    }

    pub(super) fn has_theirs(&self) -> bool {
        self.seen != 0
    }

    fn changed(&self, locals: &Locals) -> bool {
        self.stale || self.sequence == 0 || self.version != locals.version
    }

    /// When the next one leaves.
    pub(super) fn deadline(&self, used: Use, locals: &Locals, policy: PathPolicy) -> Option<Instant> {
        if !used.keys || !used.pilotage {
            return None;
        }
        let after = |wait: Duration| self.sent.map(|t| t + wait);
        if self.owed {
            return Some(after(ANSWER_EVERY).unwrap_or(self.born));
        }
        let silent = policy == PathPolicy::RelayOnly || locals.candidates.is_empty() || locals.udp_blocked;
        if silent || !used.in_use {
            return None;
        }
        if self.changed(locals) {
            return Some(after(ANSWER_EVERY).unwrap_or(self.born));
        }
        if self.confirmed || self.tries >= TRIES_MAX {
            return None;
        }
        after((AGAIN_FIRST * (1 << self.tries.saturating_sub(1).min(8))).min(AGAIN_MAX))
    }

    pub(super) fn due(&self, now: Instant, used: Use, locals: &Locals, policy: PathPolicy) -> bool {
        self.deadline(used, locals, policy).is_some_and(|t| t <= now)
    }

    /// The next offer, counted as sent.
    pub(super) fn next(
        &mut self,
        now: Instant,
        locals: &Locals,
        candidates: Vec<Candidate>,
        lost: bool,
    ) -> Offer {
        if self.changed(locals) {
            self.sequence = self.sequence.checked_add(1).unwrap_or(1);
            self.version = locals.version;
            self.stale = false;
            self.confirmed = false;
            self.tries = 0;
        }
        self.tries = self.tries.saturating_add(1);
        self.sent = Some(now);
        self.owed = false;
        Offer {
            mapping: locals.mapping,
            lost,
            settled: self.confirmed,
            sequence: self.sequence,
            seen: self.seen,
            candidates,
        }
    }
}
