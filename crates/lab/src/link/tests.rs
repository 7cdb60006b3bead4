use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Bursts, CoDelConfig, Counters, Link, LinkConfig, Queue};

const PACKET: [u8; 1_250] = [7; 1_250];

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Offers `count` packets that are numbered, one each `gap`; gives number and arrival of each that came through.
fn run(config: LinkConfig, count: u32, gap: Duration, len: usize) -> (Vec<(u32, Duration)>, Counters) {
    let start = Instant::now();
    let mut link = Link::new(config, 5);
    let mut out = Vec::new();
    let mut take = |link: &mut Link, until: Instant| {
        while let Some(at) = link.next_arrival().filter(|at| *at <= until) {
            while let Some(packet) = link.poll(at) {
                let number = u32::from_be_bytes(packet[..4].try_into().expect("numbered"));
                out.push((number, at - start));
                link.recycle(packet);
            }
        }
    };
    let mut packet = vec![0; len.max(4)];
    for i in 0..count {
        let now = start + gap * i;
        take(&mut link, now);
        packet[..4].copy_from_slice(&i.to_be_bytes());
        link.offer(now, &packet);
    }
    take(&mut link, start + Duration::from_secs(3_600));
    (out, link.counters())
}

#[test]
fn nothing_is_added_to_delay_and_transmission() {
    // 1,250 bytes at 10 Mbit/s take 1 ms.
    let (out, _) = run(LinkConfig::new(10_000_000, ms(20)), 3, ms(5), PACKET.len());
    assert_eq!(out, [(0, ms(21)), (1, ms(26)), (2, ms(31))]);
    // All at once: they leave one behind the other.
    let (out, _) = run(LinkConfig::new(10_000_000, ms(20)), 3, ms(0), PACKET.len());
    assert_eq!(out, [(0, ms(21)), (1, ms(22)), (2, ms(23))]);
}

#[test]
fn the_rate_holds_to_the_nanosecond_over_a_minute() {
    let config = LinkConfig { queue: Queue::Packets(10), ..LinkConfig::new(10_000_000, ms(1)) };
    let (out, counters) = run(config, 120_000, Duration::from_micros(500), PACKET.len());
    let span = out.last().expect("some").1 - out[0].1;
    let rate = (out.len() - 1) as f64 * 1_250.0 * 8.0 / span.as_secs_f64();
    assert!((rate / 10e6 - 1.0).abs() < 1e-6, "{rate}");
    assert_eq!(counters.queue_full, 120_000 - counters.delivered);
    assert_eq!(counters.peak_queue, 12_500);
}

#[test]
fn the_bounds_of_the_queue_are_exact() {
    let link = LinkConfig::new(10_000_000, ms(1));
    for (queue, kept) in [
        (Queue::Packets(7), 8),
        (Queue::Bytes(1_250 * 4), 5),
        (Queue::Both { bytes: 1_250 * 4, packets: 2 }, 3),
        // 10 Mbit/s and 2 ms: 2,500 bytes, below the least of 3,000.
        (Queue::Bdp(100), 3),
    ] {
        let (out, counters) = run(LinkConfig { queue, ..link.clone() }, 100, ms(0), PACKET.len());
        assert_eq!((out.len(), counters.queue_full), (kept, 100 - kept as u64), "{queue:?}");
    }
}

#[test]
fn loss_and_duplication_have_their_shares() {
    let config = LinkConfig { loss: 0.01, duplicate: 0.02, ..LinkConfig::default() };
    let (_, counters) = run(config, 2_500_000, Duration::from_micros(1), 4);
    let share = |count: u64| count as f64 / 2_500_000.0;
    assert!((share(counters.lost) / 0.01 - 1.0).abs() < 0.02, "{counters:?}");
    assert!((share(counters.duplicated) / 0.02 / 0.99 - 1.0).abs() < 0.02, "{counters:?}");
    assert_eq!(counters.delivered, 2_500_000 - counters.lost + counters.duplicated);
}

#[test]
fn bursts_have_the_share_and_length_that_were_asked_for() {
    let config = LinkConfig { bursts: Some(Bursts::new(0.1, 5.0)), ..LinkConfig::default() };
    let (out, counters) = run(config, 1_000_000, Duration::from_micros(1), 4);
    let bursts = out.windows(2).filter(|pair| pair[1].0 > pair[0].0 + 1).count();
    let length = counters.burst_lost as f64 / bursts as f64;
    assert!((counters.burst_lost as f64 / 1e6 / 0.1 - 1.0).abs() < 0.02, "{counters:?}");
    assert!((length / 5.0 - 1.0).abs() < 0.02, "{length}");
}

