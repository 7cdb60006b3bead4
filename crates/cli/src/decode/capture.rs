//! Capture files: classic pcap and pcapng, read as streams with every length bounded.
//!
//! pcap: draft-ietf-opsawg-pcap. pcapng: draft-ietf-opsawg-pcapng; of its blocks only section header
//! (SHB), interface description (IDB), enhanced (EPB) and simple packet (SPB) are read.

use std::io::{self, Read};

/// Largest captured packet that is read, in bytes (the largest snap length in use).
const MAX_PACKET: usize = 256 * 1024;

/// Largest pcapng block that is read; larger ones of other types are skipped.
const MAX_BLOCK: usize = MAX_PACKET + 64 * 1024;

/// Interfaces of a pcapng section that are remembered.
const MAX_INTERFACES: usize = 1024;

const BLOCK_SECTION: u32 = 0x0A0D_0D0A;
const BLOCK_INTERFACE: u32 = 1;
const BLOCK_SIMPLE: u32 = 3;
const BLOCK_ENHANCED: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1A2B_3C4D;
const OPTION_RESOLUTION: u16 = 9;

/// A packet as it was captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Captured {
    /// Nanoseconds since 1970, if the file says.
    pub(super) time_ns: Option<u64>,
    /// LINKTYPE_ number.
    pub(super) link: u32,
    /// From the link layer on.
    pub(super) data: Vec<u8>,
}

/// Whether a file that begins so is a capture.
pub(super) fn is_capture(start: &[u8]) -> bool {
    let Some(start) = start.first_chunk::<4>() else { return false };
    u32::from_be_bytes(*start) == BLOCK_SECTION || Classic::from_magic(*start).is_some()
}

/// Reads packets one by one.
pub(super) struct Reader<R> {
    input: R,
    format: Format,
}

enum Format {
    Classic(Classic),
    Next(Section),
}

#[derive(Debug, Clone, Copy)]
struct Classic {
    big_endian: bool,
    nanoseconds: bool,
    link: u32,
}

impl Classic {
    fn from_magic(magic: [u8; 4]) -> Option<Self> {
        let (big_endian, nanoseconds) = match u32::from_be_bytes(magic) {
            0xA1B2_C3D4 => (true, false),
            0xD4C3_B2A1 => (false, false),
            0xA1B2_3C4D => (true, true),
            0x4D3C_B2A1 => (false, true),
            _ => return None,
        };
        Some(Self { big_endian, nanoseconds, link: 0 })
    }
}

/// State of a pcapng section.
#[derive(Debug, Default)]
struct Section {
    big_endian: bool,
    interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, Copy)]
struct Interface {
    link: u32,
    snap_len: usize,
    /// Units of time per second; 0 = beyond what fits.
    per_second: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the file header.
    pub(super) fn new(mut input: R) -> io::Result<Self> {
        let mut magic = [0; 4];
        input.read_exact(&mut magic)?;
        if u32::from_be_bytes(magic) == BLOCK_SECTION {
            let mut section = Section::default();
            section.begin(&mut input)?;
            return Ok(Self { input, format: Format::Next(section) });
        }
        let mut classic = Classic::from_magic(magic).ok_or_else(|| invalid("not a capture file"))?;
        let mut rest = [0; 20];
        input.read_exact(&mut rest)?;
        // The upper bits say whether frames carry a check sequence; they are not part of the type.
        classic.link = word(classic.big_endian, &rest, 16)? & 0x03FF_FFFF;
        Ok(Self { input, format: Format::Classic(classic) })
    }

    /// The next packet; `None` at the end. A file that ends inside a packet is an error.
    pub(super) fn next(&mut self) -> io::Result<Option<Captured>> {
        match &mut self.format {
            Format::Classic(classic) => classic.next(&mut self.input),
            Format::Next(section) => section.next(&mut self.input),
        }
    }
}

impl Classic {
    fn next(self, input: &mut impl Read) -> io::Result<Option<Captured>> {
        let mut header = [0; 16];
        if !read_or_end(input, &mut header)? {
            return Ok(None);
        }
        let word = |at| word(self.big_endian, &header, at);
        let (seconds, fraction, len) = (word(0)?, word(4)?, word(8)? as usize);
        if len > MAX_PACKET {
            return Err(invalid("a packet longer than 256 KiB: the file is damaged"));
        }
        let mut data = vec![0; len];
        input.read_exact(&mut data)?;
        let fraction = u64::from(fraction) * if self.nanoseconds { 1 } else { 1000 };
        Ok(Some(Captured {
            time_ns: Some(u64::from(seconds) * 1_000_000_000 + fraction),
            link: self.link,
            data,
        }))
    }
}

