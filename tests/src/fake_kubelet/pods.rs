//! The Pods of this kubelet: it binds the unbound Pods of its namespaces to its node.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use kube::ResourceExt;
use kube::api::{ObjectMeta, PostParams};
use kube::core::Status;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Kubelet, pod};

/// A Pod that runs here; dropped, its processes end.
struct Worker {
    seen: watch::Sender<Arc<Pod>>,
    _task: AbortOnDropHandle<()>,
}

/// Follows the Pods for ever.
pub(super) async fn follow(kubelet: Arc<Kubelet>) {
    let mut workers: HashMap<String, Worker> = HashMap::new();
    let mut listed: Vec<String> = Vec::new();
    let mut events = watcher(kubelet.api::<Pod>(), watcher::Config::default())
        .default_backoff()
        .boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.extend(pod.uid());
                seen(&kubelet, &mut workers, pod).await;
            }
            Ok(Event::InitDone) => workers.retain(|uid, _| listed.contains(uid)),
            Ok(Event::Apply(pod)) => seen(&kubelet, &mut workers, pod).await,
            Ok(Event::Delete(pod)) => drop(workers.remove(&pod.uid().unwrap_or_default())),
            // The stream tries again by itself.
            Err(_) => {}
        }
    }
}

async fn seen(kubelet: &Arc<Kubelet>, workers: &mut HashMap<String, Worker>, pod: Pod) {
    match pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
        Some(node) if node == kubelet.node => {
            let pod = Arc::new(pod);
            let worker = workers.entry(pod.uid().unwrap_or_default());
            worker
                .or_insert_with(|| Worker::start(kubelet, &pod))
                .seen
                .send_replace(pod);
        }
        Some(_) => {}
        None => bind(kubelet, &pod).await,
    }
}

impl Worker {
    fn start(kubelet: &Arc<Kubelet>, pod: &Arc<Pod>) -> Self {
        let seen = watch::Sender::new(pod.clone());
        let task = tokio::spawn(pod::run(kubelet.clone(), seen.subscribe()));
        Self {
            seen,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

/// Binds a Pod to this node in place of the scheduler, unless the node does not match the Pod's selector.
async fn bind(kubelet: &Kubelet, pod: &Pod) {
    let selector = pod.spec.as_ref().and_then(|spec| spec.node_selector.as_ref());
    let labels = kubelet.labels();
    let fits = selector
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.get(key.as_str()) == Some(value));
    if !fits || pod.metadata.deletion_timestamp.is_some() {
        return;
    }
    let binding = Binding {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(kubelet.node.clone()),
            ..ObjectReference::default()
        },
    };
    let pods = kubelet.namespaced::<Pod>(&pod.namespace().unwrap_or_default());
    // It fails where another was quicker, or the Pod is gone.
    let _: Result<Status, kube::Error> = pods
        .create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding)
        .await;
}
