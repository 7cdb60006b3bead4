//! Handshakes and packets with fixed keys, byte by byte: `spec/vectors/s1/*.json`.
//!
//! `S1_WRITE_VECTORS=1 cargo test -p pilotage-proto --lib s1::tests::vectors` writes the files anew; without it they must be
//! what the code makes.

use std::path::Path;

use pilotage_wire::s1::handshake::{
    CookieReply, Flags, NewPrekey, Reset, initiation_header, response_header,
};
use pilotage_wire::s1::payload::{Observed, Payload1, Payload2};
use serde_json::{Value, json};

use super::super::cookie::{self, PublicKeys};
use super::super::keys::{Phase, Schedule};
use super::super::model::transport;
use super::super::node::prologue;
use super::super::noise::{Initiator, Responder, Split};
use super::super::session::Parts;
use super::super::upgrade::transcript;
use super::*;
use crate::crypto::Identity;
use crate::crypto::kem::{self, KeyPair};

fn hex(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(bytes)
}

/// 32 bytes from a name: BLAKE3's key derivation, so that a stranger can make them too.
fn fixed(name: &str, case: &str) -> [u8; 32] {
    blake3::derive_key(&format!("pilotage s1 vectors {name}"), case.as_bytes())
}

struct Case {
    name: &'static str,
    suite: Suite,
    psk: [u8; 32],
    early: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let datagram = datagram_frame(b"idempotent request");
    vec![
        Case { name: "aes", suite: Suite::Aes256Gcm, psk: [0; 32], early: Vec::new() },
        Case { name: "chacha", suite: Suite::ChaCha20Poly1305, psk: [0; 32], early: Vec::new() },
        Case { name: "psk and early data", suite: Suite::Aes256Gcm, psk: fixed("psk", "x"), early: datagram },
    ]
}

/// What the two messages of a handshake carry.
fn payloads(case: &Case, initiator: &Identity, prekey_i: &Prekey) -> (Payload1, Payload2) {
    let one = Payload1 {
        time_ms: UNIX,
        counter: 5,
        identity: initiator.public_key(),
        address: pilotage_wire::Address::new(0, 0x0102_0304),
        salt: 0,
        certificate: prekey_i.certificate,
        suites: Suite::offer(case.suite == Suite::Aes256Gcm),
        transport: transport(),
    };
    let two = Payload2 {
        suite: case.suite.id(),
        early_accepted: !case.early.is_empty(),
        post_quantum: false,
        sender: 0xB1B2_B3B4,
        transport: transport(),
        reset_token: cookie::reset_token(
            &Secret::new(blake3::derive_key("pilotage 2026 reset", &fixed("device r", case.name))),
            0xB1B2_B3B4,
        ),
        observed: Observed::V4([192, 0, 2, 1], 4_000),
        time_ms: UNIX + 20,
        record_seq: 2_000,
    };
    (one, two)
}

