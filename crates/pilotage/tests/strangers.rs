//! By capture, with real sockets: nobody is sent more than somebody has sent for it before it proved its address.

mod common;

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{SECOND, identity, within};
use pilotage::{Node, NodeId, Peer, PeerConfig, PeerPolicy};
use pilotage_wire::beacon::Message;

/// A beacon that lies to one node about its address, and relays.
struct Liar {
    addr: SocketAddr,
    /// Relayed bytes by sender, headers of IP and UDP included.
    relayed: Arc<Mutex<HashMap<NodeId, usize>>>,
    stop: Arc<AtomicBool>,
}

impl Liar {
    fn start(to: NodeId, lie: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
        let addr = socket.local_addr().expect("address");
        let (relayed, stop) = (Arc::new(Mutex::new(HashMap::new())), Arc::new(AtomicBool::new(false)));
        let (count, end) = (relayed.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut nodes = HashMap::new();
            let (mut space, mut out) = ([0; 2_048], [0; 2_048]);
            while !end.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut space) else { continue };
                let answer = match Message::decode(&space[..len]) {
                    Ok(Message::Discover { node }) => {
                        nodes.insert(node, from);
                        Some((from, Message::DiscoverReply { addr: if node == to { lie } else { from } }))
                    }
                    Ok(Message::Relay { src, dst, frame }) => {
                        *count.lock().expect("count").entry(src).or_default() += len + 28;
                        nodes.get(&dst).map(|at| (*at, Message::Deliver { src, frame }))
                    }
                    _ => None,
                };
                if let Some((at, message)) = answer
                    && let Ok(len) = message.encode(&mut out)
                {
                    let _ = socket.send_to(&out[..len], at);
                }
            }
        });
        Self { addr, relayed, stop }
    }
}

/// An address of this host that is not loopback, since such ones are never named to others.
fn own_address() -> Option<SocketAddr> {
    let probe = UdpSocket::bind("0.0.0.0:0").ok()?;
    probe.connect("192.0.2.1:9").ok()?;
    let addr = probe.local_addr().ok()?;
    (!addr.ip().is_loopback() && !addr.ip().is_unspecified()).then_some(addr)
}

const TEST: &str = "an_address_that_a_peer_names_gets_no_more_than_the_peer_sent";
/// Set in the process that runs in a namespace of its own.
const INSIDE: &str = "PILOTAGE_TEST_IN_NAMESPACE";
/// A network with an address that is not loopback, and the test in it. 77: it could not be made.
const NETWORK: &str = "ip link set lo up && ip link add test0 type dummy && ip addr add 198.51.100.1/24 dev test0 \
    && ip link set test0 up && ip route add default dev test0 || exit 77; exec \"$0\" --exact \"$1\" --nocapture";

/// Runs a test of this program again where there is such an address: this host has none, but may be able to make one.
fn in_a_namespace(test: &str) {
    let unshare = |flags: &str| {
        let program = std::env::current_exe().expect("this program");
        let mut command = std::process::Command::new("unshare");
        command.args([flags, "sh", "-c", NETWORK]).arg(program).arg(test).env(INSIDE, "1");
        command.status().ok().and_then(|status| status.code())
    };
    // Without root a user namespace may do.
    let able = std::env::var_os(INSIDE).is_none();
    let code = if able {
        ["-n", "-rn"].into_iter().filter_map(unshare).find(|code| *code != 77 && *code != 1)
    } else {
        None
    };
    match code {
        Some(code) => assert_eq!(code, 0, "the test in a namespace failed"),
        None => {
            eprintln!("SKIPPED: this host has no address but the loopback's, and no namespace can be made")
        }
    }
}

/// A forged answer makes a node believe that it is where a victim is, and it names that address to its peer. The victim gets
/// no more than what the node itself sent to the peer, and the little that is allowed at first and with time.
#[test]
fn an_address_that_a_peer_names_gets_no_more_than_the_peer_sent() {
    let Some(own) = own_address() else { return in_a_namespace(TEST) };
    within(60 * SECOND, move || {
        let victim = UdpSocket::bind(SocketAddr::new(own.ip(), 0)).expect("bind");
        victim.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
        let lie = victim.local_addr().expect("address");
        // The node's id follows from its key: it is known before the node is there.
        let fooled = Node::builder().identity(identity(2)).bind("127.0.0.1:0".parse().expect("address"));
        let id = fooled.start().expect("node").address();
        let liar = Liar::start(id.node, lie);
        let fooled = Node::builder()
            .identity(identity(2))
            .bind("127.0.0.1:0".parse().expect("address"))
            .beacons([liar.addr.to_string()])
            .start()
            .expect("node");
        let known = PeerConfig {
            address: fooled.address(),
            key: Some(fooled.public_key()),
            endpoint: None,
            policy: PeerPolicy::default(),
            prekey: None,
        };
        let honest = Node::builder()
            .identity(identity(1))
            .bind("0.0.0.0:0".parse().expect("address"))
            .beacons([liar.addr.to_string()])
            .peer_config(known)
            .start()
            .expect("node");
        let (got, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (got.clone(), done.clone());
        let capture = std::thread::spawn(move || {
            let mut space = [0; 2_048];
            while !end.load(Ordering::Relaxed) {
                if let Ok((len, _)) = victim.recv_from(&mut space) {
                    count.fetch_add(len + 28, Ordering::Relaxed);
                }
            }
        });
        let begun = Instant::now();
        let ping = || honest.ping(Peer::from(fooled.address()), 2 * SECOND).is_ok();
        assert!((0..10).any(|_| ping()), "by the relay");
        while begun.elapsed() < 4 * SECOND {
            ping();
            std::thread::sleep(Duration::from_millis(100));
            let sent = liar.relayed.lock().expect("count").get(&fooled.address().node).copied().unwrap_or(0);
            let got = got.load(Ordering::Relaxed);
            // Rule C17 (spec/tunnel.md).
            let allowed = sent + (4 << 10) + 128 * (begun.elapsed().as_secs() as usize + 1);
            assert!(got <= allowed, "the victim got {got} bytes, the peer sent {sent}");
        }
        eprintln!("the victim got {} bytes", got.load(Ordering::Relaxed));
        assert!(got.load(Ordering::Relaxed) > 0, "the test reaches what it is about");
        done.store(true, Ordering::Relaxed);
        capture.join().expect("capture");
        honest.close();
        fooled.close();
        liar.stop.store(true, Ordering::Relaxed);
    });
}
