//! `proxy`: Distribution's keys for one upstream, and our extension for many.

use serde::{Deserialize, Serialize, Serializer};

use super::Present;
use crate::config::duration::GoDuration;
use crate::config::overlay::{Overlay, section};
use crate::config::proxy::TtlFrom;
use crate::config::size::MaxSize;
use crate::secret::Secret;

section! {
    /// The upstreams, and how long what they gave is kept.
    Proxy {
        /// The default upstream, as Distribution has it: `http(s)://host[:port][/path]`.
        "remoteurl" => remote_url: Option<String>,
        /// The user there.
        "username" => username: Option<String>,
        /// The password there; never written.
        "password" => password: Option<Masked>,
        /// How long content is kept; 168h if absent, for ever if zero or negative.
        "ttl" => ttl: Option<GoDuration>,
        /// Put before every repository's name there, like `repositoryprefix`.
        "remotenamespace" => remote_namespace: Option<String>,
        /// Refused.
        "exec" => exec: Present,
        /// Extension: more upstreams. The first one is the default unless there is a `remoteurl`.
        "upstreams" => upstreams: Vec<Upstream>,
        /// Extension: how long content is kept.
        "cache" => cache: Cache,
        /// Extension: the directory with `config.json`, `last-good.json` and `version`.
        "credentialsdirectory" => credentials_directory: Option<String>,
        /// Extension: the directory of files that are named without one (`upstreams[].tls.cafile`).
        "filesdirectory" => files_directory: Option<String>,
    }
}

section! {
    /// One registry that may be asked.
    Upstream {
        /// Its name as clients write it, `docker.io` or `registry.example:5000`.
        "host" => host: String,
        /// `http(s)://host[:port][/path]`; `https://HOST` if absent.
        "remoteurl" => remote_url: Option<String>,
        /// Put before every repository's name.
        "repositoryprefix" => repository_prefix: Option<String>,
        /// How its certificate is checked.
        "tls" => tls: UpstreamTls,
        /// The HTTP proxy towards it.
        "proxyurl" => proxy_url: Option<String>,
        /// If there is any, only repositories that match are asked for.
        "include" => include: Vec<String>,
        /// Repositories that are never asked for.
        "exclude" => exclude: Vec<String>,
        /// What else may get its credentials, or be redirected to.
        "trust" => trust: Trust,
        /// Credentials may be sent in clear text where `remoteurl` is `http://`.
        "insecureallowhttpcredentials" => insecure_allow_http_credentials: bool,
    }
}

section! {
    /// How an upstream's certificate is checked.
    UpstreamTls {
        /// PEM file of further authorities; a relative path starts at `proxy.filesdirectory`.
        "cafile" => ca_file: Option<String>,
        /// Not at all.
        "insecureskipverify" => insecure_skip_verify: bool,
    }
}

section! {
    /// What an upstream's answers may lead to beside itself.
    Trust {
        /// Hosts of token servers that may get its credentials.
        "realms" => realms: Vec<String>,
        /// Names or CIDRs inside private networks that redirects may lead to.
        "redirects" => redirects: Vec<String>,
    }
}

section! {
    /// How long content is kept, and how fresh a tag has to be.
    Cache {
        /// `LastUse`, or `FirstFetch` (if absent).
        "ttlfrom" => ttl_from: Option<TtlFrom>,
        /// How long a tag is served without asking upstream; 0 if absent.
        "tagttl" => tag_ttl: Option<GoDuration>,
        /// How long after its last validation a tag is served while upstream fails; 168h if absent, 0: never.
        "staleiferror" => stale_if_error: Option<GoDuration>,
        /// What the cache may take.
        "maxsize" => max_size: Option<MaxSize>,
        /// `host/name:tag` or `host/name@digest` that neither expire nor give way.
        "pinned" => pinned: Vec<String>,
        /// Upstreams are never asked.
        "offline" => offline: bool,
        /// Content on disk is checked again after this time; 720h if absent, 0: never.
        "scrubperiod" => scrub_period: Option<GoDuration>,
    }
}

/// A secret that is written as asterisks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Masked(pub Secret);

impl Serialize for Masked {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("********")
    }
}

impl Overlay for Masked {}
