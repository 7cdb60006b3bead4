//! Recorded sessions of the reference's programs (spec/vectors/traces), replayed without them: every byte decodes, and
//! our endpoint plays either side against what the other one really sent.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_proto::crypto::{EphemeralKey, Identity, PacketAead, SessionAead, verify};
use pilotage_proto::{
    Config, ConnectionId, Endpoint, PeerConfig, PeerPolicy, ReadError, RecvMeta, TransmitBuf,
};
use pilotage_wire::frame::{self, Frame};
use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Packet, Protocol};
use pilotage_wire::{Address, NodeId, SocketAddress, beacon};
use serde_json::Value;

const PLAIN: &str = include_str!("../../../spec/vectors/traces/plain.json");
const SEALED: &str = include_str!("../../../spec/vectors/traces/sealed.json");
const HUB: &str = include_str!("../../../spec/vectors/traces/hub.json");

fn trace(text: &str) -> Value {
    serde_json::from_str(text).expect("a trace is JSON")
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect()
}

fn key(value: &Value) -> [u8; 32] {
    unhex(value.as_str().expect("hex")).try_into().expect("32 bytes")
}

/// The events of one kind, in order.
fn events<'a>(trace: &'a Value, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let all = trace["events"].as_array().expect("events").iter();
    all.filter_map(move |event| Some((event[kind].as_str()?, event)))
}

fn datagrams(trace: &Value) -> Vec<(String, Vec<u8>)> {
    events(trace, "udp")
        .map(|(way, event)| (way.to_owned(), unhex(event["hex"].as_str().expect("hex"))))
        .collect()
}

/// A packet decodes, and encodes to the same bytes.
fn check_packet(bytes: &[u8]) -> Packet<'_> {
    let packet = Packet::decode(bytes).expect("a packet of the reference");
    let mut again = bytes.to_vec();
    again[..HEADER_LEN].fill(0);
    let len = packet.header.encode(&mut again, packet.payload.len()).expect("fits");
    assert_eq!((len, &again[..]), (bytes.len(), bytes));
    packet
}

#[test]
fn every_recorded_datagram_decodes() {
    for (text, sealed) in [(PLAIN, false), (SEALED, true)] {
        let (mut frames, mut beacons, mut acks_of_fin) = (0, 0, 0);
        for (way, bytes) in datagrams(&trace(text)) {
            if way.contains("beacon") {
                let message = beacon::Message::decode(&bytes).expect("a beacon message");
                let mut again = vec![0; message.encoded_len()];
                message.encode(&mut again).expect("fits");
                assert_eq!(again, bytes);
                beacons += 1;
                continue;
            }
            frames += 1;
            match frame::decode(&bytes).expect("a frame of the reference") {
                Frame::Pilt { packet } => {
                    assert!(!sealed);
                    let header = check_packet(packet).header;
                    acks_of_fin += usize::from(header.flags == Flags::FIN | Flags::ACK);
                }
                Frame::Pila(pila) => {
                    let signed = frame::pila_signed_message(pila.sender, &pila.x25519);
                    assert!(verify(&pila.ed25519, &signed, &pila.signature));
                    assert!(pila.trailer.is_empty() && sealed);
                }
                Frame::Pils { .. } => assert!(sealed),
                Frame::Pilp => assert_eq!(bytes.len(), 4),
                other => panic!("{other:?}"),
            }
        }
        assert!(frames >= 20 && beacons >= 8, "{frames} {beacons}");
        assert_eq!(acks_of_fin > 0, !sealed);
    }
}

#[test]
fn every_recorded_message_is_well_formed() {
    for (text, least) in [(PLAIN, 40), (SEALED, 8), (HUB, 20)] {
        let trace = trace(text);
        let calls: Vec<Value> = events(&trace, "registry")
            .map(|(_, event)| serde_json::from_str(event["text"].as_str().expect("text")).expect("JSON"))
            .collect();
        assert!(calls.len() >= least && calls.iter().all(|call| call["type"].is_string()));
        for (_, event) in events(&trace, "ipc") {
            let bytes = unhex(event["hex"].as_str().expect("hex"));
            assert!((1..=0x22).contains(&bytes[0]), "{bytes:02x?}");
            // Requests and replies of the table have odd and even numbers; six are neither.
            let pushed = [0x05, 0x07, 0x06, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x10];
            if !pushed.contains(&bytes[0]) {
                assert_eq!(event["dir"] == "request", bytes[0] % 2 == 1, "{bytes:02x?}");
            }
        }
    }
}

