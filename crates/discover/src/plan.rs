//! Calls that go to the next agent when one fails or is slow (spec/discovery.md §9).
//!
//! The plan decides whom to try, whether it may go on, and whether an agent may begin; it does not wait and sends nothing.
//! After a failure it goes on if the call provably did not begin, or if doing it twice does no harm: the caller says so, or
//! both the agent that failed and the next one declare it. The same holds beside an agent that has not answered yet.

use std::collections::VecDeque;
use std::fmt;

use crate::card::AgentKey;
use crate::tag::Tag;

/// Most agents that one call tries.
pub const MAX_ATTEMPTS: usize = 8;

/// An agent that may serve the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its key.
    pub key: AgentKey,
    /// It declares that to be asked twice does no more than to be asked once.
    pub idempotent: bool,
    /// Seconds for which it is better left alone.
    pub left_alone_for: Option<u64>,
}

/// Whether the agent began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Began {
    /// Certainly not: it could not be reached, it refused, or the go-ahead was never sent.
    No,
    /// Perhaps: the go-ahead was sent and nothing came back.
    Perhaps,
    /// Yes: it said that it failed.
    Yes,
}

/// One try that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Place in the list of candidates.
    pub candidate: usize,
    /// Whether it began.
    pub began: Began,
    /// What happened.
    pub reason: String,
    /// Milliseconds until that was known.
    pub took_ms: u64,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Try this candidate. With `ask_first` it says whether it takes the call before it gets the go-ahead, so that most
    /// failures are provably before the beginning.
    Try {
        /// Place in the list of candidates.
        candidate: usize,
        /// In two steps.
        ask_first: bool,
    },
    /// Nobody else may be tried as long as those that are being tried have not answered.
    Wait,
    /// Give up.
    Stop(Stop),
}

/// Why a call was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Nobody was found.
    Nobody,
    /// All failed.
    AllFailed,
    /// [`MAX_ATTEMPTS`] failed, or the caller's own number.
    Enough,
    /// It may have been done, and doing it twice may do harm.
    MayHaveBegun,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "nobody offers it",
            Self::AllFailed => "all that offer it failed",
            Self::Enough => "enough agents were tried",
            Self::MayHaveBegun => "it may have been carried out, and may do harm if carried out twice",
        })
    }
}

/// An agent that has not answered yet.
#[derive(Debug, Clone, Copy)]
struct Running {
    candidate: usize,
    /// It got the go-ahead.
    went: bool,
}

/// The state of one call.
#[derive(Debug, Clone)]
pub struct Plan {
    candidates: Vec<Candidate>,
    caller_says_idempotent: bool,
    most: usize,
    order: Vec<usize>,
    /// How many of `order` were tried.
    tried: usize,
    running: Vec<Running>,
    attempts: Vec<Attempt>,
}

impl Plan {
    /// For candidates with the best first. Those better left alone come last. `most` is brought into 1 to
    /// [`MAX_ATTEMPTS`].
    #[must_use]
    pub fn new(candidates: Vec<Candidate>, caller_says_idempotent: bool, most: usize) -> Self {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        order.sort_by_key(|at| candidates[*at].left_alone_for.is_some());
        let most = most.clamp(1, MAX_ATTEMPTS);
        Self {
            candidates,
            caller_says_idempotent,
            most,
            order,
            tried: 0,
            running: Vec::new(),
            attempts: Vec::new(),
        }
    }

    /// Whom to try now: after a failure, or because those that are being tried have been waited for long enough.
    #[must_use]
    pub fn next(&self) -> Next {
        match self.candidate() {
            Ok(candidate) => {
                let harmless = self.caller_says_idempotent || self.candidates[candidate].idempotent;
                Next::Try { candidate, ask_first: !harmless }
            }
            Err(_) if !self.running.is_empty() => Next::Wait,
            Err(stop) => Next::Stop(stop),
        }
    }

