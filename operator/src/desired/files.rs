//! Renders the files that servers need: certificates and users, checked and copied from the objects of the admin.

use std::collections::BTreeMap;

use crds::RegistryMirror;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;

use super::child::{Child, data};
use crate::{
    dereference::Contents,
    kind::Kind,
    names,
    validate::{
        Accepted, bucket, bundle,
        serving::{self, Serving},
        users,
    },
};

/// Returns the files of the serving certificate, by name.
fn serving(serving: &Serving) -> impl Iterator<Item = (String, Vec<u8>)> {
    let [certificate, key, authority] = serving::FILES.map(str::to_owned);
    let own = [
        (certificate, serving.certificate.clone()),
        (key, serving.key.clone()),
    ];
    let authority = serving.ca.clone().map(|pem| (authority, pem));
    own.into_iter().chain(authority)
}

/// Returns all files, by name.
pub fn all(accepted: &Accepted<'_>) -> BTreeMap<String, Vec<u8>> {
    let bundles = accepted
        .upstreams
        .iter()
        .filter_map(|upstream| upstream.bundle.as_ref());
    let mut files: BTreeMap<_, _> = bundles
        .map(|bundle| (bundle.file.clone(), bundle.pem.clone()))
        .collect();
    files.extend(accepted.serving.iter().flat_map(serving));
    let bucket_ca = accepted.bucket.as_ref().and_then(|bucket| bucket.bundle.clone());
    files.extend(bucket_ca.map(|pem| (bucket::CA_FILE.to_owned(), pem)));
    files.extend(
        accepted
            .client_ca
            .clone()
            .map(|pem| (bundle::CLIENT_CA.to_owned(), pem)),
    );
    files.extend(accepted.users.clone().map(|file| (users::FILE.to_owned(), file)));
    files
}

/// Returns the Secret, if there are files.
pub(super) fn object(accepted: &Accepted<'_>) -> Option<Child> {
    let name = names::files(&accepted.mirror.name_any());
    accepted
        .has_files()
        .then(|| secret(accepted.mirror, name, all(accepted)))
}

/// Returns the Secret with another certificate.
pub(super) fn renewed(mirror: &RegistryMirror, present: &Contents, renewed: &Serving) -> Child {
    let mut files = present.data.clone();
    files.extend(serving(renewed));
    secret(mirror, names::files(&mirror.name_any()), files)
}

fn secret(mirror: &RegistryMirror, name: String, files: BTreeMap<String, Vec<u8>>) -> Child {
    let secret = Secret {
        metadata: names::owned(mirror, name.clone()),
        data: Some(data(files)),
        ..Secret::default()
    };
    Child::new(Kind::Secret, name, &secret)
}

/// Returns the Secret with the CA of the mirror, if it has one.
pub(super) fn ca_key(
    mirror: &RegistryMirror,
    authority: Option<&BTreeMap<String, Vec<u8>>>,
) -> Option<Child> {
    let name = names::ca_key(&mirror.name_any());
    Some(secret(mirror, name, authority?.clone()))
}

/// Returns the Secret that the servers share, if they ask each other.
pub(super) fn shared(mirror: &RegistryMirror, shared: Option<&BTreeMap<String, Vec<u8>>>) -> Option<Child> {
    let name = names::peers(&mirror.name_any());
    Some(secret(mirror, name, shared?.clone()))
}

/// Returns the `ConfigMap` with the CA certificates that clients trust, if the Secret of the certificate has them or
/// the operator issued it.
pub(super) fn ca_bundle(mirror: &RegistryMirror, serving: Option<&Serving>) -> Option<Child> {
    let pem = serving.and_then(Serving::ca_text)?;
    let name = names::ca_bundle(&mirror.name_any());
    let map = ConfigMap {
        metadata: names::owned(mirror, name.clone()),
        data: Some(BTreeMap::from([(names::CA_BUNDLE_KEY.to_owned(), pem)])),
        ..ConfigMap::default()
    };
    Some(Child::new(Kind::ConfigMap, name, &map))
}
