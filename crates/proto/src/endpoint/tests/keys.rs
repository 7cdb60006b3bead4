//! Keys that are replaced: what is under way survives, what is old does not come back, what is due is not put off.

use pilotage_wire::frame::{self, Pila};

use super::*;
use crate::event::Event;

/// Seals a datagram for port 80 as the first host would, without delivering it.
fn sealed(two: &mut Two, text: &[u8]) -> Vec<u8> {
    let node = two.hosts[0].0.local_address().node;
    let hdr = two.header(Protocol::Datagram, Flags::EMPTY);
    let mut buf = vec![0; PILS_HEADER_LEN + HEADER_LEN + text.len() + 16];
    buf[PILS_HEADER_LEN + HEADER_LEN..][..text.len()].copy_from_slice(text);
    let len = hdr.encode(&mut buf[PILS_HEADER_LEN..], text.len()).expect("fits");
    let tunnel = two.hosts[0].0.tunnel_mut(0).expect("tunnel");
    tunnel.current.as_mut().expect("keys").seal(node, &mut buf, len).expect("fits");
    buf
}

fn hand(two: &mut Two, bytes: &[u8]) {
    let meta = RecvMeta { remote: two.hosts[0].1, local_ip: None };
    two.hosts[1].0.handle_datagram(two.now, &meta, &mut bytes.to_vec());
}

fn key_of(two: &Two, host: usize) -> [u8; 32] {
    two.hosts[host].0.tunnel(0).and_then(|t| t.current.as_ref()).expect("keys").local_public
}

fn ping(two: &mut Two, from: usize) -> bool {
    let peer = two.hosts[1 - from].0.local_address();
    two.hosts[from].0.ping(two.now, peer).expect("known");
    two.settle();
    std::iter::from_fn(|| two.hosts[from].0.poll_event()).any(|e| matches!(e, Event::Pong { .. }))
}

fn pass(two: &mut Two, time: Duration) {
    let end = two.now + time;
    while two.now < end {
        two.now = (two.now + Duration::from_millis(500)).min(end);
        for (host, _) in &mut two.hosts {
            host.handle_timeout(two.now);
        }
        two.settle();
    }
}

/// Two hosts of which the first has just renewed its keys, with two frames that it sealed under the old ones, and its old
/// public key.
fn renewed() -> (Two, [Vec<u8>; 2], [u8; 32]) {
    let mut two = Two::connected();
    two.hosts[1].0.bind_datagram(80).expect("free");
    assert!(ping(&mut two, 0) && ping(&mut two, 1));
    let old = key_of(&two, 0);
    let frames = [sealed(&mut two, b"first"), sealed(&mut two, b"second")];
    two.hosts[0].0.cfg.rekey_after_frames = 1;
    assert!(ping(&mut two, 0));
    two.hosts[0].0.cfg.rekey_after_frames = 1 << 22;
    pass(&mut two, Duration::from_secs(3));
    assert_ne!(key_of(&two, 0), old, "renewed");
    assert!(ping(&mut two, 0) && ping(&mut two, 1));
    (two, frames, old)
}

#[test]
fn frames_that_were_under_way_at_a_key_change_still_open_and_for_half_a_minute_only() {
    let (mut two, [first, second], _) = renewed();
    hand(&mut two, &first);
    assert_eq!(two.hosts[1].0.recv_datagram(80).map(|d| d.data), Some(b"first".to_vec()));
    hand(&mut two, &first);
    assert_eq!(two.hosts[1].0.recv_datagram(80), None, "once");
    pass(&mut two, Duration::from_secs(40));
    let before = two.hosts[1].0.stats().drop_unauthentic;
    hand(&mut two, &second);
    assert_eq!(two.hosts[1].0.recv_datagram(80), None, "the old keys are gone");
    assert_eq!(two.hosts[1].0.stats().drop_unauthentic, before + 1);
}

