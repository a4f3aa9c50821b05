//! No value of a Secret leaves the operator or a server, even with all their logs.

use std::path::PathBuf;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::ListParams;
use parking_lot::Mutex;
use serde_json::{Value, json};
use testbed::FakeKubelet;
use testbed::pki::Authority;
use testbed::process::{self, Daemon};
use testbed::scratch::Scratch;
use testbed::upstream::{self, Access, Upstream};

use crate::bench::{Bench, IMAGE, condition, soon, text};
use crate::pods::{address, kubelet, pods};

#[path = "canary/said.rs"]
mod said;
use said::Said;

/// In every value.
const CANARY: &str = "canary-5d27e9";

/// An operator in a process of its own, with all that it says.
struct Operator {
    _process: Daemon,
    log: PathBuf,
    metrics: String,
}

impl Operator {
    fn start(bench: &Bench, scratch: &Scratch) -> Self {
        let [port] = process::free_ports().unwrap();
        let namespace = bench.namespace.name();
        let mut command = process::command(env!("CARGO_BIN_EXE_operator-under-test"));
        command
            .arg("operator")
            .arg(format!("--watch-namespace={namespace}"))
            .arg(format!("--lease-namespace={namespace}"))
            .arg(format!("--server-image={IMAGE}"))
            .arg(format!("--listen=127.0.0.1:{port}"))
            // The most that can be asked for; what other programs read is not.
            .args(["--log-level=debug", "--log-format=text"])
            .env("RUST_LOG", "trace")
            .env("KUBECONFIG", bench.control_plane.kubeconfig())
            .env("RUST_BACKTRACE", "1");
        let log = scratch.path().join("operator.log");
        Self {
            _process: Daemon::spawn("operator", command, &log).unwrap(),
            log,
            metrics: format!("http://127.0.0.1:{port}/metrics"),
        }
    }
}

struct Stage {
    bench: Bench,
    kubelet: FakeKubelet,
    upstream: Upstream,
    operator: Operator,
    /// Bodies of errors that clients got.
    errors: Mutex<Vec<String>>,
    _scratch: Scratch,
}

impl Stage {
    async fn set() -> Self {
        let bench = Bench::idle("canary").await;
        let kubelet = kubelet(&bench).await;
        let password = format!("{CANARY}-good");
        let user = format!("{CANARY}-user");
        let options = upstream::Options::protected(Access::Basic, (&user, &password));
        let upstream = Upstream::start(options).await.unwrap();
        let scratch = Scratch::new("canary").unwrap();
        let operator = Operator::start(&bench, &scratch);
        Self {
            bench,
            kubelet,
            upstream,
            operator,
            errors: Mutex::default(),
            _scratch: scratch,
        }
    }

    async fn secret(&self, name: &str, kind: &str, data: Value) {
        // The type of a Secret can't be changed.
        if self.bench.get::<Secret>(name).await.is_some() {
            self.bench.delete::<Secret>(name).await;
        }
        let secret = json!({"metadata": {"name": name}, "type": kind, "stringData": data});
        self.bench.apply::<Secret>(secret).await;
    }

    async fn until(&self, status: &str, reason: Reason) {
        self.bench
            .until_hub(ConditionType::CredentialsValid, status, reason)
            .await;
        self.miss().await;
    }

    /// Asks each server for what is not cached: log and error body then give the reason why there is none.
    async fn miss(&self) {
        for pod in pods(&self.bench).await {
            if pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some()) {
                let url = format!(
                    "http://{}:5000/v2/team/app/manifests/none?ns=a.example",
                    address(&pod)
                );
                if let Ok(answer) = reqwest::get(url).await {
                    let body = answer.text().await.unwrap_or_default();
                    self.errors.lock().push(body);
                }
            }
        }
    }

    /// All that was said so far.
    async fn said(&self) -> Said {
        let mut said = Said::default();
        said.by(
            "the operator's log",
            std::fs::read_to_string(&self.operator.log).unwrap(),
        );
        for body in self.errors.lock().iter() {
            said.by("an error body", body.clone());
        }
        said.url(&self.operator.metrics).await;
        for pod in pods(&self.bench).await {
            let log = self.kubelet.log(&pod.uid().unwrap(), "mirror");
            let what = std::fs::read_to_string(log).unwrap_or_default();
            said.by(format!("the log of {}", pod.name_any()), what);
            if pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some()) {
                for path in ["status", "metrics"] {
                    said.url(&format!("http://{}:5001/{path}", address(&pod))).await;
                }
            }
        }
        said.objects::<RegistryMirror>(&self.bench).await;
        said.objects::<Event>(&self.bench).await;
        said.objects::<ConfigMap>(&self.bench).await;
        said.objects::<Deployment>(&self.bench).await;
        said.objects::<ReplicaSet>(&self.bench).await;
        said.objects::<Pod>(&self.bench).await;
        said.objects::<Service>(&self.bench).await;
        for secret in self
            .bench
            .api::<Secret>()
            .list(&ListParams::default())
            .await
            .unwrap()
        {
            let whom = format!("the metadata of Secret {}", secret.name_any());
            // The metadata names the fields of an applied Secret, without their values.
            said.by(whom, serde_json::to_string(&secret.metadata).unwrap());
        }
        said
    }
}

