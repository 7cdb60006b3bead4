//! What speaks for and against agents: own experience, probes, and what others attest (spec/discovery.md §6).

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::bytes::{Reader, put_short};
use crate::card::{AgentKey, signature_holds};
use crate::plan::Latencies;
use crate::rank::Evidence;
use crate::tag::Tag;

/// Most agents that a book has experience with; the one that was met least recently makes room.
pub const MAX_AGENTS: usize = 4_096;

/// Most attestations about one agent; those of trusted keys push others out, then the newest stay.
pub const MAX_ATTESTATIONS: usize = 16;

/// After so many seconds an experience counts half: a week.
pub const HALF_LIFE: u64 = 7 * 24 * 3_600;

/// An attestation counts for so many seconds: 30 days.
pub const ATTESTATION_LIFE: u64 = 30 * 24 * 3_600;

/// Failures in a row after which an agent is left alone for a while, which means: tried after all others. The first one
/// suffices: whoever was killed should cost one call and not three.
pub const BREAK_AFTER: u32 = 1;

/// How long that is at first, in seconds; it doubles with each further failure, up to [`BREAK_MOST`].
pub const BREAK_FOR: u64 = 10;

/// The longest time an agent is left alone, in seconds.
pub const BREAK_MOST: u64 = 600;

const MAGIC: [u8; 4] = *b"PSAT";
const DOMAIN: &[u8] = b"pilotage-attest-v1\0";

/// Longest book in a file, in bytes.
pub const MAX_BOOK: usize = MAX_AGENTS * 256;

/// Longest attestation, in bytes.
pub const MAX_ATTESTATION: usize = 4 + 1 + 32 + 32 + 8 + 1 + crate::tag::MAX_TAG + 64;

/// Somebody's signed word that an agent did what it declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    /// About whom.
    pub subject: AgentKey,
    /// By whom.
    pub signer: AgentKey,
    /// Seconds since 1970.
    pub issued: u64,
    /// Which capability.
    pub tag: Tag,
}

impl Attestation {
    /// What is signed.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(1);
        bytes.extend_from_slice(&self.subject);
        bytes.extend_from_slice(&self.signer);
        bytes.extend_from_slice(&self.issued.to_be_bytes());
        put_short(&mut bytes, self.tag.as_str());
        bytes
    }

    /// The bytes with the signer's signature.
    pub fn sign(&self, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Vec<u8> {
        let mut bytes = self.encode();
        let signature = sign(&[DOMAIN, &bytes].concat());
        bytes.extend_from_slice(&signature);
        bytes
    }

    /// Reads and checks one; `None` for what is none, has a wrong signature, or praises its own signer.
    #[must_use]
    pub fn verify(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_ATTESTATION {
            return None;
        }
        let (signed, signature) = bytes.split_last_chunk::<64>()?;
        let mut reader = Reader::new(signed);
        if reader.array() != Some(MAGIC) || reader.u8() != Some(1) {
            return None;
        }
        let (subject, signer, issued) = (reader.array()?, reader.array()?, reader.u64()?);
        let tag = reader.short_text()?.parse().ok()?;
        let good = reader.left() == 0
            && subject != signer
            && signature_holds(&signer, &[DOMAIN, signed].concat(), signature);
        good.then_some(Self { subject, signer, issued, tag })
    }
}

#[derive(Debug, Clone, Default)]
struct Record {
    succeeded: f32,
    failed: f32,
    answered: f32,
    missed: f32,
    /// When the numbers were brought up to date, in seconds since 1970.
    at: u64,
    /// When it was met last, for making room.
    met: u64,
    in_a_row: u32,
    left_alone_until: u64,
    /// Signer, when, whether we trust the signer.
    attested: Vec<(AgentKey, u64, bool)>,
}

/// All that is known about agents apart from their own words.
#[derive(Debug, Default)]
pub struct Book {
    records: HashMap<AgentKey, Record>,
    meetings: u64,
    /// How long they took; not written into a file.
    pub latencies: Latencies,
}

/// What came of trying an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Experience {
    /// A call succeeded.
    Succeeded,
    /// A call failed.
    Failed,
    /// A probe or query was answered.
    Answered,
    /// It was not.
    Missed,
}

impl Book {
    /// Agents in the book.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nobody was met yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Writes down what came of trying `agent` at `now`, in seconds since 1970.
    pub fn note(&mut self, agent: &AgentKey, what: Experience, now: u64) {
        let record = self.record(agent, now);
        match what {
            Experience::Succeeded => record.succeeded += 1.0,
            Experience::Failed => record.failed += 1.0,
            Experience::Answered => record.answered += 1.0,
            Experience::Missed => record.missed += 1.0,
        }
        match what {
            Experience::Succeeded | Experience::Answered => {
                record.in_a_row = 0;
                record.left_alone_until = 0;
            }
            Experience::Failed | Experience::Missed => {
                record.in_a_row = record.in_a_row.saturating_add(1);
                if let Some(more) = record.in_a_row.checked_sub(BREAK_AFTER) {
                    let pause = (BREAK_FOR << more.min(10)).min(BREAK_MOST);
                    record.left_alone_until = now.saturating_add(pause);
                }
            }
        }
    }

