//! What a link is set to, and the one way to write it down.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::LabError;

/// Properties of one direction of a link. Probabilities are per packet, 0 to 1. Sizes are those of whole IP packets.
///
/// Written as `rate=100mbit,delay=20ms,loss=1%,queue=1bdp`; see [`LinkConfig::set`] for the keys.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkConfig {
    /// Bits per second; `None` is unlimited (and then nothing ever waits).
    pub rate: Option<u64>,
    /// One way, without the wait in the queue and the transmission itself.
    pub delay: Duration,
    /// Up to this much is added to the delay, evenly distributed. Packets keep their order.
    pub jitter: Duration,
    /// Lost, each packet for itself.
    pub loss: f64,
    /// Lost in bursts, besides [`LinkConfig::loss`].
    pub bursts: Option<Bursts>,
    /// Held back by [`LinkConfig::reorder_by`], so that later ones overtake.
    pub reorder: f64,
    /// How long a packet is held back that is to be overtaken.
    pub reorder_by: Duration,
    /// Delivered twice.
    pub duplicate: f64,
    /// What may wait for the rate.
    pub queue: Queue,
    /// Active queue management on top of the bound.
    pub codel: Option<CoDelConfig>,
    /// Longer packets vanish without a word.
    pub mtu: usize,
}

/// The bound of the drop-tail queue. The packet in transmission does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Bytes.
    Bytes(usize),
    /// Packets.
    Packets(usize),
    /// Bytes and packets, whichever is reached first.
    Both {
        /// Bytes.
        bytes: usize,
        /// Packets.
        packets: usize,
    },
    /// So many hundredths of the product of rate and round-trip time (twice the delay), at least two full packets.
    Bdp(u32),
}

/// RFC 8289.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoDelConfig {
    /// The wait that is acceptable.
    pub target: Duration,
    /// For how long it may be exceeded before the first drop.
    pub interval: Duration,
}

impl Default for CoDelConfig {
    /// 5 ms and 100 ms, as RFC 8289 recommends.
    fn default() -> Self {
        Self { target: Duration::from_millis(5), interval: Duration::from_millis(100) }
    }
}

/// The loss model of Gilbert and Elliott: a good and a bad state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bursts {
    /// Chance to go from good to bad, before each packet.
    pub enter: f64,
    /// Chance to go from bad to good; its inverse is the mean burst length in packets.
    pub leave: f64,
    /// Loss in the bad state. In the good state nothing is lost.
    pub loss: f64,
}

impl Bursts {
    /// Bursts of `length` packets on average, all of which are lost, that make up `share` of all packets.
    #[must_use]
    pub fn new(share: f64, length: f64) -> Self {
        let leave = 1.0 / length.max(1.0);
        Self { enter: (leave * share / (1.0 - share).max(1e-9)).min(1.0), leave, loss: 1.0 }
    }

    /// The share of all packets that is lost in the long run.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.loss * self.enter / (self.enter + self.leave).max(f64::MIN_POSITIVE)
    }
}

impl Default for LinkConfig {
    /// Nothing: no rate, no delay, no loss.
    fn default() -> Self {
        Self {
            rate: None,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            bursts: None,
            reorder: 0.0,
            reorder_by: Duration::from_millis(1),
            duplicate: 0.0,
            queue: Queue::Bdp(100),
            codel: None,
            mtu: usize::from(u16::MAX),
        }
    }
}

impl LinkConfig {
    /// A rate in bits per second, a one-way delay, and a queue of one product of rate and round-trip time.
    #[must_use]
    pub fn new(rate: u64, delay: Duration) -> Self {
        Self { rate: Some(rate), delay, ..Self::default() }
    }

