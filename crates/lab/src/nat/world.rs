//! A world: the public segment, a hub's site, and hosts behind NATs.
//!
//! ```text
//!  hub: 198.51.100.1, .2                        (site 0, public)
//!  A:   host ── box ── 198.51.100.17            (site 1)
//!  B:   host ── box ── 198.51.100.33            (site 2)
//! ```
//!
//! Inside, both sides use the same part of 192.168.0.0/16, as homes do, with different hosts in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tun_rs::SyncDevice;

use super::boxes;
use super::kind::NatKind;
use super::mapper::Mapper;
use super::segment::{Attached, Segment, Site};
use super::table::NatCounters;
use super::translator::{Translator, synthesize};
use crate::device::{self, INSIDE};
use crate::link::{Counters, Link, LinkConfig};
use crate::namespace::Namespace;
use crate::{LabError, pump, sweep};

/// Most sides of one world.
const MAX_SIDES: usize = 6;
/// Largest IP packet of the devices.
const MTU: u16 = 1_500;
/// Addresses that a roaming host goes through.
pub const ROAMING_ADDRESSES: u8 = 8;

/// What a world looks like.
#[derive(Debug, Clone)]
pub struct WorldConfig {
    /// One way through the public segment. Two sides are twice this apart, and each as far from the hub.
    pub one_way: Duration,
    /// Bits per second of the way out of each side.
    pub rate: u64,
    /// Seed of ports and losses.
    pub seed: u64,
    /// Hosts behind the first side's NAT beyond the first; they reach each other only through the NAT.
    pub neighbours: u8,
}

impl Default for WorldConfig {
    /// 100 ms from side to side and back, 100 Mbit/s.
    fn default() -> Self {
        Self { one_way: Duration::from_millis(50), rate: 100_000_000, seed: 1, neighbours: 0 }
    }
}

/// One side: its host, and what is between it and the public.
#[derive(Debug)]
pub struct Side {
    kind: NatKind,
    hosts: Vec<Namespace>,
    boxes: Vec<Namespace>,
    /// Its place in the segment.
    site: usize,
    /// Answers requests for port mappings.
    mapper: Option<Mapper>,
    roamed: u32,
    /// Whether a public host has IPv4, and IPv6.
    versions: (bool, bool),
}

impl Side {
    /// What it is behind.
    #[must_use]
    pub fn kind(&self) -> NatKind {
        self.kind
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &Namespace {
        &self.hosts[0]
    }

    /// One of several hosts behind the same NAT.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn neighbour(&self, index: usize) -> &Namespace {
        &self.hosts[index]
    }

    /// Its first public address.
    #[must_use]
    pub fn public(&self) -> Ipv4Addr {
        site_address(self.site, 0)
    }
}

/// Everything; it goes away when this is dropped.
#[derive(Debug)]
pub struct World {
    /// Before the namespaces: nobody reads a device that is gone.
    segment: Segment,
    hub: Namespace,
    sides: Vec<Side>,
    config: WorldConfig,
}

impl World {
    /// A world with these sides.
    ///
    /// # Errors
    /// [`LabError::Unavailable`] without root, TUN or nftables; [`LabError::Failed`] with the step that failed.
    pub fn new(kinds: &[NatKind], config: &WorldConfig) -> Result<Self, LabError> {
        static WORLDS: AtomicU32 = AtomicU32::new(0);
        super::available()?;
        if kinds.len() > MAX_SIDES {
            return Err(LabError::Setting(format!("a world has at most {MAX_SIDES} sides")));
        }
        sweep()?;
        let number = WORLDS.fetch_add(1, Ordering::Relaxed) % 10_000;
        let maker = Maker { number, config };
        let hub = maker.room("hub", site_address(0, 0), true)?;
        let device = maker.device("h", &hub)?;
        let four = (0..4).map(|host| IpAddr::from(site_address(0, host)));
        let addresses: Vec<IpAddr> = four.chain((0..4).map(|host| site_v6(0, host).into())).collect();
        boxes::attach(&hub, &addresses)?;
        let mut sites = vec![maker.site(0, vec![Attached { device, address: None }], None)];
        let mut sides = Vec::new();
        for (index, kind) in kinds.iter().enumerate() {
            let (side, site) =
                maker.side(index + 1, *kind, if index == 0 { config.neighbours } else { 0 })?;
            sides.push(side);
            sites.push(site);
        }
        let segment = Segment::start(sites)?;
        Ok(Self { segment, hub, sides, config: config.clone() })
    }

    /// Where hubs, beacons and probes run: in public, without a NAT.
    #[must_use]
    pub fn hub(&self) -> &Namespace {
        &self.hub
    }

