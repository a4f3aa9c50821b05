//! The effective configuration as a file, for people to read: everything filled in, secrets masked.

mod bucket;

use std::collections::BTreeMap;
use std::path::Path;

use ::http::HeaderMap;

use super::health::CheckSchedule;
use super::http::{Listen, Tls};
use super::log::Format;
use super::{Cache, Config, Health, Http, Log, PeerSettings, Proxy, Trust, UploadPurging, Upstream, file};
use crate::credential::Credential;

impl From<&Config> for file::File {
    /// Returns a file with the same meaning, except for masked secrets.
    fn from(config: &Config) -> Self {
        Self {
            log: log(&config.log),
            storage: file::Storage {
                filesystem: file::Filesystem {
                    root_directory: Some(text(&config.root)),
                    ..file::Filesystem::default()
                },
                maintenance: file::Maintenance {
                    upload_purging: uploads(config.uploads),
                    ..file::Maintenance::default()
                },
                ..bucket::storage(config.bucket.as_ref())
            },
            auth: file::Auth {
                htpasswd: config.access.as_ref().map(|access| file::Htpasswd {
                    realm: Some(access.realm.clone()),
                    path: Some(text(&access.path)),
                }),
                ..file::Auth::default()
            },
            admin: file::Admin {
                page: config.http.admin.as_ref().map(|admin| admin.page),
                hosts: config.page_hosts.names().to_vec(),
            },
            http: http(&config.http),
            health: health(&config.health),
            peers: config.peers.as_ref().map(peers).unwrap_or_default(),
            proxy: proxy(&config.proxy),
            ..Self::default()
        }
    }
}

fn peers(peers: &PeerSettings) -> file::Peers {
    file::Peers {
        addr: Some(peers.addr.clone()),
        addresses: peers.addresses.clone(),
        secret_file: Some(text(&peers.secret_file)),
        tls: peers.tls.as_ref().map(peer_tls).unwrap_or_default(),
    }
}

