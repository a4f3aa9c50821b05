//! The rights that the chart gives, tried by the operator itself.

use std::collections::BTreeSet;

use crds::RegistryMirror;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use operator::admin_server::Health;
use operator::lease::{Fence, Lease};
use operator::rbac::{BY_ADMISSION, LEASE_CREATION, ON_AGENTS, ON_MIRRORS, ON_THE_LEASE, Rule};
use operator::run::{self, Options};
use serde_json::{Value, json};
use testbed::audit::Event;
use testbed::binaries::workspace;
use testbed::control_plane::{client_from, skip_on_existing_cluster};
use testbed::pki::Authority;
use testbed::wait;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::helm::Helm;
use crate::{SOON, mirror};

/// The namespace of the mirrors.
const NAMESPACE: &str = "mirrors";
/// The annotation that notifies a Pod of a change that it can reload.
const RELOAD: &str = "registrymirror.io/reload";

/// The API server refuses the operator nothing with the permissions of every namespace.
#[tokio::test]
async fn operator_is_refused_nothing_cluster_wide() {
    if !skip_on_existing_cluster("operator_is_refused_nothing_cluster_wide") {
        Box::pin(the_operator_is_refused_nothing(&[])).await;
    }
}

/// The API server refuses the operator nothing with the permissions of one namespace.
#[tokio::test]
async fn operator_is_refused_nothing_in_one_namespace() {
    if !skip_on_existing_cluster("operator_is_refused_nothing_in_one_namespace") {
        Box::pin(the_operator_is_refused_nothing(&[NAMESPACE])).await;
    }
}

/// Runs the operator as the chart's ServiceAccount.
async fn the_operator_is_refused_nothing(namespaces: &[&str]) {
    let cluster = Cluster::start().await;
    cluster.restricted_namespace(NAMESPACE).await;
    let scope = format!("--set-json=watchNamespaces={}", json!(namespaces));
    cluster.install(&[&scope]).await.unwrap();
    let audit = cluster.control_plane.audit().unwrap();
    let mark = audit.mark().unwrap();

    let account = cluster
        .control_plane
        .service_account_kubeconfig("operators", "rm-registry-mirror");
    let client = client_from(&account.await.unwrap()).await.unwrap();
    let options = Options {
        namespaces: namespaces.iter().map(ToString::to_string).collect(),
        ..Options::default()
    };
    let identity = "operator_of_this_test".to_owned();
    let lease = Lease::new(
        client.clone(),
        "operators",
        "rm-registry-mirror",
        identity,
        Fence::default(),
    );
    lease.acquire().await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(run::run(client, options, Health::default(), stop.clone()));
    Box::pin(live(&cluster)).await;
    stop.cancel();
    running.await.unwrap();
    lease.release().await;

    let user = "system:serviceaccount:operators:rm-registry-mirror";
    let mut events = audit.since(mark).unwrap();
    events.retain(|event| event.user() == user);
    assert_eq!(unused(&events), BTreeSet::new(), "what is granted is used");
    events.retain(|event| event.code() == Some(403));
    assert!(events.is_empty(), "{events:#?}");
}

/// Returns what the table of rights has and no request used, as `VERB RESOURCE`. Rights that only admission asks for are
/// in no audit log.
fn unused(events: &[Event]) -> BTreeSet<String> {
    let mut unused: BTreeSet<_> = [ON_MIRRORS, ON_THE_LEASE, LEASE_CREATION]
        .concat()
        .iter()
        .flat_map(of_rule)
        .collect();
    for right in BY_ADMISSION.iter().flat_map(of_rule) {
        assert!(unused.remove(&right), "{right} is not granted");
    }
    for event in events {
        let object = &event.object_ref;
        let resource = match object.subresource.as_str() {
            "" => object.resource.clone(),
            subresource => format!("{}/{subresource}", object.resource),
        };
        unused.remove(&format!("{} {resource}", event.verb));
        // An apply of what is not there needs both rights, and is a patch in the log.
        if event.verb == "patch" && event.code() == Some(201) {
            unused.remove(&format!("create {resource}"));
        }
    }
    unused
}

fn of_rule(rule: &Rule) -> Vec<String> {
    let resources = rule.resources.iter();
    resources
        .flat_map(|resource| rule.verbs.iter().map(move |verb| format!("{verb} {resource}")))
        .collect()
}

