//! The hub's WebSocket port, for nodes whose network blocks UDP (spec/reach.md §1).

use std::net::SocketAddr;
use std::sync::mpsc::Sender;

use pilotage::beacon::BeaconServer;
use pilotage_carriage::{Limits, Server, Side, server_config_from_pem};
use pilotage_registry::tls::ServerTls;

use super::{Ended, spawn};
use crate::args::HubArgs;
use crate::cmd::{Context, create_private_dir};
use crate::error::CliError;

/// A bound port.
pub(super) struct Wss {
    server: Server,
    side: Side,
    open: Open,
}

/// What users have to know of it.
pub(super) struct Open {
    pub(super) addr: SocketAddr,
    pub(super) fingerprint: [u8; 32],
    /// The certificate was made here, so no authority vouches for it.
    pub(super) own_certificate: bool,
}

/// Binds the port, if there is to be one, and joins it to the beacon.
pub(super) fn open(
    context: &Context,
    args: &HubArgs,
    beacon: &mut BeaconServer,
) -> Result<Option<Wss>, CliError> {
    let Some(at) = args.wss else { return Ok(None) };
    let (config, fingerprint) = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => server_config_from_pem(certificate, key).map_err(|error| {
            let text = error.to_string();
            let (cause, next) = text.split_once("; ").unwrap_or((&text, "name PEM files"));
            CliError::failure("TLS", cause, next)
        })?,
        _ => {
            let dir = &context.settings.state;
            let own = create_private_dir(dir).map_err(|error| error.to_string());
            let own = own.and_then(|()| ServerTls::load_or_create(dir).map_err(|error| error.to_string()));
            let own = own.map_err(|text| {
                let (cause, next) =
                    text.split_once("; ").unwrap_or((&text, "name another folder with --state DIR"));
                CliError::failure("TLS", cause, next)
            })?;
            (own.config(), own.fingerprint())
        }
    };
    let failed = |error: std::io::Error| {
        let next = "choose another port with --wss IP:PORT, or stop the other program (ports below 1024 need privileges)";
        CliError::failure("websocket", format!("TCP {at}: {error}"), next)
    };
    let (server, side) = Server::bind(at, config, Limits::default()).map_err(failed)?;
    beacon.attach(side.clone()).map_err(failed)?;
    let open = Open { addr: server.local_addr(), fingerprint, own_certificate: args.tls_cert.is_none() };
    Ok(Some(Wss { server, side, open }))
}

impl Wss {
    /// Serves until the hub is stopped.
    pub(super) fn serve(self, context: &Context, ended: Sender<Ended>) -> Result<Open, CliError> {
        let Self { mut server, side, open } = self;
        let stop = context.stop.clone();
        spawn("websocket", move || {
            let result = server.run(stop.flag()).map_err(|error| error.to_string());
            tracing::info!(stats = ?side.stats(), "websocket stopped");
            let _ = ended.send(Ended { what: "websocket", result });
        })?;
        Ok(open)
    }
}
