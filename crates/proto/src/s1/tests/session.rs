//! Sessions: forgeries, reordering, key phases, ends.

use super::super::model::limits;
use super::*;

/// Test 1 of the design's section 6, for S1, at a hundredth of its size (`forged_frames_many_times` has the whole).
fn forged(count: u32) {
    let (mut a, mut b) = connected();
    let mut rng = ChaCha20Rng::from_seed([1; 32]);
    let index = a.session().remote_index().to_be_bytes();
    for n in 0..count {
        let mut frame = vec![0; 25 + rng.next_u32() as usize % 60];
        rng.fill_bytes(&mut frame);
        frame[0] = 0xB0 | frame[0] & 0x0F;
        frame[1..5].copy_from_slice(&index);
        assert!(matches!(b.open(&frame), Err(OpenError::Unauthentic | OpenError::Replay)), "frame {n}");
    }
    for _ in 0..100 {
        let ping = a.seal(&[1]).unwrap();
        assert_eq!(b.open(&ping).unwrap(), [1]);
    }
    assert_eq!(b.session().window(), 1_024, "forgeries make no window grow unless they guess a number");
}

#[test]
fn forged_frames_change_nothing() {
    forged(10_000);
}

#[test]
#[ignore = "minutes"]
fn forged_frames_many_times() {
    forged(1_000_000);
}

#[test]
fn every_changed_bit_of_a_frame_is_noticed() {
    let (mut a, mut b) = connected();
    let sealed = a.seal(&datagram_frame(b"hello")).unwrap();
    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let mut buf = changed.clone();
        let now = b.now;
        // Straight to the session, so that a changed index is not merely unknown.
        assert!(b.session().open(&mut buf, now).is_err(), "bit {bit}");
    }
    for len in 0..sealed.len() {
        assert!(b.open(&sealed[..len]).is_err());
    }
    b.open(&sealed).expect("the genuine one");
}

#[test]
fn numbers_and_phases_cannot_be_seen() {
    let (mut a, _) = connected();
    let frames: Vec<Vec<u8>> = (0..64).map(|_| a.seal(&[1, 1, 1, 1]).unwrap()).collect();
    let distinct = |at: usize| frames.iter().map(|f| f[at]).collect::<std::collections::HashSet<_>>().len();
    assert!((5..9).all(|at| distinct(at) > 40), "packet numbers are masked");
    assert!(distinct(0) > 8, "so are the low bits of the first byte");
    assert!(frames.iter().all(|f| f[0] & 0xF0 == 0xB0 && f[1..5] == frames[0][1..5]));
}

#[test]
fn packets_far_out_of_order_make_the_window_grow() {
    let (mut a, mut b) = connected();
    let mut late: Vec<Vec<u8>> = (0..3_000).map(|_| a.seal(&[1]).unwrap()).collect();
    let last = late.pop().unwrap();
    b.open(&last).unwrap();
    let opened = late.iter().filter(|f| b.open(f).is_ok()).count();
    assert!((1_000..1_100).contains(&opened), "{opened}");
    assert!(b.session().window() > 1_024);
    let mut late: Vec<Vec<u8>> = (0..1_900).map(|_| a.seal(&[1]).unwrap()).collect();
    let last = late.pop().unwrap();
    b.open(&last).unwrap();
    assert_eq!(late.iter().filter(|f| b.open(f).is_ok()).count(), 1_899);
}

fn short_lived() -> (Side, Side) {
    let start = Instant::now();
    let (mut a, mut b) =
        (Side::with(config(1, limits()), 1, start, 0), Side::with(config(2, limits()), 2, start, 0));
    a.knows(&b);
    b.knows(&a);
    shake(&mut a, &mut b);
    (a, b)
}