    /// Takes a verified attestation; `trusted` says whether we trust its signer. Those that are over, from the future, or
    /// older than one of the same signer change nothing.
    pub fn attest(&mut self, attestation: &Attestation, trusted: bool, now: u64) {
        let over = attestation.issued.saturating_add(ATTESTATION_LIFE) <= now;
        if over || attestation.issued > now.saturating_add(crate::card::MAX_SKEW) {
            return;
        }
        let attested = &mut self.record(&attestation.subject, now).attested;
        match attested.iter_mut().find(|(signer, ..)| *signer == attestation.signer) {
            Some(known) => (known.1, known.2) = (known.1.max(attestation.issued), trusted),
            None => attested.push((attestation.signer, attestation.issued, trusted)),
        }
        attested.sort_by_key(|(signer, issued, trusted)| (!*trusted, u64::MAX - *issued, *signer));
        attested.truncate(MAX_ATTESTATIONS);
    }

    /// All of it about one agent, as it counts at `now`.
    #[must_use]
    pub fn evidence(&self, agent: &AgentKey, now: u64) -> Evidence {
        let Some(record) = self.records.get(agent) else { return Evidence::default() };
        let fade = faded(now.saturating_sub(record.at));
        let counts = |issued: &u64| issued.saturating_add(ATTESTATION_LIFE) > now;
        let by = |wanted: bool| {
            let those =
                record.attested.iter().filter(|(_, issued, trusted)| *trusted == wanted && counts(issued));
            those.count() as u16
        };
        Evidence {
            succeeded: record.succeeded * fade,
            failed: record.failed * fade,
            probes_answered: record.answered * fade,
            probes_missed: record.missed * fade,
            attested_by_trusted: by(true),
            attested_by_others: by(false),
        }
    }

    /// For how many more seconds an agent is better left alone, because it failed [`BREAK_AFTER`] times in a row.
    #[must_use]
    pub fn left_alone_for(&self, agent: &AgentKey, now: u64) -> Option<u64> {
        let until = self.records.get(agent)?.left_alone_until;
        until.checked_sub(now).filter(|left| *left > 0)
    }

    /// The book as JSON, for [`Book::read`]. Attestations are not in it: they are verified when they come.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut rows: Vec<(&AgentKey, &Record)> = self.records.iter().collect();
        rows.sort_by_key(|(key, record)| (record.met, **key));
        let rows: Vec<Row> = rows.into_iter().map(|(key, record)| Row::of(key, record)).collect();
        serde_json::to_vec(&rows).unwrap_or_default()
    }

    /// Reads what [`Book::write`] wrote; `None` for anything else.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_BOOK {
            return None;
        }
        let rows: Vec<Row> = serde_json::from_slice(bytes).ok()?;
        if rows.len() > MAX_AGENTS {
            return None;
        }
        let mut book = Self::default();
        for row in rows {
            book.meetings += 1;
            let (key, record) = row.record(book.meetings)?;
            book.records.insert(key, record);
        }
        Some(book)
    }

    /// The record of an agent with faded numbers; the one that was met least recently makes room.
    fn record(&mut self, agent: &AgentKey, now: u64) -> &mut Record {
        if !self.records.contains_key(agent) && self.records.len() >= MAX_AGENTS {
            let oldest =
                self.records.iter().min_by_key(|(key, record)| (record.met, **key)).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                self.records.remove(&oldest);
            }
        }
        self.meetings += 1;
        let record = self.records.entry(*agent).or_insert_with(|| Record { at: now, ..Record::default() });
        let fade = faded(now.saturating_sub(record.at));
        for number in [&mut record.succeeded, &mut record.failed, &mut record.answered, &mut record.missed] {
            *number *= fade;
        }
        record.at = record.at.max(now);
        record.met = self.meetings;
        record
    }
}

/// A record in a file.
#[derive(Serialize, Deserialize)]
struct Row {
    key: String,
    succeeded: f32,
    failed: f32,
    answered: f32,
    missed: f32,
    at: u64,
    in_a_row: u32,
    left_alone_until: u64,
}

impl Row {
    fn of(key: &AgentKey, record: &Record) -> Self {
        Self {
            key: blake3::Hash::from_bytes(*key).to_string(),
            succeeded: record.succeeded,
            failed: record.failed,
            answered: record.answered,
            missed: record.missed,
            at: record.at,
            in_a_row: record.in_a_row,
            left_alone_until: record.left_alone_until,
        }
    }

