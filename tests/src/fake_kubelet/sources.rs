//! The sources of a Pod's volumes and variables: `ConfigMaps`, Secrets, and fields of the Pod itself.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{ConfigMap, KeyToPath, Pod, Secret};
use kube::{Api, Client, ResourceExt};

use super::atomic_directory::Files;

/// Why a container can't be made yet. Asking again later may help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    /// Something that the Pod names is not there.
    #[error("{0} not found")]
    Missing(String),
    /// An object is there, the part that the Pod names is not.
    #[error("{object} has no {part}")]
    Incomplete { object: String, part: String },
    /// A claim waits for its volume.
    #[error("claim {0} is not bound")]
    Unbound(String),
    /// The Pod asks for what this kubelet can't do.
    #[error("this kubelet does not know {0}")]
    Unsupported(String),
    /// The API server or the file system failed.
    #[error("{0}")]
    Failed(String),
}

impl From<kube::Error> for Problem {
    fn from(error: kube::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// The objects of one namespace.
#[derive(Clone)]
pub(super) struct Sources {
    config_maps: Api<ConfigMap>,
    secrets: Api<Secret>,
}

impl Sources {
    pub(super) fn new(client: &Client, namespace: &str) -> Self {
        Self {
            config_maps: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client.clone(), namespace),
        }
    }

    /// Returns the keys of a ConfigMap, none where it is missing but `optional`.
    pub(super) async fn config_map(&self, name: &str, optional: bool) -> Result<Files, Problem> {
        let found = self.config_maps.get_opt(name).await?;
        let text = |map: &ConfigMap| map.data.clone().unwrap_or_default();
        let binary = |map: &ConfigMap| map.binary_data.clone().unwrap_or_default();
        let files = found.map(|map| {
            let texts = text(&map)
                .into_iter()
                .map(|(key, value)| (key, value.into_bytes()));
            texts
                .chain(binary(&map).into_iter().map(|(key, value)| (key, value.0)))
                .collect()
        });
        or_missing(files, optional, || format!("ConfigMap {name}"))
    }

    /// Returns the keys of a Secret, none where it is missing but `optional`.
    pub(super) async fn secret(&self, name: &str, optional: bool) -> Result<Files, Problem> {
        let found = self.secrets.get_opt(name).await?;
        let files = found.map(|secret| {
            let data = secret.data.unwrap_or_default();
            data.into_iter().map(|(key, value)| (key, value.0)).collect()
        });
        or_missing(files, optional, || format!("Secret {name}"))
    }
}

fn or_missing(files: Option<Files>, optional: bool, name: impl FnOnce() -> String) -> Result<Files, Problem> {
    match files {
        Some(files) => Ok(files),
        None if optional => Ok(Files::new()),
        None => Err(Problem::Missing(name())),
    }
}

/// Returns the keys that a volume selects, under the names that it gives them; all where it selects none.
pub(super) fn select(
    mut files: Files,
    items: Option<&Vec<KeyToPath>>,
    optional: bool,
    object: &str,
) -> Result<Files, Problem> {
    let Some(items) = items else { return Ok(files) };
    let mut selected = Files::new();
    for item in items {
        match files.remove(&item.key) {
            Some(bytes) => drop(selected.insert(item.path.clone(), bytes)),
            None if optional => {}
            None => {
                return Err(Problem::Incomplete {
                    object: object.to_owned(),
                    part: item.key.clone(),
                });
            }
        }
    }
    Ok(selected)
}

/// Returns a field of the Pod by its path, as `fieldRef` names it.
pub(super) fn field(pod: &Pod, address: Ipv4Addr, path: &str) -> Result<String, Problem> {
    let spec = pod.spec.clone().unwrap_or_default();
    let of_map = |map: &std::collections::BTreeMap<String, String>, key: &str| {
        map.get(key.trim_matches(|c| matches!(c, '\'' | '"')))
            .cloned()
            .unwrap_or_default()
    };
    Ok(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "spec.nodeName" => spec.node_name.unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.unwrap_or_default(),
        "status.podIP" | "status.podIPs" => address.to_string(),
        "status.hostIP" | "status.hostIPs" => Ipv4Addr::LOCALHOST.to_string(),
        _ => {
            let (map, key) = path
                .strip_suffix(']')
                .and_then(|path| path.split_once('['))
                .ok_or_else(|| Problem::Unsupported(format!("the field {path}")))?;
            match map {
                "metadata.labels" => of_map(pod.labels(), key),
                "metadata.annotations" => of_map(pod.annotations(), key),
                _ => return Err(Problem::Unsupported(format!("the field {path}"))),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Fields of the pod are found by their paths.
    #[test]
    fn pod_fields_are_found_by_path() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"a.b/c": "label"}},
            "spec": {"containers": [], "nodeName": "node"}
        }))
        .unwrap();
        let address = Ipv4Addr::new(127, 1, 2, 3);
        for (path, value) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "n"),
            ("metadata.labels['a.b/c']", "label"),
            ("metadata.annotations['none']", ""),
            ("spec.nodeName", "node"),
            ("status.podIP", "127.1.2.3"),
        ] {
            assert_eq!(field(&pod, address, path).as_deref(), Ok(value), "{path}");
        }
        assert!(field(&pod, address, "spec.hostname").is_err());
    }

    /// Items rename keys and leave out all others.
    #[test]
    fn items_select_and_rename_keys() {
        let files = Files::from([("a".to_owned(), vec![1]), ("b".to_owned(), vec![2])]);
        let item = |key: &str| KeyToPath {
            key: key.to_owned(),
            path: format!("sub/{key}"),
            mode: None,
        };
        let selected = select(files.clone(), Some(&vec![item("a")]), false, "Secret s").unwrap();
        assert_eq!(selected, Files::from([("sub/a".to_owned(), vec![1])]));
        let refused = select(files.clone(), Some(&vec![item("c")]), false, "Secret s").unwrap_err();
        assert_eq!(refused.to_string(), "Secret s has no c");
        assert_eq!(
            select(files.clone(), Some(&vec![item("c")]), true, "Secret s"),
            Ok(Files::new())
        );
        assert_eq!(select(files.clone(), None, false, "Secret s"), Ok(files));
    }
}