/// Everything of one handshake and some packets.
fn handshake(case: &Case) -> Value {
    let [id_i, id_r, s_i, s_r, e_i, e_r] =
        ["identity i", "identity r", "prekey i", "prekey r", "ephemeral i", "ephemeral r"]
            .map(|n| fixed(n, case.name));
    let (initiator, responder) = (Identity::from_seed(id_i), Identity::from_seed(id_r));
    let prekey_i = Prekey::new(&initiator, s_i, 1_000, 3, UNIX / 1_000);
    let prekey_r = Prekey::new(&responder, s_r, 2_000, 1, UNIX / 1_000);
    let (payload_1, payload_2) = payloads(case, &initiator, &prekey_i);
    let flags = Flags { early: !case.early.is_empty(), ..Flags::default() };
    let header = initiation_header(flags, 0xA1A2_A3A4, &prekey_r.id);
    let prologue = prologue(&header, &responder.public_key());
    let mut pili = header.to_vec();
    let plain = [&payload_1.encode()[..], &case.early].concat();
    let ephemeral = DhKey::from_bytes(e_i);
    let begun = Initiator::begin(&prologue, &prekey_r.public(), &prekey_i.key, ephemeral, &plain, &mut pili)
        .expect("good keys");
    pili.extend_from_slice(&PublicKeys::of(&responder.public_key()).mac1(&pili));
    pili.extend_from_slice(&[0; 16]);

    let read = pilotage_wire::s1::handshake::Initiation::decode(&pili).expect("a PILI");
    let (answering, _) =
        Responder::begin(&prologue, &prekey_r.key, read.ephemeral, read.sealed_static, read.sealed_payload)
            .expect("its own PILI");
    let mut pilr = response_header((flags.early, false), payload_2.sender, 0xA1A2_A3A4).to_vec();
    let split = answering
        .finish(&DhKey::from_bytes(e_r), &case.psk, &payload_2.encode(), &mut pilr)
        .expect("good keys");
    pilr.extend_from_slice(&PublicKeys::of(&initiator.public_key()).mac1(&pilr));
    let (ephemeral, sealed) = pilr[16..144].split_first_chunk().expect("a key");
    let (_, twin) = begun.finish(ephemeral, sealed, &case.psk).expect("its own PILR");
    assert_eq!(twin.hash, split.hash);

    let schedule = Schedule::new(&split, case.suite);
    json!({
        "name": case.name,
        "suite": case.suite.id(),
        "identity_i_seed": hex(id_i), "identity_i": hex(initiator.public_key()),
        "identity_r_seed": hex(id_r), "identity_r": hex(responder.public_key()),
        "prekey_i_secret": hex(s_i), "prekey_i": hex(prekey_i.public()),
        "prekey_r_secret": hex(s_r), "prekey_r": hex(prekey_r.public()), "prekey_r_id": hex(prekey_r.id),
        "certificate_i": hex(prekey_i.certificate.to_bytes()), "certificate_r": hex(prekey_r.certificate.to_bytes()),
        "ephemeral_i_secret": hex(e_i), "ephemeral_r_secret": hex(e_r),
        "psk": hex(case.psk), "prologue": hex(prologue),
        "payload_1": hex(&plain), "pili": hex(&pili), "payload_2": hex(payload_2.encode()), "pilr": hex(&pilr),
        "split_to_responder": hex(split.to_responder), "split_to_initiator": hex(split.to_initiator),
        "handshake_hash": hex(split.hash),
        "exporter": hex(schedule.exporter.as_bytes()),
        "traffic_from_initiator": hex(schedule.from_initiator.as_bytes()),
        "traffic_from_responder": hex(schedule.from_responder.as_bytes()),
        "packets": packets(case, &split, &payload_2),
    })
}

/// Packets of both directions over a key update.
fn packets(case: &Case, split: &Split, answer: &Payload2) -> Vec<Value> {
    let now = Instant::now();
    let limits = Limits { update_packets: 2, ..Limits::default() };
    let session = |role, local, remote| {
        let parts = Parts {
            suite: case.suite,
            role,
            local,
            remote,
            reset_token: None,
            transport: answer.transport,
            limits,
        };
        Session::new(split, parts, now)
    };
    let mut initiator = session(Role::Initiator, 0xA1A2_A3A4, 0xB1B2_B3B4);
    let mut responder = session(Role::Responder, 0xB1B2_B3B4, 0xA1A2_A3A4);
    let mut out = Vec::new();
    let mut pass = |from: &mut Session, to: &mut Session, frames: &[u8]| {
        let mut buf = vec![0; frames.len() + OVERHEAD];
        buf[HEADER_LEN..HEADER_LEN + frames.len()].copy_from_slice(frames);
        let (_, number) = from.seal(&mut buf, frames.len(), now).expect("room");
        let sealed = hex(&buf);
        let [(traffic, iv), _] = from.secrets().map(|(traffic, iv)| (hex(traffic), hex(iv)));
        to.open(&mut buf, now).expect("the same keys");
        assert_eq!(&buf[HEADER_LEN..HEADER_LEN + frames.len()], frames);
        out.push(json!({
            "from": if from.role() == Role::Initiator { "initiator" } else { "responder" },
            "number": number, "phase": from.phase(), "frames": hex(frames), "datagram": sealed,
            "traffic": traffic, "iv": iv,
        }));
    };
    for text in [&[1][..], &datagram_frame(b"hello"), &[5, 1]] {
        pass(&mut initiator, &mut responder, text);
        pass(&mut responder, &mut initiator, text);
    }
    assert_eq!((initiator.phase(), responder.phase()), (1, 1));
    out
}

