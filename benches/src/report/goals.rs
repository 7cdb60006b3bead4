//! What is to be reached. Names of works and subjects on emulated links are those of the program `links`.

use super::criteria::{
    Criterion,
    Goal::{self, AtLeast, AtMost, Between},
    Value,
};

const QUINN: &[&str] = &["quinn", "quinn-tuned"];
const QUIC: &[&str] = &["quinn", "quinn-tuned", "s2n", "s2n-tuned"];
const MEMORY: &[&str] = &["server_bytes_each", "client_bytes_each"];

/// Peers on emulated links.
const LINK_PEERS: &[&str] = &[
    "tcp-cubic",
    "tcp-bbr",
    "tls-cubic",
    "tls-bbr",
    "quinn-cubic",
    "quinn-bbr",
    "quinn-default-cubic",
    "quinn-default-bbr",
    "s2n-cubic",
    "s2n-bbr",
    "s2n-default-cubic",
    "s2n-default-bbr",
];
/// Those of them whose controller reacts to loss alone.
const LOSS_PEERS: &[&str] =
    &["tcp-cubic", "tls-cubic", "quinn-cubic", "quinn-default-cubic", "s2n-cubic", "s2n-default-cubic"];

/// A mode of ours: who stands for it. The goals of one are those of the other, but for the first contact.
struct Mode {
    /// What is put before the text of a goal.
    name: &'static str,
    one: &'static str,
    large: &'static str,
    /// The default controller on links.
    link: &'static str,
    loss: &'static [&'static str],
    own: [&'static str; 3],
    is_s1: bool,
}

const DRAFT: Mode = Mode {
    name: "",
    one: "pilotage",
    large: "pilotage-large",
    link: "pilotage-bbr",
    loss: &["pilotage-newreno", "pilotage-cubic"],
    own: ["pilotage-bbr", "pilotage-cubic", "pilotage-newreno"],
    is_s1: false,
};
const S1: Mode = Mode {
    name: "S1: ",
    one: "pilotage-s1",
    large: "pilotage-s1-large",
    link: "pilotage-s1-bbr",
    loss: &["pilotage-s1-newreno", "pilotage-s1-cubic"],
    own: ["pilotage-s1-bbr", "pilotage-s1-cubic", "pilotage-s1-newreno"],
    is_s1: true,
};

/// Links, and by how much the best peer is to be surpassed there: more where 1 % or more is lost.
const LINKS: [(&str, f64); 6] = [
    ("100m-40ms", 0.97),
    ("100m-40ms-1pct", 1.05),
    ("20m-100ms-2pct", 1.05),
    ("500m-10ms-0.1pct", 0.97),
    ("10m-30ms-shallow", 0.97),
    ("100m-40ms-reorder5", 0.97),
];

fn of(work: &str, subject: &'static str, metric: &'static str) -> Value {
    Value::Of { work: work.to_owned(), subject, metric }
}

fn highest(work: &str, subjects: &'static [&'static str], metric: &'static str) -> Value {
    Value::Best { work: work.to_owned(), subjects, metric, highest: true }
}

fn lowest(work: &str, subjects: &'static [&'static str], metric: &'static str) -> Value {
    Value::Best { work: work.to_owned(), subjects, metric, highest: false }
}

fn goal(number: &'static str, text: impl Into<String>, above: Value, below: Value, goal: Goal) -> Criterion {
    Criterion { number, text: text.into(), above, below, goal }
}

/// All goals, in order: those of the draft's mode, then those of S1.
pub(super) fn all() -> Vec<Criterion> {
    let mut all = Vec::new();
    for mode in [&DRAFT, &S1] {
        let mut goals = loopback(mode);
        for (link, margin) in LINKS {
            goals.extend(transfers(mode, link, margin));
        }
        goals.extend(fetches(mode));
        goals.extend(fairness(mode));
        all.extend(
            goals.into_iter().map(|goal| Criterion { text: format!("{}{}", mode.name, goal.text), ..goal }),
        );
    }
    all
}

fn loopback(mode: &Mode) -> Vec<Criterion> {
    let mut goals = bulk(mode);
    goals.extend(requests(mode));
    goals.extend(contacts(mode));
    goals.extend(memory(mode));
    goals
}

