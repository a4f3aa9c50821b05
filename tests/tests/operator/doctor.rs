//! `registry-mirror doctor`, against real API servers.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{conditions, wait};
use serde_json::{Value, json};
use testbed::ControlPlane;
use testbed::control_plane::{Options, skip_on_existing_cluster};
use testbed::scratch::Scratch;
use tokio::process::Command;

use crate::bench::{Bench, ephemeral, soon, with_credentials};
use crate::pods::kubelet;

/// The result of a run.
pub(crate) struct DoctorRun {
    code: i32,
    stdout: String,
    stderr: String,
}

impl DoctorRun {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.stdout, self.stderr))
    }

    /// The findings of one check, as `result: message`.
    fn findings(&self, check: &str) -> Vec<String> {
        let report = self.json();
        let findings = report["findings"].as_array().unwrap().iter();
        findings
            .filter(|finding| finding["check"] == check)
            .map(|f| {
                format!(
                    "{}: {}",
                    f["result"].as_str().unwrap(),
                    f["message"].as_str().unwrap()
                )
            })
            .collect()
    }
}

async fn doctor(kubeconfig: &Path, arguments: &[&str]) -> DoctorRun {
    let output = Command::new(env!("CARGO_BIN_EXE_operator-under-test"))
        .arg("doctor")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    DoctorRun {
        code: output.status.code().unwrap(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

pub(crate) async fn on(bench: &Bench, arguments: &[&str]) -> DoctorRun {
    let scope = ["-n", bench.namespace.name(), "-o", "json"];
    doctor(
        bench.control_plane.kubeconfig(),
        &[&scope[..], arguments].concat(),
    )
    .await
}

/// Of a healthy cluster `doctor` reports that, and the risks.
#[tokio::test]
async fn doctor_reports_healthy_cluster_and_risks() {
    let bench = Bench::start("well").await;
    let _kubelet = kubelet(&bench).await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_ready().await;
    bench
        .until_hub(ConditionType::Progressing, "False", Reason::RolledOut)
        .await;
    let reported = soon("a report without problems", async || {
        // Files for nodes come once the Service has its address.
        let reported = on(&bench, &[]).await;
        (reported.code == 0).then_some(reported)
    })
    .await;
    let report = reported.json();
    assert_eq!((&report["problems"], &report["exitCode"]), (&json!(0), &json!(0)));
    assert!(
        reported.findings("api-server")[0].starts_with("ok: Kubernetes v1."),
        "{report:#}"
    );
    assert_eq!(reported.findings("definition"), ["ok: matches this version"]);
    // The test runs the operator without a Deployment.
    assert!(
        reported.findings("operator")[0]
            .starts_with("warning: the operator was not found, and its RBAC permissions were not"),
        "{report:#}"
    );
    assert!(reported.findings("rights").is_empty(), "{report:#}");
    assert!(
        reported.findings("mirror")[0].starts_with("ok: is ready: 1 of 1 replicas serve at http://"),
        "{report:#}"
    );
    assert!(
        reported.findings("nodes")[0].starts_with("ok: ConfigMap hub-hosts has "),
        "{report:#}"
    );
    // The cluster's addresses lead nowhere from this machine, or elsewhere.
    let endpoint = &reported.findings("endpoint")[0];
    assert!(
        endpoint.starts_with("warning: ") && endpoint.contains("not reachable from here"),
        "{endpoint}"
    );
    assert!(
        reported.findings("risk")[0].starts_with("warning: spec.replicas: "),
        "{report:#}"
    );

    let table = doctor(bench.control_plane.kubeconfig(), &["-n", bench.namespace.name()]).await;
    assert_eq!(table.code, 0);
    assert!(
        table.stdout.starts_with("RESULT   CHECK       SUBJECT"),
        "{}",
        table.stdout
    );
    assert!(
        table.stdout.contains("-> set replicas to 2 or more"),
        "{}",
        table.stdout
    );
    assert!(table.stdout.contains("no problems, "), "{}", table.stdout);
}

/// `doctor` names by verb and resource what the operator is not allowed.
#[tokio::test]
async fn doctor_names_missing_permissions() {
    let bench = Bench::idle("rights").await;
    let reported = on(&bench, &["--as", "ann"]).await;
    assert_eq!(reported.code, 4, "{}", reported.stdout);
    assert!(reported.stderr.contains("doctor found "), "{}", reported.stderr);
    let namespace = bench.namespace.name();
    let rights = reported.findings("rights");
    for expected in [
        format!("problem: may not get, list, watch, create, patch, delete secrets in {namespace}"),
        format!("problem: may not patch registrymirrors.registrymirror.io/status in {namespace}"),
    ] {
        assert!(rights.contains(&expected), "{rights:#?}");
    }
    assert!(
        rights
            .iter()
            .any(|right| right.contains("leases.coordination.k8s.io")),
        "{rights:#?}"
    );
    // Without the right to see the definition, what is published of it has to do.
    assert_eq!(
        reported.findings("definition"),
        ["ok: has the fields of this version"]
    );
    assert!(reported.findings("mirror")[0].starts_with("problem: RegistryMirrors not listed: "));
}

/// A user that may only see the mirrors of a namespace learns what there is to see, and no problem is made up.
#[tokio::test]
async fn doctor_with_few_permissions_warns_once() {
    let bench = Bench::start("few-rights").await;
    let _kubelet = kubelet(&bench).await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_ready().await;
    let namespace = bench.namespace.name();
    let rule =
        json!({"apiGroups": ["registrymirror.io"], "resources": ["registrymirrors"], "verbs": ["list"]});
    bench
        .apply::<Role>(json!({"metadata": {"name": "viewer"}, "rules": [rule]}))
        .await;
    bench
        .apply::<ServiceAccount>(json!({"metadata": {"name": "viewer"}}))
        .await;
    let subject = json!({"kind": "ServiceAccount", "name": "viewer", "namespace": namespace});
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "viewer"});
    let binding = json!({"metadata": {"name": "viewer"}, "roleRef": reference, "subjects": [subject]});
    bench.apply::<RoleBinding>(binding).await;
    let kubeconfig = bench
        .control_plane
        .service_account_kubeconfig(namespace, "viewer")
        .await
        .unwrap();
    let reported = soon("a report without problems", async || {
        let reported = doctor(&kubeconfig, &["-n", namespace, "-o", "json"]).await;
        (reported.code == 0).then_some(reported)
    })
    .await;
    let operator = reported.findings("operator");
    assert_eq!(operator.len(), 1, "{operator:#?}");
    assert!(
        operator[0]
            .starts_with("warning: the operator was not found, and its RBAC permissions were not checked: "),
        "{operator:#?}"
    );
    assert!(reported.findings("rights").is_empty(), "{}", reported.stdout);
    assert!(
        reported.findings("mirror")[0].starts_with("ok: is ready"),
        "{}",
        reported.stdout
    );
}

/// `doctor` reports a missing Secret by its name, with the exit code of references.
#[tokio::test]
async fn doctor_reports_missing_secret_by_name() {
    let bench = Bench::start("secretless").await;
    let _kubelet = kubelet(&bench).await;
    bench.mirror("hub", with_credentials("quay")).await;
    bench
        .until_hub(ConditionType::Available, "True", Reason::ReplicasReady)
        .await;
    let reported = soon("a report of the Secret alone", async || {
        let reported = on(&bench, &[]).await;
        (reported.code == 3).then_some(reported)
    })
    .await;
    let mirror = reported.findings("mirror");
    assert!(
        mirror.iter().any(
            |reported| reported.starts_with("problem: credentials are not usable: ")
                && reported.contains(r#"Secret "quay""#)
        ),
        "{mirror:#?}"
    );
    assert!(reported.stdout.contains("anonymous-access-with-credentials"));
}

/// `doctor` reports a mirror that no operator reconciles as a problem.
#[tokio::test]
async fn doctor_reports_unreconciled_mirror() {
    let bench = Bench::idle("lonely").await;
    bench.mirror("hub", ephemeral()).await;
    let reported = on(&bench, &[]).await;
    assert_eq!(reported.code, 4);
    assert_eq!(
        reported.findings("mirror"),
        ["problem: has no status: no operator reconciles it"]
    );
    assert!(reported.findings("nodes")[0].contains("ConfigMap hub-hosts with files for nodes not found"));
}

/// A server that answers the same to all, until the test ends.
fn answering(status: &'static str, headers: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            let _ = connection.read(&mut [0; 4096]);
            let answer =
                format!("HTTP/1.1 {status}\r\n{headers}content-length: 0\r\nconnection: close\r\n\r\n");
            let _ = connection.write_all(answer.as_bytes());
        }
    });
    url
}