#[test]
fn streams_of_a_reference_peers_former_process_end_without_a_word_to_the_new_one() {
    for draft in [true, false] {
        let mut two = Two::connected();
        two.hosts[1].0.listen(80).expect("free");
        let to = SocketAddress { address: two.hosts[1].0.local_address(), port: 80 };
        let now = two.now;
        let ours = two.hosts[0].0.connect(now, to).expect("known");
        two.settle();
        let (theirs, _) = two.hosts[1].0.accept(80).expect("connected");
        if draft {
            let tunnel = two.hosts[1].0.tunnel_mut(0).expect("tunnel");
            (tunnel.dialect, tunnel.dialect_shown) = (crate::connection::Dialect::Draft, true);
        }
        // What a new process would do: another key. (That the old stream still lives there shows what we say about it.)
        two.hosts[0].0.cfg.rekey_after_frames = 1;
        assert!(ping(&mut two, 0));
        two.hosts[0].0.cfg.rekey_after_frames = 1 << 22;
        pass(&mut two, Duration::from_secs(1));
        let read = two.hosts[1].0.read(two.now, theirs, &mut [0; 4]);
        let ended = read == Err(crate::event::ReadError::Reset);
        assert_eq!(ended, draft, "{read:?}");
        assert!(two.hosts[0].0.is_open(ours), "neither FIN nor RST came");
    }
}

#[test]
fn a_key_whose_renewal_fails_stops_sealing_at_four_times_its_limit() {
    let mut two = Two::connected();
    assert!(ping(&mut two, 0));
    let sealed_before = two.hosts[0].0.peers()[0].frames_sealed;
    two.hosts[0].0.cfg.rekey_after_frames = 20;
    let to = SocketAddress { address: two.hosts[1].0.local_address(), port: 80 };
    let mut buf = TransmitBuf::new(1);
    // Everything is lost from now on.
    for _ in 0..500 {
        let _ = two.hosts[0].0.send_datagram(two.now, to, 1, &[7; 100]);
        while two.hosts[0].0.poll_transmit(two.now, &mut buf).is_some() {}
        two.now += Duration::from_millis(1);
    }
    let sealed = two.hosts[0].0.peers()[0].frames_sealed;
    assert!((20..=80).contains(&sealed) && sealed > sealed_before, "{sealed}");
    // The renewal goes on, and succeeds as soon as something comes through.
    pass(&mut two, Duration::from_secs(10));
    assert!(ping(&mut two, 0));
    assert!(two.hosts[0].0.peers()[0].frames_sealed < 80);
}

#[test]
fn a_signed_frame_with_other_keys_displaces_no_working_session() {
    let mut two = Two::connected();
    assert!(ping(&mut two, 0) && ping(&mut two, 1));
    let (key, handshakes) = (key_of(&two, 1), two.hosts[1].0.stats().handshakes);
    let peer_key =
        |two: &Two| two.hosts[1].0.tunnel(0).and_then(|t| t.current.as_ref()).map(|s| s.peer_public);
    let before = peer_key(&two);
    // As if recorded in an earlier life of the peer: genuine, and of keys that it no longer has.
    let identity = Identity::from_seed([1; 32]);
    let node = two.hosts[0].0.local_address().node;
    for n in 0..30 {
        let x25519 = [n + 3; 32];
        let signature = identity.sign(&frame::pila_signed_message(node, &x25519));
        let pila = Pila { sender: node, x25519, ed25519: identity.public_key(), signature, trailer: &[] };
        let mut bytes = vec![0; frame::PILA_LEN];
        frame::encode_pila(&pila, &mut bytes).expect("fits");
        hand(&mut two, &bytes);
        let candidates = two.hosts[1].0.tunnel(0).map_or(0, |t| t.candidates.len());
        assert!(candidates <= 8, "{candidates} keys wait to be shown");
        two.now += Duration::from_millis(60);
    }
    assert_eq!((key_of(&two, 1), peer_key(&two)), (key, before));
    assert_eq!(two.hosts[1].0.stats().handshakes, handshakes);
    assert!(ping(&mut two, 1) && ping(&mut two, 0), "both directions go on");
    // Nobody showed them: they are forgotten.
    pass(&mut two, Duration::from_secs(12));
    assert_eq!(two.hosts[1].0.tunnel(0).map(|t| t.candidates.len()), Some(0));
    assert!(ping(&mut two, 1));
}

