//! Descriptors: the long form of a declaration, found by its hash (spec/discovery.md §3).
//!
//! The JSON has the field names of an A2A `AgentCard` (A2A 1.0), so that one can be imported and exported as it is:
//! `name`, `description`, `version`, `skills` with `id`, `name`, `description`, `tags` and `examples`. All other fields
//! are kept, because the hash is that of the bytes, and not understood here.

use serde::Deserialize;

use crate::bytes::is_plain;
use crate::declare::{Declaration, DeclarationError, MAX_SUMMARY, MAX_TAGS, Skill};
use crate::tag::Tag;

/// Longest descriptor, in bytes.
pub const MAX_DESCRIPTOR: usize = 16 * 1_024;

/// Most skills that are read.
pub const MAX_SKILLS: usize = 64;

/// Longest name that is shown, in bytes; the rest is cut off.
const MAX_NAME: usize = 128;

/// A descriptor whose form was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    bytes: Box<[u8]>,
    name: String,
    skills: Vec<DescribedSkill>,
    description: String,
}

/// A skill of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescribedSkill {
    /// Its `id`; it is the capability's tag if it has the form of one.
    pub id: String,
    /// What it does.
    pub description: String,
    /// Its tags that have the form of ours.
    pub tags: Vec<Tag>,
    /// The extension `pilotage:idempotent`.
    pub idempotent: bool,
}

/// Why bytes are no descriptor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// Longer than [`MAX_DESCRIPTOR`].
    #[error("the descriptor has {0} bytes, more than {MAX_DESCRIPTOR}")]
    TooLong(usize),
    /// Not such a JSON object.
    #[error("not an agent card: {0}")]
    Json(String),
    /// Not what was asked for.
    #[error("the descriptor has another hash")]
    Hash,
    /// No skill has a tag of ours.
    #[error("no skill of the agent card has a tag that is a capability here, such as finance.fx")]
    NoTags,
    /// It gives no declaration.
    #[error("{0}")]
    Declaration(#[from] DeclarationError),
}

#[derive(Deserialize)]
struct AgentCard {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    skills: Vec<AgentSkill>,
}

#[derive(Deserialize)]
struct AgentSkill {
    id: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default, rename = "pilotage:idempotent")]
    idempotent: bool,
}

impl Descriptor {
    /// Reads one.
    ///
    /// # Errors
    /// See [`DescriptorError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DescriptorError> {
        if bytes.len() > MAX_DESCRIPTOR {
            return Err(DescriptorError::TooLong(bytes.len()));
        }
        let card: AgentCard =
            serde_json::from_slice(bytes).map_err(|error| DescriptorError::Json(error.to_string()))?;
        let skills = card.skills.into_iter().take(MAX_SKILLS).map(AgentSkill::understood).collect();
        let (name, description) = (plain(&card.name, MAX_NAME), plain(&card.description, MAX_SUMMARY));
        Ok(Self { bytes: bytes.into(), name, skills, description })
    }

    /// Reads one that came in answer to a hash.
    ///
    /// # Errors
    /// See [`DescriptorError`].
    pub fn verify(bytes: &[u8], hash: &[u8; 32]) -> Result<Self, DescriptorError> {
        if blake3::hash(bytes) != blake3::Hash::from_bytes(*hash) {
            return Err(DescriptorError::Hash);
        }
        Self::parse(bytes)
    }

    /// BLAKE3 of its bytes.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.bytes).as_bytes()
    }

    /// The JSON text, as it was read.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The agent's name, to be shown.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its skills, at most [`MAX_SKILLS`].
    #[must_use]
    pub fn skills(&self) -> &[DescribedSkill] {
        &self.skills
    }

    /// A declaration of these skills: ids and tags that are capabilities, the description as the summary, the hash.
    ///
    /// # Errors
    /// See [`DescriptorError`].
    pub fn declare(&self) -> Result<Declaration, DescriptorError> {
        let mut skills: Vec<Skill> = Vec::new();
        for skill in &self.skills {
            let id = skill.id.parse().ok();
            for tag in id.into_iter().chain(skill.tags.iter().cloned()) {
                match skills.iter_mut().find(|known| known.tag == tag) {
                    Some(known) => known.idempotent &= skill.idempotent,
                    None => skills.push(Skill { tag, idempotent: skill.idempotent }),
                }
            }
        }
        skills.truncate(MAX_TAGS);
        if skills.is_empty() {
            return Err(DescriptorError::NoTags);
        }
        Ok(Declaration::new(skills, self.description.clone())?.with_descriptor(self.hash()))
    }
}