/// `doctor` probes the mirror at its address.
#[tokio::test]
async fn doctor_probes_the_mirrors_address() {
    const REGISTRY: &str = "docker-distribution-api-version: registry/2.0\r\n";
    let bench = Bench::idle("answers").await;
    bench.mirror("hub", ephemeral()).await;
    for (status, headers, expected) in [
        ("200 OK", REGISTRY, "ok: URL responds"),
        (
            "401 Unauthorized",
            REGISTRY,
            "ok: URL responds and requires a password",
        ),
        (
            "502 Bad Gateway",
            REGISTRY,
            "problem: URL/v2/ responds with 502 Bad Gateway",
        ),
        (
            "200 OK",
            "",
            "warning: URL not reachable from here (the server there is no registry, 200 OK)",
        ),
    ] {
        let url = answering(status, headers);
        let patch = Patch::Merge(json!({"status": {"endpoint": {"url": url}}}));
        let mirrors = bench.api::<RegistryMirror>();
        mirrors
            .patch_status("hub", &PatchParams::default(), &patch)
            .await
            .unwrap();
        let reported = on(&bench, &[]).await.findings("endpoint").remove(0);
        assert!(reported.starts_with(&expected.replace("URL", &url)), "{reported}");
    }
}

/// `doctor` names the files for nodes that are not current.
#[tokio::test]
async fn doctor_names_outdated_node_files() {
    let mut bench = Bench::start("stale").await;
    bench.mirror("hub", ephemeral()).await;
    bench
        .until("hub-hosts", "files for nodes", |map: &ConfigMap| map.data.clone())
        .await;
    bench.stop_operator().await;
    bench
        .merge::<ConfigMap>("hub-hosts", json!({"data": {"quay.io.hosts.toml": "by hand"}}))
        .await;
    let reported = on(&bench, &[]).await.findings("nodes");
    assert_eq!(
        reported,
        ["problem: ConfigMap hub-hosts does not match spec and address: quay.io.hosts.toml"]
    );
}

