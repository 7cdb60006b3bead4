//! The codec on the per-packet path: header and checksum, frame split, SACK.

use std::hint::black_box;

use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Packet, Protocol, checksum};
use pilotage_wire::{Address, NodeId, frame, sack};

use super::{List, MANY, PAYLOADS};

const HEADER: Header = Header {
    flags: Flags::ACK,
    protocol: Protocol::Stream,
    src: Address::new(0, 1),
    dst: Address::new(0, 2),
    src_port: 49_152,
    dst_port: 1000,
    seq: 1,
    ack: 1,
    window: 512,
};

/// A finished packet with a payload that is not all zeros.
fn packet(payload_len: usize) -> Vec<u8> {
    let mut buf: Vec<u8> = (0..HEADER_LEN + payload_len).map(|at| at as u8).collect();
    HEADER.encode(&mut buf, payload_len).expect("the buffer was made for it");
    buf
}

pub(super) fn add(list: &mut List) {
    for len in PAYLOADS {
        let bytes = len as u64;
        list.add(format!("packet/encode/{len}"), 1, bytes, move || {
            let mut buf = packet(len);
            move || {
                let _ = black_box(black_box(&HEADER).encode(black_box(&mut buf), len));
            }
        });
        list.add(format!("packet/decode/{len}"), 1, bytes, move || {
            let buf = packet(len);
            move || {
                black_box(Packet::decode(black_box(&buf)).is_ok());
            }
        });
        list.add(format!("packet/crc/{len}"), 1, bytes, move || {
            let buf = packet(len);
            move || {
                if let Some((head, payload)) = black_box(&buf).split_first_chunk::<HEADER_LEN>() {
                    black_box(checksum(head, payload));
                }
            }
        });
    }
    list.add("packet/decode_trusted/1382", MANY, 1_382, || {
        let buf = packet(1_382);
        move || {
            for _ in 0..MANY {
                black_box(Packet::decode_trusted(black_box(&buf)).is_ok());
            }
        }
    });
    frames(list);
    sacks(list);
}

fn frames(list: &mut List) {
    let sealed = || {
        let mut pils = vec![0; frame::PILS_OVERHEAD + HEADER_LEN + 1_382];
        frame::encode_pils_header(NodeId(1), &[7; 12], &mut pils).expect("the buffer was made for it");
        pils
    };
    list.add("frame/encode_pils_header", MANY, 0, move || {
        let mut pils = sealed();
        move || {
            for _ in 0..MANY {
                let _ = black_box(frame::encode_pils_header(
                    black_box(NodeId(1)),
                    black_box(&[7; 12]),
                    &mut pils,
                ));
            }
        }
    });
    list.add("frame/decode_pils", MANY, 0, move || {
        let pils = sealed();
        move || {
            for _ in 0..MANY {
                black_box(frame::decode(black_box(&pils)).is_ok());
            }
        }
    });
    list.add("frame/split_pils_mut", MANY, 0, move || {
        let mut pils = sealed();
        move || {
            for _ in 0..MANY {
                black_box(frame::split_pils_mut(black_box(&mut pils)).is_some());
            }
        }
    });
}

fn sacks(list: &mut List) {
    const BLOCKS: [(u32, u32); 4] = [(8193, 12_289), (16_385, 20_481), (24_577, 28_673), (32_769, 36_865)];
    list.add("sack/encode/4", MANY, 0, || {
        let mut payload = [0; sack::MAX_LEN];
        move || {
            for _ in 0..MANY {
                let _ = black_box(sack::encode(black_box(&BLOCKS), &mut payload));
            }
        }
    });
    list.add("sack/decode/4", MANY, 0, || {
        let mut payload = [0; sack::MAX_LEN];
        let _ = sack::encode(&BLOCKS, &mut payload);
        move || {
            for _ in 0..MANY {
                let _ = black_box(sack::decode(black_box(&payload)));
            }
        }
    });
}
