//! Applying manifest files of any kind.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{self, Scope};
use kube::runtime::conditions;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt};
use serde::Deserialize;

use super::Error;

/// The longest wait until the API server serves a new kind.
const ESTABLISHED: Duration = Duration::from_secs(20);

/// Applies every document of a file; a kind that it defines is served on return.
pub(super) async fn apply(client: &Client, path: &Path) -> Result<(), Error> {
    let refused = |reason: String| Error::Manifest {
        path: path.to_owned(),
        reason,
    };
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(Error::io(format!("can't read {}", path.display())))?;
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(&text).map_err(|e| refused(e.to_string()))?;
    for document in documents {
        let object = DynamicObject::deserialize(document).map_err(|e| refused(e.to_string()))?;
        apply_one(client, &object).await?;
        if object
            .types
            .as_ref()
            .is_some_and(|t| t.kind == "CustomResourceDefinition")
        {
            established(client, &object.name_any()).await.map_err(refused)?;
        }
    }
    Ok(())
}

async fn apply_one(client: &Client, object: &DynamicObject) -> Result<(), kube::Error> {
    let types = object.types.clone().unwrap_or_default();
    let kind = GroupVersionKind::try_from(&types).map_err(|e| {
        kube::Error::Discovery(kube::error::DiscoveryError::InvalidGroupVersion(e.to_string()))
    })?;
    let (resource, capabilities) = discovery::pinned_kind(client, &kind).await?;
    let api: Api<DynamicObject> = match (capabilities.scope, object.namespace()) {
        (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(client.clone(), &namespace, &resource),
        (Scope::Namespaced, None) => Api::default_namespaced_with(client.clone(), &resource),
        (Scope::Cluster, _) => Api::all_with(client.clone(), &resource),
    };
    let manager = PatchParams::apply("testbed").force();
    api.patch(&object.name_any(), &manager, &Patch::Apply(object))
        .await?;
    Ok(())
}

async fn established(client: &Client, name: &str) -> Result<(), String> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let established = await_condition(crds, name, conditions::is_crd_established());
    match tokio::time::timeout(ESTABLISHED, established).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("{name} was not served in {} s", ESTABLISHED.as_secs())),
    }
}
