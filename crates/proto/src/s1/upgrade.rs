//! The post-quantum upgrade (spec/secure.md §9.5): ML-KEM-768 inside a session, mixed into its second key phase.
//!
//! ```text
//! initiator                        responder
//!   UPGRADE key (2 halves)    →      makes a secret and its ciphertext
//!   opens it                  ←      UPGRADE ciphertext (2 halves)
//!   phase 1, UPGRADE done     →      opens phase 1: has followed
//!   has heard phase 1         ←      UPGRADE done, or anything else
//! ```
//!
//! The initiator repeats what was not answered; the responder only answers. Where both agreed on the upgrade there is no way from phase 0 to
//! phase 1 without the secret, so nobody who keeps the frames back gets the two sides to go on without it: they stay in phase 0, and know it.

#![cfg_attr(
    not(feature = "post-quantum"),
    allow(dead_code, unused_imports, reason = "without ML-KEM no upgrade is ever made")
)]

use std::time::{Duration, Instant};

use pilotage_wire::s1::frames::{HALF_CIPHERTEXT, HALF_KEY, Upgrade as Step};
#[cfg(feature = "post-quantum")]
use sha2::{Digest, Sha256};

use super::keys::Secret;
use super::session::Role;
#[cfg(feature = "post-quantum")]
use crate::crypto::kem::{self, KeyPair};

/// First wait for an answer, if no round trip is known.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Shortest and longest wait.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(4);

/// Whether sessions of S1 get a second secret that no quantum computer finds from what was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PostQuantum {
    /// No.
    #[default]
    Off,
    /// With peers that do it, too.
    On,
    /// Nobody who does not do it has a session with us, and we send nothing of an application before it is done.
    Require,
}

impl PostQuantum {
    /// All, with their names.
    pub const ALL: [(&'static str, Self); 3] =
        [("off", Self::Off), ("on", Self::On), ("require", Self::Require)];
    /// Whether this build can do it (feature `post-quantum`).
    pub const BUILT: bool = cfg!(feature = "post-quantum");

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, value)| *value == self).map_or("off", |(name, _)| name)
    }

    /// Whether it is done with peers that do it, too.
    pub fn is_on(self) -> bool {
        Self::BUILT && self != Self::Off
    }
}

impl std::str::FromStr for PostQuantum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found.ok_or_else(|| format!("{text:?} is not known: use off, on or require"))
    }
}

/// Two halves, of which any may come first, and again.
#[derive(Debug)]
#[cfg(feature = "post-quantum")]
struct Halves<const N: usize>([Option<Box<[u8; N]>>; 2]);

#[cfg(feature = "post-quantum")]
impl<const N: usize> Halves<N> {
    fn new() -> Self {
        Self([None, None])
    }

    /// The first of each counts.
    fn put(&mut self, second: bool, half: &[u8; N]) {
        self.0[usize::from(second)].get_or_insert_with(|| Box::new(*half));
    }

    fn whole<const ALL: usize>(&self) -> Option<Box<[u8; ALL]>> {
        let [Some(first), Some(second)] = &self.0 else { return None };
        let mut all = Box::new([0; ALL]);
        all[..N].copy_from_slice(&first[..]);
        all[N..].copy_from_slice(&second[..]);
        Some(all)
    }
}

/// How far it is.
#[derive(Debug)]
enum State {
    #[cfg(feature = "post-quantum")]
    Asking { pair: KeyPair, key: Box<[u8; kem::KEY_LEN]>, got: Halves<HALF_CIPHERTEXT> },
    #[cfg(feature = "post-quantum")]
    Waiting(Halves<HALF_KEY>),
    /// The secret is there; `ciphertext` at the responder, which may have to send it again.
    Known { secret: Secret, transcript: [u8; 32], ciphertext: Option<Box<[u8; 2 * HALF_CIPHERTEXT]>> },
    /// Both directions are in phases that need it.
    Done,
}

/// The upgrade of one session.
#[derive(Debug)]
pub(super) struct Upgrade {
    state: State,
    wait: Duration,
    retry_at: Option<Instant>,
}

/// What a step of the peer leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing.
    Nothing,
    /// What is to be sent is to be sent now.
    Send,
    /// The initiator has the secret: it goes on to phase 1, and says so.
    Advance,
    /// Against the protocol.
    Refuse,
}

impl Upgrade {
    /// `None` if this build has no ML-KEM.
    #[cfg(feature = "post-quantum")]
    pub(super) fn new(role: Role, random: &mut dyn FnMut(&mut [u8])) -> Option<Self> {
        let state = match role {
            Role::Initiator => {
                let mut seed = [0; 64];
                random(&mut seed);
                let pair = KeyPair::from_seed(seed);
                zeroize::Zeroize::zeroize(&mut seed);
                let key = pair.public();
                State::Asking { pair, key, got: Halves::new() }
            }
            Role::Responder => State::Waiting(Halves::new()),
        };
        Some(Self { state, wait: RETRY_FIRST, retry_at: None })
    }

