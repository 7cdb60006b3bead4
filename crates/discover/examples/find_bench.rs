//! How long searches take among many synthetic agents, on one core, and how good the answers are.
//!
//!     cargo xtask find-bench                      (or: cargo run --release -p pilotage-discover --example find_bench)
//!     … -- --agents 190000 --json
//!
//! The agents, their words and the wishes are made from fixed numbers: two runs ask the same of the same.
#![allow(clippy::disallowed_methods, reason = "it measures time")]

mod support;

use std::time::{Duration, Instant};

use pilotage_discover::index::Limits;
use pilotage_discover::{Index, Query, Tag};
use support::labelled::{By, fill, load};
use support::{DOMAINS, FIELDS, NOW, Random, agent, dead, labelled, tag, vector, word};

/// A kind of wish, how many, and the goal for the slowest in a hundred.
struct Kind {
    name: &'static str,
    count: usize,
    goal_ms: Option<f64>,
    make: fn(&mut Random) -> Query,
}

const KINDS: &[Kind] = &[
    Kind { name: "tags: a field of 800", count: 4_000, goal_ms: Some(2.0), make: field },
    Kind { name: "tags: a whole domain of 40", count: 2_000, goal_ms: Some(2.0), make: domain },
    Kind { name: "text: 2 to 6 words", count: 2_000, goal_ms: Some(10.0), make: text },
    Kind { name: "text: the 16 most common words", count: 500, goal_ms: Some(10.0), make: common },
    Kind { name: "vectors: all agents", count: 500, goal_ms: Some(20.0), make: vectors },
    Kind { name: "tag and text and vector", count: 500, goal_ms: None, make: all },
];

fn some_tag(random: &mut Random) -> Tag {
    let leaf = tag(random.skewed(DOMAINS), random.skewed(FIELDS), 0);
    leaf.parse::<Tag>().expect("a tag").parent().expect("a field")
}

fn some_text(random: &mut Random) -> String {
    let (domain, field) = (random.skewed(DOMAINS), random.skewed(FIELDS));
    let words: Vec<String> = (0..2 + random.below(5)).map(|_| word(random, domain, field)).collect();
    words.join(" ")
}

fn query(tags: Vec<Tag>, text: String, vector: Option<pilotage_discover::embed::Embedding>) -> Query {
    Query::new(tags, text, vector, 10).expect("in bounds")
}

fn field(random: &mut Random) -> Query {
    query(vec![some_tag(random)], String::new(), None)
}

fn domain(random: &mut Random) -> Query {
    query(vec![some_tag(random).parent().expect("a domain")], String::new(), None)
}

fn text(random: &mut Random) -> Query {
    query(vec![], some_text(random), None)
}

fn common(_: &mut Random) -> Query {
    let words: Vec<String> = [
        "domain0", "field0", "field1", "field2", "leaf0", "leaf1", "leaf2", "leaf3", "leaf4", "leaf5",
        "leaf6", "leaf7",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain((0..4).map(|n| format!("all{n}")))
    .collect();
    query(vec![], words.join(" "), None)
}

fn vectors(random: &mut Random) -> Query {
    let centre = random.below(DOMAINS * FIELDS);
    query(vec![], String::new(), Some(vector(random, centre)))
}

fn all(random: &mut Random) -> Query {
    let centre = random.below(DOMAINS * FIELDS);
    let tag = some_tag(random).parent().expect("a domain");
    query(vec![tag], some_text(random), Some(vector(random, centre)))
}

struct Options {
    agents: u64,
    json: bool,
    /// Nothing but what is found when half of the agents are dead.
    only_dead: bool,
}

fn options() -> Options {
    let mut options = Options { agents: 190_000, json: false, only_dead: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => options.json = true,
            "--only-dead" => options.only_dead = true,
            "--agents" => {
                let count = arguments.next().and_then(|text| text.parse().ok());
                options.agents = count.expect("--agents N");
            }
            other => panic!("unknown option {other}: --agents N, --json, --only-dead"),
        }
    }
    options
}

