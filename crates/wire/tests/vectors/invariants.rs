//! What must hold for every parser on every input. One function per parser, shared by the mutation test here and by
//! the targets in `fuzz/`, which include this file. None may panic; what decodes must survive encoding.

use pilotage_wire::beacon::Message;
use pilotage_wire::frame::{self, Frame, PilaTrailer};
use pilotage_wire::packet::{self, HEADER_LEN, Packet};
use pilotage_wire::s1::frames::{Frame as S1Frame, Frames};
use pilotage_wire::s1::{Kind, Malformed, data, handshake, payload};
use pilotage_wire::{Address, DatagramKind, SocketAddress, addressing, ipc, sack};

/// Text and binary addresses, socket addresses, fingerprints.
pub fn address(input: &[u8]) {
    if let Some(bytes) = input.first_chunk::<6>() {
        let address = Address::from_bytes(*bytes);
        assert_eq!(address.to_bytes(), *bytes);
        assert_eq!(address.to_string().parse(), Ok(address));
    }
    let Ok(text) = core::str::from_utf8(input) else { return };
    match text.parse::<Address>() {
        Ok(address) => assert_eq!(address.to_string().parse(), Ok(address)),
        Err(error) => {
            assert!(error.to_string().contains("N:NNNN") || error.to_string().contains("HHHH.LLLL"))
        }
    }
    if let Ok(socket) = text.parse::<SocketAddress>() {
        assert_eq!(socket.to_string().parse(), Ok(socket));
        let (address, port) = text.rsplit_once(':').expect("a socket address has a colon");
        assert_eq!((address.parse(), port.parse()), (Ok(socket.address), Ok(socket.port)));
    }
    if let Ok(fingerprint) = addressing::parse_fingerprint(text) {
        assert_eq!(addressing::parse_fingerprint(&fingerprint.to_string()), Ok(fingerprint));
    }
}

/// Packets, once as they are and once with the checksum put right, so that the checks behind it are reached too.
pub fn packet(input: &[u8]) {
    packet_as_is(input);
    let mut fixed = input.to_vec();
    if let Some((head, rest)) = fixed.split_first_chunk_mut::<HEADER_LEN>()
        && let Some(payload) = rest.get(..usize::from(u16::from_be_bytes([head[2], head[3]])))
    {
        let checksum = packet::checksum(head, payload).to_be_bytes();
        head[30..].copy_from_slice(&checksum);
        packet_as_is(&fixed);
        assert_eq!(Packet::decode(&fixed), Packet::decode_trusted(input));
    }
}

fn packet_as_is(input: &[u8]) {
    let Ok(packet) = Packet::decode(input) else { return };
    assert_eq!(Packet::decode_trusted(input), Ok(packet));
    let mut buf = vec![0; HEADER_LEN];
    buf.extend_from_slice(packet.payload);
    let len = packet.header.encode(&mut buf, packet.payload.len()).expect("the buffer is long enough");
    assert_eq!(buf[..len], input[..len]);
}

/// Tunnel frames and the packet in a plaintext frame.
pub fn frame(input: &[u8]) {
    let decoded = frame::decode(input);
    assert!(decoded.is_err() || DatagramKind::of(input) == DatagramKind::Frame);
    let mut copy = input.to_vec();
    let split = frame::split_pils_mut(&mut copy);
    assert_eq!(split.is_some(), matches!(decoded, Ok(Frame::Pils { .. })));
    let mut buf = vec![0; input.len()];
    let len = match decoded {
        Ok(Frame::Pila(pila)) => frame::encode_pila(&pila, &mut buf),
        Ok(Frame::Pilk { sender, x25519 }) => frame::encode_pilk(sender, &x25519, &mut buf),
        Ok(Frame::Pils { sender, nonce, ciphertext }) => {
            assert_eq!(split, Some((sender, nonce, &mut ciphertext.to_vec()[..])));
            frame::encode_pils_header(sender, &nonce, &mut buf)
        }
        Ok(Frame::Pilt { packet }) => {
            packet_as_is(packet);
            frame::encode_pilt_header(&mut buf)
        }
        Ok(Frame::Pilp) => frame::encode_pilp(&mut buf),
        Err(_) => return,
    };
    let len = len.expect("no longer than the input");
    assert_eq!(buf[..len], input[..len]);
}

/// The tail of a PILA frame: never refused, and stable once normalised.
pub fn pila_trailer(input: &[u8]) {
    let trailer = PilaTrailer::decode(input);
    let mut buf = [0; frame::MAX_PILA_TRAILER];
    let len = trailer.encode(&mut buf);
    assert!((2..=frame::MAX_PILA_TRAILER).contains(&len));
    assert_eq!(PilaTrailer::decode(&buf[..len]), trailer);
}

