//! The triggers of a reconcile: changes of a mirror, of its objects, and of the objects that its spec names.

use std::sync::Arc;

use crds::RegistryMirror;
use futures::{
    Stream, StreamExt, TryStreamExt,
    channel::mpsc::{UnboundedSender, unbounded},
    stream,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Client, Resource, ResourceExt,
    api::{DynamicObject, PartialObjectMeta},
    core::{DeserializeGuard, NamespaceResourceScope},
    runtime::{
        PredicateConfig, WatchStreamExt,
        controller::{ReconcileReason, ReconcileRequest, trigger_self, trigger_with},
        predicates,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{self, Event},
    },
};

use super::{Scope, cache::ObjectCache, reference_index::ReferenceIndex, trim::trim, watch_backoff::follow};
use crate::{dereference::Reference, kind::Kind, mirror_key::MirrorKey, names};

/// The number of objects in a page of a list: before they are packed they take ten times the memory, and the allocator does
/// not return all of it.
const PAGE: u32 = 100;

/// A stored mirror, which may be of a version that no longer parses.
pub type StoredMirror = DeserializeGuard<RegistryMirror>;

/// A request to reconcile a mirror.
pub type Trigger = Result<ReconcileRequest<StoredMirror>, watcher::Error>;

/// Returns the request to reconcile a mirror.
pub fn request(mirror: &MirrorKey, reason: impl Into<String>) -> ReconcileRequest<StoredMirror> {
    ReconcileRequest {
        obj_ref: mirror.object_ref(),
        reason: ReconcileReason::Custom {
            reason: reason.into(),
        },
    }
}

/// Watches the mirrors. A change of status or metadata alone is no trigger: the operator writes those itself.
pub fn mirrors<F>(
    client: &Client,
    scope: &Scope,
    writer: Writer<StoredMirror>,
    on_event: F,
) -> impl Stream<Item = Trigger> + Send + use<F>
where
    F: Fn(&Event<StoredMirror>) + Send + 'static,
{
    let api = scope.api::<StoredMirror>(client.clone());
    let stream = follow("RegistryMirror".to_owned(), api, watcher::Config::default())
        .modify(|mirror| {
            // No step reads them, and a user can put a quarter of a megabyte there.
            mirror.managed_fields_mut().clear();
            mirror.annotations_mut().clear();
        })
        .reflect(writer)
        .inspect_ok(on_event)
        .applied_objects()
        .predicate_filter(predicates::generation, PredicateConfig::default());
    trigger_self(stream, ())
}

/// Triggers all mirrors when an interrupted watch has listed again, because objects that were deleted in the meantime are in no
/// event.
#[derive(Clone)]
pub struct RelistTrigger(UnboundedSender<()>);

impl RelistTrigger {
    /// Creates a notifier, and the stream of its triggers.
    pub fn new(mirrors: Store<StoredMirror>) -> (Self, impl Stream<Item = Trigger> + Send + use<>) {
        let (sender, receiver) = unbounded();
        let triggers = receiver.flat_map(move |()| {
            let all = mirrors.state().into_iter().map(|mirror| {
                Ok(ReconcileRequest {
                    obj_ref: ObjectRef::from_obj(&*mirror),
                    reason: ReconcileReason::BulkReconcile,
                })
            });
            stream::iter(all.collect::<Vec<_>>())
        });
        (Self(sender), triggers)
    }

    /// Returns an observer of one watch, which ignores the first list.
    fn watch<K>(&self) -> impl FnMut(&Event<K>) + Send + use<K> {
        let (relisted, mut listed) = (self.0.clone(), false);
        move |event| {
            if matches!(event, Event::InitDone) && std::mem::replace(&mut listed, true) {
                // The receiver is dropped once the controller ends.
                let _ = relisted.unbounded_send(());
            }
        }
    }
}

