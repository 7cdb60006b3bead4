//! Which way packets take: the tunnel's side of the path agent (spec/tunnel.md §6, rules C3, C16, C17; spec/nat.md §10).
//!
//! Two things move a path: an authentic frame of the peer that is newer than all before and came from an address that
//! has proven itself (C3), and the agent, which has addresses prove themselves, leaves a way that does not answer, and
//! prefers better ways. A frame that was copied, delayed or sent from elsewhere does neither.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_nat::agent::{Check, Locals, PathPolicy, PathReport, Use, Way};

use super::{Route, Tunnel, TunnelCx};
use crate::config::MAX_ACK_DELAY;
use crate::connection::Dialect;
use crate::event::Event;
use crate::rtt::GRANULARITY;

/// How recently the direct route must have carried a frame to be kept when one comes by the relay.
const DIRECT_FRESH: Duration = Duration::from_secs(3);
/// Shortest silence with data in flight after which a way is left: below it a busy machine looks like a dead path.
const DEAD_MIN: Duration = Duration::from_millis(200);
/// Shortest time between two questions to the beacon for pauses alone.
const ASK_BEACON_EVERY: Duration = Duration::from_secs(2);
/// The same while there is no other way than the relay.
const ASK_BEACON_ALONE: Duration = Duration::from_secs(1);
/// Connections of a tunnel that send a segment at once, whatever the window says, when our address changes.
const PROBES_AT_MOVE: usize = 4;
/// When the beacon shows that our NAT lost its table, the answer of the peer may be a quarter of a round trip behind the
/// beacon's, within these bounds.
const ANSWER_MIN: Duration = Duration::from_millis(10);
const ANSWER_MAX: Duration = Duration::from_millis(100);
/// So long after a change of our own network it is no news that the beacon sees us elsewhere, and checks pay for the peer's own.
const MOVED: Duration = Duration::from_secs(1);
/// Shortest time between two questions to the application for a newer address.
const WANT_EVERY: Duration = Duration::from_secs(3);

/// Where to begin.
pub(super) fn first_guess(
    policy: PathPolicy,
    introduced: Option<SocketAddr>,
    relay: Option<SocketAddr>,
) -> Option<Route> {
    let direct = introduced.filter(|_| policy != PathPolicy::RelayOnly).map(Route::Direct);
    direct.or(relay.filter(|_| policy != PathPolicy::DirectOnly).map(Route::Relay))
}

pub(super) fn way_of(route: Route) -> Way {
    match route {
        Route::Direct(addr) => Way::Direct(addr),
        Route::Relay(_) => Way::Relay,
    }
}

impl Tunnel {
    /// How the agent is to see this tunnel.
    pub(super) fn used(&self) -> Use {
        Use {
            keys: self.confirmed(),
            in_use: self.open_count() > 0 || self.warm_until.is_some() || self.has_work(),
            pilotage: self.dialect == Dialect::Pilotage,
            relay: self.relayed,
        }
    }

    /// A ping or a datagram keeps the tunnel in use for a while.
    pub(crate) fn warm(&mut self, now: Instant) {
        self.warm_until = Some(now + super::WARM);
    }

