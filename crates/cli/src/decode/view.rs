//! One datagram, readable: as lines for people and as JSON.

use pilotage_proto::crypto::{Aes256Gcm, PacketAead};
use pilotage_wire::beacon::{Extension, Message};
use pilotage_wire::frame::{self, Frame, Pila, PilaTrailer};
use pilotage_wire::packet::{Flags, Packet, Protocol};
use pilotage_wire::{DatagramKind, NodeId, SocketAddress, addressing, sack};
use serde_json::{Value, json};

/// Payload bytes that are shown.
const PREVIEW: usize = 64;

/// A datagram as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    /// Lines of text, inner layers indented.
    pub(super) lines: Vec<String>,
    /// The same as an object with at least `kind`; `error` if something in it is wrong.
    pub(super) value: Value,
}

impl View {
    fn new(kind: &str, line: String, mut value: Value) -> Self {
        value["kind"] = kind.into();
        Self { lines: vec![line], value }
    }

    fn wrong(kind: &str, error: String, len: usize) -> Self {
        Self::new(kind, format!("{kind}: {error}"), json!({ "error": error, "length": len }))
    }

    /// Puts an inner layer below this one.
    fn holding(mut self, key: &str, inner: Self) -> Self {
        self.lines.extend(inner.lines.into_iter().map(|line| format!("  {line}")));
        self.value[key] = inner.value;
        self
    }
}

/// Opens sealed frames with the keys that the user gave.
#[derive(Default)]
pub(super) struct Keys(Vec<Aes256Gcm>);

impl Keys {
    pub(super) fn new(keys: &[[u8; 32]]) -> Self {
        Self(keys.iter().map(Aes256Gcm::new).collect())
    }

    fn open(&self, sender: NodeId, nonce: &[u8; 12], ciphertext: &[u8]) -> Option<Vec<u8>> {
        self.0.iter().find_map(|key| {
            let mut buf = ciphertext.to_vec();
            key.open_in_place(nonce, &frame::pils_aad(sender), &mut buf).map(|plain| plain.to_vec())
        })
    }
}

/// Shows a UDP payload: tunnel frame, beacon message, or a bare packet as in documents and vectors.
pub(super) fn view(datagram: &[u8], keys: &Keys) -> View {
    match DatagramKind::of(datagram) {
        DatagramKind::Frame => view_frame(datagram, keys),
        DatagramKind::Beacon => view_beacon(datagram, keys),
        _ if datagram.first().is_some_and(|byte| byte >> 4 == 1) => view_packet(datagram),
        _ => View::wrong(
            "unknown",
            "neither a tunnel frame nor a beacon message nor a packet".into(),
            datagram.len(),
        ),
    }
}

/// Whether a captured datagram is of this protocol, judged strictly, as any UDP traffic may be in
/// a capture.
pub(super) fn is_ours(datagram: &[u8]) -> bool {
    match DatagramKind::of(datagram) {
        DatagramKind::Frame => true,
        DatagramKind::Beacon => {
            Message::decode(datagram).is_ok_and(|message| message.encoded_len() == datagram.len())
        }
        _ => false,
    }
}

fn view_frame(bytes: &[u8], keys: &Keys) -> View {
    let frame = match frame::decode(bytes) {
        Ok(frame) => frame,
        Err(error) => return View::wrong("frame", error.to_string(), bytes.len()),
    };
    match frame {
        Frame::Pilt { packet } => {
            View::new("PILT", format!("PILT plaintext, {} bytes", packet.len()), json!({}))
                .holding("packet", view_packet(packet))
        }
        Frame::Pils { sender, nonce, ciphertext } => view_sealed(sender, &nonce, ciphertext, keys),
        Frame::Pilk { sender, x25519 } => View::new(
            "PILK",
            format!("PILK anonymous key exchange from node {sender}, x25519 {}", hex::encode(x25519)),
            json!({ "sender": sender.to_string(), "x25519": hex::encode(x25519) }),
        ),
        Frame::Pila(pila) => view_pila(&pila),
        Frame::Pilp => View::new("PILP", "PILP punch".into(), json!({ "length": bytes.len() })),
    }
}

fn view_sealed(sender: NodeId, nonce: &[u8; 12], ciphertext: &[u8], keys: &Keys) -> View {
    let (prefix, counter) = nonce.split_at(4);
    let counter = counter.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    let prefix = hex::encode(prefix);
    let line = format!(
        "PILS from node {sender}, nonce {prefix} counter {counter}, {} bytes sealed",
        ciphertext.len()
    );
    let value = json!({
        "sender": sender.to_string(),
        "nonce_prefix": prefix,
        "nonce_counter": counter,
        "ciphertext_length": ciphertext.len(),
    });
    let mut view = View::new("PILS", line, value);
    if keys.0.is_empty() {
        return view;
    }
    match keys.open(sender, nonce, ciphertext) {
        Some(plain) => view.holding("packet", view_packet(&plain)),
        None => {
            view.lines.push("  none of the keys opens it".into());
            view.value["error"] = "none of the keys opens it".into();
            view
        }
    }
}

