//! Placeholders for objects that a spec refers to and no file holds, so that the rest of a mirror can be rendered.

use std::{collections::BTreeMap, convert::Infallible};

use crds::{RegistryMirror, tls::TlsMode};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;

use super::documents::Documents;
use crate::{
    dereference::{self, Contents, Reader, Reference},
    validate::serving,
};

/// The documents of files, with placeholders for the missing ones.
pub(super) struct Placeholders<'a> {
    documents: &'a Documents,
    contents: BTreeMap<Reference, Contents>,
}

impl<'a> Placeholders<'a> {
    /// Makes what a spec needs of the missing objects. Missing credentials of upstreams need no placeholder: the
    /// operator acts on a spec without them.
    pub(super) fn new(
        mirror: &RegistryMirror,
        documents: &'a Documents,
        missing: &[Reference],
    ) -> Result<Self, rcgen::Error> {
        let mut contents = BTreeMap::<Reference, Contents>::new();
        for (reference, key, value) in needed(mirror)? {
            if missing.contains(&reference) {
                contents.entry(reference).or_default().data.insert(key, value);
            }
        }
        Ok(Self { documents, contents })
    }

    /// Returns the objects that have a placeholder.
    pub(super) fn references(&self) -> impl Iterator<Item = &Reference> {
        self.contents.keys()
    }
}

/// Returns every key that a spec needs of other objects, with a value of the right form.
fn needed(mirror: &RegistryMirror) -> Result<Vec<(Reference, String, Vec<u8>)>, rcgen::Error> {
    let pair = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["placeholder.invalid".to_owned()])?.self_signed(&pair)?;
    let pem = certificate.pem().into_bytes();
    let spec = &mirror.spec;
    let mut needed: Vec<_> = dereference::bundles(mirror)
        .map(|bundle| (bundle.into(), bundle.key.clone(), pem.clone()))
        .collect();
    if let (TlsMode::Secret, Some(name)) = (spec.tls.mode, &spec.tls.secret_name) {
        let secret = Reference::secret(name);
        needed.push((secret.clone(), serving::CERTIFICATE.to_owned(), pem));
        needed.push((secret, serving::KEY.to_owned(), pair.serialize_pem().into_bytes()));
    }
    if let Some(users) = &spec.access.htpasswd_secret_ref {
        // A hash of bcrypt's length that belongs to no password.
        let line = format!("placeholder:$2y$10${}\n", ".".repeat(53));
        needed.push((
            Reference::secret(&users.name),
            users.key.clone(),
            line.into_bytes(),
        ));
    }
    needed.extend(bucket(mirror, &pair.serialize_pem()));
    Ok(needed)
}

/// Returns the credentials for a bucket. The key of a service account has a private key.
fn bucket(mirror: &RegistryMirror, private_key: &str) -> Vec<(Reference, String, Vec<u8>)> {
    let Some(store) = &mirror.spec.storage.object_store else {
        return Vec::new();
    };
    let Some(secret) = &store.credentials.secret_ref else {
        return Vec::new();
    };
    let values = if store.s3.is_some() {
        vec![
            ("accesskey", "placeholder".to_owned()),
            ("secretkey", "placeholder".to_owned()),
        ]
    } else if store.gcs.is_some() {
        let key = json!({
            "client_email": "placeholder@invalid", "private_key": private_key, "private_key_id": "placeholder",
            "disable_oauth": true,
        });
        vec![("keyfile", key.to_string())]
    } else {
        // Base64 of nothing in particular.
        vec![("accountkey", "cGxhY2Vob2xkZXI=".to_owned())]
    };
    let entry = |(key, value): (&str, String)| {
        (
            Reference::secret(&secret.name),
            key.to_owned(),
            value.into_bytes(),
        )
    };
    values.into_iter().map(entry).collect()
}

impl Reader for Placeholders<'_> {
    type Error = Infallible;

    async fn read(&self, namespace: &str, reference: &Reference) -> Result<Option<Contents>, Infallible> {
        let given = self.documents.read(namespace, reference).await?;
        Ok(given.or_else(|| self.contents.get(reference).cloned()))
    }
}