#[test]
fn jitter_keeps_the_order_and_reordering_does_not() {
    let jitter = LinkConfig { delay: ms(5), jitter: ms(4), ..LinkConfig::default() };
    let (out, _) = run(jitter.clone(), 10_000, Duration::from_micros(100), 100);
    assert!(out.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
    let delays: Vec<Duration> = out.iter().map(|(i, at)| *at - Duration::from_micros(100) * *i).collect();
    assert!(delays.iter().all(|delay| (ms(5)..=ms(9)).contains(delay)));
    let reorder = LinkConfig { reorder: 0.05, reorder_by: ms(2), jitter: Duration::ZERO, ..jitter };
    let (out, counters) = run(reorder, 10_000, Duration::from_micros(100), 100);
    let overtaken = out.windows(2).filter(|pair| pair[0].0 > pair[1].0).count();
    assert!((450..550).contains(&counters.reordered), "{counters:?}");
    assert!((400..550).contains(&overtaken), "{overtaken}");
    assert_eq!(out.len(), 10_000);
}

#[test]
fn long_packets_vanish() {
    let (out, counters) = run(LinkConfig { mtu: 1_249, ..LinkConfig::default() }, 3, ms(1), PACKET.len());
    assert_eq!((out.len(), counters.too_large), (0, 3));
}

#[test]
fn a_change_of_the_rate_counts_at_once() {
    let start = Instant::now();
    let mut link = Link::new(LinkConfig { queue: Queue::Packets(100), ..LinkConfig::new(10_000, ms(0)) }, 1);
    link.offer(start, &PACKET);
    link.offer(start, &PACKET);
    // Half of the first has gone in half a second; the rest takes half a millisecond at the new rate.
    let change = start + ms(500);
    link.reconfigure(change, LinkConfig { queue: Queue::Packets(100), ..LinkConfig::new(10_000_000, ms(0)) });
    assert_eq!(link.next_arrival(), Some(change + Duration::from_micros(500)));
    assert!(link.poll(change + Duration::from_micros(500)).is_some());
    assert_eq!(link.next_arrival(), Some(change + Duration::from_micros(1_500)));
    // Without a rate the queue empties at once.
    link.reconfigure(change + ms(1), LinkConfig::default());
    assert!(link.poll(change + ms(1)).is_some());
    assert_eq!((link.queued_bytes(), link.next_arrival()), (0, None));
}

#[test]
fn codel_keeps_the_standing_queue_near_its_target() {
    // A flow that does not react, 10 % above the rate: drop-tail fills its queue, CoDel drops ever more often.
    let tail = LinkConfig { queue: Queue::Packets(1_000), ..LinkConfig::new(10_000_000, ms(0)) };
    let wait = |config: LinkConfig| {
        let gap = Duration::from_micros(910);
        let (out, counters) = run(config, 30_000, gap, PACKET.len());
        let late = out.iter().filter(|(i, _)| *i > 25_000).map(|(i, at)| *at - gap * *i);
        let (count, sum) = late.fold((0_u32, Duration::ZERO), |(n, sum), wait| (n + 1, sum + wait));
        (sum / count, counters)
    };
    let (standing, counters) = wait(tail.clone());
    assert!(standing > ms(900) && counters.codel_dropped == 0, "{standing:?}");
    let (kept, counters) = wait(LinkConfig { codel: Some(CoDelConfig::default()), ..tail });
    assert!(kept < ms(120) && counters.queue_full == 0, "{kept:?} {counters:?}");
}

#[test]
fn codel_leaves_a_queue_alone_that_empties() {
    let config = LinkConfig {
        codel: Some(CoDelConfig::default()),
        queue: Queue::Packets(100),
        ..LinkConfig::new(10_000_000, ms(0))
    };
    let start = Instant::now();
    let mut link = Link::new(config, 1);
    let mut passed = 0;
    // Bursts of 50 packets, 50 ms of queue, every 60 ms: the wait is long but ends within each interval.
    for burst in 0..50 {
        for _ in 0..50 {
            link.offer(start + ms(60) * burst, &PACKET);
        }
        while link.poll(start + ms(60) * burst + ms(59)).is_some() {
            passed += 1;
        }
    }
    assert_eq!((passed, link.counters().codel_dropped), (2_500, 0));
}

#[test]
fn codel_drops_at_the_pace_of_the_control_law() {
    // A standing queue far above the target: the first drop after one interval, then after interval / sqrt(n).
    let config = LinkConfig {
        codel: Some(CoDelConfig::default()),
        queue: Queue::Packets(10_000),
        ..LinkConfig::new(10_000_000, ms(0))
    };
    let (out, counters) = run(config, 2_000, ms(0), PACKET.len());
    let dropped: Vec<u32> = (0..2_000).filter(|i| !out.iter().any(|(number, _)| number == i)).collect();
    assert_eq!(counters.codel_dropped as usize, dropped.len());
    // One packet leaves per millisecond. The target is exceeded from packet 5 or 6 on.
    let first = f64::from(dropped[0]);
    assert!((104.0..108.0).contains(&first), "{dropped:?}");
    let mut expected = first;
    for (n, at) in dropped.iter().enumerate().take(20).skip(1) {
        // A dropped packet takes no time, so numbers run ahead of milliseconds by the drops before.
        expected += 100.0 / (n as f64).sqrt() + 1.0;
        assert!((f64::from(*at) - expected).abs() < n as f64 + 2.0, "{n}: {at}, expected {expected}");
    }
}

#[test]
fn the_lateness_of_the_caller_is_counted_and_changes_no_rate() {
    let start = Instant::now();
    let mut link =
        Link::new(LinkConfig { queue: Queue::Packets(10), ..LinkConfig::new(10_000_000, ms(1)) }, 1);
    link.offer(start, &PACKET);
    link.offer(start, &PACKET);
    assert!(link.poll(start + ms(7)).is_some());
    assert!(link.poll(start + ms(7)).is_some());
    let counters = link.counters();
    assert_eq!((counters.late, counters.latest_us), (2, 5_000));
}

fn any_config() -> impl Strategy<Value = LinkConfig> {
    let rate = prop_oneof![Just(None), (10_000_u64..1_000_000_000).prop_map(Some)];
    let queue = prop_oneof![
        (0_usize..50_000).prop_map(Queue::Bytes),
        (0_usize..40).prop_map(Queue::Packets),
        (0_u32..300).prop_map(Queue::Bdp),
    ];
    let burst = prop_oneof![Just(None), (0.0..0.5, 1.0..8.0).prop_map(|(s, l)| Some(Bursts::new(s, l)))];
    let codel = prop_oneof![Just(None), Just(Some(CoDelConfig::default()))];
    ((rate, queue, burst, codel), (0_u64..50, 0_u64..20, 0.0..0.3, 0.0..0.3, 0.0..0.3, 500_usize..3_000))
        .prop_map(|((rate, queue, bursts, codel), (delay, jitter, loss, duplicate, reorder, mtu))| {
            LinkConfig {
                rate,
                delay: ms(delay),
                jitter: ms(jitter),
                loss,
                bursts,
                reorder,
                reorder_by: ms(3),
                duplicate,
                queue,
                codel,
                mtu,
            }
        })
}

proptest! {
    /// Whatever the settings, changed at any time: every packet has exactly one fate, bounds hold, nothing is early.
    #[test]
    fn every_packet_is_accounted_for(
        configs in proptest::collection::vec(any_config(), 1..4),
        steps in proptest::collection::vec((0_u64..20_000, 1_usize..2_000), 1..300),
    ) {
        let start = Instant::now();
        let mut link = Link::new(configs[0].clone(), 9);
        let mut now = start;
        let mut arrived = 0_u64;
        for (i, (gap, len)) in steps.iter().enumerate() {
            now += Duration::from_micros(*gap);
            if i % 50 == 49 {
                link.reconfigure(now, configs[i / 50 % configs.len()].clone());
            }
            let room = link.config().queue_bounds().0;
            let waited = link.queued_bytes();
            link.offer(now, &vec![0; *len]);
            prop_assert!(link.queued_bytes() <= waited.max(room));
            let promised = link.next_arrival();
            while link.poll(now).is_some() {
                arrived += 1;
                prop_assert!(promised.is_some_and(|at| at <= now));
            }
        }
        now += Duration::from_secs(100_000);
        while link.poll(now).is_some() {
            arrived += 1;
        }
        let c = link.counters();
        prop_assert_eq!(arrived, c.delivered);
        prop_assert_eq!(link.next_arrival(), None);
        prop_assert_eq!(
            c.offered + c.duplicated,
            c.delivered + c.lost + c.burst_lost + c.queue_full + c.codel_dropped + c.too_large
        );
    }

    /// The same seed tells the same story.
    #[test]
    fn one_seed_is_one_story(config in any_config()) {
        let run = || run(config.clone(), 200, Duration::from_micros(300), 600);
        prop_assert_eq!(run(), run());
    }
}
