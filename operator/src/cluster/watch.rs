//! What makes the operator look at a mirror again: the mirror, its objects, and whatever its spec points to.

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

use super::{
    Scope,
    children::{Children, trim},
    follow::follow,
};
use crate::{dereference::Reference, desired::names, index::Index, kind::Kind};

/// So many objects are listed at a time: before they are packed they take ten times the room, and what was taken once is
/// not always given back.
const PAGE: u32 = 100;

/// A mirror as it is stored, which may be by a version that no longer parses.
pub type Stored = DeserializeGuard<RegistryMirror>;

/// A mirror that something happened to.
pub type Trigger = Result<ReconcileRequest<Stored>, watcher::Error>;

/// Follows the mirrors. A change of nothing but status or metadata is no trigger: the operator writes those itself.
pub fn mirrors<F>(
    client: &Client,
    scope: &Scope,
    writer: Writer<Stored>,
    seen: F,
) -> impl Stream<Item = Trigger> + Send + use<F>
where
    F: Fn(&Event<Stored>) + Send + 'static,
{
    let api = scope.api::<Stored>(client.clone());
    let stream = follow("RegistryMirror".to_owned(), api, watcher::Config::default())
        .modify(|mirror| mirror.managed_fields_mut().clear())
        .reflect(writer)
        .inspect_ok(seen)
        .applied_objects()
        .predicate_filter(predicates::generation, PredicateConfig::default());
    trigger_self(stream, ())
}

/// Tells that a watch was cut and everything listed anew: what was deleted meanwhile is in no event, so that every
/// mirror has to be looked at.
#[derive(Clone)]
pub struct Relisted(UnboundedSender<()>);

impl Relisted {
    /// What tells, and the triggers of all mirrors of the store whenever it does.
    pub fn new(mirrors: Store<Stored>) -> (Self, impl Stream<Item = Trigger> + Send + use<>) {
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

    /// Watches the events of one watch. The first list is none that came after a gap.
    fn watch<K>(&self) -> impl FnMut(&Event<K>) + Send + use<K> {
        let (relisted, mut listed) = (self.0.clone(), false);
        move |event| {
            if matches!(event, Event::InitDone) && std::mem::replace(&mut listed, true) {
                // Nobody listens any more once the controller ends.
                let _ = relisted.unbounded_send(());
            }
        }
    }
}

/// Follows the objects that belong to mirrors.
pub fn children(
    client: &Client,
    scope: &Scope,
    relisted: &Relisted,
    children: &Arc<Children>,
    writers: Vec<(Kind, Writer<DynamicObject>)>,
) -> impl Stream<Item = Trigger> + Send + use<> {
    let config = watcher::Config::default()
        .labels(&format!("{}={}", names::MANAGED_BY.0, names::MANAGED_BY.1))
        .page_size(PAGE);
    stream::select_all(writers.into_iter().map(|(kind, writer)| {
        let children = Arc::clone(children);
        let mut gap = relisted.watch();
        let api = scope.children(client.clone(), kind);
        let stream = follow(kind.to_string(), api, config.clone())
            .modify(move |object| trim(kind, object))
            .reflect(writer)
            .inspect_ok(move |event| {
                children.caught_up(kind, event);
                gap(event);
            })
            .touched_objects();
        match kind {
            // A Pod belongs to its workload, whose status tells what matters of it.
            Kind::Pod => stream.try_filter_map(|_| async { Ok(None) }).boxed(),
            // A retained claim has no owner.
            Kind::PersistentVolumeClaim => trigger_with(stream, |claim| mirror_of_claim(&claim)).boxed(),
            _ => trigger_with(stream, |object| mirrors_of(&object)).boxed(),
        }
    }))
}

/// Its owners; of one whose owner was taken off, the mirror that it was made for.
fn mirrors_of(object: &DynamicObject) -> Vec<ObjectRef<Stored>> {
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

fn mirror_of_claim(claim: &DynamicObject) -> Option<ObjectRef<Stored>> {
    let mirror = claim.labels().get(names::CACHE_OF)?;
    Some(ObjectRef::new(mirror).within(&claim.namespace()?))
}

/// Follows the metadata of all Secrets and `ConfigMap`s, as any of them may be one that a mirror points to: their
/// contents are read only when one is.
pub fn references(
    client: &Client,
    scope: &Scope,
    relisted: &Relisted,
    index: &Arc<Index>,
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
    relisted: &Relisted,
    index: &Arc<Index>,
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
        let mirrors = index.referring_to(&namespace, &reference);
        mirrors.into_iter().map(move |mirror| ReconcileRequest {
            obj_ref: ObjectRef::new(&mirror).within(&namespace),
            reason: ReconcileReason::Custom {
                reason: format!("{reference} changed"),
            },
        })
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::json;

    use super::*;

    fn mirrors(names: &[&str]) -> Store<Stored> {
        let mut writer = Writer::default();
        for name in names {
            let object = json!({"metadata": {"name": name, "namespace": "mirrors"}, "spec": {}});
            writer.apply_watcher_event(&Event::Apply(serde_json::from_value(object).unwrap()));
        }
        writer.as_reader()
    }

    #[test]
    fn a_list_after_a_gap_triggers_every_mirror_and_the_first_list_none() {
        let (relisted, triggers) = Relisted::new(mirrors(&["a", "b"]));
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
