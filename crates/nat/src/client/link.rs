//! What a node knows of one beacon, and what it has to say to it next.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_wire::beacon::{COOKIE_LEN, Rank, Refusal};

/// One beacon.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) address: SocketAddr,
    /// Our address as this beacon last saw it.
    pub(super) observed: Option<SocketAddr>,
    /// When the next discover is due; `None` while a proof holds.
    pub(super) next_discover: Option<Instant>,
    /// When the last discover was sent.
    pub(super) asked: Option<Instant>,
    /// Discovers or hellos sent since the last answer.
    pub(super) unanswered: u32,
    /// The next reply answers a discover that did not carry our present id.
    pub(super) stale_reply: bool,
    /// The last message that can be believed to be from there.
    pub(super) heard: Option<Instant>,
    /// When the next hello is due; `None` without a key.
    pub(super) next_hello: Option<Instant>,
    /// Hellos since the last answer to one.
    pub(super) hellos: u32,
    /// Of the last hello, and when it was sent.
    pub(super) nonce: Option<(u64, Instant)>,
    /// To be signed.
    pub(super) challenge: Option<([u8; COOKIE_LEN], SocketAddr)>,
    /// It has answered one of our own messages: it is no beacon of the reference.
    pub(super) ours: bool,
    /// The registration with proof, while it holds.
    pub(super) rank: Option<Rank>,
    /// Why there is none.
    pub(super) refused: Option<Refusal>,
    /// We have something new to say.
    pub(super) renew: bool,
    /// Its second port, 0 without one.
    pub(super) other_port: u16,
}

impl Link {
    pub(super) fn new(address: SocketAddr, now: Instant, keyed: bool) -> Self {
        Self {
            address,
            observed: None,
            next_discover: Some(now),
            asked: None,
            unanswered: 0,
            stale_reply: false,
            heard: None,
            next_hello: keyed.then_some(now),
            hellos: 0,
            nonce: None,
            challenge: None,
            ours: false,
            rank: None,
            refused: None,
            renew: false,
            other_port: 0,
        }
    }

    /// Asks anew, after our id or network has changed.
    pub(super) fn restart(&mut self, now: Instant, keyed: bool) {
        self.unanswered = 0;
        self.hellos = 0;
        self.challenge = None;
        self.next_discover = self.rank.is_none().then_some(now);
        self.next_hello = keyed.then_some(now);
    }

    /// It has not answered for a while: asks now, and does not wait for the next try.
    pub(super) fn ask_now(&mut self, now: Instant) {
        match self.rank {
            Some(_) => self.next_hello = Some(now),
            None => self.next_discover = Some(now),
        }
    }

    /// Whether it answered the last time it was asked.
    pub(super) fn answers(&self) -> bool {
        self.heard.is_some() && self.unanswered == 0
    }

    /// When the hello after this one is due.
    pub(super) fn hello_again(&self) -> Duration {
        // A beacon of the reference never answers; it may be replaced by one of ours some day.
        if !self.ours && self.hellos >= HELLOS_TO_STRANGER {
            return STRANGER_INTERVAL;
        }
        retry_after(self.hellos.saturating_sub(1))
    }

    pub(super) fn next(&self) -> Option<Instant> {
        [self.next_discover, self.next_hello].into_iter().flatten().min()
    }

    /// The answer to a hello or a proof.
    pub(super) fn is_answer(&self, nonce: u64, now: Instant) -> bool {
        self.nonce
            .is_some_and(|(ours, at)| ours == nonce && now.saturating_duration_since(at) < super::REPLY_WAIT)
    }

    pub(super) fn on_challenge(&mut self, now: Instant, cookie: &[u8; COOKIE_LEN], addr: SocketAddr) {
        self.ours = true;
        self.challenge = Some((*cookie, addr));
        self.on_answer(now, addr);
        if self.rank.take().is_some() {
            self.next_discover = Some(now + super::REFRESH_INTERVAL);
        }
        // If the proof or its answer is lost, all begins again.
        self.next_hello = Some(now + retry_after(self.hellos.saturating_sub(1)));
    }

    pub(super) fn on_registered(&mut self, now: Instant, rank: Rank, other_port: u16, addr: SocketAddr) {
        self.ours = true;
        self.on_answer(now, addr);
        (self.rank, self.refused, self.renew) = (Some(rank), None, false);
        self.other_port = other_port;
        self.hellos = 0;
        self.challenge = None;
        self.next_discover = None;
        self.next_hello = Some(now + super::REFRESH_INTERVAL);
    }

    pub(super) fn on_refused(&mut self, now: Instant, reason: Refusal, addr: SocketAddr) {
        self.ours = true;
        self.on_answer(now, addr);
        (self.rank, self.refused, self.challenge) = (None, Some(reason), None);
        self.next_discover.get_or_insert(now);
        // A challenge that ran out is answered better the next time; other reasons take longer to go away.
        let again = if reason == Refusal::BadProof { BAD_PROOF_WAIT } else { super::REFRESH_INTERVAL };
        self.next_hello = Some(now + again);
    }

    fn on_answer(&mut self, now: Instant, addr: SocketAddr) {
        self.observed = Some(addr);
        self.heard = Some(now);
        self.unanswered = 0;
    }
}

/// How long to wait for a reply before the question is repeated: 0.5, 1, 2, 4 s, … up to the refresh interval.
pub(super) fn retry_after(unanswered: u32) -> Duration {
    (super::FIRST_RETRY * (1 << unanswered.min(6))).min(super::REFRESH_INTERVAL)
}

/// Hellos to a beacon that has answered none.
const HELLOS_TO_STRANGER: u32 = 4;
/// After those: some minutes.
const STRANGER_INTERVAL: Duration = Duration::from_secs(200);
const BAD_PROOF_WAIT: Duration = Duration::from_secs(2);
