//! Discovery and calls between real nodes on loopback (spec/discovery.md).

#[path = "../examples/support/fx.rs"]
mod fx;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pilotage::{Identity, Node, Peer};
use pilotage_discover::descriptor::Descriptor;
use pilotage_discover::evidence::Book;
use pilotage_discover::group::Summary;
use pilotage_discover::plan::{Began, Stop};
use pilotage_discover::wire::{Answer, Request};
use pilotage_discover::{Declaration, Query, Skill, Tag};
use pilotage_services::find::{
    self, CallOptions, Findings, Handler, HandlerError, Host, Offer, PORT, Provider, Reach,
};
use pilotage_services::server::{MAX_PER_PEER, Services, Serving, serve};

const STEP: Duration = Duration::from_secs(60);

fn node(n: u8) -> Node {
    let any: SocketAddr = "127.0.0.1:0".parse().expect("address");
    Node::builder().bind(any).identity(Identity::from_seed([n; 32])).start().expect("node")
}

fn at(node: &Node) -> Peer {
    Peer::At(node.address(), node.local_addr())
}

fn offer(tag: &str, idempotent: bool, summary: &str, handler: Option<Arc<dyn Handler>>) -> Offer {
    let tag: Tag = tag.parse().expect("tag");
    let declaration =
        Declaration::new(vec![Skill { tag: tag.clone(), idempotent }], summary).expect("declaration");
    let handlers = handler.into_iter().map(|handler| (tag.clone(), handler)).collect();
    Offer { declaration, descriptor: None, life: 600, endpoints: true, handlers }
}

fn start(node: &Node, offer: Option<Offer>, hold: Option<usize>) -> (Serving, Host) {
    let host = Host::new(offer, hold).expect("host");
    let services = Services { find: Some(host.clone()), ..Services::default() };
    (serve(node, &services, Arc::new(|_| {})).expect("served"), host)
}

fn ask(asker: &Node, peers: &[Peer], what: &[&str]) -> Findings {
    let reach: Arc<dyn Reach> = Arc::new(asker.clone());
    let query = Query::from_words(what.iter().copied(), 10).expect("query");
    find::find(&reach, peers, &query, &mut Book::default(), STEP)
}

fn summaries(findings: &Findings) -> Vec<&str> {
    findings.providers.iter().map(|one| one.hit.card.card().declaration.summary()).collect()
}

#[test]
fn nodes_answer_for_themselves_without_any_registry() {
    let (one, two, other, asker) = (node(1), node(2), node(3), node(4));
    let _serving = [
        start(&one, Some(offer("finance.fx.history", true, "minute bars of EUR/USD", None)), None),
        start(&two, Some(offer("finance.fx.spot", true, "spot quotes", None)), None),
        start(&other, Some(offer("weather.radar", true, "rain", None)), None),
    ];
    let peers = [at(&one), at(&two), at(&other)];
    let findings = ask(&asker, &peers, &["cap:finance.fx", "EUR/USD", "by the minute"]);
    assert_eq!(summaries(&findings), ["minute bars of EUR/USD", "spot quotes"]);
    assert!(findings.asked.iter().all(|asked| asked.outcome.is_ok()), "{:?}", findings.asked);
    let why = findings.providers[0].hit.why.to_string();
    assert!(why.contains("a case of finance.fx") && why.contains("eur usd minut"), "{why}");
    assert_eq!(findings.providers[0].peer, peers[0]);
}