/// Watches the objects that belong to mirrors.
pub fn children(
    client: &Client,
    scope: &Scope,
    relisted: &RelistTrigger,
    cache: &Arc<ObjectCache>,
    writers: Vec<(Kind, Writer<DynamicObject>)>,
) -> impl Stream<Item = Trigger> + Send + use<> {
    let config = watcher::Config::default()
        .labels(&format!("{}={}", names::MANAGED_BY.0, names::MANAGED_BY.1))
        .page_size(PAGE);
    stream::select_all(writers.into_iter().map(|(kind, writer)| {
        let cache = Arc::clone(cache);
        let mut gap = relisted.watch();
        let api = scope.children(client.clone(), kind);
        let stream = follow(kind.to_string(), api, config.clone())
            .modify(move |object| trim(kind, object))
            .reflect(writer)
            .inspect_ok(move |event| {
                cache.on_event(kind, event);
                gap(event);
            })
            .touched_objects();
        match kind {
            // The status of the workload triggers for its Pods.
            Kind::Pod => stream.try_filter_map(|_| async { Ok(None) }).boxed(),
            // A retained PVC has no owner.
            Kind::PersistentVolumeClaim => trigger_with(stream, |claim| mirror_of_claim(&claim)).boxed(),
            _ => trigger_with(stream, |object| mirrors_of(&object)).boxed(),
        }
    }))
}

/// Returns the mirrors that own an object, or the mirror in its label if it has no owner.
fn mirrors_of(object: &DynamicObject) -> Vec<ObjectRef<StoredMirror>> {
    let Some(namespace) = object.namespace() else {
        return Vec::new();
    };
    let owners = object.owner_references().iter();
    let owners = owners.filter(|owner| owner.kind == RegistryMirror::kind(&()));
    let owners = owners.map(|owner| owner.name.as_str());
    let made_for = object.labels().get(names::INSTANCE).map(String::as_str);
    let made_for = made_for.filter(|_| object.owner_references().is_empty());
    owners
        .chain(made_for)
        .map(|mirror| ObjectRef::new(mirror).within(&namespace))
        .collect()
}

fn mirror_of_claim(claim: &DynamicObject) -> Option<ObjectRef<StoredMirror>> {
    let mirror = claim.labels().get(names::CACHE_OF)?;
    Some(ObjectRef::new(mirror).within(&claim.namespace()?))
}

/// Watches the metadata of all Secrets and `ConfigMap`s, because a spec may name any of them. Their content is read only for a
/// mirror that names them.
pub fn references(
    client: &Client,
    scope: &Scope,
    relisted: &RelistTrigger,
    index: &Arc<ReferenceIndex>,
) -> impl Stream<Item = Trigger> + Send + use<> {
    // Helm keeps each release in a Secret, up to a megabyte of it.
    let secrets = watcher::Config::default().fields("type!=helm.sh/release.v1");
    let secrets = metadata::<Secret>(client, scope, secrets, relisted, index, Reference::secret);
    let maps = metadata::<ConfigMap>(
        client,
        scope,
        watcher::Config::default(),
        relisted,
        index,
        Reference::config_map,
    );
    stream::select(secrets, maps)
}

fn metadata<K>(
    client: &Client,
    scope: &Scope,
    config: watcher::Config,
    relisted: &RelistTrigger,
    index: &Arc<ReferenceIndex>,
    reference: fn(&str) -> Reference,
) -> impl Stream<Item = Trigger> + Send + use<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let index = Arc::clone(index);
    let api = scope.api::<PartialObjectMeta<K>>(client.clone());
    let stream = follow(K::kind(&()).into_owned(), api, config)
        .inspect_ok(relisted.watch())
        .touched_objects();
    trigger_with(stream, move |object| {
        let (namespace, reference) = (
            object.namespace().unwrap_or_default(),
            reference(&object.name_any()),
        );
        let mirrors = index.mirrors_with(&namespace, &reference);
        mirrors
            .into_iter()
            .map(move |mirror| request(&mirror, format!("{reference} changed")))
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::json;

    use super::*;

    fn mirrors(names: &[&str]) -> Store<StoredMirror> {
        let mut writer = Writer::default();
        for name in names {
            let object = json!({"metadata": {"name": name, "namespace": "mirrors"}, "spec": {}});
            writer.apply_watcher_event(&Event::Apply(serde_json::from_value(object).unwrap()));
        }
        writer.as_reader()
    }

    #[test]
    fn relist_triggers_every_mirror_first_list_none() {
        let (relisted, triggers) = RelistTrigger::new(mirrors(&["a", "b"]));
        let mut triggers = Box::pin(triggers);
        let mut watch = relisted.watch::<Secret>();
        watch(&Event::InitDone);
        assert!(triggers.next().now_or_never().is_none());
        watch(&Event::Init);
        watch(&Event::InitDone);
        let mut next = || {
            let trigger = triggers.next().now_or_never()??;
            Some(trigger.unwrap().obj_ref.name)
        };
        let mut names = [next().unwrap(), next().unwrap()];
        names.sort();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(next(), None);
    }
}
