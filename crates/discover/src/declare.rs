//! What an agent says it can do (spec/discovery.md §1).
//!
//! ```text
//! u8 count of tags | each: u8 length, text
//! u32 which tags are idempotent, bit i for tag i
//! u8 length of the summary, text
//! u8 flags: 1 descriptor, 2 vector
//! with 1: 32 BLAKE3 of the descriptor
//! with 2: u8 length of the model's name, text | 384 numbers of one byte
//! ```

use crate::bytes::{Reader, is_plain, put_short};
use crate::embed::{DIMENSIONS, Embedding, EmbeddingError, MAX_MODEL};
use crate::tag::{MAX_TAG, Tag, TagError};

/// Most tags of an agent.
pub const MAX_TAGS: usize = 32;

/// Longest summary, in bytes of UTF-8.
pub const MAX_SUMMARY: usize = 200;

/// Longest encoding, in bytes.
pub const MAX_ENCODED: usize =
    1 + MAX_TAGS * (1 + MAX_TAG) + 4 + 1 + MAX_SUMMARY + 1 + 32 + 1 + MAX_MODEL + DIMENSIONS;

const HAS_DESCRIPTOR: u8 = 1;
const HAS_VECTOR: u8 = 2;

/// One capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skill {
    /// Its name.
    pub tag: Tag,
    /// The agent says: to be asked twice does no more than to be asked once.
    pub idempotent: bool,
}

/// What an agent declares. It is a claim of the agent and nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    skills: Vec<Skill>,
    summary: String,
    descriptor: Option<[u8; 32]>,
    vector: Option<Embedding>,
}

/// Why something is no [`Declaration`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeclarationError {
    /// A tag.
    #[error("tag {tag:?}: {error}")]
    Tag {
        /// The text.
        tag: String,
        /// What is wrong with it.
        error: TagError,
    },
    /// Too many, or none.
    #[error("an agent has 1 to {MAX_TAGS} tags, not {0}")]
    Count(usize),
    /// The same twice.
    #[error("the tag {0} stands there twice")]
    Twice(Tag),
    /// Too long.
    #[error("the summary has {0} bytes, more than {MAX_SUMMARY}")]
    Summary(usize),
    /// Something that a terminal would obey.
    #[error("the summary holds control characters")]
    Control,
    /// The vector.
    #[error("vector: {0}")]
    Vector(#[from] EmbeddingError),
    /// The bytes end early, go on behind the end, or are not UTF-8.
    #[error("not a declaration")]
    Malformed,
}

impl Declaration {
    /// Checks and keeps.
    ///
    /// # Errors
    /// See [`DeclarationError`].
    pub fn new(skills: Vec<Skill>, summary: impl Into<String>) -> Result<Self, DeclarationError> {
        let summary = summary.into();
        if skills.is_empty() || skills.len() > MAX_TAGS {
            return Err(DeclarationError::Count(skills.len()));
        }
        if let Some(twice) =
            (1..skills.len()).find(|at| skills[..*at].iter().any(|s| s.tag == skills[*at].tag))
        {
            return Err(DeclarationError::Twice(skills[twice].tag.clone()));
        }
        if summary.len() > MAX_SUMMARY {
            return Err(DeclarationError::Summary(summary.len()));
        }
        if !is_plain(&summary) {
            return Err(DeclarationError::Control);
        }
        Ok(Self { skills, summary, descriptor: None, vector: None })
    }

    /// With the hash of a descriptor (`crate::descriptor`).
    #[must_use]
    pub fn with_descriptor(mut self, hash: [u8; 32]) -> Self {
        self.descriptor = Some(hash);
        self
    }

    /// With a vector.
    #[must_use]
    pub fn with_vector(mut self, vector: Embedding) -> Self {
        self.vector = Some(vector);
        self
    }

    /// The capabilities.
    #[must_use]
    pub fn skills(&self) -> &[Skill] {
        &self.skills
    }

    /// One or two sentences for people and for the text index.
    #[must_use]
    pub fn summary(&self) -> &str {
        &self.summary
    }

    /// BLAKE3 of the descriptor.
    #[must_use]
    pub fn descriptor(&self) -> Option<[u8; 32]> {
        self.descriptor
    }

    /// The vector.
    #[must_use]
    pub fn vector(&self) -> Option<&Embedding> {
        self.vector.as_ref()
    }

    /// The skill that serves `wanted`: the same tag if there is one, else the first special case of it.
    #[must_use]
    pub fn skill_for(&self, wanted: &Tag) -> Option<&Skill> {
        let same = self.skills.iter().find(|skill| skill.tag == *wanted);
        same.or_else(|| self.skills.iter().find(|skill| skill.tag.is_within(wanted)))
    }

