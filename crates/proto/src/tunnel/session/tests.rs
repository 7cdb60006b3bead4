//! Sealing and opening between two sessions of one key.

use super::*;

const A: NodeId = NodeId(0x100);
const B: NodeId = NodeId(0x200);

/// A session of A and one of B; both draw the same random prefix.
#[allow(clippy::disallowed_methods)] // a base for virtual time
fn pair(random: [u8; 4]) -> (Session, Session) {
    let (a, b) = (EphemeralKey::from_bytes([1; 32]), EphemeralKey::from_bytes([2; 32]));
    let now = Instant::now();
    let one = Session::new(&a, b.public(), random, now).expect("a fine key");
    let two = Session::new(&b, a.public(), random, now).expect("a fine key");
    (one, two)
}

fn seal(session: &mut Session, sender: NodeId, text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; PILS_HEADER_LEN + text.len() + TAG_LEN];
    frame[PILS_HEADER_LEN..][..text.len()].copy_from_slice(text);
    let len = session.seal(sender, &mut frame, text.len()).expect("room");
    assert_eq!(len, frame.len());
    frame
}

/// The text and whether its counter is the highest so far.
fn open(session: &mut Session, frame: &[u8]) -> Result<(Vec<u8>, bool), OpenError> {
    let mut bytes = frame.to_vec();
    let (sender, nonce, ciphertext) = frame::split_pils_mut(&mut bytes).expect("a sealed frame");
    session.open(sender, &nonce, ciphertext).map(|(plain, highest)| (plain.to_vec(), highest))
}

fn prefix(frame: &[u8]) -> [u8; 4] {
    let mut bytes = frame.to_vec();
    let (_, nonce, _) = frame::split_pils_mut(&mut bytes).expect("a sealed frame");
    [nonce[0], nonce[1], nonce[2], nonce[3]]
}

#[test]
fn every_frame_opens_once_in_any_order_and_only_a_newer_one_is_the_highest() {
    let (mut a, mut b) = pair([7; 4]);
    let frames: Vec<_> = (0..5u8).map(|i| seal(&mut a, A, &[i])).collect();
    for (i, newest) in [(2u8, true), (0, false), (4, true), (3, false), (1, false)] {
        assert_eq!(open(&mut b, &frames[usize::from(i)]), Ok((vec![i], newest)));
    }
    for frame in &frames {
        assert_eq!(open(&mut b, frame), Err(OpenError::Replay));
    }
    assert_eq!(a.counter, 5);
}

#[test]
fn a_forged_frame_moves_no_window_and_shuts_nobody_out() {
    let (mut a, mut b) = pair([7; 4]);
    let good = seal(&mut a, A, b"first");
    // The highest counter there is, under a tag that does not fit, from a prefix that is known and from one that is not.
    open(&mut b, &good).expect("genuine");
    for at in [8, 12] {
        let mut forged = seal(&mut a, A, b"second");
        forged[at..20].fill(0xff);
        assert_eq!(open(&mut b, &forged), Err(OpenError::Unauthentic));
        forged[12..20].copy_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(open(&mut b, &forged), Err(OpenError::Unauthentic));
    }
    assert_eq!(b.windows.len(), 1, "a prefix is remembered only with a genuine frame");
    let third = seal(&mut a, A, b"third");
    assert_eq!(open(&mut b, &third), Ok((b"third".to_vec(), true)));
    // Bits of every part of a frame.
    for at in [4, 8, 19, 20, third.len() - 1] {
        let mut bent = seal(&mut a, A, b"bent!");
        bent[at] ^= 1;
        assert_eq!(open(&mut b, &bent), Err(OpenError::Unauthentic), "byte {at}");
    }
}

#[test]
fn a_reflected_frame_does_not_open_as_the_peers() {
    let (mut a, _) = pair([7; 4]);
    let mut frame = seal(&mut a, A, b"mirror");
    frame[4..8].copy_from_slice(&B.0.to_be_bytes());
    assert_eq!(open(&mut a, &frame), Err(OpenError::Unauthentic), "our key, but not the peer's name");
}

#[test]
fn the_two_sides_never_share_a_prefix() {
    for random in [[0; 4], [0xff; 4], [0x80, 1, 2, 3], [0x7f, 1, 2, 3]] {
        let (mut a, mut b) = pair(random);
        let (from_a, from_b) = (seal(&mut a, A, b"x"), seal(&mut b, B, b"x"));
        assert_ne!(prefix(&from_a), prefix(&from_b), "one key: a nonce would come twice");
        assert_eq!(prefix(&from_a)[1..], random[1..]);
        open(&mut b, &from_a).expect("genuine");
        open(&mut a, &from_b).expect("genuine");
        assert!(!a.prefix_collides() && !b.prefix_collides());
    }
}

#[test]
fn a_reference_peer_that_draws_our_prefix_is_noticed() {
    let (mut a, mut b) = pair([7; 4]);
    b.send_prefix = a.send_prefix;
    let frame = seal(&mut b, B, b"x");
    assert_eq!(open(&mut a, &frame).map(|_| a.prefix_collides()), Ok(true));
}

#[test]
fn prefixes_of_the_peer_are_bounded_and_none_is_forgotten() {
    let (_, mut b) = pair([7; 4]);
    let mut frames = Vec::new();
    for i in 0..MAX_PREFIXES as u8 + 4 {
        let (mut a, _) = pair([i; 4]);
        frames.push(seal(&mut a, A, &[i]));
    }
    let opened = frames.iter().filter(|frame| open(&mut b, frame).is_ok()).count();
    assert_eq!((opened, b.windows.len()), (MAX_PREFIXES, MAX_PREFIXES));
    assert!(frames.iter().all(|frame| open(&mut b, frame) == Err(OpenError::Replay)));
}

#[test]
fn a_point_of_small_order_makes_no_session() {
    let (a, _) = pair([7; 4]);
    let local = EphemeralKey::from_bytes([1; 32]);
    assert!(Session::new(&local, [0; 32], [7; 4], a.created).is_none());
}

#[test]
fn a_buffer_without_room_for_the_tag_is_refused_and_no_counter_is_spent() {
    let (mut a, _) = pair([7; 4]);
    let mut short = vec![0; PILS_HEADER_LEN + 10 + TAG_LEN - 1];
    assert_eq!(a.seal(A, &mut short, 10), None);
    assert_eq!(a.counter, 0);
}
