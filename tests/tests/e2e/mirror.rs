//! A mirror: made, changed, watched and deleted as admins do it.

use std::fs;

use serde_json::{Value, json};
use testbed::wait;

use crate::cluster::{Cluster, SOON};
use crate::registry::{self, USER, user};

/// The registry's name, as Pods write it; it is no host's.
pub(crate) const NAME: &str = "registry.e2e.invalid";
pub(crate) const MIRRORS: &str = "--namespace=mirrors";

impl Cluster {
    /// Makes the mirror with this beside its upstream, waits until it is Ready, and returns the address that nodes pull
    /// through; they do.
    pub(crate) async fn mirror(&self, spec: Value) -> String {
        self.apply(&[
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
                "name": "mirrors", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "upstream", "namespace": "mirrors"},
                "type": "kubernetes.io/basic-auth", "stringData": {"username": user(USER.1), "password": USER.1}}),
        ])
        .await;
        let mut spec = spec;
        spec["upstreams"] = json!([{"host": NAME, "remoteURL": registry::url(),
            "credentialsSecretRef": {"name": "upstream"}, "insecureAllowHTTPCredentials": true}]);
        self.apply(&[
            json!({"apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
            "metadata": {"name": "hub", "namespace": "mirrors"}, "spec": spec}),
        ])
        .await;
        self.mirror_says("Ready=True").await;
        let path = "jsonpath={.status.endpoint.url}";
        let url = self.kubectl(&["get", "rmir", "hub", MIRRORS, "-o", path]).await;
        let version = format!("{url}/v2/");
        let answers = async || self.node.run(&["curl", "-skf", &version]).await.ok();
        wait::until("answer from the mirror's address", SOON, answers)
            .await
            .unwrap();
        self.follow_published_hosts().await;
        url
    }

    /// Waits until a condition is so, say `Ready=True`.
    pub(crate) async fn mirror_says(&self, condition: &str) {
        let condition = format!("--for=condition={condition}");
        let wait = [
            "kubectl",
            "wait",
            &condition,
            "rmir/hub",
            MIRRORS,
            "--timeout=120s",
        ];
        if let Err(error) = self.node.run(&wait).await {
            panic!("{error}\n{}", self.mirrors_state().await);
        }
    }

    /// The reason of one of its conditions.
    pub(crate) async fn mirrors_reason(&self, condition: &str) -> String {
        let path = format!("jsonpath={{.status.conditions[?(@.type==\"{condition}\")].reason}}");
        self.kubectl(&["get", "rmir", "hub", MIRRORS, "-o", &path]).await
    }

    /// All that there is to say where something did not happen.
    pub(crate) async fn mirrors_state(&self) -> String {
        self.kubectl(&["describe", "rmir,pods,persistentvolumeclaims", MIRRORS])
            .await
    }

    /// Has containerd follow the file that the operator publishes for it. The registry's name does not resolve here:
    /// where it is goes before, as it does for any registry that is not at its own name.
    pub(crate) async fn follow_published_hosts(&self) {
        let published = self.published_hosts().await;
        let (toml, _) = &published;
        assert!(toml.starts_with("[host."), "{toml}");
        let toml = format!("server = \"{}\"\n{toml}", registry::url());
        self.give_node((toml, published.1));
    }

    /// Tells the mirror that nodes never fall back, and containerd what the operator then publishes, to the letter.
    pub(crate) async fn never_fall_back(&self) {
        self.change_mirror(&json!({"nodeConfiguration": {"fallback": "Never"}}))
            .await;
        let names_a_server = async || {
            let published = self.published_hosts().await;
            published.0.starts_with("server = ").then_some(published)
        };
        let published = wait::until("file without a fallback", SOON, names_a_server)
            .await
            .unwrap();
        self.give_node(published);
    }

    /// The file for containerd, and the authority of the mirror's certificate that it names where there is one.
    async fn published_hosts(&self) -> (String, Option<String>) {
        let map = self
            .kubectl(&["get", "configmap", "hub-hosts", MIRRORS, "-o", "json"])
            .await;
        let map: Value = serde_json::from_str(&map).unwrap();
        let file = |name: &str| map["data"][name].as_str().map(str::to_owned);
        (file(&format!("{NAME}.hosts.toml")).unwrap(), file("ca.crt"))
    }

    /// The authority first: with a file that names one which is not there, containerd pulls from nowhere.
    fn give_node(&self, (toml, authority): (String, Option<String>)) {
        let directory = self.node.directory().join("certs.d").join(NAME);
        if let Some(authority) = authority {
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("ca.crt"), authority).unwrap();
        }
        self.node.write_hosts(NAME, &toml).unwrap();
    }

    pub(crate) async fn change_mirror(&self, spec: &Value) {
        let patch = json!({"spec": spec}).to_string();
        self.kubectl(&["patch", "rmir", "hub", MIRRORS, "--type=merge", "-p", &patch])
            .await;
    }

    pub(crate) async fn scale_mirror(&self, replicas: u32) {
        let flag = format!("--replicas={replicas}");
        self.kubectl(&["scale", "rmir/hub", MIRRORS, &flag]).await;
        let there = async || {
            let path = "jsonpath={.items[*].status.containerStatuses[*].ready}";
            let pods = self.kubectl(&["get", "pods", MIRRORS, "-o", path]).await;
            let ready = pods.split_whitespace().filter(|word| *word == "true").count();
            (ready == replicas as usize && pods.split_whitespace().count() == ready).then_some(())
        };
        wait::until("mirror of that size", SOON, there).await.unwrap();
    }

    /// Deletes the mirror and waits until nothing is left of it.
    pub(crate) async fn delete_mirror(&self) {
        self.kubectl(&["delete", "rmir", "hub", MIRRORS]).await;
        let kinds = "pods,services,configmaps,secrets,serviceaccounts,deployments,statefulsets,\
                     persistentvolumeclaims,poddisruptionbudgets";
        let gone = async || {
            let left = self.kubectl(&["get", kinds, MIRRORS, "-o", "name"]).await;
            (!left.contains("hub")).then_some(())
        };
        wait::until("end of all that was the mirror's", SOON, gone)
            .await
            .unwrap();
    }

    /// Waits until the mirror's Pods are of this image, all of them, and ready.
    pub(crate) async fn mirror_runs(&self, image: &str) {
        let path = "jsonpath={range .items[*]}{.spec.containers[0].image} {.status.containerStatuses[0].ready}{\"\\n\"}{end}";
        let all = async || {
            let pods = self.kubectl(&["get", "pods", MIRRORS, "-o", path]).await;
            let fits = |line: &str| line == format!("{image} true");
            (!pods.is_empty() && pods.lines().all(fits)).then_some(())
        };
        if let Err(error) = wait::until(image, SOON, all).await {
            panic!("{error}\n{}", self.mirrors_state().await);
        }
    }

    /// Waits until a Pod of the mirror can't start for want of its image.
    pub(crate) async fn mirror_lacks_its_image(&self) {
        let path = "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}";
        let lacks = async || {
            let waiting = self.kubectl(&["get", "pods", MIRRORS, "-o", path]).await;
            waiting.contains("Image").then_some(())
        };
        wait::until("Pod without an image", SOON, lacks).await.unwrap();
    }

    /// Names and restarts of the mirror's Pods.
    pub(crate) async fn mirrors_pods(&self) -> String {
        let path =
            "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[*].restartCount}{end}";
        self.kubectl(&["get", "pods", MIRRORS, "-o", path]).await
    }

    /// Reasons of the events.
    pub(crate) async fn mirrors_events(&self) -> String {
        self.kubectl(&["get", "events", MIRRORS, "-o", "jsonpath={.items[*].reason}"])
            .await
    }

    /// No finalizer, and nothing outside of the namespace.
    pub(crate) async fn deleting_the_namespace_leaves_nothing(&self) {
        self.kubectl(&["delete", "namespace", "mirrors", "--timeout=120s"])
            .await;
        for kinds in [
            "rmir,pods,services,configmaps,secrets,persistentvolumeclaims,statefulsets,deployments",
            "persistentvolumes,clusterroles",
        ] {
            let ours = "app.kubernetes.io/managed-by=registry-mirror";
            let left = self
                .kubectl(&["get", kinds, "-A", "-l", ours, "-o", "name"])
                .await;
            assert_eq!(left, "");
        }
    }
}
