//! Credentials that change while servers run and clients pull.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use crds::status::CredentialsStatus;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::{Value, json};
use testbed::control_plane::{Options, skip_on_existing_cluster};
use testbed::upstream::{self, Access, Upstream};
use testbed::{ControlPlane, FakeKubelet};

use crate::bench::{Bench, push_one, soon, text};
use crate::pods::{address, is_ready, kubelet, pods, restarts};

/// Passwords stand nowhere but in Secrets.
const CANARY: &str = "canary-91c4";
/// Another one that upstream takes.
const SECOND: &str = "canary-91c4-second";

/// A mirror of one registry under several names, which asks for its password each time.
struct Stage {
    bench: Bench,
    _kubelet: FakeKubelet,
    upstream: Upstream,
}

impl Stage {
    async fn set(name: &str) -> Self {
        Self::with(name, Access::Basic).await
    }

    async fn with(name: &str, access: Access) -> Self {
        Self::on(Bench::start(name).await, access).await
    }

    async fn on(bench: Bench, access: Access) -> Self {
        let kubelet = kubelet(&bench).await;
        let options = upstream::Options::protected(access, ("u0", CANARY));
        let mut upstream = Upstream::start(options).await.unwrap();
        let users: Vec<_> = (0..10).map(|n| format!("u{n}")).collect();
        let mut users: Vec<_> = users.iter().map(|user| (user.as_str(), CANARY)).collect();
        users.push(("second", SECOND));
        upstream.set_users(&users).unwrap();
        push_one(&upstream, 7).await;
        Self {
            bench,
            _kubelet: kubelet,
            upstream,
        }
    }

    /// A mirror whose upstreams `HOST.example` ask with the Secrets of these names, and each time.
    async fn mirror(&self, replicas: u32, hosts: &[(&str, &str)]) {
        let upstreams: Vec<_> = hosts
            .iter()
            .map(|(host, secret)| {
                json!({
                    "host": format!("{host}.example"),
                    "remoteURL": self.upstream.url(),
                    "credentialsSecretRef": {"name": secret},
                })
            })
            .collect();
        let spec = json!({
            "upstreams": upstreams,
            "replicas": replicas,
            "cache": {"tagTTL": "0s", "staleIfError": "0s"},
            "storage": {"type": "Ephemeral"},
        });
        self.bench.mirror("hub", spec).await;
    }

    async fn secret(&self, name: &str, kind: &str, user: &str, password: &str) {
        let data = match kind {
            "kubernetes.io/dockerconfigjson" => {
                let host = self.upstream.address().to_string();
                let config = json!({"auths": {host: {"username": user, "password": password}}});
                json!({".dockerconfigjson": config.to_string()})
            }
            _ => json!({"username": user, "password": password}),
        };
        let secret = json!({"metadata": {"name": name}, "type": kind, "stringData": data});
        self.bench.apply::<Secret>(secret).await;
    }

    async fn opaque(&self, name: &str, user: &str) {
        self.secret(name, "Opaque", user, CANARY).await;
    }

    async fn until(&self, status: &str, reason: Reason) -> String {
        let condition = self
            .bench
            .until_hub(ConditionType::CredentialsValid, status, reason)
            .await;
        condition.message
    }

    /// Waits until all upstreams take this version, and all replicas have it.
    async fn until_loaded(&self, version: i64, replicas: i32) -> Vec<CredentialsStatus> {
        let what = format!("version {version} in all replicas");
        self.bench
            .until("hub", &what, |mirror: &RegistryMirror| {
                let upstreams = &mirror.status.as_ref()?.upstreams;
                let all: Vec<_> = upstreams.iter().filter_map(|u| u.credentials.clone()).collect();
                let done = |c: &CredentialsStatus| {
                    c.version == version
                        && c.loaded_replicas == Some(replicas)
                        && c.last_rotation_time.is_some()
                };
                let valid = crate::bench::condition(mirror, ConditionType::CredentialsValid)?;
                (valid.status == "True" && all.iter().all(done)).then_some(all)
            })
            .await
    }

    /// Returns the last good configuration, which servers fall back to.
    async fn last_good(&self) -> String {
        let secret = self.bench.get::<Secret>("hub-credentials").await.unwrap();
        text(&secret, "last-good.json").unwrap_or_default()
    }