#[test]
fn our_key_derivation_opens_every_sealed_frame() {
    let trace = trace(SEALED);
    let [a, b] = [&trace["nodes"][0], &trace["nodes"][1]];
    for (own, other) in [(a, b), (b, a)] {
        let secret = EphemeralKey::from_bytes(key(&own["x25519_private"]));
        assert_eq!(secret.public(), key(&own["x25519_public"]));
        assert_eq!(Identity::from_seed(key(&own["ed25519_seed"])).public_key(), key(&own["ed25519_public"]));
        let shared = secret.tunnel_key(&key(&other["x25519_public"])).expect("no weak key");
        assert_eq!(shared.as_bytes(), &key(&trace["session_keys"][0]));
    }
    let opened = opened(&trace);
    assert!(opened.iter().filter(|(way, ..)| way == "a>b").count() >= 8);
    assert!(opened.iter().any(|(_, packet)| packet.ends_with(b"hello")));
}

/// All sealed packets in the clear.
fn opened(trace: &Value) -> Vec<(String, Vec<u8>)> {
    let [a, b] = [&trace["nodes"][0], &trace["nodes"][1]];
    let secret = EphemeralKey::from_bytes(key(&a["x25519_private"]));
    let aead = secret.tunnel_key(&key(&b["x25519_public"])).expect("no weak key").aead();
    let mut packets = Vec::new();
    for (way, mut bytes) in datagrams(trace) {
        let Some((sender, nonce, sealed)) = frame::split_pils_mut(&mut bytes) else { continue };
        assert!(u64::from_be_bytes(nonce[4..].try_into().expect("8 bytes")) >= 1, "the first counter is 1");
        let packet = aead.open_in_place(&nonce, &frame::pils_aad(sender), sealed).expect("opens");
        check_packet(packet);
        packets.push((way, packet.to_vec()));
    }
    packets
}

/// Plays one recorded node against our endpoint, which is the other.
struct Player {
    now: Instant,
    ours: Endpoint,
    /// Where the recorded node is.
    at: SocketAddr,
    node: NodeId,
    secret: EphemeralKey,
    pila: Vec<u8>,
    aead: Option<SessionAead>,
    /// Our key that it knows.
    known: [u8; 32],
    counter: u64,
    /// What our endpoint sent, in the clear.
    heard: Vec<(Header, Vec<u8>)>,
    exchanges: usize,
}

impl Player {
    #[allow(clippy::disallowed_methods)] // a base for virtual time
    fn new(trace: &Value, ours: usize) -> Self {
        let theirs = 1 - ours;
        let now = Instant::now();
        let nodes = &trace["nodes"];
        let address = |i: usize| Address::new(0, nodes[i]["node"].as_u64().expect("id") as u32);
        let at = nodes[theirs]["udp"].as_str().expect("endpoint").parse().expect("endpoint");
        let identity = Identity::from_seed(key(&nodes[ours]["ed25519_seed"]));
        let mut endpoint = Endpoint::new(Config::default(), identity, address(ours), [7; 32], now);
        let peer = PeerConfig {
            address: address(theirs),
            key: Some(key(&nodes[theirs]["ed25519_public"])),
            endpoint: Some(at),
            policy: PeerPolicy::default(),
            prekey: None,
        };
        endpoint.add_peer(now, peer).expect("fresh");
        let way = if theirs == 0 { "a>b" } else { "b>a" };
        let pila = datagrams(trace).into_iter().find(|(w, bytes)| w == way && bytes.starts_with(b"PILA"));
        Self {
            now,
            ours: endpoint,
            at,
            node: address(theirs).node,
            secret: EphemeralKey::from_bytes(key(&nodes[theirs]["x25519_private"])),
            pila: pila.expect("a recorded key exchange").1,
            aead: None,
            known: [0; 32],
            counter: 0,
            heard: Vec::new(),
            exchanges: 0,
        }
    }

    fn hand(&mut self, mut bytes: Vec<u8>) {
        let meta = RecvMeta { remote: self.at, local_ip: None };
        self.ours.handle_datagram(self.now, &meta, &mut bytes);
    }

