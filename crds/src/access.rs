//! Access control for pulls.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules;

/// Access control for pulls.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode != 'Basic' || has(self.htpasswdSecretRef)")
        .message("is what mode Basic needs: a Secret with an htpasswd file")
        .field_path(".htpasswdSecretRef")
        .reason(Reason::FieldValueRequired),
    validation = Rule::new("self.mode == 'Basic' || !has(self.htpasswdSecretRef)")
        .message("goes with mode Basic only: remove it, or use that mode")
        .field_path(".htpasswdSecretRef")
        .reason(Reason::FieldValueForbidden)
)]
pub struct Access {
    /// `Anonymous` (every client that reaches the mirror) or `Basic` (a user name and password of the htpasswd file).
    #[serde(default)]
    pub mode: AccessMode,

    /// With mode Basic: the users. Running servers load a change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub htpasswd_secret_ref: Option<HtpasswdReference>,
}

/// The access mode of a mirror.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessMode {
    /// Every client that reaches the mirror.
    #[default]
    Anonymous,
    /// Users of an htpasswd file.
    Basic,
}

/// A key of a Secret that holds an htpasswd file.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HtpasswdReference {
    /// Name of a Secret in the mirror's namespace.
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::object_name())]
    pub name: String,

    /// The key that holds the file: a line for each user, with a bcrypt hash, as `htpasswd -B` writes it.
    #[serde(default = "htpasswd")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::data_key())]
    pub key: String,
}

fn htpasswd() -> String {
    "htpasswd".to_owned()
}
