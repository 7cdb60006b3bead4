//! Golden bytes made with the reference: every case of `spec/vectors` that concerns this crate.

mod files;
#[allow(unreachable_pub, reason = "the fuzz package includes the same file as a public module")]
mod invariants;
mod mutations;

use std::net::{IpAddr, SocketAddr};

use files::{array, bytes, cases, load, number, text};
use pilotage_wire::beacon::{self, Message};
use pilotage_wire::frame::{self, Frame, FrameError, Pila, PilaTrailer};
use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Packet, PacketError, Protocol};
use pilotage_wire::{Address, AddressError, DatagramKind, NodeId, SocketAddress, sack};
use serde_json::Value;

#[test]
fn addresses() {
    for case in cases(&load("addresses"), "cases", 50) {
        let input = text(case, "text");
        let parsed = input.parse::<Address>();
        if case["valid"] == false {
            let error = parsed.expect_err(input);
            assert_eq!(reason(error), text(case, "reason"), "{input:?}");
            continue;
        }
        let address = parsed.unwrap_or_else(|error| panic!("{input:?}: {error}"));
        assert_eq!(address, Address::new(number(case, "network"), number(case, "node")), "{input:?}");
        assert_eq!(address.to_string(), text(case, "printed"));
        assert_eq!(address.to_string() == input, case["canonical"] == true, "{input:?}");
        assert_eq!(address.to_bytes(), array(case, "wire_hex"), "{input:?}");
        assert_eq!(Address::from_bytes(array(case, "wire_hex")), address, "{input:?}");
        assert_eq!(address.is_broadcast(), case["is_broadcast"] == true, "{input:?}");
        assert_eq!(address.is_zero(), case["is_zero"] == true, "{input:?}");
    }
}

#[test]
fn socket_addresses() {
    for case in cases(&load("addresses"), "socket_cases", 14) {
        let input = text(case, "text");
        let parsed = input.parse::<SocketAddress>();
        if case["valid"] == false {
            let got = match (parsed.expect_err(input), input) {
                (AddressError::MissingColon, "") => "no colon",
                (AddressError::MissingColon, _) => "address part invalid",
                (other, _) => reason(other),
            };
            assert_eq!(got, text(case, "reason"), "{input:?}");
            continue;
        }
        let socket = parsed.unwrap_or_else(|error| panic!("{input:?}: {error}"));
        let address = Address::new(number(case, "network"), number(case, "node"));
        assert_eq!(socket, SocketAddress::new(address, number(case, "port")), "{input:?}");
        assert_eq!(socket.to_string(), text(case, "printed"));
    }
}

/// The vectors' words for an error.
fn reason(error: AddressError) -> &'static str {
    match error {
        AddressError::MissingColon => "no colon",
        AddressError::Port => "port is not plain decimal digits, or is missing",
        AddressError::PortTooLarge => "port above 65535",
        AddressError::Network => "network part is not plain decimal digits",
        AddressError::NetworkTooLarge => "network above 65535",
        AddressError::GroupCount => "need exactly three dot separated groups",
        AddressError::GroupLength => "every group is exactly 4 bytes long",
        AddressError::GroupDigits => "a group is not 4 hex digits",
        AddressError::NetworkMismatch { .. } => "first hex group must equal the decimal network",
        other => panic!("no words for {other:?}"),
    }
}

