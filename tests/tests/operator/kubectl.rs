//! A mirror in kubectl: its columns, its descriptions and its edits.

use std::process::Output;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use serde_json::json;
use testbed::binaries::{self, workspace};
use testbed::scratch::Scratch;
use tokio::process::Command;

use crate::bench::{Bench, soon, with_claims};
use crate::pods::kubelet;

/// Runs kubectl in the namespace of a bench.
async fn run(bench: &Bench, arguments: &[&str]) -> Output {
    Command::new(binaries::get("kubectl").await.unwrap())
        .arg("--kubeconfig")
        .arg(bench.control_plane.kubeconfig())
        .args(["--namespace", bench.namespace.name()])
        .args(arguments)
        .output()
        .await
        .unwrap()
}

/// Returns the output of kubectl, which must succeed.
async fn kubectl(bench: &Bench, arguments: &[&str]) -> String {
    let output = run(bench, arguments).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// kubectl applies the output of `render` to the namespace that it chooses, except Secrets with masked values.
#[tokio::test]
async fn rendered_objects_apply_unless_masked() {
    let bench = Bench::idle("rendered").await;
    let scratch = Scratch::new("rendered").unwrap();
    let example = workspace().join("examples/docker-hub.yaml");
    for (flag, applies) in [(None, false), (Some("--show-secrets"), true)] {
        let rendered = Command::new(env!("CARGO_BIN_EXE_operator-under-test"))
            .args(["render", "-f"])
            .arg(&example)
            .args(flag)
            .output()
            .await
            .unwrap();
        let file = scratch.write("rendered.yaml", rendered.stdout).unwrap();
        let applied = run(&bench, &["apply", "-f", file.to_str().unwrap()]).await;
        let said = String::from_utf8_lossy(&applied.stderr);
        assert_eq!(applied.status.success(), applies, "{flag:?}: {said}");
        assert_eq!(said.contains("illegal base64"), !applies, "{said}");
    }
}

/// The words of each line.
fn table(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .map(|line| line.split_whitespace().collect())
        .collect()
}

/// Kubectl waits for a mirror, lists, describes and scales it.
#[tokio::test]
async fn kubectl_waits_lists_describes_and_scales() {
    let bench = Bench::start("kubectl").await;
    bench.mirror("hub", with_claims("16Mi")).await;
    bench
        .until_hub(ConditionType::Ready, "False", Reason::ClaimPending)
        .await;
    let _kubelet = kubelet(&bench).await;
    kubectl(
        &bench,
        &["wait", "rmir/hub", "--for=condition=Ready", "--timeout=60s"],
    )
    .await;
    let url = bench
        .until("hub", "endpoint and version", |mirror: &RegistryMirror| {
            let status = mirror.status.as_ref()?;
            status.server_version.as_ref()?;
            Some(status.endpoint.as_ref()?.url.clone())
        })
        .await;

    let short = kubectl(&bench, &["get", "rmir"]).await;
    let rows = table(&short);
    assert_eq!(
        rows[0],
        ["NAME", "UPSTREAM", "READY", "ENDPOINT", "REPLICAS", "AGE"]
    );
    assert_eq!(rows[1][..5], ["hub", "quay.io", "True", &url, "1"]);
    let wide = kubectl(&bench, &["get", "rmir", "-o", "wide"]).await;
    let rows = table(&wide);
    assert_eq!(rows[0][6..], ["REASON", "STORAGE", "VERSION"]);
    assert_eq!(
        rows[1][6..],
        ["Serving", "PersistentVolumeClaim", env!("CARGO_PKG_VERSION")]
    );

    kubectl(&bench, &["scale", "rmir/hub", "--replicas=2"]).await;
    kubectl(
        &bench,
        &[
            "wait",
            "rmir/hub",
            "--for=jsonpath={.status.readyReplicas}=2",
            "--timeout=60s",
        ],
    )
    .await;
    let scale = kubectl(
        &bench,
        &["get", "rmir", "hub", "--subresource=scale", "-o", "json"],
    )
    .await;
    let scale: serde_json::Value = serde_json::from_str(&scale).unwrap();
    assert_eq!(scale["status"]["replicas"], json!(2));

    // It could not serve at first, and then it did.
    soon("the story in events", async || {
        let reported = kubectl(&bench, &["describe", "rmir", "hub"]).await;
        let (_, events) = reported.split_once("Events:")?;
        let line = |words: [&str; 2]| {
            events
                .lines()
                .position(|line| words.iter().all(|word| line.contains(word)))
        };
        let waited = line(["Warning", "ClaimPending"])?;
        let served = line(["Normal", "Serving"])?;
        assert!(waited < served, "{events}");
        line(["Serving", "pulls are served"]).map(drop)
    })
    .await;
}
