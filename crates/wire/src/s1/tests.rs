//! Every message round-trips, no bytes make a decoder panic, and what decodes has one form only.

use std::collections::BTreeSet;
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::ack::{ACK_RANGES_MAX, encode_ack};
use super::data::{self, Header};
use super::frames::{Frame, Frames, HALF_CIPHERTEXT, HALF_KEY, REASON_MAX, RECORD_MAX, Upgrade};
use super::handshake::*;
use super::payload::*;
use super::stream::Stream;
use super::*;
use crate::{Address, EncodeError, NodeId};

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..70u64, 16_000..17_000u64, (1u64 << 30) - 5..(1 << 30) + 5, 0..=VARINT_MAX]
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..max)
}

/// A frame's bytes, written once: frames borrow, so the property works on what `encode` made.
fn written(frame: &Frame<'_>) -> Vec<u8> {
    let mut buf = vec![0; 4_096];
    let len = frame.encode(&mut buf).expect("a frame that can be written");
    let error = EncodeError::BufferTooSmall { need: len, have: len - 1 };
    assert_eq!(frame.encode(&mut buf[..len - 1]), Err(error), "{frame:?}");
    buf.truncate(len);
    buf
}

fn round_trips(frame: &Frame<'_>) {
    let buf = written(frame);
    let all: Vec<_> = Frames::new(&buf).collect();
    assert_eq!(all, [Ok(*frame)]);
    // Cut anywhere it is malformed, or another frame that reaches to the end.
    for cut in 0..buf.len() {
        canonical(&buf[..cut]);
    }
}

/// What decodes encodes to the same bytes.
fn canonical(packet: &[u8]) {
    let mut rest = packet;
    for frame in Frames::new(packet) {
        let Ok(frame) = frame else { return };
        let mut buf = vec![0; rest.len()];
        let len = frame.encode(&mut buf).expect("a decoded frame fits where it was");
        assert_eq!(buf[..len], rest[..len], "{frame:?}");
        rest = &rest[len..];
    }
    assert!(rest.is_empty());
}

