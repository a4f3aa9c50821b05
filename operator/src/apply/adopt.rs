//! Objects that carry a mirror's marks and have no owner, as a backup restores them: the mirror becomes their owner before
//! anything is read that they hold.

use crds::{
    RegistryMirror,
    storage::{RetentionPolicy, StorageType, Volume},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::{Error, Key, Target, guard};
use crate::{cluster::Cluster, desired::names, issue, kind::Kind, owners, validate::Rejection};

/// Makes a mirror the owner of every object that carries its marks and has no owner, and adds these to `adopted`.
/// Returns the API server's refusals, a message for each object: the next steps decide if the mirror needs the object.
///
/// # Errors
/// The first failure that a retry may fix, once each object was tried.
pub async fn adopt(
    mirror: &RegistryMirror,
    cluster: &Cluster,
    adopted: &mut Vec<Key>,
) -> Result<Vec<String>, Error> {
    let target = Target::new(mirror, cluster);
    let orphans = target.orphans();
    let Some((kind, name)) = orphans.first() else {
        return Ok(Vec::new());
    };
    // A mirror that is being deleted with --cascade=orphan lets its objects go: with their owner back they would be deleted.
    let lives = cluster.lives(mirror).await;
    if !lives.map_err(|source| Error::cluster("adopting", *kind, name, source))? {
        return Ok(Vec::new());
    }
    let (mut refusals, mut failure) = (Vec::new(), None);
    for (kind, name) in orphans {
        let may = |metadata: &ObjectMeta| {
            let is_orphan = guard::is_orphan_of(mirror, kind, metadata);
            let refused = || Error::from(Rejection::invalid(String::new()));
            is_orphan.then_some(()).ok_or_else(refused)
        };
        match target.set_owners(kind, &name, true, may).await {
            Ok(true) => adopted.push((kind, name)),
            // Another user changed it since the watch saw it: the next steps check its owner.
            Ok(false) | Err(Error::Rejected(_)) => {}
            Err(error) => match error.refusal() {
                Some(status) => refusals.push(format!(
                    "the API server refuses to let the operator adopt {kind} {name}: {}",
                    status.message
                )),
                None => failure = failure.or(Some(error)),
            },
        }
    }
    failure.map_or(Ok(refusals), Err)
}

impl Target<'_> {
    /// Returns the objects to adopt, as far as watches have seen them.
    fn orphans(&self) -> Vec<Key> {
        let is_orphan = |(kind, name): &Key| {
            let metadata = self.cluster.children.metadata(*kind, &self.namespace, name);
            metadata.is_some_and(|metadata| guard::is_orphan_of(self.mirror, *kind, &metadata))
        };
        let mirror = self.mirror.name_any();
        let workload = match self.mirror.spec.storage.r#type {
            StorageType::PersistentVolumeClaim => Kind::StatefulSet,
            StorageType::Ephemeral => Kind::Deployment,
        };
        let mut names = names::every(&mirror);
        // The key of a CA can't be made again. With its owner back, it would be deleted where the spec asks for none.
        let key = names::authority_key(&mirror);
        names.retain(|(_, name)| *name != key || issue::is_wanted(self.mirror));
        names.extend([
            (Kind::ServiceAccount, mirror.clone()),
            (Kind::Service, mirror.clone()),
            (Kind::Service, names::headless(&mirror)),
            (workload, mirror),
        ]);
        names.extend(self.claims_to_own());
        names.into_iter().filter(is_orphan).collect()
    }

    /// Returns the claims, where they are to go with the mirror.
    fn claims_to_own(&self) -> Vec<Key> {
        let retention = match self.mirror.spec.storage.volume() {
            Some(Volume::Claims { claim, .. }) => claim.retention_policy,
            _ => RetentionPolicy::Retain,
        };
        if retention == RetentionPolicy::Retain {
            return Vec::new();
        }
        let (kind, mirror) = (Kind::PersistentVolumeClaim, self.mirror.name_any());
        let claims = self.cluster.children.of_mirror(kind, &self.namespace, &mirror);
        let names = claims.iter().map(|claim| claim.name_any());
        let own = names.filter(|name| names::claim_ordinal(&mirror, name).is_some());
        own.map(|name| (kind, name)).collect()
    }

    /// Has an object go with the mirror or not, if the API server's present object passes `may`; returns whether anything
    /// was changed.
    pub(super) async fn set_owners(
        &self,
        kind: Kind,
        name: &str,
        is_owned: bool,
        may: impl Fn(&ObjectMeta) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let failed = |source| Error::cluster("changing the owner references of", kind, name, source);
        let metadata = self.cluster.look(kind, &self.namespace, name).await;
        let Some(metadata) = metadata.map_err(failed)? else {
            return Ok(false);
        };
        may(&metadata)?;
        let Some(owners) = owners::wanted(self.mirror, &metadata, is_owned) else {
            return Ok(false);
        };
        let done = self.cluster.set_owners(kind, &metadata, &owners).await;
        done.map_err(failed)?;
        tracing::info!(%kind, name, is_owned, "changed the owner references");
        Ok(true)
    }
}
