//! Whole configuration files: Distribution's kinds of samples start unchanged, and mistakes are named.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use mirror::config::http::Listen;
use mirror::config::log::{Format, Level};
use mirror::config::{self, Config, Error, Notice};
use mirror::credential::Credential;
use mirror::secret::Secret;
use test_case::test_case;

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/samples")
        .join(name)
}

fn load(name: &str) -> (Config, Vec<String>) {
    let (config, notices) = config::load(Some(&sample(name)), std::iter::empty()).unwrap();
    (config, keys(notices))
}

fn keys(notices: Vec<Notice>) -> Vec<String> {
    notices.into_iter().map(|notice| notice.key).collect()
}

fn variables(variables: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    let owned: Vec<_> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    owned.into_iter()
}

/// The error of a file with this text.
fn refused(yaml: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yml");
    std::fs::write(&path, yaml).unwrap();
    let error = config::load(Some(&path), std::iter::empty()).unwrap_err();
    error
        .to_string()
        .replace(&path.display().to_string(), "config.yml")
}

/// A configuration of `remoteurl` alone is sufficient.
#[test]
fn remoteurl_alone_is_sufficient() {
    let (config, notices) = load("plain.yml");
    assert_eq!(config.proxy.upstreams[0].host.as_str(), "docker.io");
    assert_eq!(config.root, Path::new("/var/lib/registry"));
    assert_eq!(config.http.listen, Listen::Tcp(":5000".into()));
    assert_eq!(notices, Vec::<String>::new());
}

#[test]
fn the_environment_alone_is_enough() {
    let environment = variables(&[("REGISTRY_PROXY_REMOTEURL", "https://quay.io")]);
    let (config, _) = config::load(None, environment).unwrap();
    assert_eq!(config.proxy.upstreams[0].host.as_str(), "quay.io");
}

/// Every key of Distribution's reference is known.
#[test_case("reference-2.8.yml", 16)]
#[test_case("reference-3.yml", 8)]
fn distribution_reference_keys_are_known(name: &str, without_effect: usize) {
    let (_, notices) = load(name);
    assert_eq!(notices.len(), without_effect, "{notices:?}");
}

/// The example sample loads with its users and its health check.
#[test]
fn example_sample_has_users_and_health_check() {
    let (config, notices) = load("example.yml");
    assert_eq!(config.root, Path::new("/srv/cache"));
    assert_eq!(config.access.unwrap().path, Path::new("/etc/mirror/users"));
    assert_eq!(config.health.storage.unwrap().interval, Duration::from_secs(15));
    assert_eq!(config.http.headers["x-content-type-options"], "nosniff");
    assert_eq!(notices, ["storage.cache", "storage.tag"]);
}

/// The development sample loads with its admin port.
#[test]
fn development_sample_has_admin_port() {
    let (config, notices) = load("development.yml");
    let admin = config.http.admin.unwrap();
    assert_eq!(
        (admin.addr.as_str(), admin.metrics_path.as_deref()),
        ("localhost:5001", Some("/telemetry"))
    );
    assert_eq!(config.http.prefix, "/nested/mirror/");
    assert_eq!(config.http.drain_timeout, Duration::from_secs(45));
    assert_eq!(config.log.level, Level::Debug);
    assert!(!config.proxy.cache.readonly, "the cache is still filled");
    assert_eq!(notices.len(), 12, "{notices:?}");
}

/// The cache sample loads with its credential and its time to live.
#[test]
fn cache_sample_has_credential_and_ttl() {
    let (config, notices) = load("cache.yml");
    assert_eq!(config.proxy.cache.ttl, Some(Duration::from_hours(72)));
    let credential = Credential::Basic {
        username: "robot".into(),
        password: Secret::new("00112233"),
    };
    assert_eq!(config.proxy.upstreams[0].credential, credential);
    assert_eq!((config.log.format, config.log.access), (Format::Logstash, false));
    assert!(!config.uploads.enabled);
    assert_eq!(config.health.http[0].status.as_u16(), 204);
    assert_eq!(
        notices,
        [
            "log.hooks",
            "storage.cache",
            "http.secret",
            "notifications",
            "redis"
        ]
    );
}

#[test]
fn variables_override_a_sample() {
    let environment = variables(&[
        ("REGISTRY_PROXY_REMOTEURL", "https://ghcr.io"),
        ("REGISTRY_PROXY_USERNAME", ""),
        ("REGISTRY_PROXY_PASSWORD", ""),
        ("REGISTRY_HTTP_ADDR", "127.0.0.1:0"),
        ("REGISTRY_HEALTH_TCPCHECKERS_0_THRESHOLD", "7"),
        ("REGISTRY_PORT", "tcp://10.0.0.1:5000"),
        ("REGISTRY_CONFIGURATION_PATH", "/etc/distribution/config.yml"),
    ]);
    let (config, notices) = config::load(Some(&sample("cache.yml")), environment).unwrap();
    assert_eq!(config.proxy.upstreams[0].host.as_str(), "ghcr.io");
    assert_eq!(config.proxy.upstreams[0].credential, Credential::Anonymous);
    assert_eq!(config.http.listen, Listen::Tcp("127.0.0.1:0".into()));
    assert_eq!(config.health.tcp[0].schedule.threshold, 7);
    assert!(keys(notices).contains(&"REGISTRY_PORT".to_owned()));
}

