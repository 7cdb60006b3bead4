//! Any course of events, for property tests and fuzzing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::probe::PROBES_MAX;
use super::{
    Agent, CANDIDATES_MAX, Candidate, CandidateKind, Check, Locals, NatMapping, OFFER_MAX, Offer, PAIRS_MAX,
    PathEventKind, PathPolicy, Use, Way,
};

/// A few addresses of each sort.
fn address(n: u8) -> SocketAddr {
    match n % 5 {
        0 => SocketAddr::from(([10, 0, 0, n], 4_000)),
        1 => SocketAddr::from(([203, 0, 113, n], 4_000 + u16::from(n))),
        2 => SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)], 4_000)),
        3 => SocketAddr::from(([127, 0, 0, 1], u16::from(n))),
        _ => SocketAddr::from(([203, 0, 113, 1], 4_000 + u16::from(n))),
    }
}

fn candidate(n: u8) -> Candidate {
    let kinds =
        [CandidateKind::Host, CandidateKind::Reflexive, CandidateKind::Mapped, CandidateKind::Relayed];
    Candidate { addr: address(n), kind: kinds[usize::from(n) % 4] }
}

/// Runs calls (kind, argument, milliseconds that pass) on an agent and checks after each: tables keep their bounds, a
/// way that is asked for is permitted and not the one in use, polling ends, nothing is sent while it must not be, and a
/// deadline lies ahead once nothing is due.
pub fn exercise(base: Instant, ops: &[(u8, u8, u64)], policy: u8, controlling: bool) {
    let mut now = base;
    let policies = [PathPolicy::Auto, PathPolicy::DirectOnly, PathPolicy::RelayOnly];
    let mut agent = Agent::new(controlling, policies[usize::from(policy) % 3], u32::from(policy), now);
    let mut locals = Locals { candidates: vec![candidate(200)], version: 1, ..Locals::default() };
    let mut used = Use { keys: true, in_use: true, pilotage: true, relay: true };
    let mut sequence = 0u32;
    let mut punches: Vec<Instant> = Vec::new();
    for (op, n, pass) in ops.iter().copied() {
        now += Duration::from_millis(pass.min(100_000));
        match op {
            0 => agent.introduce(now, address(n)),
            1 => agent.add_remote(now, &[candidate(n), candidate(n ^ 1)], &locals),
            2 => {
                sequence += 1;
                let candidates = (0..n % 17).map(|i| candidate(n.wrapping_add(i))).collect();
                let mapping =
                    if n & 1 == 0 { NatMapping::AddressDependent } else { NatMapping::EndpointIndependent };
                let lost = n & 2 != 0;
                let offer =
                    Offer { mapping, lost, settled: n & 4 != 0, sequence, seen: u32::from(n), candidates };
                agent.on_offer(now, &offer, &locals);
            }
            3 => agent.on_heard(now, address(n)),
            4 => follow(&mut agent, now, n, |a, now| {
                a.on_answer(now, address(n), (n & 8 == 0).then(|| Duration::from_millis(n.into())))
            }),
            5 => {
                let way = if n & 1 == 0 { Way::Relay } else { Way::Direct(address(n)) };
                if agent.policy().permits(way) {
                    agent.on_way(now, way);
                }
            }
            6 => agent.doubt(now, now + Duration::from_millis(n.into()), n & 1 == 0),
            7 => {
                if agent.is_dead(now) {
                    follow(&mut agent, now, 1, |a, now| a.on_dead(now, used.relay));
                }
            }
            8 => agent.on_network_changed(now),
            9 => agent.note(now, PathEventKind::Begun),
            10 => agent.set_policy(policies[usize::from(n) % 3], now),
            11 => {
                used = Use { keys: n & 1 == 0, in_use: n & 2 == 0, pilotage: n & 4 == 0, relay: n & 8 == 0 };
            }
            12 => {
                locals.version += 1;
                locals.udp_blocked = n & 7 == 7;
                locals.mapping = if n & 1 == 0 { NatMapping::Unknown } else { NatMapping::AddressDependent };
            }
            _ => agent.on_alive(),
        }
        drain(&mut agent, now, used, &locals, &mut punches);
    }
    // No run is longer than its budget, and no two begin within five minutes.
    for window in punches.windows(PROBES_MAX as usize + 1) {
        assert!(window[PROBES_MAX as usize].duration_since(window[0]) >= Duration::from_secs(200));
    }
}

/// Takes a way that a call returned, or (by `n`) does not, as a tunnel may.
fn follow(agent: &mut Agent, now: Instant, n: u8, call: impl FnOnce(&mut Agent, Instant) -> Option<Way>) {
    let before = agent.way;
    if let Some(way) = call(agent, now) {
        assert!(agent.policy().permits(way), "{way:?} against {:?}", agent.policy());
        assert_ne!(before, Some(way), "that is where we are");
        if !n.is_multiple_of(3) {
            agent.on_way(now, way);
        }
    }
}

fn drain(agent: &mut Agent, now: Instant, used: Use, locals: &Locals, punches: &mut Vec<Instant>) {
    let mut buf = [0; OFFER_MAX];
    let mut sent = 0;
    while agent.offer_due(now, used, locals) {
        assert!(used.keys && used.pilotage);
        let len = agent.write_offer(now, locals, &mut buf).expect("room for any offer");
        let offer = Offer::decode(&buf[..len]).expect("we read what we write");
        assert!(offer.candidates.len() <= CANDIDATES_MAX);
        assert!(agent.policy() != PathPolicy::RelayOnly || offer.candidates.is_empty());
        sent += 1;
        assert!(sent <= 2, "offers without end");
    }
    let mut checks = 0;
    while let Some(check) = agent.poll_check(now, used, locals) {
        assert!(used.keys && used.in_use && !locals.udp_blocked && agent.policy() != PathPolicy::RelayOnly);
        match check {
            Check::Token(addr) => agent.on_check_sent(now, addr),
            Check::Punch(addr) => {
                assert!(addr.port() >= 1_024);
                punches.push(now);
            }
        }
        checks += 1;
        assert!(checks <= 2, "checks are paced");
    }
    if let Some(at) = agent.deadline(used, locals) {
        assert!(at > now, "due, but nothing is sent: {agent:?}");
    }
    let report = agent.report(None, used, locals);
    assert!(report.pairs.len() <= PAIRS_MAX && report.log.len() <= 64);
    assert!(!report.reason.as_str().is_empty());
}
