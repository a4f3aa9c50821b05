//! The chart's node agent.

use std::collections::BTreeSet;
use std::fs;

use operator::rbac::ON_AGENTS;
use serde_json::{Value, json};
use testbed::control_plane::skip_on_existing_cluster;
use testbed::process::{Daemon, command, free_ports};
use testbed::scratch::Scratch;
use testbed::wait;

use crate::cluster::Cluster;
use crate::helm::Helm;
use crate::{SOON, named};

pub(crate) const AGENT: &str = "--set=nodeAgent.enabled=true,nodeAgent.namespaces={a,b}";
const NAME: &str = "rm-registry-mirror-agent";

fn pod(objects: &[Value]) -> &Value {
    &named(objects, "DaemonSet")[0]["spec"]["template"]["spec"]
}

/// Returns the directories of a node that the agent mounts, each with `ro` or `rw`.
fn mounts(pod: &Value) -> BTreeSet<String> {
    let container = &pod["containers"][0];
    let mounts = container["volumeMounts"].as_array().unwrap().iter();
    mounts
        .map(|mount| {
            let volumes = pod["volumes"].as_array().unwrap();
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
            let path = volume.unwrap()["hostPath"]["path"].as_str().unwrap();
            assert_eq!(mount["mountPath"], format!("/host{path}"));
            let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
            format!("{path} {mode}")
        })
        .collect()
}

#[tokio::test]
async fn agent_is_off_by_default_and_needs_namespaces() {
    let helm = Helm::offline().await;
    assert!(named(&helm.template(&[]).await.unwrap(), "DaemonSet").is_empty());
    let refused = helm
        .template(&["--set=nodeAgent.enabled=true"])
        .await
        .unwrap_err();
    assert!(refused.contains("nodeAgent.namespaces"), "{refused}");
}

/// The agent writes directories of a runtime as root, and has nothing else of the node.
#[tokio::test]
async fn agent_pod_has_narrow_mounts_and_no_privilege() {
    let helm = Helm::offline().await;
    let k3s = "/var/lib/rancher/k3s/agent/etc/containerd/certs.d rw";
    let rke2 = "/var/lib/rancher/rke2/agent/etc/containerd/certs.d rw";
    let crio = [
        "/etc/containers ro",
        "/etc/containers/certs.d rw",
        "/etc/containers/registries.conf.d rw",
        "/etc/crio ro",
    ];
    for (flag, expected) in [
        (
            "runtime=containerd",
            &["/etc/containerd ro", "/etc/containerd/certs.d rw"][..],
        ),
        (
            "setConfigPath=true",
            &[
                "/etc/containerd ro",
                "/etc/containerd/certs.d rw",
                "/etc/containerd/conf.d rw",
            ],
        ),
        (
            "certsDir=/etc/containerd/hosts.d",
            &["/etc/containerd/hosts.d rw"],
        ),
        ("runtime=k3s", &[k3s]),
        ("runtime=rke2", &[rke2]),
        ("runtime=crio", &crio),
    ] {
        let objects = helm
            .template(&[AGENT, &format!("--set=nodeAgent.{flag}")])
            .await
            .unwrap();
        let pod = pod(&objects);
        let expected: BTreeSet<_> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(mounts(pod), expected, "{flag}");
        for field in ["hostPID", "hostIPC", "shareProcessNamespace"] {
            assert!(pod[field].is_null(), "{field}");
        }
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(
            *container,
            json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
        );
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    }
}

/// The agent reads mirrors and `ConfigMaps` of the named namespaces, and no Secret.
#[tokio::test]
async fn agent_reads_named_namespaces_and_no_secret() {
    let helm = Helm::offline().await;
    let objects = helm.template(&[AGENT]).await.unwrap();
    let mut namespaces = BTreeSet::new();
    for role in named(&objects, "Role")
        .into_iter()
        .filter(|role| role["metadata"]["name"] == NAME)
    {
        namespaces.insert(role["metadata"]["namespace"].as_str().unwrap());
        assert_eq!(
            role["rules"],
            json!([
                {"apiGroups": ["registrymirror.io"], "resources": ["registrymirrors"], "verbs": ["list", "watch"]},
                {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]},
            ])
        );
    }
    assert_eq!(namespaces, BTreeSet::from(["a", "b"]));
    let account = |binding: &&Value| binding["subjects"][0]["name"] == NAME;
    let cluster_wide = named(&objects, "ClusterRoleBinding");
    assert_eq!(cluster_wide.into_iter().filter(account).count(), 0);
}

#[tokio::test]
async fn values_set_the_agents_arguments() {
    let helm = Helm::offline().await;
    let flags =
        "--set=nodeAgent.certsDir=/etc/containerd/hosts.d,nodeAgent.setConfigPath=true,nodeAgent.port=1234";
    let more =
        "--set=nodeAgent.keepForeignFiles=true,nodeAgent.podLabels.team=ours,nodeAgent.priorityClassName=p";
    let objects = helm.template(&[AGENT, flags, more]).await.unwrap();
    let pod = pod(&objects);
    let container = &pod["containers"][0];
    let arguments: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
    for argument in [
        "--namespace=a",
        "--namespace=b",
        "--certs-dir=/etc/containerd/hosts.d",
        "--set-config-path",
        "--keep-foreign-files",
        "--listen=$(POD_IP):1234",
    ] {
        assert!(
            arguments.iter().any(|found| found == argument),
            "{argument}: {arguments:?}"
        );
    }
    assert_eq!(container["ports"][0]["hostPort"], 1234);
    assert_eq!(pod["priorityClassName"], "p");
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    let services = named(&objects, "Service");
    let service = services
        .iter()
        .find(|service| service["metadata"]["name"] == NAME)
        .unwrap();
    assert_eq!(service["spec"]["clusterIP"], "None");
    let selected = &service["spec"]["selector"];
    let labels = &named(&objects, "DaemonSet")[0]["spec"]["template"]["metadata"]["labels"];
    for (key, value) in selected.as_object().unwrap() {
        assert_eq!(&labels[key], value);
    }
    assert_eq!(selected["app.kubernetes.io/component"], "node-agent");
    assert_eq!(labels["team"], "ours");
}

