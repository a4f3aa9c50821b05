//! `http`.

use std::collections::BTreeMap;

use super::Present;
use crate::config::duration::GoDuration;
use crate::config::overlay::section;

section! {
    /// The listener and the admin port.
    Http {
        /// `[host]:port`, or the path of a socket where `net` is `unix`; `:5000` if absent.
        "addr" => addr: Option<String>,
        /// `tcp` (if absent) or `unix`.
        "net" => net: Option<String>,
        /// Without effect.
        "host" => host: Present,
        /// What stands before `/v2/` in every path, with a slash at both ends.
        "prefix" => prefix: Option<String>,
        /// Without effect.
        "secret" => secret: Present,
        /// Without effect.
        "relativeurls" => relative_urls: Present,
        /// How long requests in flight may take to end after SIGTERM.
        "draintimeout" => drain_timeout: Option<GoDuration>,
        /// How long new connections are still taken after SIGTERM (0 if absent), while `/readyz` says that none should come.
        "lameduck" => lame_duck: Option<GoDuration>,
        /// Serve TLS.
        "tls" => tls: Tls,
        /// Put into every answer.
        "headers" => headers: BTreeMap<String, Vec<String>>,
        /// The admin port.
        "debug" => debug: Debug,
        /// HTTP/2.
        "http2" => http2: Http2,
        /// Without effect.
        "h2c" => h2c: Present,
    }
}

section! {
    /// The server's certificate, and whom it asks for one.
    Tls {
        /// PEM file of the certificate chain.
        "certificate" => certificate: Option<String>,
        /// PEM file of its key.
        "key" => key: Option<String>,
        /// PEM files of the authorities whose certificates clients must have.
        "clientcas" => client_cas: Vec<String>,
        /// `require-and-verify-client-cert` (if absent) or `verify-client-cert-if-given`.
        "clientauth" => client_auth: Option<String>,
        /// `tls1.2` (if absent) or `tls1.3`; older ones are never spoken.
        "minimumtls" => minimum_tls: Option<String>,
        /// Without effect.
        "ciphersuites" => cipher_suites: Present,
        /// Refused.
        "letsencrypt" => lets_encrypt: Present,
    }
}

section! {
    /// The admin port.
    Debug {
        /// `[host]:port`; there is none if absent.
        "addr" => addr: Option<String>,
        /// Metrics.
        "prometheus" => prometheus: Prometheus,
    }
}

section! {
    /// Metrics on the admin port.
    Prometheus {
        /// Whether there are any; yes if absent.
        "enabled" => enabled: Option<bool>,
        /// Their path; `/metrics` if absent.
        "path" => path: Option<String>,
    }
}

section! {
    /// HTTP/2.
    Http2 {
        /// HTTP/1.1 only.
        "disabled" => disabled: bool,
    }
}
