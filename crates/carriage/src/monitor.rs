//! Whether UDP reaches the beacon, and what to do where it does not. Knows no clock and no socket.
//!
//! UDP is in doubt while something was sent to the beacon and nothing has come back since. A link is opened after
//! [`FIRST_DOUBT`] at the start, [`LATER_DOUBT`] once the beacon had answered; with a doubt that still lasts when the link
//! is ready, datagrams are carried. While they are, a probe now and then finds out whether UDP works again: two answers in
//! a row, and it is used. A return that did not hold makes the next ones rarer.

use std::time::{Duration, Instant};

/// Silence at the start after which a link is opened. A link that was not needed costs a handshake, one that is costs the user
/// the wait.
pub(crate) const FIRST_DOUBT: Duration = Duration::from_millis(500);
/// The same once UDP had worked: a loss now and then is no reason.
const LATER_DOUBT: Duration = Duration::from_secs(2);
/// Between two probes while in doubt.
const DOUBT_PROBE: Duration = Duration::from_millis(500);
/// Between two probes while carried: at first, and at most.
const FIRST_PROBE: Duration = Duration::from_secs(5);
const MAX_PROBE: Duration = Duration::from_secs(300);
/// The probe that confirms an answer.
const CONFIRM: Duration = Duration::from_secs(1);
/// How long the answer to a probe is waited for.
const ANSWER: Duration = Duration::from_secs(3);
/// A return to UDP that lasts less did not hold.
const HOLD: Duration = Duration::from_secs(60);
/// Between two attempts to open a link: at first, and at most.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(60);
/// A link that is not needed is closed after this long.
const UNUSED: Duration = Duration::from_secs(10);

/// What the owner has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send a discover to the beacon, by UDP whatever else is carried.
    Probe,
    /// Open a link, then say [`Monitor::on_opened`] or [`Monitor::on_lost`].
    Open,
    /// From now on every datagram for the beacon goes through the link. Register there.
    Carry,
    /// From now on every datagram for the beacon goes by UDP. Register there.
    Return,
    /// The link is not needed any more.
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    Closed,
    Opening,
    Open,
}

/// See the module's text. Call [`Monitor::poll`] until `None` after each call that takes a time, and when
/// [`Monitor::timeout`] is due.
#[derive(Debug)]
pub struct Monitor {
    link: LinkState,
    carried: bool,
    ever_heard: bool,
    /// When the first datagram was sent that nothing has come back for.
    doubt: Option<Instant>,
    next_probe: Option<Instant>,
    /// Answers to probes in a row, while carried.
    answers: u32,
    last_probe: Option<Instant>,
    probe_every: Duration,
    returned: Option<Instant>,
    next_open: Option<Instant>,
    failures: u32,
    unused_since: Option<Instant>,
    say: Option<Action>,
}

impl Default for Monitor {
    fn default() -> Self {
        Self {
            link: LinkState::Closed,
            carried: false,
            ever_heard: false,
            doubt: None,
            next_probe: None,
            answers: 0,
            last_probe: None,
            probe_every: FIRST_PROBE,
            returned: None,
            next_open: None,
            failures: 0,
            unused_since: None,
            say: None,
        }
    }
}

impl Monitor {
    /// Whether datagrams go through the link.
    pub fn is_carried(&self) -> bool {
        self.carried
    }

    /// Whether something was sent by UDP that nothing has come back for.
    pub fn in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    /// A datagram went to the beacon by UDP.
    pub fn on_sent(&mut self, now: Instant) {
        if !self.carried && self.doubt.is_none() {
            self.doubt = Some(now);
            self.next_probe = Some(now + DOUBT_PROBE);
        }
    }

    /// A datagram came from the beacon by UDP.
    pub fn on_heard(&mut self, now: Instant) {
        self.ever_heard = true;
        if !self.carried {
            self.doubt = None;
            self.next_probe = None;
            self.failures = 0;
            self.next_open = None;
            if self.link != LinkState::Closed && self.unused_since.is_none() {
                self.unused_since = Some(now);
            }
            return;
        }
        let asked = self.last_probe.is_some_and(|at| now.saturating_duration_since(at) <= ANSWER);
        if !asked {
            return;
        }
        // One answer counts once, however often it comes.
        self.last_probe = None;
        self.answers += 1;
        if self.answers < 2 {
            self.next_probe = Some(now + CONFIRM);
            return;
        }
        self.carried = false;
        self.answers = 0;
        self.next_probe = None;
        self.returned = Some(now);
        self.unused_since = Some(now);
        self.say = Some(Action::Return);
    }

