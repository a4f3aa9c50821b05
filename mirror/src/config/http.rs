//! The listener and the admin port (`http`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{Error, file};

const DEFAULT_ADDR: &str = ":5000";

/// Below the 30 s that Kubernetes leaves a Pod by default.
const DEFAULT_DRAIN: Duration = Duration::from_secs(25);

/// The headers that frame a message (RFC 9112, 6 and 9).
const FRAMING: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The settings for serving clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// The address that clients connect to.
    pub listen: Listen,
    /// The prefix of every path, before `/v2/`; starts and ends with a slash.
    pub prefix: String,
    /// Put into every answer.
    pub headers: HeaderMap,
    /// Serve TLS; `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// `true` if the server offers HTTP/2.
    pub http2: bool,
    /// The time limit for requests in flight after the server stops accepting connections.
    pub drain_timeout: Duration,
    /// The time after SIGTERM in which the server accepts connections while `/readyz` reports not ready.
    pub lame_duck: Duration,
    /// The most client connections at once; `None`: by the limit of open files.
    pub max_connections: Option<usize>,
    /// The admin port; `None`: none.
    pub admin: Option<Admin>,
    /// The loopback address of the listener of actions; `None`: none.
    pub actions: Option<String>,
}

/// The address of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `[host]:port`; no host means every address of the machine.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// The server's certificate, and whom it asks for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The section of the configuration that names the files, for messages.
    pub section: &'static str,
    /// PEM file of the certificate chain.
    pub certificate: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
    /// PEM files of the authorities whose certificates clients must have; empty: none is asked for.
    pub client_cas: Vec<PathBuf>,
    /// `true` if clients may connect without a certificate.
    pub client_optional: bool,
    /// TLS 1.3 only (else 1.2 too).
    pub only_tls13: bool,
}

/// The admin port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// `[host]:port`.
    pub addr: String,
    /// The path of the metrics; `None`: no metrics.
    pub metrics_path: Option<String>,
    /// `true` if the port has the page.
    pub page: bool,
}

impl Http {
    pub(super) fn new(http: &file::Http, page: &file::Admin) -> Result<Self, Error> {
        Ok(Self {
            listen: listen(http)?,
            prefix: prefix(http.prefix.as_deref())?,
            headers: answers(&http.headers)?,
            tls: tls(&http.tls)?,
            http2: !http.http2.disabled,
            drain_timeout: http
                .drain_timeout
                .map_or(DEFAULT_DRAIN, |d| d.positive().unwrap_or_default()),
            lame_duck: http
                .lame_duck
                .and_then(super::duration::GoDuration::positive)
                .unwrap_or_default(),
            max_connections: max_connections(http.max_connections)?,
            admin: admin(&http.debug, page)?,
            actions: actions(&http.actions)?,
        })
    }
}

fn listen(http: &file::Http) -> Result<Listen, Error> {
    match (http.net.as_deref(), http.addr.as_deref()) {
        (None | Some("" | "tcp"), addr) => {
            let addr = addr.filter(|addr| !addr.is_empty()).unwrap_or(DEFAULT_ADDR);
            Ok(Listen::Tcp(host_port("http.addr", addr)?))
        }
        (Some("unix"), None | Some("")) => Err(Error::invalid(
            "http.addr",
            "must be the path of a socket as http.net is unix",
        )),
        (Some("unix"), Some(path)) => Ok(Listen::Unix(path.into())),
        (Some(_), _) => Err(Error::invalid("http.net", "expected tcp or unix")),
    }
}

fn max_connections(number: Option<u32>) -> Result<Option<usize>, Error> {
    match number {
        Some(0) => Err(Error::invalid("http.maxconnections", "must be at least 1")),
        number => Ok(number.and_then(|number| usize::try_from(number).ok())),
    }
}

pub(super) fn host_port(key: &str, addr: &str) -> Result<String, Error> {
    let port = addr
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(_) => Ok(addr.to_owned()),
        None => Err(Error::invalid(
            key,
            format!("expected host:port or :port, got {addr:?}"),
        )),
    }
}

fn prefix(prefix: Option<&str>) -> Result<String, Error> {
    let inner = prefix.unwrap_or_default().trim_matches('/');
    if !inner
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"/-._~".contains(&b))
    {
        return Err(Error::invalid(
            "http.prefix",
            "expected a path like /registry/ of letters, digits, -._~",
        ));
    }
    Ok(if inner.is_empty() {
        "/".to_owned()
    } else {
        format!("/{inner}/")
    })
}

/// Returns the configured headers for every response. Only the server frames messages, so framing headers are refused.
fn answers(configured: &BTreeMap<String, Vec<String>>) -> Result<HeaderMap, Error> {
    let map = headers("http.headers", configured)?;
    match map.keys().find(|name| FRAMING.contains(name)) {
        None => Ok(map),
        Some(name) => Err(Error::invalid(
            format!("http.headers.{name}"),
            "the server sets this itself: remove it",
        )),
    }
}

