//! `pilotage up`: a node in the foreground with echo, file inbox and benchmark services.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pilotage::records::{Records, RecordsConfig};
use pilotage::{Node, NodeEvent, Visibility};
use pilotage_daemon::IpcServer;
use pilotage_services::file::ReceiveError;
use pilotage_services::server::{self, FileService, Notice, Services};
use serde_json::{Value, json};

use super::Context;
use super::ping::{micros, path_json, path_text};
use super::recv::{received_json, received_text};
use super::{local_socket, mainline, skills, status, task, trust};
use crate::args::{NodeArgs, ServiceName, UpArgs};
use crate::control;
use crate::error::CliError;
use crate::node;
use crate::units::format_duration;

pub(crate) fn run(context: &Context, args: &UpArgs) -> Result<(), CliError> {
    if args.exit_with_stdin {
        super::stop_with_stdin(context);
    }
    let files = match args.no_files {
        true => None,
        false => Some(inbox(context, args)?),
    };
    let host = skills::host(context, args)?;
    // With records the node finds those whom it knows without a hub.
    let node = node::start_with(context, &args.node, !args.records.records)?;
    watch_events(context, &node);
    let services = Services { find: host.clone(), ..services(context, args, files.clone(), &node)? };
    let output = context.output.clone();
    let observer = Arc::new(move |notice| match notice {
        Notice::FileReceived { peer, file } => {
            let peer = peer.address.to_string();
            output.result(received_text(&peer, &file), &received_json(&peer, &file));
        }
        other => match super::message::notice(&other) {
            Some((text, value)) => output.result(text, &value),
            None => {
                let (text, value) = failure_notice(&other);
                output.note(text);
                output.event(&value);
            }
        },
    });
    let serving = server::serve(&node, &services, observer)
        .map_err(|error| CliError::failure("services", error, "stop what uses these ports on this node"))?;
    let serving = Arc::new(serving);
    if let Some(host) = &host {
        skills::announce(context, args, &node, host);
    }
    let records = records(context, args, &node)?;
    let trust = trust::serve(context, args, &node)?;
    let (node_, serving_, trust_) = (node.clone(), serving.clone(), trust.clone());
    let records_ = records.clone();
    #[cfg(unix)]
    let streams = control::streams::Streams::new(node.clone());
    let control = control_server(context, args, move |request| {
        #[cfg(unix)]
        if let Some(reply) = streams.answer(request) {
            return reply;
        }
        control::Reply::Line(match request["cmd"].as_str() {
            Some("status") => {
                let mut reply = status::reply(&node_, serving_.counters());
                reply["records"] = records_.as_ref().map(records_json).into();
                reply
            }
            Some("trust") => trust::reply(&node_, &trust_, request),
            Some("task") => {
                serving_.tasks().map_or_else(task::not_served, |tasks| task::answer(tasks, request))
            }
            other => json!({ "error": format!("unknown command {:?}", other.unwrap_or_default()) }),
        })
    });
    let ipc = local_socket::serve(context, args, &node, &trust)?;
    ready(context, &args.node, &node, &services, control.is_some(), ipc.as_ref());
    // Ends by a signal, or because the node has died under us.
    node::wait_for_stop(context, || false);
    drop(ipc);
    drop(control);
    drop(trust);
    drop(records);
    node.close();
    Ok(())
}

/// Keeps the node's record, if it is wanted.
fn records(context: &Context, args: &UpArgs, node: &Node) -> Result<Option<Records>, CliError> {
    if !args.records.records {
        if args.records.mainline.mainline {
            let cause = "without --records there is nothing to keep on the Mainline DHT";
            return Err(CliError::usage("records", cause, "add --records, or leave --mainline out"));
        }
        return Ok(None);
    }
    let settings = &context.settings;
    let registry =
        settings.registry.clone().or_else(|| settings.hub.as_deref().map(super::network::registry_of));
    let registry = registry.ok_or_else(|| {
        CliError::usage("records", "no hub is configured", "name one with --hub HOST[:PORT]")
    })?;
    let mut config = RecordsConfig::new(registry, &settings.state);
    config.trusted = args.records.keys.registry_key.clone();
    config.refresh = args.records.record_refresh;
    config.friends = !args.records.no_friends;
    config.hostname = settings.name(&args.node);
    // As the node is at the hub, by the file, too: what is private must not be shown to everybody.
    config.private = settings.visibility(&args.node) == Visibility::Private;
    config.directory = mainline::open(context, &args.records.mainline, settings.bind(&args.node))?;
    let records = Records::start(node, config).map_err(|error| {
        CliError::failure(
            "records",
            error,
            "check the state directory, and that port 1016 of this node is free",
        )
    })?;
    Ok(Some(records))
}

