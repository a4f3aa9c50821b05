//! Applies the desired objects: writes only those that differ from the cluster.

use std::{collections::BTreeMap, sync::Arc};

use crds::{RegistryMirror, conditions::Reason};
use futures::future::{join_all, try_join_all};
use kube::{ResourceExt, api::DynamicObject};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    cluster::{Cluster, trim::fingerprint},
    desired::{Child, Desired},
    kind::Kind,
    names,
    observed::Observed,
    validate::Rejection,
};

mod adopt;
mod claims;
pub mod diff;
mod error;
mod foreign;
mod frozen_template;
mod notify_pods;
pub mod ownership;
mod repair;
mod results;
mod service;

pub use adopt::adopt;
pub use error::ApplyError;
use error::{classify, classify_replacement};
pub use notify_pods::NOTIFY_AGAIN;
use results::ApplyResults;
pub use service::apply_service;

/// The objects of a mirror that the API server rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The rejected PVCs, by name. They stop no other object: servers with a smaller volume serve.
    pub refused_claims: BTreeMap<String, RefusedClaim>,
    /// The rejection of other objects by validation: the spec asks for invalid objects.
    pub refused: Option<Rejection>,
    /// The rejection of other objects by policies, webhooks and quotas, in one sentence.
    pub forbidden: Option<String>,
}

impl Applied {
    /// Returns whether all objects but PVCs are applied.
    pub fn is_whole(&self) -> bool {
        self.refused.is_none() && self.forbidden.is_none()
    }
}

/// The rejection of a PVC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedClaim {
    /// `ResizeUnsupported`, `ClaimPending` or `RetentionPolicyNotApplied`.
    pub reason: Reason,
    /// The message of the API server.
    pub message: String,
}

/// Applies all objects of a mirror, notifies its Pods of files to reload, and deletes objects of an earlier spec.
///
/// A rejected object does not stop the others, with two exceptions. Without the Secret of the mirror's CA, no certificate of
/// that CA is written, because the next reconcile would create another CA. The workload waits for the objects that its Pods
/// mount.
///
/// # Errors
/// Failures that a retry may fix. Applied objects stay; every write can be repeated.
pub async fn apply(
    mirror: &RegistryMirror,
    desired: &Desired,
    observed: &Observed,
    cluster: &Cluster,
) -> Result<Applied, ApplyError> {
    let target = Applier::new(mirror, cluster);
    let owned = target.find_owned(desired).await?;
    service::check_kept(mirror, observed, &owned)?;
    let (mut results, mut applied) = (ApplyResults::default(), Applied::default());
    if target.apply_configuration(desired, &owned, &mut results).await?
        && target
            .apply_claims(desired, &owned, &mut applied, &mut results)
            .await
    {
        target.notify_pods(desired, observed).await?;
        if results.record(target.apply_workload(desired, &owned).await) {
            for (kind, name) in desired.superseded(&mirror.name_any()) {
                target.prune(kind, &name).await?;
            }
        }
    }
    results.finish(&mut applied)?;
    Ok(applied)
}

/// Applies those of these objects that exist and belong to the mirror. Creates none.
///
/// # Errors
/// Those of [`apply`].
pub async fn apply_existing(
    mirror: &RegistryMirror,
    children: &[Child],
    cluster: &Cluster,
) -> Result<(), ApplyError> {
    let applier = Applier::new(mirror, cluster);
    let uid = |child: &Child| {
        let live = cluster.cache.get(child.kind, &applier.namespace, &child.name)?;
        let is_owned =
            ownership::is_controlled_by(mirror, &live.metadata) && live.metadata.deletion_timestamp.is_none();
        Some((key(child), live.uid().filter(|_| is_owned)?))
    };
    let owned: OwnedUids = children.iter().filter_map(uid).collect();
    // In their order: the key of a CA is stored before any certificate of that CA is published.
    for child in children.iter().filter(|child| owned.contains_key(&key(child))) {
        applier.apply(child, &owned).await?;
    }
    Ok(())
}

/// The UIDs of existing objects that belong to the mirror.
type OwnedUids = BTreeMap<ChildKey, String>;
/// The kind and the name of an object of a mirror.
pub type ChildKey = (Kind, String);

fn key(child: &Child) -> ChildKey {
    (child.kind, child.name.clone())
}

/// Applies the objects of one mirror.
struct Applier<'a> {
    mirror: &'a RegistryMirror,
    namespace: String,
    cluster: &'a Cluster,
}

impl<'a> Applier<'a> {
    fn new(mirror: &'a RegistryMirror, cluster: &'a Cluster) -> Self {
        Self {
            mirror,
            namespace: mirror.namespace().unwrap_or_default(),
            cluster,
        }
    }
}