proptest! {
    #[test]
    fn control_frames_round_trip(a in number(), b in number(), c in number(), d in 1..VARINT_MAX,
        eight: [u8; 8], token: [u8; 16], index in 1..u32::MAX, text in ".{0,60}", record in bytes(RECORD_MAX + 1)
    ) {
        let reason: &str = &text;
        for frame in [
            Frame::Padding(1 + a as usize % 100),
            Frame::Ping,
            Frame::AckFrequency { seq: a, packets: d, delay_us: b, reordering: c },
            Frame::ImmediateAck,
            Frame::ResetStream { stream: a, code: b, final_size: c },
            Frame::StopSending { stream: a, code: b },
            Frame::MaxData(a),
            Frame::MaxStreamData { stream: a, max: b },
            Frame::MaxStreams(a.min(1 << 60)),
            Frame::DataBlocked(a),
            Frame::StreamDataBlocked { stream: a, max: b },
            Frame::StreamsBlocked(a.min(1 << 60)),
            Frame::PathChallenge(eight),
            Frame::PathResponse(eight),
            Frame::NewIndex { seq: a.max(b), retire: a.min(b), index, token },
            Frame::RetireIndex(a),
            Frame::Close { code: a, reason },
            Frame::Record(&record),
            Frame::Rekey,
            Frame::Upgrade(Upgrade::Key(false, &[7; HALF_KEY])),
            Frame::Upgrade(Upgrade::Key(true, &[8; HALF_KEY])),
            Frame::Upgrade(Upgrade::Ciphertext(false, &[9; HALF_CIPHERTEXT])),
            Frame::Upgrade(Upgrade::Ciphertext(true, &[1; HALF_CIPHERTEXT])),
            Frame::Upgrade(Upgrade::Done),
            Frame::Life { own: u64::from_be_bytes(eight) | 1, peer: a, age: a as u32 },
        ] {
            round_trips(&frame);
        }
    }

    #[test]
    fn messages_and_streams_round_trip(id in number(), offset in 0..VARINT_MAX - 300, ports: Option<(u16, u16)>,
        fin: bool, to_end: bool, data in bytes(300), source: u16, destination: u16
    ) {
        let data = &data[..];
        round_trips(&Frame::Datagram { source, destination, data, to_end });
        let stream = Stream { id, ports, offset, fin, data, to_end };
        if !data.is_empty() || fin || ports.is_some() {
            round_trips(&Frame::Stream(stream));
        }
        let whole = written(&Frame::Stream(stream));
        prop_assert_eq!(stream.head_len(data.len()), whole.len() - data.len());
        let mut head = [0; 64];
        let len = stream.encode_head(data.len(), &mut head).unwrap();
        prop_assert_eq!(&head[..len], &whole[..whole.len() - data.len()]);
        if !data.is_empty() {
            round_trips(&Frame::Legacy { packet: data, to_end });
        }
    }

    #[test]
    fn acknowledgements_name_exactly_what_arrived(
        numbers in prop::collection::btree_set(0..2_000u64, 1..400), base in prop_oneof![Just(0u64), 0..VARINT_MAX - 2_000],
        index in prop::option::of(1..u32::MAX), delay in number(), room in 40..2_000usize,
    ) {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for number in numbers.iter().rev().map(|n| n + base) {
            match ranges.last_mut() {
                Some((low, _)) if *low == number + 1 => *low = number,
                _ => ranges.push((number, number)),
            }
        }
        let mut buf = vec![0; room];
        let len = encode_ack(index, delay, ranges.iter().map(|(low, high)| *low..=*high), &mut buf).unwrap();
        let frames: Vec<_> = Frames::new(&buf[..len]).collect();
        let [Ok(Frame::Ack(ack))] = frames[..] else { panic!("{frames:?}") };
        prop_assert_eq!((ack.index, ack.delay, ack.largest()), (index, delay, ranges[0].1));
        let named: Vec<_> = ack.ranges().map(|r| (*r.start(), *r.end())).collect();
        prop_assert_eq!(&named[..], &ranges[..named.len()]);
        prop_assert!(named.len() <= ACK_RANGES_MAX);
        if named.len() < ranges.len().min(ACK_RANGES_MAX) {
            prop_assert!(len + 18 > room, "{len} of {room} bytes used, {} of {} ranges", named.len(), ranges.len());
        }
        round_trips(&Frame::Ack(ack));
    }

    #[test]
    fn any_packet_is_read_without_panic_and_has_one_form(packet in bytes(200), kind in 0..0x32u8) {
        canonical(&packet);
        let checked = Frames::check(&packet);
        prop_assert_eq!(checked.is_ok(), !packet.is_empty() && Frames::new(&packet).all(|f| f.is_ok()));
        let mut typed = vec![kind];
        typed.extend_from_slice(&packet);
        canonical(&typed);
    }

    #[test]
    fn any_datagram_is_read_without_panic(mut datagram in bytes(1_300), kind in 0..6usize, len: bool) {
        let magic = [&b"PILI\x01"[..], b"PILR\x01", b"PILC", b"PILN", b"PILX", b""][kind];
        if len {
            datagram.resize([INITIATION_LEN, RESPONSE_LEN, COOKIE_LEN, NEW_PREKEY_LEN, RESET_LEN, 30][kind], 7);
        }
        if let Some(start) = datagram.get_mut(..magic.len()) {
            start.copy_from_slice(magic);
        }
        if let Some(zeros) = datagram.get_mut(5..8) && kind < 2 {
            zeros.copy_from_slice(&[0; 3]);
        }
        let _ = (Initiation::decode(&datagram), Response::decode(&datagram), CookieReply::decode(&datagram));
        let _ = (NewPrekey::decode(&datagram), Reset::decode(&datagram), data::receiver(&datagram));
        if let Some(bytes) = datagram.first_chunk() && let Ok(header) = Header::from_bytes(bytes) {
            prop_assert_eq!(header.to_bytes(), *bytes);
        }
        if let Ok((payload, early)) = Payload1::decode(&datagram) {
            prop_assert_eq!(&payload.encode()[..], &datagram[..datagram.len() - early.len()]);
        }
        if let Some(bytes) = datagram.first_chunk() && let Ok(payload) = Payload2::decode(bytes) {
            prop_assert_eq!(payload.encode(), *bytes);
        }
    }

    #[test]
    fn handshake_frames_round_trip(sender in 1..u32::MAX, receiver in 1..u32::MAX, flags in 0..8u8, early in bytes(897),
        prekey_id: [u8; 8], nonce: [u8; 24], sealed: [u8; 32], token: [u8; 16], certificate in certificate()
    ) {
        let mut flags = Flags::from_byte(flags).unwrap();
        flags.early = !early.is_empty();
        prop_assert_eq!(Flags::from_byte(flags.to_byte()), Ok(flags));
        let mut datagram = initiation_header(flags, sender, &prekey_id).to_vec();
        datagram.extend([1; 32].iter().chain(&[2; 48]).chain(&[3; 156]).chain(&early).chain(&[4; 16]));
        datagram.extend([5; 16].iter().chain(&[6; 16]));
        let pili = Initiation::decode(&datagram).unwrap();
        prop_assert_eq!((pili.flags, pili.sender, pili.prekey_id), (flags, sender, prekey_id));
        prop_assert_eq!((pili.ephemeral, pili.sealed_static), (&[1; 32], &[2; 48]));
        prop_assert_eq!((pili.sealed_payload.len(), pili.mac1, pili.mac2), (172 + early.len(), &[5; 16], &[6; 16]));
        prop_assert_eq!((pili.before_mac1.len() + 32, pili.before_mac2.len() + 16), (datagram.len(), datagram.len()));

        let mut datagram = response_header((!early.is_empty(), flags.post_quantum), sender, receiver).to_vec();
        datagram.extend([1; 32].iter().chain(&[2; 96]).chain(&[3; 16]));
        let pilr = Response::decode(&datagram).unwrap();
        prop_assert_eq!((pilr.sender, pilr.receiver, pilr.early_accepted), (sender, receiver, !early.is_empty()));
        prop_assert_eq!(pilr.post_quantum, flags.post_quantum);
        prop_assert_eq!((pilr.mac1, pilr.before_mac1.len()), (&[3; 16], 144));

        let cookie = CookieReply { receiver, nonce, sealed };
        prop_assert_eq!(CookieReply::decode(&cookie.encode()), Ok(cookie));
        let prekey = NewPrekey { receiver, cause: token, prekey: sealed, certificate };
        prop_assert_eq!(NewPrekey::decode(&prekey.encode()), Ok(prekey));
        let reset = Reset { index: receiver, token };
        prop_assert_eq!(Reset::decode(&reset.encode()), Ok(reset));
    }

    #[test]
    fn payloads_round_trip(one in payload_1(), two in payload_2(), early in bytes(20)) {
        let mut bytes = one.encode().to_vec();
        bytes.extend_from_slice(&early);
        prop_assert_eq!(Payload1::decode(&bytes), Ok((one, &early[..])));
        prop_assert_eq!(Payload1::decode(&bytes[..PAYLOAD_1_LEN - 1]), Err(Malformed::Truncated));
        prop_assert_eq!(Payload2::decode(&two.encode()), Ok(two));
    }

    #[test]
    fn headers_round_trip_and_are_masked(phase: bool, receiver in 1..u32::MAX, number: u32, mask: [u8; 5]) {
        let header = Header { phase, receiver, number };
        let mut bytes = header.to_bytes();
        prop_assert_eq!(Header::from_bytes(&bytes), Ok(header));
        data::mask(&mut bytes, mask);
        prop_assert_eq!(Kind::of(&bytes), Some(Kind::Data));
        prop_assert_eq!(data::receiver(&bytes), None, "too short for a tag");
        let mut datagram = bytes.to_vec();
        datagram.extend_from_slice(&[0; 16]);
        prop_assert_eq!(data::receiver(&datagram), Some(receiver));
        data::mask(&mut bytes, mask);
        prop_assert_eq!(Header::from_bytes(&bytes), Ok(header));
    }
}

