//! JSON text to messages and back: bounds, leniency towards other writers, and the reasons for failure.

use super::{FrameError, Key, LENGTH_PREFIX, MAX_MESSAGE, MAX_NESTING, MessageError};
use crate::NodeId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Node ids travel as JSON numbers.
pub(super) mod as_u32 {
    use super::{Deserialize, Deserializer, NodeId, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(id: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(id.0)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<NodeId, D::Error> {
        u32::deserialize(de).map(NodeId)
    }
}

pub(super) mod as_optional_u32 {
    use super::{Deserialize, Deserializer, NodeId, Serialize, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        id: &Option<NodeId>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        id.map(|id| id.0).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        de: D,
    ) -> Result<Option<NodeId>, D::Error> {
        Ok(Option::<u32>::deserialize(de)?.map(NodeId))
    }
}

/// Go writes an empty list as `null`.
pub(super) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A reference registry may answer `"public_key": ""` for a node without one.
pub(super) fn empty_key_is_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Key>, D::Error> {
    match Option::<std::borrow::Cow<'de, str>>::deserialize(deserializer)? {
        None => Ok(None),
        Some(text) if text.is_empty() => Ok(None),
        Some(text) => Key::deserialize(serde::de::value::StrDeserializer::new(&text)).map(Some),
    }
}

pub(super) fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_PREFIX]);
    let result = serde_json::to_writer(&mut *out, message).map_err(|_| FrameError::Encode);
    let len = out.len() - start - LENGTH_PREFIX;
    let result = match (result, u32::try_from(len)) {
        (Ok(()), Ok(prefix)) if len <= MAX_MESSAGE => Ok(prefix),
        (Ok(()), _) => Err(FrameError::TooLong { len }),
        (Err(error), _) => Err(error),
    };
    match result {
        Ok(prefix) => {
            out[start..start + LENGTH_PREFIX].copy_from_slice(&prefix.to_be_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

pub(super) fn parse<T: DeserializeOwned>(json: &[u8], known: &[&str]) -> Result<T, MessageError> {
    if json.len() > MAX_MESSAGE {
        let detail = FrameError::TooLong { len: json.len() }.to_string();
        return Err(MessageError::NotJson { detail });
    }
    if nesting_exceeds(json, MAX_NESTING) {
        return Err(MessageError::TooDeep);
    }
    serde_json::from_slice(json).map_err(|error| explain(json, known, &error))
}

/// Second look at a message that did not parse: says which of the reasons of [`MessageError`] it was.
fn explain(json: &[u8], known: &[&str], error: &serde_json::Error) -> MessageError {
    /// Only the type, whatever its JSON kind.
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(default)]
        r#type: serde_json::Value,
    }
    let detail = clip(&error.to_string(), 200);
    if !matches!(error.classify(), serde_json::error::Category::Data) {
        return MessageError::NotJson { detail };
    }
    let kind = match serde_json::from_slice(json) {
        Ok(Envelope { r#type: serde_json::Value::String(kind) }) => kind,
        Ok(_) => return MessageError::MissingType,
        Err(_) => return MessageError::NotJson { detail },
    };
    if known.contains(&kind.as_str()) {
        MessageError::BadField { kind, detail }
    } else {
        MessageError::UnknownType(clip(&kind, 64))
    }
}

fn clip(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Counts brackets outside strings, so that the parser's recursion is bounded whatever its own limit is.
fn nesting_exceeds(json: &[u8], max: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in json {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}
