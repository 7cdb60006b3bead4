//! Synthetic agents, the labelled set, and groups of which half are dead: shared by the example and the tests.
#![allow(dead_code, unreachable_pub, reason = "each user takes a part")]

pub mod dead;
pub mod labelled;

use ed25519_dalek::{Signer, SigningKey};
use pilotage_discover::embed::{DIMENSIONS, Embedding};
use pilotage_discover::{Card, Declaration, SignedCard, Skill, Tag};
use pilotage_wire::addressing;

/// Virtual time: seconds since 1970.
pub const NOW: u64 = 1_800_000_000;

/// The model of synthetic vectors.
pub const MODEL: &str = "synthetic";

pub const DOMAINS: usize = 40;
pub const FIELDS: usize = 20;
const LEAVES: usize = 10;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Small numbers more often than large ones (about Zipf's law).
    pub fn skewed(&mut self, bound: usize) -> usize {
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        ((bound as f64).powf(unit) - 1.0) as usize % bound
    }

    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    }
}

/// The tag of three numbers.
pub fn tag(domain: usize, field: usize, leaf: usize) -> String {
    format!("domain{domain}.field{field}.leaf{leaf}")
}

/// A word: two of three come from the field, the others from a vocabulary of all.
pub fn word(random: &mut Random, domain: usize, field: usize) -> String {
    if random.below(3) < 2 {
        format!("w{domain}x{field}x{}", random.skewed(300))
    } else {
        format!("all{}", random.skewed(20_000))
    }
}

/// A synthetic agent.
pub struct Agent {
    pub card: SignedCard,
    /// Its fields of interest: the groups that it joins.
    pub fields: Vec<(usize, usize)>,
    pub words: Vec<String>,
}

/// The agent with this number; the same each time.
pub fn agent(number: u64, with_vector: bool) -> Agent {
    let mut random = Random(number.wrapping_mul(0xD134_2543_DE82_EF95) ^ 0xA5);
    let (domain, field) = (random.skewed(DOMAINS), random.skewed(FIELDS));
    let mut fields = vec![(domain, field)];
    let mut names = vec![tag(domain, field, random.below(LEAVES))];
    for _ in 0..random.below(5) {
        let other = if random.below(5) < 4 { (domain, field) } else { (domain, random.below(FIELDS)) };
        let name = tag(other.0, other.1, random.below(LEAVES));
        if !names.contains(&name) {
            names.push(name);
        }
        if !fields.contains(&other) {
            fields.push(other);
        }
    }
    let mut summary = String::new();
    let mut words = Vec::new();
    for _ in 0..10 + random.below(12) {
        let word = word(&mut random, domain, field);
        if summary.len() + 1 + word.len() <= 200 {
            summary.push_str(&word);
            summary.push(' ');
            words.push(word);
        }
    }
    let skills =
        names.iter().map(|name| Skill { tag: name.parse::<Tag>().expect("a tag"), idempotent: true });
    let mut declaration = Declaration::new(skills.collect(), summary.trim()).expect("in bounds");
    if with_vector {
        declaration = declaration.with_vector(vector(&mut random, domain * FIELDS + field));
    }
    Agent { card: sign(number, declaration), fields, words }
}

/// A direction near the centre of a field.
pub fn vector(random: &mut Random, centre: usize) -> Embedding {
    let mut around = Random(centre as u64);
    let floats: Vec<f32> = (0..DIMENSIONS).map(|_| around.float() + 0.8 * random.float()).collect();
    Embedding::from_floats(MODEL, &floats).expect("a direction")
}

/// A card of the agent with this number.
pub fn sign(number: u64, declaration: Declaration) -> SignedCard {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    let key = SigningKey::from_bytes(&seed);
    let public = key.verifying_key().to_bytes();
    let address = addressing::first_address(pilotage_wire::NetworkId(0), &public).expect("an address");
    let card = Card {
        key: public,
        address,
        seq: 1,
        issued: NOW - 100,
        life: 3_600,
        endpoints: Vec::new(),
        declaration,
    };
    card.sign(|message| key.sign(message).to_bytes()).expect("in bounds")
}