prop_compose! {
    fn certificate()(not_after: u32, seq: u64, caps: u64, low: [u8; 32], high: [u8; 32]) -> PrekeyCertificate {
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&low);
        signature[32..].copy_from_slice(&high);
        PrekeyCertificate { not_after, seq, caps, signature }
    }
}

prop_compose! {
    fn transport()(max_datagram in 1_200..=u16::MAX, idle: u16, ack_delay: u16, streams: u16, tunnel_window: u32,
        stream_window: u32) -> TransportParameters {
        TransportParameters { max_datagram, idle, ack_delay, streams, tunnel_window, stream_window }
    }
}

prop_compose! {
    fn payload_1()(time_ms: u64, counter: u32, identity: [u8; 32], address: [u8; 6], salt: u16,
        certificate in certificate(), suites in prop::sample::select(vec![vec![1], vec![2, 1], vec![1, 2], vec![9, 1, 2]]),
        transport in transport()) -> Payload1 {
        let (address, suites) = (Address::from_bytes(address), SuiteList::new(&suites).unwrap());
        Payload1 { time_ms, counter, identity, address, salt, certificate, suites, transport }
    }
}

prop_compose! {
    fn payload_2()(suite in 1..255u8, early_accepted: bool, post_quantum: bool, sender in 1..u32::MAX, transport in transport(),
        reset_token: [u8; 16], ip: [u8; 16], port: u16, kind in 0..4u8, time_ms: u64, record_seq: u64) -> Payload2 {
        let observed = match kind {
            0 => Observed::Unknown,
            1 => Observed::V4([ip[0], ip[1], ip[2], ip[3]], port),
            2 => Observed::V6(ip, port),
            _ => Observed::Relay(NodeId(u32::from(port))),
        };
        Payload2 { suite, early_accepted, post_quantum, sender, transport, reset_token, observed, time_ms, record_seq }
    }
}