fn view_pila(pila: &Pila<'_>) -> View {
    let signed = frame::pila_signed_message(pila.sender, &pila.x25519);
    let valid = pilotage_proto::crypto::verify(&pila.ed25519, &signed, &pila.signature);
    let derived = addressing::node_ids(&pila.ed25519).take(16).find(|(_, node)| *node == pila.sender);
    let fingerprint = addressing::fingerprint128(&pila.ed25519);
    let line = format!(
        "PILA key exchange from node {}, {fingerprint}, x25519 {}, signature {}",
        pila.sender,
        hex::encode(pila.x25519),
        if valid { "valid" } else { "INVALID" },
    );
    let mut value = json!({
        "sender": pila.sender.to_string(),
        "x25519": hex::encode(pila.x25519),
        "ed25519": hex::encode(pila.ed25519),
        "fingerprint": fingerprint,
        "signature": hex::encode(pila.signature),
        "signature_valid": valid,
        "address_salt": derived.map(|(salt, _)| salt),
    });
    let mut lines = vec![match derived {
        Some((salt, _)) => format!("  node id is derived from the key (salt {salt})"),
        None => "  node id is not derived from the key: assigned by a registry".into(),
    }];
    if !pila.trailer.is_empty() {
        let trailer = PilaTrailer::decode(pila.trailer);
        lines.push(format!(
            "  trailer: capabilities {:#x}, flags {:#x}{}{}",
            trailer.capabilities,
            trailer.flags,
            if trailer.flags & PilaTrailer::REQUEST != 0 { " (please answer)" } else { "" },
            trailer.pilotage.map_or(String::new(), |version| format!(", Pilotage dialect {version}")),
        ));
        value["trailer"] = json!({
            "capabilities": trailer.capabilities,
            "flags": trailer.flags,
            "pilotage": trailer.pilotage,
        });
    }
    let mut view = View::new("PILA", line, value);
    view.lines.extend(lines);
    view
}

fn view_beacon(bytes: &[u8], keys: &Keys) -> View {
    let message = match Message::decode(bytes) {
        Ok(message) => message,
        Err(error) => return View::wrong("beacon", error.to_string(), bytes.len()),
    };
    let simple = |name: &str, text: String, mut value: Value| {
        value["message"] = name.into();
        View::new("beacon", text, value)
    };
    let carried = |name: &str, text: String, value: Value, frame: &[u8]| {
        simple(name, format!("{text}, {} bytes", frame.len()), value)
            .holding("frame", view_carried_frame(frame, keys))
    };
    match message {
        Message::Discover { node } => simple(
            "discover",
            format!("beacon discover from node {node}"),
            json!({ "node": node.to_string() }),
        ),
        Message::DiscoverEx { node } => simple(
            "discover_ex",
            format!("beacon extended discover from node {node}"),
            json!({ "node": node.to_string() }),
        ),
        Message::DiscoverReply { addr } => simple(
            "discover_reply",
            format!("beacon discover reply: you are {addr}"),
            json!({ "addr": addr.to_string() }),
        ),
        Message::PunchRequest { node, target } => simple(
            "punch_request",
            format!("beacon punch request from node {node} to node {target}"),
            json!({ "node": node.to_string(), "target": target.to_string() }),
        ),
        Message::PunchCommand { addr } => simple(
            "punch_command",
            format!("beacon punch command: send to {addr}"),
            json!({ "addr": addr.to_string() }),
        ),
        Message::Relay { src, dst, frame } => carried(
            "relay",
            format!("beacon relay from node {src} to node {dst}"),
            json!({ "src": src.to_string(), "dst": dst.to_string() }),
            frame,
        ),
        Message::Deliver { src, frame } => carried(
            "deliver",
            format!("beacon deliver from node {src}"),
            json!({ "src": src.to_string() }),
            frame,
        ),
        Message::DeliverEx { src, dst, frame } => carried(
            "deliver_ex",
            format!("beacon extended deliver from node {src} to node {dst}"),
            json!({ "src": src.to_string(), "dst": dst.to_string() }),
            frame,
        ),
        Message::Gossip { beacon, nodes } => {
            let (text, value) = describe_gossip(beacon, nodes.iter().map(|node| node.to_string()).collect());
            simple("gossip", text, value)
        }
        Message::Extension(extension) => {
            let (name, text, value) = describe_extension(&extension);
            match extension {
                Extension::Carry { frame, .. } => carried(name, format!("beacon {text}"), value, frame),
                _ => simple(name, format!("beacon {text}"), value),
            }
        }
    }
}

