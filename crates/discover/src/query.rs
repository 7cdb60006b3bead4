//! What is asked for.

use crate::embed::Embedding;
use crate::tag::{Tag, TagError};
use crate::words;

/// Most tags of a query.
pub const MAX_QUERY_TAGS: usize = 8;

/// Longest text of a query, in bytes of UTF-8.
pub const MAX_QUERY_TEXT: usize = 512;

/// Most different words of a query that count.
pub const MAX_QUERY_TERMS: usize = 16;

/// Most answers that can be asked for.
pub const MAX_LIMIT: usize = 64;

/// A wish: all of the tags, and as much as possible of the text and the vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    tags: Vec<Tag>,
    text: String,
    vector: Option<Embedding>,
    limit: usize,
}

/// Why something is no [`Query`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// Neither tag, text nor vector.
    #[error("the query says nothing: give a tag such as cap:finance.fx, or words")]
    Empty,
    /// Too many tags.
    #[error("a query has at most {MAX_QUERY_TAGS} tags")]
    Tags,
    /// The text is too long.
    #[error("the text has {0} bytes, more than {MAX_QUERY_TEXT}")]
    Text(usize),
    /// A tag of a person is none.
    #[error("{tag:?}: {error}")]
    Tag {
        /// What was written.
        tag: String,
        /// What is wrong with it.
        error: TagError,
    },
}

impl Query {
    /// Checks and keeps; `limit` is brought into 1 to [`MAX_LIMIT`].
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn new(
        mut tags: Vec<Tag>,
        text: impl Into<String>,
        vector: Option<Embedding>,
        limit: usize,
    ) -> Result<Self, QueryError> {
        let text = text.into();
        tags.sort();
        tags.dedup();
        if tags.len() > MAX_QUERY_TAGS {
            return Err(QueryError::Tags);
        }
        if text.len() > MAX_QUERY_TEXT {
            return Err(QueryError::Text(text.len()));
        }
        if tags.is_empty() && text.trim().is_empty() && vector.is_none() {
            return Err(QueryError::Empty);
        }
        Ok(Self { tags, text, vector, limit: limit.clamp(1, MAX_LIMIT) })
    }

    /// From what a person writes: `cap:…` or `tag:…` are tags, all else is text.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn from_words<'a>(
        parts: impl IntoIterator<Item = &'a str>,
        limit: usize,
    ) -> Result<Self, QueryError> {
        let (mut tags, mut text) = (Vec::new(), Vec::new());
        for part in parts {
            match part.strip_prefix("cap:").or_else(|| part.strip_prefix("tag:")) {
                Some(tag) => tags.push(
                    Tag::from_user(tag).map_err(|error| QueryError::Tag { tag: part.to_owned(), error })?,
                ),
                None => text.push(part),
            }
        }
        Self::new(tags, text.join(" "), None, limit)
    }

    /// With a vector.
    #[must_use]
    pub fn with_vector(mut self, vector: Embedding) -> Self {
        self.vector = Some(vector);
        self
    }

    /// The same wish for another number of answers.
    #[must_use]
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.limit = limit.clamp(1, MAX_LIMIT);
        self
    }

    /// All of them must be there, or a special case of each; sorted.
    #[must_use]
    pub fn tags(&self) -> &[Tag] {
        &self.tags
    }

    /// In words.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// As a vector.
    #[must_use]
    pub fn vector(&self) -> Option<&Embedding> {
        self.vector.as_ref()
    }

    /// Answers wanted, 1 to [`MAX_LIMIT`].
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The different words of the text, in their order; at most [`MAX_QUERY_TERMS`].
    #[must_use]
    pub fn terms(&self) -> Vec<String> {
        let mut distinct: Vec<String> = Vec::new();
        for term in words::terms(&self.text) {
            if distinct.len() < MAX_QUERY_TERMS && !distinct.contains(&term) {
                distinct.push(term);
            }
        }
        distinct
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_writes() {
        let query = Query::from_words(["cap:Finance.FX", "EUR/USD", "by the minute, EUR"], 1_000).unwrap();
        assert_eq!(query.tags(), ["finance.fx".parse().unwrap()]);
        assert_eq!(query.terms(), ["eur", "usd", "minut"]);
        assert_eq!(query.limit(), MAX_LIMIT);
        assert_eq!(Query::from_words([" "], 1), Err(QueryError::Empty));
        assert!(matches!(Query::from_words(["cap:a b"], 1), Err(QueryError::Tag { .. })));
    }

    #[test]
    fn bounds() {
        let tags = |count: usize| (0..count).map(|i| format!("t{i}").parse().unwrap()).collect::<Vec<Tag>>();
        assert!(Query::new(tags(MAX_QUERY_TAGS), "", None, 1).is_ok());
        assert_eq!(Query::new(tags(MAX_QUERY_TAGS + 1), "", None, 1), Err(QueryError::Tags));
        let long = "x".repeat(MAX_QUERY_TEXT + 1);
        assert_eq!(Query::new(vec![], long, None, 1), Err(QueryError::Text(513)));
        let many: Vec<String> = (0..100).map(|i| format!("w{i}")).collect();
        assert_eq!(Query::new(vec![], many.join(" "), None, 1).unwrap().terms().len(), MAX_QUERY_TERMS);
    }
}