/// One mirror asks an upstream with a Secret, the other serves with two.
async fn make_mirrors(stage: &Stage) {
    let own = json!({
        "upstreams": [{"host": "b.example", "remoteURL": stage.upstream.url(), "credentialsSecretRef": {"name": "a"}}],
        "storage": {"type": "Ephemeral"},
        "tls": {"mode": "Secret", "secretName": "certificate"},
        "access": {"mode": "Basic", "htpasswdSecretRef": {"name": "users"}},
        "observability": {"logLevel": "debug"},
    });
    stage.bench.mirror("hub", hub(stage)).await;
    stage.bench.mirror("own", own).await;
}

fn hub(stage: &Stage) -> Value {
    json!({
        "upstreams": [{
            "host": "a.example",
            "remoteURL": stage.upstream.url(),
            "credentialsSecretRef": {"name": "a"},
        }],
        "cache": {"tagTTL": "0s"},
        "storage": {"type": "Ephemeral"},
        "observability": {"logLevel": "debug"},
    })
}

/// A client shows its own password to the mirror that has users: one that is right, and one that is not. Names of users
/// are no secrets: the server's log has them.
async fn pulled_by_user(stage: &Stage, certificate: &str) {
    testbed::install_crypto_provider();
    let trusted = reqwest::Certificate::from_pem(certificate.as_bytes()).unwrap();
    let pods = pods(&stage.bench).await;
    let pod = pods
        .iter()
        .find(|pod| pod.name_any().starts_with("own-"))
        .unwrap();
    let client = reqwest::Client::builder()
        .tls_certs_only([trusted])
        .resolve("localhost", format!("{}:5000", address(pod)).parse().unwrap())
        .build()
        .unwrap();
    let asked = async |password: &str| {
        let url = "https://localhost:5000/v2/team/app/manifests/none";
        let request = client
            .get(url)
            .basic_auth("jane", Some(format!("{CANARY}-{password}")));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!((asked("client").await, asked("other").await), (404, 401));
}

/// Waits for the message of each, so each was read.
async fn malformed_secrets_are_described(stage: &Stage) {
    const DOCKER: &str = "kubernetes.io/dockerconfigjson";
    let docker = |json: &str| json!({".dockerconfigjson": json.replace("CANARY", CANARY)});
    let host = stage.upstream.address().to_string();
    let entry = |entry: &str| docker(&format!(r#"{{"auths": {{"{host}": {entry}}}}}"#));
    for (kind, malformed, words) in [
        (
            "Opaque",
            json!({"user": CANARY, "pass": CANARY}),
            "has no key username",
        ),
        (
            "Opaque",
            json!({"username": format!("{CANARY}\n{CANARY}"), "password": CANARY}),
            "key username contains a line break",
        ),
        (
            "Opaque",
            json!({"token": format!("{CANARY}\u{7}")}),
            "key token contains",
        ),
        (
            "Opaque",
            json!({"token": CANARY.repeat(10_000)}),
            "longer than 16384 bytes",
        ),
        (
            "kubernetes.io/basic-auth",
            json!({"username": CANARY}),
            "has no key password",
        ),
        (
            DOCKER,
            docker(r#"{"auths": {"CANARY": {"auth": "CANARY"}}}"#),
            "has no entry for",
        ),
        (
            DOCKER,
            docker(r#"{"auths": "CANARY"}"#),
            "not a docker configuration",
        ),
        (DOCKER, entry(r#"{"auth": "CANARY%"}"#), "its auth is not base64"),
        (
            DOCKER,
            docker(r#"{"auths": {"CANARY": {"auth": {"CANARY": "CANARY"}}}}"#),
            "not a docker configuration",
        ),
        (
            DOCKER,
            entry(r#"{"password": "CANARY"}"#),
            "a password without a username",
        ),
        ("example.com/other", json!({"a": CANARY}), "type not supported"),
    ] {
        stage.secret("a", kind, malformed).await;
        let reported = |mirror: &RegistryMirror| {
            let reported = condition(mirror, ConditionType::CredentialsValid)?;
            let malformed = reported.reason == Reason::SecretMalformed.as_str();
            (malformed && reported.message.contains(words)).then_some(())
        };
        stage.bench.until("hub", words, reported).await;
        stage.miss().await;
    }
}

/// A bundle that an admin keeps in a Secret, with more in it than certificates.
async fn malformed_authorities_are_described(stage: &Stage, certificate: &str) {
    let upstream = json!({
        "host": "c.example",
        "tls": {"caBundleRef": {"kind": "Secret", "name": "roots"}},
    });
    let broken = format!("-----BEGIN CERTIFICATE-----\n{CANARY}\n-----END CERTIFICATE-----\n");
    let good = format!("{CANARY}\n{certificate}{CANARY}\n");
    let mut spec = hub(stage);
    spec["upstreams"].as_array_mut().unwrap().push(upstream);
    stage.bench.mirror("hub", spec).await;
    for (bundle, status, reason) in [
        (broken, "False", Reason::ReferenceMalformed),
        (good, "True", Reason::SpecAccepted),
    ] {
        stage.secret("roots", "Opaque", json!({"ca.crt": bundle})).await;
        stage
            .bench
            .until_hub(ConditionType::Accepted, status, reason)
            .await;
    }
    let issued = stage.bench.get::<Secret>("hub-files").await.unwrap();
    assert_eq!(text(&issued, "ca-c.example.crt").as_deref(), Some(certificate));
}

/// No value of a Secret appears in the log, an event, the status, a metric or an object.
#[tokio::test]
async fn secret_values_appear_nowhere() {
    let mut stage = Stage::set().await;
    let good = json!({"username": format!("{CANARY}-user"), "password": format!("{CANARY}-good")});
    let authority = Authority::new("canary").unwrap();
    let leaf = authority.serving(&["localhost"]).unwrap();
    // Text around PEM is allowed: so the key carries the canary, too.
    let key = format!("{CANARY}\n{}", leaf.key);
    let certificate = json!({"tls.crt": leaf.certificate, "tls.key": key});
    let hash = bcrypt::hash(format!("{CANARY}-client"), 4).unwrap();
    let users = json!({"htpasswd": format!("jane:{hash}\n")});
    stage.secret("a", "Opaque", good.clone()).await;
    stage
        .secret("certificate", "kubernetes.io/tls", certificate)
        .await;
    stage.secret("users", "Opaque", users).await;
    make_mirrors(&stage).await;
    stage.until("True", Reason::CredentialsAccepted).await;
    for mirror in ["hub", "own"] {
        stage
            .bench
            .until_condition(mirror, ConditionType::Ready, "True", Reason::Serving)
            .await;
    }

    pulled_by_user(&stage, &authority.certificate()).await;
    let bad = json!({"username": format!("{CANARY}-user"), "password": format!("{CANARY}-bad")});
    stage.secret("a", "kubernetes.io/basic-auth", bad).await;
    stage.until("False", Reason::UpstreamRejected).await;
    malformed_secrets_are_described(&stage).await;
    stage
        .secret("a", "Opaque", json!({"token": format!("{CANARY}-token")}))
        .await;
    stage.until("False", Reason::UpstreamRejected).await;
    malformed_authorities_are_described(&stage, &authority.certificate()).await;
    stage
        .secret(
            "certificate",
            "Opaque",
            json!({"tls.crt": CANARY, "tls.key": CANARY}),
        )
        .await;
    stage
        .bench
        .until_condition("own", ConditionType::TLSReady, "False", Reason::Malformed)
        .await;
    stage
        .secret(
            "users",
            "Opaque",
            json!({"htpasswd": format!("{CANARY} {CANARY}\n")}),
        )
        .await;
    stage
        .bench
        .until_condition(
            "own",
            ConditionType::Accepted,
            "False",
            Reason::ReferenceMalformed,
        )
        .await;
    stage.bench.delete::<Secret>("a").await;
    stage.until("False", Reason::SecretNotFound).await;
    stage.upstream.go_down();
    let late = json!({"username": format!("{CANARY}-user"), "password": format!("{CANARY}-late")});
    stage.secret("a", "Opaque", late).await;
    stage.until("Unknown", Reason::Unverified).await;
    stage.upstream.come_back().unwrap();
    stage.secret("a", "Opaque", good).await;
    stage.until("True", Reason::CredentialsAccepted).await;

    let said = soon("logs, metrics and states of all", async || {
        let said = stage.said().await;
        (said.0.len() > 20).then_some(said)
    })
    .await;
    let log = &said.0[0].1;
    assert!(log.contains("applied"), "the operator's log is one: {log}");
    said.has_no_canary();
}
