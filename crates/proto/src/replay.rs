//! Anti-replay window: a sliding bitmap over 64-bit counters.
//!
//! Algorithm: RFC 6479 (a ring of words with one word to spare, so that sliding clears whole words and
//! never shifts); rules: RFC 4303 section 3.4.3 and appendix A2.
//!
//! Looking and recording are separate on purpose. A receiver calls [`check`](ReplayWindow::check),
//! then opens the frame, and only then [`mark`](ReplayWindow::mark): a window that moves before the
//! tag is checked lets one forged frame with a huge counter shut out all that follow (rule C7).

/// Bits of one word of the ring.
const WORD_BITS: u64 = u64::BITS as u64;

/// Which counters of one (key, nonce prefix) have been received.
///
/// `WORDS` is the size of the ring; the window is [`WIDTH`](Self::WIDTH) = 64 × (`WORDS` − 1)
/// counters wide. The default is 8,192 wide and takes 1 KiB: at 10 Gbit/s and 1,430-byte packets it
/// spans 9 ms of reordering.
#[derive(Debug, Clone)]
pub struct ReplayWindow<const WORDS: usize = 129> {
    highest: Option<u64>,
    ring: [u64; WORDS],
}

impl<const WORDS: usize> ReplayWindow<WORDS> {
    /// Counters this far behind the highest one, or farther, are refused unseen.
    pub const WIDTH: u64 = {
        assert!(WORDS >= 2, "the ring needs a word for the window and one to spare");
        (WORDS as u64 - 1) * WORD_BITS
    };

    /// A window that has seen nothing.
    pub const fn new() -> Self {
        Self { highest: None, ring: [0; WORDS] }
    }

    /// The highest counter marked so far.
    pub fn highest(&self) -> Option<u64> {
        self.highest
    }

    /// Whether a frame with this counter is new: neither marked before nor behind the window.
    #[inline]
    pub fn check(&self, counter: u64) -> bool {
        let Some(highest) = self.highest else {
            return true;
        };
        if counter > highest {
            return true;
        }
        highest - counter < Self::WIDTH && self.ring[Self::slot(counter)] & Self::bit(counter) == 0
    }

    /// Records the counter of an authenticated frame, and slides the window if it is the highest.
    ///
    /// Returns whether it was new, as [`check`](Self::check) would have; a counter that was not is
    /// left as it is.
    #[inline]
    pub fn mark(&mut self, counter: u64) -> bool {
        if !self.check(counter) {
            return false;
        }
        match self.highest {
            Some(highest) if counter <= highest => {}
            highest => {
                self.slide(highest.unwrap_or(0), counter);
                self.highest = Some(counter);
            }
        }
        self.ring[Self::slot(counter)] |= Self::bit(counter);
        true
    }

    /// Clears the words that the window enters (RFC 6479 section 3): at most the whole ring.
    #[inline]
    fn slide(&mut self, from: u64, to: u64) {
        let first = from / WORD_BITS + 1;
        let last = to / WORD_BITS;
        if last - (first - 1) >= WORDS as u64 {
            self.ring = [0; WORDS];
            return;
        }
        for word in first..=last {
            self.ring[(word % WORDS as u64) as usize] = 0;
        }
    }

    #[inline]
    fn slot(counter: u64) -> usize {
        (counter / WORD_BITS % WORDS as u64) as usize
    }

    #[inline]
    fn bit(counter: u64) -> u64 {
        1 << (counter % WORD_BITS)
    }
}