/// Everything that was not left out.
fn services(
    context: &Context,
    args: &UpArgs,
    files: Option<FileService>,
    node: &Node,
) -> Result<Services, CliError> {
    let with = |service| !args.without.contains(&service);
    let tasks = match with(ServiceName::Tasks) {
        true => Some(task::service(context, args, node)?),
        false => None,
    };
    Ok(Services {
        echo: with(ServiceName::Echo),
        report: with(ServiceName::Report),
        bench: with(ServiceName::Bench),
        messages: with(ServiceName::Messages) && files.is_some(),
        files,
        events: with(ServiceName::Events),
        tasks,
        nameserver: args.nameserver || context.settings.nameserver(),
        ..Services::default()
    })
}

fn inbox(context: &Context, args: &UpArgs) -> Result<FileService, CliError> {
    let dir = context.settings.inbox(args.inbox.as_deref());
    super::create_private_dir(&dir).map_err(|error| {
        CliError::failure(
            "inbox",
            format!("{}: {error}", dir.display()),
            "name another directory with --inbox DIR, or use --no-files",
        )
    })?;
    // Absolute in all messages, wherever they are read.
    let dir = fs::canonicalize(&dir).unwrap_or(dir);
    Ok(FileService { dir, force: args.force, fsync: args.fsync, limit: Some(args.inbox_limit) })
}

fn records_json(records: &Records) -> Value {
    let status = records.status();
    json!({
        "stored_at": status.stored,
        "refreshes": status.refreshes,
        "heartbeats": status.heartbeats,
        "address": status.address.map(|address| address.to_string()),
        "last_error": status.last_error,
        "remembered": status.remembered,
        "friends_answered": status.answered,
        "directory": status.directory.as_ref().map(mainline::describe),
    })
}

/// Without a control socket only `status` is lost, so that is no reason to stop.
fn control_server(
    context: &Context,
    args: &UpArgs,
    answer: impl Fn(&Value) -> control::Reply + Send + Sync + 'static,
) -> Option<control::Server> {
    if args.node.ephemeral {
        return None;
    }
    match control::Server::start(&context.settings.state, answer) {
        Ok(server) => Some(server),
        Err(error) => {
            context
                .output
                .note(format!("note: `pilotage status` will not work here: control socket: {error}"));
            None
        }
    }
}

fn ready(
    context: &Context,
    args: &NodeArgs,
    node: &Node,
    services: &Services,
    control: bool,
    ipc: Option<&IpcServer>,
) {
    let files = services.files.as_ref();
    let mut value = node::describe(node);
    value["event"] = "ready".into();
    value["inbox"] = json!(files.map(|files| files.dir.display().to_string()));
    value["control"] = json!(control.then(|| control::path(&context.settings.state).display().to_string()));
    value["ipc"] = json!(ipc.map(|ipc| ipc.path().display().to_string()));
    let hub = node.hub_status();
    value["registered"] = json!(hub.as_ref().map(|hub| hub.registered));
    value["public"] = json!(hub.as_ref().map(|hub| hub.public));
    let mut text = node::describe_text(&node::describe(node));
    text.push_str(&match &hub {
        Some(hub) if hub.registered && !hub.public => "\nhub          registered, private".to_owned(),
        Some(hub) if hub.registered => "\nhub          registered".to_owned(),
        Some(_) => "\nhub          NOT registered yet, trying".to_owned(),
        None if context.settings.lan(args) => {
            "\nhub          none: others on this network find the node by name and address".to_owned()
        }
        None => "\nhub          none: others reach this node as ADDRESS@IP:PORT".to_owned(),
    });
    let ports = ports(services);
    value["services"] = ports.iter().map(|(_, port)| *port).collect();
    let names: Vec<_> = ports.iter().map(|(name, port)| format!("{name} {port}")).collect();
    text.push_str(&format!("\nservices     {}", names.join(", ")));
    if let Some(files) = files {
        text.push_str(&format!("\ninbox        {}", files.dir.display()));
    }
    if let Some(ipc) = ipc {
        text.push_str(&format!("\nlocal socket {}", ipc.path().display()));
    }
    text.push_str("\nready; Ctrl-C ends the node");
    context.output.result(text, &value);
}

