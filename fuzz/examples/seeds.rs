//! Writes seeds into `<folder>/<target>/`: the golden bytes of `spec/vectors` for the parsers of the wire, a few samples
//! for the other parsers, numbers from a fixed generator for the state machines. Run in `fuzz/`:
//! `cargo run --no-default-features --example seeds -- <folder>`.
//!
//! Files are named by content, so running it twice adds nothing.

#[path = "../../crates/wire/tests/vectors/files.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod files;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use pilotage_proto::crypto::Identity;
use pilotage_registry::engine::{JoinRule, Network, Profile, Proof, Record, Role, Row, RowKey, Secret};
use pilotage_wire::NodeId;
use pilotage_wire::addressing::node_ids;

/// Targets whose input is a list of operations.
const OPERATIONS: &[&str] = &[
    "assembler",
    "send_buffer",
    "scoreboard",
    "replay_window",
    "connection",
    "stream",
    "tunnel",
    "pair",
    "s1",
    "beacon_engine",
    "beacon_client",
    "registry",
];

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).expect("the folder to write to");
    let corpus = Path::new(&folder);
    let mut written = BTreeMap::new();
    for (target, bytes) in files::samples().into_iter().chain(samples()).chain(operations()) {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let folder = corpus.join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("vector-{:016x}", hasher.finish())), &bytes)?;
        *written.entry(target).or_insert(0) += 1;
    }
    for (target, count) in written {
        eprintln!("{target}: {count} seeds");
    }
    Ok(())
}

/// Some samples of what has no vectors.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let mut samples = vec![
        ("bench_header", [&b"PLBN\x01\x03\0\0"[..], &[0, 0, 0, 9, 0, 0, 1, 0]].concat()),
        ("bench_header", [&b"PLBD\x03\0\0\0"[..], &[0; 16]].concat()),
        ("file_header", [&b"PLFT\x01\x01\0\x05"[..], &9u64.to_be_bytes(), b"a.txt"].concat()),
        ("file_header", [&b"PLFR\x05"[..], &[1; 40], b"\0\x04full"].concat()),
        ("file_header", vec![0; 44]),
        ("file_header", b"\xFF\xFF\xFF\xFF\0\x04gone".to_vec()),
        ("reach_text", b"wss://hub.example:8443/x".to_vec()),
        ("reach_text", b"http://user:p%20w@[::1]:3128/".to_vec()),
        ("reach_text", b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec()),
        ("reach_text", b".example.com, 10.0.0.0/8 ::1 host:443\n10.1.2.3".to_vec()),
        ("portmap", [&b"\x02\0\x80\0\x01\0\0\0\x09"[..], &[0; 52], b"\x02\0\x80\0\0\0\0\0\x09\xcb\0\x71\x09"].concat()),
        ("portmap", [&b"\x02\x02\x81\0\0\0\0\x0e\x10\0\0\0\x09"[..], &[0; 12], &[7; 12], b"\x11\0\0\0\x0f\xa0\x13\x88", &[0; 10], b"\xff\xff\xcb\0\x71\x09"].concat()),
        ("igd", [
            &b"\0HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1:5000/r\r\n\r\n\0HTTP/1.0 200 OK\r\n\r\n<root><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1"[..],
            b"</serviceType><controlURL>/c</controlURL></service></root>\0HTTP/1.0 200 OK\r\n\r\n<NewExternalIPAddress>203.0.113.9</NewExternalIPAddress>\0",
            b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n1c\r\n<errorCode>725</errorCode>  \r\n0\r\n\r\n\0HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<a/>",
        ].concat()),
        ("socks5", b"\x05\x02\x00\x02".to_vec()),
        ("socks5", b"\x01\x03ann\x06secret".to_vec()),
        ("socks5", b"\x05\x01\x00\x03\x09bob.pilot\x13\x88early".to_vec()),
        ("socks5", b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50".to_vec()),
        ("socks5", [&b"\x05\x01\x00\x04"[..], &[0xFD; 16], b"\x00\x50"].concat()),
        ("state_files", state()),
        (
            "state_files",
            br#"{"version":1,"peers":[{"address":"0:0000.0000.0007","key":"0707070707070707070707070707070707070707070707070707070707070707","endpoint":"127.0.0.1:9","called":true,"last_seen":5}]}"#.to_vec(),
        ),
    ];
    samples.push((
        "state_files",
        br#"{"version":1,"addresses":[{"registry":"127.0.0.1:9000","key":"0707070707070707070707070707070707070707070707070707070707070707","address":"0:0000.0000.0001"}]}"#.to_vec(),
    ));
    samples.extend(trust());
    for (kind, target) in files::samples()
        .into_iter()
        .filter(|(t, _)| ["packet", "frame", "beacon"].contains(t))
        .map(|(t, b)| (b, t))
    {
        let sealed = u8::from(target == "packet");
        samples.push(("view", [&[sealed][..], &kind].concat()));
    }
    samples.extend(services());
    samples.extend(records().into_iter().map(|bytes| ("registry_record", bytes)));
    samples.extend(rows().into_iter().map(|bytes| ("registry_record", bytes)));
    samples.extend(prec());
    samples.extend(captures().into_iter().map(|bytes| ("capture", bytes)));
    samples
}

