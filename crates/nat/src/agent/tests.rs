use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn host(n: u8) -> Candidate {
    Candidate { addr: SocketAddr::from(([10, 0, 0, n], 4_000)), kind: CandidateKind::Host }
}

fn reflexive(n: u8) -> Candidate {
    Candidate { addr: SocketAddr::from(([203, 0, 113, n], 5_000)), kind: CandidateKind::Reflexive }
}

fn locals() -> Locals {
    Locals { candidates: vec![host(200), reflexive(200)], version: 1, ..Locals::default() }
}

const USED: Use = Use { keys: true, in_use: true, pilotage: true, relay: true };

fn offer(sequence: u32, candidates: &[Candidate]) -> Offer {
    Offer { sequence, candidates: candidates.to_vec(), ..Offer::default() }
}

/// Everything that is to be sent within a time, with the moments.
fn run(agent: &mut Agent, now: &mut Instant, time: Duration, locals: &Locals) -> Vec<(Duration, Check)> {
    let (start, until) = (*now, *now + time);
    let mut sent = Vec::new();
    let mut buf = [0; OFFER_MAX];
    loop {
        while agent.offer_due(*now, USED, locals) {
            agent.write_offer(*now, locals, &mut buf).unwrap();
        }
        while let Some(check) = agent.poll_check(*now, USED, locals) {
            sent.push((now.duration_since(start), check));
            if let Check::Token(addr) = check {
                agent.on_check_sent(*now, addr);
            }
            assert!(sent.len() < 100_000);
        }
        match agent.deadline(USED, locals).filter(|t| *t <= until) {
            Some(next) => {
                assert!(next > *now, "a deadline that has passed although nothing is due");
                *now = next;
            }
            None => {
                *now = until;
                return sent;
            }
        }
    }
}

#[test]
fn candidates_have_the_order_of_rfc_8445() {
    use CandidateKind::{Host, Mapped, PeerReflexive, Reflexive, Relayed};
    let v4 = addr("203.0.113.1:1");
    let by_kind = [Host, Mapped, PeerReflexive, Reflexive, Relayed]
        .map(|kind| Candidate { addr: v4, kind }.priority(0));
    assert!(by_kind.is_sorted_by(|a, b| a > b), "{by_kind:?}");
    let v6 = Candidate { addr: addr("[2001:db8::1]:1"), kind: Host };
    assert!(v6.priority(5) > Candidate { addr: v4, kind: Host }.priority(0), "IPv6 first (RFC 8421)");
    assert!(v6.priority(0) > v6.priority(1), "then the place in the list");
    // The formula of §5.1.2.1 for a host candidate: 126 in the first byte, 256 less the component in the last.
    assert_eq!(v6.priority(0) >> 24, 126);
    assert_eq!(v6.priority(0) & 255, 255);
    // §6.1.2.3: both sides come to the same number.
    assert_eq!(pair_priority(7, 9), (7 << 32) + 18);
    assert_eq!(pair_priority(9, 7), (7 << 32) + 19);
}

#[test]
fn checks_are_paced_and_in_order_and_end() {
    let mut now = crate::clock_start();
    let locals = locals();
    let mut agent = Agent::new(true, PathPolicy::Auto, 1, now);
    agent.on_way(now, Way::Relay);
    assert!(agent.on_offer(now, &offer(1, &[reflexive(1), host(1), host(2)]), &locals));
    let sent = run(&mut agent, &mut now, Duration::from_secs(240), &locals);
    let order: Vec<_> = sent.iter().take(3).map(|(_, c)| *c).collect();
    assert_eq!(
        order,
        [Check::Token(host(1).addr), Check::Token(host(2).addr), Check::Token(reflexive(1).addr)]
    );
    assert!(sent.windows(2).all(|w| w[1].0 - w[0].0 >= PACE), "paced");
    let mut count = BTreeMap::new();
    for (at, check) in &sent {
        let Check::Token(addr) = check else { panic!("{check:?}") };
        let all: &mut Vec<Duration> = count.entry(*addr).or_default();
        all.push(*at);
    }
    for (addr, times) in &count {
        assert!((6..=24).contains(&times.len()), "{addr} {times:?}");
    }
    assert_eq!(agent.reason(USED, &locals), PathReason::RelayNoAnswer);
    // Nobody uses the tunnel: nothing is sent.
    let idle = Use { in_use: false, ..USED };
    assert_eq!(agent.poll_check(now + Duration::from_secs(9_999), idle, &locals), None);
    assert_eq!(agent.deadline(idle, &locals), None);
}

