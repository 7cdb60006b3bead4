//! Settings in force: flag, else environment, else configuration file, else default.

use std::env;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pilotage::Visibility;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::args::{
    Congestion, Global, MainlineArgs, NetworkSecret, NodeArgs, Protection, Upgrade, parse_pin,
};
use crate::error::CliError;

/// Largest configuration file that is read.
const MAX_FILE: u64 = 64 * 1024;

/// The configuration file (TOML). Every key may be left out; unknown keys are errors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigFile {
    /// State directory.
    state: Option<PathBuf>,
    /// Hub, `HOST[:PORT]`.
    hub: Option<String>,
    /// Registry, `HOST:PORT`.
    registry: Option<String>,
    /// Beacon, `HOST:PORT`, or a list of them.
    beacon: Option<OneOrMany>,
    /// Name to claim.
    name: Option<String>,
    /// UDP address to bind.
    bind: Option<SocketAddr>,
    /// Directory for received files.
    inbox: Option<PathBuf>,
    /// Hide from other nodes.
    private: Option<bool>,
    /// Serve names (port 53).
    nameserver: Option<bool>,
    /// Log filter.
    log: Option<String>,
    /// The hub's WebSocket, `wss://HOST[:PORT]`, or `off`.
    hub_wss: Option<String>,
    /// Be found on the local network.
    lan: Option<bool>,
    /// Ask the router for a port.
    port_mapping: Option<bool>,
    /// SHA-256 of the certificate there.
    hub_wss_pin: Option<String>,
    /// SHA-256 of the registry's TLS certificate.
    registry_tls_pin: Option<String>,
    /// E-mail address or other owner text.
    owner: Option<String>,
    /// Local socket for Pilot drivers.
    ipc: Option<PathBuf>,
    /// Congestion control.
    congestion: Option<Congestion>,
    /// Protection of tunnels.
    secure_mode: Option<Protection>,
    /// The post-quantum upgrade of sessions.
    post_quantum: Option<Upgrade>,
    /// Secrets of networks, `NUMBER=FILE`.
    network_secrets: Option<OneOrMany>,
    /// Use the Mainline DHT.
    mainline: Option<bool>,
    /// Nodes of the DHT to begin with, `HOST:PORT`.
    mainline_bootstrap: Option<OneOrMany>,
}

/// One text or a list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn list(&self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text.clone()],
            Self::Many(list) => list.clone(),
        }
    }
}

/// Where a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    CommandLine,
    File,
    Default,
}

/// Settings after all sources were joined.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) state: PathBuf,
    pub(crate) hub: Option<String>,
    pub(crate) registry: Option<String>,
    pub(crate) beacons: Vec<String>,
    pub(crate) registry_tls_pin: Option<[u8; 32]>,
    pub(crate) hub_wss: Option<String>,
    pub(crate) hub_wss_pin: Option<[u8; 32]>,
    pub(crate) log: Option<String>,
    /// The file that was read, if there was one.
    pub(crate) config_path: Option<PathBuf>,
    pub(crate) file: ConfigFile,
    state_origin: Origin,
    from_command_line: Vec<&'static str>,
}

