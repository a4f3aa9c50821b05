//! Nodes with agents: their answers come from the testbed, their addresses from `EndpointSlice`s on a real API server.

use std::time::Duration;

use crds::conditions::{ConditionType, Reason};
use crds::status::NodesStatus;
use crds::{RegistryMirror, RegistryMirrorStatus};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use operator::node_poller::AgentService;
use serde_json::json;
use testbed::control_plane::skip_on_existing_cluster;
use testbed::fake_agent::{AgentAnswer, FakeAgent};
use testbed::upstream::{self, Upstream};
use testbed::wait;

use crate::bench::{Bench, ephemeral, push_one};
use crate::pods::{address, kubelet, pods};
use crate::rights;

const SERVICE: &str = "rm-agent";
/// Longer than the operator waits for an agent and for a second sweep.
const LONG: Duration = Duration::from_mins(3);

/// Starts an operator that knows the Service of agents.
async fn start(name: &str) -> Bench {
    let mut bench = Bench::idle(name).await;
    rights::grant_agents(&bench).await;
    bench.options.agent_service = Some(AgentService {
        namespace: bench.namespace.name().to_owned(),
        name: SERVICE.to_owned(),
    });
    bench.start_operator().await;
    bench
}

/// Publishes an agent as that of these nodes. The API server takes loopback addresses as names only.
async fn publish(bench: &Bench, agent: &FakeAgent, nodes: impl Iterator<Item = usize>) {
    let address = agent.address();
    let endpoints: Vec<_> = nodes
        .map(|node| json!({"addresses": [address.ip()], "nodeName": format!("node-{node:03}")}))
        .collect();
    bench
        .apply::<EndpointSlice>(json!({
            "metadata": {
                "name": format!("{SERVICE}-{}-{}", address.ip(), address.port()),
                "labels": {"kubernetes.io/service-name": SERVICE},
            },
            "addressType": "FQDN",
            "ports": [{"name": "health", "port": address.port()}],
            "endpoints": endpoints,
        }))
        .await;
}

async fn managed(bench: &Bench, name: &str) {
    let mut spec = ephemeral();
    spec["nodeConfiguration"] = json!({"mode": "Manage"});
    bench.mirror(name, spec).await;
}

/// Waits until the status has these numbers of nodes.
async fn until_nodes(bench: &Bench, expected: NodesStatus) -> RegistryMirrorStatus {
    let api = bench.api::<RegistryMirror>();
    let found = wait::until("numbers of nodes", LONG, async || {
        let status = api.get_opt("hub").await.unwrap()?.status?;
        (status.nodes == Some(expected)).then_some(status)
    })
    .await;
    let last = api.get_opt("hub").await.unwrap().and_then(|mirror| mirror.status);
    found.unwrap_or_else(|error| panic!("{error}: {last:#?}"))
}

fn numbers(total: i32, configured: i32, bypassed: i32) -> NodesStatus {
    NodesStatus {
        total,
        configured,
        bypassed,
        failing: total - configured - bypassed,
        pulling: 0,
    }
}

/// Pulls a manifest through the first server, from an address of this machine.
async fn pull_from(bench: &Bench, ip: &str) {
    testbed::install_crypto_provider();
    let server = address(&pods(bench).await[0]);
    let url = format!("http://{server}:5000/v2/team/app/manifests/one");
    let local = Some(ip.parse().unwrap());
    let client = reqwest::Client::builder().local_address(local).build().unwrap();
    assert_eq!(client.get(&url).send().await.unwrap().status(), 200);
}