#[test]
fn an_answer_moves_the_path_to_direct_and_keeps_it_checked() {
    let mut now = crate::clock_start();
    let locals = locals();
    let mut agent = Agent::new(false, PathPolicy::Auto, 1, now);
    agent.on_way(now, Way::Relay);
    assert_eq!(agent.reason(USED, &locals), PathReason::RelayNoCandidates);
    agent.on_offer(now, &offer(1, &[reflexive(1)]), &locals);
    assert_eq!(agent.reason(USED, &locals), PathReason::RelayWhilePunching);
    run(&mut agent, &mut now, Duration::from_millis(100), &locals);
    let way = agent.on_answer(now, reflexive(1).addr, Some(Duration::from_millis(30)));
    assert_eq!(way, Some(Way::Direct(reflexive(1).addr)));
    agent.on_way(now, way.unwrap());
    assert_eq!(agent.reason(USED, &locals), PathReason::DirectReflexive);
    // Consent: asked again within 25 s, and given up about 30 s after the last answer (RFC 7675).
    let sent = run(&mut agent, &mut now, Duration::from_secs(32), &locals);
    let first = sent.first().expect("a check").0;
    assert!((Duration::from_secs(20)..=Duration::from_secs(25)).contains(&first), "{first:?}");
    assert!(agent.is_dead(now), "{sent:?}");
    assert_eq!(agent.on_dead(now, true), Some(Way::Relay));
    agent.on_way(now, Way::Relay);
    assert_eq!(agent.reason(USED, &locals), PathReason::RelayPathLost);
    assert!(agent.is_given_up(Way::Direct(reflexive(1).addr)));
    // It is tried again, and answers.
    let sent = run(&mut agent, &mut now, Duration::from_secs(1), &locals);
    assert!(sent.iter().any(|(_, c)| *c == Check::Token(reflexive(1).addr)));
    assert!(agent.on_answer(now, reflexive(1).addr, None).is_some());
    assert!(!agent.is_given_up(Way::Direct(reflexive(1).addr)));
}

#[test]
fn a_dead_way_is_asked_again_when_frames_come_by_it() {
    let mut now = crate::clock_start();
    let locals = locals();
    let mut agent = Agent::new(false, PathPolicy::Auto, 1, now);
    agent.on_way(now, Way::Relay);
    agent.on_offer(now, &offer(1, &[host(1), reflexive(1)]), &locals);
    for c in [host(1), reflexive(1)] {
        agent.on_answer(now, c.addr, Some(Duration::from_millis(20)));
    }
    agent.on_way(now, Way::Direct(reflexive(1).addr));
    agent.doubt(now, now, true);
    assert_eq!(agent.on_dead(now, false), Some(Way::Direct(host(1).addr)));
    agent.on_way(now, Way::Direct(host(1).addr));
    // All checks of the round end without an answer; the way in use answers.
    let state = |agent: &Agent| agent.pairs.iter().find(|p| p.addr == reflexive(1).addr).map(|p| p.state);
    for _ in 0..60 {
        run(&mut agent, &mut now, Duration::from_secs(5), &locals);
        agent.on_answer(now, host(1).addr, None);
    }
    assert_eq!(state(&agent), Some(PairState::Failed));
    agent.on_heard(now, reflexive(1).addr);
    let sent = run(&mut agent, &mut now, Duration::from_secs(1), &locals);
    assert!(sent.iter().any(|(_, c)| *c == Check::Token(reflexive(1).addr)), "{sent:?}");
}

