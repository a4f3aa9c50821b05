//! Renders the ServiceAccount of the Pods, which has no permissions.

use crds::RegistryMirror;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::ResourceExt;

use super::child::Child;
use crate::kind::Kind;
use crate::names;

/// Returns a `ServiceAccount` without a token.
pub(super) fn object(mirror: &RegistryMirror) -> Child {
    let name = mirror.name_any();
    let mut metadata = names::owned(mirror, name.clone());
    let annotations = &mirror.spec.service_account.annotations;
    metadata.annotations = (!annotations.is_empty()).then(|| annotations.clone());
    let account = ServiceAccount {
        metadata,
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    };
    Child::new(Kind::ServiceAccount, name, &account)
}
