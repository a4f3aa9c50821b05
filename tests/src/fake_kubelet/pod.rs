//! One Pod: its volumes, then its containers, and its status all along.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Kubelet;
use super::container::{RestartPolicy, Snapshot, Supervisor};
use super::service_account;
use super::sources::{Problem, Sources};
use super::status::{self, Conditions};
use super::volumes::Volumes;

/// The delay before the next try to make volumes.
const RETRY: Duration = Duration::from_millis(300);
/// The grace period of Pods that do not name one.
const GRACE: Duration = Duration::from_secs(30);

/// The state that the containers of a Pod share.
pub(super) struct Shared {
    pub(super) kubelet: Arc<Kubelet>,
    pub(super) pod: Arc<Pod>,
    pub(super) address: Ipv4Addr,
    pub(super) directory: PathBuf,
    pub(super) sources: Sources,
    pub(super) restart_policy: RestartPolicy,
    pub(super) grace: Duration,
    /// The directory of each volume, once they are all there.
    pub(super) volumes: watch::Sender<Option<BTreeMap<String, PathBuf>>>,
    pub(super) states: watch::Sender<Vec<Snapshot>>,
}

impl Shared {
    fn new(kubelet: Arc<Kubelet>, pod: Arc<Pod>) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let creating = Snapshot::creating(String::new());
        let uid = pod.uid().unwrap_or_default();
        Self {
            address: super::draw_address(),
            directory: kubelet.scratch.path().join("pods").join(uid),
            sources: Sources::new(&kubelet.client, &pod.namespace().unwrap_or_default()),
            restart_policy: RestartPolicy::from_text(spec.restart_policy.as_deref()),
            grace: seconds(spec.termination_grace_period_seconds).unwrap_or(GRACE),
            volumes: watch::Sender::new(None),
            states: watch::Sender::new(vec![creating; spec.containers.len()]),
            kubelet,
            pod,
        }
    }

    /// Returns a kubeconfig for a container's processes, if they have a token for the API server.
    pub(super) fn kubeconfig(&self, container: &Container) -> Result<Option<PathBuf>, Problem> {
        let volumes = self.volumes.borrow().clone().unwrap_or_default();
        let Some(token) = service_account::mounted(container, &volumes) else {
            return Ok(None);
        };
        let file = self.directory.join("kubeconfig");
        service_account::write_kubeconfig(&self.kubelet.kubeconfig, &self.pod, &token, &file)?;
        Ok(Some(file))
    }
}

/// Runs a Pod until it is gone. Dropped, it kills what runs.
pub(super) async fn run(kubelet: Arc<Kubelet>, mut seen: watch::Receiver<Arc<Pod>>) {
    let pod = seen.borrow_and_update().clone();
    let shared = Arc::new(Shared::new(kubelet, pod.clone()));
    let volumes = Volumes::new(
        &shared.kubelet.client,
        &pod,
        shared.address,
        shared.directory.join("volumes"),
    );
    let reporter = Reporter::new(shared.clone());
    tokio::select! {
        () = reporter.follow() => {}
        () = live(&shared, &volumes, &mut seen) => {}
    }
    reporter.last_words().await;
    if seen.wait_for(|pod| is_terminating(pod)).await.is_ok() {
        reporter.delete().await;
    }
}

/// Makes the volumes and runs the containers, until they have ended for good.
async fn live(shared: &Arc<Shared>, volumes: &Volumes, seen: &mut watch::Receiver<Arc<Pod>>) {
    if !make_volumes(shared, volumes, seen).await {
        return;
    }
    let stop = watch::Sender::new(None);
    let mut containers = start_containers(shared, &stop);
    loop {
        let now = seen.borrow_and_update().clone();
        if let Some(grace) = termination(&now) {
            stop.send_replace(Some(grace));
        }
        tokio::select! {
            all_ended = containers.join_next() => if all_ended.is_none() { return },
            next = changed(seen, &now) => sync(shared, volumes, &next).await,
            () = sleep(shared.kubelet.sync) => sync(shared, volumes, &now).await,
        }
        if containers.is_empty() {
            return;
        }
    }
}

/// Waits for the volumes; `false` where the Pod is to end first.
async fn make_volumes(shared: &Shared, volumes: &Volumes, seen: &mut watch::Receiver<Arc<Pod>>) -> bool {
    loop {
        let now = seen.borrow_and_update().clone();
        if is_terminating(&now) {
            return false;
        }
        match volumes.sync(&now).await {
            Ok(directories) => {
                shared.volumes.send_replace(Some(directories));
                return true;
            }
            Err(problem) => {
                let waiting = Snapshot::creating(problem.to_string());
                shared.states.send_modify(|states| states.fill(waiting));
            }
        }
        let _ = tokio::time::timeout(RETRY, seen.changed()).await;
    }
}

