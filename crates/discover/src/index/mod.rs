//! The index of one holder: all cards it knows, found by tag, words and vector.
//!
//! # Contract
//!
//! * Sans-IO: `now` (seconds since 1970) comes in, nothing is read or started here.
//! * One card per key. Of two cards the higher sequence counts, at equal ones the higher BLAKE3 of the bytes.
//! * Bounded by [`Limits`]; at the bound a newcomer is refused, nobody is thrown out. [`Index::expire`] makes room.
//! * A search reads only; it costs at most one pass over all agents (and one over the posting lists of at most
//!   [`MAX_QUERY_TERMS`](crate::query::MAX_QUERY_TERMS) words).

mod tags;
pub(crate) mod text;
mod vectors;

use std::borrow::Cow;
use std::collections::HashMap;

use roaring::RoaringBitmap;

use crate::card::{AgentKey, SignedCard};
use crate::query::Query;
use crate::rank::{self, Evidence, Explanation, Liveness, TagMatch, TextMatch};
use crate::tag::Tag;
use crate::top::Top;

pub use vectors::MAX_MODELS;

/// Bounds of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most agents.
    pub agents: usize,
}

impl Default for Limits {
    /// 200,000 agents: some 300 MB with vectors.
    fn default() -> Self {
        Self { agents: 200_000 }
    }
}

/// What came of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The first of its key.
    New,
    /// It took the place of an older one.
    Updated,
    /// It was there already.
    Same,
    /// A newer one is there.
    Older,
}

/// The index is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the index holds {0} agents, and takes no more")]
pub struct Full(pub usize);

/// One agent that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Its card.
    pub card: SignedCard,
    /// Why it was found, and why at this place.
    pub why: Explanation,
}

/// How common the query's words are among a holder's texts. Whoever merges answers adds these up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Texts.
    pub texts: u64,
    /// Words of all texts.
    pub words: u64,
    /// How many texts have each word of the query, in the order of [`Query::terms`].
    pub having: Vec<u64>,
}

/// What a search gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The best first.
    pub hits: Vec<Hit>,
    /// Agents that fitted at all.
    pub fitting: usize,
    /// How common the words are here.
    pub statistics: Statistics,
}

#[derive(Debug)]
struct Entry {
    key: AgentKey,
    seq: u64,
    bytes: Box<[u8]>,
    evidence: Evidence,
}

/// What a search reads of every agent.
#[derive(Debug, Clone, Copy)]
struct Hot {
    /// Seconds since 1970 (until 2106); 0 for never.
    seen: u32,
    expires: u32,
    evidence: f32,
    dead: bool,
    /// Somebody is in this slot: so that a pass over all need not look at [`Entry`], which is eight times as large.
    present: bool,
}

/// The index.
#[derive(Debug, Default)]
pub struct Index {
    limits: Limits,
    slots: HashMap<AgentKey, u32>,
    entries: Vec<Option<Entry>>,
    hot: Vec<Hot>,
    free: Vec<u32>,
    tags: tags::Tags,
    texts: text::Texts,
    vectors: vectors::Vectors,
}

/// A tag of the query and what it was widened to.
struct Wanted {
    wanted: Tag,
    used: Tag,
    widened: u8,
}

