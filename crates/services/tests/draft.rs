//! The services of draft-01 between real nodes on loopback.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pilotage::{Identity, Node, NodeId, Peer, Stream};
use pilotage_services::events::{self, Event};
use pilotage_services::file;
use pilotage_services::message::{self, Kind};
use pilotage_services::nameserver::{self, Reply, Request};
use pilotage_services::secure::{Channel, Known, Proof};
use pilotage_services::server::{
    FileService, Gate, MAX_PER_PEER, Notice, Services, Serving, TaskService, serve,
};
use pilotage_services::task::{self, Output, Side, State, Store, Tasks};
use pilotage_services::{Duplex, echo};

const STEP: Duration = Duration::from_secs(30);

fn node(n: u8) -> Node {
    let any: SocketAddr = "127.0.0.1:0".parse().expect("address");
    Node::builder().bind(any).identity(Identity::from_seed([n; 32])).start().expect("node")
}

fn at(node: &Node) -> Peer {
    Peer::At(node.address(), node.local_addr())
}

/// Everything that draft-01 has, with an inbox in `dir`.
fn all(dir: &Path) -> Services {
    let files = FileService { dir: dir.into(), force: false, fsync: false, limit: Some(1 << 30) };
    Services {
        echo: true,
        files: Some(files),
        messages: true,
        events: true,
        tasks: Some(TaskService { store: Arc::new(Store::open(None).expect("store")), scores: None }),
        nameserver: true,
        ..Services::default()
    }
}

fn start(node: &Node, services: &Services) -> (Serving, Receiver<Notice>) {
    let (say, said) = channel();
    let say = Mutex::new(say);
    let observer = Arc::new(move |notice| {
        let _ = say.lock().expect("lock").send(notice);
    });
    (serve(node, services, observer).expect("served"), said)
}

