//! Address validation: who is sent how much before it has shown that it is there (spec/tunnel.md §6, rule C16).
//!
//! An address is *trusted* if it returned a token that was sent to it under the session keys (RFC 9000 §8.2). Every
//! other one is a stranger, even one from which a genuine frame came, since anybody on the way can send a copy from
//! elsewhere (RFC 9000 §9.3.2), and even the one that the caller introduced, since a peer can have a victim's address
//! registered. A stranger is sent at most as many bytes as came from it (RFC 9000 §8.1 allows three times as many);
//! [`INTRODUCTION`] more if the caller introduced it, and [`INTRODUCTION_PER_SECOND`]. Addresses that the peer itself
//! named are paid for by what the peer itself sends: whoever aims us at a victim sends at least as much himself, but for
//! [`NAMED_FIRST`] and [`NAMED_PER_SECOND`].

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Addresses that count as proven at one time: a peer on two networks goes back and forth.
const PROVEN_MAX: usize = 4;
/// Strangers that are remembered per peer; the one that was heard longest ago makes room, and those that never sent a
/// genuine frame, and so were never asked for a token, before all others.
const STRANGERS_MAX: usize = 4;
/// Bytes that a stranger can save up.
const CREDIT_MAX: usize = 1 << 20;
/// What the caller's introduction of an address is worth, in bytes: enough to agree on keys and to begin.
const INTRODUCTION: usize = 64 << 10;
/// What it is worth in each further second, up to the same bound: enough for tokens and key exchange frames, which must
/// not end for ever when many were lost.
const INTRODUCTION_PER_SECOND: usize = 1 << 10;
/// What all addresses together that the peer named are worth at first, besides what came from them: what the peer has
/// sent until then, for the key exchange and to name them, is of that order.
const NAMED_FIRST: usize = 4 << 10;
/// What they can save up of what the peer itself sends, byte for byte.
const NAMED_MOST: usize = 16 << 10;
/// What time adds, in bytes a second: for a tunnel that is open and silent.
const NAMED_PER_SECOND: usize = 128;
/// Addresses that the peer or the application named as candidates, at one time.
const NAMED_MAX: usize = 24;
/// Wait before an unanswered token is sent again; doubles with each try up to 1 s.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// Tokens sent by timer to an address that we would like to use and that does not answer.
const ASKS_MAX: u32 = 32;
/// Kept of the credit for tokens when a large packet is sent, so that one lost token does not silence us.
const RESERVE: usize = 512;

/// What is known of an address that has not proven itself.
#[derive(Debug)]
struct Stranger {
    addr: SocketAddr,
    credit: usize,
    heard: Instant,
    token: Option<u32>,
    asked: Option<Instant>,
    asks: u32,
    /// The credit did not suffice when the token was to leave: what comes from there next pays for it.
    owed: bool,
    /// Introduced by the caller: until when its credit for that is counted.
    refilled: Option<Instant>,
    /// A candidate: what its own credit does not pay is paid by that of all candidates.
    named: bool,
}

/// An address that has returned a token.
#[derive(Debug)]
struct Proven {
    addr: SocketAddr,
    /// A later token, to see that it is still there, and when it was sent.
    token: Option<(u32, Instant)>,
}

/// A token came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Round-trip time, where it is clear to which of several equal tokens the answer belongs (Karn).
    pub(crate) rtt: Option<Duration>,
}

/// The addresses of one peer.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    proven: Vec<Proven>,
    strangers: Vec<Stranger>,
    /// Credit of all candidates together, and until when it is counted.
    named: usize,
    named_refilled: Option<Instant>,
}

/// What a datagram of `len` payload bytes costs a link: headers of IP and UDP included.
fn weight(addr: SocketAddr, len: usize) -> usize {
    len + if addr.is_ipv4() { 28 } else { 48 }
}

impl Addresses {
    /// An address that needs no proof.
    pub(crate) fn trust(&mut self, addr: SocketAddr) {
        self.proven.push(Proven { addr, token: None });
    }