impl Applier<'_> {
    /// Applies the objects that come before PVCs and workload. Returns whether all objects that Pods mount exist.
    async fn apply_configuration(
        &self,
        desired: &Desired,
        owned: &OwnedUids,
        results: &mut ApplyResults,
    ) -> Result<bool, ApplyError> {
        let mirror = self.mirror.name_any();
        let ca_key = names::ca_key(&mirror);
        let (first, others): (Vec<_>, Vec<_>) = desired
            .configuration
            .iter()
            .partition(|child| child.kind == Kind::Secret && child.name == ca_key);
        for child in first {
            match self.apply(child, owned).await {
                Err(error @ ApplyError::Conflict { .. }) => _ = results.record(Err(error)),
                done => done?,
            }
        }
        let done = join_all(others.iter().map(|child| async {
            let done = self.apply(child, owned).await;
            done.map_err(|error| self.explain(child, owned, error))
        }));
        let done = done.await;
        let mounted = names::mounted(&mirror);
        let mut all_exist = true;
        for (child, done) in others.iter().zip(done) {
            let exists = results.record(done);
            all_exist &= exists || !mounted.contains(&(child.kind, child.name.clone()));
        }
        Ok(all_exist)
    }

    /// Returns the UIDs of existing objects. Checks all names before the first write, because a part of a mirror is useless.
    async fn find_owned(&self, desired: &Desired) -> Result<OwnedUids, ApplyError> {
        let found = desired.children().map(|child| async {
            let uid = self.find_one(child.kind, &child.name).await?;
            Ok::<_, ApplyError>(uid.map(|uid| (key(child), uid)))
        });
        Ok(try_join_all(found).await?.into_iter().flatten().collect())
    }

    /// Returns the UID of an object of the mirror, if it exists.
    async fn find_one(&self, kind: Kind, name: &str) -> Result<Option<String>, ApplyError> {
        let Some(live) = self.cluster.cache.get(kind, &self.namespace, name) else {
            // The cache holds objects with the operator's label only: the label may be missing, or the owner be another.
            return self.find_uncached(kind, name).await;
        };
        ownership::check(self.mirror, kind, &live.metadata)?;
        Ok(live.uid())
    }

    /// Applies one object if it differs.
    async fn apply(&self, child: &Child, owned: &OwnedUids) -> Result<(), ApplyError> {
        self.repair(child, false).await?;
        self.apply_manifest(child, with_applied_hash(child), owned).await
    }

    /// Applies the workload. If its rollout is queued, its Pod template stays.
    async fn apply_workload(&self, desired: &Desired, owned: &OwnedUids) -> Result<(), ApplyError> {
        let workload = &desired.workload;
        self.repair(workload, desired.is_held).await?;
        let live = self
            .cluster
            .cache
            .get(workload.kind, &self.namespace, &workload.name);
        let manifest = match live.filter(|_| desired.is_held) {
            Some(live) => frozen_template::keep_live_template(&live, workload.manifest.clone()),
            None => with_applied_hash(workload),
        };
        self.apply_manifest(workload, manifest, owned).await
    }

    async fn apply_manifest(
        &self,
        child: &Child,
        manifest: Value,
        owned: &OwnedUids,
    ) -> Result<(), ApplyError> {
        let (kind, name) = (child.kind, child.name.as_str());
        let live = self.cluster.cache.get(kind, &self.namespace, name);
        if live
            .as_ref()
            .is_some_and(|live| is_applied(kind, live, &manifest))
        {
            return Ok(());
        }
        // A user who deletes the mirror and keeps its objects may have removed the owner since the first check. With the
        // owner back, the object would be deleted.
        if let Some(live) = &live {
            ownership::check(self.mirror, kind, &live.metadata)?;
        }
        let written = self.write(child, &manifest, live.as_deref(), owned).await;
        let applied = written.map_err(|error| classify_replacement(kind, name, error))?;
        tracing::info!(%kind, name, "applied");
        if is_applied(kind, &applied, &manifest) {
            return Ok(());
        }
        Err(ApplyError::Altered {
            kind,
            name: name.to_owned(),
        })
    }

    /// Writes an object, unless its last writes were undone or rejected: then with back-off.
    async fn write(
        &self,
        child: &Child,
        manifest: &Value,
        live: Option<&DynamicObject>,
        owned: &OwnedUids,
    ) -> Result<Arc<DynamicObject>, ApplyError> {
        let (kind, name) = (child.kind, child.name.as_str());
        let attempt = self.begin_write(child, manifest, live)?;
        let mut uid = owned.get(&key(child)).map(String::as_str);
        if let Some(live) = live.filter(|live| repair::is_replaced(self.mirror, child, live)) {
            self.delete(kind, name, live).await?;
            uid = None;
        }
        let applied = self
            .cluster
            .apply(kind, &self.namespace, manifest.clone(), uid)
            .await;
        self.end_write(attempt, &applied);
        if uid.is_none() && applied.is_err() {
            // An admission policy rejects a write to another user's object, which was created since the check.
            self.find_uncached(kind, name).await?;
        }
        applied.map_err(|source| classify(kind, name, source))
    }

    /// Returns the UID of an object of the mirror that lacks the operator's label.
    async fn find_uncached(&self, kind: Kind, name: &str) -> Result<Option<String>, ApplyError> {
        let found = self.cluster.get_metadata(kind, &self.namespace, name).await;
        let found = found.map_err(|source| ApplyError::cluster("read", kind, name, source))?;
        let Some(metadata) = found else {
            return Ok(None);
        };
        ownership::check(self.mirror, kind, &metadata)?;
        Ok(metadata.uid)
    }

    /// Deletes an object of an earlier spec.
    async fn prune(&self, kind: Kind, name: &str) -> Result<(), ApplyError> {
        let Some(live) = self.cluster.cache.get(kind, &self.namespace, name) else {
            return Ok(());
        };
        if live.metadata.deletion_timestamp.is_some()
            || !ownership::is_controlled_by(self.mirror, &live.metadata)
        {
            return Ok(());
        }
        self.delete(kind, name, &live).await?;
        tracing::info!(%kind, name, "deleted: the spec no longer asks for it");
        Ok(())
    }

    async fn delete(&self, kind: Kind, name: &str, live: &DynamicObject) -> Result<(), ApplyError> {
        let deleted = self.cluster.delete(kind, &self.namespace, live).await;
        deleted.map_err(|source| ApplyError::cluster("deleted", kind, name, source))
    }
}

