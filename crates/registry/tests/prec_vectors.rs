//! Records and claims against bytes that an independent program made (`spec/vectors/prec.json`).

use ed25519_dalek::SigningKey;
use pilotage_registry::claims::{self, Claim, Subject};
use pilotage_registry::record::{certify, sign, verify, verify_all};
use pilotage_wire::record::{HostnameRef, Rank, Record, Sealed, SealedFor, Tombstone, Vector};
use pilotage_wire::{NetworkId, NodeId};
use serde_json::Value;

const VECTORS: &str = include_str!("../../../spec/vectors/prec.json");

fn vectors() -> Value {
    serde_json::from_str(VECTORS).unwrap()
}

fn list<'a>(value: &'a Value, name: &str, count: usize) -> &'a [Value] {
    let list = value[name].as_array().unwrap();
    assert_eq!(list.len(), count, "{name}");
    list
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

fn number<T: TryFrom<u64>>(value: &Value) -> T {
    T::try_from(value.as_u64().unwrap()).ok().unwrap()
}

fn key(value: &Value) -> Option<SigningKey> {
    value.is_string().then(|| SigningKey::from_bytes(&array(value)))
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

fn record(case: &Value) -> (Record, SigningKey) {
    let identity = key(&case["seed"]).unwrap();
    let node = NodeId(number(&case["node_id"]));
    let mut record = Record::new(
        NetworkId(number(&case["network"])),
        node,
        number(&case["salt"]),
        identity.verifying_key().to_bytes(),
        number(&case["seq"]),
        number(&case["issued"]),
    );
    record.min_sec = number(&case["min_sec"]);
    record.private = case["private"].as_bool().unwrap();
    record.ttl = number(&case["ttl"]);
    record.caps = number(&case["caps"]);
    let prekey = |item: &Value| {
        certify(
            &identity,
            array(&item["key"]),
            number(&item["not_after"]),
            number(&item["seq"]),
            number(&item["caps"]),
        )
    };
    record.prekeys = case["prekeys"].as_array().unwrap().iter().map(prekey).collect();
    record.endpoints = strings(&case["endpoints"]).iter().map(|text| text.parse().unwrap()).collect();
    record.relays = strings(&case["relays"]).iter().map(|text| text.parse().unwrap()).collect();
    record.tags = strings(&case["tags"]);
    let hostname = &case["hostname"];
    record.hostname = hostname["name"]
        .as_str()
        .map(|name| HostnameRef { name: name.into(), index: number(&hostname["index"]) });
    record.descriptor = case["descriptor"].is_string().then(|| array(&case["descriptor"]));
    let sealed = |item: &Value| Sealed {
        whom: if item["whom"] == 1 { SealedFor::Network } else { SealedFor::Peer },
        key_id: array(&item["key_id"]),
        bytes: bytes(&item["bytes"]),
    };
    record.sealed = case["sealed"].as_array().unwrap().iter().map(sealed).collect();
    record.tombstone = match case["tombstone"].as_u64() {
        None => None,
        Some(1) => Some(Tombstone::Gone),
        Some(2) => Some(Tombstone::Rotated),
        Some(_) => Some(Tombstone::Compromised),
    };
    record.summary = case["summary"].as_str().map(str::to_owned);
    let value = |value: &Value| i8::try_from(value.as_i64().unwrap()).unwrap();
    record.vector = case["vector"].is_object().then(|| Vector {
        model: array(&case["vector"]["model"]),
        values: case["vector"]["values"].as_array().unwrap().iter().map(value).collect(),
    });
    let extension = |item: &Value| (number(&item[0]), bytes(&item[1]));
    record.extensions = case["extensions"].as_array().unwrap().iter().map(extension).collect();
    (record, identity)
}

#[test]
fn records_are_those_of_the_other_program() {
    let vectors = vectors();
    let cases = list(&vectors, "cases", 11);
    let mut all = Vec::new();
    for case in cases {
        let (mut record, identity) = record(case);
        let wanted = bytes(&case["record_hex"]);
        let made = sign(&mut record, &identity, key(&case["previous_seed"]).as_ref()).unwrap();
        assert_eq!(hex::encode(&made), hex::encode(&wanted), "{}", case["name"]);
        assert_eq!(verify(&wanted).unwrap(), record, "{}", case["name"]);
        assert_eq!(Rank::of(&wanted).unwrap().seq, record.seq);
        all.push(wanted);
    }
    let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    assert!(verify_all(&all, 2).iter().all(Result::is_ok));
}

#[test]
fn what_must_be_refused_is() {
    let vectors = vectors();
    for case in list(&vectors, "must_reject", 24) {
        assert!(Record::decode(&bytes(&case["record_hex"])).is_err(), "{}", case["name"]);
    }
    let good = bytes(&vectors["cases"][0]["record_hex"]);
    for case in list(&vectors, "must_not_verify", 6) {
        let wrong = bytes(&case["record_hex"]);
        assert!(Record::decode(&wrong).is_ok(), "{}: its form is good", case["name"]);
        let error = verify(&wrong).unwrap_err();
        // In a batch with good ones only it is refused.
        let results = verify_all(&[&good, &wrong, &good], 1);
        assert!(results[0].is_ok() && results[2].is_ok());
        assert_eq!(results[1], Err(error), "{}", case["name"]);
    }
}

#[test]
fn claims_are_those_of_the_other_program() {
    let vectors = vectors();
    for case in list(&vectors, "claims", 6) {
        let name = case["name"].as_str().unwrap();
        let network = NetworkId(number(&case["network"]));
        let subject_bytes = bytes(&case["subject_hex"]);
        let text = || String::from_utf8(subject_bytes.clone()).unwrap();
        let subject = match case["kind"].as_u64().unwrap() {
            1 => Subject::Address {
                network,
                node: NodeId(u32::from_be_bytes(subject_bytes[..].try_into().unwrap())),
            },
            2 => Subject::Hostname { network, name: text() },
            3 => Subject::NetworkId { network },
            _ => Subject::NetworkName { network, name: text() },
        };
        let claim = Claim::decode(&bytes(&case["claim_hex"])).unwrap();
        assert_eq!(claim.subject, subject, "{name}");
        let identity = key(&case["seed"]).unwrap();
        assert_eq!(claim.key, identity.verifying_key().to_bytes());
        assert_eq!((claim.salt, claim.seq), (number(&case["salt"]), number(&case["seq"])));
        assert_eq!((claim.expires, claim.pow), (number(&case["expires"]), number(&case["pow"])));
        let from = key(&case["from_seed"]);
        assert_eq!(
            claim.transfer.map(|transfer| transfer.from),
            from.map(|key| key.verifying_key().to_bytes())
        );
        assert_eq!(claims::check(&claim, 0), Ok(()), "{name}");
        assert_eq!(claim.encode(), bytes(&case["claim_hex"]), "{name}");
    }
    for case in list(&vectors, "claims_must_reject", 10) {
        assert!(Claim::decode(&bytes(&case["claim_hex"])).is_err(), "{}", case["name"]);
    }
}