impl Section {
    /// Reads the rest of a section header whose type has been read.
    fn begin(&mut self, input: &mut impl Read) -> io::Result<()> {
        let mut head = [0; 8];
        input.read_exact(&mut head)?;
        self.big_endian = match word(true, &head, 4)? {
            BYTE_ORDER_MAGIC => true,
            magic if magic.swap_bytes() == BYTE_ORDER_MAGIC => false,
            _ => return Err(invalid("section header without byte-order magic")),
        };
        self.interfaces.clear();
        let total = u64::from(word(self.big_endian, &head, 0)?);
        // Type, length and magic are read: 12 bytes.
        let rest = total.checked_sub(12).ok_or_else(|| invalid("section header too short"))?;
        skip(input, rest)
    }

    fn next(&mut self, input: &mut impl Read) -> io::Result<Option<Captured>> {
        loop {
            let mut kind = [0; 4];
            if !read_or_end(input, &mut kind)? {
                return Ok(None);
            }
            // The same in both byte orders.
            if u32::from_be_bytes(kind) == BLOCK_SECTION {
                self.begin(input)?;
                continue;
            }
            let mut length = [0; 4];
            input.read_exact(&mut length)?;
            let kind = word(self.big_endian, &kind, 0)?;
            let total = word(self.big_endian, &length, 0)? as usize;
            let body_len = total.checked_sub(12).ok_or_else(|| invalid("block shorter than 12 bytes"))?;
            if !matches!(kind, BLOCK_INTERFACE | BLOCK_SIMPLE | BLOCK_ENHANCED) {
                skip(input, body_len as u64 + 4)?;
                continue;
            }
            if body_len > MAX_BLOCK {
                return Err(invalid("a block longer than 320 KiB: the file is damaged"));
            }
            let mut body = vec![0; body_len];
            input.read_exact(&mut body)?;
            skip(input, 4)?;
            match kind {
                BLOCK_INTERFACE => self.add_interface(&body)?,
                BLOCK_SIMPLE => return self.simple(body).map(Some),
                _ => return self.enhanced(&body).map(Some),
            }
        }
    }

    fn add_interface(&mut self, body: &[u8]) -> io::Result<()> {
        if self.interfaces.len() >= MAX_INTERFACES {
            return Err(invalid("more than 1024 interfaces"));
        }
        let link = half(self.big_endian, body, 0)?.into();
        let snap_len = word(self.big_endian, body, 4)? as usize;
        let mut per_second = 1_000_000;
        let mut at = 8;
        // Options: code, length, value padded to 4. A cut-off list only loses the resolution.
        while let (Ok(code), Ok(len)) = (half(self.big_endian, body, at), half(self.big_endian, body, at + 2))
        {
            if code == OPTION_RESOLUTION && len >= 1 {
                per_second = body.get(at + 4).map_or(0, |value| resolution(*value));
            }
            if code == 0 {
                break;
            }
            at += 4 + usize::from(len).next_multiple_of(4);
        }
        self.interfaces.push(Interface { link, snap_len, per_second });
        Ok(())
    }

    fn enhanced(&self, body: &[u8]) -> io::Result<Captured> {
        let word = |at| word(self.big_endian, body, at);
        let interface = self.interface(word(0)? as usize)?;
        let ticks = u64::from(word(4)?) << 32 | u64::from(word(8)?);
        let len = word(12)? as usize;
        let data = body.get(20..).and_then(|rest| rest.get(..len)).ok_or_else(cut)?.to_vec();
        let time_ns = (interface.per_second > 0)
            .then(|| u128::from(ticks) * 1_000_000_000 / u128::from(interface.per_second))
            .and_then(|ns| u64::try_from(ns).ok());
        Ok(Captured { time_ns, link: interface.link, data })
    }

    fn simple(&self, body: Vec<u8>) -> io::Result<Captured> {
        let interface = self.interface(0)?;
        let original = word(self.big_endian, &body, 0)? as usize;
        let snap = if interface.snap_len == 0 { usize::MAX } else { interface.snap_len };
        let len = original.min(snap).min(body.len() - 4);
        Ok(Captured { time_ns: None, link: interface.link, data: body[4..4 + len].to_vec() })
    }

    fn interface(&self, index: usize) -> io::Result<Interface> {
        self.interfaces.get(index).copied().ok_or_else(|| invalid("packet of an unknown interface"))
    }
}

/// if_tsresol: a power of 10, or of 2 if the highest bit is set.
fn resolution(value: u8) -> u64 {
    let exponent = u32::from(value & 0x7F);
    let base: u64 = if value & 0x80 == 0 { 10 } else { 2 };
    base.checked_pow(exponent).unwrap_or(0)
}

