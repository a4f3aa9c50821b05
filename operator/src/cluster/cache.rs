//! The watched cache of every mirror's objects.
//!
//! A watch lags behind the operator's own writes, and a reconcile would repeat them: until the watch has caught up, the
//! response to the write counts.
//!
//! The cache keeps objects as text, apart from their metadata: a parsed tree takes ten times the memory, and most objects are
//! seldom read.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use kube::{
    ResourceExt,
    api::{DynamicObject, ObjectMeta},
    runtime::{
        reflector::{ObjectRef, Store, store::Writer},
        watcher::Event,
    },
};
use parking_lot::Mutex;

use super::{sync_gate::SyncGate, trim::trim};
use crate::{kind::Kind, names};

/// A kind, a namespace, and a mirror in that namespace.
type Group = (Kind, String, String);

/// The cache, by kind.
pub struct ObjectCache {
    stores: HashMap<Kind, Store<DynamicObject>>,
    written: Mutex<HashMap<ObjectRef<DynamicObject>, Arc<DynamicObject>>>,
    /// The names of each mirror's Pods and PVCs.
    members: Mutex<HashMap<Group, BTreeSet<String>>>,
    synced: SyncGate<Kind>,
}

impl ObjectCache {
    /// Creates an empty cache, and the writer of each kind.
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
                members: Mutex::default(),
                synced: SyncGate::new(Kind::ALL),
            }),
            writers,
        )
    }

    /// Waits until each kind was listed once.
    pub async fn wait_synced(&self) {
        self.synced.wait_synced().await;
    }

    /// Returns an object with the operator's label.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<DynamicObject>> {
        self.packed(kind, namespace, name).map(|packed| unpacked(&packed))
    }

    /// Returns the metadata of an object with the operator's label, without parsing the rest.
    pub fn metadata(&self, kind: Kind, namespace: &str, name: &str) -> Option<ObjectMeta> {
        self.packed(kind, namespace, name)
            .map(|packed| packed.metadata.clone())
    }

    fn packed(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<DynamicObject>> {
        let key = key(kind, namespace, name);
        let seen = self.stores.get(&kind)?.get(&key);
        let written = self.written.lock().get(&key).cloned();
        match (seen, written) {
            (Some(seen), Some(written)) if version(&written) > version(&seen) => Some(written),
            (seen, written) => seen.or(written),
        }
    }

    /// Returns all objects of a kind, parsed one after the other.
    pub fn every(&self, kind: Kind) -> impl Iterator<Item = Arc<DynamicObject>> {
        let packed = self.stores.get(&kind).map(Store::state).unwrap_or_default();
        packed.into_iter().map(|packed| unpacked(&packed))
    }

    /// Returns a mirror's Pods or PVCs, by their label.
    pub fn of_mirror(&self, kind: Kind, namespace: &str, mirror: &str) -> Vec<Arc<DynamicObject>> {
        let group = (kind, namespace.to_owned(), mirror.to_owned());
        let names = self.members.lock().get(&group).cloned().unwrap_or_default();
        let store = self.stores.get(&kind);
        let found = names
            .iter()
            .filter_map(|name| store?.get(&key(kind, namespace, name)));
        // An object that was deleted or relabelled while a watch was interrupted is in no event.
        let still = found.filter(|object| label(kind, object) == Some(mirror));
        still.map(|packed| unpacked(&packed)).collect()
    }

    /// Records the response to a write.
    pub(super) fn record_write(&self, kind: Kind, mut object: DynamicObject) -> Arc<DynamicObject> {
        trim(kind, &mut object);
        let answer = unpacked(&object);
        self.written.lock().insert(
            ObjectRef::from_obj_with(&object, kind.resource()),
            Arc::new(object),
        );
        answer
    }

    /// Forgets the writes that the watch has caught up with. Call it once the store has the event.
    pub(super) fn on_event(&self, kind: Kind, event: &Event<DynamicObject>) {
        self.update_members(kind, event);
        match event {
            Event::Apply(object) | Event::Delete(object) => {
                let key = ObjectRef::from_obj_with(object, kind.resource());
                let mut written = self.written.lock();
                if written
                    .get(&key)
                    .is_some_and(|written| version(written) <= version(object))
                {
                    written.remove(&key);
                }
            }
            // An object that was deleted while the watch was interrupted is in no event.
            Event::InitDone => {
                self.written
                    .lock()
                    .retain(|key, _| key.dyntype != kind.resource());
                self.synced.mark_synced(&kind);
            }
            Event::Init | Event::InitApply(_) => {}
        }
    }

    /// Updates the members of mirrors.
    fn update_members(&self, kind: Kind, event: &Event<DynamicObject>) {
        let (Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) = event else {
            return;
        };
        let Some(mirror) = label(kind, object) else { return };
        let group = (kind, object.namespace().unwrap_or_default(), mirror.to_owned());
        let mut members = self.members.lock();
        if !matches!(event, Event::Delete(_)) {
            members.entry(group).or_default().insert(object.name_any());
        } else if let Some(names) = members.get_mut(&group) {
            names.remove(&object.name_any());
            if names.is_empty() {
                members.remove(&group);
            }
        }
    }
}

/// Returns the mirror of a Pod or a PVC.
fn label(kind: Kind, object: &DynamicObject) -> Option<&str> {
    let label = match kind {
        Kind::Pod => names::INSTANCE,
        Kind::PersistentVolumeClaim => names::CACHE_OF,
        _ => return None,
    };
    object.labels().get(label).map(String::as_str)
}

