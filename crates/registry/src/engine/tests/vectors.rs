//! spec/vectors/registry.json: real exchanges with the reference, replayed in order.

use super::*;
use serde_json::Value;
use std::collections::BTreeMap;

/// The reference believes the `node_id` of these, or asks for nothing (defect A8). Ours refuses them as they are, and
/// answers as the reference does once an admin token is added.
const UNSIGNED: [&str; 6] = [
    "update_polo_score",
    "set_polo_score",
    "set_network_policy",
    "promote_member",
    "demote_member",
    "kick_member",
];

fn load() -> Value {
    serde_json::from_str(include_str!("../../../../../spec/vectors/registry.json")).expect("JSON")
}

/// The reference numbers nodes 1, 2, 3; ours are derived from the keys. Requests are translated to our ids and signed
/// again with the vector's seeds.
struct Translator {
    keys: BTreeMap<u64, SigningKey>,
    ours: BTreeMap<u64, NodeId>,
}

impl Translator {
    fn id(&self, theirs: u64) -> u64 {
        self.ours.get(&theirs).map_or(theirs, |id| u64::from(id.0))
    }

    /// Translates ids and signs again; a signature that was wrong stays wrong.
    fn request(&self, text: &str) -> Value {
        let mut request: Value = serde_json::from_str(text).unwrap();
        let old = Request::parse(text.as_bytes()).ok();
        for field in IDS {
            if let Some(id) = request.get(field).and_then(Value::as_u64).filter(|id| *id != 0) {
                request[field] = self.id(id).into();
            }
        }
        let new = Request::parse(request.to_string().as_bytes()).ok();
        let actor = old.as_ref().and_then(|old| old.credentials()?.actor).map(|id| u64::from(id.0));
        let actor = actor.or_else(|| request.get("node_id").and_then(|_| self.theirs(text)));
        let strings = old.as_ref().and_then(signed).zip(new.as_ref().and_then(signed));
        if let (Some(key), Some((old, new))) = (actor.and_then(|id| self.keys.get(&id)), strings)
            && let Some(given) = request["signature"].as_str()
            && given == sign(key, old.as_bytes()).to_string()
        {
            request["signature"] = sign(key, new.as_bytes()).to_string().into();
        }
        request
    }

    /// `node_id` before translation.
    fn theirs(&self, text: &str) -> Option<u64> {
        serde_json::from_str::<Value>(text).ok()?["node_id"].as_u64()
    }
}

/// Fields that hold node ids.
const IDS: [&str; 10] = [
    "node_id",
    "requester_id",
    "peer_id",
    "from_node_id",
    "to_node_id",
    "node_a",
    "node_b",
    "inviter_id",
    "target_node_id",
    "new_owner_id",
];

fn signed(request: &Request) -> Option<String> {
    match request {
        Request::Heartbeat(r) => Some(wire::heartbeat_string(r.node_id)),
        other => other.signed_string(),
    }
}

/// All 65, with nothing but the hub's flags as a reference daemon finds them, over one connection.
#[test]
fn every_exchange_of_the_reference_is_answered_in_its_shape() {
    let vectors = load();
    let seeds = vectors["ed25519_seeds"].as_object().unwrap();
    let keys = seeds.iter().map(|(n, seed)| {
        let seed: [u8; 32] = hex::decode(seed.as_str().unwrap()).unwrap().try_into().unwrap();
        (n.parse().unwrap(), SigningKey::from_bytes(&seed))
    });
    let mut translator = Translator { keys: keys.collect(), ours: BTreeMap::new() };
    let mut harness = Harness::new(Config {
        rates: RateLimits::UNLIMITED,
        admin_token: Some(Secret::new("labadmin")),
        allow_beacon_register: true,
        ..Config::default()
    });
    let mut conn = ConnState::default();
    let (mut covered, mut refused) = (0, 0);
    for case in vectors["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let mut json = translator.request(case["request_json"].as_str().unwrap());
        if UNSIGNED.contains(&name) {
            let reply = ask(&mut harness, &mut conn, &json);
            assert!(matches!(reply, Reply::Error { .. }), "{name}: {reply:?}");
            json["admin_token"] = "labadmin".into();
            refused += 1;
        }
        let reply = ask(&mut harness, &mut conn, &json);
        let expected: Value = serde_json::from_str(case["response_json"].as_str().unwrap()).unwrap();
        if let (Reply::Registered(done), Some(id)) = (&reply, expected["node_id"].as_u64()) {
            translator.ours.insert(id, done.node_id);
        }
        compare(name, &expected, &serde_json::to_value(&reply).unwrap(), &translator);
        covered += 1;
    }
    assert_eq!((covered, refused), (65, 6));
}

