//! Checks that the Pods of a mirror can be evicted, so that nodes can be drained.

use crds::RegistryMirror;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    core::{Selector, SelectorExt},
};

use super::{
    error_message,
    report::{Check, Finding},
};
use crate::names;

/// Checks every `PodDisruptionBudget` that selects the mirror's Pods.
pub(super) async fn check(client: &Client, subject: &str, mirror: &RegistryMirror) -> Vec<Finding> {
    let namespace = mirror.namespace().unwrap_or_default();
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), &namespace);
    match budgets.list(&ListParams::default()).await {
        Ok(budgets) => findings(subject, mirror, &budgets.items),
        // A user without permission for budgets may have others.
        Err(kube::Error::Api(status)) if status.code == 403 => Vec::new(),
        Err(error) => {
            let message = format!("PodDisruptionBudgets not listed: {}", error_message(&error));
            vec![Finding::warning(Check::Risk, subject, message)]
        }
    }
}

fn findings(subject: &str, mirror: &RegistryMirror, budgets: &[PodDisruptionBudget]) -> Vec<Finding> {
    let mut labels = mirror.spec.pod.labels.clone();
    labels.extend(names::labels(&mirror.name_any()));
    let about_it = |budget: &&PodDisruptionBudget| {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
        selector.is_some_and(|selector| {
            Selector::try_from(selector).is_ok_and(|selector| selector.matches(&labels))
        })
    };
    let blocking = budgets.iter().filter(about_it).filter(|budget| blocks(budget));
    blocking.map(|budget| finding(subject, budget)).collect()
}

/// Returns whether a budget allows no eviction although all Pods are healthy.
fn blocks(budget: &PodDisruptionBudget) -> bool {
    budget
        .status
        .as_ref()
        .is_some_and(|status| status.expected_pods > 0 && status.desired_healthy >= status.expected_pods)
}

fn finding(subject: &str, budget: &PodDisruptionBudget) -> Finding {
    let message = format!(
        "PodDisruptionBudget {} allows no eviction of the mirror's Pods, and a node with one can't be drained",
        budget.name_any()
    );
    Finding::warning(Check::Risk, subject, message)
        .reason("evictions-blocked")
        .advice(
            "delete it, or set maxUnavailable to 1: the operator creates its own for more than one replica",
        )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use test_case::test_case;

    use super::*;

    fn mirror() -> RegistryMirror {
        serde_json::from_value(json!({
            "metadata": {"name": "hub", "namespace": "mirrors"},
            "spec": {
                "upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}, "pod": {"labels": {"team": "a"}},
            },
        }))
        .unwrap()
    }

    #[test_case(&json!({"app.kubernetes.io/instance": "hub"}), 2, 2 => 1; "it wants both of two")]
    #[test_case(&json!({"app.kubernetes.io/instance": "hub"}), 1, 2 => 0; "it lets one of two go")]
    #[test_case(&json!({"app.kubernetes.io/instance": "hub"}), 0, 0 => 0; "there is no Pod")]
    #[test_case(&json!({"app.kubernetes.io/instance": "other"}), 2, 2 => 0; "it is about another mirror")]
    #[test_case(&json!({"team": "a"}), 1, 1 => 1; "by a label of the spec")]
    #[test_case(&json!({}), 3, 3 => 1; "it is about every Pod")]
    fn budget_without_evictions_is_reported(labels: &Value, desired: i32, expected: i32) -> usize {
        let budget = serde_json::from_value(json!({
            "metadata": {"name": "strict"},
            "spec": {"selector": {"matchLabels": labels}},
            "status": {
                "currentHealthy": expected, "desiredHealthy": desired, "disruptionsAllowed": 0,
                "expectedPods": expected,
            },
        }))
        .unwrap();
        findings("mirrors/hub", &mirror(), &[budget]).len()
    }
}
