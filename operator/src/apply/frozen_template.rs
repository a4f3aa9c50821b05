//! Keeps the Pod template of a workload whose rollout is queued: all other fields are as desired.

use kube::{ResourceExt, api::DynamicObject};
use serde_json::{Value, json};

use crate::names;

/// Returns the manifest with the live object's Pod template and the annotations that describe it.
///
/// The template may have fields of other managers. Those still own them, and the fields stay when the operator applies its
/// own template again.
pub(super) fn keep_live_template(live: &DynamicObject, mut manifest: Value) -> Value {
    let mut template = live.data["spec"]["template"].clone();
    if let Some(metadata) = template["metadata"].as_object_mut() {
        // Null here, which the API server refuses as a time.
        metadata.remove("creationTimestamp");
    }
    manifest["spec"]["template"] = template;
    let (applied, source) = (names::APPLIED, names::POD_TEMPLATE_SOURCE);
    let annotations = live.annotations();
    for (name, value) in [
        (applied, annotations.get(applied)),
        (source.current, source.get(annotations)),
    ] {
        match (value, manifest["metadata"]["annotations"].as_object_mut()) {
            (Some(value), Some(annotations)) => annotations.insert(name.to_owned(), json!(value)),
            (None, Some(annotations)) => annotations.remove(name),
            (_, None) => None,
        };
    }
    manifest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by its former name, the source of the Pods is kept under the current one; the apply removes the former one.
    #[test]
    fn template_source_keeps_its_value_when_renamed() {
        let former = names::POD_TEMPLATE_SOURCE.former;
        let live: DynamicObject = serde_json::from_value(json!({
            "metadata": {"name": "hub", "annotations": {former: "old"}}, "spec": {"template": {}},
        }))
        .unwrap();
        let kept = keep_live_template(&live, json!({"metadata": {"annotations": {}}, "spec": {}}));
        let annotations = json!({names::POD_TEMPLATE_SOURCE.current: "old"});
        assert_eq!(kept["metadata"]["annotations"], annotations);
    }

    #[test]
    fn only_the_template_is_kept() {
        let live: DynamicObject = serde_json::from_value(json!({
            "metadata": {"name": "hub", "annotations": {names::APPLIED: "old", names::RELOAD: "1"}},
            "spec": {"replicas": 1, "template": {"metadata": {"creationTimestamp": null}, "spec": {"image": "old"}}},
        }))
        .unwrap();
        let wanted = json!({
            "metadata": {"name": "hub", "annotations": {names::RELOAD: "2", names::POD_TEMPLATE_SOURCE.current: "new"}},
            "spec": {"replicas": 2, "template": {"spec": {"image": "new"}}},
        });
        assert_eq!(
            keep_live_template(&live, wanted),
            json!({
                "metadata": {"name": "hub", "annotations": {names::APPLIED: "old", names::RELOAD: "2"}},
                "spec": {"replicas": 2, "template": {"metadata": {}, "spec": {"image": "old"}}},
            })
        );
    }
}