    /// Nothing is open and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.open_count() == 0 && !self.has_work()
    }

    /// Whether the operator lets packets to this peer take a way.
    pub(crate) fn permits(&self, route: Route) -> bool {
        self.agent.policy().permits(way_of(route))
    }

    /// The relay that packets to this peer may take.
    pub(super) fn relay_for(&self, relay: Option<SocketAddr>) -> Option<Route> {
        relay.map(Route::Relay).filter(|r| self.permits(*r))
    }

    /// There is some way to try.
    pub(crate) fn may_be_reached(&self, relay: Option<SocketAddr>) -> bool {
        self.relay_for(relay).is_some() || self.agent.first_addresses(1).next().is_some()
    }

    /// Tells the agent which way packets take now.
    pub(super) fn sync_way(&mut self, now: Instant) {
        if let Some(route) = self.path.route {
            self.agent.on_way(now, way_of(route));
        }
    }

    /// What is known of the ways to this peer.
    pub(crate) fn path_report(&self, locals: &Locals) -> PathReport {
        let rtt = self.path.rtt.has_sample().then(|| self.path.rtt.smoothed());
        self.agent.report(rtt, self.used(), locals)
    }

    /// The operator wants something else.
    pub(crate) fn set_path_policy(&mut self, policy: PathPolicy, cx: &mut TunnelCx<'_>) {
        self.agent.set_policy(policy, cx.now);
        if let Some(old) = self.path.route
            && !self.permits(old)
        {
            match first_guess(policy, self.introduced, cx.relay) {
                Some(new) => self.switch_route(old, new, true, cx),
                None => self.path.route = None,
            }
        }
    }

    /// The host has another address, or another network.
    pub(crate) fn on_network_changed(&mut self, now: Instant) {
        self.agent.on_network_changed(now);
        self.moved = Some(now);
        self.path.on_moved(now);
        self.signal = self.dialect == Dialect::Pilotage;
        if self.open_count() == 0 {
            return;
        }
        self.control.give_credit(); // whatever comes from the new address tells the peer where we are
        let mut probes = PROBES_AT_MOVE;
        self.slots.for_each(|c| {
            let probe = probes > 0 && c.awaits_peer();
            probes -= usize::from(probe);
            c.on_moved(now, probe);
        });
        self.slots.touch_all();
        if let Some(mux) = &mut self.mux {
            mux.on_moved(now, self.path.mss());
        }
        self.blocked = false;
        (self.quiet, self.lull) = (self.quiet.map(|_| now), self.lull.map(|_| now));
    }

    // ------------------------------------------------------------------ what frames say

    /// Rules C3, C16: the path follows the newest authentic frame to a proven address; a relayed one does not replace a direct route that works.
    pub(super) fn on_valid_route(&mut self, route: Route, cx: &mut TunnelCx<'_>) {
        if !self.permits(route) {
            return;
        }
        if let Route::Direct(_) = route {
            self.path.direct_heard = Some(cx.now);
        }
        let trusted = self.trusts(route);
        if !trusted {
            self.want_token(route, cx.now);
        }
        let Some(old) = self.path.route else {
            self.path.route = Some(route);
            return;
        };
        if old == route {
            self.newest_route = None;
            return;
        }
        if !trusted {
            self.newest_route = Some(route); // until its token comes back
            // The peer is there, only elsewhere: whether it moved, its token tells sooner than silence on the old way.
            self.quiet = self.quiet.map(|_| cx.now);
            self.lull = self.lull.map(|_| cx.now);
            self.agent.on_alive();
            return;
        }
        self.follow(old, route, cx);
    }

    /// An authentic frame came, the newest or not: the address may be one of the peer's.
    pub(super) fn on_authentic(&mut self, route: Route, now: Instant) {
        self.on_heard_again(now);
        if self.path.route == Some(route) {
            self.quiet = None;
            self.agent.on_alive();
        } else if let Route::Direct(addr) = route
            && self.dialect == Dialect::Pilotage
            && self.permits(route)
        {
            if self.agent.knows(addr) {
                self.want_token(route, now); // a triggered check (RFC 8445 §7.3.1.4)
            }
            self.agent.on_heard(now, addr);
        }
    }

    fn want_token(&mut self, route: Route, now: Instant) {
        if let Route::Direct(addr) = route
            && !self.trusts(route)
            && self.addresses.wants_token(addr, now)
        {
            self.ask_token = Some(addr);
        }
    }

    /// A token came back: the address is the peer's. If the newest frame came from there, or the agent likes it better
    /// than the way in use, the path follows.
    pub(super) fn on_token(&mut self, token: u32, cx: &mut TunnelCx<'_>) {
        let Some(route @ Route::Direct(addr)) = self.arrived else { return };
        let Some(answer) = self.addresses.on_token(addr, token, cx.now) else { return };
        self.sync_way(cx.now);
        let better = self.agent.on_answer(cx.now, addr, answer.rtt);
        let Some(old) = self.path.route else { return };
        if old == route {
            self.quiet = None;
            return;
        }
        if self.newest_route == Some(route) {
            self.follow(old, route, cx);
        } else if better == Some(Way::Direct(addr)) {
            self.left = Some((old, cx.now + DIRECT_FRESH));
            self.switch_route(old, route, false, cx);
        }
    }

    fn follow(&mut self, old: Route, route: Route, cx: &mut TunnelCx<'_>) {
        self.newest_route = None;
        // A Pilotage peer sends by the relay only while it has nothing better.
        let fresh = if self.may_leave() { self.ask_time().max(DEAD_MIN) } else { DIRECT_FRESH };
        let direct_works =
            self.path.direct_heard.is_some_and(|t| cx.now.saturating_duration_since(t) < fresh)
                && matches!(old, Route::Direct(_));
        if matches!(route, Route::Relay(_)) && direct_works {
            return;
        }
        // What was under way on the old path when we left it, and what comes by a way that is dead in our direction.
        if self.left.is_some_and(|(left, until)| left == route && cx.now < until)
            || self.agent.is_given_up(way_of(route))
        {
            return;
        }
        if self.may_leave() && self.agent.stays(way_of(old), way_of(route)) {
            // Both ways work and we are the one who chooses; unless the one in use has died for the peer, which the doubt
            // shows. Where there is none (inside this host) the newest frame is right: the peer may have started again.
            self.doubt(cx.now, true);
            return;
        }
        self.switch_route(old, route, false, cx);
    }

    pub(super) fn switch_route(&mut self, old: Route, new: Route, dead: bool, cx: &mut TunnelCx<'_>) {
        let same_host = old.kind() == new.kind() && old.remote().ip() == new.remote().ip();
        if same_host && !dead {
            self.path.route = Some(new); // a new port of the same host: measurements stay (RFC 9000 §9.4)
            if matches!(old, Route::Direct(_)) {
                self.send_again(cx.now); // but its NAT has forgotten the old one
            }
        } else {
            let in_flight = self.path.in_flight;
            let direct_heard = self.path.direct_heard;
            self.path = self.fresh_path(Some(new), cx.cfg);
            self.path.in_flight = in_flight;
            self.path.direct_heard = direct_heard;
            if dead || matches!(old, Route::Direct(_)) {
                // What is on its way to where the peer no longer is will not arrive; waiting for the initial timeout of
                // the new path would only show that a second later. The new window bounds what goes out again.
                self.send_again(cx.now);
            }
            self.blocked = false;
        }
        self.quiet = None;
        self.follow.on_switch();
        self.sync_way(cx.now);
        if let Some(path) = self.path.info() {
            let reason = self.agent.reason(self.used(), cx.locals);
            cx.events.push_back(Event::PathChanged { peer: self.node, path, reason });
        }
    }

    // ------------------------------------------------------------------ silence (rule C17)

    /// Data has left on the way in use.
    pub(super) fn on_data_sent(&mut self, now: Instant) {
        if self.path.in_flight > 0 && self.quiet.is_none() {
            self.quiet = Some(now);
        }
    }

    /// The probe timeout of the way in use.
    fn pto(&self) -> Duration {
        self.path.rtt.pto(MAX_ACK_DELAY)
    }

    /// There is somewhere else to go. Reference peers are left to their own rules: one relayed frame would keep them on
    /// the relay. A way inside this host does not die; who is silent there is busy.
    fn may_leave(&self) -> bool {
        let inside = matches!(self.path.route, Some(Route::Direct(a)) if a.ip().to_canonical().is_loopback());
        !inside && self.keyed() && self.dialect == Dialect::Pilotage && self.agent.has_other(self.relayed)
    }

    /// A segment came for a connection. If it came from an address that has not proven itself, which the path would follow, it is
    /// acknowledged there at once, within what that address may be sent: a round trip earlier than by the path.
    pub(crate) fn on_segment(&mut self, slot: u32) {
        let elsewhere = self.newest_route.is_some() && self.newest_route == self.arrived;
        if elsewhere
            && self.dialect == Dialect::Pilotage
            && self.slots.get_mut(slot).is_some_and(|c| c.owes_ack())
        {
            self.ack_copy = Some(slot);
        }
    }

    /// Packets take the relay, which is all there is.
    fn is_relayed_only(&self) -> bool {
        matches!(self.path.route, Some(Route::Relay(_))) && self.keyed() && self.dialect == Dialect::Pilotage
    }

    /// The beacon sees us elsewhere than before: what left before it knew was not relayed, nor what came for us.
    pub(crate) fn on_mapping_changed(&mut self, now: Instant) {
        if self.open_count() == 0 || self.dialect != Dialect::Pilotage {
            return;
        }
        // Whoever waits for our acknowledgements hears us again; and where the peer's NAT lets in only whom the peer has written
        // to, the way in use leads nowhere until the peer knows the new address, which it hears by the relay alone.
        self.signal = true;
        if self.is_relayed_only() {
            self.send_again(now);
        } else if self.agent.is_doubted() && !self.has_just_moved(now) {
            // Our NAT has lost its table, and with it the way in use, unless an answer is just coming.
            self.agent.hasten(now + (self.path.rtt.smoothed() / 4).clamp(ANSWER_MIN, ANSWER_MAX));
        }
    }

    /// Whether our own network changed a moment ago.
    pub(super) fn has_just_moved(&self, now: Instant) -> bool {
        self.moved.is_some_and(|t| now.saturating_duration_since(t) < MOVED)
    }

    /// What is in flight was lost with the way, or with what the way was silent for.
    fn send_again(&mut self, now: Instant) {
        let Self { slots, path, mux, .. } = self;
        slots.for_each(|c| c.on_old_path_gone(now, path));
        slots.touch_all();
        if let Some(mux) = mux {
            mux.on_path_gone(now, path);
        }
        self.blocked = false;
    }

    /// The peer is heard again after a silence in which retransmissions were in vain: the next need not wait for its timer.
    fn on_heard_again(&mut self, now: Instant) {
        let silent = self.heard.replace(now).map(|t| now.saturating_duration_since(t));
        if self.dialect == Dialect::Pilotage
            && self.path.in_flight > 0
            && silent.is_some_and(|silent| silent > (self.half_time() * 2).max(DEAD_MIN))
            && (self.slots.iter().any(crate::connection::Connection::is_backed_off)
                || self.mux.as_ref().is_some_and(|mux| mux.is_backed_off()))
        {
            self.send_again(now);
        }
    }

    /// The way in use should have brought something by now.
    fn doubt(&mut self, now: Instant, strict: bool) {
        if self.may_leave() {
            self.sync_way(now);
            let since = self.quiet.filter(|_| !strict).unwrap_or(now);
            let until = (since + self.half_time() * 2).max(now + self.half_time());
            self.agent.doubt(now, until, strict);
        }
    }

    /// Silence with data in flight after which the way is asked: the probe timeout of RFC 9002 §6.2.1, which on a steady way is
    /// shorter than ours. To ask costs one packet; the way is left no sooner for it.
    fn ask_time(&self) -> Duration {
        let rtt = &self.path.rtt;
        if !rtt.has_sample() {
            return self.half_time();
        }
        let steady = rtt.smoothed() + (rtt.variance() * 4).max(GRANULARITY) + MAX_ACK_DELAY;
        steady.min(self.pto()).max(DEAD_MIN / 2)
    }

    /// Half of the silence after which a way is left.
    fn half_time(&self) -> Duration {
        self.pto().max(DEAD_MIN / 2)
    }

    /// A retransmission timed out although frames may still come.
    pub(crate) fn doubt_way(&mut self, now: Instant) {
        if matches!(self.path.route, Some(Route::Direct(_))) {
            self.doubt(now, true);
        }
    }

    /// When the silence is long enough to ask: data in flight is not answered, or data that came is not followed by more.
    fn quiet_deadline(&self) -> Option<Instant> {
        let somewhere = self.may_leave() || self.is_relayed_only();
        if self.agent.is_doubted() || (self.quiet.is_none() && self.lull.is_none()) || !somewhere {
            return None;
        }
        let unanswered = self.quiet.filter(|_| self.path.in_flight > 0).map(|t| t + self.ask_time());
        // By the relay what comes may have other ways to go to; but where the relay is all there is, it has not.
        let asked = matches!(self.path.route, Some(Route::Direct(_))) || self.is_relayed_only();
        let lull = self.lull.filter(|_| asked).map(|t| t + self.half_time() * 2);
        [unanswered, lull].into_iter().flatten().min()
    }

    pub(super) fn way_deadline(&self) -> Option<Instant> {
        [self.agent.doubt_deadline(), self.quiet_deadline()].into_iter().flatten().min()
    }

    pub(super) fn on_way_timeout(&mut self, cx: &mut TunnelCx<'_>) {
        self.relayed = cx.relay.is_some();
        self.addresses.refill(cx.now);
        self.sync_way(cx.now);
        if self.path.in_flight == 0 {
            self.quiet = None;
        }
        if self.open_count() == 0 {
            self.lull = None;
        }
        if self.quiet_deadline().is_some_and(|t| t <= cx.now) {
            self.lull = None; // one question for each pause
            if self.may_leave() {
                self.doubt(cx.now, false);
                self.ask_beacon(cx.now, ASK_BEACON_EVERY);
            } else {
                // Nothing else to go to; but the beacon may have lost us, because our NAT has.
                self.quiet = self.quiet.map(|_| cx.now);
                self.ask_beacon(cx.now, ASK_BEACON_ALONE);
            }
        }
        if self.agent.is_dead(cx.now) {
            self.leave_dead_way(cx);
        }
    }

    fn leave_dead_way(&mut self, cx: &mut TunnelCx<'_>) {
        let Some(old) = self.path.route else { return };
        let relay = self.relay_for(cx.relay);
        let new = match self.agent.on_dead(cx.now, relay.is_some()) {
            Some(Way::Direct(addr)) => Some(Route::Direct(addr)),
            Some(Way::Relay) => relay,
            None => None,
        };
        self.quiet = None;
        self.lull = None;
        if let Some(new) = new.filter(|new| *new != old) {
            self.newest_route = None;
            self.switch_route(old, new, true, cx);
            self.ask_beacon(cx.now, DEAD_MIN);
        }
    }

    /// If the way in use is silent our own mapping may be gone, and with it the one at the beacon.
    fn ask_beacon(&mut self, now: Instant, pause: Duration) {
        if self.asked_beacon.is_none_or(|t| now.saturating_duration_since(t) >= pause) {
            self.asked_beacon = Some(now);
            self.lost_way = true;
        }
    }

    /// The relay has changed: those who use the old one go to the new one.
    pub(crate) fn on_relay_changed(&mut self, cx: &mut TunnelCx<'_>) {
        self.relayed = cx.relay.is_some();
        let (Some(old @ Route::Relay(_)), Some(new)) = (self.path.route, self.relay_for(cx.relay)) else {
            return;
        };
        if old != new {
            self.switch_route(old, new, true, cx);
        }
    }

    /// Nobody answers where the peer should be: perhaps the application knows better by now.
    pub(super) fn want_address(&mut self, cx: &mut TunnelCx<'_>) {
        let lately = |t: Instant| cx.now.saturating_duration_since(t) < WANT_EVERY;
        if !self.wanted.is_some_and(lately) {
            self.wanted = Some(cx.now);
            self.agent.note(cx.now, pilotage_nat::agent::PathEventKind::AddressWanted);
            cx.events.push_back(Event::AddressWanted { peer: self.node });
        }
    }

    // ------------------------------------------------------------------ checks out

    /// The next check that is due, as an address whose token is to be asked for; punches are for the endpoint to send.
    pub(super) fn poll_check(&mut self, cx: &mut TunnelCx<'_>) -> Option<Check> {
        self.sync_way(cx.now);
        let check = self.agent.poll_check(cx.now, self.used(), cx.locals);
        if let Some(target) = self.agent.take_fan() {
            cx.events.push_back(Event::SocketsWanted { peer: self.node, target });
        }
        let check = check?;
        if let Check::Token(addr) = check
            && self.agent.knows(addr)
        {
            self.addresses.name(addr, cx.now);
        }
        Some(check)
    }

    /// Whether the agent has something to send now.
    pub(super) fn check_waits(&self, now: Instant, locals: &Locals) -> bool {
        let used = self.used();
        self.agent.offer_due(now, used, locals) || self.agent.check_due(now, used, locals)
    }
}
