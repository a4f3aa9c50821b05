//! The environment of each test: a namespace, a user with the operator's RBAC permissions, and an operator.

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use crds::conditions::{ConditionType, Reason, said};
use crds::{RegistryMirror, RegistryMirrorStatus};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use operator::admin_server::Health;
use operator::desired::Release;
use operator::rollout::RolloutConfig;
use operator::run::{self, Options};
use serde_json::{Value, json};
use testbed::control_plane::{Namespace, Namespaced};
use testbed::image::Random;
use testbed::scratch::Scratch;
use testbed::upstream::Upstream;
use testbed::{ControlPlane, wait};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{admission, process, rights};

/// Long enough for a machine that runs all tests at once.
const SOON: Duration = Duration::from_mins(1);
/// The image of mirrors that name none.
pub(crate) const IMAGE: &str = "registry-mirror:test";

/// The groups of every authenticated user.
const GROUPS: &[&str] = &["system:authenticated"];

/// A namespace with an operator that looks after it. In the end it must never have asked for what it has no right to.
pub(crate) struct Bench {
    pub(crate) namespace: Namespace,
    pub(crate) control_plane: &'static ControlPlane,
    /// In whose name the operator asks.
    pub(crate) user: String,
    /// Those of its operator that are no namespace's.
    pub(crate) options: Options,
    /// An admission policy may refuse a write of its operator, which comes second.
    pub(crate) may_be_denied: bool,
    server_image: String,
    running: Option<Running>,
    /// The position in the audit log from which the end of the test reads it; `None` on a control plane of the test's
    /// own, since an API server that restarts has no RBAC rules for a moment.
    began: Option<testbed::audit::Mark>,
}

struct Running {
    health: Health,
    task: tokio::task::JoinHandle<()>,
    shutdown: DropGuard,
}

impl Bench {
    pub(crate) async fn start(name: &str) -> Self {
        let mut bench = Self::idle(name).await;
        bench.start_operator().await;
        bench
    }

    /// Without an operator.
    pub(crate) async fn idle(name: &str) -> Self {
        // Shown by a test that fails; RUST_LOG says how much.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let control_plane = ControlPlane::shared().await;
        let began = control_plane.audit().map(|audit| audit.mark().unwrap());
        let mut bench = Self::on(control_plane, name).await;
        bench.began = began;
        bench
    }

    /// On a control plane of the test's own, without an operator.
    pub(crate) async fn on(control_plane: &'static ControlPlane, name: &str) -> Self {
        let namespace = control_plane.namespace(name).await;
        let user = format!("operator-of-{namespace}");
        let bench = Self {
            namespace,
            control_plane,
            user,
            options: Options::default(),
            may_be_denied: false,
            server_image: IMAGE.to_owned(),
            running: None,
            began: None,
        };
        let subject = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": bench.user});
        rights::grant(&bench, "operator", subject, &bench.client().await, process::LEASE).await;
        admission::install(&bench).await;
        bench
    }

    /// The operator's, with its rights alone.
    pub(crate) async fn client(&self) -> kube::Client {
        self.control_plane.client_as(&self.user, GROUPS).await
    }

    /// Returns the configuration of the operator's client, for a client with faults.
    pub(crate) async fn config(&self) -> kube::Config {
        self.control_plane.config_as(&self.user, GROUPS).await
    }

    pub(crate) async fn start_operator(&mut self) {
        let client = self.client().await;
        self.start_operator_through(client);
    }

    /// One that brings another image along.
    pub(crate) async fn start_operator_with(&mut self, server_image: &str, upgrades: RolloutConfig) {
        let before = (
            self.options.upgrades,
            std::mem::replace(&mut self.server_image, server_image.to_owned()),
        );
        self.options.upgrades = upgrades;
        self.start_operator().await;
        (self.options.upgrades, self.server_image) = before;
    }

    /// Makes this bench's operator cover the namespace of another bench, too.
    pub(crate) async fn cover(&mut self, other: &Self) {
        let subject = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": self.user});
        rights::grant(other, "further", subject, &self.client().await, process::LEASE).await;
        self.options.namespaces.push(other.namespace.name().to_owned());
    }

    pub(crate) fn start_operator_through(&mut self, client: kube::Client) {
        let own = self.namespace.name().to_owned();
        let options = Options {
            namespaces: [vec![own], self.options.namespaces.clone()].concat(),
            release: Release {
                server_image: self.server_image.clone(),
                ..self.options.release.clone()
            },
            ..self.options.clone()
        };
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        let task = tokio::spawn(run::run(client, options, health.clone(), shutdown.clone()));
        self.running = Some(Running {
            health,
            task,
            shutdown: shutdown.drop_guard(),
        });
    }

    pub(crate) async fn stop_operator(&mut self) {
        let Running { task, shutdown, .. } = self.running.take().expect("an operator runs");
        drop(shutdown);
        task.await.unwrap();
    }

