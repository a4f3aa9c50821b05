//! Reasons of conditions, as they come to a status on a real API server: those that no other test here leads to, and
//! proof that there is one for each.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason, Truth, said};
use serde_json::json;
use testbed::pki::Authority;
use testbed::scratch::Scratch;
use testbed::upstream::{self, Access, Upstream};

use crate::bench::{Bench, ephemeral, push_one, soon};
use crate::pods::{address, kubelet, kubelet_with, pods};

async fn upstream() -> Upstream {
    let options = upstream::Options::protected(Access::Basic, ("ann", "pw"));
    let upstream = Upstream::start(options).await.unwrap();
    push_one(&upstream, 3).await;
    upstream
}

/// A mirror that asks each time, with the Secret `quay`.
async fn mirror(bench: &Bench, upstream: &Upstream) {
    bench.login("quay", "ann", "pw").await;
    let spec = json!({
        "upstreams": [{
            "host": "registry.example", "remoteURL": upstream.url(), "credentialsSecretRef": {"name": "quay"},
        }],
        "cache": {"tagTTL": "0s", "staleIfError": "0s"},
        "storage": {"type": "Ephemeral"},
    });
    bench.mirror("hub", spec).await;
    bench.until_ready().await;
    bench
        .until_hub(
            ConditionType::CredentialsValid,
            "True",
            Reason::CredentialsAccepted,
        )
        .await;
}

async fn pull(bench: &Bench) -> u16 {
    let pod = pods(bench).await.remove(0);
    let url = format!("http://{}:5000/v2/team/app/manifests/one", address(&pod));
    reqwest::get(url).await.unwrap().status().as_u16()
}

async fn is_ready(bench: &Bench) -> bool {
    let mirror = bench.get::<RegistryMirror>("hub").await.unwrap();
    crate::bench::condition(&mirror, ConditionType::Ready)
        .unwrap()
        .status
        == "True"
}

/// Credentials that a replica has not read are loading, and the readiness does not change.
#[tokio::test]
async fn unread_credentials_are_loading_and_ready() {
    let bench = Bench::start("loading").await;
    let kubelet = kubelet(&bench).await;
    let mut upstream = upstream().await;
    mirror(&bench, &upstream).await;
    upstream.set_users(&[("ann", "pw"), ("ann2", "pw")]).unwrap();

    kubelet.hold_volumes(true);
    bench.login("quay", "ann2", "pw").await;
    let loading = bench
        .until_hub(ConditionType::CredentialsValid, "Unknown", Reason::Loading)
        .await;
    assert!(
        loading
            .message
            .contains("registry.example: 0 of 1 replicas use the credentials of Secret quay"),
        "{}",
        loading.message
    );
    assert!(is_ready(&bench).await);
    kubelet.hold_volumes(false);
    bench
        .until_hub(
            ConditionType::CredentialsValid,
            "True",
            Reason::CredentialsAccepted,
        )
        .await;
}

/// An upstream that limits requests is reported, and the readiness does not change.
#[tokio::test]
async fn rate_limited_upstream_is_reported_and_ready() {
    let bench = Bench::start("limited").await;
    let _kubelet = kubelet(&bench).await;
    let upstream = upstream().await;
    mirror(&bench, &upstream).await;
    assert_eq!(pull(&bench).await, 200);
    upstream.limit_requests(true);
    soon("a pull that is put off", async || {
        (pull(&bench).await == 429).then_some(())
    })
    .await;
    let limited = bench
        .until_hub(ConditionType::UpstreamReachable, "False", Reason::RateLimited)
        .await;
    assert!(
        limited.message.contains("registry.example"),
        "{}",
        limited.message
    );
    let mirror = bench.get::<RegistryMirror>("hub").await.unwrap();
    let status = serde_json::to_value(mirror.status).unwrap();
    assert_eq!(status["upstreams"][0]["state"], json!("RateLimited"));
    assert!(is_ready(&bench).await);
}