#[test]
fn packets() {
    for case in cases(&load("packets"), "cases", 44) {
        let name = text(case, "name");
        let (expected, payload) = packet_of(case);
        assert_eq!(array::<4>(case, "checksum"), expected[30..34], "{name}");

        let Ok(protocol) = Protocol::try_from(number::<u8>(case, "protocol")) else {
            // The reference decodes these and drops them one step later; here the decoder says so itself.
            assert_eq!(
                Packet::decode(&expected),
                Err(PacketError::Protocol(number(case, "protocol"))),
                "{name}"
            );
            continue;
        };
        let header = Header {
            flags: Flags::from_bits_truncate(number(case, "flags")),
            protocol,
            src: Address::new(number(case, "src_network"), number(case, "src_node")),
            dst: Address::new(number(case, "dst_network"), number(case, "dst_node")),
            src_port: number(case, "src_port"),
            dst_port: number(case, "dst_port"),
            seq: number(case, "seq"),
            ack: number(case, "ack"),
            window: number(case, "window"),
        };
        assert_eq!(Packet::decode(&expected), Ok(Packet { header, payload: &payload }), "{name}");
        assert_eq!(Packet::decode_trusted(&expected), Ok(Packet { header, payload: &payload }), "{name}");

        let mut buf = vec![0xA5; HEADER_LEN];
        buf.extend_from_slice(&payload);
        buf.push(0x5A);
        assert_eq!(header.encode(&mut buf, payload.len()), Ok(expected.len()), "{name}");
        assert_eq!(buf.pop(), Some(0x5A), "{name}: wrote past the packet");
        assert_eq!(buf, expected, "{name}");

        if let Some(frame) = case["pilt_frame_hex"].as_str() {
            let frame = hex::decode(frame).unwrap();
            assert_eq!(frame::decode(&frame), Ok(Frame::Pilt { packet: &expected }), "{name}");
            let mut magic = [0; 4];
            assert_eq!(frame::encode_pilt_header(&mut magic), Ok(4));
            assert_eq!(magic, frame[..4], "{name}");
        }
    }
}

/// Packet bytes and payload; the largest case is stored as a header and a repeated byte.
fn packet_of(case: &Value) -> (Vec<u8>, Vec<u8>) {
    if case["packet_hex"].is_string() {
        return (bytes(case, "packet_hex"), bytes(case, "payload_hex"));
    }
    let repeat = &case["payload_repeat"];
    let payload = vec![number::<u8>(repeat, "byte"); number(repeat, "count")];
    let mut packet = bytes(case, "header_hex");
    packet.extend_from_slice(&payload);
    (packet, payload)
}

#[test]
fn malformed_packets() {
    for case in cases(&load("packets"), "malformed", 28) {
        let name = text(case, "name");
        let input = bytes(case, "packet_hex");
        let decoded = Packet::decode(&input);
        if case["accepted_by_reference"] == true {
            assert_eq!(decoded.map(|packet| packet.payload), Ok(&b"hello"[..]), "{name}");
            continue;
        }
        let error = decoded.expect_err(name);
        let reason = text(case, "reason");
        let expected = match error {
            PacketError::TooShort { len } => len < HEADER_LEN && reason == "too short",
            PacketError::Truncated { need, len } => {
                need > len
                    && (reason == "truncated payload"
                        || reason == "length/ checksum"
                        || reason == "magic not stripped")
            }
            PacketError::Checksum { stated, computed } => stated != computed && reason.contains("checksum"),
            PacketError::Version(version) => version == input[0] >> 4 && reason == "unsupported version",
            _ => false,
        };
        assert!(expected, "{name}: {error}, the vector says {reason:?}");
    }
}

#[test]
fn pila_and_pilk() {
    for case in cases(&load("pila"), "cases", 4) {
        let sender = NodeId(number(case, "node_id"));
        let x25519 = array(case, "x25519_public");
        let pila_frame = bytes(case, "pila_frame");
        let pilk_frame = bytes(case, "pilk_frame");
        let pila = Pila {
            sender,
            x25519,
            ed25519: array(case, "ed25519_public"),
            signature: array(case, "signature"),
            trailer: &[],
        };
        assert_eq!(frame::decode(&pila_frame), Ok(Frame::Pila(pila)));
        assert_eq!(frame::decode(&pilk_frame), Ok(Frame::Pilk { sender, x25519 }));
        assert_eq!(frame::pila_signed_message(sender, &x25519), array(case, "signed_message"));

        let mut buf = [0xA5; 200];
        assert_eq!(frame::encode_pila(&pila, &mut buf), Ok(frame::PILA_LEN));
        assert_eq!(buf[..frame::PILA_LEN], pila_frame);
        assert_eq!(frame::encode_pilk(sender, &x25519, &mut buf), Ok(frame::PILK_LEN));
        assert_eq!(buf[..frame::PILK_LEN], pilk_frame);

        for len in 0..pila_frame.len() {
            assert!(
                matches!(frame::decode(&pila_frame[..len]), Err(FrameError::TooShort { .. })),
                "{len} bytes"
            );
        }
        for len in 0..pilk_frame.len() {
            assert!(
                matches!(frame::decode(&pilk_frame[..len]), Err(FrameError::TooShort { .. })),
                "{len} bytes"
            );
        }
    }
}

