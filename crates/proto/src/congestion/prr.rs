//! Proportional rate reduction with the slow start reduction bound (RFC 6937).

/// How much may be sent during one recovery episode.
#[derive(Debug, Clone, Default)]
pub(super) struct Prr {
    /// Bytes in flight when recovery began (RecoverFS).
    flight: u64,
    /// Delivered since (prr_delivered).
    delivered: u64,
    /// Sent since (prr_out).
    out: u64,
    /// What the last acknowledgement delivered (DeliveredData).
    last_delivered: u64,
    /// `out` when it came: the RFC computes once per acknowledgement, we whenever asked.
    out_at_ack: u64,
}

impl Prr {
    pub(super) fn new(flight: u64) -> Self {
        Self { flight: flight.max(1), ..Self::default() }
    }

    pub(super) fn on_ack(&mut self, bytes: u64) {
        self.delivered = self.delivered.saturating_add(bytes);
        self.last_delivered = bytes;
        self.out_at_ack = self.out;
    }

    pub(super) fn on_sent(&mut self, bytes: u64) {
        self.out = self.out.saturating_add(bytes);
    }

    /// Bytes that may be sent now (sndcnt), towards `ssthresh` in flight at the end of the episode.
    pub(super) fn allowance(&self, in_flight: u64, ssthresh: u64, mss: u64) -> u64 {
        let allowed = if in_flight > ssthresh {
            // Proportional part, rounded up. Never more than was delivered, also where little was in flight when
            // recovery began.
            let share = (u128::from(self.delivered) * u128::from(ssthresh)).div_ceil(u128::from(self.flight));
            u64::try_from(share).unwrap_or(u64::MAX).min(self.delivered).saturating_sub(self.out)
        } else {
            // Slow start reduction bound: one segment more per acknowledgement than was delivered.
            let limit =
                self.delivered.saturating_sub(self.out_at_ack).max(self.last_delivered).saturating_add(mss);
            limit.saturating_sub(self.out - self.out_at_ack).min(ssthresh - in_flight)
        };
        // R6.2: the first retransmission goes out at once; this is what "fast" retransmit means.
        if self.out == 0 { allowed.max(mss) } else { allowed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_retransmission_needs_no_further_ack() {
        let mut prr = Prr::new(100_000);
        assert_eq!(prr.allowance(90_000, 50_000, 1000), 1000);
        prr.on_sent(1000);
        assert_eq!(prr.allowance(90_000, 50_000, 1000), 0);
    }

    #[test]
    fn while_above_the_target_half_of_what_is_delivered_is_sent() {
        let mut prr = Prr::new(100_000);
        let mut in_flight: u64 = 99_000;
        for _ in 0..40 {
            prr.on_ack(1000);
            in_flight -= 1000;
            let allowed = prr.allowance(in_flight, 50_000, 1000);
            prr.on_sent(allowed);
            in_flight += allowed;
        }
        // 40 delivered, 20 sent (the first came early).
        assert!((79_000..=80_000).contains(&in_flight), "{in_flight}");
    }

    #[test]
    fn after_heavy_loss_it_grows_back_by_one_segment_per_ack_and_stops_at_the_target() {
        let mut prr = Prr::new(100_000);
        let mut in_flight: u64 = 10_000;
        prr.on_sent(1000);
        in_flight += 1000;
        let mut steps = 0;
        while in_flight < 50_000 {
            prr.on_ack(1000);
            in_flight -= 1000;
            let allowed = prr.allowance(in_flight, 50_000, 1000);
            assert!(allowed <= 2000);
            prr.on_sent(allowed);
            in_flight += allowed;
            // Asking again without an acknowledgement gives nothing more.
            assert_eq!(prr.allowance(in_flight, 50_000, 1000), 0);
            steps += 1;
            assert!(steps < 100);
        }
        assert_eq!(in_flight, 50_000);
    }
}
