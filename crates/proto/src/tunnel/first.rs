//! The first call of a peer whose prekey is not known (spec/secure.md §12.2): it is asked for together with the draft's keys, and
//! connections wait a moment for the streams of S1 that can be had with it.
//!
//! Both take two round trips before the first byte, so waiting costs none: with the draft's keys SYN would leave when the initiation
//! does. What is waited for is known to be under way, and not for long: whoever withholds it delays a call by less than two
//! round trips.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_wire::s1::Kind;

use super::secure::Secured;
use super::{Route, Tunnel, TunnelCx};
use crate::connection::{Connection, Dialect};
use crate::secure::Mode;

/// So many of the addresses that the application named besides the introduced one are asked.
const NAMED_FIRST: usize = 4;
/// Round trip that is taken for one that nobody has measured.
const RTT_UNKNOWN: Duration = Duration::from_millis(100);
/// Longest wait for one answer.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// What a peer may need to compute its answer, and a queue to let it pass.
const SLACK: Duration = Duration::from_millis(10);
/// By so many ways one question may be answered; more of its answers are copies.
const WAYS_MAX: usize = NAMED_FIRST + 2;

impl Secured {
    /// Whether a cookie or a prekey that comes now is the first. What is told again puts nothing off.
    pub(super) fn is_news(&self, kind: Kind) -> bool {
        if kind == Kind::Cookie { !self.assoc.has_cookie() } else { !self.assoc.knows_prekey() }
    }

    /// What follows PILN that came by this way: the initiation of its own (`next`), or the one that followed another answer to the same
    /// question, which went several ways. It goes along a direct way as well, since it may arrive there first, and once along each: else
    /// copies of one PILN were as many initiations, which use up the rate of the peer for us.
    pub(super) fn or_again(&mut self, next: Option<Vec<u8>>, route: Route) -> Option<Vec<u8>> {
        if next.is_some() {
            self.followed.clear();
        } else if !matches!(route, Route::Direct(_))
            || self.followed.len() >= WAYS_MAX
            || self.followed.contains(&route)
        {
            return None;
        } else {
            self.assoc.sent_again();
        }
        self.followed.push(route);
        Some(next.unwrap_or_else(|| self.initiation.clone()))
    }
}

impl Tunnel {
    /// The draft's keys are asked for. In `auto` the peer is asked for its prekey as well, if it can be told: S1 needs its identity.
    pub(super) fn ask_prekey_too(&mut self, cx: &mut TunnelCx<'_>) {
        let known = self.secure.as_ref().is_some_and(|s| s.assoc.knows_prekey() || s.rested);
        let draft = self.dialect_shown && self.dialect == Dialect::Draft;
        let streams = cx.secure.as_ref().is_some_and(|secure| secure.streams);
        if streams && !known && !draft && self.key.is_some() && self.floor < Mode::S1 {
            self.begin_s1(None, cx);
        }
    }

    /// The draft's keys are agreed. If the peer marked its answer as ours, its prekey comes with it, or has come; if it called us while we
    /// called it (`crossed`), its answers are yet to come.
    pub(super) fn wait_for_streams(&mut self, crossed: bool, cx: &mut TunnelCx<'_>) {
        if !self.is_asking_s1() || !self.exchange_asked() {
            return;
        }
        let rtt = self.rtt_or_guess();
        let Some(secured) = &mut self.secure else { return };
        if self.dialect == Dialect::Pilotage {
            let wait = match (secured.assoc.knows_prekey(), crossed) {
                (true, _) => rtt * 3 / 2,
                (false, true) => rtt,
                (false, false) => rtt / 4,
            };
            secured.hold_until = Some(cx.now + wait.min(WAIT_MAX) + SLACK);
        } else if !secured.assoc.knows_prekey()
            && let Some(secure) = cx.secure.as_deref_mut()
        {
            // A peer of the draft does not know what we asked. Should it be ours after all, it is asked again (§12.4).
            secured.assoc.abandon(&mut secure.node);
        }
    }

    /// An initiation has left: with the prekey that came, or a cookie. Its answer is waited for if that was `news`.
    pub(super) fn wait_for_response(&mut self, news: bool, now: Instant) {
        let rtt = self.rtt_or_guess();
        if let Some(secured) = &mut self.secure
            && secured.hold_until.is_some_and(|until| until > now)
            && news
        {
            secured.hold_until = Some(now + (rtt * 3 / 2).min(WAIT_MAX) + SLACK);
        }
    }

    /// Whether this connection waits for streams of S1: it has said nothing yet.
    pub(super) fn waits_for_streams(&self, slot: u32, now: Instant) -> bool {
        let holds = self.secure.as_ref().is_some_and(|s| s.hold_until.is_some_and(|until| until > now));
        holds && self.slots.get(slot).is_some_and(Connection::is_silent)
    }

    /// Waited long enough: connections of the draft begin.
    pub(super) fn end_wait(&mut self, now: Instant) {
        if let Some(secured) = &mut self.secure
            && secured.hold_until.is_some_and(|until| until <= now)
        {
            secured.hold_until = None;
            self.blocked = false;
        }
    }

    /// Addresses that the application named, the first of them.
    pub(super) fn first_named(&self) -> Vec<SocketAddr> {
        self.agent.first_addresses(NAMED_FIRST).collect()
    }

    /// S1 has keys and the path is the one by which they came: what the handshake has measured is its first sample.
    pub(super) fn take_measured(&mut self) {
        let measured = self.secure.as_mut().and_then(|secured| secured.assoc.take_measured());
        if let Some(measured) = measured.filter(|_| !self.path.rtt.has_sample()) {
            self.path.rtt.update(measured);
        }
    }

    fn rtt_or_guess(&self) -> Duration {
        if self.path.rtt.has_sample() {
            return self.path.rtt.smoothed();
        }
        self.secure.as_ref().and_then(|secured| secured.assoc.measured()).unwrap_or(RTT_UNKNOWN)
    }
}
