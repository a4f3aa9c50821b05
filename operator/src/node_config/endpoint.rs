//! The address of a mirror, as nodes use it.

use crds::tls::TlsMode;
use url::{Host, Url};

use crate::observed::ServiceAddress;

/// The address and the CA certificates of a mirror, as nodes use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEndpoint {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub url: String,
    /// `HOST:PORT`.
    pub authority: String,
    /// The certificates that nodes have to trust, in PEM.
    pub certificates: Option<String>,
}

/// An error: a text is not the address of a mirror.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be http:// or https://, a host and optionally a port, such as http://10.96.0.20:5000")]
pub struct InvalidEndpoint;

impl NodeEndpoint {
    /// Returns the endpoint of a mirror's Service.
    pub fn new(address: &ServiceAddress, tls: TlsMode, certificates: Option<String>) -> Self {
        Self {
            url: address.url(tls),
            authority: address.authority(),
            certificates,
        }
    }

    /// Parses `SCHEME://HOST[:PORT]`. The port is always part of the result: an image name that begins with a host
    /// without a dot needs it.
    ///
    /// # Errors
    /// The URL has another scheme, no host, a user name, a path, a query or a fragment.
    pub fn parse(text: &str, certificates: Option<String>) -> Result<Self, InvalidEndpoint> {
        let url = Url::parse(text).map_err(|_| InvalidEndpoint)?;
        let is_bare = matches!(url.scheme(), "http" | "https")
            && matches!(url.path(), "" | "/")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        let (Some(host), Some(port), true) = (url.host(), url.port_or_known_default(), is_bare) else {
            return Err(InvalidEndpoint);
        };
        if matches!(host, Host::Domain(name) if !is_host_name(name)) || port == 0 {
            return Err(InvalidEndpoint);
        }
        let authority = format!("{host}:{port}");
        Ok(Self {
            url: format!("{}://{authority}", url.scheme()),
            authority,
            certificates,
        })
    }

    pub(super) fn is_plain(&self) -> bool {
        self.url.starts_with("http://")
    }

    pub(super) fn is_ipv6(&self) -> bool {
        self.authority.starts_with('[')
    }
}

/// Returns whether a name can be part of an image name, TOML and YAML without quotes.
fn is_host_name(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("http://10.96.0.20:5000" => Some(("http://10.96.0.20:5000", "10.96.0.20:5000")); "address and port")]
    #[test_case("https://mirror.example.com/" => Some(("https://mirror.example.com:443", "mirror.example.com:443")); "default port")]
    #[test_case("http://[2001:db8::7]:5000" => Some(("http://[2001:db8::7]:5000", "[2001:db8::7]:5000")); "IPv6")]
    #[test_case("10.96.0.20:5000" => None; "no scheme")]
    #[test_case("ftp://10.96.0.20" => None; "another scheme")]
    #[test_case("http://a:b@10.96.0.20" => None; "credentials")]
    #[test_case("http://10.96.0.20/v2" => None; "path")]
    #[test_case("http://10.96.0.20?a" => None; "query")]
    #[test_case("http://10.96.0.20#a" => None; "fragment")]
    #[test_case("http://10.96.0.20:0" => None; "port zero")]
    #[test_case("http://a\"b" => None; "quote")]
    #[test_case("http://a$b" => None; "no host name")]
    #[test_case("http://" => None; "no host")]
    fn endpoint_parses_or_is_refused(text: &str) -> Option<(&'static str, &'static str)> {
        let endpoint = NodeEndpoint::parse(text, None).ok()?;
        Some((endpoint.url.leak(), endpoint.authority.leak()))
    }
}