impl Index {
    /// An empty one.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Agents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether it holds nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Different tags with their ancestors, words and models: what grows beside the agents.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.tags.len(), self.texts.len(), self.vectors.models())
    }

    /// All tags (and ancestors) with the number of agents below each.
    pub fn tags(&self) -> impl Iterator<Item = (&str, u64)> {
        self.tags.names()
    }

    /// Takes a card. `seen` is when the agent was heard of last, in seconds since 1970, if it was.
    ///
    /// # Errors
    /// The index is full and does not know the key.
    pub fn put(&mut self, card: &SignedCard, seen: Option<u64>) -> Result<Put, Full> {
        let (seq, key) = (card.card().seq, card.card().key);
        let mut evidence = Evidence::default();
        let mut put = Put::New;
        let mut hot = Hot {
            seen: 0,
            expires: seconds(card.card().expires()),
            evidence: evidence.value(),
            dead: false,
            present: true,
        };
        if let Some(slot) = self.slots.get(&key).copied() {
            if let Some(entry) = &self.entries[slot as usize] {
                let newer = seq > entry.seq
                    || seq == entry.seq
                        && blake3::hash(card.bytes()).as_bytes() > blake3::hash(&entry.bytes).as_bytes();
                if !newer {
                    let same = *entry.bytes == *card.bytes();
                    self.saw(&key, seen.unwrap_or(0));
                    return Ok(if same { Put::Same } else { Put::Older });
                }
                evidence = entry.evidence;
            }
            hot = Hot { expires: hot.expires, ..self.hot[slot as usize] };
            self.remove(&key);
            put = Put::Updated;
        } else if self.slots.len() >= self.limits.agents {
            return Err(Full(self.slots.len()));
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.hot.push(hot);
            (self.entries.len() - 1) as u32
        });
        let declaration = &card.card().declaration;
        self.tags.insert(slot, declaration.skills());
        self.texts.insert(slot, &declaration.text());
        if let Some(vector) = declaration.vector() {
            self.vectors.insert(slot, vector);
        }
        self.slots.insert(key, slot);
        self.hot[slot as usize] = hot;
        self.entries[slot as usize] = Some(Entry { key, seq, bytes: card.bytes().into(), evidence });
        self.saw(&key, seen.unwrap_or(0));
        Ok(put)
    }

    /// Forgets an agent; whether it was there.
    pub fn remove(&mut self, key: &AgentKey) -> bool {
        let Some(slot) = self.slots.remove(key) else { return false };
        let Some(entry) = self.entries[slot as usize].take() else { return false };
        self.hot[slot as usize].present = false;
        self.free.push(slot);
        // It was read from these bytes when it came.
        if let Ok(card) = SignedCard::read_verified(&entry.bytes) {
            let declaration = &card.card().declaration;
            self.tags.remove(slot, declaration.skills());
            self.texts.remove(slot, &declaration.text());
            if let Some(vector) = declaration.vector() {
                self.vectors.remove(slot, vector);
            }
        }
        true
    }

    /// The card of an agent.
    #[must_use]
    pub fn get(&self, key: &AgentKey) -> Option<SignedCard> {
        let slot = *self.slots.get(key)? as usize;
        SignedCard::read_verified(&self.entries[slot].as_ref()?.bytes).ok()
    }

    /// At most `most` cards.
    pub fn cards(&self, most: usize) -> impl Iterator<Item = SignedCard> {
        let bytes = self.entries.iter().flatten().map(|entry| &entry.bytes);
        bytes.filter_map(|bytes| SignedCard::read_verified(bytes).ok()).take(most)
    }

    /// The agent was heard of.
    pub fn saw(&mut self, key: &AgentKey, now: u64) {
        if let Some(slot) = self.slots.get(key) {
            let hot = &mut self.hot[*slot as usize];
            if seconds(now) > hot.seen {
                hot.seen = seconds(now);
                hot.dead = false;
            }
        }
    }

    /// The agent did not answer. It stays dead until it is heard of later than before.
    pub fn missed(&mut self, key: &AgentKey) {
        if let Some(slot) = self.slots.get(key) {
            self.hot[*slot as usize].dead = true;
        }
    }

    /// What speaks for and against an agent.
    pub fn set_evidence(&mut self, key: &AgentKey, evidence: Evidence) {
        if let Some(slot) = self.slots.get(key).map(|slot| *slot as usize)
            && let Some(entry) = &mut self.entries[slot]
        {
            entry.evidence = evidence;
            self.hot[slot].evidence = evidence.value();
        }
    }

    /// Forgets at most `most` agents whose cards are over; how many it were.
    pub fn expire(&mut self, now: u64, most: usize) -> usize {
        let now = seconds(now);
        let over: Vec<AgentKey> = self
            .entries
            .iter()
            .zip(&self.hot)
            .filter_map(|(entry, hot)| entry.as_ref().filter(|_| hot.expires <= now))
            .map(|entry| entry.key)
            .take(most)
            .collect();
        over.iter().filter(|key| self.remove(key)).count()
    }

    /// The agents that fit best at `now` (seconds since 1970).
    ///
    /// If nobody has all of the tags, the last words of tags are left out one by one, and the explanation says so.
    #[must_use]
    pub fn search(&self, query: &Query, now: u64) -> Found {
        let terms = query.terms();
        let having = self.texts.having(&terms);
        let statistics = Statistics {
            texts: self.texts.texts() as u64,
            words: (self.texts.average() * self.texts.texts() as f32) as u64,
            having: having.iter().map(|having| *having as u64).collect(),
        };
        let (wanted, filter) = self.filter(query.tags());
        if !query.tags().is_empty() && filter.as_ref().is_none_or(|filter| filter.is_empty()) {
            return Found { hits: Vec::new(), fitting: 0, statistics };
        }
        let slots = self.entries.len();
        let scores = (!terms.is_empty()).then(|| self.texts.scores(&terms, slots));
        let dense = filter.as_ref().map(|filter| dense(filter, slots));
        let cosines = query.vector().map(|vector| self.vectors.cosines(vector, slots, dense.as_deref()));
        let widened = wanted.iter().map(|wanted| u32::from(wanted.widened)).sum();
        let now = seconds(now);
        let matched = |slot: usize| {
            let text = scores.as_ref().map(|scores| scores[slot]);
            let cosine =
                cosines.as_ref().map(|cosines| cosines[slot]).map(|c| if c.is_nan() { 0.0 } else { c });
            rank::matched(filter.is_some(), widened, text, cosine)
        };
        // Who is asked for tags alone fits as well as all others who have them.
        let same = (scores.is_none() && cosines.is_none())
            .then(|| rank::matched(filter.is_some(), widened, None, None));
        let mut top = Top::new(query.limit());
        let mut fitting = 0;
        let mut look = |slot: u32| {
            let hot = &self.hot[slot as usize];
            let fits = same.unwrap_or_else(|| matched(slot as usize));
            if fits > 0.0 && hot.expires > now {
                fitting += 1;
                top.offer(fits * hot.liveness(now).value() * hot.evidence, slot);
            }
        };
        match &filter {
            Some(filter) => {
                let (mut slots, mut some) = (filter.iter(), [0; 256]);
                loop {
                    let some = slots.next_many(&mut some);
                    if some.is_empty() {
                        break;
                    }
                    some.iter().for_each(|slot| look(*slot));
                }
            }
            None => {
                let all = self.hot.iter().zip(0_u32..).filter(|(hot, _)| hot.present);
                all.for_each(|(_, slot)| look(slot));
            }
        }
        let explain =
            |slot: u32| self.explain(slot, now, &wanted, &terms, &having, matched(slot as usize), &cosines);
        let hits = top.into_sorted().into_iter().filter_map(explain).collect();
        Found { hits, fitting, statistics }
    }

    /// Who has all of the tags, each widened as little as possible; `None` where nothing is asked or found.
    fn filter(&self, tags: &[Tag]) -> (Vec<Wanted>, Option<Cow<'_, RoaringBitmap>>) {
        let whole = |tag: &Tag| Wanted { wanted: tag.clone(), used: tag.clone(), widened: 0 };
        let mut wanted: Vec<Wanted> = tags.iter().map(whole).collect();
        loop {
            let found = self.all_of(&wanted);
            if found.as_ref().is_some_and(|found| !found.is_empty()) {
                return (wanted, found);
            }
            // The longest loses its last word: at most as many rounds as there are words.
            let Some(longest) = wanted.iter_mut().max_by_key(|wanted| wanted.used.words().count()) else {
                return (wanted, None);
            };
            let Some(parent) = longest.used.parent() else { return (wanted, None) };
            longest.used = parent;
            longest.widened += 1;
        }
    }

    /// Who has all of these tags; for a single one as it stands in the index, without a copy.
    fn all_of(&self, wanted: &[Wanted]) -> Option<Cow<'_, RoaringBitmap>> {
        let mut all =
            wanted.iter().map(|wanted| self.tags.under(&wanted.used)).collect::<Option<Vec<_>>>()?;
        all.sort_by_key(|slots| slots.len());
        let (first, rest) = all.split_first()?;
        let mut both = Cow::Borrowed(*first);
        for other in rest {
            *both.to_mut() &= *other;
        }
        Some(both)
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one search")]
    fn explain(
        &self,
        slot: u32,
        now: u32,
        wanted: &[Wanted],
        terms: &[String],
        having: &[usize],
        matched: f32,
        cosines: &Option<Vec<f32>>,
    ) -> Option<Hit> {
        let entry = self.entries[slot as usize].as_ref()?;
        let card = SignedCard::read_verified(&entry.bytes).ok()?;
        let declaration = &card.card().declaration;
        let tags = wanted.iter().filter_map(|wanted| {
            let has = declaration.skill_for(&wanted.used)?.tag.clone();
            Some(TagMatch { wanted: wanted.wanted.clone(), has, widened: wanted.widened })
        });
        let text = (!terms.is_empty()).then(|| {
            let texts = self.texts.texts();
            text_match(&declaration.text(), terms, having, texts, self.texts.average())
        });
        let cosine = cosines.as_ref().map(|cosines| cosines[slot as usize]).filter(|cosine| !cosine.is_nan());
        let why = Explanation {
            tags: tags.collect(),
            text,
            vector: cosine,
            matched,
            liveness: self.hot[slot as usize].liveness(now),
            evidence: entry.evidence,
        };
        Some(Hit { card, why })
    }
}

