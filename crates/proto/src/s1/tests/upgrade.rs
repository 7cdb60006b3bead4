//! The post-quantum upgrade (spec/secure.md §9.5).

use std::collections::VecDeque;

use pilotage_wire::s1::frames::{Frames, HALF_CIPHERTEXT, HALF_KEY, Upgrade};
use proptest::prelude::*;

use super::*;

fn pair_of(one: PostQuantum, other: PostQuantum, limits: Limits) -> (Side, Side) {
    let start = Instant::now();
    let side = |number: u8, post_quantum| {
        Side::with(NodeConfig { post_quantum, ..config(number, limits) }, number, start, 0)
    };
    let (mut a, mut b) = (side(1, one), side(2, other));
    a.knows(&b);
    b.knows(&a);
    wait(&mut a, &mut b, 30_000);
    (a, b)
}

/// The steps that a side has to say, each sealed.
fn steps(side: &mut Side) -> Vec<Vec<u8>> {
    let frames: Vec<Vec<u8>> = side
        .session()
        .upgrade_steps()
        .into_iter()
        .map(|step| {
            let mut buf = vec![0; 2 + HALF_KEY];
            let len = Frame::Upgrade(step).encode(&mut buf).expect("room");
            buf.truncate(len);
            buf
        })
        .collect();
    frames.iter().map(|frames| side.seal(frames).expect("keys")).collect()
}

/// Opens a packet and does what its steps say; what is to be sent for that.
fn take(side: &mut Side, datagram: &[u8]) -> Vec<Vec<u8>> {
    let frames = side.open(datagram).expect("genuine");
    let mut send = false;
    for frame in Frames::new(&frames) {
        if let Frame::Upgrade(step) = frame.expect("well-formed") {
            send |= side.run(|peer, _, cx| peer.on_upgrade_step(&step, cx)).expect("no error");
        }
    }
    if send { steps(side) } else { Vec::new() }
}

/// A handshake, and the initiator's first steps.
fn begun(a: &mut Side, b: &mut Side) -> Vec<Vec<u8>> {
    shake(a, b);
    let now = a.now;
    a.session().begin_upgrade(now, None);
    assert_eq!(a.session().upgrade_is_due(now), !a.session().upgrade_steps().is_empty());
    steps(a)
}

/// All of it without any loss.
fn upgraded(a: &mut Side, b: &mut Side) {
    kem_secret_on_the_way(a, b);
}

/// The same; what ML-KEM gave, turned over.
pub(super) fn kem_secret_on_the_way(a: &mut Side, b: &mut Side) -> Option<[u8; 32]> {
    let mut to_b: VecDeque<_> = begun(a, b).into();
    let (mut to_a, mut secret) = (VecDeque::new(), None);
    while !(to_b.is_empty() && to_a.is_empty()) {
        if let Some(known) = b.session().upgrade_secret() {
            secret = Some(known.map(|byte| !byte));
        }
        if let Some(datagram) = to_b.pop_front() {
            to_a.extend(take(b, &datagram));
        }
        if let Some(datagram) = to_a.pop_front() {
            to_b.extend(take(a, &datagram));
        }
    }
    secret
}

#[test]
fn two_round_trips_and_both_directions_need_the_second_secret() {
    let (mut a, mut b) = pair_of(PostQuantum::On, PostQuantum::Require, Limits::default());
    let first = begun(&mut a, &mut b);
    assert!(first.iter().all(|datagram| datagram.len() == 2 + HALF_KEY + OVERHEAD) && first.len() == 2);
    assert_eq!(take(&mut b, &first[0]), Vec::<Vec<u8>>::new());
    let answer = take(&mut b, &first[1]);
    assert!(
        answer.iter().all(|datagram| datagram.len() == 2 + HALF_CIPHERTEXT + OVERHEAD) && answer.len() == 2
    );
    // What the next phase would be without it.
    let plain = [&mut a, &mut b].map(|side| {
        let [(ours, _), _] = side.session().secrets();
        super::super::keys::Phase::new(Secret::new(*ours), Suite::Aes256Gcm).next(Suite::Aes256Gcm)
    });
    assert_eq!(take(&mut a, &answer[0]), Vec::<Vec<u8>>::new());
    let done = take(&mut a, &answer[1]);
    assert_eq!((done.len(), a.session().phase(), b.session().phase()), (1, 1, 0));
    assert!(!a.session().is_post_quantum() && !b.session().is_post_quantum());
    let last = take(&mut b, &done[0]);
    assert!(b.session().is_post_quantum() && b.session().phase() == 1);
    assert_eq!(take(&mut a, &last[0]), Vec::<Vec<u8>>::new());
    assert!(a.session().is_post_quantum());
    assert!(a.session().upgrade_at().is_none(), "nothing to be repeated");
    for (side, plain) in [&mut a, &mut b].into_iter().zip(plain) {
        let [(ours, _), _] = side.session().secrets();
        assert_ne!(ours, plain.parts().0, "phase 1 is another than without the upgrade");
    }
    for round in 0..3 {
        let sealed = a.seal(&datagram_frame(&[round])).expect("keys");
        assert_eq!(b.open(&sealed).expect("the same keys"), datagram_frame(&[round]));
        let sealed = b.seal(&datagram_frame(&[round])).expect("keys");
        assert_eq!(a.open(&sealed).expect("the same keys"), datagram_frame(&[round]));
    }
}