impl<const WORDS: usize> Default for ReplayWindow<WORDS> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// 256 wide, as the reference's.
    type Narrow = ReplayWindow<5>;

    /// The one step in which we differ on purpose: the reference forgets that it has seen counter 0 and
    /// delivers the same frame twice.
    const QUIRK: (&str, usize) = ("zero first (quirk: max stays 0 so the next packet is also 'first')", 1);

    #[test]
    fn a_long_run_is_new_throughout_and_old_marks_do_not_come_back() {
        let mut window = Narrow::new();
        for counter in 0..5_000 {
            assert!(window.check(counter) && window.mark(counter), "{counter}: the ring was used before");
            assert!(!window.check(counter));
        }
        // In steps of every size up to two rings, with what lies between still new.
        for step in 1..2 * 5 * WORD_BITS {
            let mut window = Narrow::new();
            let mut counter = 0;
            while counter < 5 * step + 1_000 {
                assert!(window.mark(counter), "{counter} in steps of {step}");
                if step > 1 && counter > 0 {
                    assert!(window.check(counter - 1), "{counter} - 1 in steps of {step}");
                }
                counter += step;
            }
        }
    }

    #[test]
    fn reference_vectors_at_its_width() {
        assert_eq!(Narrow::WIDTH, 256);
        let vectors: Value = serde_json::from_str(include_str!("../../../spec/vectors/replay.json")).unwrap();
        let cases = vectors["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 6);
        let mut steps = 0;
        let mut quirks = 0;
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let mut window = Narrow::new();
            for (index, step) in case["steps"].as_array().unwrap().iter().enumerate() {
                let counter = step["counter"].as_u64().unwrap();
                let expected = if (name, index) == QUIRK {
                    assert_eq!(step["accept"], true);
                    quirks += 1;
                    false
                } else {
                    step["accept"].as_bool().unwrap()
                };
                assert_eq!(window.check(counter), expected, "{name}, step {index}");
                assert_eq!(window.mark(counter), expected, "{name}, step {index}");
                steps += 1;
            }
        }
        assert_eq!((steps, quirks), (37, 1));
    }

    #[test]
    fn the_default_is_8192_wide() {
        let mut window = <ReplayWindow>::new();
        assert_eq!(<ReplayWindow>::WIDTH, 8192);
        assert!(window.mark(100_000));
        assert!(window.check(100_000 - 8191));
        assert!(!window.check(100_000 - 8192));
    }

    #[test]
    fn looking_changes_nothing() {
        let mut window = <ReplayWindow>::new();
        assert_eq!(window.highest(), None);
        // Rule C7: a forged frame with the highest counter is looked up, fails its tag, leaves no trace.
        assert!(window.check(u64::MAX));
        assert!(window.mark(1));
        assert!(window.check(u64::MAX));
        assert!(window.check(2) && window.mark(2));
        assert_eq!(window.highest(), Some(2));
    }

    #[test]
    fn the_end_of_the_counter_space_is_no_special_place() {
        let mut window = <ReplayWindow>::new();
        assert!(window.mark(0) && window.mark(u64::MAX) && window.mark(u64::MAX - 8191));
        assert!(!window.mark(u64::MAX) && !window.mark(u64::MAX - 8192) && !window.mark(0));
    }

    /// The rule of RFC 4303 section 3.4.3, written without a bitmap.
    #[derive(Default)]
    struct Model {
        seen: BTreeSet<u64>,
    }

    impl Model {
        fn mark(&mut self, counter: u64, width: u64) -> bool {
            let new = match self.seen.last() {
                Some(&highest) if counter <= highest => {
                    highest - counter < width && !self.seen.contains(&counter)
                }
                _ => true,
            };
            if new {
                self.seen.insert(counter);
            }
            new
        }
    }

    fn counters(span: u64) -> impl Strategy<Value = Vec<u64>> {
        let near = (0..4u64, 0..span).prop_map(move |(base, offset)| base * span / 2 + offset);
        let anywhere = prop_oneof![any::<u64>(), (0..300u64).prop_map(|back| u64::MAX - back)];
        prop::collection::vec(prop_oneof![30 => near, 1 => anywhere], 0..400)
    }

    fn agrees_with_model<const WORDS: usize>(counters: &[u64]) -> Result<(), TestCaseError> {
        let mut window = ReplayWindow::<WORDS>::new();
        let mut model = Model::default();
        for &counter in counters {
            let looked = window.check(counter);
            prop_assert_eq!(looked, model.mark(counter, ReplayWindow::<WORDS>::WIDTH));
            prop_assert_eq!(window.mark(counter), looked);
            prop_assert!(!window.check(counter));
            prop_assert_eq!(window.highest(), model.seen.last().copied());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn agrees_with_the_plain_rule(narrow in counters(600), wide in counters(20_000)) {
            agrees_with_model::<2>(&narrow)?;
            agrees_with_model::<5>(&narrow)?;
            agrees_with_model::<129>(&wide)?;
        }
    }
}
