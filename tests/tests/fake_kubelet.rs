//! The kubelet of machines without root, running programs that are not ours.
#![expect(clippy::unwrap_used, reason = "a failure here is the test's")]

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    ConfigMap, ContainerStatus, PersistentVolume, PersistentVolumeClaim, Pod, Secret,
};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use testbed::control_plane::{Namespace, Namespaced};
use testbed::fake_kubelet::{Image, Options};
use testbed::{ControlPlane, FakeKubelet, binaries, wait};

const SOON: Duration = Duration::from_mins(1);
const SHELL: &str = "test.invalid/shell:1";
const REGISTRY: &str = "test.invalid/registry:1";
const KUBECTL: &str = "test.invalid/kubectl:1";

struct Bed {
    namespace: Namespace,
    kubelet: FakeKubelet,
}

impl Bed {
    async fn new(prefix: &str, sync: Duration) -> Self {
        let control_plane = ControlPlane::shared().await;
        let namespace = control_plane.namespace(prefix).await;
        let options = Options {
            sync,
            ..Options::for_namespace(namespace.name())
        }
        .image(SHELL, Image::new("/bin/sh", "/bin/sh"))
        .image(REGISTRY, Image::new("/bin/registry", "/usr/bin/docker-registry"))
        .image(
            KUBECTL,
            Image::new("/kubectl", binaries::get("kubectl").await.unwrap()),
        );
        let kubelet = FakeKubelet::start(control_plane.kubeconfig(), options)
            .await
            .unwrap();
        Self { namespace, kubelet }
    }

    async fn create<K: Namespaced>(&self, object: Value) {
        let object: K = serde_json::from_value(object).unwrap();
        self.namespace
            .api::<K>()
            .create(&PostParams::default(), &object)
            .await
            .unwrap();
    }

    /// A Pod of one container that never runs again where it ended, unless `spec` says otherwise.
    async fn create_pod(&self, name: &str, container: Value, restart_policy: &str) {
        let spec = json!({"containers": [container], "restartPolicy": restart_policy});
        self.create::<Pod>(json!({"metadata": {"name": name}, "spec": spec}))
            .await;
    }

    /// The Pod, once `is` holds for it.
    async fn pod(&self, name: &str, what: &str, is: impl Fn(&Pod) -> bool) -> Pod {
        let pods = self.namespace.api::<Pod>();
        let found = wait::until(what, SOON, async || {
            pods.get(name).await.ok().filter(|pod| is(pod))
        });
        match found.await {
            Ok(pod) => pod,
            Err(error) => panic!("{error}: {:#?}", pods.get_status(name).await.unwrap().status),
        }
    }

    fn log(&self, pod: &Pod) -> String {
        let container = &pod.spec.as_ref().unwrap().containers[0].name;
        std::fs::read_to_string(self.kubelet.log(&pod.uid().unwrap(), container)).unwrap()
    }

    async fn gone<K>(&self, api: Api<K>, name: &str)
    where
        K: Resource + Clone + DeserializeOwned + Debug,
    {
        let is_gone = async || api.get_opt(name).await.unwrap().is_none().then_some(());
        wait::until(&format!("end of {name}"), SOON, is_gone)
            .await
            .unwrap();
    }
}

fn phase_is(phase: &'static str) -> impl Fn(&Pod) -> bool {
    move |pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(phase)
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

fn waits_for(reason: &'static str) -> impl Fn(&Pod) -> bool {
    move |pod| {
        let waiting = container(pod).and_then(|c| c.state.as_ref()?.waiting.as_ref());
        waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some(reason))
    }
}

fn password_file(password: &str) -> String {
    format!("user:{}\n", bcrypt::hash(password, 4).unwrap())
}

async fn accepts(address: &str, password: &str) -> bool {
    testbed::install_crypto_provider();
    let request = reqwest::Client::new().get(format!("http://{address}:5000/v2/"));
    let answer = request.basic_auth("user", Some(password)).send().await;
    answer.is_ok_and(|answer| answer.status() == 200)
}