#[test]
fn it_is_done_where_both_would_like_it_and_refused_where_one_demands_it() {
    use PostQuantum::{Off, On, Require};
    for (one, other, agreed) in [(Off, On, false), (On, Off, false), (Off, Off, false), (On, On, true)] {
        let (mut a, mut b) = pair_of(one, other, Limits::default());
        upgraded(&mut a, &mut b);
        assert_eq!((a.session().is_post_quantum(), b.session().is_post_quantum()), (agreed, agreed));
    }
    let (mut a, mut b) = pair_of(Off, Require, Limits::default());
    let pili = a.connect();
    assert_eq!(b.answer(&pili, source(1)).err(), Some(Refusal::PostQuantum));
    let (mut a, mut b) = pair_of(Require, Off, Limits::default());
    let pili = a.connect();
    let accepted = b.answer(&pili, source(1)).expect("a good PILI");
    let up = a.run(|peer, node, cx| peer.handle_response(node, &accepted.datagram, cx));
    assert_eq!(up, Err(Refusal::PostQuantum));
    // Nobody else can take the wish away, nor give it: it is in what the keys are made of.
    let (mut a, mut b) = pair_of(On, On, Limits::default());
    let mut pili = a.connect();
    pili[5] &= !4;
    let end = pili.len() - 32;
    let mac1 = super::super::cookie::PublicKeys::of(&b.node.identity_key).mac1(&pili[..end]);
    pili[end..end + 16].copy_from_slice(&mac1);
    assert_eq!(b.answer(&pili, source(1)).err(), Some(Refusal::Unauthentic));
    a.run(|peer, node, _| peer.close(node));
    wait(&mut a, &mut b, 1_000);
    let pili = a.connect();
    let mut pilr = b.answer(&pili, source(1)).expect("a good PILI").datagram;
    pilr[5] &= !2;
    let mac1 = super::super::cookie::PublicKeys::of(&a.node.identity_key).mac1(&pilr[..144]);
    pilr[144..].copy_from_slice(&mac1);
    let up = a.run(|peer, node, cx| peer.handle_response(node, &pilr, cx));
    assert_eq!(up, Err(Refusal::Unauthentic));
}

/// Who keeps the steps back keeps the two in phase 0, whatever they send; at last the session is used up.
#[test]
fn without_the_secret_nobody_leaves_phase_0() {
    let limits = Limits { update_packets: 2, phase_packets: 20, ..Limits::default() };
    let (mut a, mut b) = pair_of(PostQuantum::On, PostQuantum::On, limits);
    drop(begun(&mut a, &mut b));
    while let (Ok(one), Ok(other)) = (a.seal(&[1]), b.seal(&[1])) {
        b.open(&one).expect("phase 0");
        a.open(&other).expect("phase 0");
        assert_eq!((a.session().phase(), b.session().phase()), (0, 0));
    }
    let now = a.now;
    assert!(a.session().is_exhausted(now), "and a new handshake is made");
    assert!(a.session().sealed() >= 19);
}