impl Settings {
    /// Reads the configuration file, if any, and joins it with the command line.
    pub(crate) fn load(global: &Global) -> Result<Self, CliError> {
        let (config_path, file) = load_file(global.config.as_deref())?;
        let (state, state_origin) = match (&global.state, &file.state) {
            (Some(dir), _) => (dir.clone(), Origin::CommandLine),
            (None, Some(dir)) => (dir.clone(), Origin::File),
            (None, None) => (default_state_dir()?, Origin::Default),
        };
        // A hub named on the command line replaces a registry and a beacon of the file.
        let file_hub = |value: &Option<String>| if global.hub.is_some() { None } else { value.clone() };
        let file_beacons = file.beacon.as_ref().filter(|_| global.hub.is_none());
        let file_beacons = file_beacons.map(OneOrMany::list).unwrap_or_default();
        // A pin of the file belongs to the registry of the file.
        let file_pin = match (&global.hub, &global.registry, &file.registry_tls_pin) {
            (None, None, Some(pin)) => Some(parse_pin(pin).map_err(|cause| {
                CliError::usage("configuration", format!("registry_tls_pin: {cause}"), "correct the file")
            })?),
            _ => None,
        };
        // Likewise.
        let wss_pin = match (&global.hub, &global.hub_wss, &file.hub_wss_pin) {
            (None, None, Some(pin)) => Some(parse_pin(pin).map_err(|cause| {
                CliError::usage("configuration", format!("hub_wss_pin: {cause}"), "correct the file")
            })?),
            _ => None,
        };
        let mut from_command_line = Vec::new();
        for (key, given) in [
            ("hub", global.hub.is_some()),
            ("registry", global.registry.is_some()),
            ("beacon", !global.beacon.is_empty()),
            ("log", global.log.is_some()),
            ("registry_tls_pin", global.registry_tls_pin.is_some()),
            ("hub_wss", global.hub_wss.is_some()),
            ("hub_wss_pin", global.hub_wss_pin.is_some()),
        ] {
            if given {
                from_command_line.push(key);
            }
        }
        Ok(Self {
            state,
            hub: global.hub.clone().or_else(|| file.hub.clone()),
            registry: global.registry.clone().or_else(|| file_hub(&file.registry)),
            beacons: if global.beacon.is_empty() { file_beacons } else { global.beacon.clone() },
            registry_tls_pin: global.registry_tls_pin.or(file_pin),
            hub_wss: global.hub_wss.clone().or_else(|| file_hub(&file.hub_wss)),
            hub_wss_pin: global.hub_wss_pin.or(wss_pin),
            log: global.log.clone().or_else(|| file.log.clone()),
            config_path,
            file,
            state_origin,
            from_command_line,
        })
    }

    /// Whether a hub of some kind is configured.
    pub(crate) fn has_hub(&self) -> bool {
        self.hub.is_some() || self.registry.is_some()
    }

    pub(crate) fn name(&self, args: &NodeArgs) -> Option<String> {
        // The file's name belongs to the file's identity.
        let from_file = || if args.ephemeral { None } else { self.file.name.clone() };
        args.name.clone().or_else(from_file)
    }

    pub(crate) fn bind(&self, args: &NodeArgs) -> Option<SocketAddr> {
        args.bind.or(self.file.bind)
    }

    /// Whether to look for others on the local network. A node on the loopback only does so when told.
    pub(crate) fn lan(&self, args: &NodeArgs) -> bool {
        let default = || !self.has_hub() && !self.is_local(args);
        !args.reach.no_lan && (args.reach.lan || self.file.lan.unwrap_or_else(default))
    }

    /// Whether to ask the router for a port.
    pub(crate) fn port_mapping(&self, args: &NodeArgs) -> bool {
        let default = || self.has_hub() && !self.is_local(args);
        !args.reach.no_port_mapping && self.file.port_mapping.unwrap_or_else(default)
    }

    fn is_local(&self, args: &NodeArgs) -> bool {
        self.bind(args).is_some_and(|bind| bind.ip().is_loopback())
    }

    pub(crate) fn visibility(&self, args: &NodeArgs) -> Visibility {
        match (args.private, args.public, self.file.private) {
            (true, _, _) | (false, false, Some(true)) => Visibility::Private,
            (_, true, _) | (_, _, Some(false)) => Visibility::Public,
            (false, false, None) => Visibility::Usual,
        }
    }

    pub(crate) fn owner(&self, args: &NodeArgs) -> Option<String> {
        // As the name.
        let from_file = || if args.ephemeral { None } else { self.file.owner.clone() };
        args.owner.clone().or_else(from_file)
    }

    pub(crate) fn inbox(&self, flag: Option<&Path>) -> PathBuf {
        flag.map(Path::to_owned)
            .or_else(|| self.file.inbox.clone())
            .unwrap_or_else(|| self.state.join("inbox"))
    }

    pub(crate) fn ipc(&self, flag: Option<&Path>) -> Option<PathBuf> {
        flag.map(Path::to_owned).or_else(|| self.file.ipc.clone())
    }

    pub(crate) fn congestion(&self, args: &NodeArgs) -> Congestion {
        let default = || pilotage::ProtoConfig::default().congestion.into();
        args.congestion.or(self.file.congestion).unwrap_or_else(default)
    }

