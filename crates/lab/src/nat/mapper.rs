//! A small responder for port mappings: NAT-PMP (RFC 6886) and PCP's MAP (RFC 6887), UDP only, for one box of the kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::boxes::{GATEWAY, nft};
use crate::LabError;
use crate::namespace::Namespace;

/// Where both protocols are asked.
pub(crate) const PORT: u16 = 5_351;
/// Most mappings of one box.
pub(crate) const MAX_MAPPED: usize = 64;
/// Longest life of a mapping that is granted. Seconds.
pub(crate) const MAX_LIFETIME: u32 = 7_200;
/// How often the thread looks whether it should end.
const NAP: Duration = Duration::from_millis(50);
/// PCP's answer as an IPv4 address inside IPv6.
const PCP_LENGTH: usize = 60;

/// Success, and the refusals that are used; the numbers are those of both protocols where they agree.
const SUCCESS: u8 = 0;
const UNSUPPORTED_VERSION: u8 = 1;
const OUT_OF_RESOURCES: u8 = 4;
const UNSUPPORTED_OPCODE: u8 = 5;
const PCP_UNSUPPORTED_OPCODE: u8 = 4;
const PCP_NO_RESOURCES: u8 = 8;
const PCP_ADDRESS_MISMATCH: u8 = 12;

/// One granted mapping: the outside port, and whom it is for.
type Granted = Arc<Mutex<BTreeMap<u16, (SocketAddr, Instant)>>>;