/// Name, text and values of one of our own messages.
fn describe_extension(extension: &Extension<'_>) -> (&'static str, String, Value) {
    match *extension {
        Extension::Hello { node, renew, .. } => {
            ("hello", format!("hello from node {node}"), json!({ "node": node.to_string(), "renew": renew }))
        }
        Extension::Challenge { addr, .. } => {
            ("challenge", format!("challenge: you are {addr}"), json!({ "addr": addr.to_string() }))
        }
        Extension::Prove { node, key, beacon, .. } => (
            "prove",
            format!("proof of node {node} for {beacon}"),
            json!({ "node": node.to_string(), "key": hex::encode(key), "beacon": beacon.to_string() }),
        ),
        Extension::Registered { rank, addr, .. } => (
            "registered",
            format!("registered ({}): you are {addr}", rank.as_str()),
            json!({ "rank": rank.as_str(), "addr": addr.to_string() }),
        ),
        Extension::Refused { reason, addr, .. } => (
            "refused",
            format!("refuses the proof ({}): you are {addr}", reason.as_str()),
            json!({ "reason": reason.as_str(), "addr": addr.to_string() }),
        ),
        Extension::Probe { from_other_port, .. } => {
            ("probe", "probe".into(), json!({ "from_other_port": from_other_port }))
        }
        Extension::ProbeReply { addr, other_port, .. } => (
            "probe_reply",
            format!("probe reply: you are {addr}"),
            json!({ "addr": addr.to_string(), "other_port": other_port }),
        ),
        Extension::Hairpin { .. } => ("hairpin", "hairpin test".into(), json!({})),
        Extension::Sync { boot, number, nodes, .. } => (
            "sync",
            format!("tells of {} nodes", nodes.len()),
            json!({ "boot": boot, "number": number, "nodes": nodes.len() }),
        ),
        Extension::Carry { proven, src, dst, .. } => (
            "carry",
            format!("hands over from node {src} to node {dst}"),
            json!({ "src": src.to_string(), "dst": dst.to_string(), "proven": proven }),
        ),
    }
}

fn describe_gossip(beacon: u32, nodes: Vec<String>) -> (String, Value) {
    let text = format!("beacon gossip from beacon {beacon}: {} nodes: {}", nodes.len(), nodes.join(" "));
    (text, json!({ "beacon": beacon, "nodes": nodes }))
}

/// A frame and nothing else: beacon messages do not nest.
fn view_carried_frame(frame: &[u8], keys: &Keys) -> View {
    match DatagramKind::of(frame) {
        DatagramKind::Frame => view_frame(frame, keys),
        _ => View::wrong("unknown", "the carried bytes are no tunnel frame".into(), frame.len()),
    }
}

fn view_packet(bytes: &[u8]) -> View {
    let packet = match Packet::decode(bytes) {
        Ok(packet) => packet,
        Err(error) => return View::wrong("packet", error.to_string(), bytes.len()),
    };
    let header = packet.header;
    let protocol = match header.protocol {
        Protocol::Stream => "stream",
        Protocol::Datagram => "datagram",
        Protocol::Control => "control",
    };
    let flags = flag_names(header.flags);
    let source = SocketAddress { address: header.src, port: header.src_port };
    let destination = SocketAddress { address: header.dst, port: header.dst_port };
    let line = format!(
        "{protocol} {source} -> {destination} [{}] seq {} ack {} window {} payload {}",
        flags.join(" "),
        header.seq,
        header.ack,
        header.window,
        packet.payload.len(),
    );
    let value = json!({
        "protocol": protocol,
        "flags": flags,
        "src": source.to_string(),
        "dst": destination.to_string(),
        "seq": header.seq,
        "ack": header.ack,
        "window": header.window,
        "payload_length": packet.payload.len(),
    });
    let mut view = View::new("packet", line, value);
    let blocks = (header.protocol == Protocol::Stream).then(|| sack::decode(packet.payload)).flatten();
    match blocks {
        Some(blocks) => {
            let text: Vec<_> =
                blocks.as_slice().iter().map(|(left, right)| format!("{left}..{right}")).collect();
            view.lines.push(format!("  SACK {}", text.join(" ")));
            view.value["sack"] = blocks.as_slice().iter().map(|(left, right)| json!([left, right])).collect();
        }
        None if !packet.payload.is_empty() => {
            let shown = &packet.payload[..packet.payload.len().min(PREVIEW)];
            let more = if shown.len() < packet.payload.len() { " …" } else { "" };
            view.lines.push(format!("  {}{more}  |{}|", hex::encode(shown), printable(shown)));
            view.value["payload"] = hex::encode(shown).into();
            view.value["payload_cut"] = (!more.is_empty()).into();
        }
        None => {}
    }
    view
}

