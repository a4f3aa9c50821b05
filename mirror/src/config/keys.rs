//! Keys that Distribution knows and a pull-through has no use for: most are accepted with a notice, those
//! whose absence would change what is safe or served are refused.

use super::file::File;
use super::{Error, Notice};

const NO_PUSH: &str = "nothing is pushed to a pull-through";

fn table_without_effect(file: &File) -> [(&'static str, bool, &'static str); 23] {
    let (log, storage, http) = (&file.log, &file.storage, &file.http);
    let old_tls = matches!(http.tls.minimum_tls.as_deref(), Some("tls1.0" | "tls1.1"));
    [
        ("log.hooks", log.hooks.is_there(), "the log goes to stderr only"),
        (
            "log.reportcaller",
            log.report_caller.is_there(),
            "lines name their module always",
        ),
        (
            "storage.filesystem.maxthreads",
            storage.filesystem.max_threads.is_there(),
            "threads are bounded anyway",
        ),
        (
            "storage.maintenance.uploadpurging",
            storage.maintenance.upload_purging.is_there(),
            NO_PUSH,
        ),
        (
            "storage.cache",
            storage.cache.is_there(),
            "the cache has an index of its own",
        ),
        (
            "storage.delete",
            storage.delete.is_there(),
            "clients cannot delete from a pull-through",
        ),
        (
            "storage.redirect",
            storage.redirect.is_there(),
            "content is served from here",
        ),
        (
            "storage.tag",
            storage.tag.is_there(),
            "clients cannot delete from a pull-through",
        ),
        (
            "auth.none",
            file.auth.none.is_there(),
            "anybody may pull unless auth.htpasswd is set",
        ),
        ("http.host", http.host.is_there(), "links in answers are relative"),
        ("http.secret", http.secret.is_there(), NO_PUSH),
        (
            "http.relativeurls",
            http.relative_urls.is_there(),
            "links in answers are relative",
        ),
        (
            "http.h2c",
            http.h2c.is_there(),
            "HTTP/2 is understood unless http.http2.disabled is set",
        ),
        (
            "http.tls.ciphersuites",
            http.tls.cipher_suites.is_there(),
            "only suites that are safe today are offered",
        ),
        (
            "http.tls.minimumtls",
            old_tls,
            "versions before TLS 1.2 are never spoken",
        ),
        (
            "reporting",
            file.reporting.is_there(),
            "errors are logged and counted",
        ),
        (
            "notifications",
            file.notifications.is_there(),
            "no events are sent",
        ),
        (
            "redis",
            file.redis.is_there(),
            "the cache has an index of its own",
        ),
        (
            "catalog",
            file.catalog.is_there(),
            "clients choose the size of its pages",
        ),
        (
            "compatibility",
            file.compatibility.is_there(),
            "schema 1 manifests are not served",
        ),
        ("validation", file.validation.is_there(), NO_PUSH),
        ("policy", file.policy.is_there(), NO_PUSH),
        (
            "proxy.remoteurl",
            sends_in_clear(file),
            "its password goes over the network in clear text: use https://",
        ),
    ]
}

/// Distribution sends passwords to `http://` upstreams; who relies on that is told.
fn sends_in_clear(file: &File) -> bool {
    let remote = file.proxy.remote_url.as_deref().unwrap_or_default();
    remote.starts_with("http://") && file.proxy.username.is_some()
}

#[rustfmt::skip]
fn table_of_refusals(file: &File) -> [(&'static str, bool, &'static str); 12] {
    const DRIVER: &str = "the cache lies in a directory: set storage.filesystem.rootdirectory";
    let storage = &file.storage;
    [
        ("middleware", file.middleware.is_there(), "there is nothing to plug it into; remove it"),
        ("auth.token", file.auth.token.is_there(), "use auth.htpasswd, or a proxy in front that checks tokens"),
        ("auth.silly", file.auth.silly.is_there(), "it protects nothing; use auth.htpasswd"),
        ("http.tls.letsencrypt", file.http.tls.lets_encrypt.is_there(), "set http.tls.certificate and http.tls.key; both are read again when they change"),
        ("proxy.exec", file.proxy.exec.is_there(), "set proxy.username and proxy.password, or proxy.credentialsdirectory, which is read again when it changes"),
        ("storage.inmemory", storage.inmemory.is_there(), DRIVER),
        ("storage.azure", storage.azure.is_there(), DRIVER),
        ("storage.gcs", storage.gcs.is_there(), DRIVER),
        ("storage.s3", storage.s3.is_there(), DRIVER),
        ("storage.s3aws", storage.s3aws.is_there(), DRIVER),
        ("storage.swift", storage.swift.is_there(), DRIVER),
        ("storage.oss", storage.oss.is_there(), DRIVER),
    ]
}

