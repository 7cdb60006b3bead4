//! spec/registry.md §5.3.2: a registration without proof waits until the key signs something on its connection.

use super::*;

fn other() -> IpAddr {
    IpAddr::from([198, 51, 100, 7])
}

/// A reference daemon: one connection, no proofs.
struct Daemon {
    conn: ConnState,
    key: SigningKey,
    source: IpAddr,
    id: NodeId,
}

impl Daemon {
    fn start(harness: &mut Harness, n: u8, source: impl Into<IpAddr>, port: u16) -> (Self, Outcome) {
        let mut daemon =
            Self { conn: ConnState::default(), key: key(n), source: source.into(), id: NodeId(0) };
        let outcome = daemon.register(harness, port, None);
        if let Reply::Registered(done) = &outcome.reply {
            daemon.id = done.node_id;
        }
        (daemon, outcome)
    }

    fn register(&mut self, harness: &mut Harness, port: u16, name: Option<&str>) -> Outcome {
        let mut request = plain(&self.key, port);
        request.hostname = name.map(str::to_owned);
        harness.apply_on(&mut self.conn, self.source, &Request::Register(request))
    }

    fn heartbeat(&mut self, harness: &mut Harness) -> Result<Reply, Refusal> {
        let signature = Some(sign(&self.key, wire::heartbeat_string(self.id).as_bytes()));
        let request = Request::Heartbeat(wire::Heartbeat { node_id: self.id, listen_addr: None, signature });
        let outcome = harness.apply_on(&mut self.conn, self.source, &request);
        harness.engine.commit();
        outcome.refused.map_or(Ok(outcome.reply), Err)
    }
}

fn endpoint(harness: &Harness, id: NodeId) -> Option<String> {
    harness.engine.record(id).and_then(|record| record.endpoint).map(|addr| addr.to_string())
}

#[test]
fn a_new_key_becomes_durable_with_its_first_signature() {
    let mut harness = Harness::open();
    let (mut daemon, outcome) = Daemon::start(&mut harness, 1, HOME, 4001);
    assert!(!outcome.wrote && outcome.refused.is_none(), "nothing is stored yet");
    assert_eq!((harness.engine.nodes(), harness.engine.unconfirmed()), (0, 1));
    assert_eq!(harness.engine.record(daemon.id), None);
    // Nobody is told where it is, not even a node that it might trust.
    let asker = harness.register(&key(9));
    assert_eq!(harness.resolve(&key(9), asker, daemon.id), Err(Refusal::NotVisible(daemon.id)));
    // A wrong signature is no signature.
    let forged = Some(sign(&key(2), wire::heartbeat_string(daemon.id).as_bytes()));
    let request =
        Request::Heartbeat(wire::Heartbeat { node_id: daemon.id, listen_addr: None, signature: forged });
    assert!(harness.apply_on(&mut daemon.conn, HOME, &request).refused.is_some());
    assert_eq!(harness.engine.unconfirmed(), 1);
    daemon.heartbeat(&mut harness).unwrap();
    assert_eq!(harness.engine.unconfirmed(), 0);
    assert_eq!(endpoint(&harness, daemon.id).as_deref(), Some("127.0.0.1:4001"));
    assert_eq!(harness.engine.record(daemon.id).unwrap().proof, Proof::Replayable);
    harness.engine.table.assert_consistent();
}

/// Reference defect A10: who knows a public key moves nothing.
#[test]
fn a_known_key_moves_only_when_it_signs_on_that_connection() {
    let mut harness = Harness::open();
    let (mut daemon, _) = Daemon::start(&mut harness, 1, HOME, 4001);
    daemon.heartbeat(&mut harness).unwrap();
    // A thief with the public key, from the same and from another address, as often as it likes.
    for source in [IpAddr::from(HOME), other()] {
        let (mut thief, outcome) = Daemon::start(&mut harness, 1, source, 6666);
        assert_eq!((thief.id, outcome.wrote), (daemon.id, false));
        thief.key = key(2);
        assert!(thief.heartbeat(&mut harness).is_err());
    }
    assert_eq!(endpoint(&harness, daemon.id).as_deref(), Some("127.0.0.1:4001"));
    // The node's own heartbeat on its own connection does not help the thief.
    daemon.heartbeat(&mut harness).unwrap();
    assert_eq!(endpoint(&harness, daemon.id).as_deref(), Some("127.0.0.1:4001"));
    // The node restarts with another port.
    let (mut again, _) = Daemon::start(&mut harness, 1, HOME, 4003);
    again.heartbeat(&mut harness).unwrap();
    assert_eq!(endpoint(&harness, daemon.id).as_deref(), Some("127.0.0.1:4003"));
    // What waited too long is forgotten.
    let (mut slow, _) = Daemon::start(&mut harness, 1, HOME, 4009);
    harness.now += Duration::from_secs(180);
    slow.heartbeat(&mut harness).unwrap();
    assert_eq!(endpoint(&harness, daemon.id).as_deref(), Some("127.0.0.1:4003"));
}