/// A registry with its configuration in a ConfigMap, its users in a Secret and its storage on a claim.
async fn deploy_registry(bed: &Bed) {
    let config = "version: 0.1\nlog: {accesslog: {disabled: true}}\nstorage: {filesystem: {}}\nhttp: {}\n\
                  auth: {htpasswd: {realm: test}}\n";
    bed.create::<ConfigMap>(json!({"metadata": {"name": "config"}, "data": {"config.yml": config}}))
        .await;
    let users = json!({"htpasswd": password_file("one")});
    bed.create::<Secret>(json!({"metadata": {"name": "users"}, "stringData": users}))
        .await;
    let claim = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    bed.create::<PersistentVolumeClaim>(json!({"metadata": {"name": "data"}, "spec": claim}))
        .await;
    let template = json!({
        "metadata": {"labels": {"app": "registry"}},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{
                "name": "registry",
                "image": REGISTRY,
                "args": ["serve", "/etc/registry/config.yml"],
                "env": [
                    {"name": "REGISTRY_HTTP_ADDR", "value": ":5000"},
                    {"name": "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "value": "/data/$(POD)"},
                    {"name": "REGISTRY_AUTH_HTPASSWD_PATH", "value": "/users/htpasswd"},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
                "ports": [{"name": "http", "containerPort": 5000}],
                "startupProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1},
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
                "livenessProbe": {"httpGet": {"path": "/", "port": 5000}, "periodSeconds": 1},
                "volumeMounts": [
                    {"name": "config", "mountPath": "/etc/registry"},
                    {"name": "users", "mountPath": "/users"},
                    {"name": "data", "mountPath": "/data"},
                ],
            }],
            "volumes": [
                {"name": "config", "configMap": {"name": "config"}},
                {"name": "users", "secret": {"secretName": "users"}},
                {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            ],
        },
    });
    bed.create::<Deployment>(json!({
        "metadata": {"name": "registry"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "registry"}}, "template": template},
    }))
    .await;
}

async fn ready_pods(bed: &Bed) -> Vec<Pod> {
    let deployments = bed.namespace.api::<Deployment>();
    let ready = wait::until("Deployment with two ready Pods", SOON, async || {
        let status = deployments.get("registry").await.unwrap().status?;
        (status.ready_replicas == Some(2)).then_some(())
    });
    ready.await.unwrap();
    bed.namespace
        .api::<Pod>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
}

fn address(pod: &Pod) -> String {
    pod.status.clone().unwrap().pod_ip.unwrap()
}

/// A Deployment becomes ready, and a change of its Secret arrives without a restart.
#[tokio::test]
async fn deployment_applies_secret_change_without_restart() {
    // No round of its own comes within the test: the annotation has the Secret read.
    let bed = Bed::new("deployment", Duration::from_hours(1)).await;
    deploy_registry(&bed).await;
    let before = ready_pods(&bed).await;
    assert_ne!(address(&before[0]), address(&before[1]));
    for pod in &before {
        assert!(accepts(&address(pod), "one").await);
        assert!(!accepts(&address(pod), "two").await);
    }

    let users = json!({"stringData": {"htpasswd": password_file("two")}});
    let secrets = bed.namespace.api::<Secret>();
    secrets
        .patch("users", &PatchParams::default(), &Patch::Merge(users))
        .await
        .unwrap();
    let touched = json!({"metadata": {"annotations": {"touched": "yes"}}});
    for pod in &before {
        let pods = bed.namespace.api::<Pod>();
        pods.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&touched))
            .await
            .unwrap();
        let address = address(pod);
        let accepted = async || accepts(&address, "two").await.then_some(());
        wait::until("new password", SOON, accepted).await.unwrap();
    }
    for pod in ready_pods(&bed).await {
        assert_eq!(container(&pod).unwrap().restart_count, 0);
    }
}

/// A pod that is deleted ends, and a deleted claim leaves no volume.
#[tokio::test]
async fn deleted_pod_ends_and_leaves_no_volume() {
    let bed = Bed::new("deletion", Duration::from_secs(1)).await;
    deploy_registry(&bed).await;
    let pods = ready_pods(&bed).await;
    let claims = bed.namespace.api::<PersistentVolumeClaim>();
    let volume = claims
        .get("data")
        .await
        .unwrap()
        .spec
        .unwrap()
        .volume_name
        .unwrap();
    let volumes: Api<PersistentVolume> = Api::all(bed.namespace.client());
    let path = volumes
        .get(&volume)
        .await
        .unwrap()
        .spec
        .unwrap()
        .host_path
        .unwrap()
        .path;
    assert!(Path::new(&path).is_dir());

    let deployments = bed.namespace.api::<Deployment>();
    deployments
        .delete("registry", &DeleteParams::background())
        .await
        .unwrap();
    for pod in &pods {
        bed.gone(bed.namespace.api::<Pod>(), &pod.name_any()).await;
        assert!(!accepts(&address(pod), "one").await);
    }
    claims.delete("data", &DeleteParams::default()).await.unwrap();
    bed.gone(volumes, &volume).await;
    assert!(!Path::new(&path).exists());
}

