//! Acknowledgements: ranges of packet numbers, the highest first. `spec/secure.md §11.4`.

use core::ops::RangeInclusive;

use super::Malformed;
use super::cursor::{Reader, VARINT_MAX, Writer};

/// Most ranges in one frame.
pub const ACK_RANGES_MAX: usize = 256;

/// An acknowledgement. What it names has been checked for order and bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack<'a> {
    /// Packets of which session: `None` is the one that carries the frame, else the index that the packets named.
    pub index: Option<u32>,
    /// Time between the arrival of the highest packet and this frame, in units of 8 µs.
    pub delay: u64,
    largest: u64,
    count: usize,
    /// `count` pairs of gap and length, but that the first has no gap.
    ranges: &'a [u8],
}

impl<'a> Ack<'a> {
    /// The highest packet number.
    pub fn largest(&self) -> u64 {
        self.largest
    }

    /// Ranges, disjoint and not adjacent, the highest first: at least one, at most [`ACK_RANGES_MAX`].
    pub fn ranges(&self) -> Ranges<'a> {
        Ranges { next: Some(self.largest), left: self.count, read: Reader(self.ranges) }
    }

    /// What follows the type byte.
    pub(super) fn read(read: &mut Reader<'a>, other: bool) -> Result<Self, Malformed> {
        let index = if other { Some(read.u32()?) } else { None };
        if index == Some(0) {
            return Err(Malformed::Value("index"));
        }
        let (largest, delay, more) = (read.varint()?, read.varint()?, read.varint()?);
        if more >= ACK_RANGES_MAX as u64 {
            return Err(Malformed::Value("ranges"));
        }
        let start = read.0;
        let mut highest = largest;
        for at in 0..=more {
            if at > 0 {
                // A gap of g leaves g + 1 numbers out.
                let gap = read.varint()?;
                highest = highest.checked_sub(gap + 2).ok_or(Malformed::Value("gap"))?;
            }
            highest = highest.checked_sub(read.varint()?).ok_or(Malformed::Value("range"))?;
        }
        let ranges = &start[..start.len() - read.0.len()];
        Ok(Self { index, delay, largest, count: more as usize + 1, ranges })
    }

    /// All with the type byte.
    pub(super) fn write(&self, out: &mut Writer<'_>) {
        write_head(out, self.index, self.largest, self.delay, self.count);
        out.put(self.ranges);
    }
}

fn write_head(out: &mut Writer<'_>, index: Option<u32>, largest: u64, delay: u64, count: usize) {
    match index {
        None => out.u8(super::frames::ACK),
        Some(index) => {
            out.u8(super::frames::ACK_OTHER);
            out.put(&index.to_be_bytes());
        }
    }
    out.varint(largest);
    out.varint(delay);
    out.varint(count as u64 - 1);
}

/// Writes an acknowledgement and returns its length. `ranges` are disjoint and not adjacent, the highest first; those
/// beyond [`ACK_RANGES_MAX`] and those that do not fit into `buf` are left out, the lowest first.
///
/// # Errors
///
/// [`EncodeError`](crate::EncodeError) if not even the first range fits, if there is none, or if ranges are out of order
/// or numbers too large.
pub fn encode_ack(
    index: Option<u32>,
    delay: u64,
    ranges: impl Iterator<Item = RangeInclusive<u64>> + Clone,
    buf: &mut [u8],
) -> Result<usize, crate::EncodeError> {
    let unsorted = crate::EncodeError::TooLong { len: 0, max: 0 };
    let mut fitting = 0;
    let mut previous: Option<u64> = None;
    // The head grows with the count by a byte at 64 ranges; reserve the longer form.
    let mut need = head_len(index, ranges.clone().next().map_or(0, |r| *r.end()), delay);
    for range in ranges.clone().take(ACK_RANGES_MAX) {
        let (low, high) = (*range.start(), *range.end());
        if low > high || high > VARINT_MAX || previous.is_some_and(|p| high.saturating_add(2) > p) {
            return Err(unsorted);
        }
        need += previous.map_or(0, |p| super::cursor::varint_len(p - high - 2));
        need += super::cursor::varint_len(high - low);
        if need > buf.len() && fitting > 0 {
            break;
        }
        previous = Some(low);
        fitting += 1;
    }
    let largest = *ranges.clone().next().ok_or(unsorted)?.end();
    let mut out = Writer::new(buf);
    write_head(&mut out, index, largest, delay, fitting);
    let mut previous: Option<u64> = None;
    for range in ranges.take(fitting) {
        if let Some(previous) = previous {
            out.varint(previous - range.end() - 2);
        }
        out.varint(range.end() - range.start());
        previous = Some(*range.start());
    }
    out.finish()
}

fn head_len(index: Option<u32>, largest: u64, delay: u64) -> usize {
    let len = super::cursor::varint_len;
    1 + if index.is_some() { 4 } else { 0 } + len(largest) + len(delay) + len(ACK_RANGES_MAX as u64 - 1)
}

/// The ranges of an [`Ack`].
#[derive(Debug, Clone)]
pub struct Ranges<'a> {
    /// The highest number of the next range, before its gap.
    next: Option<u64>,
    left: usize,
    read: Reader<'a>,
}

impl Iterator for Ranges<'_> {
    type Item = RangeInclusive<u64>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        // Checked when the frame was read.
        let high = self.next?;
        let low = high.checked_sub(self.read.varint().ok()?)?;
        self.next = if self.left > 0 { low.checked_sub(self.read.varint().ok()? + 2) } else { None };
        Some(low..=high)
    }
}
