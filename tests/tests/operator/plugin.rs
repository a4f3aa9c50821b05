//! `kubectl rmir`, against real API servers. Port-forwards need a real kubelet: `tests/tests/e2e/plugin.rs` has them.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::process::Output;

use flate2::read::GzDecoder;
use serde_json::{Value, json};
use testbed::scratch::Scratch;
use tokio::process::Command;

use crate::bench::{Bench, ephemeral, with_credentials};
use crate::pods::kubelet;

async fn plugin(bench: &Bench, scratch: &Scratch, arguments: &[&str]) -> Output {
    let program = scratch.path().join("kubectl-rmir");
    if !program.exists() {
        symlink(env!("CARGO_BIN_EXE_operator-under-test"), &program).unwrap();
    }
    Command::new(program)
        .args(arguments)
        .current_dir(scratch.path())
        .env("KUBECONFIG", bench.control_plane.kubeconfig())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap()
}

fn stdout(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// `status` shows a mirror on a screen and as JSON, a misspelt name has a suggestion, and names are completed.
#[tokio::test]
async fn status_shows_a_mirror_and_suggests_names() {
    let bench = Bench::start("status").await;
    let _kubelet = kubelet(&bench).await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_ready().await;
    let (scratch, namespace) = (Scratch::new("status").unwrap(), bench.namespace.name());
    let one = plugin(
        &bench,
        &scratch,
        &["status", "hub", "-n", namespace, "-o", "json"],
    )
    .await;
    let state: Value = serde_json::from_str(&stdout(&one)).unwrap();
    assert_eq!(
        (&state["ready"], &state["reason"]),
        (&json!(true), &json!("Serving")),
        "{state}"
    );
    assert_eq!(state["replicas"]["ready"], 1, "{state}");
    assert!(
        state["endpoint"].as_str().unwrap().starts_with("http://"),
        "{state}"
    );
    // The fake kubelet forwards no port; the reason is in place of the cache's size.
    assert!(state["cache"][0]["error"].is_string(), "{state}");
    let screen = stdout(&plugin(&bench, &scratch, &["status", "-n", namespace]).await);
    for text in [
        &format!("Mirror       {namespace}/hub"),
        "CONDITION",
        "UPSTREAM",
        "POD",
    ] {
        assert!(screen.contains(text), "{text}: {screen}");
    }
    let misspelt = plugin(&bench, &scratch, &["status", "hbu", "-n", namespace]).await;
    let message = String::from_utf8_lossy(&misspelt.stderr).into_owned();
    assert_eq!(misspelt.status.code(), Some(3), "{message}");
    assert!(message.contains("did you mean hub?"), "{message}");
    let names = plugin(&bench, &scratch, &["__complete", "status", "-n", namespace, ""]).await;
    assert!(
        stdout(&names).lines().any(|line| line == "hub"),
        "{}",
        stdout(&names)
    );
}

/// `doctor NAME --wait` ends when the mirror works, and is about no other mirror.
#[tokio::test]
async fn doctor_waits_for_one_mirror() {
    let bench = Bench::start("waits").await;
    let _kubelet = kubelet(&bench).await;
    bench.mirror("hub", ephemeral()).await;
    bench.mirror("other", with_credentials("missing")).await;
    let (scratch, namespace) = (Scratch::new("waits").unwrap(), bench.namespace.name());
    let arguments = [
        "doctor",
        "hub",
        "-n",
        namespace,
        "--wait",
        "--timeout",
        "60s",
        "-o",
        "json",
    ];
    let report: Value = serde_json::from_str(&stdout(&plugin(&bench, &scratch, &arguments).await)).unwrap();
    let subjects: Vec<_> = report["findings"].as_array().unwrap().iter().collect();
    let other = format!("{namespace}/other");
    assert!(
        subjects
            .iter()
            .all(|finding| finding["subject"] != other.as_str()),
        "{report}"
    );
    let late = ["doctor", "other", "-n", namespace, "--wait", "--timeout", "1s"];
    assert_eq!(plugin(&bench, &scratch, &late).await.status.code(), Some(3));
}

/// The bundle has the mirror with its events and logs, and neither the password of a Secret nor one in a URL.
#[tokio::test]
async fn report_has_no_secret() {
    let bench = Bench::start("report").await;
    bench.login("quay", "ann", "hunter2").await;
    let mut spec = with_credentials("quay");
    spec["upstreams"][0]["proxyURL"] = json!("http://proxy.example:3128");
    bench.mirror("hub", spec).await;
    bench.until_accepted("hub").await;
    let (scratch, namespace) = (Scratch::new("report").unwrap(), bench.namespace.name());
    let output = plugin(&bench, &scratch, &["report", "hub", "-n", namespace]).await;
    assert_eq!(stdout(&output), "registry-mirror-report-hub.tar.gz\n");
    let file = File::open(scratch.path().join("registry-mirror-report-hub.tar.gz")).unwrap();
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        names.push(entry.path().unwrap().display().to_string());
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        assert!(
            !text.contains("hunter2") && !text.contains("aHVudGVyMg"),
            "{names:?}: {text}"
        );
    }
    for name in [
        "mirror.yaml",
        "configmaps.yaml",
        "events.yaml",
        "pods.yaml",
        "version.txt",
    ] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
}
