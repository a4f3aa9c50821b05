//! The certificate that the servers of a mirror present to each other on the peer port, as servers and as clients.
//!
//! The CA of the mirror issues it, whatever certificate clients get: the issuer of a user's certificate may be a CA that
//! issues certificates for anybody, or certificates for servers only.

use std::collections::BTreeSet;

use crds::{RegistryMirror, peers::PeersMode, tls::TlsMode};
use kube::ResourceExt;

use super::{SecretFiles, leaf::Leaf};
use crate::names;

/// The keys of certificate, private key and CA certificates in the Secret that the servers share, and the names of the files.
pub const FILES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// Returns whether the servers of a mirror have certificates for each other.
pub(super) fn has_certificate(mirror: &RegistryMirror) -> bool {
    mirror.spec.peers.mode == PeersMode::Auto && mirror.spec.tls.mode != TlsMode::Disabled
}

/// Returns whether a Secret has such a certificate.
pub fn is_held(files: &SecretFiles) -> bool {
    FILES.iter().all(|file| files.contains_key(*file))
}

/// Returns the name in the certificate: that of the Service by which the servers find each other.
pub(super) fn names(mirror: &RegistryMirror) -> BTreeSet<String> {
    BTreeSet::from([host(mirror)])
}

/// Returns the name in the cluster by which the servers of a mirror find each other.
pub fn host(mirror: &RegistryMirror) -> String {
    let namespace = mirror.namespace().unwrap_or_default();
    format!("{}.{namespace}.svc", names::headless(&mirror.name_any()))
}

/// Returns the files of a certificate.
pub(super) fn files(leaf: &Leaf, bundle: String) -> SecretFiles {
    let [certificate, key, ca] = FILES.map(str::to_owned);
    SecretFiles::from([
        (certificate, leaf.to_pem().into_bytes()),
        (key, leaf.key.clone()),
        (ca, bundle.into_bytes()),
    ])
}
