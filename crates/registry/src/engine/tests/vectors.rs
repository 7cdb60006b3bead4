//! spec/vectors/registry.json: real exchanges with the reference, replayed in order.

use super::*;
use serde_json::Value;
use std::collections::BTreeMap;

/// Cases whose operations belong to later issues (networks, trust, tags, scores, keys).
const LATER: [&str; 38] = [
    "request_handshake",
    "request_handshake again",
    "poll_handshakes (target)",
    "respond_handshake accept",
    "poll_handshakes (requester)",
    "respond_handshake reject",
    "check_trust",
    "check_trust no",
    "report_trust",
    "revoke_trust",
    "revoke_trust again",
    "set_tags",
    "set_task_exec",
    "get_polo_score",
    "update_polo_score",
    "set_polo_score",
    "punch",
    "list_networks",
    "create_network without token",
    "create_network open",
    "create_network token",
    "create_network invite enterprise",
    "join_network",
    "join_network wrong token",
    "invite_to_network",
    "poll_invites",
    "respond_invite",
    "list_nodes",
    "list_nodes backbone",
    "get_member_role",
    "set_network_policy",
    "get_network_policy",
    "promote_member",
    "demote_member",
    "kick_member",
    "leave_network",
    "get_key_info",
    "rotate_key",
];

/// Cases of our operations whose success needs the trust pairs of a later issue: until then the answer must be an error
/// (a private node is told to nobody else).
const NEEDS_TRUST: [&str; 2] = ["resolve trusted (with lan_addrs)", "resolve_hostname with requester"];

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

    /// Translates ids and re-signs; a signature that was wrong stays wrong.
    fn request(&self, text: &str) -> Vec<u8> {
        let mut request: Value = serde_json::from_str(text).unwrap();
        let kind = request["type"].as_str().unwrap().to_owned();
        let string = |requester: u64, node: u64| match kind.as_str() {
            "resolve" => format!("resolve:{requester}:{node}"),
            _ => format!("{kind}:{node}"),
        };
        let node = request["node_id"].as_u64();
        let requester = request["requester_id"].as_u64();
        let signer = requester.or(node).and_then(|id| self.keys.get(&id));
        for (field, id) in [("node_id", node), ("requester_id", requester)] {
            if let Some(id) = id {
                request[field] = self.id(id).into();
            }
        }
        if let (Some(key), Some(given), Some(node)) = (signer, request["signature"].as_str(), node) {
            let old = string(requester.unwrap_or(0), node);
            if given == sign(key, old.as_bytes()).to_string() {
                let new = string(self.id(requester.unwrap_or(0)), self.id(node));
                request["signature"] = sign(key, new.as_bytes()).to_string().into();
            }
        }
        request.to_string().into_bytes()
    }
}

#[test]
fn the_reference_exchanges_of_our_operations() {
    let vectors = load();
    let seeds = vectors["ed25519_seeds"].as_object().unwrap();
    let keys = seeds.iter().map(|(n, seed)| {
        let seed: [u8; 32] = hex::decode(seed.as_str().unwrap()).unwrap().try_into().unwrap();
        (n.parse().unwrap(), SigningKey::from_bytes(&seed))
    });
    let mut translator = Translator { keys: keys.collect(), ours: BTreeMap::new() };
    let mut harness = Harness::lenient();
    let mut conn = ConnState::default();
    let (mut covered, mut refused_for_now, mut later) = (0, 0, 0);
    for case in vectors["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        if LATER.contains(&name) {
            let text = case["request_json"].as_str().unwrap();
            assert!(Request::parse(text.as_bytes()).is_err(), "{name} is served now: move it");
            later += 1;
            continue;
        }
        let json = translator.request(case["request_json"].as_str().unwrap());
        let reply = match Request::parse(&json) {
            Err(error) => Reply::error(error),
            Ok(request) => {
                let outcome = harness.apply_on(&mut conn, HOME, &request);
                harness.engine.commit();
                outcome.reply
            }
        };
        let expected: Value = serde_json::from_str(case["response_json"].as_str().unwrap()).unwrap();
        if let (Reply::Registered(done), Some(id)) = (&reply, expected["node_id"].as_u64()) {
            translator.ours.insert(id, done.node_id);
        }
        let ours = serde_json::to_value(&reply).unwrap();
        if NEEDS_TRUST.contains(&name) {
            assert_eq!(ours["type"], "error", "{name}");
            refused_for_now += 1;
            continue;
        }
        compare(name, expected, &ours, &translator);
        covered += 1;
    }
    assert_eq!((covered, refused_for_now, later), (25, 2, 38));
    assert_eq!(covered + refused_for_now + later, 65);
}

/// Same fields; same values, except ids (translated), clocks and free texts.
fn compare(name: &str, mut expected: Value, ours: &Value, translator: &Translator) {
    if name == "lookup public node with everything" {
        for later in ["tags", "task_exec"] {
            assert!(expected.as_object_mut().unwrap().remove(later).is_some());
        }
    }
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(ours), fields(&expected), "{name}");
    for (field, value) in expected.as_object().unwrap() {
        let our = &ours[field];
        match field.as_str() {
            "node_id" => {
                let id = translator.id(value.as_u64().unwrap());
                assert_eq!(our.as_u64(), Some(id), "{name}");
            }
            "address" => {
                let node: u32 = ours["node_id"].as_u64().unwrap().try_into().unwrap();
                assert_eq!(our.as_str().unwrap().parse(), Ok(pilotage_wire::Address::new(0, node)));
            }
            "error" | "hostname_error" => assert!(!our.as_str().unwrap().is_empty(), "{name}"),
            "time" => assert!(our.is_u64(), "{name}"),
            _ => assert_eq!(our, value, "{name}: {field}"),
        }
    }
}

/// All 65 captured requests against a registry that demands proofs: every answer is a reply, none of them a node.
#[test]
fn without_the_switch_no_captured_exchange_registers_anything() {
    let vectors = load();
    let mut harness = Harness::open();
    for case in vectors["cases"].as_array().unwrap() {
        let text = case["request_json"].as_str().unwrap();
        if let Ok(request) = Request::parse(text.as_bytes()) {
            let _ = harness.ask(&request);
        }
    }
    assert_eq!(harness.engine.nodes(), 0);
}