fn ask(harness: &mut Harness, conn: &mut ConnState, json: &Value) -> Reply {
    match Request::parse(json.to_string().as_bytes()) {
        Err(error) => Reply::error(error),
        Ok(request) => {
            let outcome = harness.apply_on(conn, HOME, &request);
            harness.engine.commit();
            outcome.reply
        }
    }
}

/// Same fields; same values, except ids and addresses (translated), clocks and free texts.
fn compare(name: &str, expected: &Value, ours: &Value, translator: &Translator) {
    match (expected, ours) {
        (Value::Object(expected), Value::Object(ours_fields)) => {
            let fields = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
            assert_eq!(fields(ours_fields), fields(expected), "{name}: {ours}");
            for (field, value) in expected {
                compare_field(name, field, value, &ours[field], translator);
            }
        }
        (Value::Array(expected), Value::Array(ours)) => {
            assert_eq!(ours.len(), expected.len(), "{name}");
            // Lists of nodes are in the order of ids, and ours differ.
            let mut left: Vec<&Value> = ours.iter().collect();
            for value in expected {
                let wanted = value["node_id"].as_u64().map(|id| translator.id(id));
                let at = left.iter().position(|our| wanted.is_none() || our["node_id"].as_u64() == wanted);
                compare(name, value, left.remove(at.expect(name)), translator);
            }
        }
        _ => assert_eq!(ours, expected, "{name}"),
    }
}

fn compare_field(name: &str, field: &str, expected: &Value, our: &Value, translator: &Translator) {
    match field {
        _ if IDS.contains(&field) => {
            assert_eq!(our.as_u64(), expected.as_u64().map(|id| translator.id(id)), "{name}: {field}");
        }
        "address" => {
            let theirs: pilotage_wire::Address = expected.as_str().unwrap().parse().unwrap();
            let node = u32::try_from(translator.id(theirs.node.0.into())).unwrap();
            assert_eq!(
                our.as_str().unwrap().parse(),
                Ok(pilotage_wire::Address::new(theirs.network.0, node))
            );
        }
        "error" | "hostname_error" => assert!(!our.as_str().unwrap().is_empty(), "{name}"),
        "time" | "timestamp" | "created" => assert!(our.is_u64(), "{name}"),
        "last_seen" | "created_at" => {
            assert!(wire::parse_rfc3339(our.as_str().unwrap()).is_some(), "{name}");
        }
        _ if expected.is_object() || expected.is_array() => compare(name, expected, our, translator),
        _ => assert_eq!(our, expected, "{name}: {field}"),
    }
}

/// All 65 captured requests against a registry that demands proofs: every answer is a reply, none of them a node.
#[test]
fn where_proof_is_required_no_captured_exchange_registers_anything() {
    let vectors = load();
    let mut harness = Harness::strict();
    for case in vectors["cases"].as_array().unwrap() {
        let text = case["request_json"].as_str().unwrap();
        if let Ok(request) = Request::parse(text.as_bytes()) {
            let _ = harness.ask(&request);
        }
    }
    assert_eq!(harness.engine.nodes(), 0);
}
