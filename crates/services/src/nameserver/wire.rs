//! Texts of the nameserver (spec/services.md §8.2): words between white space, no end of line needed.
//!
//! ```text
//! QUERY A name              A name address
//! QUERY N name              N name network
//! QUERY S network port      S name address port (a line each), or S
//! REGISTER A name address                   OK
//! REGISTER N name network                   OK
//! REGISTER S name address network port      OK
//!                           ERR text
//! ```

use std::fmt;

use pilotage_wire::{Address, NetworkId};

/// Longest request, in bytes.
pub const MAX_REQUEST: usize = 1024;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 253;

/// Longest reply, in bytes.
pub const MAX_REPLY: usize = 64 * 1024;

/// Providers of a service in one reply: they stay below [`MAX_REPLY`].
pub const MAX_PROVIDERS: usize = 128;

/// A node that offers a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Provider {
    /// The service's name.
    pub name: String,
    /// Who offers it.
    pub address: Address,
    /// On which port.
    pub port: u16,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The address of a name.
    QueryAddress(String),
    /// The number of a network's name.
    QueryNetwork(String),
    /// Who offers a port in a network.
    QueryService {
        /// The network.
        network: NetworkId,
        /// The port.
        port: u16,
    },
    /// A name for an address.
    RegisterAddress {
        /// The name.
        name: String,
        /// The address.
        address: Address,
    },
    /// A name for a network.
    RegisterNetwork {
        /// The name.
        name: String,
        /// The network.
        network: NetworkId,
    },
    /// An offer.
    RegisterService {
        /// Who offers what.
        provider: Provider,
        /// In which network.
        network: NetworkId,
    },
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The address of a name.
    Address {
        /// The name.
        name: String,
        /// Its address.
        address: Address,
    },
    /// The network of a name.
    Network {
        /// The name.
        name: String,
        /// Its network.
        network: NetworkId,
    },
    /// Who offers the service, at most [`MAX_PROVIDERS`].
    Services(Vec<Provider>),
    /// Registered.
    Ok,
    /// Not done, with the reason.
    Error(String),
}

/// Why a text is no request or reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A word is missing.
    #[error("a word is missing: expected {0}")]
    Missing(&'static str),
    /// A word is not what it should be.
    #[error("{what} expected, not {text:?}")]
    Word {
        /// What should be there.
        what: &'static str,
        /// What is there.
        text: String,
    },
    /// Not UTF-8, or longer than the limit.
    #[error("not a text of at most {0} bytes")]
    Text(usize),
}

/// The words of a text, one after another.
struct Words<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn next(&mut self, what: &'static str) -> Result<&'a str, WireError> {
        self.0.next().ok_or(WireError::Missing(what))
    }

    fn name(&mut self) -> Result<String, WireError> {
        let word = self.next("a name")?;
        // No control characters: names go to terminals.
        if word.len() > MAX_NAME || word.chars().any(char::is_control) {
            return Err(wrong("a name of at most 253 bytes", word));
        }
        Ok(word.to_owned())
    }

    fn number(&mut self, what: &'static str) -> Result<u16, WireError> {
        let word = self.next(what)?;
        // Digits only: the parser of the standard library would take a sign.
        let digits = word.bytes().all(|b| b.is_ascii_digit());
        word.parse().ok().filter(|_| digits).ok_or_else(|| wrong(what, word))
    }

    fn network(&mut self) -> Result<NetworkId, WireError> {
        self.number("a network number").map(NetworkId)
    }

    fn address(&mut self) -> Result<Address, WireError> {
        let word = self.next("an address")?;
        word.parse().map_err(|_| wrong("an address", word))
    }
}

fn wrong(what: &'static str, text: &str) -> WireError {
    WireError::Word { what, text: text.chars().take(64).collect() }
}

fn text(bytes: &[u8], limit: usize) -> Result<&str, WireError> {
    let fits = Some(bytes).filter(|bytes| bytes.len() <= limit);
    fits.and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or(WireError::Text(limit))
}