fn key(kind: Kind, namespace: &str, name: &str) -> ObjectRef<DynamicObject> {
    ObjectRef::new_with(name, kind.resource()).within(namespace)
}

/// Returns the resource version: for one kind, a number that grows with each change.
fn version(object: &DynamicObject) -> u64 {
    object
        .metadata
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

/// Returns an object before it was packed.
fn unpacked(packed: &DynamicObject) -> Arc<DynamicObject> {
    let data = packed
        .data
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok());
    Arc::new(DynamicObject {
        types: None,
        metadata: packed.metadata.clone(),
        // `trim` wrote it as JSON.
        data: data.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn packing_keeps_the_object() {
        let mut object = DynamicObject::new("x-config", &Kind::ConfigMap.resource());
        let owner = json!({"apiVersion": "v1", "kind": "RegistryMirror", "name": "x", "uid": "1", "controller": true});
        object.metadata.owner_references = serde_json::from_value(json!([owner])).unwrap();
        object.data = json!({"data": {"a": "\"quoted\"\n"}, "immutable": false});
        let before = object.clone();
        trim(Kind::ConfigMap, &mut object);
        assert!(object.data.is_string());
        let after = unpacked(&object);
        assert_eq!(
            (&after.data, &after.metadata.name),
            (&before.data, &before.metadata.name)
        );
    }

    fn object(name: &str, version: u64) -> DynamicObject {
        let mut object = DynamicObject::new(name, &Kind::ConfigMap.resource()).within("ns");
        object.metadata.resource_version = Some(version.to_string());
        object
    }

    fn cache() -> (Arc<ObjectCache>, Writer<DynamicObject>) {
        let (cache, writers) = ObjectCache::new();
        let (_, writer) = writers
            .into_iter()
            .find(|(kind, _)| *kind == Kind::ConfigMap)
            .unwrap();
        (cache, writer)
    }

    fn see(cache: &ObjectCache, writer: &mut Writer<DynamicObject>, event: &Event<DynamicObject>) {
        writer.apply_watcher_event(event);
        cache.on_event(Kind::ConfigMap, event);
    }

    fn seen(cache: &ObjectCache) -> Option<u64> {
        cache
            .get(Kind::ConfigMap, "ns", "x")
            .map(|object| version(&object))
    }

    #[test]
    fn write_counts_until_the_watch_has_caught_up() {
        let (cache, mut writer) = cache();
        see(&cache, &mut writer, &Event::Apply(object("x", 5)));
        cache.record_write(Kind::ConfigMap, object("x", 7));
        assert_eq!(seen(&cache), Some(7));
        see(&cache, &mut writer, &Event::Apply(object("x", 6)));
        assert_eq!(seen(&cache), Some(7), "an older event came late");
        see(&cache, &mut writer, &Event::Apply(object("x", 9)));
        assert_eq!(seen(&cache), Some(9));
    }

    #[test]
    fn object_deleted_after_a_write_is_gone() {
        let (cache, mut writer) = cache();
        cache.record_write(Kind::ConfigMap, object("x", 7));
        see(&cache, &mut writer, &Event::Delete(object("x", 8)));
        assert_eq!(seen(&cache), None);
    }

    #[test]
    fn object_missing_in_a_relist_is_gone() {
        let (cache, mut writer) = cache();
        cache.record_write(Kind::ConfigMap, object("x", 7));
        see(&cache, &mut writer, &Event::Init);
        see(&cache, &mut writer, &Event::InitDone);
        assert_eq!(seen(&cache), None);
    }

    #[test]
    fn pods_are_found_by_their_mirror() {
        let (cache, writers) = ObjectCache::new();
        let mut writers = writers.into_iter();
        let (_, mut writer) = writers.find(|(kind, _)| *kind == Kind::Pod).unwrap();
        let pod = |name: &str, mirror: &str| {
            let mut pod = DynamicObject::new(name, &Kind::Pod.resource()).within("ns");
            pod.metadata.labels = Some([(names::INSTANCE.to_owned(), mirror.to_owned())].into());
            pod
        };
        let mut see = |event: Event<DynamicObject>| {
            writer.apply_watcher_event(&event);
            cache.on_event(Kind::Pod, &event);
        };
        let found = |namespace, mirror| {
            let pods = cache.of_mirror(Kind::Pod, namespace, mirror);
            pods.iter().map(|pod| pod.name_any()).collect::<Vec<_>>()
        };
        see(Event::Apply(pod("b", "hub")));
        see(Event::Apply(pod("a", "hub")));
        see(Event::Apply(pod("c", "hub-2")));
        assert_eq!(found("ns", "hub"), ["a", "b"]);
        assert_eq!(found("other", "hub"), [""; 0]);
        see(Event::Delete(pod("a", "hub")));
        see(Event::Apply(pod("b", "hub-2")));
        assert_eq!((found("ns", "hub"), found("ns", "hub-2").len()), (vec![], 2));
        see(Event::Init);
        see(Event::InitApply(pod("d", "hub")));
        see(Event::InitDone);
        assert_eq!(
            (found("ns", "hub"), found("ns", "hub-2").len()),
            (vec!["d".to_owned()], 0)
        );
    }
}