    /// One of the hub's four addresses, as a host of this kind must call it.
    #[must_use]
    pub fn hub_address(&self, seen_by: NatKind, index: u8) -> IpAddr {
        let address = site_address(0, index);
        if seen_by == NatKind::Nat64 { synthesize(address).into() } else { address.into() }
    }

    /// A side.
    ///
    /// # Panics
    /// If there is none of this number.
    #[must_use]
    pub fn side(&self, index: usize) -> &Side {
        &self.sides[index]
    }

    /// From side to side and back.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        self.config.one_way * 2
    }

    /// The boxes of this side lose their tables, as after a power cut.
    ///
    /// # Errors
    /// [`LabError::Failed`] with the step that failed.
    pub fn reboot(&self, side: usize) -> Result<(), LabError> {
        let Side { site, boxes, .. } = &self.sides[side];
        self.segment.with(*site, |site| site.translator.iter_mut().for_each(Translator::forget));
        boxes.iter().try_for_each(boxes::forget)
    }

    /// The host of this side gets another address of its network, and loses the one that it had.
    ///
    /// # Errors
    /// [`LabError::Failed`] with the step that failed.
    pub fn roam(&mut self, side: usize) -> Result<IpAddr, LabError> {
        let side = &mut self.sides[side];
        side.roamed += 1;
        let step = |number: u32| (number % u32::from(ROAMING_ADDRESSES)) as u8;
        let address = |number| host_address(side.kind, side.site, step(number));
        let (old, new) = (address(side.roamed - 1), address(side.roamed));
        boxes::exchange(&side.hosts[0], old, new, side.boxes.is_empty())?;
        Ok(new)
    }

    /// Gives a public host these versions of IP and takes the others away.
    ///
    /// # Errors
    /// [`LabError::Setting`] behind a NAT; [`LabError::Failed`] with the step that failed.
    pub fn set_versions(&mut self, side: usize, v4: bool, v6: bool) -> Result<(), LabError> {
        let Side { kind, site, hosts, versions, .. } = &mut self.sides[side];
        if *kind != NatKind::None {
            return Err(LabError::Setting("only a public host has both versions of IP".into()));
        }
        let pairs = [
            (versions.0, v4, IpAddr::from(site_address(*site, 0))),
            (versions.1, v6, IpAddr::from(site_v6(*site, 0))),
        ];
        // First what is new: a host may have both for a moment, as between two networks.
        for (has, wants, address) in pairs {
            if wants && !has {
                boxes::add(&hosts[0], address)?;
            }
        }
        for (has, wants, address) in pairs {
            if has && !wants {
                boxes::remove(&hosts[0], address)?;
            }
        }
        *versions = (v4, v6);
        Ok(())
    }

    /// The hub's address of this number, in IPv6.
    #[must_use]
    pub fn hub_v6(&self, index: u8) -> IpAddr {
        site_v6(0, index).into()
    }

    /// Pulls the cable of this side, or plugs it in again.
    pub fn plug(&self, side: usize, plugged: bool) {
        self.segment.with(self.sides[side].site, |site| site.plugged = plugged);
    }

    /// The sides no longer reach each other, but the hub; or everybody again.
    pub fn sever(&self, severed: bool) {
        self.segment.sever(severed);
    }

    /// Changes the way out of a side.
    pub fn set_link(&self, side: usize, link: LinkConfig) {
        self.segment.set_link(self.sides[side].site, link);
    }

    /// What the way out of a side did so far.
    #[must_use]
    pub fn link_counters(&self, side: usize) -> Counters {
        self.segment.counters(self.sides[side].site)
    }

    /// What the user-space NAT of a side did so far, if it has one.
    #[must_use]
    pub fn nat_counters(&self, side: usize) -> Option<NatCounters> {
        self.segment.with(self.sides[side].site, |site| site.translator.as_ref().map(Translator::counters))
    }

    /// Packets and bytes that the hub's site sent into the public segment.
    #[must_use]
    pub fn hub_sent(&self) -> (u64, u64) {
        self.segment.with(0, |site| site.sent)
    }

    /// Port mappings that this side's box has made.
    #[must_use]
    pub fn mappings(&self, side: usize) -> usize {
        self.sides[side].mapper.as_ref().map_or(0, Mapper::len)
    }
}

/// Sixteen addresses for each site.
pub(crate) fn site_address(site: usize, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, site as u8 * 16 + 1 + host)
}

fn site_part(site: usize) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, site as u16, 0, 0, 0, 0, 0)
}

