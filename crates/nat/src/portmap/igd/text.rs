//! The texts of UPnP: SSDP and HTTP heads, the description of a device, SOAP calls and their answers.
//!
//! Everything that is read here came from the network. Heads are read by `httparse`, XML by `roxmltree`, which takes no DTD and so expands
//! nothing; all lengths are bounded.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// Most bytes of one answer: descriptions of real routers have 2 to 20 KiB.
pub const MAX_ANSWER: usize = 64 << 10;
/// Most headers of one answer.
const MAX_HEADERS: usize = 64;
/// Most nodes of one document.
const MAX_NODES: u32 = 8_192;
/// Longest path of a URL.
const MAX_PATH: usize = 512;
/// Services that map ports, the preferred one first (UPnP Gateway Committee, WANIPConnection:2 §1, WANPPPConnection:1).
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// A URL at the router: only such are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) at: SocketAddr,
    path: String,
}

impl Url {
    /// An absolute `http` URL whose host is the address `router`. Names are not resolved, and nobody else is asked.
    pub(super) fn parse(text: &str, router: IpAddr) -> Option<Self> {
        let rest = text.trim().strip_prefix("http://")?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let at = host.parse().ok().or_else(|| Some(SocketAddr::new(host.parse().ok()?, 80)))?;
        (at.ip() == router && at.port() != 0).then_some(())?;
        Self { at, path: String::new() }.with_path(path)
    }

    /// Another URL of the same router, absolute or not.
    fn join(&self, text: &str) -> Option<Self> {
        let text = text.trim();
        if text.contains("://") {
            return Self::parse(text, self.at.ip());
        }
        if text.starts_with('/') {
            return self.with_path(text);
        }
        let folder = &self.path[..=self.path.rfind('/')?];
        self.with_path(&format!("{folder}{text}"))
    }

    fn with_path(&self, path: &str) -> Option<Self> {
        let path = if path.is_empty() { "/" } else { path };
        // What would end the line, or the request, is not in a path.
        let clean = path.len() <= MAX_PATH && path.bytes().all(|byte| byte.is_ascii_graphic());
        clean.then(|| Self { at: self.at, path: path.to_owned() })
    }
}

/// A service that maps ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    name: &'static str,
    pub(super) control: Url,
}

/// M-SEARCH (UPnP Device Architecture 1.1 §1.3.2). A device that is a newer gateway answers to the older name.
pub(super) fn search(to: SocketAddr) -> Vec<u8> {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {to}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
         ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
    )
    .into_bytes()
}

/// LOCATION of an answer to M-SEARCH, if it is at the router.
pub(super) fn location(data: &[u8], router: IpAddr) -> Option<Url> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    head.parse(data).ok().filter(httparse::Status::is_complete)?;
    (head.code == Some(200)).then_some(())?;
    Url::parse(text_of(head.headers, "location")?, router)
}

pub(super) fn get(url: &Url) -> Vec<u8> {
    format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", url.path, url.at).into_bytes()
}

/// A SOAP call (UPnP Device Architecture 1.1 §3.2.1). The arguments are ours, and need no escapes.
pub(super) fn call(service: &Service, action: &str, arguments: &[(&str, String)]) -> Vec<u8> {
    let mut body = format!(
        "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{}\">",
        service.name
    );
    for (name, value) in arguments {
        let _ = write!(body, "<{name}>{value}</{name}>");
    }
    let _ = write!(body, "</u:{action}></s:Body></s:Envelope>\r\n");
    let Url { at, path } = &service.control;
    format!(
        "POST {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n\
         SOAPAction: \"{}#{action}\"\r\nContent-Length: {}\r\n\r\n{body}",
        service.name,
        body.len()
    )
    .into_bytes()
}

fn text_of<'h>(headers: &[httparse::Header<'h>], name: &str) -> Option<&'h str> {
    let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(header.value).ok()
}

/// How the body ends.
enum Length {
    Bytes(usize),
    Chunks,
    /// With the connection.
    Open,
}