fn main() {
    let options = options();
    let say = |text: String| {
        if !options.json {
            println!("{text}");
        }
    };
    if options.only_dead {
        let recall = dead::measure(options.agents.min(20_000), 400, 1);
        println!("{recall}");
        return;
    }
    let before = resident();
    let (mut index, build) = build(options.agents);
    let memory = resident().saturating_sub(before) as f64 / options.agents as f64;
    say(format!(
        "{} agents with vectors, put in at {:.0}/s (signatures not counted), {memory:.0} bytes each",
        index.len(),
        options.agents as f64 / build.as_secs_f64()
    ));
    let mut good = true;
    let mut rows = Vec::new();
    for kind in KINDS {
        let (met, text, row) = measure(&index, kind);
        good &= met;
        say(text);
        rows.push(row);
    }
    let set = load();
    fill(&mut index, &set);
    let mut precisions = Vec::new();
    for (with_tag, name) in [(true, "in other words, with a tag"), (false, "in like words, no tag")] {
        for by in [By::Words, By::Letters, By::Both] {
            let precision = labelled::measure(&index, &set, with_tag, by);
            let (one, three) = (precision.at_1(), precision.at_3());
            say(format!("labelled, {name:<27} by {by:<8?} precision@1 {one:.3}  @3 {three:.3}"));
            precisions
                .push(format!(r#"{{"kind":"{name}","by":"{by:?}","at_1":{one:.3},"at_3":{three:.3}}}"#));
        }
    }
    let recall = dead::measure(options.agents.min(20_000), 400, 1);
    good &= recall.p95() >= 0.95;
    say(format!("half dead ({} agents): {recall}", options.agents.min(20_000)));
    if options.json {
        println!(
            r#"{{"agents":{},"put_per_s":{:.0},"bytes_per_agent":{memory:.0},"searches":[{}],"labelled":[{}],"half_dead":{{"p95":{:.3},"mean":{:.3}}},"met":{good}}}"#,
            options.agents,
            options.agents as f64 / build.as_secs_f64(),
            rows.join(","),
            precisions.join(","),
            recall.p95(),
            recall.mean(),
        );
    }
    if !good {
        std::process::exit(1);
    }
}

/// An index of all agents, and the time that putting them in took.
fn build(agents: u64) -> (Index, Duration) {
    let mut index = Index::new(Limits { agents: agents as usize + 1_000 });
    let mut build = Duration::ZERO;
    for number in 0..agents {
        let agent = agent(number, true);
        let begun = Instant::now();
        index.put(&agent.card, Some(NOW)).expect("room");
        build += begun.elapsed();
    }
    (index, build)
}

/// Whether a kind of wish met its goal, for people, and as JSON.
fn measure(index: &Index, kind: &Kind) -> (bool, String, String) {
    let (all, core) = times(index, kind);
    let at = |times: &[Duration], share: f64| {
        times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3
    };
    let (p50, p99, max) = (at(&all, 0.5), at(&all, 0.99), at(&all, 1.0));
    let (core50, core99) = (at(&core, 0.5), at(&core, 0.99));
    let met = kind.goal_ms.is_none_or(|goal| p99 <= goal);
    let goal = kind
        .goal_ms
        .map_or("-".to_owned(), |goal| format!("{goal:.0} ms {}", if met { "met" } else { "MISSED" }));
    let text = format!(
        "{:<30} p50 {p50:7.3} ms  p99 {p99:7.3}  max {max:7.3};  on the core p50 {core50:7.3} p99 {core99:7.3}  goal {goal}",
        kind.name
    );
    let row = format!(
        r#"{{"kind":"{}","p50_ms":{p50:.3},"p99_ms":{p99:.3},"max_ms":{max:.3},"core_p50_ms":{core50:.3},"core_p99_ms":{core99:.3},"met":{met}}}"#,
        kind.name
    );
    (met, text, row)
}

/// How long each wish took, in rising order: by the clock, against which the goals are held, and by the time that the core
/// worked for us. On a machine that does other work as well, the difference tells how long that kept us off the core.
/// The first hundred wishes warm the caches and do not count.
fn times(index: &Index, kind: &Kind) -> (Vec<Duration>, Vec<Duration>) {
    let mut random = Random(99);
    let (mut all, mut core) = (Vec::new(), Vec::new());
    for number in 0..kind.count + 100 {
        let query = (kind.make)(&mut random);
        let three: [(Duration, Duration); 3] = std::array::from_fn(|_| {
            let (begun, used) = (Instant::now(), cpu());
            let found = index.search(&query, NOW);
            let took = (begun.elapsed(), cpu().saturating_sub(used));
            std::hint::black_box(&found);
            took
        });
        if number >= 100 {
            all.extend(three.iter().map(|took| took.0));
            core.extend(three.iter().map(|took| took.1));
        }
    }
    all.sort_unstable();
    core.sort_unstable();
    (all, core)
}

/// How long the core has worked for this thread.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Resident memory in bytes; 0 where /proc does not tell.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    pages * 4_096
}