/// A server whose cache lies on a file system of 16 MiB that something else fills: in a mount namespace of its own, in
/// which it needs no rights of this machine.
fn on_a_small_disk(scratch: &Scratch) -> PathBuf {
    let script = format!(
        r#"#!/bin/sh
set -e
root=$REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY
if [ -z "$INSIDE" ]; then INSIDE=1 exec unshare --user --map-root-user --mount -- "$0" "$@"; fi
mount -t tmpfs -o size=16m none "$root"
(until [ -e "$root/_mirror/index.redb" ]; do sleep 0.1; done; dd if=/dev/zero of="$root/_mirror/ballast" bs=64k || :) &
exec {} "$@"
"#,
        env!("CARGO_BIN_EXE_mirror-under-test")
    );
    let path = scratch.write("server", script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Some machines let only root have namespaces, and some not even root.
fn has_namespaces() -> bool {
    let mut probe = std::process::Command::new("unshare");
    probe.args([
        "--user",
        "--map-root-user",
        "--mount",
        "mount",
        "-t",
        "tmpfs",
        "none",
        "/mnt",
    ]);
    probe.output().is_ok_and(|output| output.status.success())
}

/// A full disk is reported, and pulls continue.
#[tokio::test]
async fn full_disk_is_reported_while_pulls_continue() {
    if !has_namespaces() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "no mount namespace");
        eprintln!("SKIPPED full_disk_is_reported_while_pulls_continue: no mount namespace can be had here");
        return;
    }
    let bench = Bench::start("full").await;
    let scratch = Scratch::new("full").unwrap();
    let _kubelet = kubelet_with(&bench, on_a_small_disk(&scratch)).await;
    let upstream = upstream().await;
    mirror(&bench, &upstream).await;
    let full = bench
        .until_hub(ConditionType::StorageReady, "False", Reason::Full)
        .await;
    assert!(
        full.message.contains("can store no content") && full.message.contains("pulls continue"),
        "{}",
        full.message
    );
    assert_eq!(pull(&bench).await, 200);
    assert!(is_ready(&bench).await);
}

/// A malformed certificate is reported until it is fixed.
#[tokio::test]
async fn malformed_certificate_is_reported_until_fixed() {
    let bench = Bench::start("malformed-tls").await;
    bench
        .secret(
            "serving",
            json!({"tls.crt": "no certificate", "tls.key": "no key"}),
        )
        .await;
    let mut spec = ephemeral();
    spec["tls"] = json!({"mode": "Secret", "secretName": "serving"});
    bench.mirror("hub", spec).await;
    let observed = bench
        .until_hub(ConditionType::TLSReady, "False", Reason::Malformed)
        .await;
    assert!(observed.message.contains("serving"), "{}", observed.message);
    bench
        .until_hub(ConditionType::Accepted, "False", Reason::ReferenceMalformed)
        .await;
    let leaf = Authority::new("repaired").unwrap().serving(&["hub"]).unwrap();
    bench
        .secret(
            "serving",
            json!({"tls.crt": leaf.certificate, "tls.key": leaf.key}),
        )
        .await;
    bench
        .until_hub(ConditionType::TLSReady, "True", Reason::CertificateReady)
        .await;

    // Of one that comes later the spec is acted on, with the certificate that was good.
    bench
        .secret("serving", json!({"tls.crt": "no certificate any more"}))
        .await;
    bench
        .until_hub(ConditionType::Ready, "False", Reason::Malformed)
        .await;
    bench.until_accepted("hub").await;
}

/// The functions that wait for a condition, with the condition if it is always the same.
const WAITING: [(&str, Option<ConditionType>); 4] = [
    ("until_condition(", None),
    ("until_hub(", None),
    ("stage.until(", Some(ConditionType::CredentialsValid)),
    ("until_storage(", Some(ConditionType::StorageReady)),
];

/// The one of these that a call spells out.
fn spelt<T: Copy + std::fmt::Display>(call: &str, all: &[T], before: &str, after: &str) -> Option<T> {
    let is_there = |name: &T| {
        let name = format!("{before}{name}");
        let mut places = call.match_indices(&name);
        places.any(|(at, _)| match after {
            "" => !call[at + name.len()..].starts_with(char::is_alphanumeric),
            after => call[at + name.len()..].starts_with(after),
        })
    };
    all.iter().copied().find(is_there)
}

/// The conditions that this source waits for, where it spells out status and reason.
fn waited_for(source: &str) -> Vec<(ConditionType, Truth, Reason)> {
    let mut found = Vec::new();
    for (waiting, always) in WAITING {
        for call in source.split(waiting).skip(1) {
            let (call, _) = call.split_once(".await").unwrap_or((call, ""));
            let kind = always.or_else(|| spelt(call, ConditionType::ALL, "ConditionType::", ""));
            let truth = spelt(call, Truth::ALL, "\"", "\"");
            let reason = spelt(call, Reason::ALL, "Reason::", "");
            found.extend(
                kind.zip(truth)
                    .zip(reason)
                    .map(|((kind, truth), reason)| (kind, truth, reason)),
            );
        }
    }
    found
}

/// A test waits for every status and reason of every condition on a real API server.
#[test]
fn api_server_tests_cover_every_reason() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/operator");
    let files = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file());
    let sources = files.map(|path| fs::read_to_string(path).unwrap());
    let waited_for: Vec<_> = sources.flat_map(|source| waited_for(&source)).collect();
    let missing: Vec<_> = said().filter(|said| !waited_for.contains(said)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
