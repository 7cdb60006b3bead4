//! How fast a window may grow at most, and what a pause is worth.

use super::*;

#[test]
fn cubic_grows_by_half_a_window_per_round_trip_at_most() {
    let mut flow = Flow::new(ControllerKind::Cubic);
    (0..6).for_each(|_| flow.round());
    flow.loss();
    flow.round();
    // A round trip of a minute: the curve has run far ahead meanwhile.
    let window = flow.window();
    let sent = flow.now;
    flow.controller.on_sent(sent, window, window);
    flow.now += Duration::from_secs(60);
    let ack = AckEvent { bytes: window, newest_sent: sent, app_limited: false, in_flight_before: window };
    flow.controller.on_ack(flow.now, &ack, &flow.rtt);
    assert!(flow.window() > window, "it does grow");
    assert!(flow.window() <= window + window / 2 + 1, "{} after {window}", flow.window());
}

#[test]
fn a_pause_is_not_saved_up_by_the_pacer() {
    let mut pacer = pacer::Pacer::new(MSS);
    let rate = 1_000_000;
    let mut now = Instant::now();
    let mut burst = |now| {
        let mut sent = 0;
        while sent < 100 * MSS && pacer.allow(now, MSS, Some(rate)).is_ok() {
            pacer.on_sent(now, MSS);
            sent += MSS;
        }
        sent
    };
    let first = burst(now);
    assert_eq!(first, 5 * MSS);
    now += Duration::from_secs(30);
    assert_eq!(burst(now), first, "thirty seconds without sending are worth one bucket");
}
