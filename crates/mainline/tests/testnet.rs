//! A DHT of real sockets on 127.0.0.1: who publishes, who looks, and who lies.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mainline::{MutableItem, SigningKey, Testnet};
use pilotage::Identity;
use pilotage::records::{Directory as _, Public, Sign, Tally};
use pilotage_mainline::{MAX_ASKING, MAX_FOUND, Mainline, MainlineConfig};
use pilotage_registry::record::sign_with;
use pilotage_registry::replica::public::best;
use pilotage_wire::record::Record;
use pilotage_wire::{NetworkId, addressing};

const NETWORK: NetworkId = NetworkId(0);
const LONG: Duration = Duration::from_secs(30);

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn identity(number: u8) -> Identity {
    Identity::from_seed([number; 32])
}

fn record(number: u8, seq: u64) -> Vec<u8> {
    let identity = identity(number);
    let key = identity.public_key();
    let node = addressing::derive_node_id(&key, 0).unwrap();
    let mut record = Record::new(NETWORK, node, 0, key, seq, now() as u32);
    record.endpoints = vec![SocketAddr::from(([127, 0, 0, 1], 4_000))];
    // As long as they get.
    record.summary = Some("s".repeat(200));
    record.tags = (0..8).map(|tag| format!("{tag}.{}", "t".repeat(50))).collect();
    sign_with(&mut record, key, |message| identity.sign(message)).unwrap()
}

fn signer(number: u8) -> Sign {
    let identity = identity(number);
    Arc::new(move |message| identity.sign(message))
}

fn config(bootstrap: &[String]) -> MainlineConfig {
    MainlineConfig {
        bootstrap: bootstrap.to_vec(),
        bind: Some(Ipv4Addr::LOCALHOST),
        gap: Duration::from_millis(10),
        answer: Duration::from_millis(600),
        ..MainlineConfig::default()
    }
}

fn open(bootstrap: &[String]) -> Mainline {
    Mainline::start(config(bootstrap)).unwrap()
}