#[test]
fn keys_are_updated_by_packets_and_only_together() {
    let (mut a, mut b) = short_lived();
    let before = a.session().secrets().map(|(secret, _)| *secret);
    // One-sided: A never hears of B, so it stays in its phase, and ends at the phase's bound.
    let mut sent = 1;
    while let Ok(sealed) = a.seal(&[1]) {
        b.open(&sealed).unwrap();
        sent += 1;
    }
    assert_eq!((sent, a.session().phase()), (8, 0));
    // B speaks once; now A may go on, in the next phase, and B follows.
    let ping = b.seal(&[1]).unwrap();
    a.open(&ping).unwrap();
    let next = a.seal(&[1]).unwrap();
    assert_eq!((a.session().phase(), b.session().phase()), (1, 0));
    b.open(&next).unwrap();
    assert_eq!(b.session().phase(), 1, "who sees the next phase follows");
    assert_ne!(a.session().secrets().map(|(secret, _)| *secret)[0], before[0]);
}

#[test]
fn late_packets_of_the_phase_before_are_opened_and_forged_phases_are_not() {
    let (mut a, mut b) = short_lived();
    let ping = b.seal(&[1]).unwrap();
    a.open(&ping).unwrap();
    let late: Vec<_> = (0..3).map(|_| a.seal(&[1]).unwrap()).collect();
    let next = a.seal(&[1]).unwrap();
    assert_eq!(a.session().phase(), 1);
    let mut forged = next.clone();
    forged[20] ^= 1;
    assert_eq!(b.open(&forged), Err(OpenError::Unauthentic));
    assert_eq!(b.session().phase(), 0);
    b.open(&next).unwrap();
    assert_eq!(b.session().phase(), 1);
    b.open(&late[0]).unwrap();
    b.open(&late[1]).unwrap();
    b.now += Duration::from_secs(31);
    assert!(b.open(&late[2]).is_err(), "too late for the phase before");
}

#[test]
fn keys_are_updated_by_time_and_by_bytes() {
    let (mut a, mut b) = short_lived();
    let ping = b.seal(&[1]).unwrap();
    a.open(&ping).unwrap();
    wait(&mut a, &mut b, 5_000);
    let sealed = a.seal(&[1]).unwrap();
    assert_eq!(a.session().phase(), 1);
    b.open(&sealed).unwrap();
    let sealed = b.seal(&[1]).unwrap();
    assert_eq!(b.session().phase(), 1);
    a.open(&sealed).unwrap();
    for phase in [1, 1, 2] {
        let sealed = a.seal(&datagram_frame(&[0; 1_000])).unwrap();
        b.open(&sealed).unwrap();
        assert_eq!(a.session().phase(), phase);
    }
}

#[test]
fn a_direction_that_loses_everything_for_phases_is_opened_again() {
    for deaf in [true, false] {
        let (mut a, mut b) = short_lived();
        let ping = b.seal(&[1]).unwrap();
        a.open(&ping).unwrap();
        for _ in 0..20 {
            wait(&mut a, &mut b, 2_000);
            // One of the two hears, and would like to change keys each time.
            let (to_b, to_a) = (a.seal(&[1]), b.seal(&[1]));
            if deaf {
                if let Ok(to_a) = to_a {
                    a.open(&to_a).unwrap();
                }
            } else if let Ok(to_b) = to_b {
                b.open(&to_b).unwrap();
            }
            assert!(a.session().phase().abs_diff(b.session().phase()) <= 1);
        }
        let (to_b, to_a) = (a.seal(&[1]), b.seal(&[1]));
        if let Ok(to_b) = to_b {
            b.open(&to_b).unwrap();
        }
        if let Ok(to_a) = to_a {
            a.open(&to_a).unwrap();
        }
        assert!(deaf || a.session().phase() > 0);
    }
}

#[test]
fn a_responder_that_sends_much_gets_new_keys_by_the_initiator() {
    let (mut a, mut b) = short_lived();
    for _ in 0..30 {
        // Far more goes one way than acknowledgements the other.
        for _ in 0..2 {
            let sealed = b.seal(&[1]).unwrap();
            a.open(&sealed).unwrap();
        }
        if b.seal(&[1]).is_err() {
            break;
        }
        let answer = a.seal(&[1]).unwrap();
        b.open(&answer).unwrap();
    }
    assert!(b.session().phase() > 3, "{}", b.session().phase());
}