/// Headers as Distribution writes them: a list of values for each name.
pub(super) fn headers(key: &str, headers: &BTreeMap<String, Vec<String>>) -> Result<HeaderMap, Error> {
    let mut map = HeaderMap::new();
    for (name, values) in headers {
        let key = || format!("{key}.{name}");
        let name = HeaderName::try_from(name.as_str()).map_err(|e| Error::invalid(key(), e))?;
        for value in values {
            let value = HeaderValue::try_from(value.as_str()).map_err(|e| Error::invalid(key(), e))?;
            map.append(&name, value);
        }
    }
    Ok(map)
}

fn tls(tls: &file::Tls) -> Result<Option<Tls>, Error> {
    let set = |value: &Option<String>| value.as_deref().filter(|v| !v.is_empty()).map(PathBuf::from);
    let (certificate, key) = match (set(&tls.certificate), set(&tls.key)) {
        (None, None) if tls.client_cas.is_empty() => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (None, _) => return Err(Error::invalid("http.tls.certificate", "must be set to serve TLS")),
        (_, None) => return Err(Error::invalid("http.tls.key", "must be set to serve TLS")),
    };
    Ok(Some(Tls {
        section: "http.tls",
        certificate,
        key,
        client_cas: tls.client_cas.iter().map(PathBuf::from).collect(),
        client_optional: match tls.client_auth.as_deref() {
            None | Some("" | "require-and-verify-client-cert") => false,
            Some("verify-client-cert-if-given") => true,
            Some(_) => {
                let known = "expected require-and-verify-client-cert or verify-client-cert-if-given";
                return Err(Error::invalid("http.tls.clientauth", known));
            }
        },
        only_tls13: match tls.minimum_tls.as_deref() {
            None | Some("" | "tls1.0" | "tls1.1" | "tls1.2") => false,
            Some("tls1.3") => true,
            Some(_) => return Err(Error::invalid("http.tls.minimumtls", "expected tls1.2 or tls1.3")),
        },
    }))
}

fn admin(debug: &file::Debug, page: &file::Admin) -> Result<Option<Admin>, Error> {
    let Some(addr) = debug.addr.as_deref().filter(|addr| !addr.is_empty()) else {
        return Ok(None);
    };
    let path = debug.prometheus.path.as_deref().unwrap_or("/metrics");
    metrics_path(path).map_err(|reason| Error::invalid("http.debug.prometheus.path", reason))?;
    Ok(Some(Admin {
        addr: host_port("http.debug.addr", addr)?,
        metrics_path: (debug.prometheus.enabled != Some(false)).then(|| path.to_owned()),
        page: page.page != Some(false),
    }))
}

/// Returns the address of the listener of actions. Any process that can connect to it may purge the cache, so it is
/// bound to a loopback address.
fn actions(actions: &file::Actions) -> Result<Option<String>, Error> {
    let Some(addr) = actions.addr.as_deref().filter(|addr| !addr.is_empty()) else {
        return Ok(None);
    };
    match addr.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(Some(addr.to_owned())),
        _ => Err(Error::invalid(
            "http.actions.addr",
            format!("expected a loopback address with a port, such as 127.0.0.1:5003, got {addr:?}"),
        )),
    }
}