fn publish(mainline: &Mainline, number: u8, seq: u64) {
    mainline.publish(Public::new(&record(number, seq)).unwrap(), signer(number));
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < LONG, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What is found and believed, with the count of what was not.
fn found(mainline: &Mainline, number: u8) -> (Option<u64>, Tally) {
    let (key, mut tally) = (identity(number).public_key(), Tally::default());
    let records = mainline.find(&key, NETWORK);
    assert!(records.len() <= MAX_FOUND);
    let records = records.iter().map(Vec::as_slice);
    let best = best(&key, NETWORK, records, None, now(), &mut tally);
    (best.map(|known| known.record.seq), tally)
}

#[test]
fn a_record_is_published_found_and_replaced_by_newer_ones_only() {
    let net = Testnet::builder(5).build().unwrap();
    let (publisher, resolver) = (open(&net.bootstrap), open(&net.bootstrap));
    assert!(record(1, 5).len() > 700, "a long one");
    publish(&publisher, 1, 5);
    until("stored", || publisher.status().published == 1);
    assert!(publisher.status().stored_at >= 1);
    assert_eq!(found(&resolver, 1).0, Some(5));
    assert_eq!(found(&resolver, 2), (None, Tally::default()), "another key");
    // Another network is another place.
    assert!(resolver.find(&identity(1).public_key(), NetworkId(1)).is_empty());
    let newer = Public::new(&record(1, 6)).unwrap();
    publisher.publish(newer.clone(), signer(1));
    until("stored", || publisher.status().published == 2);
    assert_eq!(found(&resolver, 1).0, Some(6));
    // The same again is not stored again.
    publisher.publish(newer, signer(1));
    // A machine that was away has an older one, and is told.
    let stale = open(&net.bootstrap);
    publish(&stale, 1, 4);
    until("refused", || stale.status().last_error.is_some());
    let error = stale.status().last_error.unwrap();
    assert!(error.contains("newer record"), "{error}");
    assert_eq!((stale.status().published, publisher.status().published), (0, 2));
    assert_eq!(found(&resolver, 1).0, Some(6));
}

#[test]
fn what_nodes_forgot_is_stored_again() {
    let net = Testnet::builder(3).build().unwrap();
    let witness = liar(1, Lie::Nearer(SocketAddr::from(([127, 0, 0, 1], 1)), 1));
    let mut config = config(&[net.bootstrap.clone(), vec![witness.address.clone()]].concat());
    config.republish = Duration::from_millis(400);
    let publisher = Mainline::start(config).unwrap();
    publish(&publisher, 3, 7);
    until("stored three times", || publisher.status().published >= 3);
    assert_eq!(found(&open(&net.bootstrap), 3).0, Some(7));
    // Behind the last handle nobody goes on: a node that hears all hears nothing more.
    let heard = || witness.heard.load(Ordering::Relaxed);
    let before = heard();
    until("heard", || heard() > before);
    drop(publisher);
    thread::sleep(Duration::from_secs(2));
    let after = heard();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(heard(), after);
}

#[test]
fn where_nobody_answers_a_look_up_ends_in_time_and_only_so_many_are_made() {
    let mute = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = config(&[mute.local_addr().unwrap().to_string()]);
    config.patience = Duration::from_secs(1);
    let mainline = Arc::new(Mainline::start(config).unwrap());
    publish(&mainline, 1, 5);
    let begin = Instant::now();
    let asking: Vec<_> = (0..MAX_ASKING as u8)
        .map(|number| {
            let mainline = mainline.clone();
            thread::spawn(move || mainline.find(&identity(number).public_key(), NETWORK))
        })
        .collect();
    thread::sleep(Duration::from_millis(300));
    let surplus = Instant::now();
    assert!(mainline.find(&[9; 32], NETWORK).is_empty());
    assert!(surplus.elapsed() < Duration::from_millis(300), "one more was made: {:?}", surplus.elapsed());
    for asking in asking {
        assert!(asking.join().unwrap().is_empty());
    }
    assert!(begin.elapsed() < Duration::from_millis(3_500), "{:?}", begin.elapsed());
    assert_eq!(mainline.status().asked, MAX_ASKING as u64);
    until("said", || mainline.status().last_error.is_some());
    assert_eq!(mainline.status().published, 0);
    // There is room again.
    until("no room", || {
        assert!(mainline.find(&[9; 32], NETWORK).is_empty());
        mainline.status().asked > MAX_ASKING as u64
    });
}

/// Key, number, value, signature.
type Item = ([u8; 32], i64, Vec<u8>, [u8; 64]);

/// What a liar answers to "get".
enum Lie {
    Item(Item),
    /// Late, that this other node is nearer by: so many more of them, then nobody.
    Nearer(SocketAddr, u8),
}

/// A node of the DHT that lies, and counts its lies. It says to be the very place that is looked for.
struct Liar {
    address: String,
    lies: Arc<AtomicU32>,
    /// Datagrams.
    heard: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn liar(host: u8, lie: Lie) -> Liar {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, host), 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let address = socket.local_addr().unwrap();
    let (lies, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let heard = Arc::new(AtomicU32::new(0));
    let (count, all, stopped) = (lies.clone(), heard.clone(), stop.clone());
    thread::spawn(move || {
        let mut buffer = [0; 2_048];
        while !stopped.load(Ordering::Relaxed) {
            let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
            all.fetch_add(1, Ordering::Relaxed);
            let Some(reply) = answer(&buffer[..len], &lie, &count) else { continue };
            let _ = socket.send_to(&reply, from);
        }
    });
    Liar { address: address.to_string(), lies, heard, stop }
}

/// The bytes of a bencoded string behind its name.
fn field<'a>(query: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let at = query.windows(name.len()).rposition(|window| window == name)? + name.len();
    let colon = at + query[at..].iter().position(|byte| *byte == b':')?;
    let len: usize = std::str::from_utf8(&query[at..colon]).ok()?.parse().ok()?;
    query.get(colon + 1..colon + 1 + len)
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(format!("{}:", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
}

fn answer(query: &[u8], lie: &Lie, count: &AtomicU32) -> Option<Vec<u8>> {
    let transaction = field(query, b"1:t")?;
    let target = field(query, b"6:target").unwrap_or(&[7; 20]);
    let mut id = target.to_vec();
    id[19] ^= if let Lie::Nearer(_, left) = lie { *left } else { 1 };
    let mut out = b"d1:rd2:id".to_vec();
    text(&mut out, &id);
    let get = field(query, b"e1:q") == Some(b"get");
    match (lie, get) {
        (Lie::Item((key, seq, value, signature)), true) => {
            count.fetch_add(1, Ordering::Relaxed);
            out.extend_from_slice(b"1:k");
            text(&mut out, key);
            out.extend_from_slice(b"5:nodes0:");
            out.extend_from_slice(format!("3:seqi{seq}e3:sig").as_bytes());
            text(&mut out, signature);
            out.extend_from_slice(b"5:token4:abcd1:v");
            text(&mut out, value);
        }
        (Lie::Nearer(next, left), true) => {
            count.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(250));
            let (SocketAddr::V4(next), Some(left)) = (next, left.checked_sub(1)) else { return None };
            let mut nodes = target.to_vec();
            nodes[19] ^= left;
            nodes.extend_from_slice(&next.ip().octets());
            nodes.extend_from_slice(&next.port().to_be_bytes());
            out.extend_from_slice(b"5:nodes");
            text(&mut out, &nodes);
            out.extend_from_slice(b"5:token4:abcd");
        }
        (_, false) => out.extend_from_slice(b"5:nodes0:"),
    }
    out.extend_from_slice(b"e1:t");
    text(&mut out, transaction);
    out.extend_from_slice(b"1:y1:re");
    Some(out)
}

fn signed_item(number: u8, seq: i64, value: &[u8]) -> Item {
    let salt = [b"pilotage-record-v1".as_slice(), &[0, 0]].concat();
    let item = MutableItem::new(SigningKey::from_bytes(&[number; 32]), value, seq, Some(&salt));
    (*item.key(), seq, value.to_vec(), *item.signature())
}

#[test]
fn a_liar_makes_nobody_believe_and_hides_nothing() {
    let net = Testnet::builder(5).build().unwrap();
    let publisher = open(&net.bootstrap);
    publish(&publisher, 1, 6);
    until("stored", || publisher.status().published == 1);
    let key = identity(1).public_key();
    let forged = {
        let (key, _, value, signature) = signed_item(1, 6, &record(1, 6));
        (key, 99, value, signature)
    };
    let wrong_key = signed_item(2, 99, &record(2, 99));
    // Signed by the key once, long ago; or a record of another in an item of this key, which only this key could make.
    let old = signed_item(1, 4, &record(1, 4));
    let of_another = signed_item(1, 98, &record(2, 98));
    let torn = signed_item(1, 97, &record(1, 97)[..300]);
    for (what, lie, not_believed_by_the_dht, expected) in [
        ("forged", forged, 1, Tally { taken: 1, ..Tally::default() }),
        ("wrong key", wrong_key, 1, Tally { taken: 1, ..Tally::default() }),
        ("old", old, 0, Tally { taken: 1, older: 1, ..Tally::default() }),
        ("of another", of_another, 0, Tally { taken: 1, other: 1, ..Tally::default() }),
        ("torn", torn, 0, Tally { taken: 1, forged: 1, ..Tally::default() }),
    ] {
        let liar = liar(1, Lie::Item(lie));
        let nodes: Vec<String> = [liar.address.clone()].into_iter().chain(net.bootstrap.clone()).collect();
        let resolver = open(&nodes);
        assert_eq!(found(&resolver, 1), (Some(6), expected), "{what}");
        assert!(liar.lies.load(Ordering::Relaxed) >= 1, "{what}: nobody asked the liar");
        // It is counted when all have answered.
        until(what, || resolver.status().refused >= not_believed_by_the_dht);
        assert_eq!(resolver.status().refused, not_believed_by_the_dht, "{what}");
    }
    // Alone with liars there is nothing to find.
    let liar = liar(1, Lie::Item(signed_item(2, 9, &record(2, 9))));
    let alone = open(std::slice::from_ref(&liar.address));
    assert!(alone.find(&key, NETWORK).is_empty());
}

#[test]
fn a_liar_that_always_knows_somebody_nearer_ends_with_the_patience() {
    // Each needs a quarter of a second, so that the last one would be asked after ten. The library listens to one such node of an
    // address only.
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let mut chain = vec![liar(2, Lie::Nearer(nobody, 0))];
    for left in 1..40 {
        let next = chain[chain.len() - 1].address.parse().unwrap();
        chain.push(liar(2 + left, Lie::Nearer(next, left)));
    }
    let mut config = config(&[chain[39].address.clone()]);
    config.patience = Duration::from_secs(2);
    let resolver = Mainline::start(config).unwrap();
    for round in 1..=2 {
        let begin = Instant::now();
        assert!(resolver.find(&identity(1).public_key(), NETWORK).is_empty());
        let took = begin.elapsed();
        assert!(took > Duration::from_millis(1_900) && took < Duration::from_secs(4), "{took:?}");
        let lies: u32 = chain.iter().map(|liar| liar.lies.load(Ordering::Relaxed)).sum();
        assert!(lies >= 4 * round, "they were not believed: {lies} lies");
    }
}
