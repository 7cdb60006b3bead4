use std::sync::Arc;

use pilotage_wire::NetworkId;

use super::*;
use crate::duplex::testing::pair;
use crate::vectors;

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

#[test]
fn golden_texts() {
    let cases = vectors::cases("port53.json");
    assert_eq!(cases.len(), 23);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        match case["kind"].as_str().unwrap() {
            "request" => assert_eq!(Request::parse(text.as_bytes()).unwrap().to_string(), text),
            "response" => assert_eq!(Reply::parse(text.as_bytes()).unwrap().to_string(), text),
            "request_parse" => {
                assert_eq!(Request::parse(text.as_bytes()).is_ok(), case["valid"] == true, "{text:?}");
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn texts_beyond_the_vectors() {
    for bad in
        ["QUERY S +1 1", "QUERY S 1 -1", "QUERY A \u{7}", "REGISTER A x 1:00A3.F291.0004", "QUERY A\0x b"]
    {
        let request = Request::parse(bad.as_bytes());
        assert!(request.is_err(), "{bad:?}: {request:?}");
    }
    assert!(Request::parse(&[b'x'; MAX_REQUEST + 1]).is_err());
    assert!(Request::parse(format!("QUERY A {}", "n".repeat(MAX_NAME + 1)).as_bytes()).is_err());
    assert_eq!(Reply::parse(b"ERR a\x1bb").unwrap(), Reply::Error("a\u{fffd}b".into()));
    for bad in ["", "A x", "HELLO", "S web 0:0000.0000.0002", "S\nN x 1"] {
        assert!(Reply::parse(bad.as_bytes()).is_err(), "{bad:?}");
    }
}

fn register(name: &str, at: &str) -> Request {
    Request::RegisterAddress { name: name.into(), address: address(at) }
}

#[test]
fn a_node_registers_its_own_address_only_and_keeps_its_names() {
    let mut table = Table::default();
    let now = Instant::now();
    let (one, two) = (address("0:0000.0000.0001"), address("0:0000.0000.0002"));
    assert!(matches!(table.answer(one, &register("web", "0:0000.0000.0002"), now), Reply::Error(_)));
    assert_eq!(table.answer(two, &register("web", "1:0001.0000.0002"), now), Reply::Ok);
    assert!(matches!(table.answer(one, &register("web", "0:0000.0000.0001"), now), Reply::Error(_)));
    let query = Request::QueryAddress("web".into());
    let found = Reply::Address { name: "web".into(), address: address("1:0001.0000.0002") };
    assert_eq!(table.answer(one, &query, now + LIFE - Duration::from_millis(1)), found);
    assert!(matches!(table.answer(one, &query, now + LIFE), Reply::Error(_)), "it has ended");
    assert_eq!(table.answer(one, &register("web", "0:0000.0000.0001"), now + LIFE), Reply::Ok);
    // Networks belong to nobody: the first one keeps the name.
    let network = Request::RegisterNetwork { name: "lab".into(), network: NetworkId(7) };
    assert_eq!(table.answer(one, &network, now), Reply::Ok);
    assert!(matches!(table.answer(two, &network, now), Reply::Error(_)));
    let query = Request::QueryNetwork("lab".into());
    assert_eq!(table.answer(two, &query, now), Reply::Network { name: "lab".into(), network: NetworkId(7) });
}

#[test]
fn services_are_listed_by_network_and_port() {
    let mut table = Table::default();
    let now = Instant::now();
    for (node, port) in [(2, 80), (1, 80), (3, 81)] {
        let provider = Provider { name: "web".into(), address: Address::new(0, node), port };
        let request = Request::RegisterService { provider, network: NetworkId(1) };
        assert_eq!(table.answer(Address::new(0, node), &request, now), Reply::Ok);
    }
    let query = |network, port| Request::QueryService { network: NetworkId(network), port };
    let reply = table.answer(Address::new(0, 9), &query(1, 80), now);
    assert_eq!(reply.to_string(), "S web 0:0000.0000.0001 80\nS web 0:0000.0000.0002 80");
    assert_eq!(table.answer(Address::new(0, 9), &query(2, 80), now), Reply::Services(Vec::new()));
}

#[test]
fn the_table_is_bounded() {
    let mut table = Table::default();
    let now = Instant::now();
    let mut add = |node: u32, n: usize| {
        let request = RequestOf(node).name(n);
        (table.answer(Address::new(0, node), &request, now), table.len())
    };
    for n in 0..MAX_PER_NODE {
        assert_eq!(add(1, n).0, Reply::Ok);
    }
    assert!(matches!(add(1, MAX_PER_NODE).0, Reply::Error(_)));
    for n in MAX_PER_NODE..MAX_RECORDS {
        assert_eq!(add(1 + (n / MAX_PER_NODE) as u32, n).0, Reply::Ok);
    }
    assert!(matches!(add(999_999, 0), (Reply::Error(_), MAX_RECORDS)));
    assert_eq!(add(1, 0), (Reply::Ok, MAX_RECORDS), "renewals go on");
}

struct RequestOf(u32);

impl RequestOf {
    fn name(&self, n: usize) -> Request {
        Request::RegisterAddress { name: format!("n{}-{n}", self.0), address: Address::new(0, self.0) }
    }
}

#[test]
fn over_a_stream() {
    let table = Arc::new(Mutex::new(Table::default()));
    let exchange = |node: u32, request: &Request| {
        let (client, server) = pair();
        let table = table.clone();
        let server = std::thread::spawn(move || serve(&server, &table, Address::new(0, node)));
        let reply = ask(&client, request).unwrap();
        server.join().unwrap().unwrap();
        reply
    };
    assert_eq!(exchange(1, &register("web", "0:0000.0000.0001")), Reply::Ok);
    let reply = exchange(2, &Request::QueryAddress("web".into()));
    assert_eq!(reply.to_string(), "A web 0:0000.0000.0001");
    assert!(matches!(exchange(2, &Request::QueryAddress("x".into())), Reply::Error(_)));
    let (client, _server) = pair();
    assert!(ask(&client, &Request::QueryAddress("a b".into())).is_err(), "no second word is smuggled in");
}

#[test]
fn requests_in_pieces_and_rubbish_are_answered() {
    let table = Mutex::new(Table::default());
    for (pieces, expected) in [
        (&[&b"QUERY "[..], b"S 1 ", b"80"][..], "S"),
        (&[b"nonsense\n"], "ERR a word is missing"),
        (&[b"QUERY A"], "ERR a word is missing"),
        (&[b"TELL A x\n"], "ERR QUERY or REGISTER expected"),
        (&[&[b'x'; MAX_REQUEST]], "ERR"),
    ] {
        let (client, server) = pair();
        std::thread::scope(|scope| {
            let handle = scope.spawn(|| serve(&server, &table, Address::new(0, 1)));
            for piece in pieces {
                Io(&client).write_all(piece).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
            let mut reply = String::new();
            Io(&client).read_to_string(&mut reply).unwrap();
            assert!(reply.starts_with(expected), "{reply}");
            handle.join().unwrap().unwrap();
        });
    }
}