/// A container that fails is restarted with a back-off.
#[tokio::test]
async fn failing_container_restarts_with_backoff() {
    let bed = Bed::new("crash", Duration::from_secs(1)).await;
    let failing = json!({"name": "c", "image": SHELL, "args": ["-c", "echo ran; exit 3"]});
    bed.create_pod("p", failing, "Always").await;
    let pod = bed.pod("p", "back-off", waits_for("CrashLoopBackOff")).await;
    let state = container(&pod).unwrap();
    let last = state.last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    bed.pod("p", "third restart", |pod| {
        container(pod).is_some_and(|c| c.restart_count >= 3)
    })
    .await;
    assert!(bed.log(&pod).starts_with("ran\nran\n"));
}

/// A container that fails its liveness probe is restarted.
#[tokio::test]
async fn container_failing_liveness_is_restarted() {
    let bed = Bed::new("liveness", Duration::from_secs(1)).await;
    let silent = json!({
        "name": "c", "image": SHELL, "args": ["-c", "exec sleep 1000"],
        "livenessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1},
    });
    bed.create_pod("p", silent, "Always").await;
    let pod = bed
        .pod("p", "restart", |pod| {
            container(pod).is_some_and(|c| c.restart_count >= 1)
        })
        .await;
    let last = container(&pod)
        .unwrap()
        .last_state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!((last.exit_code, last.signal), (143, Some(15)));
}

/// A pod that exits with zero has succeeded, and any other has failed.
#[tokio::test]
async fn ended_pod_succeeds_or_fails() {
    let bed = Bed::new("ends", Duration::from_secs(1)).await;
    let shell = |script: &str| json!({"name": "c", "image": SHELL, "args": ["-c", script]});
    bed.create_pod("good", shell("exit 0"), "Never").await;
    // Kubernetes makes one dollar of two.
    bed.create_pod("bad", shell("kill -9 $$$$"), "Never").await;
    bed.pod("good", "success", phase_is("Succeeded")).await;
    let bad = bed.pod("bad", "failure", phase_is("Failed")).await;
    let end = container(&bad)
        .unwrap()
        .state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(end.exit_code, 137);
    let pods = bed.namespace.api::<Pod>();
    pods.delete("good", &DeleteParams::default()).await.unwrap();
    bed.gone(pods, "good").await;
}

/// A pod authenticates to the API server as its service account.
#[tokio::test]
async fn pod_authenticates_as_its_service_account() {
    let bed = Bed::new("account", Duration::from_secs(1)).await;
    let whoami = json!({"name": "c", "image": KUBECTL, "args": ["auth", "whoami", "-o", "json"]});
    bed.create_pod("p", whoami, "Never").await;
    let pod = bed
        .pod("p", "end", |pod| {
            phase_is("Succeeded")(pod) || phase_is("Failed")(pod)
        })
        .await;
    let log = bed.log(&pod);
    assert!(
        log.contains(&format!("system:serviceaccount:{}:default", bed.namespace)),
        "{log}"
    );
}

/// A pod waits for a missing Secret until it exists.
#[tokio::test]
async fn pod_waits_for_missing_secret() {
    let bed = Bed::new("missing", Duration::from_secs(1)).await;
    let shell = json!({
        "name": "c", "image": SHELL, "args": ["-c", "cat /s/key"], "volumeMounts": [{"name": "s", "mountPath": "/s"}],
    });
    let spec = json!({
        "containers": [shell], "restartPolicy": "Never", "volumes": [{"name": "s", "secret": {"secretName": "late"}}],
    });
    bed.create::<Pod>(json!({"metadata": {"name": "p"}, "spec": spec}))
        .await;
    let message = |pod: &Pod| container(pod)?.state.clone()?.waiting?.message;
    let reported = |pod: &Pod| message(pod).as_deref() == Some("Secret late not found");
    bed.pod("p", "message about the Secret", reported).await;
    bed.create::<Secret>(json!({"metadata": {"name": "late"}, "stringData": {"key": "here"}}))
        .await;
    let pod = bed.pod("p", "success", phase_is("Succeeded")).await;
    assert_eq!(bed.log(&pod), "here");
}

/// The kubelet does not pull an image that it does not have.
#[tokio::test]
async fn unknown_image_is_not_pulled() {
    let bed = Bed::new("image", Duration::from_secs(1)).await;
    bed.create_pod(
        "p",
        json!({"name": "c", "image": "test.invalid/none:1"}),
        "Always",
    )
    .await;
    bed.pod("p", "refusal", waits_for("ImagePullBackOff")).await;
}