#[test]
fn a_doubted_way_is_asked_and_left_only_without_an_answer() {
    let mut now = crate::clock_start();
    let locals = locals();
    let mut agent = Agent::new(false, PathPolicy::Auto, 1, now);
    agent.on_way(now, Way::Relay);
    agent.on_offer(now, &offer(1, &[host(1), reflexive(1)]), &locals);
    for c in [host(1), reflexive(1)] {
        agent.on_answer(now, c.addr, Some(Duration::from_millis(20)));
    }
    agent.on_way(now, Way::Direct(host(1).addr));
    let until = now + Duration::from_millis(200);
    agent.doubt(now, until, false);
    let sent = run(&mut agent, &mut now, Duration::from_millis(190), &locals);
    assert!(sent.len() >= 3 && sent.iter().all(|(_, c)| *c == Check::Token(host(1).addr)), "{sent:?}");
    assert!(!agent.is_dead(now));
    agent.on_alive();
    assert!(!agent.is_dead(until), "something came");
    // A strict doubt ends with an answer only.
    agent.doubt(now, now + Duration::from_millis(50), true);
    agent.on_alive();
    assert!(agent.is_doubted());
    agent.on_answer(now, host(1).addr, None);
    assert!(!agent.is_doubted());
    // Dead: another direct way goes before the relay.
    agent.doubt(now, now, true);
    assert!(agent.is_dead(now));
    assert_eq!(agent.on_dead(now, true), Some(Way::Direct(reflexive(1).addr)));
    // Without any other way nothing changes.
    let mut alone = Agent::new(false, PathPolicy::Auto, 1, now);
    alone.on_way(now, Way::Direct(host(1).addr));
    assert!(!alone.has_other(false));
    assert_eq!(alone.on_dead(now, false), None);
}

/// The peer's NAT has given it another address: no better than the old one, which still passes for working.
#[test]
fn where_the_peer_says_that_it_went_is_asked_at_once_and_followed() {
    let mut now = crate::clock_start();
    let locals = locals();
    for controlling in [true, false] {
        let mut agent = Agent::new(controlling, PathPolicy::Auto, 1, now);
        agent.on_offer(now, &offer(1, &[reflexive(1)]), &locals);
        agent.on_answer(now, reflexive(1).addr, Some(Duration::from_millis(10)));
        agent.on_way(now, Way::Direct(reflexive(1).addr));
        agent.on_offer(now, &offer(2, &[reflexive(1), reflexive(2)]), &locals);
        let asked = run(&mut agent, &mut now, Duration::from_millis(200), &locals);
        assert!(
            asked.iter().all(|(_, check)| *check != Check::Token(reflexive(2).addr)),
            "another one is no better"
        );
        agent.on_offer(now, &offer(3, &[reflexive(2)]), &locals);
        let asked = run(&mut agent, &mut now, Duration::from_millis(100), &locals);
        assert!(asked.iter().any(|(_, check)| *check == Check::Token(reflexive(2).addr)), "it went there");
        let slower = Some(Duration::from_millis(90));
        assert_eq!(agent.on_answer(now, reflexive(2).addr, slower), Some(Way::Direct(reflexive(2).addr)));
    }
}

