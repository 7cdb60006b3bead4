//! The user-space NAT, packet by packet.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::packet::tests::datagram;
use super::packet::{Protocol, flow};
use super::table::{Allocation, Dependence, MAX_ADMITTED, MAX_MAPPINGS, NatConfig, Table};
use super::translator::{Translator, Verdict, embedded, synthesize};
use super::{MAPPING_LIFETIME, NatKind};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 17);
const DEPENDENCES: [Dependence; 3] =
    [Dependence::EndpointIndependent, Dependence::AddressDependent, Dependence::AddressAndPortDependent];

fn config(mapping: Dependence, filtering: Dependence) -> NatConfig {
    let (allocation, timeout) = (Allocation::Sequential, MAPPING_LIFETIME);
    NatConfig { mapping, filtering, allocation, hairpin: false, timeout, address: OUTSIDE, seed: 7 }
}

fn seen(verdict: &Verdict) -> (String, String) {
    let (Verdict::Outside(packet) | Verdict::Inside(packet)) = verdict else { return Default::default() };
    let flow = flow(packet).expect("flow");
    (flow.source.to_string(), flow.target.to_string())
}

#[test]
fn mappings_depend_on_what_they_should() {
    for mapping in DEPENDENCES {
        let mut nat = Translator::nat44(config(mapping, Dependence::EndpointIndependent));
        let now = Instant::now();
        let mut leave = |target| seen(&nat.outbound(now, datagram("10.0.0.2:4000", target, b"x"))).0;
        let first = leave("203.0.113.1:1");
        let (port, address) = (leave("203.0.113.1:2"), leave("203.0.113.2:1"));
        assert_eq!(first, leave("203.0.113.1:1"), "{mapping:?}");
        assert_eq!(first == port, mapping != Dependence::AddressAndPortDependent, "{mapping:?}");
        assert_eq!(first == address, mapping == Dependence::EndpointIndependent, "{mapping:?}");
    }
}

#[test]
fn filters_admit_whom_they_should() {
    for filtering in DEPENDENCES {
        let mut nat = Translator::nat44(config(Dependence::EndpointIndependent, filtering));
        let now = Instant::now();
        let out = seen(&nat.outbound(now, datagram("10.0.0.2:4000", "203.0.113.1:1", b"x"))).0;
        let mut enter = |source| nat.inbound(now, datagram(source, &out, b"y")) != Verdict::Dropped;
        assert!(enter("203.0.113.1:1"), "{filtering:?}");
        assert_eq!(enter("203.0.113.1:2"), filtering != Dependence::AddressAndPortDependent, "{filtering:?}");
        assert_eq!(enter("203.0.113.2:1"), filtering == Dependence::EndpointIndependent, "{filtering:?}");
    }
}

#[test]
fn an_answer_comes_back_to_whom_it_is_for() {
    let mut nat = Translator::nat44(config(DEPENDENCES[0], DEPENDENCES[2]));
    let now = Instant::now();
    let out = seen(&nat.outbound(now, datagram("10.0.0.2:4000", "203.0.113.1:1", b"x"))).0;
    let back = nat.inbound(now, datagram("203.0.113.1:1", &out, b"answer"));
    assert_eq!(seen(&back), ("203.0.113.1:1".into(), "10.0.0.2:4000".into()));
    assert!(matches!(back, Verdict::Inside(packet) if packet.ends_with(b"answer")));
}

#[test]
fn silence_and_power_cuts_end_mappings() {
    let mut nat = Translator::nat44(config(DEPENDENCES[0], DEPENDENCES[0]));
    let mut now = Instant::now();
    let send = |nat: &mut Translator, now| {
        seen(&nat.outbound(now, datagram("10.0.0.2:4000", "203.0.113.1:1", b""))).0
    };
    let enters = |nat: &mut Translator, now, to: &str| {
        nat.inbound(now, datagram("203.0.113.1:1", to, b"")) != Verdict::Dropped
    };
    let out = send(&mut nat, now);
    now += MAPPING_LIFETIME - Duration::from_millis(1);
    assert!(enters(&mut nat, now, &out), "alive to the end");
    now += Duration::from_millis(1);
    assert!(!enters(&mut nat, now, &out), "what comes in does not refresh");
    let again = send(&mut nat, now);
    assert!(again != out && enters(&mut nat, now, &again));
    nat.forget();
    assert!(!enters(&mut nat, now, &again) && nat.table().is_empty());
}

#[test]
fn only_a_hairpin_leads_back_inside() {
    for hairpin in [false, true] {
        let mut nat = Translator::nat44(NatConfig { hairpin, ..config(DEPENDENCES[0], DEPENDENCES[2]) });
        let now = Instant::now();
        let mut send = |from, to: &str| nat.outbound(now, datagram(from, to, b"x"));
        let one = seen(&send("10.0.0.2:4000", "203.0.113.1:1")).0;
        let other = seen(&send("10.0.0.3:4000", "203.0.113.1:1")).0;
        // The first opens the way, the second goes through.
        assert_eq!(send("10.0.0.2:4000", &other), Verdict::Dropped);
        let through = send("10.0.0.3:4000", &one);
        let expected = if hairpin { (other, "10.0.0.2:4000".to_owned()) } else { Default::default() };
        assert_eq!(seen(&through), expected);
    }
}