/// A change of 1,000 nodes is one write of the status, and none follows at rest.
#[tokio::test]
async fn thousand_nodes_cost_one_write_per_change() {
    if skip_on_existing_cluster("thousand_nodes_cost_one_write_per_change") {
        return;
    }
    let bench = start("nodes").await;
    let answer = |state| AgentAnswer::states(bench.namespace.name(), &[("hub", state)]);
    let mut agents = Vec::new();
    for group in 0..10 {
        let agent = FakeAgent::start("127.0.0.1", answer("Configured")).await.unwrap();
        publish(&bench, &agent, (0..100).map(|node| group * 100 + node)).await;
        agents.push(agent);
    }
    managed(&bench, "hub").await;
    until_nodes(&bench, numbers(1000, 1000, 0)).await;
    bench
        .until_hub(ConditionType::NodesConfigured, "True", Reason::AllNodesConfigured)
        .await;
    bench.until_nothing_is_written().await;

    let mark = bench.mark().await;
    for agent in &agents {
        agent.set(answer("Bypassed"));
    }
    until_nodes(&bench, numbers(1000, 0, 1000)).await;
    let bypassed = bench
        .until_hub(ConditionType::NodesConfigured, "False", Reason::Bypassed)
        .await;
    assert!(
        bypassed
            .message
            .contains("Bypassed on node-000, node-001, node-002, node-003, node-004 and 995 more"),
        "{}",
        bypassed.message
    );
    bench.until_nothing_is_written().await;
    assert_eq!(bench.writes(mark), ["patch registrymirrors hub status"]);
    let mirror = bench.get::<RegistryMirror>("hub").await.unwrap();
    let ready = crate::bench::condition(&mirror, ConditionType::Ready).unwrap();
    assert_ne!(ready.reason, "Bypassed", "not part of Ready");
}

/// Each state that an agent reports of a mirror is a reason of the condition.
#[tokio::test]
async fn states_of_agents_are_reasons_of_the_condition() {
    let bench = start("agents").await;
    let states = [
        ("conflict", "Conflict"),
        ("path", "ConfigPathMissing"),
        ("inline", "InlineMirrors"),
        ("readonly", "ReadOnly"),
        ("unsupported", "Unsupported"),
        ("fine", "Configured"),
    ];
    let answer = AgentAnswer::states(bench.namespace.name(), &states);
    let good = FakeAgent::start("127.0.0.1", answer).await.unwrap();
    publish(&bench, &good, 0..1).await;
    let hanging = FakeAgent::start("127.0.0.1", AgentAnswer::Hang).await.unwrap();
    publish(&bench, &hanging, 1..2).await;
    for (name, _) in states {
        managed(&bench, name).await;
    }
    managed(&bench, "other").await;
    let kind = ConditionType::NodesConfigured;
    assert_eq!(kind.as_str(), "NodesConfigured");
    bench
        .until_condition(
            "conflict",
            ConditionType::NodesConfigured,
            "False",
            Reason::Conflict,
        )
        .await;
    bench
        .until_condition(
            "path",
            ConditionType::NodesConfigured,
            "False",
            Reason::ConfigPathMissing,
        )
        .await;
    bench
        .until_condition(
            "inline",
            ConditionType::NodesConfigured,
            "False",
            Reason::InlineMirrors,
        )
        .await;
    bench
        .until_condition(
            "readonly",
            ConditionType::NodesConfigured,
            "False",
            Reason::ReadOnly,
        )
        .await;
    bench
        .until_condition(
            "unsupported",
            ConditionType::NodesConfigured,
            "False",
            Reason::Unsupported,
        )
        .await;
    bench
        .until_condition(
            "other",
            ConditionType::NodesConfigured,
            "False",
            Reason::NotManaged,
        )
        .await;
    let silent = bench
        .until_condition(
            "fine",
            ConditionType::NodesConfigured,
            "False",
            Reason::AgentUnresponsive,
        )
        .await;
    assert!(
        silent
            .message
            .starts_with("1 of 2 nodes have the files; AgentUnresponsive on node-001:"),
        "{}",
        silent.message
    );
}