    /// Seals a recorded packet under the keys of this session.
    fn say(&mut self, header: &Header, payload: &[u8]) {
        self.counter += 1;
        let mut nonce = [0xA5; 12];
        nonce[4..].copy_from_slice(&self.counter.to_be_bytes());
        let mut packet = vec![0; HEADER_LEN];
        packet.extend(payload);
        header.encode(&mut packet, payload.len()).expect("fits");
        packet.extend([0; 16]);
        let aead = self.aead.as_ref().expect("keys");
        aead.seal_in_place(&nonce, &frame::pils_aad(self.node), &mut packet);
        let mut bytes = vec![0; frame::PILS_HEADER_LEN];
        frame::encode_pils_header(self.node, &nonce, &mut bytes).expect("fits");
        bytes.extend(packet);
        self.hand(bytes);
    }

    /// Takes what our endpoint sends for `time`; keys and control requests are answered as the reference does.
    fn listen(&mut self, time: Duration) {
        let end = self.now + time;
        let mut buf = TransmitBuf::new(8);
        loop {
            while let Some(t) = self.ours.poll_transmit(self.now, &mut buf) {
                let step = t.segment_size.unwrap_or(t.size);
                let sent: Vec<Vec<u8>> = buf.bytes(t.size).chunks(step).map(<[u8]>::to_vec).collect();
                sent.into_iter().for_each(|bytes| self.hear(bytes));
            }
            if self.now >= end {
                return;
            }
            self.now += Duration::from_millis(5);
            self.ours.handle_timeout(self.now);
        }
    }

    fn hear(&mut self, mut bytes: Vec<u8>) {
        if let Ok(Frame::Pila(pila)) = frame::decode(&bytes) {
            self.exchanges += 1;
            if self.known == pila.x25519 {
                return; // the reference answers only new keys
            }
            self.known = pila.x25519;
            let shared = self.secret.tunnel_key(&pila.x25519).expect("no weak key");
            self.aead = Some(shared.aead());
            let answer = self.pila.clone();
            return self.hand(answer);
        }
        let Some((sender, nonce, sealed)) = frame::split_pils_mut(&mut bytes) else { return };
        let aead = self.aead.as_ref().expect("keys before sealed frames");
        let Some(packet) = aead.open_in_place(&nonce, &frame::pils_aad(sender), sealed) else { return };
        let packet = Packet::decode(packet).expect("ours");
        let (header, payload) = (packet.header, packet.payload.to_vec());
        if header.protocol == Protocol::Control {
            let answer = Header {
                flags: Flags::ACK,
                src: header.dst,
                dst: header.src,
                src_port: header.dst_port,
                dst_port: header.src_port,
                ack: header.seq.wrapping_add(1),
                ..header
            };
            return self.say(&answer, &payload);
        }
        self.heard.push((header, payload));
    }
}

/// The packets of the recorded node in the first echo session.
fn recorded(trace: &Value, theirs: usize) -> VecDeque<(Header, Vec<u8>)> {
    let way = if theirs == 0 { "a>b" } else { "b>a" };
    let mut port = None;
    let mut packets = VecDeque::new();
    for (w, bytes) in opened(trace) {
        let packet = Packet::decode(&bytes).expect("checked");
        let (header, ends) = (packet.header, [packet.header.src_port, packet.header.dst_port]);
        if header.protocol != Protocol::Stream || !ends.contains(&7) {
            continue;
        }
        let dialler = if ends[0] == 7 { ends[1] } else { ends[0] };
        if *port.get_or_insert(dialler) == dialler && w == way {
            packets.push_back((header, packet.payload.to_vec()));
        }
    }
    packets
}

fn read(player: &mut Player, id: ConnectionId) -> Result<Vec<u8>, ReadError> {
    let mut buf = [0; 64];
    player.ours.read(player.now, id, &mut buf).map(|len| buf[..len].to_vec())
}

/// Nobody is answered with FIN, and it ends.
fn no_storm(player: &mut Player, fin: &Header) {
    player.listen(Duration::from_secs(3));
    player.heard.clear();
    for _ in 0..10 {
        player.say(fin, b"");
        player.listen(Duration::from_millis(50));
    }
    let heard = &player.heard;
    assert!(heard.iter().all(|(h, data)| h.flags == Flags::ACK && data.is_empty()), "{heard:?}");
    assert!(heard.len() <= 10, "{heard:?}");
    player.heard.clear();
    player.listen(Duration::from_secs(60));
    let heard = &player.heard;
    assert!(heard.len() <= 10, "{heard:?}");
}

