//! Reads the golden bytes of `spec/vectors`.

use std::path::Path;

use serde_json::Value;

/// One file of `spec/vectors`, looked for upwards from the package, so that `fuzz/` can use this module too.
#[allow(clippy::disallowed_methods, reason = "a test may read its samples; the crate itself reads no file")]
pub(crate) fn load(name: &str) -> Value {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = package.ancestors().map(|folder| folder.join("spec/vectors")).find(|folder| folder.is_dir());
    let path = folder.expect("no spec/vectors above the package").join(name).with_extension("json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A list of a file; fails unless it has exactly `count` entries, so that a truncated file cannot pass.
pub(crate) fn cases<'a>(file: &'a Value, list: &str, count: usize) -> &'a [Value] {
    let cases = file[list].as_array().unwrap_or_else(|| panic!("no list {list:?}"));
    assert_eq!(cases.len(), count, "cases in {list:?}");
    cases
}

/// A text field.
pub(crate) fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_else(|| panic!("no text {field:?} in {case}"))
}

/// A number field.
pub(crate) fn number<T: TryFrom<u64>>(case: &Value, field: &str) -> T {
    let value = case[field].as_u64().unwrap_or_else(|| panic!("no number {field:?} in {case}"));
    T::try_from(value).unwrap_or_else(|_| panic!("{field:?} out of range in {case}"))
}

/// A field of hex digits as bytes.
pub(crate) fn bytes(case: &Value, field: &str) -> Vec<u8> {
    hex::decode(text(case, field)).unwrap_or_else(|error| panic!("{field:?} of {case}: {error}"))
}

/// A field of hex digits as an array.
pub(crate) fn array<const N: usize>(case: &Value, field: &str) -> [u8; N] {
    bytes(case, field).try_into().unwrap_or_else(|_| panic!("{field:?} is not {N} bytes in {case}"))
}

/// Every byte string of the vectors with the name of the parser that it is meant for (a module of `invariants`, a
/// target of `fuzz/`).
pub(crate) fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let mut samples = Vec::new();
    let mut add = |parser, file: &str, list: &str, count, fields: &[&str]| {
        let file = load(file);
        let cases = cases(&file, list, count);
        let fields = cases.iter().flat_map(|case| fields.iter().map(move |field| (case, *field)));
        samples.extend(
            fields
                .filter(|(case, field)| case[*field].is_string())
                .map(|(case, field)| (parser, bytes(case, field))),
        );
    };
    add("packet", "packets", "cases", 44, &["packet_hex"]);
    add("packet", "packets", "malformed", 28, &["packet_hex"]);
    add("frame", "packets", "cases", 44, &["pilt_frame_hex"]);
    add("frame", "pila", "cases", 4, &["pila_frame", "pilk_frame"]);
    add("frame", "pils", "cases", 5, &["frame_hex"]);
    add("frame", "pils", "must_reject", 6, &["frame_hex"]);
    add("pila_trailer", "pila", "newer_trailer_examples", 3, &["trailer_hex"]);
    add("sack", "sack", "cases", 8, &["payload_hex"]);
    add("sack", "sack", "decode", 10, &["payload_hex"]);
    add("beacon", "beacon", "cases", 15, &["hex"]);
    add("ipc", "ipc", "cases", 47, &["message_hex"]);
    add("registry_frame", "registry", "cases", 65, &["request_framed_hex", "response_framed_hex"]);
    samples.push(("pila_trailer", b"\x00\x01PLTG\x01".to_vec()));
    samples.extend(s1());
    let addresses = load("addresses");
    for list in [cases(&addresses, "cases", 50), cases(&addresses, "socket_cases", 14)] {
        samples.extend(list.iter().map(|case| ("address", text(case, "text").as_bytes().to_vec())));
    }
    samples
}

/// Datagrams, payloads and frames of the secure mode.
fn s1() -> Vec<(&'static str, Vec<u8>)> {
    let file = load("s1/handshakes");
    let mut samples = Vec::new();
    for case in cases(&file, "cases", 3) {
        samples.extend(["pili", "pilr", "payload_1", "payload_2"].map(|f| ("s1_handshake", bytes(case, f))));
        for packet in cases(case, "packets", 6) {
            samples.push(("s1_handshake", bytes(packet, "datagram")));
            samples.push(("s1_frames", bytes(packet, "frames")));
        }
    }
    let others = load("s1/others");
    samples.extend(["pilc", "piln", "pilx"].map(|f| ("s1_handshake", bytes(&others, f))));
    for text in [
        "0000010203040500",
        "02050001010200",
        "030102030405000000",
        "04010203040506010203",
        "0605060707050608050905060a070b050c05060d07",
        "0e01020304050607080f0102030405060708",
        "100100a1a2a3a40102030405060708090a0b0c0d0e0f101101",
        "12070568656c6c6f130301020314",
        "1900070009056162636465180007000961",
        "1b03616263",
        "2f0500070009410003616263200561",
        "220501612505410061",
    ] {
        samples.push(("s1_frames", hex::decode(text).expect("hex digits")));
    }
    let each = load("s1/frames");
    samples.extend(cases(&each, "frames", 33).iter().map(|case| ("s1_frames", bytes(case, "bytes"))));
    samples.extend(upgrade());
    samples
}

/// The packets of a post-quantum upgrade: halves of the key, halves of the ciphertext.
fn upgrade() -> Vec<(&'static str, Vec<u8>)> {
    let file = load("s1/upgrade");
    let whole = [bytes(&file, "key"), bytes(&file, "ciphertext")];
    let halves = whole.iter().flat_map(|text| [&text[..text.len() / 2], &text[text.len() / 2..]]);
    let packets = (0u8..).zip(halves).map(|(part, half)| {
        // Each fills a packet like the others (secure.md §9.5).
        let mut frames = [&[0x16, part], half].concat();
        frames.resize(594, 0);
        ("s1_frames", frames)
    });
    packets.collect()
}
