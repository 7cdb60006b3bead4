//! `datagram`.

use std::time::Duration;

use clap::Args;
use pilotage::Peer;

use super::NodeArgs;
use crate::units::parse_duration;

/// `datagram`
#[derive(Debug, Args)]
pub(crate) struct DatagramArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// To whom
    pub(crate) peer: Peer,
    /// To which port
    pub(crate) port: u16,
    /// What; - = standard input, all of it
    #[arg(default_value = "-")]
    pub(crate) text: String,
    /// Doing twice what it asks for is the same as doing it once: it may leave in the first packet of a handshake, before there is a session
    /// (889 bytes at most), and come twice
    #[arg(long)]
    pub(crate) idempotent: bool,
    /// Wait so long for one answer and print it
    #[arg(short, long, value_name = "TIME", value_parser = parse_wait)]
    pub(crate) wait: Option<Duration>,
}

/// At most a minute: a running node keeps one of its 64 places for requests meanwhile.
fn parse_wait(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_millis(1)..=crate::cmd::datagram::MAX_WAIT;
    if allowed.contains(&time) { Ok(time) } else { Err("expected 1ms to 1m".into()) }
}
