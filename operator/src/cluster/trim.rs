//! Reduces objects to what the operator reads of them, before they are stored.
//!
//! A user may set the operator's label on any object, and change the objects of a mirror. So the cache keeps the content of an
//! object only if a mirror controls it under the name that the operator gives, and values that the operator only compares as
//! hashes.

use kube::api::{DynamicObject, ObjectMeta};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{desired::config, kind::Kind, names};

/// The length in bytes from which a value that is only compared is kept as a hash.
const MAX_VALUE: usize = 256;
/// The maximum length in bytes of a configuration, which the operator reads.
const MAX_CONFIGURATION: usize = 1 << 20;
/// The maximum length in bytes of the source of a Pod template, which the operator reads.
const MAX_SOURCE: usize = 4 << 10;
/// The maximum number of owners of an object.
const MAX_OWNERS: usize = 32;

/// Drops the fields that are never read and replaces values by hashes, then packs the object.
pub(super) fn trim(kind: Kind, object: &mut DynamicObject) {
    let is_of_mirror = names::is_of_mirror(kind, &object.metadata);
    trim_metadata(&mut object.metadata);
    if !is_of_mirror {
        trim_annotations(&mut object.metadata);
    }
    if kind == Kind::Pod {
        let status = &object.data["status"];
        object.data = json!({"status": {"phase": status["phase"], "podIP": status["podIP"]}});
    } else if !is_of_mirror {
        object.data = json!({});
    }
    if let Some(annotations) = &mut object.metadata.annotations {
        for (name, value) in annotations.iter_mut() {
            fingerprint_annotation(name, value);
        }
    }
    fingerprint_data(kind, &mut object.data);
    // The caller knows the kind.
    object.types = None;
    object.data = Value::String(object.data.to_string());
}

/// Keeps the labels and owners by which the operator finds an object.
fn trim_metadata(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    metadata.finalizers = None;
    if let Some(labels) = &mut metadata.labels {
        labels.retain(|name, _| names::is_own_label(name));
    }
    if let Some(owners) = &mut metadata.owner_references {
        owners.sort_by_key(|owner| owner.controller != Some(true));
        owners.truncate(MAX_OWNERS);
    }
}

/// Keeps the annotations of the operator, by which it adopts an object and notifies a Pod.
fn trim_annotations(metadata: &mut ObjectMeta) {
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|name, _| names::is_own_annotation(name));
    }
}

/// Replaces the values of a manifest that [`trim`] replaces in the object, so that the two can be compared.
pub(crate) fn fingerprint(kind: Kind, manifest: &mut Value) {
    let annotations = manifest
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut);
    for (name, value) in annotations.into_iter().flatten() {
        if let Value::String(text) = value {
            fingerprint_annotation(name, text);
        }
    }
    fingerprint_data(kind, manifest);
}

fn fingerprint_annotation(name: &str, value: &mut String) {
    let source = &names::POD_TEMPLATE_SOURCE;
    let is_read = [source.current, source.former].contains(&name);
    let max = if is_read { MAX_SOURCE } else { MAX_VALUE };
    if value.len() > max {
        *value = hash(value);
    }
}

/// Replaces each value of a Secret, and long ones of a `ConfigMap`, except for the servers' configuration.
fn fingerprint_data(kind: Kind, object: &mut Value) {
    if !matches!(kind, Kind::Secret | Kind::ConfigMap) {
        return;
    }
    for field in ["data", "binaryData"] {
        let data = object.get_mut(field).and_then(Value::as_object_mut);
        for (key, value) in data.into_iter().flatten() {
            let max = match (kind, key.as_str()) {
                (Kind::Secret, _) => 0,
                (_, config::FILE | config::LAST_GOOD) => MAX_CONFIGURATION,
                _ => MAX_VALUE,
            };
            let text = value.as_str().unwrap_or_default();
            if kind == Kind::Secret || text.len() > max {
                *value = json!(hash(text));
            }
        }
    }
}