    pub(crate) fn is_proven(&self, addr: SocketAddr) -> bool {
        self.proven.iter().any(|p| p.addr == addr)
    }

    /// A datagram came from an address that is not trusted.
    pub(crate) fn on_received(&mut self, addr: SocketAddr, len: usize, now: Instant) {
        let weight = weight(addr, len);
        if let Some(known) = self.strangers.iter_mut().find(|s| s.addr == addr) {
            known.credit = (known.credit + weight).min(CREDIT_MAX);
            known.heard = now;
            return;
        }
        self.add(addr, weight, false, now);
    }

    /// A new stranger. Candidates and others do not take each other's places.
    fn add(&mut self, addr: SocketAddr, credit: usize, named: bool, now: Instant) {
        let most = if named { NAMED_MAX } else { STRANGERS_MAX };
        if self.strangers.iter().filter(|s| s.named == named).count() >= most
            && let Some(oldest) =
                (0..self.strangers.len()).filter(|i| self.strangers[*i].named == named).min_by_key(|i| {
                    let s = &self.strangers[*i];
                    (s.token.is_some() || s.refilled.is_some(), s.heard)
                })
        {
            self.strangers.swap_remove(oldest);
        }
        self.strangers.push(Stranger {
            addr,
            credit,
            heard: now,
            token: None,
            asked: None,
            asks: 0,
            owed: false,
            refilled: None,
            named,
        });
    }

    /// The peer, or the application, names an address as a candidate.
    pub(crate) fn name(&mut self, addr: SocketAddr, now: Instant) {
        if self.named_refilled.is_none() {
            self.named_refilled = Some(now);
            self.named = (self.named + NAMED_FIRST).min(NAMED_MOST);
        }
        if self.is_proven(addr) {
            return;
        }
        match self.strangers.iter_mut().find(|s| s.addr == addr) {
            Some(stranger) => {
                // An introduced one has more of its own.
                stranger.named |= stranger.refilled.is_none();
            }
            None => self.add(addr, 0, true, now),
        }
        if self.strangers.iter().filter(|s| s.named).count() > NAMED_MAX
            && let Some(other) = self.strangers.iter().position(|s| s.named && s.addr != addr)
        {
            self.strangers.swap_remove(other);
        }
    }

    /// An authentic frame of the peer came, by whatever way: it pays for as much to the addresses that the peer named.
    pub(crate) fn earn(&mut self, len: usize) {
        self.named = (self.named + len).min(NAMED_MOST);
    }

    /// With the address that the caller names, if any.
    pub(crate) fn of(introduced: Option<SocketAddr>, now: Instant) -> Self {
        let mut addresses = Self::default();
        if let Some(addr) = introduced {
            addresses.introduce(addr, now);
        }
        addresses
    }

    /// The caller names an address of the peer: it may be sent something before anything came from it.
    pub(crate) fn introduce(&mut self, addr: SocketAddr, now: Instant) {
        if self.is_proven(addr) {
            return;
        }
        self.on_received(addr, 0, now);
        if let Some(stranger) = self.strangers.iter_mut().find(|s| s.addr == addr) {
            stranger.credit = stranger.credit.max(INTRODUCTION);
            stranger.refilled = Some(now);
        }
    }

    /// Counts what time adds to the credit of introduced addresses.
    pub(crate) fn refill(&mut self, now: Instant) {
        if let Some(since) = self.named_refilled {
            let millis = now.saturating_duration_since(since).as_millis().min(1 << 20) as usize;
            if millis >= 100 {
                self.named_refilled = Some(now);
                self.named = (self.named + millis * NAMED_PER_SECOND / 1_000).min(NAMED_MOST);
            }
        }
        for stranger in &mut self.strangers {
            let Some(since) = stranger.refilled else { continue };
            let millis = now.saturating_duration_since(since).as_millis().min(1 << 20) as usize;
            if millis >= 100 {
                stranger.refilled = Some(now);
                let more = millis * INTRODUCTION_PER_SECOND / 1_000;
                stranger.credit = stranger.credit.max((stranger.credit + more).min(INTRODUCTION));
            }
        }
    }

