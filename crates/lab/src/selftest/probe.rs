//! Pings, floods and TCP streams between two namespaces.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::pump::make_real_time;
use crate::{Lab, LabError};

/// Socket buffers, in bytes; the kernel may give less.
const BUFFER: usize = 4 << 20;
/// Priority of the threads that measure: below the emulator, above everything else on a busy machine.
const PRIORITY: u8 = 20;

/// How long after the last packet the receiver waits for more.
const SILENCE: Duration = Duration::from_millis(700);
/// Shortest gap that is slept; shorter ones are made up by sending several packets in a row.
const NAP: Duration = Duration::from_micros(500);

pub(super) struct Pings {
    pub(super) median_ms: f64,
    pub(super) p95_ms: f64,
}

fn failed(stage: &str) -> impl Fn(std::io::Error) -> LabError + '_ {
    move |error| LabError::failed(stage, error)
}

/// A socket in a namespace, with room for what comes while its reader sleeps.
fn bound(lab: &Lab, index: usize) -> Result<(UdpSocket, SocketAddr), LabError> {
    let namespace = lab.namespace(index);
    let make = || -> std::io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_recv_buffer_size(BUFFER)?;
        socket.bind(&SocketAddr::from((namespace.address(), 0)).into())?;
        Ok(socket.into())
    };
    let socket = namespace.run(make)?.map_err(failed("UDP socket"))?;
    let address = socket.local_addr().map_err(failed("UDP socket"))?;
    Ok((socket, address))
}

/// Round trips of small packets, one after the other, from the first namespace to the second.
pub(super) fn ping(lab: &Lab, count: u32, gap: Duration) -> Result<Pings, LabError> {
    let ((near, _), (far, to)) = (bound(lab, 0)?, bound(lab, 1)?);
    let over = AtomicBool::new(false);
    far.set_read_timeout(Some(Duration::from_millis(50))).map_err(failed("echo"))?;
    near.set_read_timeout(Some(Duration::from_secs(3))).map_err(failed("ping"))?;
    let mut times = std::thread::scope(|scope| {
        scope.spawn(|| {
            make_real_time(PRIORITY);
            let mut buffer = [0; 64];
            while !over.load(Ordering::Relaxed) {
                if let Ok((len, from)) = far.recv_from(&mut buffer) {
                    // A lost answer is seen by the other side.
                    let _ = far.send_to(&buffer[..len], from);
                }
            }
        });
        let pings = scope.spawn(|| {
            make_real_time(PRIORITY);
            (0..count).map(|number| one_ping(&near, to, number, gap)).collect::<Result<Vec<_>, _>>()
        });
        let times = pings.join();
        over.store(true, Ordering::Relaxed);
        times.unwrap_or_else(|_| Err(LabError::failed("ping", "the thread panicked")))
    })?;
    times.sort_unstable();
    let ms = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    Ok(Pings { median_ms: ms(0.5), p95_ms: ms(0.95) })
}

fn one_ping(socket: &UdpSocket, to: SocketAddr, number: u32, gap: Duration) -> Result<Duration, LabError> {
    let sent = Instant::now();
    socket.send_to(&number.to_be_bytes(), to).map_err(failed("ping"))?;
    let mut answer = [0; 64];
    loop {
        let len = socket.recv(&mut answer).map_err(failed("ping: no answer"))?;
        if answer[..len] == number.to_be_bytes() {
            break;
        }
    }
    let time = sent.elapsed();
    std::thread::sleep(gap);
    Ok(time)
}

/// What a flood's receiver saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) packets: u64,
    /// Packets that came after one with a higher number.
    pub(super) overtaken: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Seen {
    /// Rate of IP packets of this size between the first and the last.
    pub(super) fn mbit(&self, size: usize) -> f64 {
        let (Some(first), Some(last)) = (self.first, self.last) else { return 0.0 };
        let bits = self.packets.saturating_sub(1) as f64 * size as f64 * 8.0;
        bits / last.duration_since(first).as_secs_f64().max(1e-9) / 1e6
    }
}