fn flag_names(flags: Flags) -> Vec<&'static str> {
    [(Flags::SYN, "SYN"), (Flags::ACK, "ACK"), (Flags::FIN, "FIN"), (Flags::RST, "RST")]
        .into_iter()
        .filter(|(flag, _)| flags.contains(*flag))
        .map(|(_, name)| name)
        .collect()
}

fn printable(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vectors(name: &str) -> Value {
        let path = format!("{}/../../spec/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn bytes(value: &Value) -> Vec<u8> {
        hex::decode(value.as_str().unwrap()).unwrap()
    }

    #[test]
    fn packets_of_the_vectors() {
        for case in vectors("packets")["cases"].as_array().unwrap() {
            // Unassigned protocols are errors to us; the largest packets are given by their hash.
            let assigned = case["protocol"].as_u64().is_some_and(|number| (1..=3).contains(&number));
            if !assigned || !case["pilt_frame_hex"].is_string() {
                continue;
            }
            let bare = view(&bytes(&case["packet_hex"]), &Keys::default());
            assert_eq!(bare.value["kind"], "packet", "{case}");
            assert_eq!(bare.value["seq"], case["seq"], "{case}");
            assert_eq!(bare.value["window"], case["window"]);
            let framed = view(&bytes(&case["pilt_frame_hex"]), &Keys::default());
            assert_eq!(framed.value["kind"], "PILT");
            assert_eq!(framed.value["packet"], bare.value);
        }
    }

    #[test]
    fn sealed_frames_open_with_the_key_only() {
        for case in vectors("pils")["cases"].as_array().unwrap() {
            let frame = bytes(&case["frame_hex"]);
            let key: [u8; 32] = bytes(&case["key"]).try_into().unwrap();
            let closed = view(&frame, &Keys::default());
            assert_eq!(closed.value["kind"], "PILS");
            assert!(closed.value.get("packet").is_none());
            let open = view(&frame, &Keys::new(&[[0; 32], key]));
            assert_eq!(open.value["packet"], view(&bytes(&case["packet_hex"]), &Keys::default()).value);
            let wrong = view(&frame, &Keys::new(&[[0; 32]]));
            assert!(wrong.value["error"].is_string());
        }
    }

    #[test]
    fn key_exchanges_of_the_vectors() {
        for case in vectors("pila")["cases"].as_array().unwrap() {
            let shown = view(&bytes(&case["pila_frame"]), &Keys::default());
            assert_eq!(shown.value["kind"], "PILA");
            assert_eq!(shown.value["signature_valid"], true);
            assert_eq!(shown.value["ed25519"], case["ed25519_public"]);
            let shown = view(&bytes(&case["pilk_frame"]), &Keys::default());
            assert_eq!(shown.value["x25519"], case["x25519_public"]);
        }
    }

    #[test]
    fn beacon_messages_of_the_vectors() {
        let mut seen = 0;
        for case in vectors("beacon")["cases"].as_array().unwrap() {
            if !case["type"].is_u64() {
                continue;
            }
            let shown = view(&bytes(&case["hex"]), &Keys::default());
            assert_eq!(shown.value["kind"], "beacon", "{case}");
            seen += usize::from(shown.value["message"].is_string());
        }
        assert!(seen >= 9, "{seen}");
    }

    #[test]
    fn sack_blocks_are_shown() {
        let payload = hex::decode("5341434b010000200100003001").unwrap();
        let header = pilotage_wire::packet::Header {
            flags: Flags::ACK,
            protocol: Protocol::Stream,
            src: pilotage_wire::Address::new(0, 1),
            dst: pilotage_wire::Address::new(0, 2),
            src_port: 1,
            dst_port: 2,
            seq: 3,
            ack: 4,
            window: 5,
        };
        let mut buf = vec![0; 34];
        buf.extend(&payload);
        header.encode(&mut buf, payload.len()).unwrap();
        let shown = view(&buf, &Keys::default());
        assert_eq!(shown.value["sack"], json!([[8193, 12289]]));
        assert!(shown.lines.concat().contains("SACK 8193..12289"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200), which in 0..8usize) {
            let starts: [&[u8]; 8] = [b"", b"PILT", b"PILS", b"PILK", b"PILA", b"PILP", &[5], &[7]];
            let keys = Keys::new(&[[1; 32]]);
            let shown = view(&[starts[which], &bytes].concat(), &keys);
            prop_assert!(shown.value["kind"].is_string());
            prop_assert!(!shown.lines.is_empty());
        }
    }
}
