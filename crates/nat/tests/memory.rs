//! What 100,000 nodes cost a beacon, in memory of the process. A process of its own, so that nothing else counts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_nat::{BeaconConfig, BeaconEngine};
use pilotage_wire::NodeId;
use pilotage_wire::beacon::{Accept, Extension, MAX_PERMITTED, Message, NodeList};

/// Resident memory of this process, where the system tells it.
#[allow(clippy::disallowed_methods, reason = "what is measured is outside of the engine")]
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(text.split(' ').nth(1)?.parse::<usize>().ok()? * 4_096)
}

struct Crowd {
    engine: BeaconEngine,
    now: Instant,
}

impl Crowd {
    #[allow(clippy::disallowed_methods, reason = "an Instant has no other source; all else counts from it")]
    fn new() -> Self {
        // Signatures are not what is measured.
        let config = BeaconConfig { verify: Some(|_, _, _| true), ..BeaconConfig::default() };
        Self { engine: BeaconEngine::new(config, 1), now: Instant::now() }
    }

    fn send(&mut self, from: SocketAddr, message: Message<'_>) -> Option<Vec<u8>> {
        let mut bytes = [0; 512];
        let len = message.encode(&mut bytes).expect("fits");
        let mut answer = None;
        self.engine.handle_datagram(self.now, from, &bytes[..len.max(53)], &mut |_, data| {
            answer = Some(data.to_vec());
        });
        // Below the budget for all.
        self.now += Duration::from_micros(25);
        answer
    }

    fn register(&mut self, number: u32, permitted: usize) {
        let from = SocketAddr::from(([10, (number >> 16) as u8, (number >> 8) as u8, number as u8], 4_000));
        let node = NodeId(1_000 + number);
        let hello = Extension::Hello { renew: false, node, nonce: 1 };
        let challenge = self.send(from, Message::Extension(hello)).expect("a challenge");
        let Ok(Message::Extension(Extension::Challenge { cookie, .. })) = Message::decode(&challenge) else {
            panic!("no challenge");
        };
        let list = NodeList::<{ 4 * MAX_PERMITTED }>::new((0..permitted as u32).map(NodeId));
        let prove = Extension::Prove {
            node,
            salt: 0,
            nonce: 1,
            cookie,
            key: &[7; 32],
            beacon: SocketAddr::from(([192, 0, 2, 1], 9_001)),
            accept: Accept::Named,
            permitted: list.ids(),
            signature: &[0; 64],
        };
        self.send(from, Message::Extension(prove)).expect("an answer");
        // Budget for the next signature.
        self.now += Duration::from_micros(500);
    }
}

#[test]
fn a_hundred_thousand_nodes_stay_below_a_hundred_megabytes() {
    let before = resident();
    let mut crowd = Crowd::new();
    // All registrations of this test are made within their lifetime.
    for number in 0..100_000 {
        crowd.register(number, MAX_PERMITTED);
    }
    let stats = crowd.engine.stats();
    assert_eq!((stats.registered, stats.proven), (100_000, 100_000));
    // One more is refused, and what was there goes on.
    crowd.register(200_000, 0);
    assert_eq!(crowd.engine.stats().registered, 100_000);
    if let Some((before, after)) = before.zip(resident()) {
        let bytes = after.saturating_sub(before);
        println!("{} MB for 100,000 proven nodes, {} bytes each", bytes / 1_000_000, bytes / 100_000);
        assert!(bytes < 100_000_000, "{bytes} bytes");
    }
}
