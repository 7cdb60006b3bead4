//! Tags: dotted words that name a capability, from the general to the special (`finance.fx.history`).

use std::fmt;
use std::str::FromStr;

/// Longest tag, in bytes.
pub const MAX_TAG: usize = 64;

/// Most words of a tag.
pub const MAX_DEPTH: usize = 8;

/// A capability's name: 1 to [`MAX_DEPTH`] words of `a-z`, `0-9` and `-`, joined by dots, at most [`MAX_TAG`] bytes.
///
/// One capability has one text: capitals, empty words and blanks are refused rather than repaired, because the text is
/// signed. [`Tag::from_user`] is for what people type.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Box<str>);

/// Why a text is no tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TagError {
    /// Nothing, or more than [`MAX_TAG`] bytes.
    #[error("a tag has 1 to {MAX_TAG} bytes, not {0}")]
    Length(usize),
    /// More than [`MAX_DEPTH`] words.
    #[error("a tag has at most {MAX_DEPTH} words")]
    Depth,
    /// An empty word, or another character.
    #[error("a tag is made of words of a-z, 0-9 and -, joined by dots")]
    Word,
}

impl Tag {
    /// A tag as a person writes it: capitals become small, a leading `cap:` and a trailing `.*` are dropped.
    ///
    /// # Errors
    /// See [`TagError`].
    pub fn from_user(text: &str) -> Result<Self, TagError> {
        let text = text.trim();
        let text = text.strip_prefix("cap:").unwrap_or(text);
        text.strip_suffix(".*").unwrap_or(text).to_ascii_lowercase().parse()
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag itself, then what it is a special case of, the most general last: `a.b.c`, `a.b`, `a`.
    pub fn with_ancestors(&self) -> impl Iterator<Item = &str> {
        let mut rest = Some(&*self.0);
        std::iter::from_fn(move || {
            let here = rest?;
            rest = here.rfind('.').map(|dot| &here[..dot]);
            Some(here)
        })
    }

    /// What it is a special case of, by one word.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0.rfind('.').map(|dot| Self(self.0[..dot].into()))
    }

    /// Whether it is `wanted` or a special case of it.
    #[must_use]
    pub fn is_within(&self, wanted: &Self) -> bool {
        self.0.strip_prefix(&*wanted.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Its words.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        if text.is_empty() || text.len() > MAX_TAG {
            return Err(TagError::Length(text.len()));
        }
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let mut depth = 0;
        for word in text.split('.') {
            depth += 1;
            if word.is_empty() || !word.bytes().all(good) {
                return Err(TagError::Word);
            }
        }
        if depth > MAX_DEPTH { Err(TagError::Depth) } else { Ok(Self(text.into())) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cap:{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    #[test]
    fn one_capability_has_one_text() {
        for bad in ["", ".", "a.", ".a", "a..b", "A", "a b", "a_b", "ä", "a.b.c.d.e.f.g.h.i", &"x".repeat(65)]
        {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?}");
        }
        assert_eq!(Tag::from_user(" cap:Finance.FX.* ").unwrap(), tag("finance.fx"));
        assert_eq!(tag("a.b.c.d.e.f.g.h").words().count(), MAX_DEPTH);
    }

    #[test]
    fn a_special_case_lies_within_its_general_one() {
        assert!(tag("finance.fx.history").is_within(&tag("finance.fx")));
        assert!(tag("finance.fx").is_within(&tag("finance.fx")));
        assert!(!tag("finance.fxx").is_within(&tag("finance.fx")));
        assert!(!tag("finance").is_within(&tag("finance.fx")));
        assert_eq!(tag("a.b.c").with_ancestors().collect::<Vec<_>>(), ["a.b.c", "a.b", "a"]);
        assert_eq!(tag("a.b").parent(), Some(tag("a")));
        assert_eq!(tag("a").parent(), None);
    }
}
