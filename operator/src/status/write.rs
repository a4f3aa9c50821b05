//! Writes the status if it differs.

use std::collections::HashMap;

use crds::{RegistryMirror, RegistryMirrorStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::cluster::FIELD_MANAGER;

/// The field manager of a standby operator.
const STANDS_BY: &str = "registry-mirror-stands-by";

/// The statuses that were written a short time ago: the watched mirror may lack them, or have fields of other managers
/// that no write removes.
#[derive(Default)]
pub struct Written(Mutex<HashMap<String, (u64, RegistryMirrorStatus)>>);

impl Written {
    /// Returns the current status of a mirror.
    pub fn latest(&self, mirror: &RegistryMirror) -> RegistryMirrorStatus {
        let uid = mirror.uid().unwrap_or_default();
        let mut written = self.0.lock();
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
        self.0.lock().remove(uid);
    }
}

fn version(mirror: &RegistryMirror) -> u64 {
    mirror
        .resource_version()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

/// Writes a status. A missing mirror is no error.
///
/// # Errors
/// Those of the API server.
pub async fn write(
    client: Client,
    written: &Written,
    mirror: &RegistryMirror,
    status: &RegistryMirrorStatus,
) -> kube::Result<()> {
    // Not that of another mirror of this name.
    let same = json!({"uid": mirror.uid()});
    apply(client, written, mirror, same, status).await.map(|_| ())
}

/// Writes a status if the mirror has not changed since it was read. Returns whether it did.
///
/// # Errors
/// Those of the API server.
pub async fn claim(
    client: Client,
    written: &Written,
    mirror: &RegistryMirror,
    status: &RegistryMirrorStatus,
) -> kube::Result<bool> {
    let same = json!({"uid": mirror.uid(), "resourceVersion": mirror.resource_version()});
    apply(client, written, mirror, same, status).await
}

async fn apply(
    client: Client,
    written: &Written,
    mirror: &RegistryMirror,
    metadata: Value,
    status: &RegistryMirrorStatus,
) -> kube::Result<bool> {
    let answer = patch(client, FIELD_MANAGER, mirror, metadata, json!(status)).await?;
    if let Some(answer) = &answer {
        let entry = (version(answer), status.clone());
        written.0.lock().insert(mirror.uid().unwrap_or_default(), entry);
    }
    Ok(answer.is_some())
}

/// Writes the conditions of a standby operator, and no field of the managing one.
///
/// # Errors
/// Those of the API server.
pub async fn stand_by(client: Client, mirror: &RegistryMirror, conditions: &[Condition]) -> kube::Result<()> {
    let same = json!({"uid": mirror.uid()});
    let status = json!({ "conditions": conditions });
    patch(client, STANDS_BY, mirror, same, status).await.map(|_| ())
}

/// Returns the patched mirror; `None` if it is gone or another one.
async fn patch(
    client: Client,
    manager: &str,
    mirror: &RegistryMirror,
    metadata: Value,
    status: Value,
) -> kube::Result<Option<RegistryMirror>> {
    let api = Api::<RegistryMirror>::namespaced(client, &mirror.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": RegistryMirror::api_version(&()),
        "kind": RegistryMirror::kind(&()),
        "metadata": metadata,
        "status": status,
    });
    let params = PatchParams::apply(manager).force();
    match api
        .patch_status(&mirror.name_any(), &params, &Patch::Apply(&patch))
        .await
    {
        Ok(answer) => Ok(Some(answer)),
        Err(kube::Error::Api(answer)) if answer.is_not_found() || answer.is_conflict() => Ok(None),
        Err(error) => Err(error),
    }
}
