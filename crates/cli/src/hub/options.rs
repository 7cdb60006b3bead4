//! What the flags of `pilotage hub` mean for the registry.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use pilotage_registry::engine::{Secret, Unsigned};
use pilotage_registry::server::ServerConfig;
use pilotage_registry::tls::ServerTls;

use crate::args::HubArgs;
use crate::cmd::{Context, create_private_dir};
use crate::error::CliError;

/// A token shorter than this is guessed. Bytes.
const MIN_TOKEN: usize = 8;
/// Longest token. Bytes.
const MAX_TOKEN: usize = 256;

pub(super) fn apply(context: &Context, args: &HubArgs, config: &mut ServerConfig) -> Result<(), CliError> {
    config.engine.unsigned = match (args.require_proof, args.allow_unsigned) {
        (true, _) => Unsigned::Refused,
        (_, true) => Unsigned::Trusted,
        _ => Unsigned::UntilSigned,
    };
    config.engine.open_scores = args.open_scores;
    config.engine.allow_beacon_register = args.allow_beacons;
    if let Some(token) = admin_token(args)? {
        config.engine.admin_token = Some(check_token(&token)?);
    }
    if args.tls {
        let dir = &context.settings.state;
        create_private_dir(dir).map_err(|error| {
            CliError::failure(
                "TLS",
                format!("{}: {error}", dir.display()),
                "name another state directory with --state DIR",
            )
        })?;
        config.tls = Some(ServerTls::load_or_create(dir).map_err(|error| {
            let text = error.to_string();
            let (cause, next) = text.split_once("; ").unwrap_or((&text, "check the state directory"));
            CliError::failure("TLS", cause, next)
        })?);
    }
    Ok(())
}

/// The operator's token, if there is one.
pub(super) fn admin_token(args: &HubArgs) -> Result<Option<String>, CliError> {
    let from_file = args.admin_token_file.as_deref().map(read_token).transpose()?;
    Ok(from_file.or_else(|| args.admin_token.clone()))
}

/// Says what is risky about the flags.
pub(super) fn warn(context: &Context, args: &HubArgs) {
    if args.allow_unsigned {
        context.output.note("keys are taken without proof (--allow-unsigned): for networks you trust only");
    }
    if args.open_scores {
        context.output.note("everybody may change scores (--open-scores): for networks you trust only");
    }
    if args.allow_beacons {
        context.output.note("everybody may announce a beacon (--allow-beacons): for networks you trust only");
    }
}

fn read_token(path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_TOKEN as u64 + 2).read_to_string(&mut text));
    read.map(|_| text.trim().to_owned()).map_err(|error| {
        CliError::failure(
            "admin token",
            format!("{}: {error}", path.display()),
            "write the token into that file, readable by you only",
        )
    })
}

fn check_token(token: &str) -> Result<Secret, CliError> {
    if (MIN_TOKEN..=MAX_TOKEN).contains(&token.len()) {
        return Ok(Secret::new(token));
    }
    Err(CliError::usage(
        "admin token",
        format!("it has {} bytes; allowed are {MIN_TOKEN} to {MAX_TOKEN}", token.len()),
        "make one with `openssl rand -hex 16`",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_a_reasonable_length_and_come_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "correct horse\n").unwrap();
        assert!(check_token(&read_token(&path).unwrap()).unwrap().matches("correct horse"));
        std::fs::write(&path, "x".repeat(10_000)).unwrap();
        assert!(check_token(&read_token(&path).unwrap()).is_err());
        assert!(check_token("short").is_err() && check_token("").is_err());
        assert!(read_token(&dir.path().join("missing")).is_err());
    }
}