    /// As [`Self::allowance`], for the packets of streams: large ones leave something for tokens.
    pub(crate) fn allowance_for_data(&self, addr: SocketAddr) -> usize {
        let all = self.allowance(addr);
        if all > RESERVE { all - RESERVE / 2 } else { all.min(RESERVE / 2) }
    }

    /// Largest payload that may be sent to a stranger now.
    pub(crate) fn allowance(&self, addr: SocketAddr) -> usize {
        let stranger = self.strangers.iter().find(|s| s.addr == addr);
        stranger.map_or(0, |s| self.credit(s)).saturating_sub(weight(addr, 0))
    }

    fn credit(&self, stranger: &Stranger) -> usize {
        stranger.credit + if stranger.named { self.named } else { 0 }
    }

    /// Counts a datagram to a stranger; `false` if it must not be sent.
    pub(crate) fn pay(&mut self, addr: SocketAddr, len: usize) -> bool {
        let weight = weight(addr, len);
        let common = self.named;
        let Some(stranger) = self.strangers.iter_mut().find(|s| s.addr == addr) else { return false };
        let lacking = weight.saturating_sub(stranger.credit);
        if lacking > if stranger.named { common } else { 0 } {
            return false;
        }
        stranger.credit -= weight - lacking;
        self.named -= lacking;
        true
    }

    /// As [`Self::pay`], for a copy of what goes elsewhere: only what itself sent pays for it, and what tokens need is left.
    pub(crate) fn pay_for_copy(&mut self, addr: SocketAddr, len: usize) -> bool {
        let weight = weight(addr, len);
        let Some(stranger) = self.strangers.iter_mut().find(|s| s.addr == addr) else { return false };
        if stranger.credit < weight + RESERVE / 2 {
            return false;
        }
        stranger.credit -= weight;
        true
    }

    /// When to send the token again to an address that has not answered, if there is credit for it.
    pub(crate) fn ask_deadline(&self, addr: SocketAddr, len: usize) -> Option<Instant> {
        let stranger = self.strangers.iter().find(|s| s.addr == addr)?;
        let again = stranger.asked? + ASK_AGAIN * (1 << stranger.asks.saturating_sub(1).min(2));
        let payable = self.credit(stranger) >= weight(addr, len) || stranger.refilled.is_some();
        (stranger.asks < ASKS_MAX && payable).then_some(again)
    }

    /// There was no credit for a token: the next try waits as if it had been sent, or until something comes from there.
    pub(crate) fn postpone(&mut self, addr: SocketAddr, now: Instant) {
        if let Some(stranger) = self.strangers.iter_mut().find(|s| s.addr == addr) {
            stranger.asked = Some(now);
            stranger.owed = true;
        }
    }

    /// Whether a token should be sent to this stranger now.
    pub(crate) fn wants_token(&self, addr: SocketAddr, now: Instant) -> bool {
        let due =
            |s: &Stranger| s.owed || s.asked.is_none_or(|t| now.saturating_duration_since(t) >= ASK_AGAIN);
        self.strangers.iter().any(|s| s.addr == addr && due(s))
    }

    /// The token that this address has to return: from a stranger the same one when asked again, so that a late answer
    /// counts; a new one from an address that has proven itself, so that an old answer does not.
    pub(crate) fn token(&mut self, addr: SocketAddr, now: Instant, random: u32) -> Option<u32> {
        if let Some(proven) = self.proven.iter_mut().find(|p| p.addr == addr) {
            proven.token = Some((random, now));
            return Some(random);
        }
        let stranger = self.strangers.iter_mut().find(|s| s.addr == addr)?;
        stranger.asked = Some(now);
        stranger.asks = stranger.asks.saturating_add(1);
        stranger.owed = false;
        Some(*stranger.token.get_or_insert(random))
    }

