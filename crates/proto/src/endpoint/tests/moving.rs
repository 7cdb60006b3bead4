//! Another address while tunnels are open.

use super::*;
use crate::event::ReadError;

#[test]
fn another_address_ends_all_that_was_begun_under_the_old_one() {
    let mut two = Two::connected();
    let peer = two.hosts[1].0.local_address();
    two.hosts[1].0.listen(80).expect("free");
    let id = two.hosts[0].0.connect(two.now, SocketAddress { address: peer, port: 80 }).expect("known");
    two.settle();
    assert!(two.hosts[0].0.is_open(id));
    let (now, fresh) = (two.now, Address::new(0, 0x700));
    let host = &mut two.hosts[0].0;
    while host.poll_event().is_some() {}
    assert!(!host.set_local_address(now, fresh), "not while peers know us");
    host.replace_local_address(now, fresh);
    assert_eq!(host.local_address(), fresh);
    assert!(std::iter::from_fn(|| host.poll_event()).any(|event| event == Event::Closed(id)));
    assert_eq!(host.read(now, id, &mut [0; 8]), Err(ReadError::Unknown));
    assert!(host.peers().is_empty() && host.memory().connections == 0);
    // The peer, introduced anew, is reached under the new address, and learns who we are now.
    let (key, at) = (two.hosts[1].0.public_key(), two.hosts[1].1);
    let config = PeerConfig {
        address: peer,
        key: Some(key),
        endpoint: Some(at),
        policy: PeerPolicy::default(),
        prekey: None,
    };
    two.hosts[0].0.add_peer(now, config).expect("fresh");
    let (key, at) = (two.hosts[0].0.public_key(), two.hosts[0].1);
    let config = PeerConfig {
        address: fresh,
        key: Some(key),
        endpoint: Some(at),
        policy: PeerPolicy::default(),
        prekey: None,
    };
    two.hosts[1].0.add_peer(now, config).expect("fresh");
    let id = two.hosts[0].0.connect(now, SocketAddress { address: peer, port: 80 }).expect("known");
    two.settle();
    assert!(two.hosts[0].0.is_open(id));
}
