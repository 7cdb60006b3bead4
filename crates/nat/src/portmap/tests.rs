//! A mapper against routers of all kinds.

use super::*;
use crate::clock_start;
use proptest::prelude::*;

const NONCE: [u8; 12] = *b"twelve bytes";

fn mapper(now: Instant) -> Mapper {
    Mapper::new("192.168.1.1".parse().unwrap(), "192.168.1.7".parse().unwrap(), 4000, NONCE, now)
}

/// What a router knows and does.
#[derive(Clone, Copy)]
struct Router {
    pcp: bool,
    pmp: bool,
    result: u8,
    lifetime: u32,
}

impl Router {
    fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        match request {
            [2, 1, ..] if self.pcp => {
                assert_eq!(request.len(), 60);
                let mut reply = request.to_vec();
                (reply[1], reply[3]) = (0x81, self.result);
                reply[4..8].copy_from_slice(&self.lifetime.to_be_bytes());
                reply[8..24].fill(0);
                reply[42..44].copy_from_slice(&5000_u16.to_be_bytes());
                reply[54..60].copy_from_slice(&[0xff, 0xff, 203, 0, 113, 9]);
                Some(reply)
            }
            [2, ..] if self.pmp => Some(vec![0, 0x80, 0, 1, 0, 0, 0, 9]),
            [0, 0] if self.pmp => Some(vec![0, 0x80, 0, self.result, 0, 0, 0, 9, 203, 0, 113, 9]),
            [0, 1, ..] if self.pmp => {
                let mut reply = vec![0, 0x81, 0, self.result, 0, 0, 0, 9];
                reply.extend_from_slice(&request[4..6]);
                reply.extend_from_slice(&5001_u16.to_be_bytes());
                reply.extend_from_slice(&self.lifetime.to_be_bytes());
                Some(reply)
            }
            _ => None,
        }
    }
}

/// Lets time pass; the requests that were sent.
fn run(mapper: &mut Mapper, router: Router, now: &mut Instant, time: Duration) -> Vec<Vec<u8>> {
    let (end, mut sent) = (*now + time, Vec::new());
    while *now < end {
        let mut buf = [0; MAX_MESSAGE];
        while let Some(len) = mapper.poll_transmit(*now, &mut buf) {
            sent.push(buf[..len].to_vec());
            assert!(sent.len() < 1_000, "it never rests");
            if let Some(reply) = router.answer(&buf[..len]) {
                mapper.handle(*now, mapper.router(), &reply);
            }
        }
        *now += Duration::from_millis(50);
    }
    sent
}

const GOOD: Router = Router { pcp: true, pmp: true, result: 0, lifetime: 3_600 };

#[test]
fn pcp_is_agreed_renewed_and_given_back() {
    let mut now = clock_start();
    let mut mapper = mapper(now);
    let sent = run(&mut mapper, GOOD, &mut now, Duration::from_secs(10));
    assert_eq!(sent.len(), 1);
    let mapping = mapper.mapping().unwrap();
    assert_eq!(
        (mapping.external.to_string().as_str(), mapping.protocol),
        ("203.0.113.9:5000", Protocol::Pcp)
    );
    let sent = run(&mut mapper, GOOD, &mut now, Duration::from_secs(1_800));
    assert_eq!(sent.len(), 1, "renewed at half the time");
    assert_eq!(sent[0][42..44], 5000_u16.to_be_bytes(), "with the port that we have");
    mapper.release();
    let sent = run(&mut mapper, GOOD, &mut now, Duration::from_secs(3_600));
    assert_eq!((sent.len(), &sent[0][4..8]), (1, &[0; 4][..]), "lifetime 0, once");
    assert_eq!((mapper.mapping(), mapper.poll_timeout()), (None, None));
}

#[test]
fn nat_pmp_is_spoken_where_pcp_is_not() {
    for silent in [false, true] {
        let mut now = clock_start();
        let mut mapper = mapper(now);
        // Some answer "unsupported version", some nothing at all.
        let router = Router { pcp: false, ..GOOD };
        if silent {
            run(&mut mapper, Router { pmp: false, ..router }, &mut now, Duration::from_millis(3_000));
        }
        run(&mut mapper, router, &mut now, Duration::from_secs(8));
        let mapping = mapper.mapping().unwrap();
        assert_eq!(
            (mapping.external.to_string().as_str(), mapping.protocol),
            ("203.0.113.9:5001", Protocol::NatPmp)
        );
        mapper.release();
        let sent = run(&mut mapper, router, &mut now, Duration::from_secs(9));
        assert_eq!(sent, [vec![0, 1, 0, 0, 0x0f, 0xa0, 0, 0, 0, 0, 0, 0]]);
    }
}

#[test]
fn a_router_that_does_not_map_is_asked_rarely() {
    for router in [
        Router { pcp: false, pmp: false, ..GOOD },
        Router { result: 8, ..GOOD },
        Router { result: 2, pcp: false, ..GOOD },
    ] {
        let mut now = clock_start();
        let mut mapper = mapper(now);
        let sent = run(&mut mapper, router, &mut now, Duration::from_secs(3_600));
        assert!(mapper.mapping().is_none());
        assert!((6..=60).contains(&sent.len()), "{}", sent.len());
    }
}

#[test]
fn a_mapping_ends_when_the_router_has_gone() {
    let mut now = clock_start();
    let mut mapper = mapper(now);
    run(&mut mapper, GOOD, &mut now, Duration::from_secs(1));
    let silent = Router { pcp: false, pmp: false, ..GOOD };
    run(&mut mapper, silent, &mut now, Duration::from_secs(3_700));
    assert!(mapper.mapping().is_none());
    mapper.renew(now);
    run(&mut mapper, GOOD, &mut now, Duration::from_secs(1));
    assert!(mapper.mapping().is_some());
}

#[test]
fn answers_of_others_and_to_others_change_nothing() {
    let now = clock_start();
    let mut mapper = mapper(now);
    let mut buf = [0; MAX_MESSAGE];
    let len = mapper.poll_transmit(now, &mut buf).unwrap();
    let reply = GOOD.answer(&buf[..len]).unwrap();
    mapper.handle(now, "192.168.1.1:5350".parse().unwrap(), &reply);
    mapper.handle(now, "192.168.1.2:5351".parse().unwrap(), &reply);
    for at in [24, 40] {
        let mut other = reply.clone();
        other[at] ^= 1;
        mapper.handle(now, mapper.router(), &other);
    }
    assert!(mapper.mapping().is_none());
    // An answer that names no usable address, or no time, is a refusal.
    let mut nowhere = reply.clone();
    nowhere[54..60].fill(0);
    mapper.handle(now, mapper.router(), &nowhere);
    assert!(mapper.mapping().is_none() && mapper.refused().is_some());
}

proptest! {
    #[test]
    fn no_answer_makes_it_ask_often(replies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..40)) {
        let mut now = clock_start();
        let mut mapper = mapper(now);
        let mut buf = [0; MAX_MESSAGE];
        let mut sent = 0;
        for reply in replies.iter().cycle().take(400) {
            while mapper.poll_transmit(now, &mut buf).is_some() {
                sent += 1;
            }
            mapper.handle(now, mapper.router(), reply);
            now += Duration::from_millis(100);
        }
        // 40 s: two protocols, four tries each, and what an answer may begin anew.
        prop_assert!(sent <= 100, "{sent}");
    }
}
