//! The affinities to Pods of other namespaces. The scheduler applies a required anti-affinity in both directions: a mirror
//! with one keeps Pods of other tenants away from its nodes.

use k8s_openapi::api::core::v1::{Affinity, PodAffinityTerm};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Returns the first field below `affinity` that refers to Pods of other namespaces than `namespace`, and the request.
pub(super) fn beyond_namespace(affinity: &Affinity, namespace: &str) -> Option<(String, String)> {
    terms(affinity).find_map(|(path, term)| {
        let (field, asked) = other_namespaces(term, namespace)?;
        Some((format!("{path}.{field}"), asked))
    })
}

/// Returns every term about Pods, with its path below `affinity`.
fn terms(affinity: &Affinity) -> impl Iterator<Item = (String, &PodAffinityTerm)> {
    let near = affinity.pod_affinity.iter().map(|near| {
        (
            "podAffinity",
            &near.required_during_scheduling_ignored_during_execution,
            &near.preferred_during_scheduling_ignored_during_execution,
        )
    });
    let apart = affinity.pod_anti_affinity.iter().map(|apart| {
        (
            "podAntiAffinity",
            &apart.required_during_scheduling_ignored_during_execution,
            &apart.preferred_during_scheduling_ignored_during_execution,
        )
    });
    near.chain(apart).flat_map(|(kind, required, preferred)| {
        let required = required.iter().flatten().enumerate();
        let required = required.map(move |(index, term)| (format!("{kind}.{REQUIRED}[{index}]"), term));
        let preferred = preferred.iter().flatten().enumerate();
        let preferred = preferred.map(move |(index, weighted)| {
            let path = format!("{kind}.{PREFERRED}[{index}].podAffinityTerm");
            (path, &weighted.pod_affinity_term)
        });
        required.chain(preferred)
    })
}

/// Returns the field of a term that refers to other namespaces. An empty selector selects all of them.
fn other_namespaces(term: &PodAffinityTerm, namespace: &str) -> Option<(&'static str, String)> {
    if term.namespace_selector.is_some() {
        return Some(("namespaceSelector", "a selector of namespaces".to_owned()));
    }
    let other = term.namespaces.iter().flatten().find(|name| *name != namespace)?;
    Some(("namespaces", format!("namespace {other:?}")))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::needless_pass_by_value, reason = "the tables read better")]

    use serde_json::{Value, json};
    use test_case::test_case;

    use super::*;

    /// A term in each of the four lists is found where it refers to another namespace.
    #[test_case(json!({}) => None; "own namespace")]
    #[test_case(json!({"namespaces": []}) => None; "empty list")]
    #[test_case(json!({"namespaces": ["a"]}) => None; "own namespace by name")]
    #[test_case(json!({"namespaces": ["a", "b"]}) => Some("namespaces: namespace \"b\"".to_owned()); "another one")]
    #[test_case(json!({"namespaceSelector": {}}) => Some("namespaceSelector: a selector of namespaces".to_owned()); "all")]
    #[test_case(json!({"namespaceSelector": {"matchLabels": {"team": "b"}}})
        => Some("namespaceSelector: a selector of namespaces".to_owned()); "by label")]
    fn affinity_beyond_namespace(fields: Value) -> Option<String> {
        let mut term = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {}});
        for (name, value) in fields.as_object().unwrap() {
            term[name] = value.clone();
        }
        let mut found = ["podAffinity", "podAntiAffinity"].into_iter().flat_map(|kind| {
            let weighted = json!({"weight": 1, "podAffinityTerm": term});
            [
                (kind, REQUIRED, "[0]", term.clone()),
                (kind, PREFERRED, "[0].podAffinityTerm", weighted),
            ]
        });
        let results = found.by_ref().map(|(kind, list, below, entry)| {
            let affinity = serde_json::from_value(json!({kind: {list: [entry]}})).unwrap();
            let (field, asked) = beyond_namespace(&affinity, "a")?;
            let field = field.strip_prefix(&format!("{kind}.{list}{below}.")).unwrap();
            Some(format!("{field}: {asked}"))
        });
        let mut results: Vec<_> = results.collect();
        results.dedup();
        assert_eq!(results.len(), 1, "{results:?}");
        results.remove(0)
    }
}
