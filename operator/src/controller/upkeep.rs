//! What goes on though a spec is not acted on: servers that serve by an earlier one have clients, and their certificate
//! must not end.
//!
//! Of a paused mirror nothing is written: its condition tells in time.

use std::collections::BTreeMap;

use crds::{RegistryMirror, tls::TlsMode};
use kube::ResourceExt;

use super::{Context, Error};
use crate::{
    apply,
    dereference::{Contents, Reader, Reference, References},
    desired::{self, names},
    issue,
    kind::Kind,
    observed::{Life, Observed},
    validate::serving,
};

/// Renews the certificate of a mirror whose spec was rejected, where it is due: its own, or the one of the Secret that
/// the spec names, once what servers have is about to end.
///
/// # Errors
/// Those of the API server.
pub(super) async fn certificates(mirror: &RegistryMirror, context: &Context) -> Result<(), Error> {
    let name = mirror.name_any();
    let files = own(mirror, &names::files(&name), context).await?;
    let Some(handed_out) = files else { return Ok(()) };
    let mut references = References::default();
    references.authority = own(mirror, &names::authority_key(&name), context).await?;
    references.files = Some(handed_out.clone());
    let observed = context.observe(mirror).await?;
    let renewed = match references.authority {
        Some(_) => own_renewal(mirror, &references, &observed, context)?,
        None => renewal_of_secret(mirror, &handed_out, &observed, context).await?,
    };
    if let Some((serving, authority)) = renewed {
        let published = published(mirror, context);
        let renewed = desired::renewed(mirror, &handed_out, published, &serving, authority.as_ref());
        apply::those_there(mirror, &renewed, &context.cluster).await?;
    }
    Ok(())
}

/// How long what servers were handed is good; `None` where that is nothing, or can't be read now.
pub(super) async fn served(mirror: &RegistryMirror, context: &Context) -> Option<Life> {
    let files = own(mirror, &names::files(&mirror.name_any()), context).await;
    serving::handed_out(&files.ok()??)
}

/// What to serve with, and the mirror's own authority if it is of that.
type Renewed = (serving::Serving, Option<issue::Files>);

fn own_renewal(
    mirror: &RegistryMirror,
    references: &References,
    observed: &Observed,
    context: &Context,
) -> Result<Option<Renewed>, Error> {
    let names = issue::names(mirror, observed);
    let renewal = issue::renewal(mirror, references, &names, observed.at, &context.settings.terms)?;
    Ok(renewal.map(|issued| (issued.serving, Some(issued.authority))))
}

async fn renewal_of_secret(
    mirror: &RegistryMirror,
    handed_out: &Contents,
    observed: &Observed,
    context: &Context,
) -> Result<Option<Renewed>, Error> {
    let (TlsMode::Secret, Some(name)) = (mirror.spec.tls.mode, &mirror.spec.tls.secret_name) else {
        return Ok(None);
    };
    let late = serving::handed_out(handed_out).filter(|life| life.late() <= observed.at.as_second());
    let Some(late) = late else { return Ok(None) };
    let contents = read(mirror, name, context).await?;
    let fresh = contents.and_then(|contents| serving::of_secret(name, &contents).ok());
    Ok(fresh
        .filter(|fresh| fresh.life.ends > late.ends)
        .map(|fresh| (fresh, None)))
}

/// What an object of the mirror's holds; those that are not there are not asked for.
async fn own(mirror: &RegistryMirror, name: &str, context: &Context) -> Result<Option<Contents>, Error> {
    let namespace = mirror.namespace().unwrap_or_default();
    let live = context.cluster.children.get(Kind::Secret, &namespace, name);
    match live.filter(|live| apply::guard::is_ours(mirror, &live.metadata)) {
        Some(_) => read(mirror, name, context).await,
        None => Ok(None),
    }
}

async fn read(mirror: &RegistryMirror, name: &str, context: &Context) -> Result<Option<Contents>, Error> {
    let namespace = mirror.namespace().unwrap_or_default();
    let contents = context.cluster.read(&namespace, &Reference::secret(name)).await;
    contents.map_err(Error::Read)
}

/// The files for nodes as they are.
fn published(mirror: &RegistryMirror, context: &Context) -> Option<BTreeMap<String, String>> {
    let namespace = mirror.namespace().unwrap_or_default();
    let name = names::hosts(&mirror.name_any());
    let map = context.cluster.children.get(Kind::ConfigMap, &namespace, &name)?;
    serde_json::from_value(map.data.get("data")?.clone()).ok()
}