    /// A token came back from an address, under the session keys. `None` if it was not sent there.
    pub(crate) fn on_token(&mut self, addr: SocketAddr, token: u32, now: Instant) -> Option<Answer> {
        if let Some(proven) = self.proven.iter_mut().find(|p| p.addr == addr) {
            let (_, sent) = proven.token.take_if(|(sent, _)| *sent == token)?;
            return Some(Answer { rtt: Some(now.saturating_duration_since(sent)) });
        }
        let at = self.strangers.iter().position(|s| s.addr == addr && s.token == Some(token))?;
        let stranger = self.strangers.swap_remove(at);
        self.keep(addr);
        let once = stranger.asked.filter(|_| stranger.asks == 1);
        Some(Answer { rtt: once.map(|t| now.saturating_duration_since(t)) })
    }

    /// Trusts an address from now on.
    fn keep(&mut self, addr: SocketAddr) {
        if self.is_proven(addr) {
            return;
        }
        if self.proven.len() >= PROVEN_MAX {
            self.proven.remove(0);
        }
        self.proven.push(Proven { addr, token: None });
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    fn addr(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 4000))
    }

    #[test]
    fn a_stranger_is_sent_no_more_than_came_from_it() {
        let now = Instant::now();
        let mut a = Addresses::default();
        assert!(!a.pay(addr(1), 0), "nothing came");
        a.on_received(addr(1), 100, now);
        assert_eq!(a.allowance(addr(1)), 100);
        assert!(!a.pay(addr(1), 101));
        assert!(a.pay(addr(1), 60));
        assert!(!a.pay(addr(1), 41), "headers count");
        assert!(!a.pay(addr(2), 1), "the credit of one is not that of another");
        let before = a.allowance(addr(1));
        a.on_received(addr(1), 100, now);
        assert_eq!(a.allowance(addr(1)), before + 128, "what came later counts once too");
    }

    #[test]
    fn a_copy_is_paid_by_what_came_from_there_alone_and_leaves_enough_for_tokens() {
        let now = Instant::now();
        let mut a = Addresses::default();
        assert!(!a.pay_for_copy(addr(1), 1), "nothing came");
        a.on_received(addr(1), 1_000, now);
        assert!(!a.pay_for_copy(addr(1), 1_000), "not the last bytes");
        assert!(a.pay_for_copy(addr(1), 1_000 - RESERVE / 2));
        assert!(!a.pay_for_copy(addr(1), 1) && a.pay(addr(1), RESERVE / 2 - 28), "what tokens need is left");
        assert!(!a.pay(addr(1), 1));
        a.name(addr(2), now);
        assert!(a.allowance(addr(2)) > 0 && !a.pay_for_copy(addr(2), 1), "named is not enough");
    }

    #[test]
    fn only_the_token_that_was_sent_there_proves_an_address() {
        let now = Instant::now();
        let mut a = Addresses::default();
        a.on_received(addr(1), 100, now);
        a.on_received(addr(2), 100, now);
        assert!(a.wants_token(addr(1), now));
        assert_eq!(a.token(addr(1), now, 7), Some(7));
        assert!(!a.wants_token(addr(1), now));
        assert!(a.wants_token(addr(1), now + ASK_AGAIN));
        assert_eq!(a.token(addr(1), now + ASK_AGAIN, 8), Some(7), "asked again with the same token");
        assert!(a.on_token(addr(2), 7, now).is_none() && a.on_token(addr(1), 8, now).is_none());
        assert_eq!(a.on_token(addr(1), 7, now), Some(Answer { rtt: None }), "asked twice");
        assert!(a.is_proven(addr(1)) && a.on_token(addr(1), 7, now).is_none());
    }

    #[test]
    fn an_introduced_address_gets_some_credit_and_a_little_with_time() {
        let now = Instant::now();
        let mut a = Addresses::default();
        a.introduce(addr(1), now);
        assert!(a.pay(addr(1), INTRODUCTION - 28) && !a.pay(addr(1), 50));
        assert_eq!(a.token(addr(1), now, 7), Some(7));
        // Without credit the try is put off, not repeated at once.
        let due = a.ask_deadline(addr(1), 70).expect("time brings credit");
        a.postpone(addr(1), due);
        assert!(a.wants_token(addr(1), due), "what comes pays for it");
        assert!(a.ask_deadline(addr(1), 70).expect("still wanted") > due);
        a.refill(now + Duration::from_millis(200));
        assert!((70..250).contains(&a.allowance(addr(1))), "{}", a.allowance(addr(1)));
        a.refill(now + Duration::from_secs(10_000));
        assert!(a.allowance(addr(1)) <= INTRODUCTION);
    }

    #[test]
    fn a_proven_address_is_asked_with_new_tokens() {
        let now = Instant::now();
        let later = now + Duration::from_millis(30);
        let mut a = Addresses::default();
        a.trust(addr(1));
        assert_eq!(a.token(addr(1), now, 7), Some(7));
        assert_eq!(a.token(addr(1), now, 8), Some(8));
        assert!(a.on_token(addr(1), 7, later).is_none(), "an old answer");
        assert_eq!(a.on_token(addr(1), 8, later), Some(Answer { rtt: Some(Duration::from_millis(30)) }));
        assert!(a.on_token(addr(1), 8, later).is_none(), "once");
    }

    #[test]
    fn all_candidates_together_are_sent_little_and_do_not_push_out_others() {
        let now = Instant::now();
        let mut a = Addresses::default();
        a.introduce(addr(1), now);
        a.on_received(addr(2), 100, now);
        for n in 10..200 {
            a.name(addr(n), now);
        }
        assert!(a.strangers.len() <= NAMED_MAX + STRANGERS_MAX, "{}", a.strangers.len());
        assert!(a.allowance(addr(1)) >= INTRODUCTION - 28 && a.allowance(addr(2)) == 100);
        let mut sent = 0;
        for _ in 0..1_000 {
            for n in 176..200 {
                sent += if a.pay(addr(n), 70) { 98 } else { 0 };
            }
        }
        assert!(sent > NAMED_FIRST / 2 && sent <= NAMED_FIRST, "{sent}");
        a.refill(now + Duration::from_secs(1));
        assert!(a.allowance(addr(199)) <= NAMED_PER_SECOND + 98);
        // What the peer sends pays for as much, and what it sent long ago not for ever.
        a.earn(500);
        assert!((500..500 + NAMED_PER_SECOND + 98).contains(&(a.allowance(addr(199)) + 28)));
        a.earn(1 << 20);
        assert!(a.allowance(addr(199)) <= NAMED_MOST);
        while a.pay(addr(199), 70) {}
        // What came from one pays for that one.
        a.on_received(addr(199), 5_000, now);
        assert!(a.allowance(addr(199)) >= 4_900 && a.allowance(addr(198)) <= 98);
    }

    #[test]
    fn an_address_that_never_answers_is_not_asked_for_ever() {
        let mut now = Instant::now();
        let mut a = Addresses::default();
        a.introduce(addr(1), now);
        assert!(a.token(addr(1), now, 7).is_some());
        let mut asked = 1;
        while let Some(due) = a.ask_deadline(addr(1), 70) {
            assert!(due > now && due <= now + Duration::from_secs(1));
            now = due;
            assert!(a.token(addr(1), now, 7).is_some());
            asked += 1;
            assert!(asked <= ASKS_MAX, "{asked}");
        }
        assert_eq!(asked, ASKS_MAX);
    }

    #[test]
    fn both_tables_are_bounded() {
        let now = Instant::now();
        let mut a = Addresses::default();
        for n in 0..100 {
            a.on_received(addr(n), 100, now + Duration::from_secs(n.into()));
            assert!(a.token(addr(n), now, n.into()).is_some());
            if n % 2 == 0 {
                assert!(a.on_token(addr(n), n.into(), now).is_some());
            }
        }
        assert_eq!((a.proven.len(), a.strangers.len()), (PROVEN_MAX, STRANGERS_MAX));
        a.on_received(addr(200), usize::MAX / 4, now);
        assert!(a.allowance(addr(200)) <= usize::MAX / 4);
    }
}