#[test]
fn a_better_way_is_taken_only_if_much_better_and_by_one_side() {
    let now = crate::clock_start();
    let locals = locals();
    for (controlling, new, expected) in [(true, 10, true), (true, 80, false), (false, 10, false)] {
        let mut agent = Agent::new(controlling, PathPolicy::Auto, 1, now);
        agent.on_offer(now, &offer(1, &[host(1), reflexive(1)]), &locals);
        agent.on_answer(now, reflexive(1).addr, Some(Duration::from_millis(100)));
        agent.on_way(now, Way::Direct(reflexive(1).addr));
        let rtt = Some(Duration::from_millis(new));
        assert_eq!(agent.on_answer(now, host(1).addr, rtt), None, "one answer says little");
        let better = agent.on_answer(now, host(1).addr, rtt);
        assert_eq!(better.is_some(), expected, "{controlling} {new}");
        // Frames of the peer by the other way: the side that chooses stays, the other follows.
        let stays = agent.stays(Way::Direct(reflexive(1).addr), Way::Direct(host(1).addr));
        assert_eq!(stays, controlling);
        assert!(!agent.stays(Way::Direct(reflexive(1).addr), Way::Direct(host(9).addr)), "it has moved");
        // It tells by the relay that it has another address before its frames from there arrive.
        agent.on_offer(now, &offer(2, &[host(1), host(2)]), &locals);
        agent.on_answer(now, host(2).addr, rtt);
        assert!(
            !agent.stays(Way::Direct(reflexive(1).addr), Way::Direct(host(2).addr)),
            "the old one is gone"
        );
        assert_eq!(agent.stays(Way::Direct(host(1).addr), Way::Direct(host(2).addr)), controlling);
        agent.on_offer(now, &offer(3, &[reflexive(1), host(2)]), &locals);
        assert_eq!(
            agent.stays(Way::Direct(reflexive(1).addr), Way::Direct(host(2).addr)),
            controlling,
            "back"
        );
    }
    // IPv6 goes before IPv4 at the same time.
    let v6 = Candidate { addr: addr("[2001:db8::1]:4000"), kind: CandidateKind::Host };
    let locals = Locals {
        candidates: vec![
            host(200),
            Candidate { addr: addr("[2001:db8::9]:4000"), kind: CandidateKind::Host },
        ],
        ..locals
    };
    let mut agent = Agent::new(true, PathPolicy::Auto, 1, now);
    agent.on_offer(now, &offer(1, &[reflexive(1), v6]), &locals);
    for c in [v6, reflexive(1)] {
        agent.on_answer(now, c.addr, Some(Duration::from_millis(20)));
    }
    agent.on_way(now, Way::Relay);
    agent.on_way(now, Way::Direct(reflexive(7).addr));
    assert_eq!(agent.on_dead(now, true), Some(Way::Direct(v6.addr)));
}

#[test]
fn ports_of_a_hard_nat_are_guessed_by_the_easy_side_within_the_budget() {
    let hard = NatMapping::AddressAndPortDependent;
    for (own, theirs, expected) in [
        (NatMapping::EndpointIndependent, hard, 2_000),
        (NatMapping::Unknown, hard, 2_000),
        (hard, hard, 0),
        (hard, NatMapping::EndpointIndependent, 0),
        (NatMapping::EndpointIndependent, NatMapping::EndpointIndependent, 0),
    ] {
        let mut now = crate::clock_start();
        let locals = Locals { mapping: own, ..locals() };
        let mut agent = Agent::new(true, PathPolicy::Auto, 1, now);
        agent.on_way(now, Way::Relay);
        agent.on_offer(now, &Offer { mapping: theirs, ..offer(1, &[host(1), reflexive(1)]) }, &locals);
        let sent = run(&mut agent, &mut now, Duration::from_secs(120), &locals);
        let punches: Vec<_> =
            sent.iter().filter_map(|(at, c)| matches!(c, Check::Punch(_)).then_some(*at)).collect();
        assert_eq!(punches.len(), expected, "{own:?} {theirs:?}");
        if let Some(first) = punches.first() {
            assert!(*first >= PROBE_AFTER);
            assert!(punches.windows(2).all(|w| w[1] - w[0] >= Duration::from_millis(5)), "200 a second");
        }
        let reason = match (own.is_hard() && theirs.is_hard(), expected) {
            (true, _) => PathReason::RelayHardNatBoth,
            (_, 0) => PathReason::RelayNoAnswer,
            _ => PathReason::RelayProbesSpent,
        };
        assert_eq!(agent.reason(USED, &locals), reason);
    }
}

