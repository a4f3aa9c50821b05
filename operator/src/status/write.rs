//! Writes the status, if it says something new.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crds::{RegistryMirror, RegistryMirrorStatus};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::cluster::FIELD_MANAGER;

/// The statuses that were written a moment ago: the watched copy of a mirror may not have them yet, or have something of
/// somebody else's beside them, which no write takes away.
#[derive(Default)]
pub struct Written(Mutex<HashMap<String, (u64, RegistryMirrorStatus)>>);

impl Written {
    /// A mirror's status as it is now.
    pub fn latest(&self, mirror: &RegistryMirror) -> RegistryMirrorStatus {
        let uid = mirror.uid().unwrap_or_default();
        let mut written = self.lock();
        let now = version(mirror);
        let differs = |status| mirror.status.as_ref() != Some(status);
        match written.get(&uid) {
            Some((at, status)) if *at > now || *at == now && differs(status) => status.clone(),
            _ => {
                written.remove(&uid);
                mirror.status.clone().unwrap_or_default()
            }
        }
    }

    /// Forgets a mirror.
    pub fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (u64, RegistryMirrorStatus)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn version(mirror: &RegistryMirror) -> u64 {
    mirror
        .resource_version()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

/// Writes a status. The mirror being gone is no error.
///
/// # Errors
/// Those of the API server.
pub async fn write(
    client: Client,
    written: &Written,
    mirror: &RegistryMirror,
    status: &RegistryMirrorStatus,
) -> kube::Result<()> {
    let api = Api::<RegistryMirror>::namespaced(client, &mirror.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": RegistryMirror::api_version(&()),
        "kind": RegistryMirror::kind(&()),
        // Not that of another mirror of this name.
        "metadata": {"uid": mirror.uid()},
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match api
        .patch_status(&mirror.name_any(), &params, &Patch::Apply(&patch))
        .await
    {
        Ok(answer) => {
            written.lock().insert(
                mirror.uid().unwrap_or_default(),
                (version(&answer), status.clone()),
            );
            Ok(())
        }
        Err(kube::Error::Api(answer)) if answer.is_not_found() || answer.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}
