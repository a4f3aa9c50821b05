//! Access of a Pod's processes to the API server: with their ServiceAccount's token and no more.

use std::path::{Path, PathBuf};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Container, Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::PostParams;
use kube::config::{AuthInfo, Kubeconfig};
use kube::{Api, Client, ResourceExt};

use super::sources::Problem;

/// The directory in which admission mounts the token.
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Returns a token of the Pod's ServiceAccount, bound to the Pod.
pub(super) async fn token(
    client: &Client,
    pod: &Pod,
    wanted: &ServiceAccountTokenProjection,
) -> Result<Vec<u8>, Problem> {
    let namespace = pod.namespace().unwrap_or_default();
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref());
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: wanted.audience.iter().cloned().collect(),
            expiration_seconds: wanted.expiration_seconds,
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let answer = accounts
        .create_token_request(account.unwrap_or("default"), &PostParams::default(), &request)
        .await?;
    let token = answer.status.map(|status| status.token);
    token
        .map(String::into_bytes)
        .ok_or_else(|| Problem::Failed("the token request was not answered".to_owned()))
}

/// Returns the directory of the token's mount in a container, if it has one.
pub(super) fn mounted(
    container: &Container,
    volumes: &std::collections::BTreeMap<String, PathBuf>,
) -> Option<PathBuf> {
    let mut mounts = container.volume_mounts.iter().flatten();
    let mount = mounts.find(|mount| mount.mount_path == MOUNT)?;
    volumes.get(&mount.name).cloned()
}

/// Writes what stands for the in-cluster configuration: a process has no mount of its own at that absolute path,
/// so it gets a kubeconfig with the same token and the same namespace.
pub(super) fn write_kubeconfig(
    kubelets: &Kubeconfig,
    pod: &Pod,
    token_directory: &Path,
    file: &Path,
) -> Result<(), Problem> {
    let mut kubeconfig = kubelets.clone();
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(AuthInfo {
            token_file: Some(token_directory.join("token").display().to_string()),
            ..AuthInfo::default()
        });
    }
    for context in kubeconfig
        .contexts
        .iter_mut()
        .filter_map(|context| context.context.as_mut())
    {
        context.namespace = pod.namespace();
    }
    let json = serde_json::to_vec(&kubeconfig).map_err(std::io::Error::from)?;
    Ok(std::fs::write(file, json)?)
}