/// Whoever recorded a heartbeat can repeat it from elsewhere: while the node is there, that moves nothing.
#[test]
fn a_recorded_signature_does_not_move_a_node_that_is_on_line() {
    let mut harness = Harness::open();
    let (mut daemon, _) = Daemon::start(&mut harness, 1, HOME, 4001);
    daemon.heartbeat(&mut harness).unwrap();
    let (mut thief, _) = Daemon::start(&mut harness, 1, other(), 6666);
    assert_eq!(thief.heartbeat(&mut harness), Err(Refusal::OnlineElsewhere(180)));
    // Nor does it keep the node on line from there.
    let mut stray = Daemon { conn: ConnState::default(), key: key(1), source: other(), id: daemon.id };
    assert_eq!(stray.heartbeat(&mut harness), Err(Refusal::Elsewhere(daemon.id)));
    assert_eq!(endpoint(&harness, daemon.id).as_deref(), Some("127.0.0.1:4001"));
    // The node itself moved: after three minutes of silence it is believed.
    harness.now += Duration::from_secs(181);
    let (mut moved, _) = Daemon::start(&mut harness, 1, other(), 4001);
    moved.heartbeat(&mut harness).unwrap();
    assert_eq!(endpoint(&harness, daemon.id).as_deref(), Some("198.51.100.7:4001"));
    // A proof moves it at once and for ever.
    harness.register_from(HOME, &key(1), |_| {}).unwrap();
    assert_eq!(moved.register(&mut harness, 4001, None).refused, Some(Refusal::ProofNeeded));
}

/// Somebody who registers another's key first keeps it from nothing.
#[test]
fn a_squatter_of_a_key_is_replaced_by_whoever_signs() {
    let mut harness = Harness::open();
    let (squatter, _) = Daemon::start(&mut harness, 1, other(), 6666);
    let (mut owner, outcome) = Daemon::start(&mut harness, 1, HOME, 4001);
    assert_eq!((outcome.refused, owner.id), (None, squatter.id));
    owner.heartbeat(&mut harness).unwrap();
    assert_eq!(endpoint(&harness, owner.id).as_deref(), Some("127.0.0.1:4001"));
}

#[test]
fn names_go_to_those_who_sign() {
    let mut harness = Harness::open();
    let (mut a, _) = Daemon::start(&mut harness, 1, HOME, 4001);
    let (mut b, _) = Daemon::start(&mut harness, 2, HOME, 4002);
    let mut c = Daemon { conn: ConnState::default(), key: key(3), source: other(), id: NodeId(0) };
    // In memory only, first come first served.
    let Reply::Registered(done) = c.register(&mut harness, 4003, Some("bob")).reply else { panic!() };
    assert_eq!(done.hostname.as_deref(), Some("bob"));
    a.register(&mut harness, 4001, Some("bob"));
    let Reply::Registered(done) = a.register(&mut harness, 4001, Some("bob")).reply else { panic!() };
    assert!(done.hostname_error.is_some());
    // Who has signed something takes it.
    b.heartbeat(&mut harness).unwrap();
    let Reply::Registered(done) = b.register(&mut harness, 4002, Some("bob")).reply else { panic!() };
    assert_eq!((done.hostname.as_deref(), done.hostname_error), (Some("bob"), None));
    b.heartbeat(&mut harness).unwrap();
    assert_eq!(harness.engine.record(b.id).unwrap().hostname.as_deref(), Some("bob"));
    assert_eq!((harness.engine.names(), harness.engine.unconfirmed()), (1, 2));
    harness.engine.table.assert_consistent();
}

/// A lost batch takes the confirmation back, and the node is there as before.
#[test]
fn a_lost_confirmation_can_be_repeated() {
    let mut harness = Harness::open();
    let (mut daemon, _) = Daemon::start(&mut harness, 1, HOME, 4001);
    let signature = Some(sign(&daemon.key, wire::heartbeat_string(daemon.id).as_bytes()));
    let beat = Request::Heartbeat(wire::Heartbeat { node_id: daemon.id, listen_addr: None, signature });
    let outcome = harness.apply_on(&mut daemon.conn.clone(), HOME, &beat);
    assert!(outcome.wrote);
    harness.engine.rollback();
    assert_eq!((harness.engine.nodes(), harness.engine.unconfirmed()), (0, 1));
    harness.engine.set_read_only(Some("disk full".into()));
    assert_eq!(daemon.heartbeat(&mut harness), Err(Refusal::ReadOnly("disk full".into())));
    harness.engine.set_read_only(None);
    daemon.heartbeat(&mut harness).unwrap();
    assert_eq!((harness.engine.nodes(), harness.engine.unconfirmed()), (1, 0));
    harness.engine.table.assert_consistent();
}

/// §9.2: those who sign nothing have a table of their own, and it is bounded.
#[test]
fn nodes_that_sign_nothing_are_bounded_and_the_old_ones_go() {
    let config = Config { rates: RateLimits::UNLIMITED, max_unconfirmed: 3, ..Config::default() };
    let mut harness = Harness::new(config);
    for n in 1..=3 {
        assert_eq!(Daemon::start(&mut harness, n, HOME, 4001).1.refused, None);
    }
    let (_, outcome) = Daemon::start(&mut harness, 4, HOME, 4001);
    assert!(matches!(outcome.refused, Some(Refusal::TooMany(_))));
    // A proof needs no such room; neither does a known key.
    harness.register(&key(5));
    assert_eq!(Daemon::start(&mut harness, 3, HOME, 4009).1.refused, None);
    harness.now += Duration::from_secs(181);
    assert_eq!(Daemon::start(&mut harness, 4, HOME, 4001).1.refused, None);
    assert_eq!(harness.engine.unconfirmed(), 3);
    harness.engine.table.assert_consistent();
}
