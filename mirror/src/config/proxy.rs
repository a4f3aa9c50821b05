//! The upstreams, and how long what they gave is kept (`proxy`).

mod upstreams;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use super::duration::GoDuration;
use super::overlay::Overlay;
use super::{Error, Globs, MaxSize, file};
use crate::credential::Credential;
use crate::name::{Host, RepositoryName};

const WEEK: Duration = Duration::from_hours(7 * 24);
const MONTH: Duration = Duration::from_hours(30 * 24);

/// The pull-through.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// At least one; the first is the default for requests that name none. No host twice.
    pub upstreams: Vec<Upstream>,
    /// The settings of the cache.
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
    /// The verification of its certificate.
    pub tls: UpstreamTls,
    /// The HTTP proxy towards it, without user information; `None`: what the environment says.
    pub proxy_url: Option<Url>,
    /// Other hosts that may receive its credentials, or that it may redirect to.
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
    /// Returns `true` if clients may pull this repository.
    pub fn admits(&self, name: &str) -> bool {
        (self.include.is_empty() || self.include.matches(name))
            && (self.exclude.is_empty() || !self.exclude.matches(name))
    }
}

/// The verification of the certificate of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// PEM file of further authorities.
    pub ca_file: Option<PathBuf>,
    /// Not at all.
    pub insecure_skip_verify: bool,
}

/// The hosts that an upstream's answers may lead to, apart from its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Hosts of token servers that may get its credentials.
    pub realms: Vec<String>,
    /// Names or CIDRs inside private networks that redirects may lead to. A registry at such a name may get the
    /// credentials.
    pub redirects: Vec<String>,
    /// The key of the file that has both lists, for messages.
    pub key: &'static str,
}

impl Trust {
    /// The key of Distribution's one upstream, `proxy.remoteurl`.
    pub(super) const PLAIN: &str = "proxy.trust";
    const LISTED: &str = "proxy.upstreams[].trust";
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            realms: Vec::new(),
            redirects: Vec::new(),
            key: Self::LISTED,
        }
    }
}

/// The settings of the cache: retention, freshness, size.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache {
    /// Content that was not used, or was fetched, longer ago than this goes; `None`: never. `None` while offline, as such
    /// content could not be fetched again.
    pub ttl: Option<Duration>,
    /// The event that `ttl` counts from.
    pub ttl_from: TtlFrom,
    /// The time for which a tag is fresh; zero: never.
    pub tag_ttl: Duration,
    /// The time after its last validation in which a tag is served while the upstream fails; zero: never.
    pub stale_if_error: Duration,
    /// Content that upstream refuses (401 or 403) is served as while the upstream fails.
    pub stale_if_denied: bool,
    /// The limit for content; `None`: all but 5% of the file system.
    pub max_size: Option<MaxSize>,
    /// `host/name:tag` or `host/name@digest` that neither expire nor give way.
    pub pinned: Globs,
    /// Upstreams are never asked.
    pub offline: bool,
    /// Nothing is added to the cache and nothing expires (`proxy.cache.readonly`).
    pub readonly: bool,
    /// Content on disk is read and checked again after this time; `None`: never.
    pub scrub_period: Option<Duration>,
}

/// The event that the time to live counts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TtlFrom {
    /// The last time a client asked for it.
    LastUse,
    /// The time it was fetched, as Distribution has it.
    #[default]
    FirstFetch,
}

impl Overlay for TtlFrom {
    const VALUES: &'static str = "LastUse or FirstFetch";
}

impl Proxy {
    pub(super) fn new(proxy: &file::Proxy) -> Result<Self, Error> {
        let directory = proxy.credentials_directory.as_deref();
        Ok(Self {
            upstreams: upstreams::all(proxy)?,
            cache: Cache::new(proxy)?,
            credentials_directory: directory.filter(|d| !d.is_empty()).map(PathBuf::from),
        })
    }
}