    /// The same with this share of packets lost.
    #[must_use]
    pub fn losing(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    /// Bounds of the queue in bytes and packets.
    #[must_use]
    pub fn queue_bounds(&self) -> (usize, usize) {
        match self.queue {
            Queue::Bytes(bytes) => (bytes, usize::MAX),
            Queue::Packets(packets) => (usize::MAX, packets),
            Queue::Both { bytes, packets } => (bytes, packets),
            Queue::Bdp(hundredths) => {
                let bdp = self.rate.unwrap_or(0) as f64 / 8.0 * self.delay.as_secs_f64() * 2.0;
                (((bdp * f64::from(hundredths) / 100.0) as usize).max(3_000), usize::MAX)
            }
        }
    }

    /// Sets one property from text.
    ///
    /// | key | value |
    /// |---|---|
    /// | `rate` | `100mbit`, `64kbit`, `1gbit`, or `none` |
    /// | `delay`, `jitter` | `20ms`, `250us`, `1s` |
    /// | `loss`, `duplicate` | `1%` |
    /// | `burst` | `2%x4`: share and mean length, or `none` |
    /// | `reorder` | `5%x2ms`: share and how long it is held back |
    /// | `queue` | `64kb`, `25p` (packets), `64kb+25p`, `1bdp`, `0.5bdp` |
    /// | `codel` | `on`, `off`, or `5ms/100ms` |
    /// | `mtu` | bytes |
    ///
    /// # Errors
    /// [`LabError::Setting`] with the key and what was wrong.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), LabError> {
        let known = match key {
            "rate" if value == "none" => put(&mut self.rate, Some(None)),
            "rate" => put(&mut self.rate, parse_rate(value).map(Some)),
            "delay" => put(&mut self.delay, parse_time(value)),
            "jitter" => put(&mut self.jitter, parse_time(value)),
            "loss" => put(&mut self.loss, parse_share(value)),
            "duplicate" => put(&mut self.duplicate, parse_share(value)),
            "burst" if value == "none" => put(&mut self.bursts, Some(None)),
            "burst" => put(&mut self.bursts, parse_bursts(value).map(Some)),
            "reorder" => self.set_reorder(value),
            "queue" => put(&mut self.queue, parse_queue(value)),
            "codel" => put(&mut self.codel, parse_codel(value)),
            "mtu" => put(&mut self.mtu, value.parse().ok()),
            _ => return Err(LabError::Setting(format!("unknown key `{key}`"))),
        };
        known.ok_or_else(|| LabError::Setting(format!("{key}: `{value}` cannot be read")))
    }

    fn set_reorder(&mut self, value: &str) -> Option<()> {
        let (share, by) = match value.split_once('x') {
            Some((share, by)) => (parse_share(share)?, parse_time(by)?),
            None => (parse_share(value)?, self.reorder_by),
        };
        (self.reorder, self.reorder_by) = (share, by);
        Some(())
    }

    /// Sets several properties: `rate=50mbit,loss=2%`.
    ///
    /// # Errors
    /// As [`LinkConfig::set`]; what comes before the mistake has been set.
    pub fn set_all(&mut self, text: &str) -> Result<(), LabError> {
        for part in text.split([',', ' ']).filter(|part| !part.is_empty()) {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| LabError::Setting(format!("`{part}` is not key=value")))?;
            self.set(key, value)?;
        }
        Ok(())
    }
}

impl FromStr for LinkConfig {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let mut config = Self::default();
        config.set_all(text)?;
        Ok(config)
    }
}

impl fmt::Display for LinkConfig {
    /// As [`LinkConfig::set`] reads it, without what is left at its default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rate {
            Some(rate) => write!(f, "rate={}mbit", rate as f64 / 1e6)?,
            None => write!(f, "rate=none")?,
        }
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, ",delay={}ms", ms(self.delay))?;
        if !self.jitter.is_zero() {
            write!(f, ",jitter={}ms", ms(self.jitter))?;
        }
        if self.loss > 0.0 {
            write!(f, ",loss={}%", self.loss * 100.0)?;
        }
        if let Some(bursts) = self.bursts {
            write!(f, ",burst={:.6}%x{}", bursts.share() * 100.0, 1.0 / bursts.leave)?;
        }
        if self.reorder > 0.0 {
            write!(f, ",reorder={}%x{}ms", self.reorder * 100.0, ms(self.reorder_by))?;
        }
        if self.duplicate > 0.0 {
            write!(f, ",duplicate={}%", self.duplicate * 100.0)?;
        }
        match self.queue {
            Queue::Bytes(bytes) => write!(f, ",queue={bytes}b")?,
            Queue::Packets(packets) => write!(f, ",queue={packets}p")?,
            Queue::Both { bytes, packets } => write!(f, ",queue={bytes}b+{packets}p")?,
            Queue::Bdp(hundredths) => write!(f, ",queue={}bdp", f64::from(hundredths) / 100.0)?,
        }
        if let Some(codel) = self.codel {
            write!(f, ",codel={}ms/{}ms", ms(codel.target), ms(codel.interval))?;
        }
        if self.mtu < usize::from(u16::MAX) {
            write!(f, ",mtu={}", self.mtu)?;
        }
        Ok(())
    }
}