/// A notice for each key that is there without effect.
pub(super) fn without_effect(file: &File) -> impl Iterator<Item = Notice> {
    let table = table_without_effect(file).into_iter();
    table.filter(|(_, there, _)| *there).map(|(key, _, why)| Notice {
        key: key.to_owned(),
        message: if key == "proxy.remoteurl" {
            why.to_owned()
        } else {
            format!("no effect here: {why}")
        },
    })
}

/// The first key that is there and must not be.
pub(super) fn refuse(file: &File) -> Result<(), Error> {
    let mut table = table_of_refusals(file).into_iter();
    match table.find(|(_, there, _)| *there) {
        None => Ok(()),
        Some((key, _, reason)) => Err(Error::Refused {
            key: key.to_owned(),
            reason: reason.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("http: {secret: s}", "http.secret")]
    #[test_case("http: {host: 'https://a'}", "http.host")]
    #[test_case("http: {relativeurls: true}", "http.relativeurls")]
    #[test_case("http: {h2c: {enabled: true}}", "http.h2c")]
    #[test_case("http: {tls: {ciphersuites: 'A,B'}}", "http.tls.ciphersuites")]
    #[test_case("http: {tls: {minimumtls: tls1.0}}", "http.tls.minimumtls")]
    #[test_case("storage: {cache: {blobdescriptor: redis}}", "storage.cache")]
    #[test_case("storage: {delete: {enabled: true}}", "storage.delete")]
    #[test_case("storage: {redirect: {disable: true}}", "storage.redirect")]
    #[test_case("storage: {tag: {concurrencylimit: 8}}", "storage.tag")]
    #[test_case("storage: {filesystem: {maxthreads: 9}}", "storage.filesystem.maxthreads")]
    #[test_case(
        "storage: {maintenance: {uploadpurging: {enabled: false}}}",
        "storage.maintenance.uploadpurging"
    )]
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
    fn keys_without_effect_give_exactly_one_notice(yaml: &str, key: &str) {
        let file = File::parse(yaml).unwrap();
        let notices: Vec<_> = without_effect(&file).map(|n| n.key).collect();
        assert_eq!(notices, [key]);
        assert!(refuse(&file).is_ok());
    }

    #[test_case("middleware: {storage: [{name: cloudfront}]}", "middleware")]
    #[test_case("auth: {token: {realm: r}}", "auth.token")]
    #[test_case("auth: {silly: {realm: r}}", "auth.silly")]
    #[test_case("http: {tls: {letsencrypt: {email: e}}}", "http.tls.letsencrypt")]
    #[test_case("proxy: {exec: {command: c}}", "proxy.exec")]
    #[test_case("storage: {s3: {bucket: b}}", "storage.s3")]
    #[test_case("storage: {inmemory: }", "storage.inmemory"; "a driver without options")]
    #[test_case("storage: {gcs: {}, filesystem: {}}", "storage.gcs")]
    #[test_case("storage: {azure: {}}", "storage.azure")]
    #[test_case("storage: {swift: {}}", "storage.swift")]
    #[test_case("storage: {oss: {}}", "storage.oss")]
    #[test_case("storage: {s3aws: {}}", "storage.s3aws")]
    fn keys_that_cannot_be_ignored_are_refused_by_name(yaml: &str, key: &str) {
        let file = File::parse(yaml).unwrap();
        let message = refuse(&file).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("{key} is not supported: ")),
            "{message}"
        );
    }

    #[test]
    fn a_file_of_our_own_gives_no_notice() {
        let file = File::parse("proxy: {remoteurl: 'https://a', username: u, password: p}").unwrap();
        assert_eq!(without_effect(&file).count(), 0);
    }
}