    /// The link is ready.
    pub fn on_opened(&mut self, now: Instant) {
        self.link = LinkState::Open;
        self.failures = 0;
        self.unused_since = Some(now);
        self.consider(now);
    }

    /// The link has ended, or could not be opened.
    pub fn on_lost(&mut self, now: Instant) {
        self.link = LinkState::Closed;
        self.unused_since = None;
        let pause = (FIRST_RETRY * (1 << self.failures.min(6))).min(MAX_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.next_open = Some(now + pause);
        if self.carried {
            // Nothing is known of UDP but that it did not work a while ago: stay in doubt.
            self.carried = false;
            self.doubt = Some(now);
            self.next_probe = Some(now + DOUBT_PROBE);
            self.say = Some(Action::Return);
        }
    }

    /// The host has joined another network: what was learnt about the old one counts no more.
    pub fn on_network_change(&mut self, now: Instant) {
        self.probe_every = FIRST_PROBE;
        self.failures = 0;
        self.next_open = None;
        if self.carried {
            self.answers = 0;
            self.next_probe = Some(now);
        } else {
            self.doubt = Some(now);
            self.next_probe = Some(now);
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        if let Some(action) = self.say.take() {
            return Some(action);
        }
        if self.next_probe.is_some_and(|at| at <= now) {
            self.plan_probe(now);
            return Some(Action::Probe);
        }
        if self.link == LinkState::Closed && self.open_at().is_some_and(|at| at <= now) {
            self.link = LinkState::Opening;
            return Some(Action::Open);
        }
        if self.link == LinkState::Open && !self.carried {
            self.consider(now);
            if let Some(action) = self.say.take() {
                return Some(action);
            }
            if self.close_at().is_some_and(|at| at <= now) {
                self.link = LinkState::Closed;
                self.unused_since = None;
                return Some(Action::Close);
            }
        }
        None
    }

    /// When [`Monitor::poll`] has something to say by itself.
    pub fn timeout(&self) -> Option<Instant> {
        let open = self.open_at().filter(|_| self.link == LinkState::Closed);
        [self.next_probe, open, self.close_at(), self.carry_at()].into_iter().flatten().min()
    }

    /// Carries if UDP has been silent for long enough.
    fn consider(&mut self, now: Instant) {
        if self.carry_at().is_some_and(|at| at <= now) {
            self.carried = true;
            self.doubt = None;
            self.answers = 0;
            self.unused_since = None;
            let held = self.returned.is_none_or(|at| now.saturating_duration_since(at) >= HOLD);
            self.probe_every = if held { FIRST_PROBE } else { (self.probe_every * 2).min(MAX_PROBE) };
            self.next_probe = Some(now + self.probe_every);
            self.say = Some(Action::Carry);
        }
    }

    fn plan_probe(&mut self, now: Instant) {
        if self.carried {
            if self.last_probe.is_some() {
                // The one before was not answered.
                self.answers = 0;
            }
            self.last_probe = Some(now);
            self.next_probe = Some(now + self.probe_every);
        } else {
            let doubted = self.doubt.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
            // Rarer with time: a beacon that has gone is not worth two datagrams a second.
            self.next_probe = Some(now + (doubted / 4).clamp(DOUBT_PROBE, MAX_RETRY));
        }
    }

    fn patience(&self) -> Duration {
        if self.ever_heard { LATER_DOUBT } else { FIRST_DOUBT }
    }

    fn open_at(&self) -> Option<Instant> {
        let at = self.doubt? + self.patience();
        Some(self.next_open.map_or(at, |next| next.max(at)))
    }

    fn carry_at(&self) -> Option<Instant> {
        if self.link == LinkState::Open && !self.carried { Some(self.doubt? + self.patience()) } else { None }
    }

    fn close_at(&self) -> Option<Instant> {
        let idle = self.link == LinkState::Open && !self.carried && self.doubt.is_none();
        if idle { Some(self.unused_since? + UNUSED) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a monitor through time; `udp` says whether UDP works now.
    struct World {
        monitor: Monitor,
        start: Instant,
        now: Instant,
        done: Vec<(u64, Action)>,
        links: bool,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            Self { monitor: Monitor::default(), start: now, now, done: Vec::new(), links: true }
        }

        fn run(&mut self, time: Duration, udp: bool) {
            let end = self.now + time;
            while self.now < end {
                while let Some(action) = self.monitor.poll(self.now) {
                    self.done.push(((self.now - self.start).as_millis() as u64, action));
                    match action {
                        Action::Open if self.links => self.monitor.on_opened(self.now),
                        Action::Open => self.monitor.on_lost(self.now),
                        Action::Probe => {
                            self.monitor.on_sent(self.now);
                            if udp {
                                self.monitor.on_heard(self.now);
                            }
                        }
                        _ => {}
                    }
                    assert!(self.done.len() < 10_000, "it never rests");
                }
                self.now += Duration::from_millis(10);
            }
        }

        fn times(&self, wanted: Action) -> Vec<u64> {
            self.done.iter().filter(|(_, action)| *action == wanted).map(|(at, _)| *at).collect()
        }
    }

    #[test]
    fn udp_that_works_costs_nothing() {
        let mut world = World::new();
        world.monitor.on_sent(world.now);
        world.monitor.on_heard(world.now);
        world.run(Duration::from_secs(100), true);
        assert!(world.done.is_empty());
        assert_eq!(world.monitor.timeout(), None);
    }

    #[test]
    fn silence_from_the_start_is_carried_after_half_a_second() {
        let mut world = World::new();
        world.monitor.on_sent(world.now);
        world.run(Duration::from_secs(3), false);
        assert_eq!(world.times(Action::Carry), [500]);
        assert!(world.monitor.is_carried());
    }

    #[test]
    fn later_silence_needs_two_seconds_and_a_lost_probe_is_none() {
        let mut world = World::new();
        world.monitor.on_sent(world.now);
        world.monitor.on_heard(world.now);
        world.run(Duration::from_secs(1), true);
        world.monitor.on_sent(world.now);
        world.run(Duration::from_millis(600), false);
        world.run(Duration::from_secs(5), true);
        assert!(world.times(Action::Open).is_empty());
        world.monitor.on_sent(world.now);
        let from = (world.now - world.start).as_millis() as u64;
        world.run(Duration::from_secs(5), false);
        assert_eq!(world.times(Action::Carry), [from + 2000]);
    }

    #[test]
    fn it_goes_back_after_two_answers() {
        let mut world = World::new();
        world.monitor.on_sent(world.now);
        world.run(Duration::from_secs(8), false);
        assert!(world.monitor.is_carried());
        // An answer that nobody asked for counts for nothing.
        world.monitor.last_probe = None;
        world.monitor.on_heard(world.now);
        world.monitor.on_heard(world.now);
        assert!(world.monitor.is_carried());
        world.run(Duration::from_secs(10), true);
        assert!(!world.monitor.is_carried());
        assert_eq!(world.times(Action::Return).len(), 1);
        world.run(Duration::from_secs(20), true);
        assert_eq!(world.times(Action::Close).len(), 1, "the link is closed after a while");
    }

    #[test]
    fn returns_that_do_not_hold_become_rarer() {
        let mut world = World::new();
        world.monitor.on_sent(world.now);
        // Probes pass and nothing else does, as where somebody forges answers.
        for _ in 0..600 {
            world.run(Duration::from_secs(1), true);
            if !world.monitor.is_carried() {
                world.monitor.on_sent(world.now);
                world.run(Duration::from_millis(2100), false);
            }
        }
        let returns = world.times(Action::Return).len();
        assert!((4..=14).contains(&returns), "{returns}: {:?}", world.times(Action::Return));
    }

    #[test]
    fn links_that_fail_are_tried_ever_more_rarely() {
        let mut world = World::new();
        world.links = false;
        world.monitor.on_sent(world.now);
        world.run(Duration::from_secs(300), false);
        let opens = world.times(Action::Open);
        assert_eq!(opens[..4], [500, 1500, 3500, 7500]);
        assert!(opens.len() < 13, "{opens:?}");
        assert!(world.times(Action::Probe).len() < 60);
        // The link of a carried node breaks: it is opened again at once, and carried as soon as it is.
        world.links = true;
        world.run(Duration::from_secs(61), false);
        assert!(world.monitor.is_carried());
        world.monitor.on_lost(world.now);
        world.run(Duration::from_secs(3), false);
        assert!(world.monitor.is_carried());
    }
}