/// An IPv6 address of a site.
pub(crate) fn site_v6(site: usize, host: u8) -> Ipv6Addr {
    let part = site_part(site).segments();
    Ipv6Addr::new(part[0], part[1], part[2], 0, 0, 0, 0, u16::from(host) + 2)
}

/// The address of a side's host; `step` counts how often it has roamed.
pub(crate) fn host_address(kind: NatKind, site: usize, step: u8) -> IpAddr {
    match kind {
        NatKind::None => site_address(site, step).into(),
        NatKind::Nat64 => site_v6(site, step).into(),
        // The last part differs between sites; the networks do not.
        _ => Ipv4Addr::new(192, 168, 1, site as u8 * 20 + step).into(),
    }
}

/// Makes the parts.
struct Maker<'a> {
    number: u32,
    config: &'a WorldConfig,
}

impl Maker<'_> {
    /// A host.
    fn room(&self, label: &str, address: Ipv4Addr, v6: bool) -> Result<Namespace, LabError> {
        Namespace::bare(&format!("n{}-{label}", self.number), address, v6, false)
    }

    /// A box between a host and the public.
    fn router(&self, label: &str) -> Result<Namespace, LabError> {
        Namespace::bare(&format!("n{}-{label}", self.number), Ipv4Addr::UNSPECIFIED, false, true)
    }

    /// A device of ours as the way out of a namespace.
    fn device(&self, label: &str, room: &Namespace) -> Result<Arc<SyncDevice>, LabError> {
        // Interface names have at most 15 characters; process numbers at most 7.
        let name = format!("n{}x{}{label}", std::process::id(), self.number);
        let device = device::create(&name, MTU)?;
        device::ip(&["link", "set", &name, "netns", room.name(), "name", INSIDE])?;
        Ok(Arc::new(device))
    }

    fn site(&self, site: usize, hosts: Vec<Attached>, translator: Option<Translator>) -> Site {
        let link = LinkConfig::new(self.config.rate, self.config.one_way);
        let link = Link::new(link, self.config.seed.wrapping_add(site as u64)).with_lead(pump::LEAD);
        let (first, part) = (site_address(site, 0), site_part(site));
        Site { hosts, link, translator, first, part, plugged: true, sent: (0, 0) }
    }

    fn side(&self, site: usize, kind: NatKind, neighbours: u8) -> Result<(Side, Site), LabError> {
        let public = site_address(site, 0);
        let host_label = |index: u8| format!("h{site}{}", char::from(b'a' + index));
        let side = |hosts, boxes, mapper| Side {
            kind,
            hosts,
            boxes,
            site,
            mapper,
            roamed: 0,
            versions: (true, false),
        };
        if let Some(config) = kind.config(public, self.config.seed ^ (site as u64) << 32) {
            let v6 = kind == NatKind::Nat64;
            let translator = if v6 { Translator::nat64(config) } else { Translator::nat44(config) };
            let (mut hosts, mut attached) = (Vec::new(), Vec::new());
            for index in 0..=neighbours {
                let address = host_address(kind, site, index * ROAMING_ADDRESSES);
                let host = self.room(&host_label(index), Ipv4Addr::UNSPECIFIED, v6)?;
                let device = self.device(&host_label(index), &host)?;
                boxes::attach(&host, &[address])?;
                let only = match address {
                    IpAddr::V4(address) if neighbours > 0 => Some(address),
                    _ => None,
                };
                attached.push(Attached { device, address: only });
                hosts.push(host);
            }
            let made = self.site(site, attached, Some(translator));
            return Ok((side(hosts, Vec::new(), None), made));
        }
        let host = self.room(&host_label(0), Ipv4Addr::UNSPECIFIED, kind == NatKind::None)?;
        let address = host_address(kind, site, 0);
        if kind == NatKind::None {
            let device = self.device(&host_label(0), &host)?;
            boxes::attach(&host, &[address])?;
            let made = self.site(site, vec![Attached { device, address: None }], None);
            return Ok((side(vec![host], Vec::new(), None), made));
        }
        let mut rooms = vec![self.router(&format!("b{site}a"))?];
        if kind == NatKind::Double {
            rooms.push(self.router(&format!("b{site}b"))?);
        }
        let device = self.device(&host_label(0), &rooms[rooms.len() - 1])?;
        boxes::chain(kind, &host, address, &rooms, public)?;
        let mapper = match kind {
            NatKind::Mapped => Some(Mapper::start(&rooms[0], public)?),
            _ => None,
        };
        let made = self.site(site, vec![Attached { device, address: None }], None);
        Ok((side(vec![host], rooms, mapper), made))
    }
}
