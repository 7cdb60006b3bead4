//! Vectors: all of one model in one array, each compared with the query's. Exact, and quick enough for some hundred
//! thousand agents (spec/decisions/0029-discovery.md).

use std::collections::HashMap;

use fearless_simd::{Level, Simd, dispatch};

use crate::embed::{DIMENSIONS, Embedding, dot_wide, inverse_norm, widened};

/// Most models; vectors of further ones are kept in their cards, and not compared.
pub const MAX_MODELS: usize = 16;

#[derive(Debug, Default)]
struct Model {
    values: Vec<i8>,
    norms: Vec<f32>,
    slots: Vec<u32>,
    places: HashMap<u32, usize>,
}

/// The index.
#[derive(Debug, Default)]
pub(super) struct Vectors(HashMap<Box<str>, Model>);

impl Vectors {
    pub(super) fn insert(&mut self, slot: u32, vector: &Embedding) {
        if !self.0.contains_key(vector.model()) {
            if self.0.len() >= MAX_MODELS {
                return;
            }
            self.0.insert(vector.model().into(), Model::default());
        }
        let Some(model) = self.0.get_mut(vector.model()) else { return };
        model.places.insert(slot, model.slots.len());
        model.slots.push(slot);
        model.norms.push(inverse_norm(vector.values()));
        model.values.extend_from_slice(vector.values());
    }

    pub(super) fn remove(&mut self, slot: u32, vector: &Embedding) {
        let Some(model) = self.0.get_mut(vector.model()) else { return };
        let Some(place) = model.places.remove(&slot) else { return };
        let last = model.slots.len() - 1;
        if place != last {
            model.values.copy_within(last * DIMENSIONS.., place * DIMENSIONS);
            model.places.insert(model.slots[last], place);
        }
        model.values.truncate(last * DIMENSIONS);
        model.slots.swap_remove(place);
        model.norms.swap_remove(place);
        if model.slots.is_empty() {
            self.0.remove(vector.model());
        }
    }

    pub(super) fn models(&self) -> usize {
        self.0.len()
    }

    /// The cosine of each slot that has a vector of this model; NaN for the others.
    pub(super) fn cosines(&self, query: &Embedding, slots: usize, wanted: Option<&[u64]>) -> Vec<f32> {
        let mut cosines = vec![f32::NAN; slots];
        if let Some(model) = self.0.get(query.model()) {
            // The same loop for each kind of CPU; which kind this one is, is looked up once.
            dispatch!(Level::new(), simd => model.compare(simd, query, wanted, &mut cosines));
        }
        cosines
    }
}

impl Model {
    #[inline(always)]
    fn compare<S: Simd>(&self, _: S, query: &Embedding, wanted: Option<&[u64]>, cosines: &mut [f32]) {
        let (norm, query) = (inverse_norm(query.values()), widened(query.values()));
        let (vectors, _) = self.values.as_chunks::<DIMENSIONS>();
        for ((vector, slot), own) in vectors.iter().zip(&self.slots).zip(&self.norms) {
            let slot = *slot as usize;
            if wanted.is_none_or(|wanted| wanted[slot / 64] >> (slot % 64) & 1 == 1) {
                cosines[slot] = dot_wide(&query, vector) as f32 * own * norm;
            }
        }
    }
}
