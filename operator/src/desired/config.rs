//! Renders the configuration of the servers from their own types: a missing field does not compile.
//!
//! Directories, addresses and the log's format are part of the Pod template, because servers can't reload them. CA
//! certificates are named by file, without their directory.

use std::{collections::BTreeMap, time::Duration};

use crds::{
    RegistryMirror, cache,
    observability::{AccessLog, LogFormat, LogLevel},
    tls::TlsVersion,
};
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::ResourceExt;
pub use mirror::config::LAST_GOOD;
use mirror::config::{
    Config, TtlFrom,
    duration::GoDuration,
    file::{Admin, Cache, File, Http, Log, Proxy, Trust, Upstream, UpstreamTls},
    log::Level,
};
use mirror::request_host::PageHosts;

use super::child::Child;
use crate::names;
use crate::{
    kind::Kind,
    observed::{Observed, Text},
    validate::{self, Accepted, Rejection},
};

/// The name of the file.
pub const FILE: &str = "config.yml";
/// The time for which a terminating Pod accepts connections after it has become unready: two readiness probes, the
/// EndpointSlice and every kube-proxy follow in this time. A client of a removed address gets no response at all.
pub(super) const LEAVING_SECONDS: i64 = 7;
const LEAVING: Duration = Duration::from_secs(LEAVING_SECONDS.unsigned_abs());
/// The time in which a terminating Pod ends its requests.
pub(super) const DRAIN_SECONDS: i64 = 30;
const DRAIN: Duration = Duration::from_secs(DRAIN_SECONDS.unsigned_abs());

/// Returns the configuration.
///
/// # Errors
/// `InvalidSpec`, with the message of the server that would refuse it.
pub fn file(accepted: &Accepted<'_>, page_hosts: &PageHosts) -> Result<File, Rejection> {
    let file = File {
        admin: Admin {
            hosts: page_hosts.names().to_vec(),
            ..Admin::default()
        },
        ..written(accepted)
    };
    let mut whole = file.clone();
    take_at_start(accepted.mirror, &mut whole);
    if let Some(bucket) = &accepted.bucket {
        whole.storage = bucket.storage("", "");
    }
    match Config::new(&whole) {
        Ok(_) => Ok(file),
        Err(error) => Err(Rejection::invalid(format!(
            "spec: configuration rejected by the servers: {error}"
        ))),
    }
}

fn written(accepted: &Accepted<'_>) -> File {
    let spec = &accepted.mirror.spec;
    File {
        log: Log {
            level: Some(level(spec.observability.log_level)),
            ..Log::default()
        },
        http: Http {
            drain_timeout: Some(DRAIN.into()),
            lame_duck: Some(LEAVING.into()),
            ..Http::default()
        },
        proxy: Proxy {
            ttl: Some(duration(spec.cache.ttl)),
            upstreams: accepted.upstreams.iter().map(upstream).collect(),
            cache: Cache {
                ttl_from: Some(match spec.cache.ttl_from {
                    cache::TtlFrom::LastUse => TtlFrom::LastUse,
                    cache::TtlFrom::FirstFetch => TtlFrom::FirstFetch,
                }),
                tag_ttl: Some(duration(spec.cache.tag_ttl)),
                stale_if_error: Some(duration(spec.cache.stale_if_error)),
                stale_if_denied: spec.cache.stale_if_denied,
                max_size: Some(accepted.max_size),
                pinned: spec.cache.pinned.clone(),
                offline: spec.cache.offline,
                ..Cache::default()
            },
            ..Proxy::default()
        },
        ..File::default()
    }
}