/// SACK payloads, and merging of arbitrary segments.
pub fn sack(input: &[u8]) {
    if let Some(blocks) = sack::decode(input) {
        assert!(sack::looks_like_sack(input));
        let mut buf = [0; sack::MAX_LEN];
        let len = sack::encode(&blocks, &mut buf);
        assert_eq!(buf[..len], *input);
    }
    let word = |bytes: &[u8]| bytes.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte));
    let mut segments: Vec<_> =
        input.chunks_exact(8).map(|pair| (word(&pair[..4]), word(&pair[4..]))).collect();
    let blocks = sack::merge(input.len() as u32, &mut segments);
    assert_eq!(blocks.is_empty(), segments.iter().all(|&(_, len)| len == 0));
}

/// Beacon messages. Not byte-exact: bytes after a fixed message are dropped, mapped IPv4 addresses shortened.
pub fn beacon(input: &[u8]) {
    let Ok(message) = Message::decode(input) else { return };
    assert_eq!(DatagramKind::of(input), DatagramKind::Beacon);
    let mut buf = vec![0; message.encoded_len()];
    assert!(buf.len() <= input.len());
    assert_eq!(message.encode(&mut buf), Ok(buf.len()));
    assert_eq!(Message::decode(&buf), Ok(message));
}

/// Messages of the local socket, in both directions: what decodes encodes to a frame that decodes to the same.
pub fn ipc(input: &[u8]) {
    if let Ok(Some(message)) = ipc::next_message(input) {
        assert!((1..=ipc::MAX_MESSAGE).contains(&message.len()));
    }
    if let Ok(request) = ipc::Request::decode(input) {
        let mut frame = vec![0; request.encoded_len()];
        assert_eq!(request.encode(&mut frame), Ok(frame.len()));
        let message = ipc::next_message(&frame).expect("length").expect("complete");
        assert!(message.len() <= input.len());
        assert_eq!(ipc::Request::decode(message), Ok(request));
    }
    if let Ok(reply) = ipc::Reply::decode(input) {
        let mut frame = vec![0; reply.encoded_len()];
        assert_eq!(reply.encode(&mut frame), Ok(frame.len()));
        let message = ipc::next_message(&frame).expect("length").expect("complete");
        assert_eq!(ipc::Reply::decode(message), Ok(reply));
    }
}

/// Framing and JSON of the registry protocol.
pub fn registry_frame(input: &[u8]) {
    pilotage_wire::registry::fuzz_input(input);
}

/// S1's handshake frames, what they carry sealed, and the header of data frames.
pub fn s1_handshake(input: &[u8]) {
    let kind = Kind::of(input);
    let is = |expected, decoded: bool| assert!(!decoded || kind == Some(expected));
    if let Ok(pili) = handshake::Initiation::decode(input) {
        assert_eq!(handshake::initiation_header(pili.flags, pili.sender, &pili.prekey_id), *pili.header);
        assert_eq!(pili.before_mac1.len() + 32, input.len());
        is(Kind::Initiation, true);
    }
    if let Ok(pilr) = handshake::Response::decode(input) {
        let header =
            handshake::response_header((pilr.early_accepted, pilr.post_quantum), pilr.sender, pilr.receiver);
        assert!(input.starts_with(&header));
        is(Kind::Response, true);
    }
    if let Ok(pilc) = handshake::CookieReply::decode(input) {
        assert_eq!(pilc.encode(), input);
        is(Kind::Cookie, true);
    }
    if let Ok(piln) = handshake::NewPrekey::decode(input) {
        assert_eq!(piln.encode(), input);
        is(Kind::NewPrekey, true);
    }
    if let Ok(pilx) = handshake::Reset::decode(input) {
        assert_eq!(pilx.encode(), input);
        is(Kind::Reset, true);
    }
    is(Kind::Data, data::receiver(input).is_some());
    if let Some(bytes) = input.first_chunk()
        && let Ok(header) = data::Header::from_bytes(bytes)
    {
        assert_eq!(header.to_bytes(), *bytes);
    }
    if let Ok((one, early)) = payload::Payload1::decode(input) {
        assert_eq!(one.encode(), input[..input.len() - early.len()]);
    }
    if let Some(bytes) = input.first_chunk()
        && let Ok(two) = payload::Payload2::decode(bytes)
    {
        assert_eq!(two.encode(), *bytes);
    }
}

/// The frames inside S1's data frames: each has one form, and what is decoded lies where it was.
pub fn s1_frames(input: &[u8]) {
    let mut rest = input;
    let mut whole = !input.is_empty();
    for frame in Frames::new(input) {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                assert!(error != Malformed::Magic && error.to_string().starts_with("s1: "));
                whole = false;
                break;
            }
        };
        let mut buf = vec![0; rest.len()];
        let len = frame.encode(&mut buf).expect("it fits where it was");
        assert!(len > 0 && buf[..len] == rest[..len], "another form of {frame:?}");
        rest = &rest[len..];
        if let S1Frame::Ack(ack) = frame {
            let mut below = u64::MAX;
            let mut count = 0;
            for range in ack.ranges() {
                assert!(range.start() <= range.end() && *range.end() < below);
                below = range.start().saturating_sub(1);
                count += 1;
            }
            assert!((1..=256).contains(&count));
        }
    }
    assert_eq!(Frames::check(input).is_ok(), whole);
}
