//! The best few of many.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// A score and whose it is; the order is by score, then the lower number first.
#[derive(PartialEq)]
struct Scored(f32, u32);

impl Eq for Scored {}

impl PartialOrd for Scored {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scored {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0).then(other.1.cmp(&self.1))
    }
}

/// Keeps at most so many.
pub(crate) struct Top {
    most: usize,
    worst_first: BinaryHeap<Reverse<Scored>>,
    /// What a newcomer must exceed once there are `most`.
    least: f32,
}

impl Top {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, worst_first: BinaryHeap::with_capacity(most + 1), least: f32::NEG_INFINITY }
    }

    /// Numbers must come in rising order, so that of equal scores the first ones stay.
    #[inline]
    pub(crate) fn offer(&mut self, score: f32, whose: u32) {
        if score > self.least {
            self.worst_first.push(Reverse(Scored(score, whose)));
            if self.worst_first.len() > self.most {
                self.worst_first.pop();
            }
            if self.worst_first.len() == self.most {
                self.least = self.worst_first.peek().map_or(f32::NEG_INFINITY, |worst| worst.0.0);
            }
        }
    }

    /// The best first.
    pub(crate) fn into_sorted(self) -> Vec<u32> {
        self.worst_first.into_sorted_vec().into_iter().map(|Reverse(scored)| scored.1).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_head_of_a_sorted_list(scores in proptest::collection::vec(0_u8..20, 0..200), most in 1_usize..20) {
            let mut top = Top::new(most);
            for (at, score) in scores.iter().enumerate() {
                top.offer(f32::from(*score), at as u32);
            }
            let mut all: Vec<u32> = (0..scores.len() as u32).collect();
            all.sort_by_key(|at| (Reverse(scores[*at as usize]), *at));
            all.truncate(most);
            prop_assert_eq!(top.into_sorted(), all);
        }
    }
}
