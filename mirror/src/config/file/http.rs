//! `http`.

use std::collections::BTreeMap;

use super::IgnoredKey;
use crate::config::duration::GoDuration;
use crate::config::overlay::section;

section! {
    /// The listener and the admin port.
    Http {
        /// The address for clients, `[host]:port`, or the path of a socket where `net` is `unix`.
        "addr" => addr: Option<String>,
        /// The kind of address: `tcp` or `unix`.
        "net" => net: Option<String>,
        /// The URL in links of answers.
        "host" => host: IgnoredKey,
        /// The start of every path, before `v2/`; slashes at its ends are added where they are missing.
        "prefix" => prefix: Option<String>,
        /// A secret that signs the state of uploads.
        "secret" => secret: IgnoredKey,
        /// Makes links in answers relative.
        "relativeurls" => relative_urls: IgnoredKey,
        /// The time that requests in flight have to end after SIGTERM.
        "draintimeout" => drain_timeout: Option<GoDuration>,
        /// The time after SIGTERM for which new connections are still taken, while `/readyz` answers 503.
        "lameduck" => lame_duck: Option<GoDuration>,
        /// The most client connections at once; beyond it idle ones are closed, of the address with the most of them first. Without it a quarter of the limit of open files, at most 1024.
        "maxconnections" => max_connections: Option<u32>,
        /// The server's certificate, and those of its clients.
        "tls" => tls: Tls,
        /// Headers that are put into every answer.
        "headers" => headers: BTreeMap<String, Vec<String>>,
        /// The admin port.
        "debug" => debug: Debug,
        /// The listener of actions: images, purge, prewarm.
        "actions" => actions: Actions,
        /// HTTP/2.
        "http2" => http2: Http2,
        /// HTTP/2 without TLS.
        "h2c" => h2c: IgnoredKey,
    }
}

section! {
    /// The server's certificate, and whom it asks for one.
    Tls {
        /// The PEM file of the certificate chain.
        "certificate" => certificate: Option<String>,
        /// The PEM file of the certificate's key.
        "key" => key: Option<String>,
        /// The PEM files of authorities that sign clients' certificates; with any, clients need one.
        "clientcas" => client_cas: Vec<String>,
        /// The need of a client certificate: `require-and-verify-client-cert` or `verify-client-cert-if-given`.
        "clientauth" => client_auth: Option<String>,
        /// The oldest version of TLS: `tls1.2` or `tls1.3`.
        "minimumtls" => minimum_tls: Option<String>,
        /// The cipher suites of TLS 1.2.
        "ciphersuites" => cipher_suites: IgnoredKey,
        /// Certificates of Let's Encrypt.
        "letsencrypt" => lets_encrypt: IgnoredKey,
    }
}

section! {
    /// The admin port.
    Debug {
        /// The address of the admin port, `[host]:port`; without it there is none.
        "addr" => addr: Option<String>,
        /// Metrics on the admin port.
        "prometheus" => prometheus: Prometheus,
    }
}

section! {
    /// The listener of actions: images, purge, prewarm.
    Actions {
        /// The loopback address of the listener, such as `127.0.0.1:5003`; without it there is none.
        "addr" => addr: Option<String>,
    }
}

section! {
    /// Metrics on the admin port.
    Prometheus {
        /// Enables the metrics.
        "enabled" => enabled: Option<bool>,
        /// The path of the metrics.
        "path" => path: Option<String>,
    }
}

section! {
    /// HTTP/2.
    Http2 {
        /// Disables HTTP/2.
        "disabled" => disabled: bool,
    }
}