fn upstream(upstream: &validate::Upstream<'_>) -> Upstream {
    let spec = upstream.spec;
    Upstream {
        host: spec.host.clone(),
        remote_url: Some(spec.effective_remote_url()),
        repository_prefix: spec.repository_prefix.clone(),
        tls: UpstreamTls {
            ca_file: upstream.bundle.as_ref().map(|bundle| bundle.file.clone()),
            insecure_skip_verify: spec.tls.as_ref().is_some_and(|tls| tls.insecure_skip_verify),
        },
        proxy_url: spec.proxy_url.clone(),
        include: spec.include.clone(),
        exclude: spec.exclude.clone(),
        trust: trust(spec.trust.as_ref()),
        insecure_allow_http_credentials: spec.insecure_allow_http_credentials,
    }
}

fn trust(trust: Option<&crds::upstream::Trust>) -> Trust {
    trust.map_or_else(Trust::default, |trust| Trust {
        realms: trust.realms.clone(),
        redirects: trust.redirects.clone(),
    })
}

fn level(level: LogLevel) -> Level {
    match level {
        LogLevel::Error => Level::Error,
        LogLevel::Warn => Level::Warn,
        LogLevel::Info => Level::Info,
        LogLevel::Debug => Level::Debug,
    }
}

/// Sets the values that servers read at their start only, which Pods have in their environment.
pub fn take_at_start(mirror: &RegistryMirror, file: &mut File) {
    let spec = &mirror.spec;
    file.log.formatter = Some(formatter(spec.observability.log_format).to_owned());
    file.log.access_log.disabled = spec.observability.access_log == AccessLog::Disabled;
    file.http.headers = headers(mirror);
    file.http.tls.minimum_tls = spec
        .tls
        .minimum_version
        .map(|version| minimum_tls(version).to_owned());
}

/// Returns the headers of every response, by name.
pub(super) fn headers(mirror: &RegistryMirror) -> BTreeMap<String, Vec<String>> {
    let mut headers = BTreeMap::<_, Vec<_>>::new();
    for header in &mirror.spec.response_headers {
        headers
            .entry(header.name.clone())
            .or_default()
            .push(header.value.clone());
    }
    headers
}

/// Returns the server's name of a TLS version.
pub(super) fn minimum_tls(version: TlsVersion) -> &'static str {
    match version {
        TlsVersion::VersionTLS12 => "tls1.2",
        TlsVersion::VersionTLS13 => "tls1.3",
    }
}

/// Returns the server's name of a log format.
pub fn formatter(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Json => "json",
        LogFormat::Text => "text",
    }
}

fn duration(duration: kube::core::Duration) -> GoDuration {
    Duration::from(duration).into()
}

/// Returns the `ConfigMap` with the configuration and the previous one, with which older servers start if they can't
/// parse the new one.
pub(super) fn object(accepted: &Accepted<'_>, yaml: &str, version: &str, observed: &Observed) -> Child {
    let name = names::config(&accepted.mirror.name_any());
    let mut annotations = BTreeMap::from([(names::CONFIGURATION.to_owned(), version.to_owned())]);
    let mut data = BTreeMap::from([(FILE.to_owned(), yaml.to_owned())]);
    if let Some(last_good) = last_good(yaml, observed) {
        annotations.insert(names::LAST_GOOD.to_owned(), last_good.version());
        data.insert(LAST_GOOD.to_owned(), last_good.yaml.clone());
    }
    let map = ConfigMap {
        metadata: ObjectMeta {
            annotations: Some(annotations),
            ..names::owned(accepted.mirror, name.clone())
        },
        data: Some(data),
        ..ConfigMap::default()
    };
    Child::new(Kind::ConfigMap, name, &map)
}

/// Returns the stored configuration once all servers run with it, and the last good one until then. Ignores
/// configurations that another user wrote.
fn last_good<'a>(yaml: &str, observed: &'a Observed) -> Option<&'a Text> {
    let live = observed.configuration.as_ref()?;
    let current = &live.current;
    if current.yaml != yaml && current.is_as_written() && observed.all_run_with(&current.version()) {
        return Some(current);
    }
    live.last_good.as_ref().filter(|text| text.is_as_written())
}
