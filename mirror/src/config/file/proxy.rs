//! `proxy`: Distribution's keys for one upstream, and our extension for many.

use serde::{Deserialize, Serialize, Serializer};

use super::IgnoredKey;
use crate::config::duration::GoDuration;
use crate::config::overlay::{Overlay, section};
use crate::config::proxy::TtlFrom;
use crate::config::size::MaxSize;
use crate::secret::Secret;

section! {
    /// The upstreams, and how long what they gave is kept.
    Proxy {
        /// The default upstream, `http(s)://host[:port][/path]`.
        "remoteurl" => remote_url: Option<String>,
        /// The user at the default upstream.
        "username" => username: Option<String>,
        /// The password at the default upstream.
        "password" => password: Option<Masked>,
        /// The time for which content is kept; for ever if zero or negative.
        "ttl" => ttl: Option<GoDuration>,
        /// A prefix of every repository's name at the default upstream.
        "remotenamespace" => remote_namespace: Option<String>,
        /// A program that returns credentials.
        "exec" => exec: IgnoredKey,
        /// The hosts that `remoteurl` may lead to.
        "trust" => trust: Trust,
        /// More upstreams; the first is the default one where there is no `remoteurl`.
        "upstreams" => upstreams: Vec<Upstream>,
        /// The time for which content is kept and served.
        "cache" => cache: Cache,
        /// The directory of credentials: `config.json`, `last-good.json` and `version`.
        "credentialsdirectory" => credentials_directory: Option<String>,
        /// The directory of files that are named without one (`upstreams[].tls.cafile`).
        "filesdirectory" => files_directory: Option<String>,
    }
}

section! {
    /// One registry that may be asked.
    Upstream {
        /// The upstream's name as clients write it, `docker.io` or `registry.example:5000`.
        "host" => host: String,
        /// The upstream's URL, `http(s)://host[:port][/path]`; without it `https://` and the host.
        "remoteurl" => remote_url: Option<String>,
        /// A prefix of every repository's name at the upstream.
        "repositoryprefix" => repository_prefix: Option<String>,
        /// The check of the upstream's certificate.
        "tls" => tls: UpstreamTls,
        /// The HTTP proxy towards the upstream; without it the environment's.
        "proxyurl" => proxy_url: Option<String>,
        /// Patterns of repositories; with any, no others are served.
        "include" => include: Vec<String>,
        /// Patterns of repositories that are not served.
        "exclude" => exclude: Vec<String>,
        /// The hosts that the upstream may lead to.
        "trust" => trust: Trust,
        /// Allows credentials in clear text where `remoteurl` is `http://`.
        "insecureallowhttpcredentials" => insecure_allow_http_credentials: bool,
    }
}

section! {
    /// The verification of the certificate of an upstream.
    UpstreamTls {
        /// The PEM file of further authorities; a relative path starts at `proxy.filesdirectory`.
        "cafile" => ca_file: Option<String>,
        /// Disables the check of the upstream's certificate.
        "insecureskipverify" => insecure_skip_verify: bool,
    }
}

section! {
    /// The hosts that an upstream's answers may lead to, apart from its own.
    Trust {
        /// The hosts of token servers that may get the upstream's credentials.
        "realms" => realms: Vec<String>,
        /// The names or CIDRs inside private networks that redirects may lead to. A registry at such a name may get
        /// the credentials.
        "redirects" => redirects: Vec<String>,
    }
}

section! {
    /// The settings of the cache: retention, freshness, size.
    Cache {
        /// The start of `proxy.ttl`.
        "ttlfrom" => ttl_from: Option<TtlFrom>,
        /// The time for which a tag is served without asking upstream.
        "tagttl" => tag_ttl: Option<GoDuration>,
        /// The time after its last validation for which a tag is served while upstream fails.
        "staleiferror" => stale_if_error: Option<GoDuration>,
        /// Keeps serving cached content while upstream refuses it (401 or 403), as during a failure.
        "staleifdenied" => stale_if_denied: bool,
        /// The size of the cache; without it, all but 5% of the file system.
        "maxsize" => max_size: Option<MaxSize>,
        /// Patterns of `host/name:tag` or `host/name@digest` that neither expire nor are evicted.
        "pinned" => pinned: Vec<String>,
        /// Serves only what is cached, and never asks upstream; nothing expires by `proxy.ttl`.
        "offline" => offline: bool,
        /// Adds nothing to the cache and expires nothing; clients get the rest from upstream.
        "readonly" => readonly: bool,
        /// The time after which content on disk is verified again; never if 0.
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

impl Overlay for Masked {
    const VALUES: &'static str = "text, which is never printed";
}
