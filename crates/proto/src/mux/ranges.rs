//! A set of numbers, kept as ranges.

use std::ops::Range;

/// Sorted, disjoint and not adjacent ranges. Its owner bounds them.
#[derive(Debug, Default)]
pub(crate) struct RangeSet {
    ranges: Vec<Range<u64>>,
}

impl RangeSet {
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.ranges = Vec::new();
    }

    pub(crate) fn first(&self) -> Option<Range<u64>> {
        self.ranges.first().cloned()
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        let at = self.ranges.partition_point(|r| r.end <= number);
        self.ranges.get(at).is_some_and(|r| r.contains(&number))
    }

    /// Adds a range; joins what touches it.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.ranges.partition_point(|r| r.end < range.start);
        let last = first + self.ranges[first..].partition_point(|r| r.start <= range.end);
        if first == last {
            self.ranges.insert(first, range);
            return;
        }
        let joined = self.ranges[first].start.min(range.start)..self.ranges[last - 1].end.max(range.end);
        self.ranges[first] = joined;
        self.ranges.drain(first + 1..last);
    }

    /// Takes a range out, whatever of it is there.
    pub(crate) fn remove(&mut self, range: Range<u64>) {
        let first = self.ranges.partition_point(|r| r.end <= range.start);
        let last = first + self.ranges[first..].partition_point(|r| r.start < range.end);
        if first == last || range.is_empty() {
            return;
        }
        let head = self.ranges[first].start..range.start;
        let tail = range.end..self.ranges[last - 1].end;
        let kept = [head, tail].into_iter().filter(|r| !r.is_empty());
        self.ranges.splice(first..last, kept);
    }

    /// The ranges that share a number with `range`.
    pub(crate) fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.ranges.partition_point(|r| r.end <= range.start);
        let end = range.end;
        self.ranges[first..].iter().take_while(move |r| r.start < end).cloned()
    }

    /// Joins the two ranges with the smallest gap between them: for a set of which more is as good, only slower.
    pub(crate) fn coarsen(&mut self) {
        let gap = |at: &usize| self.ranges[at + 1].start - self.ranges[*at].end;
        let Some(at) = (0..self.ranges.len().saturating_sub(1)).min_by_key(gap) else { return };
        self.ranges[at].end = self.ranges[at + 1].end;
        self.ranges.remove(at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in prop::collection::vec((any::<bool>(), 0u64..200, 0u64..40), 1..100)) {
            let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
            for (add, start, len) in ops {
                if add {
                    set.insert(start..start + len);
                    model.extend(start..start + len);
                } else {
                    set.remove(start..start + len);
                    model.retain(|n| !(start..start + len).contains(n));
                }
                let numbers: Vec<u64> = set.ranges.iter().cloned().flatten().collect();
                prop_assert_eq!(&numbers, &model.iter().copied().collect::<Vec<_>>());
                prop_assert!(set.ranges.windows(2).all(|w| w[0].end < w[1].start), "not adjacent");
                prop_assert_eq!(set.contains(start), model.contains(&start));
                prop_assert_eq!(set.first().map(|r| r.start), model.first().copied());
            }
        }
    }

    #[test]
    fn coarser_holds_all_and_one_range_fewer() {
        let mut set = RangeSet::default();
        [0..10, 20..30, 31..40].into_iter().for_each(|r| set.insert(r));
        set.coarsen();
        assert_eq!(set.ranges, [0..10, 20..40]);
        set.coarsen();
        set.coarsen();
        assert_eq!(set.ranges.as_slice(), std::slice::from_ref(&(0..40)));
    }
}
