//! Ranking: match × liveness × evidence, and always why (spec/discovery.md §5).

use std::fmt;

use crate::tag::Tag;

/// Below this age, in seconds, an agent counts as alive: the longest time between two of its heartbeats.
pub const HEARTBEAT: u64 = 60;

/// Above this age it counts as gone.
pub const GONE: u64 = 3 * HEARTBEAT;

/// What is known about whether an agent is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It was heard of so many seconds ago.
    Seen(u64),
    /// Nobody heard of it.
    Unknown,
    /// It did not answer when it was tried last.
    Dead,
}

impl Liveness {
    /// 0 to 1: how much it is worth to try. Falls from 1 at [`HEARTBEAT`] to 0.1 at [`GONE`].
    #[must_use]
    pub fn value(self) -> f32 {
        match self {
            Self::Seen(age) if age <= HEARTBEAT => 1.0,
            Self::Seen(age) if age < GONE => {
                1.0 - 0.9 * ((age - HEARTBEAT) as f32 / (GONE - HEARTBEAT) as f32)
            }
            Self::Seen(_) => 0.1,
            Self::Unknown => 0.5,
            Self::Dead => 0.02,
        }
    }
}

impl fmt::Display for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seen(age) => write!(f, "heard of {age} s ago"),
            Self::Unknown => f.write_str("not heard of yet"),
            Self::Dead => f.write_str("did not answer last time"),
        }
    }
}

/// What speaks for and against an agent, apart from its own words.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Evidence {
    /// Calls of ours that succeeded; older ones count less.
    pub succeeded: f32,
    /// Calls of ours that failed.
    pub failed: f32,
    /// Times that it answered a probe.
    pub probes_answered: f32,
    /// Times that it did not.
    pub probes_missed: f32,
    /// Attestations by keys that we trust.
    pub attested_by_trusted: u16,
    /// Attestations by others: cheap to forge in numbers, so all of them together weigh less than one by a trusted key.
    pub attested_by_others: u16,
}

impl Evidence {
    /// 0 to 1; one half where nothing is known.
    #[must_use]
    pub fn value(&self) -> f32 {
        let attested =
            f32::from(self.attested_by_trusted.min(8)) + 0.09 * f32::from(self.attested_by_others.min(10));
        let good = 2.0 + self.succeeded + 0.5 * self.probes_answered + attested;
        let bad = 2.0 + self.failed + 0.5 * self.probes_missed;
        good / (good + bad)
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.succeeded + self.failed >= 0.05 {
            parts.push(format!("our calls: {:.1} succeeded, {:.1} failed", self.succeeded, self.failed));
        }
        if self.probes_answered + self.probes_missed >= 0.05 {
            parts.push(format!(
                "probes: {:.1} answered, {:.1} missed",
                self.probes_answered, self.probes_missed
            ));
        }
        if self.attested_by_trusted + self.attested_by_others > 0 {
            parts.push(format!(
                "attested by {} trusted and {} other keys",
                self.attested_by_trusted, self.attested_by_others
            ));
        }
        if parts.is_empty() {
            return f.write_str("none yet");
        }
        f.write_str(&parts.join("; "))
    }
}

/// How the tags of an agent fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagMatch {
    /// What was asked for.
    pub wanted: Tag,
    /// Which tag of the agent fits.
    pub has: Tag,
    /// Words that were taken off `wanted` because nobody had it whole.
    pub widened: u8,
}

/// How the words fit.
#[derive(Debug, Clone, PartialEq)]
pub struct TextMatch {
    /// 0 to 1: BM25, by the most that the query could give.
    pub value: f32,
    /// Words (without endings) that were found.
    pub found: Vec<String>,
    /// Words that were not.
    pub missing: Vec<String>,
}

/// Why an agent stands where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// One per tag of the query.
    pub tags: Vec<TagMatch>,
    /// If the query had words.
    pub text: Option<TextMatch>,
    /// The cosine, if the query had a vector and the agent one of the same model.
    pub vector: Option<f32>,
    /// How well it fits, 0 to 1.
    pub matched: f32,
    /// Whether it is there.
    pub liveness: Liveness,
    /// What speaks for it.
    pub evidence: Evidence,
}

