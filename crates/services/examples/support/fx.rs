//! The work of the example `fx`, shared with the test that runs it small.

#![allow(dead_code, unreachable_pub, reason = "each user takes a part")]

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilotage::{Node, Peer, ProtoConfig};
use pilotage_discover::evidence::Book;
use pilotage_discover::{Declaration, Query, Skill, Tag};
use pilotage_services::find::{self, CallOptions, Handler, HandlerError, Host, Offer, Provider, Reach};
use pilotage_services::server::{Services, serve};

/// What is asked for.
const TAG: &str = "finance.fx.rate";

/// How the run is made.
pub struct Options {
    /// Calls; the provider that serves is killed after a third of them.
    pub calls: usize,
    /// How long one attempt may take.
    pub patience: Duration,
    /// A process that runs [`provide`] with the summary that is given here.
    pub process: fn(&str) -> Command,
}

/// What came of it.
pub struct Report {
    pub calls: usize,
    pub succeeded: usize,
    pub wrong: usize,
    /// Calls that another provider served after one had failed.
    pub rerouted: usize,
    /// Why, as the first of them was told.
    pub reason: String,
    pub find: Duration,
    pub direct: Times,
    pub before: Times,
    pub at_death: Duration,
    pub after: Times,
}

/// The middle and the slow end of many.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    pub p50: Duration,
    pub p99: Duration,
}

