//! Random writers, readers, ends, losses and new sessions.

use super::*;
use proptest::prelude::*;

/// One stream of the model, as the side sees it that opened it.
struct Model {
    opener: usize,
    near: u32,
    far: Option<u32>,
    data: [Vec<u8>; 2],
    written: [usize; 2],
    got: [Vec<u8>; 2],
    ended: [bool; 2],
}

fn run(seed: u64, streams: usize, loss: f64, late: f64, sessions: u32) {
    let cfg = Config { recv_buffer: 64 << 10, send_buffer: 32 << 10, ..Config::default() };
    let mut pair = Pair::with(seed, Trouble { loss, late, ..CLEAN }, &cfg);
    let mut models: Vec<Model> = Vec::new();
    for n in 0..streams {
        let opener = (pair.rng.next_u32() % 2) as usize;
        let now = pair.now;
        let near = pair.ends[opener].open(now, 1_000 + n as u16);
        let mut len = || (pair.rng.next_u32() % 120_000) as usize;
        let data = [pattern(len(), n as u64), pattern(len(), 77 + n as u64)];
        let empty = || [Vec::new(), Vec::new()];
        models.push(Model {
            opener,
            near,
            far: None,
            data,
            written: [0; 2],
            got: empty(),
            ended: [false; 2],
        });
    }
    let mut session = 0;
    let done = pair.run(Duration::from_secs(300), |p| {
        if session < sessions && p.chance(0.01) {
            session += 1;
            p.new_session(session);
        }
        let now = p.now;
        for m in &mut models {
            let other = 1 - m.opener;
            let port = m.data_port(&p.ends[m.opener]);
            m.far = m.far.or_else(|| {
                let found = |slot: &&u32| p.ends[other].stream(**slot).local.port == port;
                p.ends[other].incoming.iter().find(found).copied()
            });
            p.ends[m.opener].fill(m.near, &m.data[0], &mut m.written[0]);
            m.ended[0] |= p.ends[m.opener].drain(now, m.near, &mut m.got[0]);
            if let Some(far) = m.far {
                p.ends[other].fill(far, &m.data[1], &mut m.written[1]);
                m.ended[1] |= p.ends[other].drain(now, far, &mut m.got[1]);
            }
        }
        models.iter().all(|m| m.ended == [true; 2])
    });
    assert!(pair.errors.is_empty(), "seed {seed}: {:?}", pair.errors);
    assert!(done, "seed {seed}: not all ended");
    for m in &models {
        assert!(m.got[1] == m.data[0] && m.got[0] == m.data[1], "seed {seed}");
    }
    pair.trouble.loss = 0.0;
    let quiet = |e: &End| e.mux.streams.iter().all(Stream::is_over) && e.path.in_flight == 0;
    pair.run(Duration::from_secs(20), |p| p.ends.iter().all(quiet));
    for end in &pair.ends {
        assert!(end.mux.streams.iter().all(Stream::is_over), "seed {seed}");
        assert_eq!(end.path.in_flight, 0, "seed {seed}");
    }
}

impl Model {
    fn data_port(&self, end: &End) -> u16 {
        end.stream(self.near).remote.port
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn all_arrives_in_both_directions(seed: u64, streams in 1usize..12, loss in 0.0f64..0.25, late in 0.0f64..0.3,
        sessions in 0u32..6)
    {
        run(seed, streams, loss, late, sessions);
    }
}
