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
/// Those of them whose controller reacts to loss alone, and ours.
const LOSS_PEERS: &[&str] =
    &["tcp-cubic", "tls-cubic", "quinn-cubic", "quinn-default-cubic", "s2n-cubic", "s2n-default-cubic"];
const OUR_LOSS: &[&str] = &["pilotage-newreno", "pilotage-cubic"];
/// Our default controller on links.
const OURS: &str = "pilotage-bbr";

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

/// All goals, in order.
pub(super) fn all() -> Vec<Criterion> {
    let mut all = bulk();
    all.extend(requests());
    all.extend(contacts());
    for (link, margin) in LINKS {
        all.extend(transfers(link, margin));
    }
    all.extend(fetches());
    all.extend(fairness());
    all.extend(memory());
    all
}

fn bulk() -> Vec<Criterion> {
    let ours = |metric| of("bulk-1", "pilotage", metric);
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
        goal("1", "100 streams against one", of("bulk-100", "pilotage", rate), ours(rate), AtLeast(0.9)),
        goal(
            "2",
            "bulk, 1 stream, large datagrams: goodput against TLS over TCP",
            peer("pilotage-large", rate),
            peer("tls", rate),
            AtLeast(0.9),
        ),
    ]
}

fn requests() -> Vec<Criterion> {
    let (one, two, many) = ("request-1-core", "request-1", "request-64");
    let (p50, p99, rate, cpu) = ("p50_us", "p99_us", "requests_per_s", "cpu_us_per_request");
    let ours = |work, metric| of(work, "pilotage", metric);
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

fn contacts() -> Vec<Criterion> {
    let ours = || of("cold", "pilotage", "p50_us");
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
        goal(
            "4",
            "new connection in a warm tunnel and first reply against an established round trip (draft mode)",
            of("warm", "pilotage", "to_established_ratio"),
            Value::Given(1.0),
            AtMost(2.1),
        ),
    ]
}

fn transfers(link: &str, margin: f64) -> Vec<Criterion> {
    let (cold, long) = (format!("link-{link}"), format!("link-{link}-long"));
    let rate = "goodput_mbps";
    let mut goals = Vec::new();
    for (work, name) in [(&cold, "cold transfer"), (&long, "longer transfer")] {
        goals.push(goal(
            "5",
            format!("{link}, {name}: goodput against the best peer"),
            of(work, OURS, rate),
            highest(work, LINK_PEERS, rate),
            AtLeast(margin),
        ));
        goals.push(goal(
            "5",
            format!("{link}, {name}: bytes on the wire per byte of payload"),
            of(work, OURS, "wire_ratio"),
            Value::Given(1.0),
            AtMost(1.12),
        ));
        goals.push(goal(
            "5",
            format!("{link}, {name}: AIMD or CUBIC against the best peer with a loss-based controller"),
            highest(work, OUR_LOSS, rate),
            highest(work, LOSS_PEERS, rate),
            AtLeast(1.0),
        ));
    }
    goals.push(goal(
        "5",
        format!("{link}, longer transfer: goodput against the rate of the link"),
        of(&long, OURS, "of_link_ratio"),
        Value::Given(1.0),
        AtLeast(0.92),
    ));
    goals
}

fn fetches() -> Vec<Criterion> {
    const BEST_QUINN: &[&str] = &["quinn-bbr", "quinn-cubic"];
    let mut goals = Vec::new();
    for (way, name) in [("kept", "on kept connections"), ("fresh", "on new connections")] {
        let ours = |metric| of(&format!("fetch-20x64k-{way}"), OURS, metric);
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

fn fairness() -> Vec<Criterion> {
    let mut goals = Vec::new();
    for ours in [OURS, "pilotage-cubic", "pilotage-newreno"] {
        let jain = of("share-8-own", ours, "jain");
        let text = format!("8 own flows of {ours}: Jain index");
        goals.push(goal("6", text, jain, Value::Given(1.0), AtLeast(0.95)));
    }
    for ours in OUR_LOSS {
        let share = of("share-against-tcp-cubic", ours, "share_ratio");
        let text = format!("share of {ours} against one TCP cubic flow");
        goals.push(goal("6", text, share, Value::Given(1.0), Between(0.35, 0.65)));
    }
    let added = |subject| of("added-delay", subject, "added_mean_ms");
    let text = "delay that a transfer adds to a ping, mean, against TCP cubic";
    goals.push(goal("6", text, added(OURS), added("tcp-cubic"), AtMost(1.0)));
    goals
}

fn memory() -> Vec<Criterion> {
    let most = |work: &str| Value::Most { work: work.to_owned(), subject: "pilotage", metrics: MEMORY };
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
        for criterion in bulk().into_iter().chain(requests()).chain(contacts()).chain(memory()) {
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
        let texts: Vec<String> = transfers("x", 1.0).into_iter().map(|goal| goal.text).collect();
        for (number, text) in texts.iter().enumerate() {
            assert!(!texts[..number].contains(text), "{text}");
        }
    }
}
