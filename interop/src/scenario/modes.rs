//! Nodes of the draft only (`draft`), of S1 only (`s1`) and of both (`auto`) with each other (spec/secure.md §12).

use std::time::Duration;

use super::lab::{Lab, Server, compare, no_strangers};
use super::{Passed, content, require};
use crate::Failure;
use crate::process::run;
use crate::proxy::{Proxy, Seen};

/// Bytes there and back: enough that a tunnel which begins in the draft's mode is still in use when S1 takes over.
const BYTES: usize = 5 << 19;
/// How long one may try that is to be refused.
const SHORT: &str = "3s";

const MODES: [&str; 3] = ["draft", "auto", "s1"];

/// Which protection a pair ends with; `None`: they must not speak.
fn expected(client: &str, server: &str) -> Option<&'static str> {
    match (client, server) {
        ("draft", "s1") | ("s1", "draft") => None,
        ("draft", _) | (_, "draft") => Some("draft"),
        _ => Some("s1"),
    }
}

/// All pairs; then what is remembered over restarts, and that nobody goes back.
pub(super) fn mixed(lab: &Lab<'_>) -> Result<Passed, Failure> {
    for server_mode in MODES {
        let server = serve(lab, &format!("server-{server_mode}"), "127.0.0.1:0", server_mode)?;
        for client_mode in MODES {
            pair(lab, &server, client_mode, server_mode)
                .map_err(|error| format!("{client_mode} calls {server_mode}: {error}"))?;
        }
    }
    restarts(lab)?;
    Ok(Passed::because(
        "9 pairs: 5 in S1 or moved to it, 2 refused, the rest in the draft's mode; both restarted: S1 from the first datagram; \
         a server that fell back to the draft is refused until the operator says so",
    ))
}

fn serve(lab: &Lab<'_>, name: &str, bind: &str, mode: &str) -> Result<Server, Failure> {
    lab.serve_with(name, bind, &["--no-lan", "--secure-mode", mode])
}

/// One echo from a client by a proxy of its own, and what that saw.
fn echo(
    lab: &Lab<'_>,
    server: &Server,
    client: &str,
    options: &[&str],
) -> Result<(Result<(), Failure>, Seen), Failure> {
    let proxy = Proxy::start(lab.setup(server))?;
    let bytes = content(BYTES, lab.plan.seed);
    let mut command = lab.programs.pilotage_alone("connect", &lab.scratch.folder(client)?);
    command.args(["--json", "--no-lan", "--bind", "127.0.0.1:0"]).args(options);
    command.args(["--peer", &format!("{}@{}={}", server.address, proxy.address(), server.key)]);
    command.args([&server.address, "7"]);
    let done = run(&mut command, &bytes, Duration::from_secs(120).min(lab.plan.limit()));
    let done = done.and_then(|back| compare("the echo", &back, &bytes));
    Ok((done, proxy.seen()))
}

fn pair(lab: &Lab<'_>, server: &Server, client: &str, other: &str) -> Result<(), Failure> {
    let expected = expected(client, other);
    let timeout = if expected.is_none() { SHORT } else { "60s" };
    let name = format!("client-{client}-{other}");
    let (done, seen) = echo(lab, server, &name, &["--secure-mode", client, "--connect-timeout", timeout])?;
    no_strangers(&seen)?;
    let (up, down) = (&seen.up.sights, &seen.down.sights);
    let (s1, draft) = (up.s1_data.min(down.s1_data), up.pils.max(down.pils));
    let told = format!("{s1} data frames of S1, {draft} of the draft");
    match expected {
        None => require(done.is_err() && s1 == 0 && draft == 0, || format!("not refused: {told}")),
        Some(mode) => {
            done?;
            let right = if mode == "s1" { s1 > 0 } else { s1 == 0 && draft > 0 };
            require(right, || format!("not in {mode}: {told}"))?;
            // Whoever speaks only S1 sends nothing else.
            let strict = |mode: &str, frames: u64| mode != "s1" || frames == 0;
            let right = strict(client, up.pila + up.pils) && strict(other, down.pila + down.pils);
            require(right, || format!("frames of the draft in mode s1: {told}"))
        }
    }
}

/// Both are `auto` and remember each other.
fn restarts(lab: &Lab<'_>) -> Result<(), Failure> {
    let auto = ["--secure-mode", "auto", "--connect-timeout", "60s"];
    let server = serve(lab, "server-kept", "127.0.0.1:0", "auto")?;
    let again = |server: &Server, what: &str| -> Result<(), Failure> {
        let (done, seen) = echo(lab, server, "client-kept", &auto)?;
        done.map_err(|error| format!("{what}: {error}"))?;
        let sights = (&seen.up.sights, &seen.down.sights);
        let draft = sights.0.pila + sights.0.pils + sights.1.pila + sights.1.pils;
        require(draft == 0 && sights.0.s1_data > 0, || format!("{what}: {draft} frames of the draft"))
    };
    echo(lab, &server, "client-kept", &auto)?.0?;
    // Each echo is a new process of the client.
    again(&server, "the client restarted")?;
    let bind = server.endpoint.to_string();
    drop(server);
    let server = serve(lab, "server-kept", &bind, "auto")?;
    again(&server, "the server restarted")?;
    drop(server);
    let server = serve(lab, "server-kept", &bind, "draft")?;
    let (done, seen) =
        echo(lab, &server, "client-kept", &["--secure-mode", "auto", "--connect-timeout", SHORT])?;
    let draft = seen.up.sights.pila + seen.up.sights.pils;
    require(done.is_err() && draft == 0, || format!("the way down: {draft} frames of the draft"))?;
    // Only the operator may.
    let (done, _) =
        echo(lab, &server, "client-kept", &["--secure-mode", "draft", "--connect-timeout", "60s"])?;
    done.map_err(|error| format!("the operator's word: {error}").into())
}