/// The messages of spec/vectors/port444.json, and a list of trusted nodes.
fn trust() -> Vec<(&'static str, Vec<u8>)> {
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../spec/vectors/port444.json")).expect("vectors");
    let cases = vectors["cases"].as_array().expect("cases").iter();
    let mut samples: Vec<_> = cases
        .map(|case| ("trust_message", case["json"].as_str().expect("text").as_bytes().to_vec()))
        .collect();
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let time = "2026-11-21T14:52:44Z";
    let file = format!(
        r#"{{"trusted":[{{"node_id":1,"public_key":"{key}","approved_at":"{time}","mutual":true,"network":3}}],"pending":[{{"node_id":2,"public_key":"","justification":"why","received_at":"{time}"}}],"outgoing":[{{"node_id":3,"public_key":"{key}","justification":"","sent_at":"{time}"}}]}}"#
    );
    samples.push(("trust_file", file.into_bytes()));
    samples.push(("trust_file", br#"{"trusted":null}"#.to_vec()));
    samples
}

/// The records and claims of spec/vectors/prec.json.
fn prec() -> Vec<(&'static str, Vec<u8>)> {
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../spec/vectors/prec.json")).expect("vectors");
    let all = |list: &str, field: &str| -> Vec<Vec<u8>> {
        let list = vectors[list].as_array().expect("a list").iter();
        list.map(|case| hex::decode(case[field].as_str().expect("a text")).expect("hex digits")).collect()
    };
    let records = all("cases", "record_hex").into_iter().chain(all("must_reject", "record_hex"));
    let claims = all("claims", "claim_hex").into_iter().chain(all("claims_must_reject", "claim_hex"));
    let records = records.map(|bytes| ("prec", bytes));
    records.chain(claims.map(|bytes| ("claims", [&[0][..], &bytes].concat()))).collect()
}

/// The golden bytes of the services of draft-01.
fn services() -> Vec<(&'static str, Vec<u8>)> {
    let mut samples = Vec::new();
    for (file, target, key) in [
        ("port53.json", "nameserver_text", "text"),
        ("port1001.json", "message_frame", "frame_hex"),
        ("port1002.json", "event_frame", "frame_hex"),
        ("port1003.json", "task_frame", "frame_hex"),
    ] {
        for case in cases(file) {
            let text = case[key].as_str().expect("a text");
            samples.push((
                target,
                if key == "text" { text.into() } else { hex::decode(text).expect("hex digits") },
            ));
        }
    }
    for text in ["ACK TEXT 7 bytes", "ERR FILE save failed: full"] {
        samples.push(("message_frame", text.into()));
    }
    for case in cases("port443.json") {
        for auth in ["client_auth", "server_auth"] {
            if let Some(text) = case[auth]["auth_frame_plaintext"].as_str() {
                samples.push(("secure_frame", hex::decode(text).expect("hex digits")));
            }
        }
        for frame in case["frames"].as_array().expect("frames") {
            let text = frame["frame_hex"].as_str().expect("a text");
            samples.push(("secure_frame", hex::decode(text).expect("hex digits")));
        }
    }
    samples
}

fn cases(file: &str) -> Vec<serde_json::Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec/vectors").join(file);
    let text = std::fs::read_to_string(path).expect("a vector file");
    let file: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    file["cases"].as_array().expect("cases").clone()
}

fn state() -> Vec<u8> {
    use base64::Engine;
    let text = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let seed = [7; 32];
    let public = text(&Identity::from_seed(seed).public_key());
    format!(r#"{{"private_key":"{}","public_key":"{public}"}}"#, text(&seed)).into_bytes()
}

fn records() -> Vec<Vec<u8>> {
    let public_key = [9; 32];
    let (salt, _) = node_ids(&public_key).next().expect("some salt gives an id");
    let record = Record {
        public_key,
        salt,
        proof: Proof::Fresh,
        public: true,
        hostname: Some("ann".into()),
        endpoint: Some(([10, 0, 0, 1], 4_001).into()),
        lan_addrs: vec![([192, 168, 0, 1], 1).into(), ([0u16, 0, 0, 0, 0, 0, 0, 1], 2).into()],
        created: 1_795_240_732,
        profile: Profile::default(),
    };
    let profile = Profile {
        first_key: None,
        rotations: 1,
        key_expires: Some(1_900_000_000),
        tags: vec!["web".into()],
        task_exec: true,
        ..Profile::default()
    };
    let full = Record { profile, ..record.clone() };
    let bare = Record { hostname: None, endpoint: None, lan_addrs: Vec::new(), ..record.clone() };
    [record, bare, full]
        .iter()
        .map(|record| {
            let mut bytes = vec![0];
            record.encode(&mut bytes);
            bytes
        })
        .collect()
}

/// Rows of the registry's other table: 2, length of the key, key, content.
fn rows() -> Vec<Vec<u8>> {
    let network = Network {
        name: "lab".into(),
        rule: JoinRule::Token,
        token: Some(Secret::new("token")),
        admin: None,
        enterprise: true,
        created: 1_795_240_732,
        members: vec![(NodeId(20), Role::Owner), (NodeId(30), Role::Member)],
        max_members: 5,
        allowed_ports: vec![7, 80],
        description: "d".into(),
    };
    let at = 1_795_240_732;
    let (a, b) = (NodeId(20), NodeId(30));
    [
        (RowKey::NextNetwork, Row::NextNetwork(2)),
        (RowKey::Network(1), Row::Network(Box::new(network))),
        (RowKey::Consent(a, b), Row::Consent { given: true }),
        (RowKey::Request(a, b), Row::Request { justification: "please".into(), at }),
        (RowKey::Response(a, b), Row::Response { accept: true, at }),
        (RowKey::Invite(a, 1), Row::Invite { inviter: b, at }),
    ]
    .iter()
    .map(|(key, row)| {
        let key = key.encode();
        let mut bytes = vec![2, u8::try_from(key.len()).expect("a key is short")];
        bytes.extend_from_slice(&key);
        row.encode(&mut bytes);
        bytes
    })
    .collect()
}

/// One UDP packet as Ethernet, bare IPv6, and in a classic and a newer capture.
fn captures() -> Vec<Vec<u8>> {
    let udp = [&[0x0F, 0xA0, 0x0F, 0xA1, 0, 12, 0, 0][..], b"PILP"].concat();
    let mut v4 = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    v4.extend_from_slice(&udp);
    let ethernet = [&[2; 12][..], &[0x81, 0, 0, 1, 8, 0], &v4].concat();
    let mut v6 = vec![0x60, 0, 0, 0, 0, 20, 0, 64];
    v6.extend_from_slice(&[1; 32]);
    v6.extend_from_slice(&[17, 0, 0, 0, 0, 0, 0, 0]);
    v6.extend_from_slice(&udp);
    let len = ethernet.len() as u32;
    let header = [&[0, 2, 0, 4][..], &[0; 8], &262_144u32.to_be_bytes(), &1u32.to_be_bytes()].concat();
    let classic = [&[0][..], &header, &[0; 8], &len.to_be_bytes(), &len.to_be_bytes(), &ethernet].concat();
    let mut newer = vec![4];
    newer.extend_from_slice(&28u32.to_le_bytes());
    newer.extend_from_slice(&0x1A2B_3C4Du32.to_le_bytes());
    newer.extend_from_slice(&[1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 28, 0, 0, 0]);
    newer.extend_from_slice(&[1, 0, 0, 0, 20, 0, 0, 0, 101, 0, 0, 0, 0, 0, 4, 0, 20, 0, 0, 0]);
    let len = v6.len() as u32;
    newer.extend_from_slice(&[6, 0, 0, 0]);
    newer.extend_from_slice(&(32 + len).to_le_bytes());
    newer.extend_from_slice(&[0; 12]);
    newer.extend_from_slice(&len.to_le_bytes());
    newer.extend_from_slice(&len.to_le_bytes());
    newer.extend_from_slice(&v6);
    newer.extend_from_slice(&(32 + len).to_le_bytes());
    vec![[&[0x0D][..], &ethernet].concat(), [&[0x25][..], &v6].concat(), classic, newer]
}

/// Operations at random: the generator is fixed, so that the files are always the same.
fn operations() -> Vec<(&'static str, Vec<u8>)> {
    let mut state = 0x2545_F491_4F6C_DD1Du64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let mut out = Vec::new();
    for target in OPERATIONS {
        for len in [24, 60, 120, 200, 200, 250] {
            out.push((*target, (0..len).map(|_| next()).collect()));
        }
    }
    out
}
