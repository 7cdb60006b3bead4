//! The beacon and a node's half of it, each with arbitrary datagrams.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_nat::{BeaconClient, BeaconConfig, BeaconEngine, ClientEvent, Rate};
use pilotage_proto::crypto::{Identity, verify};
use pilotage_wire::NodeId;
use pilotage_wire::beacon::{
    Accept, Extension, MAX_PERMITTED, MAX_PROOF_TEXT, Message, NodeList, proof_text,
};

use crate::inputs::Input;

/// Operations of one execution.
const OPS: usize = 200;

/// A few addresses of both families, one of them no unicast address.
fn address(number: u8) -> SocketAddr {
    match number & 7 {
        6 => SocketAddr::from(([0x2001, 0xdb8, 0, u16::from(number >> 3), 0, 0, 0, 1], 4_000)),
        7 => SocketAddr::from(([224, 0, 0, 1], 4_000)),
        low => SocketAddr::from(([192, 0, 2, low >> 1], 4_000 + u16::from(low & 1))),
    }
}

fn pass(now: &mut Instant, input: &mut Input<'_>) {
    let byte = u64::from(input.u8());
    *now += if byte < 128 { Duration::from_millis(byte * 4) } else { Duration::from_secs(byte - 127) };
}

/// What a datagram weighs on a link: the IP packet, at least what Ethernet pads to.
fn weight(addr: SocketAddr, len: usize) -> u64 {
    (len + if addr.is_ipv4() { 28 } else { 48 }).max(46) as u64
}

/// Operations of nodes and strangers on the beacon. Checked: it never sends more than it received, over all and to an
/// address at which nobody registered; at most two datagrams per datagram; tables keep their bounds; every datagram
/// ends in exactly one counter; a relayed frame arrives as it was.
pub(crate) fn beacon_engine(base: Instant, data: &[u8]) {
    let mut input = Input(data);
    let config = BeaconConfig {
        max_nodes: 6,
        max_nodes_per_prefix: 4,
        messages_per_prefix: Rate { per_second: 20, burst: 40 },
        verify: Some(verify),
        ports: [9001, 9002],
        ..BeaconConfig::default()
    };
    let mut engine = BeaconEngine::new(config, 1);
    let mut now = base;
    // Weight in and out, in all and by address; who ever registered.
    let (mut came, mut went) = (0u64, 0u64);
    let mut flows: BTreeMap<SocketAddr, (u64, u64, bool)> = BTreeMap::new();
    let mut cookie = [0; 24];
    for _ in 0..OPS {
        let Some(op) = input.op() else { break };
        let node = NodeId([0, u32::MAX, 1, 2, 3, 4, 5, 6][usize::from(op >> 4 & 7)]);
        let mut bytes = [0u8; 512];
        let payload = [0x55u8; 200];
        let from = address(input.u8());
        let message = match op & 0x0F {
            0 | 1 => Message::Discover { node },
            2 | 3 => Message::DiscoverEx { node },
            4 | 5 => Message::PunchRequest { node, target: NodeId(u32::from(input.u8() & 7)) },
            6..=8 => {
                let dst = NodeId(u32::from(input.u8() & 7));
                Message::Relay { src: node, dst, frame: &payload[..usize::from(input.u8()).min(200)] }
            }
            9 => {
                pass(&mut now, &mut input);
                if engine.next_timeout().is_some_and(|due| due <= now) {
                    engine.handle_timeout(now);
                }
                continue;
            }
            10 | 11 => Message::Extension(Extension::Hello { renew: op & 1 != 0, node, nonce: 1 }),
            12 => {
                let made = proof(&cookie, node, from, input.u8());
                one(&mut engine, now, from, &made, &mut came, &mut went, &mut flows);
                continue;
            }
            13 => Message::Extension(Extension::Probe { from_other_port: op & 16 != 0, nonce: 2 }),
            _ => {
                let raw = input.bytes(255);
                one(&mut engine, now, from, raw, &mut came, &mut went, &mut flows);
                continue;
            }
        };
        let Ok(len) = message.encode(&mut bytes) else { continue };
        // Padding buys answers.
        let padding = usize::from(op >> 7) * 40;
        let padded = if matches!(message, Message::Relay { .. }) { len } else { len + padding };
        if let Some(challenged) =
            one(&mut engine, now, from, &bytes[..padded], &mut came, &mut went, &mut flows)
        {
            cookie = challenged;
        }
        assert!(engine.stats().registered <= 6, "table");
    }
    let stats = engine.stats();
    assert_eq!(stats.datagrams_in, stats.ends(), "{stats:?}");
}

