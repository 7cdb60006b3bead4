//! `pilotage resolve` and `announce`: the nameserver of a peer, port 53; without a peer, the hub.

use pilotage::{Address, NodeId, Peer};
use pilotage_services::nameserver::{self, Provider, Reply, Request};
use serde_json::{Value, json};

use super::{Context, record};
use crate::args::{AnnounceArgs, NodeArgs, ResolveArgs};
use crate::error::{CliError, Exit};
use crate::session;

pub(crate) fn resolve(context: &Context, args: &ResolveArgs) -> Result<(), CliError> {
    let Some(via) = &args.via else { return record::resolve_name(context, args) };
    let request = if args.services {
        let parsed = args.wanted.split_once(':').and_then(|(n, p)| Some((n.parse().ok()?, p.parse().ok()?)));
        let (network, port): (u16, u16) = parsed.ok_or_else(|| {
            CliError::usage(
                "command line",
                format!("{:?} is not NETWORK:PORT", args.wanted),
                "use numbers, as in 1:80",
            )
        })?;
        Request::QueryService { network: network.into(), port }
    } else if args.network {
        Request::QueryNetwork(args.wanted.clone())
    } else {
        Request::QueryAddress(args.wanted.clone())
    };
    check(&request)?;
    let (reply, _) = ask(context, &args.node, via, &mut |_| request.clone())?;
    match reply {
        Reply::Address { name, address } => context
            .output
            .result(address, &json!({ "event": "resolved", "name": name, "address": address.to_string() })),
        Reply::Network { name, network } => {
            context
                .output
                .result(network, &json!({ "event": "resolved", "name": name, "network": network.0 }));
        }
        Reply::Services(providers) => {
            let text: Vec<_> =
                providers.iter().map(|p| format!("{}:{} {}", p.address, p.port, p.name)).collect();
            let value: Vec<Value> = providers.iter().map(provider_json).collect();
            context.output.result(
                if text.is_empty() { "nobody offers it".to_owned() } else { text.join("\n") },
                &json!({ "event": "resolved", "services": value }),
            );
        }
        other => return Err(refused("resolve", &other)),
    }
    Ok(())
}

pub(crate) fn announce(context: &Context, args: &AnnounceArgs) -> Result<(), CliError> {
    let make = |own: Address| {
        let address = args.address.unwrap_or(own);
        let (name, network) = (args.wanted.clone(), args.network);
        match (args.port, network) {
            (Some(port), network) => Request::RegisterService {
                provider: Provider { name, address, port },
                network: network.unwrap_or(0).into(),
            },
            (None, Some(network)) => Request::RegisterNetwork { name, network: network.into() },
            (None, None) => Request::RegisterAddress { name, address },
        }
    };
    check(&make(Address { node: NodeId(1), ..Address::default() }))?;
    let (reply, request) = ask(context, &args.node, &args.via, &mut |own| make(own))?;
    match reply {
        Reply::Ok => context.output.result(
            format!("registered for five minutes: {request}"),
            &json!({ "event": "registered", "request": request.to_string(), "seconds": nameserver::LIFE.as_secs() }),
        ),
        other => return Err(refused("announce", &other)),
    }
    Ok(())
}

/// Before a node is started: a name that cannot be sent should cost nothing.
fn check(request: &Request) -> Result<(), CliError> {
    match Request::parse(request.to_string().as_bytes()) {
        Ok(parsed) if parsed == *request => Ok(()),
        _ => Err(CliError::usage(
            "command line",
            "the nameserver knows names of 1 to 253 bytes without blanks and control characters",
            "choose another name",
        )),
    }
}

fn ask(
    context: &Context,
    args: &NodeArgs,
    via: &Peer,
    request: &mut dyn FnMut(Address) -> Request,
) -> Result<(Reply, Request), CliError> {
    session::check_peer(context, args, via)?;
    let node = session::open(context, args)?;
    let request = request(node.address()?);
    let stream = node.connect(via, nameserver::PORT)?;
    let reply = nameserver::ask(&stream, &request).map_err(|error| CliError::stream("nameserver", &error))?;
    drop(stream);
    node.close();
    Ok((reply, request))
}

fn refused(stage: &str, reply: &Reply) -> CliError {
    let cause = match reply {
        Reply::Error(why) => format!("the nameserver says: {why}"),
        other => format!("the nameserver answered something else: {other}"),
    };
    CliError::new(Exit::Failure, stage, cause, "check the name; records live five minutes")
}

fn provider_json(provider: &Provider) -> Value {
    json!({ "name": provider.name, "address": provider.address.to_string(), "port": provider.port })
}
