//! Pods whose images the node has to pull.

use std::time::{Duration, Instant};

use serde_json::json;
use testbed::wait;

use crate::cluster::{Cluster, SOON};
use crate::mirror::NAME;
use crate::registry::{USER, user};

impl Cluster {
    async fn deploy(&self, name: &str, tag: &str) {
        let auths = json!({"auths": {NAME: {"username": user(USER.1), "password": USER.1}}});
        self.apply(&[
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pull"},
                "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": auths.to_string()}}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "imagePullSecrets": [{"name": "pull"}],
                    "containers": [{"name": "app", "image": format!("{NAME}/team/app:{tag}")}]}}}}),
        ])
        .await;
    }

    /// Starts a Deployment, and returns the time until its Pod ran.
    pub(crate) async fn start_pod(&self, name: &str, tag: &str) -> Duration {
        let begin = Instant::now();
        self.deploy(name, tag).await;
        self.wait_for_pod(name).await;
        begin.elapsed()
    }

    pub(crate) async fn wait_for_pod(&self, name: &str) {
        let deployment = format!("deployment/{name}");
        let available = ["kubectl", "rollout", "status", &deployment, "--timeout=180s"];
        if let Err(error) = self.node.run(&available).await {
            panic!("{error}\n{}", self.kubectl(&["describe", "pods"]).await);
        }
    }

    /// Starts a Pod without a pull secret, waits until it runs, and takes it away.
    pub(crate) async fn passing_pod(&self, name: &str, tag: &str) {
        self.apply(&[
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": format!("{NAME}/team/app:{tag}")}]}}),
        ])
        .await;
        let pod = format!("pod/{name}");
        let ready = ["kubectl", "wait", "--for=condition=Ready", &pod, "--timeout=60s"];
        if let Err(error) = self.node.run(&ready).await {
            panic!("{error}\n{}", self.kubectl(&["describe", &pod]).await);
        }
        self.kubectl(&["delete", &pod, "--wait=false"]).await;
    }

    /// Returns the kubelet's messages about failed pulls, those that a later pull made up for included.
    pub(crate) async fn failed_pulls(&self) -> String {
        let failed = "--field-selector=reason=Failed";
        self.kubectl(&["get", "events", failed, "-o", "jsonpath={.items[*].message}"])
            .await
    }

    /// Starts a Deployment whose image can't be pulled, and returns what the kubelet says of it.
    pub(crate) async fn refused_pod(&self, name: &str, tag: &str) -> String {
        self.deploy(name, tag).await;
        let selector = format!("--selector=app={name}");
        let why = "jsonpath={.items[*].status.containerStatuses[*].state.waiting}";
        let refused = async || {
            let waiting = self.kubectl(&["get", "pods", &selector, "-o", why]).await;
            (waiting.contains("ErrImagePull") || waiting.contains("ImagePullBackOff")).then_some(waiting)
        };
        wait::until("refusal to start", SOON, refused).await.unwrap()
    }

    /// Deletes a Deployment and all that the node has of its image.
    pub(crate) async fn forget(&self, name: &str) {
        self.kubectl(&["delete", "deployment", name, "--cascade=foreground"])
            .await;
        let selector = format!("--selector=app={name}");
        self.kubectl(&["wait", "--for=delete", "pods", &selector, "--timeout=60s"])
            .await;
        let list = self.run(&["ctr", "-n", "k8s.io", "images", "ls"]).await;
        for image in names_of_one_image(&list) {
            self.run(&["ctr", "-n", "k8s.io", "images", "rm", "--sync", &image])
                .await;
        }
    }
}

/// By name, by digest and by the identifier of its configuration: containerd lists an image three times.
fn names_of_one_image(list: &str) -> Vec<String> {
    let digest = |line: &str| {
        let mut words = line.split_whitespace();
        words.find(|word| word.starts_with("sha256:")).map(str::to_owned)
    };
    let Some(digest) = list.lines().find(|line| line.starts_with(NAME)).and_then(digest) else {
        return Vec::new();
    };
    list.lines()
        .filter(|line| line.contains(&digest))
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect()
}
