//! The relation of each key to the key of that name in Distribution: what has another meaning or no effect here gives
//! a notice, and what cannot be ignored safely is refused.
//!
//! `mirror check`, `mirror check --explain` and docs/mirror.md take their words from this table, and those of the
//! keys' meaning from the comments of [`File`].

use std::iter;
use std::time::Duration;

use super::file::{File, Proxy};
use super::log::Level;
use super::overlay::Overlay as _;
use super::{Error, Notice, remote_url};

/// A shorter duration of the cache is a number whose unit is missing.
const SHORTEST_DURATION: Duration = Duration::from_millis(1);
const NO_PUSH: &str = "clients cannot push to a pull-through";
const RELATIVE: &str = "links in answers are relative";
const PATIENCE: &str = "a request to the bucket is tried twice, then the registry is asked";
const NO_COPY: &str = "objects are not copied";
const USER_AGENT: &str = "requests name this server";
const INDEX: &str = "the cache has an index of its own";
/// The answer to every storage driver without an implementation.
pub(super) const NO_DRIVER: &str = "not a supported storage driver; supported: filesystem, s3, gcs, azure. \
    Set storage.filesystem.rootdirectory to a directory (it may be a mounted volume) and remove the other driver";

/// The storage drivers with an implementation.
const DRIVERS: [&str; 4] = ["storage.filesystem", "storage.s3", "storage.gcs", "storage.azure"];