    #[cfg(not(feature = "post-quantum"))]
    pub(super) fn new(_role: Role, _random: &mut dyn FnMut(&mut [u8])) -> Option<Self> {
        None
    }

    /// What the two sides have in common now.
    pub(super) fn secret(&self) -> Option<(&Secret, &[u8; 32])> {
        match &self.state {
            State::Known { secret, transcript, .. } => Some((secret, transcript)),
            _ => None,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Both directions have left phase 0.
    pub(super) fn finish(&mut self) {
        self.state = State::Done;
        self.retry_at = None;
    }

    /// The initiator's first send, or its next: when nothing was heard. `rtt` if known.
    pub(super) fn begin(&mut self, now: Instant, rtt: Option<Duration>) {
        self.wait = rtt.map_or(RETRY_FIRST, |rtt| (2 * rtt).clamp(RETRY_MIN, RETRY_MAX));
        self.retry_at = Some(now);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Whether the steps are to be sent (again).
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.retry_at.is_some_and(|at| at <= now);
        if due {
            self.retry_at = Some(now + self.wait);
            self.wait = (self.wait * 2).min(RETRY_MAX);
        }
        due
    }

    /// What is to be said now, if anything: at most two steps.
    pub(super) fn steps(&self, role: Role) -> Vec<Step<'_>> {
        match (&self.state, role) {
            #[cfg(feature = "post-quantum")]
            (State::Asking { key, .. }, _) => {
                halves(&key[..]).map(|(second, half)| Step::Key(second, half)).collect()
            }
            (State::Known { ciphertext: Some(ciphertext), .. }, Role::Responder) => {
                halves(&ciphertext[..]).map(|(second, half)| Step::Ciphertext(second, half)).collect()
            }
            (State::Known { .. }, Role::Initiator) | (State::Done, Role::Responder) => vec![Step::Done],
            _ => Vec::new(),
        }
    }

    /// A step of the peer.
    #[cfg(feature = "post-quantum")]
    pub(super) fn on_step(&mut self, step: &Step<'_>, role: Role, random: &mut dyn FnMut(&mut [u8])) -> Then {
        match (step, role) {
            (Step::Key(second, half), Role::Responder) => match &mut self.state {
                State::Waiting(got) => {
                    got.put(*second, half);
                    let Some(key) = got.whole() else { return Then::Nothing };
                    let mut seed = [0; 32];
                    random(&mut seed);
                    let made = kem::encapsulate(&key, &seed);
                    zeroize::Zeroize::zeroize(&mut seed);
                    let Some((ciphertext, secret)) = made else { return Then::Refuse };
                    let transcript = transcript(&key, &ciphertext);
                    self.state = State::Known { secret, transcript, ciphertext: Some(ciphertext) };
                    Then::Send
                }
                // Once for the two halves of a repetition: the ciphertext, or that all is done, was lost.
                _ if !*second => Then::Send,
                _ => Then::Nothing,
            },
            (Step::Ciphertext(second, half), Role::Initiator) => {
                let State::Asking { pair, key, got } = &mut self.state else { return Then::Nothing };
                got.put(*second, half);
                let Some(ciphertext) = got.whole() else { return Then::Nothing };
                let (secret, transcript) = (pair.open(&ciphertext), transcript(key, &ciphertext));
                self.state = State::Known { secret, transcript, ciphertext: None };
                self.wait = RETRY_MIN;
                Then::Advance
            }
            (Step::Done, Role::Responder) if self.is_done() => Then::Send,
            (Step::Done, Role::Initiator) if !matches!(self.state, State::Asking { .. }) => Then::Nothing,
            _ => Then::Refuse,
        }
    }

    #[cfg(not(feature = "post-quantum"))]
    pub(super) fn on_step(
        &mut self,
        _step: &Step<'_>,
        _role: Role,
        _random: &mut dyn FnMut(&mut [u8]),
    ) -> Then {
        Then::Refuse
    }
}

/// The two halves of an even number of bytes.
fn halves<const N: usize>(all: &[u8]) -> impl Iterator<Item = (bool, &[u8; N])> {
    all.chunks_exact(N).take(2).enumerate().filter_map(|(n, half)| Some((n == 1, half.try_into().ok()?)))
}

/// Names what was exchanged.
#[cfg(feature = "post-quantum")]
pub(super) fn transcript(key: &[u8; kem::KEY_LEN], ciphertext: &[u8; kem::CIPHERTEXT_LEN]) -> [u8; 32] {
    Sha256::new().chain_update(key).chain_update(ciphertext).finalize().into()
}