#[test]
fn an_index_answers_for_those_who_announced_themselves() {
    let (holder, provider, asker) = (node(1), node(2), node(3));
    let (_holding, index) = start(&holder, None, Some(10));
    let echo: Arc<dyn Handler> = Arc::new(|_: &str, body: &[u8]| Ok(body.to_vec()));
    let (_serving, host) = start(&provider, Some(offer("a.b", false, "does a and b", Some(echo))), None);
    let card = host.card(&provider).expect("card");
    find::announce(&provider, &at(&holder), card.clone(), STEP).expect("taken");
    assert_eq!(index.known(), 1);
    // The same card from another node is refused, and a node without an index takes none.
    let refused = find::announce(&asker, &at(&holder), card.clone(), STEP).expect_err("not its own");
    assert!(refused.to_string().contains("own card only"), "{refused}");
    let refused = find::announce(&asker, &at(&provider), card, STEP).expect_err("no index");
    assert!(refused.to_string().contains("--index"), "{refused}");
    let findings = ask(&asker, &[at(&holder)], &["cap:a"]);
    assert_eq!(summaries(&findings), ["does a and b"]);
    assert_eq!(findings.providers[0].peer, at(&provider), "the card says where it is");
    let tag: Tag = "a.b".parse().expect("tag");
    let served = call(&asker, &findings.providers, &tag, &CallOptions::default()).expect("served");
    assert_eq!(served.result, b"body");
    let answer = index.answer(&holder, asker.address(), None, Request::Summary);
    let Ok(Answer::Summary(bytes)) = Answer::decode(&answer) else { panic!("no summary") };
    let summary = Summary::verify(&bytes).expect("signed");
    assert!(summary.members == 1 && summary.bloom.may_have(&tag));
}

fn call(
    asker: &Node,
    providers: &[Provider],
    tag: &Tag,
    options: &CallOptions,
) -> Result<find::Served, find::CallFailed> {
    let reach: Arc<dyn Reach> = Arc::new(asker.clone());
    find::call(&reach, providers, tag, b"body", options, &mut Book::default(), &mut |_| {})
}

#[test]
fn a_call_goes_on_only_where_it_did_not_begin_or_does_no_harm() {
    let (one, two, asker) = (node(1), node(2), node(3));
    let begun = Arc::new(AtomicUsize::new(0));
    let count = begun.clone();
    let broken: Arc<dyn Handler> = Arc::new(move |_: &str, _: &[u8]| {
        count.fetch_add(1, Ordering::Relaxed);
        Err(HandlerError::Failed("the disk is full".into()))
    });
    let fine: Arc<dyn Handler> = Arc::new(|_: &str, _: &[u8]| Ok(b"fine".to_vec()));
    let tag: Tag = "x.order".parse().expect("tag");
    let (_a, first) =
        start(&one, Some(offer("x.order", false, "best match of words", Some(broken.clone()))), None);
    let _b = start(&two, Some(offer("x.order", false, "second", Some(fine))), None);
    let peers = [at(&one), at(&two)];
    let findings = ask(&asker, &peers, &["cap:x.order", "best match words"]);
    // It began, and nobody says that twice does no harm.
    let failed = call(&asker, &findings.providers, &tag, &CallOptions::default()).expect_err("not again");
    assert_eq!((failed.stop, failed.attempts.len()), (Stop::MayHaveBegun, 1));
    assert!(failed.attempts[0].began == Began::Yes && failed.attempts[0].reason.contains("disk is full"));
    // The caller says so.
    let idempotent = CallOptions { idempotent: true, ..CallOptions::default() };
    let served = call(&asker, &findings.providers, &tag, &idempotent).expect("the second");
    assert_eq!((served.by, served.attempts.len(), served.result.as_slice()), (1, 1, &b"fine"[..]));
    assert_eq!(begun.load(Ordering::Relaxed), 2);
    // It refuses before it begins: the next one is tried without being told that it is harmless.
    first.declare(&one, Some(offer("x.order", false, "best match of words", None))).expect("offer");
    let served = call(&asker, &findings.providers, &tag, &CallOptions::default()).expect("the second");
    assert!(served.attempts[0].began == Began::No && served.attempts[0].reason.contains("not served here"));
    assert_eq!(begun.load(Ordering::Relaxed), 2);
}

#[test]
fn descriptors_are_fetched_by_their_hash() {
    let (provider, asker) = (node(1), node(2));
    let json = br#"{"name":"Rates","description":"rates","skills":[{"id":"finance.fx"}]}"#;
    let descriptor = Descriptor::parse(json).expect("descriptor");
    let declaration = descriptor.declare().expect("declaration");
    let offer = Offer {
        declaration,
        descriptor: Some(descriptor.clone()),
        life: 600,
        endpoints: false,
        handlers: Vec::new(),
    };
    let _serving = start(&provider, Some(offer), None);
    let fetched = find::describe(&asker, &at(&provider), &descriptor.hash(), STEP).expect("descriptor");
    assert_eq!(fetched, descriptor);
    assert!(find::describe(&asker, &at(&provider), &[0; 32], STEP).is_err());
}

