//! The reference's vectors and the properties that tunnels rely on.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const KDF: &str = include_str!("../../../../spec/vectors/kdf.json");
const PILA: &str = include_str!("../../../../spec/vectors/pila.json");
const PILS: &str = include_str!("../../../../spec/vectors/pils.json");
const PORT443: &str = include_str!("../../../../spec/vectors/port443.json");

fn load(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

/// Every implementation compiled into this build.
fn implementations(key: &[u8; KEY_LEN]) -> Vec<Box<dyn PacketAead>> {
    vec![
        #[cfg(feature = "aws-lc-rs")]
        Box::new(AwsLcAes256Gcm::new(key)),
        Box::new(RustCryptoAes256Gcm::new(key)),
    ]
}

fn seal(aead: &dyn PacketAead, nonce: &[u8; NONCE_LEN], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let mut buf = plaintext.to_vec();
    buf.resize(plaintext.len() + TAG_LEN, 0xAA);
    aead.seal_in_place(nonce, aad, &mut buf);
    buf
}

/// Every type that holds a secret wipes it when dropped, and wiping leaves nothing.
#[test]
fn secrets_are_wiped_after_derivation() {
    use zeroize::{Zeroize, ZeroizeOnDrop};

    fn wipes_itself<T: ZeroizeOnDrop>(value: T) -> T {
        value
    }
    let secret = wipes_itself(x25519_dalek::StaticSecret::from([7; 32]));
    let shared = wipes_itself(secret.diffie_hellman(&x25519_dalek::PublicKey::from([9; 32])));
    wipes_itself(ed25519_dalek::SigningKey::from_bytes(&[7; 32]));
    let mut key = wipes_itself(derive(shared.as_bytes(), INFO_TUNNEL));
    assert_ne!(key.as_bytes(), &[0; 32]);
    key.zeroize();
    assert_eq!(key.as_bytes(), &[0; 32]);
}

mod exchange {
    use super::*;

    #[test]
    fn kdf_vectors() {
        let vectors = load(KDF);
        let cases = list(&vectors, "cases");
        assert_eq!(cases.len(), 6);
        for case in cases {
            let a = EphemeralKey::from_bytes(array(&case["a_private"]));
            let b = EphemeralKey::from_bytes(array(&case["b_private"]));
            assert_eq!(a.public(), array(&case["a_public"]));
            assert_eq!(b.public(), array(&case["b_public"]));
            let shared = array(&case["shared_secret"]);
            for (info, expected) in [(INFO_TUNNEL, "tunnel_key"), (INFO_SECURE, "secure_key")] {
                let expected: [u8; 32] = array(&case[expected]);
                assert_eq!(derive(&shared, info).as_bytes(), &expected);
                assert_eq!(a.shared_key(&b.public(), info).unwrap().as_bytes(), &expected);
                assert_eq!(b.shared_key(&a.public(), info).unwrap().as_bytes(), &expected);
            }
            assert_eq!(a.tunnel_key(&b.public()).unwrap().as_bytes(), &array(&case["tunnel_key"]));
        }
    }

    #[test]
    fn low_order_vectors_are_refused() {
        let vectors = load(KDF);
        let cases = list(&vectors, "low_order");
        assert_eq!(cases.len(), 2);
        for case in cases {
            assert_eq!(case["accepted_by_reference"], false);
            assert!(EphemeralKey::from_bytes([7; 32]).tunnel_key(&array(&case["public"])).is_none());
        }
    }

    /// All points of order 1, 2, 4 and 8, with their non-canonical encodings.
    #[test]
    fn every_known_low_order_point_is_refused() {
        let points = [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ];
        for point in points {
            let mut point: [u8; 32] = hex::decode(point).unwrap().try_into().unwrap();
            for top_bit in [0, 0x80] {
                point[31] ^= top_bit;
                assert!(EphemeralKey::from_bytes([9; 32]).tunnel_key(&point).is_none());
            }
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let key = EphemeralKey::from_bytes([0xA7; 32]);
        let tunnel = key.tunnel_key(&EphemeralKey::from_bytes([3; 32]).public()).unwrap();
        assert_eq!(
            format!("{tunnel:?} {:?}", tunnel.aead()).replace("AwsLc", "").replace("RustCrypto", ""),
            "TunnelKey(..) Aes256Gcm(..)"
        );
        assert!(!format!("{key:?}").contains("167, 167"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn both_sides_agree_and_strangers_do_not(a: [u8; 32], b: [u8; 32], c: [u8; 32]) {
            let [a, b, c] = [a, b, c].map(EphemeralKey::from_bytes);
            prop_assume!(a.public() != c.public() && a.public() != b.public());
            let ab = a.tunnel_key(&b.public()).unwrap();
            let ba = b.tunnel_key(&a.public()).unwrap();
            let cb = c.tunnel_key(&b.public()).unwrap();
            prop_assert_eq!(ab.as_bytes(), ba.as_bytes());
            prop_assert_ne!(ab.as_bytes(), cb.as_bytes());
        }
    }
}

mod identity {
    use super::*;

    #[test]
    fn pila_vectors_sign_and_verify() {
        let vectors = load(PILA);
        let cases = list(&vectors, "cases");
        assert_eq!(cases.len(), 4);
        for case in cases {
            let identity = Identity::from_seed(array(&case["ed25519_seed"]));
            let public = array(&case["ed25519_public"]);
            let message = bytes(&case["signed_message"]);
            let signature = array(&case["signature"]);
            assert_eq!(identity.public_key(), public);
            assert_eq!(identity.sign(&message), signature);
            assert!(verify(&public, &message, &signature));
            assert_eq!(
                EphemeralKey::from_bytes(array(&case["x25519_private"])).public(),
                array(&case["x25519_public"])
            );
        }
    }

    #[test]
    fn port_443_auth_signatures() {
        let vectors = load(PORT443);
        let mut checked = 0;
        for case in list(&vectors, "cases") {
            for side in ["client_auth", "server_auth"] {
                let auth = &case[side];
                if auth.is_null() {
                    continue;
                }
                let identity = Identity::from_seed(array(&auth["ed25519_seed"]));
                let signature = identity.sign(&bytes(&auth["signed_message"]));
                assert!(bytes(&auth["auth_frame_plaintext"]).ends_with(&signature));
                checked += 1;
            }
        }
        assert_eq!(checked, 2);
    }

    /// With a key of small order the reference equation holds for *any* message under S = 0.
    #[test]
    fn small_order_keys_verify_nothing() {
        let points = [
            "0100000000000000000000000000000000000000000000000000000000000000",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0000000000000000000000000000000000000000000000000000000000000080",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        ]
        .map(|point| <[u8; 32]>::try_from(hex::decode(point).unwrap()).unwrap());
        for key in points {
            for commitment in points {
                let mut signature = [0; 64];
                signature[..32].copy_from_slice(&commitment);
                for message in [&b"one"[..], b"two", b"three"] {
                    assert!(!verify(&key, message, &signature));
                }
            }
        }
    }

    #[test]
    fn non_canonical_keys_and_scalars_are_refused() {
        // y = p + 1 decodes to y = 1.
        let mut key = [0xFF; 32];
        key[0] = 0xEE;
        key[31] = 0x7F;
        assert!(!verify(&key, b"", &[0; 64]));

        // S and S + L are the same scalar; only the smaller one may be written.
        let identity = Identity::from_seed([5; 32]);
        let mut signature = identity.sign(b"message");
        let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
        let mut carry = 0u16;
        for (byte, add) in signature[32..].iter_mut().zip(&order) {
            let sum = u16::from(*byte) + u16::from(*add) + carry;
            *byte = sum as u8;
            carry = sum >> 8;
        }
        assert_eq!(carry, 0);
        assert!(!verify(&identity.public_key(), b"message", &signature));
    }

    #[test]
    fn only_the_public_key_is_printed() {
        let identity = Identity::from_seed([0xC3; 32]);
        assert_eq!(format!("{identity:?}"), format!("Identity({})", hex::encode(identity.public_key())));
        assert_eq!(identity.clone().seed(), &[0xC3; 32]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_change_breaks_a_signature(
            seed: [u8; 32],
            mut message in prop::collection::vec(any::<u8>(), 1..100),
            byte: prop::sample::Index,
            bit in 0..8u8,
            part in 0..3u8,
        ) {
            let identity = Identity::from_seed(seed);
            let mut public = identity.public_key();
            let mut signature = identity.sign(&message);
            prop_assert!(verify(&public, &message, &signature));
            match part {
                0 => {
                    let index = byte.index(message.len());
                    message[index] ^= 1 << bit;
                }
                1 => signature[byte.index(64)] ^= 1 << bit,
                _ => public[byte.index(32)] ^= 1 << bit,
            }
            prop_assert!(!verify(&public, &message, &signature));
        }

        #[test]
        fn no_bytes_panic(public: [u8; 32], a: [u8; 32], b: [u8; 32]) {
            let signature = [a, b].concat().try_into().unwrap();
            prop_assert!(!verify(&public, b"message", &signature));
        }
    }
}

mod aead {
    use super::*;

    #[test]
    fn pils_vectors() {
        let vectors = load(PILS);
        let cases = list(&vectors, "cases");
        assert_eq!(cases.len(), 5);
        for case in cases {
            let frame = bytes(&case["frame_hex"]);
            let packet = bytes(&case["packet_hex"]);
            let (nonce, aad) = (array(&case["nonce"]), bytes(&case["aad"]));
            for aead in implementations(&array(&case["key"])) {
                assert_eq!(seal(&*aead, &nonce, &aad, &packet), frame[20..]);
                assert_eq!(aead.open_in_place(&nonce, &aad, &mut frame[20..].to_vec()).unwrap(), packet);
            }
        }
    }

    #[test]
    fn pils_vectors_that_must_be_refused() {
        let vectors = load(PILS);
        let key = array(&list(&vectors, "cases")[0]["key"]);
        let cases = list(&vectors, "must_reject");
        assert_eq!(cases.len(), 6);
        for case in cases {
            assert_eq!(case["accepted"], false);
            let mut frame = bytes(&case["frame_hex"]);
            for aead in implementations(&key) {
                let (header, sealed) = frame.split_at_mut(20);
                let nonce = header[8..].try_into().unwrap();
                assert!(
                    aead.open_to(&nonce, &header[4..8], sealed, &mut vec![0; sealed.len()]).is_none(),
                    "{}",
                    case["name"]
                );
                assert!(
                    aead.open_in_place(&nonce, &header[4..8], &mut sealed.to_vec()).is_none(),
                    "{}",
                    case["name"]
                );
            }
        }
    }

    #[test]
    fn port_443_vectors() {
        let vectors = load(PORT443);
        let cases = list(&vectors, "cases");
        assert_eq!(cases.len(), 2);
        let mut frames = 0;
        for case in cases {
            let client = EphemeralKey::from_bytes(array(&case["client_private"]));
            let server = EphemeralKey::from_bytes(array(&case["server_private"]));
            // The second case states the public keys in its auth frames instead.
            for (key, first_bytes, auth) in [
                (&client, "client_first_bytes", "client_auth"),
                (&server, "server_first_bytes", "server_auth"),
            ] {
                let expected = if case[first_bytes].is_null() {
                    &case[auth]["own_x25519_public"]
                } else {
                    &case[first_bytes]
                };
                assert_eq!(key.public(), array(expected));
            }
            let key = client.shared_key(&server.public(), INFO_SECURE).unwrap();
            assert_eq!(key.as_bytes(), &array(&case["key"]));
            for frame in list(case, "frames") {
                let (nonce, aad, plaintext) =
                    (array(&frame["nonce"]), bytes(&frame["aad"]), bytes(&frame["plaintext_hex"]));
                let sealed = seal(&key.aead(), &nonce, &aad, &plaintext);
                assert_eq!(sealed, bytes(&frame["frame_hex"])[16..]);
                frames += 1;
            }
        }
        assert_eq!(frames, 7);
    }

    #[test]
    fn a_buffer_shorter_than_a_tag_never_opens() {
        for aead in implementations(&[1; 32]) {
            for len in 0..TAG_LEN {
                assert!(aead.open_in_place(&[0; 12], &[], &mut vec![0; len]).is_none());
                assert!(aead.open_to(&[0; 12], &[], &vec![0; len], &mut [0; 64]).is_none());
            }
            let sealed = seal(&*aead, &[0; 12], &[], b"four");
            assert!(aead.open_to(&[0; 12], &[], &sealed, &mut [0; 3]).is_none());
        }
    }

    proptest! {
        #[test]
        fn all_implementations_seal_and_open_alike(
            key: [u8; 32],
            nonce: [u8; 12],
            aad in prop::collection::vec(any::<u8>(), 0..40),
            plaintext in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let all = implementations(&key);
            let sealed = seal(&*all[0], &nonce, &aad, &plaintext);
            for aead in &all {
                prop_assert_eq!(&seal(&**aead, &nonce, &aad, &plaintext), &sealed);
                let mut out = vec![0; plaintext.len() + 5];
                prop_assert_eq!(aead.open_to(&nonce, &aad, &sealed, &mut out), Some(plaintext.len()));
                prop_assert_eq!(&out[..plaintext.len()], &plaintext[..]);
                let mut buf = sealed.clone();
                prop_assert_eq!(&*aead.open_in_place(&nonce, &aad, &mut buf).unwrap(), &plaintext[..]);
            }
        }

        #[test]
        fn any_change_is_refused_and_a_failed_open_to_keeps_the_input(
            key: [u8; 32],
            mut nonce: [u8; 12],
            mut aad in prop::collection::vec(any::<u8>(), 1..40),
            plaintext in prop::collection::vec(any::<u8>(), 0..100),
            byte: prop::sample::Index,
            bit in 0..8u8,
            part in 0..3u8,
        ) {
            for aead in implementations(&key) {
                let mut sealed = seal(&*aead, &nonce, &aad, &plaintext);
                let original = (nonce, aad.clone());
                match part {
                    0 => { let i = byte.index(sealed.len()); sealed[i] ^= 1 << bit; }
                    1 => nonce[byte.index(12)] ^= 1 << bit,
                    _ => { let i = byte.index(aad.len()); aad[i] ^= 1 << bit; }
                }
                let before = sealed.clone();
                prop_assert!(aead.open_to(&nonce, &aad, &sealed, &mut [0; 200]).is_none());
                prop_assert_eq!(&before, &sealed);
                prop_assert!(aead.open_in_place(&nonce, &aad, &mut sealed).is_none());
                (nonce, aad) = original;
            }
        }
    }
}