impl Times {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        let at = |share: f64| {
            all.get(((all.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or_default()
        };
        Self { p50: at(0.5), p99: at(0.99) }
    }
}

/// A provider in a process of its own; killed when dropped.
struct Place {
    process: Child,
    peer: Peer,
}

impl Drop for Place {
    fn drop(&mut self) {
        // SIGKILL: it tells nobody.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Rates against the euro, of one invented moment.
fn rate(tag: &str, body: &[u8]) -> Result<Vec<u8>, HandlerError> {
    let unit = |name: &str| match name {
        "EUR" => Some(1.0),
        "USD" => Some(1.08),
        "JPY" => Some(162.5),
        _ => None,
    };
    let text = String::from_utf8_lossy(body);
    let pair = text.split_once('/').and_then(|(a, b)| Some(unit(b)? / unit(a)?));
    let rate = pair.ok_or_else(|| HandlerError::NotBegun(format!("{tag}: no such pair")))?;
    Ok(format!(r#"{{"pair":"{text}","rate":{rate:.4}}}"#).into_bytes())
}

fn node() -> Result<Node, Box<dyn std::error::Error>> {
    let any: SocketAddr = "127.0.0.1:0".parse()?;
    let config = ProtoConfig { connect_timeout: Duration::from_secs(2), ..ProtoConfig::default() };
    Ok(Node::builder().bind(any).config(config).start()?)
}

/// A provider: says how it is reached, and serves until its standard input ends.
pub fn provide(summary: &str) -> Result<(), Box<dyn std::error::Error>> {
    let node = node()?;
    let tag: Tag = TAG.parse()?;
    let declaration = Declaration::new(vec![Skill { tag: tag.clone(), idempotent: true }], summary)?;
    let handler: Arc<dyn Handler> = Arc::new(rate);
    let offer =
        Offer { declaration, descriptor: None, life: 600, endpoints: true, handlers: vec![(tag, handler)] };
    let services = Services { find: Some(Host::new(Some(offer), None)?), ..Services::default() };
    let _serving = serve(&node, &services, Arc::new(|_| {}))?;
    println!("\npeer {}@{}", node.address(), node.local_addr());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    node.close();
    Ok(())
}

fn provider(options: &Options, summary: &str) -> Result<Place, Box<dyn std::error::Error>> {
    let mut process = (options.process)(summary).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let said = process.stdout.take().ok_or("no standard output")?;
    for line in BufReader::new(said).lines() {
        if let Some(peer) = line?.strip_prefix("peer ") {
            return Ok(Place { process, peer: peer.parse()? });
        }
    }
    let _ = process.kill();
    Err("a provider ended before it was ready".into())
}

/// Runs it.
pub fn run(options: &Options) -> Result<Report, Box<dyn std::error::Error>> {
    let mut places = vec![
        provider(options, "Exchange rates of EUR, USD and JPY")?,
        provider(options, "Currency conversion, second source")?,
        provider(options, "Foreign exchange quotes, third source")?,
    ];
    let asker = node()?;
    let peers: Vec<Peer> = places.iter().map(|place| place.peer.clone()).collect();
    let reach: Arc<dyn Reach> = Arc::new(asker.clone());
    let query = Query::from_words([&*format!("cap:{TAG}"), "exchange rate EUR/USD"], 8)?;
    let mut book = Book::default();
    let begun = Instant::now();
    let findings = find::find(&reach, &peers, &query, &mut book, Duration::from_secs(30));
    let find = begun.elapsed();
    if findings.providers.len() != 3 {
        return Err(
            format!("{} of 3 providers were found: {:?}", findings.providers.len(), findings.asked).into()
        );
    }
    let direct = direct(&reach, &findings.providers[0], options)?;
    let mut report = Report {
        calls: options.calls,
        succeeded: 0,
        wrong: 0,
        rerouted: 0,
        reason: String::new(),
        find,
        direct,
        before: Times::default(),
        at_death: Duration::ZERO,
        after: Times::default(),
    };
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let death = options.calls / 3;
    let mut serving = None;
    for number in 0..options.calls {
        if number == death {
            let dead = serving.take().unwrap_or(peers[0].clone());
            places.retain(|place| place.peer != dead);
        }
        let begun = Instant::now();
        let done = one(&reach, &findings.providers, options, &mut book, &mut report);
        let took = begun.elapsed();
        serving = done.or(serving);
        match number.cmp(&death) {
            std::cmp::Ordering::Less => before.push(took),
            std::cmp::Ordering::Equal => report.at_death = took,
            std::cmp::Ordering::Greater => after.push(took),
        }
    }
    (report.before, report.after) = (Times::of(before), Times::of(after));
    asker.close();
    Ok(report)
}

/// One call by capability; who served it. The order is that of the evidence so far, as a new search would give it.
fn one(
    reach: &Arc<dyn Reach>,
    providers: &[Provider],
    options: &Options,
    book: &mut Book,
    report: &mut Report,
) -> Option<Peer> {
    let tag: Tag = TAG.parse().ok()?;
    let mut ranked = providers.to_vec();
    let now = find::unix_seconds();
    for provider in &mut ranked {
        provider.hit.why.evidence = book.evidence(&provider.hit.card.card().key, now);
    }
    ranked.sort_by(|a, b| b.hit.why.score().total_cmp(&a.hit.why.score()));
    let options = CallOptions { attempts: 3, time: options.patience, ..CallOptions::default() };
    let served = find::call(reach, &ranked, &tag, b"EUR/USD", &options, book, &mut |_| {}).ok()?;
    report.succeeded += 1;
    report.wrong += usize::from(served.result != br#"{"pair":"EUR/USD","rate":1.0800}"#);
    if let Some(first) = served.attempts.first() {
        report.rerouted += 1;
        if report.reason.is_empty() {
            report.reason = first.reason.clone();
        }
    }
    Some(ranked[served.by].peer.clone())
}

/// The same call at one provider, without choosing and without evidence.
fn direct(
    reach: &Arc<dyn Reach>,
    provider: &Provider,
    options: &Options,
) -> Result<Times, Box<dyn std::error::Error>> {
    let tag: Tag = TAG.parse()?;
    let call = CallOptions { attempts: 1, time: options.patience, ..CallOptions::default() };
    let mut times = Vec::new();
    for _ in 0..(options.calls / 3).max(3) {
        let begun = Instant::now();
        let one = std::slice::from_ref(provider);
        find::call(reach, one, &tag, b"EUR/USD", &call, &mut Book::default(), &mut |_| {})?;
        times.push(begun.elapsed());
    }
    Ok(Times::of(times))
}

impl Report {
    /// One line of JSON.
    pub fn json(&self) -> String {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        format!(
            r#"{{"calls":{},"succeeded":{},"wrong":{},"rerouted":{},"find_ms":{:.3},"direct_p50_ms":{:.3},"direct_p99_ms":{:.3},"before_p50_ms":{:.3},"before_p99_ms":{:.3},"at_death_ms":{:.3},"after_p50_ms":{:.3},"after_p99_ms":{:.3}}}"#,
            self.calls,
            self.succeeded,
            self.wrong,
            self.rerouted,
            ms(self.find),
            ms(self.direct.p50),
            ms(self.direct.p99),
            ms(self.before.p50),
            ms(self.before.p99),
            ms(self.at_death),
            ms(self.after.p50),
            ms(self.after.p99),
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
        writeln!(
            f,
            "{} calls, {} succeeded ({:.1} %), {} wrong, {} re-routed",
            self.calls,
            self.succeeded,
            100.0 * self.succeeded as f64 / self.calls.max(1) as f64,
            self.wrong,
            self.rerouted
        )?;
        writeln!(f, "found three providers in {}", ms(self.find))?;
        writeln!(f, "straight to one provider   p50 {}  p99 {}", ms(self.direct.p50), ms(self.direct.p99))?;
        writeln!(f, "by capability, before      p50 {}  p99 {}", ms(self.before.p50), ms(self.before.p99))?;
        writeln!(f, "the call at the death      {}  ({})", ms(self.at_death), self.reason)?;
        writeln!(f, "by capability, after       p50 {}  p99 {}", ms(self.after.p50), ms(self.after.p99))?;
        let added = self.at_death.saturating_sub(self.before.p50);
        write!(f, "added by the death: {} to one call", ms(added))
    }
}
