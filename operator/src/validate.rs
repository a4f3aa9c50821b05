//! Accepts or rejects a spec with the objects that it names.
//!
//! Rules of the API server are checked again only where a spec could send a password in clear text or to the wrong
//! host, or overload the operator: a stored object may be older than the rule.

use std::collections::BTreeMap;

use crds::{RegistryMirror, conditions::Reason, spec::MAX_REPLICAS, storage::Volume};
use kube::ResourceExt;
use mirror::config::MaxSize;
use url::{Host, Url};

use crate::{
    dereference::{Reference, References},
    names,
};

pub mod bucket;
pub mod bundle;
pub mod credentials;
mod docker_config;
pub mod serving;
pub mod size;
pub mod users;

pub use bucket::Bucket;
pub use bundle::Bundle;
pub use credentials::Credentials;
pub use serving::Serving;

/// An accepted spec with the objects that it needs.
pub struct Accepted<'a> {
    /// The mirror.
    pub mirror: &'a RegistryMirror,
    /// The upstreams, in the order of the spec.
    pub upstreams: Vec<Upstream<'a>>,
    /// The volume of the cache.
    pub volume: Volume<'a>,
    /// The maximum size of the cache.
    pub max_size: MaxSize,
    /// The bucket behind the cache; `None`: there is none.
    pub bucket: Option<Bucket>,
    /// The serving certificate; `None`: plain HTTP, or not issued yet.
    pub serving: Option<Serving>,
    /// The content of the CA Secret, once the CA has issued the serving certificate.
    pub ca: Option<BTreeMap<String, Vec<u8>>>,
    /// The CA certificates of clients' certificates, in PEM; `None`: clients need no certificate.
    pub client_ca: Option<Vec<u8>>,
    /// The htpasswd file; `None`: clients need no password.
    pub users: Option<Vec<u8>>,
    /// The content of the Secret that the servers share; `None`: each one acts alone.
    pub peers: Option<BTreeMap<String, Vec<u8>>>,
}

impl Accepted<'_> {
    /// Returns whether servers need files in addition to configuration and credentials.
    pub fn has_files(&self) -> bool {
        let bundle = self.upstreams.iter().any(|upstream| upstream.bundle.is_some());
        let bucket = self.bucket.as_ref().is_some_and(|bucket| bucket.bundle.is_some());
        bundle || bucket || self.serving.is_some() || self.client_ca.is_some() || self.users.is_some()
    }

    /// Returns the faults of the upstreams' Secrets, for a terminal.
    pub fn credential_problems(&self) -> impl Iterator<Item = String> {
        self.upstreams.iter().enumerate().filter_map(|(index, upstream)| {
            let problem = upstream.credentials.as_ref()?.found.as_ref().err()?;
            if problem.reason == Reason::SecretNotFound {
                return Some(problem.message.clone());
            }
            Some(format!(
                "spec.upstreams[{index}].credentialsSecretRef: {}",
                problem.message
            ))
        })
    }
}

/// An upstream with the objects that it names.
pub struct Upstream<'a> {
    /// The upstream in the spec.
    pub spec: &'a crds::Upstream,
    /// The URL of the registry.
    pub remote: Url,
    /// The CA certificates.
    pub bundle: Option<Bundle>,
    /// The credentials; `None`: the upstream is asked anonymously.
    pub credentials: Option<Credentials<'a>>,
}

/// The rejection of a spec, for the status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// The reason.
    pub reason: Reason,
    /// The object, the cause and the action.
    pub message: String,
}

impl References {
    /// Refuses a name that is none, and a Secret that the operator made for a mirror, whichever: it is no input of a spec.
    fn not_the_operators(&self, secret: &str) -> Result<(), Rejection> {
        if !names::is_object_name(secret) {
            return Err(Rejection::invalid(format!(
                "{secret:?} is not the name of a Secret: use at most 253 lower-case letters, digits, '-' and '.'"
            )));
        }
        match self.get(&Reference::secret(secret)) {
            Some(contents) if contents.is_operators => Err(Rejection {
                reason: Reason::NotAllowed,
                message: format!(
                    "Secret {secret:?} belongs to the operator, which made it for a mirror: refer to another Secret"
                ),
            }),
            _ => Ok(()),
        }
    }
}

impl Rejection {
    pub(crate) fn invalid(message: String) -> Self {
        Self {
            reason: Reason::InvalidSpec,
            message,
        }
    }

    /// Adds the field to the message.
    fn below(self, field: &str) -> Self {
        Self {
            message: format!("{field}: {}", self.message),
            ..self
        }
    }
}

