//! Finds the Pods of a mirror that do not start, and the cause.

use crds::RegistryMirror;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::{Api, Client, ResourceExt, api::ListParams, core::Selector};

use super::report::{Check, Class, Finding};
use crate::names;

/// The reasons of kubelet for an image that it can't pull.
const NOT_PULLED: [&str; 4] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
];
const PULL_ADVICE: &str = "correct spec.pod.image, or mirrorImage of the chart; for a private registry, name a Secret in \
                           spec.pod.imagePullSecrets";
const ARCHITECTURE_ADVICE: &str = "build the image for the architecture of the nodes, or select nodes of another one in \
                                   spec.pod.nodeSelector (kubernetes.io/arch)";

/// The cause why a Pod does not start, and the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct PodFailure {
    /// The cause, without the name of the Pod.
    pub(in crate::cli) message: String,
    advice: String,
}

/// Checks the Pods of a mirror. A user without permission for Pods gets no finding.
pub(super) async fn check(client: &Client, subject: &str, mirror: &RegistryMirror) -> Vec<Finding> {
    let namespace = mirror.namespace().unwrap_or_default();
    let selector: Selector = names::selector(&mirror.name_any()).into_iter().collect();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let Ok(pods) = pods.list(&ListParams::default().labels_from(&selector)).await else {
        return Vec::new();
    };
    pods.iter().filter_map(|pod| finding(subject, pod)).collect()
}

fn finding(subject: &str, pod: &Pod) -> Option<Finding> {
    let PodFailure { message, advice } = failure(pod)?;
    let message = format!("Pod {} does not start: {message}", pod.name_any());
    let finding = Finding::problem(Check::Mirror, Class::Other, subject, message);
    Some(finding.reason("pod-not-started").advice(advice))
}

/// Returns the cause why a Pod does not start, as its status has it.
pub(in crate::cli) fn failure(pod: &Pod) -> Option<PodFailure> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.iter().flatten();
    let mut unscheduled =
        conditions.filter(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled.next() {
        let reason = condition.message.as_deref().unwrap_or("no node fits");
        return Some(PodFailure {
            message: format!("no node has room for it: {reason}"),
            advice: "lower spec.pod.resources, correct spec.pod.nodeSelector and tolerations, or add nodes"
                .to_owned(),
        });
    }
    let containers = status.container_statuses.iter().flatten();
    let mut failures = containers.filter_map(|container| of_container(&pod.name_any(), container));
    failures.next()
}

fn of_container(pod: &str, container: &ContainerStatus) -> Option<PodFailure> {
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waiting
        .and_then(|waiting| waiting.reason.as_deref())
        .unwrap_or_default();
    let message = waiting
        .and_then(|waiting| waiting.message.as_deref())
        .unwrap_or_default();
    if NOT_PULLED.contains(&reason) {
        let is_other = message.contains("no match for platform") || message.contains("no matching manifest");
        let advice = if is_other {
            ARCHITECTURE_ADVICE
        } else {
            PULL_ADVICE
        };
        return Some(PodFailure {
            message: format!("image {} not pulled, {reason}: {message}", container.image),
            advice: advice.to_owned(),
        });
    }
    let ended = [container.state.as_ref(), container.last_state.as_ref()]
        .into_iter()
        .flatten()
        .find_map(|state: &ContainerState| state.terminated.as_ref())
        .filter(|_| !container.ready);
    let text = ended
        .and_then(|ended| ended.message.as_deref())
        .unwrap_or(message);
    if text.contains("exec format error") {
        return Some(PodFailure {
            message: format!(
                "image {} is for another architecture than its node",
                container.image
            ),
            advice: ARCHITECTURE_ADVICE.to_owned(),
        });
    }
    let advice = format!(
        "kubectl logs {pod} --previous has the cause in its last line; \"exec format error\" there: {ARCHITECTURE_ADVICE}"
    );
    let message = match (ended, reason) {
        (Some(ended), _) => format!("the server ended with exit code {}", ended.exit_code),
        (None, "" | "ContainerCreating" | "PodInitializing") => return None,
        (None, reason) => format!("{reason}: {message}"),
    };
    Some(PodFailure { message, advice })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use test_case::test_case;

    use super::*;

    fn of_state(state: &Value, last: &Value) -> Value {
        json!({"containerStatuses": [{
            "name": "mirror", "image": "example/mirror:1", "imageID": "", "ready": false, "restartCount": 1,
            "state": state, "lastState": last,
        }]})
    }

    fn waiting(reason: &str, message: &str) -> Value {
        of_state(
            &json!({"waiting": {"reason": reason, "message": message}}),
            &json!({}),
        )
    }

    /// A Pod that does not start has the cause and the next step; one that starts or runs has none.
    #[test_case(&json!({}) => None; "a new Pod")]
    #[test_case(&waiting("ContainerCreating", "") => None; "a Pod that starts")]
    #[test_case(&of_state(&json!({"running": {}}), &json!({})) => None; "a Pod that runs")]
    #[test_case(&waiting("ImagePullBackOff", "not found") => Some("image example/mirror:1 not pulled, ImagePullBackOff: not found | correct spec.pod.image, or mi".to_owned()))]
    #[test_case(&waiting("ErrImagePull", "no match for platform in manifest") => Some("image example/mirror:1 not pulled, ErrImagePull: no match for platform in manifest | build the image for the archi".to_owned()); "an image without the platform")]
    #[test_case(&of_state(&json!({"waiting": {"reason": "CrashLoopBackOff"}}), &json!({"terminated": {"exitCode": 1, "message": "exec /mirror: exec format error"}}))
        => Some("image example/mirror:1 is for another architecture than its node | build the image for the archi".to_owned()); "another architecture")]
    #[test_case(&of_state(&json!({"waiting": {"reason": "CrashLoopBackOff"}}), &json!({"terminated": {"exitCode": 4}}))
        => Some("the server ended with exit code 4 | kubectl logs hub-0 --previous".to_owned()); "a server that ends")]
    #[test_case(&waiting("CreateContainerConfigError", "secret \"a\" not found") => Some("CreateContainerConfigError: secret \"a\" not found | kubectl logs hub-0 --previous".to_owned()))]
    #[test_case(&json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]})
        => Some("no node has room for it: 0/3 nodes are available | lower spec.pod.resources, cor".to_owned()); "no node")]
    fn pod_failure_names_cause_and_step(status: &Value) -> Option<String> {
        let pod = json!({"metadata": {"name": "hub-0"}, "status": status});
        let failure = failure(&serde_json::from_value(pod).unwrap())?;
        let advice: String = failure.advice.chars().take(29).collect();
        Some(format!("{} | {advice}", failure.message))
    }
}
