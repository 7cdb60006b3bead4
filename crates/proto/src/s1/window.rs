//! Anti-replay window that grows: 1,024 packet numbers at first, 65,536 at last.
//!
//! A ring of words as in RFC 6479, like [`replay`](crate::replay). It doubles after a few genuine-looking packets came too late
//! for it; the memory of an idle session stays small. Whatever lies behind the old window counts as seen after that.

/// Words of the smallest ring: one to spare, so that sliding clears whole words.
const WORDS_FIRST: usize = 1_024 / 64 + 1;
/// Words of the largest.
const WORDS_MAX: usize = 65_536 / 64 + 1;
/// Packets that came too late before the window doubles.
const LATE_MAX: u32 = 8;

/// What the window says about a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    New,
    Seen,
    TooOld,
}

#[derive(Debug)]
pub(crate) struct Window {
    highest: Option<u64>,
    ring: Vec<u64>,
    late: u32,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { highest: None, ring: vec![0; WORDS_FIRST], late: 0 }
    }

    /// Numbers this far behind the highest one, or farther, are refused.
    pub(crate) fn width(&self) -> u64 {
        (self.ring.len() as u64 - 1) * 64
    }

    #[cfg(test)]
    fn highest(&self) -> Option<u64> {
        self.highest
    }

    #[inline]
    pub(crate) fn place(&self, number: u64) -> Place {
        match self.highest {
            Some(highest) if number <= highest => {
                if highest - number >= self.width() {
                    Place::TooOld
                } else if self.ring[self.slot(number)] & bit(number) != 0 {
                    Place::Seen
                } else {
                    Place::New
                }
            }
            _ => Place::New,
        }
    }

    /// Records the number of an authenticated packet that was new. Returns whether it is the highest so far.
    #[inline]
    pub(crate) fn mark(&mut self, number: u64) -> bool {
        let newest = self.highest.is_none_or(|highest| number > highest);
        if newest {
            self.slide(number);
            self.highest = Some(number);
        }
        let slot = self.slot(number);
        self.ring[slot] |= bit(number);
        newest
    }

    /// A packet was refused because it was too old: after some of these the window doubles.
    pub(crate) fn on_late(&mut self) {
        self.late += 1;
        if self.late < LATE_MAX {
            return;
        }
        self.late = 0;
        let words = self.ring.len();
        let larger = (2 * (words - 1) + 1).min(WORDS_MAX);
        if larger == words {
            return;
        }
        // What fell out of the old ring may have been received: it counts as seen.
        let mut ring = vec![u64::MAX; larger];
        let last = self.highest.unwrap_or(0) / 64;
        for word in (last.saturating_sub(words as u64 - 1))..=last {
            ring[(word % larger as u64) as usize] = self.ring[(word % words as u64) as usize];
        }
        self.ring = ring;
    }

    /// Clears the words that the window enters.
    fn slide(&mut self, to: u64) {
        let words = self.ring.len() as u64;
        let Some(highest) = self.highest else {
            return;
        };
        let (first, last) = (highest / 64 + 1, to / 64);
        if last + 1 - first >= words {
            self.ring.fill(0);
            return;
        }
        for word in first..=last {
            self.ring[(word % words) as usize] = 0;
        }
    }

    #[inline]
    fn slot(&self, number: u64) -> usize {
        (number / 64 % self.ring.len() as u64) as usize
    }
}

#[inline]
fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_grows_to_its_bound_and_no_further() {
        let mut window = Window::new();
        assert_eq!(window.width(), 1_024);
        window.mark(1_000_000);
        for width in [2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 65_536, 65_536] {
            for _ in 0..LATE_MAX {
                assert_eq!(window.place(5), Place::TooOld);
                window.on_late();
            }
            assert_eq!(window.width(), width);
        }
        // What the small window had lost sight of stays refused; what comes from now on has the whole width.
        assert_ne!(window.place(1_000_000 - 2_000), Place::New);
        assert_eq!(window.place(1_000_000 - 500), Place::New);
        window.mark(1_100_000);
        assert_eq!(window.place(1_100_000 - 65_535), Place::New);
        assert_eq!(window.place(1_100_000 - 65_536), Place::TooOld);
    }

    #[test]
    fn looking_changes_nothing() {
        let mut window = Window::new();
        assert_eq!(window.place(u64::MAX), Place::New);
        assert_eq!(window.highest(), None);
        assert!(window.mark(0) && window.mark(2) && !window.mark(1));
        assert_eq!(
            (window.place(0), window.place(1), window.place(3)),
            (Place::Seen, Place::Seen, Place::New)
        );
    }

    proptest! {
        /// Nothing is ever new twice, whenever the window grows; and nothing within the first width is refused that
        /// was not there.
        #[test]
        fn nothing_is_new_twice(numbers in prop::collection::vec((0..6u64, 0..3_000u64), 0..600)) {
            let mut window = Window::new();
            let mut seen = BTreeSet::new();
            for (base, offset) in numbers {
                let number = base * 1_400 + offset;
                match window.place(number) {
                    Place::New => {
                        prop_assert!(seen.insert(number), "{} twice", number);
                        let newest = seen.last() == Some(&number);
                        prop_assert_eq!(window.mark(number), newest);
                    }
                    Place::Seen => {}
                    Place::TooOld => window.on_late(),
                }
                let highest = seen.last().copied().unwrap_or(0);
                prop_assert_eq!(window.highest().unwrap_or(0), highest);
                if highest < 1_024 + number {
                    prop_assert!(window.place(number) == Place::Seen);
                }
            }
        }
    }
}