#[test]
fn lengths_are_those_of_the_design() {
    assert_eq!((INITIATION_LEN, EARLY_MAX, RESPONSE_LEN), (304, 896, 160));
    assert_eq!((COOKIE_LEN, NEW_PREKEY_LEN, RESET_LEN), (64, 140, 24));
    assert_eq!((data::OVERHEAD, CERTIFICATE_SIGNED_LEN), (25, 103));
    // No answer is longer than what it answers.
    const {
        assert!(
            RESPONSE_LEN < INITIATION_LEN && NEW_PREKEY_LEN < INITIATION_LEN && RESET_LEN < RESET_CAUSE_MIN
        )
    };
}

#[test]
fn kinds_are_told_by_the_first_bytes() {
    for (datagram, kind) in [
        (&b"PILI"[..], Some(Kind::Initiation)),
        (b"PILR rest", Some(Kind::Response)),
        (b"PILC", Some(Kind::Cookie)),
        (b"PILN", Some(Kind::NewPrekey)),
        (b"PILX", Some(Kind::Reset)),
        (b"\xB0", Some(Kind::Data)),
        (b"\xBF....", Some(Kind::Data)),
        (b"\xC0", None),
        (b"\xAF", None),
        (b"PILA", None),
        (b"PIL", None),
        (b"", None),
    ] {
        assert_eq!(Kind::of(datagram), kind, "{datagram:?}");
    }
}

#[test]
fn strict_decoders_refuse_a_second_form() {
    let refused = |packet: &[u8]| Frames::check(packet).unwrap_err();
    assert_eq!(refused(&[]), Malformed::Truncated);
    assert_eq!(refused(&[0x17]), Malformed::Type(0x17));
    assert_eq!(refused(&[0x16, 5]), Malformed::Value("part"));
    assert_eq!(refused(&[&[0x16, 1][..], &[0; 591]].concat()), Malformed::Truncated);
    assert_eq!(refused(&[0x30]), Malformed::Type(0x30));
    assert_eq!(refused(&[&[0x15][..], &[0; 20]].concat()), Malformed::Value("life"));
    // MAX_DATA 5 in two bytes.
    assert_eq!(refused(&[0x08, 0x40, 0x05]), Malformed::Varint);
    // STREAM with an offset that is 0, and one that is empty and says nothing.
    assert_eq!(refused(&[0x24, 1, 0, b'x']), Malformed::Value("offset"));
    assert_eq!(refused(&[0x20, 1]), Malformed::Value("empty"));
    assert_eq!(Frames::check(&[0x21, 1]), Ok(()));
    // The last byte would lie behind 2^62 - 1.
    let mut far = vec![0x24, 1];
    far.extend_from_slice(&[0xFF; 8]);
    far.push(b'x');
    assert_eq!(refused(&far), Malformed::Value("offset"));
    assert_eq!(refused(&[0x1A]), Malformed::Value("empty"));
    assert_eq!(refused(&[0x12, 0, 2, 0xC3, 0x28]), Malformed::Value("reason"));
    assert_eq!(refused(&[0x04, 0, 0, 0, 0]), Malformed::Value("packets"));
    let index = |seq, retire, first| {
        let mut bytes = vec![0x10, seq, retire, first, 0, 0, 0];
        bytes.extend_from_slice(&[9; 16]);
        bytes
    };
    assert_eq!(Frames::check(&index(3, 3, 1)), Ok(()));
    assert_eq!(refused(&index(3, 4, 1)), Malformed::Value("retire"));
    assert_eq!(refused(&index(3, 3, 0)), Malformed::Value("index"));
}