/// Accepts or rejects a spec.
///
/// Missing or malformed credentials are no rejection: the cache serves without them, and [`Credentials`] has their
/// fault.
///
/// # Errors
/// A fault that the user has to correct; nothing is changed until then.
pub fn accept<'a>(mirror: &'a RegistryMirror, references: &References) -> Result<Accepted<'a>, Rejection> {
    let volume = mirror.spec.storage.volume().ok_or_else(|| {
        let field = mirror.spec.storage.volume_field();
        Rejection::invalid(format!(
            "{field}: type PersistentVolumeClaim needs persistentVolumeClaim with size or existingClaim"
        ))
    })?;
    not_too_many(mirror.spec.replicas)?;
    for (index, secret) in mirror.spec.pod.image_pull_secrets.iter().enumerate() {
        not_the_operators(mirror, &secret.name, references)
            .map_err(|rejection| rejection.below(&format!("spec.pod.imagePullSecrets[{index}].name")))?;
    }
    let upstreams = mirror
        .spec
        .upstreams
        .iter()
        .enumerate()
        .map(|(index, spec)| upstream(mirror, spec, &format!("spec.upstreams[{index}]"), references))
        .collect::<Result<Vec<_>, _>>()?;
    let max_size = size::cache_limit(&mirror.spec, &volume)?;
    Ok(Accepted {
        mirror,
        upstreams,
        volume,
        max_size,
        bucket: bucket::resolve(mirror, references)?,
        serving: serving::resolve(mirror, references)?,
        ca: None,
        client_ca: bundle::resolve_client_ca(mirror, references)?,
        users: users::resolve(mirror, references)?,
        peers: None,
    })
}

/// Rejects too many replicas: a stored object may be older than the limit, and each replica takes memory of the
/// operator.
fn not_too_many(replicas: i32) -> Result<(), Rejection> {
    if replicas <= MAX_REPLICAS {
        return Ok(());
    }
    Err(Rejection::invalid(format!(
        "spec.replicas: {replicas} exceeds the maximum of {MAX_REPLICAS}: set it lower"
    )))
}

/// Accepts or rejects the upstream at a field of the spec.
fn upstream<'a>(
    mirror: &RegistryMirror,
    spec: &'a crds::Upstream,
    field: &str,
    references: &References,
) -> Result<Upstream<'a>, Rejection> {
    let url = spec.effective_remote_url();
    let remote =
        Url::parse(&url).map_err(|error| Rejection::invalid(format!("{field}.remoteURL: {url}: {error}")))?;
    let credentials = match &spec.credentials_secret_ref {
        None => None,
        Some(secret) => {
            let field = format!("{field}.credentialsSecretRef");
            not_the_operators(mirror, &secret.name, references)
                .map_err(|rejection| rejection.below(&format!("{field}.name")))?;
            not_in_clear_text(spec, &field, &remote)?;
            Some(Credentials::read(
                &secret.name,
                &field,
                references,
                &remote,
                spec.repository_prefix.as_deref(),
            ))
        }
    };
    Ok(Upstream {
        spec,
        bundle: bundle::resolve(spec, field, references)?,
        credentials,
        remote,
    })
}

/// Rejects a Secret of the operator, which it would read and write in a circle. A Secret of another mirror contains a CA's
/// key or credentials that its users may not have.
fn not_the_operators(
    mirror: &RegistryMirror,
    secret: &str,
    references: &References,
) -> Result<(), Rejection> {
    references.not_the_operators(secret)?;
    let mirror = mirror.name_any();
    let own = [
        names::credentials(&mirror),
        names::files(&mirror),
        names::ca_key(&mirror),
        names::peers(&mirror),
    ];
    if own.iter().any(|own| own == secret) {
        return Err(Rejection::invalid(format!(
            "Secret {secret} is one that the operator creates for this mirror: name another one"
        )));
    }
    Ok(())
}

fn not_in_clear_text(spec: &crds::Upstream, field: &str, remote: &Url) -> Result<(), Rejection> {
    if spec.insecure_allow_http_credentials || !is_in_clear_text(remote) {
        return Ok(());
    }
    Err(Rejection::invalid(format!(
        "{field}: {remote} is not https, and credentials could be read on the network: use https, or set \
         insecureAllowHTTPCredentials to true"
    )))
}

/// Returns whether requests can be read on the network. Requests to loopback addresses cross none.
pub(crate) fn is_in_clear_text(remote: &Url) -> bool {
    remote.scheme() != "https" && !is_loopback(remote)
}

fn is_loopback(remote: &Url) -> bool {
    match remote.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}