/// The error for a configuration file that does not exist names its path.
#[test]
fn missing_config_error_names_path() {
    let error = config::load(Some(Path::new("/nowhere/config.yml")), std::iter::empty()).unwrap_err();
    assert!(matches!(&error, Error::Unreadable { .. }));
    assert!(error.to_string().contains("/nowhere/config.yml"), "{error}");
}

/// Errors of a configuration name the key and the line.
#[test_case("version: 0.1\nproxy:\n  remoturl: x\n" => "config.yml line 3: proxy.remoturl: unknown key; known here: \
    remoteurl, username, password, ttl, remotenamespace, exec, trust, upstreams, cache, credentialsdirectory, \
    filesdirectory")]
#[test_case("proxy:\n  upstreams:\n  - host: a\n    hots: b\n" => "config.yml line 4: proxy.upstreams[0].hots: unknown \
    key; known here: host, remoteurl, repositoryprefix, tls, proxyurl, include, exclude, trust, \
    insecureallowhttpcredentials")]
#[test_case("version: 0.2\n" => "config.yml line 1: version: \"0.2\" is not one of 0.1")]
#[test_case("proxy: {ttl: soon}" => "config.yml line 1: proxy.ttl: not a duration: expected a form like 168h, 1h30m or 250ms")]
#[test_case("storage: s3" => "storage.s3.region: must be set to the region of the bucket"; "a driver by name")]
#[test_case("storage:\n  ipfs: {}\n" => "config.yml line 2: storage.ipfs: not a supported storage driver; supported: \
    filesystem, s3, gcs, azure. Set storage.filesystem.rootdirectory to a directory (it may be a mounted volume) and remove the other \
    driver; known here: filesystem, maintenance, cache, delete, redirect, tag, inmemory, azure, gcs, s3, s3aws, s3goamz, \
    rados, swift, oss")]
#[test_case("storage: {rados: {poolname: p}}" => "storage.rados: not a supported storage driver; supported: filesystem, s3, gcs, azure. \
    Set storage.filesystem.rootdirectory to a directory (it may be a mounted volume) and remove the other driver")]
#[test_case("storage: {filesystem: {rootdirectory: /x}, swift: {}}" => "storage: more than one storage driver is \
    configured: keep a supported one (filesystem, s3, gcs, azure) and remove storage.swift")]
#[test_case("storage: {filesystem: {rootdirectory: /x}, s3: {}}" => "storage.s3.region: must be set to the region of the bucket")]
#[test_case("storage: {filesystem: {rootdir: /x}}" => "config.yml line 1: storage.filesystem.rootdir: unknown key; known \
    here: rootdirectory, maxthreads")]
#[test_case("http:\n  addr: :1\n  addr: :2\n" => "config.yml line 3: http: the key addr is there twice")]
#[test_case("- a\n- b\n" => "config.yml line 1: expected mapping start"; "a list")]
#[test_case("a: b\n---\nc: d\n" => "config.yml line 1: a: unknown key; known here: version, log, loglevel, storage, auth, \
    middleware, reporting, http, admin, notifications, redis, health, catalog, proxy, peers, compatibility, \
    validation, policy")]
#[test_case("{}" => "proxy.remoteurl: must be set to the registry to mirror, https://registry-1.docker.io for one")]
fn config_mistakes_name_key_and_line(yaml: &str) -> String {
    refused(yaml)
}

/// The error for a file that is no YAML names the file.
#[test_case("proxy: [" ; "unclosed list")]
#[test_case("\u{0}" ; "nul")]
#[test_case("a: b: c" ; "two colons")]
#[test_case("&a [*a]" ; "an anchor in itself")]
#[test_case("\tproxy: x" ; "tab")]
fn invalid_yaml_error_names_the_file(yaml: &str) {
    let message = refused(yaml);
    assert!(message.starts_with("config.yml"), "{message}");
}

/// Sections without a value count as absent.
#[test]
fn empty_sections_count_as_absent() {
    let yaml = "log:\nstorage:\n  filesystem:\nhttp:\n  tls:\n  headers:\nauth:\nhealth:\nredis:\nproxy:\n  cache:\n";
    let mut file = config::file::File::parse(yaml).unwrap();
    file.proxy.remote_url = Some("https://a".into());
    assert!(Config::new(&file).is_ok());
}
