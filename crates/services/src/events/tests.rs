use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::duplex::testing::pair;
use crate::duplex::{Duplex, Io};
use crate::vectors;

#[test]
fn golden_events() {
    let cases = vectors::cases("port1002.json");
    assert_eq!(cases.len(), 6);
    for case in cases {
        let golden = vectors::bytes(&case, "frame_hex");
        let event = Event {
            topic: case["topic"].as_str().unwrap().as_bytes().to_vec(),
            payload: vectors::bytes(&case, "payload_hex"),
        };
        assert_eq!(event.encode().unwrap(), golden, "{}", case["name"]);
        let mut rest = &golden[..];
        assert_eq!(Event::read(&mut rest, &mut |_| true).unwrap(), Some(event));
        assert!(Event::read(&mut rest, &mut |_| true).unwrap().is_none(), "the end");
        for cut in 1..golden.len() {
            assert!(Event::read(&mut &golden[..cut], &mut |_| true).is_err(), "{cut} bytes");
        }
    }
}

#[test]
fn bounds_of_events() {
    assert!(matches!(Event::read(&mut &b"\x04\x01"[..], &mut |_| true), Err(WireError::TopicTooLong(1025))));
    let giant = b"\0\x01t\x01\0\0\x01";
    assert!(matches!(Event::read(&mut &giant[..], &mut |_| true), Err(WireError::PayloadTooLong(_))));
    // A length alone takes no memory: room is asked for step by step.
    let mut asked = 0;
    let full = b"\0\x01t\x01\0\0\0";
    let result = Event::read(&mut &full[..], &mut |more| {
        asked += more;
        true
    });
    assert!(matches!(result, Err(WireError::Io(_))));
    assert!(asked <= 64 * 1024);
    assert!(matches!(Event::read(&mut &full[..], &mut |_| false), Err(WireError::NoRoom(_))));
    assert!(Event { topic: vec![b't'; 1025], payload: Vec::new() }.encode().is_err());
}

type Served = (TcpStream, JoinHandle<Result<(), WireError>>);

fn connect(broker: &Arc<Broker>) -> Served {
    let (client, server) = pair();
    let broker = broker.clone();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (client, std::thread::spawn(move || broker.serve(&Arc::new(server))))
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn subscribed(broker: &Arc<Broker>, topic: &[u8]) -> Subscription<TcpStream> {
    let before = broker.subscribers();
    let (client, _) = connect(broker);
    let subscription = subscribe(client, topic).unwrap();
    wait_until("subscribed", || broker.subscribers() > before);
    subscription
}

#[test]
fn topics_and_the_wildcard() {
    let broker = Arc::new(Broker::default());
    let (news, all, other) =
        (subscribed(&broker, b"news"), subscribed(&broker, b"*"), subscribed(&broker, b"other"));
    let (publisher, handle) = connect(&broker);
    publish(&publisher, b"news", &[b"one", b"", b"three"]).unwrap();
    publisher.finish().unwrap();
    handle.join().unwrap().unwrap();
    for subscription in [&news, &all] {
        for payload in [&b"one"[..], b"", b"three"] {
            let event = subscription.next_event().unwrap().unwrap();
            assert_eq!((&event.topic[..], &event.payload[..]), (&b"news"[..], payload));
        }
    }
    broker.publish_local(&Event { topic: b"other".to_vec(), payload: b"own".to_vec() }).unwrap();
    assert_eq!(other.next_event().unwrap().unwrap().payload, b"own", "and nothing before it");
    assert_eq!(broker.counters().published.load(Ordering::Relaxed), 4);
    assert_eq!(broker.counters().delivered.load(Ordering::Relaxed), 8);
}

#[test]
fn a_publisher_does_not_hear_itself() {
    let broker = Arc::new(Broker::default());
    let (client, _handle) = connect(&broker);
    publish(&client, b"t", &[b"mine"]).unwrap();
    wait_until("published", || broker.counters().published.load(Ordering::Relaxed) == 1);
    broker.publish_local(&Event { topic: b"t".to_vec(), payload: b"other".to_vec() }).unwrap();
    let event = Event::read(&mut Io(&client), &mut |_| true).unwrap().unwrap();
    assert_eq!(event.payload, b"other");
}

fn flood(broker: &Broker, until: impl Fn() -> bool) {
    let event = Event { topic: b"t".to_vec(), payload: vec![7; 100_000] };
    for _ in 0..5_000 {
        if until() {
            return;
        }
        broker.publish_local(&event).unwrap();
    }
    panic!("the bound was never met");
}

#[test]
fn a_slow_subscriber_is_dropped_and_nobody_waits_for_it() {
    let broker = Arc::new(Broker::default());
    let slow = subscribed(&broker, b"t");
    let begin = Instant::now();
    flood(&broker, || broker.counters().dropped.load(Ordering::Relaxed) == 1);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(broker.subscribers(), 0);
    // It reads what had left, then the end.
    while let Ok(Some(_)) = slow.next_event() {}
}

#[test]
fn a_publisher_that_does_not_read_goes_on_publishing() {
    let broker = Arc::new(Broker::default());
    let (client, _handle) = connect(&broker);
    publish(&client, b"t", &[b"first"]).unwrap();
    wait_until("published", || broker.counters().published.load(Ordering::Relaxed) == 1);
    flood(&broker, || broker.counters().muted.load(Ordering::Relaxed) == 1);
    let reader = subscribed(&broker, b"t");
    Io(&client)
        .write_all(&Event { topic: b"t".to_vec(), payload: b"later".to_vec() }.encode().unwrap())
        .unwrap();
    assert_eq!(reader.next_event().unwrap().unwrap().payload, b"later");
    assert_eq!(broker.counters().dropped.load(Ordering::Relaxed), 0);
}

#[test]
fn a_connection_that_ends_while_its_writer_is_stuck_ends() {
    let broker = Arc::new(Broker::default());
    let (client, handle) = connect(&broker);
    Io(&client).write_all(&Event::subscription(b"t").encode().unwrap()).unwrap();
    wait_until("subscribed", || broker.subscribers() == 1);
    // As much as the queue takes, without meeting its bound.
    let event = Event { topic: b"t".to_vec(), payload: vec![7; 3_900_000] };
    for _ in 0..2 {
        broker.publish_local(&event).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    client.finish().unwrap();
    let begin = Instant::now();
    let _ = handle.join().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(broker.subscribers(), 0);
}