/// What is served and where.
fn ports(services: &Services) -> Vec<(&'static str, u16)> {
    use pilotage_services::{bench, echo, events, file, find, message, nameserver, report, task};
    let all = [
        (services.echo, "echo", echo::PORT),
        (services.nameserver, "nameserver", nameserver::PORT),
        (services.messages, "messages", message::PORT),
        (services.events, "events", events::PORT),
        (services.tasks.is_some(), "tasks", task::PORT),
        (services.files.is_some(), "files", file::PORT),
        (services.bench, "benchmark", bench::PORT),
        (services.report, "report", report::PORT),
        (services.find.is_some(), "find", find::PORT),
        (services.find.is_some(), "call", find::CALL_PORT),
    ];
    all.into_iter().filter(|(served, ..)| *served).map(|(_, name, port)| (name, port)).collect()
}

/// Prints what happens to the node until it is closed.
fn watch_events(context: &Context, node: &Node) {
    let events = node.events();
    let output = context.output.clone();
    let run = move || {
        for event in events {
            let Some((text, value)) = describe_event(&event) else { continue };
            output.note(text);
            output.event(&value);
        }
    };
    if let Err(error) = thread::Builder::new().name("events".into()).spawn(run) {
        tracing::warn!(%error, "cannot watch the node's events");
    }
}

fn describe_event(event: &NodeEvent) -> Option<(String, Value)> {
    Some(match event {
        NodeEvent::TunnelUp { peer, handshake } => {
            let who = if *handshake == Duration::ZERO { "by the peer" } else { "by us" };
            (
                format!("peer {peer}: keys agreed, begun {who}, {}", format_duration(*handshake)),
                json!({ "event": "tunnel_up", "peer": peer.to_string(), "handshake_us": micros(*handshake) }),
            )
        }
        NodeEvent::TunnelDown { peer, reason } => (
            format!("peer {peer}: gone: {reason}"),
            json!({ "event": "tunnel_down", "peer": peer.to_string(), "reason": reason.to_string() }),
        ),
        NodeEvent::PathChanged { peer, path } => (
            format!("peer {peer}: path is {}", path_text(path)),
            json!({ "event": "path", "peer": peer.to_string(), "path": path_json(path) }),
        ),
        NodeEvent::PeerRefused { node, reason } => (
            format!("peer {node}: refused: {reason}"),
            json!({ "event": "peer_refused", "peer": node.to_string(), "reason": reason }),
        ),
        NodeEvent::Registered { address } => (
            format!("hub: registered as {address}"),
            json!({ "event": "registered", "address": address.to_string() }),
        ),
        NodeEvent::AddressChanged { address } => (
            format!("hub: it calls us {address} now; all streams ended"),
            json!({ "event": "address_changed", "address": address.to_string() }),
        ),
        NodeEvent::CarriageChanged { carried } => (
            match carried {
                true => "beacon: UDP does not reach it; going through the hub's WebSocket".to_owned(),
                false => "beacon: by UDP".to_owned(),
            },
            json!({ "event": "carriage", "carried": carried }),
        ),
        NodeEvent::NetworkChanged { addresses, woke } => {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let what = if *woke { "this machine slept" } else { "our addresses changed" };
            (
                format!("network: {what}: {}", addresses.join(", ")),
                json!({ "event": "network", "addresses": addresses, "woke": woke }),
            )
        }
        NodeEvent::PortMapped { external } => (
            match external {
                Some(at) => format!("router: {at} leads to us"),
                None => "router: no port leads to us any more".to_owned(),
            },
            json!({ "event": "port_mapped", "external": external.map(|at| at.to_string()) }),
        ),
        NodeEvent::HubLost { reason } => {
            (format!("hub: lost: {reason}"), json!({ "event": "hub_lost", "reason": reason }))
        }
        _ => return None,
    })
}

fn failure_notice(notice: &Notice) -> (String, Value) {
    let (peer, port, cause) = match notice {
        Notice::FileFailed { peer, error } => {
            let cause = match error {
                ReceiveError::Wire(error) => format!("file not received: {error}"),
                other => format!("file not received: {other}"),
            };
            (Some(*peer), pilotage_services::file::PORT, cause)
        }
        Notice::StreamFailed { peer, port, error } => (Some(*peer), *port, error.to_string()),
        Notice::ListenerFailed { port, error } => (None, *port, error.to_string()),
        _ => (None, 0, "unknown".into()),
    };
    let peer = peer.map(|peer| peer.to_string());
    let text = format!("port {port}: {}: {cause}", peer.as_deref().unwrap_or("listener"));
    (text, json!({ "event": "failed", "port": port, "peer": peer, "cause": cause }))
}