#[test]
fn extra_sockets_are_asked_for_by_the_hard_side_of_an_easy_one_and_seldom() {
    let hard = NatMapping::AddressAndPortDependent;
    let easy = NatMapping::EndpointIndependent;
    for (own, theirs, expected) in
        [(hard, easy, true), (hard, hard, false), (easy, hard, false), (easy, easy, false)]
    {
        let mut now = crate::clock_start();
        let locals = Locals { mapping: own, ..locals() };
        let mut agent = Agent::new(true, PathPolicy::Auto, 1, now);
        agent.on_way(now, Way::Relay);
        agent.on_offer(now, &Offer { mapping: theirs, ..offer(1, &[host(1), reflexive(1)]) }, &locals);
        run(&mut agent, &mut now, PROBE_AFTER - Duration::from_millis(1), &locals);
        assert_eq!(agent.take_fan(), None, "ordinary checks first");
        run(&mut agent, &mut now, Duration::from_millis(2), &locals);
        assert_eq!(agent.take_fan(), expected.then_some(reflexive(1).addr), "{own:?} {theirs:?}");
        // Whatever the peer says meanwhile.
        for sequence in 2..9 {
            agent.on_offer(now, &Offer { mapping: theirs, ..offer(sequence, &[reflexive(2)]) }, &locals);
            run(&mut agent, &mut now, Duration::from_secs(20), &locals);
            assert_eq!(agent.take_fan(), None);
        }
        run(&mut agent, &mut now, PROBE_AGAIN, &locals);
        assert_eq!(agent.take_fan(), expected.then_some(reflexive(2).addr));
    }
}

#[test]
fn a_way_through_an_extra_socket_is_tried_if_the_driver_names_it_and_only_then() {
    let mut now = crate::clock_start();
    let locals = locals();
    let mut agent = Agent::new(true, PathPolicy::Auto, 1, now);
    agent.on_way(now, Way::Relay);
    let way = |n| Candidate {
        addr: crate::side::through(3, format!("203.0.113.{n}:5000").parse().unwrap()),
        kind: CandidateKind::PeerReflexive,
    };
    agent.on_offer(now, &offer(1, &[way(1)]), &locals);
    assert!(agent.report(None, USED, &locals).pairs.is_empty(), "a peer knows no sockets of ours");
    let nowhere = crate::side::through(3, "127.0.0.1:80".parse().unwrap());
    agent.add_remote(now, &[Candidate { addr: nowhere, kind: CandidateKind::PeerReflexive }], &locals);
    assert!(
        agent.report(None, USED, &locals).pairs.is_empty(),
        "what may not be tried is not, through no socket"
    );
    agent.add_remote(now, &[way(1)], &locals);
    let sent = run(&mut agent, &mut now, Duration::from_millis(10), &locals);
    assert!(sent.iter().any(|(_, check)| *check == Check::Token(way(1).addr)), "{sent:?}");
    assert_eq!(agent.on_answer(now, way(1).addr, None), Some(Way::Direct(way(1).addr)));
    let report = agent.report(None, USED, &locals);
    assert_eq!(report.pairs[0].addr, addr("203.0.113.1:5000"), "as others call it");
}

