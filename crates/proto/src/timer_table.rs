//! Deadlines in order: a binary heap whose entries know their place, so that one can be taken out again.
//!
//! All memory is three vectors that only grow: setting, moving and firing a timer allocates nothing once the table has
//! held as many at a time. A search tree gives memory back and takes it anew with each node that empties and fills.

use std::time::Instant;

/// Deadlines of owners that are named by `K`. Of equal deadlines the one with the lower name comes first.
#[derive(Debug)]
pub struct TimerTable<K> {
    /// No entry is before the one at half its index.
    heap: Vec<Entry<K>>,
    /// Where each timer is in the heap.
    places: Vec<u32>,
    free: Vec<u32>,
}

/// A deadline that is in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    at: Instant,
    timer: u32,
}

#[derive(Debug, Clone, Copy)]
struct Entry<K> {
    at: Instant,
    key: K,
    timer: u32,
}

impl<K> Default for TimerTable<K> {
    fn default() -> Self {
        Self { heap: Vec::new(), places: Vec::new(), free: Vec::new() }
    }
}

impl<K: Copy + Ord> TimerTable<K> {
    /// The earliest deadline.
    pub fn first(&self) -> Option<Instant> {
        self.heap.first().map(|e| e.at)
    }

    /// How many deadlines there are.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Sees to it that the owner is called at `deadline` at the latest. A deadline in the table that is no later stays:
    /// it is found to be early when it fires.
    pub fn register(&mut self, registered: &mut Option<Registered>, deadline: Option<Instant>, key: K) {
        let Some(deadline) = deadline else { return };
        match registered {
            Some(r) if r.at <= deadline => {}
            Some(r) => {
                r.at = deadline;
                let place = self.places[r.timer as usize] as usize;
                self.heap[place].at = deadline;
                self.rise(place);
            }
            None => *registered = Some(self.insert(deadline, key)),
        }
    }

    /// Takes the owner's deadline out, if it is in the table.
    pub fn remove(&mut self, registered: &mut Option<Registered>) {
        if let Some(r) = registered.take() {
            self.take_out(self.places[r.timer as usize] as usize);
        }
    }

    /// The owner of the earliest deadline that has come. It is out of the table then, and has to forget what it knows
    /// of its registration.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        let first = *self.heap.first().filter(|e| e.at <= now)?;
        self.take_out(0);
        Some(first.key)
    }

    fn insert(&mut self, at: Instant, key: K) -> Registered {
        let place = self.heap.len();
        let timer = match self.free.pop() {
            Some(timer) => timer,
            None => {
                self.places.push(0);
                self.places.len() as u32 - 1
            }
        };
        self.places[timer as usize] = place as u32;
        self.heap.push(Entry { at, key, timer });
        self.rise(place);
        Registered { at, timer }
    }

    fn take_out(&mut self, place: usize) {
        let entry = self.heap.swap_remove(place);
        self.free.push(entry.timer);
        if let Some(moved) = self.heap.get(place) {
            self.places[moved.timer as usize] = place as u32;
            self.sink(place);
            self.rise(place);
        }
    }

    /// Moves an entry up to where nothing before it is later.
    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if !self.is_before(place, parent) {
                return;
            }
            self.swap(place, parent);
            place = parent;
        }
    }

    /// Moves an entry down to where nothing behind it is earlier.
    fn sink(&mut self, mut place: usize) {
        loop {
            let left = 2 * place + 1;
            if left >= self.heap.len() {
                return;
            }
            let right = left + 1;
            let child = if right < self.heap.len() && self.is_before(right, left) { right } else { left };
            if !self.is_before(child, place) {
                return;
            }
            self.swap(child, place);
            place = child;
        }
    }

    fn is_before(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.heap[a], &self.heap[b]);
        (a.at, a.key) < (b.at, b.key)
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.places[self.heap[a].timer as usize] = a as u32;
        self.places[self.heap[b].timer as usize] = b as u32;
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a base for virtual time
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    #[test]
    fn a_later_deadline_is_left_to_be_found_and_an_earlier_one_is_moved() {
        let start = Instant::now();
        let at = |ms| Some(start + Duration::from_millis(ms));
        let mut table = TimerTable::default();
        let mut registered = None;
        table.register(&mut registered, at(20), 7);
        table.register(&mut registered, at(30), 7);
        assert_eq!((table.first(), table.len()), (at(20), 1));
        table.register(&mut registered, at(10), 7);
        table.register(&mut registered, None, 7);
        assert_eq!((table.first(), table.len()), (at(10), 1));
        assert_eq!(table.pop_due(start), None);
        assert_eq!(table.pop_due(start + Duration::from_millis(10)), Some(7));
        assert!(table.is_empty());
    }

    proptest! {
        #[test]
        fn behaves_like_an_ordered_set(ops in prop::collection::vec((0usize..4, 0usize..40, 0u64..100), 1..400)) {
            let start = Instant::now();
            let mut table = TimerTable::default();
            let mut known: Vec<Option<Registered>> = vec![None; 40];
            let mut model: BTreeSet<(Instant, usize)> = BTreeSet::new();
            let mut of: Vec<Option<Instant>> = vec![None; 40];
            for (op, key, ms) in ops {
                let at = start + Duration::from_millis(ms);
                match op {
                    0 | 1 => {
                        table.register(&mut known[key], Some(at), key);
                        if of[key].is_none_or(|old| at < old) {
                            if let Some(old) = of[key] {
                                model.remove(&(old, key));
                            }
                            model.insert((at, key));
                            of[key] = Some(at);
                        }
                    }
                    2 => {
                        table.remove(&mut known[key]);
                        if let Some(old) = of[key].take() {
                            model.remove(&(old, key));
                        }
                    }
                    _ => {
                        let due = model.first().copied().filter(|(t, _)| *t <= at);
                        prop_assert_eq!(table.pop_due(at), due.map(|(_, key)| key));
                        if let Some((t, key)) = due {
                            model.remove(&(t, key));
                            (of[key], known[key]) = (None, None);
                        }
                    }
                }
                prop_assert_eq!(table.first(), model.first().map(|(t, _)| *t));
                prop_assert_eq!(table.len(), model.len());
            }
            prop_assert!(table.places.len() <= 40);
        }
    }
}