    fn record(self, met: u64) -> Option<(AgentKey, Record)> {
        let numbers = [self.succeeded, self.failed, self.answered, self.missed];
        let good = numbers.iter().all(|number| (0.0..=1e9).contains(number));
        // 32 bytes in hex, like a hash.
        let key = blake3::Hash::from_hex(&self.key).ok().filter(|_| good)?;
        let record = Record {
            succeeded: self.succeeded,
            failed: self.failed,
            answered: self.answered,
            missed: self.missed,
            at: self.at,
            met,
            in_a_row: self.in_a_row,
            left_alone_until: self.left_alone_until,
            attested: Vec::new(),
        };
        Some((*key.as_bytes(), record))
    }
}

fn faded(seconds: u64) -> f32 {
    0.5_f32.powf(seconds as f32 / HALF_LIFE as f32)
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;

    fn key(number: u16) -> AgentKey {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        key
    }

    #[test]
    fn experience_fades() {
        let mut book = Book::default();
        for _ in 0..4 {
            book.note(&key(1), Experience::Succeeded, 0);
        }
        let value = |book: &Book, now| book.evidence(&key(1), now).value();
        assert!(value(&book, 0) > 0.7);
        assert!(value(&book, HALF_LIFE) < value(&book, 0));
        assert!((value(&book, 100 * HALF_LIFE) - 0.5).abs() < 0.01);
    }

    #[test]
    fn who_fails_again_and_again_is_left_alone_for_longer() {
        let mut book = Book::default();
        let mut pauses = Vec::new();
        for _ in 0..BREAK_AFTER + 8 {
            book.note(&key(1), Experience::Failed, 100);
            pauses.push(book.left_alone_for(&key(1), 100).unwrap_or(0));
        }
        assert_eq!(pauses[..5], [10, 20, 40, 80, 160]);
        assert_eq!(pauses.last(), Some(&BREAK_MOST));
        book.note(&key(1), Experience::Succeeded, 101);
        assert_eq!(book.left_alone_for(&key(1), 101), None);
    }

    #[test]
    fn the_book_is_bounded_and_keeps_whom_it_met_last() {
        let mut book = Book::default();
        for number in 0..MAX_AGENTS as u16 {
            book.note(&key(number), Experience::Answered, 1);
        }
        book.note(&key(0), Experience::Answered, 1);
        book.note(&key(60_000), Experience::Answered, 1);
        assert_eq!(book.len(), MAX_AGENTS);
        assert!(book.evidence(&key(0), 1).probes_answered > 1.0);
        assert_eq!(book.evidence(&key(1), 1), Evidence::default());
    }

    #[test]
    fn a_book_is_written_and_read() {
        let mut book = Book::default();
        for number in 0..MAX_AGENTS as u16 {
            book.note(&key(number), Experience::Failed, u64::MAX / 2);
        }
        book.note(&key(1), Experience::Succeeded, u64::MAX / 2);
        let bytes = book.write();
        assert!(bytes.len() <= MAX_BOOK, "{}", bytes.len());
        let mut again = Book::read(&bytes).unwrap();
        assert_eq!(again.write(), bytes);
        again.note(&key(60_000), Experience::Answered, 1);
        assert_eq!(again.evidence(&key(0), 1), Evidence::default(), "the order of meetings survives");
        assert!(again.evidence(&key(1), u64::MAX / 2).succeeded > 0.9);
        for bad in [&b"{}"[..], b"[{}]", b"", &bytes[..bytes.len() - 1]] {
            assert!(Book::read(bad).is_none());
        }
        let text = String::from_utf8(Book::default().write()).unwrap();
        assert_eq!(text, "[]");
    }

    #[test]
    fn attestations_are_signed_bounded_and_not_about_oneself() {
        let signing = SigningKey::from_bytes(&[7; 32]);
        let signer = signing.verifying_key().to_bytes();
        let sign = |message: &[u8]| signing.sign(message).to_bytes();
        let word = Attestation { subject: key(1), signer, issued: 100, tag: "a.b".parse().unwrap() };
        let bytes = word.sign(sign);
        assert_eq!(Attestation::verify(&bytes), Some(word.clone()));
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_eq!(Attestation::verify(&other), None, "{at}");
        }
        let own = Attestation { subject: signer, ..word.clone() };
        assert_eq!(Attestation::verify(&own.sign(sign)), None);

        let mut book = Book::default();
        for number in 0..100 {
            book.attest(&Attestation { signer: key(1_000 + number), ..word.clone() }, false, 100);
        }
        book.attest(&word, true, 100);
        book.attest(&Attestation { issued: 500, ..word.clone() }, true, 100);
        let evidence = book.evidence(&key(1), 100);
        assert_eq!(
            evidence.attested_by_trusted, 1,
            "the same signer counts once, and a trusted one has room"
        );
        assert_eq!(usize::from(evidence.attested_by_others), MAX_ATTESTATIONS - 1);
        assert_eq!(book.evidence(&key(1), 100 + ATTESTATION_LIFE), Evidence::default());
    }
}
