//! Cross traffic: a transfer and a kernel TCP flow share the emulated link.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::lab::Lab;
use super::netns::Namespaces;
use super::{Outcome, Passed, require};
use crate::Failure;
use crate::process::json_lines;
use crate::proxy::Proxy;

/// What the TCP flow must have moved before the transfer begins: it is out of its slow start then.
const HEAD_START: u64 = 1 << 20;
/// How often the sink says how much came.
const TICK: Duration = Duration::from_millis(50);
/// A share of the bytes outside of this, in percent, is starvation of one of them: a failure.
const TOLERATED: std::ops::RangeInclusive<f64> = 25.0..=75.0;
/// The share that we want. Missing it is said, not failed: a paced flow meets a full short queue more often than
/// one that sends when its own packets leave it.
const GOAL: std::ops::RangeInclusive<f64> = 35.0..=65.0;
/// The kernel's congestion control of the flow.
const CONTROL: &[u8] = b"cubic";
/// Content of the flow.
const FLOW: &[u8] = b"interop tcp flow";

pub(super) fn traffic(lab: &Lab<'_>) -> Result<Outcome, Failure> {
    let namespaces = match Namespaces::make()? {
        Ok(namespaces) => namespaces,
        Err(obstacle) => return Ok(Outcome::Skipped(obstacle)),
    };
    let server = lab.serve("server", "127.0.0.1:0")?;
    let mut setup = lab.setup(&server);
    setup.wire = Some(namespaces.wire()?);
    let proxy = Proxy::start(setup)?;
    let flow = namespaces.start_flow(&lab.scratch.folder("tcp")?)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while flow.delivered()? < HEAD_START {
        require(Instant::now() < deadline, || {
            format!("TCP moved only {:?} bytes in 20 s", flow.delivered())
        })?;
        std::thread::sleep(TICK);
    }
    let (before, started) = (flow.delivered()?, Instant::now());
    let output = lab.send(&server, &proxy, &[])?;
    let (tcp, took) = ((flow.delivered()? - before) as f64, started.elapsed().as_secs_f64());
    let ours = lab.plan.files.iter().sum::<usize>() as f64;
    let share = ours * 100.0 / (ours + tcp);
    let counts = proxy.seen().up.counts;
    let used = (ours + tcp) * 8.0 / took / 1e6;
    let events = json_lines(&String::from_utf8_lossy(&output));
    let again: u64 =
        events.iter().filter_map(|event| event["stats"]["segments_retransmitted"].as_u64()).sum();
    let verdict = if GOAL.contains(&share) { "met" } else { "MISSED" };
    let said = format!(
        "goal of 35 to 65 % {verdict}; against kernel TCP (CUBIC) through the same queue: {:.2} and {:.2} Mbit/s, together {used:.2}; \
         {} packets lost in the queue, {again} segments of ours sent again",
        ours * 8.0 / took / 1e6,
        tcp * 8.0 / took / 1e6,
        counts.queue_full
    );
    require(TOLERATED.contains(&share), || format!("share {share:.0} %: {said}"))?;
    require((8.0..=10.0).contains(&used), || format!("the link was not full: {said}"))?;
    Ok(Outcome::Passed(Passed::because(said).with_figure(share, "% of the bytes")))
}

/// The sink's process: compares what comes and prints the count.
pub(crate) fn tcp_sink(address: &str) -> Result<(), Failure> {
    let listener = TcpListener::bind(address)?;
    println!("0");
    let (mut stream, _) = listener.accept()?;
    let mut expected = blake3::Hasher::new().update(FLOW).finalize_xof();
    let (mut buffer, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let (mut count, mut said) = (0_u64, Instant::now());
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        expected.fill(&mut right[..len]);
        require(buffer[..len] == right[..len], || format!("wrong bytes after {count}"))?;
        count += len as u64;
        if said.elapsed() >= TICK {
            said = Instant::now();
            println!("{count}");
        }
    }
}

/// The source's process: sends until it is stopped.
pub(crate) fn tcp_source(address: &str) -> Result<(), Failure> {
    let mut stream = TcpStream::connect(address)?;
    socket2::SockRef::from(&stream).set_tcp_congestion(CONTROL).map_err(|error| format!("CUBIC: {error}"))?;
    let mut bytes = blake3::Hasher::new().update(FLOW).finalize_xof();
    let mut buffer = vec![0; 1 << 16];
    loop {
        bytes.fill(&mut buffer);
        stream.write_all(&buffer)?;
    }
}