/// Numbered UDP packets at an even pace from the first namespace to the second.
pub(super) fn flood(lab: &Lab, packets: u64, payload: usize, per_second: f64) -> Result<Seen, LabError> {
    let ((near, _), (far, to)) = (bound(lab, 0)?, bound(lab, 1)?);
    near.connect(to).map_err(failed("flood"))?;
    far.set_read_timeout(Some(SILENCE)).map_err(failed("flood"))?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| count(&far));
        let sender = scope.spawn(|| send_evenly(&near, packets, payload, per_second));
        let seen = receiver.join().map_err(|_| LabError::failed("flood", "the receiver panicked"));
        sender
            .join()
            .map_err(|_| LabError::failed("flood", "the sender panicked"))?
            .map_err(failed("flood"))?;
        seen
    })
}

fn send_evenly(socket: &UdpSocket, packets: u64, payload: usize, per_second: f64) -> std::io::Result<()> {
    make_real_time(PRIORITY);
    let begun = Instant::now();
    let mut packet = vec![0; payload.max(8)];
    let mut sent = 0_u64;
    while sent < packets {
        let due = ((begun.elapsed().as_secs_f64() * per_second) as u64 + 1).min(packets);
        while sent < due {
            packet[..8].copy_from_slice(&sent.to_be_bytes());
            socket.send(&packet)?;
            sent += 1;
        }
        std::thread::sleep(NAP);
    }
    Ok(())
}

fn count(socket: &UdpSocket) -> Seen {
    make_real_time(PRIORITY);
    let mut seen = Seen::default();
    let mut highest = 0_u64;
    let mut buffer = [0; 2_048];
    while let Ok(len) = socket.recv(&mut buffer) {
        let Some(Ok(number)) = buffer[..len].get(..8).map(<[u8; 8]>::try_from) else { continue };
        let number = u64::from_be_bytes(number);
        seen.overtaken += u64::from(number < highest);
        highest = highest.max(number);
        let now = Instant::now();
        seen.first.get_or_insert(now);
        seen.last = Some(now);
        seen.packets += 1;
    }
    seen
}

/// TCP payload in Mbit/s that arrives in the second half of this time.
pub(super) fn tcp(lab: &Lab, time: Duration) -> Result<f64, LabError> {
    let (near, far) = (lab.namespace(0), lab.namespace(1));
    let listener = far.run(|| TcpListener::bind((far.address(), 0)))?.map_err(failed("TCP"))?;
    let to = listener.local_addr().map_err(failed("TCP"))?;
    let mut sender = near.run(|| TcpStream::connect(to))?.map_err(failed("TCP"))?;
    let (receiver, _) = listener.accept().map_err(failed("TCP"))?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            make_real_time(PRIORITY);
            let chunk = vec![0; 256 << 10];
            while !over.load(Ordering::Relaxed) {
                if sender.write_all(&chunk).is_err() {
                    return;
                }
            }
        });
        let reader = scope.spawn(|| {
            make_real_time(PRIORITY);
            drain(&receiver, time)
        });
        let mbit = reader.join().unwrap_or_else(|_| Err(LabError::failed("TCP", "the receiver panicked")));
        over.store(true, Ordering::Relaxed);
        // The sender may wait for room: the end of the connection wakes it.
        let _ = receiver.shutdown(std::net::Shutdown::Both);
        mbit
    })
}

/// Mbit/s of the second half, from the first read in it to the last.
fn drain(mut receiver: &TcpStream, time: Duration) -> Result<f64, LabError> {
    receiver.set_read_timeout(Some(Duration::from_millis(200))).map_err(failed("TCP"))?;
    let begun = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    let (mut bytes, mut from, mut last) = (0_u64, None, begun);
    while begun.elapsed() < time {
        match receiver.read(&mut buffer) {
            Ok(len) if begun.elapsed() >= time / 2 => {
                last = Instant::now();
                // What the first read takes has come before it.
                if from.is_none() {
                    from = Some(last);
                } else {
                    bytes += len as u64;
                }
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(failed("TCP")(error)),
        }
    }
    let seconds = last.duration_since(from.unwrap_or(begun)).as_secs_f64();
    Ok(bytes as f64 * 8.0 / seconds.max(1e-9) / 1e6)
}
