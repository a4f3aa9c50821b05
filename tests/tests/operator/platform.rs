//! Clusters that assign users and groups to Pods.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use crds::RegistryMirror;
use crds::conditions::ConditionType;
use k8s_openapi::api::core::v1::{Pod, PodSecurityContext};
use kube::Api;
use operator::desired::{Platform, Release};
use operator::run::Options;
use serde_json::{Value, json};
use testbed::control_plane::dry_run;
use testbed::process::{Daemon, command, free_ports};
use testbed::scratch::Scratch;
use testbed::upstream::{self, Upstream};

use crate::bench::{Bench, condition, ephemeral, push_one, soon, with_claims};
use crate::pods::{kubelet, pods};
use crate::policies::Policy;

/// The checks of `OpenShift`'s restricted-v2: users and groups only from the range of the namespace. `OpenShift` assigns
/// them to Pods that leave them out, which no policy of this API server can do.
fn restricted() -> String {
    let context = "object.spec.?securityContext";
    let containers = "object.spec.containers";
    let in_range = |id: &str| format!("({id} >= 1000650000 && {id} < 1000660000)");
    [
        format!(
            "{context}.?runAsUser.optMap(id, {}).orValue(true)",
            in_range("id")
        ),
        format!("{context}.?fsGroup.optMap(id, {}).orValue(true)", in_range("id")),
        format!("{context}.?runAsGroup.orValue(0) == 0"),
        format!("{context}.?runAsNonRoot.orValue(false)"),
        format!("{context}.?seccompProfile.?type.orValue('') == 'RuntimeDefault'"),
        format!("{containers}.all(c, !has(c.securityContext.runAsUser))"),
        format!("{containers}.all(c, !c.securityContext.allowPrivilegeEscalation)"),
        format!("{containers}.all(c, 'ALL' in c.securityContext.capabilities.drop)"),
        format!("{containers}.all(c, c.securityContext.readOnlyRootFilesystem)"),
    ]
    .join(" && ")
}

async fn restrict(bench: &Bench) -> Policy {
    let policy = Policy::require(bench, ("", "v1", "pods"), &restricted(), "Forbidden").await;
    let container = json!({"name": "a", "image": "a", "securityContext": {"runAsUser": 65532}});
    let pod = json!({"metadata": {"name": "probe"}, "spec": {"containers": [container]}});
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let pods: Api<Pod> = bench.api();
    soon("the policy", async || {
        let made = pods.create(&dry_run(), &pod).await;
        let refused = made.is_err_and(|error| error.to_string().contains("not in this house"));
        refused.then_some(())
    })
    .await;
    policy
}

async fn until_serving(bench: &Bench) -> PodSecurityContext {
    bench.until_ready().await;
    let pod = pods(bench).await.remove(0);
    pod.spec.unwrap().security_context.unwrap()
}

/// A mirror that asks for no user gets Pods on a cluster that refuses fixed ones.
#[tokio::test]
async fn empty_security_context_meets_restricted_policy() {
    let bench = Bench::start("restricted").await;
    let _kubelet = kubelet(&bench).await;
    let _policy = restrict(&bench).await;
    bench.mirror("hub", ephemeral()).await;
    let refused = |mirror: &RegistryMirror| {
        let available = condition(mirror, ConditionType::Available)?;
        available.message.contains("not in this house").then_some(())
    };
    bench.until("hub", "word of the policy", refused).await;

    let mut spec = ephemeral();
    spec["pod"] = json!({"securityContext": {}});
    bench.mirror("hub", spec).await;
    let context = until_serving(&bench).await;
    assert_eq!(context.run_as_user, None);
    assert_eq!((context.run_as_non_root, context.fs_group), (Some(true), None));
}

/// An operator that knows the platform needs nothing in the spec, also for volumes that are claimed.
#[tokio::test]
async fn openshift_pods_meet_restricted_policy() {
    for (name, spec) in [("assigned", ephemeral()), ("assigned-claims", with_claims("1Gi"))] {
        let mut bench = Bench::idle(name).await;
        bench.options = Options {
            release: Release {
                platform: Platform::OpenShift,
                ..Release::default()
            },
            ..Options::default()
        };
        let _kubelet = kubelet(&bench).await;
        let _policy = restrict(&bench).await;
        bench.start_operator().await;
        bench.mirror("hub", spec).await;
        let pods = soon("a Pod", async || {
            let pods = pods(&bench).await;
            (!pods.is_empty()).then_some(pods)
        })
        .await;
        let context: Value = json!(pods[0].spec.as_ref().unwrap().security_context);
        for field in ["runAsUser", "runAsGroup", "fsGroup"] {
            assert_eq!(context[field], Value::Null, "{context}");
        }
    }
}

/// A server runs as a user that `OpenShift` chose, in group 0, on a volume that belongs to root and is writable for the
/// group, and its cache survives another user. Needs root, to run as others.
#[tokio::test]
async fn cache_is_writable_for_any_user_of_group_0() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let upstream = Upstream::start(upstream::Options::default()).await.unwrap();
    push_one(&upstream, 6).await;
    let scratch = Scratch::new("any-user").unwrap();
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).unwrap();
    let server = scratch.path().join("mirror");
    fs::copy(env!("CARGO_BIN_EXE_mirror-under-test"), &server).unwrap();
    let cache = scratch.subdirectory("cache").unwrap();
    // As the kubelet makes a volume for a group.
    fs::set_permissions(&cache, Permissions::from_mode(0o2775)).unwrap();
    let [port] = free_ports().unwrap();
    let config = json!({
        "version": 0.1, "http": {"addr": format!("127.0.0.1:{port}")},
        "storage": {"filesystem": {"rootdirectory": cache}}, "proxy": {"remoteurl": upstream.url()},
    });
    let config = scratch.write("config.yml", config.to_string()).unwrap();
    let mut command = command(&server);
    command.arg("serve").arg(config).uid(1_000_650_000).gid(0);
    let log = scratch.path().join("mirror.log");
    let mut daemon = Daemon::spawn("mirror", command, &log).unwrap();
    let url = format!("http://127.0.0.1:{port}/v2/team/app/manifests/one");
    let get = async || reqwest::get(&url).await.ok()?.error_for_status().ok();
    soon("a manifest", get).await;
    let cached = soon("a hit", get).await;
    assert_eq!(cached.headers()["x-cache"], "HIT", "{}", daemon.log_tail());
    daemon.kill();
}