    /// No value of a Secret stands in the mirror or its events.
    async fn nothing_leaked(&self) {
        let mirror = self.bench.get::<RegistryMirror>("hub").await.unwrap();
        let events = self
            .bench
            .api::<Event>()
            .list(&ListParams::default())
            .await
            .unwrap();
        for observed in [
            serde_json::to_string(&mirror).unwrap(),
            serde_json::to_string(&events.items).unwrap(),
        ] {
            assert!(!observed.contains(CANARY), "{observed}");
        }
    }
}

/// One pull through one Pod: its code and what it says.
async fn pull(pod: &Pod, host: &str) -> (u16, String) {
    let url = format!(
        "http://{}:5000/v2/team/app/manifests/one?ns={host}.example",
        address(pod)
    );
    match reqwest::get(url).await {
        Ok(response) => (
            response.status().as_u16(),
            response.text().await.unwrap_or_default(),
        ),
        Err(error) => (0, error.to_string()),
    }
}

/// Continuous pulls, each of which the mirror revalidates.
struct Pulls {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Pulls {
    fn start(pods: &[Pod], hosts: &[&str]) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let pairs: Vec<(Pod, String)> = pods
            .iter()
            .flat_map(|pod| hosts.iter().map(|host| (pod.clone(), (*host).to_owned())))
            .collect();
        let (stopped, count) = (stop.clone(), done.clone());
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                for (pod, host) in &pairs {
                    let (code, body) = pull(pod, host).await;
                    if code != 200 {
                        failures.push(format!("{host} by {}: {code} {body}", pod.name_any()));
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            failures
        });
        Self { stop, done, task }
    }

    async fn end(self) {
        assert!(self.done.load(Ordering::Relaxed) > 0);
        self.stop.store(true, Ordering::Relaxed);
        assert_eq!(self.task.await.unwrap(), Vec::<String>::new(), "no pull fails");
    }
}

fn identities(pods: &[Pod]) -> Vec<(Option<String>, i32)> {
    pods.iter().map(|pod| (pod.uid(), restarts(pod))).collect()
}

/// Secrets of all kinds rotate without a failed pull or a restart.
#[tokio::test]
async fn secrets_of_all_kinds_rotate_without_failed_pull() {
    let stage = Stage::set("kinds").await;
    let kinds = [
        ("a", "kubernetes.io/dockerconfigjson"),
        ("b", "kubernetes.io/basic-auth"),
        ("c", "Opaque"),
    ];
    for (name, kind) in kinds {
        stage.secret(name, kind, "u0", CANARY).await;
    }
    // Two upstreams share a Secret.
    let hosts = [("a", "a"), ("b", "b"), ("c", "c"), ("d", "c")];
    stage.mirror(2, &hosts).await;
    let first = stage.until_loaded(1, 2).await;
    assert_eq!(first.len(), 4);
    let pods_before = pods(&stage.bench).await;
    let pulls = Pulls::start(&pods_before, &["a", "b", "c", "d"]);
    for (round, (name, kind)) in (2..).zip(kinds) {
        stage.secret(name, kind, "u1", CANARY).await;
        stage.until_loaded(round, 2).await;
    }
    assert_eq!(stage.last_good().await.matches("\"u1\"").count(), 4);
    let events = stage.bench.api::<Event>();
    for host in ["a", "b", "c", "d"] {
        soon("an event of the rotation", async || {
            let events = events.list(&ListParams::default()).await.unwrap();
            let observed = |event: &Event| {
                event.reason.as_deref() == Some("CredentialsRotated")
                    && event
                        .note
                        .as_ref()
                        .is_some_and(|note| note.contains(&format!("{host}.example")))
            };
            events.iter().any(observed).then_some(())
        })
        .await;
    }
    pulls.end().await;
    assert_eq!(identities(&pods(&stage.bench).await), identities(&pods_before));
    stage.nothing_leaked().await;
}

