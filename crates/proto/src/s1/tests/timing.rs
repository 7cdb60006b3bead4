//! Comparisons take the same time wherever the difference is: a test in the manner of dudect (Reparaz, Balasch,
//! Verbauwhede 2017). Test 14 of the design's section 6. It measures, so it is left out of the ordinary run:
//! `cargo test --release -p pilotage-proto --lib s1::tests::timing -- --ignored --nocapture --test-threads 1`.

use super::super::cookie;
use super::*;

/// Measurements of each class.
const SAMPLES: usize = 100_000;
/// Calls of one measurement.
const CALLS: u32 = 32;
/// dudect takes 10 for a leak beyond doubt.
const LEAK: f64 = 10.0;

/// Welch's t of the times of two classes, the slowest tenth left out.
fn t_of(mut work: impl FnMut(bool) -> bool) -> f64 {
    let mut rng = ChaCha20Rng::from_seed([8; 32]);
    let mut times: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    while times[0].len() < SAMPLES || times[1].len() < SAMPLES {
        let class = rng.next_u32() & 1 == 1;
        let start = Instant::now();
        for _ in 0..CALLS {
            assert!(!std::hint::black_box(work(std::hint::black_box(class))));
        }
        times[usize::from(class)].push(start.elapsed().as_nanos() as f64);
    }
    let mut all: Vec<f64> = times.concat();
    all.sort_by(f64::total_cmp);
    let limit = all[all.len() * 9 / 10];
    let [a, b] = times.map(|list| {
        let kept: Vec<f64> = list.into_iter().filter(|time| *time <= limit).collect();
        let n = kept.len() as f64;
        let mean = kept.iter().sum::<f64>() / n;
        let variance = kept.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (mean, variance / n)
    });
    (a.0 - b.0) / (a.1 + b.1).sqrt()
}

#[test]
#[ignore = "a measurement"]
fn comparisons_do_not_tell_where_the_difference_is() {
    // Both classes write the same places, so that they differ in values and not in addresses.
    let wrong = |mut bytes: [u8; 16], class: bool| {
        bytes[0] ^= u8::from(!class);
        bytes[15] ^= u8::from(class);
        bytes
    };
    let right = [0x5A; 16];
    let t = t_of(|class| cookie::equal(&right, &wrong(right, class)));
    eprintln!("mac1, mac2: t = {t:.2}");
    assert!(t.abs() < LEAK);

    let (mut a, b) = connected();
    let index = a.session().remote_index();
    let token = b.node.reset_token(index);
    let session = a.session();
    let t = t_of(|class| session.is_reset_by(index, &wrong(token, class)));
    eprintln!("reset token: t = {t:.2}");
    assert!(t.abs() < LEAK);

    for (one, other) in [(1, 3), (2, 4)] {
        let start = Instant::now();
        let (mut a, mut b) = (Side::new(one, start), Side::new(other, start));
        a.knows(&b);
        b.knows(&a);
        shake(&mut a, &mut b);
        let sealed = a.seal(&datagram_frame(&[7; 64])).unwrap();
        let (end, now) = (sealed.len(), b.now);
        let session = b.session();
        let suite = session.suite();
        let mut buf = sealed.clone();
        let t = t_of(|class| {
            buf.copy_from_slice(&sealed);
            buf[end - 16] ^= u8::from(!class);
            buf[end - 1] ^= u8::from(class);
            session.open(&mut buf, now).is_ok()
        });
        eprintln!("tag, {suite:?}: t = {t:.2}");
        assert!(t.abs() < LEAK);
    }
    // And the method does see what there is to see.
    let long = [0x5A; 256];
    let t = t_of(|class| {
        let mut wrong = long;
        wrong[0] ^= u8::from(!class);
        wrong[255] ^= u8::from(class);
        std::hint::black_box(&long).iter().zip(&wrong).all(|(a, b)| a == std::hint::black_box(b))
    });
    eprintln!("a naive comparison: t = {t:.2}");
    assert!(t.abs() > LEAK, "the measurement sees nothing");
}
