//! Scenarios that move bytes over a link with one trouble.

use super::lab::{Lab, Moved};
use super::{Passed, require};
use crate::Failure;

/// Frames that make a session count as used.
const USED: u64 = 10;

pub(super) fn plain(lab: &Lab<'_>) -> Result<Passed, Failure> {
    let moved = lab.upload(&["--parallel", "1"])?;
    require(moved.seen.clients == 1 && moved.seen.up.sights.keys.len() == 1, || {
        format!("{} sockets and {} keys instead of one", moved.seen.clients, moved.seen.up.sights.keys.len())
    })?;
    let sizes: Vec<String> = lab.plan.files.iter().map(|len| (len >> 20).to_string()).collect();
    Ok(rated(&moved, format!("{} MiB in one tunnel", sizes.join(" + "))))
}

pub(super) fn long_rtt(lab: &Lab<'_>) -> Result<Passed, Failure> {
    let moved = lab.upload(&[])?;
    let trip = u64::from(lab.plan.up.delay_ms + lab.plan.down.delay_ms);
    let keys = moved.seen.up.sights.first_sealed.unwrap_or_default();
    require(keys.as_millis() >= u128::from(trip), || "keys in less than a round trip".into())?;
    // Asking at once, after 0.25, 0.5 and 1 s is part of the protocol: more would not wait for the answer.
    let asked = moved.seen.up.sights.pila;
    require(asked <= 5, || format!("{asked} key exchange frames for one tunnel"))?;
    let wasted = moved.counter("segments_retransmitted");
    let seconds = moved.seen.lasted.as_secs_f64();
    Ok(Passed::because(format!(
        "1 MiB over {trip} ms of round trip; keys after {:.2} s; {} packets lost in the queue, {wasted} segments \
         sent again",
        keys.as_secs_f64(),
        moved.seen.up.counts.queue_full
    ))
    .with_figure(seconds, "s"))
}

pub(super) fn multiplexing(lab: &Lab<'_>) -> Result<Passed, Failure> {
    let moved = lab.upload(&["--parallel", "32"])?;
    let keys = moved.seen.up.sights.keys.len();
    require(moved.seen.clients == 1 && keys == 1, || {
        format!("{} sockets and {keys} keys instead of one tunnel", moved.seen.clients)
    })?;
    let count = moved.events.iter().filter(|event| event["event"] == "sent").count();
    require(count == lab.plan.files.len(), || format!("{count} files reported"))?;
    let rate = count as f64 / moved.seen.lasted.as_secs_f64().max(1e-3);
    Ok(Passed::because(format!("{count} files of 32 bytes, a stream each, 32 at a time, all compared"))
        .with_figure(rate, "streams/s"))
}

pub(super) fn blackhole(lab: &Lab<'_>) -> Result<Passed, Failure> {
    let moved = lab.upload(&[])?;
    let counts = moved.seen.up.counts;
    let (on, off) = lab.plan.up.blackhole.unwrap_or_default();
    require(counts.blackholes_felt >= 1, || "no packet met a dead time".into())?;
    require(moved.seen.lasted.as_millis() >= u128::from(on + off), || {
        format!("it ended after {:.1} s, before the link came back", moved.seen.lasted.as_secs_f64())
    })?;
    let felt = format!("{} dead time(s), {} packets vanished", counts.blackholes_felt, counts.blackholed);
    Ok(rated(&moved, felt))
}

pub(super) fn key_update(lab: &Lab<'_>) -> Result<Passed, Failure> {
    // The draft's keys: those of S1 are renewed within their session, and show nothing.
    let moved = lab.upload(&["--secure-mode", "draft", "--rekey-after", "1s"])?;
    let (up, down) = (&moved.seen.up.sights, &moved.seen.down.sights);
    let sessions = (up.sessions(USED), down.sessions(USED));
    require(up.keys.len() >= 3, || format!("the client showed only {} keys", up.keys.len()))?;
    require(sessions.0 >= 3 && sessions.1 >= 3, || {
        format!("only {} and {} sessions were used", sessions.0, sessions.1)
    })?;
    let said = format!(
        "{} keys of the client; {} and {} sessions carried at least {USED} frames",
        up.keys.len(),
        sessions.0,
        sessions.1
    );
    Ok(rated(&moved, said))
}

/// Loss or corruption all the time.
pub(super) fn faulty(lab: &Lab<'_>) -> Result<Passed, Failure> {
    let moved = lab.upload(&[])?;
    let (up, down) = (moved.seen.up.counts, moved.seen.down.counts);
    let hit = up.lost + up.corrupted;
    let share = hit as f64 * 100.0 / up.offered.max(1) as f64;
    require(hit >= 10 && (0.8..=4.0).contains(&share), || {
        format!("{hit} of {} packets were hit ({share:.2} %)", up.offered)
    })?;
    require(lab.plan.up.loss.is_none() || up.longest_loss >= 2, || "there was no burst".into())?;
    let said = format!(
        "{hit} of {} packets there and {} of {} back {}; {} segments sent again",
        up.offered,
        down.lost + down.corrupted,
        down.offered,
        if lab.plan.up.loss.is_some() { "lost" } else { "corrupted" },
        moved.counter("segments_retransmitted")
    );
    Ok(rated(&moved, said))
}

pub(super) fn ipv6(lab: &Lab<'_>) -> Result<Passed, Failure> {
    let server = lab.serve("server", "[::1]:0")?;
    require(server.endpoint.is_ipv6(), || format!("the server listens on {}", server.endpoint))?;
    let moved = lab.upload_to(server, &["--bind", "[::1]:0"])?;
    require(moved.seen.sources.iter().all(std::net::SocketAddr::is_ipv6), || "a source is not IPv6".into())?;
    Ok(rated(&moved, "both ends bound to ::1".into()))
}

pub(super) fn mtu_drop(lab: &Lab<'_>) -> Result<Passed, Failure> {
    let moved = lab.upload(&[])?;
    let counts = moved.seen.up.counts;
    let (at, mtu) = lab.plan.up.mtu_later.unwrap_or_default();
    let narrow = mtu - crate::proxy::link::IP_OVERHEAD;
    require(counts.largest_before > narrow, || {
        format!("datagrams had at most {} bytes before: nothing to lose", counts.largest_before)
    })?;
    require(counts.too_large >= 1, || "no datagram was too large".into())?;
    require(moved.seen.lasted.as_millis() > u128::from(at) + 500, || {
        "it ended before the path narrowed".into()
    })?;
    require((1000..=narrow).contains(&counts.largest_after), || {
        format!("datagrams of {} bytes afterwards", counts.largest_after)
    })?;
    let said = format!(
        "datagrams up to {} bytes, after the drop up to {}; {} too large ones vanished",
        counts.largest_before, counts.largest_after, counts.too_large
    );
    Ok(rated(&moved, said))
}

/// With the transfer's rate.
pub(super) fn rated(moved: &Moved, reason: String) -> Passed {
    Passed::because(reason).with_figure(moved.goodput(), "Mbit/s")
}