fn start_containers(shared: &Arc<Shared>, stop: &watch::Sender<Option<Duration>>) -> JoinSet<()> {
    let containers = shared.pod.spec.as_ref().map(|spec| spec.containers.as_slice());
    let supervisor = |(index, container): (usize, &Container)| Supervisor {
        pod: shared.clone(),
        container: container.clone(),
        index,
        stop: stop.subscribe(),
    };
    let supervisors = containers.unwrap_or_default().iter().enumerate().map(supervisor);
    supervisors.map(Supervisor::run).collect()
}

/// Updates the volumes. As on a real node, a Secret's change waits for the next round, and a change of the Pod starts a
/// round.
async fn sync(shared: &Shared, volumes: &Volumes, pod: &Pod) {
    if shared.kubelet.holds_volumes.load(Ordering::Relaxed) {
        return;
    }
    // An unreadable source leaves the volumes unchanged.
    if let Ok(directories) = volumes.sync(pod).await {
        shared.volumes.send_replace(Some(directories));
    }
}

/// Waits until the Pod is another than `known` in more than its status.
async fn changed(seen: &mut watch::Receiver<Arc<Pod>>, known: &Pod) -> Arc<Pod> {
    let same = |pod: &Pod| {
        pod.annotations() == known.annotations()
            && pod.labels() == known.labels()
            && pod.spec == known.spec
            && is_terminating(pod) == is_terminating(known)
    };
    let next = seen.wait_for(|pod| !same(pod)).await.ok().map(|pod| pod.clone());
    match next {
        Some(next) => next,
        // The watch is over and this Pod with it.
        None => std::future::pending().await,
    }
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn termination(pod: &Pod) -> Option<Duration> {
    let grace = seconds(pod.metadata.deletion_grace_period_seconds);
    is_terminating(pod).then(|| grace.unwrap_or_default())
}

fn seconds(value: Option<i64>) -> Option<Duration> {
    Some(Duration::from_secs(u64::try_from(value?).ok()?))
}

/// Writes the Pod's status whenever it changes.
struct Reporter {
    shared: Arc<Shared>,
    pods: Api<Pod>,
    started: Timestamp,
    reported: tokio::sync::Mutex<(Conditions, Value)>,
}

impl Reporter {
    fn new(shared: Arc<Shared>) -> Self {
        let namespace = shared.pod.namespace().unwrap_or_default();
        Self {
            pods: Api::namespaced(shared.kubelet.client.clone(), &namespace),
            shared,
            started: Timestamp::now(),
            reported: tokio::sync::Mutex::default(),
        }
    }

    /// Reports each change of the Pod's state; never returns.
    async fn follow(&self) {
        let mut states = self.shared.states.subscribe();
        loop {
            states.borrow_and_update();
            if self.update_status().await.is_ok() {
                // The sender is in `shared`, so it lasts.
                let _ = states.changed().await;
            } else {
                sleep(RETRY).await;
            }
        }
    }

    async fn last_words(&self) {
        // The Pod may be gone already, and with it who would listen.
        let _ = self.update_status().await;
    }

    async fn update_status(&self) -> Result<(), kube::Error> {
        let (conditions, last) = &mut *self.reported.lock().await;
        let states = self.shared.states.borrow().clone();
        let shared = &self.shared;
        let has_volumes = shared.volumes.borrow().is_some();
        let object = status::object(
            &shared.pod,
            &states,
            shared.address,
            has_volumes,
            self.started,
            conditions,
        );
        if object != *last {
            let manager = PatchParams::apply("fake-kubelet").force();
            self.pods
                .patch_status(&shared.pod.name_any(), &manager, &Patch::Apply(&object))
                .await?;
            *last = object;
        }
        Ok(())
    }

    async fn delete(&self) {
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        let only_this = Preconditions {
            uid: self.shared.pod.uid(),
            resource_version: None,
        };
        let (name, how) = (self.shared.pod.name_any(), now.preconditions(only_this));
        while let Err(error) = self.pods.delete(&name, &how).await {
            // Gone, or another of the same name.
            if matches!(&error, kube::Error::Api(status) if matches!(status.code, 404 | 409)) {
                return;
            }
            sleep(RETRY).await;
        }
    }
}