#[test]
fn the_table_and_what_a_mapping_admits_are_bounded() {
    let mut table = Table::new(config(DEPENDENCES[2], DEPENDENCES[2]));
    let now = Instant::now();
    let inside = "10.0.0.2:4000".parse().expect("inside");
    let outside = |number: usize| std::net::SocketAddrV4::new(Ipv4Addr::from(0x0b00_0000 + number as u32), 1);
    for number in 0..MAX_MAPPINGS {
        assert!(table.outbound(now, Protocol::Udp, inside, outside(number)).is_some());
    }
    assert_eq!(table.outbound(now, Protocol::Udp, inside, outside(MAX_MAPPINGS)), None);
    assert_eq!((table.len(), table.counters.refused), (MAX_MAPPINGS, 1));
    let later = now + MAPPING_LIFETIME;
    assert!(table.outbound(later, Protocol::Udp, inside, outside(0)).is_some());
    assert_eq!(table.len(), 1);

    let mut table = Table::new(config(DEPENDENCES[0], DEPENDENCES[2]));
    let port = table.outbound(now, Protocol::Udp, inside, outside(0)).expect("port");
    for number in 1..=MAX_ADMITTED {
        table.outbound(now + Duration::from_micros(number as u64), Protocol::Udp, inside, outside(number));
    }
    let mut enters = |number| table.inbound(now, Protocol::Udp, port, outside(number)).is_some();
    assert!(!enters(0) && enters(1) && enters(MAX_ADMITTED));
}

#[test]
fn ports_are_kept_counted_or_random() {
    for allocation in [Allocation::Preserve, Allocation::Sequential, Allocation::Random] {
        let mut table = Table::new(NatConfig { allocation, ..config(DEPENDENCES[0], DEPENDENCES[0]) });
        let outside = "203.0.113.1:1".parse().expect("outside");
        let mut map = |inside: &str| {
            table
                .outbound(Instant::now(), Protocol::Udp, inside.parse().expect("inside"), outside)
                .expect("port")
        };
        let (one, two, clash) = (map("10.0.0.2:4000"), map("10.0.0.2:5000"), map("10.0.0.3:4000"));
        match allocation {
            Allocation::Preserve => assert_eq!((one, two, clash), (4000, 5000, 4001)),
            Allocation::Sequential => assert_eq!((two.wrapping_sub(one), clash.wrapping_sub(two)), (1, 1)),
            Allocation::Random => assert!(one.abs_diff(two) > 1 && two.abs_diff(clash) > 1),
        }
    }
}

#[test]
fn ipv6_inside_meets_ipv4_outside() {
    let mut nat = Translator::nat64(NatKind::Nat64.config(OUTSIDE, 1).expect("user space"));
    let now = Instant::now();
    let hub = Ipv4Addr::new(198, 51, 100, 1);
    assert_eq!(embedded(synthesize(hub)), Some(hub));
    let out =
        nat.outbound(now, datagram("[2001:db8:1::2]:4000", &format!("[{}]:9001", synthesize(hub)), b"x"));
    let (source, target) = seen(&out);
    assert_eq!(target, "198.51.100.1:9001");
    let back = nat.inbound(now, datagram("198.51.100.1:9001", &source, b"y"));
    assert_eq!(seen(&back), (format!("[{}]:9001", synthesize(hub)), "[2001:db8:1::2]:4000".into()));
    // What stays IPv6 is let in only as an answer.
    let native = |from: &str, to: &str| datagram(from, to, b"z");
    let (us, them) = ("[2001:db8:1::2]:4000", "[2001:db8:2::2]:4000");
    assert_eq!(nat.inbound(now, native(them, us)), Verdict::Dropped);
    assert!(matches!(nat.outbound(now, native(us, them)), Verdict::Outside(_)));
    assert!(matches!(nat.inbound(now, native(them, us)), Verdict::Inside(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is sent in whatever order: no two inside ends share an outside port, and what enters by a port reaches the
    /// one that it stands for.
    #[test]
    fn no_port_stands_for_two(
        mapping in 0..3_usize,
        filtering in 0..3_usize,
        steps in proptest::collection::vec((0..6_u8, 0..4_u8, 0..40_u64, any::<bool>()), 1..80),
    ) {
        let mut nat = Table::new(NatConfig { allocation: Allocation::Preserve, ..config(DEPENDENCES[mapping], DEPENDENCES[filtering]) });
        let mut now = Instant::now();
        for (host, peer, pause, cut) in steps {
            now += Duration::from_secs(pause / 8);
            if cut && pause == 0 {
                nat.forget();
            }
            let inside = std::net::SocketAddr::from((Ipv4Addr::new(10, 0, 0, host), 4000));
            let outside = std::net::SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, peer / 2), 1 + u16::from(peer % 2));
            let port = nat.outbound(now, Protocol::Udp, inside, outside).expect("room");
            prop_assert_eq!(nat.inbound(now, Protocol::Udp, port, outside), Some(inside));
        }
    }

    #[test]
    fn no_packet_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        for kind in [NatKind::FullCone, NatKind::Nat64, NatKind::Hairpin] {
            let config = kind.config(OUTSIDE, 1).expect("user space");
            let mut nat = if kind == NatKind::Nat64 { Translator::nat64(config) } else { Translator::nat44(config) };
            let _ = (nat.outbound(Instant::now(), bytes.clone()), nat.inbound(Instant::now(), bytes.clone()));
        }
    }
}
