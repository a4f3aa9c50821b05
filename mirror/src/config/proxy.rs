//! The upstreams, and how long what they gave is kept (`proxy`).

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::config::{Globs, MaxSize};
use crate::credentials::Credential;
use crate::name::{Host, RepositoryName};

/// The pull-through.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// At least one; the first is the default for requests that name none. No host twice.
    pub upstreams: Vec<Upstream>,
    /// How long what they gave is kept.
    pub cache: Cache,
    /// The directory that credentials come from (`proxy.credentialsdirectory`).
    pub credentials_directory: Option<PathBuf>,
}

/// One registry that may be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Its name as clients write it; in lower case, Docker Hub's aliases as `docker.io`.
    pub host: Host,
    /// `http(s)://host[:port][/path]`: where it is asked. The path goes before `/v2/`.
    pub remote: Url,
    /// Put before every repository's name.
    pub repository_prefix: Option<RepositoryName>,
    /// How its certificate is checked.
    pub tls: UpstreamTls,
    /// The HTTP proxy towards it, without user information; `None`: what the environment says.
    pub proxy_url: Option<Url>,
    /// What else may get its credentials, or be redirected to.
    pub trust: Trust,
    /// Credentials may be sent in clear text although `remote` is `http://`.
    pub insecure_allow_http_credentials: bool,
    /// From the configuration; the credentials directory's come later and win.
    pub credential: Credential,
    /// If there is any, only repositories that match are asked for.
    pub include: Globs,
    /// Repositories that are never asked for.
    pub exclude: Globs,
}

impl Upstream {
    /// Whether this repository may be asked for.
    pub fn admits(&self, name: &RepositoryName) -> bool {
        (self.include.is_empty() || self.include.matches(name.as_str()))
            && !self.exclude.matches(name.as_str())
    }
}

/// How an upstream's certificate is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// PEM file of further authorities.
    pub ca_file: Option<PathBuf>,
    /// Not at all.
    pub insecure_skip_verify: bool,
}

/// What an upstream's answers may lead to beside itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Hosts of token servers that may get its credentials.
    pub realms: Vec<String>,
    /// Names or CIDRs inside private networks that redirects may lead to.
    pub redirects: Vec<String>,
}

/// How long content is kept, and how fresh a tag has to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache {
    /// Content that was not used, or was fetched, longer ago than this goes; `None`: never.
    pub ttl: Option<Duration>,
    /// What `ttl` counts from.
    pub ttl_from: TtlFrom,
    /// How long a tag is served without asking upstream; zero: never.
    pub tag_ttl: Duration,
    /// How long after its last validation a tag is served while upstream fails; zero: never.
    pub stale_if_error: Duration,
    /// What the cache may take; `None`: all but 5% of the file system.
    pub max_size: Option<MaxSize>,
    /// `host/name:tag` or `host/name@digest` that neither expire nor give way.
    pub pinned: Globs,
    /// Upstreams are never asked.
    pub offline: bool,
    /// Content on disk is read and checked again after this time; `None`: never.
    pub scrub_period: Option<Duration>,
}

/// What the time to live counts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TtlFrom {
    /// The last time a client asked for it.
    LastUse,
    /// The time it was fetched, as Distribution has it.
    #[default]
    FirstFetch,
}