impl Explanation {
    /// The rank is by this: match × liveness × evidence.
    #[must_use]
    pub fn score(&self) -> f32 {
        self.matched * self.liveness.value() * self.evidence.value()
    }

    /// One sentence for each factor.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut parts = Vec::new();
        for tag in &self.tags {
            parts.push(match tag.widened {
                0 if tag.has == tag.wanted => format!("has {}", tag.has),
                0 => format!("has {}, a case of {}", tag.has, tag.wanted),
                words => format!("has only {} ({words} word(s) short of {})", tag.has, tag.wanted),
            });
        }
        if let Some(text) = &self.text {
            let mut part = format!("words {:.2}: {}", text.value, joined(&text.found));
            if !text.missing.is_empty() {
                part.push_str(&format!("; not: {}", joined(&text.missing)));
            }
            parts.push(part);
        }
        if let Some(cosine) = self.vector {
            parts.push(format!("vector {cosine:.2}"));
        }
        vec![
            format!("match    {:.2}  {}", self.matched, parts.join("; ")),
            format!("liveness {:.2}  {}", self.liveness.value(), self.liveness),
            format!("evidence {:.2}  {}", self.evidence.value(), self.evidence),
        ]
    }
}

fn joined(words: &[String]) -> String {
    if words.is_empty() { "none".into() } else { words.join(" ") }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} = match × liveness × evidence", self.score())?;
        for line in self.lines() {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

/// How well an agent fits: words and vector count alike; each word that a tag is short of halves it. An agent with the
/// right tags and none of the words still fits a little.
#[inline]
#[must_use]
pub fn matched(has_tags: bool, widened: u32, text: Option<f32>, cosine: Option<f32>) -> f32 {
    let mut factor = 1.0_f32;
    for _ in 0..widened {
        factor *= 0.5;
    }
    let quality = match (text, cosine.map(|cosine| cosine.max(0.0))) {
        (None, None) => return factor,
        (Some(one), None) | (None, Some(one)) => one,
        (Some(text), Some(cosine)) => 0.5 * text + 0.5 * cosine,
    };
    if has_tags { factor * (0.1 + 0.9 * quality) } else { factor * quality }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_and_proven_come_first() {
        assert!(Liveness::Seen(0).value() > Liveness::Unknown.value());
        assert!(Liveness::Unknown.value() > Liveness::Seen(GONE).value());
        assert!(Liveness::Seen(GONE).value() > Liveness::Dead.value());
        let values: Vec<f32> = (0..400).map(|age| Liveness::Seen(age).value()).collect();
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
        let none = Evidence::default();
        assert!((none.value() - 0.5).abs() < 1e-6);
        assert!(Evidence { succeeded: 3.0, ..none }.value() > 0.6);
        assert!(Evidence { failed: 3.0, ..none }.value() < 0.4);
    }

    #[test]
    fn a_crowd_of_strangers_weighs_less_than_one_friend() {
        let strangers = Evidence { attested_by_others: u16::MAX, ..Evidence::default() };
        let friend = Evidence { attested_by_trusted: 1, ..Evidence::default() };
        assert!(strangers.value() < friend.value());
    }

    #[test]
    fn a_score_never_comes_alone() {
        let tag = |text: &str| text.parse::<Tag>().unwrap();
        let why = Explanation {
            tags: vec![TagMatch { wanted: tag("a.b"), has: tag("a.b.c"), widened: 0 }],
            text: Some(TextMatch { value: 0.5, found: vec!["x".into()], missing: vec!["y".into()] }),
            vector: None,
            matched: matched(true, 0, Some(0.5), None),
            liveness: Liveness::Seen(3),
            evidence: Evidence::default(),
        };
        let text = why.to_string();
        for part in ["match", "liveness", "evidence", "a case of a.b", "not: y", "3 s ago", "none yet"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!((why.score() - 0.55 * 0.5).abs() < 1e-6);
    }
}
