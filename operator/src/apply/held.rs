//! A workload whose turn to take up a new version has not come: everything of it but its Pods is as desired.

use kube::{ResourceExt, api::DynamicObject};
use serde_json::{Value, json};

use crate::desired::names;

/// What was noted of the Pods when they were applied.
const NOTES: [&str; 2] = [names::APPLIED, names::RENDERED];

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
    for note in NOTES {
        let value = live.annotations().get(note);
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

    #[test]
    fn only_the_pods_stay_as_they_are() {
        let live: DynamicObject = serde_json::from_value(json!({
            "metadata": {"name": "hub", "annotations": {names::APPLIED: "old", names::RELOAD: "1"}},
            "spec": {"replicas": 1, "template": {"metadata": {"creationTimestamp": null}, "spec": {"image": "old"}}},
        }))
        .unwrap();
        let wanted = json!({
            "metadata": {"name": "hub", "annotations": {names::RELOAD: "2", names::RENDERED: "new"}},
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