/// The rules of a rendered role, as the table has them.
fn rules(role: &Value) -> BTreeSet<String> {
    let list = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    let rules = role["rules"].as_array().unwrap().iter();
    rules
        .flat_map(|rule| {
            let group = list(&rule["apiGroups"]).remove(0);
            let (resources, verbs) = (list(&rule["resources"]), list(&rule["verbs"]));
            resources.into_iter().flat_map(move |resource| {
                let group = group.clone();
                verbs
                    .clone()
                    .into_iter()
                    .map(move |verb| format!("{verb} {resource} of {group}"))
            })
        })
        .collect()
}

/// The rules of a table, in the form of [`rules`].
fn wanted(table: &[Rule]) -> BTreeSet<String> {
    let of_group = |rule: &Rule| -> Vec<String> {
        let all = of_rule(rule).into_iter();
        all.map(|right| format!("{right} of {}", rule.group)).collect()
    };
    table.iter().flat_map(of_group).collect()
}

/// With node agents, the operator knows their Service, and may read its `EndpointSlice`s in that namespace alone.
#[tokio::test]
async fn operator_finds_agents_by_their_service() {
    let helm = Helm::offline().await;
    let flags = [
        "--set=nodeAgent.enabled=true",
        "--set=nodeAgent.namespaces={mirrors}",
    ];
    let objects = helm.template(&flags).await.unwrap();
    let slices = |object: &&Value| object["rules"].to_string().contains("endpointslices");
    let granted: Vec<_> = objects.iter().filter(slices).collect();
    assert_eq!(granted.len(), 1, "{granted:#?}");
    assert_eq!(
        (&granted[0]["kind"], &granted[0]["metadata"]["namespace"]),
        (&json!("Role"), &json!("operators"))
    );
    assert_eq!(rules(granted[0]), wanted(ON_AGENTS));
    let service = objects.iter().find(|object| {
        object["kind"] == "Service"
            && object["spec"]["selector"]["app.kubernetes.io/component"] == "node-agent"
    });
    let name = service.unwrap()["metadata"]["name"].as_str().unwrap();
    let operator = objects.iter().find(|object| object["kind"] == "Deployment");
    let arguments = &operator.unwrap()["spec"]["template"]["spec"]["containers"][0]["args"];
    let argument = json!(format!("--agent-service=operators/{name}"));
    assert!(arguments.as_array().unwrap().contains(&argument), "{arguments}");
    let without = helm.template(&[]).await.unwrap();
    assert!(!json!(without).to_string().contains("endpointslices"));
}

/// The chart grants exactly the permissions that the operator needs.
#[tokio::test]
async fn chart_grants_exactly_the_needed_permissions() {
    let helm = Helm::offline().await;
    let objects = helm.template(&[]).await.unwrap();
    let of = |name: &str| {
        objects
            .iter()
            .find(|o| o["rules"].is_array() && o["metadata"]["name"] == name)
            .unwrap()
    };
    assert_eq!(rules(of("rm-registry-mirror")), wanted(ON_MIRRORS));
    let lease = of("rm-registry-mirror-lease");
    assert_eq!(rules(lease), wanted(&[ON_THE_LEASE, LEASE_CREATION].concat()));
    assert_eq!(lease["rules"][0]["resourceNames"], json!(["rm-registry-mirror"]));
}

