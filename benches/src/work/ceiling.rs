//! The raw encrypted UDP loop: what this machine can do at all with one core per side.
//!
//! Datagrams of the subject's size, as many to a system call as segmentation offload takes. The sender copies payload
//! into the send buffer and seals it there; the receiver opens it in the receive buffer and copies it out. Beyond that
//! there is a fixed window, kept by the receiver's count of bytes, and nothing else: no streams, no timers, no repair of
//! losses (a lost datagram fails the run), no interface for an application.
//!
//! ```text
//! data     u64 number | u32 length | sealed payload | tag 16      (the first 12 bytes are authenticated)
//! credit   u64 bytes received so far | sealed nothing | tag 16
//! ```

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::sync::PoisonError;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};

use super::Outcome;
use super::bulk::{outcome, payload, touched};
use crate::Failure;
use crate::control::{Control, Left};
use crate::measure::Stopwatch;
use crate::settings::Options;
use crate::transport::{Announce, ETHERNET_PAYLOAD, SOCKET_BUFFER, Setup, local_for, udp};

/// Bytes before the sealed payload.
const HEADER: usize = 12;
/// Bytes of the tag behind it.
const TAG: usize = 16;
/// Bytes of a credit: the count and a tag.
const CREDIT: usize = 8 + TAG;
/// Bytes in flight: below what the receive buffer holds with the kernel's overhead.
const WINDOW: u64 = 1 << 20;
/// The receiver tells its count after so many bytes.
const CREDIT_EVERY: u64 = WINDOW / 4;
/// Most bytes to one system call: the largest UDP payload over IPv4.
const BATCH: usize = 65_507;
/// Silence after which a datagram counts as lost.
const SILENCE: Duration = Duration::from_secs(5);

/// A key that both sides know. Numbers never repeat within a run, and no key outlives one.
fn key(direction: u8) -> Result<LessSafeKey, Failure> {
    let key = UnboundKey::new(&AES_256_GCM, &[direction; 32]).map_err(|_| "ceiling: key")?;
    Ok(LessSafeKey::new(key))
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// A blocking socket with offload.
struct Wire {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Wire {
    fn bind(addr: SocketAddr) -> Result<Self, Failure> {
        let socket = udp::socket(addr, Some(SOCKET_BUFFER))?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // The state made it non-blocking.
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(SILENCE))?;
        Ok(Self { socket, state })
    }

    fn send(&self, destination: SocketAddr, contents: &[u8], segment: usize) -> io::Result<()> {
        let segment_size = (contents.len() > segment).then_some(segment);
        let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
        self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
    }

    /// One call; the datagrams lie in `buffer` one after the other, `stride` bytes apart.
    fn receive(&self, buffer: &mut [u8]) -> Result<RecvMeta, Failure> {
        let mut meta = [RecvMeta::default()];
        let mut slots = [IoSliceMut::new(buffer)];
        let socket = UdpSockRef::from(&self.socket);
        self.state
            .recv(socket, &mut slots, &mut meta)
            .map_err(|e| format!("ceiling: nothing came for {SILENCE:?}, a datagram was lost ({e})"))?;
        Ok(meta[0])
    }
}

/// Seals the next datagram at the start of `out`; its length.
fn seal(key: &LessSafeKey, number: u64, payload: &[u8], out: &mut [u8]) -> Result<usize, Failure> {
    let (head, rest) = out.split_at_mut(HEADER);
    head[..8].copy_from_slice(&number.to_be_bytes());
    head[8..].copy_from_slice(&(payload.len() as u32).to_be_bytes());
    let (body, tag) = rest.split_at_mut(payload.len());
    body.copy_from_slice(payload);
    let made = key
        .seal_in_place_separate_tag(nonce(number), Aad::from(&*head), body)
        .map_err(|_| "ceiling: sealing failed")?;
    tag[..TAG].copy_from_slice(made.as_ref());
    Ok(HEADER + payload.len() + TAG)
}

/// Opens a datagram in place; its number and payload.
fn open<'a>(key: &LessSafeKey, datagram: &'a mut [u8]) -> Result<(u64, &'a [u8]), Failure> {
    let Some((head, body)) = datagram.split_at_mut_checked(HEADER) else {
        return Err("ceiling: a datagram is too short".into());
    };
    let number = u64::from_be_bytes(head[..8].try_into()?);
    let payload = key
        .open_in_place(nonce(number), Aad::from(&*head), body)
        .map_err(|_| "ceiling: a datagram is not authentic")?;
    Ok((number, payload))
}