#[test]
fn nonsense_on_the_port_is_answered_and_harms_nobody() {
    let (provider, asker) = (node(1), node(2));
    let _serving = start(&provider, Some(offer("a", true, "s", None)), None);
    for bytes in [&b"\0\0\0\x02{}"[..], b"\xff\xff\xff\xff", b"\0\0\0\x05ab"] {
        let mut stream = asker.connect(at(&provider), PORT).expect("connect");
        stream.write_all(bytes).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("finished");
        stream.set_read_timeout(Some(STEP)).expect("timeout");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.windows(5).any(|part| part == b"error"), "{answer:?}");
    }
    assert_eq!(summaries(&ask(&asker, &[at(&provider)], &["cap:a"])), ["s"]);
}

#[test]
fn the_example_goes_on_when_a_provider_is_killed() {
    let options = fx::Options { calls: 30, patience: Duration::from_secs(3), process };
    let report = fx::run(&options).expect("run");
    println!("{report}\n{}", report.json());
    assert_eq!((report.succeeded, report.wrong), (30, 0), "{report}");
    assert!(report.rerouted >= 1, "one was killed, and its call went on: {report}");
}

/// This test program again, with only [`provider_process`].
fn process(summary: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "provider_process", "--ignored", "--nocapture"]).env("FX_PROVIDER", summary);
    command
}

#[test]
#[ignore = "it is a provider of the test above, in a process of its own"]
fn provider_process() {
    if let Ok(summary) = std::env::var("FX_PROVIDER") {
        fx::provide(&summary).expect("a provider");
    }
}

#[test]
fn calls_above_the_bound_are_refused_before_they_begin() {
    let (provider, asker) = (node(1), node(2));
    let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (begun_, go_) = (begun.clone(), go.clone());
    let slow: Arc<dyn Handler> = Arc::new(move |_: &str, _: &[u8]| {
        begun_.fetch_add(1, Ordering::Relaxed);
        while go_.load(Ordering::Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Vec::new())
    });
    let _serving = start(&provider, Some(offer("a", false, "s", Some(slow))), None);
    let findings = ask(&asker, &[at(&provider)], &["cap:a"]);
    let tag: Tag = "a".parse().expect("tag");
    let options = CallOptions { time: STEP, ..CallOptions::default() };
    std::thread::scope(|scope| {
        let one = || call(&asker, &findings.providers, &tag, &options).expect("served");
        let calls: Vec<_> = (0..MAX_PER_PEER).map(|_| scope.spawn(one)).collect();
        let deadline = std::time::Instant::now() + STEP;
        while begun.load(Ordering::Relaxed) < MAX_PER_PEER && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let above = call(&asker, &findings.providers, &tag, &options).expect_err("no place");
        assert_eq!((above.stop, above.attempts[0].began), (Stop::AllFailed, Began::No));
        go.store(1, Ordering::Relaxed);
        calls.into_iter().for_each(|call| drop(call.join().expect("served")));
    });
    assert_eq!(begun.load(Ordering::Relaxed), MAX_PER_PEER);
}

