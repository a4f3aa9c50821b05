//! Adopts objects that carry a mirror's labels and have no controller, as a backup restores them, before their content is
//! read.

use crds::RegistryMirror;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::{Applier, ApplyError, ChildKey, claims, ownership};
use crate::{certificates, cluster::Cluster, kind::Kind, names, owners};

/// Makes a mirror the controller of its orphans, and adds them to `adopted`. Returns the rejections of the API server, a
/// message for each object: the next steps decide if the mirror needs the object.
///
/// # Errors
/// The first failure that a retry may fix, once each object was tried.
pub async fn adopt(
    mirror: &RegistryMirror,
    cluster: &Cluster,
    adopted: &mut Vec<ChildKey>,
) -> Result<Vec<String>, ApplyError> {
    let applier = Applier::new(mirror, cluster);
    let orphans = applier.orphans();
    let Some((kind, name)) = orphans.first() else {
        return Ok(Vec::new());
    };
    // A mirror that is being deleted with --cascade=orphan keeps its objects: with their owner back they would be deleted.
    let exists = cluster.exists(mirror).await;
    if !exists.map_err(|source| ApplyError::cluster("adopted", *kind, name, source))? {
        return Ok(Vec::new());
    }
    let (mut rejections, mut failure) = (Vec::new(), None);
    for (kind, name) in orphans {
        // A user may have changed it since the watch: the next steps check its owner.
        let check = |metadata: &ObjectMeta| {
            Ok(if ownership::is_orphan_of(mirror, kind, metadata) {
                OwnerChange::Allowed
            } else {
                OwnerChange::Skipped
            })
        };
        match applier.set_owners(kind, &name, true, check).await {
            Ok(true) => adopted.push((kind, name)),
            Ok(false) => {}
            Err(error) => match error.rejection() {
                Some(status) => rejections.push(format!(
                    "{kind} {name} not adopted, rejected by the API server: {}",
                    status.message
                )),
                None => failure = failure.or(Some(error)),
            },
        }
    }
    failure.map_or(Ok(rejections), Err)
}

/// The decision on a change of an object's owners.
pub(super) enum OwnerChange {
    /// The owners may be changed.
    Allowed,
    /// The owners stay.
    Skipped,
}

impl Applier<'_> {
    /// Returns the objects to adopt, as far as watches have seen them.
    fn orphans(&self) -> Vec<ChildKey> {
        let is_orphan = |(kind, name): &ChildKey| {
            let metadata = self.cluster.cache.metadata(*kind, &self.namespace, name);
            metadata.is_some_and(|metadata| ownership::is_orphan_of(self.mirror, *kind, &metadata))
        };
        let mirror = self.mirror.name_any();
        let workload = if self.mirror.spec.storage.is_ephemeral() {
            Kind::Deployment
        } else {
            Kind::StatefulSet
        };
        let mut names = names::every(&mirror);
        // The key of a CA can't be created again. With its owner back, it would be deleted if the spec asks for none.
        let key = names::ca_key(&mirror);
        names.retain(|(_, name)| *name != key || certificates::has_ca(self.mirror));
        names.extend([
            (Kind::ServiceAccount, mirror.clone()),
            (Kind::Service, mirror.clone()),
            (Kind::Service, names::headless(&mirror)),
            (workload, mirror),
        ]);
        names.extend(self.owned_claims());
        names.into_iter().filter(is_orphan).collect()
    }

    /// Returns the existing PVCs, if they are deleted with the mirror.
    fn owned_claims(&self) -> Vec<ChildKey> {
        if !claims::is_owner(self.mirror) {
            return Vec::new();
        }
        let (kind, mirror) = (Kind::PersistentVolumeClaim, self.mirror.name_any());
        let claims = self.cluster.cache.of_mirror(kind, &self.namespace, &mirror);
        let names = claims.iter().map(|claim| claim.name_any());
        let own = names.filter(|name| names::claim_ordinal(&mirror, name).is_some());
        own.map(|name| (kind, name)).collect()
    }

    /// Sets or removes the mirror as owner of an object, if `check` allows it for the object in the API server. Returns
    /// whether the owners changed.
    pub(super) async fn set_owners(
        &self,
        kind: Kind,
        name: &str,
        is_owned: bool,
        check: impl Fn(&ObjectMeta) -> Result<OwnerChange, ApplyError>,
    ) -> Result<bool, ApplyError> {
        let failed = |source| ApplyError::cluster("given its owner references", kind, name, source);
        let metadata = self.cluster.get_metadata(kind, &self.namespace, name).await;
        let Some(metadata) = metadata.map_err(failed)? else {
            return Ok(false);
        };
        if let OwnerChange::Skipped = check(&metadata)? {
            return Ok(false);
        }
        let Some(owners) = owners::wanted(self.mirror, &metadata, is_owned) else {
            return Ok(false);
        };
        let done = self.cluster.set_owners(kind, &metadata, &owners).await;
        done.map_err(failed)?;
        tracing::info!(%kind, name, is_owned, "changed the owner references");
        Ok(true)
    }
}
