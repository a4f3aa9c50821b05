//! `REGISTRY_*` variables, put over the file as Distribution's parser does it.

use super::file::File;
use super::log::Level;
use super::overlay::{Overlay, OverlayError};
use super::{Error, Notice};

const PREFIX: &str = "REGISTRY_";

/// Names the file itself, to Distribution's start script and to ours.
pub(crate) const CONFIGURATION_PATH: &str = "REGISTRY_CONFIGURATION_PATH";

/// Puts each variable where its name leads, in the order of the names, so that `REGISTRY_STORAGE` comes
/// before `REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY`. One that leads nowhere is a notice only: Kubernetes
/// gives such names to the Services of a namespace.
pub(super) fn apply(
    file: &mut File,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Vec<Notice>, Error> {
    let mut variables: Vec<_> = environment
        .filter(|(name, _)| name.starts_with(PREFIX) && name != CONFIGURATION_PATH)
        .collect();
    variables.sort();
    let mut notices = Vec::new();
    for (variable, yaml) in variables {
        let path: Vec<_> = variable[PREFIX.len()..].split('_').collect();
        match file.overlay(&path, &yaml) {
            Ok(()) => {}
            Err(OverlayError::Unknown) => notices.push(Notice {
                key: variable,
                message: "the environment variable names nothing in the configuration: ignored".to_owned(),
                level: Level::Warn,
            }),
            Err(OverlayError::Invalid(reason)) => return Err(Error::Environment { variable, reason }),
        }
    }
    Ok(notices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn applied(yaml: &str, variables: &[(&str, &str)]) -> Result<(File, Vec<Notice>), Error> {
        let mut file = File::parse(yaml)?;
        let variables = variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        let notices = apply(&mut file, variables)?;
        Ok((file, notices))
    }

    /// An environment variable has the same effect as its YAML.
    #[test_case("PROXY_REMOTEURL", "https://quay.io", "proxy: {remoteurl: 'https://quay.io'}")]
    #[test_case("PROXY_USERNAME", "12345", "proxy: {username: '12345'}"; "a number as text")]
    #[test_case("PROXY_TTL", "48h", "proxy: {ttl: 48h}")]
    #[test_case("PROXY_TTL", "0", "proxy: {ttl: 0}")]
    #[test_case("PROXY_TRUST_REALMS", "[a, b]", "proxy: {trust: {realms: [a, b]}}")]
    #[test_case("PROXY_TRUST_REALMS_0", "a", "proxy: {trust: {realms: [a]}}")]
    #[test_case(
        "PROXY_TRUST_REDIRECTS_0",
        "10.0.0.0/8",
        "proxy: {trust: {redirects: [10.0.0.0/8]}}"
    )]
    #[test_case("PROXY_UPSTREAMS_0_HOST", "quay.io", "proxy: {upstreams: [{host: quay.io}]}")]
    #[test_case(
        "PROXY_UPSTREAMS",
        "[{host: a}, {host: b}]",
        "proxy: {upstreams: [{host: a}, {host: b}]}"
    )]
    #[test_case("LOG_LEVEL", "DEBUG", "log: {level: debug}")]
    #[test_case("LOGLEVEL", "warn", "loglevel: warn")]
    #[test_case("LOG_ACCESSLOG_DISABLED", "true", "log: {accesslog: {disabled: true}}")]
    #[test_case("LOG_FIELDS_ENVIRONMENT", "staging", "log: {fields: {environment: staging}}")]
    #[test_case("HTTP_ADDR", ":8080", "http: {addr: ':8080'}")]
    #[test_case(
        "HTTP_DEBUG_PROMETHEUS_ENABLED",
        "true",
        "http: {debug: {prometheus: {enabled: true}}}"
    )]
    #[test_case("HTTP_TLS_CLIENTCAS_0", "/ca.pem", "http: {tls: {clientcas: [/ca.pem]}}")]
    #[test_case("HTTP_HEADERS_X-Thing", "[a, b]", "http: {headers: {x-thing: [a, b]}}")]
    #[test_case("HTTP_HEADERS", "{X-Thing: [a]}", "http: {headers: {X-Thing: [a]}}")]
    #[test_case("HTTP_TLS_LETSENCRYPT_HOSTS_0", "a.example", "http: {tls: {letsencrypt: {}}}")]
    #[test_case("HEALTH_FILECHECKERS_0_FILE", "/down", "health: {file: [{file: /down}]}")]
    #[test_case(
        "HEALTH_HTTPCHECKERS_0_STATUSCODE",
        "204",
        "health: {http: [{statuscode: 204}]}"
    )]
    #[test_case("HEALTH_TCPCHECKERS_0_ADDR", "a:1", "health: {tcp: [{addr: 'a:1'}]}")]
    #[test_case(
        "HEALTH_STORAGEDRIVER_ENABLED",
        "true",
        "health: {storagedriver: {enabled: true}}"
    )]
    #[test_case("STORAGE", "filesystem", "{}")]
    #[test_case(
        "STORAGE_FILESYSTEM_ROOTDIRECTORY",
        "/x",
        "storage: {filesystem: {rootdirectory: /x}}"
    )]
    #[test_case(
        "STORAGE_MAINTENANCE_READONLY",
        "{enabled: true}",
        "storage: {maintenance: {readonly: {enabled: true}}}"
    )]
    #[test_case("STORAGE_DELETE_ENABLED", "true", "storage: {delete: {}}")]
    #[test_case("STORAGE_S3_BUCKET", "b", "storage: {s3: {bucket: b}}")]
    #[test_case("STORAGE", "s3", "storage: {s3: {}}"; "a driver by name")]
    #[test_case("STORAGE_S3_SECRETKEY", "12", "storage: {s3: {secretkey: '12'}}")]
    #[test_case("STORAGE_S3_CHUNKSIZE", "5242880", "storage: {s3: {chunksize: 5242880}}")]
    #[test_case("STORAGE_AZURE_ACCOUNTNAME", "a", "storage: {azure: {accountname: a}}")]
    #[test_case("STORAGE_GCS_KEYFILE", "/k", "storage: {gcs: {keyfile: /k}}")]
    #[test_case("AUTH", "htpasswd", "auth: htpasswd")]
    #[test_case(
        "AUTH_HTPASSWD_REALM",
        "basic-realm",
        "auth: {htpasswd: {realm: basic-realm}}"
    )]
    #[test_case("REDIS_ADDR", "localhost:6379", "redis: {}")]
    fn variable_equals_its_yaml(name: &str, value: &str, yaml: &str) {
        let (file, notices) = applied("", &[(&format!("REGISTRY_{name}"), value)]).unwrap();
        assert_eq!(file, File::parse(yaml).unwrap());
        assert_eq!(notices, []);
    }

    #[test]
    fn shorter_variable_replaces_map_before_longer_one() {
        let old = "auth: {token: {realm: r}}\nstorage: {s3: {bucket: b}}";
        let variables = [
            ("REGISTRY_AUTH_HTPASSWD_PATH", "/users"),
            ("REGISTRY_AUTH", "htpasswd"),
            ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "/cache"),
            ("REGISTRY_STORAGE", "filesystem"),
        ];
        let (file, _) = applied(old, &variables).unwrap();
        let new = "auth: {htpasswd: {path: /users}}\nstorage: {filesystem: {rootdirectory: /cache}}";
        assert_eq!(file, File::parse(new).unwrap());
    }

    /// A variable whose name matches no key gives a notice, and no error.
    #[test_case("REGISTRY_PORT_5000_TCP_ADDR"; "as Kubernetes names a Service")]
    #[test_case("REGISTRY_SERVICE_HOST")]
    #[test_case("REGISTRY_HEALTH_FILE_0_FILE"; "the YAML key in place of the field's name")]
    #[test_case("REGISTRY_proxy_remoteurl"; "lower case")]
    #[test_case("REGISTRY_")]
    fn unknown_variable_gives_a_notice(name: &str) {
        let (file, notices) = applied("", &[(name, "tcp://10.0.0.1:5000")]).unwrap();
        assert_eq!(file, File::default());
        assert_eq!(notices.len(), 1);
        assert!(notices[0].to_string().contains(name), "{}", notices[0]);
    }

    /// Variables without the prefix give no notice.
    #[test]
    fn unrelated_variables_are_ignored() {
        let (_, notices) = applied("", &[("HOME", "/"), (CONFIGURATION_PATH, "/config.yml")]).unwrap();
        assert_eq!(notices, []);
    }

    #[test_case("REGISTRY_PROXY_TTL", "hunter2")]
    #[test_case("REGISTRY_PROXY_PASSWORD", "[hunter2]")]
    #[test_case("REGISTRY_PROXY", "hunter2")]
    #[test_case("REGISTRY_PROXY_UPSTREAMS_7_HOST", "hunter2")]
    #[test_case("REGISTRY_PROXY_USERNAME", "hunter2: 'unclosed")]
    fn invalid_value_error_names_variable_only(name: &str, value: &str) {
        let message = applied("", &[(name, value)]).unwrap_err().to_string();
        assert!(
            message.contains(name) && !message.contains("hunter2"),
            "{message}"
        );
    }

    proptest! {
        /// No name and no value of a variable makes the parser panic.
        #[test]
        fn any_variable_does_not_panic(name in "[A-Z0-9_]{0,40}", value: String) {
            let _ = applied("", &[(&format!("REGISTRY_{name}"), &value)]);
        }
    }
}
