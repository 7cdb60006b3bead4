use super::*;
use crate::NodeId;
use proptest::prelude::*;
use serde_json::{Value, json};

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../spec/vectors/registry.json")).expect("JSON")
}

fn cases() -> Vec<Value> {
    vectors()["cases"].as_array().expect("cases").clone()
}

/// Framing of every captured exchange, requests and replies.
#[test]
fn all_captured_frames_split() {
    let mut frames = 0;
    for case in cases() {
        for side in ["request", "response"] {
            let Some(framed) = case[format!("{side}_framed_hex")].as_str() else {
                continue;
            };
            let framed = hex::decode(framed).expect("hex");
            let json = next_frame(&framed).expect("valid").expect("complete");
            assert_eq!(framed.len(), LENGTH_PREFIX + json.len());
            assert_eq!(json, case[format!("{side}_json")].as_str().unwrap().as_bytes());
            for cut in 0..framed.len() {
                assert_eq!(next_frame(&framed[..cut]), Ok(None));
            }
            frames += 1;
        }
    }
    assert_eq!(frames, 65 + 48, "every request and every successful reply");
}

/// Requests of our types parse to what they say; all others are `UnknownType`, by name.
#[test]
fn captured_requests() {
    let (mut known, mut unknown) = (0, 0);
    for case in cases() {
        let text = case["request_json"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        let kind = value["type"].as_str().unwrap();
        let parsed = Request::parse(text.as_bytes());
        if case["name"] == "register without key" {
            assert!(matches!(parsed, Err(MessageError::BadField { .. })));
        } else if REQUEST_TYPES.contains(&kind) {
            let request = parsed.expect("known type");
            assert_eq!(request.kind(), kind);
            // Every field that we write is one that the reference wrote, with the same value.
            let ours = serde_json::to_value(&request).unwrap();
            for (field, content) in ours.as_object().unwrap() {
                assert_eq!(Some(content), value.get(field), "{kind}.{field}");
            }
            known += 1;
        } else {
            assert_eq!(parsed, Err(MessageError::UnknownType(kind.into())));
            unknown += 1;
        }
    }
    assert_eq!((known, unknown), (25, 39), "and one without its key");
}

/// Replies of our types survive reading and writing with all their fields, except those that later issues add.
#[test]
fn captured_replies() {
    let mut seen = 0;
    for case in cases() {
        let text = case["response_json"].as_str().unwrap();
        let mut value: Value = serde_json::from_str(text).unwrap();
        let kind = value["type"].as_str().unwrap().to_owned();
        if !REPLY_TYPES.contains(&kind.as_str()) {
            continue;
        }
        let reply = Reply::parse(text.as_bytes()).expect("known type");
        if case["name"] == "lookup public node with everything" {
            for later in ["tags", "task_exec"] {
                assert!(value.as_object_mut().unwrap().remove(later).is_some());
            }
        }
        assert_eq!(serde_json::to_value(&reply).unwrap(), value, "{}", case["name"]);
        seen += 1;
    }
    assert_eq!(seen, 32);
}

#[test]
fn oversize_is_refused_before_it_is_buffered() {
    let max = u32::try_from(MAX_MESSAGE).unwrap();
    assert_eq!(next_frame(&max.to_be_bytes()), Ok(None));
    assert_eq!(next_frame(&(max + 1).to_be_bytes()), Err(FrameError::TooLong { len: MAX_MESSAGE + 1 }));
    let mut out = vec![1, 2, 3];
    let huge = Reply::error("x".repeat(MAX_MESSAGE));
    assert!(matches!(huge.encode(&mut out), Err(FrameError::TooLong { .. })));
    assert_eq!(out, [1, 2, 3]);
    assert!(Request::parse(&vec![b' '; MAX_MESSAGE + 1]).is_err());
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| {
        format!(r#"{{"type":"beacon_list","x":{}{}}}"#, "[".repeat(depth - 1), "]".repeat(depth - 1))
    };
    assert_eq!(Request::parse(nested(MAX_NESTING).as_bytes()), Ok(Request::BeaconList));
    assert_eq!(Request::parse(nested(MAX_NESTING + 1).as_bytes()), Err(MessageError::TooDeep));
    assert_eq!(Request::parse(nested(30_000).as_bytes()), Err(MessageError::TooDeep));
    // Brackets inside strings do not count.
    let text = json!({"type": "beacon_list", "x": "[{\"[".repeat(100)}).to_string();
    assert_eq!(Request::parse(text.as_bytes()), Ok(Request::BeaconList));
}

#[test]
fn unknown_fields_and_go_nulls_are_tolerated() {
    let key = STANDARD.encode([5; 32]);
    let text = json!({"type": "register", "listen_addr": ":1", "public_key": key, "lan_addrs": null,
        "hostname": null, "owner": "me@example.test", "future": {"a": [1]}})
    .to_string();
    let Ok(Request::Register(register)) = Request::parse(text.as_bytes()) else {
        panic!("tolerant");
    };
    assert_eq!(register.lan_addrs, Vec::<String>::new());
    assert_eq!(register.hostname, None);
    let text =
        r#"{"type":"lookup_ok","node_id":5,"address":"0:0000.0000.0005","public_key":"","networks":null}"#;
    let Ok(Reply::Lookup(info)) = Reply::parse(text.as_bytes()) else {
        panic!("tolerant");
    };
    assert_eq!(info.public_key, None);
}

#[test]
fn errors_name_the_problem() {
    let parse = |text: &str| Request::parse(text.as_bytes()).unwrap_err();
    assert!(matches!(parse(""), MessageError::NotJson { .. }));
    assert!(matches!(parse("{\"type\":\"lookup\""), MessageError::NotJson { .. }));
    assert!(matches!(parse("{\"type\":\"beacon_list\"}x"), MessageError::NotJson { .. }));
    assert!(matches!(parse("[]"), MessageError::NotJson { .. } | MessageError::MissingType));
    assert_eq!(parse("{}"), MessageError::MissingType);
    assert_eq!(parse(r#"{"type":5}"#), MessageError::MissingType);
    assert_eq!(parse(r#"{"type":"punch"}"#).to_string(), "unknown message type: punch");
    for bad in [
        r#"{"type":"lookup","node_id":-1}"#,
        r#"{"type":"lookup","node_id":4294967296}"#,
        r#"{"type":"lookup","node_id":"1"}"#,
        r#"{"type":"lookup"}"#,
        r#"{"type":"heartbeat","node_id":1,"signature":"AAAA"}"#,
        r#"{"type":"heartbeat","node_id":1,"signature":"!"}"#,
    ] {
        assert!(matches!(parse(bad), MessageError::BadField { .. }), "{bad}");
    }
    let long = format!(r#"{{"type":"{}"}}"#, "é".repeat(1000));
    assert!(parse(&long).to_string().len() < 100);
}

fn any_request() -> impl Strategy<Value = Request> {
    let text = || "\\PC{0,20}";
    let key = || any::<[u8; 32]>().prop_map(Base64);
    let sig = || proptest::option::of(any::<[u8; 64]>().prop_map(Base64));
    let node = || any::<u32>().prop_map(NodeId);
    prop_oneof![
        Just(Request::Challenge),
        Just(Request::BeaconList),
        (
            (text(), key(), proptest::option::of(text())),
            (proptest::collection::vec(text(), 0..4), any::<Option<bool>>(), sig(), sig())
        )
            .prop_map(
                |((listen_addr, public_key, hostname), (lan_addrs, public, signature, proof))| {
                    Request::Register(Register {
                        listen_addr,
                        public_key,
                        hostname,
                        lan_addrs,
                        public,
                        signature,
                        proof,
                    })
                }
            ),
        (node(), proptest::option::of(text()), sig()).prop_map(|(node_id, listen_addr, signature)| {
            Request::Heartbeat(Heartbeat { node_id, listen_addr, signature })
        }),
        node().prop_map(|node_id| Request::Lookup(Lookup { node_id })),
        (node(), node(), sig()).prop_map(|(node_id, requester_id, signature)| {
            Request::Resolve(Resolve { node_id, requester_id, signature })
        }),
        (text(), proptest::option::of(node())).prop_map(|(hostname, requester_id)| {
            Request::ResolveHostname(ResolveHostname { hostname, requester_id })
        }),
        (node(), text(), sig(), sig()).prop_map(|(node_id, hostname, signature, proof)| {
            Request::SetHostname(SetHostname { node_id, hostname, signature, proof })
        }),
    ]
}

proptest! {
    #[test]
    fn requests_round_trip(request in any_request()) {
        let mut out = Vec::new();
        request.encode(&mut out).unwrap();
        let json = next_frame(&out).unwrap().unwrap();
        prop_assert_eq!(Request::parse(json), Ok(request));
    }

    #[test]
    fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz_input(&data);
    }

    /// Captured messages with one byte changed, cut or doubled reach deeper than random bytes.
    #[test]
    fn damaged_messages_are_survived(case in 0usize..65, at in any::<prop::sample::Index>(), byte in any::<u8>(), how in 0..3) {
        let cases = cases();
        for side in ["request_json", "response_json"] {
            let mut data = cases[case][side].as_str().unwrap().as_bytes().to_vec();
            let at = at.index(data.len());
            match how {
                0 => data[at] = byte,
                1 => data.truncate(at),
                _ => data.insert(at, byte),
            }
            fuzz_input(&data);
        }
    }
}
