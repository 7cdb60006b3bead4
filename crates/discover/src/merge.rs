//! Answers of several holders become one list (spec/discovery.md §8).
//!
//! Holders are not believed: cards count by their owners' signatures, and the match is worked out here, from the card and
//! the sum of all holders' word statistics. What a holder says about liveness counts only as "no longer ago than"; what it
//! says about evidence does not count at all.

use std::collections::HashMap;

use crate::card::{AgentKey, SignedCard};
use crate::evidence::Book;
use crate::group::Beyond;
use crate::index::{Hit, Statistics, text_match};
use crate::query::Query;
use crate::rank::{self, Explanation, Liveness, TagMatch};
use crate::tag::Tag;

/// Most cards that are merged; later ones are dropped.
pub const MAX_MERGED: usize = 4_096;

/// Most texts that one holder may say it has: a larger number would drown the others' statistics.
const MAX_TEXTS: u64 = 10_000_000;

/// A card in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Verified.
    pub card: SignedCard,
    /// How many seconds ago the agent was heard of, as the holder says; `None` if it says nothing.
    pub seen_ago: Option<u64>,
    /// The agent itself answered: then nothing is hearsay.
    pub itself: bool,
}

/// What was told so far.
#[derive(Debug, Default)]
pub struct Merge {
    told: HashMap<AgentKey, Told>,
    texts: u64,
    words: u64,
    having: Vec<u64>,
    beyond: Beyond,
    /// Cards that were dropped: over, not yet valid, or above the bound.
    dropped: usize,
}

impl Merge {
    /// Adds one answer. `terms` is the number of words of the query; `now` is in seconds since 1970.
    pub fn add(&mut self, told: Vec<Told>, statistics: &Statistics, terms: usize, now: u64) {
        self.having.resize(terms, 0);
        let texts = statistics.texts.min(MAX_TEXTS);
        self.texts += texts;
        self.words += statistics.words.min(texts * 255);
        for (sum, having) in self.having.iter_mut().zip(&statistics.having) {
            *sum += (*having).min(texts);
        }
        for one in told {
            self.add_card(one, now);
        }
    }

    /// What is known about those who were not asked. The last one that was said counts.
    pub fn set_beyond(&mut self, beyond: Beyond) {
        self.beyond = beyond;
    }

    /// Texts, and how many of them have each word: of those who answered, and of the others by what their summaries say.
    fn statistics(&self, terms: usize) -> (usize, Vec<usize>) {
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        // Each holder that was asked has at least the texts it told us.
        let texts = self.texts.max(self.told.len() as u64);
        // Several holders of a group have told of the same texts; the others count as often.
        let times = match self.beyond.asked {
            0 => 1.0,
            asked => texts as f64 / asked as f64,
        };
        let having = (0..terms).map(|at| {
            let having = self.having.get(at).copied().unwrap_or(0);
            let beyond = self.beyond.having.get(at).copied().unwrap_or(0) as f64 * times;
            // `as` saturates.
            count(having.saturating_add(beyond as u64))
        });
        let having = having.collect();
        (count(texts.saturating_add((self.beyond.texts as f64 * times) as u64)), having)
    }

    fn add_card(&mut self, mut one: Told, now: u64) {
        let key = one.card.card().key;
        if !one.card.card().is_current(now) {
            self.dropped += 1;
            return;
        }
        let room = self.told.len() < MAX_MERGED;
        match self.told.get_mut(&key) {
            Some(known) => {
                let rank = |told: &Told| (told.card.card().seq, *blake3::hash(told.card.bytes()).as_bytes());
                one.itself |= known.itself;
                one.seen_ago = match (one.seen_ago, known.seen_ago) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                if rank(&one) <= rank(known) {
                    one.card = known.card.clone();
                }
                *known = one;
            }
            None if room => {
                self.told.insert(key, one);
            }
            None => self.dropped += 1,
        }
    }