#[test]
fn key_exchange_answers_that_cannot_leave_do_not_pile_up() {
    let mut two = two();
    let identity = Identity::from_seed([1; 32]);
    let node = two.hosts[0].0.local_address().node;
    let x25519 = [3; 32];
    let signature = identity.sign(&frame::pila_signed_message(node, &x25519));
    let pila = Pila { sender: node, x25519, ed25519: identity.public_key(), signature, trailer: &[] };
    let mut bytes = vec![0; frame::PILA_LEN];
    frame::encode_pila(&pila, &mut bytes).expect("fits");
    for _ in 0..30 {
        hand(&mut two, &bytes);
        two.now += Duration::from_secs(1);
    }
    let mut buf = TransmitBuf::new(1);
    let waiting = std::iter::from_fn(|| two.hosts[1].0.poll_transmit(two.now, &mut buf)).count();
    assert!((1..=8).contains(&waiting), "{waiting}");
}

#[test]
fn a_replaced_key_is_not_brought_back_by_its_old_exchange_frame() {
    let (mut two, [first, _], old) = renewed();
    hand(&mut two, &first);
    assert!(two.hosts[1].0.recv_datagram(80).is_some());
    pass(&mut two, Duration::from_secs(40));
    // Recorded when it was new: genuine, and with it the session would have an empty replay window.
    let identity = Identity::from_seed([1; 32]);
    let node = two.hosts[0].0.local_address().node;
    let signature = identity.sign(&frame::pila_signed_message(node, &old));
    let pila = Pila { sender: node, x25519: old, ed25519: identity.public_key(), signature, trailer: &[] };
    let mut bytes = vec![0; frame::PILA_LEN];
    frame::encode_pila(&pila, &mut bytes).expect("fits");
    let before = two.hosts[1].0.stats().drop_replay;
    hand(&mut two, &bytes);
    assert_eq!(two.hosts[1].0.stats().drop_replay, before + 1);
    hand(&mut two, &first);
    assert_eq!(two.hosts[1].0.recv_datagram(80), None, "delivered once already");
    assert!(ping(&mut two, 0) && ping(&mut two, 1));
    // Nothing had come for a while, so the two sides might have held different keys: ours has changed. While frames
    // open it does not.
    pass(&mut two, Duration::from_secs(1));
    assert!(ping(&mut two, 1));
    let ours = key_of(&two, 1);
    hand(&mut two, &bytes);
    pass(&mut two, Duration::from_secs(1));
    assert!(ping(&mut two, 0) && ping(&mut two, 1));
    assert_eq!(key_of(&two, 1), ours);
}

#[test]
fn a_replaced_key_that_comes_again_in_silence_makes_us_renew_ours_at_most_every_other_second() {
    let (mut two, [late, _], old) = renewed();
    let identity = Identity::from_seed([1; 32]);
    let node = two.hosts[0].0.local_address().node;
    let signature = identity.sign(&frame::pila_signed_message(node, &old));
    let pila = Pila { sender: node, x25519: old, ed25519: identity.public_key(), signature, trailer: &[] };
    let mut bytes = vec![0; frame::PILA_LEN];
    frame::encode_pila(&pila, &mut bytes).expect("fits");
    let forged = Pila { signature: [9; 64], ..pila };
    let mut wrong = bytes.clone();
    frame::encode_pila(&forged, &mut wrong).expect("fits");
    let first = key_of(&two, 1);
    pass(&mut two, Duration::from_secs(3));
    hand(&mut two, &wrong);
    pass(&mut two, Duration::from_secs(3));
    assert_eq!(key_of(&two, 1), first, "only the peer can make us");
    // A frame under the replaced keys says nothing about the present ones.
    hand(&mut two, &late);
    assert!(two.hosts[1].0.recv_datagram(80).is_some());
    hand(&mut two, &bytes);
    pass(&mut two, Duration::from_secs(1));
    let second = key_of(&two, 1);
    assert_ne!(second, first);
    for _ in 0..10 {
        hand(&mut two, &bytes);
    }
    pass(&mut two, Duration::from_secs(1));
    assert_eq!(key_of(&two, 1), second);
    assert!(ping(&mut two, 0) && ping(&mut two, 1));
}