#[test]
fn pila_trailers_of_newer_peers() {
    let file = load("pila");
    let plain = bytes(&cases(&file, "cases", 4)[0], "pila_frame");
    for case in cases(&file, "newer_trailer_examples", 3) {
        let trailer = bytes(case, "trailer_hex");
        let expected =
            PilaTrailer { capabilities: number(case, "caps"), flags: number(case, "flags"), pilotage: None };
        let datagram = [&plain[..], &trailer].concat();
        let Ok(Frame::Pila(pila)) = frame::decode(&datagram) else { panic!("{case}") };
        assert_eq!(pila.trailer, trailer);
        assert_eq!(PilaTrailer::decode(pila.trailer), expected, "{case}");

        let mut buf = [0; 200];
        let len = frame::encode_pila(&pila, &mut buf).unwrap();
        assert_eq!(buf[..len], datagram);
        let len = expected.encode(&mut buf);
        // The flags are always written, even where the example leaves a trailing zero out.
        assert!(buf[..len].starts_with(&trailer), "{case}");
    }
}

#[test]
fn pils_framing() {
    for case in cases(&load("pils"), "cases", 5) {
        let mut datagram = bytes(case, "frame_hex");
        let packet = bytes(case, "packet_hex");
        let sender = NodeId(number(case, "sender_id"));
        let nonce = array(case, "nonce");
        let Ok(Frame::Pils { sender: got_sender, nonce: got_nonce, ciphertext }) = frame::decode(&datagram)
        else {
            panic!("{case}")
        };
        assert_eq!((got_sender, got_nonce), (sender, nonce));
        assert_eq!(ciphertext.len(), packet.len() + frame::TAG_LEN);
        assert_eq!(datagram.len(), packet.len() + frame::PILS_OVERHEAD);
        assert_eq!(frame::pils_aad(sender), array(case, "aad"));

        let mut header = [0; frame::PILS_HEADER_LEN];
        assert_eq!(frame::encode_pils_header(sender, &nonce, &mut header), Ok(frame::PILS_HEADER_LEN));
        assert_eq!(header, datagram[..frame::PILS_HEADER_LEN]);

        let copy = datagram.clone();
        let parts = frame::split_pils_mut(&mut datagram).expect("complete frame");
        assert_eq!((parts.0, parts.1, &*parts.2), (sender, nonce, &copy[frame::PILS_HEADER_LEN..]));
    }
}

#[test]
fn pils_frames_that_only_the_tag_or_the_length_can_refuse() {
    for case in cases(&load("pils"), "must_reject", 6) {
        let mut datagram = bytes(case, "frame_hex");
        let complete = datagram.len() >= frame::PILS_OVERHEAD;
        assert_eq!(frame::decode(&datagram).is_ok(), complete, "{case}");
        assert_eq!(frame::split_pils_mut(&mut datagram).is_some(), complete, "{case}");
    }
}

#[test]
fn sack_encode() {
    for case in cases(&load("sack"), "cases", 8) {
        let name = text(case, "name");
        let blocks = blocks_of(&case["blocks"]);
        let expected = bytes(case, "payload_hex");
        let mut buf = [0xA5; 64];
        let len = sack::encode(&blocks, &mut buf);
        assert_eq!(buf[..len], expected, "{name}");
        let decoded = sack::decode(&expected);
        if blocks.is_empty() {
            assert_eq!(decoded, None, "{name}");
        } else {
            assert_eq!(*decoded.expect(name), blocks[..blocks.len().min(sack::MAX_BLOCKS)], "{name}");
        }
    }
}

#[test]
fn sack_decode() {
    for case in cases(&load("sack"), "decode", 10) {
        let name = text(case, "name");
        let payload = bytes(case, "payload_hex");
        let reference_says_sack = case["is_sack"] == true;
        assert_eq!(sack::looks_like_sack(&payload), reference_says_sack, "{name}");
        // Deviation: a payload with bytes after its blocks is data to us, so that it is not lost.
        let exact = payload.get(4).is_some_and(|&count| payload.len() == 5 + 8 * usize::from(count));
        match sack::decode(&payload) {
            Some(blocks) => assert_eq!(*blocks, blocks_of(&case["blocks"])[..], "{name}"),
            None => assert!(!(reference_says_sack && exact), "{name}"),
        }
        assert_eq!(sack::decode(&payload).is_some(), reference_says_sack && exact, "{name}");
    }
}

