//! `pilotage id`: the identity of a state directory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilotage::{Identity, Node, StartError};
use pilotage_wire::{Address, addressing};
use serde::Deserialize;
use serde_json::json;

use super::Context;
use crate::args::{IdAction, IdArgs};
use crate::error::CliError;

/// Largest identity file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;

pub(crate) fn run(context: &Context, args: &IdArgs) -> Result<(), CliError> {
    match args.action {
        IdAction::Show => show(context),
        IdAction::New { force } => new(context, force),
    }
}

fn file(context: &Context) -> PathBuf {
    context.settings.state.join("identity.json")
}

/// Needs no lock: works beside a running node.
fn show(context: &Context) -> Result<(), CliError> {
    let path = file(context);
    let public_key = read_public_key(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => CliError::failure(
            "identity",
            format!("there is none in {}", context.settings.state.display()),
            "make one with `pilotage id new`, or name another directory with --state DIR",
        ),
        _ => CliError::failure(
            "identity",
            format!("{}: {error}", path.display()),
            "restore the file from a backup, or make a new identity with `pilotage id new --force`",
        ),
    })?;
    print(context, "identity", &public_key);
    Ok(())
}

/// The session makes the file, so that its format has one author.
fn new(context: &Context, force: bool) -> Result<(), CliError> {
    let path = file(context);
    let mut kept = None;
    if path.symlink_metadata().is_ok() {
        if !force {
            return Err(CliError::failure(
                "identity",
                format!("{} exists already", path.display()),
                "use --state OTHER for a second node, or --force to give this one a new address",
            ));
        }
        // Takes the lock for a moment: the identity of a running node must stay.
        match start(context) {
            Err(error @ StartError::StateInUse { .. }) => return Err(error.into()),
            // An unreadable identity is a reason to make a new one.
            Err(_) => {}
            Ok(node) => node.close(),
        }
        kept = Some(set_aside(&path)?);
    }
    let node = start(context)?;
    let public_key = node.public_key();
    node.close();
    if let Some(old) = kept {
        context.output.note(format!("the old identity is kept in {}", old.display()));
    }
    print(context, "identity_created", &public_key);
    Ok(())
}

fn start(context: &Context) -> Result<Node, StartError> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Node::builder().state_dir(&context.settings.state).bind(loopback).start()
}

/// Renames the old identity to the first free `identity.json.N`.
fn set_aside(path: &Path) -> Result<PathBuf, CliError> {
    for number in 1..1000 {
        let old = path.with_extension(format!("json.{number}"));
        if old.symlink_metadata().is_err() {
            return match fs::rename(path, &old) {
                Ok(()) => Ok(old),
                Err(error) => Err(CliError::failure(
                    "identity",
                    format!("{}: {error}", path.display()),
                    "check the permissions of the state directory",
                )),
            };
        }
    }
    Err(CliError::failure("identity", "999 old identities are kept already", "remove some of them"))
}

fn print(context: &Context, event: &str, public_key: &[u8; 32]) {
    let address = first_address(public_key);
    let (short, long) = (addressing::fingerprint128(public_key), addressing::fingerprint256(public_key));
    let text = format!(
        "address      {address}\nfingerprint  {short}\nlong form    {long}\npublic key   {}\nstate        {}",
        hex::encode(public_key),
        context.settings.state.display(),
    );
    let value = json!({
        "event": event,
        "address": address,
        "fingerprint": short,
        "fingerprint_long": long,
        "public_key": hex::encode(public_key),
        "state": context.settings.state,
    });
    context.output.result(text, &value);
}

/// The address that the key asks for first; a registry moves to the next on a collision.
fn first_address(public_key: &[u8; 32]) -> String {
    let first = addressing::node_ids(public_key).next();
    first.map_or_else(|| "-".into(), |(_, node)| Address::new(0, node.0).to_string())
}

#[derive(Deserialize)]
struct Stored {
    private_key: String,
    public_key: String,
}

/// The identity of a state directory, for a command that signs and starts no node.
pub(crate) fn read_identity(state: &Path) -> Result<Identity, CliError> {
    let path = state.join("identity.json");
    read(&path).map_err(|error| {
        CliError::failure(
            "identity",
            format!("{}: {error}", path.display()),
            "make one with `pilotage id new`, or name another directory with --state DIR",
        )
    })
}

fn read_public_key(path: &Path) -> io::Result<[u8; 32]> {
    read(path).map(|identity| identity.public_key())
}

fn read(path: &Path) -> io::Result<Identity> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    let stored: Stored = serde_json::from_str(&text)?;
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let decode = |text: &str| STANDARD.decode(text.trim()).map_err(|_| invalid("a key is not base64"));
    let private = decode(&stored.private_key)?;
    let public = decode(&stored.public_key)?;
    let seed = private.first_chunk::<32>().ok_or_else(|| invalid("the private key is too short"))?;
    let identity = Identity::from_seed(*seed);
    if public != identity.public_key() {
        return Err(invalid("public_key does not belong to private_key"));
    }
    Ok(identity)
}