    fn candidate(&self) -> Result<usize, Stop> {
        let Some(at) = self.order.get(self.tried) else {
            return Err(if self.candidates.is_empty() { Stop::Nobody } else { Stop::AllFailed });
        };
        if self.tried >= self.most {
            return Err(Stop::Enough);
        }
        if self.harmless_with(*at) { Ok(*at) } else { Err(Stop::MayHaveBegun) }
    }

    /// Whether `candidate` may do it although others may have done it, or may be doing it.
    fn harmless_with(&self, candidate: usize) -> bool {
        let failed = self.attempts.iter().filter(|attempt| attempt.began != Began::No);
        let going = self.running.iter().filter(|running| running.went);
        let mut others =
            failed.map(|attempt| attempt.candidate).chain(going.map(|running| running.candidate));
        let twice = |other: usize| {
            self.caller_says_idempotent
                || self.candidates[candidate].idempotent && self.candidates[other].idempotent
        };
        others.all(|other| other == candidate || twice(other))
    }

    /// The candidate of [`Plan::next`] is being tried from now on.
    pub fn started(&mut self, candidate: usize) {
        if self.order.get(self.tried) == Some(&candidate) {
            self.tried += 1;
            self.running.push(Running { candidate, went: false });
        }
    }

    /// A candidate that is being tried wants the go-ahead: whether it gets it. One that does not never will.
    pub fn may_go(&mut self, candidate: usize) -> bool {
        if !self.harmless_with(candidate) {
            return false;
        }
        let running = self.running.iter_mut().find(|running| running.candidate == candidate);
        running.map(|running| running.went = true).is_some()
    }

    /// A candidate that was being tried failed.
    pub fn failed(&mut self, candidate: usize, began: Began, reason: impl Into<String>, took_ms: u64) {
        if let Some(at) = self.running.iter().position(|running| running.candidate == candidate) {
            self.running.remove(at);
            self.attempts.push(Attempt { candidate, began, reason: reason.into(), took_ms });
        }
    }

    /// Who is being tried, and whether it has the go-ahead.
    pub fn running(&self) -> impl Iterator<Item = (usize, bool)> {
        self.running.iter().map(|running| (running.candidate, running.went))
    }

    /// What failed so far, the first first.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }
}

/// Samples of one latency.
const MAX_SAMPLES: usize = 64;

/// Capabilities whose times are known; the one that was noted least recently makes room.
const MAX_SERVED: usize = 32;

/// Samples of a capability's time that are needed before anything follows from them.
const ENOUGH: usize = 8;

/// How long is waited for an agent before another one is tried beside it, in microseconds, where nothing is known.
const HEDGE_UNKNOWN: u64 = 300_000;

/// At least.
const HEDGE_LEAST: u64 = 25_000;

/// At most, for a connection.
const HEDGE_MOST: u64 = 1_000_000;

#[derive(Debug, Clone, Default)]
struct Samples(VecDeque<u64>);

impl Samples {
    fn note(&mut self, micros: u64) {
        if self.0.len() >= MAX_SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(micros);
    }

    /// What 95 of 100 stay within, and a quarter more.
    fn late(&self) -> Option<u64> {
        let mut all: Vec<u64> = self.0.iter().copied().collect();
        all.sort_unstable();
        let p95 = all.get((all.len() * 95).div_ceil(100).checked_sub(1)?)?;
        Some(p95.saturating_add(p95 / 4))
    }
}

/// How long agents took so far: who takes longer than almost all did is not waited for alone. In microseconds.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    connect: Samples,
    served: Vec<(Tag, Samples)>,
}

impl Latencies {
    /// An agent took a stream after so long.
    pub fn connected(&mut self, micros: u64) {
        self.connect.note(micros);
    }

    /// An agent did its work so long after the go-ahead.
    pub fn served(&mut self, tag: &Tag, micros: u64) {
        let mut samples = match self.served.iter().position(|(other, _)| other == tag) {
            Some(at) => self.served.remove(at).1,
            None => Samples::default(),
        };
        samples.note(micros);
        if self.served.len() >= MAX_SERVED {
            self.served.remove(0);
        }
        self.served.push((tag.clone(), samples));
    }