/// Status, where the body begins, and how it ends.
fn head(data: &[u8]) -> Option<(u16, usize, Length)> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(begin) = head.parse(data).ok()? else { return None };
    let chunked =
        text_of(head.headers, "transfer-encoding").is_some_and(|t| t.eq_ignore_ascii_case("chunked"));
    let length = match text_of(head.headers, "content-length") {
        _ if chunked => Length::Chunks,
        Some(text) => Length::Bytes(text.trim().parse().ok()?),
        None => Length::Open,
    };
    Some((head.code?, begin, length))
}

/// Whether an HTTP answer is there as a whole, so that nothing more has to be read.
pub fn is_complete(data: &[u8]) -> bool {
    match head(data) {
        Some((_, begin, Length::Bytes(length))) => data.len() - begin >= length,
        Some((_, begin, Length::Chunks)) => chunks(&data[begin..]).is_some(),
        _ => false,
    }
}

/// Status and body of an HTTP answer.
pub(super) fn answer(data: &[u8]) -> Option<(u16, Vec<u8>)> {
    if data.len() > MAX_ANSWER {
        return None;
    }
    let (status, begin, length) = head(data)?;
    let body = match length {
        Length::Bytes(length) => data[begin..].get(..length)?.to_vec(),
        Length::Chunks => chunks(&data[begin..])?,
        Length::Open => data[begin..].to_vec(),
    };
    Some((status, body))
}

fn chunks(mut data: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let httparse::Status::Complete((begin, size)) = httparse::parse_chunk_size(data).ok()? else {
            return None;
        };
        if size == 0 {
            return Some(body);
        }
        let end = begin.checked_add(usize::try_from(size).ok()?)?;
        body.extend_from_slice(data.get(begin..end)?);
        // Every chunk ends with CR and LF.
        data = data.get(end.checked_add(2)?..)?;
    }
}

fn with_document<T>(body: &[u8], read: impl FnOnce(&roxmltree::Document<'_>) -> Option<T>) -> Option<T> {
    let options =
        roxmltree::ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..Default::default() };
    // Some routers end their documents with a zero.
    let text = std::str::from_utf8(body).ok()?.trim_end_matches('\0');
    read(&roxmltree::Document::parse_with_options(text, options).ok()?)
}

/// The text of the first element of this name, whatever its namespace.
pub(super) fn element(body: &[u8], name: &str) -> Option<String> {
    with_document(body, |document| {
        let found = document.descendants().find(|node| node.tag_name().name() == name)?;
        Some(found.text().unwrap_or_default().trim().to_owned())
    })
}

