//! `pilotage decode`: captures from anywhere, and datagrams as they are shown.

use pilotage_proto::crypto::{Aes256Gcm, PacketAead};

#[allow(dead_code, reason = "the program needs more of it")]
#[path = "../../crates/cli/src/decode/capture.rs"]
mod captures;
#[path = "../../crates/cli/src/decode/link.rs"]
mod link;
#[allow(dead_code, reason = "the program needs more of it")]
#[path = "../../crates/cli/src/decode/view.rs"]
mod views;

/// Largest share of a capture that one packet may claim, in bytes.
const PACKET_MAX: usize = 320 * 1024;

/// Capture files: every packet of one, down to the UDP payload. The first byte chooses what the file begins with, so
/// that no magic number has to be guessed.
pub(crate) fn capture(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    let magic: [u8; 4] = match kind & 7 {
        0 => [0xA1, 0xB2, 0xC3, 0xD4],
        1 => [0xD4, 0xC3, 0xB2, 0xA1],
        2 => [0xA1, 0xB2, 0x3C, 0x4D],
        3 => [0x4D, 0x3C, 0xB2, 0xA1],
        4 => [0x0A, 0x0D, 0x0D, 0x0A],
        // The layers below a capture, by link type.
        _ => return link_layer(kind >> 3, rest),
    };
    assert!(captures::is_capture(&magic));
    let mut file = magic.to_vec();
    file.extend_from_slice(rest);
    let Ok(mut reader) = captures::Reader::new(&file[..]) else { return };
    // Every packet takes at least one byte of the file, or the loop would not end.
    for _ in 0..=file.len() {
        match reader.next() {
            Ok(Some(packet)) => {
                assert!(packet.data.len() <= PACKET_MAX.min(file.len()));
                parse(packet.link, &packet.data);
            }
            Ok(None) | Err(_) => return,
        }
    }
    panic!("more packets than bytes");
}

fn link_layer(kind: u8, data: &[u8]) {
    let link = [0, 1, 12, 14, 101, 108, 113, 228, 229, 276, 147][usize::from(kind) % 11];
    parse(link, data);
}

fn parse(link: u32, data: &[u8]) {
    if let link::Content::Udp(udp) = link::parse(link, data) {
        assert!(udp.payload.len() <= udp.sent_len.max(data.len()));
        // The payload is a part of the packet, not a copy of something else.
        assert!(data.as_ptr_range().contains(&udp.payload.as_ptr()) || udp.payload.is_empty());
        assert_eq!(udp.source.is_ipv4(), udp.destination.is_ipv4());
    }
}

/// One datagram as text and JSON, sealed ones opened with a key: what is shown is always valid, and bounded.
pub(crate) fn view(data: &[u8]) {
    const KEY: [u8; 32] = [7; 32];
    let Some((&kind, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    let keys = if kind & 1 == 0 {
        views::Keys::default()
    } else {
        // The rest is a packet; it is sealed here, since no fuzzer finds a tag.
        let nonce = [3; 12];
        bytes.extend_from_slice(&[0; 16]);
        Aes256Gcm::new(&KEY).seal_in_place(&nonce, &[0, 0, 0, 5], &mut bytes);
        bytes.splice(0..0, [&b"PILS"[..], &[0, 0, 0, 5], &nonce].concat());
        views::Keys::new(&[KEY])
    };
    let views::View { lines, value } = views::view(&bytes, &keys);
    assert!(value["kind"].is_string() && !lines.is_empty());
    let text: usize = lines.iter().map(String::len).sum();
    assert!(text <= 4_096 + 64 * bytes.len(), "{text} bytes of text for {} bytes", bytes.len());
    assert!(
        !lines.iter().any(|line| line.chars().any(char::is_control)),
        "control characters for a terminal"
    );
}
