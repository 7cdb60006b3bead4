//! X25519 (RFC 7748): by aws-lc where that is built, which takes less than half of the time of x25519-dalek
//! (spec/decisions/0045-x25519-by-aws-lc.md), else by x25519-dalek.

/// A private key, wiped on drop.
#[cfg(feature = "aws-lc-rs")]
pub(crate) use aws_lc::Key;
/// A private key, wiped on drop.
#[cfg(not(feature = "aws-lc-rs"))]
pub(crate) use dalek::Key;

#[cfg(feature = "aws-lc-rs")]
mod aws_lc {
    use std::sync::Arc;

    use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};

    /// Clones share the key, which aws-lc wipes as it frees it.
    #[derive(Clone)]
    pub(crate) struct Key(Arc<PrivateKey>);

    impl Key {
        /// The private key of 32 random bytes, and its public key; clamping is done here (RFC 7748 section 5).
        pub(crate) fn pair(bytes: &[u8; 32]) -> (Self, [u8; 32]) {
            let key = PrivateKey::from_private_key(&X25519, bytes).expect("any 32 bytes are a private key");
            let public = key.compute_public_key().expect("a private key has a public key");
            let public = public.as_ref().try_into().expect("a public key has 32 bytes");
            (Self(Arc::new(key)), public)
        }

        /// What `f` makes of the shared secret, or `None` where that is all zero: the peer sent a point of small order
        /// (RFC 7748 section 6.1).
        pub(crate) fn agree<R>(&self, public: &[u8; 32], f: impl FnOnce(&[u8; 32]) -> R) -> Option<R> {
            // aws-lc keeps the secret in memory that it wipes, and refuses one of zeros.
            agree(&self.0, UnparsedPublicKey::new(&X25519, public), (), |shared| {
                shared.try_into().map(f).map_err(drop)
            })
            .ok()
        }
    }
}

#[cfg(any(test, not(feature = "aws-lc-rs")))]
mod dalek {
    use x25519_dalek::{PublicKey, StaticSecret};

    #[derive(Clone)]
    pub(crate) struct Key(StaticSecret);

    impl Key {
        /// The private key of 32 random bytes, and its public key; clamping is done here (RFC 7748 section 5).
        pub(crate) fn pair(bytes: &[u8; 32]) -> (Self, [u8; 32]) {
            let secret = StaticSecret::from(*bytes);
            let public = PublicKey::from(&secret).to_bytes();
            (Self(secret), public)
        }

        /// What `f` makes of the shared secret, or `None` where that is all zero: the peer sent a point of small order
        /// (RFC 7748 section 6.1).
        pub(crate) fn agree<R>(&self, public: &[u8; 32], f: impl FnOnce(&[u8; 32]) -> R) -> Option<R> {
            let shared = self.0.diffie_hellman(&PublicKey::from(*public));
            shared.was_contributory().then(|| f(shared.as_bytes()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Key, dalek};

    fn hex(text: &str) -> [u8; 32] {
        std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex"))
    }

    /// Bob's side of RFC 7748 section 6.1.
    #[test]
    fn the_example_of_the_rfc() {
        let alice_public = hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
        let (bob, bob_public) =
            Key::pair(&hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        assert_eq!(bob_public, hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
        let shared = Some(hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"));
        assert_eq!(bob.agree(&alice_public, |s| *s), shared);
    }

    /// Points of small order, and the same above the field's order (RFC 7748 section 6.1): no secret comes of them.
    #[test]
    fn points_of_small_order_are_refused() {
        let (ours, _) = Key::pair(&[3; 32]);
        let (twin, _) = dalek::Key::pair(&[3; 32]);
        let mut above = [0xFF; 32];
        above[0] = 0xED;
        above[31] = 0x7F;
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one, above] {
            assert_eq!(ours.agree(&point, |_| ()), None);
            assert_eq!(twin.agree(&point, |_| ()), None);
        }
    }

    proptest! {
        /// Both implementations are the same function, of any bytes.
        #[test]
        fn both_implementations_agree(a in any::<[u8; 32]>(), b in any::<[u8; 32]>()) {
            let ((ours, public), (twin, twin_public)) = (Key::pair(&a), dalek::Key::pair(&a));
            prop_assert_eq!(public, twin_public);
            prop_assert_eq!(ours.agree(&b, |s| *s), twin.agree(&b, |s| *s));
        }
    }
}
