//! Writes with back-off, and repairs objects that an apply alone can't: by a patch, or by a new object.

use crds::RegistryMirror;
use kube::{ResourceExt, api::DynamicObject};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{
    Applier, ApplyError,
    error::{classify, is_rejection},
    foreign, ownership, with_applied_hash,
};
use crate::{
    cluster::write_backoff::{BackoffReason, DesiredState},
    desired::Child,
    kind::Kind,
    mirror_key::ObjectKey,
    names,
};

/// A write that back-off allows.
pub(super) struct Attempt {
    object: ObjectKey,
    state: DesiredState,
}

/// Returns whether an object is deleted and created again, because a user made it immutable. The key of a CA is not: a
/// failure in between would lose it.
pub(super) fn is_replaced(mirror: &RegistryMirror, child: &Child, live: &DynamicObject) -> bool {
    let is_kind = matches!(child.kind, Kind::ConfigMap | Kind::Secret);
    is_kind && live.data["immutable"] == true && child.name != names::ca_key(&mirror.name_any())
}

impl Applier<'_> {
    /// Removes the fields of other field managers that stop the live object of a child or its writes. `is_held`: its Pod
    /// template stays.
    pub(super) async fn repair(&self, child: &Child, is_held: bool) -> Result<(), ApplyError> {
        let (kind, name) = (child.kind, child.name.as_str());
        let Some(live) = self.cluster.cache.get(kind, &self.namespace, name) else {
            return Ok(());
        };
        let Some(patch) = foreign::repair(kind, &live.data, &child.manifest, is_held) else {
            return Ok(());
        };
        ownership::check(self.mirror, kind, &live.metadata)?;
        let attempt = self.begin_write(child, &with_applied_hash(child), Some(&live))?;
        let patched = self.cluster.merge(kind, &live.metadata, patch).await;
        self.end_write(attempt, &patched);
        patched.map_err(|source| classify(kind, name, source))?;
        tracing::info!(%kind, name, "removed fields that the manifest does not have, which would stop the object or its updates");
        Ok(())
    }

    /// Returns the attempt of a write, unless the last writes of the object were undone or rejected.
    pub(super) fn begin_write(
        &self,
        child: &Child,
        manifest: &Value,
        live: Option<&DynamicObject>,
    ) -> Result<Attempt, ApplyError> {
        let (kind, name) = (child.kind, child.name.clone());
        let object = ObjectKey {
            kind,
            namespace: self.namespace.clone(),
            name: name.clone(),
        };
        let state = DesiredState {
            manifest_hash: Sha256::digest(manifest.to_string()).into(),
            resource_version: live.and_then(ResourceExt::resource_version),
        };
        match self.cluster.write_backoff.check(&object, &state, Instant::now()) {
            Some(BackoffReason::Conflict(after)) => Err(ApplyError::Conflict { kind, name, after }),
            Some(BackoffReason::Rejected(status)) => Err(classify(kind, &name, kube::Error::Api(status))),
            None => Ok(Attempt { object, state }),
        }
    }

    /// Records the result of a write for the back-off.
    pub(super) fn end_write<T>(&self, attempt: Attempt, result: &kube::Result<T>) {
        let Attempt { object, state } = attempt;
        let (backoff, now) = (&self.cluster.write_backoff, Instant::now());
        match result {
            Ok(_) => backoff.record_write(object, state, now),
            Err(kube::Error::Api(status))
                if is_rejection(status)
                    || status.code == 403 && object.kind == Kind::PersistentVolumeClaim =>
            {
                backoff.record_rejection(object, state, now, status.clone());
            }
            Err(_) => {}
        }
    }
}