/// A rejected password leaves the last good one in use and does not affect other upstreams.
#[tokio::test]
async fn rejected_password_keeps_last_good_per_upstream() {
    let stage = Stage::set("rejected").await;
    stage.opaque("a", "u0").await;
    stage.opaque("b", "u0").await;
    stage.mirror(1, &[("a", "a"), ("b", "b")]).await;
    stage.until_loaded(1, 1).await;
    let pulls = Pulls::start(&pods(&stage.bench).await, &["a", "b"]);

    stage
        .secret("a", "Opaque", "u1", &format!("{CANARY}-wrong"))
        .await;
    let message = stage.until("False", Reason::UpstreamRejected).await;
    assert!(
        message.contains("a.example: ") && message.contains("Secret a rejected"),
        "{message}"
    );
    assert!(
        message.contains("the previous credentials stay in use"),
        "{message}"
    );
    stage.opaque("b", "u2").await;
    soon("b's new last good credentials", async || {
        let last_good = stage.last_good().await;
        (last_good.contains("\"u2\"") && last_good.contains("\"u0\"")).then_some(())
    })
    .await;
    pulls.end().await;
    stage
        .bench
        .until_hub(ConditionType::Ready, "True", Reason::Serving)
        .await;

    // One more replica, and one in place of the first: both begin with the last good ones.
    let first = pods(&stage.bench).await.remove(0);
    stage
        .bench
        .merge::<RegistryMirror>("hub", json!({"spec": {"replicas": 2}}))
        .await;
    stage.bench.delete::<Pod>(&first.name_any()).await;
    let started = soon("two other Pods that serve", async || {
        let pods = pods(&stage.bench).await;
        let others = pods
            .iter()
            .filter(|pod| pod.uid() != first.uid() && is_ready(pod));
        (others.clone().count() == 2).then(|| others.cloned().collect::<Vec<_>>())
    })
    .await;
    for pod in &started {
        for host in ["a", "b"] {
            soon("a pull through a new server", async || {
                (pull(pod, host).await.0 == 200).then_some(())
            })
            .await;
        }
    }
    stage.until("False", Reason::UpstreamRejected).await;
    assert!(stage.last_good().await.contains("\"u0\""), "a is not promoted");

    stage.opaque("a", "u3").await;
    stage.until("True", Reason::CredentialsAccepted).await;
    stage.nothing_leaked().await;
}

/// Without a first credential the pods run, and misses are refused with the reason.
#[tokio::test]
async fn missing_first_credential_refuses_misses() {
    let stage = Stage::set("first").await;
    stage.mirror(1, &[("a", "a")]).await;
    stage.until("False", Reason::SecretNotFound).await;
    let pod = soon("a Pod that serves", async || {
        pods(&stage.bench).await.into_iter().find(is_ready)
    })
    .await;
    let refused = async |what: &str| {
        soon("a refusal that names the reason", async || {
            let (code, body) = pull(&pod, "a").await;
            (code == 403 && body.contains("DENIED") && body.contains(what)).then_some(())
        })
        .await;
    };
    refused("no credential").await;
    stage
        .bench
        .until_hub(ConditionType::Ready, "False", Reason::SecretNotFound)
        .await;
    stage
        .bench
        .apply::<Secret>(json!({"metadata": {"name": "a"}, "type": "Opaque", "stringData": {"user": CANARY}}))
        .await;
    stage.until("False", Reason::SecretMalformed).await;
    stage
        .bench
        .until_hub(ConditionType::Ready, "False", Reason::SecretMalformed)
        .await;
    refused("no credential").await;
    stage.bench.delete::<Secret>("a").await;
    stage
        .secret("a", "Opaque", "u0", &format!("{CANARY}-wrong"))
        .await;
    let message = stage.until("False", Reason::UpstreamRejected).await;
    assert!(
        message.contains("pulls of content that is not cached fail"),
        "{message}"
    );
    refused("reject").await;
    stage
        .bench
        .until_hub(ConditionType::Ready, "False", Reason::UpstreamRejected)
        .await;
    assert_eq!(
        stage.last_good().await,
        "",
        "what was never proven is no last good one"
    );
    stage.opaque("a", "u0").await;
    stage.until("True", Reason::CredentialsAccepted).await;
    assert_eq!(pull(&pod, "a").await.0, 200);
    stage.nothing_leaked().await;
}

