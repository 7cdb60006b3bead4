//! Words: an inverted index with BM25 (k1 = 1.2, b = 0.75).
//!
//! A posting list is two arrays in the order of the slots. An update costs a binary search and a shift in each list of the
//! agent's words; texts are short (a summary of 200 bytes), so these are some twenty lists.

use std::collections::HashMap;

use crate::words;

const K1: f32 = 1.2;
const B: f32 = 0.75;

/// Counts up to here (not with it) are looked up in a table.
const COUNTED: u8 = 8;

/// The part of BM25 that a word can reach at most, by that of a word that stands once in a text of average length.
pub(crate) const SATURATION: f32 = K1 + 1.0;

#[derive(Debug, Default)]
struct Postings {
    slots: Vec<u32>,
    counts: Vec<u8>,
}

/// The index.
#[derive(Debug, Default)]
pub(super) struct Texts {
    words: HashMap<Box<str>, Postings>,
    /// Words of each slot's text; 0 for none.
    lengths: Vec<u8>,
    texts: usize,
    total: u64,
}

/// Words of a text with how often each stands there.
pub(crate) fn counts(text: &str) -> HashMap<String, u8> {
    let mut counts: HashMap<String, u8> = HashMap::new();
    for word in words::terms(text) {
        let count = counts.entry(word).or_default();
        *count = count.saturating_add(1);
    }
    counts
}

/// Words of a text, at most 255.
pub(crate) fn length(counts: &HashMap<String, u8>) -> u8 {
    counts.values().fold(0_u8, |sum, count| sum.saturating_add(*count))
}

/// How rare a word is.
pub(crate) fn idf(texts: usize, having: usize) -> f32 {
    let (texts, having) = (texts as f32, having.min(texts) as f32);
    (1.0 + (texts - having + 0.5) / (having + 0.5)).ln()
}

/// The length's share of BM25's denominator.
pub(crate) fn penalty(length: u8, average: f32) -> f32 {
    K1 * (1.0 - B + B * f32::from(length) / average.max(1.0))
}

/// BM25 of one word without its rarity.
#[inline]
pub(crate) fn weight(count: u8, penalty: f32) -> f32 {
    let count = f32::from(count);
    count * SATURATION / (count + penalty)
}

impl Texts {
    pub(super) fn insert(&mut self, slot: u32, text: &str) {
        let counts = counts(text);
        let length = length(&counts);
        let at = slot as usize;
        if self.lengths.len() <= at {
            self.lengths.resize(at + 1, 0);
        }
        self.lengths[at] = length;
        self.texts += 1;
        self.total += u64::from(length);
        for (word, count) in counts {
            let postings = self.words.entry(word.into()).or_default();
            // The usual case is a slot behind all others.
            let place = match postings.slots.last() {
                Some(last) if *last >= slot => postings.slots.partition_point(|other| *other < slot),
                _ => postings.slots.len(),
            };
            postings.slots.insert(place, slot);
            postings.counts.insert(place, count);
        }
    }

    /// `text` is what was inserted for the slot.
    pub(super) fn remove(&mut self, slot: u32, text: &str) {
        let Some(length) = self.lengths.get_mut(slot as usize) else { return };
        self.texts -= 1;
        self.total -= u64::from(std::mem::take(length));
        for word in counts(text).into_keys() {
            let Some(postings) = self.words.get_mut(word.as_str()) else { continue };
            if let Ok(place) = postings.slots.binary_search(&slot) {
                postings.slots.remove(place);
                postings.counts.remove(place);
            }
            if postings.slots.is_empty() {
                self.words.remove(word.as_str());
            }
        }
    }

    /// Different words.
    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    pub(super) fn texts(&self) -> usize {
        self.texts
    }

    pub(super) fn average(&self) -> f32 {
        if self.texts == 0 { 0.0 } else { self.total as f32 / self.texts as f32 }
    }

    /// How many texts have each word.
    pub(super) fn having(&self, terms: &[String]) -> Vec<usize> {
        terms
            .iter()
            .map(|term| self.words.get(term.as_str()).map_or(0, |postings| postings.slots.len()))
            .collect()
    }

    /// For each slot, 0 to 1: its BM25 by the most that these words could give.
    pub(super) fn scores(&self, terms: &[String], slots: usize) -> Vec<f32> {
        let mut scores = vec![0.0_f32; slots];
        let having = self.having(terms);
        let rarity: Vec<f32> = having.iter().map(|having| idf(self.texts, *having)).collect();
        let most = SATURATION * rarity.iter().sum::<f32>();
        let average = self.average();
        let penalties: Vec<f32> = (0..=u8::MAX).map(|length| penalty(length, average)).collect();
        // No division per posting: a word stands seldom more than a few times in a short text.
        let weights: Vec<[f32; 256]> = (0..COUNTED)
            .map(|count| std::array::from_fn(|length| weight(count, penalties[length])))
            .collect();
        for (term, rarity) in terms.iter().zip(&rarity) {
            let Some(postings) = self.words.get(term.as_str()) else { continue };
            let share = rarity / most;
            for (slot, count) in postings.slots.iter().zip(&postings.counts) {
                let slot = *slot as usize;
                let length = usize::from(self.lengths[slot]);
                scores[slot] += share
                    * match weights.get(usize::from(*count)) {
                        Some(weights) => weights[length],
                        None => weight(*count, penalties[length]),
                    };
            }
        }
        scores
    }
}
