//! Streams over bad links, in virtual time. Replay a failing seed with `PILOTAGE_SEED=n`.

use std::time::Duration;

use pilotage_proto::{Config, ReadError};
use pilotage_sim::{Link, Pair, Side, pattern, seeds};

fn bad_link(seed: u64) -> Link {
    // The seed picks how bad: up to 30 % loss, and everything else at once.
    Link {
        delay: Duration::from_millis(1 + seed % 40),
        jitter: Duration::from_millis(seed % 17),
        loss: (seed % 31) as f64 / 100.0,
        duplicate: (seed % 7) as f64 / 50.0,
        corrupt: (seed % 5) as f64 / 50.0,
        reorder: (seed % 11) as f64 / 40.0,
        ..Link::default()
    }
}

#[test]
fn a_clean_link_carries_a_megabyte() {
    let data = pattern(1 << 20, 1);
    let mut pair = Pair::new(1, Link::default());
    let outcome = pair.transfer(&data);
    assert!(outcome.received == data);
    assert_eq!(outcome.stats.segments_retransmitted, 0, "{:?}", outcome.stats);
    eprintln!("{:?} {:?}", outcome.time, outcome.stats);
}

#[test]
fn a_megabyte_survives_loss_reordering_duplication_and_corruption() {
    let count = std::env::var("PILOTAGE_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1_000);
    let data = pattern(1 << 20, 2);
    for seed in seeds(count) {
        let mut pair = Pair::new(seed, bad_link(seed));
        match pair.try_transfer(&data, Duration::from_secs(1200)) {
            Ok(outcome) => assert!(outcome.received == data, "wrong bytes; replay with PILOTAGE_SEED={seed}"),
            Err(error) => panic!("{error:?} at {:?}; replay with PILOTAGE_SEED={seed}", pair.elapsed()),
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let data = pattern(200_000, 3);
    let run = |seed| {
        let mut pair = Pair::new(seed, bad_link(29));
        pair.transfer(&data);
        pair.digest()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn write_then_close_never_truncates() {
    let count = std::env::var("PILOTAGE_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10_000);
    for seed in seeds(count) {
        let data = pattern(1 + (seed as usize * 7919) % 40_000, seed);
        let mut pair = Pair::new(seed, Link { loss: 0.1, ..Link::default() });
        let (a, b) = pair.connect(1000).unwrap_or_else(|e| panic!("{e:?}; PILOTAGE_SEED={seed}"));
        let now = pair.now;
        assert_eq!(pair.endpoint(Side::A).write(now, a, &data), Ok(data.len()));
        pair.endpoint(Side::A).close(now, a); // the handle is gone; the bytes must still arrive
        let mut got = Vec::new();
        let mut buf = vec![0; 65536];
        let ended = pair.run_until(Duration::from_secs(120), |p| {
            let now = p.now;
            loop {
                match p.endpoint(Side::B).read(now, b, &mut buf) {
                    Ok(0) => return true,
                    Ok(n) => got.extend_from_slice(&buf[..n]),
                    Err(pilotage_proto::ReadError::Blocked) => return false,
                    Err(e) => panic!("{e:?} after {}; PILOTAGE_SEED={seed}", got.len()),
                }
            }
        });
        assert!(ended && got == data, "truncated to {}; PILOTAGE_SEED={seed}", got.len());
    }
}

/// Reads what is there at one side.
fn drain(
    pair: &mut Pair,
    side: Side,
    id: pilotage_proto::ConnectionId,
    got: &mut Vec<u8>,
) -> Result<bool, ReadError> {
    let mut buf = vec![0; 65536];
    loop {
        let now = pair.now;
        match pair.endpoint(side).read(now, id, &mut buf) {
            Ok(0) => return Ok(true),
            Ok(n) => got.extend_from_slice(&buf[..n]),
            Err(ReadError::Blocked) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

#[test]
fn a_transfer_across_the_sequence_wrap_is_exact() {
    for back in [0u32, 1, 1_000, 70_000, 400_000] {
        let cfg = Config { initial_sequence_number: Some(0u32.wrapping_sub(back)), ..Config::default() };
        let data = pattern(900_000, 9);
        let link = Link { loss: 0.03, reorder: 0.05, ..Link::default() };
        let outcome = Pair::with_config(u64::from(back), link, cfg).transfer(&data);
        assert!(outcome.received == data, "{back} before the wrap");
    }
}

#[test]
fn a_stalled_reader_closes_the_window_and_opens_it_again() {
    for loss in [0.0, 0.2] {
        let cfg = Config { recv_buffer: 64 * 1024, ..Config::default() };
        let mut pair = Pair::with_config(21, Link { loss, ..Link::default() }, cfg);
        let (a, b) = pair.connect(1000).expect("connects");
        let data = pattern(500_000, 4);
        let now = pair.now;
        assert_eq!(pair.endpoint(Side::A).write(now, a, &data), Ok(data.len()));
        pair.run_for(Duration::from_secs(100)); // far beyond every give-up time
        assert!(pair.endpoint(Side::B).readable(b) <= 64 * 1024, "the bound holds");
        assert!(pair.endpoint(Side::A).is_open(a), "a peer that answers probes is not given up");
        let mut got = Vec::new();
        let done = pair.run_until(Duration::from_secs(60), |p| {
            drain(p, Side::B, b, &mut got).expect("open");
            got.len() == data.len()
        });
        assert!(done && got == data, "{} of {} at loss {loss}", got.len(), data.len());
    }
}

#[test]
fn a_stalled_reader_does_not_slow_another_connection() {
    let cfg = Config { recv_buffer: 256 * 1024, ..Config::default() };
    let run = |stalled: usize| {
        let mut pair = Pair::with_config(22, Link { rate: Some(12_500_000), ..Link::default() }, cfg.clone());
        for i in 0..stalled {
            let (a, _) = pair.connect(2000 + i as u16).expect("connects");
            let now = pair.now;
            pair.endpoint(Side::A).write(now, a, &pattern(1 << 20, 1)).expect("room");
        }
        pair.run_for(Duration::from_secs(3));
        pair.transfer(&pattern(4 << 20, 5)).time
    };
    let (alone, among) = (run(0), run(20));
    assert!(among < alone.mul_f64(1.25), "alone {alone:?}, among 20 stalled ones {among:?}");
}

#[test]
fn each_direction_ends_on_its_own() {
    let mut pair = Pair::new(23, Link { loss: 0.1, ..Link::default() });
    let (a, b) = pair.connect(1000).expect("connects");
    let now = pair.now;
    pair.endpoint(Side::A).write(now, a, b"question").expect("room");
    pair.endpoint(Side::A).shutdown(now, a).expect("open");
    let mut question = Vec::new();
    assert!(pair.run_until(Duration::from_secs(30), |p| drain(p, Side::B, b, &mut question).expect("open")));
    assert_eq!(question, b"question");
    // B may take its time: A's direction is over, B's is not.
    pair.run_for(Duration::from_secs(10));
    let answer = pattern(300_000, 6);
    let now = pair.now;
    pair.endpoint(Side::B).write(now, b, &answer).expect("room");
    pair.endpoint(Side::B).shutdown(now, b).expect("open");
    let mut got = Vec::new();
    assert!(pair.run_until(Duration::from_secs(60), |p| drain(p, Side::A, a, &mut got).expect("open")));
    assert_eq!(got, answer);
}

#[test]
fn idle_connections_of_living_peers_stay_open() {
    let mut pair = Pair::new(24, Link::default());
    let (a, b) = pair.connect(1000).expect("connects");
    pair.run_for(Duration::from_secs(1000));
    let before = pair.sent;
    pair.run_for(Duration::from_secs(250));
    let sent = pair.sent[0] + pair.sent[1] - before[0] - before[1];
    assert!(sent <= 2 * 9, "{sent} packets in 250 s of idleness");
    pair.run_for(Duration::from_secs(3600)); // over the hourly change of keys
    assert!(pair.endpoint(Side::A).is_open(a) && pair.endpoint(Side::B).is_open(b));
}

#[test]
fn an_idle_connection_to_a_dead_peer_is_closed_after_its_keepalives_went_unanswered() {
    let mut pair = Pair::new(25, Link::default());
    let (a, _) = pair.connect(1000).expect("connects");
    pair.links[0].down = true;
    pair.links[1].down = true;
    let start = pair.now;
    assert!(pair.run_until(Duration::from_secs(300), |p| !p.endpoint(Side::A).is_open(a)));
    let took = pair.now.duration_since(start);
    assert!((Duration::from_secs(50)..Duration::from_secs(75)).contains(&took), "{took:?}");
}

#[test]
fn datagrams_grow_to_what_the_path_carries_and_shrink_when_it_narrows() {
    let mut pair = Pair::new(26, Link { mtu: 1_452, ..Link::default() });
    let (a, b) = pair.connect(1000).expect("connects");
    let mut got = Vec::new();
    let mut send = |pair: &mut Pair, data: &[u8]| {
        let (mut written, goal) = (0, got.len() + data.len());
        let ok = pair.run_until(Duration::from_secs(120), |p| {
            let now = p.now;
            if written < data.len() {
                written += p.endpoint(Side::A).write(now, a, &data[written..]).unwrap_or(0);
            }
            drain(p, Side::B, b, &mut got).expect("open");
            got.len() >= goal
        });
        assert!(ok, "stuck at {} of {goal}", got.len());
        pair.endpoint(Side::A).connection_path(a).expect("path").datagram_size
    };
    let wide = send(&mut pair, &pattern(12 << 20, 1));
    assert!((1_400..=1_452).contains(&wide), "found {wide}");
    for link in &mut pair.links {
        link.mtu = 1_280;
    }
    let narrow = send(&mut pair, &pattern(12 << 20, 2));
    assert!((1_200..=1_280).contains(&narrow), "fell to {narrow}");
}

#[test]
fn a_blackout_in_mid_transfer_is_survived() {
    let mut pair = Pair::new(27, Link { rate: Some(500_000), ..Link::default() });
    let (a, b) = pair.connect(1000).expect("connects");
    let data = pattern(500_000, 8);
    let now = pair.now;
    assert_eq!(pair.endpoint(Side::A).write(now, a, &data), Ok(data.len()));
    pair.run_for(Duration::from_millis(500));
    for link in &mut pair.links {
        link.down = true;
    }
    pair.run_for(Duration::from_secs(20));
    for link in &mut pair.links {
        link.down = false;
    }
    let mut got = Vec::new();
    let back = pair.now;
    let done = pair.run_until(Duration::from_secs(60), |p| {
        drain(p, Side::B, b, &mut got).expect("open");
        got.len() == data.len()
    });
    assert!(done && got == data, "{} bytes", got.len());
    assert!(pair.now.duration_since(back) < Duration::from_secs(12), "{:?}", pair.now.duration_since(back));
}

#[test]
fn data_that_looks_like_sack_is_delivered() {
    let mut data = Vec::new();
    for i in 0..2_000u32 {
        data.extend_from_slice(b"SACK");
        data.push(1 + (i % 5) as u8);
        data.extend_from_slice(&pattern(8 + (i % 40) as usize, u64::from(i)));
    }
    let outcome = Pair::new(28, Link { loss: 0.05, ..Link::default() }).transfer(&data);
    assert!(outcome.received == data);
}

#[test]
fn small_writes_are_coalesced_until_acknowledged_or_40_ms() {
    let run = |nodelay: bool, delay: u64| {
        let mut pair = Pair::new(29, Link { delay: Duration::from_millis(delay), ..Link::default() });
        let (a, b) = pair.connect(1000).expect("connects");
        let now = pair.now;
        pair.endpoint(Side::A).set_nodelay(now, a, nodelay);
        let mut got = Vec::new();
        let start = pair.now;
        for i in 0..100u8 {
            let now = pair.now;
            pair.endpoint(Side::A).write(now, a, &[i]).expect("room");
            pair.run_for(Duration::from_millis(1));
        }
        pair.run_until(Duration::from_secs(5), |p| {
            drain(p, Side::B, b, &mut got).expect("open");
            got.len() == 100
        });
        assert_eq!(got, (0..100).collect::<Vec<u8>>());
        let stats = pair.endpoint(Side::A).connection_stats(a).expect("open");
        (stats.segments_sent, pair.now.duration_since(start))
    };
    assert_eq!(run(true, 10).0, 100, "each write is a segment");
    assert!(run(false, 10).0 <= 8, "one segment per round trip or so");
    // Over a long link the bound of 40 ms counts, not the round trip of 400 ms.
    let (segments, took) = run(false, 200);
    assert!(segments >= 3 && took < Duration::from_millis(360), "{segments} segments, {took:?}");
}

#[test]
fn acks_wait_for_a_second_segment_or_10_ms_and_never_at_a_gap() {
    let mut pair = Pair::new(30, Link::default());
    let (a, _) = pair.connect(1000).expect("connects");
    pair.run_for(Duration::from_secs(1));
    let acks = pair.sent[1];
    let now = pair.now;
    pair.endpoint(Side::A).write(now, a, b"one small segment").expect("room");
    pair.run_for(Duration::from_millis(10 + 7));
    assert_eq!(pair.sent[1], acks, "not yet");
    pair.run_for(Duration::from_millis(10));
    assert_eq!(pair.sent[1], acks + 1, "after 10 ms");
}

#[test]
fn a_closed_connection_leaves_no_state_and_drops_replays() {
    let mut pair = Pair::new(31, Link::default());
    pair.record = true;
    pair.transfer(b"short");
    pair.run_for(Duration::from_secs(1));
    let held = [Side::A, Side::B].map(|s| pair.endpoint(s).peers()[0].connections);
    assert_eq!(held, [0, 0], "no connection state is kept");
    // The last FIN again, sealed anew by its sender, would be answered; replayed as it is, the window drops it.
    let replay = pair.endpoint(Side::B).stats().drop_replay;
    let last = pair
        .recorded
        .iter()
        .rev()
        .find(|(s, b)| *s == Side::A && b.starts_with(b"PILS"))
        .map(|(_, b)| b.clone());
    let from = pair.host(Side::A).addr;
    pair.inject(from, Side::B, &last.expect("A sent something"));
    pair.run_for(Duration::from_secs(1));
    assert_eq!(pair.endpoint(Side::B).stats().drop_replay, replay + 1);
}

#[test]
fn many_connections_share_one_tunnel() {
    let mut pair = Pair::new(32, Link { loss: 0.02, ..Link::default() });
    pair.endpoint(Side::B).listen(1000).expect("free");
    let to = pilotage_wire::SocketAddress { address: pair.host(Side::B).address, port: 1000 };
    let mut accepted = Vec::new();
    let ids: Vec<_> = (0..300)
        .map(|i| {
            let now = pair.now;
            let id = pair.endpoint(Side::A).connect(now, to).expect("room");
            if i % 50 == 49 {
                pair.run_for(Duration::from_millis(200)); // the accept queue holds 64
                accepted.extend(std::iter::from_fn(|| pair.endpoint(Side::B).accept(1000)).map(|(id, _)| id));
            }
            id
        })
        .collect();
    pair.run_until(Duration::from_secs(30), |p| {
        while let Some((id, _)) = p.endpoint(Side::B).accept(1000) {
            accepted.push(id);
        }
        accepted.len() == ids.len()
    });
    assert_eq!(accepted.len(), ids.len());
    for (i, id) in ids.iter().enumerate() {
        let now = pair.now;
        pair.endpoint(Side::A).write(now, *id, &pattern(5_000, i as u64)).expect("room");
        pair.endpoint(Side::A).shutdown(now, *id).expect("open");
    }
    let mut got = vec![Vec::new(); accepted.len()];
    let mut done = vec![false; accepted.len()];
    pair.run_until(Duration::from_secs(60), |p| {
        for (i, id) in accepted.iter().enumerate() {
            if !done[i] {
                done[i] = drain(p, Side::B, *id, &mut got[i]).expect("open");
            }
        }
        done.iter().all(|d| *d)
    });
    assert!(done.iter().all(|d| *d));
    let mut expected: Vec<_> = (0..ids.len()).map(|i| pattern(5_000, i as u64)).collect();
    expected.sort();
    got.sort();
    assert!(got == expected, "each stream has its own bytes");
}

#[test]
fn segments_never_exceed_the_configured_datagram_size() {
    for max in [1_200usize, 1_452, 4_166, 9_000] {
        let cfg = Config { max_datagram_size: max, ..Config::default() };
        let mut pair = Pair::with_config(33, Link::default(), cfg);
        pair.record = true;
        pair.transfer(&pattern(2 << 20, 3));
        let longest = pair.recorded.iter().map(|(_, b)| b.len()).max().unwrap_or(0);
        assert!(longest <= max, "{longest} > {max}");
        assert!(longest > max - 200, "and it is used: {longest} of {max}");
    }
}

#[test]
fn syn_is_repeated_each_second_and_then_given_up() {
    let mut pair = Pair::new(34, Link::default());
    pair.connect(1000).expect("the tunnel is up");
    pair.run_for(Duration::from_secs(3));
    pair.links[1].down = true; // SYN arrives, nothing comes back
    let to = pilotage_wire::SocketAddress { address: pair.host(Side::B).address, port: 1001 };
    pair.endpoint(Side::B).listen(1001).expect("free");
    let start = pair.now;
    let id = pair.endpoint(Side::A).connect(start, to).expect("begins");
    let (mut times, mut sent) = (Vec::new(), pair.sent[0]);
    let failed = pair.run_until(Duration::from_secs(60), |p| {
        if p.sent[0] > sent {
            sent = p.sent[0];
            times.push(p.now.duration_since(start));
        }
        p.endpoint(Side::A).connect_error(id).is_some()
    });
    assert!(failed);
    assert_eq!(pair.endpoint(Side::A).connect_error(id), Some(pilotage_proto::ConnectError::Timeout));
    let took = pair.now.duration_since(start);
    assert!((Duration::from_secs(14)..Duration::from_secs(17)).contains(&took), "{took:?}");
    // Each 0.75 to 1.25 s, and not in step with anybody else's.
    let gaps: Vec<_> = times.windows(2).map(|t| t[1] - t[0]).skip(3).collect();
    assert!((10..40).contains(&times.len()), "{times:?}");
    assert!(gaps.windows(2).any(|g| g[0] != g[1]), "{gaps:?}");
}

#[test]
fn unread_bytes_of_all_connections_together_are_bounded() {
    let cfg = Config { recv_buffer: 1 << 20, receive_memory: 4 << 20, ..Config::default() };
    let mut pair = Pair::with_config(35, Link::default(), cfg);
    let ids: Vec<_> = (0..20).map(|i| pair.connect(3000 + i).expect("connects")).collect();
    let data = pattern(512 << 10, 12);
    for (a, _) in &ids {
        let now = pair.now;
        assert_eq!(pair.endpoint(Side::A).write(now, *a, &data), Ok(data.len()));
    }
    pair.run_for(Duration::from_secs(60));
    let held: usize = ids.iter().map(|(_, b)| pair.endpoint(Side::B).readable(*b)).sum();
    // The bound, what each may hold beside it, and what one round of datagrams adds before it is noticed.
    assert!(held <= (4 << 20) + 20 * (64 << 10) + (2 << 20), "{held} bytes held");
    assert!(held > 3 << 20, "{held}: it was reached");
    let mut got = vec![Vec::new(); ids.len()];
    let done = pair.run_until(Duration::from_secs(120), |p| {
        for ((_, b), got) in ids.iter().zip(&mut got) {
            drain(p, Side::B, *b, got).expect("open");
        }
        got.iter().all(|g| g.len() == data.len())
    });
    assert!(done && got.iter().all(|g| *g == data), "everything arrives once it is read");
}