/// The frames that carry no Noise message.
fn others() -> Value {
    let responder = Identity::from_seed(fixed("identity r", "aes"));
    let keys = PublicKeys::of(&responder.public_key());
    let cause = [0xC5; 16];
    let (nonce, cookie) = ([0x24; 24], [0xCC; 16]);
    let sealed = keys.seal_cookie(&nonce, &cookie, &cause);
    assert_eq!(keys.open_cookie(&nonce, &sealed, &cause), Some(cookie));
    let pilc = CookieReply { receiver: 0xA1A2_A3A4, nonce, sealed };
    let prekey = Prekey::new(&responder, fixed("prekey r", "aes"), 2_000, 1, UNIX / 1_000);
    let piln =
        NewPrekey { receiver: 0xA1A2_A3A4, cause, prekey: prekey.public(), certificate: prekey.certificate };
    let device = fixed("device r", "aes");
    let key = Secret::new(blake3::derive_key("pilotage 2026 reset", &device));
    let pilx = Reset { index: 0xB1B2_B3B4, token: cookie::reset_token(&key, 0xB1B2_B3B4) };
    let before = b"all bytes before mac2";
    json!({
        "identity_r": hex(responder.public_key()), "device": hex(device),
        "mac1_of_pili_answered": hex(cause), "nonce": hex(nonce), "cookie": hex(cookie), "pilc": hex(pilc.encode()),
        "piln": hex(piln.encode()), "pilx": hex(pilx.encode()),
        "mac2_input": hex(before), "mac2": hex(cookie::mac2(&cookie, before)),
    })
}

/// The post-quantum upgrade: from the random bytes of both sides to the secrets of phase 1.
fn upgrade() -> Value {
    let mut seed = [0; 64];
    seed[..32].copy_from_slice(&fixed("ml-kem d", "upgrade"));
    seed[32..].copy_from_slice(&fixed("ml-kem z", "upgrade"));
    let message = fixed("ml-kem m", "upgrade");
    let pair = KeyPair::from_seed(seed);
    let key = pair.public();
    let (ciphertext, secret) = kem::encapsulate(&key, &message).expect("a key");
    assert_eq!(pair.open(&ciphertext).as_bytes(), secret.as_bytes());
    let transcript = transcript(&key, &ciphertext);
    let phases = ["initiator", "responder"].map(|from| {
        let traffic_0 = fixed("traffic", from);
        let phase = Phase::new(Secret::new(traffic_0), Suite::Aes256Gcm);
        let next = phase.upgraded(Suite::Aes256Gcm, &secret, &transcript);
        let (traffic, iv) = next.parts();
        json!({
            "from": from, "traffic_0": hex(traffic_0), "traffic_1": hex(traffic), "iv_1": hex(iv),
            "key_1": hex(next.key_bytes().as_bytes()),
        })
    });
    json!({
        "seed": hex(seed), "message": hex(message), "key": hex(&key[..]), "ciphertext": hex(&ciphertext[..]),
        "secret": hex(secret.as_bytes()), "transcript": hex(transcript), "phases": phases,
    })
}

fn check(name: &str, value: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../spec/vectors/s1").join(name);
    let text = serde_json::to_string_pretty(value).expect("JSON") + "\n";
    if std::env::var_os("S1_WRITE_VECTORS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, &text).expect("a file");
    }
    let written = std::fs::read_to_string(&path).expect("spec/vectors/s1");
    let written: Value = serde_json::from_str(&written).expect("JSON");
    assert_eq!(&written, value, "{name}");
}

#[test]
fn handshakes_and_packets() {
    check("handshakes.json", &json!({ "cases": cases().iter().map(handshake).collect::<Vec<_>>() }));
}

#[test]
fn the_upgrade() {
    check("upgrade.json", &upgrade());
}

#[test]
fn other_frames() {
    check("others.json", &others());
}