#[test]
fn what_is_against_the_protocol_is_an_error() {
    let (mut a, mut b) = pair_of(PostQuantum::On, PostQuantum::On, Limits::default());
    drop(begun(&mut a, &mut b));
    let key = [0xff; HALF_KEY];
    let half = [1; HALF_CIPHERTEXT];
    let step = |side: &mut Side, step: Upgrade<'_>| side.run(|peer, _, cx| peer.on_upgrade_step(&step, cx));
    assert_eq!(step(&mut a, Upgrade::Key(false, &key)), None, "the initiator's own step");
    assert_eq!(step(&mut a, Upgrade::Done), None, "nothing is done");
    assert_eq!(step(&mut b, Upgrade::Done), None);
    assert_eq!(step(&mut b, Upgrade::Ciphertext(true, &half)), None);
    assert_eq!(step(&mut b, Upgrade::Key(true, &key)), Some(false));
    assert_eq!(step(&mut b, Upgrade::Key(false, &key)), None, "no key: numbers beyond the modulus");
    // Where nothing was agreed on.
    let (mut a, mut b) = pair_of(PostQuantum::Off, PostQuantum::On, Limits::default());
    shake(&mut a, &mut b);
    assert_eq!(step(&mut b, Upgrade::Key(false, &key)), None);
}

/// What both sides hold of a secret that is none: another one each, and packets that do not open. Nothing else happens.
#[test]
fn a_wrong_ciphertext_gives_keys_that_nobody_else_has() {
    let (mut a, mut b) = pair_of(PostQuantum::On, PostQuantum::On, Limits::default());
    for datagram in begun(&mut a, &mut b) {
        drop(take(&mut b, &datagram));
    }
    for second in [false, true] {
        let half = [3; HALF_CIPHERTEXT];
        let send = a.run(|peer, _, cx| peer.on_upgrade_step(&Upgrade::Ciphertext(second, &half), cx));
        assert_eq!(send, Some(second));
    }
    let sealed = a.seal(&[1]).expect("keys");
    assert_eq!(b.open(&sealed), Err(OpenError::Unauthentic));
}

proptest! {
    /// At any loss, order and repetition both have the same keys in the end, and nothing that was sealed fails to open.
    #[test]
    fn at_any_loss_order_and_repetition_it_comes_to_its_end(seed: [u8; 32], loss in 0..60u32) {
        let limits = Limits { update_after: Duration::from_secs(2), ..Limits::default() };
        let (mut a, mut b) = pair_of(PostQuantum::On, PostQuantum::On, limits);
        let mut rng = ChaCha20Rng::from_seed(seed);
        let first = begun(&mut a, &mut b);
        // When it was sealed, whether it is for b, and what it is.
        let mut bag: Vec<(Instant, bool, Vec<u8>)> = first.into_iter().map(|d| (a.now, true, d)).collect();
        let mut rounds = 0;
        while !(a.session().is_post_quantum() && b.session().is_post_quantum()) {
            rounds += 1;
            prop_assert!(rounds < 2_000, "it does not end");
            if bag.is_empty() || rng.next_u32() % 8 == 0 {
                wait(&mut a, &mut b, 100);
                let now = a.now;
                if a.session().upgrade_is_due(now) {
                    bag.extend(steps(&mut a).into_iter().map(|d| (now, true, d)));
                }
                prop_assert!(b.session().upgrade_at().is_none(), "the responder only answers");
            }
            if bag.is_empty() {
                continue;
            }
            let at = rng.next_u32() as usize % bag.len();
            let lost = rng.next_u32() % 100 < loss;
            let twice = rng.next_u32() % 4 == 0;
            let (sealed, to_b, datagram) = if twice { bag[at].clone() } else { bag.remove(at) };
            // No network keeps a datagram for as long as keys of the phase before are kept.
            let old = a.now.duration_since(sealed) > Duration::from_secs(20);
            if old && twice {
                bag.remove(at);
            }
            if lost || old {
                continue;
            }
            let side = if to_b { &mut b } else { &mut a };
            let mut copy = datagram.clone();
            let now = side.now;
            let opened = side.run(|peer, node, _| peer.open(node, &mut copy, now));
            match opened {
                Ok(opened) => {
                    let frames = copy[opened.start..opened.end].to_vec();
                    for frame in Frames::new(&frames) {
                        if let Ok(Frame::Upgrade(step)) = frame {
                            let send = side.run(|peer, _, cx| peer.on_upgrade_step(&step, cx));
                            prop_assert!(send.is_some());
                            if send == Some(true) {
                                bag.extend(steps(side).into_iter().map(|d| (now, !to_b, d)));
                            }
                        }
                    }
                }
                Err(error) => prop_assert_eq!(error, OpenError::Replay),
            }
            bag.truncate(64);
        }
        let sealed = a.seal(&[1]).expect("keys");
        prop_assert_eq!(b.open(&sealed), Ok(vec![1]));
        let sealed = b.seal(&[1]).expect("keys");
        prop_assert_eq!(a.open(&sealed), Ok(vec![1]));
    }
}
