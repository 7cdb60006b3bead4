//! Property tests of the codec. Signatures are tested in `pilotage-registry`.

use super::*;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let v4 = (1u32.., 1u16..).prop_map(|(ip, port)| Endpoint::new(Ipv4Addr::from(ip).into(), port));
    let v6 = (1u128 << 64.., 1u16..).prop_map(|(ip, port)| Endpoint::new(Ipv6Addr::from(ip).into(), port));
    prop_oneof![v4, v6]
}

fn prekey() -> impl Strategy<Value = Prekey> {
    (any::<[u8; 32]>(), any::<[u8; 32]>(), any::<u32>(), any::<u64>()).prop_map(
        |(key, half, not_after, seq)| {
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&half);
            Prekey { key, certificate: PrekeyCertificate { not_after, seq, caps: seq ^ 1, signature } }
        },
    )
}

prop_compose! {
    fn head()(min_sec in 0u8..=2, private: bool, network: u16, node in 16u32..u32::MAX, salt: u16, key: [u8; 32],
              seq: u64, ttl in 1..=MAX_TTL, issued: u32, caps: u64) -> Record {
        let mut record = Record::new(NetworkId(network), NodeId(node), salt, key, seq, issued);
        (record.min_sec, record.private, record.ttl, record.caps) = (min_sec, private, ttl, caps);
        record
    }
}

