//! Trust between real nodes, through a registry that answers as the reference's.

#[path = "../../pilotage/tests/common/foreign.rs"]
mod foreign;

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use foreign::Foreign;
use pilotage::{Address, Identity, Node, NodeId, Peer, ProtoConfig};
use pilotage_services::trust::message::{Kind, Message, signed_string};
use pilotage_services::trust::{Delivery, PORT, Refusal, Trust, TrustError, TrustEvent};

const SECOND: Duration = Duration::from_secs(1);

struct Party {
    node: Node,
    trust: Trust,
    events: Arc<Mutex<Vec<TrustEvent>>>,
}

impl Party {
    fn id(&self) -> NodeId {
        self.node.address().node
    }

    fn trusts(&self, other: &Self) -> bool {
        self.trust.is_trusted(other.id())
    }

    fn refusals(&self) -> Vec<String> {
        let events = self.events.lock().expect("events");
        let reasons = events.iter().filter_map(|event| match event {
            TrustEvent::Refused { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        reasons.collect()
    }
}

fn start(registry: &Foreign, seed: u8, public: bool, dir: Option<&Path>) -> Party {
    let node = Node::builder()
        .bind("127.0.0.1:0".parse().expect("address"))
        .identity(Identity::from_seed([seed; 32]))
        .registry(registry.addr.to_string())
        .config(ProtoConfig { connect_timeout: 5 * SECOND, ..ProtoConfig::default() })
        .keepalive(SECOND)
        .public(public)
        .start()
        .expect("node");
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    let observer = Arc::new(move |event| seen.lock().expect("events").push(event));
    let trust = Trust::open_observed(dir, &node, observer).expect("trust");
    Party { node, trust, events }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + 30 * SECOND;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn at(peer: &Party) -> Peer {
    Peer::Address(peer.node.address())
}

#[test]
fn a_public_node_is_asked_directly_and_its_approval_comes_back() {
    let registry = Foreign::start();
    let dir = tempfile::tempdir().expect("directory");
    let (a, b) = (start(&registry, 1, true, None), start(&registry, 2, true, Some(dir.path())));
    assert_eq!(a.trust.request(b.id(), "let us talk").expect("asked"), Delivery::Direct);
    wait_until("the request comes", || !b.trust.pending().is_empty());
    let pending = b.trust.pending().remove(0);
    assert_eq!((pending.node, pending.public_key), (a.id(), Some(a.node.public_key())));
    assert_eq!(pending.justification, "let us talk");
    assert!(!a.trusts(&b) && !b.trusts(&a));
    b.trust.approve(a.id()).expect("asked");
    assert!(b.trusts(&a));
    wait_until("the approval comes", || a.trusts(&b));
    assert!(a.trust.outgoing().is_empty() && a.trust.trusted()[0].mutual);
    assert!(matches!(b.trust.approve(a.id()), Err(TrustError::Refused(Refusal::NotPending))));
    wait_until("the registry knows", || registry.world().pairs.contains(&(1, 2)));
    // Nothing of it is lost when the process dies now.
    let text = std::fs::read_to_string(dir.path().join("trust.json")).expect("file");
    b.node.close();
    drop(b);
    std::fs::write(dir.path().join("trust.json.new"), &text[..20]).expect("a half-written file is no harm");
    let b = start(&registry, 2, true, Some(dir.path()));
    assert!(b.trusts(&a) && b.trust.pending().is_empty());
    // Revoking is told to the other side and ends what is open.
    let listener = b.node.listen(7).expect("listen");
    let mut stream = a.node.connect(at(&b), 7).expect("connect");
    let far = listener.accept_timeout(5 * SECOND).expect("accept").expect("a stream");
    b.trust.revoke(a.id()).expect("trusted");
    wait_until("the stream ends", || stream.write_all(b"x").is_err());
    wait_until("the other side hears of it", || !a.trusts(&b));
    wait_until("the registry, too", || registry.world().pairs.is_empty());
    drop(far);
}

#[test]
fn a_private_node_is_asked_through_the_registry() {
    let registry = Foreign::start();
    let (a, b) = (start(&registry, 1, false, None), start(&registry, 2, false, None));
    assert_eq!(a.trust.request(b.id(), "please").expect("asked"), Delivery::Relayed);
    wait_until("the request comes with the next poll", || !b.trust.pending().is_empty());
    assert_eq!(b.trust.pending()[0].public_key, Some(a.node.public_key()), "the registry's word");
    b.trust.approve(a.id()).expect("asked");
    wait_until("so does the answer", || a.trusts(&b));
    // Now the registry tells where b is.
    let listener = b.node.listen(7).expect("listen");
    a.node.connect(at(&b), 7).expect("connect");
    assert!(listener.accept_timeout(5 * SECOND).expect("accept").is_some());
    // A refusal comes back the same way.
    let c = start(&registry, 3, false, None);
    assert_eq!(c.trust.request(b.id(), "me, too").expect("asked"), Delivery::Relayed);
    wait_until("the request comes", || !b.trust.pending().is_empty());
    b.trust.reject(c.id(), "no").expect("asked");
    wait_until("the answer comes", || c.trust.outgoing().is_empty());
    assert!(!c.trusts(&b));
    assert!(matches!(c.trust.request(NodeId(99), "nobody"), Err(TrustError::NotDelivered { .. })));
    assert!(matches!(c.trust.request(c.id(), "me"), Err(TrustError::Refused(Refusal::Ourselves))));
    assert!(matches!(c.trust.request(b.id(), &"x".repeat(1_000)), Err(TrustError::TooLong)));
}

#[test]
fn two_that_ask_each_other_or_share_a_network_are_agreed() {
    let registry = Foreign::start();
    let (a, b) = (start(&registry, 1, false, None), start(&registry, 2, false, None));
    a.trust.request(b.id(), "").expect("asked");
    b.trust.request(a.id(), "").expect("asked");
    wait_until("both agree", || a.trusts(&b) && b.trusts(&a));
    let c = start(&registry, 3, true, None);
    for node in [1, 3] {
        registry.world().nodes.get_mut(&node).expect("entry").networks = vec![0, 7];
    }
    a.trust.request(c.id(), "").expect("asked");
    wait_until("no operator is needed", || a.trusts(&c) && c.trusts(&a));
    assert_eq!(c.trust.trusted()[0].network, 7);
}

#[test]
fn a_guarded_node_answers_trusted_nodes_and_those_of_a_common_network_only() {
    let registry = Foreign::start();
    let server = start(&registry, 1, false, None);
    let (friend, member, stranger) =
        (start(&registry, 2, true, None), start(&registry, 3, true, None), start(&registry, 4, true, None));
    server.trust.guard();
    let listener = server.node.listen(7).expect("listen");
    let endpoint = server.node.local_addr();
    let to = Peer::At(server.node.address(), endpoint);
    friend.trust.request(server.id(), "").expect("asked");
    wait_until("asked", || !server.trust.pending().is_empty());
    server.trust.approve(friend.id()).expect("asked");
    friend.node.connect(to.clone(), 7).expect("a friend");
    for node in [1, 3] {
        registry.world().nodes.get_mut(&node).expect("entry").networks = vec![0, 7];
    }
    member.node.connect(to.clone(), 7).expect("a member, with its second SYN");
    // Who merely says so at the registry is a stranger: the reference believes it.
    registry.world().pairs.insert((1, 4));
    let failure = stranger.node.connect(to.clone(), 7).expect_err("a stranger");
    assert_eq!(failure.kind(), std::io::ErrorKind::TimedOut, "{failure}");
    assert!(registry.calls("check_trust") >= 2 && registry.calls("check_trust") <= 4);
    for _ in 0..2 {
        assert!(listener.accept_timeout(SECOND).expect("accept").is_some());
    }
    assert!(listener.accept_timeout(Duration::from_millis(200)).expect("accept").is_none());
    // Without anybody who answers for the gate, it stays shut.
    drop(server.trust);
    wait_until("shut", || {
        // A stream of S1 is there before the peer has said a word.
        let _stream = member.node.connect(to.clone(), 7);
        listener.accept_timeout(Duration::from_millis(500)).expect("accept").is_none()
    });
}

fn tell(from: &Node, to: &Party, message: &[u8]) {
    let mut stream = from.connect(at(to), PORT).expect("port 444 is open to all");
    stream.write_all(message).expect("write");
    stream.wait_flushed(5 * SECOND).expect("read");
    std::thread::sleep(Duration::from_millis(300));
}

#[test]
fn messages_count_only_from_their_sender_signed_in_time_once_and_if_asked_for() {
    let registry = Foreign::start();
    let (a, b) = (start(&registry, 1, true, None), start(&registry, 2, true, None));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("clock").as_secs() as i64;
    let (us, them) = (a.id().0, b.id().0);
    let good = Message {
        kind: Kind::Request,
        node: us,
        public_key: a.node.public_key(),
        justification: "good".into(),
        signature: a.node.sign(signed_string(us, them).as_bytes()),
        reason: String::new(),
        timestamp: now,
    };
    let other = Identity::from_seed([77; 32]);
    let forged: [(Message, &str); 7] = [
        (Message { kind: Kind::Accept, ..good.clone() }, "never asked"),
        (Message { kind: Kind::Revoke, ..good.clone() }, "not trusted"),
        (Message { node: 4_242, ..good.clone() }, "signed as node"),
        (Message { signature: a.node.sign(signed_string(us, 99).as_bytes()), ..good.clone() }, "signature"),
        (Message { signature: [0; 64], ..good.clone() }, "signature"),
        (
            Message {
                public_key: other.public_key(),
                signature: other.sign(signed_string(us, them).as_bytes()),
                ..good.clone()
            },
            "not that of the tunnel",
        ),
        (Message { timestamp: now - 400, ..good.clone() }, "clocks"),
    ];
    for (n, (message, reason)) in forged.iter().enumerate() {
        tell(&a.node, &b, &message.encode());
        wait_until("refused", || b.refusals().len() > n);
        assert!(b.refusals()[n].contains(reason), "{:?}", b.refusals());
    }
    tell(&a.node, &b, b"not JSON at all");
    tell(&a.node, &b, &good.encode());
    wait_until("a good one counts", || !b.trust.pending().is_empty());
    b.trust.reject(a.id(), "").expect("asked");
    tell(&a.node, &b, &good.encode());
    wait_until("but once", || b.refusals().last().is_some_and(|reason| reason.contains("came before")));
    assert!(b.trust.pending().is_empty() && b.trust.trusted().is_empty());
    // The registry has the last word on keys.
    let theirs = registry.world().nodes[&them].key.clone();
    registry.world().nodes.get_mut(&us).expect("entry").key = theirs;
    tell(&a.node, &b, &Message { justification: "again".into(), ..good }.encode());
    wait_until("refused", || b.refusals().last().is_some_and(|reason| reason.contains("another key")));
}

#[test]
fn a_damaged_file_is_refused_with_its_name() {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::write(dir.path().join("trust.json"), "{").expect("write");
    let node = Node::builder().bind("127.0.0.1:0".parse().expect("address")).start().expect("node");
    let error = Trust::open(Some(dir.path()), &node).expect_err("damaged");
    assert!(error.to_string().contains("trust.json"), "{error}");
    std::fs::write(dir.path().join("trust.json"), "{\"trusted\": null}").expect("write");
    let trust = Trust::open(Some(dir.path()), &node).expect("empty");
    assert!(matches!(Trust::open(None, &node), Err(TrustError::Listen(_))), "one at a time");
    drop(trust);
    wait_until("the port is free again", || Trust::open(None, &node).is_ok());
    assert_eq!(node.address(), Address::new(0, node.address().node.0));
}