impl Request {
    /// Reads a request; verbs in any case, more words than needed are ignored.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let mut words = Words(text(bytes, MAX_REQUEST)?.split_whitespace());
        let verb = words.next("QUERY or REGISTER")?;
        let kind = words.next("A, N or S")?;
        match (verb.to_ascii_uppercase().as_str(), kind.to_ascii_uppercase().as_str()) {
            ("QUERY", "A") => Ok(Self::QueryAddress(words.name()?)),
            ("QUERY", "N") => Ok(Self::QueryNetwork(words.name()?)),
            ("QUERY", "S") => {
                Ok(Self::QueryService { network: words.network()?, port: words.number("a port")? })
            }
            ("REGISTER", "A") => Ok(Self::RegisterAddress { name: words.name()?, address: words.address()? }),
            ("REGISTER", "N") => Ok(Self::RegisterNetwork { name: words.name()?, network: words.network()? }),
            ("REGISTER", "S") => {
                let (name, address) = (words.name()?, words.address()?);
                let network = words.network()?;
                let provider = Provider { name, address, port: words.number("a port")? };
                Ok(Self::RegisterService { provider, network })
            }
            ("QUERY" | "REGISTER", _) => Err(wrong("A, N or S", kind)),
            _ => Err(wrong("QUERY or REGISTER", verb)),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueryAddress(name) => write!(f, "QUERY A {name}"),
            Self::QueryNetwork(name) => write!(f, "QUERY N {name}"),
            Self::QueryService { network, port } => write!(f, "QUERY S {} {port}", network.0),
            Self::RegisterAddress { name, address } => write!(f, "REGISTER A {name} {address}"),
            Self::RegisterNetwork { name, network } => write!(f, "REGISTER N {name} {}", network.0),
            Self::RegisterService { provider: Provider { name, address, port }, network } => {
                write!(f, "REGISTER S {name} {address} {} {port}", network.0)
            }
        }
    }
}

impl Reply {
    /// Reads a reply.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let text = text(bytes, MAX_REPLY)?;
        let mut words = Words(text.split_whitespace());
        match words.next("a reply")? {
            "OK" => Ok(Self::Ok),
            "ERR" => {
                let why = text.trim_start().strip_prefix("ERR").unwrap_or_default().trim();
                Ok(Self::Error(why.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()))
            }
            "A" => Ok(Self::Address { name: words.name()?, address: words.address()? }),
            "N" => Ok(Self::Network { name: words.name()?, network: words.network()? }),
            "S" => services(text),
            other => Err(wrong("OK, ERR, A, N or S", other)),
        }
    }
}

fn services(text: &str) -> Result<Reply, WireError> {
    let mut providers = Vec::new();
    for line in text.trim().lines() {
        let mut words = Words(line.split_whitespace());
        match words.0.next() {
            Some("S") => {}
            other => return Err(wrong("S", other.unwrap_or_default())),
        }
        let mut rest = words.0.clone();
        if rest.next().is_none() {
            continue;
        }
        if providers.len() == MAX_PROVIDERS {
            return Err(WireError::Text(MAX_REPLY));
        }
        let (name, address) = (words.name()?, words.address()?);
        providers.push(Provider { name, address, port: words.number("a port")? });
    }
    Ok(Reply::Services(providers))
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { name, address } => write!(f, "A {name} {address}"),
            Self::Network { name, network } => write!(f, "N {name} {}", network.0),
            Self::Services(providers) if providers.is_empty() => f.write_str("S"),
            Self::Services(providers) => {
                for (at, Provider { name, address, port }) in providers.iter().enumerate() {
                    let end_of_last = if at == 0 { "" } else { "\n" };
                    write!(f, "{end_of_last}S {name} {address} {port}")?;
                }
                Ok(())
            }
            Self::Ok => f.write_str("OK"),
            Self::Error(why) => write!(f, "ERR {why}"),
        }
    }
}
