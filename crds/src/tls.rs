//! The certificate that the mirror shows to its clients.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{rules, upstream::CaBundleReference};

/// TLS for clients.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode != 'Secret' || has(self.secretName)")
        .message("is what mode Secret needs: the name of a Secret with tls.crt and tls.key")
        .field_path(".secretName")
        .reason(Reason::FieldValueRequired),
    validation = Rule::new("self.mode == 'Secret' || !has(self.secretName)")
        .message("goes with mode Secret only: remove it, or use that mode")
        .field_path(".secretName")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.mode != 'Disabled' || !has(self.clientCARef)")
        .message("goes with mode Secret or SelfSigned only: remove it, or use one of them")
        .field_path(".clientCARef")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.mode != 'Disabled' || !has(self.minimumVersion)")
        .message("goes with mode Secret or SelfSigned only: remove it, or use one of them")
        .field_path(".minimumVersion")
        .reason(Reason::FieldValueForbidden)
)]
pub struct Tls {
    /// `Disabled` (plain HTTP), `Secret` (the certificate of secretName) or `SelfSigned` (the operator makes an
    /// authority and a certificate, and renews both ahead of time). What clients have to trust is in a ConfigMap named
    /// like the mirror with -ca behind it.
    #[serde(default)]
    pub mode: TlsMode,

    /// With mode Secret: a Secret in the mirror's namespace with `tls.crt`, `tls.key` and, where clients need it to
    /// trust the certificate, `ca.crt`, as cert-manager makes it. Running servers load a new certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name())]
    pub secret_name: Option<String>,

    /// With mode Secret or SelfSigned: the certificates, in PEM, of the CAs that sign clients' certificates. A client
    /// without such a certificate is refused. Running servers load a changed file without a restart.
    #[serde(rename = "clientCARef", skip_serializing_if = "Option::is_none")]
    pub client_ca_ref: Option<CaBundleReference>,

    /// With mode Secret or SelfSigned: the oldest TLS version that clients may use, `VersionTLS12` or `VersionTLS13`.
    /// Absent: `VersionTLS12`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_version: Option<TlsVersion>,
}

/// A version of TLS, named as in the configuration of the kubelet.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    VersionTLS12,
    /// TLS 1.3.
    VersionTLS13,
}

/// The source of the serving certificate.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// There is none: plain HTTP.
    #[default]
    Disabled,
    /// A Secret.
    Secret,
    /// The operator.
    SelfSigned,
}