    /// After how long without a stream another agent is tried beside.
    #[must_use]
    pub fn hedge_connect(&self) -> u64 {
        self.connect.late().unwrap_or(HEDGE_UNKNOWN).clamp(HEDGE_LEAST, HEDGE_MOST)
    }

    /// After how long without a result, from the go-ahead on, another agent is tried beside; `None` if too little is known:
    /// work that takes long is no fault.
    #[must_use]
    pub fn hedge_served(&self, tag: &Tag) -> Option<u64> {
        let samples = &self.served.iter().find(|(other, _)| other == tag)?.1;
        let late = samples.late().filter(|_| samples.0.len() >= ENOUGH);
        late.map(|late| late.max(HEDGE_LEAST))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(idempotent: &[bool]) -> Vec<Candidate> {
        let one = |(at, idempotent): (usize, &bool)| Candidate {
            key: [at as u8; 32],
            idempotent: *idempotent,
            left_alone_for: None,
        };
        idempotent.iter().enumerate().map(one).collect()
    }

    /// Tries the next one; who it is.
    fn start(plan: &mut Plan) -> usize {
        let Next::Try { candidate, .. } = plan.next() else { panic!("nobody: {plan:?}") };
        plan.started(candidate);
        candidate
    }

    fn fail(plan: &mut Plan, began: Began) {
        let candidate = start(plan);
        assert!(began == Began::No || plan.may_go(candidate));
        plan.failed(candidate, began, "reason", 1);
    }

    #[test]
    fn what_did_not_begin_is_tried_again() {
        let mut plan = Plan::new(candidates(&[false, false]), false, 8);
        assert_eq!(plan.next(), Next::Try { candidate: 0, ask_first: true });
        fail(&mut plan, Began::No);
        assert_eq!(plan.next(), Next::Try { candidate: 1, ask_first: true });
        fail(&mut plan, Began::No);
        assert_eq!(plan.next(), Next::Stop(Stop::AllFailed));
        assert_eq!(plan.attempts().len(), 2);
    }

    #[test]
    fn what_may_have_begun_is_tried_again_only_if_both_declare_it_harmless() {
        for (declared, caller, expected) in [
            ([true, true], false, Next::Try { candidate: 1, ask_first: false }),
            ([true, false], false, Next::Stop(Stop::MayHaveBegun)),
            ([false, true], false, Next::Stop(Stop::MayHaveBegun)),
            ([false, false], true, Next::Try { candidate: 1, ask_first: false }),
        ] {
            for began in [Began::Perhaps, Began::Yes] {
                let mut plan = Plan::new(candidates(&declared), caller, 8);
                fail(&mut plan, began);
                assert_eq!(plan.next(), expected, "{declared:?} {caller}");
            }
        }
    }

    #[test]
    fn bounds_and_the_order() {
        let mut plan = Plan::new(candidates(&[true; 20]), true, usize::MAX);
        for _ in 0..MAX_ATTEMPTS {
            assert!(matches!(plan.next(), Next::Try { .. }));
            fail(&mut plan, Began::Yes);
        }
        assert_eq!(plan.next(), Next::Stop(Stop::Enough));
        assert_eq!(Plan::new(vec![], true, 1).next(), Next::Stop(Stop::Nobody));
        let mut two = candidates(&[true, true]);
        two[0].left_alone_for = Some(5);
        assert_eq!(Plan::new(two, false, 8).next(), Next::Try { candidate: 1, ask_first: false });
    }

    #[test]
    fn a_second_one_is_tried_beside_a_silent_one_and_only_one_of_them_begins() {
        let mut plan = Plan::new(candidates(&[false, true]), false, 8);
        start(&mut plan);
        // It has not begun: another one may be tried, and who asks first gets the go-ahead.
        assert_eq!(start(&mut plan), 1);
        assert_eq!(plan.next(), Next::Wait);
        assert!(plan.may_go(1) && !plan.may_go(0));
        plan.failed(0, Began::No, "late", 1);
        plan.failed(1, Began::Yes, "broken", 1);
        assert_eq!(plan.next(), Next::Stop(Stop::AllFailed));
        // It has: nobody else, as one of the two does not declare it harmless.
        let mut plan = Plan::new(candidates(&[false, true]), false, 8);
        start(&mut plan);
        assert!(plan.may_go(0));
        assert_eq!(plan.next(), Next::Wait);
        plan.failed(0, Began::No, "refused", 1);
        assert_eq!(plan.next(), Next::Try { candidate: 1, ask_first: false });
        // Both do.
        let mut plan = Plan::new(candidates(&[true, true]), false, 8);
        start(&mut plan);
        assert!(plan.may_go(0) && start(&mut plan) == 1 && plan.may_go(1));
        assert_eq!(plan.running().collect::<Vec<_>>(), [(0, true), (1, true)]);
    }

    #[test]
    fn how_long_is_waited_follows_what_was_measured() {
        let mut known = Latencies::default();
        let tag: Tag = "a.b".parse().unwrap();
        assert_eq!((known.hedge_connect(), known.hedge_served(&tag)), (HEDGE_UNKNOWN, None));
        known.connected(100);
        assert_eq!(known.hedge_connect(), HEDGE_LEAST);
        (0..95).for_each(|_| known.connected(100_000));
        assert_eq!(known.hedge_connect(), 125_000);
        (0..MAX_SAMPLES).for_each(|_| known.connected(9_000_000));
        assert_eq!(known.hedge_connect(), HEDGE_MOST);
        (0..ENOUGH).for_each(|_| known.served(&tag, 40_000));
        assert_eq!(known.hedge_served(&tag), Some(50_000));
        for number in 0..100 {
            known.served(&format!("x{number}").parse().unwrap(), 1);
        }
        assert_eq!((known.served.len(), known.connect.0.len()), (MAX_SERVED, MAX_SAMPLES));
        assert_eq!(known.hedge_served(&tag), None);
    }

    // What two agents do together is the same as before: at most one begins, unless both declare it harmless.
    proptest! {
        #[test]
        fn whatever_happens_beside_each_other_nothing_harmful_begins_twice(
            declared in proptest::collection::vec(any::<bool>(), 1..8),
            steps in proptest::collection::vec((0_u8..4, 0_usize..8), 0..60),
        ) {
            let mut plan = Plan::new(candidates(&declared), false, 8);
            let mut began: Vec<usize> = Vec::new();
            for (step, which) in steps {
                let running: Vec<(usize, bool)> = plan.running().collect();
                match step {
                    0 => if let Next::Try { candidate, .. } = plan.next() { plan.started(candidate) },
                    1 => if let Some((at, false)) = running.get(which) && plan.may_go(*at) {
                        prop_assert!(began.iter().all(|other| declared[*other] && declared[*at]));
                        began.push(*at);
                    },
                    _ => if let Some((at, went)) = running.get(which) {
                        let not_begun = !*went || step == 2;
                        if not_begun { began.retain(|other| other != at) }
                        plan.failed(*at, if not_begun { Began::No } else { Began::Perhaps }, "", 0);
                    },
                }
            }
        }
    }

    proptest! {
        #[test]
        fn nobody_is_tried_twice_and_nothing_harmful_is_repeated(
            declared in proptest::collection::vec(any::<bool>(), 0..12),
            outcomes in proptest::collection::vec(0_u8..3, 12),
        ) {
            let mut plan = Plan::new(candidates(&declared), false, 8);
            let mut tried = Vec::new();
            while let Next::Try { candidate, .. } = plan.next() {
                prop_assert!(!tried.contains(&candidate));
                let harmful = plan.attempts().iter().any(|attempt| {
                    attempt.began != Began::No && !(declared[attempt.candidate] && declared[candidate])
                });
                prop_assert!(!harmful);
                let began = [Began::No, Began::Perhaps, Began::Yes][usize::from(outcomes[tried.len()])];
                tried.push(candidate);
                fail(&mut plan, began);
            }
            prop_assert!(tried.len() <= MAX_ATTEMPTS);
        }
    }
}
