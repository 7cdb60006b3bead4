//! `snow`, an independent implementation of Noise, as the peer: in both roles, with random payloads.

use ::snow::{Builder, HandshakeState};
use pilotage_wire::s1::handshake::{Flags, Initiation, Response, initiation_header, response_header};
use pilotage_wire::s1::payload::{Observed, Payload1, Payload2};

use super::super::cookie::PublicKeys;
use super::super::dh::DhKey;
use super::super::keys::Schedule;
use super::super::model::transport;
use super::super::node::prologue;
use super::super::noise::{Initiator, Responder, Split};
use super::*;
use crate::crypto::Identity;

/// Handshakes of each role in the ordinary run.
const FEW: u32 = 150;
/// And in the long one: `cargo test -p pilotage-proto --lib s1::tests::snow -- --ignored`.
const MANY: u32 = 100_000;

fn builder<'a>(prologue: &'a [u8], own: &'a [u8], ephemeral: &'a [u8], psk: &'a [u8; 32]) -> Builder<'a> {
    Builder::new("Noise_IKpsk2_25519_ChaChaPoly_SHA256".parse().expect("a pattern"))
        .prologue(prologue)
        .and_then(|b| b.local_private_key(own))
        .and_then(|b| b.psk(2, psk))
        .expect("each is set once")
        .fixed_ephemeral_key_for_testing_only(ephemeral)
}

fn key(rng: &mut ChaCha20Rng) -> [u8; 32] {
    let mut out = [0; 32];
    rng.fill_bytes(&mut out);
    out
}

/// Traffic secrets of a session that snow's keys give: from the initiator, from the responder.
fn traffic(snow: &mut HandshakeState, suite: Suite) -> [[u8; 32]; 2] {
    let (to_responder, to_initiator) = snow.dangerously_get_raw_split();
    let hash = snow.get_handshake_hash().try_into().expect("SHA-256");
    let schedule = Schedule::new(&Split { to_responder, to_initiator, hash }, suite);
    [*schedule.from_initiator.0, *schedule.from_responder.0]
}

/// A node of ours answers PILIs that snow makes.
fn snow_begins(rounds: u32) {
    let start = Instant::now();
    let mut b = Side::new(2, start);
    let mut rng = ChaCha20Rng::from_seed([3; 32]);
    let psk = [9; 32];
    b.now += Duration::from_secs(30);
    for round in 0..rounds {
        b.now += Duration::from_millis(50);
        let identity = Identity::from_seed(key(&mut rng));
        let (secret, ephemeral) = (key(&mut rng), key(&mut rng));
        let prekey = Prekey::new(&identity, secret, 1, 0, UNIX / 1_000);
        let payload = Payload1 {
            time_ms: UNIX + 30_000 + 50 * (u64::from(round) + 1),
            counter: 0,
            identity: identity.public_key(),
            address: pilotage_wire::Address::new(0, 5),
            salt: 0,
            certificate: prekey.certificate,
            suites: Suite::offer(round & 1 == 0),
            transport: transport(),
        };
        let data = random_bytes(&mut rng, 880);
        let early = if data.is_empty() { Vec::new() } else { datagram_frame(&data) };
        let flags = Flags { early: !early.is_empty(), ..Flags::default() };
        let header = initiation_header(flags, round + 1, &prekey_id(&b.node.prekey().prekey));
        let prologue = prologue(&header, &b.node.identity_key);
        let mut snow = builder(&prologue, &secret, &ephemeral, &psk)
            .remote_public_key(&b.node.prekey().prekey)
            .and_then(Builder::build_initiator)
            .expect("an initiator");
        let mut buf = [0; 1_200];
        let plain = [&payload.encode()[..], &early].concat();
        let len = snow.write_message(&plain, &mut buf).expect("message 1");
        let mut pili = [&header[..], &buf[..len]].concat();
        pili.extend_from_slice(&PublicKeys::of(&b.node.identity_key).mac1(&pili));
        pili.extend_from_slice(&[0; 16]);

        let mut accepted = b.answer(&pili, source(1)).expect("snow's PILI");
        assert_eq!(accepted.early.as_deref(), (!early.is_empty()).then_some(&early[..]));
        let pilr = Response::decode(&accepted.datagram).expect("a PILR");
        assert!(PublicKeys::of(&identity.public_key()).mac1_is(pilr.before_mac1, pilr.mac1));
        let message = &accepted.datagram[16..accepted.datagram.len() - 16];
        let len = snow.read_message(message, &mut buf).expect("our PILR");
        let answer = Payload2::decode(buf[..len].try_into().expect("80 bytes")).expect("a payload");
        assert_eq!((answer.sender, answer.observed), (pilr.sender, Observed::V4([198, 51, 100, 1], 4_000)));
        let suite = Suite::from_id(answer.suite).expect("a suite");
        let [ours, theirs] = accepted.session.secrets().map(|(secret, _)| *secret);
        assert_eq!(traffic(&mut snow, suite), [theirs, ours], "round {round}");
        // The keys work: what snow's side would seal opens here.
        let mut twin = twin(&mut snow, suite, &answer, round + 1, b.now);
        let mut ping = [0; OVERHEAD + 1];
        ping[HEADER_LEN] = 1;
        twin.seal(&mut ping, 1, b.now).expect("an initiator may send");
        accepted.session.open(&mut ping, b.now).expect("its packet");
        b.node.release(pilr.sender);
    }
}

