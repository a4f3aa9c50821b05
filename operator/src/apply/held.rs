//! A workload whose turn to take up a new version has not come: everything of it but its Pods is as desired.

use kube::{ResourceExt, api::DynamicObject};
use serde_json::{Value, json};

use crate::desired::names;

/// The manifest with the live object's Pods, and with what was noted of them.
///
/// The template may have fields that others set. Who set them owns them still, and they stay when the operator's own
/// template is applied again.
pub(super) fn with_pods_of(live: &DynamicObject, mut manifest: Value) -> Value {
    let mut template = live.data["spec"]["template"].clone();
    if let Some(metadata) = template["metadata"].as_object_mut() {
        // Always null here, which is no time.
        metadata.remove("creationTimestamp");
    }
    manifest["spec"]["template"] = template;
    let (applied, source) = (names::APPLIED, names::POD_TEMPLATE_SOURCE);
    let annotations = live.annotations();
    for (note, value) in [
        (applied, annotations.get(applied)),
        (source.current, source.get(annotations)),
    ] {
        match (value, manifest["metadata"]["annotations"].as_object_mut()) {
            (Some(value), Some(annotations)) => annotations.insert(note.to_owned(), json!(value)),
            (None, Some(annotations)) => annotations.remove(note),
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
        let kept = with_pods_of(&live, json!({"metadata": {"annotations": {}}, "spec": {}}));
        let annotations = json!({names::POD_TEMPLATE_SOURCE.current: "old"});
        assert_eq!(kept["metadata"]["annotations"], annotations);
    }

    #[test]
    fn only_the_pods_stay_as_they_are() {
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
            with_pods_of(&live, wanted),
            json!({
                "metadata": {"name": "hub", "annotations": {names::APPLIED: "old", names::RELOAD: "2"}},
                "spec": {"replicas": 2, "template": {"metadata": {}, "spec": {"image": "old"}}},
            })
        );
    }
}