/// The best service of a description that was read at `from`.
pub(super) fn service(body: &[u8], from: &Url) -> Option<Service> {
    with_document(body, |document| {
        let child = |node: roxmltree::Node<'_, '_>, name: &str| {
            let found = node.children().find(|child| child.tag_name().name() == name)?;
            found.text().map(str::to_owned)
        };
        let base = document.descendants().find(|node| node.tag_name().name() == "URLBase");
        let base = base.and_then(|node| from.join(node.text()?)).unwrap_or_else(|| from.clone());
        let all = || document.descendants().filter(|node| node.tag_name().name() == "service");
        SERVICES.into_iter().find_map(|name| {
            all().find_map(|node| {
                let is = child(node, "serviceType").is_some_and(|kind| kind.trim() == name);
                let control = is.then(|| child(node, "controlURL")).flatten()?;
                Some(Service { name, control: base.join(&control)? })
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: &str = "192.168.1.1";

    fn url(text: &str) -> Option<Url> {
        Url::parse(text, ROUTER.parse().unwrap())
    }

    #[test]
    fn only_urls_at_the_router_are_urls() {
        let at = |text: &str| url(text).map(|url| (url.at.port(), url.path));
        assert_eq!(at("http://192.168.1.1:5000/root.xml"), Some((5000, "/root.xml".into())));
        assert_eq!(at(" http://192.168.1.1\r\n"), Some((80, "/".into())));
        for other in [
            "http://192.168.1.2:5000/root.xml",
            "https://192.168.1.1/",
            "http://router.lan/root.xml",
            "http://user@192.168.1.1/",
            "http://192.168.1.1:0/",
            "http://192.168.1.1:99999/",
            "http://192.168.1.1/a b",
            "http://192.168.1.1/a\r\nHost: b",
            "/root.xml",
            "",
        ] {
            assert_eq!(url(other), None, "{other}");
        }
        assert_eq!(url(&format!("http://{ROUTER}/{}", "a".repeat(MAX_PATH))), None);
        let base = url("http://192.168.1.1:5000/upnp/root.xml").unwrap();
        let joined = |text: &str| base.join(text).map(|url| url.path);
        assert_eq!(joined("/ctl"), Some("/ctl".into()));
        assert_eq!(joined("ctl/ip"), Some("/upnp/ctl/ip".into()));
        assert_eq!(joined("http://192.168.1.1:81/x"), Some("/x".into()));
        assert_eq!(joined("http://10.0.0.1/x"), None);
    }

    #[test]
    fn bodies_end_by_length_by_chunks_and_with_the_connection() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more";
        assert_eq!(answer(whole), Some((200, b"hello".to_vec())));
        let chunked =
            b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n";
        assert_eq!(answer(chunked), Some((500, b"hello".to_vec())));
        let open = b"HTTP/1.0 200 OK\r\n\r\nhello";
        assert_eq!(answer(open), Some((200, b"hello".to_vec())));
        assert!(is_complete(whole) && is_complete(chunked) && !is_complete(open));
        for short in 0..chunked.len() - 4 {
            assert!(!is_complete(&chunked[..short]), "{short}");
        }
        for bad in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello",
            b"nonsense",
            b"",
        ] {
            assert_eq!(answer(bad), None, "{}", bad.escape_ascii());
        }
        let long = [&b"HTTP/1.0 200 OK\r\n\r\n"[..], &vec![b' '; MAX_ANSWER]].concat();
        assert_eq!(answer(&long), None);
    }

    #[test]
    fn the_best_service_is_found_and_never_elsewhere() {
        let base = url("http://192.168.1.1:5000/root.xml").unwrap();
        let of = |name: &str, control: &str| {
            format!("<service><serviceType>{name}</serviceType><controlURL>{control}</controlURL></service>")
        };
        let root = |inner: &str| {
            format!("<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\">{inner}</root>\0")
        };
        let both = root(&(of(SERVICES[2], "/ppp") + &of(SERVICES[1], "/ip") + &of("urn:other", "/x")));
        let found = service(both.as_bytes(), &base).expect("a service");
        assert_eq!((found.name, found.control.path.as_str()), (SERVICES[1], "/ip"));
        let based = root(&("<URLBase>http://192.168.1.1:81/b/</URLBase>".to_owned() + &of(SERVICES[0], "c")));
        let found = service(based.as_bytes(), &base).expect("a service");
        assert_eq!((found.control.at.port(), found.control.path.as_str()), (81, "/b/c"));
        for other in [root(&of(SERVICES[0], "http://10.0.0.1/c")), root(&of("urn:other", "/x")), root("")] {
            assert_eq!(service(other.as_bytes(), &base), None, "{other}");
        }
        let bomb = "<!DOCTYPE r [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><r>&b;</r>";
        assert_eq!(element(bomb.as_bytes(), "r"), None, "no DTD");
        let wide = format!("<r>{}</r>", "<a/>".repeat(MAX_NODES as usize));
        assert_eq!(element(wide.as_bytes(), "a"), None);
        let deep = "<a>".repeat(MAX_ANSWER / 3);
        assert_eq!(element(deep.as_bytes(), "a"), None);
    }

    #[test]
    fn where_the_router_describes_itself() {
        let router = ROUTER.parse().unwrap();
        let reply = |code: &str, location: &str| {
            format!("HTTP/1.1 {code}\r\nCACHE-CONTROL: max-age=120\r\nLocation: {location}\r\nEXT:\r\n\r\n")
        };
        let good = reply("200 OK", "http://192.168.1.1:5000/root.xml");
        assert!(location(good.as_bytes(), router).is_some());
        assert!(location(&good.as_bytes()[..good.len() - 1], router).is_none());
        assert!(location(reply("404 No", "http://192.168.1.1:5000/").as_bytes(), router).is_none());
        assert!(location(reply("200 OK", "http://192.168.1.9:5000/").as_bytes(), router).is_none());
        assert!(location(b"HTTP/1.1 200 OK\r\n\r\n", router).is_none());
        assert!(location(&search("192.168.1.1:1900".parse().unwrap()), router).is_none(), "our own question");
    }
}