/// The relation of a key to the key of that name in Distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The meaning is the same, but for a remark that may be empty.
    Same(&'static str),
    /// The meaning is another one, which `mirror check` prints.
    Differs(&'static str),
    /// The key has no effect here, for this reason.
    Ignored(&'static str),
    /// The key is an error here; the text says what to do.
    Refused(&'static str),
    /// The key is unknown to Distribution.
    Extension,
}

use Relation::{Differs, Extension, Ignored, Refused, Same};

/// The keys whose relation is not plainly [`Relation::Same`]. Each row holds for all keys below its own, but for those
/// with a row of their own.
#[rustfmt::skip]
const RELATIONS: &[(&str, Relation)] = &[
    ("log.accesslog.disabled", Same("the lines are part of the log on stderr; Distribution writes Apache's format to stdout")),
    ("log.hooks", Ignored("the log goes to stderr only")),
    ("log.reportcaller", Ignored("lines name their module always")),
    ("storage.filesystem.rootdirectory", Same("without a storage driver Distribution does not start")),
    ("storage.filesystem.maxthreads", Ignored("threads are bounded anyway")),
    ("storage.maintenance.readonly", Ignored("clients can change nothing anyway, and the cache is still filled, as in Distribution; for a cache that stays as it is set proxy.cache.readonly")),
    ("storage.maintenance.uploadpurging", Same("the first sweep is at the start, and keys that are not set have their defaults")),
    ("storage.cache", Ignored(INDEX)),
    ("storage.delete", Ignored("clients cannot delete from a pull-through, and content expires in any case")),
    ("storage.redirect.disable", Same("false redirects no client: see storage.redirect.mode")),
    ("storage.redirect.mode", Extension),
    ("storage.redirect.minsize", Extension),
    ("storage.redirect.endpoint", Extension),
    ("storage.tag", Ignored("clients cannot delete from a pull-through")),
    ("storage.inmemory", Refused(NO_DRIVER)),
    ("storage.azure.credentialsfile", Extension),
    ("storage.azure.cafile", Extension),
    ("storage.azure.maxsize", Extension),
    ("storage.azure.connectionstring", Refused("set storage.azure.accountname and storage.azure.accountkey")),
    ("storage.azure.max_retries", Ignored(PATIENCE)),
    ("storage.azure.retry_delay", Ignored(PATIENCE)),
    ("storage.azure.copy_status_poll_max_retry", Ignored(NO_COPY)),
    ("storage.azure.copy_status_poll_delay", Ignored(NO_COPY)),
    ("storage.azure.credentials.type", Same("Secret, WorkloadIdentity and Anonymous are extensions; default_credentials is refused")),
    ("storage.gcs.cafile", Extension),
    ("storage.gcs.credentials", Same("type WorkloadIdentity or Anonymous is an extension")),
    ("storage.gcs.maxsize", Extension),
    ("storage.gcs.keyfile", Same("read again when the file changes")),
    ("storage.gcs.maxconcurrency", Ignored("requests to the bucket are bounded anyway")),
    ("storage.gcs.useragent", Ignored(USER_AGENT)),
    ("storage.s3.accesskey", Same("without credentials Distribution asks the metadata service")),
    ("storage.s3.credentials", Extension),
    ("storage.s3.credentialsfile", Extension),
    ("storage.s3.cafile", Extension),
    ("storage.s3.maxsize", Extension),
    ("storage.s3.sessiontoken", Extension),
    ("storage.s3.v2auth", Extension),
    ("storage.s3.forcepathstyle", Same("without it, true where regionendpoint is set, as in Distribution 2.8")),
    ("storage.s3.v4auth", Same("false is refused")),
    ("storage.s3.chunksize", Same("at most 64 MiB")),
    ("storage.s3.objectacl", Same("all but private is refused")),
    ("storage.s3.accelerate", Same("true is refused")),
    ("storage.s3.usedualstack", Same("true is refused")),
    ("storage.s3.usefipsendpoint", Same("true is refused")),
    ("storage.s3.multipartcopythresholdsize", Ignored(NO_COPY)),
    ("storage.s3.multipartcopychunksize", Ignored(NO_COPY)),
    ("storage.s3.multipartcopymaxconcurrency", Ignored(NO_COPY)),
    ("storage.s3.useragent", Ignored(USER_AGENT)),
    ("storage.s3.loglevel", Ignored("the log has its own level")),
    ("storage.s3.redirectendpoint", Same("with storage.redirect.mode Large")),
    ("storage.s3aws", Refused("use storage.s3, which takes the same keys")),
    ("storage.s3goamz", Refused(NO_DRIVER)),
    ("storage.rados", Refused(NO_DRIVER)),
    ("storage.swift", Refused(NO_DRIVER)),
    ("storage.oss", Refused(NO_DRIVER)),
    ("auth.htpasswd.path", Same("without the file no client is let in until it is there; Distribution makes one with a password of its own")),
    ("auth.token", Refused("use auth.htpasswd, or a proxy in front that checks tokens")),
    ("auth.silly", Refused("it protects nothing; use auth.htpasswd")),
    ("auth.none", Ignored("every client may pull unless auth.htpasswd is set")),
    ("middleware", Refused("there is nothing to plug it into; remove it")),
    ("reporting", Ignored("errors are logged and counted")),
    ("http.addr", Same("sockets that systemd passes are not used")),
    ("http.host", Ignored(RELATIVE)),
    ("http.secret", Ignored(NO_PUSH)),
    ("http.relativeurls", Ignored(RELATIVE)),
    ("http.draintimeout", Same("without it Distribution ends at once")),
    ("http.lameduck", Extension),
    ("http.maxconnections", Extension),
    ("http.tls.certificate", Same("read again when the file changes")),
    ("http.tls.key", Same("read again when the file changes")),
    ("http.tls.clientcas", Same("read again when the files change")),
    ("http.tls.clientauth", Same("request-client-cert and require-any-client-cert verify nothing, and are refused")),
    ("http.tls.minimumtls", Same("versions before TLS 1.2 are never spoken")),
    ("http.tls.ciphersuites", Ignored("only suites that are safe today are offered")),
    ("http.tls.letsencrypt", Refused("set http.tls.certificate and http.tls.key; both are read again when they change")),
    ("http.headers", Same("headers that frame messages are refused, and headers of an answer's own replace them")),
    ("http.debug.addr", Same("serves /livez, /readyz and /status, too, but neither /debug/vars nor /debug/pprof")),
    ("http.debug.prometheus.enabled", Differs("metrics are served unless this is false, under names of their own (registry_mirror_...)")),
    ("http.actions", Extension),
    ("admin", Extension),
    ("http.http2.disabled", Differs("HTTP/2 without TLS is disabled with it, which Distribution has http.h2c for")),
    ("http.h2c", Ignored("HTTP/2 is understood unless http.http2.disabled is set")),
    ("notifications", Ignored("no events are sent")),
    ("redis", Ignored(INDEX)),
    ("health.file[].threshold", Differs("failures are counted up to it; Distribution ignores it and fails at the first")),
    ("health.http[].timeout", Same("without it, or with 0, Distribution waits for ever")),
    ("health.tcp[].timeout", Same("without it, or with 0, Distribution waits for ever")),
    ("catalog", Ignored("clients choose the size of its pages")),
    ("proxy.remoteurl", Same("Distribution without it is a registry to push to")),
    ("proxy.ttl", Same("a new value applies to what is cached already, too")),
    ("proxy.exec", Refused("set proxy.username and proxy.password, or proxy.credentialsdirectory, which is read again when it changes")),
    ("proxy.username", Same("a token server in another domain gets user and password only if proxy.trust.realms names it")),
    ("proxy.trust", Extension),
    ("proxy.upstreams", Extension),
    ("proxy.cache", Extension),
    ("proxy.credentialsdirectory", Extension),
    ("proxy.filesdirectory", Extension),
    ("peers", Extension),
    ("compatibility", Ignored("schema 1 manifests are not served")),
    ("validation", Ignored(NO_PUSH)),
    ("policy", Ignored(NO_PUSH)),
];

impl Relation {
    /// Returns the relation of a key by its path.
    pub(super) fn for_key(path: &str) -> Self {
        let rows = RELATIONS.iter().filter(|(key, _)| is_below(path, key));
        rows.max_by_key(|(key, _)| key.len())
            .map_or(Same(""), |(_, relation)| *relation)
    }
}

/// Returns whether a path is a key or lies below it.
pub(super) fn is_below(path: &str, key: &str) -> bool {
    path.strip_prefix(key)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Returns a notice for each key that has no effect or another meaning than in Distribution, and for each value that
/// deserves one.
pub(super) fn notices(file: &File) -> impl Iterator<Item = Notice> {
    let set = set_keys(file);
    let keys = RELATIONS.iter().filter_map(move |(key, relation)| {
        let (message, level) = match relation {
            Ignored(why) => (format!("no effect here: {why}"), Level::Warn),
            Differs(how) => (format!("differs from Distribution: {how}"), Level::Debug),
            Same(_) | Refused(_) | Extension => return None,
        };
        set.iter().any(|path| is_below(path, key)).then(|| Notice {
            key: (*key).to_owned(),
            message,
            level,
        })
    });
    keys.chain(old_tls(file))
        .chain(password_in_clear(file))
        .chain(no_redirects(file))
        .chain(unlikely_urls(file))
        .chain(unlikely_durations(file))
}

fn set_keys(file: &File) -> Vec<String> {
    let mut set = Vec::new();
    file.set_keys("", &mut set);
    set
}

fn old_tls(file: &File) -> Option<Notice> {
    let old = matches!(file.http.tls.minimum_tls.as_deref(), Some("tls1.0" | "tls1.1"));
    old.then(|| Notice {
        key: "http.tls.minimumtls".to_owned(),
        message: "no effect here: versions before TLS 1.2 are never spoken".to_owned(),
        level: Level::Warn,
    })
}

/// Returns a notice for a bucket whose `storage.redirect` neither disables nor enables redirects, where Distribution redirects clients to the bucket.
fn no_redirects(file: &File) -> Option<Notice> {
    let storage = &file.storage;
    let has_bucket = storage.s3.is_some() || storage.gcs.is_some() || storage.azure.is_some();
    let redirect = &storage.redirect;
    (has_bucket && !redirect.disable && redirect.mode.is_none()).then(|| Notice {
        key: "storage.redirect".to_owned(),
        message: "not set: clients are never redirected to the bucket; Distribution redirects them (storage.redirect.mode)"
            .to_owned(),
        level: Level::Info,
    })
}

/// Returns a notice for passwords over `http://`, which Distribution and this server send.
fn password_in_clear(file: &File) -> Option<Notice> {
    let remote = file.proxy.remote_url.as_deref().unwrap_or_default();
    let clear = remote.starts_with("http://") && file.proxy.username.is_some();
    clear.then(|| Notice {
        key: "proxy.remoteurl".to_owned(),
        message: "its password goes over the network in clear text: use https://".to_owned(),
        level: Level::Warn,
    })
}

/// Returns a notice for each upstream whose URL is most likely not the one of a registry.
fn unlikely_urls(file: &File) -> impl Iterator<Item = Notice> {
    let plain = ("proxy.remoteurl".to_owned(), file.proxy.remote_url.as_deref());
    let listed = file.proxy.upstreams.iter().enumerate();
    let listed = listed.map(|(index, upstream)| {
        let key = format!("proxy.upstreams[{index}].remoteurl");
        (key, upstream.remote_url.as_deref())
    });
    let urls = iter::once(plain).chain(listed);
    urls.filter_map(|(key, url)| {
        Some(Notice {
            key,
            message: remote_url::correction(url?)?,
            level: Level::Warn,
        })
    })
}

/// Returns a notice for each duration of the cache that has a special meaning, or is a number without a unit.
fn unlikely_durations(file: &File) -> impl Iterator<Item = Notice> {
    let Proxy { ttl, cache, .. } = &file.proxy;
    let durations = [
        ("proxy.ttl", ttl, "content never expires"),
        (
            "proxy.cache.tagttl",
            &cache.tag_ttl,
            "each request for a tag asks the upstream",
        ),
        (
            "proxy.cache.staleiferror",
            &cache.stale_if_error,
            "no tag is served while the upstream fails",
        ),
    ];
    durations.into_iter().filter_map(|(key, duration, meaning)| {
        let duration = (*duration)?;
        let (message, level) = match duration.positive() {
            None => (format!("{duration}: {meaning}"), Level::Info),
            Some(positive) if positive < SHORTEST_DURATION => (
                format!(
                    "{}ns: a number without a unit counts nanoseconds: write {0}h or {0}s",
                    positive.as_nanos()
                ),
                Level::Warn,
            ),
            Some(_) => return None,
        };
        Some(Notice {
            key: key.to_owned(),
            message,
            level,
        })
    })
}

/// Refuses a file with a key that must not be there.
///
/// # Errors
/// The first such key; for storage drivers, all of them where there is more than one.
pub(super) fn refuse(file: &File) -> Result<(), Error> {
    let set = set_keys(file);
    let is_set = |key: &str| set.iter().any(|path| is_below(path, key));
    let refused = RELATIONS.iter().filter_map(|(key, relation)| match relation {
        Refused(reason) if is_set(key) => Some((*key, *reason)),
        _ => None,
    });
    let refused: Vec<_> = refused.collect();
    let drivers = refused.iter().filter(|(_, reason)| *reason == NO_DRIVER);
    let others: Vec<_> = drivers.map(|(key, _)| *key).collect();
    let supported = DRIVERS.iter().filter(|key| is_set(key)).count();
    let drivers = others.len() + supported;
    match refused.first() {
        None => Ok(()),
        Some((_, NO_DRIVER)) if drivers > 1 => {
            let others = others.join(", ");
            let what = format!(
                "more than one storage driver is configured: keep a supported one (filesystem, s3, gcs, azure) and remove \
                 {others}"
            );
            Err(Error::invalid("storage", what))
        }
        Some((key, NO_DRIVER)) => Err(Error::invalid(*key, NO_DRIVER)),
        Some((key, reason)) => Err(Error::Refused {
            key: (*key).to_owned(),
            reason: (*reason).to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reference;
    use test_case::test_case;

    /// A key without effect gives exactly one notice.
    #[test_case("http: {secret: s}", "http.secret")]
    #[test_case("http: {host: 'https://a'}", "http.host")]
    #[test_case("http: {relativeurls: true}", "http.relativeurls")]
    #[test_case("http: {h2c: {enabled: true}}", "http.h2c")]
    #[test_case("http: {tls: {ciphersuites: 'A,B'}}", "http.tls.ciphersuites")]
    #[test_case("http: {tls: {minimumtls: tls1.0}}", "http.tls.minimumtls")]
    #[test_case("storage: {cache: {blobdescriptor: redis}}", "storage.cache")]
    #[test_case("storage: {delete: {enabled: true}}", "storage.delete")]
    #[test_case(
        "storage: {maintenance: {readonly: {enabled: true}}}",
        "storage.maintenance.readonly"
    )]
    #[test_case("http: {http2: {disabled: true}}", "http.http2.disabled")]
    #[test_case(
        "http: {debug: {addr: ':1', prometheus: {enabled: true}}}",
        "http.debug.prometheus.enabled"
    )]
    #[test_case("health: {file: [{file: /down, threshold: 3}]}", "health.file[].threshold")]
    #[test_case("storage: {tag: {concurrencylimit: 8}}", "storage.tag")]
    #[test_case("storage: {filesystem: {maxthreads: 9}}", "storage.filesystem.maxthreads")]
    #[test_case("log: {hooks: [{type: mail}]}", "log.hooks")]
    #[test_case("log: {reportcaller: true}", "log.reportcaller")]
    #[test_case("auth: {none: }", "auth.none")]
    #[test_case("redis: {pool: {maxidle: 16}}", "redis")]
    #[test_case("reporting: {bugsnag: {}}", "reporting")]
    #[test_case("notifications: {endpoints: []}", "notifications")]
    #[test_case("catalog: {maxentries: 5}", "catalog")]
    #[test_case("compatibility: {schema1: {enabled: true}}", "compatibility")]
    #[test_case("validation: {disabled: true}", "validation")]
    #[test_case("policy: {repository: {classes: [image]}}", "policy")]
    #[test_case("proxy: {remoteurl: 'http://a', username: u}", "proxy.remoteurl")]
    #[test_case("proxy: {remoteurl: 'https://a/v2/'}", "proxy.remoteurl"; "the path of the API")]
    #[test_case(
        "proxy: {upstreams: [{host: a, remoteurl: 'https://a/v2'}]}",
        "proxy.upstreams[0].remoteurl"
    )]
    #[test_case("proxy: {ttl: 168}", "proxy.ttl"; "a number without a unit")]
    #[test_case("proxy: {ttl: 0}", "proxy.ttl"; "content that never expires")]
    #[test_case("proxy: {cache: {tagttl: 0s}}", "proxy.cache.tagttl")]
    #[test_case("proxy: {cache: {staleiferror: 0}}", "proxy.cache.staleiferror")]
    #[test_case("storage: {s3: {bucket: b}}", "storage.redirect"; "a bucket without redirect")]
    #[test_case("storage: {s3: {bucket: b}, redirect: {disable: false}}", "storage.redirect"; "not disabled")]
    fn ineffective_key_gives_one_notice(yaml: &str, key: &str) {
        let file = File::parse(yaml).unwrap();
        let notices: Vec<_> = notices(&file).map(|n| n.key).collect();
        assert_eq!(notices, [key]);
        assert!(refuse(&file).is_ok());
    }

    /// The notice for a duration has its meaning, or the unit that is missing.
    #[test_case("ttl: 0" => "0s: content never expires")]
    #[test_case("ttl: -1h" => "-1h: content never expires"; "below zero")]
    #[test_case("ttl: 168" => "168ns: a number without a unit counts nanoseconds: write 168h or 168s")]
    #[test_case("cache: {tagttl: 0}" => "0s: each request for a tag asks the upstream")]
    fn duration_notice_has_meaning_or_unit(yaml: &str) -> String {
        let file = File::parse(&format!("proxy: {{{yaml}}}")).unwrap();
        notices(&file).next().unwrap().message
    }

    /// Keys that the server cannot ignore are refused, with their names.
    #[test_case("storage: {s3aws: {bucket: b}}", "storage.s3aws")]
    #[test_case("storage: {azure: {connectionstring: c}}", "storage.azure.connectionstring")]
    #[test_case("middleware: {storage: [{name: cloudfront}]}", "middleware")]
    #[test_case("auth: {token: {realm: r}}", "auth.token")]
    #[test_case("auth: {silly: {realm: r}}", "auth.silly")]
    #[test_case("http: {tls: {letsencrypt: {email: e}}}", "http.tls.letsencrypt")]
    #[test_case("proxy: {exec: {command: c}}", "proxy.exec")]
    fn unsupported_keys_are_refused_by_name(yaml: &str, key: &str) {
        let file = File::parse(yaml).unwrap();
        let message = refuse(&file).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("{key} is not supported: ")),
            "{message}"
        );
    }

    #[test_case("inmemory: " => "storage.inmemory"; "a driver without options")]
    #[test_case("rados: {}, filesystem: {}" => "storage.rados"; "with an empty section")]
    #[test_case("oss: {}, cache: {}, maintenance: {}" => "storage.oss"; "with options")]
    #[test_case("swift: {}" => "storage.swift")]
    #[test_case("oss: {}" => "storage.oss")]
    #[test_case("s3goamz: {region: r}" => "storage.s3goamz")]
    #[test_case("rados: {poolname: p}" => "storage.rados")]
    #[test_case("swift: {}, oss: {}" => "storage"; "two drivers")]
    #[test_case("filesystem: {rootdirectory: /x}, swift: {}" => "storage"; "two of which one is supported")]
    fn other_storage_drivers_are_refused(drivers: &str) -> String {
        let file = File::parse(&format!("storage: {{{drivers}}}")).unwrap();
        let message = refuse(&file).unwrap_err().to_string();
        let (key, reason) = message.split_once(": ").unwrap();
        let words = ["supported", "storage driver", "filesystem", "remove"];
        assert!(words.iter().all(|word| reason.contains(word)), "{message}");
        key.to_owned()
    }

    /// A configuration with supported keys only gives no notice.
    #[test]
    fn mirror_config_gives_no_notice() {
        let file = File::parse("proxy: {remoteurl: 'https://a', username: u, password: p}").unwrap();
        assert_eq!(notices(&file).count(), 0);
    }

    /// Every row is a key or a section, and the keys whose value is not read are those without effect.
    #[test]
    fn rows_of_the_table_are_keys() {
        let all = reference::all();
        for (row, _) in RELATIONS {
            assert!(all.iter().any(|entry| is_below(&entry.key, row)), "{row}");
        }
        for entry in all.iter().filter(|entry| entry.values.is_empty()) {
            assert!(matches!(entry.relation, Ignored(_) | Refused(_)), "{}", entry.key);
        }
    }

    /// Returns whether a file names a key, whatever its value.
    fn names(file: &serde_json::Value, key: &str) -> bool {
        let found = key
            .split('.')
            .try_fold(file, |value, part| match part.strip_suffix("[]") {
                Some("NAME") => value.as_object()?.values().next()?.get(0),
                Some(list) => value.get(list)?.get(0),
                None if part == "NAME" => value.as_object()?.values().next(),
                None => value.get(part),
            });
        found.is_some()
    }

    /// A key is an extension if and only if Distribution's reference does not name it.
    #[test]
    fn extensions_are_unknown_to_distribution() {
        let samples = [
            "reference-2.8",
            "reference-3",
            "reference-s3",
            "reference-gcs",
            "reference-azure",
        ]
        .map(|name| {
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/samples");
            let yaml = std::fs::read_to_string(format!("{directory}/{name}.yml")).unwrap();
            serde_saphyr::from_str::<serde_json::Value>(&yaml).unwrap()
        });
        for entry in reference::all() {
            let known = samples.iter().any(|sample| names(sample, &entry.key));
            match entry.relation {
                Extension => assert!(!known, "{}", entry.key),
                Same(_) | Differs(_) => assert!(known, "{}", entry.key),
                Ignored(_) | Refused(_) => {}
            }
        }
    }

    fn table() -> String {
        let row = |entry: reference::Entry| {
            let default = entry
                .default
                .map_or_else(String::new, |default| format!("`{default}`"));
            let (key, meaning, relation) = (entry.key, entry.meaning, entry.relation);
            format!("| `{key}` | {meaning} | {default} | {relation} |\n")
        };
        let rows: String = reference::all().into_iter().map(row).collect();
        format!("| key | meaning | default | in Distribution |\n|---|---|---|---|\n{rows}")
    }

    /// The documentation contains every key in its class.
    #[test]
    fn documentation_lists_every_key() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/mirror.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once("<!-- keys -->\n").unwrap();
        let (written, after) = rest.split_once("<!-- end of keys -->").unwrap();
        let expected = table();
        if std::env::var_os("UPDATE").is_some() {
            let text = format!("{before}<!-- keys -->\n{expected}<!-- end of keys -->{after}");
            std::fs::write(path, text).unwrap();
        } else {
            assert_eq!(written, expected, "run `make generate`");
        }
    }
}
