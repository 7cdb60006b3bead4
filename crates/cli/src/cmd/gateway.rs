//! `pilotage forward`, `serve`, `socks5` and `gateway`: TCP programs talk to peers, and peers to TCP programs.

use std::fs;
use std::io;
use std::sync::Arc;

use pilotage_services::gateway::socks5::Password;
use pilotage_services::gateway::{self, Allow, Dialer, Event, Limits, Observer};
use serde_json::{Value, json};

use super::Context;
use super::ping::micros;
use crate::args::{ForwardArgs, GatewayArgs, GatewayLimits, ServeArgs, Socks5Args};
use crate::error::CliError;
use crate::node;
use crate::session::{self, Session};
use crate::units::{format_bytes, format_duration};

/// Largest file with a name and password, in bytes.
const MAX_FILE: u64 = 4_096;

pub(crate) fn forward(context: &Context, args: &ForwardArgs) -> Result<(), CliError> {
    session::check_peer(context, &args.node, &args.target.peer)?;
    let session = open(context, &args.node)?;
    let (peer, port) = (args.target.peer.clone(), args.target.port);
    let text = format!("{peer} port {port}");
    let dialer: Arc<dyn Dialer> = session.clone();
    let running = gateway::forward(dialer, args.local, peer, port, limits(&args.limits), observer(context))
        .map_err(|error| cannot_listen(args.local, &error))?;
    let local: Vec<String> = running.local_addrs().iter().map(ToString::to_string).collect();
    ready(
        context,
        &session,
        "forward",
        &json!({ "local": local, "to": text }),
        &format!("{} leads to {text}", local.join(" ")),
    );
    wait(context, &session, running)
}

pub(crate) fn serve(context: &Context, args: &ServeArgs) -> Result<(), CliError> {
    let session = open(context, &args.node)?;
    let allow = match args.allow.as_slice() {
        [] => Allow::Anybody,
        peers => {
            let nodes: Result<Vec<_>, CliError> =
                peers.iter().map(|peer| Ok(session.resolve(peer)?.node)).collect();
            Allow::Nodes(nodes?)
        }
    };
    if allow == Allow::Anybody {
        context.output.note("note: whoever can reach this node may use it; --allow PEER names who");
    }
    let allowed = match &allow {
        Allow::Nodes(nodes) => json!(nodes.iter().map(ToString::to_string).collect::<Vec<_>>()),
        Allow::Anybody => Value::Null,
    };
    let port = session.listen(args.port)?;
    let (target, limits) = (args.target.clone(), limits(&args.limits));
    let running = gateway::serve(Arc::new(port), target, allow, limits, observer(context))
        .map_err(|error| CliError::failure("serve", error, "check the limits of this process"))?;
    let text = format!("port {} leads to {}", args.port, args.target);
    let value = json!({ "port": args.port, "to": args.target, "allow": allowed });
    ready(context, &session, "serve", &value, &text);
    wait(context, &session, running)
}

pub(crate) fn socks5(context: &Context, args: &Socks5Args) -> Result<(), CliError> {
    let password = args.password_file.as_deref().map(read_password).transpose()?;
    let session = open(context, &args.node)?;
    let dialer: Arc<dyn Dialer> = session.clone();
    let running =
        gateway::serve_socks5(dialer, args.local, password, limits(&args.limits), observer(context))
            .map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied if !args.local.ip().is_loopback() => CliError::usage(
                    "socks5",
                    &error,
                    "listen on 127.0.0.1, or name a file with NAME:PASSWORD by --password-file",
                ),
                _ => cannot_listen(args.local, &error),
            })?;
    let local: Vec<String> = running.local_addrs().iter().map(ToString::to_string).collect();
    let text = format!("SOCKS5 proxy on {}; peers are NAME.pilot or an address", local.join(" "));
    ready(context, &session, "socks5", &json!({ "local": local }), &text);
    wait(context, &session, running)
}