fn bulk(mode: &Mode) -> Vec<Criterion> {
    let ours = |metric| of("bulk-1", mode.one, metric);
    let peer = |subject, metric| of("bulk-1", subject, metric);
    let (rate, cpu) = ("goodput_gbps", "cpu_s_per_gb");
    vec![
        goal(
            "1",
            "bulk, 1 stream, 1,452 B: goodput against quinn tuned",
            ours(rate),
            peer("quinn-tuned", rate),
            AtLeast(2.0),
        ),
        goal("1", "the same against s2n-quic tuned", ours(rate), peer("s2n-tuned", rate), AtLeast(1.4)),
        goal("1", "the same against the raw encrypted loop", ours(rate), peer("ceiling", rate), AtLeast(0.8)),
        goal(
            "1",
            "the same: CPU per GB against quinn tuned",
            ours(cpu),
            peer("quinn-tuned", cpu),
            AtMost(0.6),
        ),
        goal("1", "100 streams against one", of("bulk-100", mode.one, rate), ours(rate), AtLeast(0.9)),
        goal(
            "2",
            "bulk, 1 stream, large datagrams: goodput against TLS over TCP",
            peer(mode.large, rate),
            peer("tls", rate),
            AtLeast(0.9),
        ),
    ]
}

fn requests(mode: &Mode) -> Vec<Criterion> {
    let (one, two, many) = ("request-1-core", "request-1", "request-64");
    let (p50, p99, rate, cpu) = ("p50_us", "p99_us", "requests_per_s", "cpu_us_per_request");
    let ours = |work, metric| of(work, mode.one, metric);
    vec![
        goal(
            "3",
            "64 B request on one core: p50 against quinn (its better setting)",
            ours(one, p50),
            lowest(one, QUINN, p50),
            AtMost(0.65),
        ),
        goal("3", "the same against plain TCP", ours(one, p50), of(one, "tcp", p50), AtMost(1.5)),
        goal(
            "3",
            "64 B request on two cores: p50 against the best QUIC",
            ours(two, p50),
            lowest(two, QUIC, p50),
            AtMost(1.0),
        ),
        goal(
            "3",
            "the same: p99 against quinn (its better setting)",
            ours(two, p99),
            lowest(two, QUINN, p99),
            AtMost(1.0),
        ),
        goal(
            "3",
            "64 requests in flight: requests/s against quinn (its better setting)",
            ours(many, rate),
            highest(many, QUINN, rate),
            AtLeast(1.5),
        ),
        goal(
            "3",
            "the same: CPU per request against quinn (its better setting)",
            ours(many, cpu),
            lowest(many, QUINN, cpu),
            AtMost(0.7),
        ),
    ]
}

fn contacts(mode: &Mode) -> Vec<Criterion> {
    let ours = || of("cold", mode.one, "p50_us");
    let warm = |bound| {
        goal(
            "4",
            "new connection in a warm tunnel and first reply against an established round trip",
            of("warm", mode.one, "to_established_ratio"),
            Value::Given(1.0),
            AtMost(bound),
        )
    };
    if mode.is_s1 {
        // Four DH operations a side; data goes with the first packet of a stream.
        let best = lowest("cold", QUIC, "p50_us");
        let text = "cold contact to first reply: p50 against the best QUIC";
        return vec![goal("4", text, ours(), best, AtMost(1.0)), warm(1.1)];
    }
    vec![
        goal(
            "4",
            "cold contact to first reply: p50 against TLS over TCP",
            ours(),
            of("cold", "tls", "p50_us"),
            AtMost(0.7),
        ),
        goal(
            "4",
            "the same against quinn (its better setting)",
            ours(),
            lowest("cold", QUINN, "p50_us"),
            AtMost(0.5),
        ),
        warm(2.1),
    ]
}

fn transfers(mode: &Mode, link: &str, margin: f64) -> Vec<Criterion> {
    let (cold, long) = (format!("link-{link}"), format!("link-{link}-long"));
    let rate = "goodput_mbps";
    let mut goals = Vec::new();
    for (work, name) in [(&cold, "cold transfer"), (&long, "longer transfer")] {
        goals.push(goal(
            "5",
            format!("{link}, {name}: goodput against the best peer"),
            of(work, mode.link, rate),
            highest(work, LINK_PEERS, rate),
            AtLeast(margin),
        ));
        goals.push(goal(
            "5",
            format!("{link}, {name}: bytes on the wire per byte of payload"),
            of(work, mode.link, "wire_ratio"),
            Value::Given(1.0),
            AtMost(1.12),
        ));
        goals.push(goal(
            "5",
            format!("{link}, {name}: AIMD or CUBIC against the best peer with a loss-based controller"),
            highest(work, mode.loss, rate),
            highest(work, LOSS_PEERS, rate),
            AtLeast(1.0),
        ));
    }
    goals.push(goal(
        "5",
        format!("{link}, longer transfer: goodput against the rate of the link"),
        of(&long, mode.link, "of_link_ratio"),
        Value::Given(1.0),
        AtLeast(0.92),
    ));
    goals
}

