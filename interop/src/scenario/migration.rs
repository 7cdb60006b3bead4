//! Scenarios in which the client is seen elsewhere all of a sudden.

use super::lab::{Lab, Moved};
use super::{Passed, require};
use crate::Failure;
use crate::proxy::Change;

/// Both directions at the same time, each with a server, a proxy and a client of its own.
pub(super) fn rebind(lab: &Lab<'_>) -> Result<Passed, Failure> {
    let (up, down) = std::thread::scope(|scope| {
        let up = scope.spawn(|| lab.upload(&[]).map_err(|error| format!("upload: {error}")));
        let down = scope.spawn(|| lab.download().map_err(|error| format!("download: {error}")));
        (up.join(), down.join())
    });
    let up = up.map_err(|_| "the upload panicked")??;
    let down = down.map_err(|_| "the download panicked")??;
    let mut said = Vec::new();
    for (name, moved, counts) in
        [("upload", &up, up.seen.up.counts), ("download", &down, down.seen.down.counts)]
    {
        let sources = changes(lab, moved).map_err(|error| format!("{name}: {error}"))?;
        said.push(format!(
            "{name} seen from {sources} sources, {:.2} Mbit/s, longest pause {} ms, {} packets of it lost in the \
             queue",
            moved.goodput(),
            moved.seen.longest_pause.as_millis(),
            counts.queue_full
        ));
    }
    let slower = up.goodput().min(down.goodput());
    Ok(Passed::because(said.join("; ")).with_figure(slower, "Mbit/s"))
}

/// How many different sources the server heard; an error if it was too few to mean anything.
fn changes(lab: &Lab<'_>, moved: &Moved) -> Result<usize, Failure> {
    let by_address = lab.plan.rebinding.is_some_and(|rebinding| rebinding.change == Change::Address);
    let mut sources: Vec<String> = moved
        .seen
        .sources
        .iter()
        .map(|source| if by_address { source.ip().to_string() } else { source.port().to_string() })
        .collect();
    sources.sort_unstable();
    sources.dedup();
    require(sources.len() >= 3, || format!("only {} sources", sources.len()))?;
    // The server itself must have followed, not only the proxy have changed.
    let paths = moved.server.output().matches("\"event\":\"path\"").count();
    let listens = moved.server.output().contains("\"event\":\"connected\"");
    require(listens || paths >= sources.len() - 1, || {
        format!("the server reports {paths} changes of path for {} sources", sources.len())
    })?;
    Ok(sources.len())
}