/// The peer names addresses of both families, and we have one of the other only after a move.
#[test]
fn an_address_of_a_family_that_we_get_later_is_tried_then() {
    let mut now = crate::clock_start();
    let mut agent = Agent::new(true, PathPolicy::Auto, 1, now);
    agent.on_way(now, Way::Direct(host(1).addr));
    let v6 = Candidate { addr: addr("[2001:db8::7]:4000"), kind: CandidateKind::Host };
    agent.on_offer(now, &offer(1, &[host(1), v6]), &locals());
    agent.on_answer(now, host(1).addr, None);
    let tried = |sent: &[(Duration, Check)]| sent.iter().any(|(_, check)| *check == Check::Token(v6.addr));
    assert!(!tried(&run(&mut agent, &mut now, Duration::from_secs(5), &locals())));
    let own = Candidate { addr: addr("[2001:db8::1]:4000"), kind: CandidateKind::Host };
    let moved = Locals { candidates: vec![own], version: 2, ..locals() };
    agent.on_network_changed(now);
    assert!(tried(&run(&mut agent, &mut now, Duration::from_millis(100), &moved)));
}

/// A NAT64 before us: the peer's public IPv4 address is tried in the form that leads there, its private ones not at all.
#[test]
fn behind_a_nat64_public_addresses_are_tried_in_its_form() {
    let mut now = crate::clock_start();
    let own = Candidate { addr: addr("[2001:db8::1]:4000"), kind: CandidateKind::Host };
    let nat64 = Nat64::from_beacon(addr("[64:ff9b::c633:640a]:81"), addr("198.51.100.20:9"));
    let locals = Locals { candidates: vec![own], nat64, ..locals() };
    let mut agent = Agent::new(true, PathPolicy::Auto, 1, now);
    agent.on_way(now, Way::Relay);
    agent.on_offer(now, &offer(1, &[host(1), reflexive(1)]), &locals);
    let sent = run(&mut agent, &mut now, Duration::from_secs(1), &locals);
    let towards = addr("[64:ff9b::cb00:7101]:5000");
    assert!(sent.iter().any(|(_, check)| *check == Check::Token(towards)), "{sent:?}");
    assert!(sent.iter().all(|(_, check)| *check == Check::Token(towards)), "{sent:?}");
}

#[test]
fn guessing_ends_with_the_first_answer() {
    let mut now = crate::clock_start();
    let locals = locals();
    let mut agent = Agent::new(true, PathPolicy::Auto, 1, now);
    agent.on_way(now, Way::Relay);
    let hard = Offer { mapping: NatMapping::AddressDependent, ..offer(1, &[reflexive(1)]) };
    agent.on_offer(now, &hard, &locals);
    run(&mut agent, &mut now, Duration::from_secs(2), &locals);
    let found = SocketAddr::new(reflexive(1).addr.ip(), 5_123);
    agent.on_heard(now, found);
    let way = agent.on_answer(now, found, None).expect("direct");
    agent.on_way(now, way);
    assert_eq!(agent.reason(USED, &locals), PathReason::DirectPeerReflexive);
    let sent = run(&mut agent, &mut now, Duration::from_secs(5), &locals);
    assert!(!sent.iter().any(|(_, c)| matches!(c, Check::Punch(_))), "{sent:?}");
}

#[test]
fn policies_are_kept() {
    let now = crate::clock_start();
    let locals = locals();
    let mut agent = Agent::new(true, PathPolicy::RelayOnly, 1, now);
    agent.on_way(now, Way::Relay);
    agent.on_offer(now, &offer(1, &[host(1)]), &locals);
    assert_eq!(agent.poll_check(now + Duration::from_secs(1), USED, &locals), None);
    assert_eq!(agent.on_answer(now, host(1).addr, None), None);
    assert_eq!(agent.reason(USED, &locals), PathReason::RelayPolicy);
    let mut buf = [0; OFFER_MAX];
    let len = agent.write_offer(now, &locals, &mut buf).unwrap();
    assert!(Offer::decode(&buf[..len]).unwrap().candidates.is_empty(), "our addresses stay ours");

    let mut agent = Agent::new(true, PathPolicy::DirectOnly, 1, now);
    agent.on_way(now, Way::Direct(host(1).addr));
    assert!(!agent.has_other(true));
    assert_eq!(agent.on_dead(now, true), None);
}

