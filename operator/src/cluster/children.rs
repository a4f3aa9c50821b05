//! Watched copies of every mirror's objects.
//!
//! A copy lags behind what was written a moment ago, and acting on it would write the same thing again: until a watch
//! has caught up, the API server's answer to the write counts.
//!
//! A tree of JSON takes ten times the room of its text, and most objects are seldom looked at: metadata apart, copies are
//! kept as text.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::{
    ResourceExt,
    api::{DynamicObject, ObjectMeta},
    runtime::{
        reflector::{ObjectRef, Store, store::Writer},
        watcher::Event,
    },
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::listed::Listed;
use crate::{desired::names, kind::Kind};

/// A kind, a namespace, and a mirror in it.
type Group = (Kind, String, String);

/// The copies, by kind.
pub struct Children {
    stores: HashMap<Kind, Store<DynamicObject>>,
    written: Mutex<HashMap<ObjectRef<DynamicObject>, Arc<DynamicObject>>>,
    /// The names of each mirror's Pods and claims.
    members: Mutex<HashMap<Group, BTreeSet<String>>>,
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
                members: Mutex::default(),
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
        self.packed(kind, namespace, name).map(|packed| unpacked(&packed))
    }

    /// Returns an object's metadata, if it is the operator's, at no cost of reading the rest.
    pub fn metadata(&self, kind: Kind, namespace: &str, name: &str) -> Option<ObjectMeta> {
        self.packed(kind, namespace, name)
            .map(|packed| packed.metadata.clone())
    }

    fn packed(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<DynamicObject>> {
        let key = key(kind, namespace, name);
        let seen = self.stores.get(&kind)?.get(&key);
        let written = self.written().get(&key).cloned();
        match (seen, written) {
            (Some(seen), Some(written)) if version(&written) > version(&seen) => Some(written),
            (seen, written) => seen.or(written),
        }
    }

    /// All objects of a kind, one after the other.
    pub fn every(&self, kind: Kind) -> impl Iterator<Item = Arc<DynamicObject>> {
        let packed = self.stores.get(&kind).map(Store::state).unwrap_or_default();
        packed.into_iter().map(|packed| unpacked(&packed))
    }

    /// A mirror's Pods or claims, by their label: how many there are no spec says.
    pub fn of_mirror(&self, kind: Kind, namespace: &str, mirror: &str) -> Vec<Arc<DynamicObject>> {
        let group = (kind, namespace.to_owned(), mirror.to_owned());
        let names = self.members().get(&group).cloned().unwrap_or_default();
        let store = self.stores.get(&kind);
        let found = names
            .iter()
            .filter_map(|name| store?.get(&key(kind, namespace, name)));
        // What was deleted or given another label while a watch was cut is in no event.
        let still = found.filter(|object| label(kind, object) == Some(mirror));
        still.map(|packed| unpacked(&packed)).collect()
    }

    /// Remembers what a write led to.
    pub(super) fn wrote(&self, kind: Kind, mut object: DynamicObject) -> Arc<DynamicObject> {
        trim(kind, &mut object);
        let answer = unpacked(&object);
        self.written().insert(
            ObjectRef::from_obj_with(&object, kind.resource()),
            Arc::new(object),
        );
        answer
    }

    /// Forgets what the watch has caught up with. To be called once the copy has the event.
    pub(super) fn caught_up(&self, kind: Kind, event: &Event<DynamicObject>) {
        self.group(kind, event);
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

    /// Keeps the groups in step with the copies.
    fn group(&self, kind: Kind, event: &Event<DynamicObject>) {
        let (Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) = event else {
            return;
        };
        let Some(mirror) = label(kind, object) else { return };
        let group = (kind, object.namespace().unwrap_or_default(), mirror.to_owned());
        let mut members = self.members();
        if !matches!(event, Event::Delete(_)) {
            members.entry(group).or_default().insert(object.name_any());
        } else if let Some(names) = members.get_mut(&group) {
            names.remove(&object.name_any());
            if names.is_empty() {
                members.remove(&group);
            }
        }
    }

    fn members(&self) -> MutexGuard<'_, HashMap<Group, BTreeSet<String>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, HashMap<ObjectRef<DynamicObject>, Arc<DynamicObject>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose an object is, of the kinds that are looked up by that.
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

/// The API server's versions of one kind are numbers that grow.
fn version(object: &DynamicObject) -> u64 {
    object
        .metadata
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

/// Drops what is never looked at, and what should not lie in memory: of a Secret only hashes are kept. The rest is packed.
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
    // Whoever looks knows the kind.
    object.types = None;
    object.data = Value::String(object.data.to_string());
}

/// An object as it was before it was packed.
fn unpacked(packed: &DynamicObject) -> Arc<DynamicObject> {
    let data = packed
        .data
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok());
    Arc::new(DynamicObject {
        types: None,
        metadata: packed.metadata.clone(),
        // What was written as JSON can be read as JSON.
        data: data.unwrap_or_default(),
    })
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

    #[test]
    fn an_object_is_the_same_after_it_was_packed() {
        let mut object = DynamicObject::new("x", &Kind::ConfigMap.resource());
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
    fn pods_are_found_by_their_mirror_until_they_are_gone_or_anothers() {
        let (children, writers) = Children::new();
        let mut writers = writers.into_iter();
        let (_, mut writer) = writers.find(|(kind, _)| *kind == Kind::Pod).unwrap();
        let pod = |name: &str, mirror: &str| {
            let mut pod = DynamicObject::new(name, &Kind::Pod.resource()).within("ns");
            pod.metadata.labels = Some([(names::INSTANCE.to_owned(), mirror.to_owned())].into());
            pod
        };
        let mut see = |event: Event<DynamicObject>| {
            writer.apply_watcher_event(&event);
            children.caught_up(Kind::Pod, &event);
        };
        let found = |namespace, mirror| {
            let pods = children.of_mirror(Kind::Pod, namespace, mirror);
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

    #[test]
    fn nothing_of_a_secrets_value_is_kept() {
        let mut secret = DynamicObject::new("s", &Kind::Secret.resource());
        secret.data = json!({"data": {"password": "aHVudGVyMg=="}});
        trim(Kind::Secret, &mut secret);
        let text = serde_json::to_string(&*unpacked(&secret)).unwrap();
        assert!(!text.contains("aHVudGVyMg"), "{text}");
        assert!(text.contains("password"), "{text}");
    }
}