#[test]
fn our_dialler_talks_to_the_recorded_echo_server() {
    let trace = trace(SEALED);
    let mut theirs = recorded(&trace, 1);
    let mut player = Player::new(&trace, 0);
    let to = SocketAddress { address: Address::new(0, 2), port: 7 };
    let id = player.ours.connect(player.now, to).expect("known");
    player.listen(Duration::from_millis(300));
    let (syn, _) = player.heard.iter().find(|(h, _)| h.flags == Flags::SYN).expect("SYN").clone();
    assert!((1..=2).contains(&player.exchanges), "{} key exchanges", player.exchanges);
    // Their numbers count from their ISN 0; ours is random, and so is our port.
    let fit = |header: &Header| Header {
        ack: if header.flags.contains(Flags::ACK) { header.ack.wrapping_add(syn.seq) } else { 0 },
        dst_port: syn.src_port,
        ..*header
    };
    let (answer, _) = theirs.pop_front().expect("SYN-ACK");
    assert_eq!(answer.flags, Flags::SYN | Flags::ACK);
    player.say(&fit(&answer), b"");
    player.listen(Duration::from_millis(20));
    assert!(player.ours.is_open(id));
    assert_eq!(player.ours.write(player.now, id, b"hello"), Ok(5));
    player.listen(Duration::from_millis(20));
    assert!(player.heard.iter().any(|(_, data)| data == b"hello"));
    while let Some((header, payload)) = theirs.front().filter(|(h, _)| !h.flags.contains(Flags::FIN)).cloned()
    {
        theirs.pop_front();
        player.say(&fit(&header), &payload);
    }
    assert_eq!(read(&mut player, id), Ok(b"hello".to_vec()));
    player.ours.close(player.now, id);
    player.listen(Duration::from_millis(100));
    let fins = player.heard.iter().filter(|(h, _)| h.flags.contains(Flags::FIN)).count();
    assert_eq!(fins, 1, "{:?}", player.heard);
    let (fin, _) = theirs.pop_front().expect("their FIN with ACK");
    assert_eq!(fin.flags, Flags::FIN | Flags::ACK);
    no_storm(&mut player, &fit(&fin));
}

#[test]
fn our_echo_server_talks_to_the_recorded_dialler() {
    let trace = trace(SEALED);
    let mut theirs = recorded(&trace, 0);
    let mut player = Player::new(&trace, 1);
    player.ours.listen(7).expect("free");
    player.hand(player.pila.clone());
    player.listen(Duration::from_millis(50));
    let (syn, _) = theirs.pop_front().expect("SYN");
    assert_eq!((syn.flags, syn.seq), (Flags::SYN, 0));
    player.say(&syn, b"");
    player.listen(Duration::from_millis(50));
    let (answer, _) =
        player.heard.iter().find(|(h, _)| h.flags.contains(Flags::SYN)).expect("SYN-ACK").clone();
    assert_eq!((answer.flags, answer.ack), (Flags::SYN | Flags::ACK, 1));
    let fit = |header: &Header| Header {
        ack: if header.flags.contains(Flags::ACK) { header.ack.wrapping_add(answer.seq) } else { 0 },
        ..*header
    };
    while let Some((header, payload)) = theirs.front().cloned() {
        theirs.pop_front();
        if header.flags.contains(Flags::FIN) {
            theirs.push_front((header, payload));
            break;
        }
        let has_data = !payload.is_empty();
        player.say(&fit(&header), &payload);
        player.listen(Duration::from_millis(5));
        if has_data {
            break;
        }
    }
    let (id, _) = player.ours.accept(7).expect("connected");
    assert_eq!(read(&mut player, id), Ok(b"hello".to_vec()));
    assert_eq!(player.ours.write(player.now, id, b"hello"), Ok(5));
    player.listen(Duration::from_millis(5));
    assert!(player.heard.iter().any(|(_, data)| data == b"hello"));
    while let Some((header, payload)) = theirs.pop_front() {
        player.say(&fit(&header), &payload);
        player.listen(Duration::from_millis(20));
        if header.flags.contains(Flags::FIN) {
            break;
        }
    }
    assert_eq!(read(&mut player, id), Ok(Vec::new()), "its FIN ends the stream in order");
    player.ours.close(player.now, id);
    let (fin, _) = recorded(&trace, 0).into_iter().find(|(h, _)| h.flags.contains(Flags::FIN)).expect("FIN");
    no_storm(&mut player, &fit(&fin));
}