#[test]
fn sack_merge() {
    for case in cases(&load("sack"), "merge", 6) {
        let name = text(case, "name");
        let mut segments: Vec<(u32, u32)> = case["out_of_order_segments"]
            .as_array()
            .unwrap()
            .iter()
            .map(|segment| (number(segment, "seq"), number(segment, "len")))
            .collect();
        // Any point below all segments will do; the vectors do not name one.
        let next_expected = segments[0].0.wrapping_sub(1 << 30);
        let blocks = sack::merge(next_expected, &mut segments);
        assert_eq!(*blocks, blocks_of(&case["blocks"])[..], "{name}");
    }
}

fn blocks_of(list: &Value) -> Vec<(u32, u32)> {
    let pair = |block| (number(block, "left"), number(block, "right"));
    list.as_array().map(|blocks| blocks.iter().map(pair).collect()).unwrap_or_default()
}

#[test]
fn beacon_messages() {
    let mut messages = 0;
    for case in cases(&load("beacon"), "cases", 15) {
        let name = text(case, "name");
        let datagram = bytes(case, "hex");
        if case["type"] == "PILP" {
            assert_eq!(DatagramKind::of(&datagram), DatagramKind::Frame, "{name}");
            assert_eq!(frame::decode(&datagram), Ok(Frame::Pilp), "{name}");
            let mut buf = [0; 4];
            assert_eq!(frame::encode_pilp(&mut buf), Ok(4));
            assert!(datagram.starts_with(&buf), "{name}");
            continue;
        }
        messages += 1;
        assert_eq!(DatagramKind::of(&datagram), DatagramKind::Beacon, "{name}");
        let message = Message::decode(&datagram).unwrap_or_else(|error| panic!("{name}: {error}"));
        check_fields(case, &message);
        let mut buf = [0xA5; 64];
        assert_eq!(message.encode(&mut buf), Ok(datagram.len()), "{name}");
        assert_eq!(buf[..datagram.len()], datagram, "{name}");
        // Frames may have any length, even none; everything else must be complete.
        let shortest = datagram.len() - case["inner_hex"].as_str().map_or(0, |inner| inner.len() / 2);
        for len in 0..shortest {
            assert!(Message::decode(&datagram[..len]).is_err(), "{name} cut to {len} bytes");
        }
    }
    assert_eq!(messages, 13);
}

/// Compares a decoded message with the fields of its vector.
fn check_fields(case: &Value, message: &Message<'_>) {
    let node = |field| NodeId(number(case, field));
    let addr = || SocketAddr::new(text(case, "ip").parse::<IpAddr>().unwrap(), number(case, "port"));
    match (number::<u8>(case, "type"), *message) {
        (1, Message::Discover { node: got }) => assert_eq!(got, node("node_id")),
        (2, Message::DiscoverReply { addr: got }) | (4, Message::PunchCommand { addr: got }) => {
            assert_eq!(got, addr());
        }
        (3, Message::PunchRequest { node: got, target }) => {
            assert_eq!((got, target), (node("requester"), node("target")));
        }
        (5, Message::Relay { src, dst, frame }) | (9, Message::DeliverEx { src, dst, frame }) => {
            assert_eq!((src, dst, frame), (node("sender"), node("dest"), &*bytes(case, "inner_hex")));
        }
        (6, Message::Deliver { src, frame }) => {
            assert_eq!((src, frame), (node("sender"), &*bytes(case, "inner_hex")));
        }
        (7, Message::Gossip { beacon, nodes }) => {
            assert_eq!(beacon, number::<u32>(case, "beacon_id"));
            let expected: Vec<NodeId> = case["nodes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| NodeId(id.as_u64().unwrap() as u32))
                .collect();
            assert_eq!(nodes.iter().collect::<Vec<_>>(), expected);
            assert_eq!(nodes.len(), expected.len());
            let mut buf = [0; 64];
            let len = beacon::encode_gossip(beacon, &expected, &mut buf).unwrap();
            assert_eq!(buf[..len], bytes(case, "hex"));
        }
        (8, Message::DiscoverEx { node: got }) => assert_eq!(got, node("node_id")),
        (number, other) => panic!("type {number} decoded as {other:?}"),
    }
}
