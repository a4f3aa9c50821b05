//! The certificate that the mirror shows to its clients.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules;

/// Whether clients are served over TLS, and with which certificate.
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
        .reason(Reason::FieldValueForbidden)
)]
pub struct Tls {
    /// `Disabled` (plain HTTP), `Secret` (the certificate of secretName) or `SelfSigned` (the operator makes an
    /// authority and a certificate, and renews both ahead of time). What clients have to trust is in a ConfigMap named
    /// like the mirror with -ca behind it.
    #[serde(default)]
    pub mode: TlsMode,

    /// With mode Secret: a Secret in the mirror's namespace with `tls.crt`, `tls.key` and, where clients need it to
    /// trust the certificate, `ca.crt`, as cert-manager makes it. A new certificate is taken up without a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name())]
    pub secret_name: Option<String>,
}

/// Where the serving certificate comes from.
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