fn twin(snow: &mut HandshakeState, suite: Suite, answer: &Payload2, local: u32, now: Instant) -> Session {
    let (to_responder, to_initiator) = snow.dangerously_get_raw_split();
    let hash = snow.get_handshake_hash().try_into().expect("SHA-256");
    let parts = super::super::session::Parts {
        suite,
        role: Role::Initiator,
        local,
        remote: answer.sender,
        reset_token: None,
        transport: answer.transport,
        limits: Limits::default(),
    };
    Session::new(&Split { to_responder, to_initiator, hash }, parts, now)
}

/// snow answers PILIs that a node of ours makes.
fn snow_answers(rounds: u32) {
    let start = Instant::now();
    let mut a = Side::new(1, start);
    let mut rng = ChaCha20Rng::from_seed([4; 32]);
    let psk = [9; 32];
    for round in 0..rounds {
        a.now += Duration::from_millis(50);
        let identity = Identity::from_seed(key(&mut rng));
        let (secret, ephemeral) = (key(&mut rng), key(&mut rng));
        let prekey = Prekey::new(&identity, secret, 1, 0, UNIX / 1_000);
        let known = PeerPrekey {
            identity: identity.public_key(),
            prekey: prekey.public(),
            certificate: prekey.certificate,
        };
        a.peer = Some(Association::new(1, known, Secret::new(psk)));
        let early = datagram_frame(&random_bytes(&mut rng, 880));
        let pili = if round & 1 == 0 { a.connect() } else { a.connect_with(&early) };
        let read = Initiation::decode(&pili).expect("a PILI");
        let prologue = prologue(read.header, &identity.public_key());
        let mut snow = builder(&prologue, &secret, &ephemeral, &psk).build_responder().expect("a responder");
        let mut buf = [0; 1_200];
        let len = snow.read_message(&pili[20..pili.len() - 32], &mut buf).expect("our PILI");
        let (payload, got) = Payload1::decode(&buf[..len]).expect("a payload");
        assert_eq!(payload.identity, a.node.identity_key);
        assert_eq!(got, if round & 1 == 0 { &[][..] } else { &early });
        assert_eq!(snow.get_remote_static(), Some(&a.node.prekey().prekey[..]));

        let suite = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305][rng.next_u32() as usize % 2];
        let answer = Payload2 {
            suite: suite.id(),
            early_accepted: round & 2 == 2 && read.flags.early,
            post_quantum: false,
            sender: rng.next_u32().max(1),
            transport: transport(),
            reset_token: key(&mut rng)[..16].try_into().expect("16"),
            observed: Observed::Unknown,
            time_ms: rng.next_u64(),
            record_seq: rng.next_u64(),
        };
        let header = response_header((answer.early_accepted, false), answer.sender, read.sender);
        let len = snow.write_message(&answer.encode(), &mut buf).expect("message 2");
        let mut pilr = [&header[..], &buf[..len]].concat();
        pilr.extend_from_slice(&PublicKeys::of(&a.node.identity_key).mac1(&pilr));
        let up = a.run(|peer, node, cx| peer.handle_response(node, &pilr, cx)).expect("snow's PILR");
        assert_eq!(up.early_accepted, read.flags.early.then_some(answer.early_accepted));
        assert_eq!((up.time_ms, up.record_seq), (answer.time_ms, answer.record_seq));
        let [ours, theirs] = a.session().secrets().map(|(secret, _)| *secret);
        assert_eq!(traffic(&mut snow, suite), [ours, theirs], "round {round}");
        assert!(a.session().is_reset_by(answer.sender, &answer.reset_token));
        a.run(|peer, node, _| peer.close(node));
        assert_eq!(a.node.indices(), 0);
    }
}