fn uploads(purging: UploadPurging) -> file::UploadPurging {
    file::UploadPurging {
        enabled: Some(purging.enabled),
        age: Some(purging.age.into()),
        interval: Some(purging.interval.into()),
        dry_run: purging.dry_run,
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn log(log: &Log) -> file::Log {
    let formatter = match log.format {
        Format::Text => "text",
        Format::Json => "json",
        Format::Logstash => "logstash",
    };
    file::Log {
        access_log: file::AccessLog {
            disabled: !log.access,
        },
        level: Some(log.level),
        formatter: Some(formatter.to_owned()),
        fields: log.fields.clone(),
        ..file::Log::default()
    }
}

fn http(http: &Http) -> file::Http {
    let (net, addr) = match &http.listen {
        Listen::Tcp(addr) => ("tcp", addr.clone()),
        Listen::Unix(path) => ("unix", text(path)),
    };
    let admin = http.admin.as_ref();
    file::Http {
        addr: Some(addr),
        net: Some(net.to_owned()),
        prefix: Some(http.prefix.clone()),
        drain_timeout: Some(http.drain_timeout.into()),
        lame_duck: Some(http.lame_duck.into()),
        max_connections: http.max_connections.and_then(|max| u32::try_from(max).ok()),
        tls: http.tls.as_ref().map(tls).unwrap_or_default(),
        headers: headers(&http.headers),
        debug: admin.map_or_else(file::Debug::default, |admin| file::Debug {
            addr: Some(admin.addr.clone()),
            prometheus: file::Prometheus {
                enabled: Some(admin.metrics_path.is_some()),
                path: admin.metrics_path.clone(),
            },
        }),
        actions: file::Actions {
            addr: http.actions.clone(),
        },
        http2: file::Http2 {
            disabled: !http.http2,
        },
        ..file::Http::default()
    }
}

fn tls(tls: &Tls) -> file::Tls {
    let client_auth = if tls.client_optional {
        "verify-client-cert-if-given"
    } else {
        "require-and-verify-client-cert"
    };
    let minimum = if tls.only_tls13 { "tls1.3" } else { "tls1.2" };
    file::Tls {
        certificate: Some(text(&tls.certificate)),
        key: Some(text(&tls.key)),
        client_cas: tls.client_cas.iter().map(|ca| text(ca)).collect(),
        client_auth: Some(client_auth.to_owned()),
        minimum_tls: Some(minimum.to_owned()),
        ..file::Tls::default()
    }
}

fn peer_tls(tls: &Tls) -> file::PeerTls {
    file::PeerTls {
        certificate: Some(text(&tls.certificate)),
        key: Some(text(&tls.key)),
        client_cas: tls.client_cas.iter().map(|ca| text(ca)).collect(),
    }
}

fn headers(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut lists: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        lists.entry(name.to_string()).or_default().push(value);
    }
    lists
}

fn health(health: &Health) -> file::Health {
    let rhythm = |schedule: &CheckSchedule| (Some(schedule.interval.into()), Some(schedule.threshold));
    let (interval, threshold) = health.storage.as_ref().map(rhythm).unwrap_or_default();
    let files = health.files.iter().map(|check| {
        let (interval, threshold) = rhythm(&check.schedule);
        let file = text(&check.path);
        file::FileChecker {
            file,
            interval,
            threshold,
        }
    });
    let tcp = health.tcp.iter().map(|check| {
        let (interval, threshold) = rhythm(&check.schedule);
        let (addr, timeout) = (check.addr.clone(), Some(check.timeout.into()));
        file::TcpChecker {
            addr,
            timeout,
            interval,
            threshold,
        }
    });
    let http = health.http.iter().map(|check| {
        let (interval, threshold) = rhythm(&check.schedule);
        file::HttpChecker {
            uri: check.shown().into(),
            // They may hold credentials of what is checked.
            headers: headers(&check.headers)
                .into_keys()
                .map(|name| (name, vec![super::health::MASK.to_owned()]))
                .collect(),
            status_code: Some(check.status.as_u16()),
            timeout: Some(check.timeout.into()),
            interval,
            threshold,
        }
    });
    file::Health {
        files: files.collect(),
        http: http.collect(),
        tcp: tcp.collect(),
        storage: file::StorageChecker {
            enabled: health.storage.is_some(),
            interval,
            threshold,
        },
    }
}

fn proxy(proxy: &Proxy) -> file::Proxy {
    let mut written = file::Proxy {
        ttl: Some(proxy.cache.ttl.unwrap_or_default().into()),
        cache: cache(&proxy.cache),
        credentials_directory: proxy.credentials_directory.as_deref().map(text),
        ..file::Proxy::default()
    };
    for upstream in &proxy.upstreams {
        if upstream.trust.key != Trust::PLAIN {
            written.upstreams.push(self::upstream(upstream));
            continue;
        }
        written.remote_url = Some(upstream.remote.to_string());
        written.remote_namespace = upstream.repository_prefix.as_ref().map(ToString::to_string);
        written.trust = trust(&upstream.trust);
        if let Credential::Basic { username, password } = &upstream.credential {
            written.username = Some(username.clone());
            written.password = Some(file::Masked(password.clone()));
        }
    }
    written
}

fn trust(trust: &Trust) -> file::Trust {
    file::Trust {
        realms: trust.realms.clone(),
        redirects: trust.redirects.clone(),
    }
}

fn cache(cache: &Cache) -> file::Cache {
    file::Cache {
        ttl_from: Some(cache.ttl_from),
        tag_ttl: Some(cache.tag_ttl.into()),
        stale_if_error: Some(cache.stale_if_error.into()),
        stale_if_denied: cache.stale_if_denied,
        max_size: cache.max_size,
        pinned: cache.pinned.patterns().to_vec(),
        offline: cache.offline,
        readonly: cache.readonly,
        scrub_period: Some(cache.scrub_period.unwrap_or_default().into()),
    }
}

fn upstream(upstream: &Upstream) -> file::Upstream {
    file::Upstream {
        host: upstream.host.to_string(),
        remote_url: Some(upstream.remote.to_string()),
        repository_prefix: upstream.repository_prefix.as_ref().map(ToString::to_string),
        tls: file::UpstreamTls {
            ca_file: upstream.tls.ca_file.as_deref().map(text),
            insecure_skip_verify: upstream.tls.insecure_skip_verify,
        },
        proxy_url: upstream.proxy_url.as_ref().map(ToString::to_string),
        include: upstream.include.patterns().to_vec(),
        exclude: upstream.exclude.patterns().to_vec(),
        trust: trust(&upstream.trust),
        insecure_allow_http_credentials: upstream.insecure_allow_http_credentials,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::File;

    const BUCKETS: [&str; 3] = [
        "{s3: {accesskey: a, secretkey: '********', sessiontoken: '********', region: r, regionendpoint: 'http://a:1', \
         bucket: b, rootdirectory: /x/y/, encrypt: true, keyid: k, storageclass: standard_ia, chunksize: 5242880, \
         cafile: /ca, maxsize: 2Ti, skipverify: true}, filesystem: {rootdirectory: /c}}",
        "{gcs: {bucket: b, maxsize: 90Gi, keyfile: /k, credentials: {client_email: '********'}, rootdirectory: x}}",
        "{azure: {accountname: a, container: c, maxsize: 1e9, realm: core.example, credentials: {type: client_secret, clientid: i, \
         tenantid: t, secret: '********'}}}",
    ];

    const EVERYTHING: &str = "
log: {level: warn, formatter: json, fields: {service: mirror}, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: /cache}
  maintenance: {uploadpurging: {enabled: false, age: 1h, interval: 2h, dryrun: true}}
auth: {htpasswd: {realm: r, path: /users}}
peers: {addr: ':5002', addresses: ['a:5002'], secretfile: /s}
http:
  addr: :443
  prefix: /m/
  draintimeout: 90s
  lameduck: 7s
  maxconnections: 500
  tls: {certificate: /c, key: /k, clientcas: [/ca], minimumtls: tls1.3}
  headers: {x-a: [b, c]}
  debug: {addr: ':5001', prometheus: {path: /m}}
  http2: {disabled: true}
health:
  storagedriver: {enabled: true, interval: 20s, threshold: 3}
  file: [{file: /down}]
  http: [{uri: 'http://a/', statuscode: 204}]
  tcp: [{addr: 'b:1', timeout: 1s}]
proxy:
  remoteurl: https://registry.example/path
  username: robot
  password: '********'
  remotenamespace: team
  trust: {realms: [sso.example], redirects: [10.0.0.0/8]}
  ttl: 0
  credentialsdirectory: /credentials
  cache: {ttlfrom: LastUse, tagttl: 5m, staleiferror: 0, staleifdenied: true, maxsize: 50Gi, pinned: ['a/b:*'], readonly: true, scrubperiod: 0}
  upstreams:
  - host: quay.io
    remoteurl: http://quay.example
    repositoryprefix: q
    tls: {cafile: /quay.pem, insecureskipverify: true}
    proxyurl: http://proxy:3128
    include: [a/**]
    exclude: [a/b]
    trust: {realms: [auth.example], redirects: [10.0.0.0/8]}
    insecureallowhttpcredentials: true
";

    fn config(yaml: &str) -> Config {
        Config::new(&File::parse(yaml).unwrap()).unwrap()
    }

    /// A configuration that is written parses back to the same configuration.
    #[test]
    fn written_config_means_the_same() {
        for yaml in [EVERYTHING, "proxy: {remoteurl: 'https://registry-1.docker.io'}"] {
            let config = config(yaml);
            let written = File::from(&config).to_yaml();
            assert_eq!(self::config(&written), config, "{written}");
        }
    }

    /// A bucket that is written parses back to the same bucket.
    #[test]
    fn written_bucket_means_the_same() {
        for storage in BUCKETS {
            let config = config(&format!(
                "{{proxy: {{remoteurl: 'https://a'}}, storage: {storage}}}"
            ));
            let written = File::from(&config).to_yaml();
            assert_eq!(self::config(&written), config, "{written}");
        }
    }

    /// No secret of a bucket is written.
    #[test]
    fn bucket_secrets_are_masked() {
        for storage in BUCKETS {
            let storage = storage.replace("********", "hunter2");
            let config = config(&format!(
                "{{proxy: {{remoteurl: 'https://a'}}, storage: {storage}}}"
            ));
            let written = File::from(&config).to_yaml();
            assert!(
                !written.contains("hunter2") && written.contains("********"),
                "{written}"
            );
            assert!(!format!("{config:?}").contains("hunter2"));
        }
    }

    #[test]
    fn secrets_are_masked() {
        let yaml = "{proxy: {remoteurl: 'https://a', username: u, password: hunter2}, \
                    health: {http: [{uri: 'http://u:hunter2@a?t=hunter2', headers: {authorization: [Basic hunter2]}}]}}";
        let written = File::from(&config(yaml)).to_yaml();
        assert!(!written.contains("hunter2"), "{written}");
        assert_eq!(written.matches("********").count(), 4, "{written}");
    }
}