    /// Ends it as a kill would: nothing is tidied up. What it has under way must not get through any more.
    pub(crate) fn kill_operator(&mut self) {
        let Running { task, shutdown, .. } = self.running.take().expect("an operator runs");
        task.abort();
        // The task that receives it has ended.
        drop(shutdown);
    }

    /// Returns the metrics of the running operator.
    pub(crate) fn metrics(&self) -> String {
        let running = self.running.as_ref().expect("an operator runs");
        running.health.metrics.render().unwrap()
    }

    /// Returns the state that the running operator reports.
    pub(crate) fn health(&self) -> Health {
        let running = self.running.as_ref().expect("an operator runs");
        running.health.clone()
    }

    /// Returns the number of reconciles that the running operator has ended.
    pub(crate) fn reconciles(&self) -> u64 {
        let metrics = self.metrics();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("registry_mirror_operator_reconciles_total"));
        line.and_then(|line| line.split(' ').nth(1)?.parse().ok())
            .unwrap_or(0)
    }

    /// Waits for so many more reconciles.
    pub(crate) async fn until_looks(&self, more: u64) {
        let before = self.reconciles();
        soon("reads of the mirrors", async || {
            (self.reconciles() >= before + more).then_some(())
        })
        .await;
    }

    pub(crate) fn api<K: Namespaced>(&self) -> Api<K> {
        self.namespace.api()
    }

    /// Applies an object as an admin would.
    pub(crate) async fn apply<K: Namespaced>(&self, object: Value) -> K {
        let mut object = object;
        object["apiVersion"] = json!(K::api_version(&()));
        object["kind"] = json!(K::kind(&()));
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        let params = PatchParams::apply("admin").force();
        self.api::<K>()
            .patch(&name, &params, &Patch::Apply(&object))
            .await
            .unwrap()
    }

    pub(crate) async fn mirror(&self, name: &str, spec: Value) -> RegistryMirror {
        self.apply(json!({"metadata": {"name": name}, "spec": spec}))
            .await
    }

    pub(crate) async fn secret(&self, name: &str, data: Value) -> Secret {
        self.apply(json!({"metadata": {"name": name}, "stringData": data}))
            .await
    }

    /// Applies a Secret with a user and a password.
    pub(crate) async fn login(&self, name: &str, username: &str, password: &str) {
        let data = json!({"username": username, "password": password});
        self.secret(name, data).await;
    }

    pub(crate) async fn merge<K: Namespaced>(&self, name: &str, patch: Value) {
        let params = PatchParams::default();
        self.api::<K>()
            .patch(name, &params, &Patch::Merge(&patch))
            .await
            .unwrap();
    }

    pub(crate) async fn delete<K: Namespaced>(&self, name: &str) {
        self.api::<K>()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    pub(crate) async fn get<K: Namespaced>(&self, name: &str) -> Option<K> {
        self.api::<K>().get_opt(name).await.unwrap()
    }

    /// Waits until an object is as it should be.
    pub(crate) async fn until<K: Namespaced, T>(
        &self,
        name: &str,
        what: &str,
        mut probe: impl FnMut(&K) -> Option<T>,
    ) -> T {
        let api = self.api::<K>();
        let (last, probe) = (RefCell::new(None), RefCell::new(&mut probe));
        let found = wait::until(what, SOON, async || {
            let object = api.get_opt(name).await.unwrap();
            let found = object.as_ref().and_then(&mut **probe.borrow_mut());
            last.replace(object);
            found
        })
        .await;
        found.unwrap_or_else(|error| {
            let last = serde_json::to_string_pretty(&*last.borrow()).unwrap();
            panic!("{error}; the {} {name} is: {last}", K::kind(&()))
        })
    }

    pub(crate) async fn until_gone<K: Namespaced>(&self, name: &str) {
        let api = self.api::<K>();
        let what = format!("end of {} {name}", K::kind(&()));
        soon(&what, async || {
            api.get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }

    /// Waits for a condition.
    pub(crate) async fn until_condition(
        &self,
        mirror: &str,
        kind: ConditionType,
        status: &str,
        reason: Reason,
    ) -> Condition {
        let what = format!("{kind}={status}/{reason} of {mirror}");
        let known = said().any(|said| (said.0, said.1.as_str(), said.2) == (kind, status, reason));
        assert!(known, "{what} is never said");
        self.until(mirror, &what, |mirror: &RegistryMirror| {
            condition(mirror, kind)
                .filter(|c| c.status == status && c.reason == reason.as_str())
                .cloned()
        })
        .await
    }

    /// Waits for a condition of the mirror `hub`.
    pub(crate) async fn until_hub(&self, kind: ConditionType, status: &str, reason: Reason) -> Condition {
        self.until_condition("hub", kind, status, reason).await
    }

    /// Waits until the mirror `hub` serves.
    pub(crate) async fn until_ready(&self) {
        self.until_hub(ConditionType::Ready, "True", Reason::Serving)
            .await;
    }

    /// Waits until the present spec was acted on.
    pub(crate) async fn until_accepted(&self, mirror: &str) -> RegistryMirrorStatus {
        self.until(
            mirror,
            "acceptance of the present spec",
            |mirror: &RegistryMirror| {
                let accepted = condition(mirror, ConditionType::Accepted)?;
                let current =
                    accepted.status == "True" && accepted.observed_generation == mirror.metadata.generation;
                current.then(|| mirror.status.clone()).flatten()
            },
        )
        .await
    }

    /// The audit log's end, once it holds all that was answered before: a request is logged just after its answer.
    pub(crate) async fn mark(&self) -> testbed::audit::Mark {
        let audit = self.control_plane.audit().expect("an audit log");
        let before = audit.mark().unwrap();
        let marker = json!({"metadata": {"name": "marker"}, "data": {"at": format!("{before:?}")}});
        self.apply::<k8s_openapi::api::core::v1::ConfigMap>(marker).await;
        soon("the marker's own entry", async || {
            let events = audit.since(before).unwrap();
            let here = |e: &testbed::audit::Event| {
                e.object_ref.name == "marker" && e.object_ref.namespace == self.namespace.name()
            };
            events.iter().any(here).then_some(())
        })
        .await;
        audit.mark().unwrap()
    }

    /// Waits until the operator has written nothing for a while.
    pub(crate) async fn until_nothing_is_written(&self) {
        let mut quiet = 0;
        let mut mark = self.mark().await;
        while quiet < 3 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            quiet = if self.writes(mark).is_empty() {
                quiet + 1
            } else {
                0
            };
            mark = self.mark().await;
        }
    }

    /// Returns the number of the operator's requests in this namespace since a mark.
    pub(crate) fn requests(&self, mark: testbed::audit::Mark) -> u64 {
        let audit = self.control_plane.audit().expect("an audit log");
        let events = audit.since(mark).unwrap();
        let own = events
            .iter()
            .filter(|event| event.user() == self.user && event.object_ref.namespace == self.namespace.name());
        own.count() as u64
    }

    /// Writes of the operator in this namespace since a mark, events apart.
    pub(crate) fn writes(&self, mark: testbed::audit::Mark) -> Vec<String> {
        let audit = self.control_plane.audit().expect("an audit log");
        let writes = audit.writes(mark, &self.user, self.namespace.name()).unwrap();
        let mut writes: Vec<_> = writes
            .iter()
            .filter(|write| write.object_ref.resource != "events")
            .map(|write| {
                let object = &write.object_ref;
                format!(
                    "{} {} {} {}",
                    write.verb, object.resource, object.name, object.subresource
                )
            })
            .collect();
        writes.sort();
        writes
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let (Some(began), false) = (self.began, std::thread::panicking()) else {
            return;
        };
        let audit = self.control_plane.audit().expect("an audit log");
        let refused = audit.refused(began, &self.user).unwrap();
        assert!(refused.is_empty(), "the operator has no right to {refused:#?}");
        let denied = audit.denied(began, &self.user, admission::PREFIX).unwrap();
        assert!(
            denied.is_empty() || self.may_be_denied,
            "the admission policies let the operator not {denied:#?}"
        );
    }
}

pub(crate) fn condition(mirror: &RegistryMirror, kind: ConditionType) -> Option<&Condition> {
    mirror
        .status
        .as_ref()?
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind.as_str())
}