impl Hot {
    #[inline]
    fn liveness(&self, now: u32) -> Liveness {
        if self.dead {
            Liveness::Dead
        } else if self.seen == 0 {
            Liveness::Unknown
        } else {
            Liveness::Seen(u64::from(now.saturating_sub(self.seen)))
        }
    }
}

/// How the words of one text fit, by the statistics of a collection. The index and whoever merges use the same.
pub(crate) fn text_match(
    text: &str,
    terms: &[String],
    having: &[usize],
    texts: usize,
    average: f32,
) -> TextMatch {
    let counts = text::counts(text);
    let penalty = text::penalty(text::length(&counts), average);
    let (mut value, mut most) = (0.0, 0.0);
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (term, having) in terms.iter().zip(having) {
        let rarity = text::idf(texts, *having);
        most += rarity * text::SATURATION;
        match counts.get(term) {
            Some(count) => {
                value += rarity * text::weight(*count, penalty);
                found.push(term.clone());
            }
            None => missing.push(term.clone()),
        }
    }
    TextMatch { value: if most > 0.0 { value / most } else { 0.0 }, found, missing }
}

/// Seconds since 1970 in four bytes, until 2106.
fn seconds(time: u64) -> u32 {
    u32::try_from(time).unwrap_or(u32::MAX)
}

/// One bit per slot.
fn dense(slots: &RoaringBitmap, count: usize) -> Vec<u64> {
    let mut bits = vec![0_u64; count.div_ceil(64)];
    for slot in slots {
        if let Some(word) = bits.get_mut(slot as usize / 64) {
            *word |= 1 << (slot % 64);
        }
    }
    bits
}

#[cfg(test)]
mod tests;
