//! Words of a text: what the text index counts.

/// Longest word that counts, in bytes; longer ones are cut.
pub(crate) const MAX_WORD: usize = 32;

/// Most words of a text that count.
pub(crate) const MAX_WORDS: usize = 256;

/// Words that say nothing about a skill.
const STOP: &[&str] = &[
    "a",
    "an",
    "and",
    "any",
    "are",
    "as",
    "at",
    "be",
    "been",
    "but",
    "by",
    "can",
    "could",
    "do",
    "does",
    "for",
    "from",
    "get",
    "give",
    "had",
    "has",
    "have",
    "how",
    "i",
    "if",
    "in",
    "into",
    "is",
    "it",
    "its",
    "let",
    "like",
    "may",
    "me",
    "my",
    "need",
    "of",
    "on",
    "or",
    "our",
    "please",
    "should",
    "so",
    "some",
    "someone",
    "something",
    "than",
    "that",
    "the",
    "their",
    "them",
    "then",
    "there",
    "these",
    "they",
    "this",
    "those",
    "to",
    "want",
    "was",
    "we",
    "what",
    "when",
    "where",
    "which",
    "who",
    "will",
    "with",
    "would",
    "you",
    "your",
];

/// The words of a text in their order, in small letters and without endings; at most [`MAX_WORDS`].
///
/// Letters and digits make words, all else divides them. Words of [`STOP`] are left out.
pub(crate) fn terms(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .filter(|word| STOP.binary_search(&word.as_str()).is_err())
        .take(MAX_WORDS)
        .map(|word| stem(cut(word)))
        .collect()
}

fn cut(mut word: String) -> String {
    if word.len() > MAX_WORD {
        let end = (0..=MAX_WORD).rev().find(|at| word.is_char_boundary(*at)).unwrap_or(0);
        word.truncate(end);
    }
    word
}

/// Endings and what takes their place, the longest first; the stem must keep the given number of letters.
const ENDINGS: &[(&str, &str, usize)] = &[
    ("izations", "ize", 3),
    ("ization", "ize", 3),
    ("isation", "ize", 3),
    ("ations", "ate", 3),
    ("ation", "ate", 3),
    ("ments", "", 4),
    ("ment", "", 4),
    ("ities", "ity", 3),
    ("iness", "y", 3),
    ("ness", "", 4),
    ("ingly", "", 3),
    ("ising", "ize", 3),
    ("ised", "ize", 3),
    ("ises", "ize", 3),
    ("ise", "ize", 4),
    ("ators", "ate", 3),
    ("ator", "ate", 3),
    ("ions", "", 4),
    ("ion", "", 4),
    ("ings", "", 3),
    ("ing", "", 3),
    ("iers", "y", 3),
    ("ier", "y", 3),
    ("ies", "y", 2),
    ("ied", "y", 2),
    ("ers", "", 4),
    ("er", "", 4),
    ("ors", "", 4),
    ("or", "", 4),
    ("ed", "", 3),
    ("ly", "", 4),
    ("es", "", 3),
    ("s", "", 3),
];

/// Takes the usual English endings off, so that `translation`, `translates` and `translator` are one word. Words with
/// digits or other letters stay as they are.
fn stem(word: String) -> String {
    if word.len() < 4 || !word.bytes().all(|byte| byte.is_ascii_lowercase()) || word.ends_with("ss") {
        return word;
    }
    let mut word = word;
    if let Some((ending, instead, least)) = ENDINGS
        .iter()
        .find(|(ending, _, least)| word.len() >= ending.len() + least && word.ends_with(ending))
        .filter(|(ending, _, _)| !(*ending == "s" && (word.ends_with("us") || word.ends_with("is"))))
    {
        let _ = least;
        word.truncate(word.len() - ending.len());
        word.push_str(instead);
    }
    // runn(ing) → run; but fall, pass, buzz.
    let bytes = word.as_bytes();
    if let [.., a, b] = bytes
        && a == b
        && word.len() > 3
        && !b"lsz".contains(b)
    {
        word.pop();
    }
    // A mute e goes, so that `analyse`, `analysing` meet; so does the t of `translat`.
    if word.len() > 3 && word.ends_with('e') {
        word.pop();
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_a_word_are_one() {
        let one = |text: &str| {
            let mut all = terms(text);
            all.dedup();
            all
        };
        for same in [
            "translate translates translating translation translator translated",
            "summary summaries",
            "run running runs",
            "convert converter converts converting converted",
            "rate rates rated rating",
            "organise organisation organization organizing organize",
            "quote quotes quoted",
        ] {
            assert_eq!(one(same).len(), 1, "{:?}", one(same));
        }
        assert_ne!(terms("fx"), terms("fix"));
    }

    #[test]
    fn what_divides_and_what_counts() {
        assert_eq!(terms("EUR/USD 2021-2024, by the minute"), ["eur", "usd", "2021", "2024", "minut"]);
        assert_eq!(terms("ÜBER größe"), ["über", "größe"]);
        assert!(terms("the of and").is_empty());
        assert_eq!(terms(&"word ".repeat(10_000)).len(), MAX_WORDS);
        assert!(terms(&"ä".repeat(100))[0].len() <= MAX_WORD);
        assert!(STOP.is_sorted());
    }
}
