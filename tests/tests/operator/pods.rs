//! A bench's Pods, as processes of this machine.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use testbed::FakeKubelet;
use testbed::fake_kubelet::{Image, Options};

use crate::bench::{Bench, IMAGE};

/// A node that knows the image of mirrors that name none.
pub(crate) async fn kubelet(bench: &Bench) -> FakeKubelet {
    kubelet_with(bench, env!("CARGO_BIN_EXE_mirror-under-test")).await
}

/// A node whose Pods run this program as their server.
pub(crate) async fn kubelet_with(bench: &Bench, server: impl Into<std::path::PathBuf>) -> FakeKubelet {
    let mirror = Image::new("/mirror", server);
    let options = Options::for_namespace(bench.namespace.name()).image(IMAGE, mirror);
    FakeKubelet::start(bench.control_plane.kubeconfig(), options)
        .await
        .unwrap()
}

/// Every Pod, in the order of their names.
pub(crate) async fn pods(bench: &Bench) -> Vec<Pod> {
    bench
        .api::<Pod>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
}

pub(crate) fn address(pod: &Pod) -> String {
    pod.status.as_ref().unwrap().pod_ip.clone().unwrap()
}

/// Returns the answer of the Pod's admin port.
pub(crate) async fn admin(pod: &Pod, path: &str) -> Option<String> {
    let url = format!("http://{}:5001/{path}", address(pod));
    reqwest::get(url).await.ok()?.text().await.ok()
}

pub(crate) fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    statuses
        .into_iter()
        .flatten()
        .map(|status| status.restart_count)
        .sum()
}

/// Returns true if the Pod serves and is not about to end.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