/// An agent that hangs, lies, answers with garbage, too much or the report of another version is a failing node, and
/// delays no other.
#[tokio::test]
async fn faulty_agents_are_failing_nodes_only() {
    let bench = start("faulty").await;
    let namespace = bench.namespace.name().to_owned();
    let newer = json!({
        "version": "9.0.0", "node": "node-000", "runtime": "novel", "directory": null, "feature": {"a": 1},
        "addresses": ["10.0.0.1"], "mirrors": [{
            "namespace": namespace, "name": "hub", "state": "Novel", "since": "2026-01-01T00:00:00Z", "message": "",
            "detail": [],
        }],
    });
    let many: Vec<_> = (0..1000).map(|_| ("hub", "Configured")).collect();
    let answers = [
        AgentAnswer::states(&namespace, &many),
        AgentAnswer::Hang,
        AgentAnswer::Garbage,
        AgentAnswer::Huge,
        AgentAnswer::Error,
        AgentAnswer::Report(json!({"mirrors": "none"})),
        AgentAnswer::Report(newer),
    ];
    let mut agents = Vec::new();
    for (node, answer) in answers.into_iter().enumerate() {
        let agent = FakeAgent::start("127.0.0.1", answer).await.unwrap();
        publish(&bench, &agent, node..=node).await;
        agents.push(agent);
    }
    managed(&bench, "hub").await;
    until_nodes(&bench, numbers(7, 1, 0)).await;

    let last = agents.pop().unwrap();
    last.set(AgentAnswer::states(&namespace, &[("hub", "Bypassed")]));
    until_nodes(&bench, numbers(7, 1, 1)).await;
    // Without mode Manage, the status has no nodes.
    bench.mirror("hub", ephemeral()).await;
    bench
        .until("hub", "a status without nodes", |mirror: &RegistryMirror| {
            let status = mirror.status.as_ref()?;
            let has_condition = crate::bench::condition(mirror, ConditionType::NodesConfigured).is_some();
            (status.nodes.is_none() && !has_condition).then_some(())
        })
        .await;
}

/// Without a Service of agents the status says that there is none, at once.
#[tokio::test]
async fn mirror_without_agents_is_reported() {
    let bench = Bench::start("agentless").await;
    managed(&bench, "hub").await;
    let absent = bench
        .until_hub(ConditionType::NodesConfigured, "False", Reason::AgentAbsent)
        .await;
    assert!(absent.message.contains("nodeAgent.enabled"), "{}", absent.message);
    until_nodes(&bench, numbers(0, 0, 0)).await;
}

/// A node whose address pulled from a server counts as pulling; an agent that claims the address of another node takes
/// nothing for itself.
#[tokio::test]
async fn node_that_pulled_is_counted() {
    let bench = start("pulling").await;
    let _kubelet = kubelet(&bench).await;
    let upstream = Upstream::start(upstream::Options::default()).await.unwrap();
    push_one(&upstream, 9).await;
    let answer = AgentAnswer::states(bench.namespace.name(), &[("hub", "Configured")]);
    let mut agents = Vec::new();
    for node in 0..3 {
        let ip = format!("127.0.7.{}", node + 1);
        let agent = FakeAgent::start(&ip, answer.clone()).await.unwrap();
        publish(&bench, &agent, node..=node).await;
        agents.push(agent);
    }
    let mut liar = answer.clone();
    if let AgentAnswer::Report(report) = &mut liar {
        report["addresses"] = json!(["127.0.7.2"]);
    }
    agents[2].set(liar);
    let spec = json!({
        "upstreams": [{"host": "quay.io", "remoteURL": upstream.url()}], "storage": {"type": "Ephemeral"},
        "nodeConfiguration": {"mode": "Manage"},
    });
    bench.mirror("hub", spec).await;
    bench.until_ready().await;
    until_nodes(&bench, numbers(3, 3, 0)).await;
    for node in ["127.0.7.1", "127.0.7.2"] {
        pull_from(&bench, node).await;
    }
    // The second node's address is claimed by two.
    let pulling = NodesStatus {
        pulling: 1,
        ..numbers(3, 3, 0)
    };
    until_nodes(&bench, pulling).await;
}