prop_compose! {
    fn record()(head in head(),
                prekeys in prop::collection::vec(prekey(), 0..=MAX_PREKEYS),
                endpoints in prop::collection::vec(endpoint(), 0..3),
                relays in prop::collection::vec(endpoint(), 0..2),
                tags in prop::collection::btree_set("[a-z0-9]{1,8}(\\.[a-z_-]{1,5}){0,2}", 0..5),
                hostname in prop::option::of(("[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?", any::<u64>())),
                descriptor: Option<[u8; 32]>,
                sealed in prop::collection::vec((any::<bool>(), any::<[u8; 8]>(), prop::collection::vec(any::<u8>(), 1..40)), 0..2),
                previous: Option<[u8; 32]>,
                summary in prop::option::of("[a-zA-Zäß€ .,]{1,40}"),
                vector in prop::option::of((any::<[u8; 8]>(), prop::collection::vec(any::<i8>(), 1..60))),
                extensions in prop::collection::btree_map(128u8.., prop::collection::vec(any::<u8>(), 1..9), 0..2),
                ) -> Record {
        let whom = |peer| if peer { SealedFor::Peer } else { SealedFor::Network };
        let rotation = previous.filter(|key| *key != head.key).map(|previous| Rotation { previous, signature: [7; 64] });
        Record {
            prekeys, endpoints, relays,
            tags: tags.into_iter().collect(),
            hostname: hostname.map(|(name, index)| HostnameRef { name, index }),
            descriptor,
            sealed: sealed.into_iter().map(|(peer, key_id, bytes)| Sealed { whom: whom(peer), key_id, bytes }).collect(),
            rotation,
            summary,
            vector: vector.map(|(model, values)| Vector { model, values }),
            extensions: extensions.into_iter().collect(),
            signature: [9; 64],
            ..head
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(record in record()) {
        match record.encode() {
            Ok(bytes) => {
                prop_assert!(bytes.len() <= MAX_RECORD);
                prop_assert_eq!(Record::decode(&bytes).unwrap(), record);
            }
            Err(error) => prop_assert!(matches!(error, RecordError::TooLong(_))),
        }
    }

    #[test]
    fn cut_off_records_are_refused(record in record(), cut: prop::sample::Index) {
        if let Ok(bytes) = record.encode() {
            let len = cut.index(bytes.len());
            // What is left of the fields may be a record of its own, with another signature; never the same one.
            if let Ok(shorter) = Record::decode(&bytes[..len]) {
                prop_assert_ne!(shorter, record);
            }
        }
    }

    #[test]
    fn what_is_read_is_written_again(record in record(), at: prop::sample::Index, bits in 1u8..) {
        if let Ok(mut bytes) = record.encode() {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            if let Ok(other) = Record::decode(&bytes) {
                prop_assert_eq!(other.encode().unwrap(), bytes);
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..1_000)) {
        let mut framed = [MAGIC.as_slice(), &[VERSION], &bytes].concat();
        for input in [&bytes, &framed] {
            let _ = Record::decode(input);
            let _ = Rank::of(input);
        }
        framed.truncate(MAX_RECORD + 1);
        if let Ok(record) = Record::decode(&framed) {
            prop_assert_eq!(record.encode().unwrap(), framed);
        }
    }

    #[test]
    fn one_of_two_records_holds_everywhere(a in record(), b in record()) {
        if let (Ok(a), Ok(b)) = (a.encode(), b.encode()) {
            let (first, second) = (Rank::of(&a).unwrap(), Rank::of(&b).unwrap());
            prop_assert_eq!(first == second, a == b);
            prop_assert_eq!(first.seq > second.seq, Record::decode(&a).unwrap().seq > Record::decode(&b).unwrap().seq);
        }
    }
}

fn plain() -> Record {
    Record::new(NetworkId(0), NodeId(77), 0, [3; 32], 5, 6)
}

#[test]
fn forbidden_values_are_neither_written_nor_read() {
    type Spoil = fn(&mut Record);
    let cases: [(Spoil, RecordError); 14] = [
        (|r| r.min_sec = 3, RecordError::Value("min_sec")),
        (|r| r.node = NodeId(15), RecordError::Value("node_id")),
        (|r| r.ttl = 0, RecordError::Value("ttl")),
        (|r| r.ttl = MAX_TTL + 1, RecordError::Value("ttl")),
        (|r| r.summary = Some("a\nb".into()), RecordError::Value("summary")),
        (|r| r.summary = Some("x".repeat(MAX_SUMMARY + 1)), RecordError::Value("summary")),
        (|r| r.tags = vec!["b".into(), "a".into()], RecordError::Order(field::TAGS)),
        (|r| r.tags = vec!["A".into()], RecordError::Tag(TagError::Alphabet)),
        (|r| r.tags = vec!["a..b".into()], RecordError::Tag(TagError::Alphabet)),
        (|r| r.endpoints = vec!["1.2.3.4:0".parse().unwrap()], RecordError::Value("endpoint")),
        (|r| r.endpoints = vec!["[::ffff:1.2.3.4]:9".parse().unwrap()], RecordError::Value("endpoint")),
        (
            |r| r.rotation = Some(Rotation { previous: [3; 32], signature: [0; 64] }),
            RecordError::Value("rotation"),
        ),
        (|r| r.hostname = Some(HostnameRef { name: "-a".into(), index: 0 }), RecordError::Value("hostname")),
        (
            |r| (r.tombstone, r.summary) = (Some(Tombstone::Gone), Some("here".into())),
            RecordError::Value("tombstone"),
        ),
    ];
    for (spoil, error) in cases {
        let mut record = plain();
        spoil(&mut record);
        assert_eq!(record.encode(), Err(error));
    }
    // The same by bytes, where the encoder does not help.
    let good = plain().encode().unwrap();
    for (at, value, error) in [
        (0, b'Q', RecordError::Magic),
        (4, 2, RecordError::Version(2)),
        (5, 3, RecordError::Value("min_sec")),
        (15, 2, RecordError::Value("flags")),
        (72, 3, RecordError::TooMany("prekeys", MAX_PREKEYS)),
    ] {
        let mut bytes = good.clone();
        bytes[at] = value;
        assert_eq!(Record::decode(&bytes), Err(error), "byte {at}");
    }
}

#[test]
fn fields_are_in_order_known_and_not_empty() {
    let good = plain().encode().unwrap();
    let with = |fields: &[u8]| {
        let (body, signature) = good.split_at(good.len() - SIGNATURE_LEN);
        Record::decode(&[body, fields, signature].concat())
    };
    let summary = [9, 0, 1, b'x'];
    let tags = [3, 0, 2, 1, b'x'];
    assert!(with(&[tags.as_slice(), &summary].concat()).is_ok());
    assert_eq!(with(&[summary.as_slice(), &tags].concat()), Err(RecordError::Order(3)));
    assert_eq!(with(&[summary, summary].concat()), Err(RecordError::Order(9)));
    assert_eq!(with(&[9, 0, 0]), Err(RecordError::Order(9)));
    assert_eq!(with(&[77, 0, 1, 1]), Err(RecordError::Field(77)));
    assert_eq!(with(&[5, 0, 1, 1]), Err(RecordError::Truncated));
    assert_eq!(with(&[8, 0, 2, 1, 1]), Err(RecordError::Value("length of a field")));
    assert_eq!(with(&[200, 0, 1, 1]).unwrap().extensions, [(200, vec![1])]);
}

#[test]
fn lists_have_bounds() {
    let mut record = plain();
    record.tags = (0..33).map(|number| format!("t{number:02}")).collect();
    assert_eq!(record.encode(), Err(RecordError::TooMany("tags", MAX_TAGS)));
    record.tags.pop();
    let bytes = record.encode().unwrap();
    // One tag more, by bytes.
    let mut longer = bytes[..bytes.len() - SIGNATURE_LEN].to_vec();
    longer.extend([1, b'z']);
    let at = HEADER_LEN + 1;
    let len = u16::from_be_bytes([longer[at + 1], longer[at + 2]]) + 2;
    longer[at + 1..at + 3].copy_from_slice(&len.to_be_bytes());
    longer.extend([0; 64]);
    assert_eq!(Record::decode(&longer), Err(RecordError::TooMany("tags", MAX_TAGS)));

    let mut record = plain();
    record.vector = Some(Vector { model: [1; 8], values: vec![1; MAX_VECTOR] });
    record.summary = Some("s".repeat(MAX_SUMMARY));
    record.tags = (0..10).map(|number| format!("tag-number-{number}")).collect();
    assert!(matches!(record.encode(), Err(RecordError::TooLong(len)) if len > MAX_RECORD));
}