/// A proof for a challenge that may have been another's; by one of four keys, which may name whom it accepts.
fn proof(cookie: &[u8; 24], node: NodeId, from: SocketAddr, choice: u8) -> Vec<u8> {
    let identity = Identity::from_seed([choice & 3; 32]);
    let key = identity.public_key();
    let accept =
        [Accept::Anybody, Accept::Proven, Accept::Named, Accept::Named][usize::from(choice >> 2 & 3)];
    let list = NodeList::<{ 4 * MAX_PERMITTED }>::new((0..u32::from(choice >> 4)).map(NodeId));
    let message = |signature: &[u8; 64]| {
        let mut bytes = [0; 512];
        let prove = Extension::Prove {
            node,
            salt: 0,
            nonce: 1,
            cookie,
            key: &key,
            beacon: SocketAddr::from(([203, 0, 113, 9], 9_001)),
            accept,
            permitted: list.ids(),
            signature,
        };
        let len = prove.encode(&mut bytes).expect("fits");
        bytes[..len].to_vec()
    };
    let mut text = [0; MAX_PROOF_TEXT];
    let len = proof_text(&message(&[0; 64]), from, &mut text).expect("a proof");
    message(&identity.sign(&text[..len]))
}

/// The cookie of the challenge that came back, if one did.
fn one(
    engine: &mut BeaconEngine,
    now: Instant,
    from: SocketAddr,
    bytes: &[u8],
    came: &mut u64,
    went: &mut u64,
    flows: &mut BTreeMap<SocketAddr, (u64, u64, bool)>,
) -> Option<[u8; 24]> {
    *came += weight(from, bytes.len());
    let flow = flows.entry(from).or_default();
    flow.0 += weight(from, bytes.len());
    let before = engine.stats().registered;
    let mut answers = 0;
    let mut cookie = None;
    engine.handle_datagram(now, from, bytes, &mut |to, out: &[u8]| {
        answers += 1;
        // A relayed frame is no longer than it came; between IP versions the headers differ, which nobody gains by.
        let relayed = matches!(Message::decode(bytes), Ok(Message::Relay { .. }));
        assert!(!relayed || out.len() <= bytes.len(), "relayed {} as {}", bytes.len(), out.len());
        let size = weight(if relayed { from } else { to }, out.len());
        *went += size;
        flows.entry(to).or_default().1 += size;
        check_answer(from, bytes, to, out);
        if let Ok(Message::Extension(Extension::Challenge { cookie: made, .. })) = Message::decode(out) {
            cookie = Some(*made);
        }
    });
    if engine.stats().registered > before
        || matches!(
            Message::decode(bytes),
            Ok(Message::Discover { .. }
                | Message::DiscoverEx { .. }
                | Message::Extension(Extension::Prove { .. }))
        )
    {
        flows.entry(from).or_default().2 = true;
    }
    assert!(answers <= 2);
    assert!(went <= came, "amplified: {went} for {came}");
    for (to, (came, went, registered)) in flows.iter() {
        assert!(*registered || went <= came, "{to}: {went} for {came}");
    }
    cookie
}