#[test]
fn a_wish_goes_by_the_hubs_index_to_groups_that_agents_joined() {
    let (hub, keeper, agent, asker) = (node(1), node(2), node(3), node(4));
    let interest: Tag = "finance.fx".parse().expect("tag");
    let (_hub, list) = start(&hub, None, Some(10));
    let host = Host::new(None, Some(10)).expect("host").of_group(interest);
    let services = Services { find: Some(host.clone()), ..Services::default() };
    let _keeping = serve(&keeper, &services, Arc::new(|_| {})).expect("served");
    let (_serving, own) = start(&agent, Some(offer("finance.fx.rate", true, "rates", None)), None);
    // Without a registry nodes are known by what they have met: everybody has to meet the keeper.
    for who in [&agent, &asker] {
        assert!(who.connect(at(&keeper), PORT).is_ok());
    }
    find::announce_group(&keeper, &at(&hub), host.summary(&keeper), STEP).expect("on the list");
    assert_eq!(list.groups(), 1);
    // Somebody else's summary is not taken, and neither is nonsense.
    let forged =
        find::announce_group(&agent, &at(&hub), host.summary(&keeper), STEP).expect_err("not its own");
    assert!(forged.to_string().contains("its own summary only"), "{forged}");
    assert!(find::announce_group(&agent, &at(&hub), vec![1; 500], STEP).is_err());
    let card = own.card(&agent).expect("card");
    let groups = find::groups_for(&agent, &at(&hub), &card.card().declaration, STEP).expect("groups");
    assert_eq!(groups, [Peer::Address(keeper.address())]);
    find::announce(&agent, &groups[0], card, STEP).expect("joined");
    assert_eq!(host.known(), 1);
    find::announce_group(&keeper, &at(&hub), host.summary(&keeper), STEP).expect("the newer one");
    let reach: Arc<dyn Reach> = Arc::new(asker.clone());
    let query = Query::from_words(["cap:finance.fx", "rates"], 5).expect("query");
    let findings = find::routed(&reach, &at(&hub), &query, &mut Book::default(), STEP);
    assert_eq!(summaries(&findings), ["rates"], "{:?}", findings.asked);
    assert_eq!((findings.asked.len(), findings.groups.len()), (2, 1), "{:?}", findings.groups);
    // What others are interested in is not theirs.
    let other = Declaration::new(vec![Skill { tag: "weather".parse().expect("tag"), idempotent: true }], "w");
    let none = find::groups_for(&agent, &at(&hub), &other.expect("declaration"), STEP).expect("groups");
    assert!(none.is_empty(), "{none:?}");
}

#[test]
fn a_silent_provider_is_not_waited_for_and_begins_nothing() {
    let (silent, good, asker) = (node(1), node(2), node(3));
    let begun = Arc::new(AtomicUsize::new(0));
    let handler = |count: Arc<AtomicUsize>| -> Arc<dyn Handler> {
        Arc::new(move |_: &str, _: &[u8]| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(b"done".to_vec())
        })
    };
    let _a = start(
        &silent,
        Some(offer("x.order", false, "best match of words", Some(handler(begun.clone())))),
        None,
    );
    let _b = start(&good, Some(offer("x.order", false, "second", Some(handler(begun.clone())))), None);
    let findings = ask(&asker, &[at(&silent), at(&good)], &["cap:x.order", "best match words"]);
    // It is there, and streams to it take for ever: nothing is known of its end.
    let gate = Arc::new(Held { node: asker.clone(), held: silent.address().node, go: AtomicUsize::new(0) });
    let reach: Arc<dyn Reach> = gate.clone();
    let tag: Tag = "x.order".parse().expect("tag");
    let mut told = Vec::new();
    let options = CallOptions { time: STEP, ..CallOptions::default() };
    let mut book = Book::default();
    let served = find::call(&reach, &findings.providers, &tag, b"x", &options, &mut book, &mut |a| {
        told.push(a.clone())
    });
    let served = served.expect("the second");
    assert_eq!((served.by, served.attempts.len(), told.len()), (1, 1, 1));
    assert!(told[0].began == Began::No && told[0].reason.contains("quicker"), "{told:?}");
    // Now the stream comes about: the first one gets no go-ahead, although the call may do harm twice.
    gate.go.store(1, Ordering::Relaxed);
    let deadline = std::time::Instant::now() + STEP;
    while gate.go.load(Ordering::Relaxed) < 2 && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(begun.load(Ordering::Relaxed), 1);
    let key = findings.providers[0].hit.card.card().key;
    assert!(book.left_alone_for(&key, find::unix_seconds()).is_some(), "the next call does not wait for it");
}

/// Streams to one node come about when they are let go.
struct Held {
    node: Node,
    held: pilotage::NodeId,
    go: AtomicUsize,
}

impl Reach for Held {
    fn reach(
        &self,
        peer: &Peer,
        port: u16,
    ) -> Result<(Arc<dyn pilotage_services::Duplex>, pilotage::Address), pilotage_services::gateway::DialError>
    {
        let held = matches!(peer, Peer::At(address, _) if address.node == self.held);
        while held && self.go.load(Ordering::Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let reached = Reach::reach(&self.node, peer, port);
        if held {
            self.go.store(2, Ordering::Relaxed);
        }
        reached
    }
}
