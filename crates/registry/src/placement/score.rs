//! Weighted rendezvous hashing with integers only: every machine computes the same order.

const CONTEXT: &str = "pilotage 2026 placement v1";
/// Bits behind the point.
const FRACTION: u32 = 32;

/// -log2 of a number drawn from (0, 1], with [`FRACTION`] bits behind the point; between 0 and 2^38. Divided by the
/// weight, the smallest one wins, and it does so with a probability proportional to the weight.
pub(super) fn draw(node: &[u8; 32], key: &[u8; 32]) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(node).update(key);
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    minus_log2(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

/// -log2((hash + 1) / 2^64), rounded down to [`FRACTION`] bits.
fn minus_log2(hash: u64) -> u64 {
    let Some(number) = hash.checked_add(1) else { return 0 };
    let whole = 63 - number.leading_zeros();
    // 1 <= mantissa < 2, with 63 bits behind the point.
    let mut mantissa = u128::from(number) << (63 - whole);
    let mut log = u64::from(whole) << FRACTION;
    for bit in (0..FRACTION).rev() {
        mantissa = (mantissa * mantissa) >> 63;
        if mantissa >> 64 != 0 {
            mantissa >>= 1;
            log |= 1 << bit;
        }
    }
    (64 << FRACTION) - log
}

/// Whether the first of two draws with their weights is the better one.
pub(super) fn better(one: (u64, u16), other: (u64, u16)) -> std::cmp::Ordering {
    (one.0 * u64::from(other.1)).cmp(&(other.0 * u64::from(one.1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_one() {
        assert_eq!(minus_log2(u64::MAX), 0);
        assert_eq!(minus_log2((1 << 63) - 1), 1 << FRACTION);
        assert_eq!(minus_log2(0), 64 << FRACTION);
        for hash in [1, 2, 3, 1_000, u64::MAX / 3, u64::MAX - 1, 0xDEAD_BEEF_0000_0001] {
            let exact = 64.0 - (hash as f64 + 1.0).log2();
            let ours = minus_log2(hash) as f64 / f64::from(1_u32 << 31) / 2.0;
            assert!((exact - ours).abs() < 1e-9, "{hash}: {exact} {ours}");
        }
    }

    #[test]
    fn the_order_is_fixed() {
        // Other implementations must get these numbers.
        assert_eq!(draw(&[1; 32], &[2; 32]), draw(&[1; 32], &[2; 32]));
        assert_ne!(draw(&[1; 32], &[2; 32]), draw(&[2; 32], &[1; 32]));
        assert_eq!(better((10, 1), (20, 2)), std::cmp::Ordering::Equal);
        assert_eq!(better((10, 2), (10, 1)), std::cmp::Ordering::Less);
    }
}
