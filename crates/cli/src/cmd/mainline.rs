//! The Mainline DHT, where this build has it (spec/replica.md §9).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use pilotage::records::{Directory, DirectoryUse, Tally};
use pilotage_registry::book::message::Query;
use pilotage_registry::replica::cache::Known;
use pilotage_registry::replica::public::best;
use serde_json::{Value, json};

use super::Context;
use super::replica::{Looked, cache};
use crate::args::MainlineArgs;
use crate::error::CliError;

/// The DHT, if the settings turn it on. Nothing is sent yet.
pub(super) fn open(
    context: &Context,
    args: &MainlineArgs,
    bind: Option<SocketAddr>,
) -> Result<Option<Arc<dyn Directory>>, CliError> {
    if !context.settings.mainline(args) {
        return Ok(None);
    }
    let bind = match bind.map(|bind| bind.ip()) {
        Some(IpAddr::V4(ip)) if !ip.is_unspecified() => Some(ip),
        _ => None,
    };
    start(context.settings.mainline_bootstrap(args), bind).map(Some)
}

#[cfg(feature = "mainline")]
fn start(bootstrap: Vec<String>, bind: Option<Ipv4Addr>) -> Result<Arc<dyn Directory>, CliError> {
    use pilotage_mainline::{Mainline, MainlineConfig};
    let config = MainlineConfig { bootstrap, bind, ..MainlineConfig::default() };
    match Mainline::start(config) {
        Ok(mainline) => Ok(Arc::new(mainline)),
        Err(error) => {
            Err(CliError::failure("mainline", error, "end other programs: there is no thread left"))
        }
    }
}

#[cfg(not(feature = "mainline"))]
fn start(_: Vec<String>, _: Option<Ipv4Addr>) -> Result<Arc<dyn Directory>, CliError> {
    Err(CliError::usage(
        "mainline",
        "this program was built without the Mainline DHT",
        "build it with `cargo build --features mainline`, or leave --mainline (PILOTAGE_MAINLINE, `mainline` in the configuration) out",
    ))
}

/// What the DHT has of an agent, if it is newer than what is known; else what is known.
pub(super) fn look(
    context: &Context,
    directory: &dyn Directory,
    query: &Query,
    given: Option<[u8; 32]>,
    known: Option<Looked>,
    now: u64,
) -> Option<Looked> {
    let mut cache = cache(&context.settings.state, &[], now);
    let remembered = || cache.as_ref().and_then(|cache| cache.key(query, now));
    let Some(key) = given.or(known.as_ref().map(|known| known.found.record.key)).or_else(remembered) else {
        context
            .output
            .note("on the Mainline DHT agents are found by their keys only: give the key (64 hex digits)");
        return known;
    };
    let network = query.network();
    let found = directory.find(&key, network);
    let before = known
        .as_ref()
        .map(|known| Known { record: known.found.record.clone(), bytes: known.found.bytes.clone() });
    let before = before.or_else(|| cache.as_ref().and_then(|cache| cache.last(&key, network)));
    let mut tally = Tally::default();
    let best = best(&key, network, found.iter().map(Vec::as_slice), before.as_ref(), now, &mut tally);
    if tally.refused() > 0 {
        tracing::warn!(?tally, "records on the Mainline DHT that are not believed");
    }
    let fits = |best: &Known| !matches!(query, Query::Address { node, .. } if *node != best.record.node);
    let Some(best) = best.filter(fits) else { return known };
    if let Some(cache) = &mut cache {
        cache.renew(&best.record, &best.bytes, wall());
    }
    Some(Looked::by_mainline(known, best))
}

/// For the status.
pub(super) fn describe(used: &DirectoryUse) -> Value {
    let (status, tally) = (&used.status, &used.tally);
    json!({
        "name": used.name,
        "published": status.published,
        "stored_at": status.stored_at,
        "asked": status.asked,
        "found": tally.taken,
        "refused_forged": tally.forged + status.refused,
        "refused_other": tally.other,
        "refused_older": tally.older,
        "last_error": status.last_error,
    })
}

#[allow(clippy::disallowed_methods, reason = "a command line tool reads the clock")]
fn wall() -> SystemTime {
    SystemTime::now()
}
