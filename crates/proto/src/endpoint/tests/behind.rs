//! Streams of S1 that wait behind a full accept queue.

use super::*;
use crate::secure::{SecureConfig, SecureMode};

/// A peer that opens streams and gives them up, again and again, while nobody accepts.
#[test]
fn streams_behind_a_full_queue_that_are_gone_leave_it_and_the_others_keep_their_turn() {
    const MOST: usize = 5;
    let mut two = two_that(|endpoint, now| {
        let config = SecureConfig::new(SecureMode::S1, 1_800_000_000_000, [7; 32]);
        assert!(endpoint.enable_s1(now, config, &endpoint.identity.public_key()));
    });
    let server = &mut two.hosts[1].0;
    (server.cfg.accept_queue, server.cfg.max_connections) = (1, MOST);
    server.listen(80).expect("free");
    let to = SocketAddress { address: server.local_address(), port: 80 };
    let open = |two: &mut Two, text: &[u8]| {
        let id = two.hosts[0].0.connect(two.now, to).expect("room");
        two.hosts[0].0.write(two.now, id, text).expect("room");
        two.settle();
        id
    };
    let give_up = |two: &mut Two, id| {
        two.hosts[0].0.reset(two.now, id);
        two.hosts[0].0.close(two.now, id);
        two.settle();
    };
    open(&mut two, b"first");
    assert_eq!(two.hosts[1].0.listeners[&80].waiting.len(), 1);
    let (mut longest, mut shrank) = (0, 0);
    for n in 0..10 * MOST {
        if n == 3 || n == 20 {
            open(&mut two, &[n as u8; 5]);
        }
        let before = two.hosts[1].0.listeners[&80].behind.len();
        let id = open(&mut two, b"never");
        let after = two.hosts[1].0.listeners[&80].behind.len();
        shrank += usize::from(after <= before);
        longest = longest.max(after);
        give_up(&mut two, id);
    }
    assert_eq!(longest, 2 * MOST, "the bound is hit, and never passed");
    assert!(shrank >= 3, "those that are gone were thrown out, {shrank} times");
    let mut heard = Vec::new();
    while let Some((id, _)) = two.hosts[1].0.accept(80) {
        let mut buf = [0; 8];
        if two.hosts[1].0.read(two.now, id, &mut buf) == Ok(5) && two.hosts[1].0.is_open(id) {
            heard.push(buf[0]);
        }
    }
    // What gave the very last one up may be under way.
    assert_eq!(heard[..3], [b'f', 3, 20], "in the order in which they came");
    assert!(heard.len() <= 4, "{heard:?}");
}