/// A rotation survives deletion, rapid changes, and an operator or upstream that is down.
#[tokio::test]
async fn rotation_survives_deletion_and_outages() {
    let mut stage = Stage::set("survives").await;
    stage.opaque("a", "u0").await;
    stage.mirror(1, &[("a", "a")]).await;
    stage.until_loaded(1, 1).await;
    let before = pods(&stage.bench).await;
    let pulls = Pulls::start(&before, &["a"]);

    // Deleted and made again.
    stage.bench.delete::<Secret>("a").await;
    let message = stage.until("False", Reason::SecretNotFound).await;
    assert!(message.contains(r#"Secret "a" not found"#), "{message}");
    // Of another type, and immutable: such a one is changed in the same way.
    let immutable = json!({
        "metadata": {"name": "a"},
        "type": "kubernetes.io/basic-auth",
        "immutable": true,
        "stringData": {"username": "u1", "password": format!("{CANARY}\n")},
    });
    stage.bench.apply::<Secret>(immutable).await;
    stage.until_loaded(2, 1).await;
    stage.bench.delete::<Secret>("a").await;

    // Twice at once.
    stage.opaque("a", "u2").await;
    stage.opaque("a", "u3").await;
    soon("the second of two changes", async || {
        stage.last_good().await.contains("\"u3\"").then_some(())
    })
    .await;
    stage.until("True", Reason::CredentialsAccepted).await;

    // While the operator is down.
    stage.bench.stop_operator().await;
    stage.opaque("a", "u4").await;
    stage.bench.start_operator().await;
    soon("an unwatched change", async || {
        stage.last_good().await.contains("\"u4\"").then_some(())
    })
    .await;
    stage.until("True", Reason::CredentialsAccepted).await;
    pulls.end().await;

    // While upstream is down.
    stage.upstream.go_down();
    stage.opaque("a", "u5").await;
    let message = stage.until("Unknown", Reason::Unverified).await;
    assert!(
        message.contains("a.example: credentials of Secret a not verified"),
        "{message}"
    );
    assert!(!stage.last_good().await.contains("\"u5\""));
    stage.upstream.come_back().unwrap();
    soon("the verdict", async || {
        stage.last_good().await.contains("\"u5\"").then_some(())
    })
    .await;
    assert_eq!(identities(&pods(&stage.bench).await), identities(&before));
    stage.nothing_leaked().await;
}

/// An upstream that is down, or limits requests, is reported and does not change the readiness.
#[tokio::test]
async fn failing_upstream_is_reported_and_ready() {
    let mut stage = Stage::set("reachable").await;
    stage.opaque("a", "u0").await;
    stage.mirror(1, &[("a", "a")]).await;
    stage.until_loaded(1, 1).await;
    let pod = pods(&stage.bench).await.remove(0);
    assert_eq!(pull(&pod, "a").await.0, 200);
    stage
        .bench
        .until_hub(ConditionType::UpstreamReachable, "True", Reason::Reachable)
        .await;
    stage.upstream.go_down();
    soon("a pull that fails", async || {
        (pull(&pod, "a").await.0 != 200).then_some(())
    })
    .await;
    let condition = stage
        .bench
        .until_hub(ConditionType::UpstreamReachable, "False", Reason::Unreachable)
        .await;
    assert!(condition.message.contains("a.example"), "{}", condition.message);
    let mirror = stage.bench.get::<RegistryMirror>("hub").await.unwrap();
    let status = serde_json::to_value(mirror.status.as_ref()).unwrap();
    assert_eq!(status["upstreams"][0]["state"], Value::from("Unreachable"));
    assert_eq!(status["serverVersion"], Value::from(env!("CARGO_PKG_VERSION")));
    let ready = crate::bench::condition(&mirror, ConditionType::Ready).unwrap();
    assert_eq!(ready.status, "True");
}

/// A different Secret for an upstream is used once it is proven, and the pods are notified.
#[tokio::test]
async fn other_secret_is_used_once_proven() {
    let stage = Stage::set("another").await;
    stage.opaque("a", "u0").await;
    stage.mirror(1, &[("a", "a")]).await;
    stage.until_loaded(1, 1).await;
    let before = pods(&stage.bench).await;
    let pulls = Pulls::start(&before, &["a"]);

    // Not there yet, then wrong: what was proven serves on.
    stage.mirror(1, &[("a", "b")]).await;
    let message = stage.until("False", Reason::SecretNotFound).await;
    assert!(message.contains(r#"Secret "b" not found"#), "{message}");
    assert!(stage.last_good().await.contains("\"u0\""));
    stage
        .secret("b", "Opaque", "u1", &format!("{CANARY}-wrong"))
        .await;
    stage.until("False", Reason::UpstreamRejected).await;
    assert!(stage.last_good().await.contains("\"u0\""));
    stage
        .bench
        .until_hub(ConditionType::Ready, "True", Reason::Serving)
        .await;
    let mark = reload_mark(&stage).await;
    stage.opaque("b", "u1").await;
    soon("what the other Secret holds as last good", async || {
        stage.last_good().await.contains("\"u1\"").then_some(())
    })
    .await;
    stage.until("True", Reason::CredentialsAccepted).await;

    // The Secret has the candidate and its promotion: a server that restarts begins with the good credential.
    soon("word of the promotion", async || {
        let secret = stage.bench.get::<Secret>("hub-credentials").await?;
        let replaced = secret
            .annotations()
            .get("registrymirror.io/credentials-replaced")?
            .clone();
        (replaced == "1" && reload_mark(&stage).await != mark).then_some(())
    })
    .await;
    pulls.end().await;
    assert_eq!(identities(&pods(&stage.bench).await), identities(&before));
    stage.nothing_leaked().await;
}

/// The last version that the first Pod was notified of.
async fn reload_mark(stage: &Stage) -> Option<String> {
    let pod = pods(&stage.bench).await.remove(0);
    pod.annotations().get("registrymirror.io/reload").cloned()
}

/// A server that starts again while the candidate is bad serves with the last good credential.
#[tokio::test]
async fn restarted_server_uses_last_good_credential() {
    let stage = Stage::set("restarted").await;
    stage.opaque("a", "u0").await;
    stage.mirror(1, &[("a", "a")]).await;
    stage.until_loaded(1, 1).await;
    stage
        .secret("a", "Opaque", "u1", &format!("{CANARY}-wrong"))
        .await;
    stage.until("False", Reason::UpstreamRejected).await;
    let pod = pods(&stage.bench).await.remove(0);
    let server = server_of(&pod);
    rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    soon("a server that was started again", async || {
        let again = pods(&stage.bench).await.into_iter().next()?;
        (restarts(&again) == 1 && is_ready(&again)).then_some(())
    })
    .await;
    assert_eq!(pull(&pod, "a").await.0, 200);
    stage.until("False", Reason::UpstreamRejected).await;
    stage.opaque("a", "u2").await;
    stage.until("True", Reason::CredentialsAccepted).await;
    assert_eq!(pull(&pod, "a").await.0, 200);
}

/// The process that listens on a Pod's address: it has that in its environment or arguments, and no other process has.
fn server_of(pod: &Pod) -> rustix::process::Pid {
    let address = address(pod);
    let mut found = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let id: i32 = entry.file_name().to_str()?.parse().ok()?;
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let is_server = String::from_utf8_lossy(&read("cmdline")).contains("mirror-under-test");
        let all = [read("cmdline"), read("environ")].concat();
        let has_address = String::from_utf8_lossy(&all).contains(&address);
        (is_server && has_address)
            .then(|| rustix::process::Pid::from_raw(id))
            .flatten()
    });
    let server = found.next().expect("a server of this Pod");
    assert!(found.next().is_none(), "one server listens on {address}");
    server
}

/// An identity token rotates like a password.
#[tokio::test]
async fn identity_token_rotates_like_a_password() {
    let stage = Stage::with("identity", Access::Bearer(Duration::from_secs(2))).await;
    let token = async |name: &str, token: &str| {
        let secret = json!({"metadata": {"name": name}, "type": "Opaque", "stringData": {"token": token}});
        stage.bench.apply::<Secret>(secret).await;
    };
    token("a", CANARY).await;
    stage.mirror(1, &[("a", "a")]).await;
    stage.until_loaded(1, 1).await;
    let pulls = Pulls::start(&pods(&stage.bench).await, &["a"]);
    token("a", &format!("{CANARY}-wrong")).await;
    stage.until("False", Reason::UpstreamRejected).await;
    token("a", SECOND).await;
    stage.until_loaded(3, 1).await;
    let last_good = stage.last_good().await;
    assert!(last_good.contains(r#""identitytoken""#) && last_good.contains(SECOND));
    pulls.end().await;
    stage.nothing_leaked().await;
}

/// A Secret that changes around a restart of the API server is applied.
#[tokio::test]
async fn secret_change_during_api_restart_is_applied() {
    if skip_on_existing_cluster("secret_change_during_api_restart_is_applied") {
        return;
    }
    let control_plane: &'static ControlPlane =
        Box::leak(Box::new(ControlPlane::start(Options::default()).await.unwrap()));
    let mut bench = Bench::on(control_plane, "restart").await;
    bench.start_operator().await;
    let stage = Stage::on(bench, Access::Basic).await;
    stage.opaque("a", "u0").await;
    stage.mirror(1, &[("a", "a")]).await;
    stage.until_loaded(1, 1).await;
    let before = pods(&stage.bench).await;
    let pulls = Pulls::start(&before, &["a"]);
    stage.opaque("a", "u1").await;
    control_plane.kill_api_server();
    control_plane.start_api_server().await.unwrap();
    soon("what changed just before", async || {
        stage.last_good().await.contains("\"u1\"").then_some(())
    })
    .await;
    stage.opaque("a", "u2").await;
    soon("what changed just after", async || {
        stage.last_good().await.contains("\"u2\"").then_some(())
    })
    .await;
    stage.until("True", Reason::CredentialsAccepted).await;
    pulls.end().await;
    assert_eq!(identities(&pods(&stage.bench).await), identities(&before));
}
