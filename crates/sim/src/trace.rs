//! What happened, for people: one line per event, and a capture file of what was on the wire.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use pilotage_wire::beacon;
use pilotage_wire::frame::{self, Frame};

/// Lines and datagrams that one trace keeps; later ones are counted only.
const KEPT: usize = 4_000_000;

/// The record of one run.
#[derive(Debug, Default)]
pub struct Trace {
    lines: Vec<String>,
    datagrams: Vec<(Duration, SocketAddr, SocketAddr, Vec<u8>)>,
    left_out: u64,
}

impl Trace {
    /// Adds a line.
    pub fn line(&mut self, at: Duration, text: &str) {
        if self.lines.len() < KEPT {
            self.lines.push(format!("{:>12.6} {text}", at.as_secs_f64()));
        } else {
            self.left_out += 1;
        }
    }

    /// Adds a datagram that was put on the wire, with what became of it.
    pub fn datagram(&mut self, at: Duration, from: SocketAddr, to: SocketAddr, bytes: &[u8], note: &str) {
        self.line(at, &format!("{from} > {to} {} {note}", describe(bytes)));
        if self.datagrams.len() < KEPT {
            self.datagrams.push((at, from, to, bytes.to_vec()));
        }
    }

    /// Writes all lines.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        for line in &self.lines {
            writeln!(out, "{line}")?;
        }
        if self.left_out > 0 {
            writeln!(out, "{} further lines were left out", self.left_out)?;
        }
        Ok(())
    }

    /// Writes a capture file (pcap 2.4, microseconds, raw IP packets) that packet analysers and `pilotage decode` read.
    /// Its clock begins at 1970-01-01.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_pcap(&self, out: &mut impl Write) -> io::Result<()> {
        const LINKTYPE_RAW: u32 = 101;
        let mut head = Vec::new();
        head.extend_from_slice(&0xa1b2_c3d4_u32.to_le_bytes());
        head.extend_from_slice(&2u16.to_le_bytes());
        head.extend_from_slice(&4u16.to_le_bytes());
        head.extend_from_slice(&[0; 8]);
        head.extend_from_slice(&0x4_0000_u32.to_le_bytes());
        head.extend_from_slice(&LINKTYPE_RAW.to_le_bytes());
        out.write_all(&head)?;
        for (at, from, to, bytes) in &self.datagrams {
            let Some(packet) = ip_packet(*from, *to, bytes) else { continue };
            let len = (packet.len() as u32).to_le_bytes();
            out.write_all(&(at.as_secs() as u32).to_le_bytes())?;
            out.write_all(&at.subsec_micros().to_le_bytes())?;
            out.write_all(&len)?;
            out.write_all(&len)?;
            out.write_all(&packet)?;
        }
        Ok(())
    }
}

/// A UDP datagram in an IPv4 packet. `None` for IPv6 or where the length fields do not hold it.
fn ip_packet(from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { return None };
    let udp = u16::try_from(8 + bytes.len()).ok()?;
    let total = udp.checked_add(20)?;
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend_from_slice(&from.ip().octets());
    packet.extend_from_slice(&to.ip().octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend_from_slice(&from.port().to_be_bytes());
    packet.extend_from_slice(&to.port().to_be_bytes());
    packet.extend_from_slice(&udp.to_be_bytes());
    packet.extend_from_slice(&[0, 0]); // no UDP checksum, as IPv4 allows
    packet.extend_from_slice(bytes);
    Some(packet)
}

/// A datagram in a few words.
#[must_use]
pub fn describe(bytes: &[u8]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = match frame::decode(bytes) {
        Ok(Frame::Pils { sender, nonce, ciphertext }) => {
            let counter = nonce[4..].iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
            write!(text, "PILS from {sender} #{counter} {} bytes", ciphertext.len())
        }
        Ok(Frame::Pila(pila)) => {
            let flags = frame::PilaTrailer::decode(pila.trailer).flags;
            write!(text, "PILA from {} key {:02x?} flags {flags}", pila.sender, &pila.x25519[..4])
        }
        Ok(Frame::Pilk { sender, .. }) => write!(text, "PILK from {sender}"),
        Ok(Frame::Pilt { packet }) => write!(text, "PILT {} bytes", packet.len()),
        Ok(Frame::Pilp) => write!(text, "PILP"),
        Err(_) => match beacon::Message::decode(bytes) {
            Ok(beacon::Message::Relay { src, dst, frame }) => {
                write!(text, "relay {src} to {dst}: {}", describe(frame))
            }
            Ok(beacon::Message::Deliver { src, frame }) => {
                write!(text, "deliver from {src}: {}", describe(frame))
            }
            Ok(other) => write!(text, "{other:?}"),
            Err(_) => write!(text, "{} bytes {:02x?}", bytes.len(), &bytes[..bytes.len().min(8)]),
        },
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_holds_headers_that_add_up() {
        let mut trace = Trace::default();
        let (from, to) = (SocketAddr::from(([192, 0, 2, 1], 4000)), SocketAddr::from(([192, 0, 2, 2], 4001)));
        trace.datagram(Duration::from_millis(1_500), from, to, b"PILP", "passed");
        let mut file = Vec::new();
        trace.write_pcap(&mut file).expect("a vector takes all");
        assert_eq!(file.len(), 24 + 16 + 20 + 8 + 4);
        let ip = &file[40..60];
        let sum: u32 = ip.chunks(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "header checksum");
        assert_eq!(&file[file.len() - 4..], b"PILP");
        let mut text = Vec::new();
        trace.write_text(&mut text).expect("a vector takes all");
        let text = String::from_utf8(text).expect("text");
        assert!(text.contains("1.500000") && text.contains("PILP passed"), "{text}");
    }
}
