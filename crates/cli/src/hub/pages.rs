//! The HTTP ports of a hub: the web page and the metrics.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use pilotage_registry::engine::Secret;
use pilotage_registry::server::ServerConfig;

use super::http::{self, Response};
use super::ops::Hub;
use super::web;
use crate::args::HubArgs;
use crate::cmd::Context;
use crate::error::CliError;

/// Ports that are listened on.
pub(super) struct Open {
    web: Option<TcpListener>,
    metrics: Option<TcpListener>,
    /// What lets the page list all nodes.
    token: String,
}

/// Where they are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct At {
    pub(super) web: Option<SocketAddr>,
    pub(super) metrics: Option<SocketAddr>,
}

impl Open {
    /// Listens. A page needs the operator's token to see all nodes; where the operator has none, the hub makes one that nobody
    /// learns, which opens to nobody what was closed before.
    pub(super) fn listen(args: &HubArgs, config: &mut ServerConfig) -> Result<Self, CliError> {
        let open = |what, at: Option<SocketAddr>| {
            at.map(|at| http::listen(what, at, args.http_anywhere)).transpose()
        };
        let (web, metrics) = (open("web", args.web)?, open("metrics", args.metrics)?);
        let mut token = String::new();
        if web.is_some() {
            token = super::options::admin_token(args)?.map_or_else(unknown, Ok)?;
            config.engine.admin_token = Some(Secret::new(&token));
        }
        Ok(Self { web, metrics, token })
    }

    /// Serves them.
    pub(super) fn serve(
        self,
        context: &Context,
        hub: &Arc<Hub>,
        registry: SocketAddr,
        pin: Option<[u8; 32]>,
    ) -> Result<At, CliError> {
        let failed =
            |error: std::io::Error| CliError::failure("web", error, "check the limits of this process");
        let mut at = At::default();
        if let Some(listener) = self.metrics {
            let hub = hub.clone();
            let site: http::Site = Arc::new(move |request| match request.path.as_str() {
                "/metrics" => Response::Whole("text/plain; version=0.0.4", hub.metrics().into_bytes()),
                _ => Response::NotFound,
            });
            at.metrics = Some(http::serve(listener, context.stop.clone(), site).map_err(failed)?);
        }
        if let Some(listener) = self.web {
            let registry = web::Registry { at: registry, tls: pin, token: self.token };
            let board = web::watch(hub.clone(), registry, context.stop.clone()).map_err(failed)?;
            at.web = Some(http::serve(listener, context.stop.clone(), web::site(board)).map_err(failed)?);
        }
        Ok(at)
    }
}

fn unknown() -> Result<String, CliError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| {
        CliError::failure("web", format!("no random numbers: {error}"), "check the system's random source")
    })?;
    Ok(hex::encode(bytes))
}