fn fetches(mode: &Mode) -> Vec<Criterion> {
    const BEST_QUINN: &[&str] = &["quinn-bbr", "quinn-cubic"];
    let mut goals = Vec::new();
    for (way, name) in [("kept", "on kept connections"), ("fresh", "on new connections")] {
        let ours = |metric| of(&format!("fetch-20x64k-{way}"), mode.link, metric);
        let quinn = |metric| lowest("fetch-20x64k-fresh", BEST_QUINN, metric);
        let fetch = format!("20 parallel 64 KB fetches {name}");
        goals.push(goal(
            "5",
            format!("{fetch}: p50 against quinn (its better controller)"),
            ours("p50_ms"),
            quinn("p50_ms"),
            AtMost(1.0),
        ));
        goals.push(goal(
            "5",
            format!("{fetch}: p99 against quinn (its better controller)"),
            ours("p99_ms"),
            quinn("p99_ms"),
            AtMost(1.0),
        ));
        goals.push(goal(
            "5",
            format!("{fetch}: p99 against one TLS connection with bbr"),
            ours("p99_ms"),
            of("fetch-20x64k-muxed", "tls-bbr", "p99_ms"),
            AtMost(0.6),
        ));
    }
    goals
}

fn fairness(mode: &Mode) -> Vec<Criterion> {
    let mut goals = Vec::new();
    for ours in mode.own {
        let jain = of("share-8-own", ours, "jain");
        let text = format!("8 own flows of {ours}: Jain index");
        goals.push(goal("6", text, jain, Value::Given(1.0), AtLeast(0.95)));
    }
    for ours in mode.loss {
        let share = of("share-against-tcp-cubic", ours, "share_ratio");
        let text = format!("share of {ours} against one TCP cubic flow");
        goals.push(goal("6", text, share, Value::Given(1.0), Between(0.35, 0.65)));
    }
    let added = |subject| of("added-delay", subject, "added_mean_ms");
    let text = "delay that a transfer adds to a ping, mean, against TCP cubic";
    goals.push(goal("6", text, added(mode.link), added("tcp-cubic"), AtMost(1.0)));
    goals
}

fn memory(mode: &Mode) -> Vec<Criterion> {
    let most = |work: &str| Value::Most { work: work.to_owned(), subject: mode.one, metrics: MEMORY };
    vec![
        goal(
            "7",
            "idle connection, the larger of both sides, against 4 KiB",
            most("idle-connections"),
            Value::Given(4096.0),
            AtMost(1.0),
        ),
        goal("7", "idle tunnel against 16 KiB", most("idle-tunnels"), Value::Given(16384.0), AtMost(1.0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_and_subjects_on_loopback_exist() {
        let works: Vec<&str> = crate::work::Work::all().iter().map(|work| work.name()).collect();
        let subjects: Vec<&str> = crate::subject::Subject::all().iter().map(|s| s.name()).collect();
        for criterion in [&DRAFT, &S1].into_iter().flat_map(loopback) {
            for value in [&criterion.above, &criterion.below] {
                let (work, named): (&str, Vec<&str>) = match value {
                    Value::Of { work, subject, .. } | Value::Most { work, subject, .. } => {
                        (work, vec![subject])
                    }
                    Value::Best { work, subjects, .. } => (work, subjects.to_vec()),
                    Value::Given(_) => continue,
                };
                assert!(works.contains(&work), "{work}");
                assert!(named.iter().all(|name| subjects.contains(name)), "{named:?}");
            }
        }
    }

    #[test]
    fn goals_are_told_apart_by_their_text() {
        let texts: Vec<String> = transfers(&DRAFT, "x", 1.0).into_iter().map(|goal| goal.text).collect();
        for (number, text) in texts.iter().enumerate() {
            assert!(!texts[..number].contains(text), "{text}");
        }
    }
}
