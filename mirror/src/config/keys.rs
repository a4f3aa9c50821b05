//! Keys that Distribution knows and a pull-through has no use for: most are accepted with a notice, those
//! whose absence would change what is safe or served are refused.

use super::file::File;
use super::{Error, Notice};

const NO_PUSH: &str = "nothing is pushed to a pull-through";
const NO_DELETE: &str = "clients cannot delete from a pull-through";
const RELATIVE: &str = "links in answers are relative";
const DRIVER: &str = "the cache lies in a directory: set storage.filesystem.rootdirectory";

/// A key, whether a file has it, and why it is without effect or refused.
struct Key(&'static str, fn(&File) -> bool, &'static str);

#[rustfmt::skip]
const WITHOUT_EFFECT: &[Key] = &[
    Key("log.hooks", |file| file.log.hooks.is_there(), "the log goes to stderr only"),
    Key("log.reportcaller", |file| file.log.report_caller.is_there(), "lines name their module always"),
    Key("storage.filesystem.maxthreads", |file| file.storage.filesystem.max_threads.is_there(), "threads are bounded anyway"),
    Key("storage.maintenance.uploadpurging", |file| file.storage.maintenance.upload_purging.is_there(), NO_PUSH),
    Key("storage.cache", |file| file.storage.cache.is_there(), "the cache has an index of its own"),
    Key("storage.delete", |file| file.storage.delete.is_there(), NO_DELETE),
    Key("storage.redirect", |file| file.storage.redirect.is_there(), "content is served from here"),
    Key("storage.tag", |file| file.storage.tag.is_there(), NO_DELETE),
    Key("auth.none", |file| file.auth.none.is_there(), "anybody may pull unless auth.htpasswd is set"),
    Key("http.host", |file| file.http.host.is_there(), RELATIVE),
    Key("http.secret", |file| file.http.secret.is_there(), NO_PUSH),
    Key("http.relativeurls", |file| file.http.relative_urls.is_there(), RELATIVE),
    Key("http.h2c", |file| file.http.h2c.is_there(), "HTTP/2 is understood unless http.http2.disabled is set"),
    Key("http.tls.ciphersuites", |file| file.http.tls.cipher_suites.is_there(), "only suites that are safe today are offered"),
    Key("reporting", |file| file.reporting.is_there(), "errors are logged and counted"),
    Key("notifications", |file| file.notifications.is_there(), "no events are sent"),
    Key("redis", |file| file.redis.is_there(), "the cache has an index of its own"),
    Key("catalog", |file| file.catalog.is_there(), "clients choose the size of its pages"),
    Key("compatibility", |file| file.compatibility.is_there(), "schema 1 manifests are not served"),
    Key("validation", |file| file.validation.is_there(), NO_PUSH),
    Key("policy", |file| file.policy.is_there(), NO_PUSH),
];

#[rustfmt::skip]
const REFUSED: &[Key] = &[
    Key("middleware", |file| file.middleware.is_there(), "there is nothing to plug it into; remove it"),
    Key("auth.token", |file| file.auth.token.is_there(), "use auth.htpasswd, or a proxy in front that checks tokens"),
    Key("auth.silly", |file| file.auth.silly.is_there(), "it protects nothing; use auth.htpasswd"),
    Key("http.tls.letsencrypt", |file| file.http.tls.lets_encrypt.is_there(), "set http.tls.certificate and http.tls.key; both are read again when they change"),
    Key("proxy.exec", |file| file.proxy.exec.is_there(), "set proxy.username and proxy.password, or proxy.credentialsdirectory, which is read again when it changes"),
    Key("storage.inmemory", |file| file.storage.inmemory.is_there(), DRIVER),
    Key("storage.azure", |file| file.storage.azure.is_there(), DRIVER),
    Key("storage.gcs", |file| file.storage.gcs.is_there(), DRIVER),
    Key("storage.s3", |file| file.storage.s3.is_there(), DRIVER),
    Key("storage.s3aws", |file| file.storage.s3aws.is_there(), DRIVER),
    Key("storage.swift", |file| file.storage.swift.is_there(), DRIVER),
    Key("storage.oss", |file| file.storage.oss.is_there(), DRIVER),
];

/// A notice for each key that is there without effect, and for each value that deserves one.
pub(super) fn without_effect(file: &File) -> impl Iterator<Item = Notice> {
    let there = WITHOUT_EFFECT.iter().filter(|Key(_, there, _)| there(file));
    let keys = there.map(|Key(key, _, why)| notice(key, format!("no effect here: {why}")));
    keys.chain(old_tls(file)).chain(password_in_clear(file))
}

fn notice(key: &str, message: String) -> Notice {
    Notice {
        key: key.to_owned(),
        message,
    }
}

fn old_tls(file: &File) -> Option<Notice> {
    let old = matches!(file.http.tls.minimum_tls.as_deref(), Some("tls1.0" | "tls1.1"));
    old.then(|| {
        let why = "no effect here: versions before TLS 1.2 are never spoken";
        notice("http.tls.minimumtls", why.to_owned())
    })
}

/// Distribution sends passwords to `http://` upstreams; who relies on that is told.
fn password_in_clear(file: &File) -> Option<Notice> {
    let remote = file.proxy.remote_url.as_deref().unwrap_or_default();
    let clear = remote.starts_with("http://") && file.proxy.username.is_some();
    clear.then(|| {
        let why = "its password goes over the network in clear text: use https://";
        notice("proxy.remoteurl", why.to_owned())
    })
}

/// The first key that is there and must not be.
pub(super) fn refuse(file: &File) -> Result<(), Error> {
    match REFUSED.iter().find(|Key(_, there, _)| there(file)) {
        None => Ok(()),
        Some(Key(key, _, reason)) => Err(Error::Refused {
            key: (*key).to_owned(),
            reason: (*reason).to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::overlay::Overlay as _;
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

    /// What docs/mirror.md says of all keys; generated, as is the chart's copy of the definition.
    fn by_class() -> String {
        let mut all = Vec::new();
        File::keys("", &mut all);
        let in_table = |table: &[Key], path: &str| table.iter().any(|Key(key, ..)| *key == path);
        let mut honoured = Vec::new();
        for (path, ignored) in &all {
            let known = in_table(WITHOUT_EFFECT, path) || in_table(REFUSED, path);
            assert_eq!(
                *ignored, known,
                "{path} is in no table, or has a meaning and is in one"
            );
            if !known {
                honoured.push(format!("`{path}`"));
            }
        }
        let rows = |table: &[Key]| {
            let row = |Key(key, _, why): &Key| format!("| `{key}` | {why} |\n");
            table.iter().map(row).collect::<String>()
        };
        format!(
            "Honoured: {}.\n\n| without effect, accepted with a line in the log | why |\n|---|---|\n{}\n\
             | refused | what to do |\n|---|---|\n{}",
            honoured.join(", "),
            rows(WITHOUT_EFFECT),
            rows(REFUSED)
        )
    }

    #[test]
    fn the_documentation_has_every_key_in_its_class() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/mirror.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once("<!-- keys -->\n").unwrap();
        let (written, after) = rest.split_once("<!-- end of keys -->").unwrap();
        let expected = by_class();
        if std::env::var_os("UPDATE").is_some() {
            let text = format!("{before}<!-- keys -->\n{expected}<!-- end of keys -->{after}");
            std::fs::write(path, text).unwrap();
        } else {
            assert_eq!(written, expected, "run `make generate`");
        }
    }
}