pub(crate) fn aliases(context: &Context, args: &GatewayArgs) -> Result<(), CliError> {
    for mapping in &args.map {
        session::check_peer(context, &args.node, &mapping.peer)?;
    }
    let session = open(context, &args.node)?;
    let dialer: Arc<dyn Dialer> = session.clone();
    let running = gateway::aliases(dialer, &args.map, &args.ports, limits(&args.limits), observer(context))
        .map_err(|error| {
        let next = "run it as root, or map to addresses in 127.0.0.0/8; ports below 1024 need root, too";
        CliError::failure("gateway", error, next)
    })?;
    let mappings: Vec<String> = args.map.iter().map(|map| format!("{} is {}", map.ip, map.peer)).collect();
    let local: Vec<String> = running.local_addrs().iter().map(ToString::to_string).collect();
    let added: Vec<String> = running.added().iter().map(ToString::to_string).collect();
    ready(context, &session, "gateway", &json!({ "local": local, "added": added }), &mappings.join("\n"));
    wait(context, &session, running)
}

fn open(context: &Context, args: &crate::args::NodeArgs) -> Result<Arc<Session>, CliError> {
    session::open(context, args).map(Arc::new)
}

fn limits(args: &GatewayLimits) -> Limits {
    Limits { connections: usize::from(args.connections), ..Limits::default() }
}

fn cannot_listen(local: std::net::SocketAddr, error: &io::Error) -> CliError {
    CliError::failure(
        "listen",
        format!("{local}: {error}"),
        "choose another address or port; port 0 takes a free one",
    )
}

/// `NAME:PASSWORD` on the first line of a file, so that it is in no list of processes.
fn read_password(path: &std::path::Path) -> Result<Password, CliError> {
    use std::io::Read;
    let wrong = |cause: String| {
        CliError::failure(
            "password file",
            format!("{}: {cause}", path.display()),
            "write NAME:PASSWORD into it, each 1 to 255 bytes",
        )
    };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    file.take(MAX_FILE).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    let (name, password) =
        text.lines().next().and_then(|line| line.split_once(':')).ok_or_else(|| wrong("no colon".into()))?;
    Password::new(name, password).ok_or_else(|| wrong("name or password too short or too long".into()))
}

fn ready(context: &Context, session: &Session, what: &str, value: &Value, text: &str) {
    let mut ready = session.describe();
    ready["event"] = "ready".into();
    ready[what] = value.clone();
    context.output.result(format!("{text}\n{}\nready; Ctrl-C ends it", session.describe_text()), &ready);
}

/// Ends by a signal: connections are broken off, what this added is taken away.
fn wait<R>(context: &Context, session: &Session, running: R) -> Result<(), CliError> {
    node::wait_for_stop(context, || false);
    drop(running);
    session.close();
    Ok(())
}

fn observer(context: &Context) -> Observer {
    let output = context.output.clone();
    Arc::new(move |event| {
        let (text, value) = describe(&event);
        output.note(text);
        output.event(&value);
    })
}

fn describe(event: &Event) -> (String, Value) {
    match event {
        Event::Opened { id, from, to } => {
            (format!("#{id} {from} to {to}"), json!({ "event": "opened", "id": id, "from": from, "to": to }))
        }
        Event::Closed { id, sent, received, lasted, error } => {
            let end = error.as_deref().map(|error| format!(", broken: {error}")).unwrap_or_default();
            let (there, back) = (format_bytes(*sent), format_bytes(*received));
            (
                format!("#{id} ended after {}: {there} there, {back} back{end}", format_duration(*lasted)),
                json!({
                    "event": "closed",
                    "id": id,
                    "sent": sent,
                    "received": received,
                    "lasted_us": micros(*lasted),
                    "error": error,
                }),
            )
        }
        Event::Refused { from, to, reason } => (
            format!("{from} to {to}: refused: {reason}"),
            json!({ "event": "refused", "from": from, "to": to, "reason": reason }),
        ),
        _ => ("something else happened".into(), json!({ "event": "unknown" })),
    }
}
