//! Reads the objects that a spec names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
};

use crds::{
    ObjectStore, RegistryMirror,
    peers::PeersMode,
    tls::TlsMode,
    upstream::{CaBundleKind, CaBundleReference},
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;

use crate::{kind::Kind, names};

/// A reference of a spec to an object in its namespace, existing or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// `ConfigMap` or `Secret`.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl Reference {
    /// Returns the reference to a Secret.
    pub fn secret(name: &str) -> Self {
        Self {
            kind: Kind::Secret,
            name: name.to_owned(),
        }
    }

    /// Returns the reference to a `ConfigMap`.
    pub fn config_map(name: &str) -> Self {
        Self {
            kind: Kind::ConfigMap,
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// The content of a Secret or `ConfigMap`. Has no `Debug`, so that no value gets into a log.
#[derive(Clone, Default)]
pub struct Contents {
    /// The type of a Secret.
    pub r#type: Option<String>,
    /// The object is one that the operator created for a mirror, by its label or its controller.
    pub is_operators: bool,
    /// The annotations.
    pub annotations: BTreeMap<String, String>,
    /// The values, by key.
    pub data: BTreeMap<String, Vec<u8>>,
}

impl Contents {
    /// Returns the value of a key, without the byte order mark that some editors write.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        let value = self.data.get(key)?.as_slice();
        Some(value.strip_prefix("\u{feff}".as_bytes()).unwrap_or(value))
    }
}

impl From<Secret> for Contents {
    fn from(secret: Secret) -> Self {
        let mut data: BTreeMap<_, _> = secret
            .data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.0))
            .collect();
        // An API server folds `stringData` into `data` and hands out none; a file may hold both.
        data.extend(
            secret
                .string_data
                .into_iter()
                .flatten()
                .map(|(key, value)| (key, value.into_bytes())),
        );
        Self {
            is_operators: names::is_operators(&secret.metadata),
            r#type: secret.type_,
            annotations: secret.metadata.annotations.unwrap_or_default(),
            data,
        }
    }
}

impl From<ConfigMap> for Contents {
    fn from(map: ConfigMap) -> Self {
        let binary = map
            .binary_data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.0));
        let text = map
            .data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.into_bytes()));
        Self {
            is_operators: names::is_operators(&map.metadata),
            r#type: None,
            annotations: map.metadata.annotations.unwrap_or_default(),
            data: binary.chain(text).collect(),
        }
    }
}

/// A source of objects: a cluster or files.
pub trait Reader {
    /// The error of a failed read. A missing object is no error.
    type Error;

    /// Reads one object of a namespace.
    fn read(
        &self,
        namespace: &str,
        reference: &Reference,
    ) -> impl Future<Output = Result<Option<Contents>, Self::Error>> + Send;
}

/// The objects that a spec names, as far as they exist.
#[derive(Clone, Default)]
pub struct References {
    /// The namespace that the objects are read from.
    namespace: String,
    found: BTreeMap<Reference, Contents>,
    /// The credentials Secret of the mirror: its version is continued, and entries that can't be read again stay.
    pub credentials: Option<Contents>,
    /// The files Secret of a mirror that serves TLS: servers keep its certificate if there is no other.
    pub files: Option<Contents>,
    /// The Secret with the CA of the mirror, if it has one.
    pub ca: Option<Contents>,
    /// The Secret that the servers share, if there is one.
    pub peers: Option<Contents>,
}

impl References {
    /// Returns the object of a reference, if it exists.
    pub fn get(&self, reference: &Reference) -> Option<&Contents> {
        self.found.get(reference)
    }

    #[cfg(test)]
    pub(crate) fn insert(&mut self, reference: Reference, contents: Contents) {
        self.found.insert(reference, contents);
    }