/// Validates the path of the metrics: the admin port has other paths, and its router treats some characters as
/// patterns.
fn metrics_path(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("must start with a slash");
    }
    if path.contains(['{', '}', ':', '*']) {
        return Err("must be a plain path, without any of {}:*");
    }
    if ["/", "/livez", "/readyz", "/debug/health"].contains(&path)
        || path == "/status"
        || path.starts_with("/status/")
    {
        return Err("is taken: choose another, such as /metrics");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::File;
    use test_case::test_case;

    fn http(yaml: &str) -> Result<Http, Error> {
        let file = File::parse(&format!("http: {yaml}"))?;
        Http::new(&file.http, &file.admin)
    }

    #[test_case("{}" => Listen::Tcp(":5000".into()))]
    #[test_case("{addr: 'localhost:5000', net: tcp}" => Listen::Tcp("localhost:5000".into()))]
    #[test_case("{addr: '[::1]:0'}" => Listen::Tcp("[::1]:0".into()))]
    #[test_case("{addr: /run/m.sock, net: unix}" => Listen::Unix("/run/m.sock".into()))]
    fn addresses(yaml: &str) -> Listen {
        http(yaml).unwrap().listen
    }

    #[test_case("{}" => "/")]
    #[test_case("{prefix: /}" => "/")]
    #[test_case("{prefix: /a/b/}" => "/a/b/")]
    #[test_case("{prefix: a}" => "/a/"; "slashes are added")]
    fn prefixes(yaml: &str) -> String {
        http(yaml).unwrap().prefix
    }

    /// The default drain timeout is below the grace period of Kubernetes.
    #[test]
    fn drain_timeout_defaults_below_kubernetes() {
        assert_eq!(http("{}").unwrap().drain_timeout, Duration::from_secs(25));
        assert_eq!(
            http("{draintimeout: 60s}").unwrap().drain_timeout,
            Duration::from_mins(1)
        );
        assert_eq!(http("{draintimeout: 0}").unwrap().drain_timeout, Duration::ZERO);
    }

    #[test_case("{}" => Duration::ZERO)]
    #[test_case("{lameduck: 7s}" => Duration::from_secs(7))]
    fn lame_duck_follows_configuration(yaml: &str) -> Duration {
        http(yaml).unwrap().lame_duck
    }

    /// The admin port serves metrics unless they are turned off.
    #[test]
    fn admin_port_serves_metrics_by_default() {
        let admin = |yaml| http(yaml).unwrap().admin;
        assert_eq!(admin("{}"), None);
        let on = admin("{debug: {addr: ':5001'}}").unwrap();
        assert_eq!(on.metrics_path.as_deref(), Some("/metrics"));
        let off = admin("{debug: {addr: ':5001', prometheus: {enabled: false}}}").unwrap();
        assert_eq!(off.metrics_path, None);
    }

    /// The TLS section sets the minimum version and the client CAs.
    #[test]
    fn tls_reads_versions_and_client_cas() {
        let yaml = "{tls: {certificate: /c, key: /k, clientcas: [/ca], minimumtls: tls1.3, \
                    clientauth: verify-client-cert-if-given}}";
        let tls = http(yaml).unwrap().tls.unwrap();
        assert!(tls.only_tls13 && tls.client_optional);
        assert_eq!(tls.client_cas, [PathBuf::from("/ca")]);
    }

    #[test_case("{}" => None)]
    #[test_case("{actions: {addr: '127.0.0.1:5003'}}" => Some("127.0.0.1:5003".to_owned()))]
    #[test_case("{actions: {addr: '[::1]:0'}}" => Some("[::1]:0".to_owned()))]
    fn actions_listen_on_loopback_if_configured(yaml: &str) -> Option<String> {
        http(yaml).unwrap().actions
    }

    /// A configured header keeps all its values.
    #[test]
    fn header_values_are_all_kept() {
        let headers = http("{headers: {X-A: [b, c]}}").unwrap().headers;
        assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test_case("{}" => None)]
    #[test_case("{maxconnections: 500}" => Some(500))]
    fn connections_are_bounded_as_configured(yaml: &str) -> Option<usize> {
        http(yaml).unwrap().max_connections
    }

    /// The error for an invalid value names its key.
    #[test_case("{maxconnections: 0}" => "http.maxconnections: must be at least 1")]
    #[test_case("{addr: localhost}" => "http.addr: expected host:port or :port, got \"localhost\"")]
    #[test_case("{addr: ':70000'}" => "http.addr: expected host:port or :port, got \":70000\"")]
    #[test_case("{net: unix}" => "http.addr: must be the path of a socket as http.net is unix")]
    #[test_case("{net: udp}" => "http.net: expected tcp or unix")]
    #[test_case("{tls: {certificate: /c}}" => "http.tls.key: must be set to serve TLS")]
    #[test_case("{tls: {clientcas: [/c]}}" => "http.tls.certificate: must be set to serve TLS")]
    #[test_case("{headers: {'a b': [c]}}" => "http.headers.a b: invalid HTTP header name")]
    #[test_case("{headers: {Content-Length: ['5']}}" => "http.headers.content-length: the server sets this itself: remove it")]
    #[test_case("{headers: {x-a: [b], Transfer-Encoding: [chunked]}}" => "http.headers.transfer-encoding: the server sets this itself: remove it")]
    #[test_case("{debug: {addr: ':1', prometheus: {path: /status}}}" => "http.debug.prometheus.path: is taken: choose another, such as /metrics")]
    #[test_case("{debug: {addr: ':1', prometheus: {path: '/{a'}}}" => "http.debug.prometheus.path: must be a plain path, without any of {}:*")]
    #[test_case("{actions: {addr: ':5002'}}" => "http.actions.addr: expected a loopback address with a port, such as 127.0.0.1:5003, got \":5002\"")]
    #[test_case("{actions: {addr: '0.0.0.0:5002'}}" => "http.actions.addr: expected a loopback address with a port, such as 127.0.0.1:5003, got \"0.0.0.0:5002\"")]
    #[test_case("{actions: {addr: '10.0.0.1:5002'}}" => "http.actions.addr: expected a loopback address with a port, such as 127.0.0.1:5003, got \"10.0.0.1:5002\"")]
    #[test_case("{actions: {addr: '[::]:5002'}}" => "http.actions.addr: expected a loopback address with a port, such as 127.0.0.1:5003, got \"[::]:5002\"")]
    #[test_case("{prefix: '/a?b/'}" => "http.prefix: expected a path like /registry/ of letters, digits, -._~")]
    #[test_case("{debug: {addr: '5001'}}" => "http.debug.addr: expected host:port or :port, got \"5001\"")]
    fn invalid_value_error_names_key(yaml: &str) -> String {
        http(yaml).unwrap_err().to_string()
    }
}