#[test]
fn acknowledgements_stay_within_their_bounds() {
    let refused = |packet: &[u8]| Frames::check(packet).unwrap_err();
    // Packet 5, range down to 6 below it; and a gap that reaches below 0.
    assert_eq!(refused(&[0x02, 5, 0, 0, 6]), Malformed::Value("range"));
    assert_eq!(refused(&[0x02, 5, 0, 1, 1, 3, 0]), Malformed::Value("gap"));
    assert_eq!(Frames::check(&[0x02, 5, 0, 1, 1, 2, 0]), Ok(()));
    assert_eq!(refused(&[0x03, 0, 0, 0, 0, 5, 0, 0, 0]), Malformed::Value("index"));
    assert_eq!(refused(&[0x02, 5, 0, 0x41, 0x00, 0]), Malformed::Value("ranges"));
    // One range more than a frame holds: the lowest is left out.
    let ranges = (0..=ACK_RANGES_MAX as u64).rev().map(|n| 3 * n..=3 * n);
    let mut buf = [0; 2_000];
    let len = encode_ack(None, 0, ranges, &mut buf).unwrap();
    let Some(Ok(Frame::Ack(ack))) = Frames::new(&buf[..len]).next() else { panic!("an ACK") };
    let lows: BTreeSet<u64> = ack.ranges().map(|r| *r.start()).collect();
    assert_eq!((lows.len(), lows.first()), (ACK_RANGES_MAX, Some(&3)));
    // Out of order, adjacent, empty, too large, no room.
    for wrong in [vec![0..=1, 4..=5], vec![4..=5, 2..=3], vec![], vec![VARINT_MAX + 1..=VARINT_MAX + 1]] {
        assert!(encode_ack(None, 0, wrong.iter().cloned(), &mut buf).is_err(), "{wrong:?}");
    }
    assert!(encode_ack(None, 0, [0..=0].into_iter(), &mut buf[..4]).is_err());
}

#[test]
fn what_cannot_be_said_is_not_written() {
    let mut buf = [0; 2_000];
    let long = "x".repeat(REASON_MAX + 1);
    let too_long = |len, max| Err(EncodeError::TooLong { len, max });
    assert_eq!(Frame::Close { code: 0, reason: &long }.encode(&mut buf), too_long(257, 256));
    assert_eq!(Frame::Record(&[0; 901]).encode(&mut buf), too_long(901, 900));
    assert!(Frame::MaxData(VARINT_MAX + 1).encode(&mut buf).is_err());
    assert!(Frame::MaxData(VARINT_MAX).encode(&mut buf).is_ok());
}

#[test]
fn suites_are_few_distinct_and_never_zero() {
    assert_eq!(SuiteList::new(&[2, 1]).unwrap().ids(), &[2, 1]);
    for wrong in [&[][..], &[0], &[1, 1], &[1, 2, 3, 4], &[1, 0]] {
        assert_eq!(SuiteList::new(wrong), None, "{wrong:?}");
    }
}

#[test]
fn headers_of_handshakes_are_checked() {
    let mut datagram = initiation_header(Flags::default(), 7, &[1; 8]).to_vec();
    datagram.resize(INITIATION_LEN, 0);
    assert!(Initiation::decode(&datagram).is_ok());
    let with = |at: usize, value: u8| {
        let mut changed = datagram.clone();
        changed[at] = value;
        Initiation::decode(&changed).unwrap_err()
    };
    assert_eq!(with(3, b'R'), Malformed::Magic);
    assert_eq!(with(4, 2), Malformed::Version(2));
    assert_eq!(with(5, 8), Malformed::Value("flags"));
    assert_eq!(with(5, 1), Malformed::Value("flags"), "early data announced, none there");
    assert_eq!(with(7, 1), Malformed::Value("reserved"));
    assert_eq!(with(11, 0), Malformed::Value("index"));
    assert_eq!(Initiation::decode(&datagram[..303]), Err(Malformed::Truncated));
    datagram.resize(INITIATION_MAX + 1, 0);
    assert_eq!(Initiation::decode(&datagram), Err(Malformed::TooLong));
}

#[test]
fn errors_say_what_is_wrong() {
    let texts: Vec<String> = [
        Malformed::Truncated,
        Malformed::TooLong,
        Malformed::Magic,
        Malformed::Version(9),
        Malformed::Type(0x17),
        Malformed::Varint,
        Malformed::Value("flags"),
    ]
    .iter()
    .map(ToString::to_string)
    .collect();
    assert!(texts.iter().all(|text| text.starts_with("s1: ")), "{texts:?}");
    assert!(format!("{texts:?}").contains("0x17"));
}
