//! The HTTP clients of one upstream.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue};
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{Client, ClientBuilder, Proxy, redirect};
use url::Url;

use crate::config;
use crate::file_read::{self, MAX_FILE};
use crate::tls::{self, TrustedCertificates};
use crate::upstream::error::{BuildError, describe};
use crate::upstream::options::Timeouts;
use crate::upstream::rate_limit::RequestClass;
use crate::upstream::transport::address_policy::{AddressPolicy, PolicyResolver, literal};
use crate::upstream::transport::host_pool::{HostPool, MAX_IDLE_CONNECTIONS};

const USER_AGENT: &str = concat!("registry-mirror/", env!("CARGO_PKG_VERSION"));

/// The bytes are hashed as they come: nothing is to be compressed on its way.
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// Below what common load balancers keep idle connections for (60 s).
const KEPT_IDLE: Duration = Duration::from_secs(45);

/// The most header fields of a response; registries send some dozens. hyper prepares space for as many fields for each
/// informational response (1xx), so that with a large number an upstream that sends those without end keeps a thread busy.
const MAX_HEADERS: usize = 512;
/// The most bytes of them over HTTP/2. Over HTTP/1.1 hyper's buffer, of 400 KiB, bounds the bytes.
const MAX_HEADER_BYTES: u32 = 300 * 1024;

/// The clients of one upstream, chosen by the kind of request and by its route.
pub(in crate::upstream) struct Clients {
    policy: Arc<AddressPolicy>,
    /// For the upstream itself, where its URL has a name; addresses are checked before.
    upstream: Option<RouteClients>,
    /// For wherever servers lead.
    direct: RouteClients,
    /// No address check here: the proxy resolves the names, and its own address is the operator's choice.
    proxied: Option<RouteClients>,
    proxies: Matcher,
    /// Hosts other than the upstream whose connections are kept.
    kept: HostPool,
}

/// The way of a request to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum ClientRoute {
    /// To the upstream itself.
    Upstream,
    /// To another server, or to one that has no name.
    Direct,
    /// Through an HTTP proxy.
    Proxied,
}

struct Pair {
    api: Client,
    /// HTTP/1.1: one TCP connection for each blob is faster than one for all. Without a read time-out,
    /// which would run while no client wants the next bytes: bodies have their own.
    blobs: Client,
}

/// The clients of one route: those that keep idle connections, and those whose connections end with the response.
struct RouteClients {
    kept: Pair,
    once: Pair,
}

impl Clients {
    pub(in crate::upstream) fn new(
        config: &config::Upstream,
        timeouts: &Timeouts,
        policy: &Arc<AddressPolicy>,
    ) -> Result<Self, BuildError> {
        let failed = |what| BuildError::Client {
            host: config.host.to_string(),
            what,
        };
        let trusted = trusted(config.tls.ca_file.as_deref())?;
        let tls = |http2| tls::client_config(trusted.clone(), http2).map_err(|e| failed(e.to_string()));
        let (http1, http2) = (tls(false)?, tls(true)?);
        let base = |allow_http2| {
            let builder = lenient()
                .user_agent(USER_AGENT)
                .redirect(redirect::Policy::none())
                .referer(false)
                .connect_timeout(timeouts.connect)
                .pool_idle_timeout(KEPT_IDLE)
                .http2_adaptive_window(true)
                .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, IDENTITY)]));
            if config.tls.insecure_skip_verify {
                return builder.tls_danger_accept_invalid_certs(true);
            }
            builder.tls_backend_preconfigured(if allow_http2 { http2.clone() } else { http1.clone() })
        };
        let build = || -> reqwest::Result<Self> {
            let direct = |to_upstream| {
                let policy = policy.clone();
                let resolver = Arc::new(PolicyResolver::new(policy, to_upstream));
                let builder = |http2| base(http2).no_proxy().dns_resolver(resolver.clone());
                // Requests in flight bound those to the upstream.
                let most = if to_upstream {
                    usize::MAX
                } else {
                    MAX_IDLE_CONNECTIONS
                };
                RouteClients::new(timeouts.idle, most, builder)
            };
            let has_name = literal(&config.remote).is_none();
            let upstream = has_name.then(|| direct(true)).transpose()?;
            let direct = direct(false)?;
            let (proxies, through_proxy) = proxied(config.proxy_url.as_ref(), timeouts.idle, base)?;
            Ok(Self {
                policy: policy.clone(),
                upstream,
                direct,
                proxied: through_proxy,
                proxies,
                kept: HostPool::default(),
            })
        };
        build().map_err(|error| failed(describe(error)))
    }

    /// Returns the route of a request to this URL.
    pub(in crate::upstream) fn route(&self, url: &Url) -> ClientRoute {
        let uri = url.as_str().parse::<http::Uri>().ok();
        let is_proxied = uri.is_some_and(|uri| self.proxies.intercept(&uri).is_some());
        if self.proxied.is_some() && is_proxied {
            ClientRoute::Proxied
        } else if self.upstream.is_some() && self.policy.is_upstream(url) {
            ClientRoute::Upstream
        } else {
            ClientRoute::Direct
        }
    }

    /// Returns the client for a request of a class to this URL.
    pub(in crate::upstream) fn get(&self, class: RequestClass, url: &Url) -> &Client {
        let clients = match self.route(url) {
            ClientRoute::Upstream => self.upstream.as_ref(),
            ClientRoute::Proxied => self.proxied.as_ref(),
            ClientRoute::Direct => None,
        };
        let clients = clients.unwrap_or(&self.direct);
        let is_kept = self.policy.is_origin(url) || self.kept.keeps(url, KEPT_IDLE);
        let pair = if is_kept { &clients.kept } else { &clients.once };
        match class {
            RequestClass::Blob => &pair.blobs,
            RequestClass::Manifest | RequestClass::Head | RequestClass::Token | RequestClass::List => {
                &pair.api
            }
        }
    }
}