#[test]
fn a_session_lives_through_many_phases_and_then_ends() {
    let (mut a, mut b) = short_lived();
    let mut sealed = 1;
    while let Ok(one) = a.seal(&[1]) {
        b.open(&one).unwrap();
        let two = b.seal(&[1]).unwrap();
        a.open(&two).unwrap();
        sealed += 1;
    }
    assert_eq!(sealed, 100);
    assert!(a.session().phase() > 15);
    let now = a.now;
    assert!(a.session().wants_rekey(now));
    assert_eq!(a.seal(&[1]), Err(SealError::Exhausted));
}

#[test]
fn a_session_ends_by_age() {
    let (mut a, mut b) = connected();
    let (first, second) = (a.seal(&[1]).unwrap(), a.seal(&[1]).unwrap());
    wait(&mut a, &mut b, 179_999);
    let now = a.now;
    assert!(!a.session().wants_rekey(now));
    wait(&mut a, &mut b, 1);
    let now = a.now;
    assert!(a.session().wants_rekey(now) && !b.session().wants_rekey(now), "the initiator first");
    wait(&mut a, &mut b, 18_000);
    let now = b.now;
    assert!(b.session().wants_rekey(now));
    wait(&mut a, &mut b, 162_000);
    assert_eq!(a.seal(&[1]), Err(SealError::Exhausted));
    b.open(&first).expect("what was on the way");
    wait(&mut a, &mut b, 30_000);
    assert_eq!(b.open(&second), Err(OpenError::Exhausted));
    for side in [&mut a, &mut b] {
        assert!(side.run(|peer, _, _| peer.deadline()).is_some_and(|at| at <= side.now));
        side.run(|peer, node, cx| peer.handle_timeout(node, cx));
        assert_eq!((side.node.indices(), side.run(|peer, _, _| peer.deadline())), (0, None), "forgotten");
    }
}

#[test]
fn indices_are_changed_so_that_paths_cannot_be_linked() {
    let (mut a, mut b) = connected();
    let old = a.session().remote_index();
    let told: Vec<_> = (0..20).filter_map(|_| b.run(|peer, node, cx| peer.new_index(node, cx))).collect();
    assert_eq!((told.len(), b.node.indices()), (SPARES_MAX, 1 + SPARES_MAX), "a bound");
    for (seq, index, token) in told.iter().rev() {
        assert!(a.session().on_new_index(*seq, *index, *token));
        assert!(a.session().on_new_index(*seq, *index, *token), "again is no harm");
        assert!(!a.session().on_new_index(*seq, index ^ 1, *token));
    }
    assert!(!a.session().on_new_index(99, 5, [0; 16]), "one too many");
    assert_eq!(a.session().use_spare(), Some(0));
    assert_eq!(a.session().remote_index(), told[0].1);
    assert!(a.session().is_reset_by(told[0].1, &told[0].2) && !a.session().is_reset_by(old, &told[0].2));
    let ping = a.seal(&[1]).unwrap();
    b.open(&ping).expect("the new index");
    b.run(|peer, node, _| peer.retire_index(node, 0));
    assert_eq!(b.node.slot(old), None);
    let ping = a.seal(&[1]).unwrap();
    b.open(&ping).expect("the new index");
    assert_eq!(a.session().retire_before(3), [2, 1]);
    assert_eq!(a.session().remote_index(), told[2].1);
    assert!(a.session().retire_before(3).is_empty());
    // The last one cannot be retired.
    for seq in 0..20 {
        b.run(|peer, node, _| peer.retire_index(node, seq));
    }
    assert_eq!(b.node.indices(), 1);
}

#[test]
fn no_room_is_an_error_and_uses_no_number() {
    let (mut a, _) = connected();
    let sealed = a.session().sealed();
    let (mut small, now) = ([0; 30], a.now);
    assert_eq!(a.session().seal(&mut small, 6, now), Err(SealError::NoRoom));
    assert_eq!(a.session().sealed(), sealed);
    assert!(a.session().seal(&mut small, 5, now).is_ok());
}