fn word(big_endian: bool, bytes: &[u8], at: usize) -> io::Result<u32> {
    let bytes = *bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or_else(cut)?;
    Ok(if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
}

fn half(big_endian: bool, bytes: &[u8], at: usize) -> io::Result<u16> {
    let bytes = *bytes.get(at..).and_then(|rest| rest.first_chunk::<2>()).ok_or_else(cut)?;
    Ok(if big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
}

/// Fills `buf`; false if the input ends before its first byte.
fn read_or_end(input: &mut impl Read, buf: &mut [u8]) -> io::Result<bool> {
    let first = loop {
        match input.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(false);
    }
    input.read_exact(&mut buf[first..])?;
    Ok(true)
}

fn skip(input: &mut impl Read, len: u64) -> io::Result<()> {
    let skipped = io::copy(&mut input.take(len), &mut io::sink())?;
    if skipped == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn cut() -> io::Error {
    invalid("a block is shorter than its content")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A classic capture in either byte order.
    pub(in crate::decode) fn classic(big_endian: bool, link: u32, packets: &[&[u8]]) -> Vec<u8> {
        let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut out = word(0xA1B2_C3D4).to_vec();
        out.extend(word(0x0002_0004));
        out.extend([0; 8]);
        out.extend(word(65535));
        out.extend(word(link));
        for (index, packet) in packets.iter().enumerate() {
            out.extend(word(100));
            out.extend(word(index as u32));
            out.extend(word(packet.len() as u32));
            out.extend(word(packet.len() as u32));
            out.extend(*packet);
        }
        out
    }

    fn block(big_endian: bool, kind: u32, body: &[u8]) -> Vec<u8> {
        let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let total = word(body.len() as u32 + 12);
        [&word(kind)[..], &total, &body, &total].concat()
    }

    /// A pcapng capture in either byte order, with a block that must be skipped.
    pub(in crate::decode) fn next_generation(big_endian: bool, link: u16, packets: &[&[u8]]) -> Vec<u8> {
        let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let half = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let section = [&word(BYTE_ORDER_MAGIC)[..], &half(1), &half(0), &[0xFF; 8]].concat();
        let mut out = block(big_endian, BLOCK_SECTION, &section);
        // Nanoseconds.
        let options = [&half(OPTION_RESOLUTION)[..], &half(1), &[9, 0, 0, 0], &half(0), &half(0)].concat();
        let interface = [&half(link)[..], &half(0), &word(0), &options].concat();
        out.extend(block(big_endian, BLOCK_INTERFACE, &interface));
        out.extend(block(big_endian, 5, &[0; 20]));
        for (index, packet) in packets.iter().enumerate() {
            let len = word(packet.len() as u32);
            let body = [&word(0)[..], &word(0), &word(index as u32), &len, &len, packet].concat();
            out.extend(block(big_endian, BLOCK_ENHANCED, &body));
        }
        out
    }

    fn all(bytes: &[u8]) -> io::Result<Vec<Captured>> {
        let mut reader = Reader::new(bytes)?;
        let mut packets = Vec::new();
        while let Some(packet) = reader.next()? {
            packets.push(packet);
        }
        Ok(packets)
    }

    #[test]
    fn both_formats_in_both_byte_orders() {
        for big_endian in [true, false] {
            let packets: &[&[u8]] = &[b"abc", b"", b"12345678"];
            let found = all(&classic(big_endian, 101, packets)).unwrap();
            assert_eq!(found.iter().map(|p| &p.data[..]).collect::<Vec<_>>(), packets);
            assert_eq!(found[2].time_ns, Some(100_000_002_000));
            assert_eq!(found[0].link, 101);
            let found = all(&next_generation(big_endian, 1, packets)).unwrap();
            assert_eq!(found.iter().map(|p| &p.data[..]).collect::<Vec<_>>(), packets);
            assert_eq!((found[2].time_ns, found[2].link), (Some(2), 1));
        }
    }

    #[test]
    fn simple_packets_use_the_first_interface() {
        let mut file = next_generation(false, 101, &[]);
        file.extend(block(false, BLOCK_SIMPLE, &[&3u32.to_le_bytes()[..], b"abc"].concat()));
        assert_eq!(all(&file).unwrap()[0].data, b"abc");
    }

    #[test]
    fn cut_files_are_errors() {
        for file in [classic(false, 1, &[b"abcdef"]), next_generation(true, 1, &[b"abcdef"])] {
            assert!(all(&file).is_ok());
            assert!(all(&file[..file.len() - 1]).is_err());
        }
        let mut huge = classic(false, 1, &[b"x"]);
        huge[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(all(&huge).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300), which in 0..6usize) {
            let starts: [&[u8]; 6] = [
                &[], &[0xA1, 0xB2, 0xC3, 0xD4], &[0xD4, 0xC3, 0xB2, 0xA1], &[0x4D, 0x3C, 0xB2, 0xA1],
                &[0x0A, 0x0D, 0x0D, 0x0A, 0, 0, 0, 28, 0x1A, 0x2B, 0x3C, 0x4D],
                &[0x0A, 0x0D, 0x0D, 0x0A, 28, 0, 0, 0, 0x4D, 0x3C, 0x2B, 0x1A],
            ];
            let _ = all(&[starts[which], &bytes].concat());
        }

        #[test]
        fn damaged_files_are_answered(at in 0..200usize, value: u8) {
            let mut file = next_generation(false, 1, &[b"hello", b"world"]);
            let at = at % file.len();
            file[at] = value;
            let _ = all(&file);
        }
    }
}