    /// Different agents so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.told.len()
    }

    /// Whether nobody was named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// Cards that did not count.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// The agents that fit best, the best first. `dead` says who did not answer when it was tried; they come last.
    #[must_use]
    pub fn ranked(&self, query: &Query, book: &Book, now: u64, dead: impl Fn(&AgentKey) -> bool) -> Vec<Hit> {
        let terms = query.terms();
        let (texts, having) = self.statistics(terms.len());
        let average = if self.texts == 0 { 16.0 } else { self.words as f32 / self.texts as f32 };
        let mut hits: Vec<Hit> = Vec::new();
        for told in self.told.values() {
            let declaration = &told.card.card().declaration;
            let Some(tags) =
                fit(query.tags(), |tag| declaration.skill_for(tag).map(|skill| skill.tag.clone()))
            else {
                continue;
            };
            let text =
                (!terms.is_empty()).then(|| text_match(&declaration.text(), &terms, &having, texts, average));
            let vector = query.vector().and_then(|vector| declaration.vector()?.cosine(vector));
            let widened = tags.iter().map(|tag| u32::from(tag.widened)).sum();
            let cosine = query.vector().map(|_| vector.unwrap_or(0.0));
            let matched =
                rank::matched(!tags.is_empty(), widened, text.as_ref().map(|text| text.value), cosine);
            if matched <= 0.0 {
                continue;
            }
            let key = told.card.card().key;
            let liveness = match (dead(&key), told.itself, told.seen_ago) {
                (true, ..) => Liveness::Dead,
                (_, true, _) => Liveness::Seen(0),
                (_, _, Some(age)) => Liveness::Seen(age),
                (_, _, None) => Liveness::Unknown,
            };
            let why =
                Explanation { tags, text, vector, matched, liveness, evidence: book.evidence(&key, now) };
            hits.push(Hit { card: told.card.clone(), why });
        }
        // As in an index: special wishes are widened only if nobody who is there has them whole.
        let short = |hit: &Hit| hit.why.tags.iter().map(|tag| u32::from(tag.widened)).sum::<u32>();
        let there = hits.iter().filter(|hit| hit.why.liveness != Liveness::Dead);
        if let Some(least) = there.map(short).min() {
            hits.retain(|hit| short(hit) <= least);
        }
        let key = |hit: &Hit| hit.card.card().key;
        hits.sort_by(|a, b| b.why.score().total_cmp(&a.why.score()).then_with(|| key(a).cmp(&key(b))));
        hits.truncate(query.limit());
        hits
    }
}

/// How the tags fit, each widened as little as need be; `None` if one does not fit at all.
fn fit(wanted: &[Tag], has: impl Fn(&Tag) -> Option<Tag>) -> Option<Vec<TagMatch>> {
    wanted
        .iter()
        .map(|wanted| {
            let (mut used, mut widened) = (wanted.clone(), 0);
            loop {
                if let Some(has) = has(&used) {
                    return Some(TagMatch { wanted: wanted.clone(), has, widened });
                }
                used = used.parent()?;
                widened += 1;
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::testing::{card, signed};
    use crate::evidence::Experience;

    fn told(card: SignedCard) -> Told {
        Told { card, seen_ago: Some(5), itself: false }
    }

    fn names(hits: &[Hit]) -> Vec<&str> {
        hits.iter().map(|hit| hit.card.card().declaration.summary()).collect()
    }

    #[test]
    fn the_newest_card_of_each_agent_counts_once() {
        let query = Query::from_words(["cap:a"], 10).unwrap();
        let old = card(1, &["a"], "old");
        let new = signed(1, 2, card(1, &["a.b"], "new").card().declaration.clone());
        for order in [[&old, &new], [&new, &old]] {
            let mut merge = Merge::default();
            for card in order {
                merge.add(vec![told(card.clone())], &Statistics::default(), 0, 1_000);
            }
            assert_eq!(names(&merge.ranked(&query, &Book::default(), 1_000, |_| false)), ["new"]);
        }
    }

    #[test]
    fn what_is_over_or_does_not_fit_is_dropped() {
        let query = Query::from_words(["cap:a"], 10).unwrap();
        let mut merge = Merge::default();
        let late = 1_000 + 3_600;
        merge.add(vec![told(card(1, &["a"], "over"))], &Statistics::default(), 0, late);
        assert_eq!((merge.len(), merge.dropped()), (0, 1));
        merge.add(vec![told(card(2, &["b"], "other"))], &Statistics::default(), 0, 1_000);
        assert!(merge.ranked(&query, &Book::default(), 1_000, |_| false).is_empty());
    }

    #[test]
    fn the_dead_come_last_and_the_proven_first() {
        let query = Query::from_words(["cap:a"], 10).unwrap();
        let cards = [card(1, &["a"], "plain"), card(2, &["a"], "dead"), card(3, &["a"], "proven")];
        let (dead, proven) = (cards[1].card().key, cards[2].card().key);
        let mut merge = Merge::default();
        merge.add(cards.into_iter().map(told).collect(), &Statistics::default(), 0, 1_000);
        let mut book = Book::default();
        book.note(&proven, Experience::Succeeded, 1_000);
        let hits = merge.ranked(&query, &book, 1_000, |key| *key == dead);
        assert_eq!(names(&hits), ["proven", "plain", "dead"]);
    }

    #[test]
    fn the_bound_holds_and_a_holder_cannot_drown_the_statistics() {
        let one = card(1, &["a"], "");
        let mut merge = Merge::default();
        for number in 0..=MAX_MERGED as u64 {
            // Different keys without the cost of signing: what was verified is not verified again here.
            let mut bytes = one.bytes().to_vec();
            bytes[5..13].copy_from_slice(&number.to_be_bytes());
            let card = SignedCard::read_verified(&bytes).unwrap();
            let greedy = Statistics { texts: u64::MAX, words: u64::MAX, having: vec![u64::MAX; 3] };
            merge.add(vec![told(card)], &greedy, 1, 1_000);
        }
        assert_eq!((merge.len(), merge.dropped()), (MAX_MERGED, 1));
        assert!(merge.texts <= (MAX_MERGED as u64 + 1) * MAX_TEXTS);
    }
}