/// `doctor` reports a `CustomResourceDefinition` that is missing or old, with the remedy.
#[tokio::test]
async fn doctor_reports_missing_or_old_crd() {
    if skip_on_existing_cluster("doctor_reports_missing_or_old_crd") {
        return;
    }
    let control_plane = ControlPlane::start(Options::bare()).await.unwrap();
    let ask = async || doctor(control_plane.kubeconfig(), &["-A", "-o", "json"]).await;
    let reported = ask().await;
    assert_eq!(reported.code, 4);
    assert!(
        reported.findings("definition")[0].contains("is not installed"),
        "{}",
        reported.stdout
    );
    assert!(reported.stdout.contains("registry-mirror crd | kubectl apply"));
    assert_eq!(reported.findings("mirror"), Vec::<String>::new());

    let definitions: Api<CustomResourceDefinition> = Api::all(control_plane.client().await);
    let mut old = crds::crd();
    for version in &mut old.spec.versions {
        let schema = version
            .schema
            .as_mut()
            .and_then(|s| s.open_api_v3_schema.as_mut())
            .unwrap();
        schema.x_kubernetes_validations = None;
        let spec = schema.properties.as_mut().unwrap().get_mut("spec").unwrap();
        spec.x_kubernetes_validations = None;
        spec.properties.as_mut().unwrap().remove("observability");
    }
    let made = definitions.create(&PostParams::default(), &old).await.unwrap();
    let name = made.metadata.name.unwrap();
    wait::await_condition(definitions, &name, conditions::is_crd_established())
        .await
        .unwrap();
    let reported = ask().await;
    assert_eq!(reported.code, 4);
    let definition = reported.findings("definition").remove(0);
    assert!(
        definition.starts_with("problem: is older than this version: it has no spec.observability"),
        "{definition}"
    );
}

/// `doctor` reports an API server that does not respond, with advice.
#[tokio::test]
async fn doctor_reports_unresponsive_api_server() {
    let scratch = Scratch::new("nowhere").unwrap();
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("https://{address}")}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "users": [{"name": "c", "user": {"token": "secret-of-this-test"}}],
    });
    let file = scratch.write("kubeconfig", kubeconfig.to_string()).unwrap();
    let reported = doctor(&file, &["-A", "-o", "yaml"]).await;
    assert_eq!(reported.code, 4);
    let report: Value = serde_saphyr::from_str(&reported.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1);
    let message = findings[0]["message"].as_str().unwrap();
    assert!(
        message.starts_with("no response: ") && message.contains("refused"),
        "{message}"
    );
    assert!(findings[0]["advice"].as_str().unwrap().contains("--context"));
    assert!(
        !reported.stdout.contains("secret-of-this-test") && !reported.stderr.contains("secret-of-this-test")
    );

    let reported = doctor(&file, &["--context", "other"]).await;
    assert_eq!(reported.code, 4);
    assert!(reported.stdout.contains("other"), "{}", reported.stdout);
}

/// `doctor` reports a `PodDisruptionBudget` that allows no eviction.
#[tokio::test]
async fn doctor_reports_blocking_disruption_budget() {
    let bench = Bench::start("budget").await;
    let _kubelet = kubelet(&bench).await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_ready().await;
    let selector = json!({"matchLabels": {"app.kubernetes.io/instance": "hub"}});
    let budget = json!({"metadata": {"name": "strict"}, "spec": {"minAvailable": 1, "selector": selector}});
    bench.apply::<PodDisruptionBudget>(budget).await;
    soon("word of the budget", async || {
        let reported = on(&bench, &[]).await.findings("risk");
        let reported = reported
            .iter()
            .any(|reported| reported.contains("PodDisruptionBudget strict"));
        reported.then_some(())
    })
    .await;
}
