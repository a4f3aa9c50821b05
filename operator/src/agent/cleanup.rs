//! The end of the agent's work: no file of it remains on a node, and on all nodes of a cluster.

use std::{collections::BTreeMap, io, path::Path, time::Duration};

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use kube::{Api, Client};
use tokio::time::{Instant, sleep};

use super::{config_path, detect, runtime_files};
use crate::node_config::NodeRoot;

/// The time that the nodes of a cluster have to remove the agent's files.
const TIMEOUT: Duration = Duration::from_mins(2);
/// The interval of requests for the `DaemonSet`.
const INTERVAL: Duration = Duration::from_secs(1);

/// An error: nodes have files of the agent, or the API server did not say so.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The API server refuses the request, or does not answer.
    #[error("DaemonSet {0} can't be read: {1}")]
    Api(String, #[source] Box<kube::Error>),
    /// Nodes did not remove the files in time.
    #[error(
        "{pending} of {nodes} nodes did not remove the agent's files within {} s, such as nodes that are not ready: \
         DaemonSet {daemon_set} removes them when these nodes are back; then delete it",
        TIMEOUT.as_secs()
    )]
    Pending {
        /// `NAMESPACE/NAME`.
        daemon_set: String,
        /// The number of nodes with files.
        pending: i32,
        /// The number of all nodes.
        nodes: i32,
    },
}

/// Removes every file that an agent wrote below a root directory. Returns a message for each file that can't be removed.
///
/// # Errors
/// The root directory can't be opened.
pub fn clean_up(root: &Path, certs_dir: Option<&str>) -> io::Result<Vec<String>> {
    let root = NodeRoot::open(root)?;
    let detected = detect::detect(&root, certs_dir);
    let detected = detected.directory.ok().map(|path| (detected.runtime, path));
    let known = detect::directories().map(|(runtime, path)| (runtime, path.to_owned()));
    let configured = detect::configured_directory(&root).map(|path| (detect::RuntimeKind::Containerd, path));
    let directories: BTreeMap<_, _> = known
        .chain(configured)
        .chain(detected)
        .map(|(runtime, path)| (path, runtime))
        .collect();
    let failed = directories.iter().flat_map(|(path, runtime)| {
        let failed = runtime_files::open(&root, *runtime, path, false).clear();
        failed.into_values().map(|error| error.to_string())
    });
    let mut failed: Vec<_> = failed.collect();
    failed.extend(config_path::remove(&root).err().map(|error| error.to_string()));
    Ok(failed)
}

/// Waits until the Pods of a `DaemonSet` have removed the agent's files on all nodes, for at most 2 minutes.
///
/// # Errors
/// Nodes have files after that time, or the API server did not answer.
pub async fn wait_for_nodes(client: Client, namespace: &str, name: &str) -> Result<(), CleanupError> {
    let daemon_sets = Api::<DaemonSet>::namespaced(client, namespace);
    let daemon_set = || format!("{namespace}/{name}");
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let is_late = Instant::now() >= deadline;
        match daemon_sets.get(name).await {
            Ok(found) => {
                let (pending, nodes) = pending(&found);
                if pending == 0 {
                    return Ok(());
                }
                if is_late {
                    let daemon_set = daemon_set();
                    return Err(CleanupError::Pending {
                        daemon_set,
                        pending,
                        nodes,
                    });
                }
            }
            Err(error) if is_late => return Err(CleanupError::Api(daemon_set(), Box::new(error))),
            Err(error) => tracing::warn!(%error, "DaemonSet can't be read"),
        }
        sleep(INTERVAL).await;
    }
}

/// Returns the number of nodes whose Pod is not ready, and of all nodes. A status that is not up to date counts as one
/// node.
fn pending(found: &DaemonSet) -> (i32, i32) {
    match &found.status {
        Some(DaemonSetStatus {
            observed_generation: Some(observed),
            desired_number_scheduled: nodes,
            number_ready: ready,
            ..
        }) if found
            .metadata
            .generation
            .is_none_or(|current| current <= *observed) =>
        {
            ((nodes - ready).max(0), *nodes)
        }
        _ => (1, 1),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use test_case::test_case;

    use super::*;

    #[test_case(&json!({}) => (1, 1); "no status yet")]
    #[test_case(&json!({"observedGeneration": 1, "desiredNumberScheduled": 3, "numberReady": 3}) => (1, 1); "old status")]
    #[test_case(&json!({"observedGeneration": 2, "desiredNumberScheduled": 3, "numberReady": 1}) => (2, 3); "some nodes")]
    #[test_case(&json!({"observedGeneration": 2, "desiredNumberScheduled": 3, "numberReady": 3}) => (0, 3); "all nodes")]
    #[test_case(&json!({"observedGeneration": 2, "desiredNumberScheduled": 0, "numberReady": 0}) => (0, 0); "no nodes")]
    fn nodes_without_a_ready_pod_are_pending(status: &serde_json::Value) -> (i32, i32) {
        let counts = [
            "currentNumberScheduled",
            "desiredNumberScheduled",
            "numberMisscheduled",
            "numberReady",
        ];
        let mut full = json!({});
        for count in counts {
            full[count] = json!(0);
        }
        full.as_object_mut()
            .unwrap()
            .extend(status.as_object().unwrap().clone());
        let found = json!({"metadata": {"generation": 2}, "status": full});
        pending(&serde_json::from_value(found).unwrap())
    }
}
