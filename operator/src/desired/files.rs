//! The Secret with the files that the servers need, certificates and users, checked and copied from where the admin
//! keeps them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;

use super::{
    child::{Child, data},
    names,
};
use crate::{
    kind::Kind,
    validate::{
        Accepted,
        serving::{self, Serving},
        users,
    },
};

/// The files, by name.
pub fn all(accepted: &Accepted<'_>) -> BTreeMap<String, Vec<u8>> {
    let bundles = accepted
        .upstreams
        .iter()
        .filter_map(|upstream| upstream.bundle.as_ref());
    let mut files: BTreeMap<_, _> = bundles
        .map(|bundle| (bundle.file.clone(), bundle.pem.clone()))
        .collect();
    if let Some(serving) = &accepted.serving {
        let [certificate, key, authority] = serving::OWN.map(str::to_owned);
        files.insert(certificate, serving.certificate.clone());
        files.insert(key, serving.key.clone());
        files.extend(serving.authority.clone().map(|pem| (authority, pem)));
    }
    files.extend(accepted.users.clone().map(|file| (users::FILE.to_owned(), file)));
    files
}

/// The Secret, if there is anything to hold.
pub(super) fn object(accepted: &Accepted<'_>) -> Option<Child> {
    if !accepted.has_files() {
        return None;
    }
    let name = names::files(&accepted.mirror.name_any());
    let secret = Secret {
        metadata: names::owned(accepted.mirror, name.clone()),
        data: Some(data(all(accepted))),
        ..Secret::default()
    };
    Some(Child::new(Kind::Secret, name, &secret))
}

/// The Secret with the mirror's own authority, if it has one: for the operator alone.
pub(super) fn authority_key(accepted: &Accepted<'_>) -> Option<Child> {
    let name = names::authority_key(&accepted.mirror.name_any());
    let secret = Secret {
        metadata: names::owned(accepted.mirror, name.clone()),
        data: Some(data(accepted.authority.clone()?)),
        ..Secret::default()
    };
    Some(Child::new(Kind::Secret, name, &secret))
}

/// What clients have to trust, for them to read: a `ConfigMap`, where the certificate's Secret says it or it is the
/// mirror's own.
pub(super) fn authority(accepted: &Accepted<'_>) -> Option<Child> {
    let pem = accepted.serving.as_ref().and_then(Serving::authority)?;
    let name = names::authority(&accepted.mirror.name_any());
    let map = ConfigMap {
        metadata: names::owned(accepted.mirror, name.clone()),
        data: Some(BTreeMap::from([(names::AUTHORITY.to_owned(), pem)])),
        ..ConfigMap::default()
    };
    Some(Child::new(Kind::ConfigMap, name, &map))
}
