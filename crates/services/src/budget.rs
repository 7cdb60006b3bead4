//! A bound on bytes that are held at a time, shared by all streams of a service.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many bytes may be held at a time.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    taken: AtomicUsize,
}

/// Bytes taken from a [`Budget`]; dropped, they are given back.
#[derive(Debug)]
pub(crate) struct Taken {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: AtomicUsize::new(0) })
    }

    /// Nothing taken yet.
    pub(crate) fn begin(self: &Arc<Self>) -> Taken {
        Taken { budget: self.clone(), bytes: 0 }
    }

    /// Takes so many bytes at once, if they are left.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Taken> {
        let mut taken = self.begin();
        taken.grow(bytes).then_some(taken)
    }
}

impl Taken {
    /// Takes more; `false` and no change if that much is not left.
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        let fits = |taken: usize| taken.checked_add(more).filter(|sum| *sum <= self.budget.limit);
        let grown = self.budget.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok();
        if grown {
            self.bytes += more;
        }
        grown
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_missing_until_it_is_given_back() {
        let budget = Budget::new(100);
        let mut first = budget.take(60).expect("room");
        assert!(!first.grow(41));
        assert!(first.grow(40));
        assert!(budget.take(1).is_none());
        drop(first);
        assert!(budget.take(100).is_some());
        assert!(!budget.begin().grow(usize::MAX));
    }
}