#[test]
fn addresses_that_nobody_should_be_sent_to_are_not_tried() {
    let mut now = crate::clock_start();
    let beacon = addr("198.51.100.1:9001");
    let locals = Locals { forbidden: vec![beacon], ..locals() };
    let mut agent = Agent::new(true, PathPolicy::Auto, 1, now);
    agent.on_way(now, Way::Relay);
    let bad =
        ["127.0.0.1:80", "169.254.1.1:80", "[fe80::1]:80", "224.0.0.1:80", "0.0.0.0:80", "203.0.113.9:0"]
            .map(|a| Candidate { addr: addr(a), kind: CandidateKind::Host });
    let mut all = bad.to_vec();
    all.push(Candidate { addr: beacon, kind: CandidateKind::Host });
    all.extend(&locals.candidates);
    all.push(Candidate { addr: addr("[::ffff:198.51.100.1]:9001"), kind: CandidateKind::Host });
    agent.on_offer(now, &offer(1, &all), &locals);
    assert_eq!(run(&mut agent, &mut now, Duration::from_secs(60), &locals), []);
}

#[test]
fn every_table_is_bounded() {
    let mut now = crate::clock_start();
    let locals = locals();
    let mut agent = Agent::new(true, PathPolicy::Auto, 1, now);
    agent.introduce(now, host(250).addr);
    agent.on_way(now, Way::Direct(host(250).addr));
    for round in 0..500u32 {
        let candidates: Vec<_> = (0..16)
            .map(|i| Candidate {
                addr: SocketAddr::from(([10, 1, (round % 200) as u8, i], 99)),
                kind: CandidateKind::Host,
            })
            .collect();
        agent.on_offer(now, &offer(round + 1, &candidates), &locals);
        agent.add_remote(now, &candidates, &locals);
        agent.on_heard(now, SocketAddr::from(([10, 2, 0, round as u8], 99)));
        agent.on_answer(now, SocketAddr::from(([10, 3, 0, round as u8], 99)), None);
        run(&mut agent, &mut now, Duration::from_millis(50), &locals);
        assert!(agent.pairs.len() <= PAIRS_MAX);
    }
    let report = agent.report(None, USED, &locals);
    assert!(report.pairs.len() <= PAIRS_MAX && report.log.len() == 64);
    assert!(report.pairs.iter().any(|p| p.addr == host(250).addr), "the way in use stays");
}

#[test]
fn a_message_that_is_too_long_or_cut_is_refused() {
    let full = Offer { candidates: (0..16).map(host).collect(), ..offer(7, &[]) };
    let mut buf = [0; OFFER_MAX];
    let len = full.encode(&mut buf).unwrap();
    assert_eq!(Offer::decode(&buf[..len]), Some(full.clone()));
    for cut in 0..len {
        assert_eq!(Offer::decode(&buf[..cut]), None, "{cut}");
    }
    let mut more = buf;
    more[18] = 17;
    assert_eq!(Offer::decode(&more), None);
    let mut version = buf;
    version[8] = 2;
    assert_eq!(Offer::decode(&version[..len]), None);
    // What later versions may add: kinds that we do not know, bytes behind the end.
    let mut kind = buf;
    kind[19] = 99;
    assert_eq!(Offer::decode(&kind).unwrap().candidates.len(), 15);
    assert_eq!(full.encode(&mut [0; 20]), None);
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let ip = prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
    (ip, any::<u16>(), 0u8..5).prop_map(|(ip, port, kind)| Candidate {
        addr: SocketAddr::new(ip, port),
        kind: CandidateKind::from_code(kind).unwrap(),
    })
}

use std::net::IpAddr;