/// Returns the manifest with its hash as an annotation, by which a removed field is noticed.
fn with_applied_hash(child: &Child) -> Value {
    let mut hashed = child.manifest.clone();
    if child.kind == Kind::Secret {
        // The hash of a password would let every reader of the annotation try passwords. Values are compared apart; here
        // only the keys count.
        blank(&mut hashed);
    }
    let hash = hex::encode(&Sha256::digest(hashed.to_string())[..16]);
    let mut manifest = child.manifest.clone();
    manifest["metadata"]["annotations"][names::APPLIED] = json!(hash);
    manifest
}

fn blank(secret: &mut Value) {
    if let Some(data) = secret.get_mut("data").and_then(Value::as_object_mut) {
        data.values_mut().for_each(|value| *value = Value::Null);
    }
}

fn is_applied(kind: Kind, live: &DynamicObject, manifest: &Value) -> bool {
    let Ok(live) = serde_json::to_value(live) else {
        return false;
    };
    let mut manifest = manifest.clone();
    if let Some(fields) = manifest.as_object_mut() {
        // Objects of a list have neither.
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    fingerprint(kind, &mut manifest);
    diff::contains(&live, &manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(value: &str) -> Child {
        let manifest = json!({"metadata": {"name": "s"}, "data": {"password": value}});
        Child {
            kind: Kind::Secret,
            name: "s".to_owned(),
            manifest,
        }
    }

    fn hash(child: &Child) -> String {
        with_applied_hash(child)["metadata"]["annotations"][names::APPLIED]
            .as_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn secret_values_do_not_change_the_hash() {
        assert_eq!(hash(&secret("YQ==")), hash(&secret("Yg==")));
    }

    /// A field that is removed changes the hash.
    #[test]
    fn removed_field_changes_the_hash() {
        let child = |manifest| Child {
            kind: Kind::Service,
            name: "s".to_owned(),
            manifest,
        };
        let before = child(json!({"metadata": {}, "spec": {"a": 1, "b": 2}}));
        let after = child(json!({"metadata": {}, "spec": {"a": 1}}));
        assert_ne!(hash(&before), hash(&after));
    }

    #[test]
    fn secret_with_another_value_is_not_applied() {
        let live = |value| {
            let mut object: DynamicObject =
                serde_json::from_value(with_applied_hash(&secret(value))).unwrap();
            fingerprint(Kind::Secret, &mut object.data);
            object
        };
        assert!(is_applied(
            Kind::Secret,
            &live("YQ=="),
            &with_applied_hash(&secret("YQ=="))
        ));
        assert!(!is_applied(
            Kind::Secret,
            &live("Yg=="),
            &with_applied_hash(&secret("YQ=="))
        ));
    }

    /// An object from a list, which has no kind, counts as applied.
    #[test]
    fn listed_object_without_kind_is_applied() {
        let manifest = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}});
        let child = Child {
            kind: Kind::Service,
            name: "s".to_owned(),
            manifest,
        };
        let mut live: DynamicObject = serde_json::from_value(with_applied_hash(&child)).unwrap();
        live.types = None;
        assert!(is_applied(Kind::Service, &live, &with_applied_hash(&child)));
    }
}
