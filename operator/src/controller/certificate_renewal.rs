//! The renewal of certificates while a spec is rejected: servers that run with an earlier spec have clients, and their
//! certificate must not expire. For a paused mirror nothing is written; its condition warns in time.

use std::collections::BTreeMap;

use crds::{RegistryMirror, tls::TlsMode};
use kube::ResourceExt;

use super::{Context, ReconcileError};
use crate::{
    apply,
    certificates::{self, IssuedCertificates},
    dereference::{Contents, Reader, Reference, References},
    desired,
    kind::Kind,
    names,
    observed::{Observed, Validity},
    validate::serving::{self, Serving},
};

/// Renews the certificates of a mirror whose spec was rejected, if they are due: the mirror's own, and the certificate of
/// the Secret that the spec names.
///
/// # Errors
/// Those of the API server.
pub(super) async fn renew(mirror: &RegistryMirror, context: &Context) -> Result<(), ReconcileError> {
    let name = mirror.name_any();
    let mut references = References::default();
    references.files = own_secret(mirror, &names::files(&name), context).await?;
    references.ca = own_secret(mirror, &names::ca_key(&name), context).await?;
    references.peers = own_secret(mirror, &names::peers(&name), context).await?;
    let observed = context.observe(mirror).await?;
    let mut renewed = match references.ca {
        Some(_) => own_renewal(mirror, &references, &observed, context)?,
        None => IssuedCertificates::default(),
    };
    if let (None, Some(files)) = (&renewed.serving, &references.files) {
        renewed.serving = renewal_from_secret(mirror, files, &observed, context).await?;
    }
    let published = published_hosts(mirror, context).await?;
    let renewed = desired::renewed(mirror, references.files.as_ref(), published, &renewed);
    apply::apply_existing(mirror, &renewed, &context.cluster).await?;
    Ok(())
}

/// Returns the validity of the certificate that servers have; `None` if they have none or it can't be read now.
pub(super) async fn served_validity(mirror: &RegistryMirror, context: &Context) -> Option<Validity> {
    let files = own_secret(mirror, &names::files(&mirror.name_any()), context).await;
    serving::served_validity(&files.ok()??)
}

fn own_renewal(
    mirror: &RegistryMirror,
    references: &References,
    observed: &Observed,
    context: &Context,
) -> Result<IssuedCertificates, ReconcileError> {
    let names = certificates::subject_names(mirror, observed);
    let lifetimes = &context.settings.lifetimes;
    let renewal = certificates::renewal(mirror, references, &names, observed.at, lifetimes)?;
    Ok(renewal.unwrap_or_default())
}

async fn renewal_from_secret(
    mirror: &RegistryMirror,
    files: &Contents,
    observed: &Observed,
    context: &Context,
) -> Result<Option<Serving>, ReconcileError> {
    let (TlsMode::Secret, Some(name)) = (mirror.spec.tls.mode, &mirror.spec.tls.secret_name) else {
        return Ok(None);
    };
    let is_expiring = |validity: &Validity| validity.expiring_from() <= observed.at.as_second();
    let Some(served) = serving::served_validity(files).filter(is_expiring) else {
        return Ok(None);
    };
    let contents = read_secret(mirror, name, context).await?;
    let contents = contents.filter(|contents| !contents.is_operators);
    let latest = contents.and_then(|contents| serving::from_secret(name, &contents).ok());
    Ok(latest.filter(|latest| latest.validity.not_after > served.not_after))
}

/// Returns the content of a Secret of the mirror. Sends no request for one that does not exist.
async fn own_secret(
    mirror: &RegistryMirror,
    name: &str,
    context: &Context,
) -> Result<Option<Contents>, ReconcileError> {
    let namespace = mirror.namespace().unwrap_or_default();
    let live = context.cluster.cache.get(Kind::Secret, &namespace, name);
    match live.filter(|live| apply::ownership::is_controlled_by(mirror, &live.metadata)) {
        Some(_) => read_secret(mirror, name, context).await,
        None => Ok(None),
    }
}

async fn read_secret(
    mirror: &RegistryMirror,
    name: &str,
    context: &Context,
) -> Result<Option<Contents>, ReconcileError> {
    let namespace = mirror.namespace().unwrap_or_default();
    let contents = context.cluster.read(&namespace, &Reference::secret(name)).await;
    contents.map_err(ReconcileError::Read)
}

/// Returns the published files for nodes.
async fn published_hosts(
    mirror: &RegistryMirror,
    context: &Context,
) -> Result<Option<BTreeMap<String, String>>, ReconcileError> {
    let namespace = mirror.namespace().unwrap_or_default();
    let reference = Reference::config_map(&names::hosts(&mirror.name_any()));
    let contents = context.cluster.read(&namespace, &reference).await;
    let contents = contents.map_err(ReconcileError::Read)?;
    let text = |(key, value)| Some((key, String::from_utf8(value).ok()?));
    Ok(contents.map(|contents| contents.data.into_iter().filter_map(text).collect()))
}
