//! The frames of `spec/vectors/s1/frames.json`: each is written to exactly those bytes and read back from them. The file is
//! made by `verify.py` beside it from the specification's table, not by this codec.

use pilotage_wire::s1::ack::encode_ack;
use pilotage_wire::s1::frames::{Frame, Frames, HALF_CIPHERTEXT, HALF_KEY, Upgrade};
use pilotage_wire::s1::stream::Stream;

/// Halves as the file has them.
static KEY: [u8; HALF_KEY] = pattern(1);
static CIPHERTEXT: [u8; HALF_CIPHERTEXT] = pattern(7);

const fn pattern<const N: usize>(factor: usize) -> [u8; N] {
    let mut out = [0; N];
    let mut at = 0;
    while at < N {
        out[at] = (at * factor % 251) as u8;
        at += 1;
    }
    out
}

fn cases() -> Vec<(String, Vec<u8>)> {
    let text = include_str!("../../../spec/vectors/s1/frames.json");
    let file: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let case = |case: &serde_json::Value| {
        let text = |name: &str| case[name].as_str().expect("a text").to_owned();
        (text("name"), hex::decode(text("bytes")).expect("hex"))
    };
    file["frames"].as_array().expect("a list").iter().map(case).collect()
}

fn stream(
    id: u64,
    ports: Option<(u16, u16)>,
    offset: u64,
    fin: bool,
    data: &'static [u8],
    to_end: bool,
) -> Frame<'static> {
    Frame::Stream(Stream { id, ports, offset, fin, data, to_end })
}

/// What the file says in words, except acknowledgements.
fn named(name: &str) -> Option<Frame<'static>> {
    let token = std::array::from_fn(|n| 0x10 + n as u8);
    Some(match name {
        "padding" => Frame::Padding(1),
        "ping" => Frame::Ping,
        "ack frequency" => Frame::AckFrequency { seq: 3, packets: 10, delay_us: 25_000, reordering: 3 },
        "immediate ack" => Frame::ImmediateAck,
        "reset stream" => Frame::ResetStream { stream: 4, code: 256, final_size: 1 << 30 },
        "stop sending" => Frame::StopSending { stream: (1 << 62) - 1, code: 2 },
        "max data" => Frame::MaxData((1 << 62) - 1),
        "max stream data" => Frame::MaxStreamData { stream: 5, max: (1 << 30) - 1 },
        "max streams" => Frame::MaxStreams(1 << 60),
        "data blocked" => Frame::DataBlocked(63),
        "stream data blocked" => Frame::StreamDataBlocked { stream: 64, max: 16_384 },
        "streams blocked" => Frame::StreamsBlocked(0),
        "path challenge" => Frame::PathChallenge([1, 2, 3, 4, 5, 6, 7, 8]),
        "path response" => Frame::PathResponse([1, 2, 3, 4, 5, 6, 7, 8]),
        "new index" => Frame::NewIndex { seq: 7, retire: 5, index: 0xA1A2_A3A4, token },
        "retire index" => Frame::RetireIndex(6),
        "close" => Frame::Close { code: 7, reason: "ga los" },
        "record" => Frame::Record(b"PREC"),
        "rekey" => Frame::Rekey,
        "upgrade, second half of a key" => Frame::Upgrade(Upgrade::Key(true, &KEY)),
        "upgrade, first half of a ciphertext" => Frame::Upgrade(Upgrade::Ciphertext(false, &CIPHERTEXT)),
        "upgrade, done" => Frame::Upgrade(Upgrade::Done),
        "datagram to the end" => {
            Frame::Datagram { source: 7, destination: 1_001, data: b"hello", to_end: true }
        }
        "datagram" => Frame::Datagram { source: u16::MAX, destination: 0, data: b"", to_end: false },
        "legacy to the end" => Frame::Legacy { packet: &[11], to_end: true },
        "legacy" => Frame::Legacy { packet: &[11, 12], to_end: false },
        "stream, to the end" => stream(0, None, 0, false, b"a", true),
        "stream, all fields and the end" => stream(2, Some((49_152, 80)), 100, true, b"abc", false),
        "stream, opened without data" => stream(4, Some((1, 2)), 0, false, b"", false),
        "stream, ends without data" => stream(1, None, 16_384, true, b"", false),
        _ => return None,
    })
}

#[test]
fn every_frame_has_the_bytes_of_the_vectors() {
    let cases = cases();
    for (name, bytes) in &cases {
        Frames::check(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let read: Vec<_> = Frames::new(bytes).map(|frame| frame.expect("checked")).collect();
        let [read] = read[..] else { panic!("{name}: {} frames", read.len()) };
        let mut buf = [0; 700];
        let len = match (named(name), read) {
            (Some(expected), _) => {
                assert_eq!(read, expected, "{name}");
                expected.encode(&mut buf)
            }
            (None, Frame::Ack(_)) => {
                let ranges = match name.as_str() {
                    "ack, one packet" => vec![0..=0],
                    "ack of another session" => vec![0..=1 << 40],
                    _ => vec![998..=1_000, 990..=990, 0..=63],
                };
                let other = name.contains("another").then_some(0xB1B2_B3B4);
                let delay = [0, 125, 16_383][cases
                    .iter()
                    .filter(|(n, _)| n.starts_with("ack") && n != "ack frequency")
                    .position(|(n, _)| n == name)
                    .expect("listed")];
                let Frame::Ack(ack) = read else { unreachable!() };
                assert_eq!(
                    (ack.index, ack.delay, ack.ranges().collect::<Vec<_>>()),
                    (other, delay, ranges.clone()),
                    "{name}"
                );
                encode_ack(other, delay, ranges.into_iter(), &mut buf)
            }
            _ => panic!("{name}: no such frame here"),
        };
        assert_eq!(hex::encode(&buf[..len.expect("room")]), hex::encode(bytes), "{name}");
    }
    let mut kinds: Vec<u8> = cases.iter().map(|(_, bytes)| bytes[0]).collect();
    kinds.retain(|kind| *kind < 0x20);
    kinds.dedup();
    let all: Vec<u8> = (0..=0x14).chain([0x16]).chain(0x18..=0x1B).collect();
    assert_eq!(kinds, all, "each type is there");
}