/// Waits for anything.
pub(crate) async fn soon<T, F, P>(what: &str, probe: F) -> T
where
    F: FnMut() -> P,
    P: Future<Output = Option<T>>,
{
    wait::until(what, SOON, probe)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Puts an image of one small layer into a registry: `team/app:one`.
pub(crate) async fn push_one(upstream: &Upstream, seed: u64) {
    let scratch = Scratch::new("image").unwrap();
    let layout = Random::new(seed, &[4096])
        .write(&scratch.path().join("image"), "one")
        .unwrap();
    upstream.push(&layout, "one", "team/app:one").await.unwrap();
}

/// The smallest spec.
pub(crate) fn ephemeral() -> Value {
    json!({"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}})
}

pub(crate) fn with_claims(size: &str) -> Value {
    json!({
        "upstreams": [{"host": "quay.io"}],
        "storage": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"size": size}},
    })
}

/// A mirror that asks with the credentials of a Secret.
pub(crate) fn with_credentials(secret: &str) -> Value {
    json!({
        "upstreams": [{"host": "quay.io", "credentialsSecretRef": {"name": secret}}],
        "storage": {"type": "Ephemeral"},
    })
}

/// Returns true if a mirror owns the object.
pub(crate) fn belongs_to<K: Resource>(object: &K, mirror: &RegistryMirror) -> bool {
    object
        .owner_references()
        .iter()
        .any(|owner| Some(&owner.uid) == mirror.meta().uid.as_ref() && owner.controller == Some(true))
}

/// A key of a Secret, as text.
pub(crate) fn text(secret: &Secret, key: &str) -> Option<String> {
    let value = secret.data.as_ref()?.get(key)?;
    String::from_utf8(value.0.clone()).ok()
}