    pub(crate) fn secure_mode(&self, args: &NodeArgs) -> Protection {
        args.secure_mode.or(self.file.secure_mode).unwrap_or(Protection::Auto)
    }

    pub(crate) fn post_quantum(&self, args: &NodeArgs) -> Upgrade {
        args.post_quantum.or(self.file.post_quantum).unwrap_or(Upgrade::Off)
    }

    /// Secrets of networks: those of the command line, else those of the file.
    pub(crate) fn network_secrets(&self, args: &NodeArgs) -> Result<Vec<NetworkSecret>, CliError> {
        if !args.network_secrets.is_empty() {
            return Ok(args.network_secrets.clone());
        }
        let listed = self.file.network_secrets.as_ref().map(OneOrMany::list).unwrap_or_default();
        let parsed = listed.iter().map(|text| text.parse()).collect::<Result<_, String>>();
        parsed.map_err(|error| {
            CliError::usage("configuration", format!("network_secrets: {error}"), "write \"NUMBER=FILE\"")
        })
    }

    /// Whether to use the Mainline DHT.
    pub(crate) fn mainline(&self, args: &MainlineArgs) -> bool {
        args.mainline || self.file.mainline.unwrap_or(false)
    }

    /// Nodes of the DHT to begin with; none: the well-known ones.
    pub(crate) fn mainline_bootstrap(&self, args: &MainlineArgs) -> Vec<String> {
        let in_file = || self.file.mainline_bootstrap.as_ref().map(OneOrMany::list).unwrap_or_default();
        if args.mainline_bootstrap.is_empty() { in_file() } else { args.mainline_bootstrap.clone() }
    }

    pub(crate) fn nameserver(&self) -> bool {
        self.file.nameserver.unwrap_or(false)
    }

    /// Every setting with its value and origin, for `pilotage config`.
    pub(crate) fn describe(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value, origin: Origin| {
            let origin = match origin {
                Origin::CommandLine => "command line or environment",
                Origin::File => "file",
                Origin::Default => "default",
            };
            map.insert(key.into(), json!({ "value": value, "origin": origin }));
        };
        let of = |key: &str, in_file: bool| {
            if self.from_command_line.contains(&key) {
                Origin::CommandLine
            } else if in_file {
                Origin::File
            } else {
                Origin::Default
            }
        };
        put("state", json!(self.state), self.state_origin);
        put("hub", json!(self.hub), of("hub", self.file.hub.is_some()));
        put("registry", json!(self.registry), of("registry", self.registry.is_some()));
        let beacon = match &self.beacons[..] {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        put("beacon", beacon, of("beacon", !self.beacons.is_empty()));
        put("log", json!(self.log), of("log", self.file.log.is_some()));
        put("name", json!(self.file.name), of("name", self.file.name.is_some()));
        put("bind", json!(self.file.bind), of("bind", self.file.bind.is_some()));
        put("inbox", json!(self.inbox(None)), of("inbox", self.file.inbox.is_some()));
        let pin = self.registry_tls_pin.map(hex::encode);
        put("registry_tls_pin", json!(pin), of("registry_tls_pin", self.file.registry_tls_pin.is_some()));
        put("hub_wss", json!(self.hub_wss), of("hub_wss", self.file.hub_wss.is_some()));
        let pin = self.hub_wss_pin.map(hex::encode);
        put("hub_wss_pin", json!(pin), of("hub_wss_pin", self.file.hub_wss_pin.is_some()));
        put("owner", json!(self.file.owner), of("owner", self.file.owner.is_some()));
        put("private", json!(self.file.private), of("private", self.file.private.is_some()));
        put("ipc", json!(self.file.ipc), of("ipc", self.file.ipc.is_some()));
        let congestion = self.congestion(&NodeArgs::default());
        put("congestion", json!(congestion), of("congestion", self.file.congestion.is_some()));
        let usual = NodeArgs::default();
        let secure = self.secure_mode(&usual);
        put("secure_mode", json!(secure), of("secure_mode", self.file.secure_mode.is_some()));
        let upgrade = self.post_quantum(&usual);
        put("post_quantum", json!(upgrade), of("post_quantum", self.file.post_quantum.is_some()));
        let secrets = self.file.network_secrets.as_ref().map(OneOrMany::list).unwrap_or_default();
        put("network_secrets", json!(secrets), of("network_secrets", self.file.network_secrets.is_some()));
        put("lan", json!(self.lan(&usual)), of("lan", self.file.lan.is_some()));
        let mapping = self.port_mapping(&usual);
        put("port_mapping", json!(mapping), of("port_mapping", self.file.port_mapping.is_some()));
        let usual = MainlineArgs::default();
        put("mainline", json!(self.mainline(&usual)), of("mainline", self.file.mainline.is_some()));
        let nodes = self.mainline_bootstrap(&usual);
        put(
            "mainline_bootstrap",
            json!(nodes),
            of("mainline_bootstrap", self.file.mainline_bootstrap.is_some()),
        );
        put("nameserver", json!(self.nameserver()), of("nameserver", self.file.nameserver.is_some()));
        map
    }
}

/// Reads the file that was named, or the one in the usual place if it is there.
fn load_file(named: Option<&Path>) -> Result<(Option<PathBuf>, ConfigFile), CliError> {
    let (path, must_exist) = match named {
        Some(path) => (path.to_owned(), true),
        None => match xdg("XDG_CONFIG_HOME", ".config") {
            Some(dir) => (dir.join("pilotage").join("config.toml"), false),
            None => return Ok((None, ConfigFile::default())),
        },
    };
    let stage = "configuration";
    let problem = |cause: String| {
        CliError::usage(
            stage,
            format!("{}: {cause}", path.display()),
            "correct the file, or name another one with --config FILE",
        )
    };
    let text = match read_bounded(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => {
            return Ok((None, ConfigFile::default()));
        }
        Err(error) => return Err(problem(error.to_string())),
    };
    let file = parse(&text).map_err(problem)?;
    Ok((Some(path), file))
}

fn parse(text: &str) -> Result<ConfigFile, String> {
    toml::from_str(text).map_err(|error| error.to_string().trim_end().replace('\n', "\n    "))
}

fn read_bounded(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 64 KiB"));
    }
    Ok(text)
}

