//! Rules of hostnames and tags (spec/registry.md §6).

use core::fmt;

/// Longest hostname, bytes.
pub const MAX_HOSTNAME: usize = 63;
/// Longest tag, bytes.
pub const MAX_TAG: usize = 32;
/// Most tags of a node.
pub const MAX_TAGS: usize = 10;
/// Names that nobody may claim.
pub const RESERVED_HOSTNAMES: [&str; 3] = ["localhost", "backbone", "broadcast"];

/// Checks `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?` and the reserved names.
///
/// # Errors
/// Says which rule is broken.
pub fn check_hostname(name: &str) -> Result<(), HostnameError> {
    if name.is_empty() || name.len() > MAX_HOSTNAME {
        return Err(HostnameError::Length { len: name.len() });
    }
    if !is_label(name) {
        return Err(HostnameError::Alphabet);
    }
    if RESERVED_HOSTNAMES.contains(&name) {
        return Err(HostnameError::Reserved);
    }
    Ok(())
}

/// Strips a leading `#`, drops duplicates, keeps the order.
///
/// # Errors
/// Too many tags, or a tag outside the rule (same alphabet as a hostname, 1 to 32 bytes).
pub fn normalize_tags<S: AsRef<str>>(tags: &[S]) -> Result<Vec<String>, TagError> {
    let mut out: Vec<String> = Vec::new();
    for tag in tags {
        let tag = tag.as_ref();
        let tag = tag.strip_prefix('#').unwrap_or(tag);
        if tag.is_empty() || tag.len() > MAX_TAG || !is_label(tag) {
            return Err(TagError::Invalid);
        }
        if out.iter().any(|seen| seen == tag) {
            continue;
        }
        if out.len() == MAX_TAGS {
            return Err(TagError::TooMany);
        }
        out.push(tag.to_owned());
    }
    Ok(out)
}

fn is_label(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    text.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-')
}

/// Why a hostname is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostnameError {
    /// Not 1 to 63 bytes.
    Length {
        /// Bytes given.
        len: usize,
    },
    /// Something else than `a-z`, `0-9`, `-`, or a dash at an end.
    Alphabet,
    /// One of [`RESERVED_HOSTNAMES`].
    Reserved,
}

impl fmt::Display for HostnameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { len } => {
                write!(f, "hostname has {len} bytes; allowed are 1 to {MAX_HOSTNAME}")
            }
            Self::Alphabet => {
                f.write_str("hostname may contain only a-z, 0-9 and -, and may not start or end with -")
            }
            Self::Reserved => f.write_str("hostname is reserved; choose another one"),
        }
    }
}

impl std::error::Error for HostnameError {}

/// Why a tag list is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagError {
    /// A tag breaks the rule.
    Invalid,
    /// More than [`MAX_TAGS`].
    TooMany,
}

impl fmt::Display for TagError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid => write!(f, "a tag has 1 to {MAX_TAG} bytes of a-z, 0-9 and -, no - at the ends"),
            Self::TooMany => write!(f, "at most {MAX_TAGS} tags"),
        }
    }
}

impl std::error::Error for TagError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostname_rule() {
        for good in ["a", "7", "one", "a-b", "x--y", &"a".repeat(63)] {
            assert_eq!(check_hostname(good), Ok(()), "{good}");
        }
        for bad in ["-x", "x-", "-", "Bad_Name", "a.b", "ü", "a b", "A"] {
            assert_eq!(check_hostname(bad), Err(HostnameError::Alphabet), "{bad}");
        }
        for len in [0, 64, 70_000] {
            assert_eq!(check_hostname(&"a".repeat(len)), Err(HostnameError::Length { len }));
        }
        for name in RESERVED_HOSTNAMES {
            assert_eq!(check_hostname(name), Err(HostnameError::Reserved));
        }
    }

    #[test]
    fn tags_are_normalized_as_in_the_vectors() {
        assert_eq!(normalize_tags(&["#web", "gpu", "gpu"]), Ok(vec!["web".to_owned(), "gpu".to_owned()]));
        assert_eq!(normalize_tags(&["##x"]), Err(TagError::Invalid));
        assert_eq!(normalize_tags(&[""]), Err(TagError::Invalid));
        assert_eq!(normalize_tags(&["a".repeat(33)]), Err(TagError::Invalid));
        let eleven: Vec<String> = (0..11).map(|n| format!("t{n}")).collect();
        assert_eq!(normalize_tags(&eleven), Err(TagError::TooMany));
        assert_eq!(normalize_tags(&eleven[..10]).map(|t| t.len()), Ok(10));
        // Repetitions do not count towards the limit.
        let repeated = vec!["same"; 100];
        assert_eq!(normalize_tags(&repeated), Ok(vec!["same".to_owned()]));
    }
}