    /// Returns the message about an object that does not exist. `content` is what it needs, and `field` names it in the spec.
    pub fn not_found(&self, reference: &Reference, content: &str, field: &str) -> String {
        let Reference { kind, name } = reference;
        let with = if content.is_empty() { "" } else { " with " };
        // Files may name no namespace.
        let place = match self.namespace.as_str() {
            "" => String::new(),
            namespace => format!(" in namespace {namespace:?}"),
        };
        format!("{kind} {name:?} not found{place}: create it{with}{content} or correct {field}")
    }
}

impl From<&CaBundleReference> for Reference {
    fn from(bundle: &CaBundleReference) -> Self {
        match bundle.kind {
            CaBundleKind::ConfigMap => Self::config_map(&bundle.name),
            CaBundleKind::Secret => Self::secret(&bundle.name),
        }
    }
}

/// Returns every reference of a spec to CA certificates.
pub fn bundles(mirror: &RegistryMirror) -> impl Iterator<Item = &CaBundleReference> {
    let upstreams = mirror.spec.upstreams.iter();
    upstreams
        .filter_map(|upstream| upstream.tls.as_ref()?.ca_bundle_ref.as_ref())
        .chain(&mirror.spec.tls.client_ca_ref)
        .chain(object_store(mirror).and_then(ObjectStore::ca_bundle_ref))
}

fn object_store(mirror: &RegistryMirror) -> Option<&ObjectStore> {
    mirror.spec.storage.object_store.as_ref()
}

/// Returns every object that a spec refers to, existing or not.
pub fn references(mirror: &RegistryMirror) -> BTreeSet<Reference> {
    let upstreams = &mirror.spec.upstreams;
    let credentials = upstreams
        .iter()
        .filter_map(|upstream| upstream.credentials_secret_ref.as_ref());
    let serving = mirror.spec.tls.secret_name.as_ref();
    let users = mirror.spec.access.htpasswd_secret_ref.as_ref();
    let bucket = object_store(mirror).and_then(|store| store.credentials.secret_ref.as_ref());
    credentials
        .map(|reference| Reference::secret(&reference.name))
        .chain(bundles(mirror).map(Reference::from))
        .chain(serving.map(|name| Reference::secret(name)))
        .chain(users.map(|users| Reference::secret(&users.name)))
        .chain(bucket.map(|bucket| Reference::secret(&bucket.name)))
        .collect()
}

/// Reads all of them.
///
/// # Errors
/// Those of the reader.
pub async fn read<R: Reader>(mirror: &RegistryMirror, reader: &R) -> Result<References, R::Error> {
    let namespace = mirror.namespace().unwrap_or_default();
    let mut references = References {
        namespace: namespace.clone(),
        ..References::default()
    };
    // Of a Secret for pulling the image only its owner matters: it is not copied, and a change of it means nothing.
    let pull_secrets = mirror.spec.pod.image_pull_secrets.iter();
    let pull_secrets = pull_secrets.map(|secret| Reference::secret(&secret.name));
    for reference in self::references(mirror).into_iter().chain(pull_secrets) {
        if let Some(contents) = reader.read(&namespace, &reference).await? {
            references.found.insert(reference, contents);
        }
    }
    let own = Reference::secret(&names::credentials(&mirror.name_any()));
    references.credentials = reader.read(&namespace, &own).await?;
    let has_tls = mirror.spec.tls.mode != TlsMode::Disabled;
    if has_tls {
        let own = Reference::secret(&names::files(&mirror.name_any()));
        references.files = reader.read(&namespace, &own).await?;
    }
    let has_peers = mirror.spec.peers.mode == PeersMode::Auto;
    if mirror.spec.tls.mode == TlsMode::SelfSigned || has_tls && has_peers {
        let own = Reference::secret(&names::ca_key(&mirror.name_any()));
        references.ca = reader.read(&namespace, &own).await?;
    }
    if has_peers {
        let own = Reference::secret(&names::peers(&mirror.name_any()));
        references.peers = reader.read(&namespace, &own).await?;
    }
    Ok(references)
}
