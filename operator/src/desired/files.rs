//! The Secret with the certificates that the servers need, checked and copied from where the admin keeps them.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;

use super::{
    child::{Child, data},
    names,
};
use crate::{kind::Kind, validate::Accepted};

/// The Secret, if there is anything to hold.
pub(super) fn object(accepted: &Accepted<'_>) -> Option<Child> {
    let bundles = accepted
        .upstreams
        .iter()
        .filter_map(|upstream| upstream.bundle.as_ref());
    let data = data(bundles.map(|bundle| (bundle.file.clone(), bundle.pem.clone())));
    if data.is_empty() {
        return None;
    }
    let name = names::files(&accepted.mirror.name_any());
    let metadata = names::owned(accepted.mirror, name.clone());
    Some(Child::new(
        Kind::Secret,
        name,
        &Secret {
            metadata,
            data: Some(data),
            ..Secret::default()
        },
    ))
}
