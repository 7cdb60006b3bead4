//! `trust.json`, in the shape in which the reference keeps it; `outgoing` is ours.
//!
//! fuzz/ includes this file as it is.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilotage_wire::NodeId;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::book::{Book, MAX_OUTGOING, MAX_PENDING, MAX_TRUSTED, Outgoing, Pending, Trusted};
use super::message::cut;

#[derive(Serialize, Deserialize)]
struct StoredTrust {
    node_id: u32,
    public_key: String,
    approved_at: String,
    #[serde(default)]
    mutual: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    network: u16,
}

#[derive(Serialize, Deserialize)]
struct StoredPending {
    node_id: u32,
    #[serde(default)]
    public_key: String,
    #[serde(default)]
    justification: String,
    received_at: String,
}

#[derive(Serialize, Deserialize)]
struct StoredOutgoing {
    node_id: u32,
    #[serde(default)]
    public_key: String,
    #[serde(default)]
    justification: String,
    sent_at: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    rejected: bool,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    // The reference writes null for an empty list.
    trusted: Option<Vec<StoredTrust>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending: Option<Vec<StoredPending>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outgoing: Option<Vec<StoredOutgoing>>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(network: &u16) -> bool {
    *network == 0
}

/// The content of `trust.json`.
pub(super) fn to_json(book: &Book) -> serde_json::Result<Vec<u8>> {
    let key = |key: Option<[u8; 32]>| key.map(|key| STANDARD.encode(key)).unwrap_or_default();
    let trusted = book.trusted.values().map(|entry| StoredTrust {
        node_id: entry.node.0,
        public_key: STANDARD.encode(entry.public_key),
        approved_at: time_text(entry.approved_at),
        mutual: entry.mutual,
        network: entry.network,
    });
    let pending = book.pending.values().map(|entry| StoredPending {
        node_id: entry.node.0,
        public_key: key(entry.public_key),
        justification: entry.justification.clone(),
        received_at: time_text(entry.received_at),
    });
    let outgoing = book.outgoing.values().map(|entry| StoredOutgoing {
        node_id: entry.node.0,
        public_key: key(entry.public_key),
        justification: entry.justification.clone(),
        sent_at: time_text(entry.sent_at),
        rejected: entry.rejected,
    });
    serde_json::to_vec_pretty(&Stored {
        trusted: Some(trusted.collect()),
        pending: Some(pending.collect::<Vec<_>>()).filter(|list| !list.is_empty()),
        outgoing: Some(outgoing.collect::<Vec<_>>()).filter(|list| !list.is_empty()),
    })
}

/// Reads `trust.json`; the error says what is wrong with it.
pub(super) fn from_json(text: &str) -> Result<Book, String> {
    let stored: Stored = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut book = Book::default();
    for entry in stored.trusted.unwrap_or_default() {
        let node = NodeId(entry.node_id);
        let public_key = key_of("trusted", node, &entry.public_key)?
            .ok_or_else(|| format!("trusted node {node} has no key"))?;
        let approved_at = seconds("approved_at", &entry.approved_at)?;
        let trusted = Trusted { node, public_key, approved_at, mutual: entry.mutual, network: entry.network };
        insert(&mut book.trusted, node, trusted, MAX_TRUSTED, "trusted")?;
    }
    for entry in stored.pending.unwrap_or_default() {
        let node = NodeId(entry.node_id);
        let pending = Pending {
            node,
            public_key: key_of("pending", node, &entry.public_key)?,
            justification: cut(entry.justification),
            received_at: seconds("received_at", &entry.received_at)?,
        };
        insert(&mut book.pending, node, pending, MAX_PENDING, "pending")?;
    }
    for entry in stored.outgoing.unwrap_or_default() {
        let node = NodeId(entry.node_id);
        let outgoing = Outgoing {
            node,
            public_key: key_of("outgoing", node, &entry.public_key)?,
            justification: entry.justification,
            sent_at: seconds("sent_at", &entry.sent_at)?,
            rejected: entry.rejected,
        };
        insert(&mut book.outgoing, node, outgoing, MAX_OUTGOING, "outgoing")?;
    }
    Ok(book)
}

fn insert<T>(
    list: &mut BTreeMap<NodeId, T>,
    node: NodeId,
    entry: T,
    max: usize,
    name: &str,
) -> Result<(), String> {
    if list.len() >= max {
        return Err(format!("more than {max} entries in {name}"));
    }
    match list.insert(node, entry) {
        None => Ok(()),
        Some(_) => Err(format!("node {node} twice in {name}")),
    }
}

fn key_of(list: &str, node: NodeId, text: &str) -> Result<Option<[u8; 32]>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.map(Some).ok_or_else(|| format!("{list} node {node}: the key is not base64 of 32 bytes"))
}

fn time_text(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

fn seconds(field: &str, text: &str) -> Result<u64, String> {
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|error| format!("{field} {text:?}: {error}"))?;
    Ok(u64::try_from(time.unix_timestamp()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a daemon of the reference wrote it, with other keys.
    const REFERENCE: &str = r#"{
  "trusted": [
    {
      "node_id": 1,
      "public_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
      "approved_at": "2026-11-21T14:52:44Z",
      "mutual": false
    }
  ]
}"#;

    #[test]
    fn the_file_of_the_reference_is_read_and_written_alike() {
        let book = from_json(REFERENCE).expect("read");
        let one = &book.trusted[&NodeId(1)];
        assert_eq!(
            (one.public_key, one.approved_at, one.mutual, one.network),
            ([1; 32], 1_795_272_764, false, 0)
        );
        assert_eq!(String::from_utf8(to_json(&book).expect("written")).expect("text"), REFERENCE);
        let empty = r#"{"trusted": null, "pending": [{"node_id": 7, "public_key": "", "justification": "why",
            "received_at": "2026-11-21T15:52:43.5+01:00"}]}"#;
        let pending = &from_json(empty).expect("read").pending[&NodeId(7)];
        assert_eq!((pending.public_key, pending.received_at), (None, 1_795_272_763));
    }

    #[test]
    fn everything_survives_a_round_trip_and_damage_is_explained() {
        let mut book = from_json(REFERENCE).expect("read");
        let (node, justification) = (NodeId(9), "hello".to_owned());
        book.outgoing.insert(
            node,
            Outgoing { node, public_key: Some([3; 32]), justification, sent_at: 5, rejected: true },
        );
        let trusted =
            Trusted { node: NodeId(2), public_key: [2; 32], approved_at: 8, mutual: true, network: 3 };
        book.trusted.insert(NodeId(2), trusted);
        let json = to_json(&book).expect("written");
        assert_eq!(from_json(core::str::from_utf8(&json).expect("text")), Ok(book));
        for (bad, expected) in [
            ("", "EOF"),
            (&REFERENCE.replace("AQEBAQ", "%"), "base64"),
            (&REFERENCE.replace("2026-11", "2026-13"), "approved_at"),
            (
                &REFERENCE.replace(
                    r#""public_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=""#,
                    r#""public_key": """#,
                ),
                "no key",
            ),
        ] {
            let error = from_json(bad).expect_err(bad);
            assert!(error.contains(expected), "{error}");
        }
    }
}
