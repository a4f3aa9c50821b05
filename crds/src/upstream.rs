//! The registries behind the mirror.

use kube::{
    KubeSchema,
    core::{Reason, Rule},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules;

/// A key of a `ConfigMap` has 253 characters at most, and nodes' `HOST.hosts.toml` is one.
const MAX_HOST_LENGTH: usize = 253 - ".hosts.toml".len();

/// One registry that the mirror reaches.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = no_credentials_in_clear_text(), validation = no_tls_without_https())]
pub struct Upstream {
    /// The registry's name as clients write it in an image name (containerd sends it as `?ns=`): `docker.io`,
    /// `ghcr.io`, `registry.example.com:5000`. Lower case; at most 242 characters, as files for nodes are named for it.
    #[schemars(length(max = MAX_HOST_LENGTH))]
    #[x_kube(validation = rules::host())]
    pub host: String,

    /// The URL of the registry: `http://` or `https://`, host, optional port and path; no user name, query or fragment.
    /// The servers add `/v2/` and the repository behind it. Default: `https://` and the host, for docker.io
    /// `https://registry-1.docker.io`.
    #[serde(rename = "remoteURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(validation = rules::remote_url())]
    pub remote_url: Option<String>,

    /// Put before every repository name that is asked of this upstream, as a Harbor proxy project wants it:
    /// `dockerhub-proxy` turns `library/alpine` into `dockerhub-proxy/library/alpine`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    #[x_kube(validation = rules::repository_prefix())]
    pub repository_prefix: Option<String>,

    /// The Secret with the user name and password, or token, for this upstream. Absent: anonymous pulls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretReference>,

    /// Sends the credentials although remoteURL is `http://`, which exposes them on the network. Not needed for
    /// loopback addresses.
    #[serde(default, rename = "insecureAllowHTTPCredentials")]
    pub insecure_allow_http_credentials: bool,

    /// The verification of the upstream's certificate. Absent: against the system's CA certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTls>,

    /// The HTTP proxy towards this upstream: `http://` or `https://`, host, optional port; no user name. Absent: what
    /// the operator's environment gives the servers, which is none.
    #[serde(rename = "proxyURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = rules::proxy_url())]
    pub proxy_url: Option<String>,

    /// The additional hosts that may get this upstream's credentials or be redirected to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,

    /// Repositories that may be asked for, all others are answered with 404: `*` stays within a path component, `**`
    /// crosses them, as in `library/*` or `team/**`. They are matched after Docker Hub's `library/` is added and before
    /// repositoryPrefix is. Absent: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 200)))]
    #[x_kube(validation = rules::repository_globs())]
    pub include: Vec<String>,

    /// Repositories that may not be asked for, although include has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 200)))]
    #[x_kube(validation = rules::repository_globs())]
    pub exclude: Vec<String>,
}

impl Upstream {
    /// Returns the URL of the registry: `remoteURL` or its default.
    pub fn effective_remote_url(&self) -> String {
        match (&self.remote_url, self.host.as_str()) {
            (Some(url), _) => url.clone(),
            (None, "docker.io") => "https://registry-1.docker.io".to_owned(),
            (None, host) => format!("https://{host}"),
        }
    }
}

fn no_credentials_in_clear_text() -> Rule {
    Rule::new(format!(
        "!has(self.credentialsSecretRef) || !has(self.remoteURL) || !self.remoteURL.startsWith('http://') \
         || self.insecureAllowHTTPCredentials || {}",
        rules::is_loopback("self.remoteURL"),
    ))
    .message("credentials would cross the network in clear text: use https://, or set insecureAllowHTTPCredentials to true")
    .field_path(".remoteURL")
    .reason(Reason::FieldValueForbidden)
}

fn no_tls_without_https() -> Rule {
    Rule::new("!has(self.tls) || !has(self.remoteURL) || !self.remoteURL.startsWith('http://')")
        .message("has no effect on an http:// remoteURL: use https://, or remove tls")
        .field_path(".tls")
        .reason(Reason::FieldValueForbidden)
}

/// The hosts that a user trusts in addition to an upstream's own.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Trust {
    /// Hosts of token servers that may get the upstream's credentials, although they are in another domain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    #[x_kube(validation = rules::hosts())]
    pub realms: Vec<String>,

    /// Names, or networks such as `10.0.0.0/8`, in private address ranges that the upstream may redirect to. A registry
    /// at one of the names may get the upstream's credentials, if it asks for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    #[x_kube(validation = rules::hosts_or_networks())]
    pub redirects: Vec<String>,
}

/// A Secret in the mirror's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of a Secret in the mirror's namespace, of type `kubernetes.io/dockerconfigjson` (the entry for
    /// remoteURL's host is used, no other), `kubernetes.io/basic-auth`, or `Opaque` with the keys `username` and
    /// `password`, or `token` (an identity token).
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name())]
    pub name: String,
}

/// The verification of an upstream's certificate.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.caBundleRef) || !self.insecureSkipVerify")
        .message("insecureSkipVerify accepts any certificate, so that caBundleRef would have no effect: set one of them")
        .field_path(".insecureSkipVerify")
        .reason(Reason::FieldValueForbidden)
)]
pub struct UpstreamTls {
    /// Certificates, in PEM, of the authorities to trust for this upstream in place of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle_ref: Option<CaBundleReference>,

    /// Accepts any certificate. An attacker on the network can then read the credentials and impersonate the upstream,
    /// except for content that clients request by digest.
    #[serde(default)]
    pub insecure_skip_verify: bool,
}

/// A key of a `ConfigMap` or Secret that holds certificates.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CaBundleReference {
    /// `ConfigMap` or `Secret`, in the mirror's namespace.
    pub kind: CaBundleKind,

    /// Its name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name())]
    pub name: String,

    /// The key that holds the certificates.
    #[serde(default = "ca_crt")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::data_key())]
    pub key: String,
}

fn ca_crt() -> String {
    "ca.crt".to_owned()
}

/// The kind of an object with CA certificates.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CaBundleKind {
    /// A `ConfigMap`.
    ConfigMap,
    /// A Secret.
    Secret,
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use test_case::test_case;

    use super::*;

    /// The default of the remote URL.
    #[test_case(json!({"host": "ghcr.io"}), "https://ghcr.io"; "the host")]
    #[test_case(json!({"host": "example.com:5000"}), "https://example.com:5000"; "the host with its port")]
    #[test_case(json!({"host": "docker.io"}), "https://registry-1.docker.io"; "where Docker Hub is")]
    #[test_case(json!({"host": "docker.io", "remoteURL": "http://a/b"}), "http://a/b"; "what was set")]
    fn default_remote_url(upstream: serde_json::Value, expected: &str) {
        let upstream: Upstream = serde_json::from_value(upstream).unwrap();
        assert_eq!(upstream.effective_remote_url(), expected);
    }
}
