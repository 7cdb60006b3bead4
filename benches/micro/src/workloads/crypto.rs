//! Sealing and opening of packets, by suite and crate, and what a handshake costs.

use std::hint::black_box;

use aws_lc_rs::aead::{AES_128_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use pilotage_proto::crypto::{
    AwsLcAes256Gcm, EphemeralKey, Identity, PacketAead, RustCryptoAes256Gcm, TAG_LEN, verify,
};

use super::{List, PAYLOADS};

const AAD: [u8; 4] = [0, 0, 0, 1];

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

pub(super) fn add(list: &mut List) {
    ours(list, "aes-256-gcm/aws-lc-rs", || AwsLcAes256Gcm::new(&[7; 32]));
    ours(list, "aes-256-gcm/rustcrypto", || RustCryptoAes256Gcm::new(&[7; 32]));
    // Not used by packets: what another suite would cost.
    foreign(list, "aes-128-gcm/aws-lc-rs", &AES_128_GCM, 16);
    foreign(list, "chacha20-poly1305/aws-lc-rs", &CHACHA20_POLY1305, 32);
    copies(list);
    handshake(list);
}

fn ours<A: PacketAead + 'static>(list: &mut List, name: &str, make: fn() -> A) {
    for len in PAYLOADS {
        let bytes = len as u64;
        list.add(format!("{name}/seal/{len}"), 1, bytes, move || {
            let (aead, mut buf, mut counter) = (make(), vec![0x5A; len + TAG_LEN], 0);
            move || {
                counter += 1;
                aead.seal_in_place(&nonce(counter), &AAD, black_box(&mut buf));
            }
        });
        list.add(format!("{name}/copy and open/{len}"), 1, bytes, move || {
            let (aead, mut sealed) = (make(), vec![0x5A; len + TAG_LEN]);
            aead.seal_in_place(&nonce(0), &AAD, &mut sealed);
            let mut buf = sealed.clone();
            move || {
                // Opening destroys its input: each run needs a fresh copy, whose cost `copy` tells.
                buf.copy_from_slice(black_box(&sealed));
                black_box(aead.open_in_place(&nonce(0), &AAD, &mut buf).is_some());
            }
        });
    }
}

fn foreign(list: &mut List, name: &str, algorithm: &'static Algorithm, key_len: usize) {
    let key = move || {
        let key = UnboundKey::new(algorithm, &[7; 32][..key_len]).expect("a key of the algorithm's length");
        LessSafeKey::new(key)
    };
    for len in PAYLOADS {
        let bytes = len as u64;
        list.add(format!("{name}/seal/{len}"), 1, bytes, move || {
            let (key, mut buf, mut counter) = (key(), vec![0x5A; len], 0);
            move || {
                counter += 1;
                let nonce = Nonce::assume_unique_for_key(nonce(counter));
                black_box(key.seal_in_place_separate_tag(nonce, Aad::from(AAD), black_box(&mut buf)).is_ok());
            }
        });
        list.add(format!("{name}/copy and open/{len}"), 1, bytes, move || {
            let (key, mut sealed) = (key(), vec![0x5A; len]);
            key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce(0)), Aad::from(AAD), &mut sealed)
                .expect("far below the limit");
            let mut buf = sealed.clone();
            move || {
                buf.copy_from_slice(black_box(&sealed));
                let nonce = Nonce::assume_unique_for_key(nonce(0));
                black_box(key.open_in_place(nonce, Aad::from(AAD), &mut buf).is_ok());
            }
        });
    }
}

fn copies(list: &mut List) {
    for len in PAYLOADS {
        list.add(format!("copy/{len}"), 1, len as u64, move || {
            let (from, mut to) = (vec![0x5A; len + TAG_LEN], vec![0; len + TAG_LEN]);
            move || to.copy_from_slice(black_box(&from))
        });
    }
}

fn handshake(list: &mut List) {
    const MESSAGE: [u8; 40] = [3; 40];
    list.add("handshake/sign", 1, 0, || {
        let identity = Identity::from_seed([1; 32]);
        move || {
            black_box(identity.sign(black_box(&MESSAGE)));
        }
    });
    list.add("handshake/verify", 1, 0, || {
        let identity = Identity::from_seed([1; 32]);
        let (public, signature) = (identity.public_key(), identity.sign(&MESSAGE));
        move || {
            black_box(verify(black_box(&public), &MESSAGE, &signature));
        }
    });
    list.add("handshake/new_key", 1, 0, || {
        || {
            black_box(EphemeralKey::from_bytes(black_box([5; 32])));
        }
    });
    list.add("handshake/tunnel_key", 1, 0, || {
        let ours = EphemeralKey::from_bytes([5; 32]);
        let theirs = EphemeralKey::from_bytes([6; 32]).public();
        move || {
            black_box(ours.tunnel_key(black_box(&theirs)).is_some());
        }
    });
}