/// The operator finds the agents with exactly the permissions for that.
#[tokio::test]
async fn operator_finds_agents_by_their_service() {
    let helm = Helm::offline().await;
    let objects = helm.template(&[AGENT]).await.unwrap();
    let arguments = &named(&objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["args"];
    let service = json!(format!("--agent-service=operators/{NAME}"));
    assert!(arguments.as_array().unwrap().contains(&service), "{arguments}");
    let name = format!("{NAME}s");
    let found = named(&objects, "Role");
    let role = found
        .iter()
        .find(|role| role["metadata"]["name"] == name.as_str())
        .unwrap();
    let rules: Vec<_> = ON_AGENTS
        .iter()
        .map(|rule| json!({"apiGroups": [rule.group], "resources": rule.resources, "verbs": rule.verbs}))
        .collect();
    assert_eq!(role["rules"], json!(rules));
    assert_eq!(role["metadata"]["namespace"], "operators");
}

async fn hooks(helm: &Helm, flags: &[&str]) -> Vec<Value> {
    let mut arguments = vec![
        "template",
        "rm",
        "CHART",
        "--namespace=operators",
        "--kube-version=1.36.0",
    ];
    arguments.extend(flags);
    let yaml = helm.run(&arguments).await.unwrap();
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(&yaml).unwrap();
    objects.retain(|object| object["metadata"]["annotations"]["helm.sh/hook"] == "post-delete");
    objects
}

/// After the release is deleted, one Pod on each node removes the files. The agent's port keeps it from the node until the
/// agent has ended.
#[tokio::test]
async fn cleanup_runs_on_each_node_after_the_agent() {
    let helm = Helm::offline().await;
    let hooks = hooks(&helm, &[AGENT]).await;
    let kinds: Vec<_> = hooks.iter().map(|hook| hook["kind"].as_str().unwrap()).collect();
    for kind in ["DaemonSet", "Job", "Role", "RoleBinding", "ServiceAccount"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let cleanup = pod(&hooks);
    let objects = helm.template(&[AGENT]).await.unwrap();
    let agent = pod(&objects);
    assert_eq!(
        cleanup["containers"][0]["ports"][0]["hostPort"],
        agent["containers"][0]["ports"][0]["hostPort"]
    );
    assert_eq!(mounts(cleanup), mounts(agent));
    let selector = &named(&hooks, "DaemonSet")[0]["spec"]["selector"];
    assert_ne!(*selector, named(&objects, "DaemonSet")[0]["spec"]["selector"]);
}

#[tokio::test]
async fn cleanup_can_be_disabled() {
    let helm = Helm::offline().await;
    for flags in [&[][..], &[AGENT, "--set=nodeAgent.cleanup=false"]] {
        assert!(hooks(&helm, flags).await.is_empty(), "{flags:?}");
    }
}

/// The API server accepts the hooks, and refuses the agent nothing.
#[tokio::test]
async fn agent_is_refused_nothing() {
    if skip_on_existing_cluster("agent_is_refused_nothing") {
        return;
    }
    let cluster = Cluster::start().await;
    for namespace in ["a", "b"] {
        cluster.restricted_namespace(namespace).await;
    }
    cluster.install(&[AGENT]).await.unwrap();
    cluster
        .dry_run(&hooks(&cluster.helm, &[AGENT]).await)
        .await
        .unwrap();
    let audit = cluster.control_plane.audit().unwrap();
    let mark = audit.mark().unwrap();
    let account = cluster
        .control_plane
        .service_account_kubeconfig("operators", NAME);
    let scratch = Scratch::new("chart-agent").unwrap();
    let root = scratch.subdirectory("root").unwrap();
    fs::create_dir_all(root.join("etc/containerd")).unwrap();
    let [port] = free_ports().unwrap();
    let mut agent = command(env!("CARGO_BIN_EXE_operator-under-test"));
    agent
        .args(["agent", "--namespace=a", "--namespace=b"])
        .arg(format!("--listen=127.0.0.1:{port}"))
        .arg("--root")
        .arg(&root)
        .env("KUBECONFIG", account.await.unwrap());
    let agent = Daemon::spawn("agent", agent, &scratch.path().join("agent.log")).unwrap();
    let ready = format!("http://127.0.0.1:{port}/readyz");
    wait::until("agent that is ready", SOON, async || {
        let response = reqwest::get(&ready).await.ok()?;
        response.status().is_success().then_some(())
    })
    .await
    .unwrap();
    drop(agent);
    let user = format!("system:serviceaccount:operators:{NAME}");
    let mut events = audit.since(mark).unwrap();
    events.retain(|event| event.user() == user);
    let asked: BTreeSet<_> = events
        .iter()
        .map(|event| format!("{} {}", event.verb, event.object_ref.resource))
        .collect();
    let listed = ["list configmaps", "list registrymirrors"].map(str::to_owned);
    assert!(asked.is_superset(&listed.into()), "{asked:?}");
    assert!(
        events.iter().all(|event| event.code() != Some(403)),
        "{events:#?}"
    );
}