fn put<T>(place: &mut T, value: Option<T>) -> Option<()> {
    *place = value?;
    Some(())
}

/// A number and the unit behind it.
fn number(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let value: f64 = text[..end].parse().ok()?;
    Some((value, &text[end..]))
}

fn parse_rate(text: &str) -> Option<u64> {
    let (value, unit) = number(text)?;
    let factor = match unit {
        "bit" => 1.0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return None,
    };
    Some((value * factor).round() as u64).filter(|rate| (1..=1_000_000_000_000).contains(rate))
}

fn parse_time(text: &str) -> Option<Duration> {
    let (value, unit) = number(text)?;
    let seconds = match unit {
        "s" => value,
        "ms" => value / 1e3,
        "us" => value / 1e6,
        _ => return None,
    };
    Some(Duration::from_nanos((seconds * 1e9).round() as u64))
        .filter(|time| *time <= Duration::from_secs(3_600))
}

fn parse_share(text: &str) -> Option<f64> {
    let (value, unit) = number(text)?;
    let share = match unit {
        "%" => value / 100.0,
        "" => value,
        _ => return None,
    };
    Some(share).filter(|share| (0.0..=1.0).contains(share))
}

fn parse_bursts(text: &str) -> Option<Bursts> {
    let (share, length) = text.split_once('x')?;
    let (share, length): (f64, f64) = (parse_share(share)?, length.parse().ok()?);
    (share < 1.0 && length >= 1.0).then(|| Bursts::new(share, length))
}

fn parse_queue(text: &str) -> Option<Queue> {
    if let Some((bytes, packets)) = text.split_once('+') {
        return match (parse_queue(bytes)?, parse_queue(packets)?) {
            (Queue::Bytes(bytes), Queue::Packets(packets)) => Some(Queue::Both { bytes, packets }),
            _ => None,
        };
    }
    let (value, unit) = number(text)?;
    match unit {
        "b" => Some(Queue::Bytes(value as usize)),
        "kb" => Some(Queue::Bytes((value * 1e3) as usize)),
        "mb" => Some(Queue::Bytes((value * 1e6) as usize)),
        "p" => Some(Queue::Packets(value as usize)),
        "bdp" => Some(Queue::Bdp((value * 100.0).round() as u32)),
        _ => None,
    }
}

fn parse_codel(text: &str) -> Option<Option<CoDelConfig>> {
    match text {
        "off" => Some(None),
        "on" => Some(Some(CoDelConfig::default())),
        _ => {
            let (target, interval) = text.split_once('/')?;
            Some(Some(CoDelConfig { target: parse_time(target)?, interval: parse_time(interval)? }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "rate=100mbit,delay=20ms,loss=1%,queue=1bdp",
            "rate=none,delay=0ms,queue=25p",
            "rate=0.5mbit,delay=0.25ms,jitter=2ms,burst=2%x4,reorder=5%x2ms,duplicate=3%,queue=9000b+6p,codel=5ms/100ms,mtu=1400",
        ] {
            let config: LinkConfig = text.parse().expect(text);
            let again: LinkConfig = config.to_string().parse().expect("own text");
            assert_eq!(again.to_string(), config.to_string());
        }
        let config: LinkConfig = "rate=20mbit,delay=50ms,reorder=5%x2ms".parse().expect("link");
        assert_eq!(config.rate, Some(20_000_000));
        assert_eq!((config.reorder, config.reorder_by), (0.05, Duration::from_millis(2)));
        assert_eq!(config.queue_bounds().0, 250_000);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "rate=0mbit",
            "rate=fast",
            "delay=20",
            "loss=101%",
            "loss=-1%",
            "burst=2%",
            "burst=2%x0.5",
            "queue=1",
            "queue=2p+2p",
            "codel=5ms",
            "colour=red",
            "rate",
            "mtu=-1",
            "delay=9999999s",
            "rate=..mbit",
        ] {
            assert!(text.parse::<LinkConfig>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_share_of_bursts_is_what_was_asked_for() {
        assert!((Bursts::new(0.02, 4.0).share() - 0.02).abs() < 1e-9);
    }
}