/// The sender.
pub fn send(options: &Options, setup: &Setup, mut control: Control) -> Result<Outcome, Failure> {
    let bytes = payload(options.seed, options.size)?;
    let wire = Wire::bind(local_for(setup.server))?;
    let segment = usize::from(setup.subject.max_datagram().unwrap_or(ETHERNET_PAYLOAD));
    let per_call = (BATCH / segment).min(wire.state.max_gso_segments()).max(1);
    let (data_key, credit_key) = (key(1)?, key(2)?);
    let mut batch = vec![0; per_call * segment];
    let mut credit = [0; CREDIT];
    let (mut sent, mut counted, mut number) = (0_usize, 0_u64, 0_u64);
    control.start()?;
    let watch = Stopwatch::start()?;
    while counted < bytes.len() as u64 {
        while sent < bytes.len() && sent as u64 - counted + batch.len() as u64 <= WINDOW {
            let mut filled = 0;
            for _ in 0..per_call {
                let part = (bytes.len() - sent).min(segment - HEADER - TAG);
                if part == 0 {
                    break;
                }
                filled += seal(&data_key, number, &bytes[sent..sent + part], &mut batch[filled..])?;
                number += 1;
                sent += part;
            }
            wire.send(setup.server, &batch[..filled], segment)?;
        }
        let got = wire.receive(&mut credit)?;
        counted = open_credit(&credit_key, &mut credit[..got.len])?;
    }
    let (wall, cpu) = watch.stop()?;
    let server_cpu = control.stop()?;
    if control.left()? != blake3::hash(&bytes).to_string() {
        return Err("the receiver got other bytes than were sent".into());
    }
    control.quit()?;
    let note = format!("{per_call} datagrams of {segment} B to a system call, window {WINDOW} B");
    Ok(Outcome { note, ..outcome(options.size, wall.as_secs_f64(), cpu.as_secs_f64(), server_cpu) })
}

fn open_credit(key: &LessSafeKey, credit: &mut [u8]) -> Result<u64, Failure> {
    let Some((count, tag)) = credit.split_at_mut_checked(8) else {
        return Err("ceiling: short credit".into());
    };
    let count = u64::from_be_bytes((&*count).try_into()?);
    key.open_in_place(nonce(count), Aad::empty(), tag).map_err(|_| "ceiling: credit is not authentic")?;
    Ok(count)
}

/// The receiver; ends with the process.
pub fn receive(setup: &Setup, size: u64, announce: Announce, left: &Left) -> Result<(), Failure> {
    let wire = Wire::bind(setup.server)?;
    // The sender may take its time to start.
    wire.socket.set_read_timeout(None)?;
    let (data_key, credit_key) = (key(1)?, key(2)?);
    let mut sink = touched(size)?;
    let mut buffer = vec![0; 1 << 16];
    let (mut got, mut told, mut expected) = (0_usize, 0_u64, 0_u64);
    announce.ready()?;
    while got < sink.len() {
        let meta = wire.receive(&mut buffer)?;
        for datagram in buffer[..meta.len].chunks_mut(meta.stride) {
            let (number, payload) = open(&data_key, datagram)?;
            if number != expected {
                return Err(format!("ceiling: datagram {expected} was lost").into());
            }
            expected += 1;
            let end = got + payload.len();
            sink.get_mut(got..end).ok_or("ceiling: more bytes than agreed")?.copy_from_slice(payload);
            got = end;
        }
        if got as u64 - told >= CREDIT_EVERY || got == sink.len() {
            told = got as u64;
            let mut credit = [0; CREDIT];
            credit[..8].copy_from_slice(&told.to_be_bytes());
            let tag = credit_key
                .seal_in_place_separate_tag(nonce(told), Aad::empty(), &mut [])
                .map_err(|_| "ceiling: sealing failed")?;
            credit[8..].copy_from_slice(tag.as_ref());
            wire.send(meta.addr, &credit, CREDIT)?;
        }
    }
    // Before the question can come: the sender asks only after its clock has stopped.
    *left.lock().unwrap_or_else(PoisonError::into_inner) = Some(blake3::hash(&sink).to_string());
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_opens_to_what_was_sealed_and_not_if_changed() {
        let key = key(1).expect("key");
        let mut buffer = [0; 100];
        let len = seal(&key, 7, b"payload", &mut buffer).expect("seal");
        let mut changed = buffer;
        assert_eq!(open(&key, &mut buffer[..len]).expect("open"), (7, &b"payload"[..]));
        changed[9] ^= 1;
        assert!(open(&key, &mut changed[..len]).is_err(), "the header is authenticated");
        assert!(open(&key, &mut changed[..5]).is_err());
    }
}