fn connect(from: &Node, to: &Node, port: u16) -> Stream {
    let stream = from.connect(at(to), port).expect("connect");
    stream.set_read_timeout(Some(STEP)).expect("timeout");
    stream
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + STEP;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn messages_and_files_come_into_one_inbox() {
    let inbox = tempfile::tempdir().expect("directory");
    let (server, client) = (node(1), node(2));
    let (serving, said) = start(&server, &all(inbox.path()));
    let stream = connect(&client, &server, message::PORT);
    message::send(&stream, Kind::Text, "grüße".as_bytes()).expect("text");
    message::send(&stream, Kind::Json, b"{\"a\":1}").expect("json");
    let big: Vec<u8> = (0..2_000_000u32).map(|i| (i * 7) as u8).collect();
    message::send_file(&stream, "big.bin", &big).expect("file");
    assert!(matches!(message::send_file(&stream, "../x", b"x"), Err(message::SendError::Refused(_))));
    drop(stream);
    let stream = connect(&client, &server, file::PORT);
    let options = file::SendOptions { name: "ours.bin".into(), size: None };
    file::send(&stream, std::io::Cursor::new(b"123".to_vec()), &options, &mut |_| {}).expect("own protocol");
    drop(stream);
    for _ in 0..3 {
        assert!(matches!(said.recv_timeout(STEP), Ok(Notice::MessageReceived { .. })));
    }
    assert!(matches!(said.recv_timeout(STEP), Ok(Notice::FileReceived { .. })));
    let entries = message::list(inbox.path()).expect("index");
    let files: Vec<_> = entries.iter().map(|entry| (entry.kind.as_str(), entry.bytes)).collect();
    assert_eq!(files, [("TEXT", 7), ("JSON", 7), ("FILE", 2_000_000), ("FILE", 3)]);
    assert!(entries.iter().all(|entry| entry.peer == client.address().to_string()));
    assert_eq!(std::fs::read(inbox.path().join("big.bin")).expect("file"), big);
    assert_eq!(serving.counters().messages.load(Ordering::Relaxed), 3);
    client.close();
    server.close();
}

#[test]
fn events_reach_the_subscribers_of_their_topic() {
    let inbox = tempfile::tempdir().expect("directory");
    let (server, client) = (node(1), node(2));
    let (serving, _said) = start(&server, &all(inbox.path()));
    let broker = serving.broker().expect("broker");
    let news = events::subscribe(connect(&client, &server, events::PORT), b"news").expect("news");
    let all = events::subscribe(connect(&client, &server, events::PORT), b"*").expect("all");
    until("two subscribers", || broker.subscribers() == 2);
    for round in 0..5u8 {
        let stream = connect(&client, &server, events::PORT);
        events::publish(&stream, b"news", &[&[round; 50_000], b"x"]).expect("publish");
        stream.wait_flushed(STEP).expect("taken");
    }
    broker.publish_local(&Event { topic: b"other".to_vec(), payload: b"y".to_vec() }).expect("local");
    for (subscription, expected) in [(&news, 10), (&all, 11)] {
        for _ in 0..expected {
            let event = subscription.next_event().expect("event").expect("not the end");
            assert!(event.payload.len() == 50_000 || event.payload.len() == 1);
        }
    }
    drop((news, all));
    until("gone", || broker.subscribers() == 0);
    client.close();
    server.close();
}

#[test]
fn names_are_registered_by_their_owner_and_found_by_others() {
    let inbox = tempfile::tempdir().expect("directory");
    let (server, one, two) = (node(1), node(2), node(3));
    let (_serving, _said) = start(&server, &all(inbox.path()));
    let ask = |from: &Node, request: &Request| {
        nameserver::ask(&connect(from, &server, nameserver::PORT), request).expect("answer")
    };
    let mine = Request::RegisterAddress { name: "one".into(), address: one.address() };
    assert!(matches!(ask(&two, &mine), Reply::Error(_)), "somebody else's address");
    assert_eq!(ask(&one, &mine), Reply::Ok);
    let found = Reply::Address { name: "one".into(), address: one.address() };
    assert_eq!(ask(&two, &Request::QueryAddress("one".into())), found);
    for node in [one, two, server] {
        node.close();
    }
}

/// A node that serves tasks, with its operator.
fn worker(n: u8) -> (Node, Serving, Tasks) {
    let node = node(n);
    let tasks = Some(TaskService { store: Arc::new(Store::open(None).expect("store")), scores: None });
    let (serving, _) = start(&node, &Services { tasks, ..Services::default() });
    let tasks = serving.tasks().expect("tasks").clone();
    (node, serving, tasks)
}

#[test]
fn a_task_goes_there_and_its_results_come_back() {
    let (asker, _a, asked) = worker(1);
    let (doer, _b, done) = worker(2);
    let task = asked.submit(&at(&doer), "add one and one").expect("submitted");
    let state = |tasks: &Tasks, side| tasks.store().get(side, &task.id).expect("known").state;
    let [received] = &done.store().list()[..] else { panic!("one task") };
    assert_eq!((received.state, received.description.as_str()), (State::New, "add one and one"));
    assert_eq!(received.peer, asker.address().to_string());
    done.accept(&task.id, "gladly").expect("accepted");
    until("the asker hears of it", || state(&asked, Side::Submitted) == State::Accepted);
    assert_eq!(asked.store().get(Side::Submitted, &task.id).expect("known").justification, "gladly");
    done.execute(None).expect("begun");
    until("the asker hears of it", || state(&asked, Side::Submitted) == State::Executing);
    done.results(&task.id, Output::Text("two".into())).expect("results");
    until("results", || state(&asked, Side::Submitted) == State::Succeeded);
    let result = asked.store().get(Side::Submitted, &task.id).expect("known").result.expect("result");
    assert_eq!(result.text.as_deref(), Some("two"));
    until("the doer knows that they came", || state(&done, Side::Received) == State::Succeeded);
    until("nothing left to say", || !done.store().list()[0].untold);
    assert!(done.accept(&task.id, "").is_err(), "final");
    // The asker takes one back.
    let task = asked.submit(&at(&doer), "never mind").expect("submitted");
    asked.cancel(&task.id, "changed my mind").expect("cancelled");
    until("the doer hears of it", || {
        done.store().get(Side::Received, &task.id).is_some_and(|task| task.state == State::Cancelled)
    });
    asker.close();
    doer.close();
}

#[test]
fn a_decision_reaches_the_other_side_when_it_comes_back() {
    let quick = |n: u8, bind: SocketAddr| {
        let config = pilotage::ProtoConfig { connect_timeout: Duration::from_secs(2), ..Default::default() };
        Node::builder()
            .bind(bind)
            .identity(Identity::from_seed([n; 32]))
            .config(config)
            .start()
            .expect("node")
    };
    let any = "127.0.0.1:0".parse().expect("address");
    let store = Arc::new(Store::open(None).expect("store"));
    let services =
        Services { tasks: Some(TaskService { store: store.clone(), scores: None }), ..Services::default() };
    let asker = quick(1, any);
    let place = asker.local_addr();
    let (serving, _said) = start(&asker, &services);
    let doer = quick(2, any);
    let (doing, _) = start(
        &doer,
        &Services {
            tasks: Some(TaskService { store: Arc::new(Store::open(None).expect("store")), scores: None }),
            ..Services::default()
        },
    );
    let done = doing.tasks().expect("tasks");
    let task = serving.tasks().expect("tasks").submit(&at(&doer), "wait for me").expect("submitted");
    serving.stop();
    asker.close();
    drop(asker);
    done.accept(&task.id, "").expect("accepted");
    assert!(done.store().get(Side::Received, &task.id).expect("known").untold);
    std::thread::sleep(Duration::from_millis(500));
    let asker = quick(1, place);
    let (_serving, _said) = start(&asker, &services);
    until("it hears of it at last", || {
        done.poke();
        store.get(Side::Submitted, &task.id).is_some_and(|task| task.state == State::Accepted)
    });
    until("nothing left to say", || !done.store().list()[0].untold);
    asker.close();
    doer.close();
}

#[test]
fn the_gate_keeps_others_out() {
    let inbox = tempfile::tempdir().expect("directory");
    let (server, friend, stranger) = (node(1), node(2), node(3));
    let allowed: NodeId = friend.address().node;
    let services = Services { gate: Gate::new(move |node| node == allowed), ..all(inbox.path()) };
    let (serving, _said) = start(&server, &services);
    echo::round_trip(&connect(&friend, &server, echo::PORT), b"hello").expect("a friend");
    message::send(&connect(&friend, &server, message::PORT), Kind::Text, b"hi").expect("a friend");
    for port in [echo::PORT, message::PORT, events::PORT, task::PORT, nameserver::PORT, file::PORT] {
        // The reset may be there before it is known here that the stream was taken.
        if let Ok(stream) = stranger.connect(at(&server), port) {
            stream.set_read_timeout(Some(STEP)).expect("timeout");
            let _ = Duplex::write(&stream, b"\0\0\0\x01\0\0\0\0");
            assert!(Duplex::read(&stream, &mut [0; 1]).is_err(), "port {port} is reset");
        }
    }
    assert_eq!(serving.counters().gated.load(Ordering::Relaxed), 6);
    for node in [friend, stranger, server] {
        node.close();
    }
}

#[test]
fn one_peer_cannot_take_all_places() {
    let inbox = tempfile::tempdir().expect("directory");
    let (server, greedy, other) = (node(1), node(2), node(3));
    let (serving, _said) = start(&server, &all(inbox.path()));
    let held: Vec<_> = (0..MAX_PER_PEER).map(|_| connect(&greedy, &server, message::PORT)).collect();
    // The refusal may be there before it is known here that the stream was taken.
    let beyond: Vec<_> = (0..3).map(|_| greedy.connect(at(&server), message::PORT)).collect();
    until("the rest is refused", || serving.counters().refused.load(Ordering::Relaxed) == 3);
    message::send(&connect(&other, &server, message::PORT), Kind::Text, b"hi").expect("others go on");
    drop((held, beyond));
    for node in [greedy, other, server] {
        node.close();
    }
}

#[test]
fn a_secure_channel_inside_a_stream() {
    let (server, client) = (node(1), node(2));
    let keys = [(server.address().node, server.public_key()), (client.address().node, client.public_key())];
    let known: Known = Arc::new(move |node| keys.iter().find(|(id, _)| *id == node).map(|(_, key)| *key));
    let listener = server.listen(pilotage_services::secure::PORT).expect("listen");
    let proof =
        |node: &Node, n: u8| Proof::new(node.address().node, Identity::from_seed([n; 32]), known.clone());
    let server_proof = proof(&server, 1);
    let serving = std::thread::spawn(move || {
        let channel =
            Channel::server(listener.accept().expect("stream"), Some(&server_proof)).expect("channel");
        assert_eq!(channel.peer(), Some(channel.stream().peer().address.node));
        echo::serve(&channel).expect("echo")
    });
    let stream = connect(&client, &server, pilotage_services::secure::PORT);
    let channel = Channel::client(stream, Some(&proof(&client, 2))).expect("channel");
    assert_eq!(channel.peer(), Some(server.address().node));
    echo::round_trip(&channel, &[7; 100_000]).expect("echo");
    channel.finish().expect("end");
    assert_eq!(serving.join().expect("no panic"), 100_000);
    client.close();
    server.close();
}