impl AgentSkill {
    fn understood(self) -> DescribedSkill {
        DescribedSkill {
            id: plain(&self.id, MAX_NAME),
            description: plain(&self.description, MAX_SUMMARY),
            tags: self.tags.iter().take(MAX_TAGS).filter_map(|tag| tag.parse().ok()).collect(),
            idempotent: self.idempotent,
        }
    }
}

/// At most so many bytes, without what a terminal would obey.
fn plain(text: &str, most: usize) -> String {
    let mut kept = String::new();
    let mut buffer = [0; 4];
    for c in text.chars() {
        let c = if c == '\n' || c == '\t' { ' ' } else { c };
        let one: &str = c.encode_utf8(&mut buffer);
        if kept.len() + one.len() > most {
            break;
        }
        if is_plain(one) {
            kept.push(c);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: &str = r#"{
        "name": "Rates\u001b", "description": "Exchange rates,\nby the minute", "version": "1.0.0",
        "supportedInterfaces": [{"url": "pilot://0:0000.0000.0010", "protocolBinding": "x"}],
        "skills": [
            {"id": "finance.fx.history", "name": "history", "description": "d", "tags": ["finance.fx", "Forex"],
             "examples": ["EUR/USD 2021"], "pilotage:idempotent": true},
            {"id": "Order", "name": "order", "description": "d", "tags": ["finance.fx.order"]}
        ]}"#;

    #[test]
    fn an_agent_card_becomes_a_declaration() {
        let descriptor = Descriptor::parse(CARD.as_bytes()).unwrap();
        assert_eq!(descriptor.name(), "Rates");
        let declaration = descriptor.declare().unwrap();
        let skills: Vec<_> = declaration.skills().iter().map(|s| (s.tag.as_str(), s.idempotent)).collect();
        assert_eq!(skills, [("finance.fx.history", true), ("finance.fx", true), ("finance.fx.order", false)]);
        assert_eq!(declaration.summary(), "Exchange rates, by the minute");
        assert_eq!(declaration.descriptor(), Some(descriptor.hash()));
        assert_eq!(Descriptor::verify(CARD.as_bytes(), &descriptor.hash()).unwrap(), descriptor);
        assert_eq!(Descriptor::verify(b"{}", &descriptor.hash()), Err(DescriptorError::Hash));
    }

    #[test]
    fn bounds() {
        let long = format!("{{\"name\":\"{}\"}}", "x".repeat(MAX_DESCRIPTOR));
        assert!(matches!(Descriptor::parse(long.as_bytes()), Err(DescriptorError::TooLong(_))));
        let many: Vec<String> = (0..200).map(|i| format!(r#"{{"id":"s{i}"}}"#)).collect();
        let many = format!(r#"{{"name":"n","skills":[{}]}}"#, many.join(","));
        let many = Descriptor::parse(many.as_bytes()).unwrap();
        assert_eq!(many.skills().len(), MAX_SKILLS);
        assert_eq!(many.declare().unwrap().skills().len(), MAX_TAGS);
        let none = Descriptor::parse(br#"{"name":"n"}"#).unwrap();
        assert_eq!(none.declare(), Err(DescriptorError::NoTags));
    }
}