impl RouteClients {
    /// Returns the clients, of which those that keep connections keep up to `most` idle ones to a host.
    fn new(idle: Duration, most: usize, base: impl Fn(bool) -> ClientBuilder) -> reqwest::Result<Self> {
        let with = |most: usize| Pair::new(idle, |http2| base(http2).pool_max_idle_per_host(most));
        Ok(Self {
            kept: with(most)?,
            once: with(0)?,
        })
    }
}

impl Pair {
    /// Returns the clients; `base` is given whether HTTP/2 is allowed.
    fn new(idle: Duration, base: impl Fn(bool) -> ClientBuilder) -> reqwest::Result<Self> {
        Ok(Self {
            api: base(true).read_timeout(idle).build()?,
            blobs: base(false).http1_only().build()?,
        })
    }
}

/// Returns a builder of clients that read headers as curl and Go do: folded lines (RFC 9112, 5.2), space before the
/// colon, lines that are no header (they are left out), many and long ones.
fn lenient() -> ClientBuilder {
    Client::builder()
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_ignore_invalid_headers_in_responses(true)
        .http1_max_headers(MAX_HEADERS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
}

/// Returns the rule for the requests that go through a proxy, and the clients for them: by the proxy of the configuration,
/// else by those of the environment.
fn proxied(
    url: Option<&Url>,
    idle: Duration,
    base: impl Fn(bool) -> ClientBuilder,
) -> reqwest::Result<(Matcher, Option<RouteClients>)> {
    if let Some(url) = url {
        let proxy = Proxy::all(url.clone())?;
        let builder = |http2| base(http2).no_proxy().proxy(proxy.clone());
        let clients = RouteClients::new(idle, MAX_IDLE_CONNECTIONS, builder)?;
        return Ok((Matcher::builder().all(url.as_str()).build(), Some(clients)));
    }
    let clients = from_environment().then(|| RouteClients::new(idle, MAX_IDLE_CONNECTIONS, base));
    Ok((Matcher::from_env(), clients.transpose()?))
}

/// Returns `true` if the environment names a proxy.
fn from_environment() -> bool {
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
        .iter()
        .any(|name| std::env::var_os(name).is_some() || std::env::var_os(name.to_lowercase()).is_some())
}

/// Returns the CAs of the system and the certificates of the file.
fn trusted(ca_file: Option<&Path>) -> Result<Arc<TrustedCertificates>, BuildError> {
    let mut trusted = TrustedCertificates::system();
    if let Some(path) = ca_file {
        add_ca_file(Arc::make_mut(&mut trusted), path)?;
    }
    Ok(trusted)
}

fn add_ca_file(trusted: &mut TrustedCertificates, path: &Path) -> Result<(), BuildError> {
    let pem = file_read::read(path, MAX_FILE).map_err(|source| BuildError::CaUnreadable {
        path: path.to_owned(),
        source,
    })?;
    let added = trusted.add_pem(&pem);
    added.map(drop).map_err(|reason| BuildError::CaMalformed {
        path: path.to_owned(),
        reason,
    })
}
