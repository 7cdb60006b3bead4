//! When something is lost by what others show, in numbers.

#![allow(clippy::disallowed_methods)] // a base for virtual time

use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A path of 40 ms on which something that was sent at `base + 10 ms` was just delivered.
fn order(complete: bool) -> (Order, RttEstimator, Instant) {
    let base = Instant::now();
    let mut rtt = RttEstimator::new(ms(100));
    rtt.update(ms(40));
    let mut order = Order::default();
    assert!(!order.is_known() && order.due(base, 0, false, &rtt).is_none());
    assert_eq!(order.ack_delay(), MAX_ACK_DELAY, "a reference peer, for all we know");
    order.on_delivered(base + ms(50), base + ms(10), complete);
    assert!(order.is_known());
    (order, rtt, base)
}

#[test]
fn only_what_was_sent_before_the_newest_that_was_delivered_is_judged() {
    let (order, rtt, base) = order(true);
    // A round trip and a quarter.
    assert_eq!(order.due(base + ms(9), 0, false, &rtt), Some(base + ms(9 + 50)));
    assert_eq!(order.due(base + ms(10), 0, false, &rtt), None);
    assert_eq!(order.due(base + ms(11), 0, false, &rtt), None);
}

#[test]
fn an_acknowledgement_that_may_be_held_back_is_waited_for() {
    let (mut order, rtt, base) = order(false);
    assert_eq!(order.ack_delay(), ms(15));
    assert_eq!(order.due(base, 0, false, &rtt), Some(base + ms(50 + 15)));
    assert_eq!(order.due(base, 0, true, &rtt), Some(base + ms(50)), "a SYN is answered at once");
    // A bare acknowledgement says that nothing is held back, and one that is older says nothing.
    order.on_delivered(base + ms(52), base + ms(12), true);
    order.on_delivered(base + ms(53), base + ms(3), true);
    assert_eq!(order.due(base, 0, false, &rtt), Some(base + ms(50)));
    assert_eq!(order.due(base + ms(11), 0, false, &rtt), Some(base + ms(61)));
}

#[test]
fn a_longer_way_of_the_newest_one_gives_more_time() {
    let (mut order, rtt, base) = order(true);
    order.on_delivered(base + ms(120), base + ms(20), true);
    assert_eq!(order.due(base, 0, false, &rtt), Some(base + ms(110)));
}

#[test]
fn spurious_losses_widen_the_window_once_per_round_trip_until_repairs_go_well() {
    let (mut order, rtt, base) = order(true);
    let patience = |order: &Order| order.due(base, 0, false, &rtt).map(|t| t - base);
    order.on_spurious(base, &rtt);
    order.on_spurious(base + ms(39), &rtt);
    assert_eq!(patience(&order), Some(ms(60)));
    order.on_spurious(base + ms(40), &rtt);
    assert_eq!(patience(&order), Some(ms(70)));
    for i in 2..100 {
        order.on_spurious(base + ms(40 * i), &rtt);
    }
    assert_eq!(patience(&order), Some(ms(80)), "never more than a round trip");
    assert_eq!(order.reordering(), Some(MAX_WIDENED));
    for i in 0..u64::from(PERSIST_REPAIRS) {
        assert_eq!(patience(&order), Some(ms(80)));
        // The losses of one round trip are one repair.
        order.on_repair(base + ms(40 * i), &rtt);
        order.on_repair(base + ms(40 * i + 39), &rtt);
    }
    assert_eq!((patience(&order), order.reordering()), (Some(ms(50)), None));
}

#[test]
fn repairs_without_progress_become_rare() {
    let (order, rtt, base) = order(true);
    let patience = |repairs| order.due(base, repairs, false, &rtt).map(|t| t - base);
    assert_eq!(patience(3), Some(ms(50)));
    assert_eq!(patience(4), Some(ms(100)));
    assert_eq!(patience(u8::MAX), Some(ms(50) * 256));
}

#[test]
fn a_short_path_is_given_a_millisecond_and_few_looks() {
    let base = Instant::now();
    let mut rtt = RttEstimator::new(ms(100));
    rtt.update(Duration::from_micros(40));
    let order = Order::default();
    let mut now = order.first_look(base, &rtt).expect("in range");
    assert_eq!(now - base, Duration::from_millis(5));
    // Until the retransmission timer fires.
    let mut looks = 0;
    while now < base + ms(200) {
        now = Order::next_look(base, now);
        looks += 1;
    }
    assert!((10..25).contains(&looks), "{looks}");
}
