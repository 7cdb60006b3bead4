//! Scenarios about the beginning of a connection.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::lab::{Lab, Server, no_strangers};
use super::{Passed, content, require};
use crate::Failure;
use crate::proxy::{Proxy, Seen};

/// Bytes that each connection sends and gets back.
const BYTES: usize = 1024;
/// Connections under way at a time.
const AT_A_TIME: usize = 10;

/// One connection on a good link: keys in one round trip.
pub(super) fn plain(lab: &Lab<'_>) -> Result<Passed, Failure> {
    let server = lab.serve("server", "127.0.0.1:0")?;
    let proxy = Proxy::start(lab.setup(&server))?;
    lab.echo(&server, &proxy, &content(BYTES, lab.plan.seed))?;
    let seen = proxy.seen();
    let sights = (&seen.up.sights, &seen.down.sights);
    no_strangers(&seen)?;
    require((sights.0.pila, sights.1.pila) == (1, 1), || {
        format!(
            "{} and {} key exchange frames on a good link, expected 1 and 1",
            sights.0.pila, sights.1.pila
        )
    })?;
    let keys = sights.0.first_sealed.ok_or("the client sealed nothing")?;
    let trip = u128::from(lab.plan.up.delay_ms + lab.plan.down.delay_ms);
    // From 250 ms on a second PILA would have been sent; a busy machine may take some of that.
    require((trip..250).contains(&keys.as_millis()), || {
        format!("the client had keys after {} ms, one round trip takes {trip} ms", keys.as_millis())
    })?;
    Ok(Passed::because(format!("keys after one round trip of {trip} ms, 1 PILA each way, all else sealed"))
        .with_figure(keys.as_secs_f64() * 1e3, "ms to keys"))
}

/// Fresh nodes connect over a link that loses or corrupts; each has a proxy and a seed of its own.
pub(super) fn crowd(lab: &Lab<'_>) -> Result<Passed, Failure> {
    let server = lab.serve("server", "127.0.0.1:0")?;
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let work = || loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= lab.plan.connections {
            return;
        }
        // As text: errors do not go from thread to thread.
        let result = connect(lab, &server, number as u64).map_err(|error| format!("{number}: {error}"));
        results.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(result);
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(work);
        }
    });
    let results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let failures: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    if !failures.is_empty() {
        let some: Vec<&str> = failures.iter().take(5).map(|text| text.as_str()).collect();
        return Err(format!(
            "{} of {} connections failed: number {}",
            failures.len(),
            results.len(),
            some.join("; number ")
        )
        .into());
    }
    judge(lab, &results.into_iter().flatten().collect::<Vec<_>>())
}

fn connect(lab: &Lab<'_>, server: &Server, number: u64) -> Result<(Duration, Seen, u64), Failure> {
    let mut setup = lab.setup(server);
    setup.seed = lab.plan.seed.wrapping_mul(1000) + number;
    let proxy = Proxy::start(setup)?;
    let took = lab.echo(server, &proxy, &content(BYTES, number))?;
    Ok((took, proxy.seen(), number))
}

/// Whether the link was as bad as planned, and hit handshakes.
fn judge(lab: &Lab<'_>, done: &[(Duration, Seen, u64)]) -> Result<Passed, Failure> {
    let counts = || done.iter().flat_map(|(_, seen, _)| [seen.up.counts, seen.down.counts]);
    let bursts = lab.plan.up.loss.or(lab.plan.up.corruption).ok_or("a crowd without loss or corruption")?;
    let passed: u64 = counts().map(|count| count.offered).sum();
    let hit: u64 = counts().map(|count| count.lost + count.corrupted).sum();
    let share = hit as f64 * 100.0 / passed.max(1) as f64;
    require((share - f64::from(bursts.percent)).abs() <= 6.0, || format!("only {share:.1} % were hit"))?;
    let longest = counts().map(|count| count.longest_loss).max().unwrap_or_default();
    require(lab.plan.up.loss.is_none() || longest == u64::from(bursts.longest), || {
        format!("the longest burst had {longest} packets")
    })?;
    let again = done.iter().filter(|(_, seen, _)| seen.up.sights.pila > 1).count();
    require(again * 5 >= done.len(), || format!("only {again} key exchanges had to be repeated"))?;
    let slowest = done.iter().max_by_key(|(took, ..)| *took).map_or(0, |(.., number)| *number);
    let mut times: Vec<Duration> = done.iter().map(|(took, ..)| *took).collect();
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64();
    Ok(Passed::because(format!(
        "{} of {} connected; {hit} of {passed} packets hit ({share:.1} %); {again} key exchanges repeated; \
         process time p50 {:.1} s, p90 {:.1} s, slowest {:.1} s (number {slowest})",
        done.len(),
        done.len(),
        at(50),
        at(90),
        at(100)
    ))
    .with_figure(at(100), "s slowest"))
}

/// Only the first datagram of the client passes for a while: the server must not answer with more than it got.
pub(super) fn amplification(lab: &Lab<'_>) -> Result<Passed, Failure> {
    let server = lab.serve("server", "127.0.0.1:0")?;
    let proxy = Proxy::start(lab.setup(&server))?;
    let took = lab.echo(&server, &proxy, &content(BYTES, lab.plan.seed))?;
    let seen = proxy.seen();
    require(seen.gated >= 5, || format!("only {} datagrams of the client were stopped", seen.gated))?;
    require(seen.answers_at_gate >= 1, || "the server did not answer the first datagram".into())?;
    let excess = seen.excess_at_gate.unwrap_or_default();
    require(excess <= 0, || {
        format!("the server sent {excess} bytes more than it got, in {} datagrams", seen.answers_at_gate)
    })?;
    let gate = Duration::from_millis(u64::from(lab.plan.gate_ms.unwrap_or_default()));
    require(took >= gate, || "the connection ended before the gate opened".into())?;
    Ok(Passed::because(format!(
        "{} datagrams of the client stopped in {} s; the server answered the first with {} datagram(s) and \
         {} byte(s) less than it got; then connected",
        seen.gated,
        gate.as_secs(),
        seen.answers_at_gate,
        -excess
    ))
    .with_figure(excess as f64, "bytes beyond"))
}