fn default_state_dir() -> Result<PathBuf, CliError> {
    xdg("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("pilotage")).ok_or_else(|| {
        CliError::usage(
            "state directory",
            "neither XDG_STATE_HOME nor HOME is set",
            "name a directory with --state DIR or PILOTAGE_STATE",
        )
    })
}

/// A base directory of the XDG specification; relative values are ignored, as it demands.
fn xdg(variable: &str, under_home: &str) -> Option<PathBuf> {
    let absolute = |value: std::ffi::OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    env::var_os(variable)
        .and_then(absolute)
        .or_else(|| env::var_os("HOME").and_then(absolute).map(|home| home.join(under_home)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_command_line_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "hub = 'file'\nregistry = 'r:1'\nstate = '/file'\nname = 'bob'\n").unwrap();
        let mut global = Global { config: Some(path), ..Global::default() };
        let settings = Settings::load(&global).unwrap();
        assert_eq!(settings.hub.as_deref(), Some("file"));
        assert_eq!(settings.registry.as_deref(), Some("r:1"));
        assert_eq!(settings.state, Path::new("/file"));
        global.hub = Some("flag".into());
        global.state = Some("/flag".into());
        let settings = Settings::load(&global).unwrap();
        assert_eq!(settings.hub.as_deref(), Some("flag"));
        assert_eq!(settings.registry, None, "the flag's hub replaces the file's registry");
        assert_eq!(settings.state, Path::new("/flag"));
        assert_eq!(settings.describe()["hub"]["origin"], "command line or environment");
        let mut args = NodeArgs::default();
        assert_eq!(settings.name(&args).as_deref(), Some("bob"));
        args.ephemeral = true;
        assert_eq!(settings.name(&args), None);
    }

    #[test]
    fn a_typing_error_in_the_file_is_named() {
        let error = parse("hubb = 'x'").unwrap_err();
        assert!(error.contains("hubb"), "{error}");
        assert!(parse("bind = 'nowhere'").is_err());
    }

    #[test]
    fn a_missing_file_is_an_error_only_if_it_was_named() {
        let global = Global { config: Some("/nonexistent/x.toml".into()), ..Global::default() };
        assert!(Settings::load(&global).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }
    }
}
