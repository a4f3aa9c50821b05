//! Watched copies of every mirror's objects.
//!
//! A copy lags behind what was written a moment ago, and acting on it would write the same thing again: until a watch
//! has caught up, the API server's answer to the write counts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use kube::{
    ResourceExt,
    api::DynamicObject,
    runtime::{
        reflector::{ObjectRef, Store, store::Writer},
        watcher::Event,
    },
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::listed::Listed;
use crate::kind::Kind;

/// The copies, by kind.
pub struct Children {
    stores: HashMap<Kind, Store<DynamicObject>>,
    written: Mutex<HashMap<ObjectRef<DynamicObject>, Arc<DynamicObject>>>,
    listed: Listed<Kind>,
}

impl Children {
    /// Empty copies, and for each kind what fills them.
    pub fn new() -> (Arc<Self>, Vec<(Kind, Writer<DynamicObject>)>) {
        let writers: Vec<_> = Kind::ALL
            .into_iter()
            .map(|kind| (kind, Writer::new(kind.resource())))
            .collect();
        let stores = writers
            .iter()
            .map(|(kind, writer)| (*kind, writer.as_reader()))
            .collect();
        (
            Arc::new(Self {
                stores,
                written: Mutex::default(),
                listed: Listed::new(Kind::ALL),
            }),
            writers,
        )
    }

    /// Waits until each kind was listed once.
    pub async fn ready(&self) {
        self.listed.all().await;
    }

    /// An object, if it is the operator's.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<DynamicObject>> {
        let key = key(kind, namespace, name);
        let seen = self.stores.get(&kind)?.get(&key);
        let written = self.written().get(&key).cloned();
        match (seen, written) {
            (Some(seen), Some(written)) if version(&written) > version(&seen) => Some(written),
            (seen, written) => seen.or(written),
        }
    }

    /// The objects of a kind in a namespace that have a label.
    pub fn labelled(&self, kind: Kind, namespace: &str, label: (&str, &str)) -> Vec<Arc<DynamicObject>> {
        let Some(store) = self.stores.get(&kind) else {
            return Vec::new();
        };
        store.state_filter(|object| {
            object.metadata.namespace.as_deref() == Some(namespace)
                && object
                    .metadata
                    .labels
                    .as_ref()
                    .and_then(|labels| labels.get(label.0))
                    .map(String::as_str)
                    == Some(label.1)
        })
    }

    /// Remembers what a write led to.
    pub(super) fn wrote(&self, kind: Kind, mut object: DynamicObject) -> Arc<DynamicObject> {
        trim(kind, &mut object);
        let object = Arc::new(object);
        self.written().insert(
            ObjectRef::from_obj_with(&*object, kind.resource()),
            Arc::clone(&object),
        );
        object
    }

    /// Forgets what the watch has caught up with. To be called once the copy has the event.
    pub(super) fn caught_up(&self, kind: Kind, event: &Event<DynamicObject>) {
        match event {
            Event::Apply(object) | Event::Delete(object) => {
                let key = ObjectRef::from_obj_with(object, kind.resource());
                let mut written = self.written();
                if written
                    .get(&key)
                    .is_some_and(|written| version(written) <= version(object))
                {
                    written.remove(&key);
                }
            }
            // What vanished while the watch was cut is in no event.
            Event::InitDone => {
                self.written().retain(|key, _| key.dyntype != kind.resource());
                self.listed.done(&kind);
            }
            Event::Init | Event::InitApply(_) => {}
        }
    }

    fn written(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectRef<DynamicObject>, Arc<DynamicObject>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(kind: Kind, namespace: &str, name: &str) -> ObjectRef<DynamicObject> {
    ObjectRef::new_with(name, kind.resource()).within(namespace)
}

/// The API server's versions of one kind are numbers that grow.
fn version(object: &DynamicObject) -> u64 {
    object
        .metadata
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

/// Drops what is never looked at, and what should not lie in memory: of a Secret only hashes are kept.
pub(super) fn trim(kind: Kind, object: &mut DynamicObject) {
    object.managed_fields_mut().clear();
    match kind {
        Kind::Secret => fingerprint(&mut object.data),
        Kind::Pod => {
            if let Some(pod) = object.data.as_object_mut() {
                pod.remove("spec");
            }
        }
        _ => {}
    }
}

/// Replaces each value of a Secret's `data` by its hash, so that two Secrets can be compared by what is left.
pub(crate) fn fingerprint(secret: &mut Value) {
    let Some(data) = secret.get_mut("data").and_then(Value::as_object_mut) else {
        return;
    };
    for value in data.values_mut() {
        *value = json!(hex::encode(Sha256::digest(value.as_str().unwrap_or_default())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, version: u64) -> DynamicObject {
        let mut object = DynamicObject::new(name, &Kind::ConfigMap.resource()).within("ns");
        object.metadata.resource_version = Some(version.to_string());
        object.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
        object
    }

    fn children() -> (Arc<Children>, Writer<DynamicObject>) {
        let (children, writers) = Children::new();
        let (_, writer) = writers
            .into_iter()
            .find(|(kind, _)| *kind == Kind::ConfigMap)
            .unwrap();
        (children, writer)
    }

    fn see(children: &Children, writer: &mut Writer<DynamicObject>, event: &Event<DynamicObject>) {
        writer.apply_watcher_event(event);
        children.caught_up(Kind::ConfigMap, event);
    }

    fn seen(children: &Children) -> Option<u64> {
        children
            .get(Kind::ConfigMap, "ns", "x")
            .map(|object| version(&object))
    }

    #[test]
    fn a_write_counts_until_the_watch_has_caught_up() {
        let (children, mut writer) = children();
        see(&children, &mut writer, &Event::Apply(object("x", 5)));
        children.wrote(Kind::ConfigMap, object("x", 7));
        assert_eq!(seen(&children), Some(7));
        see(&children, &mut writer, &Event::Apply(object("x", 6)));
        assert_eq!(seen(&children), Some(7), "an older event came late");
        see(&children, &mut writer, &Event::Apply(object("x", 9)));
        assert_eq!(seen(&children), Some(9));
    }

    #[test]
    fn what_was_deleted_after_the_write_is_gone() {
        let (children, mut writer) = children();
        children.wrote(Kind::ConfigMap, object("x", 7));
        see(&children, &mut writer, &Event::Delete(object("x", 8)));
        assert_eq!(seen(&children), None);
    }

    #[test]
    fn what_a_new_list_does_not_have_is_gone() {
        let (children, mut writer) = children();
        children.wrote(Kind::ConfigMap, object("x", 7));
        see(&children, &mut writer, &Event::Init);
        see(&children, &mut writer, &Event::InitDone);
        assert_eq!(seen(&children), None);
    }

    #[test]
    fn objects_are_found_by_label_within_their_namespace() {
        let (children, mut writer) = children();
        see(&children, &mut writer, &Event::Apply(object("x", 1)));
        let found = |namespace, value| children.labelled(Kind::ConfigMap, namespace, ("a", value)).len();
        assert_eq!(
            (found("ns", "b"), found("ns", "c"), found("other", "b")),
            (1, 0, 0)
        );
    }

    #[test]
    fn nothing_of_a_secrets_value_is_kept() {
        let mut secret = DynamicObject::new("s", &Kind::Secret.resource());
        secret.data = json!({"data": {"password": "aHVudGVyMg=="}});
        trim(Kind::Secret, &mut secret);
        let text = serde_json::to_string(&secret).unwrap();
        assert!(!text.contains("aHVudGVyMg"), "{text}");
        assert!(text.contains("password"), "{text}");
    }
}
