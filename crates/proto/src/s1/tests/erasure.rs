//! Keys are wiped. Test 15 of the design's section 6, as far as a test without a core dump can look.

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::super::keys::Schedule;
use super::super::noise::Split;
use super::*;

#[test]
fn what_holds_secrets_wipes_itself() {
    fn wipes_itself<T: ZeroizeOnDrop>() {}
    wipes_itself::<Secret>();
    wipes_itself::<Split>();
    wipes_itself::<x25519_dalek::StaticSecret>();
    wipes_itself::<chacha20poly1305::ChaCha20Poly1305>();
    let mut split = Split { to_responder: [1; 32], to_initiator: [2; 32], hash: [3; 32] };
    assert_ne!(Schedule::new(&split, Suite::Aes256Gcm).exporter.as_bytes(), &[0; 32]);
    split.zeroize();
    assert_eq!((split.to_responder, split.to_initiator, split.hash), ([0; 32], [0; 32], [0; 32]));
}

#[test]
fn nothing_secret_is_printed() {
    let (mut a, mut b) = connected();
    let secrets = a.session().secrets().map(|(secret, _)| *secret);
    let texts = [format!("{:?}", a.peer), format!("{:?}", a.node), format!("{:?}", b.peer)];
    for secret in secrets.iter().chain([&[9; 32], &[1; 32]]) {
        let printed = format!("{secret:?}");
        assert!(texts.iter().all(|text| !text.contains(&printed)));
    }
    b.now += Duration::ZERO;
}

/// Looks through all memory of the process that can be written for the secrets of a closed session: the traffic secrets, of
/// which everything else can be made, and the packet keys. Copies of packet keys that the cipher's own code left on the
/// stack are not counted: nobody but later calls can write over those.
#[cfg(target_os = "linux")]
#[test]
fn no_key_is_left_in_memory_after_the_end() {
    // Turned over, so that what we look for is not found in what we look with.
    let [traffic, packet] = keys_of_a_closed_session();
    std::hint::black_box(scrub());
    let [heap, stack] = search(&traffic);
    assert_eq!((heap, stack), (0, 0), "copies of traffic secrets are left");
    assert_eq!(search(&packet)[0], 0, "copies of packet keys are left");
    // And the search does find what is there.
    let kept: Vec<[u8; 32]> = traffic.iter().map(|key| key.map(|byte| !byte)).collect();
    assert!(search(&traffic)[0] >= kept.len(), "the search sees nothing");
}

/// The same for what an upgrade makes: traffic secrets of phase 1 that need ML-KEM's.
#[cfg(target_os = "linux")]
#[test]
fn no_key_of_an_upgrade_is_left_in_memory_after_the_end() {
    let keys = keys_of_a_closed_upgrade();
    std::hint::black_box(scrub());
    assert_eq!(search(&keys), [0, 0], "copies of traffic secrets or of ML-KEM's secret are left");
}

#[cfg(target_os = "linux")]
#[inline(never)]
fn keys_of_a_closed_upgrade() -> Vec<[u8; 32]> {
    let start = Instant::now();
    let side = |number| {
        let config = NodeConfig { post_quantum: PostQuantum::On, ..config(number, Limits::default()) };
        Side::with(config, number, start, 0)
    };
    let (mut a, mut b) = (side(205), side(206));
    a.knows(&b);
    b.knows(&a);
    let mut keys = super::upgrade::kem_secret_on_the_way(&mut a, &mut b).map_or(Vec::new(), |key| vec![key]);
    assert!(a.session().is_post_quantum());
    keys.extend(a.session().secrets().map(|(secret, _)| secret.map(|byte| !byte)));
    a.run(|peer, node, _| peer.close(node));
    b.run(|peer, node, _| peer.close(node));
    assert_eq!(keys.len(), 3);
    keys
}

/// The same for a tunnel of the draft: the key that HKDF makes.
#[cfg(target_os = "linux")]
#[test]
fn no_key_of_the_draft_is_left_in_memory_after_the_end() {
    let key = key_of_a_closed_tunnel();
    std::hint::black_box(scrub());
    assert_eq!(search(&key), [0, 0], "copies of the tunnel's key are left");
}

#[cfg(target_os = "linux")]
#[inline(never)]
fn key_of_a_closed_tunnel() -> Vec<[u8; 32]> {
    use crate::crypto::{EphemeralKey, PacketAead, TAG_LEN};

    let (a, b) = (EphemeralKey::from_bytes([203; 32]), EphemeralKey::from_bytes([204; 32]));
    let key = a.tunnel_key(&b.public()).unwrap();
    let aead = b.tunnel_key(&a.public()).unwrap().aead();
    aead.seal_in_place(&[0; 12], &[], &mut [0; 100 + TAG_LEN]);
    vec![key.as_bytes().map(|byte| !byte)]
}

/// Writes over what earlier calls left on the stack, as any later call would.
#[cfg(target_os = "linux")]
#[inline(never)]
fn scrub() -> u8 {
    let mut area = [1; 256 << 10];
    area.zeroize();
    std::hint::black_box(&area)[5]
}

#[cfg(target_os = "linux")]
#[inline(never)]
fn keys_of_a_closed_session() -> [Vec<[u8; 32]>; 2] {
    // Random numbers that no other test uses: they run beside this one.
    let start = Instant::now();
    let (mut a, mut b) = (
        Side::with(config(201, Limits::default()), 201, start, 0),
        Side::with(config(202, Limits::default()), 202, start, 0),
    );
    a.knows(&b);
    b.knows(&a);
    shake(&mut a, &mut b);
    for _ in 0..10 {
        let ping = a.seal(&[1]).unwrap();
        b.open(&ping).unwrap();
    }
    let turn = |secret: &[u8; 32]| {
        let mut turned = [0; 32];
        turned.iter_mut().zip(secret).for_each(|(to, from)| *to = !from);
        turned
    };
    let traffic = a.session().secrets().map(|(secret, _)| turn(secret)).to_vec();
    let packet = a.session().packet_keys().each_ref().map(|secret| turn(secret.as_bytes())).to_vec();
    a.run(|peer, node, _| peer.close(node));
    b.run(|peer, node, _| peer.close(node));
    [traffic, packet]
}

/// How often one of them lies in memory: outside and inside the stack of this thread.
#[cfg(target_os = "linux")]
#[allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "reads its own memory")]
fn search(turned: &[[u8; 32]]) -> [usize; 2] {
    use std::os::unix::fs::FileExt;

    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let mut found = [0; 2];
    let mut chunk = vec![0; 1 << 20];
    let here = (&raw const found).addr() as u64;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [mut at, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        let stack = usize::from((at..end).contains(&here));
        while at < end {
            let len = (end - at).min(chunk.len() as u64) as usize;
            let Ok(read) = memory.read_at(&mut chunk[..len], at) else { break };
            let is_key = |window: &&[u8]| {
                turned
                    .iter()
                    .any(|key| key[0] == !window[0] && key.iter().zip(*window).all(|(k, w)| *k == !w))
            };
            found[stack] += chunk[..read].windows(32).filter(is_key).count();
            at += read.max(1) as u64;
        }
    }
    found
}