    /// What the text index reads: the words of the tags and the summary.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.summary.clone();
        for skill in &self.skills {
            text.push(' ');
            text.push_str(skill.tag.as_str());
        }
        text
    }

    /// Appends the bytes.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.push(self.skills.len() as u8);
        let mut idempotent = 0_u32;
        for (at, skill) in self.skills.iter().enumerate() {
            put_short(bytes, skill.tag.as_str());
            idempotent |= u32::from(skill.idempotent) << at;
        }
        bytes.extend_from_slice(&idempotent.to_be_bytes());
        put_short(bytes, &self.summary);
        let flags = if self.descriptor.is_some() { HAS_DESCRIPTOR } else { 0 }
            | if self.vector.is_some() { HAS_VECTOR } else { 0 };
        bytes.push(flags);
        bytes.extend_from_slice(self.descriptor.as_ref().map_or(&[][..], |hash| hash));
        if let Some(vector) = &self.vector {
            put_short(bytes, vector.model());
            bytes.extend(vector.to_bytes());
        }
    }

    /// Reads the bytes, all of them. What is accepted is written as the same bytes again.
    ///
    /// # Errors
    /// See [`DeclarationError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DeclarationError> {
        let mut reader = Reader::new(bytes);
        let declaration = Self::read(&mut reader)?;
        if reader.left() > 0 { Err(DeclarationError::Malformed) } else { Ok(declaration) }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DeclarationError> {
        use DeclarationError::Malformed;
        let count = usize::from(reader.u8().ok_or(Malformed)?);
        if count == 0 || count > MAX_TAGS {
            return Err(DeclarationError::Count(count));
        }
        let mut skills = Vec::with_capacity(count);
        for _ in 0..count {
            let text = reader.short_text().ok_or(Malformed)?;
            let tag = text.parse().map_err(|error| DeclarationError::Tag { tag: shown(text), error })?;
            skills.push(Skill { tag, idempotent: false });
        }
        let idempotent = reader.u32().ok_or(Malformed)?;
        if count < 32 && idempotent >> count != 0 {
            return Err(Malformed);
        }
        for (at, skill) in skills.iter_mut().enumerate() {
            skill.idempotent = idempotent >> at & 1 == 1;
        }
        let mut declaration = Self::new(skills, reader.short_text().ok_or(Malformed)?)?;
        let flags = reader.u8().ok_or(Malformed)?;
        if flags & !(HAS_DESCRIPTOR | HAS_VECTOR) != 0 {
            return Err(Malformed);
        }
        if flags & HAS_DESCRIPTOR != 0 {
            declaration.descriptor = Some(reader.array().ok_or(Malformed)?);
        }
        if flags & HAS_VECTOR != 0 {
            let model = reader.short_text().ok_or(Malformed)?;
            let values = reader.take(DIMENSIONS).ok_or(Malformed)?;
            declaration.vector = Some(Embedding::from_bytes(model, values)?);
        }
        Ok(declaration)
    }
}

/// A text of others inside an error message.
fn shown(text: &str) -> String {
    text.chars().take(MAX_TAG).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::embed::hashed;

    fn skills(texts: &[&str]) -> Vec<Skill> {
        texts
            .iter()
            .map(|text| Skill { tag: text.parse().unwrap(), idempotent: text.len() % 2 == 0 })
            .collect()
    }

    fn bytes(declaration: &Declaration) -> Vec<u8> {
        let mut bytes = Vec::new();
        declaration.encode(&mut bytes);
        bytes
    }

    #[test]
    fn the_largest_one_fits_and_one_more_does_not() {
        let tags: Vec<String> = (0..MAX_TAGS).map(|i| format!("{i:0>MAX_TAG$}")).collect();
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        let model = "m".repeat(MAX_MODEL);
        let vector = Embedding::from_values(&model, &[1; DIMENSIONS]).unwrap();
        let largest = Declaration::new(skills(&tags), "s".repeat(MAX_SUMMARY)).unwrap();
        let largest = largest.with_descriptor([7; 32]).with_vector(vector);
        assert_eq!(bytes(&largest).len(), MAX_ENCODED);
        assert_eq!(Declaration::decode(&bytes(&largest)).unwrap(), largest);
        let more: Vec<String> = (0..=MAX_TAGS).map(|i| format!("t{i}")).collect();
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        assert_eq!(Declaration::new(skills(&more), ""), Err(DeclarationError::Count(33)));
        let long = Declaration::new(skills(&["a"]), "s".repeat(MAX_SUMMARY + 1));
        assert_eq!(long, Err(DeclarationError::Summary(201)));
    }

    #[test]
    fn what_would_be_obeyed_by_a_terminal_is_refused() {
        assert_eq!(Declaration::new(skills(&["a"]), "\u{1b}[31m"), Err(DeclarationError::Control));
        assert_eq!(Declaration::new(skills(&["a"]), "\u{202e}gpj"), Err(DeclarationError::Control));
        assert!(matches!(Declaration::new(skills(&["a", "a"]), ""), Err(DeclarationError::Twice(_))));
        assert_eq!(Declaration::new(vec![], ""), Err(DeclarationError::Count(0)));
    }

    #[test]
    fn a_special_case_serves_the_general_wish() {
        let declaration = Declaration::new(skills(&["a.b.c", "a.b", "d"]), "").unwrap();
        let tag =
            |text: &str| declaration.skill_for(&text.parse().unwrap()).map(|skill| skill.tag.to_string());
        assert_eq!(tag("a.b").as_deref(), Some("a.b"));
        assert_eq!(tag("a").as_deref(), Some("a.b.c"));
        assert_eq!(tag("a.b.c.d"), None);
    }

    #[test]
    fn every_prefix_and_every_addition_is_refused() {
        let whole = Declaration::new(skills(&["a.b", "c"]), "words").unwrap();
        let whole = bytes(&whole.with_descriptor([9; 32]).with_vector(hashed("words").unwrap()));
        for end in 0..whole.len() {
            assert!(Declaration::decode(&whole[..end]).is_err(), "{end}");
        }
        assert!(Declaration::decode(&[&whole[..], &[0]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_as_the_same_bytes(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(declaration) = Declaration::decode(&input) {
                prop_assert_eq!(bytes(&declaration), input);
            }
        }

        #[test]
        fn one_flipped_bit_never_panics(at in 0_usize..60, bit in 0_u8..8) {
            let mut whole = bytes(&Declaration::new(skills(&["a.b", "c"]), "some words").unwrap().with_descriptor([9; 32]));
            let at = at % whole.len();
            whole[at] ^= 1 << bit;
            if let Ok(declaration) = Declaration::decode(&whole) {
                prop_assert_eq!(bytes(&declaration), whole);
            }
        }
    }
}