fn check_answer(from: SocketAddr, request: &[u8], to: SocketAddr, out: &[u8]) {
    let answer = Message::decode(out).expect("what the beacon sends decodes");
    match (Message::decode(request), answer) {
        (Ok(Message::Discover { .. } | Message::DiscoverEx { .. }), Message::DiscoverReply { addr }) => {
            assert_eq!((addr, to), (from, from));
        }
        (Ok(Message::PunchRequest { .. }), Message::PunchCommand { addr }) => {
            assert!(addr == from || to == from, "a command that concerns somebody else");
        }
        (Ok(Message::Relay { src, frame, .. }), Message::Deliver { src: s, frame: f }) => {
            assert_eq!((src, frame), (s, f));
        }
        (Ok(Message::Relay { src, dst, frame }), Message::DeliverEx { src: s, dst: d, frame: f }) => {
            assert_eq!((src, dst, frame), (s, d, f));
        }
        (
            Ok(Message::Extension(Extension::Hello { nonce, .. } | Extension::Prove { nonce, .. })),
            Message::Extension(
                Extension::Challenge { nonce: n, addr, .. }
                | Extension::Registered { nonce: n, addr, .. }
                | Extension::Refused { nonce: n, addr, .. },
            ),
        )
        | (
            Ok(Message::Extension(Extension::Probe { nonce, .. })),
            Message::Extension(Extension::ProbeReply { nonce: n, addr, .. }),
        ) => assert_eq!((nonce, addr, to), (n, from, from)),
        (request, answer) => panic!("{request:?} was answered with {answer:?}"),
    }
}

/// A node's half: calls, time, and messages from the beacon and from others. Checked: nobody but the beacon is
/// believed, messages go to the beacon only, their number is bounded, timers lead somewhere.
pub(crate) fn beacon_client(base: Instant, data: &[u8]) {
    let mut input = Input(data);
    struct Key(Identity);
    impl pilotage_nat::Signer for Key {
        fn sign(&self, message: &[u8]) -> [u8; 64] {
            self.0.sign(message)
        }
    }
    let mut client = BeaconClient::new();
    let key = Key(Identity::from_seed([7; 32]));
    client.set_key(key.0.public_key(), base);
    let mut now = base;
    let mut still = 0;
    for _ in 0..OPS {
        let Some(op) = input.op() else { break };
        match op & 7 {
            0 if op & 8 == 0 => client.set_beacons(&[address(op >> 4), address(op >> 5)], now),
            0 => client.set_beacon((op & 16 == 0).then(|| address(op >> 5)), now),
            1 => client.set_node(NodeId(u32::from(op >> 3)), now),
            2 if op & 8 == 0 => client.rediscover(now),
            2 => client.on_relaying(now),
            3 => {
                client.punch_request(NodeId(input.u32() & 0xFFFF), now);
            }
            4 => {
                pass(&mut now, &mut input);
                still = 0;
            }
            5 => {
                if let Some(next) = client.poll_timeout() {
                    still = if next > now { 0 } else { still + 1 };
                    now = now.max(next);
                }
            }
            _ => {
                let from = address(op >> 3);
                let raw = input.bytes(64);
                let observed = address(input.u8());
                let message = match Message::decode(raw) {
                    Ok(message) => message,
                    Err(_) if op & 1 == 0 => Message::DiscoverReply { addr: observed },
                    Err(_) => Message::PunchCommand { addr: observed },
                };
                let before = client.observed();
                let event = client.handle(from, &message, now);
                if !client.is_beacon(from) {
                    assert!(matches!(event, ClientEvent::Ignored), "believed somebody else");
                    assert_eq!(client.observed(), before);
                }
            }
        }
        for count in 0.. {
            assert!(count < 100, "does not stop sending");
            let Some((to, message)) = client.poll_transmit_with(now, &key) else { break };
            // A probe may go to the beacon's other port, a hairpin message to ourselves.
            match Message::decode(&message).expect("decodes") {
                Message::Extension(Extension::Probe { .. } | Extension::Hairpin { .. }) => {}
                _ => assert!(client.is_beacon(to)),
            }
        }
        assert!(still < 10, "busy loop");
    }
}