/// Takes mirrors through all kinds of changes: both workloads, a PVC, a reference that comes late, running Pods that
/// are notified of a change, and an object that is no longer wanted.
async fn live(cluster: &Cluster) {
    let mirrors = Api::<RegistryMirror>::namespaced(cluster.client.clone(), NAMESPACE);
    let claim = json!({"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"size": "1Gi"}});
    for mirror in [
        mirror("kept", &claim),
        mirror("fleeting", &json!({"type": "Ephemeral"})),
    ] {
        let created = async || mirrors.create(&PostParams::default(), &mirror).await.ok();
        wait::until("definition that takes a mirror", SOON, created)
            .await
            .unwrap();
    }
    let sets = Api::<StatefulSet>::namespaced(cluster.client.clone(), NAMESPACE);
    let deployments = Api::<Deployment>::namespaced(cluster.client.clone(), NAMESPACE);
    let both = async || {
        Some((
            sets.get_opt("kept").await.unwrap()?,
            deployments.get_opt("fleeting").await.unwrap()?,
        ))
    };
    let (set, _) = wait::until("workloads", SOON, both).await.unwrap();
    run_a_pod_of(cluster, set).await;

    let ca = json!({"tls": {"caBundleRef": {"kind": "ConfigMap", "name": "ca"}}, "host": "quay.io"});
    change_upstream(&mirrors, &ca).await;
    make_bundle(cluster).await;
    let files = Api::<Secret>::namespaced(cluster.client.clone(), NAMESPACE);
    let there = async || files.get_opt("kept-files").await.unwrap();
    wait::until("copy of the bundle", SOON, there).await.unwrap();
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), NAMESPACE);
    let reported = async || {
        pods.get("kept-0")
            .await
            .unwrap()
            .annotations()
            .get(RELOAD)
            .cloned()
    };
    wait::until("word to the running Pod", SOON, reported)
        .await
        .unwrap();

    // A budget comes with a second replica, and goes with it.
    let budgets = Api::<PodDisruptionBudget>::namespaced(cluster.client.clone(), NAMESPACE);
    for (replicas, expected) in [(2, true), (1, false)] {
        let scale = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        mirrors
            .patch("kept", &PatchParams::default(), &scale)
            .await
            .unwrap();
        let is_so = async || (budgets.get_opt("kept").await.unwrap().is_some() == expected).then_some(());
        wait::until("the budget of several replicas", SOON, is_so)
            .await
            .unwrap();
    }

    // Files for nodes are no longer wanted.
    let none = Patch::Merge(json!({"spec": {"nodeConfiguration": {"mode": "None"}}}));
    mirrors
        .patch("kept", &PatchParams::default(), &none)
        .await
        .unwrap();
    let maps = Api::<ConfigMap>::namespaced(cluster.client.clone(), NAMESPACE);
    let gone = async || maps.get_opt("kept-hosts").await.unwrap().is_none().then_some(());
    wait::until("end of the files for nodes", SOON, gone)
        .await
        .unwrap();

    // A repeated change is one event with a count.
    for paused in [true, false, true, false] {
        let pause = Patch::Merge(json!({"spec": {"paused": paused}}));
        mirrors
            .patch("fleeting", &PatchParams::default(), &pause)
            .await
            .unwrap();
        let reported = async || {
            let status = mirrors.get("fleeting").await.unwrap().status?;
            (status.conditions.iter().any(|c| c.type_ == "Paused") == paused).then_some(())
        };
        wait::until("word of the pause", SOON, reported).await.unwrap();
    }

    change_upstream(&mirrors, &json!({"host": "quay.io"})).await;
    let gone = async || files.get_opt("kept-files").await.unwrap().is_none().then_some(());
    wait::until("end of the copy of the bundle", SOON, gone)
        .await
        .unwrap();
}

/// As a StatefulSet's controller would: none runs here.
async fn run_a_pod_of(cluster: &Cluster, set: StatefulSet) {
    let template = set.spec.unwrap().template;
    let mut pod = Pod {
        metadata: template.metadata.unwrap(),
        spec: template.spec,
        ..Pod::default()
    };
    pod.metadata.name = Some("kept-0".to_owned());
    // The claim's volume is what the controller would add.
    for container in &mut pod.spec.as_mut().unwrap().containers {
        container
            .volume_mounts
            .as_mut()
            .unwrap()
            .retain(|mount| mount.name != "cache");
    }
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), NAMESPACE);
    pods.create(&PostParams::default(), &pod).await.unwrap();
}

async fn change_upstream(mirrors: &Api<RegistryMirror>, upstream: &Value) {
    let change = Patch::Merge(json!({"spec": {"upstreams": [upstream]}}));
    mirrors
        .patch("kept", &PatchParams::default(), &change)
        .await
        .unwrap();
}

async fn make_bundle(cluster: &Cluster) {
    let authority = Authority::new("an upstream's").unwrap();
    let mut bundle = ConfigMap {
        data: Some([("ca.crt".to_owned(), authority.certificate())].into()),
        ..ConfigMap::default()
    };
    bundle.metadata.name = Some("ca".to_owned());
    let maps = Api::<ConfigMap>::namespaced(cluster.client.clone(), NAMESPACE);
    maps.create(&PostParams::default(), &bundle).await.unwrap();
}

/// docs/security.md has a reason for each permission that the chart grants.
#[test]
fn every_permission_is_documented_with_a_reason() {
    let page = std::fs::read_to_string(workspace().join("docs/security.md")).unwrap();
    let section = page.split("## What the operator may do").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut documented = BTreeSet::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let (resources, verbs, reason) = (cells[1], cells[2], cells[3]);
        assert!(reason.split(' ').count() >= 5, "{row}");
        for resource in resources.split(", ").map(|resource| resource.trim_matches('`')) {
            documented.extend(verbs.split(", ").map(|verb| format!("{verb} {resource}")));
        }
    }
    let granted = [ON_MIRRORS, ON_THE_LEASE, LEASE_CREATION, ON_AGENTS].concat();
    let granted: BTreeSet<_> = granted.iter().flat_map(of_rule).collect();
    assert_eq!(documented, granted);
}
