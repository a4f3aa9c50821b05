//! Step two: decide whether the spec, with what it points to, can be acted on.
//!
//! What admission checks is not checked again, but for what would send a password in clear text or to the wrong host, or
//! wear the operator out: a stored object may be older than the rule that would refuse it.

use std::collections::BTreeMap;

use crds::{RegistryMirror, conditions::Reason, spec::MAX_REPLICAS, storage::Volume};
use kube::ResourceExt;
use mirror::config::MaxSize;
use url::{Host, Url};

use crate::{
    dereference::{Reference, References},
    names,
};

pub mod bundle;
pub mod credentials;
mod docker_config;
pub mod serving;
pub mod size;
pub mod users;

pub use bundle::Bundle;
pub use credentials::Credentials;
pub use serving::Serving;

/// A spec that can be acted on, with everything that it needs.
pub struct Accepted<'a> {
    /// Whose spec it is.
    pub mirror: &'a RegistryMirror,
    /// In the spec's order.
    pub upstreams: Vec<Upstream<'a>>,
    /// Where the cache lives.
    pub volume: Volume<'a>,
    /// What it may take.
    pub max_size: MaxSize,
    /// What clients are shown; `None`: plain HTTP, or nothing was issued yet.
    pub serving: Option<Serving>,
    /// The mirror's own authority, as it is kept, once it issued what clients are shown.
    pub ca: Option<BTreeMap<String, Vec<u8>>>,
    /// The certificates of the CAs that sign clients' certificates, in PEM; `None`: clients need none.
    pub client_ca: Option<Vec<u8>>,
    /// Who may pull, as an htpasswd file; `None`: anyone.
    pub users: Option<Vec<u8>>,
}

impl Accepted<'_> {
    /// Whether servers need files beside their configuration and credentials.
    pub fn has_files(&self) -> bool {
        let bundle = self.upstreams.iter().any(|upstream| upstream.bundle.is_some());
        bundle || self.serving.is_some() || self.client_ca.is_some() || self.users.is_some()
    }

    /// What is wrong with the Secrets of its upstreams, for a terminal.
    pub fn credential_problems(&self) -> impl Iterator<Item = String> {
        self.upstreams.iter().enumerate().filter_map(|(index, upstream)| {
            let problem = upstream.credentials.as_ref()?.found.as_ref().err()?;
            Some(format!(
                "spec.upstreams[{index}].credentialsSecretRef: {}",
                problem.message
            ))
        })
    }
}

/// An upstream and what its references led to.
pub struct Upstream<'a> {
    /// As the spec has it.
    pub spec: &'a crds::Upstream,
    /// Where it is.
    pub remote: Url,
    /// Its authorities' certificates.
    pub bundle: Option<Bundle>,
    /// What it is asked with; `None`: nothing.
    pub credentials: Option<Credentials<'a>>,
}

/// Why a spec can't be acted on, for the status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// Its class.
    pub reason: Reason,
    /// What is wrong, where, and what to do.
    pub message: String,
}

impl References {
    /// Refuses a Secret that the operator made for a mirror, whichever: it is no input of a spec.
    fn not_the_operators(&self, secret: &str) -> Result<(), Rejection> {
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

    /// With the field that it is about.
    fn below(self, field: &str) -> Self {
        Self {
            message: format!("{field}: {}", self.message),
            ..self
        }
    }
}

/// Checks a spec and what it points to.
///
/// Credentials that are missing or malformed are no reason to reject it: the cache serves without them, and
/// [`Credentials`] says what is wrong with them.
///
/// # Errors
/// What the user has to mend; nothing is changed until then.
pub fn accept<'a>(mirror: &'a RegistryMirror, references: &References) -> Result<Accepted<'a>, Rejection> {
    let volume = mirror.spec.storage.volume().ok_or_else(|| {
        Rejection::invalid(
            "spec.storage: type PersistentVolumeClaim needs persistentVolumeClaim with size or existingClaim"
                .to_owned(),
        )
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
        .map(|(index, spec)| upstream(mirror, spec, references).map_err(|error| at(index, error)))
        .collect::<Result<Vec<_>, _>>()?;
    let max_size = size::cache_limit(&mirror.spec.cache, &volume)?;
    Ok(Accepted {
        mirror,
        upstreams,
        volume,
        max_size,
        serving: serving::resolve(mirror, references)?,
        ca: None,
        client_ca: bundle::resolve_client_ca(mirror, references)?,
        users: users::resolve(mirror, references)?,
    })
}

/// A claim is worked out for each: an object that is older than the bound must not take all of the operator's memory.
fn not_too_many(replicas: i32) -> Result<(), Rejection> {
    if replicas <= MAX_REPLICAS {
        return Ok(());
    }
    Err(Rejection::invalid(format!(
        "spec.replicas: {replicas} are too many; ask for at most {MAX_REPLICAS}"
    )))
}

fn at(index: usize, mut rejection: Rejection) -> Rejection {
    rejection.message = format!("spec.upstreams[{index}].{}", rejection.message);
    rejection
}

fn upstream<'a>(
    mirror: &RegistryMirror,
    spec: &'a crds::Upstream,
    references: &References,
) -> Result<Upstream<'a>, Rejection> {
    let url = spec.effective_remote_url();
    let remote =
        Url::parse(&url).map_err(|error| Rejection::invalid(format!("remoteURL: {url}: {error}")))?;
    let credentials = match &spec.credentials_secret_ref {
        None => None,
        Some(secret) => {
            not_the_operators(mirror, &secret.name, references)
                .map_err(|rejection| rejection.below("credentialsSecretRef.name"))?;
            not_in_clear_text(spec, &remote)?;
            let contents = references.get(&Reference::secret(&secret.name));
            Some(Credentials::read(
                &secret.name,
                contents,
                &remote,
                spec.repository_prefix.as_deref(),
            ))
        }
    };
    Ok(Upstream {
        spec,
        bundle: bundle::resolve(spec, references)?,
        credentials,
        remote,
    })
}

/// Refuses a Secret that the operator makes: the operator would read what it wrote, and write it again. A Secret of another
/// mirror holds a CA's key or credentials that its users may not have.
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
    ];
    if own.iter().any(|own| own == secret) {
        return Err(Rejection::invalid(format!(
            "{secret} is the name of a Secret that the operator makes for this mirror; \
             refer to another one"
        )));
    }
    Ok(())
}

fn not_in_clear_text(spec: &crds::Upstream, remote: &Url) -> Result<(), Rejection> {
    if spec.insecure_allow_http_credentials || !is_in_clear_text(remote) {
        return Ok(());
    }
    Err(Rejection::invalid(format!(
        "credentialsSecretRef: {remote} is not https, so that the credentials could be read on the way; use https, or \
         set insecureAllowHTTPCredentials to true"
    )))
}

/// Whether what is sent there can be read on the way. To loopback addresses nothing crosses a network.
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