#[test]
fn snow_as_the_initiator() {
    snow_begins(FEW);
}

#[test]
fn snow_as_the_responder() {
    snow_answers(FEW);
}

#[test]
#[ignore = "minutes"]
fn snow_as_the_initiator_many_times() {
    snow_begins(MANY);
}

#[test]
#[ignore = "minutes"]
fn snow_as_the_responder_many_times() {
    snow_answers(MANY);
}

/// The bare pattern, with payloads of any length and any psk, message by message.
#[test]
fn the_pattern_alone_with_payloads_of_any_length() {
    let mut rng = ChaCha20Rng::from_seed([5; 32]);
    for _ in 0..FEW {
        let [s_i, s_r, e_i, e_r, psk] = [(); 5].map(|()| key(&mut rng));
        let prologue = random_bytes(&mut rng, 100);
        let (one, two) = (random_bytes(&mut rng, 2_000), random_bytes(&mut rng, 2_000));
        let responder = DhKey::from_bytes(s_r);
        let mut snow = builder(&prologue, &s_r, &e_r, &psk).build_responder().expect("a responder");
        let mut message = Vec::new();
        let (fixed, ephemeral) = (DhKey::from_bytes(s_i), DhKey::from_bytes(e_i));
        let initiator =
            Initiator::begin(&prologue, &responder.public(), &fixed, ephemeral, &one, &mut message)
                .expect("good keys");
        let mut buf = vec![0; 4_000];
        let len = snow.read_message(&message, &mut buf).expect("message 1");
        assert_eq!(buf[..len], one);
        let len = snow.write_message(&two, &mut buf).expect("message 2");
        let (ephemeral, sealed) = buf[..len].split_first_chunk().expect("a key");
        let (payload, split) = initiator.finish(ephemeral, sealed, &psk).expect("snow's message");
        assert_eq!(*payload, two);
        assert_eq!(snow.get_handshake_hash(), split.hash);
        assert_eq!(snow.dangerously_get_raw_split(), (split.to_responder, split.to_initiator));
        assert!(initiator.finish(ephemeral, sealed, &[0; 32]).is_none(), "another psk");

        // Our own responder, from the same secrets, says the same.
        let (e, rest) = message.split_first_chunk().expect("a key");
        let (fixed, payload) = rest.split_first_chunk().expect("a static key");
        let (ours, plain) = Responder::begin(&prologue, &responder, e, fixed, payload).expect("message 1");
        assert_eq!((&*plain, ours.initiator), (&one, DhKey::from_bytes(s_i).public()));
        let mut answer = Vec::new();
        let twin = ours.finish(&DhKey::from_bytes(e_r), &psk, &two, &mut answer).expect("good keys");
        assert_eq!((answer.as_slice(), twin.hash), (&buf[..len], split.hash));
    }
}
