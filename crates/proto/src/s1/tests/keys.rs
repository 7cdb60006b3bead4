//! Suites and masks: two implementations held against each other, and the published samples.

use super::super::aead::HeaderKey;
use super::*;
use crate::crypto::PacketAead;

#[test]
fn masks_of_both_implementations_are_those_of_the_rfc() {
    let array = |text: &str| -> [u8; 32] { hex::decode(text).unwrap().try_into().unwrap() };
    // RFC 9001 appendix A.5.
    let key = array("25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4");
    let sample: [u8; 16] = hex::decode("5e5cd55c41f69080575d7999c25a5bfb").unwrap().try_into().unwrap();
    assert_eq!(HeaderKey::new(Suite::ChaCha20Poly1305, &key).mask(&sample), [0xae, 0xfe, 0xfe, 0x7d, 0x03]);
    let mut rng = ChaCha20Rng::from_seed([1; 32]);
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        for _ in 0..200 {
            let (mut key, mut sample) = ([0; 32], [0; 16]);
            rng.fill_bytes(&mut key);
            rng.fill_bytes(&mut sample);
            let by_other = HeaderKey::by_rust_crypto(suite, &key).mask(&sample);
            assert_eq!(HeaderKey::new(suite, &key).mask(&sample), by_other, "{suite:?}");
        }
    }
}

#[test]
fn both_implementations_of_chacha_agree() {
    let mut rng = ChaCha20Rng::from_seed([2; 32]);
    for _ in 0..200 {
        let (mut key, mut nonce) = ([0; 32], [0; 12]);
        rng.fill_bytes(&mut key);
        rng.fill_bytes(&mut nonce);
        let (plain, aad) = (random_bytes(&mut rng, 300), random_bytes(&mut rng, 30));
        let ours: [Box<dyn PacketAead>; 2] =
            [Box::new(ChaCha20Poly1305::new(&key)), Box::new(RustCryptoChaCha20Poly1305::new(&key))];
        let sealed = ours.each_ref().map(|aead| {
            let mut buf = plain.clone();
            buf.resize(plain.len() + 16, 0);
            aead.seal_in_place(&nonce, &aad, &mut buf);
            buf
        });
        assert_eq!(sealed[0], sealed[1]);
        for aead in &ours {
            let mut out = vec![0; plain.len()];
            assert_eq!(aead.open_to(&nonce, &aad, &sealed[0], &mut out), Some(plain.len()));
            assert_eq!(out, plain);
            let mut forged = sealed[0].clone();
            forged[plain.len()] ^= 1;
            assert!(aead.open_to(&nonce, &aad, &forged, &mut out).is_none());
            assert!(aead.open_in_place(&nonce, &aad, &mut forged).is_none());
            let mut good = sealed[1].clone();
            assert_eq!(aead.open_in_place(&nonce, &aad, &mut good).unwrap(), &plain[..]);
        }
    }
}

#[test]
fn the_exporter_is_the_same_at_both_sides_and_for_nothing_else() {
    let (mut a, mut b) = connected();
    let mut out = [[0; 48]; 5];
    assert!(a.session().export(b"port 443", b"x", &mut out[0]));
    assert!(b.session().export(b"port 443", b"x", &mut out[1]));
    assert!(a.session().export(b"port 444", b"x", &mut out[2]));
    assert!(a.session().export(b"port 443", b"y", &mut out[3]));
    assert!(a.session().export(b"port 443x", b"", &mut out[4]));
    assert_eq!(out[0], out[1]);
    assert!((1..5).all(|n| (n + 1..5).all(|m| out[n] != out[m])), "each differs");
    assert!(!a.session().export(&[0; 256], b"", &mut out[0]));
    // Another handshake between the same two exports something else.
    shake(&mut a, &mut b);
    assert!(a.session().export(b"port 443", b"x", &mut out[0]));
    assert_ne!(out[0], out[1]);
}

#[test]
fn directions_and_suites_share_no_key() {
    let (mut a, mut b) = connected();
    let [send, receive] = a.session().secrets().map(|(secret, iv)| (*secret, *iv));
    assert_ne!(send, receive);
    let at_b = b.session().secrets().map(|(secret, iv)| (*secret, *iv));
    assert_eq!(at_b, [receive, send]);
    // A packet that comes back to its sender does not open.
    let ping = a.seal(&[1]).unwrap();
    let mut reflected = ping.clone();
    let now = a.now;
    assert_eq!(a.session().open(&mut reflected, now), Err(OpenError::Unauthentic));
}