proptest! {
    #[test]
    fn messages_survive_the_way(
        candidates in prop::collection::vec(any_candidate(), 0..=16),
        sequence in 1u32.., seen: u32, lost: bool, settled: bool, mapping in 0u8..4,
    ) {
        let mapping = [NatMapping::Unknown, NatMapping::EndpointIndependent, NatMapping::AddressDependent, NatMapping::AddressAndPortDependent][usize::from(mapping)];
        let offer = Offer { mapping, lost, settled, sequence, seen, candidates };
        let mut buf = [0; OFFER_MAX];
        let len = offer.encode(&mut buf).unwrap();
        prop_assert_eq!(Offer::decode(&buf[..len]), Some(offer));
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut marked = OFFER_MARK.to_vec();
        marked.push(1);
        marked.extend(&bytes);
        for bytes in [bytes, marked] {
            if let Some(offer) = Offer::decode(&bytes) {
                prop_assert!(offer.candidates.len() <= CANDIDATES_MAX && offer.sequence != 0);
            }
        }
    }

    /// Two sides, messages lost and late: both learn the other's newest, and then fall silent.
    #[test]
    fn the_exchange_ends_with_both_sides_knowing(
        fates in prop::collection::vec((0u8..3, 0u64..400), 60), changes in prop::collection::vec((0u64..3_000, any::<bool>()), 0..4),
    ) {
        let start = crate::clock_start();
        let mut sides = [Agent::new(true, PathPolicy::Auto, 1, start), Agent::new(false, PathPolicy::Auto, 2, start)];
        let mut known = [locals(), locals()];
        let mut wire: Vec<(Instant, usize, Vec<u8>)> = Vec::new();
        let (mut sent, mut now) = (0usize, start);
        // Who hears nothing eight times rests: not so many are lost in a row.
        let mut in_a_row = [0; 2];
        while now < start + Duration::from_secs(60) {
            for (at, side) in &changes {
                let at = start + Duration::from_millis(*at);
                if at <= now && at + Duration::from_millis(10) > now {
                    known[usize::from(*side)].version += 1;
                    known[usize::from(*side)].candidates.push(host(known[usize::from(*side)].version as u8));
                }
            }
            for side in 0..2 {
                if sides[side].offer_due(now, USED, &known[side]) {
                    let mut buf = [0; OFFER_MAX];
                    let len = sides[side].write_offer(now, &known[side], &mut buf).unwrap();
                    // A third of the first sixty is lost.
                    let (fate, delay) = fates.get(sent).copied().unwrap_or((1, 20));
                    sent += 1;
                    in_a_row[side] = if fate == 0 && in_a_row[side] < 5 { in_a_row[side] + 1 } else { 0 };
                    if in_a_row[side] == 0 {
                        wire.push((now + Duration::from_millis(delay), 1 - side, buf[..len].to_vec()));
                    }
                }
            }
            wire.retain(|(at, to, bytes)| {
                if *at <= now {
                    sides[*to].on_offer(now, &Offer::decode(bytes).unwrap(), &known[*to]);
                }
                *at > now
            });
            now += Duration::from_millis(10);
        }
        prop_assert!(sent < 90, "{} messages", sent);
        for side in 0..2 {
            let theirs: Vec<_> = known[1 - side].candidates.iter().map(|c| c.addr).filter(|a| !known[side].candidates.iter().any(|c| c.addr == *a)).collect();
            for addr in theirs {
                prop_assert!(sides[side].knows(addr), "{addr} of {:?}", known[1 - side].candidates);
            }
            prop_assert!(!sides[side].offer_due(now, USED, &known[side]));
        }
    }

    /// Any calls in any order: bounds hold, ways are permitted ones, time never stands still.
    #[test]
    fn any_course_of_events_keeps_the_rules(
        ops in prop::collection::vec((0u8..14, 0u8..40, 0u64..5_000), 1..200), policy in 0u8..3, controlling: bool,
    ) {
        super::exercise(crate::clock_start(), &ops, policy, controlling);
    }
}