fn hash(value: &str) -> String {
    hex::encode(Sha256::digest(value))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    /// Returns an object with the operator's label and half a megabyte in each place that a user can fill.
    fn large(kind: Kind, name: &str) -> DynamicObject {
        let text = "x".repeat(500_000);
        let mut object = DynamicObject::new(name, &kind.resource()).within("ns");
        object.metadata.labels = Some(names::labels("hub"));
        let labels = object.metadata.labels.get_or_insert_default();
        labels.extend((0..2000).map(|i| (format!("label-{i}"), "x".repeat(60))));
        let annotations = object.metadata.annotations.get_or_insert_default();
        annotations.insert("pad".to_owned(), text.clone());
        annotations.insert("registrymirror.io/pad".to_owned(), text.clone());
        annotations.insert(names::APPLIED.to_owned(), text.clone());
        object.metadata.finalizers = Some(vec![text.clone()]);
        let container = json!({"name": "c", "env": [{"name": "A", "value": text}]});
        object.data = json!({
            "data": {"k": text, "config.yml": text}, "binaryData": {"b": text}, "status": {"message": text, "phase": "Running"},
            "spec": {"template": {"spec": {"containers": [container]}}, "containers": [container], "externalName": text},
        });
        object
    }

    fn size(object: &DynamicObject) -> usize {
        let data = object.data.as_str().unwrap_or_default();
        json!(object.metadata).to_string().len() + data.len()
    }

    /// An object with the operator's label that no mirror controls takes a few kilobytes, whatever its user puts into it.
    #[test]
    fn labelled_object_of_a_user_is_small() {
        for kind in Kind::ALL {
            let mut object = large(kind, "hub-config");
            trim(kind, &mut object);
            assert!(size(&object) < 8 << 10, "{kind}: {} bytes", size(&object));
            assert_eq!(object.metadata.labels, Some(names::labels("hub")), "{kind}");
        }
    }

    fn owned(mut object: DynamicObject, mirror: &str) -> DynamicObject {
        let owner = json!({
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror", "name": mirror, "uid": "1", "controller": true,
        });
        object.metadata.owner_references = serde_json::from_value(json!([owner])).unwrap();
        object
    }

    /// An object that a user gives a mirror as owner counts only under a name of that mirror's objects.
    #[test_case(Kind::ConfigMap, "hub-config", true)]
    #[test_case(Kind::Deployment, "hub", true)]
    #[test_case(Kind::Service, "hub-headless", true)]
    #[test_case(Kind::ConfigMap, "other-config", false)]
    #[test_case(Kind::Deployment, "hub-config", false)]
    fn content_is_kept_under_its_own_name(kind: Kind, name: &str, is_kept: bool) {
        let mut object = owned(DynamicObject::new(name, &kind.resource()), "hub");
        object.data = json!({"data": {"a": "b"}});
        trim(kind, &mut object);
        assert_eq!(object.data != json!("{}"), is_kept);
    }

    /// Large values of a user in a `ConfigMap` of a mirror are hashes.
    #[test]
    fn large_values_of_a_config_map_are_hashes() {
        let mut object = owned(large(Kind::ConfigMap, "hub-hosts"), "hub");
        object.data = json!({"data": {"k": "x".repeat(500_000)}, "binaryData": {"b": "x".repeat(500_000)}});
        object.metadata.labels = Some(names::labels("hub"));
        object.metadata.annotations = Some([("pad".to_owned(), "x".repeat(200_000))].into());
        object.metadata.finalizers = None;
        trim(Kind::ConfigMap, &mut object);
        assert!(size(&object) < 2 << 10, "{} bytes", size(&object));
    }

    /// The configuration is read, so it stays as it is.
    #[test]
    fn configuration_is_kept() {
        let yaml = "a: b\n".repeat(10_000);
        let mut object = owned(
            DynamicObject::new("hub-config", &Kind::ConfigMap.resource()),
            "hub",
        );
        object.data = json!({"data": {config::FILE: yaml, config::LAST_GOOD: yaml}});
        let before = object.data.clone();
        trim(Kind::ConfigMap, &mut object);
        assert_eq!(object.data, json!(before.to_string()));
    }

    #[test]
    fn secret_values_are_not_cached() {
        let mut secret = owned(DynamicObject::new("hub-files", &Kind::Secret.resource()), "hub");
        secret.data = json!({"data": {"password": "aHVudGVyMg=="}});
        trim(Kind::Secret, &mut secret);
        let text = secret.data.as_str().unwrap();
        assert!(!text.contains("aHVudGVyMg"), "{text}");
        assert!(text.contains("password"), "{text}");
    }

    /// A long annotation of a manifest equals that of the stored object.
    #[test]
    fn long_annotation_is_compared_by_its_hash() {
        let manifest =
            json!({"metadata": {"name": "hub", "annotations": {"a": "x".repeat(1000), "b": "short"}}});
        let mut object: DynamicObject = serde_json::from_value(manifest.clone()).unwrap();
        object = owned(object, "hub");
        trim(Kind::Service, &mut object);
        let mut compared = manifest;
        fingerprint(Kind::Service, &mut compared);
        let kept = serde_json::to_value(object.metadata.annotations).unwrap();
        assert_eq!(kept, compared["metadata"]["annotations"]);
        assert_eq!(kept["b"], "short");
        assert_eq!(kept["a"].as_str().map(str::len), Some(64));
    }
}