/// Makes a node whose agent is a Pod of the bench. `agent` is absent for a node without one.
async fn node(bench: &Bench, name: &str, ip: &str, agent: Option<&FakeAgent>) {
    let client = bench.control_plane.client().await;
    let nodes = Api::<Node>::all(client);
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    let params = PatchParams::apply("admin").force();
    nodes.patch(name, &params, &Patch::Apply(&object)).await.unwrap();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": ip}],
        "images": [{"names": ["quay.io/team/app:one"], "sizeBytes": 1}],
    }});
    let params = PatchParams::default();
    nodes
        .patch_status(name, &params, &Patch::Merge(&status))
        .await
        .unwrap();
    let Some(agent) = agent else { return };
    bench
        .apply::<ServiceAccount>(json!({"metadata": {"name": "default"}}))
        .await;
    let port = agent.address().port();
    bench
        .apply::<Pod>(json!({
            "metadata": {"name": format!("agent-{}", port), "labels": {
                "app.kubernetes.io/name": "registry-mirror", "app.kubernetes.io/component": "node-agent",
            }},
            "spec": {"nodeName": name, "containers": [{
                "name": "agent", "image": "agent", "ports": [{"name": "health", "containerPort": port}],
            }]},
        }))
        .await;
    let status = json!({"status": {"podIP": agent.address().ip(), "podIPs": [{"ip": agent.address().ip()}]}});
    let pods = bench.api::<Pod>();
    let name = format!("agent-{port}");
    pods.patch_status(&name, &params, &Patch::Merge(&status))
        .await
        .unwrap();
}

/// `doctor --nodes` lists each node with its state and its last pull, and warns of a node that pulled nothing although it
/// has images of the mirror's registry.
#[tokio::test]
async fn doctor_lists_nodes_and_their_pulls() {
    let bench = Bench::start("doctor-nodes").await;
    let _kubelet = kubelet(&bench).await;
    let upstream = Upstream::start(upstream::Options::default()).await.unwrap();
    push_one(&upstream, 11).await;
    let spec = json!({
        "upstreams": [{"host": "quay.io", "remoteURL": upstream.url()}], "storage": {"type": "Ephemeral"},
        "nodeConfiguration": {"mode": "Manage"},
    });
    bench.mirror("hub", spec).await;
    bench.until_ready().await;
    pull_from(&bench, "127.0.8.1").await;
    let namespace = bench.namespace.name();
    let name = |node: &str| format!("{namespace}-{node}");
    let answer = AgentAnswer::states(namespace, &[("hub", "Configured")]);
    let pulling = FakeAgent::start("127.0.8.1", answer.clone()).await.unwrap();
    node(&bench, &name("pulling"), "127.0.8.1", Some(&pulling)).await;
    let idle = FakeAgent::start("127.0.8.2", answer).await.unwrap();
    node(&bench, &name("idle"), "127.0.8.2", Some(&idle)).await;
    let garbage = FakeAgent::start("127.0.8.3", AgentAnswer::Garbage).await.unwrap();
    node(&bench, &name("silent"), "127.0.8.3", Some(&garbage)).await;
    node(&bench, &name("alone"), "127.0.8.4", None).await;

    let report = crate::doctor::on(&bench, &["--nodes"]).await.json();
    let findings = report["findings"].as_array().unwrap();
    let of = |node: &str| {
        let mut found = findings
            .iter()
            .filter(|finding| finding["subject"] == name(node).as_str());
        let finding = found.next().unwrap_or_else(|| panic!("{node}: {report:#}"));
        let text = |key: &str| finding[key].as_str().unwrap().to_owned();
        (text("result"), text("message"))
    };
    let (result, message) = of("pulling");
    assert!(
        result == "ok" && message.contains("Configured since 2026-01-01T00:00:00Z, last pull 2"),
        "{message}"
    );
    let (result, message) = of("idle");
    assert!(
        result == "warning" && message.contains("quay.io/team/app:one"),
        "{message}"
    );
    let (result, message) = of("silent");
    assert!(
        result == "problem" && message.contains("does not answer"),
        "{message}"
    );
    assert_eq!(
        of("alone"),
        ("warning".to_owned(), "no node agent runs on the node".to_owned())
    );

    let nodes = Api::<Node>::all(bench.control_plane.client().await);
    for node in ["pulling", "idle", "silent", "alone"] {
        nodes.delete(&name(node), &DeleteParams::default()).await.unwrap();
    }
}