/// The running responder.
#[derive(Debug)]
pub(crate) struct Mapper {
    granted: Granted,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mapper {
    pub(crate) fn start(room: &Namespace, public: Ipv4Addr) -> Result<Self, LabError> {
        let failed = |error: std::io::Error| LabError::failed("port mapping", error);
        let socket = room.run(|| UdpSocket::bind((GATEWAY, PORT)))?.map_err(failed)?;
        socket.set_read_timeout(Some(NAP)).map_err(failed)?;
        let (granted, stop) = (Granted::default(), Arc::new(AtomicBool::new(false)));
        let mut server = Server { public, granted: granted.clone(), begun: Instant::now() };
        let (ending, room) = (stop.clone(), room.name().to_owned());
        let work = move || {
            let mut buffer = [0; 1_100];
            while !ending.load(Ordering::Acquire) {
                let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
                let Some((answer, change)) = server.answer(&buffer[..len], from) else { continue };
                // A rule that is refused is a mapping that does not work: the self-test sees it.
                if let Some(change) = change
                    && let Err(error) = nft(&room, &change)
                {
                    eprintln!("port mapping: {error}");
                }
                let _ = socket.send_to(&answer, from);
            }
        };
        let thread = std::thread::Builder::new().name("mapper".into()).spawn(work).map_err(failed)?;
        Ok(Self { granted, stop, thread: Some(thread) })
    }

    pub(crate) fn len(&self) -> usize {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Server {
    public: Ipv4Addr,
    granted: Granted,
    begun: Instant,
}

impl Server {
    /// The answer to a request, and what nftables must be told.
    fn answer(&mut self, request: &[u8], from: SocketAddr) -> Option<(Vec<u8>, Option<String>)> {
        match request.first()? {
            0 => self.nat_pmp(request, from),
            2 => self.pcp(request, from),
            _ => Some((vec![0, 128, 0, UNSUPPORTED_VERSION, 0, 0, 0, 0], None)),
        }
    }

    /// Seconds since the box began, which clients use to see a reboot.
    fn epoch(&self) -> [u8; 4] {
        (self.begun.elapsed().as_secs() as u32 + 1).to_be_bytes()
    }

    fn nat_pmp(&mut self, request: &[u8], from: SocketAddr) -> Option<(Vec<u8>, Option<String>)> {
        let opcode = *request.get(1)?;
        let head = |code: u8, epoch: [u8; 4]| [&[0, opcode | 128, 0, code][..], &epoch].concat();
        match opcode {
            0 => {
                let mut answer = head(SUCCESS, self.epoch());
                answer.extend_from_slice(&self.public.octets());
                Some((answer, None))
            }
            1 if request.len() >= 12 => {
                let word = |at: usize| u16::from_be_bytes([request[at], request[at + 1]]);
                let lifetime = u32::from_be_bytes([request[8], request[9], request[10], request[11]]);
                let (port, change) = self.map(SocketAddr::new(from.ip(), word(4)), word(6), lifetime);
                let code = if port == 0 && lifetime > 0 { OUT_OF_RESOURCES } else { SUCCESS };
                let mut answer = head(code, self.epoch());
                answer.extend_from_slice(&word(4).to_be_bytes());
                answer.extend_from_slice(&port.to_be_bytes());
                answer.extend_from_slice(&lifetime.min(MAX_LIFETIME).to_be_bytes());
                Some((answer, change))
            }
            _ => Some((head(UNSUPPORTED_OPCODE, self.epoch()), None)),
        }
    }

    /// Version 2: a header of 24 bytes, and for MAP 36 more.
    fn pcp(&mut self, request: &[u8], from: SocketAddr) -> Option<(Vec<u8>, Option<String>)> {
        if request.len() < 24 || request[1] & 128 != 0 {
            return None;
        }
        let mut answer = request[..request.len().min(PCP_LENGTH)].to_vec();
        answer[1] |= 128;
        answer[2] = 0;
        answer[8..12].copy_from_slice(&self.epoch());
        answer[12..24].fill(0);
        let claimed: [u8; 16] = request[8..24].try_into().ok()?;
        let is_own = std::net::Ipv6Addr::from(claimed).to_canonical() == from.ip();
        let mut change = None;
        answer[3] = match request[1] {
            // An announcement request is answered by the header alone.
            0 => SUCCESS,
            1 if !is_own => PCP_ADDRESS_MISMATCH,
            // UDP is protocol 17.
            1 if request.len() >= PCP_LENGTH && request[36] == 17 => {
                let lifetime = u32::from_be_bytes([request[4], request[5], request[6], request[7]]);
                let inside = u16::from_be_bytes([request[40], request[41]]);
                let wanted = u16::from_be_bytes([request[42], request[43]]);
                let (port, told) = self.map(SocketAddr::new(from.ip(), inside), wanted, lifetime);
                change = told;
                answer[4..8].copy_from_slice(&lifetime.min(MAX_LIFETIME).to_be_bytes());
                answer[42..44].copy_from_slice(&port.to_be_bytes());
                answer[44..60].copy_from_slice(&self.public.to_ipv6_mapped().octets());
                if port == 0 && lifetime > 0 { PCP_NO_RESOURCES } else { SUCCESS }
            }
            _ => PCP_UNSUPPORTED_OPCODE,
        };
        Some((answer, change))
    }

    /// Grants, renews or ends a mapping. Port 0: there is none.
    fn map(&mut self, inside: SocketAddr, wanted: u16, lifetime: u32) -> (u16, Option<String>) {
        let now = Instant::now();
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut change = String::new();
        let IpAddr::V4(host) = inside.ip() else { return (0, None) };
        let element =
            |port: u16, inside: &SocketAddr| format!("{{ {port} : {} . {} }}", inside.ip(), inside.port());
        granted.retain(|port, (old, until)| {
            let ends = *until <= now || (*old == inside && lifetime == 0);
            if ends {
                change += &format!("delete element ip lab udp_mapped {}\n", element(*port, old));
            }
            !ends
        });
        let told = |change: String| (!change.is_empty()).then_some(change);
        if lifetime == 0 || host.is_unspecified() || inside.port() == 0 {
            return (0, told(change));
        }
        let until = now + Duration::from_secs(lifetime.min(MAX_LIFETIME).into());
        if let Some((port, (_, old))) = granted.iter_mut().find(|(_, (old, _))| *old == inside) {
            *old = until;
            return (*port, told(change));
        }
        // The suggested port, the one from inside, then upwards.
        let first = if wanted >= 1_024 { wanted } else { inside.port().max(1_024) };
        let free = (first..=u16::MAX).chain(1_024..first).find(|port| !granted.contains_key(port));
        let Some(port) = free.filter(|_| granted.len() < MAX_MAPPED) else { return (0, told(change)) };
        granted.insert(port, (inside, until));
        change += &format!("add element ip lab udp_mapped {}\n", element(port, &inside));
        (port, Some(change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "192.168.1.20:4000";

    fn server() -> Server {
        Server { public: Ipv4Addr::new(198, 51, 100, 17), granted: Granted::default(), begun: Instant::now() }
    }

    fn pmp(port: u16, lifetime: u32) -> Vec<u8> {
        let mut request = vec![0, 1, 0, 0];
        request.extend_from_slice(&port.to_be_bytes());
        request.extend_from_slice(&[0, 0]);
        request.extend_from_slice(&lifetime.to_be_bytes());
        request
    }

    fn pcp(port: u16, lifetime: u32, client: &str) -> Vec<u8> {
        let mut request = vec![2, 1, 0, 0];
        request.extend_from_slice(&lifetime.to_be_bytes());
        request.extend_from_slice(&client.parse::<Ipv4Addr>().expect("ip").to_ipv6_mapped().octets());
        request.extend_from_slice(&[7; 12]);
        request.extend_from_slice(&[17, 0, 0, 0]);
        request.extend_from_slice(&port.to_be_bytes());
        request.extend_from_slice(&[0; 18]);
        request
    }

    #[test]
    fn a_mapping_is_granted_renewed_and_ended() {
        let (mut server, host) = (server(), HOST.parse().expect("host"));
        let (answer, change) = server.answer(&pmp(4000, 100), host).expect("answer");
        assert_eq!(
            (answer.len(), answer[1], answer[3], &answer[8..12]),
            (16, 129, SUCCESS, &[15, 160, 15, 160][..])
        );
        assert!(
            change.expect("rule").contains("add element ip lab udp_mapped { 4000 : 192.168.1.20 . 4000 }")
        );
        assert_eq!(server.answer(&pmp(4000, 100), host).expect("answer").1, None);
        let (_, change) = server.answer(&pmp(4000, 0), host).expect("answer");
        assert!(change.expect("rule").starts_with("delete element"));
        assert!(server.granted.lock().expect("lock").is_empty());
        let (address, _) = server.answer(&[0, 0], host).expect("answer");
        assert_eq!(address[8..], [198, 51, 100, 17]);
    }

    #[test]
    fn pcp_names_port_and_address_and_nobody_maps_for_others() {
        let (mut server, host) = (server(), HOST.parse().expect("host"));
        let (answer, change) = server.answer(&pcp(4000, 100, "192.168.1.20"), host).expect("answer");
        assert_eq!((answer.len(), answer[1], answer[3]), (PCP_LENGTH, 129, SUCCESS));
        assert_eq!((&answer[24..36], &answer[42..44]), (&[7; 12][..], &[15, 160][..]));
        assert_eq!(answer[56..60], [198, 51, 100, 17]);
        assert!(change.is_some());
        let (answer, change) = server.answer(&pcp(4000, 100, "192.168.1.21"), host).expect("answer");
        assert_eq!((answer[3], change), (PCP_ADDRESS_MISMATCH, None));
    }

    #[test]
    fn the_number_of_mappings_is_bounded() {
        let (mut server, host) = (server(), HOST.parse().expect("host"));
        for port in 0..MAX_MAPPED as u16 {
            assert_eq!(server.answer(&pmp(5000 + port, 100), host).expect("answer").0[3], SUCCESS);
        }
        assert_eq!(server.answer(&pmp(4000, 100), host).expect("answer").0[3], OUT_OF_RESOURCES);
        assert_eq!(
            server.answer(&pcp(4000, 100, "192.168.1.20"), host).expect("answer").0[3],
            PCP_NO_RESOURCES
        );
    }

    #[test]
    fn any_bytes_are_answered_or_ignored() {
        let (mut server, host) = (server(), HOST.parse().expect("host"));
        for length in 0..64 {
            for version in 0..4 {
                for opcode in [0, 1, 2, 128] {
                    let mut request = vec![0; length];
                    request.iter_mut().take(2).zip([version, opcode]).for_each(|(byte, value)| *byte = value);
                    let _ = server.answer(&request, host);
                }
            }
        }
    }
}