impl Cache {
    fn new(proxy: &file::Proxy) -> Result<Self, Error> {
        let cache = &proxy.cache;
        Ok(Self {
            ttl: proxy
                .ttl
                .map_or(Some(WEEK), GoDuration::positive)
                .filter(|_| !cache.offline),
            ttl_from: cache.ttl_from.unwrap_or_default(),
            tag_ttl: cache.tag_ttl.and_then(GoDuration::positive).unwrap_or_default(),
            stale_if_error: cache
                .stale_if_error
                .map_or(WEEK, |stale| stale.positive().unwrap_or_default()),
            stale_if_denied: cache.stale_if_denied,
            max_size: cache.max_size,
            pinned: Globs::new(&cache.pinned).map_err(|e| Error::invalid("proxy.cache.pinned", e))?,
            offline: cache.offline,
            readonly: cache.readonly,
            scrub_period: cache.scrub_period.map_or(Some(MONTH), GoDuration::positive),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::File;
    use test_case::test_case;

    fn proxy(yaml: &str) -> Result<Proxy, Error> {
        Proxy::new(&File::parse(&format!("proxy: {yaml}"))?.proxy)
    }

    fn cache(yaml: &str) -> Cache {
        proxy(&format!("{{remoteurl: 'https://a', {yaml}}}"))
            .unwrap()
            .cache
    }

    /// Without the extension the cache behaves as the one of Distribution.
    #[test]
    fn cache_defaults_are_distributions() {
        let cache = cache("");
        assert_eq!(cache.ttl, Some(WEEK));
        assert_eq!(cache.ttl_from, TtlFrom::FirstFetch);
        assert_eq!(cache.tag_ttl, Duration::ZERO);
        assert_eq!(cache.stale_if_error, WEEK);
        assert!(!cache.stale_if_denied);
        assert_eq!(cache.max_size, None);
        assert_eq!(cache.scrub_period, Some(MONTH));
    }

    #[test_case("ttl: 48h" => Some(Duration::from_hours(48)))]
    #[test_case("ttl: 0" => None; "zero never expires")]
    #[test_case("ttl: 0s" => None)]
    #[test_case("ttl: -1h" => None; "nor does less than zero")]
    #[test_case("ttl: " => Some(WEEK); "no value is absent")]
    fn ttls(yaml: &str) -> Option<Duration> {
        cache(yaml).ttl
    }

    /// An offline cache keeps content that it cannot fetch again, whatever its time to live.
    #[test_case("cache: {offline: true}"; "default")]
    #[test_case("ttl: 1h, cache: {offline: true}"; "time to live")]
    #[test_case("ttl: 1h, cache: {offline: true, ttlfrom: FirstFetch}"; "from the first fetch")]
    fn offline_cache_has_no_time_to_live(yaml: &str) {
        assert_eq!(ttls(yaml), None);
        assert_ne!(ttls(&yaml.replace("true", "false")), None);
    }

    /// The extension sets every option of the cache.
    #[test]
    fn cache_extension_sets_every_option() {
        let cache = cache(
            "cache: {ttlfrom: LastUse, tagttl: 5m, staleiferror: 0, maxsize: 90%, scrubperiod: 0, \
             staleifdenied: true, offline: true, readonly: true, pinned: ['docker.io/library/*:*']}",
        );
        assert_eq!(cache.ttl_from, TtlFrom::LastUse);
        assert_eq!(cache.tag_ttl, Duration::from_mins(5));
        assert_eq!(cache.stale_if_error, Duration::ZERO);
        assert_eq!(cache.max_size, Some(MaxSize::Percent(90)));
        assert_eq!(cache.scrub_period, None);
        assert!(cache.stale_if_denied);
        assert!(cache.offline && cache.readonly && cache.pinned.matches("docker.io/library/nginx:1"));
    }

    /// The error for an invalid value names its key.
    #[test_case("{remoteurl: 'https://a', cache: {pinned: ['a[']}}", "proxy.cache.pinned")]
    #[test_case("{remoteurl: 'https://a', cache: {maxsize: 90m}}", "not a size")]
    #[test_case("{remoteurl: 'https://a', cache: {ttlfrom: Never}}", "LastUse, FirstFetch")]
    #[test_case("{remoteurl: 'https://a', ttl: forever}", "not a duration")]
    fn invalid_value_error_names_key(yaml: &str, part: &str) {
        let message = proxy(yaml).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }

    /// An exclude pattern overrides the include patterns, and without include patterns every repository is
    /// admitted.
    #[test]
    fn exclude_overrides_include() {
        let admits = |yaml: &str, name: &str| {
            let yaml = format!("{{upstreams: [{{host: a.example, {yaml}}}]}}");
            proxy(&yaml).unwrap().upstreams[0].admits(name)
        };
        assert!(admits("", "any/thing"));
        assert!(admits("include: ['team/**']", "team/a/b"));
        assert!(!admits("include: ['team/**']", "other/a"));
        assert!(!admits(
            "include: ['team/**'], exclude: ['team/secret']",
            "team/secret"
        ));
    }
}
